"""Rows of a batch packed into blocks, for an update that spends few slots of the model on padding.

The rows of a batch stay as they are, one trajectory each, and so do credit and loss. What is laid out
beside them says in which block of tokens the model is run on which rows: whole rows, as many as fit,
and what they begin with in common (a system prompt, the task of a group's attempts) once a block.
A block is a micro-batch, so memory is bounded by tokens whatever the rows are, as with the dynamic
batch size of verl; the blocks of a mini-batch have the same rows as the mini-batch would have unpacked.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.rollout.trees import Tokens, host_tokens, lay_out, sorted_contexts
from steprl.types import StepBatch, TreeLayout

_NARROWEST = 256
"""Tokens of a block below which no narrower one is worth a program of its own."""


class Packing(NamedTuple):
    """How the model is run on a batch in an update, for each pass over it.

    Axes: E pass, M mini-batch, n row of a mini-batch, K micro-batch, R row of a micro-batch, B block.
    A micro-batch is a block of U tokens on each of B devices; those behind `used` are empty and
    never run. What is said of a mini-batch or a micro-batch alone lacks the axes before.
    """

    row: jax.Array  # [E, M, n] int32, row of the batch
    place: jax.Array  # [E, M, K, R] int32, which row of its mini-batch it is, n where there is none
    used: jax.Array  # [E, M] int32, micro-batches that hold rows
    tree: TreeLayout  # of each micro-batch, its arrays with the axes [E, M, K] in front
    prefix: jax.Array  # [E, M, K, B, U] int32, number of the token with all before it, below N * T


class Packed(NamedTuple):
    """A packing, and what it spends."""

    packing: Packing
    slots: int  # tokens that the model is run on in all passes
    padding: int  # of these, how many are none


def pack_rows(
    batch: StepBatch, order_EMn: np.ndarray, most_tokens: int, devices: int = 1
) -> Packed:
    """Blocks for the rows of each mini-batch of each pass.

    Args:
        batch: on the host or on devices of this process.
        order_EMn: rows of the batch in each mini-batch, all of them in each pass.
        most_tokens: of a block; one that is to hold a larger row has as many as that needs.
        devices: blocks that are run at the same time.

    Raises:
        ValueError: `most_tokens` or `devices` is below 1, or as of `share_prefixes`.
    """
    for name, value in (("most_tokens", most_tokens), ("devices", devices)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    flat = host_tokens(batch)
    number_NT = _numbered(flat)
    mini_batches = [rows for rows_Mn in order_EMn for rows in rows_Mn]
    width, blocks_of = _best_width([_rows(number_NT[n]) for n in mini_batches], most_tokens)
    passes, parts, rows_each = order_EMn.shape
    count = max(-(-len(blocks) // devices) for blocks in blocks_of)
    if count > 1:  # a bound that does not change with the batch, so that few shapes are compiled
        most = -(-rows_each * flat.tokens_NT.shape[1] // width)
        count = max(count, -(-min(rows_each, 2 * most) // devices))
    room = _rows_of_block(blocks_of, count * devices, rows_each, flat.tokens_NT.shape[1])
    place = np.full((len(mini_batches), count * devices, room), rows_each, np.int32)
    row = np.full(place.shape, -1, np.int64)
    for m, (blocks, rows) in enumerate(zip(blocks_of, mini_batches, strict=True)):
        for b, block in enumerate(blocks):
            place[m, b, : len(block)] = block
            row[m, b, : len(block)] = rows[block]
    laid_out = lay_out(_taken(flat, row.reshape(-1)), room, [width])
    row_BR = row.reshape(-1, room)
    prefix = _numbers_of_blocks(laid_out.place_NT, number_NT, row_BR, width)
    shape = (passes, parts, count)
    as_parts = lambda x: None if x is None else x.reshape(*shape, devices, *x.shape[1:])  # noqa: E731
    of_rows = lambda x: x.reshape(*shape, devices * room, *x.shape[1:])  # noqa: E731
    tree = laid_out.tree
    split: dict[str, Any] = {
        name: (of_rows if name in ("scored_NT", "last_N") else as_parts)(x)
        for name, x in tree._asdict().items()
    }
    used = np.array([-(-len(blocks) // devices) for blocks in blocks_of], np.int32)
    slots = int(used.sum()) * devices * width
    arrays: dict[str, Any] = dict(
        row=order_EMn.astype(np.int32),
        place=of_rows(place.reshape(-1)),
        used=used.reshape(passes, parts),
        tree=TreeLayout(**split),
        prefix=prefix.reshape(*shape, devices, width),
    )
    return Packed(Packing(**arrays), slots, slots - int(np.sum(tree.segment_ids_MGU > 0)))


def block_widths(most_tokens: int, largest_row: int, least: int) -> list[int]:
    """Tokens that a block may have, descending; few, as each is a program that takes long to compile.

    Eight from `most_tokens` to half of it, then four from one half to the next.

    Args:
        most_tokens: of a block, unless a row needs more: then so many halves of it as the row needs.
        largest_row: tokens of it.
        least: tokens of the largest mini-batch: where they are few, narrower ones too.
    """
    half = -(-most_tokens // 2)
    scale = most = max(most_tokens, half * -(-largest_row // half))
    widths: list[int] = []
    while scale >= max(_NARROWEST, least // 2) or not widths:
        steps = 8 if scale == most else 4
        widths += range(scale, scale // 2, -max(_NARROWEST // 2, -(-scale // (2 * steps))))
        scale = -(-scale // 2)
    return [width for width in widths if width >= max(1, largest_row)]


class _Rows(NamedTuple):
    """The rows of a mini-batch, as what packing them asks."""

    size_n: np.ndarray  # tokens of each that the model is run on
    shared_nn: np.ndarray  # how many of them two rows have in common
    order_n: np.ndarray  # as their tokens are sorted
    together: int  # tokens of all rows in one block


def _rows(number_nT: np.ndarray) -> _Rows:
    """From the numbers of their prefixes."""
    numbers, place = np.unique(number_nT, return_inverse=True)
    row, column = np.nonzero(number_nT >= 0)
    prefix = place.reshape(number_nT.shape)[row, column]
    pairs = np.unique(row * len(numbers) + prefix)  # each prefix of a row once
    row, prefix = pairs // len(numbers), pairs % len(numbers)
    several = np.bincount(prefix, minlength=len(numbers))[prefix] > 1
    shared, of_shared = np.unique(prefix[several], return_inverse=True)
    holds = np.zeros((len(number_nT), len(shared)), np.float32)  # sums below 2^24 are exact
    holds[row[several], of_shared] = 1.0
    size_n = np.bincount(row, minlength=len(number_nT))
    order_n = np.argsort(number_nT.max(axis=1), kind="stable")
    return _Rows(size_n, (holds @ holds.T).astype(np.int64), order_n, len(np.unique(prefix)))


def _best_width(
    mini_batches: Sequence[_Rows], most_tokens: int
) -> tuple[int, list[list[list[int]]]]:
    """The widest block among those that come near to the fewest slots, and the rows of each block."""
    largest = max(int(rows.size_n.max()) for rows in mini_batches)
    least = max(rows.together for rows in mini_batches)
    found = []
    for width in block_widths(most_tokens, largest, least):
        blocks = [_fit(rows, width) for rows in mini_batches]
        found.append((width * sum(map(len, blocks)), width, blocks))
    fewest = min(slots for slots, _, _ in found)
    return next((width, blocks) for slots, width, blocks in found if slots <= 1.05 * fewest)


def _fit(rows: _Rows, width: int) -> list[list[int]]:
    """Blocks, each a list of rows of the mini-batch: the fewest that some orders of putting them lead to.

    As their tokens are sorted, rows stand beside those that they share most with; by size, the
    largest first, blocks are filled best; and some orders near to that, always the same ones.
    """
    random = np.random.default_rng(0)
    tries = 12 if len(rows.size_n) <= 64 else 0
    sizes = [rows.size_n * random.uniform(0.7, 1.3, len(rows.size_n)) for _ in range(tries)]
    orders = [rows.order_n, *(np.argsort(-size, kind="stable") for size in (rows.size_n, *sizes))]
    return min((_put(rows, order, width) for order in orders), key=len)


def _put(rows: _Rows, order_n: np.ndarray, width: int) -> list[list[int]]:
    """Each row where it has most in common with one that is there, of these where it fits best."""
    blocks: list[list[int]] = []
    size_b = np.zeros(0, np.int64)
    shared_bn = np.zeros((0, len(order_n)), np.int64)  # with the row of the block that is likest
    for n in order_n.tolist():
        if not rows.size_n[n]:  # it is run nowhere, and has no loss
            continue
        new_b = rows.size_n[n] - shared_bn[:, n]  # or fewer, where it shares with several rows
        fits_b = size_b + new_b <= width
        if not fits_b.any():
            blocks.append([n])
            size_b = np.append(size_b, rows.size_n[n])
            shared_bn = np.concatenate([shared_bn, rows.shared_nn[n][None]])
            continue
        b = int(np.lexsort((-size_b, np.where(fits_b, new_b, 2 * width)))[0])
        blocks[b].append(n)
        size_b[b] += new_b[b]
        shared_bn[b] = np.maximum(shared_bn[b], rows.shared_nn[n])
    return [sorted(block) for block in blocks] or [[]]


def _numbered(flat: Tokens) -> np.ndarray:
    """[N, T] number of the token's prefix, -1 at padding: equal prefixes, in any rows, have one number.

    They are numbered in the order of the sorted contexts.
    """
    number_NT = np.full(flat.tokens_NT.shape, -1, np.int64)
    contexts = sorted_contexts(flat, range(len(number_NT)))
    path, free = np.zeros(0, np.int64), 0
    for ids, shared, holders in zip(contexts.ids, contexts.shared, contexts.where, strict=True):
        path = np.append(path[:shared], np.arange(free, free + len(ids) - shared))
        free += len(ids) - shared
        for row, places in holders:
            number_NT[row, places] = path
    return number_NT


def _rows_of_block(
    blocks_of: Sequence[Sequence[Sequence[int]]], blocks: int, rows: int, length: int
) -> int:
    """R: the rows of the mini-batch if arrays of them are small, else a power of two that is enough."""
    if len(blocks_of) * blocks * rows * length <= 1 << 22:
        return rows
    most = max(len(block) for one in blocks_of for block in one)
    return min(rows, 1 << max(0, most - 1).bit_length())


def _taken(flat: Tokens, row_n: np.ndarray) -> Tokens:
    """The tokens of the rows; -1 is a row of padding."""
    there_n1 = (row_n >= 0)[:, None]
    zero = lambda x, fill=0: np.where(there_n1, x[row_n], np.asarray(fill, x.dtype))  # noqa: E731
    support = flat.support_NTW
    return Tokens(
        zero(flat.tokens_NT),
        zero(flat.positions_NT),
        zero(flat.segment_ids_NT),
        zero(flat.step_ids_NT, -1),
        None if support is None else support[row_n],
    )


def _numbers_of_blocks(
    place_NT: np.ndarray, number_NT: np.ndarray, row_BR: np.ndarray, width: int
) -> np.ndarray:
    """[B, U] number of each token's prefix; N * T, which is none of the batch, at padding.

    Args:
        place_NT: [B * R, T] where the tokens of the blocks' rows stand in their blocks.
        number_NT: of the batch, from `_numbered`.
        row_BR: rows of the batch, -1 where there is none.
        width: U.
    """
    number_BRT = np.where(row_BR[:, :, None] >= 0, number_NT[row_BR], -1)
    block, row, column = np.nonzero(number_BRT >= 0)
    found_BU = np.full((len(row_BR), width), number_NT.size, np.int32)
    place_BRT = place_NT.reshape(number_BRT.shape)
    found_BU[block, place_BRT[block, row, column]] = number_BRT[block, row, column]
    return found_BU
