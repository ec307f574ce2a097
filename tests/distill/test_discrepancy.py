"""The discrepancy principle: the largest lam that leaves no more than is wanted."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdgpu.distill.discrepancy import lam_of_residual
from sdgpu.distill.smoothers import as_smoother

SMOOTHERS = ["gradient_flow", "iterated", "landweber", "cutoff"]


@settings(max_examples=100, deadline=None)
@given(
    exponents=st.lists(st.floats(-6, 6), min_size=1, max_size=8),
    share=st.floats(1e-12, 1 - 1e-12),
    name=st.sampled_from(SMOOTHERS),
)
def test_the_lam_of_a_residual(exponents, share, name):
    """No larger lam leaves as little, whatever the eigenvalues and the part that is left."""
    delta = np.sort(10.0 ** np.array(exponents))
    weights = np.random.default_rng(0).uniform(0.1, 1.0, len(delta))
    smoother, total = as_smoother(name), float(weights.sum())
    how = {"residual": share * total, "explained": (1 - share) * total}
    smallest = 1e-16 * delta[-1] if name == "landweber" else 1e-3 * delta[0]
    left = smoother.complement(delta, smallest) ** 2 @ weights
    if left > share * total:
        return
    lam = lam_of_residual(smoother, delta, weights, smallest=smallest, **how)
    g, rest = smoother.shrinkage(delta, lam), smoother.complement(delta, lam)
    slack = 1e-12 * min(how.values())
    assert rest**2 @ weights <= how["residual"] + slack + 1e-15 * total
    if name in ("gradient_flow", "iterated"):
        found = (g * (1 + rest)) @ weights if share > 0.5 else rest**2 @ weights
        np.testing.assert_allclose(found, min(how.values()), rtol=1e-12)
    elif name == "cutoff":
        following = delta[delta >= lam].min()  # and what equals it
        assert weights[delta <= following].sum() > how["residual"] * (1 - 1e-12)
