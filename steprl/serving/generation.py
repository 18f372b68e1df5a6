"""Replies token by token: one model, and one KV cache that is kept from request to request.

A token is one call of a compiled step, so a reply may end anywhere and nothing is computed in vain.
What is sampled, and with which key, is as in `steprl.sampling.generate`.
"""

import functools
import secrets
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.sampling import Sampling, draw, keep_top_p
from steprl.types import STOP_REASONS, Params, Policy

MAX_TOP_LOGPROBS = 20
_RUNNING, _STOPPED, _LENGTH = STOP_REASONS[:3]


class ReplySettings(NamedTuple):
    """How one reply is drawn; none of it is compiled in."""

    max_tokens: int
    sampling: Sampling = Sampling()
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    choice: int = 0  # number of the reply among several to one prompt
    top_logprobs: int = 0  # how many likely tokens are reported for each token


class Piece(NamedTuple):
    """Some more tokens of a reply, stop token included; none while the prompt is read."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # by the model itself: temperature 1, nothing cut off
    sampling_logprobs: tuple[float, ...] = ()  # under the distribution really sampled from
    top: tuple[tuple[tuple[int, float], ...], ...] = ()  # most likely (id, log-prob), a token
    reason: str = _RUNNING  # one of STOP_REASONS
    cached: int = 0  # tokens of the prompt that were in the cache already


class _Drawn(NamedTuple):
    token: jax.Array
    logprob: jax.Array
    sampling_logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


class ReplyEngine:
    """One model that replies to one request at a time; not for several threads at once.

    The prompt is read in pieces of few widths, and the cache grows through few lengths: at most
    `len(widths) + 1` programs are compiled for each power of two between `cache_length` and
    `context_length`, whatever the requests are.

    The tokens of the cache that a new prompt begins with are not read again. A request with a seed
    reads its prompt anew, since cached keys and values may differ in their last bits: so its reply
    does not depend on earlier requests.

    Args:
        policy, params: the language model, without adapters.
        context_length: tokens of prompt and reply together, at most.
        cache_length: slots of the smallest cache.
        widths: of the pieces of a prompt, in ascending order.
        piece: tokens that are handed out together, after the first one.

    Attributes:
        prefilled, reused: tokens of prompts that were computed, and those that the cache had.
    """

    def __init__(
        self,
        policy: Policy,
        params: Params,
        context_length: int,
        *,
        cache_length: int = 256,
        widths: Sequence[int] = (16, 64, 256),
        piece: int = 4,
    ):
        if context_length < 2 or cache_length < 1 or piece < 1:
            raise ValueError(
                f"context_length={context_length} starts at 2, cache_length={cache_length} and "
                f"piece={piece} at 1"
            )
        if not widths or list(widths) != sorted({*widths}) or widths[0] < 1:
            raise ValueError(f"widths={tuple(widths)} have to be positive and to ascend")
        self.context_length = context_length
        self.prefilled = self.reused = 0
        self._policy, self._params = policy, params
        self._cache_length, self._widths, self._piece = cache_length, tuple(widths), piece
        self._cache: Any = None
        self._held: list[int] = []  # token s is in slot s of the cache
        self._read = jax.jit(functools.partial(_read, policy), donate_argnames="cache")
        self._step = jax.jit(functools.partial(_step, policy), donate_argnames="cache")

    @property
    def programs(self) -> int:
        """How many programs were compiled."""
        return sum(f._cache_size() for f in (self._read, self._step))  # type: ignore[attr-defined]

    def forget(self) -> None:
        """Drops the cache: the next prompt is read from its first token."""
        self._cache, self._held = None, []

    def reply(self, prompt: Sequence[int], settings: ReplySettings) -> Generator[Piece, None, None]:
        """Samples a reply to a prompt; closing the iterator ends it, and the cache stays right.

        Args:
            prompt: token ids.
            settings: how to draw; token i of choice c uses `fold_in(fold_in(key_of(seed), c), i)`.

        Returns:
            Pieces, the last of them with a reason. Pieces without tokens say that the prompt is read.

        Raises:
            ValueError: the prompt is empty, or does not fit into the context with `max_tokens`.
        """
        prompt = [int(token) for token in prompt]
        if not prompt or settings.max_tokens < 1:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens, max_tokens={settings.max_tokens}: both start at 1"
            )
        if len(prompt) + settings.max_tokens > self.context_length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_tokens={settings.max_tokens} do not fit "
                f"into the context of {self.context_length}"
            )
        return self._reply(prompt, settings)

    def _reply(self, prompt: list[int], settings: ReplySettings) -> Generator[Piece, None, None]:
        try:
            yield from self._pieces(prompt, settings)
        except GeneratorExit:
            raise  # between two pieces: cache and tokens belong together
        except BaseException:
            self.forget()  # the cache may have been donated
            raise

    def _pieces(self, prompt: list[int], settings: ReplySettings) -> Generator[Piece, None, None]:
        if settings.seed is not None and settings.choice == 0:
            self.forget()
        # The last token of the prompt is left to the first step.
        position = min(_shared(self._held, prompt), len(prompt) - 1)
        cached = position
        cache = self._fit(self._cache, len(prompt))
        self.reused += cached
        for width in split(len(prompt) - 1 - position, self._widths):
            part = np.asarray(prompt[position : position + width][: len(prompt) - 1 - position])
            tokens_1C = np.zeros((1, width), np.int32)
            tokens_1C[0, : len(part)] = part
            cache = self._read(
                self._params, cache, tokens_1C, np.int32(position), np.int32(len(part))
            )
            position += len(part)
            self.prefilled += len(part)
            self._cache, self._held = cache, prompt[:position]
            yield Piece(cached=cached)
        self.prefilled += 1

        seed = secrets.randbits(31) if settings.seed is None else settings.seed
        key = jax.random.fold_in(key_of(seed), settings.choice)
        sampling = settings.sampling
        traced = (
            np.float32(sampling.temperature),
            np.int32(sampling.top_k),
            np.float32(sampling.top_p),
            np.bool_(settings.top_logprobs > 0),
        )
        ids, waiting, token = list(prompt), Piece(cached=cached), np.int32(prompt[-1])
        for index in range(settings.max_tokens):
            cache = self._fit(cache, len(ids))
            drawn, cache = self._step(
                self._params, cache, token, np.int32(len(ids) - 1), key, np.int32(index), *traced
            )
            drawn = jax.device_get(drawn)
            token = drawn.token
            waiting = _append(waiting, drawn, settings.top_logprobs)
            ended = waiting.ids[-1] in settings.stop_ids
            if ended or index + 1 == settings.max_tokens:
                waiting = waiting._replace(reason=_STOPPED if ended else _LENGTH)
            self._cache, self._held = cache, list(ids)
            ids.append(waiting.ids[-1])
            if waiting.reason != _RUNNING or index % self._piece == 0:
                yield waiting
                waiting = Piece(cached=cached)
            if ended:
                return

    def _fit(self, cache: Any, tokens: int) -> Any:
        """The cache with the fewest slots that hold so many tokens, content kept."""
        length = self._cache_length
        while length < tokens:
            length *= 2
        length = min(length, self.context_length)
        if cache is None:
            return self._policy.init_cache(1, length)
        abstract = jax.eval_shape(lambda: self._policy.init_cache(1, length))
        shapes = [leaf.shape for leaf in jax.tree.leaves(abstract)]
        if [leaf.shape for leaf in jax.tree.leaves(cache)] == shapes:
            return cache
        return jax.tree.map(_copy_into, self._policy.init_cache(1, length), cache)


def key_of(seed: int) -> jax.Array:
    """`jax.random.key` of a seed of 64 bits, of which that reads the lower 32."""
    key, high = jax.random.key(seed & 0xFFFFFFFF), seed >> 32 & 0xFFFFFFFF
    return jax.random.fold_in(key, high) if high else key


def split(tokens: int, widths: Sequence[int]) -> list[int]:
    """Widths of the pieces in which so many tokens are read; only the last piece may be padded.

    Example:
        >>> split(150, (16, 64))
        [64, 64, 16, 16]
    """
    pieces = []
    while tokens > 0:
        pieces.append(max((width for width in widths if width <= tokens), default=widths[0]))
        tokens -= pieces[-1]
    return pieces


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length


def _copy_into(new: jax.Array, old: jax.Array) -> jax.Array:
    shared = tuple(slice(min(pair)) for pair in zip(new.shape, old.shape, strict=True))
    return new.at[shared].set(old[shared])


def _append(piece: Piece, drawn: _Drawn, top: int) -> Piece:
    pairs = zip(drawn.top_ids[:top].tolist(), drawn.top_logprobs[:top].tolist(), strict=True)
    return piece._replace(
        ids=(*piece.ids, int(drawn.token)),
        logprobs=(*piece.logprobs, float(drawn.logprob)),
        sampling_logprobs=(*piece.sampling_logprobs, float(drawn.sampling_logprob)),
        top=(*piece.top, tuple(pairs)),
    )


def _read(
    policy: Policy,
    params: Params,
    cache: Any,
    tokens_1C: jax.Array,
    start: jax.Array,
    length: jax.Array,
) -> Any:
    """The cache with the first `length` tokens of a piece, which begins at position `start`."""
    index_1C = jnp.arange(tokens_1C.shape[1])[None, :]
    real_1C = (index_1C < length).astype(jnp.int32)
    return policy.apply(params, tokens_1C, start + index_1C, real_1C, cache)[1]


def _step(
    policy: Policy,
    params: Params,
    cache: Any,
    token: jax.Array,
    position: jax.Array,
    key: jax.Array,
    index: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    top: jax.Array,
) -> tuple[_Drawn, Any]:
    """Reads one token and draws the next, token `index` of the reply."""
    one = jnp.ones((1, 1), jnp.int32)
    hidden_11D, cache = policy.apply(params, token * one, position * one, one, cache)
    logits_V = policy.unembed(params, hidden_11D[0, 0])
    logprob_V = jax.nn.log_softmax(logits_V)
    truncated = (top_k > 0) | (top_p < 1.0)
    kept_V = jax.lax.cond(
        truncated, truncate, lambda logits_V, *_: logits_V, logits_V, temperature, top_k, top_p
    )
    chosen, logprob, _ = draw(kept_V, jax.random.fold_in(key, index), Sampling(temperature))
    count = min(MAX_TOP_LOGPROBS, logprob_V.shape[0])
    highest, ids = jax.lax.cond(
        top,
        lambda x_V: tuple(jax.lax.top_k(x_V, count)),
        lambda x_V: (jnp.zeros(count), jnp.zeros(count, jnp.int32)),
        logprob_V,
    )
    return _Drawn(chosen, logprob_V[chosen], logprob, ids, highest), cache


def truncate(
    logits_V: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Logits of what top-k and then top-p keep, -inf elsewhere; as `sampling_logprobs`, but traced.

    Args:
        logits_V: [V].
        temperature: 0 counts as 1: the most likely token is kept in any case.
        top_k: 0 = all.
        top_p: 1.0 = all.
    """
    prob_V = jax.nn.softmax(logits_V / jnp.where(temperature == 0.0, 1.0, temperature))
    # The bits of numbers that are not negative have their order, so halving finds the k-th highest.
    bits_V = jax.lax.bitcast_convert_type(prob_V, jnp.int32)
    count = jnp.where(top_k > 0, jnp.minimum(top_k, prob_V.shape[0]), prob_V.shape[0])

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits_V >= middle) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.max(bits_V) + 1))
    keep_V = bits_V >= low
    prob_V = jnp.where(keep_V, prob_V, 0.0)
    nucleus_V = keep_top_p(prob_V / jnp.sum(prob_V), top_p)  # type: ignore[arg-type]
    keep_V &= nucleus_V | (top_p >= 1.0)
    return jnp.where(keep_V, logits_V, -jnp.inf)
