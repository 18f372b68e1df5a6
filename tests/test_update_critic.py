"""What the critic learns in: units of the returns, or bins of values; and what is said of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.algorithms import algorithm
from steprl.config import ConfigError
from steprl.laboratory import make_train
from steprl.models import decoder_config, make_policy
from steprl.models.contract import check_policy
from steprl.models.scoring import Scores, score
from steprl.ops import ValueSupport, hl_gauss_mean
from steprl.optimizer import Masters, make_optimizer
from steprl.session.language import own_policy
from steprl.update import initial_state, make_update
from steprl.update.critic import unit_of, with_last_layer
from steprl.update.optimise import Trained
from steprl.update.prepare import prepare
from tests.lock import LOCK, key_of, lab
from tests.small import small_config
from tests.test_update import KEY, POLICY, example

LEARNS = ("rollout.batch_size=16", "actor.ppo_epochs=1", "actor.ppo_mini_batch_size=8", "actor.lr=0.01",
          "critic.lr=0.01")  # fmt: skip
BINS = ValueSupport(-4.0, 4.0, 31)
OF_BINS = (
    "critic.head=hl_gauss",
    "critic.value_min=-4",
    "critic.value_max=4",
    "critic.num_bins=31",
)

# --- What is said of the critic -------------------------------------------------------------------


@functools.cache
def metrics_of(method):
    """Of a batch with these rewards, and a critic that is wrong everywhere."""
    row, config = algorithm(method), small_config("rollout.batch_size=16")
    batch = example()[1]
    noise_NT = np.random.default_rng(0).normal(1.0, 0.1, batch.logprob_NT.shape)
    value_NT = jnp.where(batch.step_ids_NT >= 0, noise_NT, 0.0).astype(jnp.float32)
    old = Scores(batch.logprob_NT, batch.entropy_NT, value_NT, jnp.zeros(16))

    @jax.jit
    def metrics(reward_NS):
        now = dataclasses.replace(batch, reward_NS=reward_NS)
        return prepare(now, old, None, {}, row, config).metrics

    return metrics


@pytest.mark.parametrize("method", ["steppo", "ppo"])
def test_where_all_attempts_end_the_same_there_is_nothing_to_explain(method):
    """Targets still differ, by what the critic itself says of the steps in between."""
    batch = example()[1]
    last_NS = np.asarray(batch.terminated_NS)
    same = metrics_of(method)(jnp.where(last_NS, 0.3, 0.0).astype(jnp.float32))
    assert same["critic/vf_explained_var"] == 0 and same["critic/returns/equal"] == 1
    assert same["critic/returns/var"] > 0
    for reward_NS in (batch.reward_NS, batch.reward_NS * 1e-4):  # small is not equal
        other = metrics_of(method)(reward_NS)
        assert other["critic/returns/equal"] == 0 and other["critic/vf_explained_var"] != 0


# --- Units ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.floats(2.0**-60, 2.0**60, width=32))
def test_a_unit_is_the_power_of_two_next_to_the_scale(scale):
    unit = float(unit_of(jnp.float32(scale)))
    assert np.log2(unit) == round(np.log2(unit))
    assert 2**-0.5001 <= unit / scale <= 2**0.5001


@pytest.mark.parametrize("scale", [0.003, 1.0, 700.0])
def test_a_change_of_units_and_back_changes_no_bit(scale):
    params = jax.device_get(POLICY.init(jax.random.key(3)))
    params["value"]["out"]["kernel"] = np.random.default_rng(0).normal(size=(16, 1))
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    copies = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    before = Trained(narrow, (Masters(copies, {"count": jnp.zeros(())}),))
    unit = unit_of(jnp.float32(scale))
    within = with_last_layer(before, 1 / unit)
    moved = within.opt_state[0].params["value"]["out"]["kernel"] * unit
    np.testing.assert_array_equal(moved, copies["value"]["out"]["kernel"])
    np.testing.assert_array_equal(within.params["decoder"]["final_norm"]["scale"], 1.0)
    after = with_last_layer(within, unit)
    jax.tree.map(np.testing.assert_array_equal, after, before)


@functools.cache
def learner(*overrides):
    """A state, and the compiled update."""
    config = small_config(*LEARNS, *overrides)
    optimizer = make_optimizer(config.actor, config.critic, 100)
    method = algorithm("steppo")
    support = BINS if config.critic.head == "hl_gauss" else None
    policy = make_policy(
        decoder_config(
            "tiny", vocab_size=16, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
            d_ff=32, value_support=support,
        )
    )  # fmt: skip
    state = initial_state(policy.init(jax.random.key(0)), optimizer, config, method)
    return policy, state, jax.jit(make_update(policy, method, optimizer, config))


@functools.cache
def scoring(policy):
    return jax.jit(functools.partial(score, policy))


def values(policy, params):
    """What the critic says before the steps of the example."""
    batch = example()[1]
    value_NT = scoring(policy)(params, batch).value_NT
    return np.asarray(value_NT)[np.asarray(batch.step_ids_NT) >= 0]


def times(batch, factor):
    return dataclasses.replace(batch, reward_NS=batch.reward_NS * factor)


def test_in_units_of_the_returns_rewards_of_any_size_are_learnt_alike():
    """64 times the rewards: the same model, whose last layer is 64 times as large."""
    policy, start, update = learner("critic.norm_returns=true")
    small, large = start, start
    for _ in range(3):
        small, said = update(small, example()[1], KEY)
        large, said_large = update(large, times(example()[1], 64.0), KEY)
    for path, leaf in jax.tree_util.tree_leaves_with_path(small.params):
        is_last = [key.key for key in path[:2]] == ["value", "out"]
        other = functools.reduce(lambda tree, key: tree[key.key], path, large.params)
        np.testing.assert_allclose(other, leaf * 64.0 if is_last else leaf, rtol=1e-3, atol=1e-5)
    assert np.std(values(policy, small.params)) > 1e-3
    assert said_large["critic/return_scale"] == pytest.approx(
        64 * float(said["critic/return_scale"])
    )
    assert said_large["critic/vf_loss"] == pytest.approx(float(said["critic/vf_loss"]), rel=1e-3)
    assert float(small.carried["value_moments"].number) > 0


def test_a_first_batch_without_reward_and_a_step_that_is_not_finite_do_no_harm():
    _, start, update = learner("critic.norm_returns=true")
    state, said = update(start, times(example()[1], 0.0), KEY)
    assert said["critic/return_scale"] == 1 and said["critic/vf_loss"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    state, said = update(state, times(example()[1], 5.0), KEY)
    assert unit_of(said["critic/return_scale"]) != 1
    broken = dataclasses.replace(example()[1], logprob_NT=example()[1].logprob_NT * np.nan)
    after, said = update(state, broken, KEY)
    assert said["train/nonfinite"] == 2
    for got, want in ((after.params, state.params), (after.opt_state, state.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    without, _ = update(state, times(example()[1], np.nan), KEY)  # no row is left
    jax.tree.map(np.testing.assert_array_equal, without.carried["value_moments"],
                 state.carried["value_moments"])  # fmt: skip


# --- Bins -----------------------------------------------------------------------------------------


def test_a_critic_of_bins_learns_the_returns():
    policy, state, update = learner(*OF_BINS)
    assert np.abs(values(policy, state.params)).max() < 1e-6  # a new one claims the middle
    losses, explained = [], []
    for _ in range(30):
        state, said = update(state, example()[1], KEY)
        losses.append(float(said["critic/vf_loss"]))
        explained.append(float(said["critic/vf_explained_var"]))
    assert losses[0] == pytest.approx(np.log(31), rel=0.05)
    assert losses[-1] < 0.75 * losses[0] and explained[-1] > 0.3 > explained[0]
    assert 0 <= said["critic/vf_outside"] < 0.1 and "critic/vf_clipfrac" not in said


def test_values_are_the_means_of_what_is_scored_and_nothing_stands_between_steps():
    policy, state, _ = learner(*OF_BINS)
    params = jax.tree.map(lambda x: x, state.params)
    params["value"]["out"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 31))
    batch = example()[1]
    scores = scoring(policy)(params, batch)
    there_NT = np.asarray(batch.step_ids_NT) >= 0
    assert scores.value_logits_NTZ.shape == (*there_NT.shape, 31)
    means_NT = hl_gauss_mean(scores.value_logits_NTZ, BINS)
    np.testing.assert_allclose(scores.value_NT[there_NT], means_NT[there_NT], atol=1e-5)
    assert np.std(scores.value_NT[there_NT]) > 0.1
    assert not np.any(scores.value_logits_NTZ[~there_NT]) and not np.any(scores.value_NT[~there_NT])


def test_a_policy_of_ones_own_gives_logits_of_the_bins_that_the_settings_name():
    logits = POLICY._replace(
        value=lambda params, *arrays, **more: jnp.zeros((*arrays[0].shape, 31)), support=None
    )
    config = small_config(*OF_BINS)
    assert own_policy(config, logits, 16).support == BINS
    assert own_policy(small_config(), POLICY, 16).support is None
    with pytest.raises(ValueError, match=r"31 bins \(critic.head=hl_gauss\) is float32 of shape"):
        own_policy(config, POLICY, 16)
    with pytest.raises(ValueError, match=r"policy.value is float32 of shape \(2, 5, 31\)"):
        check_policy(logits, 16)
    with pytest.raises(ValueError, match="critic.head=hl_gauss: policy.support is None"):
        make_update(POLICY, algorithm("steppo"), None, config)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["critic.head=categorical"], "critic.head='categorical': allowed are scalar, hl_gauss"),
        (["critic.head=hl_gauss", "critic.value_max=-1"], "critic.value_min=-1.0 must be below"),
        (["critic.head=hl_gauss", "critic.num_bins=7"], "critic.num_bins=7: must be at least 8"),
    ],
)
def test_bins_that_hold_no_values_are_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        small_config(*overrides)


# --- In one program -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [("critic.norm_returns=true",), pytest.param(OF_BINS, marks=pytest.mark.full)]
)
def test_a_compiled_run_learns_so_too(overrides):
    config = lab(
        "algorithm.name=steppo",
        "env.game.progress_reward=0.5",
        "model.value_head=separate",
        *overrides,
    )
    params, metrics = jax.jit(make_train(config, env=LOCK))(key_of(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, metrics)))
    kernel = params["value"]["out"]["kernel"]
    assert kernel.shape == (16, 1 if config.critic.head == "scalar" else 31)
    assert np.abs(kernel).max() > 1e-3
    if config.critic.head == "scalar":
        scale = np.asarray(metrics["critic/return_scale"])
        assert scale.shape == (4,) and (scale > 0).all() and np.ptp(scale) > 0
    else:
        assert metrics["critic/vf_loss"][-1] < metrics["critic/vf_loss"][0]
