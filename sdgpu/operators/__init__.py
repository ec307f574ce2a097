"""Operators: the kernel matrix as something that multiplies."""

from __future__ import annotations

from sdgpu.operators.cross import Cross
from sdgpu.operators.dense import DenseOperator
from sdgpu.operators.keops import KeOpsOperator
from sdgpu.operators.operator import Operator
from sdgpu.operators.sharded import ShardedOperator
from sdgpu.operators.sparse_gram import SparseOperator
from sdgpu.operators.tiled import TiledOperator

__all__ = [
    "Cross",
    "DenseOperator",
    "KeOpsOperator",
    "Operator",
    "ShardedOperator",
    "SparseOperator",
    "TiledOperator",
]
