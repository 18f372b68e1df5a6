"""Episodes inside one program: what a batch promises, whatever it was played with and on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import MeshConfig, MultihopConfig
from steprl.envs.device_env import DeviceObservation
from steprl.envs.multihop import Multihop, demonstrate
from steprl.envs.multihop import language as words
from steprl.models import score
from steprl.rollout import attempts, demonstrations, rollout, summary
from steprl.rollout.faults import faulty_rows, first_fault
from steprl.sampling import Sampling
from steprl.sharding import make_mesh, shard_rows
from tests.rollout.markov import decoder, markov_policy

CONFIG = MultihopConfig(num_entities=12, max_hops=3, spare_steps=1, search_failure=0.2)
ENV = Multihop(CONFIG)
ROWS = 32
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    policy = markov_policy(inner=decoder())
    return policy, policy.init(jax.random.key(0))


@pytest.fixture(scope="module")
def play(model):
    run = jax.jit(functools.partial(rollout, model[0], ENV))
    return lambda task_N, sample_N, t=1.0, key=KEY: jax.device_get(
        run(model[1], key, task_N, sample_N, Sampling(np.float32(t)))
    )


TASK, SAMPLE = (x.astype(np.int32) for x in attempts(5, ROWS // 2, 2))


@pytest.fixture(scope="module")
def batch(play):
    return play(TASK, SAMPLE)


@pytest.fixture(scope="module")
def demonstrated():
    expert = functools.partial(demonstrate, CONFIG)
    return jax.device_get(jax.jit(functools.partial(demonstrations, ENV, expert))(KEY, TASK))


@pytest.fixture(params=["batch", "demonstrated"])
def played(request):
    return request.getfixturevalue(request.param)


def arrays(batch):
    return {
        f.name: np.asarray(getattr(batch, f.name))
        for f in dataclasses.fields(batch)
        if not f.metadata.get("static") and getattr(batch, f.name) is not None
    }


def assert_same(one, other, rows=slice(None)):
    """Equal ids and flags, log-probs within rounding."""
    for name, x in arrays(one).items():
        y = arrays(other)[name]
        if x.dtype == np.float32:
            np.testing.assert_allclose(x[rows], y, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(x[rows], y, err_msg=name)


# ---------------------------------------------------------------- what a batch promises


def test_positions_count_the_real_tokens_of_a_row(played):
    for positions, segments in zip(played.positions_NT, played.segment_ids_NT, strict=True):
        real = segments > 0
        np.testing.assert_array_equal(positions[real], np.arange(real.sum()))
        assert not positions[~real].any() and set(segments) <= {0, 1}


def test_padding_holds_nothing(played):
    padding = played.segment_ids_NT == 0
    assert padding.any() and not played.tokens_NT[padding].any()
    assert np.all(played.step_ids_NT[padding] == -1)
    assert np.all(played.tokens_NT[~padding] != 0)


def test_step_ids_rise_and_are_the_steps_of_the_table(played):
    for ids, mask in zip(played.step_ids_NT, played.mask_NS, strict=True):
        sampled = ids[ids >= 0]
        assert np.all(np.diff(sampled) >= 0)
        np.testing.assert_array_equal(np.unique(sampled), np.flatnonzero(mask))
        assert np.bincount(sampled).max() <= ENV.action_width
    assert played.action_width >= (played.step_ids_NT >= 0).sum(axis=1).max()


def test_only_sampled_tokens_have_log_probs(batch):
    sampled = batch.step_ids_NT >= 0
    assert np.all(batch.logprob_NT <= 0) and np.all(batch.entropy_NT >= 0)
    assert not batch.logprob_NT[~sampled].any() and not batch.entropy_NT[~sampled].any()
    assert np.mean(batch.logprob_NT[sampled] < 0) > 0.9


def test_nothing_happens_after_the_end(played):
    steps = played.mask_NS.sum(axis=1)
    assert len(set(steps)) > 1
    over = played.terminated_NS | played.truncated_NS
    assert not np.any(played.terminated_NS & played.truncated_NS)
    for row, count in enumerate(steps):
        assert played.mask_NS[row, :count].all()
        np.testing.assert_array_equal(np.flatnonzero(over[row]), [count - 1])
        assert not played.reward_NS[row, count:].any() and not played.valid_NS[row, count:].any()
        begin = ENV.prompt_width + count * (ENV.action_width + ENV.observation_width)
        assert not played.segment_ids_NT[row, begin:].any()


def test_a_row_begins_with_the_question_of_its_task(played):
    for row in (0, 7):
        _, question = ENV.reset(int(played.task_N[row]), KEY)
        np.testing.assert_array_equal(played.tokens_NT[row, : ENV.prompt_width], question)
    np.testing.assert_array_equal(played.task_N, TASK)


def test_reward_and_success_agree(played):
    np.testing.assert_array_equal(played.reward_NS.sum(axis=1) > 0, played.success_N)


class Generous:
    """Ends after 1 + task steps, and goes on paying, talking and ending for ever after."""

    prompt_width, action_width, observation_width, max_steps = 1, 2, 1, 4
    vocab_size = ENV.vocab_size
    stop_ids = (words.END_ID,)

    def reset(self, task, key):
        return (task, jnp.zeros((), jnp.int32)), jnp.full(1, words.WHO)

    def step(self, state, action):
        task, turn = state
        yes = jnp.ones((), bool)
        tokens, paid = jnp.full(1, words.DONE), jnp.ones((), jnp.float32)
        ends = turn >= task
        return (task, turn + 1), DeviceObservation(tokens, paid, ends & (task < 2), ends, yes, ends)


def test_what_an_environment_says_after_its_end_is_not_heard():
    task_N = jnp.arange(4)
    batch = jax.jit(functools.partial(rollout, markov_policy(), Generous(), {}, KEY))(
        task_N, task_N * 0
    )
    lived = np.arange(4)[None, :] <= np.arange(4)[:, None]
    last = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(batch.mask_NS, lived)
    np.testing.assert_array_equal(batch.reward_NS, lived.astype(np.float32))
    np.testing.assert_array_equal(batch.valid_NS, lived)
    np.testing.assert_array_equal(batch.truncated_NS, last)
    np.testing.assert_array_equal(batch.terminated_NS, last & (np.arange(4) < 2)[:, None])
    np.testing.assert_array_equal((batch.tokens_NT == words.DONE).sum(axis=1), 1 + np.arange(4))


# ---------------------------------------------------------------- laws


def test_log_probs_of_the_rollout_are_those_of_training(model, batch):
    scores = jax.jit(functools.partial(score, model[0]))(model[1], batch)
    np.testing.assert_allclose(scores.logprob_NT, batch.logprob_NT, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_NT, batch.entropy_NT, atol=1e-5)


def test_a_trajectory_is_the_same_in_another_order_and_with_other_mates(play, batch):
    rows = np.array([9, 30, 2, 17])
    task, sample = 1000 + np.arange(ROWS, dtype=np.int32), np.zeros(ROWS, np.int32)
    places = np.array([31, 0, 12, 5])
    task[places], sample[places] = TASK[rows], SAMPLE[rows]
    other = play(task, sample)
    found = dataclasses.replace(other, **{k: v[places] for k, v in arrays(other).items()})
    assert_same(batch, found, rows)


@pytest.mark.slow
def test_a_trajectory_is_the_same_in_a_batch_of_another_size():
    policy = markov_policy()
    run = jax.jit(functools.partial(rollout, policy, ENV, {}, KEY))
    assert_same(run(TASK, SAMPLE), run(TASK[3:8], SAMPLE[3:8]), slice(3, 8))


def test_attempts_and_keys_differ(play, batch):
    tokens = batch.tokens_NT.reshape(ROWS // 2, 2, -1)
    assert np.mean(np.any(tokens[:, 0] != tokens[:, 1], axis=1)) > 0.9
    other = play(TASK, SAMPLE, key=jax.random.key(4))
    assert np.mean(np.any(other.tokens_NT != batch.tokens_NT, axis=1)) > 0.9


def test_greedy_play_is_certain_and_needs_no_new_program(play):
    greedy = play(TASK, SAMPLE, t=0.0)
    assert not greedy.logprob_NT.any() and greedy.mask_NS.any()


@pytest.mark.slow
def test_rows_on_eight_devices_are_those_of_one(model, batch, devices):
    mesh = make_mesh(MeshConfig(), devices)
    task, sample = shard_rows((TASK, SAMPLE), mesh)
    run = jax.jit(functools.partial(rollout, model[0], ENV))
    sharded = run(model[1], KEY, task, sample)
    assert len(sharded.tokens_NT.sharding.device_set) == 8
    assert sharded.tokens_NT.addressable_shards[0].data.shape[0] == ROWS // 8
    assert_same(batch, jax.device_get(sharded))


# ---------------------------------------------------------------- numbers about a batch


def test_attempts_are_rows_of_tasks():
    task_N, sample_N = attempts(7, 2, 3)
    np.testing.assert_array_equal(task_N, [7, 7, 7, 8, 8, 8])
    np.testing.assert_array_equal(sample_N, [0, 1, 2, 0, 1, 2])


def test_the_summary_counts_what_happened(batch):
    found = {name: float(x) for name, x in summary(jax.tree.map(jnp.asarray, batch)).items()}
    steps, sampled = batch.mask_NS.sum(), (batch.step_ids_NT >= 0).sum()
    expected = {
        "rollout/success_rate": batch.success_N.mean(),
        "critic/rewards/mean": batch.reward_NS.sum(axis=1).mean(),
        "num_turns/mean": steps / ROWS,
        "step/count": steps,
        "response_length/mean": sampled / steps,
        "actor/entropy": batch.entropy_NT[batch.step_ids_NT >= 0].mean(),
        "env/parse_error_frac": (batch.mask_NS & ~batch.valid_NS).sum() / steps,
        "env/truncated_frac": batch.truncated_NS.any(axis=1).mean(),
        "token/sampled_frac": sampled / (batch.segment_ids_NT > 0).sum(),
    }
    for name, number in expected.items():
        assert found[name] == pytest.approx(float(number), rel=1e-5), name


class Garbled:
    """The game, some tasks of which show what is no text of its vocabulary."""

    def __getattr__(self, name):
        return getattr(ENV, name)

    def reset(self, task, key):
        state, prompt = ENV.reset(task, key)
        prompt = jnp.where(task == 5, prompt.at[0].set(ENV.vocab_size), prompt)
        prompt = jnp.where(task == 6, jnp.roll(prompt, 1).at[0].set(0), prompt)
        return (state, task), jnp.where(task == 7, 0, prompt)

    def step(self, state, action):
        game, task = state
        game, seen = ENV.step(game, action)
        tokens = jnp.where(task == 8, seen.tokens.at[0].set(-1), seen.tokens)
        tokens = jnp.where(task == 9, seen.tokens.at[0].set(2**31 - 1), tokens)
        return (game, task), seen._replace(tokens=tokens)


@pytest.mark.slow
def test_tokens_that_are_none_are_a_fault_of_their_row_alone(model, batch):
    """An id outside the vocabulary had ended the run, where the text of the row was looked up."""
    run = jax.jit(functools.partial(rollout, model[0], Garbled()))
    found = jax.device_get(run(model[1], KEY, TASK, SAMPLE, Sampling(np.float32(1.0))))
    garbled = np.isin(TASK, range(5, 10))
    np.testing.assert_array_equal(faulty_rows(found), garbled)
    assert (found.mask_NS[garbled].sum(axis=1) == 1).all()
    for name, array in arrays(found).items():
        np.testing.assert_array_equal(array[~garbled], arrays(batch)[name][~garbled], name)
    assert found.tokens_NT.min() >= 0 and found.tokens_NT.max() < ENV.vocab_size
    assert np.isfinite(found.logprob_NT).all()
    assert "no ids of the vocabulary" in first_fault([], [found])
