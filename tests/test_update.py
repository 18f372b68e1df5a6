"""The update: the same step on any mesh and in any parts, and none at all where it is not finite."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steprl.algorithms import algorithm
from steprl.config import LOSS_AGG_MODES, MeshConfig
from steprl.metrics import CompilationCounter
from steprl.models import decoder_config, make_policy
from steprl.models.scoring import score
from steprl.optimizer import make_optimizer
from steprl.rollout import attempts
from steprl.rollout.faults import without_rows
from steprl.session import initial_params, setup
from steprl.sharding import make_mesh, shard_rows, state_shardings
from steprl.update import initial_state, make_update
from tests.small import random_batch, small_config

ROWS = 16
KEY = jax.random.key(5)
POLICY = make_policy(
    decoder_config(
        "tiny", vocab_size=16, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32
    )
)  # fmt: skip
LEARNS = ("rollout.batch_size=16", "actor.entropy_coeff=0.01", "actor.grad_clip=0")


@functools.cache
def example():
    """Parameters whose critic has an opinion, and a batch that the policy itself might have played."""
    params = POLICY.init(jax.random.key(0))
    params["value"]["out"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), (16, 1))
    batch = random_batch(11, rows=ROWS)
    scores = jax.jit(functools.partial(score, POLICY))(params, batch)
    # A policy that has moved since: ratios on both sides of the clip.
    noise = 0.3 * np.random.default_rng(0).normal(size=scores.logprob_NT.shape)
    old = jnp.where(batch.step_ids_NT >= 0, scores.logprob_NT + noise, 0.0)
    return params, dataclasses.replace(batch, logprob_NT=old.astype(jnp.float32))


def compiled_update(config, mesh, optimizer):
    """A state placed on the mesh, and the compiled update."""
    params, _ = example()
    state = initial_state(params, optimizer, config)
    shardings = state_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    method = algorithm(config.algorithm.name)
    update = make_update(POLICY, method, optimizer, config, mesh)
    return state, jax.jit(update, out_shardings=(shardings, None))


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def run(config, mesh, optimizer=None, batch=None):
    optimizer = optax.sgd(1.0) if optimizer is None else optimizer
    state, update = compiled_update(config, mesh, optimizer)
    return jax.device_get(update(state, shard_rows(batch or example()[1], mesh), KEY))


@functools.cache
def whole(*overrides):
    """On one device, each mini-batch in one part."""
    return run(small_config(*LEARNS, *overrides), one_device())


def assert_close(got, want, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=atol), got, want)


def moved(params) -> float:
    """How far the largest parameter went."""
    changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, example()[0])
    return max(jax.tree.leaves(changes))


TWO_STEPS = ("actor.ppo_epochs=1", "actor.ppo_mini_batch_size=8")


@pytest.mark.slow
def test_micro_batches_sum_to_the_mini_batch():
    """Plain gradient steps, so that the parameters show every gradient."""
    want_state, want = whole(*TWO_STEPS)
    state, metrics = run(
        small_config(*LEARNS, *TWO_STEPS, "actor.ppo_micro_batch_size=2"), one_device()
    )
    assert moved(want_state.params) > 1e-2
    assert_close(state.params, want_state.params, 1e-6)
    for name in ("actor/pg_loss", "critic/vf_loss", "actor/entropy_loss", "actor/grad_norm"):
        np.testing.assert_allclose(metrics[name], want[name], rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [pytest.param(8, 1, marks=pytest.mark.full), (4, 2), (1, 8)])
def test_eight_devices_take_the_step_of_one(data, fsdp):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    want_state, want = whole(*TWO_STEPS)
    state, metrics = run(small_config(*LEARNS, *TWO_STEPS), mesh)
    assert_close(state.params, want_state.params, 1e-5)
    assert metrics.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gigpo", "reinforce_pp_baseline"])
def test_groups_may_be_spread_over_devices(name):
    """Each attempt at a task on a device of its own."""
    method = (*TWO_STEPS, f"algorithm.name={name}")
    mesh = make_mesh(MeshConfig(data=8))
    order = np.argsort(np.asarray(example()[1].sample_N), kind="stable")
    batch = dataclasses.replace(example()[1], branches=None)
    apart = jax.tree.map(lambda x: x[order], batch)
    want_state, want = run(small_config(*LEARNS, *method), one_device(), batch=apart)
    state, metrics = run(small_config(*LEARNS, *method), mesh, batch=apart)
    assert moved(want_state.params) > 1e-3
    assert_close(state.params, want_state.params, 1e-5)
    for value in want:
        np.testing.assert_allclose(metrics[value], want[value], rtol=1e-4, atol=1e-5, err_msg=value)


def test_the_example_asks_for_every_part_of_the_loss():
    """What the laws of this file are worth: clips bind, losses and both gradients are there."""
    _, metrics = whole(*TWO_STEPS)
    assert 0.1 < metrics["actor/pg_clipfrac"] < 0.9
    assert abs(metrics["actor/pg_loss"]) > 1e-3 and metrics["critic/vf_loss"] > 1e-2
    assert metrics["actor/entropy_loss"] > 1 and metrics["train/nonfinite"] == 0
    assert not np.isclose(metrics["agree/ratio_mean"], 1, atol=1e-3)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_each_aggregation_is_a_loss_of_its_own(mode):
    """Traced only: the shapes and the names are right for all of them."""
    config = small_config(*LEARNS, f"actor.loss_agg_mode={mode}")
    optimizer = optax.sgd(1.0)
    params, batch = example()
    state = initial_state(params, optimizer, config)
    update = make_update(POLICY, algorithm("steppo"), optimizer, config, one_device())
    after, metrics = jax.eval_shape(update, state, batch, KEY)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(leaf.shape == () for leaf in metrics.values())


# On-policy


@pytest.fixture(scope="module")
def played():
    """A session of the small run on all devices, its parameters, and a batch it has played."""
    session = setup(small_config(*LEARNS, "actor.ppo_epochs=1", "actor.ppo_mini_batch_size=16"))
    params = initial_params(session)
    params["decoder"]["embedding"]["embedding"] *= 10.0  # far from the uniform distribution
    tasks, samples = attempts(0, ROWS, 1)
    return session, params, session.player.play(params, KEY, tasks, samples)


@pytest.mark.parametrize("name", ["steppo", "ppo"])
def test_the_first_ratio_is_one(played, name):
    """Training and decoding are one forward pass: nothing is clipped before the first step."""
    session, params, batch = played
    optimizer = optax.sgd(1.0)
    state = initial_state(params, optimizer, session.config)
    update = make_update(session.policy, algorithm(name), optimizer, session.config, session.mesh)
    _, metrics = jax.device_get(jax.jit(update)(state, batch, KEY))
    assert metrics["actor/pg_clipfrac"] == 0 and metrics["actor/pg_clipfrac_lower"] == 0
    assert metrics["agree/logp_absmax"] <= 1e-5
    assert abs(metrics["agree/ratio_mean"] - 1) <= 1e-5
    assert np.std(batch.logprob_NT[batch.step_ids_NT >= 0]) > 0.1  # not the same for all tokens


# Not finite


@pytest.fixture(scope="module")
def compiled():
    """Adam's update with four optimiser steps, compiled once for the tests below."""
    config = small_config(*LEARNS, "actor.ppo_epochs=2", "actor.ppo_mini_batch_size=8")
    optimizer = make_optimizer(config.actor, config.critic, 100)
    mesh = one_device()
    state, update = compiled_update(config, mesh, optimizer)
    places = state_shardings(state, mesh)

    def placed_update(state, batch):
        return update(jax.device_put(state, places), shard_rows(batch, mesh), KEY)

    return state, placed_update


