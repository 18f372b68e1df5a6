"""Which attempts a batch is made of, and what is measured of it."""

import jax
import jax.numpy as jnp
import numpy as np

from steprl.ops import masked_mean
from steprl.rollout.faults import faulty_rows
from steprl.types import STOP_REASONS, StepBatch


def attempts(first_task: int, tasks: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `tasks` tasks from `first_task` on, `n` attempts each: (task_N, sample_N)."""
    task_N = np.repeat(np.arange(first_task, first_task + tasks), n)
    return task_N, np.tile(np.arange(n), tasks)


def summary(batch: StepBatch) -> dict[str, jax.Array]:
    """What happened in a batch, as scalars on the device, by the names of metrics.

    Success, rewards and what the environment measures are of the attempts in which it did not fail;
    `env/fault_frac` is the share of the others.
    """
    fault_N = faulty_rows(batch)
    there_N = jnp.any(batch.mask_NS, axis=1)  # rows without a step are none
    fine_N, tried_N = there_N & ~fault_N, there_N | fault_N
    steps = jnp.maximum(jnp.sum(batch.mask_NS), 1)
    turns_N = jnp.sum(batch.mask_NS, axis=1)
    reward_N = jnp.where(fine_N, jnp.sum(batch.reward_NS, axis=1), 0.0)
    sampled_NT = batch.step_ids_NT >= 0
    sampled = jnp.maximum(jnp.sum(sampled_NT), 1)
    contexts_N = jnp.max(batch.segment_ids_NT, axis=1)
    measured = {f"env/{name}": jnp.nanmean(x_N) for name, x_N in (batch.metrics_N or {}).items()}

    def mean(x_N: jax.Array, of_N: jax.Array) -> jax.Array:
        return masked_mean(x_N.astype(jnp.float32), of_N)

    def lowest(x_N: jax.Array, of_N: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(of_N, x_N, jnp.max(x_N)))

    def highest(x_N: jax.Array, of_N: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(of_N, x_N, jnp.min(x_N)))

    def ended_by(reason: str) -> jax.Array:
        return jnp.any(batch.stop_NS == STOP_REASONS.index(reason), axis=1)

    return measured | {
        "rollout/success_rate": mean(batch.success_N, fine_N),
        "critic/rewards/mean": mean(reward_N, fine_N),
        "critic/rewards/max": highest(reward_N, fine_N),
        "critic/rewards/min": lowest(reward_N, fine_N),
        "num_turns/mean": mean(turns_N, there_N),
        "num_turns/max": highest(turns_N, there_N),
        "num_turns/min": lowest(turns_N, there_N),
        "step/count": jnp.sum(batch.mask_NS),
        "response_length/mean": sampled / steps,
        "actor/entropy": jnp.sum(batch.entropy_NT) / sampled,
        "response_length/clip_ratio": jnp.sum(batch.stop_NS == STOP_REASONS.index("length"))
        / steps,
        "env/context_full_frac": mean(ended_by("context_full"), there_N),
        "env/timeout_frac": mean(ended_by("env_timeout"), tried_N),
        "env/crash_frac": mean(fault_N & ~ended_by("env_timeout"), tried_N),
        "env/fault_frac": mean(fault_N, tried_N),
        "env/faults": jnp.sum(fault_N),
        "env/parse_error_frac": jnp.sum(batch.mask_NS & ~batch.valid_NS) / steps,
        "env/truncated_frac": mean(jnp.any(batch.truncated_NS, axis=1), there_N),
        "token/prefix_break": jnp.sum(jnp.maximum(contexts_N - 1, 0)) / steps,
        "token/sampled_frac": sampled / jnp.maximum(jnp.sum(batch.segment_ids_NT > 0), 1),
    }
