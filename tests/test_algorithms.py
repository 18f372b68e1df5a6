"""Methods: who gets the credit, what a method needs, and that masked tokens teach nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.algorithms import (
    ALGORITHMS,
    REQUIREMENTS,
    Algorithm,
    Credit,
    algorithm,
    step_credit,
    token_credit,
)
from steprl.config import AlgorithmConfig
from steprl.ops import REDUCTIONS, aggregation_weights, value_loss
from steprl.session import setup
from steprl.types import Branches, StepBatch
from tests.small import KINDS, random_batch, small_config

RAW = AlgorithmConfig(norm_adv=False, gamma=0.9, lam=0.8)
WHITE = dataclasses.replace(RAW, norm_adv=True)
CREDITS = {  # compiled once for each shape and configuration
    "step": jax.jit(step_credit, static_argnums=2),
    "token": jax.jit(token_credit, static_argnums=2),
}
CREDIT_OF = {name: jax.jit(method.credit, static_argnums=2) for name, method in ALGORITHMS.items()}
seeds = st.integers(0, 2**31 - 1)
each_method = pytest.mark.parametrize(
    "name",
    [name if name in KINDS else pytest.param(name, marks=pytest.mark.full) for name in ALGORITHMS],
)


def table(step_ids, rewards) -> StepBatch:
    """One row: step ids of its tokens, rewards of its steps."""
    ids = jnp.asarray([step_ids], jnp.int32)
    reward = jnp.asarray([rewards], jnp.float32)
    there = jnp.ones(reward.shape, bool)
    zeros = jnp.zeros(ids.shape, jnp.float32)
    whole, no = jnp.zeros(ids.shape, jnp.int32), jnp.zeros(1, jnp.int32)
    return StepBatch(
        whole, whole, whole + 1, ids, zeros, zeros, reward, there, there, there, there,
        there.astype(jnp.int32), no > 0, no, no, action_width=ids.shape[1],
    )  # fmt: skip


def values_of(batch: StepBatch, seed: int = 7) -> jax.Array:
    """A critic's values, 0 where nothing was sampled."""
    noise = np.random.default_rng(seed).normal(size=batch.tokens_NT.shape).astype(np.float32)
    return jnp.where(batch.step_ids_NT >= 0, noise, 0.0)


# By hand. Two steps: (a b) reward 0, (c) reward 1; an observation between them.


@pytest.mark.parametrize(
    "lam, advantage, returns",
    [
        # The critic says 0.25 before a and 0.5 before c; what it says before b is not asked.
        (0.0, [0, 0.25, 0.25, 0, 0.5], [0, 0.5, 0.5, 0, 1]),  # 0 + 0.5 - 0.25, 1 - 0.5
        (1.0, [0, 0.75, 0.75, 0, 0.5], [0, 1, 1, 0, 1]),  # return - value
        (0.5, [0, 0.5, 0.5, 0, 0.5], [0, 0.75, 0.75, 0, 1]),
    ],
)
def test_step_credit_by_hand(lam, advantage, returns):
    batch = table([-1, 0, 0, -1, 1], [0.0, 1.0])
    value = jnp.array([[9.0, 0.25, 7.0, 9.0, 0.5]])
    got = CREDITS["step"](batch, value, AlgorithmConfig(gamma=1.0, lam=lam, norm_adv=False))
    np.testing.assert_allclose(got.advantage_NT, [advantage])
    np.testing.assert_allclose(got.return_NT, [returns])
    np.testing.assert_array_equal(got.critic_mask_NT, [[False, True, False, False, True]])


