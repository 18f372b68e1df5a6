"""The enumerated check of estimators: what it lists is complete, and what they claim is so."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as running the script does
spec = importlib.util.spec_from_file_location("bias", ROOT / "benchmarks" / "bias.py")
bias = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bias)

from enumerated import estimators, expectation, world  # noqa: E402

from steprl import ops  # noqa: E402

# Not the world of the benchmark: what is unbiased is so in any. States of the third step may end in
# one way only, and one start is sure of its first reward.
SMALL = {
    "A": {
        ".": ((0.5, 1.0, "C"), (0.5, 0.0, "")),
        "x.": ((1.0, 0.0, "C"),),
        "xx": ((1.0, 0.25, ""),),
    },
    "B": {
        ".": ((1.0, 0.5, ""),),
        "x.": ((0.25, 0.5, "D"), (0.75, 0.5, "")),
        "xx": ((1.0, 0.5, ""),),
    },
    "C": {
        ".": ((1.0, 0.5, ""),),
        "x.": ((1.0, -0.5, "E"),),
        "xx": ((1.0, 0.0, ""),),
    },
    "D": {
        ".": ((1.0, 0.0, ""),),
        "x.": ((1.0, 1.0, ""),),
        "xx": ((1.0, 0.0, "E"),),
    },
    "E": {
        ".": ((1.0, 0.0, ""),),
        "x.": ((1.0, 0.5, ""),),
        "xx": ((1.0, 2.0, ""),),
    },
}
WORLDS = pytest.mark.parametrize("tree", [world.WORLD, SMALL], ids=["benchmark", "small"])


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def judge():
    with jax.enable_x64(True):
        return bias.Judge(SMALL, seed=7)


def estimator(title):
    return next(e for e in estimators.ESTIMATORS if e.title == title)


@WORLDS
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_the_listed_trajectories_are_all_there_are(tree, max_steps):
    theta = world.logits(tree, seed=5)
    rows = world.listing(tree, theta, max_steps=max_steps)
    assert np.sum(world.probabilities(theta, rows)) == pytest.approx(1, abs=1e-14)
    assert rows.truncated_n.any() == (max_steps < 3)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("draw", ["mixed", "group"])
def test_the_listed_batches_are_all_there_are(judge, size, draw):
    sampled = judge.batches(size, draw)
    assert np.sum(sampled.probability_b) == pytest.approx(1, abs=1e-13)
    count_n = np.zeros(len(judge.rows[3].task_n))
    for place in sampled.index_bn.T:
        np.add.at(count_n, place, sampled.probability_b)
    each_n = world.probabilities(judge.theta, judge.rows[3])
    np.testing.assert_allclose(count_n, size * each_n, atol=1e-13)


def test_a_batch_of_groups_has_one_of_each_task(judge):
    sampled = judge.batches(2, "groups")
    assert np.sum(sampled.probability_b) == pytest.approx(1, abs=1e-13)
    assert (judge.rows[3].task_n[sampled.index_bn] == [0, 0, 1, 1]).all()


@WORLDS
def test_the_exact_gradient_is_that_of_finite_differences(tree):
    theta = world.logits(tree, 3)
    rows = world.listing(tree, theta)
    exact = jax.grad(world.objective)(jnp.asarray(theta), rows)
    value = jax.jit(world.objective)
    h = 1e-6
    for place in np.ndindex(theta.shape):
        step = np.zeros_like(theta)
        step[place] = h
        difference = (value(theta + step, rows) - value(theta - step, rows)) / (2 * h)
        assert exact[place] == pytest.approx(float(difference), abs=1e-9)


@WORLDS
def test_the_exact_critic_is_that_of_dynamic_programming(tree):
    theta = world.logits(tree)
    rows = world.listing(tree, theta)
    chance = dict(zip(world.contexts(tree), np.asarray(jax.nn.softmax(theta)), strict=True))

    def outcomes(state, action):
        return sum(p * (r + (value(then, "") if then else 0)) for p, r, then in tree[state][action])

    def value(state, prefix):
        stop, on = chance[state, prefix]
        longer = outcomes(state, "xx") if prefix else value(state, "x")
        return stop * outcomes(state, prefix + ".") + on * longer

    expected_c = np.array([value(*context) for context in world.contexts(tree)])
    active = rows.step_ids_nt >= 0
    np.testing.assert_allclose(rows.exact_nt[active], expected_c[rows.context_nt[active]])
    assert np.isnan(rows.exact_nt[~active]).all()  # what no estimator may read


CLAIMING = [e for e in estimators.ESTIMATORS if e.claim is not None]
QUICK = [e for e in CLAIMING if e.size < 3]  # the script judges them all


@pytest.mark.parametrize("claiming", QUICK, ids=lambda e: e.title)
def test_what_claims_to_be_unbiased_is(judge, claiming):
    found = judge.bias(claiming)
    assert found.relative <= 1e-10
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    "title",
    [
        "REINFORCE, baseline, token-mean, n=2",
        "step GAE, λ=0.5, wrong critic, n=1",
        "token GAE, time limit as an end, n=1",
        "GRPO, sum over tokens, n=2",
        "REINFORCE++, step-local returns, not whitened, n=1",
        "RLOO, a group a task, equal ones left out, kept rows divide, n=2",
    ],
)
def test_what_claims_nothing_is_off_and_not_by_rounding(judge, title):
    found = judge.bias(estimator(title))
    assert found.relative > 1e-3
    assert bias.holds(estimator(title), found)


def test_steps_of_gigpo_reweigh_states_but_point_the_right_way_in_each(judge):
    steps = estimator("GiGPO, step term, mean only, n=3")

    def loss(theta, batch):
        logprob = world.log_probabilities(theta, batch)
        return steps.loss(logprob, world.log_probabilities(judge.theta, batch), batch)

    mean, _ = expectation.moments(loss, judge.theta, judge.rows[3], judge.batches(3, "group"))
    factor = (mean / judge.exact["return"]).reshape(len(SMALL), -1)  # of each state's logits
    np.testing.assert_allclose(factor, factor[:, :1] * np.ones_like(factor), rtol=1e-9)
    seen = dict(zip(SMALL, factor[:, 0], strict=True))
    # Every trajectory of a group of 3 starts in the same state.
    np.testing.assert_allclose([seen["A"], seen["B"]], 2 / 3)
    assert seen["A"] > seen["C"] > seen["D"] > 0


def reads_the_action(rows):
    """A baseline that knows the reward of the step itself."""
    advantage_ns = jax.vmap(ops.step_gae, in_axes=(0, 0, 0, None))(
        rows.reward_ns, rows.follows_ns, rows.reward_ns, 1.0
    )
    return jax.vmap(ops.broadcast_steps)(advantage_ns, rows.step_ids_nt)


WRONG = [
    estimators.Estimator("wrong", "baseline reads the action", reads_the_action, claim=1.0),
    estimators.Estimator("wrong", "factor", estimators.group("dr_grpo"), 1.0, size=2, draw="group"),
    estimators.Estimator("wrong", "sign", lambda rows: -estimators.returns(rows), claim=1.0),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda e: e.setting)
def test_what_claims_wrongly_is_found_out(judge, wrong):
    assert not bias.holds(wrong, judge.bias(wrong))


def test_the_script_fails_and_saves_what_it_found(monkeypatch, tmp_path, capsys):
    right = estimator("REINFORCE, returns, n=1")
    monkeypatch.setattr(bias, "WORLD", SMALL)
    monkeypatch.setattr(bias, "ESTIMATORS", (right, WRONG[0]))
    monkeypatch.setattr(bias.record, "RESULTS", tmp_path / "results")
    assert bias.main(["--save"]) == 1
    assert "NOT UNBIASED: wrong, baseline reads the action" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results" / "bias.json").read_text())["rows"]
    assert [row["met"] for row in rows] == [True, False]
    assert bias.main(["--only", "REINFORCE"]) == 0


def test_the_saved_result_is_of_the_estimators_that_there_are():
    rows = json.loads((ROOT / "benchmarks" / "results" / "bias.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [e.title for e in estimators.ESTIMATORS]
    claims = [row["met"] for row in rows if row["goal"]]
    assert claims == [True] * len(CLAIMING)
