"""Rows that share a beginning, run as one: the tree of their contexts, laid out for the model.

The rows of a batch stay as they are, one trajectory each, and so do credit and loss. What is laid
out beside them (`StepBatch.tree`) says which tokens are the same: those with the same tokens before
them in their context. That follows from the tokens alone, whichever row branched from which, so rebuilt
contexts share what they begin with too, those of one trajectory with each other as well.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from steprl.rollout.contexts import common_prefix
from steprl.rollout.records import collate
from steprl.types import StepBatch, Trajectory, TreeLayout


def collate_trees(
    groups: Sequence[Sequence[Trajectory]],
    max_steps: int,
    lengths: Sequence[int],
    response_length: int | None = None,
    rows: int | None = None,
    widths: Sequence[int] | None = None,
    share: bool = True,
) -> StepBatch:
    """The batch of `collate` in which the rows of a group share the tokens that they begin with.

    Group m is in the rows m * R .. m * R + R - 1, in its order. A group of fewer has empty rows
    behind: without step or token, of the group's task and metrics NaN, they weigh nothing.

    Args:
        groups: trajectories that are run together, such as one with its branches; may be empty.
        max_steps, lengths, response_length: see `collate`.
        rows: R, the same for all batches that one compiled program is to serve; None for the most
            trajectories of any group.
        widths: see `share_prefixes`; None for `tree_widths` of the largest of `lengths`.
        share: False lays out no tree, for models that cannot attend along one.

    Raises:
        ValueError: there is no trajectory, a group is larger than `rows`, or see `collate`.
    """
    most = max((len(group) for group in groups), default=0)
    rows = most if rows is None else rows
    if most == 0:
        raise ValueError("groups: there is no trajectory to collate")
    if most > rows:
        raise ValueError(f"groups: one has {most} trajectories, and rows={rows}: use rows={most}")
    widths = tree_widths(max(lengths)) if widths is None else widths
    unknown = dict.fromkeys(next(group for group in groups if group)[0].metrics, float("nan"))
    filled = []
    for group in groups:
        empty = Trajectory(group[0].task if group else -1, 0, (), False, metrics=unknown)
        filled += [*group, *[empty] * (rows - len(group))]
    batch = collate(filled, max_steps, lengths, response_length)
    return share_prefixes(batch, rows, widths) if share else batch


def tree_widths(longest: int) -> list[int]:
    """Tokens of a block for contexts of up to `longest`: few, and none much larger than the next.

    Four from one power of two times `longest` to the next, from a quarter of it up to 4096 tokens,
    or twice `longest` where that is more.
    """
    widths: list[int] = []
    most = max(2 * longest, 4096)
    quarter = -(-longest // 16)
    while not widths or widths[-1] < most:
        widths += [quarter * part for part in range(4, 8)]
        quarter *= 2
    return [width for width in widths if width <= most]


def share_prefixes(batch: StepBatch, rows: int, widths: Sequence[int]) -> StepBatch:
    """The batch with a `tree` over each `rows` rows in turn.

    The contexts of a group are sorted, so that each is next to the one that it shares most with,
    and cut into blocks of at most the largest width; what two blocks share is in both.

    Args:
        batch: on the host or on devices of this process; its number of rows a multiple of `rows`.
        rows: R, rows of a group.
        widths: allowed tokens of a block, ascending. The smallest in which every group has one block
            is used, or else the largest.

    Raises:
        ValueError: the rows do not divide, a context has more tokens than the largest width or other
            positions than 0, 1, 2, ..., or a token was sampled that has none before it.
    """
    return dataclasses.replace(batch, tree=lay_out(host_tokens(batch), rows, widths).tree)


class Tokens(NamedTuple):
    """What is read of a batch, as NumPy arrays."""

    tokens_NT: np.ndarray
    positions_NT: np.ndarray
    segment_ids_NT: np.ndarray
    step_ids_NT: np.ndarray
    support_NTW: np.ndarray | None


class LaidOut(NamedTuple):
    """A tree, and where each token of the rows stands in its group; -1 for padding."""

    tree: TreeLayout
    place_NT: np.ndarray


def host_tokens(batch: StepBatch) -> Tokens:
    """The tokens of a batch, from wherever they are."""
    return Tokens(
        np.asarray(batch.tokens_NT),
        np.asarray(batch.positions_NT),
        np.asarray(batch.segment_ids_NT),
        np.asarray(batch.step_ids_NT),
        None if batch.support_NTW is None else np.asarray(batch.support_NTW),
    )


def lay_out(flat: Tokens, rows: int, widths: Sequence[int]) -> LaidOut:
    """The tree of `share_prefixes`, for tokens on the host.

    Args:
        flat: N rows.
        rows, widths: see `share_prefixes`.

    Raises:
        ValueError: as of `share_prefixes`.
    """
    count, length = flat.tokens_NT.shape
    if rows < 1 or count % rows:
        raise ValueError(f"{count} rows of a batch do not make groups of rows={rows}")
    groups = [sorted_contexts(flat, range(n, n + rows)) for n in range(0, count, rows)]
    longest = max((len(ids) for group in groups for ids in group.ids), default=1)
    if longest > max(widths):
        raise ValueError(
            f"a context of {longest} tokens does not fit into a block of {max(widths)} tokens: "
            "allow larger widths"
        )
    needed = max(sum(len(ids) for ids in group.ids) - sum(group.shared) for group in groups)
    width = min((w for w in widths if w >= needed), default=max(widths))
    blocks = [_blocks(group, width) for group in groups]
    number = max(1, *(max(block, default=0) + 1 for block in blocks))
    shape = (len(groups), number, width)
    token_MGU = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segment_ids")}
    token_MGU["segment_ends"] = np.zeros(shape, np.int32)
    place_NT = np.full((count, length), -1, np.int64)
    for m, (group, block) in enumerate(zip(groups, blocks, strict=True)):
        _lay_out(group, block, {name: x[m] for name, x in token_MGU.items()}, place_NT)
    real_NT = flat.segment_ids_NT > 0
    arrays: dict[str, Any] = {f"{name}_MGU": x for name, x in token_MGU.items()}
    arrays |= _scored(flat, place_NT, rows, number * width)
    return LaidOut(TreeLayout(**arrays, last_N=_last(real_NT, place_NT)), place_NT)


class Group(NamedTuple):
    """The different contexts of a group in lexicographic order."""

    ids: list[np.ndarray]
    shared: list[int]  # tokens that each shares with the one before it
    where: list[list[tuple[int, np.ndarray]]]  # rows that hold it, and the places of its tokens


def sorted_contexts(flat: Tokens, rows: Iterable[int]) -> Group:
    """The contexts of some rows, each once.

    Raises:
        ValueError: the positions of a context are not 0, 1, 2, ...
    """
    holders_of: dict[bytes, list[tuple[int, np.ndarray]]] = {}
    for row in rows:
        segments_T = flat.segment_ids_NT[row]
        for segment in np.unique(segments_T[segments_T > 0]):
            places = np.flatnonzero(segments_T == segment)
            if np.any(flat.positions_NT[row, places] != np.arange(len(places))):
                raise ValueError(
                    f"positions_NT: those of a context of row {row} are not 0, 1, 2, ...: "
                    "such rows cannot share tokens"
                )
            key = flat.tokens_NT[row, places].astype(">u4").tobytes()  # in the order of the tokens
            holders_of.setdefault(key, []).append((row, places))
    where = [holders_of[key] for key in sorted(holders_of)]
    ids = [flat.tokens_NT[holders[0][0], holders[0][1]] for holders in where]
    pairs = zip(ids, ids[1:], strict=False)
    return Group(ids, [0, *(common_prefix(a, b) for a, b in pairs)][: len(ids)], where)


def _blocks(group: Group, width: int) -> list[int]:
    """The block of each context: the next one where it does not fit."""
    blocks: list[int] = []
    block, size = 0, 0
    for ids, shared in zip(group.ids, group.shared, strict=True):
        size += len(ids) - shared
        if size > width:
            block, size = block + 1, len(ids)
        blocks.append(block)
    return blocks


def _lay_out(
    group: Group, blocks: list[int], token_GU: dict[str, np.ndarray], place_NT: np.ndarray
) -> None:
    """Writes the tokens of a group into its blocks, and where each token of its rows went.

    The place of a token in its block is its number in preorder, less one.
    """
    width = token_GU["tokens"].shape[1]
    path = np.zeros(max(map(len, group.ids), default=0), np.int64)  # places of the last context
    block, depth, free = -1, 0, 0

    def close(shared: int) -> None:
        """Nothing will descend any more from the last context behind its first tokens."""
        if depth:
            token_GU["segment_ends"][block, path[shared:depth]] = free + 1

    for ids, shared, own_block, holders in zip(
        group.ids, group.shared, blocks, group.where, strict=True
    ):
        shared = shared if own_block == block else 0
        close(shared)
        free, block = free if own_block == block else 0, own_block
        depth, begin = len(ids), free
        free += depth - shared
        new = path[shared:depth] = np.arange(begin, free)
        token_GU["tokens"][block, new] = ids[shared:]
        token_GU["positions"][block, new] = np.arange(shared, depth)
        token_GU["segment_ids"][block, new] = new + 1
        for row, places in holders:
            place_NT[row, places] = block * width + path[:depth]
    close(0)


def _scored(flat: Tokens, place_NT: np.ndarray, rows: int, size: int) -> dict[str, Any]:
    """The different sampled tokens of each group, with what they were predicted and drawn from.

    The room for them is so many quarters of a group's tokens, so that few shapes are ever compiled.
    """
    count, length = place_NT.shape
    before_NT = np.maximum.accumulate(np.where(place_NT >= 0, np.arange(length), -1), axis=1)
    before_NT = np.pad(before_NT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    scored_NT = np.full((count, length), -1, np.int32)
    distinct_tokens = []
    for first in range(0, count, rows):
        row, column = np.nonzero(flat.step_ids_NT[first : first + rows] >= 0)
        row += first
        before = before_NT[row, column]
        if np.any(before < 0):
            bad = row[np.argmin(before)]
            raise ValueError(f"row {bad} samples its first token: there is none to predict it from")
        of_token = np.stack([place_NT[row, column], place_NT[row, before]], axis=1)
        if flat.support_NTW is not None:
            of_token = np.concatenate([of_token, flat.support_NTW[row, column]], axis=1)
        different, index = np.unique(of_token, axis=0, return_inverse=True)
        scored_NT[row, column] = index.reshape(-1)
        distinct_tokens.append(different)
    part = -(-size // 4)
    room = part * max(1, -(-max(map(len, distinct_tokens)) // part))
    padded = np.zeros((len(distinct_tokens), room, distinct_tokens[0].shape[1]), np.int64)
    padded[:, :, 0] = size
    for m, different in enumerate(distinct_tokens):
        padded[m, : len(different)] = different
    return dict(
        target_MP=padded[:, :, 0].astype(np.int32),
        before_MP=padded[:, :, 1].astype(np.int32),
        support_MPW=None if flat.support_NTW is None else padded[:, :, 2:].astype(np.uint32),
        scored_NT=scored_NT,
    )


def _last(real_NT: np.ndarray, place_NT: np.ndarray) -> Any:
    last_N = np.max(np.where(real_NT, np.arange(real_NT.shape[1]), 0), axis=1)
    return place_NT[np.arange(len(last_N)), last_N].astype(np.int32)  # -1 where nothing is real
