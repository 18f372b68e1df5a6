"""The audit of credit: its statistics, its truth by continuations and by enumeration, its command."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from steprl.audit import enumerate_steps, run_audit
from steprl.audit.truth import Truth, continue_all
from steprl.cli import main
from steprl.config import load_config
from steprl.metrics import correlation, correlation_interval
from steprl.rollout.rollouts import Rollouts, Usage
from steprl.run_directory import open_run
from steprl.sampling import Sampling
from steprl.session import initial_params, load_params, setup
from steprl.train import run_warm_start, train
from steprl.types import Step, Trajectory
from tests.small import small_config

# Statistics


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3], [5, 6, 70], 1.0),
        ([1, 2, 3], [9, 8, -1], -1.0),
        ([1, 2, 3, 4], [10, 30, 20, 20], 1.5 / 22.5**0.5),  # ties share the mean of their ranks
        ([1, 2, 3], [4, 4, 4], np.nan),  # nothing varies
    ],
)
def test_rank_correlation_by_hand(x, y, expected):
    found = correlation(np.array(x), np.array(y), ranks=True)
    assert found == pytest.approx(expected, nan_ok=True)


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 8, 30), rng.normal(size=30)
        assert correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
        assert correlation(x, y, ranks=True) == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("ranks", [False, True])
def test_a_weight_is_as_many_pairs(ranks):
    x, y, weight = np.array([3, 1, 2, 7]), np.array([1, 1, 5, 2]), np.array([2, 0, 3, 1])
    often = np.repeat([0, 1, 2, 3], weight)
    assert correlation(x, y, weight, ranks) == pytest.approx(
        correlation(x[often], y[often], None, ranks)
    )


def test_what_does_not_fit_has_no_correlation():
    with pytest.raises(ValueError, match="not of one length"):
        correlation(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        correlation(np.array([1.0, np.nan]), np.zeros(2))


@pytest.mark.parametrize("ranks", [False, True])
def test_pairs_of_a_cluster_count_as_one(ranks):
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    alone = correlation_interval(x, y, np.arange(40), ranks)
    assert alone.low < correlation(x, y, ranks=ranks) < alone.high
    assert alone.high - alone.low > 0.2
    ten = np.repeat(np.arange(40), 10)
    assert correlation_interval(x[ten], y[ten], ten, ranks) == pytest.approx(alone)
    # As if they said ten times as much:
    apart = correlation_interval(x[ten], y[ten], np.arange(400), ranks)
    assert apart.high - apart.low < 0.5 * (alone.high - alone.low)
    assert np.isnan(correlation_interval(x, y, np.zeros(40), ranks)).all()


# The truth by continuations


def test_values_and_advantages_by_hand():
    # Two steps, then one: returns of 2 continuations each, discounted by a half.
    returns = np.array([[0.0, 0.5], [1.0, 1.0], [0.0, 1.0]])
    last = np.array([False, True, True])
    truth = Truth(np.array([0, 0, 1]), np.array([0.25, 0.0, 1.0]), last, returns, 0.5)
    value, variance = truth.value()
    np.testing.assert_allclose(value, [0.25, 1.0, 0.5])
    np.testing.assert_allclose(variance, [0.0625, 0.0, 0.25])
    action, of_action = truth.action_value()
    np.testing.assert_allclose(action, [0.25 + 0.5 * 1.0, 0.0, 1.0])
    np.testing.assert_allclose(of_action, [0.0, 0.0, 0.0])  # a reward that came is no estimate
    np.testing.assert_allclose(truth.advantage()[0], [0.5, -1.0, 0.5])
    np.testing.assert_allclose(truth.stake()[0], [0.25 - 0.0625, 1.0, 0.25 - 0.25])


def test_the_stake_has_no_bias():
    rng = np.random.default_rng(2)
    steps = 4000  # each of one trajectory: reward 1 where 0.7 is expected, from 4 continuations
    returns = (rng.uniform(size=(steps, 4)) < 0.7).astype(float)
    ones = np.ones(steps)
    truth = Truth(np.arange(steps), ones, ones.astype(bool), returns, 1.0)
    stake = truth.stake()[0]
    assert stake.mean() == pytest.approx(0.09, abs=4 * stake.std() / steps**0.5)
    assert (truth.advantage()[0] ** 2).mean() > 0.13  # the plain square is too large


def trajectory(task, rewards):
    ids = np.arange(2, dtype=np.int32)
    steps = [Step("?", "!", ids, ids, ids * 0.0, ids * 0.0, r, False, False, "stop_token")
             for r in rewards]  # fmt: skip
    return Trajectory(task, 0, tuple(steps), False)


def test_every_continuation_has_random_numbers_of_its_own():
    played = [trajectory(0, [0.0] * 3), trajectory(0, []), trajectory(1, [0.0]), trajectory(2, [1])]
    seen, shares = [], []

    def branch(params, key, rollouts, points, **how):
        assert how == {"split": "train"} and len(points) <= 16
        seen.extend(points)
        # What follows is worth the number of the step, at once and twice that a step later.
        return Rollouts([trajectory(0, [9.0] * p.step + [p.step, 2 * p.step]) for p in points],
                        Usage(decoded=len(points)))  # fmt: skip

    player = types.SimpleNamespace(branch=branch)
    rollouts = Rollouts(played, Usage())
    arguments = (player, None, None, rollouts, 3, 5, 100, 0.5, shares.append)
    truth, usage = continue_all(*arguments, split="train")
    assert [(p.origin, p.step, p.token) for p in seen[::5]] == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (2, 0, 0)
    ]  # fmt: skip
    assert sorted(p.sample for p in seen) == list(range(100, 120))
    np.testing.assert_array_equal(truth.return_sm, np.repeat([[0], [2], [4], [0]], 5, axis=1))
    assert truth.last_s.tolist() == [False, False, True, True] and truth.row_s.tolist() == [
        0,
        0,
        0,
        2,
    ]
    assert usage.decoded == 20 and shares == [0.8, 1.0]


def test_a_continuation_that_failed_says_nothing():
    """Of four from each of two states, the first fails; from the second state all do."""

    def branch(params, key, rollouts, points, **how):
        made = [trajectory(0, [1.0, 2.0]) for _ in points]
        failed = [p.sample % 4 == 0 or p.step == 1 for p in points]
        return Rollouts(
            [dataclasses.replace(t, fault="broke" * f) for t, f in zip(made, failed, strict=True)],
            Usage(),
        )

    rollouts = Rollouts([trajectory(0, [0.0] * 2)], Usage())
    player = types.SimpleNamespace(branch=branch)
    truth, _ = continue_all(player, None, None, rollouts, 1, 4, 0, 0.5)
    np.testing.assert_array_equal(truth.return_sm, [[2.0] * 4, [0.0] * 4])


# The truth by enumeration

WORLD = (
    "model.d_model=32",
    "model.head_dim=16",
    "model.d_ff=64",
    "env.multihop.num_entities=4",
    "env.multihop.spare_steps=0",
    "env.multihop.demo_noise=0.1",
    "env.multihop.demo_lazy=0.3",
    "sft.steps=60",
    "sft.lr=1e-2",
    "sft.batch_size=64",
    "rollout.temperature=0.5",  # so that little is too unlikely to be enumerated
    "algorithm.gamma=0.6",
)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A session on a world of four people, and a policy that has seen it briefly."""
    session = setup(small_config(*WORLD))
    return session, run_warm_start(session, tmp_path_factory.mktemp("warm"))


