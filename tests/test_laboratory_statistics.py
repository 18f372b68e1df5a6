"""Statistics of many runs: hand tables, plain loops, laws, and intervals that cover."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steprl.laboratory.statistics import (
    area_under_curve,
    interquartile_mean,
    mean_curve,
    mean_curve_of_cells,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

SCORE = st.floats(-1e3, 1e3, width=32)
few = settings(max_examples=60, deadline=None)


CELLS = st.integers(1, 4)


def table(cells):
    return hnp.arrays(np.float64, st.tuples(st.integers(1, 7), st.just(cells)), elements=SCORE)


def tables():
    return CELLS.flatmap(table)


def pairs():
    return CELLS.flatmap(lambda cells: st.tuples(table(cells), table(cells)))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# The interquartile mean.


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3], 3),
        ([1, 5], 3),
        ([0, 4, 100], (0.25 * 0 + 4 + 0.25 * 100) / 1.5),
        ([0, 1, 3, 100], 2),
        ([0, 1, 2, 4, 100], (0.75 * 1 + 2 + 0.75 * 4) / 2.5),
        ([0, 0, 1, 2, 3, 90], (0.5 * 0 + 1 + 2 + 0.5 * 3) / 3),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(np.array(scores)[:, None]) == pytest.approx(expected)
    assert interquartile_mean(np.array(scores)[None]) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (10, 6), (25, 4)])
def test_interquartile_mean_is_the_trimmed_mean_of_scipy_for_multiples_of_four(shape):
    stats = pytest.importorskip("scipy.stats")
    scores_rs = normal(0, *shape)
    expected = stats.trim_mean(scores_rs, 0.25, axis=None)
    assert interquartile_mean(scores_rs) == pytest.approx(expected)


def test_interquartile_mean_of_many_tables_is_a_loop():
    x = normal(1, 3, 2, 5, 4)
    expected = [[interquartile_mean(table) for table in row] for row in x]
    np.testing.assert_allclose(interquartile_mean(x), expected)


@few
@given(tables(), st.randoms(use_true_random=False))
def test_laws_of_the_interquartile_mean(scores_rs, random):
    mean = interquartile_mean(scores_rs)
    assert scores_rs.min() - 1e-9 <= mean <= scores_rs.max() + 1e-9
    order = list(range(scores_rs.size))
    random.shuffle(order)
    assert interquartile_mean(scores_rs.ravel()[order].reshape(scores_rs.shape)) == mean
    constant = np.full_like(scores_rs, scores_rs[0, 0])
    assert interquartile_mean(constant) == pytest.approx(scores_rs[0, 0], abs=1e-9)
    assert interquartile_mean(2 * scores_rs + 3) == pytest.approx(2 * mean + 3, abs=1e-6)


def test_one_outlier_in_twenty_runs_does_not_move_the_interquartile_mean():
    scores_rs = normal(2, 20, 1)
    wild_rs = np.where(scores_rs == scores_rs.max(), 1e6, scores_rs)
    assert interquartile_mean(wild_rs) == interquartile_mean(scores_rs)


# The probability of improvement.


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([[2.0], [3.0]], [[1.0], [2.0]]) == (1 + 0.5 + 1 + 1) / 4
    # Cells are never compared with each other, and each weighs the same.
    assert probability_of_improvement([[1.0, 9.0]], [[0.0, 10.0]]) == 0.5


def test_probability_of_improvement_is_a_loop_over_pairs():
    x_rs, y_rs = normal(3, 4, 3).round(), normal(4, 6, 3).round()  # rounded, so that some tie
    wins = [
        1.0 if x > y else 0.5 if x == y else 0.0
        for s in range(3)
        for x, y in itertools.product(x_rs[:, s], y_rs[:, s])
    ]
    assert 0.5 in wins
    assert probability_of_improvement(x_rs, y_rs) == pytest.approx(np.mean(wins))


def test_probability_of_improvement_is_the_u_of_mann_and_whitney():
    stats = pytest.importorskip("scipy.stats")
    x, y = normal(5, 9).round(), normal(6, 7).round()
    expected = stats.mannwhitneyu(x, y).statistic / (9 * 7)
    assert probability_of_improvement(x[:, None], y[:, None]) == pytest.approx(expected)


@few
@given(pairs())
def test_laws_of_the_probability_of_improvement(pair):
    x_rs, y_rs = pair
    forward = probability_of_improvement(x_rs, y_rs)
    assert 0 <= forward <= 1
    assert forward + probability_of_improvement(y_rs, x_rs) == pytest.approx(1)
    assert probability_of_improvement(x_rs, x_rs) == pytest.approx(0.5)
    # Only the order of scores counts. (Doubling is exact, so that no two of them become one.)
    assert probability_of_improvement(2 * x_rs, 2 * y_rs) == forward


# The bootstrap.


def test_the_bootstrap_is_a_loop_over_resamples_within_cells():
    scores_rs = np.array([[0.0, 10.0], [1.0, 20.0], [2.0, 30.0]])
    seen = []

    def statistic(x_brs):
        seen.extend(x_brs)
        return x_brs.mean(axis=(1, 2))

    interval = stratified_bootstrap(statistic, scores_rs, samples=500, level=0.9, seed=0)
    resamples = np.array(seen[:-1])  # the last is the table itself
    assert resamples.shape == (500, 3, 2)
    assert set(resamples[..., 0].ravel()) == {0, 1, 2}
    assert set(resamples[..., 1].ravel()) == {10, 20, 30}
    # Cells are drawn apart: else a row would always be a row of the table.
    assert {tuple(row) for row in resamples.reshape(-1, 2)} == set(
        itertools.product([0.0, 1.0, 2.0], [10.0, 20.0, 30.0])
    )
    means = resamples.mean(axis=(1, 2))
    assert interval.estimate == scores_rs.mean()
    assert interval.low == pytest.approx(np.quantile(means, 0.05))
    assert interval.high == pytest.approx(np.quantile(means, 0.95))


def test_the_interval_of_a_mean_is_that_of_theory():
    scores_rs = normal(7, 200, 3)
    error = math.sqrt(np.sum(scores_rs.var(axis=0) / 200)) / 3
    found = stratified_bootstrap(lambda x: x.mean(axis=(1, 2)), scores_rs, samples=5000, seed=1)
    expected = scores_rs.mean() + 1.96 * error * np.array([-1, 1])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.1 * error)


def test_differences_between_cells_do_not_widen_the_interval():
    noise_rs = normal(8, 10, 4)
    far_rs = noise_rs + 1000.0 * np.arange(4)
    mean = lambda x: x.mean(axis=(1, 2))  # noqa: E731
    near, far = (stratified_bootstrap(mean, x, seed=3) for x in (noise_rs, far_rs))
    assert far.high - far.low == pytest.approx(near.high - near.low)


def test_a_pair_of_tables_is_resampled_apart():
    x_rs, y_rs = normal(9, 12, 2), normal(10, 7, 2) - 0.5
    found = stratified_bootstrap(probability_of_improvement, (x_rs, y_rs), seed=0)
    assert found.estimate == probability_of_improvement(x_rs, y_rs)
    assert 0 <= found.low < found.estimate < found.high <= 1
    # If the resamples of both were the same runs, no table could differ from itself.
    difference = lambda x, y: x.mean(axis=(1, 2)) - y.mean(axis=(1, 2))  # noqa: E731
    same = stratified_bootstrap(difference, (x_rs, x_rs), seed=0)
    assert same.estimate == 0 and same.low < -0.1 and same.high > 0.1


def test_the_interval_depends_on_the_seed_only_and_narrows_with_the_level():
    scores_rs = normal(11, 8, 2)
    bounds = [
        stratified_bootstrap(interquartile_mean, scores_rs, level=level, seed=seed)
        for level, seed in [(0.95, 0), (0.95, 0), (0.95, 1), (0.5, 0)]
    ]
    assert bounds[0] == bounds[1] != bounds[2]
    assert bounds[0].low < bounds[3].low < bounds[3].high < bounds[0].high
    assert all(type(x) is float for x in bounds[0])  # so that it can be written as JSON


def test_many_samples_are_made_in_parts(monkeypatch):
    scores_rs = normal(12, 6, 5)
    whole = stratified_bootstrap(interquartile_mean, scores_rs, samples=999, seed=4)
    monkeypatch.setattr("steprl.laboratory.statistics._ELEMENTS", 30 * 7)
    shapes = []

    def statistic(x):
        shapes.append(len(x))
        return interquartile_mean(x)

    parts = stratified_bootstrap(statistic, scores_rs, samples=999, seed=4)
    assert max(shapes) == 7 and sum(shapes) == 999 + 1
    np.testing.assert_allclose(parts, whole, atol=0.1)


@settings(max_examples=30, deadline=None)
@given(tables())
def test_bounds_are_ordered_and_of_equal_runs_they_are_the_estimate(scores_rs):
    found = stratified_bootstrap(interquartile_mean, scores_rs, samples=100, seed=0)
    assert scores_rs.min() - 1e-9 <= found.low <= found.high <= scores_rs.max() + 1e-9
    equal_rs = np.repeat(scores_rs[:1], 3, axis=0)
    alike = stratified_bootstrap(interquartile_mean, equal_rs, samples=20, seed=0)
    assert alike.low == pytest.approx(alike.estimate) == alike.high


def test_the_interval_mostly_contains_the_estimate():
    inside = 0
    for seed in range(100):
        scores_rs = np.random.default_rng(seed).exponential(size=(5, 3))
        found = stratified_bootstrap(interquartile_mean, scores_rs, samples=300, seed=seed)
        inside += found.low <= found.estimate <= found.high
    assert inside >= 99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "cells", "level", "expected", "tolerance"),
    [
        (20, 3, 0.95, 0.945, 0.025),
        (20, 3, 0.5, 0.5, 0.06),
        (20, 1, 0.95, 0.94, 0.03),
        (5, 1, 0.95, 0.90, 0.04),  # few runs: less than it says, as its docstring does say
        (3, 1, 0.95, 0.75, 0.05),
    ],
)
def test_the_interval_covers_the_truth(runs, cells, level, expected, tolerance):
    # Of 600 tables the standard error of a share of 0.95 is 0.009.
    held = 0
    for seed in range(600):
        scores_rs = normal([99, seed], runs, cells)  # symmetrical, so the truth is 0
        found = stratified_bootstrap(
            interquartile_mean, scores_rs, samples=1000, level=level, seed=seed
        )
        held += found.low <= 0 <= found.high
    assert held / 600 == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
def test_the_interval_of_a_probability_covers_the_truth():
    shift = 0.8
    truth = 0.5 * (1 + math.erf(shift / 2))  # P(X > Y) of normals of variance 1, shift apart
    held = 0
    for seed in range(400):
        pair = normal([7, seed], 20, 2) + shift, normal([8, seed], 20, 2)
        found = stratified_bootstrap(probability_of_improvement, pair, samples=600, seed=seed)
        held += found.low <= truth <= found.high
    assert held / 400 == pytest.approx(0.945, abs=0.03)


# Performance profiles.


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    scores_rs = np.array([[0.1, 0.5], [0.5, 0.9]])
    curve = performance_profile(scores_rs, [0.0, 0.1, 0.5, 0.9])
    np.testing.assert_array_equal(curve.estimate, [1, 0.75, 0.25, 0])  # above, not at
    np.testing.assert_array_equal(curve.x, [0.0, 0.1, 0.5, 0.9])
    assert curve.low[0] == curve.high[0] == 1  # every resample is above 0
    assert curve.low[2] == 0 and curve.high[2] == 0.5


@few
@given(tables())
def test_laws_of_a_profile(scores_rs):
    thresholds = np.linspace(-1001, 1000, 8)
    curve = performance_profile(scores_rs, thresholds, samples=30)
    assert (curve.estimate[0], curve.estimate[-1]) == (1, 0)
    for line in (curve.estimate, curve.low, curve.high):
        assert np.all(np.diff(line) <= 1e-12)
    # The area under it, down to a floor, is the mean.
    fine = np.linspace(-1001, 1001, 2003)
    area = performance_profile(scores_rs, fine, samples=1).estimate.sum() - 1001
    assert area == pytest.approx(scores_rs.mean(), abs=1.01)


# Learning curves as numbers.

X, Y = [0.0, 100.0, 300.0], [0.0, 0.5, 0.9]


def test_areas_by_hand():
    assert area_under_curve(X, Y, 100) == pytest.approx(0.25)
    assert area_under_curve(X, Y, 200) == pytest.approx((0.25 * 100 + 0.6 * 100) / 200)
    assert area_under_curve(X, Y, 300, since=100) == pytest.approx(0.7)
    assert area_under_curve(X, Y, 60, since=20) == pytest.approx(0.2)


def test_what_comes_after_until_does_not_matter():
    longer = [*X, 305.0], [*Y, -50.0]
    assert area_under_curve(*longer, 300) == pytest.approx(area_under_curve(X, Y, 300))


@few
@given(st.lists(st.tuples(st.floats(0.1, 10), SCORE), min_size=2, max_size=8), st.floats(0.01, 1))
def test_laws_of_the_area(steps, share):
    x, y = np.cumsum([dx for dx, _ in steps]), np.array([v for _, v in steps])
    until = x[0] + share * (x[-1] - x[0])
    area = area_under_curve(x, y, until)
    assert y.min() - 1e-6 <= area <= y.max() + 1e-6
    assert area_under_curve(1000 * x, y, 1000 * until) == pytest.approx(area, abs=1e-6)
    # A point on the line changes nothing.
    middle = (x[0] + x[1]) / 2
    more = np.insert(x, 1, middle), np.insert(y, 1, (y[0] + y[1]) / 2)
    assert area_under_curve(*more, until) == pytest.approx(area, abs=1e-6)
    assert area_under_curve(x, 2 * y + 1, until) == pytest.approx(2 * area + 1, abs=1e-6)


def test_a_mean_curve_of_runs_at_their_own_points():
    xs = [[0, 10, 20], [0, 7, 21, 30], [0, 20], [0, 5, 25]]
    ys = [[0, 1, 2], [0, 0.7, 2.1, 3], [0, 2], [0, 0.5, 2.5]]  # all on one line
    curve = mean_curve(xs, ys, [0, 4, 20])
    for line in (curve.estimate, curve.low, curve.high):
        np.testing.assert_allclose(line, [0, 0.4, 2])


def test_a_mean_curve_is_an_interquartile_mean_and_its_interval_at_each_point():
    x, ys = np.arange(5.0), list(normal(13, 9, 5))
    curve = mean_curve([x] * 9, ys, x, samples=4000)
    for g in range(5):
        scores_rs = np.array(ys)[:, g, None]
        alone = stratified_bootstrap(interquartile_mean, scores_rs, samples=4000, seed=1)
        assert curve.estimate[g] == pytest.approx(alone.estimate)
        np.testing.assert_allclose([curve.low[g], curve.high[g]], alone[1:], atol=0.08)


def test_a_band_draws_whole_runs():
    # Parallel runs: a resample of runs is as wide everywhere, with the same noise of the resamples.
    levels = normal(14, 11)
    x = np.linspace(0, 1, 30)
    curve = mean_curve([x] * 11, [level + x for level in levels], x, samples=50)
    np.testing.assert_allclose(curve.high - curve.low, curve.high[0] - curve.low[0])


def test_a_mean_curve_of_cells_is_over_all_their_runs():
    x = [0.0, 1.0]
    cells = {"easy": ([x] * 2, [[0, 8], [0, 8]]), "hard": ([x] * 2, [[0, 0], [0, 4]])}
    curve = mean_curve_of_cells(cells, [0.0, 1.0])
    np.testing.assert_allclose(curve.estimate, [0, 6])  # of 0, 4, 8, 8 the middle two
    assert (curve.low[1], curve.high[1]) == (4, 6)  # of 0, 0, 8, 8 and of 4, 4, 8, 8


# Bad input.

ROWS = np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean(np.ones((0, 2))), "score_rs is empty, shape .0, 2.: there are"),
        (lambda: interquartile_mean([1.0, 2.0]), r"not runs x cells: .* scores\[:, None\]"),
        (lambda: interquartile_mean([[1.0, math.nan]]), "score_rs has 1 of 2 numbers that are not"),
        (lambda: interquartile_mean([[1.0], [1.0, 2.0]]), "score_rs is not a table of numbers"),
        (lambda: interquartile_mean([["a"]]), "score_rs is not a table of numbers"),
        (
            lambda: probability_of_improvement(ROWS, np.ones((3, 4))),
            "x_rs has 2 cells and y_rs has 4: compare methods in the same cells",
        ),
        (
            lambda: stratified_bootstrap(probability_of_improvement, (ROWS, ROWS[:, :1]), seed=0),
            "has 2 cells and y_rs has 1",
        ),
        (lambda: stratified_bootstrap(interquartile_mean, (), seed=0), "an empty tuple"),
        (
            lambda: stratified_bootstrap(interquartile_mean, (ROWS, ROWS * np.inf), seed=0),
            r"scores_rs\[1\] has 6 of 6 numbers that are not finite",
        ),
        (lambda: stratified_bootstrap(np.mean, ROWS, seed=0), "reduce the last two axes"),
        (lambda: stratified_bootstrap(interquartile_mean, [ROWS], seed=0), "give one table"),
        (lambda: stratified_bootstrap(interquartile_mean, ROWS, samples=0, seed=0), "samples=0"),
        (lambda: stratified_bootstrap(interquartile_mean, ROWS, level=95, seed=0), "level=95 is"),
        (lambda: performance_profile(ROWS, [0.2, 0.1]), "thresholds is not a list of increasing"),
        (lambda: performance_profile(ROWS, []), "thresholds is empty"),
        (
            lambda: area_under_curve(X, Y, 301),
            "until=301 is outside of the run, which has 0 to 300",
        ),
        (lambda: area_under_curve(X, Y, math.nan), "until=nan is outside of the run"),
        (lambda: area_under_curve(X[1:], Y[1:], 300, since=0), "since=0 is outside of the run"),
        (lambda: area_under_curve(X, Y, 0), "until=0 is not after the begin"),
        (lambda: area_under_curve([0, 0, 1], Y, 1), "x is not a list of increasing numbers"),
        (lambda: area_under_curve(X, Y[1:], 300), "x has shape .3,. and y has .2,.: give pairs"),
        (lambda: area_under_curve(X, [0, math.nan, 1], 300), "y has 1 of 3 numbers that are not"),
        (lambda: mean_curve([], [], [0.0]), "0 xs and 0 ys"),
        (lambda: mean_curve([X], [Y, Y], [0.0]), "1 xs and 2 ys"),
        (lambda: mean_curve([X, X], [Y, Y[1:]], [0.0]), "run 1: x has shape"),
        (lambda: mean_curve([X, X[:2]], [Y, Y[:2]], [0, 200]), "run 1: grid=200 is outside"),
        (lambda: mean_curve([X], [Y], [1, 0]), "grid is not a list of increasing numbers"),
        (lambda: mean_curve_of_cells({}, [0.0]), "cells is empty"),
        (
            lambda: mean_curve_of_cells({"a": ([X], [Y]), "b": ([X] * 2, [Y] * 2)}, [0.0]),
            "different numbers of runs .a: 1, b: 2.",
        ),
        (
            lambda: mean_curve_of_cells({"a": ([X], [Y]), "b": ([X[:2]], [Y[:2]])}, [0, 300]),
            "cell 'b', run 0: grid=300 is outside",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
