"""The file of metrics: one JSON object a line."""

import contextlib
import importlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import jax
import numpy as np

from steprl.disk import writing

_LOG = logging.getLogger("steprl")
STEP = "training/global_step"
_NON_FINITE = "non_finite"  # in the file: {name: "nan" | "inf" | "-inf"} beside the nulls

Metrics = dict[str, Any]


class MetricWriter:
    """Appends rows to a JSON-lines file, each flushed: a killed run keeps all but the last.

    Only process 0 of a distributed run writes; in the others every call does nothing.

    Args:
        path: the file; its folder is made if absent. Rows of an earlier run stay, so a run that
            is resumed calls `truncate_after` first.
        tensorboard_dir: also write event files there (needs `tensorboardX`).
        wandb: also log to Weights & Biases (needs `wandb`), with these arguments of `wandb.init`,
            e.g. `{"project": "steprl"}`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tensorboard_dir: str | os.PathLike[str] | None = None,
        wandb: Mapping[str, Any] | None = None,
    ) -> None:
        self._file: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if jax.process_index() != 0:
            return
        # What was asked for and is missing must show now, not after the first hour.
        if tensorboard_dir is not None:
            module = _import_optional("tensorboardX")
            self._tensorboard = module.SummaryWriter(os.fspath(tensorboard_dir))
        if wandb is not None:
            self._wandb = _import_optional("wandb").init(**wandb)
        path = Path(path)
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(path)
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row: `{"training/global_step": step, **metrics}`.

        Args:
            step: the global step.
            metrics: name to number, bool, string, None, or array of one element.

        Raises:
            WriteError: the disk refuses.
        """
        if self._file is None:
            return
        row = {STEP: int(step)}
        for name, value in jax.device_get(dict(metrics)).items():  # all transfers at once
            if name == STEP and int(value) != int(step):
                raise ValueError(f"{STEP} is {value} in the metrics and {step} in the call.")
            row[name] = _as_plain(name, value)
        with writing(self._path):
            self._file.write(_encode(row) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != STEP:
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(row, step=step)

    def close(self) -> None:
        """Closes the file and the backends."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # each row was flushed, or has raised this already
                self._file.close()
            self._file = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[Metrics]:
    """All rows, in order, as they were written: NaN and infinities are floats again.

    A last line without its end, which a killed process leaves, is not a row. Another line that is no
    row is passed over, and said in the log of "steprl".
    """
    rows, damaged = _read_lines(Path(path))
    for number in damaged:
        _LOG.warning("%s, line %d is no row of metrics: it is passed over", path, number)
    return [row for _, row in rows]


def truncate_after(path: str | os.PathLike[str], step: int) -> int:
    """Drops the rows above `step`, so that a resumed run does not write them twice.

    The file is replaced in one move; rows without a step, and the bytes of kept rows, stay. Lines that
    are no rows are moved to `<path>.damaged`, and said in the log of "steprl". Only process 0 acts. No
    file is no work.

    Returns:
        The number of rows dropped.

    Raises:
        WriteError: the disk refuses.
    """
    path = Path(path)
    if jax.process_index() != 0 or not path.exists():
        return 0
    rows, damaged = _read_lines(path)
    kept = [line for line, row in rows if row.get(STEP, step) <= step]
    aside = path.with_name(path.name + ".damaged")
    with writing(path):
        if damaged:
            with aside.open("ab") as file:
                file.writelines(line + b"\n" for line in damaged.values())
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(temporary, path)
    for number in damaged:
        _LOG.warning(
            "%s, line %d is no row of metrics: it is moved to %s", path, number, aside.name
        )
    return len(rows) - len(kept)


def _read_lines(path: Path) -> tuple[list[tuple[bytes, Metrics]], dict[int, bytes]]:
    """The complete lines that are rows, and the others by their number."""
    rows, damaged = [], {}
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is empty or torn
    for number, line in enumerate(lines, 1):
        try:
            rows.append((line, _decode(line.decode("utf-8"))))
        except (ValueError, RecursionError):
            damaged[number] = line
    return rows, damaged


def _import_optional(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Logging to {name} was asked for: `pip install {name}`.") from error


def _as_plain(name: str, value: Any) -> Any:
    """A value that JSON knows."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype == object:
        raise ValueError(f"Metric {name!r} is no scalar: {type(value).__name__}{array.shape}.")
    if array.dtype.kind in "biufU":
        return array.item()
    return float(array.reshape(()))  # bfloat16 and its kind


def _encode(row: Metrics) -> str:
    """One line. Strict JSON has no NaN: null stands for it, and a note beside says which."""
    non_finite = {
        k: str(v) for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)
    }
    if non_finite:
        row = {**row, **dict.fromkeys(non_finite), _NON_FINITE: non_finite}
    return json.dumps(row, allow_nan=False, ensure_ascii=False)


def _decode(line: str) -> Metrics:
    """A row.

    Raises:
        ValueError: it is none.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    non_finite = row.pop(_NON_FINITE, {})
    if not isinstance(non_finite, dict):
        raise ValueError(f"{_NON_FINITE} is not an object")
    if type(row.get(STEP, 0)) is not int:
        raise ValueError(f"{STEP} is not an integer")
    row.update({name: float(text) for name, text in non_finite.items() if isinstance(text, str)})
    return row


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line without its end, else the next row would be glued to it."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
