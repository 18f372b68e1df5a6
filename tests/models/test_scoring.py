"""Scores of a batch: those of the full vocabulary, at no time as an array of tokens by vocabulary."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.models import DecoderConfig, logprobs_and_entropy, make_policy, sampled_places, score
from steprl.ops import pack_support
from steprl.types import Policy, StepBatch

ROWS, LENGTH, ACTIONS, WIDTH, VOCAB = 3, 14, 7, 6, 101

LINEAR = Policy(
    init=lambda key: 0.5 * jax.random.normal(key, (WIDTH, VOCAB)),
    apply=lambda params, tokens, *_: (params.T[tokens], None),
    unembed=lambda params, hidden: hidden @ params,
    value=None,
    init_cache=lambda *_: None,
)
"""A policy of one matrix: `Policy` is any set of functions of this form."""


def of_whole_vocabulary(policy, params, hidden, targets, temperature):
    logprob = jax.nn.log_softmax(policy.unembed(params, hidden) / temperature)
    chosen = jnp.take_along_axis(logprob, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logprob) * logprob, axis=-1)


@pytest.fixture(scope="module")
def drawn():
    draw = np.random.default_rng(0)
    hidden = jnp.asarray(draw.normal(size=(ROWS, ACTIONS, WIDTH)), jnp.float32)
    targets = jnp.asarray(draw.integers(0, VOCAB, (ROWS, ACTIONS)))
    return LINEAR.init(jax.random.key(0)), hidden, targets


@pytest.mark.parametrize(
    ("chunk_tokens", "temperature"), [(1, 1.0), (6, 0.7), (9, 1.0), (20, 0.7), (1000, 1.0)]
)
def test_chunks_give_the_values_and_gradients_of_the_full_vocabulary(
    drawn, chunk_tokens, temperature
):
    def gradient(compute):
        def loss(params, hidden):
            out = compute(LINEAR, params, hidden, drawn[2], temperature)
            return jnp.sum(jnp.sin(out[0]) + jnp.cos(out[1])), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*drawn[:2])

    chunked = gradient(functools.partial(logprobs_and_entropy, chunk_tokens=chunk_tokens))
    whole = gradient(of_whole_vocabulary)
    for one, other in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("columns", [1, 6])
def test_logits_beyond_the_cache_are_read_as_all_others(columns):
    """On a CPU they are read a column at a time; the values and the gradients are the same."""
    draw = np.random.default_rng(3)
    vocabulary = 2**20 // (2 * columns) + 5
    hidden = jnp.asarray(draw.normal(size=(2, columns, 3)), jnp.float32)
    targets = jnp.asarray(draw.integers(0, vocabulary, (2, columns)))
    params = jnp.asarray(draw.normal(size=(3, vocabulary)), jnp.float32)

    def gradient(compute):
        def loss(params, hidden):
            out = compute(LINEAR, params, hidden, targets, 0.7)
            return jnp.sum(jnp.sin(out[0]) + jnp.cos(out[1])), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, hidden)

    for one, other in zip(
        *map(jax.tree.leaves, map(gradient, (logprobs_and_entropy, of_whole_vocabulary))),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- which tokens


@pytest.mark.parametrize(
    ("step_ids", "segments", "width", "place", "before"),
    [
        ([-1, 0, 0, -1, 1, -1], [1, 1, 1, 1, 1, 0], 4, [1, 2, 4, 6], [0, 1, 3]),
        ([-1, -1, 0, -1, 0, 1], [1, 0, 1, 0, 1, 1], 3, [2, 4, 5], [0, 2, 4]),  # holes
        ([-1, -1, -1, -1, -1, 0], [1, 1, 0, 0, 0, 1], 1, [5], [1]),  # a wide hole
        ([-1, -1, 0, 0, -1, -1], [0, 1, 1, 1, 0, 0], 3, [2, 3, 6], [1, 2]),  # padded on the left
        ([-1, -1, -1, -1, -1, -1], [1, 1, 1, 0, 0, 0], 2, [6, 6], []),  # nothing sampled
    ],
)
def test_each_sampled_token_is_predicted_from_the_real_token_before_it(
    step_ids, segments, width, place, before
):
    found = sampled_places(jnp.asarray(step_ids), jnp.asarray(segments), width)
    np.testing.assert_array_equal(found[0], place)
    np.testing.assert_array_equal(found[1][: len(before)], before)
    assert found[1].shape == (width,) and np.all((found[1] >= 0) & (found[1] < 6))


def batch_of(tokens, step_ids, segments):
    shape = tokens.shape
    zero, no = np.zeros(shape, np.float32), np.zeros((shape[0], 2), bool)
    positions = np.where(segments > 0, np.cumsum(segments > 0, axis=1) - 1, 0)
    return StepBatch(
        tokens, positions.astype(np.int32), segments, step_ids, zero, zero,
        no.astype(np.float32), ~no, no, no, no, no.astype(np.int32), no[:, 0], no[:, 0], no[:, 0],
        action_width=ACTIONS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def holed():
    """Rows with holes; row 2 samples nothing."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    segments = np.array([[1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0]] * ROWS, np.int32)
    steps = np.array([[-1, -1, 0, 0, -1, 0, -1, 1, 1, -1, -1, -1, 2, -1]] * ROWS, np.int32)
    segments[1], steps[1] = np.roll(segments[1], 1), np.roll(steps[1], 1)
    steps[2] = -1
    return batch_of(tokens, steps, segments)


