"""What is written of an iteration: each trajectory with the credit of its own row, whatever the order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.algorithms import algorithm
from steprl.config import TrainerConfig
from steprl.experience import save_experience
from steprl.models import phrase_tokenizer
from steprl.models.scoring import Scores
from steprl.rewards import initial_reward_states
from steprl.rollout import read_rows, trajectories
from steprl.rollout.rollouts import Experience
from steprl.update import TokenRecord, prepare, with_weights
from steprl.update.record import token_record
from tests.small import random_batch, small_config

TOKENIZER = phrase_tokenizer([f"word{i}" for i in range(16)])


def number_of(batch, shape="NT"):
    """[N, T] or [N, S] numbers that say where they stand: 100 times the row, and the column."""
    rows, columns = (batch.tokens_NT if shape == "NT" else batch.mask_NS).shape
    return 100.0 * np.arange(rows)[:, None] + np.arange(columns)


def record_of(batch, **changed):
    where = number_of(batch).astype(np.float32)
    sampled = np.asarray(batch.step_ids_NT) >= 0
    fields = dict(reward_NS=number_of(batch, "NS"), advantage_NT=where, target_NT=-where, value_NT=2 * where,
                  judged_NT=sampled, logprob_NT=where, reference_NT=None, learnt_NT=sampled)  # fmt: skip
    return TokenRecord(**fields | changed)


def saved(path, batch, record, order=None, **settings):
    """The lines that are written of a batch, by task and sample; the records may come in any order."""
    found = trajectories(batch, TOKENIZER)
    found = found if order is None else [found[i] for i in order]
    experience = Experience(batch, {}, lambda: iter(found))
    chosen = TrainerConfig(**{"save_trajectories": 1, "seed": 5} | settings)
    save_experience(path / "x.jsonl", experience, record, TOKENIZER, 3, chosen)
    return {(rows[0]["task"], rows[0]["sample"]): rows for rows in read_rows(path / "x.jsonl")}


@pytest.mark.parametrize("order", [None, [7, 2, 5, 0, 1, 3, 4, 6]])
def test_each_step_has_the_credit_of_its_own_tokens(tmp_path, order):
    batch = random_batch(3)
    found = saved(tmp_path, batch, record_of(batch), order)
    assert len(found) == 8
    for row in range(8):
        steps = found[row // 2, row % 2]
        assert len(steps) == int(batch.mask_NS[row].sum())
        for number, step in enumerate(steps):
            places = np.flatnonzero(np.asarray(batch.step_ids_NT[row]) == number)
            where = 100.0 * row + places
            np.testing.assert_array_equal(step["response_ids"], batch.tokens_NT[row][places])
            np.testing.assert_array_equal(step["response_train_logprobs"], where)
            np.testing.assert_array_equal(
                step.get("response_advantages", [step["advantage"]] * len(places)), where
            )
            assert (step["value"], step["target"]) == (2 * where[0], -where[0])
            assert step["trained_reward"] == 100 * row + number
            assert step["policy_version"] == 2 and step["key"] == 5
            assert step["response_tokens"] == TOKENIZER.convert_ids_to_tokens(step["response_ids"])


def test_without_a_critic_there_is_no_value(tmp_path):
    batch = random_batch(3)
    none = np.zeros(batch.tokens_NT.shape, bool)
    found = saved(tmp_path, batch, record_of(batch, judged_NT=none))
    assert all(step["value"] is None and step["target"] is None for step in found[0, 0])


def test_without_an_update_there_is_no_credit(tmp_path):
    steps = saved(tmp_path, random_batch(3), None)[0, 0]
    assert all("advantage" not in step and "response_tokens" in step for step in steps)


def test_a_record_that_is_not_in_the_batch_has_no_credit(tmp_path):
    batch, other = random_batch(3), random_batch(4)
    experience = Experience(other, {}, lambda: trajectories(batch, TOKENIZER))
    settings = TrainerConfig(save_trajectories=1)
    save_experience(tmp_path / "x.jsonl", experience, record_of(other), TOKENIZER, 1, settings)
    rows = list(read_rows(tmp_path / "x.jsonl"))
    assert len(rows) == 8 and not any("advantage" in step for steps in rows for step in steps)


@pytest.mark.parametrize(
    ("attempts", "every", "tasks"),
    [(4, None, 2), (5, None, 2), (1, None, 1), (64, None, 4), (4, 1, 4)],
)
def test_by_default_the_first_tasks_are_written_whole(
    monkeypatch, tmp_path, attempts, every, tasks
):
    """Four tasks of two attempts. Those in which the environment failed are always written."""
    monkeypatch.setattr("steprl.experience.DEFAULT_ATTEMPTS", attempts)
    batch = random_batch(3)
    found = saved(tmp_path, batch, record_of(batch), save_trajectories=every)
    assert set(found) == {(task, sample) for task in range(tasks) for sample in range(2)}
    failed = [dataclasses.replace(one, fault="it broke") for one in trajectories(batch, TOKENIZER)]
    experience = Experience(batch, {}, lambda: failed)
    settings = TrainerConfig(save_trajectories=every)
    save_experience(tmp_path / "y.jsonl", experience, None, None, 1, settings)
    assert len(list(read_rows(tmp_path / "y.jsonl"))) == 8


# What an update says of its tokens


def recorded(name, *overrides):
    """The record of a batch whose scores are made up (no model is run), and what it is a record of.

    Both attempts at the first task score the same.
    """
    config = small_config(f"algorithm.name={name}", "rollout.n=2", *overrides)
    batch, method = random_batch(3), algorithm(name)
    reward_NS = np.where(np.arange(8)[:, None] < 2, 0.0, batch.reward_NS).astype(np.float32)
    batch = dataclasses.replace(batch, reward_NS=jnp.asarray(reward_NS))
    where = jnp.asarray(number_of(batch), jnp.float32) / 1000
    old = Scores(where - 1, where, where, jnp.zeros(8))

    @jax.jit
    def record(batch, old):
        carried = initial_reward_states(config.algorithm)
        sample, *_ = prepare(batch, old, old.logprob_NT - 2, carried, method, config)
        return sample, token_record(with_weights(sample, method, config), old)

    return batch, old, *record(batch, old)


def test_the_record_is_what_the_loss_is_made_of():
    batch, old, sample, record = recorded("ppo")
    sampled = np.asarray(batch.step_ids_NT) >= 0
    np.testing.assert_array_equal(record.learnt_NT, sampled)
    np.testing.assert_array_equal(
        record.judged_NT, sampled
    )  # PPO asks its critic before each token
    np.testing.assert_array_equal(record.advantage_NT, sample.credit.advantage_NT)
    np.testing.assert_array_equal(record.target_NT, sample.credit.return_NT)
    np.testing.assert_array_equal(record.value_NT, old.value_NT)
    np.testing.assert_array_equal(record.logprob_NT, old.logprob_NT)
    np.testing.assert_array_equal(record.reference_NT, old.logprob_NT - 2)
    np.testing.assert_array_equal(record.reward_NS, batch.reward_NS)


def test_groups_that_are_left_out_are_not_learnt_from():
    batch, _, _, record = recorded("grpo", "algorithm.filter_groups=true")
    sampled = np.asarray(batch.step_ids_NT) >= 0
    kept = np.arange(8) >= 2
    np.testing.assert_array_equal(record.learnt_NT, sampled & kept[:, None])
    assert not np.any(record.judged_NT)
    assert np.all(np.asarray(record.advantage_NT)[sampled & kept[:, None]] != 0)
