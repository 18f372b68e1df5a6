"""The sampling distribution, and prefill and decode with a KV cache under `jit`.

Randomness of each token comes from (task, sample, step, token) alone, so a trajectory is the same
whatever batch or slot it ran in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.ops import pack_support, support_words
from steprl.types import STOP_REASONS, Params, Policy

STOPPED, LENGTH = STOP_REASONS.index("stop_token"), STOP_REASONS.index("length")


class Generation(NamedTuple):
    """One action of each row. Places behind an action's end hold `pad_id`, 0 and False."""

    tokens_BA: jax.Array  # int32, stop token included
    logprob_BA: jax.Array  # float32, under the distribution really sampled from
    entropy_BA: jax.Array  # float32, of that distribution, in nats
    mask_BA: jax.Array  # bool, token was sampled
    stop_reason_B: jax.Array  # int32, index into STOP_REASONS
    cache: Any  # holds all tokens but the last sampled one, which the next chunk must begin with
    support_BAW: jax.Array | None = None  # uint32, what could be sampled; None without truncation


def trajectory_key(key: jax.Array, task: jax.Array | int, sample: jax.Array | int) -> jax.Array:
    """The key of one attempt at one task; fold in step and then token to draw."""
    return jax.random.fold_in(jax.random.fold_in(key, task), sample)


def keep_top_k(logits_V: jax.Array, k: int) -> jax.Array:
    """Mask of the k highest logits; ties with the k-th are kept."""
    if k >= logits_V.shape[-1]:
        return jnp.ones(logits_V.shape, bool)
    return logits_V >= jax.lax.top_k(logits_V, k)[0][..., -1:]


def keep_top_p(probs_V: jax.Array, p: float) -> jax.Array:
    """Mask of the nucleus: the fewest most likely tokens whose probability reaches p.

    Nucleus sampling (arXiv 1904.09751) without sorting the vocabulary. The nucleus is
    {v : prob_v >= tau} for the largest tau whose set still weighs p; probabilities are not negative,
    so their bits as integers have the order of the numbers and 31 halvings find tau exactly. Ties
    with the last token of the nucleus are kept.
    """
    bits_V = jax.lax.bitcast_convert_type(probs_V.astype(jnp.float32), jnp.int32)
    # The set of tau=0 is everything; rounding may leave its mass below p, which must not matter.
    low = jnp.zeros(probs_V.shape[:-1] + (1,), jnp.int32)
    high = jnp.max(bits_V, axis=-1, keepdims=True) + 1

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        mass = jnp.sum(jnp.where(bits_V >= middle, probs_V, 0.0), axis=-1, keepdims=True)
        enough = mass >= p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return bits_V >= low


