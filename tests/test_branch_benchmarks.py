"""The benchmarks of branches and rollouts, small: what they compare is the same, nothing is lost."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.slow  # whole scripts


def script(name):
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))  # as running the script does
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def branching():
    return {row["name"]: row for row in script("branching").measured("", 1, quick=True)}


@pytest.fixture(scope="module")
def rollout():
    return {row["name"]: row for row in script("rollout").measured(1, quick=True)}


def ending(rows, end):
    found = [row for name, row in rows.items() if name.endswith(end)]
    assert found
    return found


def test_a_fork_reads_one_token_and_a_replay_the_whole_context(branching):
    assert {row["value"] for row in ending(branching, "fork, prefilled")} == {1}
    for fork, replay in zip(
        ending(branching, "fork, reused"), ending(branching, "replay, prefilled"), strict=True
    ):
        assert replay["value"] == fork["value"] + 1 > 32


def test_a_fork_is_a_replay_and_64_forks_are_one(branching):
    checked = [row for row in branching.values() if row["unit"] in ("largest difference", "forks")]
    assert len(checked) == 3 and all(row["met"] for row in checked)


def test_without_reuse_every_turn_reads_all_again(branching):
    (row,) = ending(branching, "turns: prefilled")
    assert row["ratio"] > 3


@pytest.mark.full
def test_no_task_is_lost_and_faults_are_where_they_were_drawn(rollout):
    assert ending(rollout, "tasks without a trajectory")[0]["met"]
    ended = ending(rollout, "by the deadline") + ending(rollout, "by a crash")
    assert all(row["met"] for row in ended) and sum(row["value"] for row in ended) > 0
    assert ending(rollout, "bit for bit")[0]["met"]


@pytest.mark.full
def test_refilled_slots_need_fewer_turns(rollout):
    (row,) = ending(rollout, "turns, refilled")
    assert row["value"] < row["peer_value"]
