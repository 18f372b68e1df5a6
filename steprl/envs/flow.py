"""An environment out of a free-form flow: a generator that yields what the model reads next.

A generator cannot be copied, so the state is what it was sent: the replies. The newest state has its
generator beside it, which continues; from an older one, a new generator is sent the same replies first.
"""

import contextlib
import dataclasses
import hashlib
import json
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from operator import index
from typing import Any

from steprl.envs.answers import checked_flag, checked_reward, describe, shown
from steprl.envs.made_of_functions import check_arguments
from steprl.tools import Tool, make_tools

Prompt = str | list[dict[str, Any]]
"""Text of one message of the user, or the messages of a whole conversation."""


class FlowError(RuntimeError):
    """A flow raised, broke the rules of a flow, or answered the same replies differently."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a flow yields where the prompt alone is not enough.

    Attributes:
        prompt: what the model reads next.
        reward: of the last reply.
        valid: the last reply was understood.
        reason: why it was not.
        info: numbers and texts for the record of the last step.
    """

    prompt: Prompt
    reward: float = 0.0
    valid: bool = True
    reason: str = ""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a flow returns where the reward of the last reply is not enough.

    Attributes:
        reward: of the last reply.
        success: the task is solved; None compares the reward with that of `FlowEnvironment`.
        valid, reason, info: of the last reply, as in `Turn`.
    """

    reward: float = 0.0
    success: bool | None = None
    valid: bool = True
    reason: str = ""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Flow = Callable[[Any], Generator[Prompt | Turn, str, float | Ending]]
"""`flow(task)` yields prompts, receives replies, and returns the reward of the last one."""


@dataclasses.dataclass(frozen=True)
class FlowState:
    """All of an episode, a value: keep it, and step from it as often as you like.

    Attributes:
        task: number of the task.
        replies: what the model wrote so far.
        digests: of what the flow yielded so far, by which a replay is checked.
        over: the episode has ended.
    """

    task: int
    replies: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    over: bool = False


class FlowEnvironment:
    """The value protocol of `steprl.envs.Env` around a generator function.

    The flow has to be a function of its task and the replies: chance comes from a seed in the task,
    and the task is not changed. A branch runs the flow again, up to the place where it branches off;
    if it then yields something else than before, that is an error.

    Args:
        flow: `flow(task)` yields each prompt, or a `Turn`, and receives the reply; it returns the
            reward of the last reply, or an `Ending`.
        tasks: what `flow` is given, in any form; task numbers go round.
        context: "rebuild": a prompt replaces all that was before it; "extend": text is added to
            what was, and only a list of messages replaces all.
        system: the system line, for chat models.
        tools: functions whose schemas the chat template is to show. The flow itself reads and makes
            the calls: see `steprl.tools`.
        max_steps: the reply after which an episode that has not ended is truncated.
        success: the reward from which on a task counts as solved.
        privileged: `privileged(task, replies)` is text that only the critic reads, see
            `steprl.envs.Env`; `replies` is the tuple of what the model wrote so far.
        live: generators kept at most; states beyond that are replayed.

    Raises:
        ValueError: there are no tasks, a setting is out of range, or a tool has no schema.

    Example:
        >>> def guess(number):
        ...     reply = yield "Guess a number from 1 to 9."
        ...     while reply.isdigit() and int(reply) != number:
        ...         reply = yield Turn("Lower." if int(reply) > number else "Higher.", reward=-0.1)
        ...     return float(reply.isdigit())
        >>> env = FlowEnvironment(guess, tasks=[3, 7], context="extend")
        >>> start, text = env.reset(1)
        >>> state, text, reward, *_ = env.step(start, "5")
        >>> text, reward
        ('Higher.', -0.1)
        >>> state, text, reward, terminated, truncated, info = env.step(state, "7")
        >>> reward, terminated, info["success"]
        (1.0, True, True)
        >>> env.step(start, "8")[1]  # a branch
        'Lower.'
    """

    system: str  # absent where there is none
    tools: list[dict[str, Any]]  # absent where there are none
    privileged: Callable[[FlowState], str]  # absent where there is none

    def __init__(
        self,
        flow: Flow,
        tasks: Sequence[Any],
        *,
        context: str = "rebuild",
        system: str | None = None,
        tools: Iterable[Callable[..., Any] | Tool] = (),
        max_steps: int = 10,
        success: float = 1.0,
        live: int = 1024,
        privileged: Callable[[Any, tuple[str, ...]], str] | None = None,
    ):
        if not callable(flow):
            raise ValueError(f"flow: {flow!r} is no function; give one that yields prompts")
        functions = {} if privileged is None else {"privileged": privileged}
        check_arguments(tasks, context, success, system, {"max_steps": max_steps}, functions)
        if privileged is not None:
            self._tell, self.privileged = privileged, self._privileged
        if not isinstance(live, int) or live < 0:
            raise ValueError(f"live={shown(live)}: give a whole number from 0")
        self.tasks, self.context, self.max_steps = tasks, context, max_steps
        if system is not None:
            self.system = system
        if schemas := [tool.schema for tool in make_tools(tools).values()]:
            self.tools = schemas
        self._flow, self._success = flow, success
        self._live = _Live(live)

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    def reset(self, task: int, key: Any = None) -> tuple[FlowState, Prompt]:
        """The first state and prompt of a task.

        Args:
            task: a non-negative integer, taken modulo the number of tasks.
            key: unused, there is no chance.

        Raises:
            ValueError: the task is negative.
            FlowError: the flow failed before its first prompt.
        """
        if index(task) < 0:
            raise ValueError(f"tasks are non-negative integers, got {task}")
        state, turn, generator = self._begin(index(task))
        self._live.keep(state, generator)
        return state, turn.prompt

    def step(
        self, state: FlowState, action: str
    ) -> tuple[FlowState, Prompt, float, bool, bool, dict[str, Any]]:
        """Send a reply to the flow; any text is allowed.

        Returns:
            State, prompt ("" at the end), reward, terminated (the flow returned), truncated
            (`max_steps` are spent), and info: `success`, `valid`, `reason`, and what the flow added.

        Raises:
            ValueError: the episode is over.
            FlowError: the flow failed.
        """
        if state.over:
            raise ValueError("the episode is over: step again from an earlier state, or reset")
        generator = self._live.take(state) or self._replay(state)
        state, item = self._send(generator, state, action)
        if isinstance(item, Ending):
            solved = item.reward >= self._success if item.success is None else item.success
            return state, "", item.reward, True, False, _info(item, bool(solved))
        truncated = len(state.replies) >= self.max_steps
        if truncated:
            state = dataclasses.replace(state, over=True)
        else:
            self._live.keep(state, generator)
        return state, item.prompt, item.reward, False, truncated, _info(item, False)

    def _privileged(self, state: FlowState) -> str:
        return self._tell(self.tasks[state.task % len(self.tasks)], state.replies)

    def _begin(self, task: int) -> tuple[FlowState, Turn, Generator[Any, str, Any]]:
        state = FlowState(task)
        with self._named(state):
            generator: Any = self._flow(self.tasks[task % len(self.tasks)])
            if not isinstance(generator, Generator):
                raise TypeError(
                    f"it returned {type(generator).__name__} where a generator was expected: give a "
                    "plain function that yields its prompts"
                )
            try:
                turn = _turn(next(generator))
            except StopIteration:
                raise ValueError("it ended before its first prompt: yield one") from None
            if turn != Turn(turn.prompt):
                raise ValueError("its first turn has a reward or info: there was no reply yet")
            return dataclasses.replace(state, digests=(_digest(turn),)), turn, generator

    def _send(
        self, generator: Generator[Any, str, Any], state: FlowState, reply: str
    ) -> tuple[FlowState, Turn | Ending]:
        state = dataclasses.replace(state, replies=(*state.replies, reply))
        item: Turn | Ending
        with self._named(state):
            try:
                item = _turn(generator.send(reply))
            except StopIteration as stop:
                item = _ending(stop.value)
            digests = (*state.digests, _digest(item))
        return dataclasses.replace(state, digests=digests, over=isinstance(item, Ending)), item

    def _replay(self, state: FlowState) -> Generator[Any, str, Any]:
        """A new generator at the place of a state."""
        replayed, _, generator = self._begin(state.task)
        for reply in state.replies:
            if replayed.over or replayed.digests != state.digests[: len(replayed.digests)]:
                break
            replayed, _ = self._send(generator, replayed, reply)
        if replayed != state:
            raise FlowError(
                f"{self._where(replayed)}: replayed, it answered the same replies with another turn "
                "than before. A flow has to be a function of its task and the replies: take chance "
                "from a seed in the task, and do not change the task"
            )
        return generator

    @contextlib.contextmanager
    def _named(self, state: FlowState) -> Generator[None, None, None]:
        """Adds the place in the flow to its errors."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a flow that calls exit() must not end the run
            raise FlowError(f"{self._where(state)}: {describe(error)}") from error

    def _where(self, state: FlowState) -> str:
        name = getattr(self._flow, "__qualname__", None) or repr(self._flow)
        return f"flow `{name}`, task {state.task}, after {len(state.replies)} replies"


