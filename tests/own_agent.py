"""An environment, a policy and a method of a user's own, in one file that the package knows nothing of."""

import jax
import jax.numpy as jnp
from flax import nnx

from steprl.algorithms import Algorithm, Credit
from steprl.envs.suite import Suite
from steprl.ops import broadcast_steps, masked_mean, reverse_recurrence

COLOURS = ("red", "green", "blue")


class Lights:
    """Three lights, one after the other: say the colour of the one that is on."""

    max_steps = 3

    def __init__(self, held_out):
        self.held_out = held_out

    def colours(self, task):
        """Tasks that end in blue are held out."""
        last = 2 if self.held_out else task % 2
        return task // 2 % 3, task // 6 % 3, last

    def reset(self, task, key=None):
        return (task, 0, 0), COLOURS[self.colours(task)[0]]

    def step(self, state, action):
        task, turn, right = state
        colours = self.colours(task)
        hit = action == COLOURS[colours[turn]]
        turn, right = turn + 1, right + hit
        over = turn == self.max_steps
        info = {"success": over and right == self.max_steps, "valid": action in COLOURS}
        seen = "done" if over else COLOURS[colours[turn]]
        return (task, turn, right), seen, float(hit), over, False, info


def environment():
    """A language of four words, a held-out split, and a demonstrator."""
    train = Lights(held_out=False)

    def demonstrate(task, seed):
        return [COLOURS[colour] for colour in train.colours(task)]

    return Suite(
        splits={"train": train, "blue at last": Lights(held_out=True)},
        vocabulary=(*COLOURS, "done"),
        max_steps=Lights.max_steps,
        demonstrate=demonstrate,
    )


class Recurrent(nnx.Module):
    """A recurrent network whose cache holds the state behind each position."""

    def __init__(self, vocab_size, width=24, *, rngs):
        self.width = width
        self.embedding = nnx.Embed(vocab_size, width, rngs=rngs)
        self.cell = nnx.Linear(2 * width, width, rngs=rngs)
        self.head = nnx.Linear(width, vocab_size, rngs=rngs)

    def __call__(self, tokens, positions, segments, cache=None):
        rows = jnp.arange(len(tokens))
        state = jnp.zeros((len(tokens), self.width))
        if cache is not None:
            state = cache[rows, positions[:, 0] - 1]

        def read(state, column):
            x, position, segment = column
            state = jnp.where((position == 0)[:, None], 0.0, state)
            new = jnp.tanh(self.cell(jnp.concatenate([state, x], axis=1)))
            state = jnp.where((segment > 0)[:, None], new, state)
            return state, state

        inputs = jnp.moveaxis(self.embedding(tokens), 1, 0)
        _, states = jax.lax.scan(read, state, (inputs, positions.T, segments.T))
        hidden = jnp.moveaxis(states, 0, 1)
        if cache is not None:
            place = jnp.where(segments > 0, positions, cache.shape[1])
            cache = cache.at[rows[:, None], place].set(hidden, mode="drop")
        return hidden, cache

    def unembed(self, hidden):
        return self.head(hidden)

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length, self.width))


def policy(vocab_size, width=24):
    """What makes the module from its random keys."""
    return lambda rngs: Recurrent(vocab_size, width, rngs=rngs)


def method(scale=1.0):
    """REINFORCE on what each step brings from there on, less the mean of that step over the batch."""

    def credit(batch, value_NT, config):
        reward_SN = jnp.where(batch.mask_NS, batch.reward_NS, 0.0).T
        return_NS = reverse_recurrence(reward_SN, config.gamma).T
        mean_S = masked_mean(return_NS, batch.mask_NS, axis=0)
        advantage_NS = jnp.where(batch.mask_NS, scale * (return_NS - mean_S[None]), 0.0)
        advantage_NT = jax.vmap(broadcast_steps)(advantage_NS, batch.step_ids_NT)
        nothing_NT = jnp.zeros(advantage_NT.shape)
        return Credit(advantage_NT, nothing_NT, nothing_NT > 0)

    return Algorithm(credit, ratio_level="step", reduction="step-mean-token-mean")
