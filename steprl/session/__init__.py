"""What a run is made of, before and after it has parameters: mesh, language, model, environment, method."""

from steprl.session.assembly import setup
from steprl.session.checks import check_first_reset
from steprl.session.effects import acting_settings, idle_settings, notice_idle
from steprl.session.opening import Ready, open_session
from steprl.session.parameters import (
    Opened,
    abstract_params,
    check_origin,
    initial_params,
    load_params,
    load_step,
    open_policy,
)
from steprl.session.session import Session

__all__ = [
    "Opened",
    "Ready",
    "Session",
    "abstract_params",
    "acting_settings",
    "check_first_reset",
    "check_origin",
    "idle_settings",
    "initial_params",
    "load_params",
    "load_step",
    "notice_idle",
    "open_policy",
    "open_session",
    "setup",
]
