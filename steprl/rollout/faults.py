"""Attempts that are no learning signal: those that a fault of the environment ended, or a limit.

A row that is left out is a row without steps, which every method, mean and loss passes over already.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import AlgorithmConfig
from steprl.envs.answers import REWARD_LIMIT, UNREADABLE, EnvironmentFailed
from steprl.types import STOP_REASONS, StepBatch

MANY_FAULTS = 0.1
"""Share of attempts that end by a fault from which on a warning is given."""

_LOG = logging.getLogger("steprl")
_CUT = tuple(STOP_REASONS.index(reason) for reason in ("length", "context_full"))


def unreadable_rows(batch: StepBatch) -> Any:
    """[N] bool, rows with a reward that is not finite, or too large to learn from.

    Of NumPy arrays or of JAX's.
    """
    fine_NS = abs(batch.reward_NS) <= REWARD_LIMIT  # not so for NaN
    return (batch.mask_NS & ~fine_NS).any(axis=1)


def faulty_rows(batch: StepBatch) -> Any:
    """[N] bool, rows in which the environment failed; it may have done so before any step.

    Of NumPy arrays or of JAX's.
    """
    found_N = unreadable_rows(batch)
    return found_N if batch.fault_N is None else found_N | batch.fault_N


def cut_rows(batch: StepBatch, kind: str) -> jax.Array:
    """[N] bool, rows that a limit cut off, see `algorithm.mask_truncated`."""
    cut_NS = jnp.zeros(batch.mask_NS.shape, bool)
    if kind != "none":
        cut_NS = (batch.stop_NS == _CUT[0]) | (batch.stop_NS == _CUT[1])
    if kind == "all":
        cut_NS = cut_NS | batch.truncated_NS
    return jnp.any(batch.mask_NS & cut_NS, axis=1)


def rows_left_out(batch: StepBatch, settings: AlgorithmConfig) -> jax.Array:
    """[N] bool, rows that are no learning signal. A reward that is no number is never one."""
    failed_N = faulty_rows(batch) if settings.mask_faults else unreadable_rows(batch)
    return failed_N | cut_rows(batch, settings.mask_truncated)


def without_rows(batch: StepBatch, out_N: jax.Array) -> StepBatch:
    """The batch in which some rows have neither steps nor sampled tokens; shapes stay as they are.

    Args:
        out_N: bool, the rows.
    """

    def blank(x: jax.Array, with_: int | float | bool) -> jax.Array:
        return jnp.where(out_N[:, None], jnp.asarray(with_, x.dtype), x)

    return dataclasses.replace(
        batch,
        step_ids_NT=blank(batch.step_ids_NT, -1),
        reward_NS=blank(batch.reward_NS, 0),
        mask_NS=blank(batch.mask_NS, False),
        terminated_NS=blank(batch.terminated_NS, False),
        truncated_NS=blank(batch.truncated_NS, False),
        valid_NS=blank(batch.valid_NS, False),
        stop_NS=blank(batch.stop_NS, 0),
        anchor_NS=None if batch.anchor_NS is None else blank(batch.anchor_NS, -1),
    )


def check_faults(what: str, failed: int, attempts: int, first: str, warn: bool = True) -> bool:
    """Warns of many faults, and stops where there is nothing else.

    Args:
        what: was played, such as "iteration 3", for messages.
        failed, attempts: how many failed, of how many.
        first: description of the first fault.
        warn: False where that was done before.

    Returns:
        Whether there were many: more than `MANY_FAULTS`.

    Raises:
        EnvironmentFailed: all attempts failed.
    """
    if failed and failed == attempts:
        raise EnvironmentFailed(
            f"{what}: the environment failed in all of {attempts} attempts, so there is nothing to learn "
            f"from or to measure. The first fault: {first}"
        )
    many = failed > MANY_FAULTS * attempts
    if many and warn:
        _LOG.warning(
            "%s: the environment failed in %d of %d attempts, which are left out. One of them: %s",
            what, failed, attempts, first,
        )  # fmt: skip
    return many


def first_fault(faults: Sequence[str], batches: Sequence[StepBatch]) -> str:
    """A description of what went wrong first.

    Args:
        faults: descriptions; where there is none, rewards that are no numbers are looked for.
        batches: what was played, on the host or on devices of this process.
    """
    if faults:
        return faults[0]
    for batch in batches:
        reward_NS, mask_NS, task_N = map(np.asarray, (batch.reward_NS, batch.mask_NS, batch.task_N))
        wrong_NS = mask_NS & ~(np.abs(reward_NS) <= REWARD_LIMIT)
        if wrong_NS.any():
            row, step = np.argwhere(wrong_NS)[0]
            if reward_NS[row, step] == UNREADABLE:
                return (
                    f"task {task_N[row]}, step {step}: the reward is -inf, or what is shown are no ids of "
                    "the vocabulary with padding (0) behind them"
                )
            return (
                f"task {task_N[row]}, step {step}: the reward is {reward_NS[row, step]:g}; expected a "
                f"finite number of at most {REWARD_LIMIT:g} in size"
            )
    return "it is not described"
