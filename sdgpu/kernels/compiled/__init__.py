"""Kernels as machine code for the CPU: a profile is run once, on symbols that write its instructions.

:mod:`~sdgpu.kernels.compiled.vectors` are the symbols, numbers in registers, with powers, logarithms and
angles from :mod:`~sdgpu.kernels.compiled.elementary_functions`; :mod:`~sdgpu.kernels.compiled.machine_code`
writes loops over them and has them compiled; :mod:`~sdgpu.kernels.compiled.tile_code` is a tile of any
kernel that has a formula, :mod:`~sdgpu.kernels.compiled.row_table` the rows as it reads them, and
:mod:`~sdgpu.kernels.compiled.kernel_blocks` whole matrices. llvmlite (extra ``fast``) is imported here
alone; where it is missing everything works by the passes of the array libraries.
"""
