"""What the comparison of methods promises: equal budgets, one rule of tuning, curves over tokens."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))  # as running the script does

from laboratory import design, jobs  # noqa: E402


def put_tuning(folder, method, means, spread):
    """Areas of each pair of the grid, half of the seeds above the mean and half below."""
    seeds = np.resize([-spread, spread], design.TUNING_SEEDS)
    area = np.concatenate([mean + seeds for mean in means])
    (folder / design.TUNED_ON).mkdir(exist_ok=True)
    np.savez(folder / design.TUNED_ON / f"{method}.tuning.npz", area=area)


def test_every_scale_names_cells_and_methods():
    for scale in design.SCALES.values():
        assert set(scale.cells) <= set(design.CELLS)
        assert set(scale.methods) <= set(design.METHODS)
    assert not set(design.SCALES["effects"].cells) & set(design.STANDARD)


@pytest.mark.parametrize(
    ("spread", "chosen"),
    [
        (0.001, 3),  # clearly the best one
        (0.2, 1),  # as good as the best one by what six seeds can tell, and gentler
    ],
)
def test_the_gentlest_pair_that_is_as_good_is_chosen(tmp_path, spread, chosen):
    put_tuning(tmp_path, "grpo", [0.1, 0.48, 0.3, 0.5, 0.2, 0.1], spread)
    assert jobs.best("grpo", tmp_path) == design.GRID[chosen]


def test_steppo_its_halves_and_ppo_share_a_pair(tmp_path):
    for number, method in enumerate(design.TUNED_TOGETHER):
        # Each likes another pair best; the fourth one is second best for all.
        means = np.where(np.arange(len(design.GRID)) == 3, 0.5, 0.1)
        means[number % 3] = 0.6
        put_tuning(tmp_path, method, means, 0.001)
    chosen = {jobs.best(method, tmp_path) for method in design.TUNED_TOGETHER}
    assert chosen == {design.GRID[3]}


@pytest.mark.parametrize(("cell", "rate"), [("errand-32", 1e-3), ("errand-8-longer", 2e-4)])
def test_runs_have_the_chosen_rate_or_a_slower_one(tmp_path, monkeypatch, cell, rate):
    asked = {}

    def runs(cell, method, keys, lr, clip, folder):
        asked.update(keys=keys, lr=lr, clip=clip)
        return {}

    monkeypatch.setattr(jobs, "_runs", runs)
    (tmp_path / cell).mkdir()
    jobs.run(cell, "ppo", 3, 2, (1e-3, 0.1), tmp_path)
    np.testing.assert_allclose(asked["lr"], [rate, rate])
    np.testing.assert_allclose(asked["clip"], [0.1, 0.1])
    kept = np.load(tmp_path / cell / "ppo.3-2.npz")
    np.testing.assert_allclose(kept["lr"], [rate, rate])


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
