"""Solvers: frozen values that make a spectrum of an operator, or solve with it.

==================  ==========================================================================
method              where
==================  ==========================================================================
"eigh"              :mod:`~sdgpu.solvers.eigh`: all eigenvalues
"lanczos"           :mod:`~sdgpu.solvers.subspace`: block Lanczos, the step is
                    :meth:`Subspace._next_krylov`, the basis :mod:`~sdgpu.solvers.galerkin`
"subspace"          the same with a preconditioner, :mod:`~sdgpu.solvers.preconditioners`
"cg"                :mod:`~sdgpu.solvers.cg`, for all steps :mod:`~sdgpu.solvers.resolvents`
refits              :mod:`~sdgpu.solvers.cholesky`
one's own           :class:`~sdgpu.solvers.solver.Solver`
==================  ==========================================================================

What they return is a :class:`~sdgpu.solvers.solution.Solution`; what is not known of a grown basis is
estimated in :mod:`~sdgpu.solvers.leverage` and :mod:`~sdgpu.solvers.trace_estimation`.
"""

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
