"""Gymnasium both ways: its environments by value and in words, ours behind its interface.

pip install gymnasium pytest
"""

import pickle
import random
import threading

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed (it is optional)")

from gymnasium import spaces  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402

from steprl.envs.adapters.gymnasium import environment, from_gymnasium, to_gymnasium  # noqa: E402
from steprl.envs.adapters.gymnasium_spaces import ask, check_space, describe, parse  # noqa: E402
from steprl.envs.flow import FlowEnvironment, Turn  # noqa: E402
from steprl.envs.household import Household  # noqa: E402

GRAPH = spaces.Graph(spaces.Discrete(2), None)
HIDDEN = {}  # what a C library would keep for itself


class Counter(gymnasium.Env):
    """Counts to ten; by one more, or by what its generator draws."""

    observation_space = spaces.Dict({"count": spaces.Discrete(100), "last": spaces.Text(20)})
    action_space = spaces.Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = int(self.np_random.integers(5))
        return {"count": self.count, "last": "begun"}, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1 if action == 1 else int(self.np_random.integers(1, 4))
        info = {"is_success": np.bool_(self.count == 10), "left": np.float32(10 - self.count)}
        return {"count": self.count, "last": "ok"}, self.count == 10, self.count >= 10, False, info


class Locked(Counter):
    """Cannot be copied."""

    def __init__(self):
        self.lock = threading.Lock()


class Elsewhere(Counter):
    """Copies share what they count."""

    def __init__(self):
        self.place = HIDDEN.setdefault(len(HIDDEN), {})
        self.key = len(HIDDEN) - 1

    @property
    def count(self):
        return HIDDEN[self.key]["count"]

    @count.setter
    def count(self, value):
        HIDDEN[self.key]["count"] = value


def lake(**options):
    return environment("FrozenLake-v1", names=("left", "down", "right", "up"), **options)


# Gymnasium's, played by us.


@pytest.mark.parametrize("id", ["FrozenLake-v1", "Pendulum-v1", "Blackjack-v1", "CartPole-v1"])
@pytest.mark.parametrize("keep", ["auto", "replay"])
def test_what_is_played_is_what_gymnasium_plays(id, keep):
    env, theirs = environment(id, keep=keep), gymnasium.make(id)
    for task in range(3):
        theirs.action_space.seed(task)
        (state, text), (observation, _) = env.reset(task), theirs.reset(seed=task)
        for _ in range(20):
            assert text == describe(theirs.observation_space, observation)
            action = theirs.action_space.sample()
            state, text, *results, info = env.step(state, f"I take {action}.")
            observation, *expected, _ = theirs.step(action)
            assert results == expected and info["valid"]
            if results[1] or results[2]:
                break


@pytest.mark.parametrize(
    ("make", "keep", "restores"),
    [(Counter, "auto", True), (Locked, "auto", False), (Elsewhere, "auto", False),
     (Counter, "replay", False), (Counter, "copy", True)],
)  # fmt: skip
def test_a_branch_is_the_same_twice_however_it_is_kept(make, keep, restores):
    env = from_gymnasium(make, keep=keep, engines=2)
    state, first = env.reset(3)
    for _ in range(2):
        state, *_ = env.step(state, "1")

    def go_on(state):
        seen = []
        while not seen or not seen[-1][2]:
            state, *results = env.step(state, "2")
            seen.append(results)
        return seen

    branch = go_on(state)
    env.reset(0), env.reset(1), go_on(env.reset(3)[0])
    assert go_on(state) == branch == go_on(pickle.loads(pickle.dumps(state)))
    assert env.reset(3)[1] == first
    assert (env.counts.restores > 0, env.counts.replayed > 0) == (restores, not restores)


def test_a_reply_that_is_no_action_costs_a_step_and_says_why():
    env = lake()
    state, text = env.reset(0)
    for reply in ("", "forward", "lefty", "0", "\x00", "x" * 5000):
        after, told, reward, terminated, truncated, info = env.step(state, reply)
        assert told == f"Reply with one of: left, down, right, up.\n{text}"
        assert (reward, terminated, truncated, info["valid"]) == (0, False, False, False)
        assert len(after.actions) == 1
        assert env.step(after, "down")[1:3] == env.step(state, "Up? No. DOWN!")[1:3]


