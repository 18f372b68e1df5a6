"""Calls that succeed, fail, hang and die, and what is kept of them."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from steprl.tools import STATUSES, CallError, Outcome, ToolCall, call_tools, make_tool, make_tools
from tests.tools.functions import Years, add, fail, hang, process_id, search, wait

HERE = make_tools([search, add, wait, fail, process_id])
APART = make_tools([make_tool(f, may_hang=True) for f in (add, wait, fail, hang, process_id)])


def call(function, **arguments):
    return ToolCall(0, getattr(function, "__name__", function), arguments)


def one(calls, tools=HERE, **settings):
    [outcome] = call_tools([calls], tools, **settings)
    return outcome


# In this process


def test_a_result_and_its_record():
    outcome = one(call(add, a=1, b=2))
    assert outcome == Outcome("add", '{"a": 1.0, "b": 2.0}', "ok", "3.0") and outcome.ok
    assert 0 <= outcome.seconds < 1
    record = outcome.record()
    assert json.loads(json.dumps(record)) == record
    assert record["arguments"] == {"a": 1.0, "b": 2.0}
    assert hash(outcome) == hash(dataclasses.replace(outcome, seconds=9.0))
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_objects_arrive_as_what_the_function_declares():
    arguments = {
        "query": "a",
        "years": {"first": 1},
        "options": {"sort": "rank"},
        "boost": {"x": 2},
    }
    outcome = one(ToolCall(0, "search", arguments))
    assert outcome.text == f"a 5 {Years(1)} {{'sort': 'rank'}} {{'x': 2.0}}"


def test_arrays_and_unions_arrive_as_declared():
    seen = []

    def collect(
        many: tuple[Years, ...], either: list[int] | Years, named: dict[str, Years]
    ) -> None:
        """Collect.

        Args:
            many, either, named: things.
        """
        seen.append((many, either, named))

    year, tools = {"first": 1}, make_tools([collect])
    for either in ([1, 2], year):
        assert one(call(collect, many=[year], either=either, named={"a": year}), tools).ok
    assert seen == [((Years(1),), either, {"a": Years(1)}) for either in ([1, 2], Years(1))]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("plain <b>", "plain <b>"),
        (None, "(no result)"),
        (True, "true"),
        (["é", 1, None], '["é", 1, null]'),
        ({"a": Years(1)}, '{"a": {"first": 1, "last": 2026}}'),
        (np.arange(3), "[0, 1, 2]"),
        ({"mean": np.float32(0.5)}, '{"mean": 0.5}'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        ({3}, "[3]"),
        ("\ud800", "?"),
    ],
)
def test_results_as_text(result, text):
    def give() -> object:
        """Give."""
        return result

    assert one(call(give), make_tools([give])).text == text


@pytest.mark.parametrize("tools", [HERE, APART], ids=["here", "apart"])
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raise", "`fail` failed: ValueError: a ? message"),
        ("exit", "`fail` failed: SystemExit: 3"),
        ("recurse", "`fail` failed: RecursionError: maximum recursion depth exceeded"),
        ("text", "`fail` failed: _Unreadable"),
    ],
)
def test_an_exception_is_an_outcome(tools, how, text):
    outcome = one(call(fail, how=how), tools)
    assert outcome.status == "exception" and outcome.text.startswith(text)


def test_ctrl_c_gets_through():
    def stop() -> None:
        """Stop."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one(call(stop), make_tools([stop]))


def test_a_long_result_is_cut_with_a_note():
    def long(size: int) -> str:
        """Be long.

        Args:
            size: so long.
        """
        return "é" * size

    tools = make_tools([long])
    assert one(call(long, size=10), tools, max_characters=10).text == "é" * 10
    cut = one(call(long, size=11), tools, max_characters=10).text
    assert cut == "é" * 10 + "\n[cut: the first 10 of 11 characters]"


def test_calls_that_cannot_be_made_are_answered():
    calls = [
        CallError(0, "bad_json", "No."),
        call("nothing", x=1),
        call(add, a="1", b=2),
        ToolCall(3, "add", [1]),
        ToolCall(4, None, {"a": {1: object()}}),
        call(add, a=1, b=2),
    ]
    outcomes = call_tools(calls, HERE)
    assert [o.status for o in outcomes] == [
        "bad_json", "unknown_tool", "bad_arguments", "bad_arguments", "unknown_tool", "ok",
    ]  # fmt: skip
    assert [o.seconds for o in outcomes[:5]] == [0.0] * 5 and outcomes[0].text == "No."
    assert outcomes[2].record()["arguments"] == {"a": "1", "b": 2}
    assert {o.status for o in outcomes} <= set(STATUSES)
    assert all(json.dumps(o.record()) for o in outcomes)
    assert call_tools([], HERE) == []


