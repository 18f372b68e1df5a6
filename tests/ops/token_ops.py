"""The ops that work on one row of tokens, in one table for the tests of what all of them promise."""

import jax.numpy as jnp
import numpy as np

from steprl import ops

T, S, ROWS = 7, 4, 8
BINS = ops.ValueSupport(-1.0, 1.5, 9)

# Each takes three float rows and the step ids; MASKED ops also promise never to read masked tokens.
MASKED = {
    "broadcast_steps": lambda x, y, z, ids: ops.broadcast_steps(
        ops.reduce_steps(x, ids, S, "mean"), ids
    ),
    "masked_sum": lambda x, y, z, ids: ops.masked_sum(x, ids >= 0),
    "masked_mean": lambda x, y, z, ids: ops.masked_mean(x, ids >= 0),
    "masked_variance": lambda x, y, z, ids: ops.masked_variance(x, ids >= 0, ddof=1),
    "masked_whiten variance": lambda x, y, z, ids: ops.masked_whiten(x, ids >= 0),
    "masked_whiten std": lambda x, y, z, ids: ops.masked_whiten(x, ids >= 0, epsilon_at="std"),
    "token_gae": lambda x, y, z, ids: ops.token_gae(x, y, z, 0.9, ids, 0.5),
    "update_running_moments": lambda x, y, z, ids: ops.update_running_moments(
        ops.RunningMoments(), x, ids >= 0
    ),
    "aggregation_weights": lambda x, y, z, ids: ops.aggregation_weights(
        ids, "step-mean-token-mean", dtype=ops.masked_sum(x, ids >= 0).dtype
    ),
    "value_loss": lambda x, y, z, ids: ops.value_loss(x, y, z, ids, clip=0.2),
    "all_equal": lambda x, y, z, ids: ops.all_equal(x, ids >= 0),
    "explained_variance": lambda x, y, z, ids: ops.explained_variance(x, y, ids >= 0),
    "recent_moments": lambda x, y, z, ids: ops.recent_moments(ops.RunningMoments(), x, ids >= 0),
    "hl_gauss_loss": lambda x, y, z, ids: ops.hl_gauss_loss(
        jnp.outer(x, jnp.arange(BINS.bins)), y, ids, BINS
    ),
    "reinforce_pp_advantages": lambda x, y, z, ids: tuple(
        result_nt[0] for result_nt in ops.reinforce_pp_advantages(x[None], ids[None], 0.9)
    ),
    "appo_future_value": lambda x, y, z, ids: ops.appo_future_value(x, ids, 0.9),
    "appo_branching_scores": lambda x, y, z, ids: ops.appo_branching_scores(x, ids, y),
    "appo_branching_scores entropy": lambda x, y, z, ids: ops.appo_branching_scores(x, ids),
    "future_kl_weights": lambda x, y, z, ids: ops.future_kl_weights(x, y, ids, decay=2),
    "future_kl_policy_loss": lambda x, y, z, ids: ops.future_kl_policy_loss(x, y, z, ids),
    "pair_branches": lambda x, y, z, ids: ops.pair_branches(
        1.0, 2, x, jnp.arange(ids.size), ids >= 0, 0.75, 6
    ),
}
for how in ("sum", "mean", "first", "last"):
    MASKED[f"reduce_steps {how}"] = lambda x, y, z, ids, h=how: ops.reduce_steps(x, ids, S, h)
for how in ops.REDUCTIONS:
    MASKED[f"aggregate {how}"] = lambda x, y, z, ids, h=how: ops.aggregate(x, ids, h)
for how in ("k1", "abs", "k2", "k3", "k3+"):
    MASKED[f"kl_penalty {how}"] = lambda x, y, z, ids, h=how: ops.kl_penalty(x, y, h, ids)
for how in ops.LEVELS:
    MASKED[f"log_ratio {how}"] = lambda x, y, z, ids, h=how: ops.log_ratio(x, y, ids, h)
    MASKED[f"policy_loss {how}"] = lambda x, y, z, ids, h=how: ops.policy_loss(
        x, y, z, ids, level=h, dual_clip=3.0, rollout_weights_t=y
    )
    MASKED[f"rollout_correction_weights {how}"] = lambda x, y, z, ids, h=how: (
        ops.rollout_correction_weights(x, y, ids, level=h)
    )
MASKED["rollout_correction_weights mask"] = lambda x, y, z, ids: ops.rollout_correction_weights(
    x, y, ids, how="mask"
)
PLAIN = {
    "step_ids_from_mask": lambda x, y, z, ids: ops.step_ids_from_mask(ids >= 0),
    "step_starts": lambda x, y, z, ids: ops.step_starts(ids),
    "arpo_candidates": lambda x, y, z, ids: ops.arpo_candidates(ids),
    "reverse_recurrence": lambda x, y, z, ids: ops.reverse_recurrence(x, y, 0.5),
    "discounted_returns": lambda x, y, z, ids: ops.discounted_returns(x, y, 0.5),
    "step_gae": lambda x, y, z, ids: ops.step_gae(x, y, z, 0.9, 0.5),
    "return_scale": lambda x, y, z, ids: ops.return_scale(
        ops.RunningMoments(x[0], jnp.abs(y[0]), 1.0)
    ),
    "hl_gauss_targets": lambda x, y, z, ids: ops.hl_gauss_targets(x, BINS),
    "hl_gauss_mean": lambda x, y, z, ids: ops.hl_gauss_mean(
        jnp.outer(x, jnp.arange(BINS.bins)), BINS
    ),
    "entropy_from_logits": lambda x, y, z, ids: ops.entropy_from_logits(x),
    "entropy_from_topk": lambda x, y, z, ids: ops.entropy_from_topk(x),
    "adaptive_kl_coefficient": lambda x, y, z, ids: ops.adaptive_kl_coefficient(
        x[0], y[0], T, target=0.1, horizon=100
    ),
    "appo_reward_factor": lambda x, y, z, ids: ops.appo_reward_factor(ids[5], x[0], y[0], T, 0.9),
    "branch_attempts": lambda x, y, z, ids: ops.branch_attempts(x, y, z, ids + 1, ids >= 0),
    "branch_preference": lambda x, y, z, ids: ops.branch_preference(x, ids, y, ids[::-1], z),
    "truncated_logprobs": lambda x, y, z, ids: ops.truncated_logprobs(x, y > 0),
    "pack_support": lambda x, y, z, ids: ops.pack_support(x > 0),
    "unpack_support": lambda x, y, z, ids: ops.unpack_support(ops.pack_support(x > 0), T),
}
NAMES = sorted(MASKED | PLAIN)


def battery(x, y, z, ids, which=None):
    """Each op on one row: {name: its results}."""
    return {name: op(x, y, z, ids) for name, op in (which or MASKED | PLAIN).items()}


def example(rows=ROWS):
    """Three float arrays and step ids [rows, T], with masked tokens in, before and after steps."""
    rng = np.random.default_rng(0)
    floats = (rng.normal(size=(rows, T)).astype(np.float32) for _ in range(3))
    layouts = np.array([[-1, 0, 0, -1, 1, 1, -1], [0, 1, -1, 2, 2, 3, 3], [-1, -1, 0, -1, 0, 0, 1]])
    return *floats, layouts[np.arange(rows) % 3].astype(np.int32)
