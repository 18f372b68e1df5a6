"""The sampling distribution, and prefill and decode with a KV cache under `jit`.

Randomness of each token comes from (task, sample, step, token) alone, so a trajectory is the same
whatever batch or slot it ran in.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from steprl.ops import pack_support, support_words
from steprl.types import STOP_REASONS, Params, Policy

_BLOCK = 256  # tokens whose probability is summed first; about the root of a vocabulary
STOPPED, LENGTH = STOP_REASONS.index("stop_token"), STOP_REASONS.index("length")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["temperature"], meta_fields=["top_k", "top_p"]
)
@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are sampled from; under `jit` only the temperature is traced."""

    temperature: float | jax.Array = 1.0  # 0 is greedy
    top_k: int = 0  # keep the k most likely tokens, 0 = all
    top_p: float = 1.0  # then keep the nucleus of this probability, 1.0 = all

    @property
    def truncates(self) -> bool:
        """Some tokens cannot be sampled."""
        return bool(self.top_k) or self.top_p < 1.0


class _SamplingSettings(Protocol):
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...


def sampling_of(settings: _SamplingSettings) -> Sampling:
    """The sampling of a section of the configuration: `rollout` or `eval`."""
    return Sampling(settings.temperature, settings.top_k, settings.top_p)


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
    probs_V = probs_V.astype(jnp.float32)
    shape = probs_V.shape[:-1] + (1,)
    # The set of tau=0 is everything; rounding may leave its mass below p, which must not matter.
    low = jnp.zeros(shape, jnp.int32)
    high = _as_int(jnp.max(probs_V, axis=-1, keepdims=True)) + 1

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        mass = jnp.sum(jnp.where(probs_V >= _as_float(middle), probs_V, 0.0), -1, keepdims=True)
        enough = mass >= p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return probs_V >= _as_float(low)


