"""Pure functions on arrays: segments, returns, losses. No model, config or batch type.

Suffixes name axes: `_t` token, `_s` step, `_n` row of a flat batch. Functions on one row are lifted
with `jax.vmap`; see `segments` for the rules on step ids and dark tokens.
"""

from steprl.ops.aggregation import REDUCTIONS, aggregate, aggregation_weights
from steprl.ops.anchors import anchor_ids
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
    LEVELS,
    adaptive_kl_coefficient,
    entropy_from_logits,
    kl_penalty,
    log_ratio,
    policy_loss,
    value_loss,
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

__all__ = [
    "KINDS",
    "KL_KINDS",
    "LEVELS",
    "REDUCTIONS",
    "RunningMoments",
    "adaptive_kl_coefficient",
    "aggregate",
    "aggregation_weights",
    "anchor_ids",
    "broadcast_steps",
    "discounted_returns",
    "entropy_from_logits",
    "gigpo_advantages",
    "group_advantages",
    "informative_groups",
    "kl_penalty",
    "log_ratio",
    "masked_mean",
    "masked_sum",
    "masked_variance",
    "masked_whiten",
    "pack_support",
    "policy_loss",
    "reduce_steps",
    "reinforce_pp_advantages",
    "reinforce_pp_baseline_advantages",
    "reverse_recurrence",
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
