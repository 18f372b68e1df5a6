"""Nothing that a tool or an environment has started outlives it, nor the program, however either ends."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steprl.processes import Scope, descendants
from steprl.rollout.workers import EnvWorkers, Fault
from steprl.tools import ToolCall, call_tools, make_tool, make_tools
from tests.processes.programs import (
    WAYS,
    LeavingEnv,
    OrphansEnv,
    call,
    kill_parent,
    leave,
    running,
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="subreapers are Linux's"
)

ROOT = Path(__file__).resolve().parents[2]
LONG = 60.0
ENDS = ["done", "hang", "raise", "quit", "kill"]
NUMBERS = itertools.count(1)
full = pytest.mark.full


@pytest.fixture
def mark():
    """Of what is left behind by one test; whatever it is, it does not outlive the test."""
    mark = f"{os.getpid():07d}{next(NUMBERS):04d}"
    yield mark
    for pid in running(mark):
        os.kill(pid, signal.SIGKILL)


def eventually(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def zombies():
    """Children of this process that nobody has asked after."""
    found = []
    for pid in map(str, descendants(os.getpid())):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state[0] == "Z" and int(state[1]) == os.getpid():
            found.append(int(pid))
    return found


# Tools


def test_tools_that_hang_leave_nothing(mark):
    """All ways side by side, so that none is ended by the end of another."""
    tools = make_tools([make_tool(leave, may_hang=True)])
    calls = [ToolCall(0, "leave", {"way": way, "mark": mark, "then": "hang"}) for way in WAYS]
    outcomes = call_tools(calls, tools, time_limit=1.0, parallel=len(calls))
    assert [outcome.status for outcome in outcomes] == ["time_limit"] * len(WAYS)
    assert running(mark) == []  # at once, not some time later


@pytest.mark.parametrize("then", ENDS)
@pytest.mark.parametrize("start_method", ["forkserver", pytest.param("spawn", marks=full)])
def test_however_a_tool_ends_it_leaves_nothing(start_method, then, mark):
    limit = 0.6 if then == "hang" else LONG
    outcome = call("double_fork", mark, then, time_limit=limit, start_method=start_method)
    statuses = {"done": "ok", "hang": "time_limit", "raise": "exception"}
    assert outcome.status == statuses.get(then, "crashed")
    assert running(mark) == []


def test_a_supervisor_that_is_stopped_is_no_way_out(mark):
    assert call("double_fork", mark, "stop", time_limit=0.5).status == "time_limit"
    assert running(mark) == []


def test_a_worker_does_not_outlive_its_supervisor(tmp_path):
    tools = make_tools([make_tool(kill_parent, may_hang=True)])
    file = tmp_path / "pid"
    arguments = {"file": str(file)}
    [outcome] = call_tools([ToolCall(0, "kill_parent", arguments)], tools, time_limit=LONG)
    assert outcome.status == "crashed"
    eventually(lambda: not alive(int(file.read_text())))


def alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: whoever was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_no_tool(interruptible, mark):
    tools = make_tools([make_tool(leave, may_hang=True)])
    calls = [ToolCall(0, "leave", {"way": "session", "mark": mark, "then": "hang"})] * 3

    def interrupt():
        eventually(lambda: len(running(mark)) == 3)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call_tools(calls, tools, time_limit=600.0)
    assert time.monotonic() - begin < LONG
    eventually(lambda: not running(mark))


@pytest.mark.parametrize(
    ("start_method", "calls"),
    [
        ("forkserver", 6),
        pytest.param("forkserver", 200, marks=full),
        pytest.param("spawn", 10, marks=full),
    ],
)
def test_calls_leave_no_descriptors_threads_or_processes(start_method, calls, mark):
    def state():
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(zombies())

    one = dict(time_limit=LONG, start_method=start_method)
    for then in ("done", "quit"):
        call("plain", mark, then, **one)
    before, below = state(), set(descendants(os.getpid()))
    for number in range(calls):
        call("double_fork", mark, ENDS[2:][number % 3], **one)
    assert state() == before
    assert set(descendants(os.getpid())) == below and running(mark) == []


# Environments


def step(env, isolate, action, timeout):
    """The result of one step, and whether something still ran behind it and then behind the end."""
    mark = action.split()[1]
    with EnvWorkers(env, 1, timeout, isolate) as workers:
        workers.submit(0, "step", 0, action)
        [(_, result)] = workers.collect(LONG)
        eventually(lambda: timeout is None or not running(mark))
    return result


def test_an_environment_that_is_closed_leaves_nothing(mark):
    ways = [way for way in WAYS if way != "bomb"]
    with EnvWorkers(LeavingEnv(), 1, None, "process") as workers:
        for ticket, way in enumerate([*ways, "bomb"]):
            workers.submit(ticket, "step", 0, f"{way} {mark} done")
            [(_, result)] = workers.collect(LONG)
            assert result[1] == "done"
        assert len(running(mark)) > len(ways)
    assert running(mark) == []


@pytest.mark.parametrize(
    ("then", "kind"),
    [
        ("hang", "timeout"),
        ("kill", "crash"),
        pytest.param("quit", "crash", marks=full),
        pytest.param("stop", "timeout", marks=full),
    ],
)
def test_an_environment_that_fails_leaves_nothing(then, kind, mark):
    result = step(LeavingEnv(), "process", f"double_fork {mark} {then}", 0.5)
    assert isinstance(result, Fault) and result.kind == kind
    assert running(mark) == []


@pytest.mark.parametrize("isolate", ["thread", pytest.param("process", marks=full)])
def test_a_tool_ends_with_its_environment(isolate, mark):
    """The tool might take 600 seconds; nobody waits for it when the environments are closed."""
    with EnvWorkers(LeavingEnv(tools=True), 1, None, isolate) as workers:
        workers.submit(0, "step", 0, f"session {mark} hang")
        eventually(lambda: running(mark))
    eventually(lambda: not running(mark))


@pytest.mark.parametrize("isolate", ["thread", pytest.param("process", marks=full)])
def test_a_timeout_below_the_limit_of_a_tool_ends_the_tool(isolate, mark):
    timeout = 1.0 if isolate == "thread" else 4.0  # where the tool's server has to be started
    result = step(LeavingEnv(tools=True), isolate, f"double_fork {mark} hang", timeout)
    assert result.kind == "timeout" and running(mark) == []


def test_a_scope_that_has_ended_starts_nothing_more(mark):
    with Scope().entered() as scope:
        scope.end()
        assert call("session", mark, "hang").status in ("crashed", "not_started")
    assert running(mark) == []


def test_no_zombies_gather_below_an_environment():
    with EnvWorkers(OrphansEnv(), 1, LONG, "process") as workers:
        for ticket in range(3):
            workers.submit(ticket, "step", 0, "20")
            [(_, result)] = workers.collect(LONG)
            eventually(lambda supervisor=result[1]: len(descendants(int(supervisor))) == 1)


# The program


HANGING = """
import time
from steprl.rollout.workers import EnvWorkers
from steprl.tools import ToolCall, call_tools, make_tools

