"""Log-probs, entropies and values of the sampled tokens of a batch, never as a [B, T, V] array."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.models.critic_view import read_states, states_of_view
from steprl.models.values import read_values
from steprl.ops import unpack_support
from steprl.types import Params, Policy, StepBatch, TreeLayout


class Scores(NamedTuple):
    """Of each sampled token; 0 elsewhere. The value is that of the state *before* the token.

    The final value is that of the state after the last token of a row: where a limit cut the
    trajectory off, it estimates the missing rest. Where the environment ended it, it means nothing.
    """

    logprob_NT: jax.Array
    entropy_NT: jax.Array
    value_NT: jax.Array
    final_value_N: jax.Array  # read at the last real token; 0 without a value head or any token
    value_logits_NTZ: jax.Array | None = None  # of a critic that predicts a distribution


class Trunk(NamedTuple):
    """What the lowest layers of a policy make of a batch, where it is known already."""

    layers: int
    hidden_BUD: jax.Array  # of each slot that the model is run on


def _statistics(logits_V: jax.Array, target: jax.Array) -> tuple[jax.Array, ...]:
    """Log-prob of the target, entropy, and log of the sum of the exponentials, of each row."""
    highest = jnp.max(logits_V, axis=-1, keepdims=True)
    shifted_V = logits_V - highest
    weight_V = jnp.exp(shifted_V)
    total = jnp.sum(weight_V, axis=-1)
    # A token that cannot come has log-prob -inf, and adds nothing.
    energy = jnp.sum(jnp.where(weight_V > 0, weight_V * shifted_V, 0.0), axis=-1)
    log_total = jnp.log(total)
    chosen = jnp.take_along_axis(shifted_V, target[..., None], axis=-1)[..., 0]
    return chosen - log_total, log_total - energy / total, highest[..., 0] + log_total


def _statistics_by_column(logits_NAV: jax.Array, target_NA: jax.Array) -> tuple[jax.Array, ...]:
    """`_statistics` one column at a time: on a CPU it is ten times faster within the cache."""
    if logits_NAV.size <= 1 << 20:
        return _statistics(logits_NAV, target_NA)

    def column(index: jax.Array) -> tuple[jax.Array, ...]:
        take = lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)  # noqa: E731
        return _statistics(take(logits_NAV), take(target_NA))

    columns = jax.lax.map(column, jnp.arange(target_NA.shape[1]))
    return tuple(x.T for x in columns)


@jax.custom_vjp
def _logprob_and_entropy(
    logits_NAV: jax.Array, target_NA: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of the target and entropy; the derivative is one pass over the logits."""
    return _forward(logits_NAV, target_NA)[0]


def _forward(logits_NAV: jax.Array, target_NA: jax.Array):  # type: ignore[no-untyped-def]
    logprob, entropy, log_total = jax.lax.platform_dependent(
        logits_NAV, target_NA, cpu=_statistics_by_column, default=_statistics
    )
    return (logprob, entropy), (logits_NAV, target_NA, entropy, log_total)


def _backward(saved, cotangents):  # type: ignore[no-untyped-def]
    """d log p_t = 1[v = t] - p_v;  d H = -p_v (log p_v + H)."""
    logits_NAV, target_NA, entropy, log_total = saved
    of_logprob, of_entropy = cotangents
    logprob_NAV = logits_NAV - log_total[..., None]
    prob_NAV = jnp.exp(logprob_NAV)
    slope = of_logprob[..., None] + of_entropy[..., None] * (logprob_NAV + entropy[..., None])
    gradient_NAV = jnp.where(prob_NAV > 0, -prob_NAV * slope, 0.0)
    # A scatter and not a mask: what the two products of the head read is then computed once.
    add = jax.vmap(jax.vmap(lambda row_V, target, value: row_V.at[target].add(value)))
    return add(gradient_NAV, target_NA, of_logprob), None


