"""A text environment without end and the models that play it: what branches and rollouts are timed on.

A language of numbers: a word is a number, a number is a token. What is observed follows from the task
and from everything that was said, so that a wrong state or a lost action shows.
"""

import functools
import random
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from steprl.models import DecoderConfig, make_policy
from steprl.rollout.contexts import Context
from steprl.types import Params, Policy

SHORTEST, LONGEST = 12, 20  # words of an observation
ACTION = 8  # tokens of every action: no token ends one
VOCABULARY = 4096
MODELS = {
    "1.3M": DecoderConfig(
        vocab_size=VOCABULARY, d_model=128, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=64,
        d_ff=384, value_head="none",
    ),
    "SmolLM2-135M with 4096 words": DecoderConfig(
        vocab_size=VOCABULARY, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
        d_ff=1536, rope_theta=100_000.0, norm_eps=1e-5, value_head="none",
    ),
}  # fmt: skip


class State(NamedTuple):
    """Where a walk is; a value, so keeping it is a snapshot."""

    task: int
    number: int  # steps so far
    said: int  # a digest of all actions


class Walk:
    """Observations of 12 to 20 words; ends after as many steps as `length(task)` says.

    Args:
        length: steps of a task; None for no end.
        words: of the vocabulary that observations use.
        before_step: called with state and action before each step: a delay, or a fault.
    """

    def __init__(
        self,
        length: Callable[[int], int] | None = None,
        words: int = VOCABULARY,
        before_step: Callable[[State, str], None] | None = None,
    ):
        self.length, self.words, self.before_step = length, words, before_step

    def reset(self, task: int, key: Any = None) -> tuple[State, str]:
        state = State(task, 0, zlib.crc32(str(task).encode()))
        return state, self.observation(state)

    def step(self, state: State, action: str) -> tuple[State, str, float, bool, bool, dict]:
        if self.before_step is not None:
            self.before_step(state, action)
        new = State(state.task, state.number + 1, zlib.crc32(action.encode(), state.said))
        over = self.length is not None and new.number >= self.length(state.task)
        info = {"success": over and new.said % 2 == 0, "valid": True}
        return new, self.observation(new), float(info["success"]), over, False, info

    def observation(self, state: State) -> str:
        rng = random.Random(state.said)
        size = rng.randint(SHORTEST, LONGEST)
        return " ".join(str(rng.randrange(self.words)) for _ in range(size))


def number_context() -> Context:
    """Numbers as tokens; no token ends an action, so that all are equally long."""
    read = lambda text: [int(word) for word in text.split()]  # noqa: E731
    return Context(
        begin=read,
        extend=read,
        encode=read,
        decode=lambda ids: " ".join(str(number) for number in ids),
        stop_ids=(),
        closing_ids=(),
        pad_id=0,
        rebuild=False,
    )


@functools.cache
def model(name: str) -> tuple[Policy, Params]:
    """Policy and random weights."""
    policy = make_policy(MODELS[name])
    return policy, jax.jit(policy.init)(jax.random.key(0))
