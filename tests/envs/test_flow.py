"""Flows as environments: a generator is never copied, and yet every state may be stepped from."""

import doctest
import gc
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs import flow as room
from steprl.envs.flow import Ending, FlowEnvironment, FlowError, Turn
from steprl.models import phrase_tokenizer
from steprl.rollout import HostPlayer
from steprl.rollout.contexts import plain_context
from steprl.types import Policy

TASKS = [3, 14, 15]


def haggle(seed):
    """Text, messages and turns; locals that grow, chance from the task, an end on demand."""
    dice, said = random.Random(seed), []
    reply = yield f"task {seed}: {dice.random()}"
    while not reply.endswith("stop"):
        said.append(reply)
        price = dice.random() * len(said)
        if "?" in reply:
            reply = yield Turn("what?", reward=-price / 3, valid=False, reason="a question")
        elif len(said) % 2:
            reply = yield [{"role": "user", "content": f"{said} {price}"}]
        else:
            reply = yield Turn(f"{price}", reward=price, info={"said": len(said)})
    return Ending(dice.random(), success=reply == "stop", info={"said": len(said)})


def played(flow, task, replies):
    """(observation, reward, terminated) of each step, by nothing but the generator."""
    generator, rows = flow(task), []
    next(generator)
    for reply in replies:
        try:
            item = generator.send(reply)
            turn = item if isinstance(item, Turn) else Turn(item)
            rows.append((turn.prompt, turn.reward, False))
        except StopIteration as stop:
            rows.append(("", stop.value.reward, True))
    return rows


# Episodes.


def test_an_episode_goes_on_in_one_generator():
    begun = []

    def counted(seed):
        begun.append(seed)
        return (yield from haggle(seed))

    env = FlowEnvironment(counted, TASKS)
    state, observation = env.reset(1)
    replies, rows = ("a", "b?", "c", "d", "stop"), []
    for reply in replies:
        state, observation, reward, terminated, truncated, info = env.step(state, reply)
        rows.append((observation, reward, terminated))
        assert not truncated and info["success"] == terminated
        assert (info["valid"], info["reason"]) == (
            ("?" not in reply),
            "a question" * ("?" in reply),
        )
    assert rows == played(haggle, 14, replies) and info["said"] == 4
    assert begun == [14] and state.replies == replies and state.over


@pytest.mark.parametrize(
    ("value", "reward", "success"),
    [
        (1, 1.0, True),
        (0.4, 0.4, False),
        (True, 1.0, True),
        (np.float32(0.5), 0.5, True),
        (Ending(0.6, success=False), 0.6, False),
        (Ending(0.1, success=True), 0.1, True),
        (Ending(0.7), 0.7, True),
    ],
)
def test_the_value_that_is_returned_is_the_reward_of_the_last_reply(value, reward, success):
    def once(task):
        yield "?"
        return value

    env = FlowEnvironment(once, TASKS, success=0.5)
    state, observation, *result, info = env.step(env.reset(0)[0], "x")
    assert (observation, result, info["success"]) == ("", [reward, True, False], success)
    assert type(result[0]) is float


def test_a_turn_brings_the_reward_of_the_reply_before_it():
    def flow(task):
        yield "one"
        yield Turn("two", reward=0.25)
        yield "three"
        return 0.5

    env = FlowEnvironment(flow, TASKS)
    state, rewards = env.reset(0)[0], []
    for reply in "abc":
        state, _, reward, *_ = env.step(state, reply)
        rewards.append(reward)
    assert rewards == [0.25, 0.0, 0.5]


def test_steps_run_out():
    env = FlowEnvironment(haggle, TASKS, max_steps=2)
    middle = env.step(env.reset(0)[0], "a")[0]
    last, observation, reward, terminated, truncated, info = env.step(middle, "b")
    assert [(observation, reward, terminated)] == played(haggle, 3, "ab")[1:]
    assert truncated and not info["success"]
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(last, "c")
    ended, *_, terminated, truncated, _ = env.step(middle, "stop")
    assert terminated and not truncated
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(ended, "c")


