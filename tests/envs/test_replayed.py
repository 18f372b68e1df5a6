"""Engines hide their state; over `replayed`, every state may be stepped from all the same."""

import doctest
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs import replayed as room
from steprl.envs.replayed import Counts, ReplayError, replayed


def moved(total, action):
    """The rule of the game below: order matters, so that a wrong replay is seen."""
    return (3 * total + len(action)) % 1009


def expected(task, actions):
    """What the last of the actions gives, by the rule alone."""
    total = reduce(moved, actions, task)
    return f"{task}: {total}", float(total % 7), total % 11 == 0


class Counting:
    """An engine without snapshots."""

    def __init__(self, log=None):
        self.log = log

    def reset(self, task):
        self.task = self.total = task
        return f"task {task}"

    def step(self, action):
        if action == "crash":
            raise RuntimeError("it broke")
        self.total = moved(self.total, action)
        over = self.total % 11 == 0
        return f"{self.task}: {self.total}", float(self.total % 7), over, False, {"success": over}

    def close(self):
        if self.log is not None:
            self.log.append("closed")


class Saving(Counting):
    """The same with snapshots."""

    def snapshot(self):
        return self.task, self.total

    def restore(self, snapshot):
        self.task, self.total = snapshot


ENGINES = [(Counting, {}), (Saving, {}), (Saving, {"snapshot_every": 3})]
engines = pytest.mark.parametrize(
    ("make", "options"), ENGINES, ids=["replay", "snapshots", "every third"]
)


# Any tree of steps is the direct computation.

PLANS = st.lists(st.tuples(st.integers(0, 50), st.text("abc", max_size=3)), max_size=25)


@engines
@pytest.mark.parametrize("limit", [1, 3])
@given(tasks=st.lists(st.integers(0, 5), min_size=1, max_size=3), plan=PLANS)
@settings(max_examples=60, deadline=None)
def test_a_tree_of_steps_is_the_direct_computation(make, options, limit, tasks, plan):
    env = replayed(make, engines=limit, **options)
    states = []
    for task in tasks:
        state, observation = env.reset(task)
        assert observation == f"task {task}" and (state.task, state.actions) == (task, ())
        states.append(state)
    for place, action in plan:
        before = states[place % len(states)]
        state, observation, reward, terminated, truncated, info = env.step(before, action)
        assert state.actions == (*before.actions, action) and state.over == terminated
        assert (observation, reward, terminated) == expected(state.task, state.actions)
        assert not truncated and info == {"success": terminated, "valid": True, "reason": ""}
        if not state.over:
            states.append(state)
    assert env.counts.engines <= limit and env.counts.steps == len(plan)


@engines
def test_one_thread_an_episode_at_once(make, options):
    """Many more threads than engines: each still plays its own game."""
    env = replayed(make, engines=3, **options)

    def play(number):
        state, _ = env.reset(number % 4)
        rows = []
        for k in range(12):
            state, *row, _ = env.step(state, "x" * ((number + k) % 5))
            rows.append((state, tuple(row[:3])))
            if state.over:
                break
        return rows

    with ThreadPoolExecutor(12) as pool:
        for rows in pool.map(play, range(40)):
            for state, row in rows:
                assert row == expected(state.task, state.actions)
    assert env.counts.engines <= 3


# What it costs.


def test_going_on_costs_one_step_and_coming_back_a_reset_and_the_same_steps():
    env = replayed(Counting, engines=1)
    start, _ = env.reset(5)
    state = start
    for action in ("a", "b", "c"):
        state, *_ = env.step(state, action)
    assert env.counts == Counts(steps=3, replayed=0, resets=1, restores=0, engines=1)
    branch, *_ = env.step(start, "d")
    assert env.counts == Counts(steps=4, replayed=0, resets=2, restores=0, engines=1)
    env.step(state, "e")
    assert env.counts == Counts(steps=5, replayed=3, resets=3, restores=0, engines=1)
    env.step(branch, "e")
    assert env.counts == Counts(steps=6, replayed=4, resets=4, restores=0, engines=1)


