"""Metrics of a run: one JSON object a line in `metrics.jsonl`, and a few honest numbers.

    with MetricWriter(run_dir / "metrics.jsonl") as writer:
        writer.write(step, {"actor/pg_loss": loss, "timing_s/gen": seconds})

    rows = read_metrics(run_dir / "metrics.jsonl")

Names follow verl (`actor/pg_loss`, `critic/vf_explained_var`, ...); the step of a row is
`training/global_step`. TensorBoard and Weights & Biases are fed on request.
"""

import contextlib
import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import jax
import numpy as np

STEP = "training/global_step"
_NON_FINITE = "non_finite"  # in the file: {name: "nan" | "inf" | "-inf"} beside the nulls
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_Z_95 = 1.959963984540054
_RESAMPLES, _BOOTSTRAP_SEED = 2000, 20_260_101

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
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row: `{"training/global_step": step, **metrics}`.

        Args:
            step: the global step.
            metrics: name to number, bool, string, None, or array of one element.
        """
        if self._file is None:
            return
        row = {STEP: int(step)}
        for name, value in jax.device_get(dict(metrics)).items():  # all transfers at once
            if name == STEP and int(value) != int(step):
                raise ValueError(f"{STEP} is {value} in the metrics and {step} in the call.")
            row[name] = _as_plain(name, value)
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

    A last line without its end, which a killed process leaves, is not a row.
    """
    text = Path(path).read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]  # what follows the last line end is empty or torn
    return [_decode(line) for line in lines]


def truncate_after(path: str | os.PathLike[str], step: int) -> int:
    """Drops the rows above `step`, so that a resumed run does not write them twice.

    The file is replaced in one move; rows without a step, and the bytes of kept rows, stay.
    Only process 0 acts. No file is no work.

    Returns:
        The number of rows dropped.
    """
    path = Path(path)
    if jax.process_index() != 0 or not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for line in lines if _decode(line).get(STEP, step) <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
    return len(lines) - len(kept)


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson_interval(successes: int, n: int) -> Interval:
    """95 % confidence interval of a success rate.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927). Unlike
    p ± 2 s.e. it stays within [0, 1] and is not empty at 0 or n successes. No trials: (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials.")
    if n == 0:
        return Interval(0.0, 1.0)
    p = successes / n
    z2 = _Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # The ends are exact at the edges; rounding must not say otherwise.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, high)


def mean_interval(values: np.ndarray) -> Interval:
    """95 % confidence interval of a mean over independent values, such as scores of tasks.

    Wilson's where every value is 0 or 1, else the percentile bootstrap with a fixed seed. No values:
    (nan, nan).
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan)
    if np.isin(values, (0.0, 1.0)).all():
        return wilson_interval(round(float(values.sum())), count)
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def pass_at_k(attempts: int, successes: int, k: int) -> float:
    """Probability that at least one of k attempts succeeds, without bias.

        1 - C(n - c, k) / C(n, k),   n attempts, c successes

    https://arxiv.org/abs/2107.03374, eq. 1.

    Raises:
        ValueError: not 1 <= k <= attempts, or not 0 <= successes <= attempts.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5
    """
    if not (1 <= k <= attempts and 0 <= successes <= attempts):
        raise ValueError(f"pass@{k} of {attempts} attempts with {successes} successes")
    return 1.0 - math.comb(attempts - successes, k) / math.comb(attempts, k)


def correlation(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, ranks: bool = False
) -> float:
    """Pearson's correlation, or that of the ranks (Spearman's), ties at the mean of their ranks.

    Spearman, "The proof and measurement of association between two things" (1904).

    Args:
        x, y: [n] numbers.
        weight: [n] how often each pair counts; None for once.
        ranks: correlate the ranks.

    Returns:
        A number in [-1, 1]; NaN where one of them does not vary.

    Raises:
        ValueError: the shapes differ, or something is not finite.

    Example:
        >>> round(correlation(np.array([1, 2, 3, 4]), np.array([10, 30, 20, 20]), ranks=True), 3)
        0.316
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    weight = np.ones(x.shape) if weight is None else np.asarray(weight, np.float64)
    if x.ndim != 1 or not x.shape == y.shape == weight.shape:
        raise ValueError(f"x {x.shape}, y {y.shape}, weight {weight.shape}: not of one length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x and y must be finite")
    if ranks:
        return _rank_correlation(_places(x), _places(y), weight)
    return _linear_correlation(x, y, weight)


def correlation_interval(
    x: np.ndarray, y: np.ndarray, cluster: np.ndarray, ranks: bool = False
) -> Interval:
    """95 % interval of `correlation`: the percentile bootstrap, with a fixed seed.

    Args:
        x, y: [n] numbers.
        cluster: [n] ids of what is drawn together, since pairs within it depend on each other.
        ranks: correlate the ranks.

    Returns:
        Its ends; (nan, nan) for fewer than two clusters.
    """
    members = np.unique(np.asarray(cluster), return_inverse=True)[1].reshape(-1)
    count = int(members.max()) + 1 if len(members) else 0
    if count < 2:
        return Interval(math.nan, math.nan)
    x_values, y_values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    correlate = _linear_correlation
    if ranks:  # the order of the numbers is found once
        x_values, y_values, correlate = _places(x_values), _places(y_values), _rank_correlation
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    estimates = np.array([correlate(x_values, y_values, draw[members]) for draw in draws])
    estimates = estimates[np.isfinite(estimates)]
    if not len(estimates):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(estimates, (0.025, 0.975))
    return Interval(float(low), float(high))


def _places(x: np.ndarray) -> np.ndarray:
    """Of each number, its place among the different ones."""
    return np.unique(x, return_inverse=True)[1].reshape(-1)


def _rank_correlation(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Of places, each pair counted `weight` times."""

    def ranks(place: np.ndarray) -> np.ndarray:
        count = np.bincount(place, weight)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    return _linear_correlation(ranks(x), ranks(y), weight)


def _linear_correlation(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    if _constant(x[weight > 0]) or _constant(y[weight > 0]):
        return math.nan  # rounding must not make a spread
    a, b = (z - np.average(z, weights=weight) for z in (x, y))
    return float(weight @ (a * b)) / math.sqrt(float(weight @ (a * a)) * float(weight @ (b * b)))


def _constant(x: np.ndarray) -> bool:
    return len(x) == 0 or bool(np.ptp(x) == 0)


class CompilationCounter:
    """Counts what XLA compiles while the context is open.

        with CompilationCounter() as counter:
            train(...)
        assert counter.count <= 6, counter.names

    A program that comes from the persistent cache counts too, so the number does not depend on
    what ran before on this machine. Operations outside `jit` compile as well, once a shape.
    """

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Number of compilations so far."""
        return self.names.total()

    def _listen(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == _COMPILE_EVENT:
            self.names[str(kwargs.get("fun_name", "unknown"))] += 1
            self.seconds += duration_secs

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exc: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)


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
    row = json.loads(line)
    row.update({name: float(text) for name, text in row.pop(_NON_FINITE, {}).items()})
    return row


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line without its end, else the next row would be glued to it."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