def test_tasks_go_round():
    env = FlowEnvironment(haggle, TASKS)
    assert env.reset(4)[1] == env.reset(1)[1] == env.reset(np.int32(1))[1]
    with pytest.raises(ValueError, match="non-negative"):
        env.reset(-1)


def test_what_was_read_stays_as_it_was():
    """A flow may keep one list of messages and append to it."""

    def chat(task):
        messages = [{"role": "user", "content": "hello"}]
        while True:
            messages.append({"role": "assistant", "content": (yield messages)})
            messages.append({"role": "user", "content": "and?"})

    env = FlowEnvironment(chat, TASKS)
    state, first = env.reset(0)
    second = env.step(state, "well")[1]
    assert [len(first), len(second)] == [1, 3]
    first[0]["content"] = "changed"
    assert env.step(state, "well")[1] == second


# Branches.


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from(["a", "b", "c?", "go", "no stop", "stop"])),
        max_size=25,
    ),
    task=st.integers(0, 5),
    live=st.sampled_from([0, 1, 2, 1024]),
    kept=st.booleans(),
)
def test_every_order_of_branches_gives_the_same_episodes(moves, task, live, kept):
    """Law: a step depends on the task and the replies, whatever was stepped, kept or lost before."""
    env = FlowEnvironment(haggle, TASKS, live=live, max_steps=6)
    nodes = [env.reset(task)[0]]
    for place, reply in moves:
        state = nodes[place % len(nodes)]
        if state.over:
            continue
        if not kept:
            state = pickle.loads(pickle.dumps(state))
        after, observation, reward, terminated, truncated, _ = env.step(state, reply)
        replies = (*state.replies, reply)
        assert (observation, reward, terminated) == played(haggle, TASKS[task % 3], replies)[-1]
        assert truncated == (not terminated and len(replies) == 6)
        assert after.replies == replies and after.over == (terminated or truncated)
        nodes.append(after)


def test_a_state_is_a_value():
    env = FlowEnvironment(haggle, TASKS)
    trunk = env.step(env.reset(0)[0], "a")[0]
    left, right = env.step(trunk, "b"), env.step(trunk, "c")
    assert left[0] != right[0] and env.step(trunk, "b") == left
    copied = pickle.loads(pickle.dumps(trunk))
    assert copied == trunk and hash(copied) == hash(trunk)
    there = pickle.loads(pickle.dumps(env))
    assert there.step(copied, "b") == left


def test_attempts_at_one_task_have_a_generator_each():
    begun = []

    def counted(seed):
        begun.append(seed)
        return (yield from haggle(seed))

    env = FlowEnvironment(counted, TASKS)
    states = [env.reset(0)[0] for _ in range(4)]
    assert len(set(states)) == 1
    for reply in "ab":
        states = [env.step(state, reply)[0] for state in states]
    assert len(begun) == 4 and len(set(states)) == 1


def test_threads_may_step_from_the_same_states():
    env = FlowEnvironment(haggle, TASKS, live=4, max_steps=40)
    trunk = env.step(env.reset(0)[0], "a")[0]

    def walk(number):
        state, rows = trunk, []
        for turn in range(20):
            state, observation, reward, terminated, *_ = env.step(state, f"{number} {turn}")
            rows.append((observation, reward, terminated))
        return rows

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(walk, [n % 8 for n in range(32)]))
    for number, rows in enumerate(found):
        replies = ["a", *(f"{number % 8} {turn}" for turn in range(20))]
        assert rows == played(haggle, 3, replies)[1:]


# Generators come and go.


def closing(closed):
    def flow(task):
        try:
            while (yield "?") != "stop":
                pass
            return 1
        finally:
            closed.append(task)

    return flow


def test_a_generator_is_closed_with_its_state():
    closed: list = []
    env = FlowEnvironment(closing(closed), TASKS)
    state = env.reset(0)[0]
    state = env.step(state, "go")[0]
    assert closed == []
    del state
    gc.collect()
    assert closed == [3]