@pytest.fixture(scope="module")
def model():
    policy = make_policy(
        DecoderConfig(
            vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24
        )
    )  # fmt: skip
    params = policy.init(jax.random.key(0))
    params["value"]["out"]["kernel"] += 0.5
    params["decoder"]["embedding"]["embedding"] *= 10.0
    return policy, params


@pytest.fixture(scope="module")
def scored(model):
    policy, params = model
    return jax.jit(lambda batch, t: score(policy, params, batch, t, chunk_tokens=2 * ROWS))


def test_scores_are_those_of_each_row_without_its_holes(model, scored, holed):
    policy, params = model
    scores = scored(holed, 0.7)
    for row in range(ROWS):
        real = holed.segment_ids_NT[row] > 0
        tokens = holed.tokens_NT[row][real][None]
        ones = np.ones_like(tokens)
        line = (tokens, np.arange(tokens.shape[1], dtype=np.int32)[None], ones)
        hidden, _ = policy.apply(params, *line)
        logprob, entropy = of_whole_vocabulary(
            policy, params, hidden[:, :-1], jnp.asarray(tokens[:, 1:]), 0.7
        )
        value = policy.value(params, *line, hidden)[:, :-1]
        sampled = holed.step_ids_NT[row][real][1:] >= 0
        for found, expected in zip(scores[:3], (logprob, entropy, value), strict=True):
            np.testing.assert_allclose(
                found[row][real][1:], np.where(sampled, expected[0], 0.0), rtol=1e-4, atol=1e-5
            )
    assert np.abs(scores.value_NT).max() > 0.1


@pytest.mark.parametrize("holes", [False, True])
def test_the_final_value_is_read_at_the_last_real_token(model, scored, holed, holes):
    policy, params = model
    segments = holed.segment_ids_NT.copy()
    if holes:
        segments[:, -4:], segments[1] = 0, 0  # the end elsewhere; a row of nothing
    batch = batch_of(holed.tokens_NT, np.where(segments > 0, holed.step_ids_NT, -1), segments)
    line = (batch.tokens_NT, batch.positions_NT, batch.segment_ids_NT)
    hidden, _ = policy.apply(params, *line)
    value = np.asarray(policy.value(params, *line, hidden))
    found = scored(batch, 1.0).final_value_N
    assert found.shape == (ROWS,) and found.dtype == jnp.float32
    for row in range(ROWS):
        real = np.flatnonzero(segments[row] > 0)
        expected = value[row, real[-1]] if len(real) else 0.0
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(found) > 0.01


@pytest.mark.slow
def test_without_a_critic_values_are_zero(holed):
    scores = score(LINEAR, LINEAR.init(jax.random.key(0)), holed)
    assert not np.any(scores.value_NT) and not np.any(scores.final_value_N)
    assert scores.final_value_N.shape == (ROWS,)


def test_the_final_value_costs_no_further_pass(model, holed):
    """The critic's layers run once, whatever is read from them."""
    policy, params = model
    calls = []
    counted = policy._replace(
        apply=lambda *args: (calls.append("apply"), policy.apply(*args))[1],
        value=lambda *args: (calls.append("value"), policy.value(*args))[1],
    )
    jax.make_jaxpr(functools.partial(score, counted))(params, holed)
    assert calls == ["apply", "value"]


def test_scores_are_zero_where_nothing_was_sampled(scored, holed):
    for found in scored(holed, 1.0)[:3]:
        assert found.shape == (ROWS, LENGTH) and found.dtype == jnp.float32
        assert not np.any(found[holed.step_ids_NT < 0])
        assert np.all(np.asarray(found)[holed.step_ids_NT >= 0] != 0)


def test_what_stands_at_masked_tokens_changes_no_score(scored, holed):
    padding = holed.segment_ids_NT == 0
    other = batch_of(
        np.where(padding, 2**31 - 1, holed.tokens_NT).astype(np.int32),
        holed.step_ids_NT,
        holed.segment_ids_NT,
    )
    for one, two in zip(scored(holed, 1.0), scored(other, 1.0), strict=True):
        np.testing.assert_array_equal(one, two)


