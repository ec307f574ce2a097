"""The time that is left: nothing is said before there is something to say, then it holds."""

import math

import numpy as np
import pytest

import sdgpu
from sdgpu.backend import progress as timing
from sdgpu.backend.progress import Stopwatch
from sdgpu.solvers.forecast import Decay

# errors by passes and seconds of passes: slopes that hold, that steepen, with noise, with a plateau
P = np.arange(1, 61)
NOISE = np.random.default_rng(0).lognormal(0, 0.5, size=60)
COURSES = {
    "steady": (10.0 ** (-P / 10), np.ones(60)),
    "steady, noisy": (10.0 ** (-P / 10) * NOISE, np.ones(60)),
    "ever faster": (10.0 ** (-((P / 25) ** 2)), np.ones(60)),
    "ever faster, dear, noisy": (10.0 ** (-((P / 25) ** 2)) * NOISE, 0.1 + (P / 30) ** 2),
    "dear": (10.0 ** (-P / 10), P / 10),
    "late": (np.minimum(2.0, 10.0 ** ((15 - P) / 5)), np.ones(60)),
    "a slow start": (10.0 ** (-P / 10), np.r_[30.0, np.ones(59)]),
    # measured: Gaussian, n = 1,200, lam = 1e-4, subspace, every fifth pass
    "measured": (
        np.interp(np.arange(1, 96), np.r_[1, 5, 10:90:5, 90, 95],
                  np.log([0.4, 1.2, 1.6, 1.3, 1.0, 0.9, 0.69, 0.62, 0.49, 0.25, 0.23, 0.15, 0.06,
                          0.025, 0.014, 3.1e-3, 2.2e-4, 1.5e-5, 2.7e-7, 7.6e-9])),
        np.interp(np.arange(1, 96), [1, 40, 60, 80, 95], [0.02, 0.07, 0.12, 0.25, 0.9]),
    ),
}  # fmt: skip
COURSES["measured"] = (np.exp(COURSES["measured"][0]), COURSES["measured"][1])


@pytest.mark.parametrize("name", list(COURSES))
def test_the_second_half_is_within_a_factor_of_two(name, monkeypatch):
    errors, seconds = COURSES[name]
    goal = 1e-8 if name == "measured" else 1e-5
    last = int(np.flatnonzero(errors <= goal)[0]) + 1
    clock, heard = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    watch, decay = Stopwatch(lambda: None, progress=heard.append), Decay(goal)
    watch.report("passes", 0, 1)
    times = []
    for passes in range(1, last + 1):
        clock[0] += seconds[passes - 1]
        times.append(clock[0])
        decay.note(passes, errors[passes - 1])
        expected = decay.expected
        watch.report("passes", passes, expected or 200, total_known=expected is not None)
    left = np.array([event.seconds_left for event in heard[1:]])
    truth = times[-1] - np.array(times)
    # a pass more or less; noise is that of two passes, and the first lucky one is the last
    one = seconds[:last].max() * (3 if "noisy" in name else 1)
    second = np.array(times) >= times[-1] / 2
    assert np.isfinite(left[second]).all()
    assert (left[second] <= 2 * truth[second] + one).all()
    assert (left[second] >= truth[second] / 2 - one).all()
    told = left[np.isfinite(left)]
    assert (told < 20 * times[-1]).all()
    assert math.isnan(left[0])
    assert math.isnan(left[1])


def told(logs, goal, passes=None):
    decay = Decay(goal)
    for i, log in enumerate(logs):
        decay.note(i + 1 if passes is None else passes[i], math.exp(log))
    return decay.expected


def test_a_straight_fall_goes_on():
    """As soon as five passes have gone by since the first, seen at each or not."""
    logs = -np.arange(1, 61) / 4
    assert told(logs[:5], 1e-5) is None
    goal = math.exp(-11.0)
    for last in (6, 7, 12, 30, 43):
        assert told(logs[:last], goal * 0.999) == 45
        assert told(logs[:last], goal * 1.001) == 44
    assert told(logs[:44], goal * 1.001) == 44  # it is there
    assert told(logs[[0, 7, 15]], goal * 0.999, passes=[1, 8, 16]) == 45
    assert told(logs[[0, 5]], goal * 0.999, passes=[1, 6]) == 45
    assert told(logs[[0, 4]], math.exp(-2.0), passes=[1, 5]) is None