def test_a_generator_is_closed_at_the_last_step():
    closed: list = []
    env = FlowEnvironment(closing(closed), TASKS, max_steps=1)
    state = env.step(env.reset(0)[0], "go")[0]
    gc.collect()
    assert closed == [3] and state.over


def test_few_generators_are_kept_and_the_oldest_goes():
    closed: list = []
    env = FlowEnvironment(closing(closed), TASKS, live=2)
    states = [env.reset(task)[0] for task in range(3)]
    assert closed == [3]
    assert env.step(states[0], "stop")[2] == 1.0  # replayed
    assert env.step(states[2], "stop")[2] == 1.0
    assert closed == [3, 3, 15]


def test_a_new_state_in_the_place_of_an_old_one_has_its_own_generator():
    """Identities are used again: what is found by one is looked after."""
    env = FlowEnvironment(haggle, TASKS)
    for number in range(300):
        state = env.step(env.reset(number)[0], "a")[0]
        assert env.step(state, "b")[1] == played(haggle, TASKS[number % 3], "ab")[1][0]


# What goes wrong.


def raises(task):
    reply = yield "?"
    yield {}[reply]


def unfinished(task):
    yield "?"


def at_once(task):
    return 1.0
    yield


def paid_early(task):
    yield Turn("?", reward=1.0)


def returns(value, task):
    yield "?"
    return value


def yields(value, task):
    yield "?"
    yield value


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (raises, "flow `raises`, task 4, after 1 replies: KeyError: 'x'"),
        (unfinished, "flow `unfinished`, task 4, after 1 replies: .*it returned nothing"),
        (at_once, "flow `at_once`, task 4, after 0 replies: .*ended before its first prompt"),
        (paid_early, "after 0 replies: .*its first turn has a reward or info"),
        (lambda task: "prompt", "it returned str where a generator was expected"),
        (partial(returns, "good"), "returns.*after 1 replies: .*the reward is 'good'"),
        (partial(returns, float("nan")), "the reward is nan"),
        (partial(returns, np.zeros(2)), "after 1 replies"),
        (partial(yields, None), "it yielded NoneType: yield text, a list of messages, or a Turn"),
        (partial(yields, []), "it yielded list"),
        (partial(yields, ["hello"]), "it yielded the message 'hello'"),
        (partial(yields, [{"content": "x"}]), "expected a dict with 'role' and 'content'"),
        (partial(yields, [{"role": "user", "content": {1}}]), "not JSON serializable"),
        (partial(yields, Turn("x", reward=None)), "the reward is None"),
    ],
)
def test_an_error_says_which_flow_failed_where(flow, message):
    env = FlowEnvironment(flow, TASKS)
    with pytest.raises(FlowError, match=message):
        env.step(env.reset(4)[0], "x")


def test_the_error_of_the_flow_is_its_cause_and_the_state_is_as_good_as_before():
    env = FlowEnvironment(raises, TASKS)
    state = env.reset(0)[0]
    for _ in range(2):
        with pytest.raises(FlowError) as caught:
            env.step(state, "x")
        assert isinstance(caught.value.__cause__, KeyError)