def _as_int(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _as_float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def sampling_logprobs(logits_V: jax.Array, sampling: Sampling = Sampling()) -> jax.Array:
    """Log-probs of the distribution that is sampled from; -inf where a token cannot come.

    Args:
        logits_V: [..., V].
        sampling: of a temperature above 0.

    Returns:
        [..., V] float32.
    """
    return jax.nn.log_softmax(_kept_logits(logits_V, sampling))


def _kept_logits(logits_V: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits over temperature, less their maximum; -inf where a token cannot come."""
    logits_V = logits_V.astype(jnp.float32) / sampling.temperature
    logits_V = logits_V - jnp.max(logits_V, axis=-1, keepdims=True)
    if sampling.top_k:
        logits_V = jnp.where(keep_top_k(logits_V, sampling.top_k), logits_V, -jnp.inf)
    if sampling.top_p < 1.0:
        keep = keep_top_p(jax.nn.softmax(logits_V), sampling.top_p)
        logits_V = jnp.where(keep, logits_V, -jnp.inf)
    return logits_V


def draw(
    logits_V: jax.Array, key: jax.Array, sampling: Sampling = Sampling()
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token of one row, by inverting the distribution function at one uniform number.

    Temperature 0 takes the most likely token: a point mass, of log-prob and entropy 0.

    Returns:
        token (int32), its log-prob, entropy of the distribution.
    """
    token, logprob, entropy, _ = _draw(logits_V, key, sampling)
    return token, logprob, entropy


def _draw(
    logits_V: jax.Array, key: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """`draw`, and the words of the set it drew from; None without truncation."""

    def most_likely() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        token, certain = _first_maximum(logits_V), jnp.zeros((), jnp.float32)
        support_W = None
        if sampling.truncates:
            support_W = pack_support(jax.nn.one_hot(token, logits_V.shape[-1], dtype=bool))
        return token, certain, certain, support_W

    def by_chance() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        kept_V = _kept_logits(logits_V, sampling)
        weight_V = jnp.exp(kept_V)
        # In two strides, a block and then its token: no running sum of the whole vocabulary.
        size = min(_BLOCK, len(weight_V))
        blocks = jnp.pad(weight_V, (0, -len(weight_V) % size)).reshape(-1, size)
        mass = jnp.sum(blocks, axis=1)
        total = jnp.sum(mass)
        target = jax.random.uniform(key) * total
        block, before = _first_above(mass, target)
        place, _ = _first_above(blocks[block], target - before)
        token = (block * size + place).astype(jnp.int32)
        mean = jnp.sum(jnp.where(weight_V > 0, weight_V * kept_V, 0.0)) / total
        support_W = pack_support(kept_V > -jnp.inf) if sampling.truncates else None
        return token, kept_V[token] - jnp.log(total), jnp.log(total) - mean, support_W

    # A branch, so that greedy decoding pays for nothing else, also where temperature is traced.
    return jax.lax.cond(jnp.asarray(sampling.temperature) == 0.0, most_likely, by_chance)


def _first_maximum(x_V: jax.Array) -> jax.Array:
    """argmax in two plain reductions, which a CPU computes many numbers at a time."""
    size = x_V.shape[-1]
    place_V = jnp.where(x_V == jnp.max(x_V), jnp.arange(size, dtype=jnp.int32), size - 1)
    return jnp.min(place_V)


def _first_above(mass: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first place whose running sum passes the target, and the sum before it.

    A parallel sum may rise by rounding at a place of no mass, which must not be found, and may stay
    below its own total; then the place is the heaviest.
    """
    running = jnp.cumsum(mass)
    above, places = (running > target) & (mass > 0), jnp.arange(len(mass), dtype=jnp.int32)
    first = jnp.min(jnp.where(above, places, len(mass)))
    place = jnp.where(first < len(mass), first, _first_maximum(mass))
    return place, running[place] - mass[place]


def prefill(
    policy: Policy,
    params: Params,
    cache: Any,
    tokens_BC: jax.Array,
    length_B: jax.Array,
    start_B: jax.Array,
    active_B: jax.Array,
) -> tuple[jax.Array, Any]:
    """Reads what is new of each row's context into the cache.

    Args:
        tokens_BC: [B, C] new tokens, right-padded.
        length_B: [B] how many of them are real, at least 1 for active rows.
        start_B: [B] position of the first of them.
        active_B: [B] False for rows that take no part: nothing of theirs changes.

    Returns:
        [B, D] hidden state at the last real token of each row, and the cache.
    """
    index_C = jnp.arange(tokens_BC.shape[1])[None, :]
    real_BC = (index_C < length_B[:, None]) & active_B[:, None]
    positions_BC = start_B[:, None] + index_C
    hidden_BCD, cache = policy.apply(
        params, tokens_BC, positions_BC, real_BC.astype(jnp.int32), cache
    )
    last_B = jnp.maximum(length_B - 1, 0)
    return jnp.take_along_axis(hidden_BCD, last_B[:, None, None], axis=1)[:, 0], cache


def decode(
    policy: Policy,
    params: Params,
    cache: Any,
    hidden_BD: jax.Array,
    next_B: jax.Array,
    keys_B: jax.Array,
    active_B: jax.Array,
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling = Sampling(),
    pad_id: int = 0,
    taken_B: jax.Array | None = None,
) -> Generation:
    """Samples one action a row, or the rest of one that has begun.

    Args:
        hidden_BD: [B, D] hidden state of the last token of each row, from `prefill`.
        next_B: [B] position of the first token to sample.
        keys_B: [B] key of each row's step; token i of the action uses fold_in(key, i).
        active_B: [B] False for rows that take no part.
        max_tokens: A, tokens of an action at most.
        stop_ids: tokens that end an action and belong to it.
        sampling: the distribution; its temperature may be traced.
        taken_B: [B] tokens that the action has already, below A; they are in the cache and counted
            in A. None for 0.

    Returns:
        What was sampled, from place 0 on in every row, and the cache with all of it but each row's
        last token. Where `sampling` truncates, also the set that each token was drawn from (one
        token if greedy).
    """
    batch = hidden_BD.shape[0]
    taken_B = jnp.zeros(batch, jnp.int32) if taken_B is None else taken_B

    def sample(index: jax.Array | int, hidden_BD: jax.Array, out: Generation, live_B: jax.Array):  # type: ignore[no-untyped-def]
        place_B = taken_B + index
        keys = jax.vmap(jax.random.fold_in)(keys_B, place_B)
        rows = lambda logits, key: _draw(logits, key, sampling)  # noqa: E731
        logits_BV = policy.unembed(params, hidden_BD)
        token_B, logprob_B, entropy_B, support_BW = jax.vmap(rows)(logits_BV, keys)
        stop_B = jnp.isin(token_B, jnp.asarray(stop_ids, jnp.int32))
        full_B = place_B + 1 >= max_tokens
        reason_B = jnp.where(stop_B, STOPPED, jnp.where(full_B, LENGTH, 0))
        put = lambda array, x, rest: array.at[:, index].set(jnp.where(live_B, x, rest))  # noqa: E731
        out = out._replace(
            tokens_BA=put(out.tokens_BA, token_B, pad_id),
            logprob_BA=put(out.logprob_BA, logprob_B, 0.0),
            entropy_BA=put(out.entropy_BA, entropy_B, 0.0),
            mask_BA=put(out.mask_BA, True, False),
            stop_reason_B=jnp.where(live_B, reason_B, out.stop_reason_B),
        )
        if support_BW is not None and out.support_BAW is not None:
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
    if sampling.truncates:
        vocab_size = jax.eval_shape(policy.unembed, params, hidden_BD).shape[-1]
        empty = empty._replace(
            support_BAW=jnp.zeros((*shape, support_words(vocab_size)), jnp.uint32)
        )
    out, live_B = sample(0, hidden_BD, empty, active_B)
    _, out, _ = jax.lax.while_loop(more, step, (jnp.asarray(1), out, live_B))
    return out


def generate(
    policy: Policy,
    params: Params,
    cache: Any,
    tokens_BC: jax.Array,
    length_B: jax.Array,
    start_B: jax.Array,
    keys_B: jax.Array,
    active_B: jax.Array,
    **settings: Any,
) -> Generation:
    """`prefill` of what is new of each row's context, then `decode` of one action a row.

    In a later turn the new tokens begin with the last one of the row's previous action, which is not
    in the cache yet.

    Args:
        tokens_BC, length_B, start_B: see `prefill`.
        keys_B, settings: see `decode`.
        active_B: [B] False for rows that take no part: they change nothing.
    """
    hidden_BD, cache = prefill(policy, params, cache, tokens_BC, length_B, start_B, active_B)
    next_B = start_B + length_B
    return decode(policy, params, cache, hidden_BD, next_B, keys_B, active_B, **settings)
