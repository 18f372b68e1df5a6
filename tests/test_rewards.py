"""What is done to rewards before they become credit, against loops and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.ops import RunningMoments
from steprl.rewards import bootstrap_truncated, penalise_kl, scale_rewards
from tests.small import random_batch


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# KL penalty


def test_the_penalty_of_a_token_is_paid_by_its_step():
    batch = random_batch(1)
    ids, mask = np.asarray(batch.step_ids_NT), np.asarray(batch.mask_NS)
    policy, reference = noise(ids.shape, 1), noise(ids.shape, 2)
    got, mean_kl = jax.jit(penalise_kl, static_argnums=4)(batch, policy, reference, 0.1, "kl")
    expected = np.array(batch.reward_NS)
    for row, step in np.argwhere(mask):
        there = ids[row] == step
        expected[row, step] -= 0.1 * np.sum(policy[row, there] - reference[row, there])
    np.testing.assert_allclose(got.reward_NS, expected, atol=1e-5)
    rows = [np.mean((policy - reference)[n][ids[n] >= 0]) for n in range(len(ids))]
    np.testing.assert_allclose(mean_kl, np.mean(rows), rtol=1e-4)


def test_a_policy_that_is_its_reference_pays_nothing():
    batch = random_batch(2)
    got, mean_kl = penalise_kl(batch, batch.logprob_NT, batch.logprob_NT, jnp.float32(1.0), "k3")
    np.testing.assert_array_equal(got.reward_NS, batch.reward_NS)
    assert mean_kl == 0


# Running scale


def test_rewards_are_divided_by_the_deviation_of_their_forward_sums():
    """As a scaler would that meets the sums of two batches, one trajectory after the other."""
    moments, seen, gamma = RunningMoments(0.0, 0.0, 0.0), [], 0.9
    for seed in (3, 4):
        batch = random_batch(seed)
        reward, mask = np.asarray(batch.reward_NS, np.float64), np.asarray(batch.mask_NS)
        for row, there in zip(reward, mask, strict=True):
            total = 0.0
            for value in row[there]:
                total = gamma * total + value
                seen.append(total)
        got, moments, factor = scale_rewards(batch, moments, gamma)
        np.testing.assert_allclose(moments.variance, np.var(seen), rtol=1e-4)
        np.testing.assert_allclose(factor, 1 / np.std(seen), rtol=1e-4)
        np.testing.assert_allclose(got.reward_NS, reward / np.std(seen), rtol=1e-4, atol=1e-6)
    assert moments.number == len(seen)


def test_the_scale_of_the_rewards_does_not_matter_in_the_end():
    batch = random_batch(5)
    larger = dataclasses.replace(batch, reward_NS=100 * batch.reward_NS)
    start = RunningMoments(0.0, 0.0, 0.0)
    plain, large = (scale_rewards(b, start, 1.0)[0].reward_NS for b in (batch, larger))
    np.testing.assert_allclose(large, plain, rtol=1e-4)


# Truncation


@pytest.mark.parametrize("ending, gained", [("truncated", 0.9 * 7), ("terminated", 0.0)])
def test_only_a_truncated_trajectory_gains_the_value_behind_it(ending, gained):
    batch = random_batch(6)
    last = np.asarray(batch.terminated_NS)
    flags = {"terminated_NS": jnp.zeros_like(last), "truncated_NS": jnp.zeros_like(last)}
    flags[f"{ending}_NS"] = jnp.asarray(last)
    batch = dataclasses.replace(batch, **flags)
    got = bootstrap_truncated(batch, jnp.full(last.shape[0], 7.0), 0.9)
    np.testing.assert_allclose(got.reward_NS, batch.reward_NS + gained * last, rtol=1e-6)


def test_a_limit_that_falls_on_the_end_is_an_end():
    batch = dataclasses.replace(random_batch(7), truncated_NS=random_batch(7).terminated_NS)
    got = bootstrap_truncated(batch, jnp.full(8, 7.0), 0.9)
    np.testing.assert_array_equal(got.reward_NS, batch.reward_NS)
