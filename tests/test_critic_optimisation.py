"""How the critic is trained beside the policy: its norm, its warm-up, its own passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steprl.algorithms import algorithm
from steprl.config import ConfigError
from steprl.models.scoring import score
from steprl.optimizer import make_rl_optimizer, owner_of
from steprl.session import setup
from steprl.session.checks import check_critic
from steprl.update import initial_state, make_update
from tests.lock import SAYS, SIZE
from tests.small import random_batch, small_config
from tests.test_update import KEY, POLICY, same_bits
from tests.test_update import example as shared_example

ROWS = 16
PLAIN = ("rollout.batch_size=16", "actor.ppo_epochs=1", "actor.ppo_mini_batch_size=16", "actor.grad_clip=0",
         "algorithm.norm_adv=false", "actor.lr=0.05", "critic.lr=0.1")  # fmt: skip
APART = "critic.detach_trunk=true"


@functools.cache
def example():
    """A policy of tables, whose critic shares nothing with it; a batch that it has nearly played."""
    params = SAYS.init(jax.random.key(0))
    params["value"]["head"] = 0.3 * jax.random.normal(jax.random.key(1), (SIZE,))
    batch = random_batch(11, rows=ROWS, vocab=SIZE)
    scores = jax.jit(functools.partial(score, SAYS))(params, batch)
    noise = 0.1 * np.random.default_rng(0).normal(size=scores.logprob_NT.shape)
    old = jnp.where(batch.step_ids_NT >= 0, scores.logprob_NT + noise, 0.0)
    return params, dataclasses.replace(batch, logprob_NT=old.astype(jnp.float32))


@functools.cache
def compiled(policy, optimizer, overrides):
    config = small_config(*PLAIN, *overrides)
    method = algorithm(config.algorithm.name)
    if optimizer is None:
        optimizer = make_rl_optimizer(config, "critic" in method.needs)
    update = jax.jit(make_update(policy, method, optimizer, config, recorded=True))
    return update, functools.partial(initial_state, optimizer=optimizer, config=config)


SGD = optax.sgd(1.0)


def run(*overrides, policy=SAYS, optimizer=SGD, updates=1, start=None):
    """The states behind each update, the first one among them, and the metrics of the last."""
    params, batch = example() if policy is SAYS else shared_example()
    update, begin = compiled(policy, optimizer, overrides)
    states = [begin(params) if start is None else start]
    for number in range(updates):
        state, metrics, record = update(states[-1], batch, jax.random.fold_in(KEY, number))
        states.append(state)
    return states, jax.device_get(metrics | {"learnt": record.learnt_NT})


def length(tree) -> float:
    return float(optax.tree.norm(tree))


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


def of(owner, tree):
    """The leaves of a tree that are one's own, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    own = {jax.tree_util.keystr(path): x for path, x in leaves if owner_of(path) == owner}
    assert own
    return own


def differs(a, b):
    return all(np.any(np.asarray(x) != np.asarray(y)) for x, y in zip(a, b, strict=True))


# Norms


def test_both_norms_are_logged_and_together_they_are_that_of_the_gradient():
    states, metrics = run()
    step = jax.tree.map(jnp.subtract, states[1].params, states[0].params)
    assert metrics["actor/grad_norm"] == pytest.approx(length(step["decoder"]), rel=1e-4)
    assert metrics["critic/grad_norm"] == pytest.approx(length(step["value"]), rel=1e-4)
    assert min(metrics["actor/grad_norm"], metrics["critic/grad_norm"]) > 1e-3


def test_a_method_without_a_critic_has_one_norm():
    config = small_config(*PLAIN, "algorithm.name=reinforce_pp")
    params, batch = example()
    update = make_update(SAYS, algorithm("reinforce_pp"), SGD, config)
    _, metrics = jax.eval_shape(update, initial_state(params, SGD, config), batch, KEY)
    assert "actor/grad_norm" in metrics and "critic/grad_norm" not in metrics


# Warm-up


def test_a_warm_up_leaves_every_bit_of_the_policy_and_its_moments():
    """Two mini-batches in two epochs, after an update that has filled the moments."""
    warm = ("actor.ppo_epochs=2", "actor.ppo_mini_batch_size=8", "actor.weight_decay=0.1",
            "trainer.critic_warmup=3", "trainer.total_training_steps=5")  # fmt: skip
    update, begin = compiled(SAYS, None, warm)
    params, batch = example()
    trained, _, _ = update(begin(params)._replace(iteration=jnp.int32(4)), batch, KEY)
    start = trained._replace(iteration=jnp.int32(1))
    states, metrics = run(*warm, optimizer=None, updates=2, start=start)
    for tree in ("params", "opt_state"):
        before, *during = (getattr(state, tree) for state in states)
        for one in during:
            same_bits(of("actor", before), of("actor", one))
        assert differs(of("critic", before).values(), of("critic", during[-1]).values())
    assert metrics["actor/grad_norm"] == 0 < metrics["critic/grad_norm"]
    assert not metrics["learnt"].any()
    sampled = int(np.sum(np.asarray(example()[1].step_ids_NT) >= 0))
    assert metrics["token/total"] == 3 * sampled  # that of the update before, and two here
    states, metrics = run(*warm, optimizer=None, start=states[-1])  # iteration 4
    for tree in ("params", "opt_state"):
        before, after = (of("actor", getattr(state, tree)) for state in states)
        assert differs(before.values(), after.values())
    assert metrics["actor/grad_norm"] > 0 and metrics["learnt"].any()