class _Live:
    """Generators of states, found by identity: equal states may each have their own.

    One goes when its state does, or when there are too many; Python closes it then, wherever it
    is. Whoever takes one is the only one to have it.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: OrderedDict[int, tuple[weakref.ref[FlowState], Any]] = OrderedDict()

    def keep(self, state: FlowState, generator: Generator[Any, str, Any]) -> None:
        kept, place = self._kept, id(state)
        # The reference dies with its entry, so this never removes that of a later state.
        gone = weakref.ref(state, lambda _: kept.pop(place, None))
        kept[place] = (gone, generator)
        while len(kept) > self._limit:
            with contextlib.suppress(KeyError):  # another thread was quicker
                kept.popitem(last=False)

    def take(self, state: FlowState) -> Generator[Any, str, Any] | None:
        entry = self._kept.pop(id(state), None)
        return entry[1] if entry else None

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return _Live, (self._limit,)  # another process replays


def _turn(value: Any) -> Turn:
    turn = value if isinstance(value, Turn) else Turn(value)
    prompt = turn.prompt
    if not isinstance(prompt, str):
        if not isinstance(prompt, list) or not prompt:
            raise TypeError(
                f"it yielded {type(prompt).__name__}: yield text, a list of messages, or a Turn"
            )
        for message in prompt:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise TypeError(
                    f"it yielded the message {shown(message)}: expected a dict with 'role' and 'content'"
                )
        # A flow may change its list later: what was read stays as it was.
        prompt = json.loads(json.dumps(prompt))
    return dataclasses.replace(turn, prompt=prompt, reward=_checked(turn))


def _ending(value: Any) -> Ending:
    if value is None:
        raise TypeError("it returned nothing: return the reward of the last reply, or an Ending")
    ending = value if isinstance(value, Ending) else Ending(value)
    return dataclasses.replace(ending, reward=_checked(ending))


def _checked(item: Turn | Ending) -> float:
    """The reward, where all beside the prompt is what it should be."""
    if not isinstance(item.info, Mapping):
        raise TypeError(f"the info is {shown(item.info)}; expected a dict of numbers and texts")
    if not isinstance(item.reason, str):
        raise TypeError(f"the reason is {shown(item.reason)}; expected text")
    checked_flag(item.valid, "valid", numbers=True)
    if isinstance(item, Ending) and item.success is not None:
        checked_flag(item.success, "success", numbers=True)
    return checked_reward(item.reward)


def _digest(item: Turn | Ending) -> str:
    seen = [None if isinstance(item, Ending) else item.prompt, item.reward]
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=8).hexdigest()


def _info(item: Turn | Ending, success: bool) -> dict[str, Any]:
    """What the flow added, NumPy's and JAX's numbers as those of Python: the record keeps these."""
    added = {k: v.item() if getattr(v, "ndim", None) == 0 else v for k, v in item.info.items()}
    return {**added, "success": success, "valid": bool(item.valid), "reason": item.reason}