def test_calls_run_side_by_side_and_answer_in_order():
    meeting, order = threading.Barrier(3, timeout=20), []

    def meet(number: int) -> int:
        """Wait for the others, then be the slower the earlier.

        Args:
            number: of the call.
        """
        meeting.wait()
        time.sleep(0.1 * (2 - number))
        order.append(number)
        return number

    calls = [call(meet, number=number) for number in range(3)]
    outcomes = call_tools(calls, make_tools([meet]), parallel=3)
    assert [o.text for o in outcomes] == ["0", "1", "2"] and order == [2, 1, 0]


def test_no_more_at_a_time_than_asked_for():
    running, most, lock = 0, 0, threading.Lock()

    def count() -> None:
        """Count."""
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    tools = make_tools([count])
    for parallel in (1, 2):
        most = 0
        assert all(o.ok for o in call_tools([call(count)] * 6, tools, parallel=parallel))
        assert most == parallel


@pytest.mark.parametrize(
    "settings",
    [{"parallel": 0}, {"time_limit": 0}, {"time_limit": float("inf")}, {"max_characters": 0}],
)
def test_limits_are_checked(settings):
    with pytest.raises(ValueError, match="has to be positive"):
        call_tools([], HERE, **settings)


def test_no_fork_of_a_process_with_threads():
    with pytest.raises(ValueError, match="start_method='fork' is not one of forkserver, spawn"):
        call_tools([], HERE, start_method="fork")


# In a process of its own


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_call_in_a_process_of_its_own(start_method):
    results = call_tools([call(add, a=1, b=2), call(process_id)], APART, start_method=start_method)
    assert [o.status for o in results] == ["ok", "ok"] and results[0].text == "3.0"
    assert int(results[1].text) != os.getpid()
    assert one(call(process_id)).text == str(os.getpid())


def gone(pid):
    """Whether a process has ended; a dead one that nobody has asked after counts, too."""
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_tool_that_hangs_is_killed_with_what_it_started(tmp_path):
    file = tmp_path / "pids"
    begin = time.perf_counter()
    outcome = one(call(hang, pid_file=str(file)), APART, time_limit=1.0)
    assert outcome.status == "time_limit" and 1.0 <= outcome.seconds < 3.0
    assert outcome.text == "`hang` was stopped: it took longer than 1 seconds."
    assert time.perf_counter() - begin < 30
    pids = [int(pid) for pid in file.read_text().split()]
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_a_limit_of_its_own():
    tools = make_tools([make_tool(wait, may_hang=True, time_limit=0.2)])
    calls = [call(wait, seconds=30, says="late"), call(wait, seconds=0, says="early")]
    late, early = call_tools(calls, tools, time_limit=60)
    assert (late.status, early.text) == ("time_limit", "early") and late.seconds < 5


@pytest.mark.parametrize("how", ["kill", "quit"])
def test_a_tool_that_kills_its_process(how):
    outcome = one(call(fail, how=how), APART)
    assert outcome.status == "crashed"
    assert outcome.text == "`fail` failed: its process ended without a result."


def test_a_long_result_of_another_process_is_cut_there():
    outcome = one(call(wait, seconds=0, says="x" * 300_000), APART, max_characters=200_000)
    assert outcome.text.startswith("x" * 200_000 + "\n[cut")


def test_several_processes_at_a_time():
    calls = [call(wait, seconds=0.1 * (3 - n), says=str(n)) for n in range(4)]
    calls.insert(2, call(fail, how="quit"))
    outcomes = call_tools(calls, APART, parallel=5)
    assert [o.text for o in outcomes if o.ok] == ["0", "1", "2", "3"]
    assert outcomes[2].status == "crashed"


def test_tools_of_a_script(tmp_path, plain_env):
    """A function of the main file is found again, and the file is not run a second time."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent('''
            from steprl.tools import ToolCall, call_tools, make_tool, make_tools

            def double(x: int) -> int:
                """Double a number.

                Args:
                    x: the number.
                """
                return 2 * x

            if __name__ == "__main__":
                tools = make_tools([make_tool(double, may_hang=True)])
                print(call_tools([ToolCall(0, "double", {"x": 4})], tools)[0].text)
        ''')
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**plain_env, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("8\n", 0), done.stderr


def test_nothing_of_the_machine_learning_stack_is_loaded(plain_env):
    """So that a process of a tool starts fast."""
    code = "import sys, steprl.tools; print(*{'jax', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain_env, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