@pytest.mark.parametrize(
    "lam, advantage, returns",
    [
        (0.0, [0, 0.5, -0.25, 0, 0.5], [0, 0.75, 0.5, 0, 1]),
        (1.0, [0, 0.75, 0.25, 0, 0.5], [0, 1, 1, 0, 1]),
        (0.5, [0, 0.5, 0.0, 0, 0.5], [0, 0.75, 0.75, 0, 1]),
    ],
)
def test_token_credit_by_hand(lam, advantage, returns):
    batch = table([-1, 0, 0, -1, 1], [0.0, 1.0])
    value = jnp.array([[9.0, 0.25, 0.75, 9.0, 0.5]])
    got = CREDITS["token"](batch, value, AlgorithmConfig(gamma=1.0, lam=lam, norm_adv=False))
    np.testing.assert_allclose(got.advantage_NT, [advantage])
    np.testing.assert_allclose(got.return_NT, [returns])
    np.testing.assert_array_equal(got.critic_mask_NT, [[False, True, True, False, True]])


@pytest.mark.parametrize("name", CREDITS)
def test_a_reward_is_discounted_once_a_decision(name):
    """Three steps of two tokens, reward at the end: steps discount by step, tokens by token."""
    batch = table([0, 0, 1, 1, 2, 2], [0.0, 0.0, 1.0])
    config = AlgorithmConfig(gamma=0.5, lam=1.0, norm_adv=False)
    got = CREDITS[name](batch, jnp.zeros((1, 6)), config).advantage_NT[0]
    power = [2, 2, 1, 1, 0, 0] if name == "step" else [5, 4, 3, 2, 1, 0]
    np.testing.assert_allclose(got, 0.5 ** np.array(power))


# By a loop


def loop_credit(batch: StepBatch, value_NT, config: AlgorithmConfig, by_step: bool):
    """GAE as the papers write it, one decision after the other, in float64."""
    ids, value = np.asarray(batch.step_ids_NT), np.asarray(value_NT, np.float64)
    advantage, returns = np.zeros(ids.shape), np.zeros(ids.shape)
    for row in range(ids.shape[0]):
        decisions = []  # (tokens, reward)
        for step in range(int(batch.mask_NS[row].sum())):
            places, reward = np.flatnonzero(ids[row] == step), float(batch.reward_NS[row, step])
            if by_step:
                decisions.append((places, reward))
            else:
                decisions += [([p], 0.0) for p in places[:-1]] + [([places[-1]], reward)]
        carried, behind = 0.0, 0.0
        for number, (places, reward) in reversed(list(enumerate(decisions))):
            gamma = config.gamma if number + 1 < len(decisions) else 0.0
            here = value[row, places[0]]
            carried = reward + gamma * behind - here + gamma * config.lam * carried
            advantage[row, places], returns[row, places] = carried, carried + here
            behind = here
    if config.norm_adv:
        heads = [
            advantage[row, np.flatnonzero(ids[row] == step)[0]]
            for row in range(ids.shape[0])
            for step in range(int(batch.mask_NS[row].sum()))
        ]
        group = np.array(heads) if by_step else advantage[ids >= 0]
        advantage = np.where(ids >= 0, (advantage - group.mean()) / group.std(ddof=1), 0)
    return advantage, returns


@pytest.mark.parametrize("config", [RAW, WHITE], ids=["raw", "whitened"])
@pytest.mark.parametrize("name", CREDITS)
@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_credit_is_that_of_a_loop(name, config, seed):
    batch = random_batch(seed)
    value = values_of(batch, seed)
    got = CREDITS[name](batch, value, config)
    advantage, returns = loop_credit(batch, value, config, name == "step")
    np.testing.assert_allclose(got.advantage_NT, advantage, atol=2e-5)
    np.testing.assert_allclose(got.return_NT, returns, atol=2e-5)


def test_whitening_counts_a_step_once_and_not_by_its_tokens():
    batch = table([0, 0, 0, 1, -1, -1], [0.0, 1.0])
    config = AlgorithmConfig(gamma=0.0, norm_adv=True)  # advantages 0 and 1
    got = CREDITS["step"](batch, jnp.zeros((1, 6)), config).advantage_NT[0]
    one = 0.5 / np.std([0, 1], ddof=1)
    np.testing.assert_allclose(got, [-one, -one, -one, one, 0, 0], rtol=1e-6)


