"""What the settings of a method change in an update, one setting at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steprl.algorithms import ALGORITHMS, algorithm
from steprl.update import initial_state, make_update
from tests.small import small_config
from tests.test_update import KEY, POLICY, example, one_device

ONE_STEP = (
    "rollout.batch_size=16", "actor.ppo_epochs=1", "actor.ppo_mini_batch_size=16",
    "actor.grad_clip=0", "actor.clip_ratio_low=1", "actor.clip_ratio_high=100", "actor.clip_ratio_c=0",
)  # fmt: skip


@functools.cache
def compiled(*overrides):
    config = small_config(*ONE_STEP, *overrides)
    method = algorithm(config.algorithm.name)
    return config, jax.jit(make_update(POLICY, method, optax.sgd(1.0), config, one_device()))


def step(*overrides, batch=None, **carried):
    """One gradient step of size 1: the change of the parameters, the state after, the metrics."""
    config, update = compiled(*overrides)
    params, ours = example()
    before = initial_state(params, optax.sgd(1.0), config)
    assert carried.keys() <= before.carried.keys()
    before = before._replace(carried=before.carried | carried)
    after, metrics = jax.device_get(update(before, ours if batch is None else batch, KEY))
    change = jax.tree.map(lambda new, old: new - np.asarray(old), after.params, before.params)
    return change, after, metrics


def assert_same(got, want, factor=1.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b, atol=2e-6), got, want)


def length(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def shifted(params, size=0.05):
    """Another policy: the same parameters with noise."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(
        tree, [x + size * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    )


def scored(*scores_of_tasks):
    """The example with these scores for the two attempts at each of the eight tasks."""
    _, batch = example()
    last_NS = np.asarray(batch.terminated_NS)
    reward_N = np.asarray(scores_of_tasks, np.float32).reshape(-1)
    return dataclasses.replace(batch, reward_NS=jnp.asarray(last_NS * reward_N[:, None]))


