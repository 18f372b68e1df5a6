"""A policy in an environment, from whatever names both: a run, a configuration, or a model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steprl.session.assembly import setup
from steprl.session.parameters import initial_params, load_step
from steprl.session.session import Session
from steprl.session.sources import RUN, kind_of, settings_of
from steprl.types import Params


class Ready(NamedTuple):
    """All that playing needs."""

    session: Session
    params: Params
    run: Path | None  # None: of a configuration or a model, as they come
    origin: str  # of the parameters, for people
    step: int | None = None  # the iteration that they are of; None before training


def open_session(
    source: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    step: int | str | None = None,
    **given: Any,
) -> Ready:
    """A session with parameters: those of a run, or those that training would begin with.

    Args:
        source: as of `steprl.session.sources.kind_of`.
        overrides: settings such as `env.name=wiki_search`, which a model needs.
        step: checkpoint of a run; None takes the newest, "best" that of the best evaluation.
        given: as of `setup`, such as `env=...`, in place of what settings name.

    Raises:
        FileNotFoundError: there is no such source, or no such checkpoint.
        ValueError: settings are wrong or do not fit each other, or `step` of what is no run.

    Example:
        >>> ready = open_session("quickstart", ["trainer.seed=1"])
        >>> ready.origin
        'new, random'
    """
    kind = kind_of(source)
    if kind != RUN and step is not None:
        raise ValueError(f"{source} is a {kind}, not a run, so it has no checkpoint of step {step}")
    session = setup(settings_of(source, overrides), **given)
    if kind == RUN:
        run = Path(source).expanduser()
        params, iteration = load_step(session, run, step)
        return Ready(session, params, run, f"of {run}", iteration)
    model, start = session.config.model, session.config.trainer.init_from
    origin = (
        f"of {start}" if start else f"{model.path}, as it comes" if model.path else "new, random"
    )
    return Ready(session, initial_params(session), None, origin)
