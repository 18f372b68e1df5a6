"""Evaluation on a fixed panel: attempts, intervals, and what the environment measures."""

import dataclasses
import io
import logging
import re

import numpy as np
import pytest
from rich.console import Console

from steprl.cli.progress import print_results
from steprl.config import EvalConfig, load_config
from steprl.envs.answers import EnvironmentFailed
from steprl.envs.flow import FlowEnvironment
from steprl.envs.suite import suite_of
from steprl.evaluation import evaluate, evaluate_all
from steprl.metrics import mean_interval, pass_at_k
from steprl.rollout import Player, Rollouts, Usage, collate
from steprl.sampling import Sampling
from steprl.session import setup
from steprl.types import Step, Trajectory
from tests.small import small_config


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


def failing(failed, n=2):
    """A player on the host, in which the environment fails for some (task, sample)."""

    def explore(params, key, task_N, sample_N, sampling, **how):
        made = [
            trajectory(t, s, s == 0, t / 10, steps=2)
            if (t, s) not in failed
            else dataclasses.replace(
                trajectory(t, s, True, 9.0), metrics={}, fault=f"task {t} broke"
            )
            for t, s in zip(task_N.tolist(), sample_N.tolist(), strict=True)
        ]
        return Rollouts(made, Usage())

    one = Player(
        None, None, None, ("train", "held"), explore=explore,
        collate=lambda made: collate(made, 2, [16]),
    )  # fmt: skip
    return evaluate(one, {}, EvalConfig(num_tasks=4, n=n), "held", 4, 1.0)


