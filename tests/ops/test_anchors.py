"""Anchor states: which observations are equal, or similar enough, and how they are numbered."""

import doctest
from difflib import SequenceMatcher

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.ops import anchors as room

FEW = settings(max_examples=60, deadline=None)


def numbers(*arguments, **options):
    return ops.anchor_ids(*arguments, **options)[0].tolist()


# --- Equality -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        (1, True),
        (np.int64(1), 1.0),
        (np.float32(0.5), 0.5),
        (np.str_("hall"), "hall"),
        (np.zeros((2, 3)), np.zeros((3, 2), int)),  # the shape is ignored
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": True}),
        (["x", (1, 2)], ("x", [1, 2])),
        ({"image": np.arange(4)}, {"image": np.arange(4).reshape(2, 2)}),
        ({}, {}),
        (None, None),
    ],
)
def test_equal_observations(first, second):
    assert numbers([first, second]) == [0, 0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("hall", "hall "),
        ("1", 1),
        (np.arange(3), np.arange(4)),
        (np.array([0, 1]), np.array([1, 0])),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
        ("", None),
        (float("nan"), float("nan")),
    ],
)
def test_different_observations(first, second):
    assert numbers([first, second]) == [0, 1]


def test_numbers_follow_the_first_appearance_and_are_unique_over_groups():
    ids, number = ops.anchor_ids(["b", "a", "b", "a", "c", "b"], ["q", "q", "q", "p", "p", "p"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 1, 0, 2, 3, 4]
    assert number == 5


@pytest.mark.parametrize(
    "observations",
    [
        np.array(["x", "y", "x"]),
        np.array([3, 1, 3]),
        np.array([[0, 1], [1, 1], [0, 1]]),
        np.array(["x", 2, "x"], object),
    ],
    ids=["text", "numbers", "rows", "objects"],
)
def test_an_array_holds_observations_along_its_first_axis(observations):
    assert numbers(observations) == [0, 1, 0]


def test_no_observation():
    for similarity in (None, 0.5):
        ids, number = ops.anchor_ids([], similarity=similarity)
        assert (ids.shape, ids.dtype, number) == ((0,), np.int32, 0)


@FEW
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=12))
def test_same_number_if_and_only_if_same_group_and_equal(pairs):
    ids, number = ops.anchor_ids([text for text, _ in pairs], [group for _, group in pairs])
    assert sorted(set(ids.tolist())) == list(range(number))
    for i, first in enumerate(pairs):
        for j, second in enumerate(pairs):
            assert (ids[i] == ids[j]) == (first == second)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="group_ids has 1 entries for 2 observations"):
        ops.anchor_ids(["a", "b"], [0])
    with pytest.raises(TypeError, match="observations hold object"):
        ops.anchor_ids([object()])


# --- Similarity -----------------------------------------------------------------------------------


def by_definition(texts, groups, similarity, autojunk):
    """First fit against the first member of each cluster, every ratio worked out."""
    clusters, ids, number = {}, [], 0
    for group, text in zip(groups, texts, strict=True):
        for other, cluster in clusters.setdefault(group, []):
            if SequenceMatcher(None, text, other, autojunk).ratio() >= similarity:
                ids.append(cluster)
                break
        else:
            clusters[group].append((text, number))
            ids.append(number)
            number += 1
    return ids, number


# Long enough for autojunk, from few pieces so that texts repeat and resemble each other.
pieces = st.lists(st.sampled_from(["ab", "ba", "c", "abab" * 20, "dcba"]), max_size=5)
texts = st.lists(pieces.map("".join), max_size=7)


@FEW
@given(texts, st.floats(0.05, 0.95), st.booleans(), st.integers(1, 2))
def test_bounds_and_memory_change_nothing(texts, similarity, autojunk, num_groups):
    groups = [i % num_groups for i in range(len(texts))]
    ids, number = ops.anchor_ids(texts, groups, similarity=similarity, autojunk=autojunk)
    assert (ids.tolist(), number) == by_definition(texts, groups, similarity, autojunk)


def test_a_text_joins_the_first_cluster_that_fits_and_the_order_matters():
    assert numbers(["aaaa", "aabb", "bbbb"], similarity=0.5) == [0, 0, 1]
    assert numbers(["aabb", "aaaa", "bbbb"], similarity=0.5) == [0, 0, 0]  # first member aabb
    assert numbers(["aaaa", "bbbb", "aabb"], similarity=0.5) == [0, 1, 0]  # both fit: the first


def test_the_threshold_itself_is_similar():
    assert SequenceMatcher(None, "abxx", "abyy").ratio() == 0.5
    assert numbers(["abyy", "abxx"], similarity=0.5) == [0, 0]
    assert numbers(["abyy", "abxx"], similarity=0.51) == [0, 1]


def test_the_ratio_is_that_of_a_text_to_the_first_member():
    first, second = "tide", "diet"  # the ratio is not symmetric
    there, back = (SequenceMatcher(None, *p).ratio() for p in ((first, second), (second, first)))
    assert there < back
    between = (there + back) / 2
    assert numbers([first, second], similarity=between) == [0, 0]
    assert numbers([second, first], similarity=between) == [0, 1]


def test_texts_of_different_groups_are_never_similar():
    assert numbers(["hall", "hall"], [0, 1], similarity=0.5) == [0, 1]


def test_autojunk_is_the_shipped_behaviour_and_parts_long_texts():
    text = "kitchen drawer apple " * 12
    almost = text.replace("apple", "appel", 1)
    assert numbers([text, almost], similarity=0.95) == [0, 0]
    assert numbers([text, almost], similarity=0.95, autojunk=True) == [0, 1]
    assert numbers([text[:150], almost[:150]], similarity=0.95, autojunk=True) == [0, 0]


@pytest.mark.parametrize("similarity", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_the_threshold_lies_strictly_between_0_and_1(similarity):
    with pytest.raises(ValueError, match="similarity=.*strictly between 0 and 1"):
        ops.anchor_ids(["a"], similarity=similarity)


@pytest.mark.parametrize("observations", [[1, 2], ["a", 1], [np.zeros(2)], [None], [["a"]]])
def test_only_text_is_similar(observations):
    with pytest.raises(ValueError, match="compares text.*similarity=None"):
        ops.anchor_ids(observations, similarity=0.9)


def test_examples_in_docstrings_run():
    failed, tried = doctest.testmod(room)
    assert tried > 0
    assert failed == 0
