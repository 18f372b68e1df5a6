"""Attempts that failed are no learning signal, whatever the method: they might as well not be there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.algorithms import ALGORITHMS, algorithm
from steprl.branching import begin_waves, make_plan
from steprl.config import AlgorithmConfig
from steprl.models.scoring import Scores
from steprl.rollout import summary
from steprl.rollout.faults import cut_rows, faulty_rows, rows_left_out, without_rows
from steprl.types import STOP_REASONS, Branches
from steprl.update import prepare, with_weights
from tests.small import KINDS, random_batch, small_config

ROWS = 8
# Of each of two tasks four attempts; those with an odd number branched off from the one before.
FAULTS = ([], [0], [1], [0, 1], [2, 5, 7], [0, 3, 4, 6], list(range(1, ROWS)), list(range(ROWS)))
METHODS = {n: n if n in KINDS else pytest.param(n, marks=pytest.mark.full) for n in ALGORITHMS}
each_method = pytest.mark.parametrize("name", METHODS.values())
each_of_groups = pytest.mark.parametrize(
    "name", [name for key, name in METHODS.items() if "group" in ALGORITHMS[key].needs]
)


@functools.cache
def prepared_by(name):
    config = small_config("algorithm.gamma=0.9", "algorithm.scale_rewards=true")
    method = algorithm(name)

    @jax.jit
    def prepared(batch, old, moments):
        found = prepare(batch, old, None, {"return_moments": moments}, method, config)
        return with_weights(found.sample, method, config), found.reward_states, found.metrics

    return prepared


def learnt(name, batch, seed=0):
    """What the loss sees, what is carried, and metrics; a critic whose values are noise."""
    rng = np.random.default_rng(seed)
    value_NT = jnp.asarray(rng.normal(size=batch.tokens_NT.shape), jnp.float32)
    old = Scores(batch.logprob_NT, batch.entropy_NT, value_NT, jnp.zeros(len(batch.task_N)))
    return jax.device_get(prepared_by(name)(batch, old, first_moments()))


def first_moments():
    from steprl.rewards import initial_reward_states

    return initial_reward_states(AlgorithmConfig(scale_rewards=True))["return_moments"]


def four_attempts():
    return dataclasses.replace(
        random_batch(3, rows=ROWS), task_N=jnp.arange(ROWS, dtype=jnp.int32) // 4
    )


def faulty(rows, reward):
    """A random batch in which the environment failed in some rows."""
    batch = four_attempts()
    fault_N = np.isin(np.arange(ROWS), rows)
    spoiled_NS = jnp.where(fault_N[:, None], reward, batch.reward_NS)
    return dataclasses.replace(batch, fault_N=jnp.asarray(fault_N), reward_NS=spoiled_NS)


@each_method
@pytest.mark.parametrize("rows", FAULTS, ids=str)
def test_what_a_failed_attempt_has_brought_changes_nothing(name, rows):
    sample, states, metrics = learnt(name, faulty(rows, 0.0))
    for reward in (7.0, np.nan, -np.inf):
        again = learnt(name, faulty(rows, reward))
        for one, other in zip(
            jax.tree.leaves((sample._replace(batch=None), states, metrics)),
            jax.tree.leaves((again[0]._replace(batch=None), *again[1:])),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    credit = sample.credit
    for array in (credit.advantage_NT, sample.policy_weight_NT, sample.value_weight_NT):
        assert not array[rows].any() and np.isfinite(array).all()
    assert not credit.critic_mask_NT[rows].any()
    assert {k for k, x in metrics.items() if not np.isfinite(x)} == set()
    assert metrics["rollout/left_out"] == len(rows)


@each_method
def test_the_others_learn_as_if_it_had_not_been_there(name):
    """Two attempts of different tasks fail, and their branches and origins stay alone."""
    gone = [2, 7]
    stay = np.setdiff1d(np.arange(ROWS), gone)
    with_faults = learnt(name, faulty(gone, 5.0))[0]
    batch = four_attempts()
    row_of = {int(row): place for place, row in enumerate(stay)}
    branches = batch.branches
    origin = [row_of.get(int(branches.origin_N[row]), row_of[int(row)]) for row in stay]
    pick = lambda x: x[stay]  # noqa: E731
    alone = dataclasses.replace(
        jax.tree.map(pick, batch),
        branches=jax.tree.map(pick, branches)._replace(origin_N=jnp.asarray(origin, jnp.int32)),
    )
    own = jnp.asarray(origin) == jnp.arange(len(stay))
    alone = dataclasses.replace(
        alone,
        branches=alone.branches._replace(
            token_N=jnp.where(own, -1, alone.branches.token_N),
            score_N=jnp.where(own, 0.0, alone.branches.score_N),
            preference_N=jnp.where(own & (pick(branches.origin_N) != stay), 0, alone.branches.preference_N),
        ),
    )  # fmt: skip
    value_NT = jnp.asarray(np.random.default_rng(0).normal(size=batch.tokens_NT.shape), jnp.float32)
    old = Scores(alone.logprob_NT, alone.entropy_NT, value_NT[stay], jnp.zeros(len(stay)))
    want_all = jax.device_get(prepared_by(name)(alone, old, first_moments()))[0]
    for field in ("advantage_NT", "return_NT", "critic_mask_NT"):
        got, want = getattr(with_faults.credit, field)[stay], getattr(want_all.credit, field)
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=field)
    for field in ("policy_weight_NT", "value_weight_NT"):
        got, want = getattr(with_faults, field)[stay], getattr(want_all, field)
        np.testing.assert_allclose(got, want, atol=1e-6, err_msg=field)
    assert np.abs(want_all.credit.advantage_NT).max() > 0.1 or name == "appo"


@jax.jit
def without(batch):
    return without_rows(batch, faulty_rows(batch))


def one_group(rewards, failed):
    """Four attempts at one task, each of one step."""
    batch = random_batch(5, rows=4, steps=1)
    return dataclasses.replace(
        batch,
        task_N=jnp.zeros(4, jnp.int32),
        reward_NS=jnp.asarray(rewards, jnp.float32)[:, None],
        fault_N=jnp.asarray(failed),
        branches=None,
    )


@each_of_groups
def test_the_last_of_four_that_did_not_fail_is_compared_with_nothing(name):
    """Three resets failed: the fourth had an advantage of up to its raw score, 5."""
    batch = one_group([0, 0, 0, 5], [True, True, True, False])
    config = AlgorithmConfig()
    fine = without(batch)
    method = algorithm(name)
    credit = jax.jit(method.credit, static_argnums=2)
    value_NT = jnp.zeros(batch.tokens_NT.shape)
    assert not credit(fine, value_NT, config).advantage_NT.any()
    if name == "grpo":
        raw = credit(fine, value_NT, dataclasses.replace(config, singleton="score")).advantage_NT
        assert float(raw.max()) == pytest.approx(5.0, rel=1e-4)
        # As a score of 0 the three would have counted, and the fourth would stand out.
        counted = credit(batch, value_NT, config).advantage_NT
        assert float(counted.max()) > 1.0


def test_the_only_prefix_of_a_task_is_compared_with_nothing():
    """BranPO: two suffixes of one attempt are compared with each other, their prefix with no other."""
    batch = random_batch(4, rows=ROWS, steps=4)
    long = int(np.argmax(batch.mask_NS.sum(axis=1)))
    pair = np.array([long, long])
    own = jnp.arange(2, dtype=jnp.int32)
    batch = dataclasses.replace(
        jax.tree.map(lambda x: x[pair], dataclasses.replace(batch, branches=None)),
        reward_NS=jnp.zeros((2, 4)).at[:, 0].set(jnp.array([3.0, 1.0])),
        branches=Branches(own * 0, own * 0 + 1, own - 1, own * 0.0, own * 0),
    )
    credit = jax.jit(algorithm("branpo").credit, static_argnums=2)

    def of(**settings):
        return credit(batch, batch.logprob_NT, AlgorithmConfig(**settings)).advantage_NT

    prefix_NT = (batch.step_ids_NT == 0) & (own == 0)[:, None]
    assert not jnp.where(prefix_NT, of(), 0).any() and of().any()
    assert jnp.where(prefix_NT, of(singleton="score"), 0).max() == pytest.approx(2.0, rel=1e-4)


def test_groups_are_compared_without_those_that_failed():
    batch = one_group([1, 3, 8, 0], [False, False, False, True])
    fine = without(batch)
    credit = jax.jit(algorithm("dr_grpo").credit, static_argnums=2)
    got = credit(fine, jnp.zeros(batch.tokens_NT.shape), AlgorithmConfig())
    np.testing.assert_allclose(np.abs(got.advantage_NT).max(axis=1), [3, 1, 4, 0])


def test_faults_count_where_that_is_asked_for_but_what_is_no_number_never_does():
    batch = dataclasses.replace(
        one_group([1, np.nan, 1e38, 0], [False, False, False, True]),
        fault_N=jnp.array([0, 0, 0, 1]) > 0,
    )
    masked, counted = AlgorithmConfig(), AlgorithmConfig(mask_faults=False)
    assert rows_left_out(batch, masked).tolist() == [False, True, True, True]
    assert rows_left_out(batch, counted).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", [0, 0, 0, 0]), ("cut", [0, 1, 1, 0]), ("all", [0, 1, 1, 1])],
)
def test_rows_that_a_limit_cut_off_are_left_out_where_that_is_asked_for(kind, expected):
    """One ends by itself, one replies too long, one has a full context, one ran out of steps."""
    stop = [STOP_REASONS.index(r) for r in ("stop_token", "length", "context_full", "stop_token")]
    batch = dataclasses.replace(
        one_group([1, 2, 3, 4], [False] * 4),
        stop_NS=jnp.asarray(stop, jnp.int32)[:, None],
        truncated_NS=jnp.asarray([False, False, True, True])[:, None],
    )
    assert cut_rows(batch, kind).tolist() == [bool(x) for x in expected]
    settings = AlgorithmConfig(mask_truncated=kind)
    assert rows_left_out(batch, settings).tolist() == [bool(x) for x in expected]


def test_success_counts_over_attempts_in_which_the_environment_did_not_fail():
    batch = one_group([1, 0, 9, 9], [False, False, True, True])
    nothing = without_rows(batch, jnp.arange(4) == 3)  # failed before its first step
    batch = dataclasses.replace(
        nothing,
        success_N=jnp.array([True, False, True, False]),
        stop_NS=nothing.stop_NS.at[2].set(STOP_REASONS.index("env_timeout")),
        metrics_N={"f1": jnp.array([0.5, 0.7, jnp.nan, jnp.nan])},
    )
    found = {name: float(x) for name, x in jax.jit(summary)(batch).items()}
    assert found["rollout/success_rate"] == 0.5 and found["critic/rewards/mean"] == 0.5
    assert found["critic/rewards/max"] == 1.0 and found["env/f1"] == pytest.approx(0.6)
    assert (found["env/faults"], found["env/fault_frac"]) == (2, 0.5)
    assert (found["env/timeout_frac"], found["env/crash_frac"]) == (0.25, 0.25)
    assert {name for name, x in found.items() if not np.isfinite(x)} == set()


def test_a_rollout_that_failed_is_neither_right_nor_wrong_where_branches_are_planned():
    """BranPO: of four attempts one failed; of the three others, two are right."""
    config = small_config("algorithm.name=branpo", "rollout.n=4")
    plan = make_plan(config, algorithm("branpo").branching, None, ["a"] * 4)
    reward, steps = np.array([1.0, 1, 0, 0], np.float32), np.array([2, 4, 3, 0], np.int32)
    normal, sample = np.array([True, True, True, False]), np.arange(4, dtype=np.int32)
    originals, _ = jax.jit(begin_waves)(plan, reward, steps, normal, sample)
    np.testing.assert_allclose(originals.accuracy_N, 2 / 3)
    assert not originals.branches_NC[3].any() and originals.branches_NC[2].any()
