"""Branches on the device: state and cache are gathered, what is shared is not played again."""

import functools

import jax
import numpy as np
import pytest

from steprl.models import score
from steprl.rollout import BranchPoint, attempts, collate, trajectories
from steprl.session import setup
from tests.small import small_config

pytestmark = pytest.mark.slow  # its programs are large; rollout/test_slots has the laws on the host

KEY = jax.random.key(4)
TASK, SAMPLE = attempts(0, 16, 2)


@pytest.fixture(scope="module")
def session():
    return setup(
        small_config(
            "env.multihop.spare_steps=3", "env.multihop.max_hops=3", "env.multihop.search_failure=0.3",
            "algorithm.name=reinforce_pp", "model.value_head=none", "rollout.batch_size=32",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(session):
    params = jax.jit(session.policy.init)(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 10.0
    return params


@pytest.fixture(scope="module")
def found(session, params):
    return session.player.explore(params, KEY, TASK, SAMPLE)


def points_of(found):
    return [
        BranchPoint(origin, step, token, 50 + token)
        for origin, one in enumerate(found.trajectories)
        for step in {0, len(one.steps) // 2, len(one.steps) - 1}
        for token in {0, len(one.steps[step].action_ids) - 1}
    ]


@pytest.fixture(scope="module")
def branches(session, params, found):
    return session.player.branch(params, KEY, found, points_of(found))


def test_exploring_is_playing(session, params, found):
    played = trajectories(session.player.play(params, KEY, TASK, SAMPLE), session.player.tokenizer)
    for one, other in zip(found.trajectories, played, strict=True):
        assert [s.action for s in one.steps] == [s.action for s in other.steps]
        assert one.total_reward == other.total_reward


def test_a_branch_begins_with_what_it_shares(found, branches):
    differ = 0
    for point, one in zip(points_of(found), branches.trajectories, strict=True):
        origin = found.trajectories[point.origin]
        assert one.parent[:3] == (origin.sample, point.step, point.token)
        assert one.task == origin.task and one.sample == point.sample
        assert one.steps[: point.step] == origin.steps[: point.step]
        new, old = one.steps[point.step], origin.steps[point.step]
        kept = slice(point.token)
        np.testing.assert_array_equal(new.action_ids[kept], old.action_ids[kept])
        np.testing.assert_array_equal(new.logprobs[kept], old.logprobs[kept])
        assert len(new.action_ids) > point.token
        differ += new.action != old.action
    assert differ > len(branches.trajectories) // 4


def test_the_same_randomness_gives_the_origin_again(session, params, found):
    points = [
        BranchPoint(o, len(t.steps) // 2, 1, t.sample)
        for o, t in enumerate(found.trajectories)
        if len(t.steps[len(t.steps) // 2].action_ids) > 1
    ]
    again = session.player.branch(params, KEY, found, points)
    for point, one in zip(points, again.trajectories, strict=True):
        origin = found.trajectories[point.origin]
        assert [s.action for s in one.steps] == [s.action for s in origin.steps]
        assert [s.reward for s in one.steps] == [s.reward for s in origin.steps]
        assert one.success == origin.success
        np.testing.assert_array_equal(one.final_observation_ids, origin.final_observation_ids)


def test_log_probs_of_branches_are_those_of_reading_everything(session, params, branches):
    """The forked cache holds what a pass over the whole row computes."""
    batch = collate(branches.trajectories, 7, [100])
    again = jax.jit(functools.partial(score, session.policy))(params, batch)
    np.testing.assert_allclose(again.logprob_NT, batch.logprob_NT, atol=1e-5)
    np.testing.assert_allclose(again.entropy_NT, batch.entropy_NT, atol=1e-4)


def test_64_forks_with_the_same_key_are_equal_bit_for_bit(session, params, found):
    origin = max(range(len(TASK)), key=lambda row: len(found.trajectories[row].steps))
    made = session.player.branch(params, KEY, found, [BranchPoint(origin, 1, 0, 9)] * 64)
    one, *others = made.trajectories
    for other in others:
        assert len(other.steps) == len(one.steps)
        for a, b in zip(one.steps, other.steps, strict=True):
            assert a.action_ids.tobytes() == b.action_ids.tobytes()
            assert a.logprobs.tobytes() == b.logprobs.tobytes()


def test_a_branch_reads_one_token_and_what_is_new(found, branches):
    new = 0
    for point, one in zip(points_of(found), branches.trajectories, strict=True):
        new += 1 + sum(len(s.observation_ids) + 1 for s in one.steps[point.step + 1 :])
    assert branches.usage.prefilled == new
    sampled = sum(
        sum(len(s.action_ids) for s in one.steps[point.step :]) - point.token
        for point, one in zip(points_of(found), branches.trajectories, strict=True)
    )
    assert branches.usage.decoded == sampled


def test_limits_are_those_of_the_environment(found, branches):
    for one in branches.trajectories:
        assert len(one.steps) <= 7
        assert one.steps[-1].terminated != one.steps[-1].truncated
        assert not any(s.terminated or s.truncated for s in one.steps[:-1])


def test_few_branches_and_many_are_two_programs(session, params, found):
    for count in (1, 3, 8, 9, 32, 40):
        points = points_of(found)[:count]
        assert len(session.player.branch(params, KEY, found, points).trajectories) == len(points)


@pytest.mark.parametrize("step, token", [(99, 0), (0, 9), (-1, 0)])
def test_a_point_outside_its_trajectory_is_refused(session, params, found, step, token):
    with pytest.raises(ValueError, match="step=|token="):
        session.player.branch(params, KEY, found, [BranchPoint(0, step, token, 1)])


def test_branches_are_collated_like_any_trajectory(session, branches):
    some = branches.trajectories[:16]  # of 8 devices, each has two
    batch = session.player.collate(some)
    assert int(np.asarray(batch.mask_NS).sum()) == sum(len(t.steps) for t in some)
    assert batch.tokens_NT.shape[0] == 16
