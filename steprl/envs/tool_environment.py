"""An environment out of plain functions: a list of tools, a prompt and a reward.

The tools write no state, so all there is to know is what was said and answered: that is the state, a
value, and a branch is another step from it.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, NamedTuple

from steprl.envs.answers import checked_reward
from steprl.envs.made_of_functions import check_arguments
from steprl.tools import (
    CallError,
    Outcome,
    Tool,
    ToolCall,
    call_tools,
    last_answer,
    make_tools,
    parse_tool_calls,
    render_tool_response,
)


class ToolTurn(NamedTuple):
    """An action, and what became of its calls."""

    action: str
    outcomes: tuple[Outcome, ...]


@dataclasses.dataclass(frozen=True)
class ToolState:
    """All of an episode; hashable, and never changed.

    Attributes:
        task: number of the task.
        turns: what was done so far.
        answer: what the model ended with; None as long as it has not.
    """

    task: int
    turns: tuple[ToolTurn, ...] = ()
    answer: str | None = None


class ToolEnvironment:
    """The value protocol of `steprl.envs.Env` around functions that a model may call.

    Each step, the calls of the action are made side by side and answered. An action without a call is
    the answer, and ends the episode: its last `<answer>...</answer>`, or all that it says. Thoughts are
    neither called nor part of the answer, see `steprl.tools.replies`. A call that cannot be read or made
    costs a step, and the observation says what was wrong.

    Tools should depend on their arguments only: a branch calls them again.

    Args:
        tools: functions, or `Tool`s where a call may hang.
        tasks: what the episodes are about, in any form; task numbers go round.
        prompt: `prompt(task, schemas)` is the first observation. Chat templates that know of tools
            show the schemas themselves; for others, see `describe_tools`.
        reward: `reward(task, answer)` of an episode that ended with an answer; all other steps, and
            episodes that run out of steps, have 0.
        observe: `observe(task, state)` is what the model sees after a step: text, or the messages of
            the whole conversation; None for the `<tool_response>` blocks of the last turn.
        context: "extend": observations are added to what was before; "rebuild": each replaces all
            that was, which needs `observe`.
        system: the system line, for chat models.
        max_steps: the step after which an episode without an answer is truncated.
        max_calls: calls of one step; those behind are not made, and answered so.
        time_limit, max_characters: of one call, see `call_tools`.
        success: the reward from which on a task counts as solved.
        privileged: `privileged(task, state)` is text that only the critic reads, see `steprl.envs.Env`.

    Raises:
        ValueError: there are no tasks, a setting is out of range, or a function has no schema.

    Attributes:
        tools: the schemas, as chat templates take them.

    Example:
        >>> def add(a: int, b: int) -> int:
        ...     '''Add two integers.
        ...
        ...     Args:
        ...         a, b: the integers.
        ...     '''
        ...     return a + b
        >>> env = ToolEnvironment(
        ...     [add],
        ...     tasks=[("1 + 2?", "3")],
        ...     prompt=lambda task, schemas: task[0],
        ...     reward=lambda task, answer: float(answer == task[1]),
        ... )
        >>> state, text = env.reset(0)
        >>> call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
        >>> state, text, *_ = env.step(state, call)
        >>> print(text)
        <tool_response>
        3
        </tool_response>
        >>> state, text, reward, terminated, truncated, info = env.step(state, "3")
        >>> reward, terminated, info["success"]
        (1.0, True, True)
    """

    system: str  # absent where there is none
    privileged: Callable[[ToolState], str]  # absent where there is none
    control_tags = ("<tool_response>", "</tool_response>")  # see `steprl.envs.suite.Suite`

    def __init__(
        self,
        tools: Iterable[Callable[..., Any] | Tool],
        tasks: Sequence[Any],
        prompt: Callable[[Any, tuple[dict[str, Any], ...]], Any],
        reward: Callable[[Any, str], float],
        *,
        observe: Callable[[Any, ToolState], Any] | None = None,
        context: str = "extend",
        system: str | None = None,
        max_steps: int = 5,
        max_calls: int = 4,
        time_limit: float = 10.0,
        max_characters: int = 8000,
        success: float = 1.0,
        privileged: Callable[[Any, ToolState], str] | None = None,
    ):
        counts = {"max_steps": max_steps, "max_calls": max_calls}
        functions = {"prompt": prompt, "reward": reward} | ({"observe": observe} if observe else {})
        if privileged is not None:
            functions["privileged"] = privileged
            self._tell, self.privileged = privileged, self._privileged
        check_arguments(tasks, context, success, system, counts, functions)
        if context == "rebuild" and observe is None:
            raise ValueError(
                "context='rebuild' needs observe: the answers of the last turn alone do not stand for "
                "all that was"
            )
        self._tools = make_tools(tools)
        self.tools = [tool.schema for tool in self._tools.values()]
        self.tasks, self.max_steps, self.max_calls = tasks, max_steps, max_calls
        self.context = context
        if system is not None:
            self.system = system
        self._prompt, self._reward, self._observe = prompt, reward, observe
        self._success = success
        self._call = functools.partial(
            call_tools,
            tools=self._tools,
            parallel=max_calls,
            time_limit=time_limit,
            max_characters=max_characters,
        )
        self._call([])  # so that a wrong limit is found here

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    def reset(self, task: int, key: Any = None) -> tuple[ToolState, Any]:
        """The first state and the prompt of a task.

        Args:
            task: a non-negative integer, taken modulo the number of tasks.
            key: unused, there is no chance.

        Raises:
            ValueError: the task is negative.
        """
        if index(task) < 0:
            raise ValueError(f"tasks are non-negative integers, got {task}")
        state = ToolState(index(task))
        return state, self._prompt(self._task(state), tuple(self.tools))

    def step(
        self, state: ToolState, action: str
    ) -> tuple[ToolState, Any, float, bool, bool, dict[str, Any]]:
        """Make the calls of an action, or take it as the answer; any text is allowed.

        Returns:
            State, observation, reward, terminated (answered), truncated (`max_steps` are spent), and
            info: `success`, `valid` (everything that was called was a call, or there was an answer),
            `reason` (why not, or ""), `tool_calls` and `tool_errors` (how many were made, and did not
            come to a result), `tool_outcomes` (JSON text: a list of `Outcome.record`).

        Raises:
            ValueError: the episode is over.
        """
        if state.answer is not None or len(state.turns) >= self.max_steps:
            raise ValueError("the episode is over: step again from an earlier state, or reset")
        calls, errors = parse_tool_calls(action, self._tools)
        if not calls and not errors:
            return self._end(state, action, last_answer(action)[0])
        for call in calls[self.max_calls :]:
            text = f"Not called: only {self.max_calls} calls are made in one step."
            errors.append(CallError(call.place, "too_many", text, call.name))
        calls = calls[: self.max_calls]
        items: list[ToolCall | CallError] = [*calls, *errors]
        items.sort(key=lambda item: item.place)
        outcomes = tuple(self._call(items))
        state = dataclasses.replace(state, turns=(*state.turns, ToolTurn(action, outcomes)))
        seen: Any = render_tool_response(outcomes)
        if self._observe is not None:
            seen = self._observe(self._task(state), state)
        reason = min(errors, key=lambda error: error.place).text if errors else ""
        info = _info(outcomes, len(calls), success=False, reason=reason)
        return state, seen, 0.0, False, len(state.turns) >= self.max_steps, info

    def _end(
        self, state: ToolState, action: str, answer: str
    ) -> tuple[ToolState, str, float, bool, bool, dict[str, Any]]:
        turns = (*state.turns, ToolTurn(action, ()))
        state = dataclasses.replace(state, turns=turns, answer=answer)
        reward = checked_reward(self._reward(self._task(state), answer))
        reason = "" if answer else "there is neither a call nor an answer"
        info = _info((), 0, success=reward >= self._success, reason=reason)
        return state, "", reward, True, False, info

    def _privileged(self, state: ToolState) -> str:
        return self._tell(self._task(state), state)

    def _task(self, state: ToolState) -> Any:
        return self.tasks[state.task % len(self.tasks)]


def _info(
    outcomes: tuple[Outcome, ...], call_count: int, success: bool, reason: str
) -> dict[str, Any]:
    """Numbers and texts only, which is what the record of a step keeps."""
    return {
        "success": success,
        "valid": not reason,
        "reason": reason,
        "tool_calls": call_count,
        "tool_errors": sum(not outcome.ok for outcome in outcomes),
        "tool_outcomes": json.dumps([outcome.record() for outcome in outcomes]),
    }