# Laws


def losses(batch: StepBatch, credit: Credit, method: Algorithm, logprob_NT, value_NT):
    """The loss of an update on one mini-batch, as a function of the policy's answers."""
    asked = credit.critic_mask_NT
    pg, metrics = method.loss(
        logprob_NT, batch.logprob_NT, credit.advantage_NT, batch.step_ids_NT,
        config=RAW, level=method.ratio_level, clip_low=0.2, clip_high=0.2, dual_clip=3.0,
        weights_t=aggregation_weights(batch.step_ids_NT, "token-mean"),
    )  # fmt: skip
    ids = jnp.where(asked, batch.step_ids_NT, -1)
    weights = asked / jnp.maximum(jnp.sum(asked), 1)
    vf, _ = value_loss(value_NT, credit.return_NT, 0.9 * value_NT, ids, clip=0.2, weights_t=weights)
    return pg + 0.5 * vf, metrics


@functools.partial(jax.jit, static_argnames=("config", "name"))
def loss_and_gradient(batch: StepBatch, value_NT, config: AlgorithmConfig, name: str, shift):
    method = algorithm(name)
    credit = method.credit(batch, value_NT, config)

    def loss(answers):
        return losses(batch, credit, method, *answers)

    return jax.value_and_grad(loss, has_aux=True)((batch.logprob_NT + shift, value_NT + 0.1))


