"""Processes that end with all that they have started, whatever becomes of the program.

    program ── supervisor ── worker ── whatever the worker starts, in whatever session

See `steprl.processes.supervisor` for how, and where it does not hold.
"""

from steprl.processes.child import REAP_LIMIT, Child, start
from steprl.processes.scope import Scope, belonging
from steprl.processes.supervisor import descendants, enter

__all__ = ["REAP_LIMIT", "Child", "Scope", "belonging", "descendants", "enter", "start"]