def test_it_says_how_to_reply_and_how_long_an_episode_is():
    env = lake(kwargs={"is_slippery": False, "max_episode_steps": 2})
    assert env.system == "Reply with one of: left, down, right, up." and env.max_steps == 2
    state, *_ = env.step(env.reset(0)[0], "left")
    assert env.step(state, "left")[3:5] == (False, True)


def test_success_is_what_info_says_else_the_threshold_else_a_positive_sum():
    state, *_ = (env := from_gymnasium(Counter)).reset(0)
    while not (step := env.step(state, "1"))[3]:
        state, info = step[0], step[-1]
        assert info["success"] is False and type(info["left"]) is float
    assert step[-1]["success"] is True

    env = lake(kwargs={"is_slippery": False})
    state, _ = env.reset(0)
    for move in "down down right down right right".split():
        state, _, reward, terminated, _, info = env.step(state, move)
        assert info["success"] is terminated is bool(reward)
    assert terminated
    cart = environment("CartPole-v1")
    state, _ = cart.reset(0)
    while not (step := cart.step(state, "1"))[3]:
        state = step[0]
    assert step[2] == 1 and step[-1]["success"] is False  # it fell, long before the threshold


def test_eval_has_seeds_of_its_own():
    train, held_out = (environment("CartPole-v1", split=split) for split in ("train", "eval"))
    assert train.reset(0)[1] == environment("CartPole-v1").reset(0)[1] != held_out.reset(0)[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: environment("CartPole-v1", split="test"), "split: 'test'; choose from train, eval"),
        (lambda: environment("CartPole-v1", keep="never"), "keep: 'never'; choose from auto"),
        (lambda: environment("CartPole-v1", names=["left"]), "names: .*'left'.* are not 2"),
        (lambda: environment("Pendulum-v1", names=["left"]), "names are for a Discrete space"),
        (lambda: check_space(spaces.Box(0, 255, (64, 64, 3)), "text"), "12288 numbers .*give `text`"),
        (lambda: check_space(spaces.Dict({"g": GRAPH}), "x"), "Graph has no text of its own: give `x`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Texts of spaces.

NESTED = spaces.Dict({"move": spaces.Discrete(3), "force": spaces.Box(-1, 1, (2,))})


@pytest.mark.parametrize(
    ("space", "value", "text"),
    [
        (spaces.Discrete(5, start=-2), np.int64(-1), "-1"),
        (spaces.Text(9), "Hello", "Hello"),
        (spaces.Box(-5, 5, (2, 2)), np.array([[1.5, 0], [0.12345, -2]]), "1.5, 0, 0.1235, -2"),
        (spaces.Box(0, 9, (2,), np.int8), np.array([3, 9], np.int8), "3, 9"),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), "1, 0, 1"),
        (spaces.MultiDiscrete([3, 4]), np.array([2, 0]), "2, 0"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Text(3))), (1, "abc"), "0: 1\n1: abc"),
        (NESTED, {"move": 2, "force": np.array([1, -1], np.float32)}, "force: 1, -1\nmove: 2"),
    ],
)  # fmt: skip
def test_an_observation_in_words(space, value, text):
    check_space(space, "text")
    assert sorted(describe(space, value).splitlines()) == sorted(text.splitlines())


