"""Rows that share a beginning: run once, scored and trained as if each stood alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from steprl.models import DecoderConfig, make_policy, score, with_lora
from steprl.ops import LEVELS, ValueSupport, aggregation_weights, policy_loss
from steprl.rollout.trees import collate_trees, share_prefixes, tree_widths
from steprl.types import Trajectory
from tests.rollout.groups import VOCAB, group, groups, random_step

CONFIG = DecoderConfig(
    vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24,
    value_head="separate", value_support=ValueSupport(-1.0, 1.0, 9), attention_block=16,
)  # fmt: skip
STEPS, LENGTH, ACTION, ROWS = 3, 32, 6, 3
few = settings(max_examples=8, deadline=None)


POLICY = with_lora(make_policy(CONFIG), rank=2, alpha=4.0)


@functools.cache
def opinions():
    """Parameters that are far from saying nothing, the critic's too."""
    params = jax.jit(POLICY.init)(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 10.0
    params["critic"]["embedding"]["embedding"] *= 10.0
    params["value"]["out"]["kernel"] += jax.random.normal(jax.random.key(1), (16, 9))
    lora = params["lora"]["decoder"]["layers"]["0"]["attention"]["query"]
    lora["lora_b"] += 0.1
    return params


def laid_out(played, widths=(96,)):
    return collate_trees(played, STEPS, [LENGTH], ACTION, rows=ROWS, widths=widths)


def apart(batch):
    return dataclasses.replace(batch, tree=None)


compiled_score = jax.jit(lambda params, batch: score(POLICY, params, batch, 0.7))


def scored(batch):
    return jax.device_get(compiled_score(opinions(), batch))


@jax.jit
def compiled_gradients(params, batch):
    """Of losses that ask for everything: ratios of each level, entropy, values and final values."""
    rng = np.random.default_rng(0)
    advantage_NT = jnp.asarray(rng.normal(size=batch.tokens_NT.shape), jnp.float32)
    weights = aggregation_weights(batch.step_ids_NT)

    def losses(params):
        new = score(POLICY, params, batch, 0.7)
        surrogates = [
            policy_loss(
                new.logprob_NT, batch.logprob_NT, advantage_NT, batch.step_ids_NT, level=level,
                clip_low=0.5, clip_high=0.5, weights_t=weights,
            )[0]
            for level in LEVELS
        ]  # fmt: skip
        rest_NT = new.entropy_NT + jnp.square(new.value_NT - advantage_NT)
        rest = jnp.sum(weights * rest_NT) + jnp.mean(jnp.sin(new.final_value_N))
        return jnp.stack([*surrogates, rest])

    return jax.jacrev(losses)(params)


def gradients(batch):
    return jax.device_get(compiled_gradients(opinions(), batch))


def assert_close(got, want, atol=1e-5):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def real(ids):
    return int((np.asarray(ids) > 0).sum())


@few
@given(groups())
def test_scores_are_those_of_the_rows_alone(played):
    batch = laid_out(played)
    assert_close(scored(batch), scored(apart(batch)))


@pytest.mark.parametrize(
    "widths",
    [pytest.param((96,), marks=pytest.mark.full), pytest.param((32,), marks=pytest.mark.slow)],
    ids=["one block", "several blocks"],
)
def test_contexts_written_anew_share_what_they_begin_with(widths):
    @few
    @given(groups(rebuilt=True, sets=True))
    def check(played):
        batch = laid_out(played, widths)
        assert batch.tree.tokens_MGU.shape[2] in widths
        assert_close(scored(batch), scored(apart(batch)))

    check()


@few
@given(groups(sets=True))
@pytest.mark.slow
def test_tokens_are_scored_within_the_sets_they_were_drawn_from(played):
    batch = laid_out(played)
    assert_close(scored(batch), scored(apart(batch)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rebuilt",
    [pytest.param(False, marks=pytest.mark.full), True],
    ids=["extended", "rebuilt"],
)
def test_gradients_are_those_of_the_rows_alone(rebuilt):
    rng = np.random.default_rng(4)
    batch = laid_out([group(rng, task, 3, rebuilt=rebuilt) for task in range(2)])
    assert real(batch.tree.segment_ids_MGU) < real(batch.segment_ids_NT)
    got, want = gradients(batch), gradients(apart(batch))
    assert_close(got, want)
    for part, rows in (("decoder", range(len(LEVELS))), ("lora", [0]), ("critic", [-1])):
        for row in rows:  # there is something to compare
            assert max(float(np.abs(x[row]).max()) for x in jax.tree.leaves(want[part])) > 1e-3


# The layout


def of_tokens(*rows):
    """A group of trajectories of one step each: (what it read, what it sampled)."""
    rng = np.random.default_rng(0)
    found = []
    for read, sampled in rows:
        step = random_step(rng, len(read), len(sampled))
        ids = [np.array(x, np.int32) for x in (read, sampled)]
        step = dataclasses.replace(step, observation_ids=ids[0], action_ids=ids[1])
        found.append(Trajectory(0, 0, (step,), False))
    return found


def test_a_tree_of_three_rows():
    played = [of_tokens(([5, 6], [7, 8]), ([5, 6], [7, 3, 4]), ([5, 9], [7]))]
    tree = collate_trees(played, 1, [6], widths=[8, 12]).tree
    np.testing.assert_array_equal(tree.tokens_MGU, [[[5, 6, 7, 3, 4, 8, 9, 7]]])
    np.testing.assert_array_equal(tree.positions_MGU, [[[0, 1, 2, 3, 4, 3, 1, 2]]])
    np.testing.assert_array_equal(tree.segment_ids_MGU, [[[1, 2, 3, 4, 5, 6, 7, 8]]])
    np.testing.assert_array_equal(tree.segment_ends_MGU, [[[9, 7, 7, 6, 6, 7, 9, 9]]])
    np.testing.assert_array_equal(tree.target_MP, [[2, 3, 4, 5, 7, 8]])
    np.testing.assert_array_equal(tree.before_MP, [[1, 2, 3, 2, 6, 0]])
    np.testing.assert_array_equal(
        tree.scored_NT,
        [[-1, -1, 0, 3, -1, -1], [-1, -1, 0, 1, 2, -1], [-1, -1, 4, -1, -1, -1]],
    )
    np.testing.assert_array_equal(tree.last_N, [5, 4, 7])


def test_what_a_token_read_as_is_what_it_was_sampled_as():
    """A context that quotes an action has the same hidden states; it is scored where it was sampled."""
    tree = collate_trees([of_tokens(([5, 6], [7]), ([5, 6, 7], [8]))], 1, [4], 4, widths=[4]).tree
    np.testing.assert_array_equal(tree.tokens_MGU, [[[5, 6, 7, 8]]])
    np.testing.assert_array_equal(tree.scored_NT, [[-1, -1, 0, -1], [-1, -1, -1, 1]])


def contexts_of(batch, row):
    for segment in range(1, int(batch.segment_ids_NT[row].max()) + 1):
        yield tuple(batch.tokens_NT[row][batch.segment_ids_NT[row] == segment].tolist())


@few
@given(groups(rebuilt=True))
def test_each_token_stands_once_and_behind_those_it_sees(played):
    batch = laid_out(played)
    tree, rows = batch.tree, range(ROWS)
    for m in range(len(played)):
        contexts = [c for n in rows for c in contexts_of(batch, m * ROWS + n)]
        prefixes = {context[: end + 1] for context in contexts for end in range(len(context))}
        ids, ends = tree.segment_ids_MGU[m, 0], tree.segment_ends_MGU[m, 0]
        count = int((ids > 0).sum())
        assert count == len(prefixes)
        found = set()
        for q in range(count):
            seen = [k for k in range(len(ids)) if ids[k] > 0 and ids[k] <= ids[q] < ends[k]]
            assert seen[-1] == q  # so blocks of queries need no key behind their end
            np.testing.assert_array_equal(tree.positions_MGU[m, 0, seen], range(len(seen)))
            found.add(tuple(tree.tokens_MGU[m, 0, seen].tolist()))
        assert found == prefixes


@pytest.mark.slow
def test_blocks_hold_contexts_whole():
    rng = np.random.default_rng(5)
    played = [group(rng, 0, 3, rebuilt=True) for _ in range(2)]
    batch = laid_out(played, (32,))
    one, several = laid_out(played).tree, batch.tree
    assert several.tokens_MGU.shape[1] == 2 and one.tokens_MGU.shape[1] == 1
    assert real(several.segment_ids_MGU) >= real(one.segment_ids_MGU)
    starts = (several.segment_ids_MGU == 1).sum(axis=2)
    filled = np.any(several.segment_ids_MGU > 0, axis=2)
    np.testing.assert_array_equal(starts, filled)  # each block numbers its own tokens
    assert_close(scored(batch), scored(apart(batch)))


@pytest.mark.slow
def test_what_stands_at_masked_tokens_changes_no_score():
    rng = np.random.default_rng(6)
    batch = laid_out([group(rng, task, 2 + task, sets=True) for task in range(2)])
    tree = batch.tree
    padding, none = tree.segment_ids_MGU == 0, tree.target_MP == tree.tokens_MGU[0].size
    assert padding.any() and none.any()
    put = lambda x, where, value: np.where(where, np.asarray(value, x.dtype), x)  # noqa: E731
    support = np.where(none[..., None], np.uint32(1), tree.support_MPW)
    other = tree._replace(
        tokens_MGU=put(tree.tokens_MGU, padding, 2**31 - 1),
        positions_MGU=put(tree.positions_MGU, padding, 3),
        segment_ends_MGU=put(tree.segment_ends_MGU, padding, 99),
        before_MP=put(tree.before_MP, none, 5),
        support_MPW=support,
    )
    poisoned = np.where(batch.step_ids_NT < 0, np.float32("nan"), batch.logprob_NT)
    changed = dataclasses.replace(batch, tree=other, logprob_NT=poisoned)
    for one, two in zip(scored(batch), scored(changed), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_plain_rows_are_the_same_with_segment_ends_and_without():
    policy = make_policy(CONFIG)
    params = policy.init(jax.random.key(2))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (2, 12)).astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [3] * 12], np.int32)
    positions = np.array([[*range(5), *range(4), 0, 0, 0], [*range(12)]], np.int32)
    plain = policy.apply(params, tokens, positions, segments)[0]
    ended = policy.apply(params, tokens, positions, segments, segment_ends_BT=segments + 1)[0]
    np.testing.assert_array_equal(plain[segments > 0], ended[segments > 0])


