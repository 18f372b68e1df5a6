"""The folders of the steps: which are there, and how a damaged one is put out of the way."""

import logging
import os

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from steprl.checkpoint.quiet import quiet
from steprl.disk import writing

_LOG = logging.getLogger("steprl")


def as_path(directory: str | os.PathLike[str]) -> epath.Path:
    """An absolute path, as orbax takes them, or that of a bucket."""
    text = os.fspath(directory)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def step_folders(directory: str | os.PathLike[str]) -> list[int]:
    """Every folder whose name is a number, whatever it holds; ascending."""
    path = as_path(directory)
    if not path.is_dir():
        return []
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal() and p.is_dir())


def all_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Steps that are completely written, ascending; [] if there is no such directory.

    Files are not read: `restore` finds what is damaged.
    """
    path = as_path(directory)
    if not path.is_dir():
        return []
    with quiet():
        steps = ocp.utils.checkpoint_steps(path)
    # A folder with a number as its name is not yet a checkpoint: both parts must be there.
    return sorted(
        int(s)
        for s in steps
        if (path / str(s) / "state").is_dir() and (path / str(s) / "meta").is_dir()
    )


def latest_step(directory: str | os.PathLike[str]) -> int | None:
    """The newest step that is completely written, or None."""
    steps = all_steps(directory)
    return steps[-1] if steps else None


def begun(directory: str | os.PathLike[str]) -> bool:
    """Whether any step was ever saved there, damaged ones included."""
    return bool(step_folders(directory))


def set_aside(directory: str | os.PathLike[str], above: int) -> list[str]:
    """Renames the folders of the steps above one, `12` to `12.damaged`, so that steps can be saved again.

    For the newer steps that `restore` could not use. Nothing is deleted: they can be looked into, and
    deleted by hand.

    Returns:
        The new names.
    """
    path, names = as_path(directory), []
    for step in [step for step in step_folders(directory) if step > above]:
        name, number = f"{step}.damaged", 2
        while (path / name).exists():
            name, number = f"{step}.damaged-{number}", number + 1
        names.append(name)
        if jax.process_index() == 0:
            with writing(path / str(step)):
                (path / str(step)).rename(path / name)
            _LOG.warning("%s is kept as %s; nothing reads it any more", path / str(step), name)
    if names and jax.process_count() > 1:
        multihost_utils.sync_global_devices("steprl: damaged steps are set aside")
    return names
