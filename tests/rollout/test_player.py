"""Players: what a run needs of its environment, here of the household on the host."""

import jax
import numpy as np
import pytest

from steprl.config import load_config
from steprl.rollout import summary, trajectories
from steprl.session import initial_params, setup

TINY = [
    "env.name=household", "env.household.max_steps=3", "model.d_model=16", "model.num_layers=1",
    "model.num_heads=2", "model.num_kv_heads=2", "model.head_dim=8", "model.d_ff=32",
    "rollout.batch_size=8", "rollout.response_length=4", "rollout.context_length=288",
    "actor.ppo_mini_batch_size=8", "sft.batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def session():
    return setup(load_config(None, TINY))


@pytest.fixture(scope="module")
def batch(session):
    params = initial_params(session)
    tasks = np.arange(8)
    return session.player.play(params, jax.random.key(0), tasks, np.zeros(8, int), split="train")


def test_demonstrations_fill_rows_and_are_mostly_solved(session):
    packed = session.player.demonstrate(jax.random.key(1), np.arange(8))
    segments = np.asarray(packed.segment_ids_NT)
    assert packed.tokens_NT.shape == (8, 288)
    assert segments.max() >= 2  # several share a row
    assert (np.asarray(packed.step_ids_NT)[segments == 0] == -1).all()
    again = session.player.demonstrate(jax.random.key(1), np.arange(8))
    np.testing.assert_array_equal(packed.tokens_NT, again.tokens_NT)


def test_every_observation_ends_with_the_task(session, batch):
    for trajectory in trajectories(batch, session.player.tokenizer):
        first = trajectory.steps[0].observation
        task = first[first.index("Your task is to:") :]
        assert all(step.observation.endswith(task) for step in trajectory.steps)


def test_a_summary_counts_what_happened(batch):
    found = {name: float(value) for name, value in summary(batch).items()}
    assert found["step/count"] == float(np.asarray(batch.mask_NS).sum()) == 24
    assert found["num_turns/max"] == 3 and found["env/truncated_frac"] == 1.0
    # an untrained model knows no command, and hardly ever stops by itself
    assert found["env/parse_error_frac"] > 0.9 and found["rollout/success_rate"] == 0.0
    assert found["response_length/clip_ratio"] > 0.5


def test_splits_are_played_by_name(session):
    assert session.player.splits == ("train", "valid_seen", "valid_unseen")