def hang(number: int) -> None:
    \"\"\"Hang.

    Args:
        number: of the call.
    \"\"\"
    time.sleep(600)

class Env:
    def reset(self, task, key=None):
        call_tools([ToolCall(0, "hang", {"number": n}) for n in range(3)], make_tools([hang]))

with EnvWorkers(Env(), 1, 0.2, "thread") as workers:
    workers.submit(0, "reset", 0)
    print(workers.collect()[0][1].kind)
"""


def test_tools_that_hang_in_threads_keep_no_program_from_ending(plain_env):
    done = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=ROOT, env=plain_env, capture_output=True, timeout=LONG
    )
    assert (done.returncode, done.stdout) == (0, b"timeout\n"), done.stderr


@pytest.mark.parametrize("kind", ["env", "forkserver", pytest.param("env and tool", marks=full)])
@pytest.mark.parametrize(
    "ending",
    [signal.SIGKILL, *(pytest.param(s, marks=full) for s in (signal.SIGTERM, signal.SIGSEGV))],
)
def test_nothing_outlives_a_program_that_is_killed(kind, ending, mark, plain_env):
    check_killed(kind, "double_fork", ending, mark, plain_env)


@full
@pytest.mark.parametrize("kind", ["env", "spawn"])
@pytest.mark.parametrize("way", ["plain", "nohup", "deaf", "subreaper", "bomb"])
def test_nothing_outlives_a_killed_program_in_any_way(kind, way, mark, plain_env):
    check_killed(kind, way, signal.SIGKILL, mark, plain_env)


def check_killed(kind, way, ending, mark, env):
    command = [sys.executable, "-m", "tests.processes.programs", kind, way, mark]
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as program:
        eventually(lambda: running(mark) or program.poll() is not None)
        below = descendants(program.pid)
        assert len(below) > 1 and program.poll() is None
        program.send_signal(ending)
        assert program.wait(LONG) == -ending
    eventually(lambda: not running(mark))
    eventually(lambda: not any(map(alive, below)))