def test_an_engine_each_needs_no_replay():
    env = replayed(Counting, engines=4)
    states = [env.reset(task)[0] for task in (1, 5, 6, 7)]
    for _ in range(5):
        states = [env.step(state, "ab")[0] for state in states]
    assert env.counts == Counts(steps=20, replayed=0, resets=4, restores=0, engines=4)


def test_an_engine_on_the_way_goes_on_without_a_reset():
    env = replayed(Counting, engines=1)
    start, _ = env.reset(5)
    later, *_ = env.step(env.step(start, "a")[0], "b")
    other = replayed(Counting, engines=1)
    other.reset(5)
    other.step(later, "c")
    assert other.counts == Counts(steps=1, replayed=2, resets=1, restores=0, engines=1)


@pytest.mark.parametrize(("every", "replayed_steps"), [(1, 0), (3, 2)])
def test_snapshots_save_the_replay(every, replayed_steps):
    env = replayed(Saving, engines=1, snapshot_every=every)
    start, _ = env.reset(5)
    state = start
    for action in "abcde":
        state, *_ = env.step(state, action)
    env.reset(2)
    env.step(state, "f")
    counts = env.counts
    assert (counts.replayed, counts.resets, counts.restores) == (replayed_steps, 2, 1)
    assert replayed(Saving, snapshot_every=0).reset(5)[0].saved is None


def test_the_engine_of_an_episode_that_ended_is_the_next_to_be_used():
    env = replayed(Counting, engines=2)
    kept, _ = env.reset(1)
    last, _ = env.reset(10)  # 3 * 10 + 3 is a multiple of 11
    over, *_, info = env.step(last, "abc")
    assert over.over and info["success"]
    env.reset(3)
    env.step(kept, "a")
    assert env.counts.replayed == 0 and env.counts.resets == 3


# Endings.


def test_steps_run_out():
    env = replayed(Counting, max_steps=2)
    assert env.max_steps == 2
    state, _ = env.reset(1)
    state, *_, terminated, truncated, _ = env.step(state, "a")
    assert not (terminated or truncated)
    state, *_, terminated, truncated, _ = env.step(state, "a")
    assert truncated and not terminated and state.over
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(state, "a")


def test_an_end_on_the_last_step_is_no_truncation():
    env = replayed(Counting, max_steps=1)
    *_, terminated, truncated, _ = env.step(env.reset(10)[0], "abc")
    assert terminated and not truncated


# What goes wrong.


class Random(Counting):
    """Another result in each engine: in its first observation, or from some step on."""

    made = 0

    def __init__(self, wrong_at):
        type(self).made += 1
        self.number, self.wrong_at = self.made, wrong_at

    def reset(self, task):
        self.steps = 0
        return super().reset(task) + (f" {self.number}" if self.wrong_at == 0 else "")

    def step(self, action):
        self.steps += 1
        observation, *rest = super().step(action)
        return observation + (f" {self.number}" if self.steps == self.wrong_at else ""), *rest


@pytest.mark.parametrize(
    ("wrong_at", "message"),
    [(0, "task 4: reset gave another result"), (2, "task 4: action 2 of 3, 'bb', gave another")],
)
def test_an_engine_of_chance_is_found_out(wrong_at, message):
    first, second = (replayed(partial(Random, wrong_at)) for _ in range(2))
    state, _ = first.reset(4)
    for action in ("a", "bb", "ccc"):
        state, *_ = first.step(state, action)
    with pytest.raises(ReplayError, match=message):
        second.step(state, "d")
    first.step(state, "d")  # where its engine is, nothing has to be replayed


def test_a_crash_throws_the_engine_away_and_nothing_else():
    log = []
    env = replayed(partial(Counting, log), engines=1)
    state, _ = env.reset(1)
    state, *_ = env.step(state, "a")
    for crashes in (1, 2, 3):
        with pytest.raises(RuntimeError, match="it broke"):
            env.step(state, "crash")
        assert len(log) == crashes
    assert env.step(state, "b")[1:4] == expected(1, ("a", "b"))
    assert env.counts.engines == 4


def test_an_engine_that_cannot_be_made_leaves_its_place():
    tries = []

    def make():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no memory")
        return Counting()

    env = replayed(make, engines=1)
    with pytest.raises(OSError, match="no memory"):
        env.reset(0)
    assert env.reset(0)[1] == "task 0"