def test_attempts_in_which_the_environment_failed_are_left_out_and_counted():
    """Of task 0 the attempt that would be solved fails, of task 3 both do."""
    found = failing({(0, 0), (3, 0), (3, 1)})
    assert (found["attempts"], found["faults"]) == (8, 3)
    assert found["success_rate"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert found["pass@2"] == pytest.approx((0 + 1 + 1) / 3)
    assert found["return"] == pytest.approx(4 / 5) and found["num_turns"] == 2
    assert found["f1"] == pytest.approx((0.0 + 0.1 + 0.2) / 3)
    console = Console(file=io.StringIO(), width=200)
    results = {f"eval/{name}": value for name, value in found.items()}
    print_results(results, console)
    assert "eval/faults: the environment failed in 3 of 8 attempts" in console.file.getvalue()


def test_where_the_environment_always_failed_there_is_nothing_to_measure():
    everywhere = {(task, sample) for task in range(4) for sample in range(2)}
    with pytest.raises(
        EnvironmentFailed, match="in all of 8 attempts.*The first fault: task 0 broke"
    ):
        failing(everywhere)


def test_many_faults_are_warned_of_and_few_are_not(caplog):
    with caplog.at_level(logging.WARNING):
        failing({(0, 0)})  # 1 of 8 is more than a tenth
        assert "failed in 1 of 8 attempts" in caplog.text
        caplog.clear()
        failing({(2, 3)}, n=4)
        assert caplog.text == ""


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


@pytest.mark.parametrize(("rows", "played"), [(None, 8), (4, 4)])
def test_few_tasks_need_not_be_filled_up(rows, played):
    one, calls = player()
    config = load_config(None, ["rollout.batch_size=8", "actor.ppo_mini_batch_size=8", "eval.n=1"])
    evaluate_all(one, {}, config, num_tasks=3, rows=rows)
    assert {len(task_N) for task_N, *_ in calls} == {played}


def test_what_there_was_nothing_to_measure_of_is_a_dash():
    one, _ = player()
    found = evaluate(one, {}, EvalConfig(num_tasks=5), "held", 4, 1.0)
    results = {f"eval/{name}": value for name, value in found.items()}
    results |= {f"eval/valid_call_frac{end}": np.nan for end in ("", "_low", "_high")}
    console = Console(file=io.StringIO(), width=120)
    print_results(results, console)
    assert "nan" not in console.file.getvalue()
    assert re.search(r"eval/valid_call_frac +- +-", console.file.getvalue())


# Tasks that repeat.


def round_trip(distinct, sizes=None):
    """Plays tasks of which only so many differ, by what they begin with; even ones are solved."""

    def play(params, key, task_N, sample_N, sampling, **how):
        made = []
        for task, sample in zip(task_N.tolist(), sample_N.tolist(), strict=True):
            one = trajectory(task, sample, task % distinct % 2 == 0, task % distinct / 10)
            ids = np.arange(4 + task % distinct, dtype=np.int32)
            step = dataclasses.replace(one.steps[0], observation_ids=ids)
            made.append(dataclasses.replace(one, steps=(step,)))
        return collate(made, 1, [32])

    return Player(play, None, None, ("train", "held"), sizes or {})


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("num_tasks", [4, 40, 400])
def test_a_panel_that_goes_round_four_tasks_has_the_interval_of_four(num_tasks, n):
    config = EvalConfig(num_tasks=num_tasks, n=n)
    found = evaluate(round_trip(4), {}, config, "held", 16, 1.0)
    four = mean_interval(np.array([1.0, 0.0, 1.0, 0.0]))
    assert found["success_rate"] == 0.5 and found["num_tasks"] == 4
    assert (found["success_rate_low"], found["success_rate_high"]) == pytest.approx(tuple(four))
    assert found["success_rate_low"] < 0.2 and found["success_rate_high"] > 0.8
    assert (found["f1_low"], found["f1_high"]) == pytest.approx(
        tuple(mean_interval(np.array([0.0, 0.1, 0.2, 0.3])))
    )


def test_a_task_that_was_played_more_often_counts_no_more():
    found = evaluate(round_trip(3), {}, EvalConfig(num_tasks=4), "held", 4, 0.0)
    assert found["success_rate"] == pytest.approx(2 / 3) and found["num_tasks"] == 3


def test_tasks_are_told_apart_by_number_where_the_environment_says_how_many_there_are():
    found = evaluate(round_trip(4, {"held": 8}), {}, EvalConfig(num_tasks=400), "held", 4, 0.0)
    assert found["num_tasks"] == 8


def test_tasks_that_all_begin_alike_are_each_their_own():
    found = evaluate(round_trip(1), {}, EvalConfig(num_tasks=16), "held", 8, 0.0)
    assert found["num_tasks"] == 16


def test_an_environment_says_how_many_tasks_it_has():
    def flow(task):
        yield f"{task}?"
        return 1.0

    env = FlowEnvironment(flow, tasks=[3, 7, 8, 9])
    assert suite_of(env).sizes == {"train": 4}


def test_at_temperature_0_the_greedy_evaluation_is_the_sampled_one_and_played_once():
    one, calls = player({"held": 4})
    config = load_config(None, ["eval.temperature=0", "rollout.batch_size=4", "rollout.n=1",
                                "actor.ppo_mini_batch_size=4"])  # fmt: skip
    found = evaluate_all(one, {}, config)
    assert len(calls) == 1
    assert found["eval/success_rate"] == found["eval/success_rate_greedy"]


@pytest.mark.parametrize(
    ("splits", "measured"),
    [
        ("[]", {"eval/success_rate", "eval/far/success_rate"}),
        ("[far]", {"eval/far/success_rate"}),
        ("[held]", {"eval/success_rate"}),
    ],
)
def test_splits_can_be_chosen_and_keep_their_names(splits, measured):
    one, calls = player({"held": 2, "far": 2})
    one = one._replace(splits=("train", "held", "far"))
    config = load_config(None, [f"eval.splits={splits}", "eval.greedy=false"])
    found = evaluate_all(one, {}, config, rows=2)
    assert {name for name in found if name.endswith("success_rate")} == measured
    assert len(calls) == len(measured)


def test_a_split_that_is_none_to_evaluate_on_is_refused():
    with pytest.raises(ValueError, match="eval.splits: 'train' is no split.*has heldout"):
        setup(small_config("eval.splits=[train]"))
