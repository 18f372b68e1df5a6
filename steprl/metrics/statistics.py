"""Success rates, means and correlations, with their intervals."""

import math
from typing import NamedTuple

import numpy as np

_Z_95 = 1.959963984540054
_RESAMPLES, _BOOTSTRAP_SEED = 2000, 20_260_101


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