@pytest.mark.parametrize("config", [RAW, WHITE], ids=["raw", "whitened"])
@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_steppo_with_one_token_a_step_is_ppo_on_tokens(config, seed):
    batch = random_batch(seed, action=1)
    value = values_of(batch, seed)
    for a, b in zip(*(credit(batch, value, config) for credit in CREDITS.values()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    shift = 0.4 * values_of(batch, seed + 1)  # ratios within and beyond the clip
    (step_loss, step_metrics), step_gradient = loss_and_gradient(
        batch, value, config, "steppo", shift
    )
    (loss, metrics), gradient = loss_and_gradient(batch, value, config, "ppo", shift)
    np.testing.assert_allclose(step_loss, loss, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (step_gradient, step_metrics),
        (gradient, metrics),
    )


def test_steppo_with_several_tokens_a_step_is_not_ppo_on_tokens():
    batch = random_batch(3, action=3)
    value = values_of(batch)
    step, token = (credit(batch, value, RAW) for credit in CREDITS.values())
    assert np.abs(step.advantage_NT - token.advantage_NT).max() > 0.1
    assert np.sum(step.critic_mask_NT) == np.sum(batch.mask_NS) < np.sum(token.critic_mask_NT)


@each_method
@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_what_stands_at_masked_tokens_changes_nothing(name, seed):
    """Prompt, observation, padding: NaN in every float there, any id as token."""
    batch = random_batch(seed)
    value = values_of(batch, seed)
    shift = 0.4 * values_of(batch, seed + 1)
    masked = batch.step_ids_NT < 0
    poisoned = dataclasses.replace(
        batch,
        logprob_NT=jnp.where(masked, jnp.nan, batch.logprob_NT),
        entropy_NT=jnp.where(masked, jnp.nan, batch.entropy_NT),
        tokens_NT=jnp.where(masked, 2**30, batch.tokens_NT),
    )
    bad_value = jnp.where(masked, jnp.nan, value)
    credit = CREDIT_OF[name]
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # noqa: E731
    jax.tree.map(same, credit(poisoned, bad_value, WHITE), credit(batch, value, WHITE))
    jax.tree.map(
        same,
        loss_and_gradient(poisoned, bad_value, WHITE, name, shift),
        loss_and_gradient(batch, value, WHITE, name, shift),
    )


@pytest.mark.parametrize("name", CREDITS)
def test_the_reward_of_a_step_that_does_not_exist_is_nobodys(name):
    batch = random_batch(4)
    assert not np.all(batch.mask_NS)
    odd = dataclasses.replace(batch, reward_NS=jnp.where(batch.mask_NS, batch.reward_NS, 1e3))
    value = values_of(batch)
    for got, want in zip(
        CREDITS[name](odd, value, WHITE), CREDITS[name](batch, value, WHITE), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", CREDITS)
@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_rows_in_another_order_get_their_credit_in_that_order(name, seed):
    batch = random_batch(seed)
    value = values_of(batch, seed)
    order = np.random.default_rng(seed).permutation(batch.tokens_NT.shape[0])
    got = CREDITS[name](jax.tree.map(lambda x: x[order], batch), value[order], WHITE)
    want = CREDITS[name](batch, value, WHITE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[order], atol=1e-5), got, want)


def padded(batch: StepBatch, rows: int, tokens: int, steps: int) -> StepBatch:
    """The same trajectories in a larger table."""
    extra = {}
    for field in dataclasses.fields(batch):
        array = getattr(batch, field.name)
        if array is None:
            continue
        if field.name == "branches":
            total = batch.task_N.shape[0] + rows
            own = jnp.arange(total, dtype=jnp.int32).at[: total - rows].set(array.origin_N)
            more = [jnp.pad(x, (0, rows)) for x in array]
            extra[field.name] = Branches(*more)._replace(origin_N=own)
            continue
        if field.name.endswith("_NT"):
            widths, fill = ((0, rows), (0, tokens)), -1 if "step_ids" in field.name else 0
        elif field.name.endswith("_NS"):
            widths, fill = ((0, rows), (0, steps)), -1 if "anchor" in field.name else 0
        elif field.name.endswith("_N"):
            widths, fill = ((0, rows),), 0
        else:
            continue
        extra[field.name] = jnp.pad(array, widths, constant_values=fill)
    return dataclasses.replace(batch, **extra)


@pytest.mark.parametrize("extra", [(0, 3, 1), pytest.param((2, 0, 0), marks=pytest.mark.slow)])
@each_method
def test_padding_rows_tokens_and_steps_changes_nothing(name, extra):
    batch = random_batch(5)
    value, shift = values_of(batch), 0.4 * values_of(batch, 8)
    rows, length = batch.tokens_NT.shape
    larger = padded(batch, *extra)
    widths = ((0, extra[0]), (0, extra[1]))
    more_value, more_shift = jnp.pad(value, widths), jnp.pad(shift, widths)
    credit = CREDIT_OF[name]
    for got, want in zip(
        credit(larger, more_value, WHITE), credit(batch, value, WHITE), strict=True
    ):
        np.testing.assert_allclose(got[:rows, :length], want, atol=1e-6)
        assert not np.any(got[rows:]) and not np.any(got[:, length:])
    more, more_gradient = loss_and_gradient(larger, more_value, WHITE, name, more_shift)
    plain, gradient = loss_and_gradient(batch, value, WHITE, name, shift)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), more, plain)
    for got, want in zip(more_gradient, gradient, strict=True):
        np.testing.assert_allclose(got[:rows, :length], want, atol=1e-6)
        assert not np.any(got[rows:]) and not np.any(got[:, length:])


# The table


def test_every_method_of_the_table_is_found_by_its_name():
    for name, method in ALGORITHMS.items():
        assert algorithm(name) is method
        assert method.ratio_level in ("token", "step", "sequence")


@pytest.mark.parametrize("name, near", [("stepo", "steppo"), ("PPO ", "steppo, ppo")])
def test_an_unknown_method_names_the_nearest_or_all(name, near):
    with pytest.raises(ValueError, match=near) as caught:
        algorithm(name)
    assert f"algorithm.name={name!r} is unknown" in str(caught.value)


