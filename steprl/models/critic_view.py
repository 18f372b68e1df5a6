"""What a privileged critic reads: the tokens of the policy, and what only the critic is told.

The policy's own rows stay as they are. The view of a row is a second row, in which the tokens of
`StepBatch.privileged` stand before the actions of their steps (asymmetric actor-critic, Pinto et al.,
https://arxiv.org/abs/1710.06542). The value of the state before a token is read at the last token of the
view before it, which for the first token of an action is the last that the critic was told.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.types import Params, Policy, StepBatch


class CriticView(NamedTuple):
    """Contexts with what the critic is told; C = T + P, the tokens without holes, padding behind."""

    tokens_BC: jax.Array  # int32
    positions_BC: jax.Array  # int32, place of the token in its context, 0 at padding
    segment_ids_BC: jax.Array  # int32, 0 at padding
    after_BT: jax.Array  # int32, where the state after each token of the policy's row is complete


def critic_view(batch: StepBatch) -> CriticView:
    """The view of a batch with `privileged`; B contexts, cut as the model reads those of the policy.

    Returns:
        For a row without privileged tokens, its own tokens.
    """
    assert batch.privileged is not None
    rows = batch.tokens_NT.shape[0]
    blocks = batch.tokens_NT.shape[1] // batch.context_width if batch.context_width else 1
    cut = lambda x: jnp.reshape(x, (rows * blocks, -1))  # noqa: E731
    row = (batch.tokens_NT, batch.segment_ids_NT, batch.step_ids_NT)
    return jax.vmap(_view_of_row)(*map(cut, (*row, *batch.privileged)))


def _view_of_row(
    tokens_t: jax.Array, segment_ids_t: jax.Array, step_ids_t: jax.Array, told_p: jax.Array,
    told_before_p: jax.Array,
) -> CriticView:  # fmt: skip
    """Each token goes behind all that stand before it, of either kind."""
    length, room = tokens_t.shape[0], tokens_t.shape[0] + told_p.shape[0]
    index_t = jnp.arange(length)
    real_t = segment_ids_t > 0
    # The place of the action that each stands before; behind the row where there is none.
    is_action_pt = step_ids_t[None, :] == told_before_p[:, None]
    place_p = jnp.min(jnp.where(is_action_pt, index_t[None, :], length), axis=1)
    own_p = segment_ids_t[jnp.minimum(place_p, length - 1)]
    segment_p = jnp.where(place_p < length, own_p, jnp.max(segment_ids_t))
    segment_p = jnp.where(told_before_p >= 0, segment_p, 0)
    there_p = segment_p > 0

    before_t = jnp.cumsum(real_t) - real_t  # real tokens before each place
    before_p = jnp.append(before_t, jnp.sum(real_t))[place_p]
    told_pt = there_p[:, None] & (place_p[:, None] <= index_t[None, :])
    to_t = jnp.where(real_t, before_t + jnp.sum(told_pt, axis=0), room)
    to_p = jnp.where(there_p, before_p + jnp.cumsum(there_p) - there_p, room)

    def lay(of_row: jax.Array, told: jax.Array) -> jax.Array:
        empty = jnp.zeros(room, jnp.int32)
        return empty.at[to_t].set(of_row, mode="drop").at[to_p].set(told, mode="drop")

    segment_ids_c, index_c = lay(segment_ids_t, segment_p), jnp.arange(room)
    begins_c = segment_ids_c != jnp.append(0, segment_ids_c[:-1])
    start_c = jax.lax.cummax(jnp.where(begins_c, index_c, 0))
    positions_c = jnp.where(segment_ids_c > 0, index_c - start_c, 0)

    total = jnp.sum(segment_ids_c > 0)
    next_t = jax.lax.cummin(jnp.where(real_t, to_t, total), reverse=True)
    after_t = jnp.maximum(jnp.append(next_t[1:], total) - 1, 0)
    return CriticView(lay(tokens_t, told_p), positions_c, segment_ids_c, after_t)


def states_of_view(policy: Policy, params: Params, batch: StepBatch) -> jax.Array:
    """[N, T] value of the state after each token of a batch with `privileged`.

    After an observation, that is the state in which the critic was told what there is to tell.
    """
    assert policy.value is not None
    *contexts, after_BT = critic_view(batch)
    value_BC = policy.value(params, *contexts, None)
    value_BT = jax.vmap(lambda of_view, after: of_view[after])(value_BC, after_BT)
    return value_BT.reshape(*batch.tokens_NT.shape, *value_BC.shape[2:])


def read_states(batch: StepBatch, of_state_NT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values of sampled tokens, [N, T], and of the ends of rows, [N], from those of states.

    Args:
        of_state_NT: value of the state after each token.
    """
    real_NT = jnp.asarray(batch.segment_ids_NT) > 0
    index_NT = jnp.broadcast_to(jnp.arange(real_NT.shape[1]), real_NT.shape)
    last_NT = jax.lax.cummax(jnp.where(real_NT, index_NT, 0), axis=1)
    before_NT = jnp.pad(last_NT[:, :-1], ((0, 0), (1, 0)))
    value_NT = jnp.take_along_axis(of_state_NT, before_NT, axis=1)
    final_N = jnp.take_along_axis(of_state_NT, last_NT[:, -1:], axis=1)[:, 0]
    return (
        jnp.where(jnp.asarray(batch.step_ids_NT) >= 0, value_NT, 0.0),
        jnp.where(jnp.any(real_NT, axis=1), final_N, 0.0),
    )
