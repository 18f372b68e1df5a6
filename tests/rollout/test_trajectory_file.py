"""Files of trajectories: what is written comes back, whatever it holds, and old files are read."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steprl.config import TrainerConfig
from steprl.experience import are_saved
from steprl.rollout import Line, StepCredit, read_rows, read_trajectories, write_trajectories
from steprl.types import Parent, Step, Trajectory


def step(text="that", reward=1.0, info=None, tokens=3):
    ids = np.arange(tokens, dtype=np.int32)
    numbers = np.linspace(-0.5, -0.1, tokens)
    return Step(text, text, ids, ids, numbers, -numbers, reward, True, False, "stop_token",
                info={"reason": "é"} if info is None else info)  # fmt: skip


def written(path, *lines):
    write_trajectories(path / "a" / "step_1.jsonl", lines, policy_version=0, seed=7)
    return path / "a" / "step_1.jsonl"


def strict(file):
    """The rows of a file as a parser reads them that knows no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = file.read_text(encoding="utf-8", errors="strict").split("\n")[:-1]
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_trajectories_come_back_from_their_file(tmp_path):
    made = [
        Trajectory(4, 0, (step(), step()), True, Parent(0, 1, preference=-1), metrics={"f1": 0.5}),
        Trajectory(4, 1, (step(),), False, Parent(0, 1, 2, 0.1, 1), metrics={"f1": math.nan}),
    ]
    file = written(tmp_path, *made)
    found = read_trajectories(file)
    assert [one.parent for one in found] == [one.parent for one in made]
    assert found[0].metrics == {"f1": 0.5} and math.isnan(found[1].metrics["f1"])
    assert [(t.task, t.sample, t.success, len(t.steps)) for t in found] == [
        (4, 0, True, 2), (4, 1, False, 1),
    ]  # fmt: skip
    for one, other in zip(made, found, strict=True):
        for a, b in zip(one.steps, other.steps, strict=True):
            assert (a.action, a.info, a.reward) == (b.action, b.info, b.reward)
            np.testing.assert_array_equal(a.action_ids, b.action_ids)
            np.testing.assert_allclose(a.logprobs, b.logprobs)
    assert list(file.parent.iterdir()) == [file]
    assert all(row["format"] == 2 for row in strict(file))


# Every code point, those that only look like line ends and half surrogate pairs among them.
anything = st.text(st.characters(exclude_categories=()), max_size=8)
odd = st.sampled_from(
    ["\u2028", "\x85", "\x0b\x0c\x1c\r", "\ud800", "\udc80x", "\x00", "</script>"]
)


@given(text=anything | odd, more=anything | odd)
def test_any_text_comes_back_as_it_was(tmp_path_factory, text, more):
    made = Trajectory(0, 0, (step(text, info={"fault": more}), step(more)), False)
    file = written(tmp_path_factory.mktemp("odd"), made, dataclasses.replace(made, sample=1))
    first, second = read_trajectories(file)
    for one in (first, second):
        assert [s.observation for s in one.steps] == [s.action for s in one.steps] == [text, more]
        assert one.steps[0].info == {"fault": more}
    assert len(strict(file)) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_wherever_it_stands(tmp_path, bad):
    broken = dataclasses.replace(step(reward=bad, info={"price": bad}), logprobs=np.full(3, bad))
    credit = StepCredit(
        bad, bad, bad, np.full(3, bad), np.full(3, bad), np.full(3, bad), np.ones(3)
    )
    made = Trajectory(0, 0, (broken,), False, metrics={"f1": bad})
    file = written(tmp_path, Line(made, [["a", "b", "c"]], [credit]))
    (row,) = strict(file)
    for name in ("reward", "trained_reward", "return", "value", "target", "advantage"):
        assert row[name] is None, name
    assert row["response_logprobs"] == row["response_train_logprobs"] == [None] * 3
    assert row["info"] == {"price": None} and row["metrics"] == {"f1": None}
    (found,) = read_trajectories(file)
    assert math.isnan(found.steps[0].reward) and np.isnan(found.steps[0].logprobs).all()


def test_a_trajectory_that_never_began_is_not_lost(tmp_path):
    empty = Trajectory(3, 1, (), False, fault="lights, task 3, reset: KeyError")
    found = read_trajectories(written(tmp_path, empty, Trajectory(3, 2, (step(),), True)))
    assert [(t.sample, len(t.steps), t.success) for t in found] == [(1, 0, False), (2, 1, True)]
    assert [t.fault for t in found] == [empty.fault, ""]


def test_trajectories_of_one_name_stay_apart(tmp_path):
    same = Trajectory(0, 0, (step(), step()), True)
    assert [len(t.steps) for t in read_trajectories(written(tmp_path, same, same))] == [2, 2]


