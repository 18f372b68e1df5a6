"""Rows that share a beginning: run once, scored and trained as if each stood alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from steprl.models import DecoderConfig, make_policy, score, with_lora
from steprl.ops import LEVELS, aggregation_weights, policy_loss
from steprl.rollout.trees import collate_trees
from tests.rollout.groups import VOCAB, group, groups

CONFIG = DecoderConfig(
    vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24,
    value_head="separate", attention_block=16,
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
    params["value"]["out"]["kernel"] += 0.5
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
                clip_low=0.5, clip_high=0.5, weights=weights,
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


@pytest.mark.parametrize("widths", [(96,), (24, 32)], ids=["one block", "several blocks"])
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
def test_tokens_are_scored_within_the_sets_they_were_drawn_from(played):
    batch = laid_out(played)
    assert_close(scored(batch), scored(apart(batch)))


@pytest.mark.parametrize("rebuilt", [False, True], ids=["extended", "rebuilt"])
def test_gradients_are_those_of_the_rows_alone(rebuilt):
    rng = np.random.default_rng(4)
    batch = laid_out([group(rng, task, 3, rebuilt=rebuilt) for task in range(2)])
    assert real(batch.tree.segment_ids_MGU) < real(batch.segment_ids_NT)
    got, want = gradients(batch), gradients(apart(batch))
    assert_close(got, want)
    for part, rows in (("decoder", range(len(LEVELS))), ("lora", [0]), ("critic", [-1])):
        for row in rows:  # there is something to compare
            assert max(float(np.abs(x[row]).max()) for x in jax.tree.leaves(want[part])) > 1e-3
