"""Restoring: the newest step that is whole, verified."""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from steprl.checkpoint.checksums import DamagedCheckpoint, array_checksums, check_files
from steprl.checkpoint.folders import as_path, step_folders
from steprl.checkpoint.leaves import (
    check_same_leaves,
    leaf_table,
    named_leaves,
    restore_target,
    sharding_of,
    uncommitted,
)
from steprl.checkpoint.quiet import quiet_failure

_LOG = logging.getLogger("steprl")
# Of errors that say nothing about what was written.
_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "Out of memory", "PERMISSION_DENIED", "Permission denied",
               "Too many open files", "Input/output error")  # fmt: skip


class Restored(NamedTuple):
    """What `restore` gives back."""

    state: Any
    meta: dict[str, Any]
    step: int


def restore(
    directory: str | os.PathLike[str],
    abstract_state: Any,
    step: int | Sequence[int] | None = None,
    *,
    partial: bool = False,
) -> Restored:
    """Reads a checkpoint into the structure, shapes and shardings of `abstract_state`.

    A leaf with a sharding is laid out so, whatever devices it was saved from. A leaf without one
    comes back uncommitted on the default device, as a fresh array would: so a resumed program
    compiles to the same as one that was not stopped. A numpy leaf comes back as numpy.

    The files of the step and the arrays that are read are compared with their checksums. A step that
    an earlier version wrote has none; one line in the log of "steprl" says that it is not verified,
    another one which steps are damaged and which is taken in their place. Nothing on disk is changed.

    Args:
        directory: where the `Checkpointer` wrote.
        abstract_state: pytree of `jax.ShapeDtypeStruct` (`jax.eval_shape(init, key)`) or arrays,
            of which only shape, dtype and sharding are read.
        step: the newest that is not damaged if None; of several, the first that is not damaged.
        partial: leaves of the checkpoint that `abstract_state` lacks are not read, rather than an
            error; e.g. `{"params": ...}` without the state of the optimizer.

    Returns:
        `(state, meta, step)`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpoint: `step` is damaged, or every one of them is.
        ValueError: names, shapes or dtypes differ; the message lists them. Nothing was read yet.
    """
    path, steps = as_path(directory), step_folders(directory)
    if not steps or (isinstance(step, int) and step not in steps):
        missing = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"No {missing} in {os.fspath(directory)}; it has steps {steps}.")
    if isinstance(step, int):
        return _restore(path / str(step), abstract_state, partial)
    damaged: dict[int, str] = {}
    for candidate in reversed(steps) if step is None else step:
        try:
            restored = _restore(path / str(candidate), abstract_state, partial)
        except DamagedCheckpoint as error:
            if (path / str(candidate)).is_dir():  # else its run has deleted it meanwhile
                damaged[candidate] = error.what
            continue
        if damaged:
            _LOG.warning("%s: %s; going back to step %d", path, _listed(damaged), candidate)
        return restored
    raise DamagedCheckpoint(
        path, f"no step of it can be read ({_listed(damaged)}); delete the folder to begin again"
    )


def _listed(damaged: dict[int, str]) -> str:
    return "; ".join(f"step {step} is damaged, {what}" for step, what in damaged.items())


def _restore(path: epath.Path, abstract_state: Any, partial: bool) -> Restored:
    """One step."""
    record, verified = _read_record(path)
    check_same_leaves(record["leaves"], leaf_table(abstract_state), path, partial)
    state = _read_arrays(path, abstract_state, partial)
    leaves = named_leaves(state)
    if "checksums" in record:
        found = array_checksums(leaves)
        other = [name for name in leaves if found[name] != record["checksums"].get(name)]
        if other:
            more = f" and {len(other) - 1} other arrays" if len(other) > 1 else ""
            raise DamagedCheckpoint(path, f"{other[0]}{more} has other bits than were saved")
    if not verified:
        _LOG.warning("%s was saved without checksums: it is not verified", path)
    return Restored(state, dict(record["meta"]), int(path.name))


def _read_record(path: epath.Path) -> tuple[dict[str, Any], bool]:
    """The record of a step, its files compared with their checksums, and whether there were any."""
    for part in ("state", "meta"):
        if not (path / part).is_dir():
            raise DamagedCheckpoint(path, f"{part} is missing")
    verified = check_files(path)
    file = path / "meta" / "metadata"
    if not file.exists():
        raise DamagedCheckpoint(path, "meta/metadata is missing")
    try:
        record = json.loads(file.read_bytes())
    except ValueError as error:
        raise DamagedCheckpoint(path, f"meta/metadata is not JSON ({error})") from None
    if not _is_record(record):
        raise DamagedCheckpoint(path, "meta/metadata is not the record of a checkpoint")
    if (step := record.get("step", int(path.name))) != int(path.name):
        raise DamagedCheckpoint(path, f"it holds step {step}: rename the folder back")
    if "checksums" in record and not verified:
        raise DamagedCheckpoint(path, "checksums.json is missing")
    return record, verified


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("leaves"), dict)
        and isinstance(record.get("meta"), dict)
        and isinstance(record.get("checksums", {}), dict)
        and all(
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], list)
            and isinstance(entry[1], str)
            for entry in record["leaves"].values()
        )
    )


def _read_arrays(path: epath.Path, abstract_state: Any, partial: bool) -> Any:
    target = jax.tree.map(restore_target, abstract_state)
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=partial,
    )
    try:
        with (
            quiet_failure(),
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
        ):
            state = reader.restore(path / "state", args=args)
    except (MemoryError, jax.errors.JaxRuntimeError, PermissionError):
        raise
    except Exception as error:
        # Shapes and names fit, so a reader that fails has not found what was written.
        text = " ".join(str(error).split())
        if any(words in text for words in _NOT_DAMAGE):
            raise
        short = text if len(text) <= 120 else text[:117] + "..."
        raise DamagedCheckpoint(path, f"state cannot be read ({short})") from error
    # By position, since orbax may give back plain containers for custom ones.
    leaves = [
        restored
        if sharding_of(target_leaf) is not None or isinstance(target_leaf, np.ndarray)
        else uncommitted(restored)
        for restored, target_leaf in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract_state), strict=True
        )
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
