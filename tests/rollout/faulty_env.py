"""An environment that does what an action asks for; light, for it is imported by child processes."""

import os
import subprocess
import sys
import time


class FaultyEnv:
    """Its state is a number; each action is a word and perhaps a number."""

    def __init__(self, closed=None):
        self.closed = closed  # a file that `close` writes

    def reset(self, task, key=None):
        return task, f"task {task}"

    def step(self, state, action):
        word, _, argument = action.partition(" ")
        return getattr(self, f"do_{word}")(state, argument)

    def close(self):
        if self.closed:
            with open(self.closed, "a") as file:
                file.write("closed\n")

    def _after(self, state, what=None):
        info = {"success": False, "valid": True, "what": what}
        return state, f"now {state}", 0.0, False, False, info

    def do_add(self, state, argument):
        return self._after(state + int(argument))

    def do_sleep(self, state, argument):
        time.sleep(float(argument))
        return self._after(state)

    def do_wait(self, state, argument):
        """Goes on when the file is there."""
        while not os.path.exists(argument):
            time.sleep(0.005)
        return self._after(state, "late")

    def do_raise(self, state, argument):
        raise KeyError(argument)

    def do_quit(self, state, argument):
        raise SystemExit(int(argument))

    def do_die(self, state, argument):
        os._exit(int(argument))

    def do_modules(self, state, argument):
        return self._after(state, argument in sys.modules)

    def do_whoami(self, state, argument):
        return self._after(state, os.getpid())

    def do_child(self, state, argument):
        """Starts a process, writes its id into a file and hangs."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(argument + ".part", "w") as file:
            file.write(str(child.pid))
        os.rename(argument + ".part", argument)
        time.sleep(600)

    def do_lambda(self, state, argument):
        return self._after(lambda: state)


class CannotStart(FaultyEnv):
    """Comes apart where it is unpickled."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ImportError("no module named engine")
