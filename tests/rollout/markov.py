"""A policy that plays `multihop` at random: well-formed actions mostly, any token now and then.

Its next token depends on the last one. With a decoder, that one's logits are added, so that all that
was read matters and the cache is at work.
"""

import jax
import jax.numpy as jnp
import numpy as np

from steprl.envs.multihop import ENTITIES, RELATIONS
from steprl.envs.multihop import language as words
from steprl.models import DecoderConfig, make_policy
from steprl.types import Policy

SIZE = words.VOCAB_SIZE


def decoder(value_head: str = "none") -> Policy:
    """A small one."""
    return make_policy(
        DecoderConfig(
            vocab_size=SIZE, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
            d_ff=24, value_head=value_head,
        )
    )  # fmt: skip


def _table(entities: int, noise: float) -> np.ndarray:
    table = np.full((SIZE, SIZE), noise / SIZE)
    name = slice(words.FIRST_ENTITY, words.FIRST_ENTITY + entities)
    everybody = slice(words.FIRST_ENTITY, words.FIRST_ENTITY + len(ENTITIES))
    relation = slice(words.FIRST_RELATION, words.FIRST_RELATION + len(RELATIONS))
    table[:, words.SEARCH] += 0.8  # after the question or an answer
    table[:, words.ANSWER] += 0.1
    for verb in (words.SEARCH, words.ANSWER):
        table[verb, [words.SEARCH, words.ANSWER]] = noise / SIZE
        table[verb, name] += 1 / entities
    table[everybody, relation] += 0.6 / len(RELATIONS)
    table[everybody, words.END_ID] += 0.3
    table[relation, words.END_ID] += 20.0
    table[:, words.PAD_ID] = 1e-20  # it has no text
    return np.log(table / table.sum(axis=1, keepdims=True)).astype(np.float32)


def markov_policy(entities: int = 12, noise: float = 0.05, inner: Policy | None = None) -> Policy:
    """The policy; `inner` adds its logits, made large enough to matter."""
    table = jnp.asarray(_table(entities, noise))

    def init(key):
        params = {} if inner is None else jax.jit(inner.init)(key)
        if inner is not None:
            params["decoder"]["embedding"]["embedding"] *= 10.0
            if "value" in params:
                params["value"]["out"]["kernel"] += 0.5  # a critic with an opinion
        return params

    def apply(params, tokens, positions, segments, cache=None):
        last = jax.nn.one_hot(tokens, SIZE)
        if inner is None:
            return last, cache
        hidden, cache = inner.apply(params, tokens, positions, segments, cache)
        return jnp.concatenate([hidden, last], axis=-1), cache

    def unembed(params, hidden):
        own = 0.0 if inner is None else inner.unembed(params, hidden[..., :-SIZE])
        return hidden[..., -SIZE:] @ table + own

    def value(params, tokens, positions, segments, hidden):
        return inner.value(params, tokens, positions, segments, hidden[..., :-SIZE])

    critic = None if inner is None or inner.value is None else value
    empty = lambda batch, length: jnp.zeros((batch, length))  # noqa: E731
    return Policy(init, apply, unembed, critic, empty if inner is None else inner.init_cache)