def test_a_fall_that_steepens_goes_on_steepening():
    """Slopes of two windows, each a third of the passes, give the slope now and how it grows."""
    x = np.arange(1.0, 31)
    logs = -0.01 * x**2
    window = np.arange(-10.0, 1)  # of 30 passes
    A = np.stack([np.ones(11), window], axis=1)
    level = np.linalg.lstsq(A, -0.01 * (30 + window) ** 2)[0][0]
    for goal in (-10.0, -20.0, -80.0):
        # -0.6 - 0.02 m a pass from now on
        roots = np.roots([0.01, 0.6, goal - level])
        assert told(logs, math.exp(goal)) == 30 + math.ceil(roots.max())
    # of 11 passes two windows of five; of 10 only one, whose slope is taken as it is
    window = np.arange(-5.0, 1)
    A = np.stack([np.ones(6), window], axis=1)
    level = np.linalg.lstsq(A, -0.01 * (11 + window) ** 2)[0][0]
    roots = np.roots([0.01, 0.22, -4.0 - level])
    assert told(logs[:11], math.exp(-4.0)) == 11 + math.ceil(roots.max())
    slope = np.polyfit(np.arange(-5.0, 1), logs[4:10], 1)
    assert told(logs[:10], math.exp(-4.0)) == 10 + math.ceil((-4.0 - slope[1]) / slope[0])


def test_a_fall_that_flattens_is_taken_as_it_is():
    x = np.arange(1.0, 31)
    logs = np.where(x <= 20, -x / 2, -10 - (x - 20) / 8)
    assert told(logs, math.exp(-13.01)) == 45
    assert told(logs, math.exp(-12.99)) == 44


def test_a_forecast_beyond_eight_times_the_passes_says_nothing():
    logs = -np.arange(1, 11) / 4
    assert told(logs, math.exp(-90 / 4 + 0.1)) == 90
    assert told(logs, math.exp(-90 / 4 - 0.1)) is None
    assert told(-1e-4 * np.arange(1.0, 11), 1e-5) is None
    assert told(0.1 * np.arange(10), 1e-5) is None  # it rises


def test_a_last_error_above_the_goal_needs_one_pass_more():
    """Whatever the line through the window says."""
    logs = -np.arange(1.0, 12)
    logs[-1] = -8.9
    assert told(logs, math.exp(-9.0)) == 12


def test_nothing_is_said_of_an_error_that_does_not_fall():
    decay = Decay(1e-6)
    for passes in range(1, 40):
        decay.note(passes, 0.5 + 0.01 * (passes % 3))
        assert decay.expected is None
    decay.note(40, np.inf)
    decay.note(41, 1e-7)
    assert decay.expected == 41


def test_a_fit_says_no_time_before_it_knows_one():
    """The first passes of 200 that there may be are no forecast."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 3)), rng.standard_normal(400)
    heard = []
    fitted = sdgpu.fit(
        X, y, sdgpu.Matern(0.5), lams=0.4, method="subspace", tol=1e-8, progress=heard.append
    )
    passes = [event for event in heard if event.stage == "passes" and event.total > 1]
    assert fitted.info.passes > 8
    assert all(math.isnan(event.seconds_left) for event in passes[:3])
    assert passes[-1].seconds_left == 0
    spent = fitted.info.seconds["passes"]
    told = [event.seconds_left for event in passes if not math.isnan(event.seconds_left)]
    assert max(told) < 20 * spent


def test_unknown_totals_have_no_time_left():
    heard = []
    watch = Stopwatch(lambda: None, progress=heard.append)
    for done in range(6):
        watch.report("probes", done, done + 1, total_known=False)
    assert all(math.isnan(event.seconds_left) for event in heard)


def test_many_reports_are_thinned_out():
    heard = []
    watch = Stopwatch(lambda: None, progress=heard.append)
    for done in range(5000):
        watch.report("train", done, 5000)
    assert len(watch._reports["train"]) <= timing.MOST
    assert heard[-1].seconds_left >= 0
