"""The models that play the walk, and how they read it."""

import functools

import jax
from played.walk import VOCABULARY

from steprl.models import DecoderConfig, make_policy
from steprl.rollout.contexts import Context
from steprl.types import Params, Policy

ACTION = 8  # tokens of every action: no token ends one
TINY = "0.1M"  # to see whether a script runs
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
_OF_TINY = DecoderConfig(
    vocab_size=VOCABULARY, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32,
    value_head="none",
)  # fmt: skip


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
    policy = make_policy(MODELS.get(name, _OF_TINY))
    return policy, jax.jit(policy.init)(jax.random.key(0))
