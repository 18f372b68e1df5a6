"""What a run carries on, from one update to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from steprl.algorithms import Algorithm, algorithm
from steprl.carried import OF_EVERY_METHOD, Carry
from steprl.config import Config
from steprl.models import merge_lora
from steprl.optimizer import split_trainable
from steprl.rewards import initial_reward_states
from steprl.types import Params


class TrainState(NamedTuple):
    """All that a run carries on: keys and the place in the data follow from `iteration`."""

    params: Params
    opt_state: Any  # of what is trained
    iteration: jax.Array  # int32, finished iterations
    # By name, what method and settings need: see `carries` and `steprl.rewards`; nothing in the
    # warm start. Never changed in place, so one empty dict may serve all states without.
    carried: dict[str, Any] = {}


def carries(method: Algorithm, config: Config) -> tuple[Carry, ...]:
    """What the settings and the method carry from one iteration to the next, states of rewards apart."""
    return tuple(one for one in (*OF_EVERY_METHOD, *method.carries) if one.needed(config))


def with_first_critic(params: Params, config: Config) -> Params:
    """The parameters, with the critic that `critic.init` begins with.

    A copy of the policy's decoder, adapters merged, where that is asked for and the critic is new: the
    head of one that has been trained reads its own trunk, which stays.

    Args:
        params: behind the warm start; of the decoder that ships with the project.
        config: settings of the run.

    Raises:
        ValueError: there is no decoder to copy, or the critic has another shape.
    """
    if config.critic.init != "policy" or config.model.value_head != "separate":
        return params
    lora = config.model.lora
    decoder = merge_lora(params, lora.alpha / max(1, lora.rank)).get("decoder", {})
    critic = params.get("critic", {})
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (decoder, critic)]
    if not critic or shapes[0] != shapes[1]:
        raise ValueError(
            "critic.init=policy copies the policy's 'decoder' to its 'critic', and these parameters have "
            "no such parts of the same shapes: set critic.init=model"
        )
    # A new head gives 0 (steprl.models.decoder.ValueHead).
    is_new = ~jnp.any(jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(params["value"]["out"])]))
    critic = jax.tree.map(lambda copy, own: jnp.where(is_new, copy, own), decoder, critic)
    return params | {"critic": critic}


def initial_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    config: Config,
    method: Algorithm | None = None,
) -> TrainState:
    """The state in which training begins.

    Args:
        params: to begin with.
        optimizer: that the update will use.
        config: settings of the run.
        method: that the update will use; by default the one that `algorithm.name` names.
    """
    method = method or algorithm(config.algorithm.name, config.algorithm.options)
    if "critic" in method.needs:
        params = with_first_critic(params, config)
    trainable, _ = split_trainable(params, config.model.freeze, config.model.train_layers)
    carried = {one.name: one.init(trainable, config) for one in carries(method, config)}
    carried |= initial_reward_states(config.algorithm)
    return TrainState(params, optimizer.init(trainable), jnp.zeros((), jnp.int32), carried)