def same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize(
    "where, bad",
    [("parameter", np.nan), ("log-prob", np.nan)],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(compiled, where, bad):
    state, update = compiled
    _, batch = example()
    if where == "parameter":
        head = state.params["value"]["out"] | {"kernel": jnp.full((16, 1), bad, jnp.float32)}
        params = state.params | {"value": state.params["value"] | {"out": head}}
        state = state._replace(params=params)
    else:
        active = batch.step_ids_NT >= 0
        batch = dataclasses.replace(batch, logprob_NT=jnp.where(active, jnp.float32(bad), 0))
    after, metrics = update(state, batch)
    same_bits(after.params, state.params)
    same_bits(after.opt_state, state.opt_state)
    assert metrics["train/nonfinite"] == 4
    assert after.iteration == state.iteration + 1


def test_only_the_mini_batch_that_is_not_finite_is_left_out(compiled):
    state, update = compiled
    _, batch = example()
    raw = dataclasses.replace(
        batch,
        logprob_NT=batch.logprob_NT.at[0].set(jnp.where(batch.step_ids_NT[0] >= 0, jnp.nan, 0)),
    )
    after, metrics = update(state, raw)
    assert metrics["train/nonfinite"] == 2  # the row is in one mini-batch of each epoch
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(after)))
    assert moved(jax.device_get(after.params)) > 0


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e38])
def test_a_row_whose_reward_is_no_number_is_left_out(compiled, bad):
    state, update = compiled
    _, batch = example()
    after, metrics = update(
        state, dataclasses.replace(batch, reward_NS=batch.reward_NS.at[3, 0].set(bad))
    )
    assert metrics["train/nonfinite"] == 0 and metrics["rollout/left_out"] == 1
    without, _ = update(state, without_rows(batch, jnp.arange(ROWS) == 3))
    same_bits(after.params, without.params)
    same_bits(after.opt_state, without.opt_state)
    assert moved(jax.device_get(after.params)) > 0


def test_where_all_rows_are_left_out_nothing_changes_and_all_metrics_are_numbers(compiled):
    state, update = compiled
    _, batch = example()
    state, _ = update(state, batch)  # Adam has moments: without a gradient, it would still move
    before = jax.device_get(state)
    after, metrics = update(
        state, dataclasses.replace(batch, reward_NS=jnp.full_like(batch.reward_NS, jnp.nan))
    )
    same_bits(after.params, before.params)
    same_bits(after.opt_state, before.opt_state)
    assert metrics["train/nonfinite"] == 0 and metrics["rollout/left_out"] == ROWS
    assert {name for name, x in metrics.items() if not np.isfinite(x)} == set()


def test_one_compilation_serves_all_updates(compiled):
    state, update = compiled
    _, batch = example()
    state, _ = update(state, batch)
    other = random_batch(12, rows=ROWS)
    with CompilationCounter() as counter:
        for _ in range(3):
            state, metrics = update(state, other)
    assert counter.count == 0, counter.names
    assert int(state.iteration) == 4 and metrics["train/nonfinite"] == 0
