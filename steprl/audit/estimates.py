"""What methods say of the steps of played trajectories: values, credit, and where to branch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steprl.algorithms import Credit, gigpo_credit, group_credit, step_credit, token_credit
from steprl.config import AlgorithmConfig
from steprl.models.scoring import score
from steprl.ops import appo_branching_scores, appo_future_value, reduce_steps
from steprl.session import Session
from steprl.types import Params, StepBatch

VALUE, ADVANTAGE, STAKE = "value", "advantage", "stake"
TARGETS = (VALUE, ADVANTAGE, STAKE)
"""What an estimate is held against: V, Q - V, and how much the choice of an action decides."""

RANDOM = "random numbers"
CRITIC, STEP_GAE, TOKEN_GAE = "critic", "step GAE", "token GAE"
GRPO, GIGPO = "GRPO", "GiGPO"
ENTROPY, ARPO, APPO = "entropy, first token", "branching score, entropy", "branching score, APPO"
SURPRISE = "|step GAE|"
_ORDER = (CRITIC, STEP_GAE, TOKEN_GAE, GIGPO, GRPO, ENTROPY, ARPO, APPO, SURPRISE)

Estimates = dict[str, dict[str, np.ndarray]]
"""target -> name of the estimate -> [S] one number a step"""


def make_estimates(
    session: Session, critic: bool, older: Params | None, attempts: int
) -> Callable[[Params, StepBatch], Estimates]:
    """The estimates that a run allows, as a function of its parameters and a batch of rollouts.

    Advantages are not whitened. Credit of tokens is the mean over the tokens of a step; a branching
    score is the highest of them, since the best token is where a branch would begin.

    Args:
        critic: the run trains one; without it what needs values is left out.
        older: parameters of an earlier checkpoint, for the future value of APPO, or None.
        attempts: at each task; one alone leaves out what compares them.

    Returns:
        A function of parameters and a batch with anchors.
    """
    config = session.config
    raw = dataclasses.replace(config.algorithm, norm_adv=False)
    before = older

    @jax.jit
    def of_steps(params: Params, older: Params | None, batch: StepBatch) -> Any:
        steps = batch.mask_NS.shape[1]
        reduce = jax.vmap(reduce_steps, in_axes=(0, 0, None, None))
        to_steps = lambda x_NT, how: reduce(x_NT, batch.step_ids_NT, steps, how)  # noqa: E731

        def scores(of: Params) -> Any:
            temperature = config.rollout.temperature
            return score(session.policy, of, batch, temperature, config.model.logprob_chunk)

        def credit(
            function: Callable[[StepBatch, jax.Array, AlgorithmConfig], Credit],
        ) -> jax.Array:
            return to_steps(function(batch, value_NT, raw).advantage_NT, "mean")

        value_NT = jnp.zeros_like(batch.logprob_NT)
        by_target: dict[str, dict[str, jax.Array]] = {VALUE: {}, ADVANTAGE: {}, STAKE: {}}
        if critic:
            value_NT = scores(params).value_NT
            by_target[VALUE][CRITIC] = to_steps(value_NT, "first")
            by_target[ADVANTAGE][STEP_GAE] = credit(step_credit)
            by_target[ADVANTAGE][TOKEN_GAE] = credit(token_credit)
            by_target[STAKE][SURPRISE] = jnp.abs(by_target[ADVANTAGE][STEP_GAE])
        if attempts > 1:
            by_target[ADVANTAGE][GRPO] = credit(group_credit("grpo"))
            by_target[ADVANTAGE][GIGPO] = credit(gigpo_credit)
        by_target[STAKE][ENTROPY] = to_steps(batch.entropy_NT, "first")
        branching = jax.vmap(_branching(config.algorithm.branch.negative_pairs))
        by_target[STAKE][ARPO] = _highest(branching(batch.entropy_NT, batch.step_ids_NT), batch)
        if older is not None:
            ratio_NT = batch.logprob_NT - scores(older).logprob_NT
            gamma, clip = config.algorithm.gamma, config.algorithm.branch.future_clip
            future = jax.vmap(lambda r_t, ids_t: appo_future_value(r_t, ids_t, gamma, clip))
            future_NT = future(ratio_NT, batch.step_ids_NT)
            by_both_NT = branching(batch.entropy_NT, batch.step_ids_NT, future_NT)
            by_target[STAKE][APPO] = _highest(by_both_NT, batch)
        return by_target

    def estimates(params: Params, batch: StepBatch) -> Estimates:
        mask_NS = np.asarray(batch.mask_NS)
        by_target = jax.device_get(of_steps(params, before, batch))
        return {
            target: {
                name: np.asarray(by_target[target][name], np.float64)[mask_NS]
                for name in _ORDER
                if name in by_target[target]
            }
            for target in TARGETS
        }

    return estimates


def _branching(negative_pairs: str) -> Callable[..., jax.Array]:
    return lambda *arrays: appo_branching_scores(*arrays, negative_pairs=negative_pairs)[0]


def _highest(score_NT: jax.Array, batch: StepBatch) -> jax.Array:
    """[N, S] the highest score of the tokens of each step; 0 where there is no step."""
    steps = batch.mask_NS.shape[1]

    def of_row(score_t: jax.Array, ids_t: jax.Array) -> jax.Array:
        slot_t = jnp.where(ids_t >= 0, ids_t, steps)
        return jax.ops.segment_max(score_t, slot_t, steps + 1)[:steps]

    highest_NS = jax.vmap(of_row)(score_NT, batch.step_ids_NT)
    return jnp.where(batch.mask_NS, highest_NS, 0.0)


def with_random(estimates: Estimates, steps: int, seed: int) -> Estimates:
    """The same with random numbers among them: what an estimate has to be better than."""
    rng = np.random.default_rng(seed)
    return {target: of | {RANDOM: rng.uniform(size=steps)} for target, of in estimates.items()}