@pytest.mark.slow
def test_a_target_kl_does_not_stop_a_warm_up():
    """The policy that sampled differs from the one that is trained by more than the target."""
    states, metrics = run(
        "trainer.critic_warmup=1", "actor.target_kl=1e-5", "actor.ppo_mini_batch_size=8"
    )
    assert metrics["actor/approx_kl"] > 1e-5 and metrics["actor/kl_stopped"] == 0
    before, after = (of("critic", state.params).values() for state in states)
    assert differs(before, after)


@pytest.mark.slow
def test_the_critic_of_a_warm_up_goes_where_it_goes_beside_a_policy_of_rate_zero():
    still = run("actor.lr=0", "critic.grad_clip=0.01", optimizer=None, updates=2)[0][-1]
    warm = run("trainer.critic_warmup=2", "trainer.total_training_steps=3", "actor.grad_clip=0.01",
               optimizer=None, updates=2)[0][-1]  # fmt: skip
    # The norm that is clipped is that of the critic alone.
    close(of("critic", warm.params), of("critic", still.params))
    same_bits(of("actor", warm.params), of("actor", example()[0]))


@pytest.mark.slow
def test_a_clip_that_moves_waits_for_the_policy():
    on = ("actor.clip_fraction=0.1", "actor.clip_ratio_high=0.01", "algorithm.use_kl_in_reward=true",
          "algorithm.kl_ctrl.type=adaptive", "algorithm.kl_ctrl.horizon=20")  # fmt: skip
    warm = run(*on, "trainer.critic_warmup=1", "trainer.total_training_steps=2", updates=2)[0]
    clips, coefficients = (
        [float(state.carried[name]) for state in warm] for name in ("clip", "kl_coefficient")
    )
    assert clips[0] == clips[1] != clips[2]
    assert coefficients[0] == coefficients[1] != coefficients[2]


# A shared trunk


@functools.cache
def of_a_shared_trunk(*overrides):
    (before, after), metrics = run(*overrides, policy=POLICY)
    return jax.tree.map(jnp.subtract, after.params, before.params), metrics


@pytest.mark.slow
def test_a_warm_up_trains_the_head_alone():
    step, _ = of_a_shared_trunk("trainer.critic_warmup=1")
    plain, _ = of_a_shared_trunk()
    assert all(np.all(np.asarray(x) == 0) for x in of("actor", step).values())
    close(of("critic", step), of("critic", plain))


@pytest.mark.slow
def test_a_detached_trunk_learns_nothing_from_the_loss_of_the_critic():
    step, _ = of_a_shared_trunk(APART)
    plain, _ = of_a_shared_trunk()
    without, _ = of_a_shared_trunk("critic.vf_coef=0")
    close(of("actor", step), of("actor", without))
    close(of("critic", step), of("critic", plain))
    assert length(jax.tree.map(jnp.subtract, step, plain)["decoder"]) > 1e-3


# Passes of its own


