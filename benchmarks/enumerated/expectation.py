"""Exact expectations over everything that could have been sampled, and their bias."""

import collections
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from enumerated.world import Rows

CHUNK = 4096  # batches that are differentiated at once
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than running

Loss = Callable[[jax.Array, Rows], jax.Array]


class Batches(NamedTuple):
    """Every batch that could have been sampled, as indices into a listing."""

    index_bn: np.ndarray
    probability_b: np.ndarray


class Bias(NamedTuple):
    """An expected gradient E[g] against c times the exact one, g*."""

    relative: float  # |E[g] - c g*| / |c g*|
    cosine: float  # between E[g] and g*
    scale: float  # c: stated beforehand, or the one that fits best
    variance: float  # trace of the covariance of g, times trajectories, over |c g*|^2


def batches(probability_n: np.ndarray, task_n: np.ndarray, size: int, draw: str) -> Batches:
    """All batches of `size` trajectories, as multisets: an estimator does not see their order.

    Args:
        probability_n: of the listed trajectories.
        task_n: task of each.
        size: trajectories that are drawn independently.
        draw: "mixed" draws them from all tasks, "group" from one task that is drawn first,
            "groups" draws `size` of each task, so that a batch has a group a task.
    """
    if draw == "mixed":
        return _multisets(np.arange(len(task_n)), probability_n, size)
    tasks = [np.flatnonzero(task_n == task) for task in np.unique(task_n)]
    share = [float(np.sum(probability_n[pool])) for pool in tasks]
    groups = [
        _multisets(pool, probability_n[pool] / mass, size)
        for pool, mass in zip(tasks, share, strict=True)
    ]
    if draw == "group":
        weighted = [mass * group.probability_b for mass, group in zip(share, groups, strict=True)]
        return Batches(
            np.concatenate([group.index_bn for group in groups]), np.concatenate(weighted)
        )
    if draw != "groups":
        raise ValueError(f"draw={draw!r} is unknown; allowed: mixed, group, groups")
    return functools.reduce(_product, groups)


def moments(
    loss: Loss, theta: np.ndarray, rows: Rows, sampled: Batches
) -> tuple[np.ndarray, float]:
    """E[g] and the trace of Cov[g], g being minus the gradient of the loss at the sampling policy."""
    gradient = jax.grad(lambda theta, batch: -loss(theta, batch))

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def evaluate(theta: jax.Array, rows: Rows, index_n: jax.Array) -> jax.Array:
        return gradient(theta, jax.tree.map(lambda x: x[index_n], rows)).reshape(-1)

    total = len(sampled.index_bn)
    chunk = min(CHUNK, total)
    # Filled up with copies of the first batch, so that all chunks share one compilation.
    index_bn = np.pad(sampled.index_bn, ((0, -total % chunk), (0, 0)))
    listed = jax.tree.map(jnp.asarray, rows)
    g_bp = np.concatenate(
        [
            np.asarray(evaluate(jnp.asarray(theta), listed, jnp.asarray(index_bn[at : at + chunk])))
            for at in range(0, total, chunk)
        ]
    )[:total]
    mean_p = sampled.probability_b @ g_bp
    trace = sampled.probability_b @ np.sum(np.square(g_bp - mean_p), axis=1)
    return mean_p.reshape(theta.shape), float(trace)


def compare(
    mean: np.ndarray, trace: float, exact: np.ndarray, trajectories: int, scale: float | None
) -> Bias:
    """Bias of an expected gradient; without a scale, with the positive one that fits best."""
    along, length = float(np.sum(mean * exact)), float(np.linalg.norm(exact))
    c = max(along, 0.0) / length**2 if scale is None else scale
    gap, size = float(np.linalg.norm(mean - c * exact)), abs(c) * length
    return Bias(
        relative=gap / size if size else math.inf,
        cosine=along / (float(np.linalg.norm(mean)) * length or math.inf),
        scale=c,
        variance=trajectories * trace / size**2 if size else math.inf,
    )


def _multisets(pool: np.ndarray, probability_n: np.ndarray, size: int) -> Batches:
    """Multisets of `size` elements of a pool with their multinomial probabilities."""
    chosen = list(itertools.combinations_with_replacement(range(len(pool)), size))
    orders = [
        math.factorial(size) / math.prod(map(math.factorial, collections.Counter(c).values()))
        for c in chosen
    ]
    index_bn = np.asarray(chosen, np.int32).reshape(-1, size)
    return Batches(pool[index_bn], np.asarray(orders) * np.prod(probability_n[index_bn], axis=1))


def _product(one: Batches, other: Batches) -> Batches:
    """Batches that consist of one of each."""
    left, right = np.indices((len(one.index_bn), len(other.index_bn))).reshape(2, -1)
    return Batches(
        np.concatenate([one.index_bn[left], other.index_bn[right]], axis=1),
        one.probability_b[left] * other.probability_b[right],
    )
