"""The empirical tangent kernel of a torch module, from factors of its Jacobian."""

from sdgpu.kernels.empirical_ntk.tangent_kernel import EmpiricalNTK

__all__ = ["EmpiricalNTK"]
