"""Checkpoints: a pytree and a small JSON record per step, written in the background.

    checkpoints/<step>/state   every array leaf, in orbax's format, written by all hosts
    checkpoints/<step>/meta    names, shapes and dtypes of the leaves, versions, the caller's record

A step is written under a temporary name and renamed when complete, so a killed process leaves
nothing that `latest_step` would find. What comes back is bitwise what was saved, bfloat16, optax
states and typed PRNG keys included, and may be laid out over other devices than it was.

    with Checkpointer("runs/a/checkpoints", max_to_keep=3) as checkpointer:
        checkpointer.save(step, state, meta={"cursor": cursor})

    abstract_state = jax.eval_shape(init, key)
    state, meta, step = restore("runs/a/checkpoints", abstract_state)
"""

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

_MAX_LINES = 20  # of an error message; a wrong model differs in every leaf


class Restored(NamedTuple):
    """What `restore` gives back."""

    state: Any
    meta: dict[str, Any]
    step: int


class Checkpointer:
    """Writes checkpoints of one run. Use it as a context manager, or call `close`.

    Args:
        directory: usually `<run>/checkpoints`; made if absent. A path of a bucket works too.
        max_to_keep: older steps are deleted beyond this many; None keeps all.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_to_keep: int | None = 3) -> None:
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1 or None, got {max_to_keep}.")
        self._directory = _as_path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            cleanup_tmp_directories=True,  # what a killed process left behind
            enable_async_checkpointing=True,
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Starts to save, and returns once the arrays are copied; so `state` may be donated next.

        Errors of the background write are raised by the next `save`, `wait` or `close`.

        Args:
            step: above every saved step; to continue from an earlier step, `delete_after` first.
            state: pytree of jax or numpy arrays; dicts have string keys.
            meta: JSON-serialisable record, e.g. model settings and the place in the data.
        """
        leaves = _leaf_table(state)
        empty = [name for name, (shape, _) in leaves.items() if 0 in shape]
        if empty:
            raise ValueError(f"Arrays without elements cannot be saved: {', '.join(empty)}.")
        record = {"leaves": leaves, "versions": _versions(), "meta": dict(meta or {})}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record)
        )
        with _quiet():
            saved = self._manager.save(step, args=args)
        if not saved:  # orbax skips silently what is not newer than the newest
            raise ValueError(
                f"Step {step} is not above the newest saved step {self._manager.latest_step()}; "
                "call `delete_after` before going on from an earlier one."
            )

    def delete_after(self, step: int) -> list[int]:
        """Deletes the steps above `step` and returns them: to continue from an earlier one."""
        later = [s for s in self._manager.all_steps() if s > step]
        with _quiet():
            for s in later:
                self._manager.delete(s)
        return sorted(later)

    def wait(self) -> None:
        """Blocks until everything started is durable, and raises what went wrong."""
        with _quiet():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads."""
        with _quiet():
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def all_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Steps that are completely written, ascending; [] if there is no such directory."""
    path = _as_path(directory)
    if not path.is_dir():
        return []
    with _quiet():
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


def restore(
    directory: str | os.PathLike[str],
    abstract_state: Any,
    step: int | None = None,
    *,
    partial: bool = False,
) -> Restored:
    """Reads a checkpoint into the structure, shapes and shardings of `abstract_state`.

    A leaf with a sharding is laid out so, whatever devices it was saved from. A leaf without one
    comes back uncommitted on the default device, as a fresh array would: so a resumed program
    compiles to the same as one that was not stopped. A numpy leaf comes back as numpy.

    Args:
        directory: where the `Checkpointer` wrote.
        abstract_state: pytree of `jax.ShapeDtypeStruct` (`jax.eval_shape(init, key)`) or arrays,
            of which only shape, dtype and sharding are read.
        step: the newest if None.
        partial: leaves of the checkpoint that `abstract_state` lacks are not read, rather than an
            error; e.g. `{"params": ...}` without the state of the optimizer.

    Returns:
        `(state, meta, step)`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: names, shapes or dtypes differ; the message lists them. Nothing was read yet.
    """
    path = _step_path(directory, step)
    record = _read_record(path)
    _check_same_leaves(record["leaves"], _leaf_table(abstract_state), path, partial)

    target = jax.tree.map(_restore_target, abstract_state)
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=partial,
    )
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        state = reader.restore(path / "state", args=args)
    # By position, since orbax may give back plain containers for custom ones.
    leaves = [
        restored
        if _sharding(target_leaf) is not None or isinstance(target_leaf, np.ndarray)
        else _uncommitted(restored)
        for restored, target_leaf in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract_state), strict=True
        )
    ]
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
    return Restored(state, dict(record["meta"]), int(path.name))


def _as_path(directory: str | os.PathLike[str]) -> epath.Path:
    text = os.fspath(directory)
    return epath.Path(text if "://" in text else os.path.abspath(text))  # orbax: absolute only


def _step_path(directory: str | os.PathLike[str], step: int | None) -> epath.Path:
    steps = all_steps(directory)
    if not steps or (step is not None and step not in steps):
        missing = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"No {missing} in {os.fspath(directory)}; it has steps {steps}.")
    return _as_path(directory) / str(steps[-1] if step is None else step)


def _read_record(path: epath.Path) -> dict[str, Any]:
    with _quiet(), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(path / "meta")


def _leaf_table(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name of each leaf, as `params/layer_0/w`, with its shape and dtype."""
    table = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"Leaf {name!r} is a {type(leaf).__name__}, not an array.")
        table[name] = (tuple(leaf.shape), str(leaf.dtype))
    return table


def _check_same_leaves(
    stored: Mapping[str, Any],
    expected: Mapping[str, tuple[tuple[int, ...], str]],
    path: epath.Path,
    partial: bool,
) -> None:
    """Raises a ValueError that lists the leaves that differ."""

    def describe(entry: Any) -> str:
        shape, dtype = entry
        return f"{dtype}[{', '.join(map(str, shape))}]"

    lines = []
    for name in sorted(stored.keys() | expected.keys()):
        if name not in expected:
            if not partial:
                lines.append(f"{name}: stored {describe(stored[name])}, not expected")
        elif name not in stored:
            lines.append(f"{name}: not stored, expected {describe(expected[name])}")
        elif describe(stored[name]) != describe(expected[name]):
            lines.append(
                f"{name}: stored {describe(stored[name])}, expected {describe(expected[name])}"
            )
    if lines:
        count = len(lines)
        if count > _MAX_LINES:
            lines = [*lines[:_MAX_LINES], f"... and {count - _MAX_LINES} more"]
        raise ValueError(
            f"{path} holds another state than the one expected; {count} of "
            f"{len(stored.keys() | expected.keys())} leaves differ:\n  " + "\n  ".join(lines)
        )


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """The layout that a leaf asks for. An uncommitted array asks for none."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restore_target(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = _sharding(leaf)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError("With several processes each leaf must say its sharding.")
        # Else orbax takes the devices of the run that saved, which this machine may lack.
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _uncommitted(x: jax.Array) -> jax.Array:
    """The same bits, not tied to a device: as if `x` had just been made."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        bits = jnp.asarray(np.asarray(jax.random.key_data(x)))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))
    return jnp.asarray(np.asarray(x))


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the progress log of orbax while we are inside it; errors still show."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
