"""Gymnasium's environments as steprl's, and steprl's as Gymnasium's.

    env = from_gymnasium(lambda: gymnasium.make("FrozenLake-v1"))
    state, text = env.reset(0)

    theirs = to_gymnasium(Household())
    text, info = theirs.reset(seed=0)

Needs `pip install 'steprl[gymnasium]'`.
"""

import copy
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any

from steprl.envs import Env, Observation
from steprl.envs.adapters.gymnasium_spaces import ask, check_space, describe, kind_of, parse
from steprl.envs.answers import checked_reward
from steprl.envs.replayed import replayed

EVAL_SEEDS = 2**30  # the seed of the first task of "eval"
KEEPS = ("auto", "copy", "replay")
PROBE_STEPS = 4
Success = Callable[[Mapping[str, Any], float, bool], bool]


def environment(
    id: str,
    split: str = "train",
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    names: Sequence[str] = (),
    max_steps: int | None = None,
    keep: str = "auto",
    engines: int = 8,
) -> Env:
    """An environment that is registered with Gymnasium, such as "FrozenLake-v1".

    Task i is seed i, and seed `EVAL_SEEDS` + i in the split "eval". See `from_gymnasium`.

    Args:
        id: as for `gymnasium.make`; "package:name" imports the package first.
        kwargs: further arguments of `gymnasium.make`.

    Raises:
        ImportError: Gymnasium is not installed.
        ValueError: a setting is out of range, or observations or actions have no text.
    """
    first_seeds = {"train": 0, "eval": EVAL_SEEDS}
    if split not in first_seeds:
        raise ValueError(f"split: {split!r}; choose from {', '.join(first_seeds)}")
    return from_gymnasium(
        partial(_import().make, id, **kwargs),
        names=names, max_steps=max_steps, keep=keep, engines=engines, first_seed=first_seeds[split],
    )  # fmt: skip


def from_gymnasium(
    make: Callable[[], Any],
    *,
    observation_text: Callable[[Any], str] | None = None,
    action_of: Callable[[str], Any] | None = None,
    names: Sequence[str] = (),
    success: Success | None = None,
    system: str | None = None,
    max_steps: int | None = None,
    keep: str = "auto",
    first_seed: int = 0,
    engines: int = 8,
) -> Env:
    """A `gymnasium.Env` with observations and actions as text, and a state that is a value.

    A reply that stands for no action costs a step in which the environment stands still. The
    environment must be determined by its seed, as Gymnasium's `check_env` wants it.

    Args:
        make: makes an environment; called once for each engine, and once to look at its spaces.
        observation_text: text of an observation; by default as in `gymnasium_spaces`.
        action_of: the action that a reply stands for, or a ValueError that says why there is none;
            by default as in `gymnasium_spaces`.
        names: of the actions of a Discrete space, in order; replies use them instead of numbers.
        success: from the info of a step, the sum of rewards until it, and whether it terminated.
            By default what info says as `is_success` or `success`; else whether the sum reaches the
            environment's `reward_threshold`; else whether it terminated with a positive sum.
        system: the system line; by default it says how to reply.
        max_steps: steps at most; by default those of the environment's own limit.
        keep: "copy" keeps a deep copy of the environment in each state; "replay" makes the actions
            of a branch again; "auto" copies if a copy behaves as its original does.
        first_seed: task i is seed `first_seed + i`.
        engines: environments at most, one for each episode that is played at the same time.

    Raises:
        ValueError: a setting is out of range, or observations or actions have no text.
    """
    if keep not in KEEPS:
        raise ValueError(f"keep: {keep!r}; choose from {', '.join(KEEPS)}")
    probe = make()
    try:
        if observation_text is None:
            check_space(probe.observation_space, "observation_text")
            observation_text = partial(describe, probe.observation_space)
        if action_of is None:
            check_space(probe.action_space, "action_of")
            _check_names(probe.action_space, names)
            action_of = partial(parse, probe.action_space, names=tuple(names))
            system = ask(probe.action_space, names) if system is None else system
        spec = getattr(probe, "spec", None)
        limit = getattr(spec, "max_episode_steps", None)
        success = success or partial(_succeeded, getattr(spec, "reward_threshold", None))
        if keep == "auto":
            keep = "copy" if _copies(probe, observation_text) else "replay"
    finally:
        probe.close()
    kind = CopiedEngine if keep == "copy" else GymnasiumEngine
    return replayed(
        partial(kind, make, observation_text, action_of, success, first_seed),
        engines=engines,
        max_steps=limit if max_steps is None else max_steps,
        system=system,
    )