_logprob_and_entropy.defvjp(_forward, _backward)


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
    devices. The backward pass recomputes the logits of a chunk, unless there is but one: the
    backward pass of the head comes first, so they would be there at the same time anyway.

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

    def chunk(
        hidden_NaD: jax.Array, targets_Na: jax.Array, support_NaW: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        logits_NaV = policy.unembed(params, hidden_NaD).astype(jnp.float32) / temperature
        if support_NaW is not None:
            keep_NaV = unpack_support(support_NaW, logits_NaV.shape[-1])
            keep_NaV |= ~jnp.any(keep_NaV, axis=-1, keepdims=True)  # the empty set keeps all
            logits_NaV = jnp.where(keep_NaV, logits_NaV, -jnp.inf)
        return _logprob_and_entropy(logits_NaV, targets_Na)

    rows, columns, _ = hidden_NAD.shape
    per_chunk = min(columns, max(1, chunk_tokens // rows))
    if per_chunk == columns:
        return chunk(hidden_NAD, targets_NA, support_NAW)
    chunks = -(-columns // per_chunk)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * per_chunk - columns)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, chunks, per_chunk, *x.shape[2:]), 1, 0)

    parts = jax.tree.map(split, (hidden_NAD, targets_NA, support_NAW))
    logprob, entropy = jax.lax.map(lambda part: jax.checkpoint(chunk)(*part), parts)
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
    trunk: Trunk | None = None,
) -> Scores:
    """One training forward pass: what the parameters say about the sampled tokens of a batch.

    Equal to what decoding recorded when the parameters are the same (the first ratio is 1): where
    the rollout truncated its distribution, each token is scored within the set it was drawn from.
    Where the batch has a `tree`, the tokens that its rows share are run once, to the same end; with a
    `trunk` too, only the layers above it are.
    """
    params = policy.prepare(params)
    if batch.tree is not None:
        return _score_tree(policy, params, batch, batch.tree, temperature, chunk_tokens, trunk)
    contexts = _contexts(batch)
    hidden_MWD, _ = policy.apply(params, *contexts)
    hidden_NTD = hidden_MWD.reshape(*batch.tokens_NT.shape, -1)
    places = jax.vmap(lambda s, g: sampled_places(s, g, batch.action_width))
    place_NA, before_NA = places(batch.step_ids_NT, batch.segment_ids_NT)
    rows_NA = jnp.arange(place_NA.shape[0])[:, None]
    real_NA = place_NA < batch.tokens_NT.shape[1]
    tokens_NT = jnp.asarray(batch.tokens_NT)
    targets_NA = jnp.where(real_NA, tokens_NT.at[rows_NA, place_NA].get(mode="clip"), 0)
    hidden_NAD = jnp.take_along_axis(hidden_NTD, before_NA[:, :, None], axis=1)
    support_NAW = None
    if batch.support_NTW is not None:
        support_NTW = jnp.asarray(batch.support_NTW)
        support_NAW = support_NTW.at[rows_NA, place_NA].get(mode="clip")
        # The empty set keeps everything, so that no place without a token is of log-prob -inf.
        support_NAW = jnp.where(real_NA[..., None], support_NAW, jnp.uint32(0))
    logprob_NA, entropy_NA = logprobs_and_entropy(
        policy, params, hidden_NAD, targets_NA, temperature, chunk_tokens, support_NAW
    )

    def scatter(x_NA: jax.Array) -> jax.Array:
        zero_NT = jnp.zeros(batch.tokens_NT.shape, jnp.float32)
        return zero_NT.at[rows_NA, place_NA].set(jnp.where(real_NA, x_NA, 0.0), mode="drop")

    value_NT = jnp.zeros_like(batch.logprob_NT)
    final_value_N = jnp.zeros(place_NA.shape[0], jnp.float32)
    logits_NTZ = None
    if policy.value is not None:
        if batch.privileged is None:
            output = policy.value(params, *contexts, hidden_MWD)
            output = output.reshape(*batch.tokens_NT.shape, *output.shape[2:])
        else:
            output = states_of_view(policy, params, batch)
        of_state_NT, of_bins_NTZ = read_values(policy, output)
        if of_bins_NTZ is not None:
            of_bins_NAZ = jnp.take_along_axis(of_bins_NTZ, before_NA[:, :, None], axis=1)
            logits_NTZ = jax.vmap(scatter, in_axes=2, out_axes=2)(of_bins_NAZ)
        value_NT = scatter(jnp.take_along_axis(of_state_NT, before_NA, axis=1))
        real_NT = jnp.asarray(batch.segment_ids_NT) > 0
        index_NT = jnp.broadcast_to(jnp.arange(real_NT.shape[1]), real_NT.shape)
        last_N1 = jnp.max(jnp.where(real_NT, index_NT, 0), axis=1, keepdims=True)
        final_value_N = jnp.take_along_axis(of_state_NT, last_N1, axis=1)[:, 0]
        final_value_N = jnp.where(jnp.any(real_NT, axis=1), final_value_N, 0.0)
    return Scores(scatter(logprob_NA), scatter(entropy_NA), value_NT, final_value_N, logits_NTZ)


def _score_tree(
    policy: Policy,
    params: Params,
    batch: StepBatch,
    tree: TreeLayout,
    temperature: float | jax.Array,
    chunk_tokens: int,
    trunk: Trunk | None,
) -> Scores:
    """`score` where each token is run once: every row that holds it reads the same result.

    So the gradient of a token is summed over its rows before it goes through the model.
    """
    groups, blocks, _ = tree.tokens_MGU.shape
    rows = batch.tokens_NT.shape[0]
    arrays = (tree.tokens_MGU, tree.positions_MGU, tree.segment_ids_MGU, tree.segment_ends_MGU)
    *contexts, ends_BU = (jnp.reshape(x, (groups * blocks, -1)) for x in arrays)
    longest = batch.context_width or batch.tokens_NT.shape[1]
    in_tree: dict[str, Any] = dict(segment_ends_BT=ends_BU, longest=longest)
    above = {} if trunk is None else dict(trunk_BTD=trunk.hidden_BUD, trunk_layers=trunk.layers)
    hidden_BUD, _ = policy.apply(params, *contexts, **in_tree, **above)
    tokens_MQ, hidden_MQD = (
        jnp.reshape(x, (groups, -1, *x.shape[2:])) for x in (contexts[0], hidden_BUD)
    )
    target_MP, before_MP = jnp.asarray(tree.target_MP), jnp.asarray(tree.before_MP)
    last = tokens_MQ.shape[1] - 1
    token_MP = jnp.take_along_axis(tokens_MQ, jnp.minimum(target_MP, last), axis=1)
    logprob_MP, entropy_MP = logprobs_and_entropy(
        policy,
        params,
        jnp.take_along_axis(hidden_MQD, before_MP[:, :, None], axis=1),
        jnp.where(target_MP <= last, token_MP, 0),
        temperature,
        chunk_tokens,
        None if tree.support_MPW is None else jnp.asarray(tree.support_MPW),
    )

    def gather(x_MP: jax.Array, index: jax.Array) -> jax.Array:
        """What stands at an index of its group, for arrays of rows; 0 where that is negative."""
        index_MI = jnp.reshape(index, (groups, -1))
        x_MI = jnp.take_along_axis(x_MP, jnp.maximum(index_MI, 0), axis=1)
        return jnp.where(index_MI >= 0, x_MI, 0.0).reshape(index.shape)

    value_NT = jnp.zeros_like(batch.logprob_NT)
    final_value_N = jnp.zeros(rows, jnp.float32)
    logits_NTZ = None
    if policy.value is not None and batch.privileged is not None:
        # Rows with the same tokens may be told different things: the critic reads each on its own.
        of_state_NT, of_bins_NTZ = read_values(policy, states_of_view(policy, params, batch))
        value_NT, final_value_N = read_states(batch, of_state_NT)
        if of_bins_NTZ is not None:
            read_bin = lambda of_bin_NT: read_states(batch, of_bin_NT)[0]  # noqa: E731
            logits_NTZ = jax.vmap(read_bin, in_axes=2, out_axes=2)(of_bins_NTZ)
    elif policy.value is not None:
        output = policy.value(params, *contexts, hidden_BUD, **in_tree)
        output_MQ = jnp.reshape(output, (groups, -1, *output.shape[2:]))
        of_state_MQ, of_bins_MQZ = read_values(policy, output_MQ)
        if of_bins_MQZ is not None:
            of_bins_MPZ = jnp.take_along_axis(of_bins_MQZ, before_MP[:, :, None], axis=1)
            of_rows = lambda x_MP: gather(x_MP, tree.scored_NT)  # noqa: E731
            logits_NTZ = jax.vmap(of_rows, in_axes=2, out_axes=2)(of_bins_MPZ)
        value_MP = jnp.take_along_axis(of_state_MQ, before_MP, axis=1)
        value_NT = gather(value_MP, tree.scored_NT)
        final_value_N = gather(of_state_MQ, tree.last_N)
    logprob_NT, entropy_NT = (gather(x, tree.scored_NT) for x in (logprob_MP, entropy_MP))
    return Scores(logprob_NT, entropy_NT, value_NT, final_value_N, logits_NTZ)


def _contexts(batch: StepBatch) -> tuple[jax.Array, ...]:
    """Tokens, positions and segment ids, cut where no context crosses: attention sees no more."""
    arrays = (batch.tokens_NT, batch.positions_NT, batch.segment_ids_NT)
    if not batch.context_width:
        return arrays
    return tuple(jnp.reshape(x, (-1, batch.context_width)) for x in arrays)
