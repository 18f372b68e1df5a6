"""What the environments that ship tell the critic alone: the way to success, from any state."""

import pickle

import jax
import numpy as np
import pytest

from steprl.config import EnvConfig
from steprl.envs import household
from steprl.envs.answers import checked_privileged
from steprl.envs.flow import FlowEnvironment
from steprl.envs.games import count_as_token
from steprl.envs.household.vocabulary import split_pattern
from steprl.envs.mini_shop import demonstrate as shop_expert
from steprl.envs.mini_shop import mini_shop
from steprl.envs.multihop.language import FIRST_ENTITY
from steprl.envs.opening import open_game
from steprl.envs.privileged import PrivilegedEnv
from steprl.envs.tool_environment import ToolEnvironment
from steprl.envs.wiki_search import demonstrate as search_expert
from steprl.envs.wiki_search import wiki_search

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["errand", "shop", "multihop"])
def test_a_game_tells_of_the_best_play_what_it_needs(name):
    """After mistakes too; the counts are those of the game itself."""
    game = open_game(EnvConfig(name=name))
    env = game.make(False)
    reset, step, tell, best, distance = (
        jax.jit(f) for f in (env.reset, env.step, game.privileged, game.optimal, env.distance)
    )
    state, _ = reset(4, KEY)
    wrong = np.zeros(env.action_width, np.int32)
    success = False
    for turn in range(env.max_steps):
        told = np.asarray(tell(state)).tolist()
        command, left = best(state, KEY), env.max_steps - turn
        if name == "multihop":
            left = int(state.hops) + 1 + env.config.spare_steps - turn
            names = np.asarray(state.chain)[int(state.found) : int(state.hops) + 1]
            assert [token for token in told[1:] if token] == (names + FIRST_ENTITY).tolist()
            assert told[0] == count_as_token(left, env.vocab_size)
        else:
            counts = [int(distance(state)), left] + [0] * (name == "shop")
            assert told[:2] == command.tolist()
            assert told[2:] == [int(count_as_token(count, env.vocab_size)) for count in counts]
        state, seen = step(state, wrong if turn == 1 else command)
        success = bool(seen.success)
        if seen.terminated:
            break
    assert success


def test_counts_are_words_of_the_vocabulary():
    numbers = np.arange(40)
    tokens = np.asarray(count_as_token(numbers, 20))
    assert tokens.tolist() == [min(3 + number, 19) for number in numbers]


@pytest.mark.parametrize("task", range(6))
def test_who_obeys_what_the_household_tells_wins_in_so_many_steps(task):
    """In words that the game's own small language has."""
    env = household.Household(max_steps=30)
    state, _ = env.reset(task)
    state, *_ = env.step(state, "look")
    expected = int(env.privileged(state).rsplit(" ", 1)[1])
    for left in range(expected, 0, -1):
        text = env.privileged(state)
        command, number = text.rsplit(". ", 1)
        assert int(number) == left
        assert not split_pattern().sub("", text).strip()
        state, _, _, won, _, _ = env.step(state, command)
    assert won and env.privileged(state) == ""


def told_on_the_way(env, expert, task):
    state, _ = env.reset(task)
    said = []
    while not state.done:
        said.append(checked_privileged(env.privileged(state)))
        state, *_ = env.step(state, expert(env, state))
    return said


def test_the_shop_tells_the_product_and_what_is_still_to_be_selected():
    env = mini_shop(tool_call=False)
    said = told_on_the_way(env, shop_expert, 0)
    assert said[0] == said[1] == "S8510, to open; to select: charcoal grey, x-small"
    assert said[2:] == [
        f"S8510, open; to select: {left}"
        for left in ("charcoal grey, x-small", "x-small", "nothing")
    ]


def test_the_search_tells_the_answer_and_the_pages_that_are_not_found():
    env = wiki_search(first_search=False)
    question = env.question(0)
    first, last = told_on_the_way(env, search_expert, 0)
    assert first == f"answer: {question.answers[0]}; to find: {', '.join(question.titles)}"
    assert last == f"answer: {question.answers[0]}; to find: nothing"


def test_environments_of_functions_tell_what_a_function_says():
    def echo(word):
        reply = yield "say it"
        return float(reply == word)

    flow = FlowEnvironment(
        echo, ["hm"], privileged=lambda word, replies: f"{word} after {len(replies)}"
    )
    assert flow.privileged(flow.reset(0)[0]) == "hm after 0"
    tools = ToolEnvironment(
        [], [("1 + 2?", "3")], prompt=lambda task, schemas: task[0],
        reward=lambda task, answer: float(answer == task[1]),
        privileged=lambda task, state: f"{task[1]} at {len(state.turns)}",
    )  # fmt: skip
    assert tools.privileged(tools.reset(0)[0]) == "3 at 0"
    for env in (FlowEnvironment(echo, ["hm"]), ToolEnvironment([], ["a"], str, len)):
        assert not hasattr(env, "privileged")
    with pytest.raises(ValueError, match="privileged: 3 is no function"):
        FlowEnvironment(echo, ["hm"], privileged=3)


def test_what_tells_goes_to_processes_as_any_environment():
    env = PrivilegedEnv(household.Household())
    again = pickle.loads(pickle.dumps(env))
    (state, text), (other, same) = env.reset(2), again.reset(2)
    assert text == same and state.text == other.text != ""