@pytest.mark.parametrize(
    ("space", "text", "value"),
    [
        (spaces.Discrete(4), "3", 3),
        (spaces.Discrete(4), "Not 1 but 2.", 2),
        (spaces.Discrete(3, start=-1), "-1", -1),
        (spaces.Box(-1, 1, (2,)), "0.5, -1e-1", [0.5, -0.1]),
        (spaces.Box(-1, 1, (2, 1)), "[[1], [0]]", [[1], [0]]),
        (spaces.MultiBinary(3), "1 0 1", [1, 0, 1]),
        (spaces.MultiDiscrete([3, 4]), "(2, 3)", [2, 3]),
        (spaces.Text(9), "Hello", "Hello"),
    ],
)
def test_an_action_from_words(space, text, value):
    read = parse(space, text)
    assert space.contains(read) or type(read) is int
    np.testing.assert_array_equal(read, np.asarray(value, getattr(read, "dtype", None)))


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (spaces.Discrete(4), "4", "one whole number from 0 to 3"),
        (spaces.Discrete(4), "1.5", "one whole number"),
        (spaces.Discrete(4), "9" * 4000, "one whole number"),
        (spaces.Box(-1, 1, (2,)), "0.5", "These are 1 numbers. .*2 in all"),
        (spaces.Box(-1, 1, (2,)), "0.5, 2", "Out of bounds"),
        (spaces.Box(-1, 1, (2,)), "0, 1e999", "Out of bounds"),
        (spaces.Box(0, 255, (1,), np.uint8), "256", "Out of bounds"),
        (spaces.MultiBinary(2), "1, 0.5", "whole numbers"),
        (spaces.MultiDiscrete([3, 4]), "1, 4", "Out of bounds"),
        (spaces.Text(3), "long", "1 to 3 known characters"),
        (NESTED, "left", "not JSON"),
        (NESTED, "[]", "JSON object with"),
        (NESTED, '{"move": 1}', "JSON object with"),
        (NESTED, '{"move": 7, "force": [0, 0]}', "0 to 2"),
        (NESTED, '{"move": null, "force": {}}', "0 numbers|0 to 2"),
        (spaces.Tuple((NESTED,)), "[1, 2]", "JSON list of 1"),
    ],
)
def test_words_that_are_no_action_say_why(space, text, message):
    with pytest.raises(ValueError, match=message):
        parse(space, text)


def test_nested_actions_are_json():
    value = parse(NESTED, '{"move": 2, "force": [0.5, -1]}')
    assert value["move"] == 2 and value["force"].tolist() == [0.5, -1]
    both = spaces.Tuple((NESTED, spaces.Text(5)))
    value = parse(both, '[{"move": 0, "force": [0, 0]}, "hello"]')
    assert both.contains((value[0] | {"move": np.int64(0)}, value[1])) and value[1] == "hello"
    assert "'move': Reply with one whole number from 0 to 2." in ask(NESTED)


# Ours, behind Gymnasium's interface.


def echo(task):
    turn = Turn(f"Task {task}.")
    for _ in range(3):
        reply = yield turn
        turn = Turn([{"role": "user", "content": f"You said {reply!r}. ü"}])
    return 1.0


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize(
    "env", [Household(max_steps=5), FlowEnvironment(echo, list(range(40)), max_steps=5)]
)
def test_it_passes_gymnasiums_own_check(env):
    check_env(to_gymnasium(env))


def test_it_gives_what_the_environment_gives():
    env, theirs, rng = (
        Household(max_steps=6),
        to_gymnasium(Household(max_steps=6)),
        random.Random(0),
    )
    for task in range(3):
        (state, text), (observation, info) = env.reset(task), theirs.reset(seed=task)
        assert (text, {"task": task}) == (observation, info) and theirs.render() == text
        truncated = False
        while not truncated:
            action = rng.choice(env.admissible_commands(state))
            state, *results, info = env.step(state, action)
            *given, about = theirs.step(action)
            truncated = results[-1] or results[-2]
            assert results == given and about == info | {"task": task}
            assert theirs.state == state and theirs.render() == results[0]
            assert theirs.observation_space.contains(results[0])


def test_a_task_is_named_by_seed_or_option_or_drawn():
    env = to_gymnasium(Household(), tasks=10)
    assert env.reset(seed=3)[1] == {"task": 3}
    assert env.reset(seed=3, options={"task": 7})[1] == {"task": 7}
    env.reset(seed=3)
    drawn = [env.reset()[1]["task"] for _ in range(20)]
    env.reset(seed=3)
    assert drawn == [env.reset()[1]["task"] for _ in range(20)]
    assert len(set(drawn)) > 3 and set(drawn) <= set(range(10))


def test_there_and_back_again():
    env = from_gymnasium(lambda: to_gymnasium(Household(max_steps=4)), max_steps=4)
    ours = Household(max_steps=4)
    (state, text), (expected, told) = env.reset(2), ours.reset(2)
    assert text == told
    for command in ("look", "inventory", "dance", "help"):
        state, *results, _ = env.step(state, command)
        expected, *told, _ = ours.step(expected, command)
        assert results == told


def test_messages_become_one_text():
    env = to_gymnasium(FlowEnvironment(echo, [1], max_steps=5))
    env.reset(seed=0)
    assert env.step("hi")[0] == "user: You said 'hi'. ü"
