"""What an iteration leaves to the next beside parameters and the state of the optimiser.

Each value is a pair of pure functions in the manner of optax: `init` makes the first one, `update`
the next one from the last one and from what the update of the policy has seen. They lie by their
names in `TrainState.carried`, so that they are saved, restored and placed with everything else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import Config
from steprl.types import Params


class Seen(NamedTuple):
    """What there is to see at the end of an update."""

    trainable: Params  # what is trained, as it was before the update
    metrics: dict[str, jax.Array]  # of the update


def _always(config: Config) -> bool:
    return True


class Carry(NamedTuple):
    """A value that each iteration leaves to the next.

    `init(trainable, config)` and `update(value, seen, config)` return arrays, alone or in a pytree of
    dicts and tuples; shapes and types stay the same. Arrays that are laid out like parameters must
    keep their paths, by which `steprl.sharding` places them.
    """

    name: str  # of its place in `TrainState.carried`
    init: Callable[[Params, Config], Any]
    update: Callable[[Any, Seen, Config], Any]
    needed: Callable[[Config], bool] = _always  # whether the settings ask for it


def _copy(trainable: Params, config: Config) -> Params:
    # The update is given the buffers of the parameters to write into.
    return jax.tree.map(jnp.copy, trainable)


REFERENCE = Carry(
    "reference",
    init=_copy,
    update=lambda value, seen, config: value,
    needed=lambda config: config.algorithm.use_kl_in_reward or config.actor.use_kl_loss,
)
"""What is trained as it was when training began, for penalties on the distance from there."""

PREVIOUS = Carry(
    "previous",
    init=_copy,
    update=lambda value, seen, config: seen.trainable,
    needed=lambda config: config.algorithm.branch.future_value == "previous",
)
"""What is trained as it was before the last update, for rollouts that ask what the update changed."""

OF_EVERY_METHOD = (REFERENCE,)
"""Those that settings ask for, whatever the method; a method names its own in `Algorithm.carries`."""
