"""An environment that does what an action asks for; light, for it is imported by child processes."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time


class FaultyEnv:
    """Its state is a number; an action is a word and an argument.

    Args:
        closed: a file that `close` writes into.
    """

    def __init__(self, closed=None):
        self.closed = closed

    def reset(self, task, key=None):
        if task < 0:
            time.sleep(600)
        return task, f"task {task}"

    def step(self, state, action):
        word, _, argument = action.partition(" ")
        return getattr(self, f"do_{word}")(state, argument)

    def close(self):
        if self.closed:
            with open(self.closed, "a") as file:
                file.write("closed\n")

    def do_add(self, state, argument):
        return self._after(state + int(argument))

    def do_sleep(self, state, argument):
        time.sleep(float(argument))
        return self._after(state + 1)

    def do_wait(self, state, argument):
        """Hangs until the file is there."""
        while not os.path.exists(argument):
            time.sleep(0.005)
        return self._after(state)

    def do_meet(self, state, argument):
        """Goes on when as many calls are in it."""
        folder, number = argument.rsplit(" ", 1)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False):
            pass
        while len(os.listdir(folder)) < int(number):
            time.sleep(0.005)
        return self._after(state)

    def do_raise(self, state, argument):
        raise LookupError(argument)

    def do_throw(self, state, argument):
        raise THROWN[argument]()

    def do_quit(self, state, argument):
        raise SystemExit(int(argument))

    def do_die(self, state, argument):
        os._exit(int(argument))

    def do_signal(self, state, argument):
        os.kill(os.getpid(), int(argument))
        time.sleep(600)

    def do_imported(self, state, argument):
        return self._after(argument in sys.modules)

    def do_process(self, state, argument):
        return self._after(os.getpid())

    def do_start(self, state, argument):
        """Starts a program, writes its process id into the file, and hangs."""
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        _write(argument, program.pid)
        time.sleep(600)

    def do_fork(self, state, argument):
        """Forks a process that holds what it inherits, and ends."""
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        _write(argument, pid)
        os._exit(7)

    def do_nest(self, state, argument):
        """The exit code of a process of its own."""
        process = multiprocessing.get_context("spawn").Process(
            target=os._exit, args=(int(argument),)
        )
        process.start()
        process.join()
        return self._after(process.exitcode)

    def do_hide(self, state, argument):
        return self._after(lambda: state)

    def _after(self, state):
        return state, f"now {state}", 0.0, False, False, {"success": False, "valid": True}


class Mute(Exception):
    def __str__(self):
        raise SystemExit("no message")


class Long(Exception):
    def __str__(self):
        return "a\nb \udc80" + "x" * 10**6


THROWN = {
    kind.__name__: kind
    for kind in (GeneratorExit, RecursionError, MemoryError, StopIteration, Mute, Long)
}


class BrokenEnv(FaultyEnv):
    """Can be pickled, not unpickled."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ImportError("there is no engine here")


def _write(path, pid):
    """All at once."""
    with open(f"{path}.part", "w") as file:
        file.write(str(pid))
    os.rename(f"{path}.part", path)
