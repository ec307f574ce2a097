"""Operators: the kernel matrix as something that multiplies."""

from __future__ import annotations

from sdgpu.operators.dense import Cross, DenseOperator
from sdgpu.operators.keops import KeOpsOperator
from sdgpu.operators.tiled import TiledOperator

__all__ = ["Cross", "DenseOperator", "KeOpsOperator", "TiledOperator"]
