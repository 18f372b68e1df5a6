"""Supports in bits and log-probs over them: what was stored is what is normalised over."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.ops import (
    entropy_from_logits,
    pack_support,
    support_words,
    truncated_logprobs,
    truncation,
    unpack_support,
)

SIZES = (1, 31, 32, 33, 64, 70)
few = settings(max_examples=40, deadline=None)
pack, logprobs = jax.jit(pack_support), jax.jit(truncated_logprobs)


@st.composite
def sets(draw, sizes=SIZES):
    """Two sets of tokens of one vocabulary."""
    size = draw(st.sampled_from(sizes))
    bits = draw(st.lists(st.booleans(), min_size=2 * size, max_size=2 * size))
    return np.array(bits).reshape(2, size)


# ---------------------------------------------------------------- bits


@few
@given(sets())
def test_token_v_is_bit_v_of_the_words_read_as_one_number(keep):
    words = np.asarray(pack(keep))
    assert words.dtype == np.uint32 and words.shape == (2, support_words(keep.shape[1]))
    for row, mine in zip(keep, words, strict=True):
        number = sum(int(word) << (32 * place) for place, word in enumerate(mine))
        assert number == sum(1 << int(v) for v in np.flatnonzero(row))


@few
@given(sets())
def test_a_set_comes_back_as_it_was(keep):
    back = unpack_support(pack(keep), keep.shape[1])
    assert back.dtype == bool
    np.testing.assert_array_equal(back, keep)


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.float32])
def test_any_number_but_zero_is_in_the_set(dtype):
    np.testing.assert_array_equal(pack_support(np.array([0, 1, 0, 1, 1], dtype)), [0b11010])


def test_a_vocabulary_costs_an_eighth_of_a_byte_a_token():
    assert pack_support(np.ones((3, 131072), bool)).nbytes == 3 * 131072 // 8


@pytest.mark.parametrize("words, vocab_size", [(1, 33), (3, 64), (2, 32)])
def test_words_of_another_vocabulary_are_refused(words, vocab_size):
    with pytest.raises(ValueError, match=f"{words} words .* vocabulary of {vocab_size} needs"):
        unpack_support(np.zeros((4, words), np.uint32), vocab_size)


def test_no_vocabulary_and_other_numbers_are_refused():
    with pytest.raises(ValueError, match="vocab_size=0"):
        pack_support(np.zeros((3, 0), bool))
    with pytest.raises(AssertionError):
        unpack_support(np.zeros(1, np.int32), 4)
    with pytest.raises(AssertionError):
        truncated_logprobs(np.zeros((2, 4)), np.ones(4, bool))


# ---------------------------------------------------------------- log-probs


def logits_of(seed, shape, scale=4.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


@few
@given(sets(sizes=(1, 33)), st.integers(0, 99))
def test_log_probs_are_the_softmax_of_the_kept_alone(keep, seed):
    logits = logits_of(seed, keep.shape)
    found = np.asarray(logprobs(logits, keep))
    for row in range(2):
        kept = keep[row] if keep[row].any() else np.ones_like(keep[row])  # nothing is everything
        z = logits[row][kept].astype(np.float64)
        np.testing.assert_allclose(found[row][kept], z - np.log(np.exp(z).sum()), atol=2e-6)
        assert np.all(found[row][~kept] == -np.inf)


KEPT = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
"""Some, all, one, none."""


@pytest.mark.parametrize("outside", [0.0, 1e30, -np.inf, np.inf, np.nan])
def test_what_is_not_kept_is_never_read(outside):
    logits, some = logits_of(0, KEPT.shape), KEPT.any(axis=1)
    other = np.where(KEPT | ~some[:, None], logits, outside).astype(np.float32)
    loss = lambda x: jnp.sum(jnp.where(KEPT, jnp.sin(truncated_logprobs(x, KEPT)), 0))  # noqa: E731
    np.testing.assert_array_equal(logprobs(other, KEPT), logprobs(logits, KEPT))
    np.testing.assert_array_equal(jax.grad(loss)(other), jax.grad(loss)(logits))


def test_gradients_are_those_of_the_softmax_within_the_set():
    """d log π(v) / dz = e_v - π, 0 outside; of the entropy: -π (log π + H)."""
    logits = jnp.asarray(logits_of(1, KEPT.shape))
    kept = KEPT | ~KEPT.any(axis=1, keepdims=True)
    chosen = kept.argmax(axis=1)
    log_pi = np.asarray(logprobs(logits, KEPT), np.float64)
    pi = np.exp(log_pi)
    of_chosen = jax.grad(
        lambda x: jnp.sum(truncated_logprobs(x, KEPT)[np.arange(len(KEPT)), chosen])
    )(logits)
    np.testing.assert_allclose(of_chosen, np.eye(5)[chosen] - pi, atol=1e-6)
    finite = np.where(kept, log_pi, 0)
    entropy = -np.sum(pi * finite, axis=1, keepdims=True)
    of_entropy = jax.grad(lambda x: jnp.sum(entropy_from_logits(truncated_logprobs(x, KEPT))))
    np.testing.assert_allclose(of_entropy(logits), -pi * (finite + entropy), atol=1e-6)
    assert not np.any(np.asarray(of_chosen)[~kept]) and not np.any(
        np.asarray(of_entropy(logits))[~kept]
    )


@pytest.mark.parametrize("z", [0.1, 1e4, -1e4, 88.7])
def test_the_only_token_is_certain_and_teaches_nothing(z):
    logits, one = jnp.array([3.0, z, -2.0], jnp.float32), np.array([False, True, False])
    value, gradient = jax.value_and_grad(lambda x: truncated_logprobs(x, one)[1])(logits)
    assert value == 0 and not np.any(gradient)
    assert entropy_from_logits(truncated_logprobs(logits, one)) == 0


def test_a_cotangent_of_what_is_not_kept_reaches_nothing():
    _, back = jax.vjp(lambda x: truncated_logprobs(x, KEPT), jnp.asarray(logits_of(2, KEPT.shape)))
    nothing = KEPT | ~KEPT.any(axis=1, keepdims=True)
    assert not np.any(back(jnp.where(nothing, 0.0, 7.0).astype(jnp.float32))[0])


@pytest.mark.parametrize(
    "dtype, expected", [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_log_probs_are_wide_enough(dtype, expected):
    with jax.enable_x64(True):
        logits = jnp.asarray(logits_of(3, KEPT.shape), dtype)
        assert truncated_logprobs(logits, KEPT).dtype == expected


def test_rows_alone_are_rows_together():
    logits = jnp.asarray(logits_of(4, KEPT.shape))
    words = pack_support(KEPT)
    whole = truncated_logprobs(logits, unpack_support(words, 5))
    row = lambda x, w: truncated_logprobs(x, unpack_support(w, 5))  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(row))(logits, words), whole, rtol=1e-6)
    for number in range(len(KEPT)):
        np.testing.assert_allclose(row(logits[number], words[number]), whole[number], rtol=1e-6)


def test_examples_in_the_docstrings_hold():
    failed, tried = doctest.testmod(truncation)
    assert tried == 7 and failed == 0
    for name in ("pack_support", "support_words", "truncated_logprobs", "unpack_support"):
        assert name in ops.__all__ and "Example:" in getattr(ops, name).__doc__
