"""What a critic says beside what is true, in one compiled program: continuations from many states.

    program = make_program(config)
    audit = make_value_audit(program, config, rows=128, states=128, continuations=8)
    sample = jax.jit(audit)(params, key)
    sample.rank_correlation(), sample.ceiling()

The yardstick of `steprl audit`, as a pure function of parameters and key, so that it can be mapped over
seeds. A policy reads its whole context, so the value of a state is that of its history too; it is
estimated by playing on from that very history.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.branching import Points
from steprl.config import Config
from steprl.laboratory.program import Program
from steprl.metrics import correlation
from steprl.models.scoring import score
from steprl.ops import reduce_steps
from steprl.rollout.device import remembered_rollout
from steprl.rollout.device_branches import branch
from steprl.sampling import sampling_of
from steprl.types import Params


class ValueSample(NamedTuple):
    """States that a policy came to, [K]: steps of its episodes, before their actions."""

    there_K: jax.Array  # bool; False where the episodes had fewer steps than were asked for
    step_K: jax.Array  # int32, number of the step in its episode
    critic_K: jax.Array  # value by the critic
    return_KM: jax.Array  # discounted return of each of M continuations

    def _host(self) -> tuple[np.ndarray, np.ndarray]:
        there_K = np.asarray(self.there_K)
        critic_K, return_KM = (
            np.asarray(x, np.float64)[there_K] for x in (self.critic_K, self.return_KM)
        )
        return critic_K, return_KM

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        """[K'] the true value of each state that is there, and the standard error of it."""
        _, return_KM = self._host()
        count = return_KM.shape[1]
        return return_KM.mean(axis=1), return_KM.std(axis=1, ddof=1) / math.sqrt(count)

    def rank_correlation(self) -> float:
        """Spearman's, of the critic with the values; NaN where one of them does not vary."""
        critic_K, return_KM = self._host()
        return correlation(critic_K, return_KM.mean(axis=1), ranks=True)

    def ceiling(self) -> float:
        """About what a critic without fault would reach, as the values are estimates: sqrt(2 r / (1 + r)),
        r the rank correlation between the values by two halves of the continuations."""
        _, return_KM = self._host()
        first_K, second_K = (return_KM[:, half::2].mean(axis=1) for half in (0, 1))
        halves = correlation(first_K, second_K, ranks=True)
        return math.sqrt(2 * halves / (1 + halves)) if halves > 0 else math.nan

    def explained_variance(self) -> float:
        """Share of the variance of the true values that the critic explains, the error of these
        subtracted; NaN where they do not vary. 1 is best."""
        critic_K, return_KM = self._host()
        value_K, error_K = self.value()
        noise = float(np.mean(error_K**2))
        spread = float(np.var(value_K)) - noise
        off = float(np.var(critic_K - value_K)) - noise
        return 1.0 - off / spread if spread > 1e-6 else math.nan


def make_value_audit(
    program: Program, config: Config, rows: int, states: int, continuations: int
) -> Callable[[Params, jax.Array], ValueSample]:
    """`audit(params, key) -> ValueSample`, not compiled yet; of held-out tasks.

    Args:
        program: of a method with a critic.
        config: that the program was made of.
        rows: episodes that are played, each of another task; the states are steps of them.
        states: K, drawn from all steps, each as likely.
        continuations: M, from each state, at least 2.

    Raises:
        ValueError: a number is too small, or the policy has no critic.
    """
    for name, number, least in (
        ("rows", rows, 1), ("states", states, 2), ("continuations", continuations, 2),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name}={number}: must be at least {least}")
    policy = program.policy
    if policy.value is None:
        raise ValueError("the policy has no critic: set model.value_head to shared or separate")
    env, sampling = program.game.make(True), sampling_of(config.rollout)
    steps = env.max_steps
    if states > rows * steps:
        raise ValueError(f"states={states}: {rows} episodes of {steps} steps have no more than "
                         f"{rows * steps}")  # fmt: skip

    def audit(params: Params, key: jax.Array) -> ValueSample:
        play_key, draw_key = jax.random.split(key)
        task_N = jnp.arange(rows, dtype=jnp.int32)
        batch, memory = remembered_rollout(
            policy, env, params, play_key, task_N, jnp.zeros_like(task_N), sampling
        )
        temperature, chunk = config.rollout.temperature, config.model.logprob_chunk
        value_NT = score(policy, params, batch, temperature, chunk).value_NT
        first = jax.vmap(lambda x_t, ids_t: reduce_steps(x_t, ids_t, steps, "first"))
        value_NS = first(value_NT, batch.step_ids_NT)

        draw_NS = jax.random.uniform(draw_key, batch.mask_NS.shape)
        order, place_K = jax.lax.top_k(jnp.where(batch.mask_NS, draw_NS, -1.0).reshape(-1), states)
        there_K, origin_K, step_K = order >= 0, place_K // steps, place_K % steps

        def continued(number: jax.Array) -> jax.Array:
            """[K] return of one continuation from each state."""
            # The streams of random numbers are apart from each other and from the episodes' own.
            sample_K = 1 + number * states + jnp.arange(states, dtype=jnp.int32)
            none = jnp.zeros(states, jnp.int32)
            points = Points(there_K, origin_K, step_K, none, sample_K, jnp.zeros(states))
            played = branch(policy, env, params, play_key, memory, points, sampling)
            ahead_SK = jnp.arange(steps)[:, None] - step_K[None]
            weight_SK = config.algorithm.gamma ** jnp.maximum(ahead_SK, 0)
            return jnp.sum(jnp.where(ahead_SK >= 0, weight_SK * played.reward, 0.0), axis=0)

        # One continuation of every state at a time, so that the caches are no more than a batch has.
        return_MK = jax.lax.map(continued, jnp.arange(continuations, dtype=jnp.int32))
        return ValueSample(there_K, step_K, value_NS[origin_K, step_K], return_MK.T)

    return audit
