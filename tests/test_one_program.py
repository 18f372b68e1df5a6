"""The benchmark of one program: all contenders play the same, and its numbers say what they claim."""

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def script(name):
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))  # as running the script does
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one_program():
    return script("one_program")


@pytest.fixture(scope="module")
def loops(one_program):
    return one_program.loops


@pytest.fixture(scope="module")
def tiny(one_program):
    """Eight attempts, a model of one layer."""
    config = one_program.design.config_of("errand-4", one_program.METHOD)
    rollout = dataclasses.replace(config.rollout, batch_size=4, n=2)
    actor = dataclasses.replace(config.actor, ppo_epochs=1, ppo_mini_batch_size=8)
    model = dataclasses.replace(config.model, num_layers=1)
    trainer = dataclasses.replace(config.trainer, total_training_steps=1)
    return dataclasses.replace(config, rollout=rollout, actor=actor, model=model, trainer=trainer)


def spent(one_program, wall, processor, steps, environment=0.0):
    return [one_program.Spent(*x) for x in zip(wall, processor, steps, environment, strict=True)]


def test_ratios_are_of_neighbours_and_a_goal_can_be_missed(one_program):
    ways = ["one program", "text environment"]
    ours = spent(one_program, [1.0, 2.0, 1.0], [1.0, 1.0, 1.0], [100, 100, 100], [0.0] * 3)
    for times, met in ((20, True), (5, False)):
        theirs = [times * x for x in (1.0, 2.0, 1.0)]  # the second round was slow for both
        other = spent(one_program, theirs, [3.0] * 3, [100] * 3, [x / 2 for x in theirs])
        rows = one_program.rate_rows("c", dict(zip(ways, (ours, other), strict=True)), ways)
        by_name = {row["name"]: row for row in rows}
        row = by_name["c: one program over text environment, wall"]
        assert row["value"] == pytest.approx(times) == pytest.approx(row["spread"][0])
        assert row["met"] is met and row["goal"] == "at least 10"
        assert by_name["c: one program over text environment, processor"]["value"] == 3.0
        less = by_name["c: one program over text environment, wall, less the environment"]
        assert less["value"] == pytest.approx(times / 2)
        assert by_name["c: one program"]["value"] == 100.0


def test_a_loop_of_other_sizes_is_compared_by_the_step(one_program):
    ways = ["one program", "two programs"]
    ours = spent(one_program, [1.0], [1.0], [100], [0.0])
    other = spent(one_program, [1.0], [1.0], [50], [0.0])
    rows = one_program.rate_rows("c", dict(zip(ways, (ours, other), strict=True)), ways)
    assert rows[2]["value"] == pytest.approx(2.0)


@pytest.mark.slow
def test_turns_driven_from_the_host_are_those_of_one_program(loops, tiny):
    from steprl.envs.opening import open_game
    from steprl.laboratory import make_program
    from steprl.models.tokenizer import phrase_tokenizer
    from steprl.rollout import rollout

    game, policy = open_game(tiny.env), make_program(tiny).policy
    env = game.make(False)
    assert policy.init and len(phrase_tokenizer(game.vocabulary)) == env.vocab_size
    params = jax.jit(policy.init)(jax.random.key(0))
    task_N, sample_N, key = np.array([3, 3, 8]), np.array([0, 1, 0]), jax.random.key(1)
    state = type("State", (), {"params": params})
    driven = loops.played_by_turns(policy, env)(state, key, task_N, sample_N)
    whole = jax.jit(lambda p: rollout(policy, env, p, key, task_N, sample_N))(params)
    assert loops.parted_attempts(whole, driven, dropped=1) == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, driven)


def with_actions(*rows):
    """A batch of actions of two tokens each."""
    tokens_NT = np.array(rows)
    step_ids_NT = np.tile(np.arange(tokens_NT.shape[1]) // 2, (len(rows), 1))
    return types.SimpleNamespace(tokens_NT=tokens_NT, step_ids_NT=step_ids_NT)


@pytest.mark.parametrize(
    ("first", "second", "parted"),
    [
        ([5, 6, 7, 8], [5, 6, 7, 8], 0),
        ([5, 6, 7, 8], [5, 6, 7, 9], 1),
        ([1, 6, 7, 8], [1, 6, 7, 9], 0),  # the first action is read otherwise
        ([5, 1, 7, 8], [5, 1, 7, 9], 1),  # it is as good without its end
    ],
)
def test_attempts_part_where_a_token_differs(loops, first, second, parted):
    same = [2, 2, 2, 2]
    found = loops.parted_attempts(with_actions(same, first), with_actions(same, second), dropped=1)
    assert found == parted


@pytest.mark.slow
@pytest.mark.full
def test_everyone_plays_the_same_and_every_row_is_there(one_program, tiny, monkeypatch):
    smaller = {name: getattr(tiny, name) for name in ("model", "rollout", "actor")}
    whole = one_program.design.config_of

    def config_of(cell, method):
        return dataclasses.replace(whole(cell, method), **smaller)

    monkeypatch.setattr(one_program.design, "config_of", config_of)
    size = one_program.Size(("errand-4",), iterations=2, rounds=1, seeds=2, warm_steps=20)
    rows = one_program.measured(size)
    assert all(row["met"] for row in rows if row["goal"] and "over" not in row["name"])
    assert all(np.isfinite(row["value"]) for row in rows)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    for how in ("side by side", "one after another"):
        assert sum(f"2 seeds {how} over 1 seed" in name for name in names) == 2
