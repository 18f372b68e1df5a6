"""What a step saw: the tokens between the action before and its own."""

import dataclasses

import numpy as np
import pytest

from steprl.models.tokenizer import phrase_tokenizer
from steprl.rollout import with_anchors
from steprl.rollout.anchors import observations
from tests.small import random_batch

WORDS = ("red", "green", "blue", "door", "key")
TOKENIZER = phrase_tokenizer(WORDS)
RED, GREEN, BLUE, DOOR, KEY = range(3, 8)


def batch_of(rows, tasks):
    """Rows as lists of steps (tokens that were seen, tokens that were written)."""
    base = random_batch(0, rows=len(rows))
    steps, width = max(len(r) for r in rows), 16
    tokens, ids = np.zeros((2, len(rows), width), np.int32)
    ids -= 1
    mask = np.zeros((len(rows), steps), bool)
    for n, row in enumerate(rows):
        place = 0
        for s, (seen, written) in enumerate(row):
            both = [*seen, *written]
            tokens[n, place : place + len(both)] = both
            ids[n, place + len(seen) : place + len(both)] = s
            place += len(both)
            mask[n, s] = True
    return dataclasses.replace(
        base, tokens_NT=tokens, step_ids_NT=ids, segment_ids_NT=(tokens > 0).astype(np.int32),
        mask_NS=mask, task_N=np.asarray(tasks, np.int32), anchor_NS=None, branches=None,
    )  # fmt: skip


ROWS = [
    [([RED, DOOR], [KEY]), ([GREEN], [KEY, KEY]), ([RED, DOOR], [KEY])],
    [([RED, DOOR], [RED]), ([GREEN], [DOOR])],
    [([RED, DOOR], [KEY]), ([BLUE], [KEY])],
]


def test_an_observation_is_what_was_new_to_the_step():
    seen = observations(batch_of(ROWS, [5, 5, 9]))
    assert [[None if x is None else x.tolist() for x in row] for row in seen] == [
        [[RED, DOOR], [GREEN], [RED, DOOR]],
        [[RED, DOOR], [GREEN], None],
        [[RED, DOOR], [BLUE], None],
    ]


def test_steps_of_a_task_that_saw_the_same_share_an_anchor():
    """The same attempt may come back to it; another task never shares one."""
    got = with_anchors(batch_of(ROWS, [5, 5, 9]), TOKENIZER).anchor_NS
    np.testing.assert_array_equal(got, [[0, 1, 0], [0, 1, -1], [2, 3, -1]])


def test_observations_that_are_nearly_the_same_share_an_anchor_if_asked():
    rows = [[([RED, DOOR, KEY], [KEY])], [([RED, DOOR, RED], [KEY])], [([BLUE], [KEY])]]
    batch = batch_of(rows, [1, 1, 1])
    exact = with_anchors(batch, TOKENIZER).anchor_NS
    similar = with_anchors(batch, TOKENIZER, similarity=0.7).anchor_NS
    np.testing.assert_array_equal(exact[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(similar[:, 0], [0, 0, 1])


@pytest.mark.parametrize("similarity", [None, 0.9])
def test_a_batch_without_steps_has_no_anchor(similarity):
    batch = batch_of(ROWS, [5, 5, 9])
    empty = dataclasses.replace(batch, mask_NS=np.zeros_like(batch.mask_NS))
    assert np.all(with_anchors(empty, TOKENIZER, similarity).anchor_NS == -1)
