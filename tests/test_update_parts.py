"""The parts of an update on their own, and what is carried from one update to the next."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steprl.algorithms import algorithm
from steprl.carried import CLIP, Carry, Seen, next_clip, share_spent
from steprl.config import MeshConfig
from steprl.models.scoring import score
from steprl.sharding import make_mesh, state_shardings
from steprl.update import carries, initial_state, make_update, prepare, sample_loss, with_weights
from steprl.update.optimise import Trained, within_kl
from tests.small import small_config
from tests.test_update import KEY, POLICY, example

ONE_STEP = (
    "rollout.batch_size=16", "actor.ppo_epochs=1", "actor.ppo_mini_batch_size=16",
    "actor.entropy_coeff=0.01",
)  # fmt: skip
SEEN = Seen({}, {"actor/pg_clipfrac": jnp.float32(0.4)}, jnp.float32(7.0))
COUNT = Carry(
    "count",
    init=lambda trainable, config: jnp.zeros((), jnp.int32),
    update=lambda value, seen, config: value + 1,
)


def updated(config, method, state=None, **arguments):
    """State and metrics after one plain gradient step of size 1."""
    params, batch = example()
    optimizer = optax.sgd(1.0)
    state = state or initial_state(params, optimizer, config, method)
    update = jax.jit(make_update(POLICY, method, optimizer, config))
    return jax.device_get(update(state, batch, KEY, **arguments))


@pytest.mark.slow
def test_the_parts_by_hand_are_the_update():
    config, method = small_config(*ONE_STEP), algorithm("steppo")
    params, batch = example()
    after, metrics = updated(config, method)

    @jax.jit
    def by_hand(params):
        old = score(POLICY, params, batch)
        prepared = prepare(batch, old, None, {}, method, config)
        sample = with_weights(prepared.sample, method, config)
        loss = lambda params: sample_loss(score(POLICY, params, batch), sample, method, config)  # noqa: E731
        gradient, found = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(jnp.subtract, params, gradient), prepared.metrics | found

    want, found = by_hand(params)
    for one, other in zip(*map(jax.tree.leaves, (after.params, want)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for name in found:
        np.testing.assert_allclose(metrics[name], found[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_method_and_the_settings_name_what_is_carried():
    on = (
        "actor.use_kl_loss=true", "actor.clip_fraction=0.1", "algorithm.scale_rewards=true",
        "algorithm.use_kl_in_reward=true", "critic.norm_returns=true",
    )  # fmt: skip
    method = algorithm("appo")
    state = functools.partial(initial_state, example()[0], optax.sgd(1.0))
    assert state(small_config()).carried.keys() == {"tokens"}
    assert state(small_config(*on)).carried.keys() == {
        "tokens", "reference", "clip", "return_moments", "kl_coefficient", "value_moments"
    }  # fmt: skip
    assert state(small_config(), method).carried.keys() == {"tokens", "previous"}
    without = small_config("algorithm.branch.future_value=none")
    assert state(without, method).carried.keys() == {"tokens"}
    mine = algorithm("grpo")._replace(carries=(COUNT,))
    assert COUNT in carries(mine, small_config())


def test_what_a_method_of_ones_own_carries_is_renewed_by_each_update():
    config = small_config(*ONE_STEP, "actor.clip_fraction=0.3")
    mine = algorithm("grpo")._replace(carries=(COUNT,))
    state, metrics = updated(config, mine)
    tokens = int(np.sum(np.asarray(example()[1].step_ids_NT) >= 0))
    assert state.carried["count"] == 1 and state.carried["tokens"] == tokens
    assert metrics["token/total"] == tokens
    want = next_clip(jnp.float32(0.2), metrics["actor/pg_clipfrac"], 0.3)
    assert metrics["actor/clip_ratio"] == np.float32(0.2)
    assert state.carried["clip"] == pytest.approx(float(want)) and want != np.float32(0.2)
    state, metrics = updated(config, mine, state, sampled=5.0)
    assert state.carried["count"] == 2 and metrics["token/total"] == tokens + 5
    assert metrics["actor/clip_ratio"] == pytest.approx(float(want))


def test_parameters_that_are_carried_lie_where_the_parameters_lie():
    config = small_config("algorithm.name=appo", "actor.use_kl_loss=true")
    state = initial_state(example()[0], optax.adam(1.0), config)
    placed = state_shardings(state, make_mesh(MeshConfig(data=4, fsdp=2)))
    assert placed.carried["previous"] == placed.carried["reference"] == placed.params
    assert any(any(place.spec) for place in jax.tree.leaves(placed.params))


@pytest.mark.parametrize("fraction, moves", [(0.4, True), (np.nan, False)])
def test_a_clip_moves_unless_the_share_that_was_clipped_is_unknown(fraction, moves):
    config = small_config("actor.clip_fraction=0.1")
    seen = SEEN._replace(metrics={"actor/pg_clipfrac": jnp.float32(fraction)})
    got = CLIP.update(jnp.float32(0.2), seen, config)
    assert float(got) == pytest.approx(0.3 if moves else 0.2)


def test_the_share_of_a_budget_is_that_of_its_tokens():
    carried = {"tokens": jnp.float32(50.0)}
    assert share_spent(small_config(), carried) is None
    assert share_spent(small_config("trainer.token_budget=200"), carried) == 0.25


def test_a_step_too_far_from_the_policy_that_sampled_is_not_taken():
    """One mini-batch after the other, each a unit away from the last one."""

    def step(trained, sample):
        new = jax.tree.map(lambda x: x + 1.0, trained)
        return new, {"actor/approx_kl": trained.params["w"] / 10}

    near = within_kl(step, 0.25)
    trained, stopped = Trained({"w": jnp.zeros(())}, {"m": jnp.zeros(())}), []
    for _ in range(5):
        trained, metrics = near(trained, None)
        stopped.append(float(metrics["actor/kl_stopped"]))
    assert stopped == [0, 0, 0, 1, 1]
    assert float(trained.params["w"]) == float(trained.opt_state["m"]) == 3
    # A policy that stands still does not move away: what is left of its distance stops no critic.
    _, metrics = within_kl(step, 0.25, {"actor": jnp.ones((), bool)})(trained, None)
    assert metrics["actor/kl_stopped"] == 0
    _, metrics = within_kl(step, 0.25, {"critic": True})(trained, None)
    assert metrics["actor/kl_stopped"] == 1


def test_an_update_takes_no_step_of_a_policy_that_is_too_far_from_the_one_that_sampled():
    """The policy of the example has moved already; its distance is the mean of k3."""
    method = algorithm("steppo")
    params, batch = example()
    few = ("rollout.batch_size=16", "actor.ppo_mini_batch_size=16", "actor.ppo_epochs=2")
    moved, metrics = updated(small_config(*few, "actor.target_kl=1e-4"), method)
    jax.tree.map(np.testing.assert_array_equal, moved.params, jax.device_get(params))
    scores = jax.jit(functools.partial(score, POLICY))(params, batch)
    log_ratio = np.asarray(batch.logprob_NT - scores.logprob_NT)[batch.step_ids_NT >= 0]
    expected = np.mean(np.exp(log_ratio) - log_ratio - 1)
    np.testing.assert_allclose(metrics["actor/approx_kl"], expected, rtol=1e-4)
    assert metrics["actor/kl_stopped"] == 1 and expected > 1e-4
