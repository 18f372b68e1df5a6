"""Workers: what a call gives is its own, whatever the others do, and nothing outlives them."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest

from steprl.rollout.workers import THREADS, EnvWorkers, Fault
from tests.rollout.faulty_env import BrokenEnv, FaultyEnv

ISOLATIONS = ("thread", "process")
SHORT = 0.4  # seconds until a call that hangs is given up
LONG = 100.0  # seconds within which everything happens that does happen

anywhere = pytest.mark.parametrize("isolate", ISOLATIONS)


def all_of(workers):
    """{ticket: result} of the calls that are pending."""
    found, end = {}, time.monotonic() + LONG
    while workers.pending:
        assert time.monotonic() < end, f"{workers.pending} calls are still pending"
        for ticket, result in workers.collect(LONG):
            assert ticket not in found
            found[ticket] = result
    return found


def steps(workers, *actions, state=0):
    """Results of actions in one state, by their order."""
    for ticket, action in enumerate(actions):
        workers.submit(ticket, "step", state, action)
    found = all_of(workers)
    return [found[ticket] for ticket in range(len(actions))]


def eventually(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads():
    return {t for t in threading.enumerate() if t.name == THREADS}


def is_there(pid):
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def children():
    """Process ids of this process's children, zombies too."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found |= {int(pid) for pid in (thread / "children").read_text().split()}
    return found


