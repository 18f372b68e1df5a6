"""The critic's part of the loss, and the units in which it learns."""

import jax
import jax.numpy as jnp

from steprl.config import CriticConfig
from steprl.models.scoring import Scores
from steprl.models.values import value_support
from steprl.ops import hl_gauss_loss, value_loss
from steprl.optimizer import Masters
from steprl.types import Params
from steprl.update.optimise import Trained
from steprl.update.prepare import Sample

_LAST_LAYER = ("value", "out")


def critic_loss(
    new: Scores, sample: Sample, critic: CriticConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error of values, or cross-entropy of their distributions, and metrics.

    With `critic.norm_returns` the error is in units of the scale of the returns, and so is the clip.

    Args:
        new: of the sample's batch under the parameters that are trained.
        sample: with the weights of `with_weights`.
        critic: settings.
    """
    credit = sample.credit
    ids_NT = jnp.where(credit.critic_mask_NT, sample.batch.step_ids_NT, -1)
    weight_NT = sample.value_weight_NT
    support = value_support(critic)
    if new.value_logits_NTZ is not None:
        assert support is not None  # of the policy too, see `make_update`
        return hl_gauss_loss(
            new.value_logits_NTZ, credit.return_NT, ids_NT, support, weights_t=weight_NT
        )
    values = new.value_NT, credit.return_NT, sample.value_NT
    if sample.return_scale_N is not None:
        new_NT, return_NT, old_NT = (x / sample.return_scale_N[:, None] for x in values)
        values = new_NT, return_NT, old_NT
    return value_loss(*values, ids_NT, clip=critic.cliprange_value, weights_t=weight_NT)


# --- Units -----------------------------------------------------------------------------------------


def unit_of(scale: jax.Array) -> jax.Array:
    """The power of two next to a scale: what is multiplied by it loses no bit."""
    mantissa, exponent = jnp.frexp(scale)  # the mantissa in [1/2, 1)
    return jnp.ldexp(jnp.ones_like(scale), exponent - (mantissa < jnp.sqrt(0.5)))


def with_last_layer(trained: Trained, factor: jax.Array) -> Trained:
    """The last layer of the value head times a power of two, in the optimiser's copy too.

    The parameters of that layer are kept in the units of rewards, so that values never depend on the
    scale. An optimiser step is made in units of the returns: Adam moves a parameter by about the
    learning rate whatever the loss is multiplied by, and so moves values by a share of the scale. That
    is what PopArt (https://arxiv.org/abs/1602.07714) comes to, which keeps the layer in units of the
    returns and corrects it whenever the scale moves; its shift by the mean changes no step.

    What has no such layer, a policy of one's own perhaps, comes back as it is.
    """

    def of_copy(state: object) -> object:
        if isinstance(state, Masters):
            return state._replace(params=scaled_last_layer(state.params, factor))
        return state

    opt_state = jax.tree.map(of_copy, trained.opt_state, is_leaf=lambda x: isinstance(x, Masters))
    return trained._replace(params=scaled_last_layer(trained.params, factor), opt_state=opt_state)


def scaled_last_layer(params: Params, factor: jax.Array) -> Params:
    """The same tree with the last layer of the value head, where there is one, times a factor."""

    def scale(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        within = tuple(getattr(key, "key", None) for key in path[: len(_LAST_LAYER)])
        return leaf * factor.astype(leaf.dtype) if within == _LAST_LAYER else leaf

    return jax.tree_util.tree_map_with_path(scale, params)
