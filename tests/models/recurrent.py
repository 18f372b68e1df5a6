"""A small recurrent language model of a user's own, as an NNX and as a Linen module.

The cache is by position: the state behind each token, so an episode may go back to any of them.
"""

import jax
import jax.numpy as jnp
from flax import linen, nnx


def read_rows(cell, embedded_BTD, positions_BT, segments_BT, cache):
    """The states behind all tokens; holes (segment 0) are passed over.

    Args:
        cell: (state_BD, input_BD) -> state_BD.
    """
    rows = jnp.arange(len(positions_BT))
    state_BD = jnp.zeros(embedded_BTD[:, 0].shape)
    if cache is not None:
        state_BD = cache[rows, positions_BT[:, 0] - 1]

    def read(state_BD, column):
        x_BD, position_B, segment_B = column
        before_BD = jnp.where((position_B == 0)[:, None], 0.0, state_BD)
        state_BD = jnp.where((segment_B > 0)[:, None], cell(before_BD, x_BD), state_BD)
        return state_BD, state_BD

    columns = (jnp.moveaxis(embedded_BTD, 1, 0), positions_BT.T, segments_BT.T)
    hidden_BTD = jnp.moveaxis(jax.lax.scan(read, state_BD, columns)[1], 0, 1)
    if cache is not None:
        place_BT = jnp.where(segments_BT > 0, positions_BT, cache.shape[1])  # beyond: dropped
        cache = cache.at[rows[:, None], place_BT].set(hidden_BTD, mode="drop")
    return hidden_BTD, cache


class NnxModel(nnx.Module):
    def __init__(self, vocab_size, width=16, *, rngs):
        self.width = width
        self.embedding = nnx.Embed(vocab_size, width, rngs=rngs)
        self.inner = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(width, vocab_size, rngs=rngs)
        self.critic = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, tokens, positions, segments, cache=None):
        def cell(state, x):
            return jnp.tanh(self.inner[0](state) + self.inner[1](x))

        return read_rows(cell, self.embedding(tokens), positions, segments, cache)

    def unembed(self, hidden):
        return self.head(hidden)

    def value(self, tokens, positions, segments, hidden):
        return self.critic(hidden)[..., 0]

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length, self.width))


class LinenModel(linen.Module):
    vocab_size: int
    width: int = 16

    def setup(self):
        self.embedding = linen.Embed(self.vocab_size, self.width)
        draw, shape = linen.initializers.lecun_normal(), (self.width, self.width)
        self.inner = [self.param(f"inner_{number}", draw, shape) for number in range(2)]
        self.head = linen.Dense(self.vocab_size)
        self.critic = linen.Dense(1)

    def __call__(self, tokens, positions, segments, cache=None):
        def cell(state, x):
            return jnp.tanh(state @ self.inner[0] + x @ self.inner[1])

        return read_rows(cell, self.embedding(tokens), positions, segments, cache)

    def unembed(self, hidden):
        return self.head(hidden)

    def value(self, tokens, positions, segments, hidden):
        return self.critic(hidden)[..., 0]

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length, self.width))
