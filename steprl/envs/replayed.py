"""Environments whose state is hidden, in a JVM or a C library, as environments whose state is a value.

The state is what was done: the task and the actions. An engine that is at a state continues with one
step; any other is brought there by its own snapshot, or by a reset and the same actions again.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import index
from typing import Any, NamedTuple, Protocol

from steprl.envs import CONTEXTS, Observation
from steprl.envs.answers import checked_engine_step, checked_observation
from steprl.envs.engine_pool import EnginePool, Lent


class Engine(Protocol):
    """One running game or simulator, whose state changes as it is stepped.

    It has to be deterministic: `reset` of the same task and the same actions give the same results. It
    is used by one thread at a time, though not always by the same one. `info` is that of
    `steprl.envs.Env`; "valid" is True and "reason" is "" where they are absent.

    An engine may have two more methods, which save the replay:
        snapshot(): all of its state, an object that is never changed afterwards.
        restore(snapshot): go to that state. The snapshot may be of another engine of the same `make`
            and of another task; this one may be new, without a reset.
    """

    def reset(self, task: int) -> Observation: ...

    def step(self, action: str) -> tuple[Observation, float, bool, bool, Mapping[str, Any]]:
        """Observation, reward, terminated, truncated, info; any text is an action."""
        ...

    def close(self) -> None: ...


class ReplayError(RuntimeError):
    """An engine answered the same actions otherwise than before."""


class Saved(NamedTuple):
    """A snapshot of an engine after the first `steps` actions."""

    steps: int
    snapshot: Any


@dataclasses.dataclass(frozen=True)
class ReplayedState:
    """All of an episode, a value: keep it, and step from it as often as you like.

    Attributes:
        task: number of the task.
        actions: what was done so far.
        digests: of the first observation and of the result of each action; a replay is checked by them.
        over: the episode has ended.
        saved: the newest snapshot of this state or of one before it, where the engine makes them.
    """

    task: int
    actions: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    over: bool = False
    saved: Saved | None = dataclasses.field(default=None, compare=False, repr=False)


class Counts(NamedTuple):
    """What an environment has cost so far.

    Attributes:
        steps: steps that callers took.
        replayed: steps that were made again, to come back to a state.
        resets, restores: of engines, for the same end or for a new episode.
        engines: how many were made.
    """

    steps: int = 0
    replayed: int = 0
    resets: int = 0
    restores: int = 0
    engines: int = 0


def replayed(
    make: Callable[[], Engine],
    *,
    engines: int = 8,
    snapshot_every: int = 1,
    max_steps: int | None = None,
    context: str = "extend",
    system: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    metrics: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]] | None = None,
) -> "ReplayedEnvironment":
    """The value protocol of `steprl.envs.Env` over engines that hide their state.

    Many threads may step at once. There are never more than `engines` engines: a thread takes the one
    that is at its state, or the least recently used one, and waits while all are busy. So let
    there be one for each episode that is played at the same time: with fewer, most steps are replays.

    It can be pickled, without its engines, if `make` can.

    Args:
        make: makes an engine; called when one is needed, in the thread that needs it.
        engines: engines at most.
        snapshot_every: steps between snapshots, for engines that make them; 0 makes none.
        max_steps: the step after which an episode that has not ended is truncated.
        context, system, tools, metrics: as in `steprl.envs.Env`; absent where they are None.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> class Sum:  # an engine
        ...     def reset(self, task):
        ...         self.total, self.goal = 0, task
        ...         return f"Reach {task}."
        ...
        ...     def step(self, action):
        ...         self.total += len(action)
        ...         won = self.total == self.goal
        ...         return str(self.total), float(won), won, False, {"success": won}
        ...
        ...     def close(self): ...
        >>> env = replayed(Sum, engines=1)
        >>> start, text = env.reset(5)
        >>> state, text, *_ = env.step(start, "abc")
        >>> state, text, reward, terminated, truncated, info = env.step(state, "de")
        >>> text, reward, terminated
        ('5', 1.0, True)
        >>> env.step(start, "a")[1]  # a branch: one more reset, as the engine is elsewhere
        '1'
        >>> env.counts.resets
        2
    """
    if not callable(make):
        raise ValueError(f"make: {make!r} is no function; give one that makes an engine")
    if engines < 1 or snapshot_every < 0:
        raise ValueError(f"engines={engines} starts at 1, and snapshot_every={snapshot_every} at 0")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps={max_steps} starts at 1")
    if context not in CONTEXTS:
        raise ValueError(f"context: {context!r}; choose from {', '.join(CONTEXTS)}")
    optional = {"system": system, "tools": tools, "metrics": metrics, "max_steps": max_steps}
    attributes = {"context": context, **{k: v for k, v in optional.items() if v is not None}}
    return ReplayedEnvironment(make, engines, snapshot_every, attributes)


class ReplayedEnvironment:
    """What `replayed` makes: an environment by value, and its pool of engines."""

    def __init__(
        self,
        make: Callable[[], Engine],
        engines: int,
        snapshot_every: int,
        attributes: Mapping[str, Any],
    ):
        self._arguments = (make, engines, snapshot_every, attributes)
        self._snapshot_every = snapshot_every
        self._max_steps = attributes.get("max_steps", math.inf)
        self._pool: EnginePool[Engine, ReplayedState] = EnginePool(make, engines)
        self._counts, self._counting = Counts(), threading.Lock()
        for name, value in attributes.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return ReplayedEnvironment, self._arguments  # the engines stay where they are

    @property
    def counts(self) -> Counts:
        """What was done so far, by all threads."""
        return self._counts._replace(engines=self._pool.made)

    def reset(self, task: int, key: Any = None) -> tuple[ReplayedState, Observation]:
        """The first state and observation of a task.

        Args:
            task: a non-negative integer.
            key: unused, there is no chance.

        Raises:
            ValueError: the task is negative, or the environment is closed.
        """
        if index(task) < 0:
            raise ValueError(f"tasks are non-negative integers, got {task}")
        with self._pool.lend(None) as lent:
            state, observation = self._begin(lent, index(task))
            lent.place = state
        return state, observation

    def step(
        self, state: ReplayedState, action: str
    ) -> tuple[ReplayedState, Observation, float, bool, bool, dict[str, Any]]:
        """New state, observation, reward, terminated, truncated, info. `state` stays as it was.

        Raises:
            ValueError: the episode is over, or the environment is closed.
            ReplayError: the engine is not deterministic.
            Exception: that of the engine. The engine is thrown away; `state` can be stepped again.
        """
        if state.over:
            raise ValueError("the episode is over: step again from an earlier state, or reset")
        with self._pool.lend(state) as lent:
            if lent.place != state:
                self._bring(lent, state)
            lent.place = None  # at no known place until the step is done
            result, digest = _step(lent.engine, action)
            observation, reward, terminated, truncated, info = result
            self._count(steps=1)
            actions, digests = (*state.actions, action), (*state.digests, digest)
            truncated = truncated or (not terminated and len(actions) >= self._max_steps)
            over = terminated or truncated
            state = ReplayedState(state.task, actions, digests, over, state.saved)
            if not over:
                state = lent.place = self._save(lent.engine, state)
        return state, observation, reward, terminated, truncated, info

    @contextlib.contextmanager
    def engine(self) -> Iterator[Engine]:
        """An engine for a use of your own, such as asking it for a solution; its place is lost."""
        with self._pool.lend(None) as lent:
            lent.place = None
            yield lent.engine

    def close(self) -> None:
        """Close all engines, those at work when they are done; no step can be made any more."""
        self._pool.close()

    def _count(self, **more: int) -> None:
        with self._counting:
            sums = {name: getattr(self._counts, name) + number for name, number in more.items()}
            self._counts = self._counts._replace(**sums)

    def _begin(
        self, lent: Lent[Engine, ReplayedState], task: int
    ) -> tuple[ReplayedState, Observation]:
        lent.place = None
        observation = _copied(checked_observation(lent.engine.reset(task)))
        self._count(resets=1)
        state = ReplayedState(task, digests=(_digest(observation),))
        return self._save(lent.engine, state), observation

    def _save(self, engine: Any, state: ReplayedState) -> ReplayedState:
        steps, every = len(state.actions), self._snapshot_every
        if not every or steps % every or not hasattr(engine, "snapshot"):
            return state
        return dataclasses.replace(state, saved=Saved(steps, engine.snapshot()))

    def _bring(self, lent: Lent[Engine, ReplayedState], state: ReplayedState) -> None:
        """Bring an engine to a state that it is not at."""
        engine: Any = lent.engine
        if state.saved is not None and hasattr(engine, "restore"):
            done = state.saved.steps
            engine.restore(state.saved.snapshot)
            self._count(restores=1)
        elif lent.place is not None and _leads_to(lent.place, state):
            done = len(lent.place.actions)
        else:
            done = 0
            begun, observation = self._begin(lent, state.task)
            if begun.digests != state.digests[:1]:
                raise ReplayError(_divergence(state, 0, observation))
        for at in range(done, len(state.actions)):
            (observation, *_), digest = _step(engine, state.actions[at])
            self._count(replayed=1)
            if digest != state.digests[at + 1]:
                raise ReplayError(_divergence(state, at + 1, observation))


def _leads_to(before: ReplayedState, state: ReplayedState) -> bool:
    steps = len(before.actions)
    return (
        before.task == state.task
        and before.actions == state.actions[:steps]
        and before.digests == state.digests[: steps + 1]
    )


def _step(
    engine: Engine, action: str
) -> tuple[tuple[Observation, float, bool, bool, dict[str, Any]], str]:
    """The result of a step in Python's own types, and its digest."""
    observation, reward, terminated, truncated, info = checked_engine_step(engine.step(action))
    observation = _copied(observation)
    digest = _digest(observation, reward, terminated, truncated)
    return (observation, reward, terminated, truncated, info), digest


def _copied(observation: Observation) -> Observation:
    """The engine may change its list of messages later."""
    return observation if isinstance(observation, str) else json.loads(json.dumps(observation))


def _digest(*seen: Any) -> str:
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=8).hexdigest()


def _divergence(state: ReplayedState, steps: int, observation: Observation) -> str:
    after = (
        f"action {steps} of {len(state.actions)}, {state.actions[steps - 1]!r}," if steps else ""
    )
    seen = observation if isinstance(observation, str) else json.dumps(observation)
    return (
        f"task {state.task}: {after or 'reset'} gave another result than before: {seen[:200]!r}. The "
        "environment is not deterministic: take its chance from the task in `reset`, or give the "
        "engine `snapshot` and `restore`"
    )
