"""What a critic gives, read as values: numbers, or logits of bins whose distribution has a mean."""

from typing import NamedTuple

import jax

from steprl.config import CriticConfig
from steprl.ops import ValueSupport, hl_gauss_mean
from steprl.types import Policy


class Values(NamedTuple):
    """Of each token."""

    value: jax.Array  # [...] float32, in the units of rewards
    logits_Z: jax.Array | None  # [..., Z] of a critic that predicts a distribution


def value_support(critic: CriticConfig) -> ValueSupport | None:
    """The bins that the settings ask for; None where the critic predicts a number."""
    if critic.head == "scalar":
        return None
    return ValueSupport(critic.value_min, critic.value_max, critic.num_bins, critic.sigma_ratio)


def read_values(policy: Policy, output: jax.Array) -> Values:
    """What `policy.value` gives, as values.

    Args:
        output: [...] values, or with a support [..., Z] logits of its bins.
    """
    if policy.support is None:
        return Values(output, None)
    return Values(hl_gauss_mean(output, policy.support), output)
