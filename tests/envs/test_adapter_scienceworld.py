"""ScienceWorld by value: its solutions score 100, and any state can be stepped from again."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from steprl.envs.adapters.scienceworld import environment, gold_actions
from tests.envs.adapter_laws import (
    check_branches,
    check_malformed,
    check_same_task_same_observation,
    play,
)

pytest.importorskip("scienceworld")
pytestmark = pytest.mark.slow  # several Java processes

# Those of which the order of objects and the heat of things are part.
TASKS = ["power-component", "use-thermometer", "chemistry-mix-paint-secondary-color"]


@pytest.fixture(scope="module")
def env():
    env = environment(TASKS, memory_mb=512, engines=3)
    yield env
    env.close()


@pytest.fixture(scope="module")
def fresh():
    env = environment(TASKS, memory_mb=512, engines=1)
    yield env
    env.close()


@pytest.mark.parametrize("task", range(4))
def test_the_solution_of_the_simulator_is_worth_one(env, task):
    state, text = env.reset(task)
    assert "Your task is to" in text
    _, rows = play(env, state, gold_actions(env, task))
    assert rows[-1][2] and rows[-1][4]["success"] and rows[-1][4]["score"] == 100
    assert sum(row[1] for row in rows) == pytest.approx(1)
    assert all(row[4]["task_type"] == TASKS[task % 3] and row[4]["valid"] for row in rows)


@pytest.mark.parametrize("task", range(3))
def test_a_branch_is_what_a_new_episode_gives(env, fresh, task):
    check_branches(env, fresh, task, gold_actions(env, task), "inventory")


def test_a_task_is_always_the_same_game(env):
    check_same_task_same_observation(env, range(4))
    assert env.reset(0)[1] != env.reset(3)[1]


def test_malformed_actions_cost_a_step(env):
    assert check_malformed(env, 0) in ([], ["look\naround"])  # a line break is a space to it


def test_a_failed_task_ends(env):
    """Focus on what the task is not about is how one fails."""
    state, _ = env.reset(2)
    _, rows = play(env, state, ["focus on agent"])
    _, _, terminated, _, info = rows[-1]
    assert terminated and not info["success"] and info["score"] < 0 and rows[-1][1] < 0


def test_many_threads_at_once(env):
    gold = [gold_actions(env, task) for task in range(3)]

    def episode(task):
        return play(env, env.reset(task)[0], gold[task])[1][-1][4]["success"]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(episode, [0, 1, 2] * 3))
    assert env.counts.engines <= 3


def test_valid_actions_are_listed_on_demand(env):
    listing = environment("power-component", valid_actions=True, memory_mb=512, engines=1)
    try:
        state, _ = listing.reset(0)
        info = listing.step(state, "look around")[-1]
        assert "look around" in info["admissible_commands"]
        assert "admissible_commands" not in env.step(env.reset(0)[0], "look around")[-1]
    finally:
        listing.close()


def test_splits_have_variations_of_their_own():
    seen = {}
    for split in ("train", "eval", "test"):
        env = environment("boil", split=split, memory_mb=512, engines=1)
        infos = (env.step(env.reset(task)[0], "inventory")[-1] for task in (0, 1, 2, 15))
        seen[split] = {info["variation"] for info in infos}
        env.close()
    assert all(len(variations) > 1 for variations in seen.values())
    assert not seen["train"] & seen["eval"] and not seen["eval"] & seen["test"]


def test_a_copy_in_another_process_goes_on(env):
    state, _ = env.reset(1)
    state, *_ = env.step(state, "open cupboard")
    copy, same = pickle.loads(pickle.dumps((env, state)))
    try:
        assert copy.step(same, "inventory")[1:] == env.step(state, "inventory")[1:]
    finally:
        copy.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "fly"}, "tasks: .*fly.*; choose from boil"),
        ({"tasks": []}, "tasks: empty"),
        ({"split": "valid"}, "split: .*valid.*; choose from train"),
        ({"simplification": "easy,lazy"}, "simplification: .*lazy.*; choose from easy"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        environment(**options)