class Slow(Counting):
    live = most = 0
    lock = threading.Lock()

    def step(self, action):
        with self.lock:
            Slow.live += 1
            Slow.most = max(Slow.most, Slow.live)
        time.sleep(0.01)
        with self.lock:
            Slow.live -= 1
        return super().step(action)


def test_threads_wait_where_all_engines_are_busy_and_work_side_by_side_where_not():
    env = replayed(Slow, engines=2)
    start, _ = env.reset(2)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda n: env.step(start, "x" * n), range(12)))
    assert [r[1:4] for r in results] == [expected(2, ("x" * n,)) for n in range(12)]
    assert Slow.most == 2 and env.counts.engines == 2


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (("x", float("nan"), False, False, {"success": False}), ValueError, "the reward is nan"),
        (("x", 0.0, False, False, {}), ValueError, "the info has no 'success'"),
        ((7, 0.0, False, False, {"success": False}), ValueError, "the observation is 7"),
    ],
)
def test_an_engine_that_breaks_the_rules_is_named(result, error, message):
    class Bad(Counting):
        def step(self, action):
            return result

    env = replayed(Bad)
    with pytest.raises(error, match=message):
        env.step(env.reset(0)[0], "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engines": 0}, "engines=0 starts at 1"),
        ({"snapshot_every": -1}, "snapshot_every=-1 at 0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"context": "all"}, "context: 'all'; choose from rebuild, extend"),
        ({"make": "Counting"}, "make: 'Counting' is no function"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        replayed(**{"make": Counting, **arguments})


def test_tasks_are_not_negative():
    with pytest.raises(ValueError, match="non-negative integers, got -1"):
        replayed(Counting).reset(-1)


# What it is made of.


def test_it_closes_its_engines_also_those_at_work():
    log, begun, go_on = [], threading.Event(), threading.Event()

    class Waiting(Counting):
        def step(self, action):
            begun.set()
            assert go_on.wait(10)
            return super().step(action)

    env = replayed(partial(Waiting, log), engines=2)
    env.reset(0)
    state, _ = env.reset(1)
    with ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(env.step, state, "a")
        assert begun.wait(10)
        env.close()
        assert log == ["closed"]
        go_on.set()
        assert at_work.result()[1:4] == expected(1, ("a",))
    assert log == ["closed", "closed"]
    with pytest.raises(ValueError, match="the environment is closed"):
        env.reset(0)


@engines
def test_it_and_its_states_can_be_pickled(make, options):
    env = replayed(make, system="Count.", max_steps=9, **options)
    state, _ = env.step(env.reset(5)[0], "ab")[:2]
    other, copy = pickle.loads(pickle.dumps((env, state)))
    assert (other.system, other.max_steps, other.counts) == ("Count.", 9, Counts())
    assert copy == state and other.step(copy, "c")[1:4] == expected(5, ("ab", "c"))


def test_messages_are_observations_and_stay_as_they_were():
    class Chat(Counting):
        def reset(self, task):
            super().reset(task)
            self.messages = [{"role": "user", "content": "hello"}]
            return self.messages

        def step(self, action):
            self.messages.append({"role": "assistant", "content": action})
            return self.messages, *super().step(action)[1:]

    env = replayed(Chat, engines=1, context="rebuild")
    state, first = env.reset(1)
    later, second, *_ = env.step(state, "a")
    assert (len(first), len(second), env.context) == (1, 2, "rebuild")
    env.step(state, "b")
    assert len(env.step(later, "c")[1]) == 3


def test_an_engine_may_be_used_for_something_else():
    env = replayed(Counting, engines=1)
    state, *_ = env.step(env.reset(5)[0], "ab")
    with env.engine() as engine:
        assert engine.reset(7) == "task 7"
    assert env.step(state, "c")[1:4] == expected(5, ("ab", "c"))
    assert (env.counts.resets, env.counts.replayed, env.counts.engines) == (2, 1, 1)


def test_what_is_not_said_is_absent():
    env = replayed(Counting)
    assert not any(hasattr(env, name) for name in ("system", "tools", "metrics", "max_steps"))


def test_the_example_runs():
    assert doctest.testmod(room).failed == 0
