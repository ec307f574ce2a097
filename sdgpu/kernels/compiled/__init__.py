"""Kernels as machine code for the CPU: a profile is run once, on symbols that write its instructions.

:mod:`~sdgpu.kernels.compiled.vector_code` writes loops over vectors of numbers and has them compiled,
:mod:`~sdgpu.kernels.compiled.elementary_functions` holds powers, logarithms and angles of such vectors, and
:mod:`~sdgpu.kernels.compiled.tile_code` a tile of any kernel that has a formula. Only the first imports
llvmlite (extra ``fast``); where it is missing everything works by the passes of the array libraries.
"""