HOW = {"split": "heldout", "sampling": Sampling(0.5)}


@pytest.fixture(scope="module")
def played(warm):
    """One attempt at each of sixteen tasks, with what is enumerated of its steps."""
    session, params = warm
    tasks = np.arange(16)
    rollouts = session.player.explore(params, jax.random.key(3), tasks, tasks * 0, **HOW)
    return rollouts, exact(warm, rollouts.trajectories, 1e-4)


def exact(warm, trajectories, threshold):
    session, params = warm
    return enumerate_steps(
        session.policy, params, session.suite, session.config, True, trajectories, threshold
    )


@pytest.mark.slow
def test_continuations_agree_with_the_enumeration(warm, played):
    (session, params), (rollouts, bounds) = warm, played
    arguments = (session.player, params, jax.random.key(3), rollouts, 16, 64, 1, 0.6)
    truth, _ = continue_all(*arguments, **HOW)
    value, action = truth.value()[0], truth.action_value()[0]
    for (low, high), found in ((bounds.value_s.T, value), (bounds.action_value_s.T, action)):
        assert (low <= high).all() and (high - low).mean() < 0.1
        likely = np.maximum(high * (1 - low), 0.02)  # at least the variance of such a return
        room = 4.5 * np.sqrt(likely / 64) + 1e-6
        assert (found > low - room).all() and (found < high + room).all()
    # The reward of a last step is known without continuations.
    np.testing.assert_allclose(bounds.action_value_s[truth.last_s, 0], truth.reward_s[truth.last_s])
    assert value.std() > 0.1  # there is something to agree on
    squared = (value - bounds.value_s.mean(axis=1)) ** 2
    assert 0.5 < squared.sum() / truth.value()[1].sum() < 1.8


@pytest.mark.slow
def test_less_likely_actions_make_the_bounds_closer(warm, played):
    rollouts, narrow = played
    for wide, close in zip(exact(warm, rollouts.trajectories, 1e-2), narrow, strict=True):
        assert (close[:, 0] >= wide[:, 0] - 1e-6).all()
        assert (close[:, 1] <= wide[:, 1] + 1e-6).all()
        assert np.ptp(close, axis=1).mean() < 0.8 * np.ptp(wide, axis=1).mean()


