"""Saving: one step after the other, in the background."""

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from steprl.checkpoint.best import NewestAndBest, recorded_values, value_of
from steprl.checkpoint.checksums import array_checksums, write_file_checksums
from steprl.checkpoint.folders import as_path, latest_step
from steprl.checkpoint.leaves import leaf_table, named_leaves
from steprl.checkpoint.quiet import silence
from steprl.disk import WriteError, reason, writing


class Checkpointer:
    """Writes checkpoints of one run. Use it as a context manager, or call `close`.

    Args:
        directory: usually `<run>/checkpoints`; made if absent. A path of a bucket works too.
        max_to_keep: older steps are deleted beyond this many; None keeps all.
        keep_best: a metric; the step with the highest value of it in `meta["row"]` is not deleted.

    Raises:
        WriteError: the directory cannot be made or read.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_to_keep: int | None = 3,
        keep_best: str | None = None,
    ) -> None:
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1 or None, got {max_to_keep}.")
        self._directory = as_path(directory)
        self._step: int | None = None  # whose write is going on, or was the last
        self._refused = False
        self._metric = keep_best
        self._values = {} if keep_best is None else recorded_values(self._directory, keep_best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=NewestAndBest(max_to_keep, self._values),
            cleanup_tmp_directories=True,  # what a killed process left behind
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
        )
        # What orbax logs of an error in the background, hundreds of lines, is raised as well.
        self._speak = silence()
        with writing(self._directory):
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Starts to save, and returns once the arrays are copied; so `state` may be donated next.

        Errors of the background write are raised by the next `save`, `wait` or `close`.

        Args:
            step: above every saved step; to continue from an earlier step, `delete_after` first.
            state: pytree of jax or numpy arrays; dicts have string keys.
            meta: JSON-serialisable record, e.g. model settings and the place in the data.

        Raises:
            WriteError: this step or the one before could not be written; names it, and the newest
                that could.
        """
        table = leaf_table(state)
        empty = [name for name, (shape, _) in table.items() if 0 in shape]
        if empty:
            raise ValueError(f"Arrays without elements cannot be saved: {', '.join(empty)}.")
        record = {
            "step": step,
            "leaves": table,
            "checksums": array_checksums(named_leaves(state)),
            "versions": _versions(),
            "meta": dict(meta or {}),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record)
        )
        self.wait()  # as orbax would, but what fails is still the step before
        value = None if self._metric is None else value_of(meta or {}, self._metric)
        if value is not None:
            self._values[step] = value
        before, self._step = self._step, step
        if not self._named(lambda: self._manager.save(step, args=args)):
            self._step = before  # orbax skips silently what is not newer than the newest
            raise ValueError(
                f"Step {step} is not above the newest saved step {self._manager.latest_step()}; "
                "call `delete_after` before going on from an earlier one."
            )

    def delete_after(self, step: int) -> list[int]:
        """Deletes the steps above `step` and returns them: to continue from an earlier one."""
        later = [s for s in self._manager.all_steps() if s > step]
        for s in later:
            self._manager.delete(s)
            self._values.pop(s, None)
        return sorted(later)

    def wait(self) -> None:
        """Blocks until everything started is durable, and raises what went wrong."""
        self._named(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits and frees the threads."""
        try:
            self._named(self._manager.close)
        finally:
            if not self._refused:  # else its other threads have something to say yet
                self._speak()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _complete(self) -> None:
        """Called by orbax when a step is complete, before it gets its name."""
        if jax.process_index() == 0:
            unfinished = list(self._directory.glob(f"{self._step}.orbax-checkpoint-tmp*"))
            # Where folders cannot be renamed, as in buckets, a step has its name from the beginning.
            write_file_checksums((unfinished or [self._directory / str(self._step)])[0])

    def _named(self, act: Callable[[], Any]) -> Any:
        """Does it; if the disk refuses, names the step that was not written and the newest that was."""
        try:
            return act()
        except Exception as error:
            why = reason(error)
            if why is None:
                raise
            self._refused = True
            kept = latest_step(self._directory)
            raise WriteError(
                f"{self._directory / str(self._step)} cannot be written: {why}; "
                + ("no step is saved there" if kept is None else f"the last saved step is {kept}")
            ) from error


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
