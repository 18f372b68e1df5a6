"""Pure functions on arrays: segments, returns, losses. No model, config or batch type.

Suffixes name the axes of an array, here and in all functions:

* `_t` token, `_s` step: the function works on one trajectory and is lifted with `jax.vmap`. Those whose
  docstring says "[T] or [N, T]", the losses above all, take a batch of rows as well.
* `_n` trajectory, with `_nt` and `_ns`: the function compares trajectories, so it needs the batch.
* Others in few functions: `_b` branch, `_r` row of one prompt, `_k` alternative, `_z` bin of values,
  `_V` vocabulary.
* None: a scalar, an array of any shape (the `x` of `masked_mean`), or a Python sequence on the host.

An argument that selects what counts is `where`, without a suffix: of the shape of what it selects
from, non-zero where selected. See `segments` for the rules on step ids and masked tokens.
"""

from steprl.ops.aggregation import REDUCTIONS, aggregate, aggregation_weights
from steprl.ops.anchors import anchor_ids
from steprl.ops.branches import (
    BranchPair,
    branch_attempts,
    branch_preference,
    branpo_advantages,
    branpo_masks,
    pair_branches,
)
from steprl.ops.candidates import arpo_candidates, nonblank_tokens
from steprl.ops.correction import CORRECTIONS, rollout_correction_weights
from steprl.ops.future_kl import (
    appo_future_value,
    future_kl_policy_loss,
    future_kl_weights,
)
from steprl.ops.groups import (
    KINDS,
    gigpo_advantages,
    group_advantages,
    informative_groups,
    reinforce_pp_advantages,
    reinforce_pp_baseline_advantages,
)
from steprl.ops.losses import (
    KL_KINDS,
    LEVEL_REDUCTIONS,
    LEVELS,
    adaptive_kl_coefficient,
    entropy_from_logits,
    kl_penalty,
    log_ratio,
    policy_loss,
    value_loss,
)
from steprl.ops.procedures import (
    BranchPoints,
    appo_advantages,
    appo_branching_scores,
    appo_reward_factor,
    appo_reward_scale,
    entropy_from_topk,
    select_branch_points,
)
from steprl.ops.returns import (
    RunningMoments,
    discounted_returns,
    reverse_recurrence,
    step_gae,
    token_gae,
    update_running_moments,
)
from steprl.ops.segments import (
    broadcast_steps,
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
    reduce_steps,
    step_ids_from_mask,
    step_starts,
)
from steprl.ops.truncation import (
    pack_support,
    support_words,
    truncated_logprobs,
    unpack_support,
)
from steprl.ops.values import (
    ValueSupport,
    all_equal,
    explained_variance,
    hl_gauss_loss,
    hl_gauss_mean,
    hl_gauss_targets,
    recent_moments,
    return_scale,
)

__all__ = [
    "CORRECTIONS",
    "KINDS",
    "KL_KINDS",
    "LEVELS",
    "LEVEL_REDUCTIONS",
    "REDUCTIONS",
    "BranchPair",
    "BranchPoints",
    "RunningMoments",
    "ValueSupport",
    "adaptive_kl_coefficient",
    "aggregate",
    "aggregation_weights",
    "all_equal",
    "anchor_ids",
    "appo_advantages",
    "appo_branching_scores",
    "appo_future_value",
    "appo_reward_factor",
    "appo_reward_scale",
    "arpo_candidates",
    "branch_attempts",
    "branch_preference",
    "branpo_advantages",
    "branpo_masks",
    "broadcast_steps",
    "discounted_returns",
    "entropy_from_logits",
    "entropy_from_topk",
    "explained_variance",
    "future_kl_policy_loss",
    "future_kl_weights",
    "gigpo_advantages",
    "group_advantages",
    "hl_gauss_loss",
    "hl_gauss_mean",
    "hl_gauss_targets",
    "informative_groups",
    "kl_penalty",
    "log_ratio",
    "masked_mean",
    "masked_sum",
    "masked_variance",
    "masked_whiten",
    "nonblank_tokens",
    "pack_support",
    "pair_branches",
    "policy_loss",
    "recent_moments",
    "reduce_steps",
    "reinforce_pp_advantages",
    "reinforce_pp_baseline_advantages",
    "return_scale",
    "reverse_recurrence",
    "rollout_correction_weights",
    "select_branch_points",
    "step_gae",
    "step_ids_from_mask",
    "step_starts",
    "support_words",
    "token_gae",
    "truncated_logprobs",
    "unpack_support",
    "update_running_moments",
    "value_loss",
]
