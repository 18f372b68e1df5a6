"""Between records and arrays: the ids that were sampled are the ids that are trained on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.models import DecoderConfig, make_policy, phrase_tokenizer, score
from steprl.rollout import collate, pack, trajectories
from steprl.types import Parent, Step, Trajectory

TOKENIZER = phrase_tokenizer(("go to", "go", "to", "cabinet 1", "cabinet", "1", "look", "."))
END = TOKENIZER.eos_token_id
SIZE = len(TOKENIZER)
few = settings(max_examples=30, deadline=None)


def ids_of(*names):
    return np.array(TOKENIZER.convert_tokens_to_ids(list(names)), np.int32)


def step(observation_ids, action_ids, seed=0, **changes):
    draw = np.random.default_rng(seed)
    observation_ids, action_ids = (np.asarray(x, np.int32) for x in (observation_ids, action_ids))
    fields = dict(
        observation="", action="", observation_ids=observation_ids, action_ids=action_ids,
        logprobs=-draw.random(len(action_ids)).astype(np.float32),
        entropies=draw.random(len(action_ids)).astype(np.float32),
        reward=0.0, terminated=False, truncated=False, stop_reason="stop_token",
    )  # fmt: skip
    return Step(**{**fields, **changes})


@st.composite
def records(draw):
    """A trajectory; no padding id is sampled, the last step ends in one way or another."""
    tokens = st.integers(1, SIZE - 1)
    steps = []
    for number in range(draw(st.integers(1, 4))):
        observation = draw(st.lists(tokens, min_size=int(number == 0), max_size=4))
        action = draw(st.lists(tokens, min_size=1, max_size=4))
        steps.append(
            step(
                observation,
                action,
                seed=draw(st.integers(0, 99)),
                reward=draw(st.sampled_from([0.0, 1.0, -0.5])),
                valid=draw(st.booleans()),
                stop_reason="stop_token" if action[-1] == END else "length",
            )
        )
    ends = draw(st.sampled_from([(True, False), (False, True)]))
    steps[-1] = dataclasses.replace(steps[-1], terminated=ends[0], truncated=ends[1])
    final = np.array(draw(st.lists(tokens, max_size=3)) if ends[1] else [], np.int32)
    return Trajectory(
        draw(st.integers(0, 9)), draw(st.integers(0, 9)), tuple(steps), ends[0],
        final_observation_ids=final,
    )  # fmt: skip


def supported(trajectory, words=2, seed=0):
    """The same with a set of tokens for each sampled one."""
    draw = np.random.default_rng(seed)
    sets = lambda s: draw.integers(1, 2**32, (len(s.action_ids), words), np.uint32)  # noqa: E731
    steps = tuple(dataclasses.replace(s, supports=sets(s)) for s in trajectory.steps)
    return dataclasses.replace(trajectory, steps=steps)


def assert_same(one, other):
    """Equal but for the texts, which are views."""
    assert (one.task, one.sample, one.success) == (other.task, other.sample, other.success)
    assert len(one.steps) == len(other.steps)
    np.testing.assert_array_equal(one.final_observation_ids, other.final_observation_ids)
    for a, b in zip(one.steps, other.steps, strict=True):
        for name in ("observation_ids", "action_ids", "logprobs", "entropies"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for name in ("reward", "terminated", "truncated", "valid", "stop_reason"):
            assert getattr(a, name) == getattr(b, name), name
        assert (a.supports is None) == (b.supports is None)
        if a.supports is not None:
            np.testing.assert_array_equal(a.supports, b.supports)


@few
@given(st.lists(records(), min_size=1, max_size=4), st.booleans())
def test_records_come_back_from_a_batch_as_they_were(played, truncated):
    if truncated:
        played = [supported(one, seed=seed) for seed, one in enumerate(played)]
    back = trajectories(collate(played, 5, [64]), TOKENIZER)
    for one, other in zip(played, back, strict=True):
        assert_same(one, other)


@few
@given(st.lists(records(), min_size=1, max_size=3))
def test_a_batch_lays_the_tokens_of_a_row_end_to_end(played):
    batch = collate(played, 5, [16, 64])
    for row, trajectory in enumerate(played):
        ids = np.concatenate(
            [x for s in trajectory.steps for x in (s.observation_ids, s.action_ids)]
            + [trajectory.final_observation_ids]
        )
        count = len(ids)
        np.testing.assert_array_equal(batch.tokens_NT[row, :count], ids)
        np.testing.assert_array_equal(batch.positions_NT[row, :count], np.arange(count))
        np.testing.assert_array_equal(
            batch.segment_ids_NT[row], np.arange(len(batch.tokens_NT[0])) < count
        )
        assert not batch.tokens_NT[row, count:].any() and not batch.positions_NT[row, count:].any()
        assert np.all(batch.step_ids_NT[row, count:] == -1)
        assert batch.mask_NS[row].sum() == len(trajectory.steps)


def test_ids_that_read_back_otherwise_stay_as_they_were_sampled():
    sampled = [*ids_of("go", "to", "cabinet", "1"), END]  # its text is two other tokens
    record = Trajectory(0, 0, (step(ids_of("look"), sampled, terminated=True),), True)
    found = trajectories(collate([record], 1, [16]), TOKENIZER)[0].steps[0]
    assert found.action == "go to cabinet 1"
    assert TOKENIZER.encode(found.action) == [*ids_of("go to", "cabinet 1")] != sampled[:-1]
    np.testing.assert_array_equal(found.action_ids, sampled)


# ---------------------------------------------------------------- what only some rows have


CUT = Trajectory(
    0, 0, (step([3, 4], [5, 1]), step([6], [7], truncated=True)), False,
    final_observation_ids=np.array([8, 9], np.int32),
)  # fmt: skip


def test_the_final_observation_is_masked_and_no_step():
    batch = collate([CUT], 3, [16])
    np.testing.assert_array_equal(batch.tokens_NT[0, :9], [3, 4, 5, 1, 6, 7, 8, 9, 0])
    np.testing.assert_array_equal(batch.segment_ids_NT[0], [1] * 8 + [0] * 8)
    np.testing.assert_array_equal(batch.positions_NT[0, :9], [*range(8), 0])
    np.testing.assert_array_equal(batch.step_ids_NT[0, :9], [-1, -1, 0, 0, -1, 1, -1, -1, -1])
    np.testing.assert_array_equal(batch.mask_NS[0], [True, True, False])
    assert batch.support_NTW is None


@pytest.mark.parametrize("final, length", [(0, 8), (2, 8), (3, 16)])
def test_the_final_observation_needs_room_too(final, length):
    cut = dataclasses.replace(CUT, final_observation_ids=np.full(final, 8, np.int32))
    assert collate([cut], 2, [8, 16]).tokens_NT.shape == (1, length)
    with pytest.raises(ValueError, match="a trajectory of 17 tokens"):
        long_final = np.full(11, 8, np.int32)
        collate([dataclasses.replace(CUT, final_observation_ids=long_final)], 2, [8, 16])


def test_a_step_without_a_set_among_others_was_sampled_from_everything():
    one, other = supported(CUT), CUT
    batch = collate([one, other], 2, [8])
    assert batch.support_NTW.dtype == np.uint32 and batch.support_NTW.shape == (2, 8, 2)
    np.testing.assert_array_equal(batch.support_NTW[0, 2:4], one.steps[0].supports)
    np.testing.assert_array_equal(batch.support_NTW[0, 5:6], one.steps[1].supports)
    assert not batch.support_NTW[0, [0, 1, 4, 6, 7]].any() and not batch.support_NTW[1].any()


def test_sets_of_several_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"supports of \[2, 3\] words"):
        collate([supported(CUT), supported(CUT, words=3)], 2, [16])


def test_packed_rows_are_of_the_whole_vocabulary_and_end_with_an_action():
    batch = pack([[supported(CUT), CUT]], 16)
    assert batch.support_NTW is None
    np.testing.assert_array_equal(batch.tokens_NT[0, :13], [3, 4, 5, 1, 6, 7] * 2 + [0])


# ---------------------------------------------------------------- branches


def family(first_sample=0):
    """An original of three steps, a branch within its second one, and a branch from its beginning."""
    steps = [step([3, 4], [5, 6, 1]), step([6], [7, 8, 1]), step([9], [4, 1])]
    inside = [steps[0], step([6], [7, 5, 1]), step([3], [1])]
    return [
        Trajectory(2, first_sample, tuple(steps), False),
        Trajectory(2, first_sample + 1, tuple(inside), False, Parent(first_sample, 1, 1, 0.5, -1)),
        Trajectory(2, first_sample + 2, (step([3, 4], [7, 1]),), False, Parent(first_sample, 0)),
    ]


def test_a_batch_says_how_its_rows_descend_from_each_other():
    batch = collate([*family(3), dataclasses.replace(CUT, task=9)], 3, [16])
    branches = batch.branches
    assert branches.origin_N.tolist() == [0, 0, 0, 3]
    assert branches.step_N.tolist() == [0, 1, 0, 0]
    assert branches.token_N.tolist() == [-1, 6, -1, -1]  # 3 4 5 6 1 6 and the 7 that is shared
    assert branches.score_N.tolist() == [0, 0.5, 0, 0]
    assert branches.preference_N.tolist() == [0, -1, 0, 0]
    assert collate(family()[:1], 3, [16]).branches is None


def test_a_branch_without_its_origin_stands_alone():
    batch = collate(family()[1:], 3, [16])
    assert batch.branches.origin_N.tolist() == [0, 1]
    assert batch.branches.token_N.tolist() == [-1, -1]


def test_parents_come_back_from_a_batch():
    played = family()
    back = trajectories(collate(played, 3, [16]), TOKENIZER)
    assert [one.parent for one in back[1:]] == [one.parent for one in played[1:]]
    assert back[0].parent == Parent(0, 0)  # its own


# ---------------------------------------------------------------- rows of few lengths


def long(observation, *actions):
    steps = [step([3] * observation, [4] * actions[0])]
    return Trajectory(0, 0, tuple(steps + [step([], [4] * n) for n in actions[1:]]), False)


@pytest.mark.parametrize(
    ("observation", "actions", "length"),
    [(1, [1], 8), (4, [4], 8), (5, [4], 16), (1, [5], 16), (3, [2, 2], 8), (24, [8], 32)],
)
def test_the_smallest_length_that_fits_is_used(observation, actions, length):
    batch = collate([long(1, 1), long(observation, *actions)], 3, [8, 16, 32])
    assert batch.tokens_NT.shape == (2, length) and batch.reward_NS.shape == (2, 3)
    assert batch.action_width == length // 2


@pytest.mark.parametrize(
    ("trajectory", "says"),
    [
        (long(13, 4), r"17 tokens \(4 sampled\) in 1 steps"),
        (long(1, 9), r"10 tokens \(9 sampled\) in 1 steps"),  # more sampled than half the row
        (long(1, 1, 1, 1, 1), r"in 4 steps .* 16 tokens and 3 steps"),
    ],
    ids=["tokens", "sampled tokens", "steps"],
)
def test_a_trajectory_that_does_not_fit_is_refused(trajectory, says):
    with pytest.raises(ValueError, match=says):
        collate([long(1, 1), trajectory], 3, [8, 16])


# ---------------------------------------------------------------- packed rows


PACKED = [
    [
        Trajectory(4, 0, (step([3, 4], [5, 1]), step([6], [7, 8, 1])), True),
        Trajectory(5, 0, (step([9], [4, 1]),), True),
    ],
    [Trajectory(6, 0, (step([3], [3, 1]),), False), Trajectory(7, 0, (step([8], [1]),), True)],
]


def test_packed_trajectories_are_kept_apart_by_segments():
    batch = pack(PACKED, 16)
    np.testing.assert_array_equal(batch.tokens_NT[0, :12], [3, 4, 5, 1, 6, 7, 8, 1, 9, 4, 1, 0])
    np.testing.assert_array_equal(batch.segment_ids_NT[0, :12], [1] * 8 + [2] * 3 + [0])
    np.testing.assert_array_equal(batch.positions_NT[0, :12], [*range(8), 0, 1, 2, 0])
    np.testing.assert_array_equal(
        batch.step_ids_NT[0, :12], [-1, -1, 0, 0, -1, 1, 1, 1, -1, 2, 2, -1]
    )
    np.testing.assert_array_equal(batch.success_N, [True, False])
    assert not batch.mask_NS.any() and not batch.reward_NS.any()


def test_scores_of_packed_rows_are_those_of_separate_rows():
    policy = make_policy(
        DecoderConfig(
            vocab_size=SIZE, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24
        )
    )  # fmt: skip
    params = jax.jit(policy.init)(jax.random.key(0))
    params["value"]["out"]["kernel"] += 0.5
    params["decoder"]["embedding"]["embedding"] *= 10.0
    scored = jax.jit(functools.partial(score, policy, params))
    together, batch = scored(pack(PACKED, 16)), pack(PACKED, 16)
    apart = pack([[t] for row in PACKED for t in row], 16)
    lines = scored(apart)
    for packed, separate in zip(together[:3], lines[:3], strict=True):
        for row in range(2):
            for segment in (1, 2):
                real = batch.segment_ids_NT[row] == segment
                line = 2 * row + segment - 1
                mine = apart.segment_ids_NT[line] == 1
                np.testing.assert_allclose(packed[row][real], separate[line][mine], atol=1e-5)
        assert np.abs(np.asarray(separate)).max() > 0.1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[long(6, 2)], [long(6, 2), long(1, 1, 1)]], "row 1 holds more than 10 tokens"),
        ([[long(1, 3), long(1, 3)]], "more sampled tokens than half of 10"),
    ],
)
def test_a_packed_row_that_does_not_fit_is_refused(rows, says):
    with pytest.raises(ValueError, match=says):
        pack(rows, 10)
