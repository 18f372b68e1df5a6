"""Truncated sampling: which tokens could have come, in bits, and log-probs over exactly those.

A rollout under top-k or top-p draws from the kept tokens' renormalised probabilities. Training that
takes the softmax of the whole vocabulary would compare two distributions of different supports. So
the kept set is stored with each sampled token, a bit a token of the vocabulary, and training
renormalises over it: the "keep sampling mask" of DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556,
section 3.1).
"""

import chex
import jax
import jax.numpy as jnp

from steprl.ops.segments import as_float

WORD = 32
"""Bits of a word."""


def support_words(vocab_size: int) -> int:
    """Words that hold a bit for each token of a vocabulary.

        W = ceil(V / 32)

    Args:
        vocab_size: V, at least 1.

    Returns:
        The number of uint32 words.

    Raises:
        ValueError: the vocabulary is empty.

    Example:
        >>> print(support_words(32), support_words(33))
        1 2
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be at least 1")
    return -(-vocab_size // WORD)


def pack_support(keep_V: jax.Array) -> jax.Array:
    """Store a set of tokens as bits.

        word_w = sum_{b < 32} keep_{32 w + b} 2^b

    Costs V / 8 bytes a token: 16 KiB for a vocabulary of 131072.

    Args:
        keep_V: [..., V] non-zero where the token could have been sampled.

    Returns:
        [..., W] uint32, W = ceil(V / 32); the bits behind the vocabulary are 0.

    Raises:
        ValueError: the vocabulary is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> print(pack_support(jnp.array([1, 0, 1, 1])))
        [13]
    """
    vocab_size = keep_V.shape[-1]
    words = support_words(vocab_size)
    keep_V = jnp.asarray(keep_V).astype(bool)
    rest = [(0, 0)] * (keep_V.ndim - 1) + [(0, words * WORD - vocab_size)]
    bits = jnp.pad(keep_V, rest).reshape(*keep_V.shape[:-1], words, WORD)
    shift = jnp.broadcast_to(jnp.arange(WORD, dtype=jnp.uint32), bits.shape)
    return jnp.sum(bits.astype(jnp.uint32) << shift, axis=-1, dtype=jnp.uint32)


def unpack_support(words_W: jax.Array, vocab_size: int) -> jax.Array:
    """The set of tokens that `pack_support` stored.

        keep_v = bit (v mod 32) of word_{floor(v / 32)}

    Args:
        words_W: [..., W] uint32, W = ceil(V / 32).
        vocab_size: V, static.

    Returns:
        [..., V] bool.

    Raises:
        ValueError: there are not as many words as the vocabulary needs.
        AssertionError: the words are not uint32.

    Example:
        >>> import jax.numpy as jnp
        >>> print(unpack_support(jnp.array([13], jnp.uint32), 5).astype(int))
        [1 0 1 1 0]
    """
    words_W = jnp.asarray(words_W)
    chex.assert_type(words_W, jnp.uint32)
    words = support_words(vocab_size)
    if words_W.shape[-1] != words:
        raise ValueError(
            f"{words_W.shape[-1]} words of support, and a vocabulary of {vocab_size} needs {words}"
        )
    shape = (*words_W.shape, WORD)
    shift = jnp.broadcast_to(jnp.arange(WORD, dtype=jnp.uint32), shape)
    bits = (jnp.broadcast_to(words_W[..., None], shape) >> shift) & jnp.uint32(1)
    return bits.reshape(*words_W.shape[:-1], words * WORD)[..., :vocab_size].astype(bool)


def truncated_logprobs(logits_V: jax.Array, keep_V: jax.Array) -> jax.Array:
    """Log-softmax over the kept tokens only.

        log π(v) = z_v - log sum_{u in K} exp(z_u)    for v in K, -inf elsewhere

    The mask of DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556, section 3.1): K is the support that
    the rollout sampled from, whatever the logits of today would keep.

    Args:
        logits_V: [..., V] logits, divided by the temperature already; those outside of K are never
            read and have gradient 0.
        keep_V: [..., V] non-zero where the token belongs to K. An empty set means no truncation:
            everything is kept.

    Returns:
        [..., V] float log-probabilities.

    Raises:
        AssertionError: the shapes differ.

    Note:
        Gradients are finite. Sum probability times log-probability with `entropy_from_logits`,
        which knows about -inf; a plain product of the two is NaN there.

    Example:
        >>> import jax.numpy as jnp
        >>> print(truncated_logprobs(jnp.array([1.0, 9.0, 1.0]), jnp.array([1, 0, 1])).round(4))
        [-0.6931    -inf -0.6931]
    """
    chex.assert_equal_shape([logits_V, keep_V])
    logits_V, keep_V = as_float(logits_V), jnp.asarray(keep_V).astype(bool)
    keep_V = keep_V | ~jnp.any(keep_V, axis=-1, keepdims=True)
    logprob_V = jax.nn.log_softmax(jnp.where(keep_V, logits_V, -jnp.inf), axis=-1)
    # Once more, so that a cotangent of the -inf places does not reach the kept ones either.
    return jnp.where(keep_V, logprob_V, -jnp.inf)
