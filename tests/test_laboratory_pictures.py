"""Pictures of experiments: they show the statistics, name every method, and leave nothing behind.

What is drawn is read from the figures; a picture is written to see that it can be.
"""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.image import imread

from steprl.algorithms import ALGORITHMS
from steprl.laboratory.drawing import BRANCHES, GROUP, OTHER, STEP, TOKEN, spread, styles
from steprl.laboratory.pictures import (
    curves_figure,
    effects_figure,
    intervals_figure,
    plot_curves,
    plot_effects,
    plot_intervals,
    plot_profiles,
    profiles_figure,
)
from steprl.laboratory.statistics import Estimate, interquartile_mean, performance_profile

METHODS = list(ALGORITHMS)


def runs(height, count=3, end=1000.0):
    """Runs that rise to about `height`, each at its own points."""
    rng = np.random.default_rng(round(100 * height))
    xs = [np.sort([0.0, *rng.uniform(1, end, 6), end + 10 * r]) for r in range(count)]
    return xs, [height * x / end + 0.01 * r for r, x in enumerate(xs)]


def curves(names=METHODS):
    return {name: runs(0.3 + 0.05 * i) for i, name in enumerate(names)}


def lines(axes):
    """Name -> line, of those that have one."""
    named = {line.get_label(): line for line in axes.lines}
    return {name: line for name, line in named.items() if name and name[0] != "_"}


def words(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [text for text in found if text.strip()]


# Looks.


def test_every_method_of_the_table_has_a_family_and_a_look_of_its_own():
    looks = styles(METHODS)
    assert set(looks) == set(METHODS)
    assert {look.family for look in looks.values()} == {STEP, TOKEN, GROUP, BRANCHES}
    assert len({look.color for look in looks.values()}) == len(METHODS)
    families = itertools.groupby(look.family for look in looks.values())
    assert [family for family, _ in families] == [STEP, TOKEN, GROUP, BRANCHES]
    for _, group in itertools.groupby(looks.values(), key=lambda look: look.family):
        members = list(group)
        assert len({str(look.line) for look in members}) == 1
        assert len({look.marker for look in members}) == len(members)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("StepPO", "steppo"),
        ("REINFORCE++", "reinforce_pp"),
        ("REINFORCE++ baseline", "reinforce_pp_baseline"),
        ("Dr. GRPO", "dr_grpo"),
    ],
)
def test_a_method_looks_the_same_however_spelled_and_in_any_company(written, name):
    assert styles([written])[written] == styles(METHODS)[name]
    assert styles(["mine", written])[written] == styles(METHODS)[name]


def test_other_names_take_what_is_left():
    looks = styles(["steppo", "mine", "steppo, long", "yours"], {"steppo, long": STEP})
    assert looks["steppo"] == styles(["steppo"])["steppo"]
    assert looks["steppo, long"].family == STEP
    assert looks["steppo, long"].color != looks["steppo"].color
    assert [looks[name].family for name in ("mine", "yours")] == [OTHER, OTHER]
    assert len({look.color for look in looks.values()}) == 4
    moved = styles(["grpo", "steppo"], {"steppo": GROUP})
    assert moved["steppo"].family == GROUP and moved["steppo"].color != moved["grpo"].color
    with pytest.raises(ValueError, match="families.'a'.='blue' is no family: choose of step credi"):
        styles(["a"], {"a": "blue"})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_laws_of_spreading(wanted):
    gap = 0.05
    places = spread(wanted, gap)
    order = np.argsort(places)
    assert np.all(np.diff(np.array(places)[order]) >= gap - 1e-9)
    assert np.all(np.diff(np.array(wanted)[order]) >= -1e-9)  # lines and names in one order
    assert np.mean(places) == pytest.approx(np.mean(wanted))


def test_names_move_only_where_they_must():
    assert spread([0.9, 0.1], 0.1) == [0.9, 0.1]
    np.testing.assert_allclose(spread([0.5, 0.5, 0.9], 0.1), [0.55, 0.45, 0.9])


# Learning curves.


def test_a_curve_is_the_interquartile_mean_of_its_runs_where_all_of_them_are():
    found = curves(["steppo", "grpo"])
    figure = curves_figure(found, "title")
    (axes,) = figure.axes
    assert list(lines(axes)) == ["steppo", "grpo"]
    xs, ys = found["steppo"]
    x, y = lines(axes)["steppo"].get_data()
    assert (x[0], x[-1]) == (0, 1000)  # the shortest run ends there
    for point in (0, 40, 100):
        scores = [np.interp(x[point], *run) for run in zip(xs, ys, strict=True)]
        assert y[point] == pytest.approx(interquartile_mean(np.array(scores)[:, None]))
    band, _ = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() <= ys[0][0] + 1e-9 and heights.max() >= y[-1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens sampled", "success")
    assert figure.get_suptitle().strip() == "title"
    assert any("95 %" in text.get_text() for text in figure.texts)


def test_one_panel_names_the_lines_at_their_ends_without_overlap():
    figure = curves_figure(curves(), "all")
    (axes,) = figure.axes
    assert not figure.legends
    assert sorted(words(figure)) == sorted(METHODS)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_text()}
    by_end = sorted(METHODS, key=lambda name: lines(axes)[name].get_ydata()[-1])
    assert sorted(METHODS, key=heights.get) == by_end
    # A thin line leads from the end of each line to its name.
    ends = {tuple(lines(axes)[name].get_xydata()[-1]): heights[name] for name in METHODS}
    led = {tuple(text.xy): text.xyann[1] for text in axes.texts if not text.get_text()}
    assert led == pytest.approx(ends)


