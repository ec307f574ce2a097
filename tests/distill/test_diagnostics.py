"""Ratios (14), the sign rule (15), degrees of freedom and effective spectra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.diagnostics import (
    degrees_of_freedom,
    effective_eigenvalues,
    ratio_change_sign,
    ratios,
    sign_rule,
)
from sdgpu.distill.filters import shrinkage, train_filter

DELTA = np.array([0.1, 0.3, 0.8, 2.0, 5.0])


def test_ratios_are_equation_14():
    lam = 0.2
    base = (1 + lam / DELTA[:-1]) / (1 + lam / DELTA[1:])
    for alpha, powers in ((0.0, np.arange(1, 6)[:, None]), (1.0, np.ones((5, 1)))):
        R = ratios(train_filter(DELTA, lam, np.full(4, alpha)))
        assert_allclose(R, base**powers, rtol=1e-12)


def test_ratios_at_zero_eigenvalues():
    R = ratios(train_filter(np.array([0.0, 0.0, 1.0]), 0.2, np.zeros(1)))
    assert np.isnan(R[:, 0]).all()
    assert np.isinf(R[:, 1]).all()


@given(st.floats(0.02, 0.98), st.floats(0.05, 5.0))
def test_sign_rule_15_where_it_holds(alpha, lam):
    B = train_filter(DELTA, lam, np.full(5, alpha))
    R = ratios(B)
    clear = np.abs(np.diff(R, axis=0)) > 1e-9 * R[1:]  # a sign of rounding noise is no sign
    expected = ratio_change_sign(B)
    found = sign_rule(DELTA, lam, alpha, 6)
    assert (found == expected)[clear].all()


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 1.0, 1.4])
def test_sign_rule_refuses_what_it_is_wrong_for(alpha):
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        sign_rule(DELTA, 0.1, alpha, 3)


def test_sparsification_of_alpha_zero_always_grows(backend):
    B = train_filter(backend.asarray(DELTA), 0.2, np.zeros(5))
    assert (to_numpy(ratio_change_sign(B)) == 1).all()


def test_degrees_of_freedom_are_traces():
    B = train_filter(DELTA, 0.2, np.array([0.3]))
    assert_allclose(degrees_of_freedom(B)[0], np.sum(DELTA / (DELTA + 0.2)))
    lams = np.array([0.2, 3.0])
    many = degrees_of_freedom(train_filter(DELTA, lams, np.array([0.3])))
    assert_allclose(many[:, 0], [np.sum(DELTA / (DELTA + lam)) for lam in lams])


def test_effective_spectrum_does_the_same_in_one_ridge(backend):
    B = train_filter(backend.asarray(DELTA), 0.2, np.full(3, 0.25))
    effective = to_numpy(effective_eigenvalues(B, 0.7))
    assert_allclose(shrinkage(effective, 0.7), to_numpy(B), rtol=1e-12)


def test_effective_spectrum_outside_its_range_is_nan():
    B = np.array([-0.1, 0.5, 1.0, 1.2, 0.0])
    found = effective_eigenvalues(B, 1.0)
    assert np.isnan(found).tolist() == [True, False, True, True, False]
    assert found[1] == 1
    assert found[4] == 0
