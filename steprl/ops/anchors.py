"""Anchor states of GiGPO: which steps of a group started from the same observation.

This is host code on Python objects, done once a batch; the ids it returns go to `gigpo_advantages`.
"""

from collections.abc import Hashable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np


def anchor_ids(
    observations: Sequence[Any] | np.ndarray,
    group_ids: Sequence[Any] | np.ndarray | None = None,
    *,
    similarity: float | None = None,
    autojunk: bool = False,
) -> tuple[np.ndarray, int]:
    """Number observations such that equal ones of a group share a number.

        id_i = id_j  if and only if  group_i = group_j and observation_i equals observation_j

    GiGPO (https://arxiv.org/abs/2505.10978, section 4.2). Equality is Python's (1 == 1.0 == True),
    inside containers too: lists and tuples by their items in order, dicts by key whatever the
    order, arrays by their flattened elements whatever the shape. NaN equals nothing.

    With `similarity`, texts are clustered: in the order given, each joins the first cluster of its
    group whose *first member* has difflib ratio(text, first member) >= similarity, or opens one.
    The result depends on the order, and the ratio is not symmetric.

    Args:
        observations: N observations: strings, numbers, arrays, or lists, tuples and dicts of them.
            An array of rank 1 holds N numbers or strings, one of higher rank N arrays.
        group_ids: N hashable ids; observations of different groups are never equal. None: one
            group.
        similarity: threshold strictly between 0 and 1; None for equality.
        autojunk: difflib's heuristic, used with `similarity`.

    Returns:
        ids: [N] int32, numbered 0, 1, ... by first appearance in the batch, so unique over groups.
        number: of different ids.

    Raises:
        ValueError: the lengths differ; `similarity` is not strictly between 0 and 1, or was given
            for observations that are not all text.
        TypeError: an observation is of a type that cannot be compared.

    Note:
        The shipped code has autojunk=True, which ignores the frequent characters of a first member
        of 200 characters or more: ratios of near-equal texts fall from 0.98 to 0.6, so that long
        observations hardly ever cluster.

    Example:
        >>> ids, number = anchor_ids(["hall", "kitchen", "hall", "hall"], [0, 0, 0, 1])
        >>> print(ids, number)
        [0 1 0 2] 3
        >>> print(anchor_ids(["a hall", "a hull", "kitchen"], similarity=0.8)[0])
        [0 0 1]
    """
    observations = _items(observations)
    groups = [0] * len(observations) if group_ids is None else _items(group_ids)
    if len(groups) != len(observations):
        raise ValueError(
            f"group_ids has {len(groups)} entries for {len(observations)} observations; give one each"
        )
    if similarity is not None:
        return _similar(observations, groups, similarity, autojunk)
    # Looking up a string again is cheap: Python keeps its hash.
    keys = [x if type(x) is str else _key(x) for x in observations]
    numbers: dict[Hashable, int] = {}
    ids = [numbers.setdefault(pair, len(numbers)) for pair in zip(groups, keys, strict=True)]
    return np.array(ids, np.int32), len(numbers)


def _similar(
    texts: list[Any], groups: list[Any], similarity: float, autojunk: bool
) -> tuple[np.ndarray, int]:
    if not 0 < similarity < 1:
        raise ValueError(
            f"similarity={similarity!r} must lie strictly between 0 and 1; None asks for equality"
        )
    others = {type(x).__name__ for x in texts if not isinstance(x, str)}
    if others:
        raise ValueError(
            f"similarity={similarity!r} compares text, but observations hold "
            f"{', '.join(sorted(others))}; pass strings, or similarity=None for equality"
        )
    clusters: dict[Hashable, list[tuple[int, SequenceMatcher]]] = {}
    # The same text again finds the same first cluster: none before it has changed, and the ratio
    # of a text to itself is 1.
    seen: dict[Hashable, int] = {}
    number = 0
    ids = np.empty(len(texts), np.int32)
    for i, (group, text) in enumerate(zip(groups, texts, strict=True)):
        if (group, text) not in seen:
            cluster = _first_fit(clusters.setdefault(group, []), text, similarity)
            if cluster is None:
                cluster, number = number, number + 1
                # The matcher remembers what it worked out of its second text, the first member.
                matcher = SequenceMatcher(None, "", text, autojunk=autojunk)
                clusters[group].append((cluster, matcher))
            seen[group, text] = cluster
        ids[i] = seen[group, text]
    return ids, number


def _first_fit(
    clusters: Iterable[tuple[int, SequenceMatcher]], text: str, similarity: float
) -> int | None:
    for number, matcher in clusters:
        matcher.set_seq1(text)
        # Lengths, then character counts, bound the matched characters from above, whichever of
        # them autojunk ignores; ratio is increasing in that number, so the outcome is the same.
        if (
            matcher.real_quick_ratio() >= similarity
            and matcher.quick_ratio() >= similarity
            and matcher.ratio() >= similarity
        ):
            return number
    return None


def _items(values: Sequence[Any] | np.ndarray) -> list[Any]:
    """A list; of an array of rank 1, one of Python's numbers and strings, which are quicker."""
    return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)


def _key(x: Any) -> Hashable:
    """Something hashable that equals another key where the observations are equal."""
    if x is None or isinstance(x, str | bytes | int | float):
        return x
    if isinstance(x, np.generic):
        return x.item()
    if hasattr(x, "__array__"):
        return tuple(np.asarray(x).ravel().tolist())
    if isinstance(x, list | tuple):
        return tuple(map(_key, x))
    if isinstance(x, dict):
        return frozenset((key, _key(value)) for key, value in x.items())
    raise TypeError(
        f"observations hold {type(x).__name__}, which cannot be compared; "
        "use text, numbers, arrays, or lists, tuples and dicts of them"
    )
