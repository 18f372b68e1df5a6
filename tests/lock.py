"""A game of a few words, and a policy of one table, for runs that are one program: quick to compile."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.envs.device_env import DeviceObservation
from steprl.envs.games import Game
from steprl.laboratory import make_train
from steprl.types import Policy
from tests.small import small_config

END, NO, RED, GREEN, BLUE = 1, 3, 4, 5, 6
WORDS = ("no", "red", "green", "blue")
SIZE = 3 + len(WORDS)


class LockState(NamedTuple):
    colors: jax.Array  # [3]
    opened: jax.Array
    turn: jax.Array


@dataclasses.dataclass(frozen=True)
class Lock:
    """Say the colour that is shown, three times in five turns; blue ones are held out."""

    heldout: bool | jax.Array = False
    prompt_width = 1
    action_width = 2
    observation_width = 2
    max_steps = 5
    vocab_size = SIZE
    stop_ids: ClassVar[tuple[int, ...]] = (END,)

    def reset(self, task, key):
        seen = RED + jax.random.randint(jax.random.key(task), (3,), 0, 2, jnp.int32)
        colors = jnp.where(self.heldout, BLUE, seen)
        zero = jnp.zeros((), jnp.int32)
        return LockState(colors, zero, zero), colors[:1]

    def step(self, state, action):
        right = action[0] == state.colors[state.opened]
        opened, turn = state.opened + right, state.turn + 1
        shown = state.colors[jnp.minimum(opened, 2)]
        answer = jnp.where(right, jnp.stack([shown, 0]), jnp.stack([NO, shown]))
        done = opened == 3
        return LockState(state.colors, opened, turn), DeviceObservation(
            tokens=answer.astype(jnp.int32),
            reward=done.astype(jnp.float32),
            terminated=done,
            truncated=~done & (turn >= self.max_steps),
            valid=action[0] >= RED,
            success=done,
        )

    def distance(self, state):
        return 3 - state.opened


LOCK = Game(Lock, WORDS)


def table_policy(logits):
    """What is said next depends on the last token alone; so does the critic."""
    size = len(logits)

    def init(key):
        noise = 0.1 * jax.random.normal(key, (size, size))
        return {"decoder": {"table": logits + noise}, "value": {"head": jnp.zeros(size)}}

    return Policy(
        init=init,
        apply=lambda params, tokens, positions, segments, cache=None, **tree: (
            params["decoder"]["table"][tokens],
            cache,
        ),
        unembed=lambda params, hidden: hidden,
        value=lambda params, tokens, *_, **tree: params["value"]["head"][tokens],
        init_cache=lambda batch, length: jnp.zeros((batch, 1)),
    )


# After a colour it says that colour more often than not, and then often that the action ends.
TABLE = jnp.zeros((SIZE, SIZE)).at[:, 0].set(-20.0).at[:, END].add(0.5)
TABLE = TABLE.at[jnp.arange(RED, SIZE), jnp.arange(RED, SIZE)].add(2.0)
SAYS = table_policy(TABLE)


def lab(*overrides):
    """Twelve attempts at three locks, two updates of six rows, twice."""
    return small_config(
        "rollout.batch_size=3", "rollout.n=4", "actor.ppo_mini_batch_size=6", "actor.ppo_epochs=2",
        "actor.lr=0.05", "actor.lr_schedule=constant", "trainer.total_training_steps=4",
        "algorithm.name=grpo", "sft.steps=0", *overrides,
    )  # fmt: skip


def trains(*overrides, method=None):
    return make_train(lab(*overrides), method, env=LOCK, policy=SAYS)


def key_of(seed):
    return jax.random.key(seed)


def assert_close(a, b, tolerance=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )


def lane(tree, number):
    return jax.tree.map(lambda x: x[number], tree)


def moved(params, key, policy=SAYS):
    """The largest change of each part since the run began."""
    start = policy.init(jax.random.split(jax.random.split(key)[0])[0])
    return jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, start)