# Collation


def test_groups_of_fewer_rows_are_filled_with_empty_ones():
    rng = np.random.default_rng(7)
    played = [group(rng, 4, 1), [], group(rng, 2, 3)]
    played = [[dataclasses.replace(t, metrics={"f1": 0.5}) for t in one] for one in played]
    batch = collate_trees(played, STEPS, [LENGTH], ACTION, rows=4)
    there = np.any(batch.mask_NS, axis=1)
    np.testing.assert_array_equal(there, [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(np.any(batch.segment_ids_NT > 0, axis=1), there)
    np.testing.assert_array_equal(batch.tree.last_N >= 0, there)
    np.testing.assert_array_equal(batch.task_N, [4] * 4 + [-1] * 4 + [2] * 4)
    np.testing.assert_array_equal(np.isfinite(batch.metrics_N["f1"]), there)
    assert np.all(batch.step_ids_NT[~there] == -1)
    assert batch.tree.tokens_MGU.shape[2] in tree_widths(LENGTH)


@pytest.mark.parametrize("longest", [1, 32, 100, 512, 3000])
def test_allowed_widths_are_few_and_close(longest):
    widths = tree_widths(longest)
    assert widths == sorted(widths) and len(widths) < 60
    assert max(widths) >= 1.75 * longest
    of_use = [w for w in widths if w >= max(4, longest // 4)]
    assert all(b <= 1.25 * a + 1 for a, b in zip(of_use, of_use[1:], strict=False))


@pytest.mark.parametrize(
    "played, more, message",
    [
        ([[], []], {}, "groups: there is no trajectory"),
        (
            [of_tokens(([1], [2]), ([3], [4]))],
            {"rows": 1},
            "2 trajectories, and rows=1: use rows=2",
        ),
        ([of_tokens(([1, 2, 3], [2, 3]))], {"widths": [2, 4]}, "5 tokens does not fit .* 4 tokens"),
        ([of_tokens(([], [2, 3]))], {}, "row 0 samples its first token"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(played, more, message):
    with pytest.raises(ValueError, match=message):
        collate_trees(played, 1, [8], **more)


def test_rows_of_other_positions_or_numbers_are_refused():
    batch = collate_trees([of_tokens(([1, 2], [3]), ([1, 2], [4]))], 1, [8])
    with pytest.raises(ValueError, match="2 rows of a batch do not make groups of rows=3"):
        share_prefixes(batch, 3, [8])
    moved = dataclasses.replace(batch, positions_NT=batch.positions_NT + 1)
    with pytest.raises(ValueError, match="positions_NT: those of a context of row 0 are not 0, 1"):
        share_prefixes(moved, 2, [8])
