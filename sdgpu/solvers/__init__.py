"""Solvers: frozen values that make a spectrum of an operator, or solve with it."""

from __future__ import annotations

from sdgpu.solvers.cholesky import Cholesky
from sdgpu.solvers.eigh import Eigh

__all__ = ["Cholesky", "Eigh"]
