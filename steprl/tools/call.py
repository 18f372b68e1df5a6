"""Makes calls: in parallel, within limits, each with an outcome whatever happens."""

import contextvars
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from steprl.processes import Scope
from steprl.tools.arguments import build_arguments
from steprl.tools.call_objects import CallError, ToolCall, check_call
from steprl.tools.outcome import TEXT_LIMIT, Outcome, as_text, cut
from steprl.tools.process import START_METHODS, run_in_process
from steprl.tools.schema import MAX_TIME_LIMIT, Tool


def call_tools(
    calls: Sequence[ToolCall | CallError],
    tools: Mapping[str, Tool],
    *,
    parallel: int = 4,
    time_limit: float = 10.0,
    max_characters: int = TEXT_LIMIT,
    start_method: str = "forkserver",
) -> list[Outcome]:
    """Makes the calls, and returns the outcome of each.

    A tool runs in a thread of this process, unless it was marked `may_hang`: then it runs in a process
    of its own, which is killed at the time limit with all that it has started. An exception is an
    outcome, `SystemExit` too; only Ctrl-C gets through. A process of its own is a limit of time, not a
    sandbox: the tool may read, write and connect as this process may.

    Args:
        calls: as from `parse_tool_calls`; checked once more. Errors among them become outcomes.
        tools: by name, see `make_tools`.
        parallel: how many calls run at a time; 1 for one after the other, without threads.
        time_limit: seconds of a call of a tool that may hang, from where its process is ready.
        max_characters: of a result; the rest is cut, with a note.
        start_method: of processes, "forkserver" or "spawn".

    Returns:
        One outcome a call, in the order of the calls, whichever ends first.

    Raises:
        ValueError: a limit is not positive, or over a day, or the start method is another.

    Example:
        >>> def add(a: int, b: int) -> int:
        ...     '''Add two integers.
        ...
        ...     Args:
        ...         a, b: the integers.
        ...     '''
        ...     return a + b
        >>> tools = make_tools([add])
        >>> [outcome] = call_tools([ToolCall(0, "add", {"a": 1, "b": 2})], tools)
        >>> outcome.status, outcome.text
        ('ok', '3')
        >>> [outcome] = call_tools([ToolCall(0, "add", {"a": 1, "b": "2"})], tools)
        >>> print(outcome.text)
        `add` was not called: `b` has to be an integer, but is the string "2".
    """
    limits = (parallel, time_limit, max_characters)
    are_numbers = all(isinstance(limit, Real) for limit in limits)
    if not are_numbers or min(limits) <= 0 or not time_limit <= MAX_TIME_LIMIT:
        raise ValueError(
            f"parallel={parallel!r}, time_limit={time_limit!r}, max_characters={max_characters!r}: each has "
            "to be positive, a number, and the time at most a day"
        )
    if start_method not in START_METHODS:
        raise ValueError(
            f"start_method={start_method!r} is not one of {', '.join(START_METHODS)}; a fork of a "
            "process with threads may never return"
        )

    def call_one(call: ToolCall | CallError) -> Outcome:
        checked = call if isinstance(call, CallError) else check_call(call, tools)
        if isinstance(checked, CallError):
            refused = call.arguments if isinstance(call, ToolCall) else {}
            return Outcome(checked.name, _json(refused), checked.kind, checked.text)
        tool = tools[checked.name]
        started = time.perf_counter()
        if tool.may_hang:
            limit = tool.time_limit or time_limit
            arguments = (tool, checked.arguments, max_characters)
            status, text, seconds = run_in_process(
                run_here, arguments, tool.name, limit, start_method
            )
        else:
            status, text = run_here(tool, checked.arguments, max_characters)
            seconds = time.perf_counter() - started
        return Outcome(tool.name, _json(checked.arguments), status, text, seconds)

    if parallel == 1 or len(calls) < 2:
        return [call_one(call) for call in calls]
    return _side_by_side(call_one, calls, parallel)


def _side_by_side(
    call_one: Callable[[ToolCall | CallError], Outcome],
    calls: Sequence[ToolCall | CallError],
    parallel: int,
) -> list[Outcome]:
    """The outcomes, in the order of the calls.

    The threads are daemons, unlike those of an executor: a tool that hangs keeps no program from ending.
    """
    waiting, lock = deque(enumerate(calls)), threading.Lock()
    found: dict[int, Outcome] = {}
    problems: list[BaseException] = []

    def work() -> None:
        while True:
            with lock:
                if not waiting or problems:
                    return
                number, call = waiting.popleft()
            try:
                found[number] = call_one(call)
            except BaseException as error:  # Ctrl-C, from a tool: for the caller
                problems.append(error)

    with Scope().entered() as scope:
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
            for _ in range(min(parallel, len(calls)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: no process is waited for until its limit
            with lock:
                waiting.clear()
            scope.end()
            raise
    if problems:
        raise problems[0]
    return [found[number] for number in range(len(calls))]


def run_here(tool: Tool, arguments: dict[str, Any], max_characters: int) -> tuple[str, str]:
    """Status and text of a call in this process; `arguments` are checked."""
    try:
        result = tool.function(**build_arguments(tool.function, arguments))
        return "ok", cut(as_text(result), max_characters)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a tool that calls exit() must not end the run
        try:
            message = f"`{tool.name}` failed: {type(error).__name__}: {error}".rstrip(": ")
        except Exception:  # from its own __str__
            message = f"`{tool.name}` failed: {type(error).__name__}"
        return "exception", cut(message, max_characters)


def _json(arguments: Any) -> str:
    try:
        return cut(json.dumps(arguments, ensure_ascii=False, default=str), 10**9)
    except (TypeError, ValueError, RecursionError):  # of calls that were not read from text
        return json.dumps(type(arguments).__name__)