MIXED = scored(*[(1, 0)] * 4, *[(1, 1)] * 2, *[(0, 0)] * 2)  # 4 tasks of 8 say something


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_method_is_an_update_of_its_own(name):
    """Traced only: state and metrics keep their shapes, and only a critic is reported."""
    config = small_config(*ONE_STEP, f"algorithm.name={name}", "actor.clip_ratio_c=3")
    params, batch = example()
    state = initial_state(params, optax.sgd(1.0), config)
    update = make_update(POLICY, algorithm(name), optax.sgd(1.0), config, one_device())
    after, metrics = jax.eval_shape(update, state, batch, KEY)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(after) == shapes(state)
    assert all(leaf.shape == () for leaf in metrics.values())
    learns = "critic" in ALGORITHMS[name].needs
    assert ("critic/vf_explained_var" in metrics) == learns
    assert ("rollout/informative_frac" in metrics) == ("group" in ALGORITHMS[name].needs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_task_whose_attempts_scored_the_same_teaches_nothing(name):
    same = scored(*[(1, 1)] * 5, *[(0, 0)] * 3)
    change, _, metrics = step(f"algorithm.name={name}", batch=same)
    assert length(change) == 0 and metrics["rollout/informative_frac"] == 0


@pytest.mark.slow
def test_filtered_groups_leave_the_denominator_that_was_asked_for():
    """The gradient is the same but for the number that divides it."""
    active_N = np.sum(np.asarray(MIXED.step_ids_NT) >= 0, axis=1)
    grpo = ("algorithm.name=grpo", "actor.loss_agg_mode=token-mean")
    plain, _, metrics = step(*grpo, batch=MIXED)
    assert metrics["rollout/informative_frac"] == 0.5 and length(plain) > 1e-3
    on = (*grpo, "algorithm.filter_groups=true")
    everything, _, _ = step(*on, "algorithm.filter_groups_denominator=all", batch=MIXED)
    kept, _, _ = step(*on, "algorithm.filter_groups_denominator=kept", batch=MIXED)
    assert_same(everything, plain)  # groups of equal scores had no gradient anyway
    assert_same(kept, plain, active_N.sum() / active_N[:8].sum())


@pytest.mark.slow
def test_the_kl_loss_pulls_towards_the_reference():
    on = ("algorithm.name=grpo", "actor.use_kl_loss=true", "actor.kl_loss_coef=1.0",
          "actor.kl_loss_type=k2")  # fmt: skip
    same = scored(*[(1, 1)] * 8)  # no other gradient
    params, _ = example()
    change, _, metrics = step(*on, batch=same)
    assert metrics["actor/kl_loss"] == 0 and length(change) == 0
    there = shifted(params)
    change, after, metrics = step(*on, batch=same, reference=there)
    assert metrics["actor/kl_loss"] > 1e-5
    jax.tree.map(
        np.testing.assert_array_equal, after.carried["reference"], there
    )  # it stays where it is
    toward = jax.tree.map(lambda b, a: b - np.asarray(a), there, params)
    inner = jax.tree.map(lambda x, y: float(np.sum(x * y)), change, toward)
    assert sum(jax.tree.leaves(inner)) > 0


@pytest.mark.slow
def test_the_kl_in_the_reward_has_a_coefficient_that_steers():
    on = ("algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.kl_coef=0.1",
          "algorithm.kl_ctrl.type=adaptive", "algorithm.kl_ctrl.horizon=160",
          "algorithm.kl_ctrl.target_kl=0.001")  # fmt: skip
    params, _ = example()
    _, after, metrics = step(*on, reference=shifted(params, 0.2))
    assert metrics["actor/reward_kl_penalty_coeff"] == pytest.approx(0.1)
    # Rollouts are noisy versions of the policy, so the KL is away from 0.001: 20 % of 16/160 a step.
    sign = np.sign(metrics["actor/reward_kl_penalty"] - 0.001)
    assert after.carried["kl_coefficient"] == pytest.approx(0.1 * (1 + 0.2 * sign * 16 / 160))


@pytest.mark.slow
def test_the_scale_of_rewards_is_carried_from_update_to_update():
    on = ("algorithm.scale_rewards=true",)
    _, first, metrics = step(*on)
    steps = int(np.sum(example()[1].mask_NS))
    moments = first.carried["return_moments"]
    assert moments.number == pytest.approx(steps, abs=1e-2)
    assert metrics["critic/reward_scale"] == pytest.approx(moments.variance**-0.5, rel=1e-4)
    _, second, _ = step(*on, return_moments=moments)
    moments = second.carried["return_moments"]
    assert moments.number == pytest.approx(2 * steps, abs=1e-2)
    broken = dataclasses.replace(
        example()[1], reward_NS=example()[1].reward_NS.at[0, 0].set(np.nan)
    )
    _, third, metrics = step(*on, return_moments=moments, batch=broken)
    assert metrics["train/nonfinite"] == 0  # the row is left out, of the moments too
    left = steps - int(np.sum(example()[1].mask_NS[0]))
    assert third.carried["return_moments"].number == pytest.approx(2 * steps + left, abs=1e-2)
    assert np.isfinite(third.carried["return_moments"].variance)


@pytest.mark.slow
def test_a_truncated_trajectory_is_given_the_value_behind_it():
    _, batch = example()
    cut = dataclasses.replace(
        batch, truncated_NS=batch.terminated_NS, terminated_NS=jnp.zeros_like(batch.terminated_NS)
    )
    _, _, off = step("algorithm.bootstrap_truncated=false", batch=cut)
    _, _, on = step("algorithm.bootstrap_truncated=true", batch=cut)
    _, _, ended = step("algorithm.bootstrap_truncated=true", batch=batch)
    assert abs(on["critic/returns/mean"] - off["critic/returns/mean"]) > 1e-3
    assert ended["critic/returns/mean"] == pytest.approx(off["critic/returns/mean"], abs=1e-6)


@pytest.mark.slow
def test_a_rollout_of_another_policy_is_weighed():
    """Off: its log-probs are the old ones. On: the old ones are ours, and the weight is between."""
    _, batch = example()
    token = ("algorithm.name=reinforce_pp",)
    off, _, _ = step(*token)
    on = (*token, "algorithm.rollout_is=token", "algorithm.rollout_is_threshold=1000")
    weighed, _, metrics = step(*on)
    # Nothing is clipped here, so ratio to ours times weight is the ratio to the rollout.
    assert_same(weighed, off)
    bounded, _, cut = step(
        *token, "algorithm.rollout_is=token", "algorithm.rollout_is_threshold=1.1"
    )
    assert metrics["rollout_corr/rollout_is_bound_frac"] == 0
    assert cut["rollout_corr/rollout_is_bound_frac"] > 0.1
    assert length(jax.tree.map(np.subtract, bounded, off)) > 1e-4
