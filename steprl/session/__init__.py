"""What a run is made of, before and after it has parameters: mesh, language, model, environment, method."""

from steprl.session.assembly import setup
from steprl.session.parameters import (
    Opened,
    abstract_params,
    initial_params,
    load_params,
    load_step,
    open_policy,
)
from steprl.session.session import Session

__all__ = [
    "Opened",
    "Session",
    "abstract_params",
    "initial_params",
    "load_params",
    "load_step",
    "open_policy",
    "setup",
]
