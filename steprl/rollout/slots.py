"""What the slot engine computes on the device: read, sample, and copy rows of a cache.

The shapes are few and do not depend on which rows take part, so that a row's numbers do not either:
new tokens are read in pieces of a few widths, cut by the row's own length alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.sampling import Generation, Sampling, decode, prefill, trajectory_key
from steprl.types import Params, Policy

WIDE, NARROW = 256, 32
ONE = 1  # all that a branch reads before it acts; among `NARROW` tokens it costs several times that
BLOCK = 4  # new contexts that are read at the same time


class Device(NamedTuple):
    """Compiled functions of one policy, all of static shape.

    prepare(params) -> params
    init_cache(rows) -> cache
    hidden(params, rows) -> [B, D] zeros of the type of hidden states
    read(params, cache, hidden_BD, tokens_BC, length_B, start_B, active_B) -> (hidden_BD, cache)
    act(params, cache, hidden_BD, next_B, key, task_B, sample_B, step_B, taken_B, active_B,
        sampling) -> Generation
    copy(destination, source, to_K, from_K) -> destination; rows out of range are dropped
    """

    prepare: Callable[[Params], Params]
    init_cache: Callable[[int], Any]
    hidden: Callable[[Params, int], jax.Array]
    read: Callable[..., tuple[jax.Array, Any]]
    act: Callable[..., Generation]
    copy: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def device_functions(
    policy: Policy,
    context_length: int,
    response_length: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Device:
    """The functions of a policy; the same ones for the same arguments, so they compile once."""

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def read(params, cache, hidden_BD, tokens_BC, length_B, start_B, active_B):  # type: ignore[no-untyped-def]
        new_BD, cache = prefill(policy, params, cache, tokens_BC, length_B, start_B, active_B)
        return jnp.where(active_B[:, None], new_BD, hidden_BD), cache

    @functools.partial(jax.jit, donate_argnames="cache")
    def act(  # type: ignore[no-untyped-def]
        params, cache, hidden_BD, next_B, key, task_B, sample_B, step_B, taken_B, active_B,
        sampling: Sampling,
    ):  # fmt: skip
        of_row = lambda task, sample, step: jax.random.fold_in(  # noqa: E731
            trajectory_key(key, task, sample), step
        )
        return decode(
            policy, params, cache, hidden_BD, next_B, jax.vmap(of_row)(task_B, sample_B, step_B),
            active_B, max_tokens=response_length, stop_ids=stop_ids, sampling=sampling,
            pad_id=pad_id, taken_B=taken_B,
        )  # fmt: skip

    @functools.partial(jax.jit, donate_argnums=0)
    def copy(destination: Any, source: Any, to_K: jax.Array, from_K: jax.Array) -> Any:
        put = lambda to, of: to.at[to_K].set(of[from_K], mode="drop")  # noqa: E731
        return jax.tree.map(put, destination, source)

    @functools.partial(jax.jit, static_argnames="rows")  # tracing a deep model takes its time: once
    def hidden(params: Params, rows: int) -> jax.Array:
        token = jnp.zeros((rows, 1), jnp.int32)
        cache = jax.eval_shape(lambda: policy.init_cache(rows, context_length))
        shape = jax.eval_shape(policy.apply, params, token, token, token, cache)[0]
        return jnp.zeros((rows, shape.shape[-1]), shape.dtype)

    def init_cache(rows: int) -> Any:
        return _distinct(policy.init_cache(rows, context_length))

    # `prepare` as it is: under jit, what it only passes through would be copied.
    return Device(policy.prepare, init_cache, hidden, read, act, copy)


def _distinct(tree: Any) -> Any:
    """The tree with no array twice: what is donated must be there once."""
    seen: set[int] = set()

    def once(leaf: jax.Array) -> jax.Array:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(once, tree)


def pieces(length: int) -> list[int]:
    """The widths in which `length` tokens are read, one after the other; the last may have room."""
    if length == 1:
        return [ONE]
    wide, rest = divmod(length, WIDE)
    return [WIDE] * wide + [NARROW] * -(-rest // NARROW)


def read_chunks(
    device: Device,
    params: Params,
    cache: Any,
    hidden_BD: jax.Array,
    chunks: Sequence[Sequence[int] | None],
    starts: Sequence[int],
) -> tuple[jax.Array, Any]:
    """Reads a chunk of each row, None for rows that take no part.

    Returns:
        The hidden state of each chunk's last token, as before in rows without one, and the cache.
    """
    rows = len(chunks)
    plans = [pieces(len(chunk)) if chunk else [] for chunk in chunks]
    done = [0] * rows
    for width in (WIDE, NARROW, ONE):
        for _ in range(max(plan.count(width) for plan in plans)):
            tokens_BC = np.zeros((rows, width), np.int32)
            length_B, start_B = np.ones(rows, np.int32), np.zeros(rows, np.int32)
            active_B = np.zeros(rows, bool)
            for row, chunk in enumerate(chunks):
                if not chunk or width not in plans[row]:
                    continue
                plans[row].remove(width)
                part = chunk[done[row] : done[row] + width]
                tokens_BC[row, : len(part)] = part
                length_B[row], start_B[row] = len(part), starts[row] + done[row]
                active_B[row] = True
                done[row] += len(part)
            hidden_BD, cache = device.read(
                params, cache, hidden_BD, tokens_BC, length_B, start_B, active_B
            )
    return hidden_BD, cache


def read_new(
    device: Device,
    params: Params,
    cache: Any,
    hidden_BD: jax.Array,
    contexts: Sequence[Sequence[int] | None],
    block: Any,
) -> tuple[jax.Array, Any, Any]:
    """Reads contexts that begin in their row, each different one once, whatever number of rows has it.

    They are read a few at a time in rows of their own and copied, so that attempts at one task pay for
    one prompt, and the numbers do not depend on what else is read.

    Args:
        contexts: of each row, None for rows that take no part.
        block: cache of the rows to read in; what it holds is overwritten.

    Returns:
        The hidden state of each context's last token, as before in rows without one; cache and block.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, context in enumerate(contexts):
        if context:
            rows_of.setdefault(tuple(context), []).append(row)
    different = list(rows_of)
    size = jax.tree.leaves(block)[0].shape[0] if different else 1
    for first in range(0, len(different), size):
        part = different[first : first + size]
        chunks = [*part, *[None] * (size - len(part))]
        read_BD, block = read_chunks(
            device, params, block, device.hidden(params, size), chunks, [0] * size
        )
        to = [row for context in part for row in rows_of[context]]
        of = [number for number, context in enumerate(part) for _ in rows_of[context]]
        cache = copy_rows(device, cache, block, to, of)
        hidden_BD = copy_rows(device, hidden_BD, read_BD, to, of)
    return hidden_BD, cache, block


def copy_rows(
    device: Device, destination: Any, source: Any, to: Sequence[int], of: Sequence[int]
) -> Any:
    """Rows of one cache into rows of another; a few counts are compiled, by powers of four."""
    if not to:
        return destination
    rows = jax.tree.leaves(destination)[0].shape[0]
    room = 1
    while room < len(to):
        room *= 4
    room = max(min(room, rows), len(to))
    to_K = np.full(room, rows, np.int32)
    from_K = np.zeros(room, np.int32)
    to_K[: len(to)], from_K[: len(of)] = to, of
    return device.copy(destination, source, to_K, from_K)
