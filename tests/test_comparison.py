"""What the comparison of methods promises: equal budgets, one rule of tuning, curves over tokens."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))  # as running the script does

from laboratory import design, jobs, outcome  # noqa: E402


def put_tuning(folder, method, means, spread):
    """Areas of each point of the grid, half of the seeds above the mean and half below."""
    seeds = np.resize([-spread, spread], design.TUNING_SEEDS)
    area = np.concatenate([mean + seeds for mean in means])
    points = np.repeat(design.grid_of(method), design.TUNING_SEEDS, axis=0)
    (folder / design.TUNED_ON).mkdir(exist_ok=True)
    np.savez(folder / design.TUNED_ON / f"{method}.tuning.npz", area=area, points=points)


def means_of(places, rest=0.1):
    """A mean of each point of a grid: those that are named, and the rest."""
    return [places.get(number, rest) for number in range(len(design.GRID_WITH))]


def test_every_scale_names_cells_and_methods():
    for scale in design.SCALES.values():
        assert set(scale.cells) <= set(design.CELLS)
        assert set(scale.methods) <= set(design.METHODS)
    assert not set(design.SCALES["effects"].cells) & set(design.STANDARD)


def test_every_method_is_tuned_by_as_many_runs():
    grids = [design.grid_of(method) for method in design.METHODS]
    assert {len(set(grid)) for grid in grids} == {len(design.GRID_WITH)}
    assert len(design.GRID_WITH) * design.TUNING_SEEDS % design.LANES == 0  # no lane is empty
    for grid in grids:
        rates = [point.lr for point in grid]
        assert rates == sorted(rates)  # from gentle to harsh


def test_only_methods_with_a_critic_are_tuned_over_it():
    for method in design.METHODS:
        critics = {(point.critic, point.decay) for point in design.grid_of(method)}
        assert (len(critics) > 1) is design.has_critic(method)
    assert all(map(design.has_critic, design.TUNED_TOGETHER))
    assert not any(map(design.has_critic, design.WITHOUT_CRITIC))


@pytest.mark.parametrize(
    ("spread", "chosen"),
    [
        (0.001, 3),  # clearly the best one
        (0.2, 1),  # as good as the best one by what six seeds can tell, and gentler
    ],
)
def test_the_gentlest_point_that_is_as_good_is_chosen(tmp_path, spread, chosen):
    put_tuning(tmp_path, "grpo", means_of({1: 0.48, 2: 0.3, 3: 0.5, 4: 0.2}), spread)
    assert jobs.best("grpo", tmp_path) == design.GRID_WITHOUT[chosen]


def test_steppo_its_halves_and_ppo_share_a_point(tmp_path):
    for number, method in enumerate(design.TUNED_TOGETHER):
        # Each likes another one best; the fourth is second best for all.
        put_tuning(tmp_path, method, means_of({3: 0.5, number % 3: 0.6}), 0.001)
    chosen = {jobs.best(method, tmp_path) for method in design.TUNED_TOGETHER}
    assert chosen == {design.GRID_WITH[3]}


def test_a_tuning_over_another_grid_is_refused(tmp_path, monkeypatch):
    put_tuning(tmp_path, "grpo", means_of({}), 0.1)
    monkeypatch.setattr(design, "GRID_WITHOUT", design.GRID_WITHOUT[::-1])
    with pytest.raises(ValueError, match="grpo over another grid: start over with --fresh"):
        jobs.best("grpo", tmp_path)


@pytest.mark.parametrize(("cell", "rate"), [("errand-32", 1e-3), ("errand-8-longer", 2e-4)])
def test_runs_have_the_chosen_rate_or_a_slower_one(tmp_path, monkeypatch, cell, rate):
    asked = {}

    def runs(cell, method, keys, points, folder):
        asked.update(keys=keys, points=points)
        return {}

    monkeypatch.setattr(jobs, "_runs", runs)
    (tmp_path / cell).mkdir()
    jobs.run(cell, "ppo", 3, 2, design.Point(1e-3, 0.1, 3.0, 0.2), tmp_path)
    np.testing.assert_allclose(asked["points"], [(rate, 0.1, 3.0, 0.2)] * 2)
    kept = np.load(tmp_path / cell / "ppo.3-2.npz")
    np.testing.assert_allclose(kept["point"], (rate, 0.1, 3.0, 0.2))


@pytest.mark.parametrize(
    ("cell", "method", "lam"),
    [
        ("errand-8", "steppo", 0.95),
        ("errand-32", "steppo", 1 - 0.05 / 4),  # a longer game looks further ahead
        ("errand-8-long", "steppo", 0.95),
        ("errand-8-long", "ppo", 0.95),
        ("errand-8-long", "ppo_step_lambda", 0.95 ** (1 / 8)),
    ],
)
def test_lambda_grows_with_the_horizon(cell, method, lam):
    settings = design.settings_of([design.Point(1e-3, 0.1, 3.0, 0.4)] * 2, cell, method)
    np.testing.assert_allclose(settings["algorithm.lam"], [lam, lam], rtol=1e-6)
    np.testing.assert_allclose(settings["critic.lr"], [3e-3, 3e-3])


def test_all_runs_of_a_cell_begin_with_the_same_policy(tmp_path, monkeypatch):
    warm = {"decoder": {"x": 1.0}, "value": {"y": 2.0}}
    monkeypatch.setattr(jobs, "warm_start", lambda cell, folder: warm)
    assert jobs._first_params("errand-4", "grpo", tmp_path) == {"decoder": {"x": 1.0}}
    assert jobs._first_params("errand-4", "steppo", tmp_path) == warm


def test_the_committed_table_names_a_point_of_every_method():
    for method in design.METHODS:
        assert outcome.committed(method).lr > 0


def test_a_curve_begins_at_no_tokens_and_ends_with_held_out_success():
    found = {
        "tokens": np.array([[10.0, 20.0, 20.0], [5.0, 10.0, 15.0]]),  # the first one is spent early
        "success": np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 0.5]]),
        "heldout": np.array([0.9, 0.6]),
    }
    tokens, success = jobs.curves(found)
    assert [x.tolist() for x in tokens] == [[0, 10, 20], [0, 5, 10, 15]]
    assert [y.tolist() for y in success] == [[0.1, 0.2, 0.9], [0.3, 0.4, 0.5, 0.6]]


def test_longer_games_and_longer_actions_get_more_tokens():
    budget = {cell: design.token_budget(cell) for cell in design.CELLS}
    assert budget["errand-4"] < budget["errand-8"] < budget["errand-16"] < budget["errand-32"]
    assert budget["errand-8-long"] == 4 * budget["errand-8"]
    assert budget["errand-8-longer"] == 16 * budget["errand-8"]
