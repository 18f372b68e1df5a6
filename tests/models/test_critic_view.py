"""The critic's view of a row: its own tokens, and before actions what only the critic is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.models import DecoderConfig, make_policy, score
from steprl.models.critic_view import critic_view
from steprl.ops import ValueSupport
from steprl.rollout.trees import share_prefixes
from steprl.types import Privileged
from tests.small import random_batch

ROWS, STEPS, VOCAB, ROOM = 8, 3, 16, 10
SHAPE = DecoderConfig(
    vocab_size=VOCAB, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8,
    value_head="separate",
)  # fmt: skip
BINS = dataclasses.replace(SHAPE, value_support=ValueSupport(-1.0, 1.0, 9))


def told(seed, batch, room=ROOM):
    """Up to three tokens before some steps and behind the last, in the order of the steps."""
    draw = np.random.default_rng(seed)
    tokens, steps = np.zeros((ROWS, room), np.int32), np.full((ROWS, room), -1, np.int32)
    for row, number in enumerate(np.asarray(batch.mask_NS).sum(axis=1)):
        order = sorted(draw.integers(0, number + 1, draw.integers(0, room + 1)))
        steps[row, : len(order)] = order
        tokens[row, : len(order)] = draw.integers(1, VOCAB, len(order))
    return dataclasses.replace(
        batch, privileged=Privileged(jnp.asarray(tokens), jnp.asarray(steps))
    )


def by_hand(batch, row):
    """Tokens of the view of a row, and where each token's state is complete."""
    tokens, real, step_of = (
        np.asarray(x)[row] for x in (batch.tokens_NT, batch.segment_ids_NT, batch.step_ids_NT)
    )
    privileged, before = (np.asarray(x)[row] for x in batch.privileged)
    view, after, begun, last = [], {}, set(), None

    def tell(step):
        nonlocal last
        for token in privileged[before == step]:
            view.append(int(token))
            if last is not None:
                after[last] = len(view) - 1

    for place in np.flatnonzero(real):
        if step_of[place] >= 0 and step_of[place] not in begun:
            begun.add(step_of[place])
            tell(step_of[place])
        view.append(int(tokens[place]))
        after[place] = len(view) - 1
        last = place
    tell(len(begun))
    return view, after


VIEW = jax.jit(critic_view)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16))
def test_what_is_told_stands_before_the_action_of_its_step(seed):
    batch = told(seed, random_batch(seed, ROWS, STEPS))
    tokens, positions, segments, after = jax.device_get(VIEW(batch))
    for row in range(ROWS):
        view, complete = by_hand(batch, row)
        size = len(view)
        assert tokens[row, :size].tolist() == view
        assert segments[row].tolist() == [1] * size + [0] * (len(tokens[row]) - size)
        assert positions[row].tolist() == [*range(size), *[0] * (len(tokens[row]) - size)]
        assert {place: after[row, place] for place in complete} == complete


def test_contexts_of_a_row_are_told_apart():
    """Two contexts of four tokens with room for two; the second is told what follows the last step."""
    tokens = jnp.asarray([[1, 2, 3, 0, 4, 5, 6, 7]])
    ids = [[-1, 0, 0, -1, -1, -1, 1, -1]]
    batch = dataclasses.replace(
        random_batch(0),
        tokens_NT=tokens,
        segment_ids_NT=jnp.asarray([[1, 1, 1, 0, 2, 2, 2, 2]]),
        step_ids_NT=jnp.asarray(ids),
        context_width=4,
        privileged=Privileged(jnp.asarray([[8, 9, 8, 10]]), jnp.asarray([[0, 0, 1, 2]])),
    )
    view = VIEW(batch)
    assert view.tokens_BC.tolist() == [[1, 8, 9, 2, 3, 0], [4, 5, 8, 6, 7, 10]]
    assert view.positions_BC.tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 5]]
    assert view.segment_ids_BC.tolist() == [[1, 1, 1, 1, 1, 0], [2] * 6]
    assert view.after_BT[1].tolist() == [0, 2, 3, 5]


def scores_of(config):
    """The scores of a batch under one set of parameters, whose critic has an opinion."""
    policy = make_policy(config)
    params = policy.init(jax.random.key(0))
    outputs = params["value"]["out"]["bias"].size
    params["value"]["out"]["kernel"] += jnp.linspace(1.0, 2.0, outputs)[None]
    params["critic"]["embedding"]["embedding"] *= 50.0
    run = jax.jit(lambda batch: score(policy, params, batch))
    return lambda batch: jax.device_get(run(batch))


@pytest.fixture(scope="module")
def scored():
    return scores_of(SHAPE)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


BATCH = random_batch(1, ROWS, STEPS)


def test_the_policy_does_not_see_what_the_critic_is_told(scored):
    """Log-probs and entropies are the same to the last bit; the values are not."""
    one, other = scored(told(1, BATCH)), scored(told(2, BATCH))
    plain = scored(BATCH)
    for name in ("logprob_NT", "entropy_NT"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(getattr(one, name), getattr(plain, name))
    active = np.asarray(BATCH.step_ids_NT) >= 0
    assert np.mean(np.abs(one.value_NT - other.value_NT)[active] > 1e-3) > 0.5
    assert not one.value_NT[~active].any()


def test_a_critic_that_is_told_nothing_reads_what_the_policy_reads(scored):
    batch = told(1, BATCH)
    none = batch.privileged._replace(step_ids_NP=jnp.full((ROWS, ROOM), -1))
    assert_close(scored(dataclasses.replace(batch, privileged=none)), scored(BATCH))


def test_what_is_told_is_known_from_its_step_on(scored):
    """The value before a token depends on what was told up to its step, and on nothing later."""
    batch = told(3, BATCH)
    before = scored(batch)
    for step in range(STEPS):
        tokens, steps = batch.privileged
        changed = jnp.where(steps >= step, 1 + tokens % (VOCAB - 1), tokens)
        after = scored(
            dataclasses.replace(batch, privileged=batch.privileged._replace(tokens_NP=changed))
        )
        ids = np.asarray(BATCH.step_ids_NT)
        earlier = (ids >= 0) & (ids < step)
        np.testing.assert_array_equal(before.value_NT[earlier], after.value_NT[earlier])
        told_here = (np.asarray(steps) == step).any(axis=1) & (ids == step).any(axis=1)
        first = np.argmax(ids == step, axis=1)[told_here]
        moved = np.abs(before.value_NT - after.value_NT)[np.flatnonzero(told_here), first]
        assert told_here.any() and (moved > 1e-4).all()


@pytest.mark.parametrize(
    "config", [pytest.param(SHAPE, marks=pytest.mark.slow), BINS], ids=["values", "bins"]
)
def test_rows_that_share_tokens_have_the_values_of_rows_apart(config):
    """The critic is told other things in them, so it reads each row on its own."""
    real = np.asarray(BATCH.segment_ids_NT) > 0
    positions = np.where(real, np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    batch = told(4, dataclasses.replace(BATCH, positions_NT=jnp.asarray(positions)))
    together = jax.tree.map(jnp.asarray, share_prefixes(batch, 2, [64]))
    scored = scores_of(config)
    one, other = scored(batch), scored(together)
    assert_close(one, other)
    assert (one.value_logits_NTZ is None) == (config is SHAPE)