def test_they_are_written_as_they_come(tmp_path):
    file = tmp_path / "a" / "step_1.jsonl"

    def one_by_one():
        for sample in range(3):
            lines = file.with_suffix(".tmp").read_text().count("\n")
            assert lines <= sample and not file.exists()
            yield Trajectory(0, sample, (step("x" * 20_000),), True)

    write_trajectories(file, one_by_one(), 0, 0)
    assert len(list(read_rows(file))) == 3


# Credit


def credit(advantages, learnt=(True, True, True), reference=None, reward=0.5):
    return StepCredit(
        reward, 0.25, 0.75, np.array(advantages), np.array([-1.0, -2.0, -3.0]), reference,
        np.array(learnt),
    )  # fmt: skip


def test_a_step_says_its_credit_and_a_token_only_where_it_differs(tmp_path):
    made = Trajectory(0, 0, (step(), step(), step()), True)
    each = [
        credit([2.0, 2.0, 2.0]),
        credit([1.0, 2.0, 6.0], (False, True, True), np.array([-1.5, -2.0, -3.5])),
        credit([0.0, 0.0, 0.0], (False, False, False), reward=-1.0),
    ]
    file = written(tmp_path, Line(made, [["a", "b", "c"]] * 3, each))
    first, second, third = strict(file)
    assert [row["advantage"] for row in (first, second, third)] == [2.0, 3.0, 0.0]
    assert [row["return"] for row in (first, second, third)] == [0.0, -0.5, -1.0]
    assert [row["learnt"] for row in (first, second, third)] == [True, True, False]
    assert (first["value"], first["target"], first["trained_reward"]) == (0.25, 0.75, 0.5)
    assert first["response_train_logprobs"] == [-1.0, -2.0, -3.0]
    assert first["response_tokens"] == ["a", "b", "c"]
    assert second["response_advantages"] == [1.0, 2.0, 6.0]
    assert second["response_mask"] == [0, 1, 1]
    assert second["response_reference_logprobs"] == [-1.5, -2.0, -3.5]
    for name in ("response_advantages", "response_mask", "response_reference_logprobs"):
        assert name not in first and name not in third


# Files that others wrote

OLD = {
    "traj_id": "8-1", "parent_id": "8-0", "parent": {"step": 1, "token": 2, "score": 0.5, "preference": 0},
    "task": 8, "sample": 1, "step": 0, "observation": "who?", "action": "Ada", "fresh": False,
    "prompt_ids": [5, 25], "response_ids": [3, 1], "response_logprobs": [-0.5, -1.5],
    "response_entropies": [0.25, 2.0], "reward": 1.0, "terminated": True, "truncated": False,
    "stop_reason": "stop_token", "valid": True, "info": {}, "success": True, "metrics": {"f1": None},
    "policy_version": 1, "key": 0,
}  # fmt: skip


def test_a_file_of_the_first_format_is_read(tmp_path):
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps(OLD) + "\n")
    (found,) = read_trajectories(file)
    assert found.parent == Parent(0, 1, 2, 0.5, 0) and found.success and len(found.steps) == 1
    assert found.steps[0].action_ids.tolist() == [3, 1]


def test_a_number_that_is_not_finite_in_a_file_of_the_first_format_is_read(tmp_path):
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps(OLD | {"reward": math.nan, "response_logprobs": [-math.inf, -1.0]}))
    (found,) = read_trajectories(file)
    assert math.isnan(found.steps[0].reward) and math.isnan(found.steps[0].logprobs[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"traj_id": "8-2", "step', "line 2 is not a step of a trajectory"),
        ("\x00\x00\x00", "line 2 is not"),
        ("[]", "line 2 is not"),
        ("{}", "line 2 is not"),
        ("[" * 100_000, "line 2 is not"),
        ('{"format": 9, "traj_id": "8-2", "step": 0}', "line 2 has format 9, and this version"),
    ],
)
def test_a_damaged_line_is_named_and_what_is_before_it_is_there(tmp_path, line, said):
    file = tmp_path / "torn.jsonl"
    file.write_text(json.dumps(OLD) + "\n" + line)
    rows = read_rows(file)
    if "traj" not in line:
        with pytest.raises(ValueError, match=said):
            list(rows)
    with pytest.raises(ValueError, match=said) as caught:
        read_trajectories(file)
    assert str(file) in str(caught.value)


# When they are written


@pytest.mark.parametrize(
    ("every", "total", "expected"),
    [
        (None, 40, [*range(4, 41, 4)]),
        (None, 3, [1, 2, 3]),
        (None, 25, [*range(2, 25, 2), 25]),
        (5, 12, [5, 10]),
        (0, 3, []),
    ],
)
def test_iterations_whose_trajectories_are_written(every, total, expected):
    settings = TrainerConfig(save_trajectories=every, total_training_steps=total)
    found = [i for i in range(1, total + 1) if are_saved(settings, i, last=i == total)]
    assert found == expected