def sampling_logprobs(
    logits_V: jax.Array, temperature: float | jax.Array = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """Log-probs of the distribution that is sampled from; -inf where a token cannot come.

    Args:
        logits_V: [..., V].
        temperature: above 0; may be traced.
        top_k: keep the k most likely tokens, 0 = all.
        top_p: then keep the nucleus of this probability, 1.0 = all.

    Returns:
        [..., V] float32.
    """
    logits_V = logits_V.astype(jnp.float32) / temperature
    if top_k:
        logits_V = jnp.where(keep_top_k(logits_V, top_k), logits_V, -jnp.inf)
    if top_p < 1.0:
        keep = keep_top_p(jax.nn.softmax(logits_V), top_p)
        logits_V = jnp.where(keep, logits_V, -jnp.inf)
    return jax.nn.log_softmax(logits_V)


def draw(
    logits_V: jax.Array,
    key: jax.Array,
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token of one row, by inverting the distribution function at one uniform number.

    Temperature 0 takes the most likely token: a point mass, of log-prob and entropy 0.

    Returns:
        token (int32), its log-prob, entropy of the distribution.
    """
    token, logprob, entropy, _ = _draw(logits_V, key, temperature, top_k, top_p)
    return token, logprob, entropy


def _draw(
    logits_V: jax.Array,
    key: jax.Array,
    temperature: float | jax.Array,
    top_k: int,
    top_p: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`draw`, and the log-probs of all tokens (at temperature 0 those of temperature 1)."""
    greedy = jnp.asarray(temperature) == 0.0
    logprob_V = sampling_logprobs(logits_V, jnp.where(greedy, 1.0, temperature), top_k, top_p)
    prob_V = jnp.exp(logprob_V)
    mass_V = jnp.cumsum(prob_V)
    # A parallel sum may grow by rounding at a token of probability 0; such a token must not come.
    above_V = (mass_V > jax.random.uniform(key) * mass_V[-1]) & (prob_V > 0)
    best = jnp.argmax(logits_V)
    # argmax finds the first possible token whose mass passes the number
    token = jnp.where(greedy | ~jnp.any(above_V), best, jnp.argmax(above_V)).astype(jnp.int32)
    entropy = -jnp.sum(jnp.where(prob_V > 0, prob_V * logprob_V, 0.0))
    logprob = jnp.where(greedy, 0.0, logprob_V[token])
    return token, logprob, jnp.where(greedy, 0.0, entropy), logprob_V


def generate(
    policy: Policy,
    params: Params,
    cache: Any,
    tokens_BC: jax.Array,
    length_B: jax.Array,
    start_B: jax.Array,
    keys_B: jax.Array,
    active_B: jax.Array,
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pad_id: int = 0,
) -> Generation:
    """Reads what is new of each row's context, then samples one action a row.

    Args:
        tokens_BC: [B, C] new tokens, right-padded. In a later turn they begin with the last token of
            the row's previous action, which is not in the cache yet.
        length_B: [B] how many of them are real, at least 1 for active rows.
        start_B: [B] position of the first of them.
        keys_B: [B] key of each row's step; token i of the action uses fold_in(key, i).
        active_B: [B] False for rows that take no part: they change nothing.
        max_tokens: A, tokens of an action at most.
        stop_ids: tokens that end an action and belong to it.
        temperature, top_k, top_p: see `sampling_logprobs`; temperature may be traced, 0 is greedy.

    Returns:
        The actions, and the cache with the chunk and all but the last token of each action. Where
        top_k or top_p truncates, also the set that each token was drawn from (one token if greedy).
    """
    batch, width = tokens_BC.shape
    index_C = jnp.arange(width)[None, :]
    real_BC = (index_C < length_B[:, None]) & active_B[:, None]
    positions_BC = start_B[:, None] + index_C
    hidden_BCD, cache = policy.apply(
        params, tokens_BC, positions_BC, real_BC.astype(jnp.int32), cache
    )
    last_B = jnp.maximum(length_B - 1, 0)
    hidden_BD = jnp.take_along_axis(hidden_BCD, last_B[:, None, None], axis=1)[:, 0]
    next_B = start_B + length_B  # position of the first token of the action

    def sample(index: jax.Array | int, hidden_BD: jax.Array, out: Generation, live_B: jax.Array):  # type: ignore[no-untyped-def]
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, index)
        rows = lambda logits, key: _draw(logits, key, temperature, top_k, top_p)  # noqa: E731
        logits_BV = policy.unembed(params, hidden_BD)
        token_B, logprob_B, entropy_B, logprob_BV = jax.vmap(rows)(logits_BV, keys)
        stop_B = jnp.isin(token_B, jnp.asarray(stop_ids, jnp.int32))
        full_B = jnp.full_like(stop_B, index + 1 >= max_tokens)
        reason_B = jnp.where(stop_B, STOPPED, jnp.where(full_B, LENGTH, 0))
        put = lambda array, x, rest: array.at[:, index].set(jnp.where(live_B, x, rest))  # noqa: E731
        out = out._replace(
            tokens_BA=put(out.tokens_BA, token_B, pad_id),
            logprob_BA=put(out.logprob_BA, logprob_B, 0.0),
            entropy_BA=put(out.entropy_BA, entropy_B, 0.0),
            mask_BA=put(out.mask_BA, True, False),
            stop_reason_B=jnp.where(live_B, reason_B, out.stop_reason_B),
        )
        if out.support_BAW is not None:
            chosen_BV = jax.nn.one_hot(token_B, logprob_BV.shape[-1], dtype=bool)
            greedy = jnp.asarray(temperature) == 0.0
            support_BW = pack_support(jnp.where(greedy, chosen_BV, logprob_BV > -jnp.inf))
            support_BW = jnp.where(live_B[:, None], support_BW, 0)
            out = out._replace(support_BAW=out.support_BAW.at[:, index].set(support_BW))
        return out, live_B & ~stop_B & ~full_B

    def more(carry):  # type: ignore[no-untyped-def]
        return jnp.any(carry[2])

    def step(carry):  # type: ignore[no-untyped-def]
        index, out, live_B = carry
        token_B1 = jax.lax.dynamic_slice_in_dim(out.tokens_BA, index - 1, 1, axis=1)
        position_B1 = (next_B + index - 1)[:, None]
        hidden_B1D, cache = policy.apply(
            params, token_B1, position_B1, live_B[:, None].astype(jnp.int32), out.cache
        )
        out, live_B = sample(index, hidden_B1D[:, 0], out._replace(cache=cache), live_B)
        return index + 1, out, live_B

    shape = (batch, max_tokens)
    empty = Generation(
        tokens_BA=jnp.full(shape, pad_id, jnp.int32),
        logprob_BA=jnp.zeros(shape, jnp.float32),
        entropy_BA=jnp.zeros(shape, jnp.float32),
        mask_BA=jnp.zeros(shape, bool),
        stop_reason_B=jnp.zeros(batch, jnp.int32),
        cache=cache,
    )
    if top_k or top_p < 1.0:
        vocab_size = jax.eval_shape(policy.unembed, params, hidden_BD).shape[-1]
        empty = empty._replace(
            support_BAW=jnp.zeros((*shape, support_words(vocab_size)), jnp.uint32)
        )
    out, live_B = sample(0, hidden_BD, empty, active_B)
    _, out, _ = jax.lax.while_loop(more, step, (jnp.asarray(1), out, live_B))
    return out