def test_several_panels_share_a_legend_by_family():
    cells = {f"cell {i}": curves() for i in range(5)}
    figure = curves_figure(cells, "all")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(cells)
    assert all(len(lines(axes)) == len(METHODS) for axes in figure.axes)
    (legend,) = figure.legends
    assert set(words(figure)) == {*METHODS, STEP, TOKEN, GROUP, BRANCHES}
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert all(box.y1 <= axes.get_tightbbox().y0 for axes in figure.axes)
    # The lowest panel of each column has the label of the axis, the first of each row the other.
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, False, True, True, True]
    assert [bool(axes.get_ylabel()) for axes in figure.axes] == [True, False, False, True, False]


def test_a_legend_of_one_family_has_no_heading():
    figure = curves_figure({"a": curves(["grpo", "rloo"]), "b": curves(["rloo"])}, "t")
    assert words(figure) == ["grpo", "rloo"]
    assert list(lines(figure.axes[1])) == ["rloo"]
    colors = {to_hex(lines(axes)["rloo"].get_color()) for axes in figure.axes}
    assert len(colors) == 1


@pytest.mark.parametrize(
    ("heights", "top"), [((0.2, 0.4), 0.4), ((0.4, 0.2), 0.4), ((0.2, 0.9), 1), ((0.0, 0.0), 1)]
)
def test_shares_stand_on_one_axis_that_has_them_all(heights, top):
    cells = {str(i): {"ppo": ([[0, 1]], [[0, height]])} for i, height in enumerate(heights)}
    for axes in curves_figure(cells, "t").axes:
        assert axes.get_ylim() == pytest.approx((-0.02 * top, 1.02 * top))


def test_other_quantities_have_no_percent():
    found = {"steppo": ([[0, 1]], [[-5, 9]])}
    (axes,) = curves_figure(found, "t", "iteration", "reward", percent=False).axes
    assert axes.get_ylim()[0] < -5 and axes.get_ylim()[1] > 9
    assert "%" not in axes.yaxis.get_major_formatter()(0.5, 0)
    (axes,) = curves_figure(curves(["ppo"]), "t").axes
    assert axes.yaxis.get_major_formatter()(0.5, 0) == "50%"


# Intervals.

TABLE = {
    "grpo": {"final": Estimate(0.5, 0.4, 0.6), "area": Estimate(0.3, 0.25, 0.4)},
    "steppo": {"final": Estimate(0.8, 0.7, 0.85), "area": Estimate(0.2, 0.1, 0.3)},
    "ppo": {"final": Estimate(0.2, 0.1, 0.3), "area": Estimate(0.1, 0.0, 0.15)},
}


