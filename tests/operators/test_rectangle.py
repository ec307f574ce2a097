"""Rectangles of K, multiplied from both sides, against the dense matrix: torch's passes and the compiled loop."""

import numpy as np
import pytest
import torch

from sdgpu.operators import DenseOperator, TiledOperator
from sdgpu.operators.rectangle import sides_of_rows
from tests.operators.test_sharded import KERNELS
from tests.problems import assert_near

SIZES = [(1, 1), (3, 70), (70, 3), (64, 64), (63, 65), (130, 129), (300, 20), (0, 5), (5, 0)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("precision", ["float64", "mixed", "float32"])
@pytest.mark.parametrize("compiled", [False, True])
def test_both_sides_of_a_rectangle(compiled, precision, workers, rng, monkeypatch):
    """Numbers of rows that are no multiples of anything, 1 to 5 columns, tiles smaller than a side."""
    monkeypatch.setattr("sdgpu.operators.tiled.pays_to_compile", lambda *_: compiled)
    monkeypatch.setattr("sdgpu.operators.tiled.TILE_FUSED", 48)
    monkeypatch.setattr("sdgpu.operators.tiled.count", lambda: 2)
    used = []
    original = TiledOperator.corner_product

    def corner_product(self, V, corner):
        used.append(corner)
        return original(self, V, corner)

    monkeypatch.setattr(TiledOperator, "corner_product", corner_product)
    for number, (m, n) in enumerate(SIZES):
        kernel, c = KERNELS[number % len(KERNELS)], 1 + number % 5
        A, B = (torch.from_numpy(rng.standard_normal((size, 3))) for size in (m, n))
        V, W = (torch.from_numpy(rng.standard_normal((size, c))) for size in (m, n))
        centre = torch.zeros(3, dtype=torch.float64)
        how = {"workers": workers, "checked": True, "centre": centre}
        operator = TiledOperator(kernel, A if m else B, precision, **how)
        high, low = sides_of_rows(operator, (A, B), (V, W))
        if not m or not n:
            assert not high.any()
            assert not low.any()
            continue
        K = np.asarray(DenseOperator(kernel, B.numpy()).cross(A.numpy()))
        rtol = 1e-12 if precision == "float64" else 2e-6 * (m + n) ** 0.5
        assert_near(high.numpy(), K @ W.numpy(), rtol)
        assert_near(low.numpy(), K.T @ V.numpy(), rtol)
        assert high.dtype == low.dtype == torch.float64
    assert bool(used) == compiled
    assert all(corner % 64 == 0 for corner in used)
