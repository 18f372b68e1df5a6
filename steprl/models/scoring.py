"""Log-probs, entropies and values of the sampled tokens of a batch, never as a [B, T, V] array."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.ops import entropy_from_logits, truncated_logprobs, unpack_support
from steprl.types import Params, Policy, StepBatch


class Scores(NamedTuple):
    """Of each sampled token; 0 elsewhere. The value is that of the state *before* the token.

    The final value is that of the state behind all that a row holds: where a limit cut the
    trajectory off, what might still have come. Where the environment ended it, it means nothing.
    """

    logprob_NT: jax.Array
    entropy_NT: jax.Array
    value_NT: jax.Array
    final_value_N: jax.Array  # read at the last real token; 0 without a value head or any token


def logprobs_and_entropy(
    policy: Policy,
    params: Params,
    hidden_NAD: jax.Array,
    targets_NA: jax.Array,
    temperature: float | jax.Array = 1.0,
    chunk_tokens: int = 8192,
    support_NAW: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target and entropy of its distribution, in chunks over the tokens.

    The chunks run along the second axis with all rows in each, so that rows may live on different
    devices; the backward pass recomputes the logits of a chunk.

    Args:
        hidden_NAD: [N, A, D] hidden states that predict the targets.
        targets_NA: [N, A] token ids.
        temperature: the logits are divided by it.
        chunk_tokens: tokens whose logits exist at the same time (at least one column of N).
        support_NAW: [N, A, W] sets of tokens that could be sampled, from `ops.pack_support`, over
            which the distributions are renormalised; None for the whole vocabulary.

    Returns:
        [N, A] log-probs and [N, A] entropies in nats, float32.
    """

    @jax.checkpoint
    def chunk(
        hidden_NaD: jax.Array, targets_Na: jax.Array, support_NaW: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        logits = policy.unembed(params, hidden_NaD).astype(jnp.float32) / temperature
        if support_NaW is not None:
            keep = unpack_support(support_NaW, logits.shape[-1])
            logprob = truncated_logprobs(logits, keep)
            chosen = jnp.take_along_axis(logprob, targets_Na[..., None], axis=-1)[..., 0]
            return chosen, entropy_from_logits(logprob)
        log_total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets_Na[..., None], axis=-1)[..., 0]
        entropy = log_total - jnp.sum(jnp.exp(logits - log_total[..., None]) * logits, axis=-1)
        return chosen - log_total, entropy

    rows, columns, _ = hidden_NAD.shape
    per_chunk = min(columns, max(1, chunk_tokens // rows))
    if per_chunk == columns:
        return chunk(hidden_NAD, targets_NA, support_NAW)
    chunks = -(-columns // per_chunk)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * per_chunk - columns)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, chunks, per_chunk, *x.shape[2:]), 1, 0)

    parts = jax.tree.map(split, (hidden_NAD, targets_NA, support_NAW))
    logprob, entropy = jax.lax.map(lambda part: chunk(*part), parts)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :columns]  # noqa: E731
    return join(logprob), join(entropy)


def sampled_places(
    step_ids_t: jax.Array, segment_ids_t: jax.Array, width: int
) -> tuple[jax.Array, ...]:
    """Where a row's sampled tokens stand, and which token each was predicted from.

    Args:
        step_ids_t: [T] step ids, -1 where the token was not sampled.
        segment_ids_t: [T] 0 at padding.
        width: A, at least the number of sampled tokens.

    Returns:
        place_a: [A] index of the sampled tokens in order, T where there is none.
        before_a: [A] index of the real token before each, holes skipped.
    """
    length = step_ids_t.shape[0]
    index_t = jnp.arange(length)
    place_a = jnp.sort(jnp.where(step_ids_t >= 0, index_t, length))[:width]
    last_real_t = jax.lax.cummax(jnp.where(segment_ids_t > 0, index_t, 0))
    before_t = jnp.concatenate([jnp.zeros(1, last_real_t.dtype), last_real_t[:-1]])
    return place_a, before_t[jnp.minimum(place_a, length - 1)]


def score(
    policy: Policy,
    params: Params,
    batch: StepBatch,
    temperature: float | jax.Array = 1.0,
    chunk_tokens: int = 8192,
) -> Scores:
    """One training forward pass: what the parameters say about the sampled tokens of a batch.

    Equal to what decoding recorded when the parameters are the same (the first ratio is 1): where
    the rollout truncated its distribution, each token is scored within the set it was drawn from.
    """
    params = policy.prepare(params)
    contexts = _contexts(batch)
    hidden_MWD, _ = policy.apply(params, *contexts)
    hidden_NTD = hidden_MWD.reshape(*batch.tokens_NT.shape, -1)
    places = jax.vmap(lambda s, g: sampled_places(s, g, batch.action_width))
    place_NA, before_NA = places(batch.step_ids_NT, batch.segment_ids_NT)
    rows_NA = jnp.arange(place_NA.shape[0])[:, None]
    there_NA = place_NA < batch.tokens_NT.shape[1]
    tokens_NT = jnp.asarray(batch.tokens_NT)
    targets_NA = jnp.where(there_NA, tokens_NT.at[rows_NA, place_NA].get(mode="clip"), 0)
    hidden_NAD = jnp.take_along_axis(hidden_NTD, before_NA[:, :, None], axis=1)
    support_NAW = None
    if batch.support_NTW is not None:
        support_NTW = jnp.asarray(batch.support_NTW)
        support_NAW = support_NTW.at[rows_NA, place_NA].get(mode="clip")
        # The empty set keeps everything, so that no place without a token is of log-prob -inf.
        support_NAW = jnp.where(there_NA[..., None], support_NAW, jnp.uint32(0))
    logprob_NA, entropy_NA = logprobs_and_entropy(
        policy, params, hidden_NAD, targets_NA, temperature, chunk_tokens, support_NAW
    )

    def scatter(x_NA: jax.Array) -> jax.Array:
        dark = jnp.zeros(batch.tokens_NT.shape, jnp.float32)
        return dark.at[rows_NA, place_NA].set(jnp.where(there_NA, x_NA, 0.0), mode="drop")

    value_NT = jnp.zeros_like(batch.logprob_NT)
    final_value_N = jnp.zeros(place_NA.shape[0], jnp.float32)
    if policy.value is not None:
        of_state_NT = policy.value(params, *contexts, hidden_MWD).reshape(batch.tokens_NT.shape)
        value_NT = scatter(jnp.take_along_axis(of_state_NT, before_NA, axis=1))
        real_NT = jnp.asarray(batch.segment_ids_NT) > 0
        index_NT = jnp.broadcast_to(jnp.arange(real_NT.shape[1]), real_NT.shape)
        last_N1 = jnp.max(jnp.where(real_NT, index_NT, 0), axis=1, keepdims=True)
        final_value_N = jnp.take_along_axis(of_state_NT, last_N1, axis=1)[:, 0]
        final_value_N = jnp.where(jnp.any(real_NT, axis=1), final_value_N, 0.0)
    return Scores(scatter(logprob_NA), scatter(entropy_NA), value_NT, final_value_N)


def _contexts(batch: StepBatch) -> tuple[jax.Array, ...]:
    """Tokens, positions and segment ids, cut where no context crosses: attention sees no more."""
    arrays = (batch.tokens_NT, batch.positions_NT, batch.segment_ids_NT)
    if not batch.context_width:
        return arrays
    return tuple(jnp.reshape(x, (-1, batch.context_width)) for x in arrays)