@pytest.mark.slow
def test_the_variance_is_that_of_the_actions_that_are_sampled(warm):
    session, params = warm
    found = []
    for first in range(0, 128, 16):
        samples = np.arange(first, first + 16)
        rollouts = session.player.explore(params, jax.random.key(5), samples * 0, samples, **HOW)
        found += rollouts.trajectories
    bounds = exact(warm, found, 1e-4)
    first = np.cumsum([0, *(len(one.steps) for one in found[:-1])])
    action = bounds.action_value_s[first].mean(axis=1)
    value, variance = bounds.value_s[0], bounds.variance_s[0]
    np.testing.assert_array_equal(bounds.value_s[first], np.tile(value, (128, 1)))
    assert action.std() > 0.02
    error = 4 * action.std() / 128**0.5 + np.ptp(value)
    assert action.mean() == pytest.approx(value.mean(), abs=error)
    spread = (action - action.mean()) ** 2
    error = 4 * spread.std() / 128**0.5 + np.ptp(variance)
    assert action.var() == pytest.approx(variance.mean(), abs=error)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints."""
    config = small_config(
        "trainer.save_freq=1", "trainer.val_before_train=false", "eval.greedy=false",
        "sft.steps=10", "sft.lr=2e-2", f"trainer.output_dir={tmp_path_factory.mktemp('home')}",
    )  # fmt: skip
    path = open_run(config, None)
    train(setup(config), path)
    return path


FEW = ("--tasks", "4", "--attempts", "4", "--continuations", "4")


@pytest.mark.slow
def test_the_command_writes_scores_and_pictures(run, capsys):
    assert main(["audit", str(run), *FEW, "--exact", "1e-2"]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "audit.json").read_text())
    assert record["settings"]["checkpoint"] == 2 and record["settings"]["older"] == 1
    scored = {(score["target"], score["estimate"]) for score in record["scores"]}
    assert {("value", "critic"), ("advantage", "step GAE"), ("advantage", "token GAE"),
            ("advantage", "GRPO"), ("advantage", "GiGPO"), ("stake", "branching score, APPO"),
            ("stake", "branching score, entropy"), ("stake", "random numbers")} <= scored  # fmt: skip
    assert {score["truth"] for score in record["scores"]} == {"continuations", "enumeration"}
    assert all(name in out for _, name in scored)
    assert {len(column) for column in record["steps"].values()} == {int(record["facts"]["steps"])}
    assert record["facts"]["trajectories"] == 16
    for name in ("audit", "audit_trajectory"):
        assert (run / "plots" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_first_checkpoint_has_none_before_it(run):
    assert main(["audit", str(run), *FEW, "--step", "1", "--split", "train"]) == 0
    record = json.loads((run / "audit.json").read_text())
    assert record["settings"]["older"] is None and record["settings"]["split"] == "train"
    assert "branching score, APPO" not in {score["estimate"] for score in record["scores"]}


@pytest.mark.slow
def test_a_run_without_a_critic_has_no_value_to_score(run):
    config = load_config(run / "config.resolved.yaml", ["algorithm.name=grpo", "rollout.n=2"])
    session = setup(config)
    audit = run_audit(session, load_params(session, run), "train", 4, 1, 4, critic=False)
    assert set(audit.estimates["value"]) == {"random numbers"}
    assert set(audit.estimates["advantage"]) == {"random numbers"}  # nor one attempt a group
    assert "|step GAE|" not in audit.estimates["stake"]


@pytest.mark.slow
def test_environments_on_the_host_are_audited_too():
    session = setup(small_config(
        "env.name=household", "env.household.max_steps=3", "rollout.response_length=4",
        "rollout.context_length=288", "rollout.batch_size=8",
    ))  # fmt: skip
    params = initial_params(session)
    audit = run_audit(session, params, "valid_unseen", 4, 2, 4, critic=True)
    assert len(audit.trajectories) == 8 and audit.facts["steps"] == 24
    assert audit.truth.return_sm.shape == (24, 4)
    # An untrained model is never rewarded: all is worth the same, and nothing can be ranked.
    assert not audit.truth.return_sm.any() and np.isnan(audit.scores[0].correlation)
    assert np.isfinite(audit.estimates["advantage"]["step GAE"]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "1"], "tasks=1: must be at least 2"),
        (["--attempts", "0"], "attempts=0: must be at least 1"),
        (["--continuations", "3"], "continuations=3: must be at least 4"),
        (["--split", "test"], "split=test: this environment has train, heldout"),
        (["--exact", "2"], "threshold=2.0 must be between 0 and 1"),
        (["env.multihop.search_failure=0.1", "--exact"], "searches fail by chance"),
        (["--step", "9"], "No checkpoint of step 9"),
    ],
)
@pytest.mark.slow  # asked of a run
def test_bad_arguments_are_named(run, capsys, words, message):
    assert main(["audit", str(run), *words]) == 1
    out = capsys.readouterr().out
    assert message in out and "Traceback" not in out and out.strip().startswith("error: ")


def test_no_run_is_said(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 1
    assert "is not a run" in capsys.readouterr().out