class GymnasiumEngine:
    """A `gymnasium.Env` as an engine of `steprl.envs.replayed`."""

    def __init__(
        self,
        make: Callable[[], Any],
        observation_text: Callable[[Any], str],
        action_of: Callable[[str], Any],
        success: Success,
        first_seed: int,
    ):
        self._env = make()
        self._observation_text, self._action_of = observation_text, action_of
        self._success, self._first_seed = success, first_seed
        self._text, self._total = "", 0.0

    def reset(self, task: int) -> str:
        observation, _ = self._env.reset(seed=self._first_seed + task)
        self._text, self._total = self._observation_text(observation), 0.0
        return self._text

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        try:
            chosen = self._action_of(action)
        except ValueError as error:
            info: dict[str, Any] = {"success": False, "valid": False, "reason": str(error)}
            return f"{error}\n{self._text}", 0.0, False, False, info
        observation, reward, terminated, truncated, raw_info = self._env.step(chosen)
        self._text = self._observation_text(observation)
        reward = checked_reward(reward)
        self._total += reward
        info = {name: _plain(value) for name, value in raw_info.items()}
        solved = bool(self._success(info, self._total, bool(terminated)))
        info |= {"success": solved, "valid": True, "reason": ""}
        return self._text, reward, terminated, truncated, info

    def close(self) -> None:
        self._env.close()


class CopiedEngine(GymnasiumEngine):
    """The same, with deep copies as snapshots."""

    def snapshot(self) -> tuple[Any, str, float]:
        return copy.deepcopy(self._env), self._text, self._total

    def restore(self, snapshot: tuple[Any, str, float]) -> None:
        saved_env, self._text, self._total = snapshot
        self._env = copy.deepcopy(saved_env)


def to_gymnasium(
    env: Env, *, tasks: int = 2**31 - 1, action_length: int = 4096, observation_length: int = 2**20
) -> Any:
    """A steprl environment as `gymnasium.Env`, with texts as observations and actions.

    `reset(seed=i)` begins task i; without a seed, one of `tasks` is drawn, and `options={"task": i}`
    names it. `info["task"]` says which it is. The attribute `state` is the value that steprl steps
    from: keep it, and set it again to branch. An observation of messages becomes one text.

    Args:
        tasks: the number of tasks to draw from.
        action_length, observation_length: characters at most of what the spaces hold.

    Raises:
        ImportError: Gymnasium is not installed.
    """
    return _gymnasium_class()(env, tasks, action_length, observation_length)


@cache
def _gymnasium_class() -> Any:
    """The class, made when Gymnasium is first needed."""
    gymnasium = _import()

    class AnyText(gymnasium.spaces.Text):  # type: ignore[name-defined]
        """Texts of any characters; a sample has printable ones."""

        def contains(self, x: Any) -> bool:
            return isinstance(x, str) and self.min_length <= len(x) <= self.max_length

    def space(length: int) -> Any:
        return AnyText(length, min_length=0, charset=string.printable)

    class TextEnv(gymnasium.Env):  # type: ignore[name-defined]
        metadata = {"render_modes": ["ansi"]}
        render_mode = "ansi"

        def __init__(self, env: Env, tasks: int, action_length: int, observation_length: int):
            self.env, self.tasks, self.state = env, tasks, None
            self.action_space = space(action_length)
            self.observation_space = space(observation_length)
            self._text = ""

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            task = (options or {}).get("task", seed)
            if task is None:
                task = int(self.np_random.integers(self.tasks))
            self.state, observation = self.env.reset(task)
            self._task, self._text = task, _as_text(observation)
            return self._text, {"task": task}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            self.state, observation, reward, terminated, truncated, info = self.env.step(
                self.state, str(action)
            )
            self._text = _as_text(observation)
            return self._text, float(reward), terminated, truncated, {**info, "task": self._task}

        def render(self) -> str:
            return self._text

    return TextEnv


def _import() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(f"{error}; it needs `pip install 'steprl[gymnasium]'`") from error
    return gymnasium


def _check_names(space: Any, names: Sequence[str]) -> None:
    if not names:
        return
    if kind_of(space) != "Discrete":
        raise ValueError(f"names are for a Discrete space of actions, not {type(space).__name__}")
    if len(names) != space.n or len({name.lower() for name in names}) != len(names):
        raise ValueError(f"names: {list(names)} are not {space.n} different ones")


def _copies(env: Any, observation_text: Callable[[Any], str]) -> bool:
    """Whether a deep copy behaves as its original does, when it is stepped after the original."""
    env.action_space.seed(0)
    env.reset(seed=0)
    try:
        twin = copy.deepcopy(env)
        actions = [env.action_space.sample() for _ in range(PROBE_STEPS)]
        first, second = (_results(each, actions, observation_text) for each in (env, twin))
    except Exception:  # of whatever kind: a copy that does not work
        return False
    return first == second


def _results(env: Any, actions: Sequence[Any], observation_text: Callable[[Any], str]) -> list[Any]:
    results = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        results.append((observation_text(observation), float(reward), terminated, truncated))
        if terminated or truncated:
            break
    return results


def _succeeded(
    threshold: float | None, info: Mapping[str, Any], total: float, terminated: bool
) -> bool:
    for name in ("is_success", "success"):
        if name in info:
            return bool(info[name])
    return total >= threshold if threshold is not None else terminated and total > 0


def _plain(value: Any) -> Any:
    """A number of Python for one of NumPy."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _as_text(observation: Observation) -> str:
    if isinstance(observation, str):
        return observation
    return "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in observation)
