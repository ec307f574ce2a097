"""The checks, the most telling first: add a line, and a function where it points to."""

from __future__ import annotations

from benchmarks.gpu_check.check import Check

__all__ = ["CHECKS", "TOTAL_SECONDS"]

TOTAL_SECONDS = 1200

CHECKS = (
    Check("machine", "libraries:machine", 60),
    Check("placement and waits of a pass", "placement:passes", 90),
    Check("fits by every method against the CPU", "placement:fits", 120),
    Check("eigendecomposition against SciPy", "libraries:eigendecompositions", 120),
    Check("failures are errors, not numbers", "libraries:failures", 60),
    Check("products: torch's tiles", "products:tiles", 90),
    Check("products: Triton against torch's tiles", "products:triton", 90),
    Check("products: KeOps against torch's tiles", "products:keops", 120),
    Check("training: options against a plain one", "training:options", 180),
    Check("training: CUDA graphs and compile", "training:compiled", 150),
    Check("NCCL, one rank", "ranks:one", 90),
    Check("NCCL, two ranks", "ranks:two", 90),
    Check("grid on 100,000 rows", "grids:hundred_thousand", 180),
    Check("grid on 1,000,000 rows, features", "grids:million_features", 120),
    Check("products: Triton for every kernel", "products:every_kernel", 240),
    Check("what cuSOLVER takes", "libraries:largest", 150),
    Check("tests marked gpu", "placement:marked_tests", 240),
    Check("grid on 1,000,000 rows, products", "grids:million_products", 240),
)