@pytest.mark.parametrize("name", [n for n, m in ALGORITHMS.items() if "critic" in m.needs])
def test_a_method_that_needs_a_critic_is_refused_without_one(name):
    with pytest.raises(ValueError, match="model.value_head=none") as caught:
        setup(small_config(f"algorithm.name={name}", "model.value_head=none"))
    assert "set model.value_head=shared or separate" in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            ["algorithm.name=grpo"],
            "algorithm.name=grpo compares attempts at the same task.*rollout.n=8",
        ),
        (["algorithm.name=gigpo"], "algorithm.name=gigpo compares attempts at the same task"),
        (["algorithm.name=branpo"], "algorithm.name=branpo compares attempts at the same task"),
        (
            ["algorithm.name=appo", "rollout.n=2", "algorithm.branch.initial=2"],
            "algorithm.branch.initial=2.*at least one must be left",
        ),
        (
            ["algorithm.name=arpo", "rollout.n=4", "actor.ppo_mini_batch_size=2"],
            "ppo_mini_batch_size=2 would part attempts.*multiple of rollout.n=4",
        ),
        (
            ["algorithm.name=grpo", "rollout.n=2", "algorithm.bootstrap_truncated=true"],
            "trains none",
        ),
        (["algorithm.filter_groups=true"], "steppo compares none"),
    ],
)
def test_what_a_run_cannot_give_is_said_before_it_begins(settings, message):
    with pytest.raises(ValueError, match=message):
        setup(small_config(*settings))


def test_the_table_says_what_each_method_is():
    """A reduction that exists, needs that can be told, a ratio level; nine methods need no branches."""
    for name, method in ALGORITHMS.items():
        assert method.reduction in REDUCTIONS and set(method.needs) <= {*REQUIREMENTS}, name
    assert sum(method.branching is None for method in ALGORITHMS.values()) == 9


# Branching methods on rows that did not branch


def alone(batch: StepBatch) -> StepBatch:
    """The same rows, each an original whose suffix is everything."""
    rows = batch.task_N.shape[0]
    zero = jnp.zeros(rows, jnp.int32)
    own = jnp.arange(rows, dtype=jnp.int32)
    return dataclasses.replace(batch, branches=Branches(own, zero, zero - 1, 0.0 * zero, zero))


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_branpo_without_branches_is_grpo(seed):
    batch = alone(random_batch(seed))
    value = values_of(batch, seed)
    got, want = (CREDIT_OF[name](batch, value, WHITE) for name in ("branpo", "grpo"))
    np.testing.assert_allclose(got.advantage_NT, want.advantage_NT, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_appo_without_branches_is_its_initial_group(seed):
    """Two attempts: against the population deviation they stand at +1 and -1, but for its epsilon."""
    batch = alone(random_batch(seed))
    got = CREDIT_OF["appo"](batch, values_of(batch, seed), WHITE).advantage_NT
    score_N = np.sum(np.where(batch.mask_NS, batch.reward_NS, 0.0), axis=1)
    deviation_N = np.repeat(np.abs(score_N[::2] - score_N[1::2]) / 2, 2)
    want_NT = np.broadcast_to((deviation_N / (deviation_N + 1e-6))[:, None], got.shape)
    active_NT = np.asarray(batch.step_ids_NT) >= 0
    np.testing.assert_allclose(np.abs(np.asarray(got))[active_NT], want_NT[active_NT], atol=1e-4)


def test_gigpo_adds_the_step_among_those_that_saw_the_same():
    """With weight 0 it is GRPO; the step term is that weight times what is left."""
    batch = random_batch(9)
    value = values_of(batch)
    none, half, one = (
        CREDIT_OF["gigpo"](batch, value, dataclasses.replace(RAW, step_advantage_w=w)).advantage_NT
        for w in (0.0, 0.5, 1.0)
    )
    grpo = CREDIT_OF["grpo"](batch, value, RAW).advantage_NT
    np.testing.assert_allclose(none, grpo, atol=1e-6)
    np.testing.assert_allclose(half - none, 0.5 * (one - none), atol=1e-5)
    assert np.abs(one - none).max() > 0.1