def test_passes_apart_are_the_joint_ones_where_all_is_one_step():
    joint, one = run()
    apart, other = run(APART, "critic.ppo_epochs=1")
    close(apart[1].params, joint[1].params)
    assert one.keys() == other.keys()
    for name in ("actor/pg_loss", "critic/vf_loss", "actor/grad_norm", "critic/grad_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.full
def test_passes_apart_of_a_critic_in_units_of_its_returns_are_the_joint_ones_too():
    joint, one = of_a_shared_trunk(APART, "critic.norm_returns=true")
    apart, other = of_a_shared_trunk(APART, "critic.norm_returns=true", "critic.ppo_epochs=1")
    close(apart, joint, atol=1e-5)
    assert other["critic/grad_norm"] == pytest.approx(one["critic/grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 8])
def test_the_critic_takes_its_epochs_and_the_policy_its_own(size):
    """Of plain gradient steps on all rows; halves of them end nearby and not there."""
    joint = run()[0]
    apart = run(APART, "critic.ppo_epochs=3", f"critic.ppo_mini_batch_size={size}")[0]
    close(of("actor", apart[1].params), of("actor", joint[1].params))
    params, batch = example()
    value = params["value"]
    targets = functools.partial(_value_loss, *_targets(params, batch))
    slope = jax.jit(jax.grad(targets))
    for _ in range(3):
        value = jax.tree.map(jnp.subtract, value, slope(value))
    near = np.abs(np.asarray(apart[1].params["value"]["head"] - value["head"])).max()
    moved = np.abs(np.asarray(apart[1].params["value"]["head"] - params["value"]["head"])).max()
    assert (near < 1e-5) == (size == 16) and moved > 1e-2


def _targets(params, batch):
    """The token before each place, what the critic should say there, and where it is asked."""
    values = jax.jit(functools.partial(score, SAYS))(params, batch).value_NT
    settings = small_config(*PLAIN).algorithm
    credit = algorithm("steppo").credit(batch, values, settings)
    tokens_NT, read_NT = np.asarray(batch.tokens_NT), np.zeros(batch.tokens_NT.shape, np.int32)
    for row, place in np.ndindex(tokens_NT.shape):
        real = np.flatnonzero(np.asarray(batch.segment_ids_NT)[row, :place])
        read_NT[row, place] = tokens_NT[row, real[-1]] if len(real) else 0
    return read_NT, credit.return_NT, credit.critic_mask_NT


def _value_loss(read_NT, return_NT, mask_NT, value):
    error_NT = jnp.square(value["head"][read_NT] - return_NT)
    return 0.5 * 0.5 * jnp.sum(mask_NT * error_NT) / jnp.sum(mask_NT)


@pytest.mark.slow
def test_a_warm_up_with_passes_apart_leaves_the_policy_too():
    states, metrics = run(
        APART,
        "critic.ppo_epochs=2",
        "trainer.critic_warmup=1",
        "actor.ppo_epochs=2",
        optimizer=None,
    )
    for tree in ("params", "opt_state"):
        before, after = (getattr(state, tree) for state in states)
        same_bits(of("actor", before), of("actor", after))
        assert differs(of("critic", before).values(), of("critic", after).values())
    assert metrics["train/nonfinite"] == 0


def test_what_is_not_finite_is_counted_in_the_passes_of_both():
    params, batch = example()
    active_NT = batch.step_ids_NT >= 0
    broken = dataclasses.replace(batch, logprob_NT=jnp.where(active_NT, jnp.nan, 0.0))
    update, begin = compiled(SAYS, SGD, (APART, "critic.ppo_epochs=1"))
    after, metrics, _ = update(begin(params), broken, KEY)
    assert metrics["train/nonfinite"] == 1  # the critic reads no log-probs
    same_bits(of("actor", after.params), of("actor", params))
    assert differs(of("critic", after.params).values(), of("critic", params).values())


# What cannot be meant


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["trainer.critic_warmup=2"], "trainer.critic_warmup=2: the policy would not be trained"),
        (["critic.ppo_mini_batch_size=3"], "critic.ppo_mini_batch_size=3 must divide"),
        (["critic.ppo_mini_batch_size=4", "actor.ppo_micro_batch_size=8"],
         "actor.ppo_micro_batch_size=8 must divide critic.ppo_mini_batch_size=4"),
        (["critic.init=random"], "critic.init='random': allowed are model, policy"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(overrides, said):
    with pytest.raises(ConfigError) as caught:
        small_config(*overrides)
    assert said in str(caught.value)


def test_a_shared_trunk_has_no_passes_apart():
    with pytest.raises(ValueError, match="critic.ppo_epochs=2: .* set model.value_head=separate"):
        setup(small_config("critic.ppo_epochs=2"))
    setup(small_config("critic.ppo_epochs=2", "algorithm.name=reinforce_pp"))  # reads it not
    setup(small_config("critic.ppo_epochs=2", APART))


@pytest.mark.parametrize(
    "parts, overrides, said",
    [
        (("net",), ["critic.grad_clip=1"], "'value' or 'critic', and yours has neither"),
        (("net",), ["trainer.critic_warmup=1"], "trainer.critic_warmup=1: the critic's parameters"),
        (("net", "value"), ["critic.ppo_epochs=2"], "set critic.detach_trunk=true"),
        (("net", "value"), ["critic.ppo_epochs=2", APART], None),
        (("net",), ["critic.lr=1"], None),
    ],
)
def test_a_policy_of_ones_own_names_its_critic(parts, overrides, said):
    policy = SAYS._replace(init=lambda key: dict.fromkeys(parts, jnp.zeros(2)))
    check = functools.partial(check_critic, small_config(*overrides), algorithm("steppo"), policy)
    if said is None:
        check(is_own=True)
    else:
        with pytest.raises(ValueError, match=said):
            check(is_own=True)
