"""TextWorldExpress by value: its solutions win, and any state can be stepped from again."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from steprl.envs.adapters.textworld_express import GAMES, environment, gold_actions
from tests.envs.adapter_laws import (
    check_branches,
    check_malformed,
    check_same_task_same_observation,
    play,
)

pytest.importorskip("textworld_express")


@pytest.fixture(scope="module")
def env():
    env = environment(GAMES, max_steps=100)
    yield env
    env.close()


@pytest.fixture(scope="module")
def fresh():
    env = environment(GAMES, max_steps=100)
    yield env
    env.close()


@pytest.mark.parametrize("task", range(8), ids=GAMES)
def test_the_solution_of_the_game_is_worth_one(env, task):
    state, _ = env.reset(task)
    _, rows = play(env, state, gold_actions(env, task))
    assert rows[-1][2] and rows[-1][4]["success"]
    assert sum(row[1] for row in rows) == pytest.approx(1)
    assert all(row[4]["task_type"] == GAMES[task] and row[4]["valid"] for row in rows)


@pytest.mark.parametrize("task", range(8), ids=GAMES)
def test_a_branch_is_what_a_new_episode_gives(env, fresh, task):
    check_branches(env, fresh, task, gold_actions(env, task), "inventory")


def test_a_task_is_always_the_same_game(env):
    check_same_task_same_observation(env, range(16))
    assert env.reset(0)[1] != env.reset(8)[1]


@pytest.mark.parametrize("task", [0, 4, 6])
def test_malformed_actions_cost_a_step(env, task):
    assert check_malformed(env, task) == []


def test_commands_are_listed(env):
    info = env.step(env.reset(2)[0], "look around")[-1]
    assert {"look around", "inventory"} <= set(info["admissible_commands"])


@pytest.mark.parametrize("games", [GAMES, [name for name in GAMES if name != "sorting"]])
def test_attempts_at_one_task_side_by_side(games):
    """Simulators of one process share what their classes hold: not so much that one sees another."""
    env = environment(games, max_steps=100)
    gold = [gold_actions(env, task) for task in range(len(games))]

    def attempt(task):
        return play(env, env.reset(task)[0], gold[task])[1][-1][4]["success"]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(attempt, sorted(list(range(len(games))) * 3)))
    assert env.counts.engines == (1 if "sorting" in games else 6)
    env.close()


def test_splits_and_properties_make_other_games():
    texts = set()
    for options in ({}, {"split": "eval"}, {"split": "test"}, {"params": {"numLocations": 2}}):
        env = environment("coin", engines=1, **options)
        texts.add(tuple(env.reset(task)[1] for task in range(5)))
        env.close()
    assert len(texts) == 4


def test_a_copy_in_another_process_goes_on(env):
    state, *_ = env.step(env.reset(2)[0], "move south")
    copy, same = pickle.loads(pickle.dumps((env, state)))
    try:
        assert copy.step(same, "look around")[1:] == env.step(state, "look around")[1:]
    finally:
        copy.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": "chess"}, "games: .*chess.*; choose from cookingworld"),
        ({"games": []}, "games: empty"),
        ({"games": GAMES, "engines": 2}, "engines=2: with 'sorting' among the games, 1"),
        ({"split": "valid"}, "split: .*valid.*; choose from train"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        environment(**options)


def test_properties_are_checked_by_the_game():
    env = environment("coin", params="bogus=3", engines=1)
    with pytest.raises(ValueError, match="Unrecognized property name .bogus."):
        env.reset(0)
