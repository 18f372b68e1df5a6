"""Evaluation on a fixed panel: attempts, intervals, and what the environment measures."""

import io

import numpy as np
import pytest
from rich.console import Console

from steprl.cli.progress import print_results
from steprl.config import EvalConfig
from steprl.evaluation import evaluate
from steprl.metrics import mean_interval, pass_at_k
from steprl.rollout import Player, collate
from steprl.sampling import Sampling
from steprl.types import Step, Trajectory


def trajectory(task, sample, success, f1, steps=1):
    ids = np.arange(3, dtype=np.int32)
    step = Step("what?", "that", ids, ids, np.full(3, -0.5), np.full(3, 0.25), float(success), True,
                False, "stop_token", info={"reason": "é"})  # fmt: skip
    return Trajectory(task, sample, (step,) * steps, success, metrics={"f1": f1})


def player(sizes=None):
    """Solves even tasks at even attempts; F1 is a tenth of the task, unknown for task 3."""
    calls = []

    def play(params, key, task_N, sample_N, sampling, **how):
        calls.append((task_N.tolist(), sample_N.tolist(), {"sampling": sampling, **how}))
        return collate(
            [
                trajectory(t, s, (t + s) % 2 == 0, np.nan if t == 3 else t / 10)
                for t, s in zip(task_N.tolist(), sample_N.tolist(), strict=True)
            ],
            1,
            [16],
        )

    return Player(play, None, None, ("train", "held"), sizes or {}), calls


def test_each_task_is_tried_n_times_and_counts_once():
    one, calls = player()
    found = evaluate(one, {}, EvalConfig(num_tasks=5, n=2), "held", 4, 1.0)
    assert [tasks for tasks, *_ in calls] == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]
    assert all(samples == [0, 1, 0, 1] for _, samples, _ in calls)
    assert found["success_rate"] == found["avg@2"] == 0.5 and found["pass@2"] == 1.0
    assert (found["success_rate_low"], found["success_rate_high"]) == mean_interval(np.full(5, 0.5))


def test_an_attempt_without_a_value_is_left_out_of_the_mean():
    one, _ = player()
    found = evaluate(one, {}, EvalConfig(num_tasks=5, n=2), "held", 4, 1.0)
    assert found["f1"] == pytest.approx((0.0 + 0.1 + 0.2 + 0.4) / 4)
    assert found["f1_low"] <= found["f1"] <= found["f1_high"]


def test_greedy_makes_one_attempt_and_no_task_is_played_twice():
    one, calls = player({"held": 3})
    found = evaluate(one, {}, EvalConfig(num_tasks=50, n=4), "held", 2, 0.0)
    assert [tasks for tasks, *_ in calls] == [[0, 1], [2, 3]]
    assert found["success_rate"] == pytest.approx(2 / 3) and "avg@4" not in found
    assert calls[0][2]["sampling"] == Sampling(0.0) and calls[0][2]["split"] == "held"


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([1.0, 0.0], *mean_interval(np.array([0.0, 1.0]))), ([0.3] * 5, 0.3, 0.3), ([], None, None)],
)
def test_intervals_of_means(values, low, high):
    found = mean_interval(np.array(values))
    if low is None:
        assert np.isnan(found.low) and np.isnan(found.high)
    else:
        assert found == pytest.approx((low, high))


def test_pass_at_n_of_n_is_whether_one_succeeded():
    assert [pass_at_k(4, c, 4) for c in (0, 1, 4)] == [0.0, 1.0, 1.0]


def test_what_the_environment_measures_is_printed():
    one, _ = player()
    found = evaluate(one, {}, EvalConfig(num_tasks=5, n=2), "held", 4, 1.0)
    written = io.StringIO()
    results = {f"eval/{name}": value for name, value in found.items()}
    print_results(results, Console(file=written, width=120))
    assert "eval sampled" in written.getvalue() and "eval/f1" in written.getvalue()