# ---------------------------------------------------------------- truncated distributions


def supports_of(batch, seed=3):
    """A set of tokens for each sampled one, which it belongs to; [N, T, V] and in bits."""
    keep = np.random.default_rng(seed).random((*batch.tokens_NT.shape, VOCAB)) < 0.1
    np.put_along_axis(keep, batch.tokens_NT[..., None], True, axis=-1)
    keep &= (batch.step_ids_NT >= 0)[..., None]
    return keep, np.asarray(pack_support(keep))


@pytest.mark.parametrize("chunk_tokens", [2 * ROWS, 1000])
def test_each_token_is_scored_within_its_own_set(model, holed, chunk_tokens):
    policy, params = model
    keep, words = supports_of(holed)
    batch = dataclasses.replace(holed, support_NTW=words)
    found = jax.jit(lambda b: score(policy, params, b, 0.7, chunk_tokens))(batch)
    places = jax.vmap(functools.partial(sampled_places, width=ACTIONS))
    place, before = (np.asarray(x) for x in places(batch.step_ids_NT, batch.segment_ids_NT))
    hidden, _ = policy.apply(params, batch.tokens_NT, batch.positions_NT, batch.segment_ids_NT)
    logits = np.asarray(policy.unembed(params, hidden), np.float64) / 0.7
    for row, a in np.argwhere(place < LENGTH):
        t = place[row, a]
        kept = np.flatnonzero(keep[row, t])
        inside = logits[row, before[row, a], kept]
        inside = inside - np.log(np.exp(inside).sum())
        logprob = inside[np.searchsorted(kept, batch.tokens_NT[row, t])]
        np.testing.assert_allclose(found.logprob_NT[row, t], logprob, rtol=1e-4, atol=1e-5)
        entropy = -np.sum(np.exp(inside) * inside)
        np.testing.assert_allclose(found.entropy_NT[row, t], entropy, rtol=1e-4, atol=1e-5)
    masked = holed.step_ids_NT < 0
    assert not np.any(found.logprob_NT[masked]) and not np.any(found.entropy_NT[masked])


def test_a_set_of_everything_and_no_set_are_the_whole_vocabulary(model, scored, holed):
    whole = scored(holed, 0.7)
    for keep in (True, False):
        words = np.asarray(pack_support(np.full((*holed.tokens_NT.shape, VOCAB), keep)))
        same = scored(dataclasses.replace(holed, support_NTW=words), 0.7)
        chex.assert_trees_all_close(same, whole, rtol=1e-5, atol=1e-6)


def test_sets_of_another_vocabulary_are_refused(model, holed):
    batch = dataclasses.replace(holed, support_NTW=np.zeros((ROWS, LENGTH, 3), np.uint32))
    with pytest.raises(ValueError, match="3 words of support, and a vocabulary of 101 needs 4"):
        score(*model, batch)


# ---------------------------------------------------------------- memory


def shapes_in(jaxpr):
    """Shapes of all intermediate results, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def most_tokens_with_a_vocabulary(function, *args):
    shapes = list(shapes_in(jax.make_jaxpr(function)(*args).jaxpr))
    assert len(shapes) > 20
    return max(int(np.prod(s)) // VOCAB for s in shapes if VOCAB in s)


@pytest.mark.parametrize(
    "chunk_tokens", [pytest.param(2 * 8, marks=pytest.mark.slow), 4 * 8,
                     pytest.param(6 * 8, marks=pytest.mark.slow)]
)  # fmt: skip
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("truncated", [False, True], ids=["whole", "truncated"])
def test_logits_of_a_chunk_at_most_exist_at_a_time(model, chunk_tokens, backward, truncated):
    policy, params = model  # its width, 16, is that of the vocabulary's own arrays
    rows, length = 8, 64
    tokens = np.ones((rows, length), np.int32)
    batch = batch_of(tokens, np.where(np.arange(length) % 2, 0, -1)[None] * tokens, tokens)
    object.__setattr__(batch, "action_width", length // 2)
    if truncated:
        batch = dataclasses.replace(batch, support_NTW=np.ones((rows, length, 4), np.uint32))

    def loss(params, batch, chunk):
        scores = score(policy, params, batch, chunk_tokens=chunk)
        return sum(jnp.sum(x) for x in jax.tree.leaves(scores))

    program = jax.grad(loss) if backward else loss
    found = most_tokens_with_a_vocabulary(lambda p, b: program(p, b, chunk_tokens), params, batch)
    assert found <= chunk_tokens
    whole = most_tokens_with_a_vocabulary(lambda p, b: program(p, b, rows * length), params, batch)
    assert whole == rows * length // 2  # the measure sees what it should