def test_a_flow_that_answers_differently_when_replayed_is_refused():
    numbers = iter(range(100))

    def counts(task):
        reply = yield "same"
        while reply:
            reply = yield f"prompt {next(numbers)}"
        return 1.0

    def shrinks(task):
        for text in [*task, "last"]:
            yield text
            task.pop()
        return 1.0

    env = FlowEnvironment(counts, TASKS)
    state = env.step(env.reset(0)[0], "a")[0]
    state = env.step(state, "b")[0]
    assert env.step(state, "c")[1] == "prompt 2"
    with pytest.raises(
        FlowError, match="`.*counts`, task 0, after 1 replies: replayed, it answered"
    ):
        env.step(state, "d")
    env = FlowEnvironment(shrinks, [["a", "b"]])
    state = env.step(env.reset(0)[0], "x")[0]
    env.step(state, "y")
    with pytest.raises(FlowError, match="do not change the task"):
        env.step(state, "z")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flow": "haggle"}, "flow: 'haggle' is no function"),
        ({"tasks": []}, "tasks: there is none"),
        ({"context": "grow"}, "choose from rebuild, extend"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"live": -1}, "live=-1"),
        ({"max_steps": "5"}, "max_steps='5': give a whole number"),
        ({"max_steps": None}, "max_steps=None"),
        ({"max_steps": 2.5}, "max_steps=2.5"),
        ({"success": float("nan")}, "success=nan: give the reward"),
        ({"success": "1"}, "success='1'"),
        ({"system": 3}, "system=3: give text"),
        ({"tasks": {"a": 1}}, "give a list, which has a length and an order"),
        ({"tasks": None}, "tasks: None"),
        ({"tasks": iter([1])}, "tasks: .*iterator"),
        ({"tools": haggle}, "tools is function: give a list"),
        ({"tools": [lambda x: x]}, "no name that a model could call"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        FlowEnvironment(**{"flow": haggle, "tasks": TASKS} | wrong)


def test_what_chat_models_are_told():
    def look(place: str) -> str:
        """Look.

        Args:
            place: where.
        """
        return place

    plain = FlowEnvironment(haggle, TASKS)
    assert plain.context == "rebuild"
    assert not hasattr(plain, "system") and not hasattr(plain, "tools")
    env = FlowEnvironment(haggle, TASKS, context="extend", system="You haggle.", tools=[look])
    assert (env.context, env.system) == ("extend", "You haggle.")
    assert [tool["function"]["name"] for tool in env.tools] == ["look"]


def test_numbers_of_arrays_reach_the_record_as_numbers():
    def flow(task):
        yield "?"
        return Ending(1.0, info={"score": np.float32(0.5), "many": np.ones(2), "text": "x"})

    env = FlowEnvironment(flow, TASKS)
    *_, info = env.step(env.reset(0)[0], "a")
    assert type(info["score"]) is float and info["score"] == 0.5 and info["text"] == "x"
    assert info["many"].shape == (2,)


# In a rollout.

WORDS = ("more", "done", "say", "left", *"0123456789")


def countdown(task):
    for left in reversed(range(task)):
        reply = yield Turn(f"say {left} left")
        if reply == "done":
            return Ending(0.5, info={"left": left})
    return Ending(1.0, info={"left": -1})


def test_a_flow_is_played_and_its_notes_are_in_the_record_of_the_step():
    tokenizer = phrase_tokenizer(WORDS)
    says = jnp.where(jnp.isin(jnp.arange(len(tokenizer)), jnp.array([3, 4])), 0.0, -1e9)
    policy = Policy(
        init=lambda key: {},
        apply=lambda params, tokens, positions, segments, cache=None: (
            jnp.zeros((*tokens.shape, 1)),
            cache,
        ),
        unembed=lambda params, hidden: hidden + says[(None,) * (hidden.ndim - 1)],
        value=None,
        init_cache=lambda batch, length: jnp.zeros((batch, length)),
    )
    env = FlowEnvironment(countdown, [3], context="extend")
    player = HostPlayer(policy, plain_context(tokenizer), 3, response_length=1, context_length=64)
    for trajectory in player.play(env, {}, jax.random.key(0), [0] * 16, list(range(16))):
        state, observation = env.reset(0)
        for step in trajectory.steps:
            assert step.observation == observation
            state, observation, reward, terminated, _, info = env.step(state, step.action)
            assert (step.reward, step.terminated, step.info) == (reward, terminated, info)
        assert terminated and trajectory.success == (reward == 1.0)
        assert trajectory.steps[-1].info["left"] == (
            -1 if reward == 1.0 else 3 - len(state.replies)
        )


def test_the_example_runs():
    failed, tried = doctest.testmod(room)
    assert tried and not failed
