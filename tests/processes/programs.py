"""Ways to leave something behind; light, for new processes import it."""

import ctypes
import os
import signal
import subprocess
import sys
import time

SECONDS = 86_400


def running(mark):
    """Ids of the processes that sleep under a mark; zombies do not."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            with open(f"/proc/{name}/stat", "rb") as file:
                dead = file.read().rpartition(b")")[2].split()[0] == b"Z"
        except (OSError, IndexError):
            continue
        if f"{SECONDS}.{mark}".encode() in words and words[0] == b"sleep" and not dead:
            found.append(int(name))
    return found


def _sleeper(mark):
    return ["sleep", f"{SECONDS}.{mark}"]


def plain(mark):
    subprocess.Popen(_sleeper(mark))


def session(mark):
    subprocess.Popen(_sleeper(mark), start_new_session=True)


def group(mark):
    subprocess.Popen(_sleeper(mark), process_group=0)


def nohup(mark):
    subprocess.Popen(["sh", "-c", f"nohup setsid {' '.join(_sleeper(mark))} >/dev/null 2>&1 &"])


def double_fork(mark):
    """A daemon, as the books have it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", _sleeper(mark))
        os._exit(0)
    os.wait()


def deaf(mark):
    """A daemon that takes no hint."""
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.execvp("sleep", _sleeper(mark))
        os._exit(0)
    os.wait()


def subreaper(mark):
    """What adopts its own orphans, and stops."""
    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        double_fork(mark)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)


def bomb(mark):
    """64 daemons, each of which starts the next two."""

    def grow(left):
        if left > 0 and os.fork() == 0:
            os.setsid()
            grow(left - 1)
            grow(left - 1)
            os.execvp("sleep", _sleeper(mark))

    grow(6)


def killed_group(mark):
    """A daemon beside a clean-up that kills the process group of whoever called it."""
    double_fork(mark)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)


WAYS = {
    f.__name__: f
    for f in (plain, session, group, nohup, double_fork, deaf, subreaper, bomb, killed_group)
}


def leave(way: str, mark: str, then: str) -> str:
    """Leave something behind.

    Args:
        way: one of `WAYS`.
        mark: of what is left.
        then: what comes next.
    """
    WAYS[way](mark)
    while not running(mark) or (way == "bomb" and len(running(mark)) < 32):
        time.sleep(0.005)
    return end(then)


def end(then):
    if then == "hang":
        time.sleep(600)
    if then == "raise":
        raise LookupError("gone")
    if then == "quit":
        os._exit(3)
    if then == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "stop":  # the supervisor too, as a debugger would
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(600)
    return "done"


class LeavingEnv:
    """An environment whose actions are arguments of `leave`; with tools, it has a tool do it."""

    def __init__(self, tools=False):
        self.tools = tools

    def reset(self, task, key=None):
        return 0, ""

    def step(self, state, action):
        way, mark, then = action.split()
        if self.tools:
            result = call(way, mark, then).text
        else:
            result = leave(way, mark, then)
        return state, result, 0.0, False, False, {"success": False, "valid": True}


def call(way, mark, then, **settings):
    """Has a tool in a process of its own do it; its limit is far away."""
    from steprl.tools import ToolCall, call_tools, make_tool, make_tools

    tools = make_tools([make_tool(leave, may_hang=True)])
    arguments = {"way": way, "mark": mark, "then": then}
    settings = {"time_limit": 600.0} | settings
    return call_tools([ToolCall(0, "leave", arguments)], tools, **settings)[0]


def kill_parent(file: str) -> None:
    """Kill who started this.

    Args:
        file: for the process id.
    """
    with open(file, "w") as opened:
        opened.write(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


class OrphansEnv:
    """Starts processes that end soon, and whose parents have gone before; says who looks after them."""

    def reset(self, task, key=None):
        return 0, ""

    def step(self, state, action):
        for _ in range(int(action)):
            if os.fork() == 0:
                if os.fork() == 0:
                    time.sleep(0.01)
                os._exit(0)
            os.wait()
        return state, str(os.getppid()), 0.0, False, False, {"success": False, "valid": True}


if __name__ == "__main__":  # a program that hangs: python -m tests.processes.programs KIND WAY MARK
    kind, way, mark = sys.argv[1:]
    if kind in ("forkserver", "spawn"):
        call(way, mark, "hang", start_method=kind)
    else:
        from steprl.envs.child_process import EnvChild, pickled

        child = EnvChild(pickled(LeavingEnv(tools=kind == "env and tool"), ""), False)
        child.start()
        child.call(pickled(("step", (0, f"{way} {mark} hang")), ""))
