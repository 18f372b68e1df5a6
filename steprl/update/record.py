"""What an update learnt from, token by token: for files of trajectories, not for the loss."""

from typing import NamedTuple

import jax

from steprl.models.scoring import Scores
from steprl.update.prepare import Sample


class TokenRecord(NamedTuple):
    """Of a whole batch, before the first optimiser step; 0 and False where no token was sampled."""

    reward_NS: jax.Array  # that credit was computed from: that of the environment, transformed
    advantage_NT: jax.Array
    target_NT: jax.Array  # of the critic
    value_NT: jax.Array
    judged_NT: jax.Array  # bool, the critic is evaluated before the token
    logprob_NT: jax.Array  # under the parameters that the update began with
    reference_NT: jax.Array | None  # log-prob under those that training began with
    learnt_NT: jax.Array  # bool, the token has a weight in the loss of the policy


def token_record(sample: Sample, old: Scores) -> TokenRecord:
    """What a weighted sample of a whole batch says of its tokens.

    Args:
        sample: with the weights of `with_weights`.
        old: scores of the batch under the parameters that the update began with.
    """
    credit = sample.credit
    return TokenRecord(
        sample.batch.reward_NS,
        credit.advantage_NT,
        credit.return_NT,
        sample.value_NT,
        credit.critic_mask_NT,
        old.logprob_NT,
        sample.ref_logprob_NT,
        sample.policy_weight_NT > 0,
    )
