"""Operators: the kernel matrix as something that multiplies."""

from __future__ import annotations

from sdgpu.operators.dense import Cross, DenseOperator

__all__ = ["Cross", "DenseOperator"]
