"""Solvers: frozen values that make a spectrum of an operator, or solve with it."""

from __future__ import annotations

from sdgpu.solvers.cg import CG
from sdgpu.solvers.cholesky import Cholesky
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.solver import Solver
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.subspace import Subspace

__all__ = [
    "CG",
    "Cholesky",
    "Eigh",
    "Solution",
    "Solver",
    "SpectralSolution",
    "Spectrum",
    "Subspace",
]