def test_intervals_are_sorted_by_the_first_column():
    figure = intervals_figure(TABLE, "title")
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["final", "area"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["ppo", "grpo", "steppo"]
    for axes, column in ((first, "final"), (second, "area")):
        for y, name in enumerate(["ppo", "grpo", "steppo"]):
            estimate, low, high = TABLE[name][column]
            dot = lines(axes)[name]
            assert (*dot.get_xdata(), *dot.get_ydata()) == (estimate, y)
            (bar,) = [
                line
                for line in axes.lines
                if len(line.get_xdata()) == 2 and line.get_ydata()[0] == y
            ]
            assert list(bar.get_xdata()) == [low, high]
    assert [text.get_text() for text in first.texts] == ["20.0%", "50.0%", "80.0%"]


def test_intervals_of_one_column_and_of_other_quantities():
    table = {"a": (12.5, 10.0, 15.0), "b": (-3.0, -4.0, -1.0)}
    figure = intervals_figure(table, "title", percent=False)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["-3", "12.5"]
    assert "%" not in axes.xaxis.get_major_formatter()(12.0, 0)


# Profiles.


def test_profiles_have_a_line_and_a_band_each_and_a_legend():
    x = np.linspace(0, 1, 21)
    found = {
        name: performance_profile(np.random.default_rng(i).uniform(size=(5, 3)), x, samples=50)
        for i, name in enumerate(["steppo", "grpo"])
    }
    figure = profiles_figure(found, "title")
    (axes,) = figure.axes
    assert words(figure) == [STEP, "steppo", GROUP, "grpo"]
    assert len(axes.collections) == 2
    np.testing.assert_array_equal(lines(axes)["grpo"].get_ydata(), found["grpo"].estimate)
    panels = profiles_figure({"one": found, "two": found}, "title").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["one", "two"]


# Effects.

EFFECTS = {
    "steppo - ppo": {1: (0.0, -0.1, 0.1), 4: (0.2, 0.1, 0.3), 2: (0.1, 0.0, 0.2)},
    "steppo - grpo": {2: (0.3, 0.2, 0.4), 8: (0.4, 0.3, 0.5)},
}


def test_effects_stand_on_an_axis_of_powers_of_two():
    figure = effects_figure(EFFECTS, "title", "horizon", "difference")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    first, second = (lines(axes)[name] for name in EFFECTS)
    assert list(first.get_ydata()) == [0.0, 0.1, 0.2]  # by length, not as given
    np.testing.assert_allclose(np.log2(first.get_xdata()), [0, 1, 2], atol=0.1)
    assert first.get_xdata()[1] < 2 < second.get_xdata()[0]  # beside each other
    assert sorted(words(figure)) == sorted(EFFECTS)
    bars = [segment for bar in axes.collections for segment in bar.get_segments()]
    assert sorted(segment[:, 1].tolist() for segment in bars) == sorted(
        [low, high] for of in EFFECTS.values() for _, low, high in of.values()
    )
    assert any(set(line.get_ydata()) == {0.0} for line in axes.lines)  # where there is no effect


def test_effects_in_several_panels():
    figure = effects_figure({"horizon": EFFECTS, "length": EFFECTS}, "title", "", "difference")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["horizon", "length"]
    assert words(figure) == list(EFFECTS)


# Files.


@pytest.mark.parametrize(
    ("plot", "drawn", "labels"),
    [
        (plot_curves, curves(["steppo", "grpo"]), ()),
        (plot_intervals, TABLE, ()),
        (
            plot_profiles,
            {"ppo": performance_profile(np.ones((2, 2)), [0.0, 0.5, 2.0], samples=5)},
            (),
        ),
        (plot_effects, EFFECTS, ("horizon", "difference")),
    ],
)
def test_a_picture_is_written_and_its_path_returned(plot, drawn, labels, tmp_path):
    path = tmp_path / "new" / "picture.png"
    assert plot(drawn, path, "title", *labels) == path
    image = imread(path)
    assert image.shape[1] == 1800 and image[..., :3].std() > 0.01


def test_pyplot_is_not_touched(tmp_path):
    code = (
        "import sys; from steprl.laboratory.pictures import plot_intervals;"
        f"plot_intervals({{'a': (0.1, 0.0, 0.2)}}, {str(tmp_path / 'a.png')!r}, 't');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Bad input.


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: curves_figure({}, "t"), "curves has no methods: there is nothing to draw"),
        (lambda: curves_figure({"a": curves(["ppo"]), "b": {}}, "t"), "no methods in 'b'"),
        (lambda: curves_figure({"ppo": ([], [])}, "t"), "curves of ppo: no runs"),
        (lambda: curves_figure({"ppo": ([[0, 1]], [])}, "t"), "curves of ppo: 1 xs and 0 ys"),
        (
            lambda: curves_figure({"a": {"ppo": ([[0, 1]], [[0, math.nan]])}}, "t"),
            "curves of ppo in a: run 0: y has 1 of 2 numbers that are not finite",
        ),
        (
            lambda: curves_figure({"ppo": ([[0, 1], [2, 3]], [[0, 1], [0, 1]])}, "t"),
            "one run begins at 2 and one ends at 1",
        ),
        (
            lambda: curves_figure({"ppo": ([[0, 1]], [[0, 3]])}, "t"),
            "curves reach from 0 to 3, which are no shares: set percent=False",
        ),
        (lambda: intervals_figure({}, "t"), "table has no intervals"),
        (
            lambda: intervals_figure({**TABLE, "x": {"final": (0, 0, 0)}}, "t"),
            r"table\['x'\] has the columns \['final'\], others have \['final', 'area'\]",
        ),
        (
            lambda: intervals_figure({"x": {"final": (0, math.nan, 0)}}, "t"),
            r"table\['x'\]\['final'\]=.*not .estimate, low, high. of finite numbers",
        ),
        (lambda: intervals_figure({"x": (0.1, 0.2)}, "t"), r"table\['x'\]=.0.1, 0.2. is not"),
        (lambda: profiles_figure({}, "t"), "profiles has no methods"),
        (lambda: effects_figure({}, "t", "x", "y"), "effects has no methods"),
        (lambda: effects_figure({"a": {}}, "t", "x", "y"), "'a'. has no lengths"),
        (
            lambda: effects_figure({"a": {0: (0, 0, 0)}}, "t", "x", "y"),
            "'a'. has the length 0, which has no logarithm",
        ),
        (
            lambda: effects_figure({"a": {2: (0, 0, math.inf)}}, "t", "x", "y"),
            r"effects\['a'\]\[2\]=.*not .estimate, low, high. of finite numbers",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
