"""Powers, logarithms and angles of machine code against extended precision."""

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from sdgpu.kernels.compiled.machine_code import Code, compiled, vector_lanes

RNG = np.random.default_rng(0)


def applied(function, *arrays):
    """function(vectors ..) of arrays, as machine code."""
    dtype = arrays[0].dtype.name
    lanes = vector_lanes(dtype)
    code = Code()
    names = [f"x{k}" for k in range(len(arrays))]
    given = code.function("apply", **dict.fromkeys([*names, "out"], dtype), n="index")
    with code.loop(0, given["n"], lanes) as place:
        vectors = [given[name].load(place, lanes) for name in names]
        given["out"].store(place, function(*vectors))
    code.end()
    size = len(arrays[0])
    room = [np.pad(array, (0, -size % lanes), mode="edge") for array in arrays]
    room.append(np.empty_like(room[0]))
    run = compiled(str(code.module)).function("apply", len(room) + 1)
    run(*(array.ctypes.data for array in room), size)
    return room[-1][:size]


def ulps(found, wanted):
    """Errors in units in the last place of the wanted numbers."""
    wanted = np.asarray(wanted, dtype=np.longdouble)
    spacing = np.spacing(np.abs(wanted.astype(found.dtype)))
    return float(np.max(np.abs(found.astype(np.longdouble) - wanted) / spacing))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_of_two(dtype):
    limits = np.finfo(dtype)
    t = RNG.uniform(np.log2(limits.tiny), np.log2(limits.max) * 0.999, 4000).astype(dtype)
    t = np.concatenate(
        [t, np.geomspace(1e-30, 1, 200).astype(dtype), np.arange(-30, 30).astype(dtype)]
    )
    wanted = np.exp2(t.astype(np.longdouble))
    assert ulps(applied(lambda x: x.exp2(), t), wanted) <= 2
    # where it is known that they stay finite registers may hold a table
    t, wanted = t[t < 1], wanted[t < 1]
    t = np.concatenate([t, [0, -0.0, 1 / 32, np.nextafter(1 / 32, 0)]]).astype(dtype)
    wanted = np.exp2(t.astype(np.longdouble))
    assert ulps(applied(lambda x: x.known(-np.inf, 1.0).exp2(), t), wanted) <= 1.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_below_the_smallest_normal_number_are_zero(dtype):
    lowest = np.log2(np.finfo(dtype).tiny)
    t = np.array(
        [lowest, np.nextafter(lowest, -np.inf), lowest - 1, lowest - 30, -1e30, -np.inf], dtype
    )
    for high in (0.0, np.inf):
        found = applied(lambda x, high=high: x.known(-np.inf, high).exp2(), t)
        assert found[0] == np.finfo(dtype).tiny
        assert (found[1:] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_power_that_is_too_large_is_infinite(dtype):
    t = np.array([2 - np.log2(np.finfo(dtype).tiny), 1e30, np.inf], dtype)
    assert np.isinf(applied(lambda x: x.exp2(), t)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logarithms(dtype):
    limits = np.finfo(dtype)
    x = np.exp2(RNG.uniform(np.log2(limits.tiny), np.log2(limits.max), 4000)).astype(dtype)
    assert ulps(applied(lambda x: x.log2(), x), np.log2(x.astype(np.longdouble))) <= 3
    near = (1 + RNG.uniform(-1e-3, 1e-3, 1000)).astype(dtype)
    assert ulps(applied(lambda x: x.log(), near), np.log(near.astype(np.longdouble))) <= 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles(dtype):
    y, x = RNG.standard_normal((2, 4000)) * np.exp(RNG.uniform(-20, 20, (2, 4000)))
    y, x = (
        np.concatenate([v, extra]).astype(dtype)
        for v, extra in ((y, [0, 0, 1, -1, 3]), (x, [0, -2, 0, 0, 3]))
    )
    wanted = np.arctan2(y.astype(np.longdouble), x.astype(np.longdouble))
    assert ulps(applied(lambda y, x: y.atan2(x), y, x), wanted) <= 4
    s = RNG.uniform(-1, 1, 1000).astype(dtype)
    found = applied(lambda s: s.asin(), s)
    assert np.max(np.abs(found - np.arcsin(s.astype(np.longdouble)))) <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 7, -1, -4, 0.5, 1.5, -0.3, 70])
def test_powers(dtype, exponent):
    x = RNG.uniform(0.3, 3, 1000).astype(dtype)
    found = applied(lambda x: x**exponent, x)
    wanted = x.astype(np.longdouble) ** exponent
    eps = np.finfo(dtype).eps
    assert np.max(np.abs(found / wanted - 1)) <= (4 + 3 * abs(exponent)) * eps


def test_what_is_known_of_numbers_is_true():
    """Bounds that let checks be left out hold for the numbers themselves."""
    x = RNG.standard_normal(64)
    seen = {}

    def function(v):
        results = {
            "clip": v.clip(-0.5, 0.5),
            "abs": abs(v),
            "sum": v.clip(-1, 1) + v.clip(0, 2),
            "difference": 1.0 - v.clip(0, 2),
            "multiple": -2.0 * v.clip(0, 3),
            "square": v * v,
            "power": v.clip(-3, 0).exp2(),
            "root": abs(v).sqrt(),
            "angle": abs(v).atan2(v),
            "quotient": abs(v) / (v * v + 1.0),
            "smaller": v.clip(-1, 1).smaller(0.25),
            "even": v**2,
        }
        seen.update({name: (one.low, one.high) for name, one in results.items()})
        return results

    applied(lambda v: (function(v), v)[1], x)
    for name in seen:
        found = applied(lambda v, name=name: function(v)[name], x)
        low, high = seen[name]
        assert low <= found.min(), name
        assert found.max() <= high, name


def test_a_formula_that_depends_on_its_values_is_none():
    x = RNG.standard_normal(8)
    with pytest.raises(TypeError, match="depends on its own values"):
        applied(lambda v: v if v > 0 else -v, x)
    with pytest.raises(TypeError, match="depends on its own values"):
        applied(lambda v: v or v, x)