def tracker():
    """The process that multiprocessing starts beside the first child, and keeps."""
    return resource_tracker._resource_tracker._pid


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No child, and no zombie of one."""
    before = children()
    yield
    assert children() <= before | {tracker()}


@pytest.mark.parametrize("workers", [0, 1, 3])
@anywhere
def test_calls_give_what_the_environment_gives(isolate, workers):
    env = FaultyEnv()
    with EnvWorkers(env, workers, LONG, isolate) as pool:
        assert pool.collect() == [] and pool.pending == 0
        pool.submit(5, "reset", 3)
        pool.submit(6, "reset", 4, None)
        pool.submit(2, "step", 7, "add 10")
        assert pool.pending == 3
        found = all_of(pool)
    assert found == {5: env.reset(3), 6: env.reset(4), 2: env.step(7, "add 10")}


@pytest.mark.parametrize("workers", [0, 2])
@anywhere
def test_what_a_call_raises_is_its_fault(isolate, workers):
    with EnvWorkers(FaultyEnv(), workers, LONG, isolate) as pool:
        raised, left, fine = steps(pool, "raise no such door", "quit 3", "add 1")
    assert raised == Fault("crash", "LookupError: no such door")
    assert left == Fault("crash", "SystemExit: 3")
    assert fine[0] == 1


@pytest.mark.parametrize("workers", [0, 2])
@anywhere
def test_whatever_is_raised_is_a_fault(isolate, workers):
    kinds = ("GeneratorExit", "RecursionError", "MemoryError", "StopIteration", "Mute", "Long")
    with EnvWorkers(FaultyEnv(), workers, LONG, isolate) as pool:
        found = steps(pool, *[f"throw {kind}" for kind in kinds])
    said = [fault.message for fault in found]
    assert [fault.kind for fault in found] == ["crash"] * len(kinds)
    assert said[:4] == list(kinds[:4]) and said[4] == "Mute (its message cannot be shown)"
    assert said[5].startswith("Long: a b ?") and len(said[5]) < 600 and "\n" not in said[5]


@anywhere
def test_as_many_calls_run_at_a_time_as_there_are_workers(isolate, tmp_path):
    with EnvWorkers(FaultyEnv(), 3, LONG, isolate) as pool:
        steps(pool, "add 1")  # one worker is there and waits
        together = steps(pool, *[f"meet {tmp_path} 3"] * 3)
    assert not any(isinstance(result, Fault) for result in together), together


def test_no_more_calls_run_at_a_time():
    class Counting(FaultyEnv):
        lock, now, most = threading.Lock(), 0, 0

        def do_sleep(self, state, argument):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            result = super().do_sleep(state, argument)
            with self.lock:
                self.now -= 1
            return result

    env = Counting()
    with EnvWorkers(env, 2, LONG, "thread") as pool:
        steps(pool, *["sleep 0.01"] * 20)
    assert env.most == 2


@anywhere
def test_a_call_that_hangs_is_given_up(isolate):
    with EnvWorkers(FaultyEnv(), 2, SHORT, isolate) as pool:
        begin = time.monotonic()
        pool.submit(8, "reset", -1)
        pool.submit(9, "step", 0, "sleep 600")
        found = all_of(pool)
        assert time.monotonic() - begin >= SHORT
    assert found[8] == Fault(
        "timeout", "`reset` of task -1 (ticket 8) took longer than 0.4 seconds"
    )
    assert found[9] == Fault("timeout", "`step` (ticket 9) took longer than 0.4 seconds")


@anywhere
def test_no_call_waits_for_those_that_hang(isolate, tmp_path):
    """Twice as many calls hang as there are workers, and yet the last one is played."""
    go = tmp_path / "go"
    go.touch()
    with EnvWorkers(FaultyEnv(), 2, 2 * SHORT, isolate) as pool:
        *hung, fine = steps(pool, *["sleep 600"] * 4, f"wait {go}", state=5)
        assert [fault.kind for fault in hung] == ["timeout"] * 4
        assert fine[0] == 5
        assert [result[0] for result in steps(pool, *["add 1"] * 4)] == [1] * 4


def test_deadlines_pass_while_nobody_collects():
    """The time that a caller spends elsewhere is used: queued calls are played behind hung ones."""
    with EnvWorkers(FaultyEnv(), 1, SHORT, "thread") as pool:
        pool.submit(0, "step", 0, "sleep 600")
        pool.submit(1, "step", 0, "add 1")
        eventually(lambda: len(pool._done) == 2)
        assert [ticket for ticket, _ in pool.collect(0)] == [0, 1]


@anywhere
def test_what_comes_too_late_is_dropped(isolate, tmp_path):
    go = tmp_path / "go"
    before = threads()
    with EnvWorkers(FaultyEnv(), 1, 2 * SHORT, isolate) as pool:
        pool.submit(0, "step", 1, f"wait {go}")
        assert all_of(pool)[0].kind == "timeout"
        pool.submit(0, "step", 2, "add 5")  # the ticket is free again
        go.touch()
        assert all_of(pool)[0][0] == 7
        # What is left is one worker and the watch: the late one has come, and gone.
        eventually(lambda: len(threads() - before) == 2)
        assert pool.collect(0) == [] and pool.pending == 0


@anywhere
def test_results_do_not_depend_on_who_ends_first(isolate):
    random = np.random.default_rng(0)
    expected, env = {}, FaultyEnv()
    with EnvWorkers(env, 4, 1.5, isolate) as pool:
        for ticket in range(200):
            action = random.choice(
                [f"add {ticket}", f"sleep {random.uniform(0, 0.01):.4f}", f"raise {ticket}"]
            )
            if ticket in (20, 21, 22, 150):
                action = "sleep 600"
            if ticket in (60, 61) and isolate == "process":
                action = f"die {ticket}"
            pool.submit(ticket, "step", 1000 * ticket, str(action))
            expected[ticket] = str(action)
        found = all_of(pool)
    assert sorted(found) == list(range(200))
    for ticket, action in expected.items():
        if action == "sleep 600":
            assert found[ticket].kind == "timeout"
        elif action.startswith("raise"):
            assert found[ticket] == Fault("crash", f"LookupError: {ticket}")
        elif action.startswith("die"):
            assert found[ticket].kind == "crash" and f"exit code {ticket}" in found[ticket].message
        else:
            assert found[ticket] == env.step(1000 * ticket, action)


@anywhere
def test_collect_waits_as_long_as_it_is_told(isolate, tmp_path):
    go = tmp_path / "go"
    with EnvWorkers(FaultyEnv(), 1, None, isolate) as pool:
        pool.submit(0, "step", 0, f"wait {go}")
        for wait in (0, 0.05):
            begin = time.monotonic()
            assert pool.collect(wait) == []
            assert time.monotonic() - begin >= wait
        go.touch()
        assert [ticket for ticket, _ in pool.collect(None)] == [0]


@pytest.mark.parametrize("timeout", [SHORT, None])
@anywhere
def test_closing_waits_for_nothing(isolate, timeout):
    """Not for calls that hang, nor for those that wait for a worker."""
    pool = EnvWorkers(FaultyEnv(), 2, timeout, isolate)
    for ticket in range(6):
        pool.submit(ticket, "step", 0, "sleep 600")
    pool.collect(0.05)
    pool.close()
    pool.close()
    for use in (lambda: pool.submit(9, "reset", 0), pool.collect):
        with pytest.raises(RuntimeError, match="the workers are closed"):
            use()


@pytest.mark.parametrize(("isolate", "workers"), [("thread", 0), ("thread", 2), ("process", 2)])
def test_closing_closes_the_environments(isolate, workers, tmp_path):
    path = tmp_path / "closed"
    with EnvWorkers(FaultyEnv(str(path)), workers, None, isolate) as pool:
        assert len(steps(pool, "add 1", "sleep 0.05", "add 1", "sleep 0.05")) == 4
        copies = len(pool._lanes) if isolate == "process" else 1
    assert path.read_text() == "closed\n" * copies


def test_an_environment_that_cannot_be_closed_is_told_in_one_line(caplog):
    class Stuck(FaultyEnv):
        def close(self):
            raise OSError("it is stuck")

    with EnvWorkers(Stuck(), 1) as pool:
        steps(pool, "add 1")
    assert [r.getMessage() for r in caplog.records] == [
        "`close` of the environment failed: OSError: it is stuck"
    ]


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: whoever was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_caller_is_not_held(interruptible):
    with EnvWorkers(FaultyEnv(), 1, None, "thread") as pool:
        pool.submit(0, "step", 0, "sleep 600")
        me = threading.get_ident()
        threading.Timer(0.1, signal.pthread_kill, [me, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            pool.collect(None)


# Processes


def test_processes_are_others_and_without_jax():
    with EnvWorkers(FaultyEnv(), 1, LONG, "process") as pool:
        (pid, *_), (loaded, *_), (light, *_) = steps(
            pool, "process", "imported jax", "imported steprl.envs.child_process"
        )
    assert "jax" in sys.modules and not loaded and light
    assert pid != os.getpid() and not is_there(pid)


@pytest.mark.parametrize(
    ("action", "code"),
    [("die 7", "exit code 7"), ("die 0", "exit code 0"), ("signal 11", "exit code -11 (SIGSEGV)")],
)
def test_a_process_that_ends_is_a_crash_and_is_replaced(action, code):
    with EnvWorkers(FaultyEnv(), 1, LONG, "process") as pool:
        first, died, second = steps(pool, "process", action, "process")
    assert died == Fault("crash", f"the process of the environment ended with {code}")
    assert first[0] != second[0]


def test_a_killed_process_says_what_may_have_been():
    with EnvWorkers(FaultyEnv(), 1, LONG, "process") as pool:
        (died,) = steps(pool, "signal 9")
    assert died.kind == "crash" and "exit code -9 (SIGKILL, as for want of memory)" in died.message


@pytest.mark.parametrize("timeout", [SHORT, None])
def test_what_a_process_has_started_goes_with_it(timeout, tmp_path):
    path = tmp_path / "pid"
    with EnvWorkers(FaultyEnv(), 1, timeout, "process") as pool:
        while not path.exists():  # on a busy machine the time may be over before the program starts
            pool.submit(0, "step", 0, f"start {path}")
            if timeout is None:
                eventually(path.exists)
            else:
                assert all_of(pool)[0].kind == "timeout"
    program = int(path.read_text())
    eventually(lambda: not is_there(program))


def test_a_fork_does_not_hide_that_its_parent_is_gone(tmp_path):
    path = tmp_path / "pid"
    with EnvWorkers(FaultyEnv(), 1, None, "process") as pool:
        (died,) = steps(pool, f"fork {path}")
    assert "exit code 7" in died.message
    eventually(lambda: not is_there(int(path.read_text())))


def test_environments_in_processes_may_start_processes():
    with EnvWorkers(FaultyEnv(), 1, LONG, "process") as pool:
        (result,) = steps(pool, "nest 5")
    assert result[0] == 5


def test_a_process_that_cannot_start_is_an_error():
    with EnvWorkers(BrokenEnv(), 2, LONG, "process") as pool:
        pool.submit(0, "reset", 0)
        with pytest.raises(RuntimeError, match="ImportError: there is no engine here"):
            pool.collect(LONG)
        with pytest.raises(RuntimeError, match="ImportError: there is no engine here"):
            pool.submit(1, "reset", 0)


def test_an_environment_that_cannot_be_pickled_is_an_error():
    env = FaultyEnv()
    env.lock = threading.Lock()
    with pytest.raises(TypeError, match='the environment cannot be pickled.*isolate="thread"'):
        EnvWorkers(env, 1, LONG, "process")


def test_a_state_or_an_answer_that_cannot_be_pickled_is_a_fault_of_its_call():
    with EnvWorkers(FaultyEnv(), 1, LONG, "process") as pool:
        pool.submit(0, "step", lambda: 0, "add 1")
        pool.submit(1, "step", 0, "hide")
        pool.submit(2, "step", 0, "add 1")
        found = all_of(pool)
    assert found[0].kind == found[1].kind == "crash" and found[2][0] == 1
    assert "an argument of `step` cannot be pickled" in found[0].message
    assert "what the environment returns cannot be pickled" in found[1].message
    assert all('isolate="thread"' in found[ticket].message for ticket in (0, 1))


def run_script(code, env, **options):
    code = textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, **options
    )


SCRIPT = """
    import sys, time
    from steprl.rollout.workers import EnvWorkers
    from tests.rollout.faulty_env import FaultyEnv

    pool = EnvWorkers(FaultyEnv(), 1, None, "process")
    pool.submit(0, "step", 0, "process")
    print(pool.collect(100)[0][1][0], flush=True)
    pool.submit(0, "step", 0, "sleep 600")
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "time.sleep(600)"])
def test_nothing_outlives_the_program(end, plain_env):
    """Neither where it forgets to close, nor where it is killed."""
    root = Path(__file__).resolve().parents[2]
    program = run_script(textwrap.dedent(SCRIPT) + end, plain_env, cwd=root)
    with program:
        child = int(program.stdout.readline())
        assert end == "" or is_there(child)
        if end:
            program.kill()
        assert program.wait(LONG) == (-signal.SIGKILL if end else 0)
    eventually(lambda: not is_there(child))


# Arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(workers=-1), "workers=-1: must be 0"),
        (dict(workers=1, timeout=0), "timeout=0: must be more than 0 seconds"),
        (dict(workers=1, isolate="fork"), "isolate='fork': must be one of thread, process"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        EnvWorkers(FaultyEnv(), **settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_calls_are_checked(workers):
    with EnvWorkers(FaultyEnv(), workers) as pool:
        with pytest.raises(ValueError, match="call='close': must be one of reset, step"):
            pool.submit(0, "close")
        pool.submit(0, "reset", 0)
        with pytest.raises(ValueError, match="ticket=0: its call is not collected yet"):
            pool.submit(0, "reset", 0)
