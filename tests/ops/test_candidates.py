"""Which tokens may be branched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.ops import (
    appo_branching_scores,
    arpo_candidates,
    nonblank_tokens,
    select_branch_points,
)


@pytest.mark.parametrize(
    "text, nonblank, without_punctuation",
    [
        ("word", True, True), (" word", True, True), ("it's", True, True), ("7", True, True),
        ("", False, False), (" ", False, False), ("\n\t ", False, False),
        (",", True, False), (" !? ", True, False), ("</", True, False), ("…", True, True),
    ],
)  # fmt: skip
def test_a_text_is_blank_or_not(text, nonblank, without_punctuation):
    assert nonblank_tokens([text])[0] == nonblank
    assert nonblank_tokens([text], punctuation=False)[0] == without_punctuation


def test_the_result_is_a_table_over_the_vocabulary():
    table = nonblank_tokens(["<pad>", " ", "go", "."])
    tokens, ids = jnp.array([2, 1, 3, 2]), jnp.array([-1, 0, 0, 0])
    np.testing.assert_array_equal(
        jnp.asarray(table)[tokens] & (ids >= 0), [False, False, True, True]
    )
    assert nonblank_tokens([]).shape == (0,)


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([-1, 0, 0, -1, 1, 1, -1, 2], [0, 0, 0, 0, 1, 0, 0, 1]),
        ([0, -1, 0, 1, -1, 1, -1, -1], [0, 0, 0, 1, 0, 0, 0, 0]),  # a step with a hole is one step
        ([4, 4, -1, 7, 9, 9, -1, -1], [0, 0, 0, 1, 1, 0, 0, 0]),  # flat ids
        ([-1] * 8, [0] * 8),
    ],
)
def test_arpo_asks_where_a_tool_has_just_answered(ids, expected):
    np.testing.assert_array_equal(jax.jit(arpo_candidates)(jnp.array(ids)), expected)


@pytest.mark.slow
def test_arpo_is_appo_without_future_values_at_these_tokens():
    """The most uncertain tool result is branched first, the best token elsewhere never."""
    ids = jnp.array([[-1, 0, 0, -1, 1, 1, -1, 2], [-1, 0, -1, 1, 1, 1, -1, 2]])
    entropy = jnp.array([[0, 9.0, 9, 0, 1, 9, 0, 3], [0, 0, 0, 2, 0, 0, 0, 4.0]])
    candidate = jax.vmap(arpo_candidates)(ids)
    score, strict = jax.vmap(
        lambda h, i, c: appo_branching_scores(h, i, where=c), in_axes=(0, 0, 0)
    )(entropy, ids, candidate)
    points = select_branch_points(score, strict, candidate, 4)
    assert list(zip(points.row_b.tolist(), points.token_b.tolist(), strict=True))[:2] == [
        (0, 7),
        (1, 7),
    ]
    assert int(points.num_strict) == 2 and int(points.num_fallback) == 2
