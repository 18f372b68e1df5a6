"""A truncated rollout is trained within the sets it was sampled from; a cut-off one has a last value.

The sets are kept, not computed anew: the law is that training and decoding speak of one distribution
when the parameters are the same, and of one support when they are not.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import MultihopConfig
from steprl.envs.multihop import Multihop, MultihopText
from steprl.metrics import read_metrics
from steprl.models import score
from steprl.ops import support_words, unpack_support
from steprl.rollout import HostPlayer, collate, rollout, trajectories
from steprl.rollout.contexts import plain_context
from steprl.sampling import Sampling, sampling_logprobs
from steprl.session import setup
from steprl.train import train
from tests.rollout.markov import SIZE, decoder, markov_policy
from tests.small import small_config

CONFIG = MultihopConfig(num_entities=12, max_hops=3, spare_steps=0, search_failure=0.0)
ENV, TEXT = Multihop(CONFIG), MultihopText(CONFIG)
ROWS, CONTEXT = 16, 48
TASK, SAMPLE = np.arange(ROWS, dtype=np.int32), np.arange(ROWS, dtype=np.int32) % 2
WORDS = support_words(SIZE)
POLICY = markov_policy(inner=decoder("shared"))

cuts = pytest.mark.parametrize(
    "place, cut",
    [
        pytest.param("device", (3, 1.0), marks=pytest.mark.full),
        pytest.param("device", (0, 0.8), marks=pytest.mark.full),
        ("device", (3, 0.8)),
        pytest.param("host", (3, 0.8), marks=pytest.mark.slow),
    ],
    ids=["device k", "device p", "device k and p", "host k and p"],
)


@functools.cache
def params():
    return POLICY.init(jax.random.key(0))


device = jax.jit(
    lambda params, key, sampling: rollout(POLICY, ENV, params, key, TASK, SAMPLE, sampling),
)
text = HostPlayer(POLICY, plain_context(TEXT.tokenizer), ENV.max_steps, ENV.action_width, CONTEXT)
scored = jax.jit(functools.partial(score, POLICY))


@jax.jit
def read(params, batch):
    """Log-probs of the whole vocabulary and values behind each token, straight from the policy."""
    line = (batch.tokens_NT, batch.positions_NT, batch.segment_ids_NT)
    hidden, _ = POLICY.apply(params, *line)
    return jax.nn.log_softmax(POLICY.unembed(params, hidden)), POLICY.value(params, *line, hidden)


@functools.cache
def played(place, cut, seed=0, temperature=1.0):
    """A batch of the device or of the host."""
    key, sampling = jax.random.key(seed), Sampling(np.float32(temperature), *cut)
    if place == "device":
        return jax.device_get(device(params(), key, sampling))
    found = text.play(TEXT, params(), key, TASK.tolist(), SAMPLE.tolist(), sampling)
    return collate(found, ENV.max_steps, [CONTEXT])


def sets_of(batch):
    """[tokens, V] bool: the set of each sampled token."""
    return np.asarray(unpack_support(batch.support_NTW[batch.step_ids_NT >= 0], SIZE))


# ---------------------------------------------------------------- the same parameters


@cuts
@pytest.mark.parametrize("seed, temperature", [(0, 1.0), (1, 0.7), (2, 1.3)])
def test_training_speaks_of_the_distribution_that_was_sampled(place, cut, seed, temperature):
    batch = played(place, cut, seed, temperature)
    scores = scored(params(), batch, np.float32(temperature))
    np.testing.assert_allclose(scores.logprob_NT, batch.logprob_NT, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_NT, batch.entropy_NT, atol=1e-5)
    assert np.ptp(batch.logprob_NT) > 0.5
    whole = scored(params(), dataclasses.replace(batch, support_NTW=None), np.float32(temperature))
    assert np.abs(whole.logprob_NT - batch.logprob_NT).max() > 0.1  # what the sets are worth


@cuts
def test_a_set_is_what_could_have_been_sampled(place, cut):
    batch, (top_k, top_p) = played(place, cut), cut
    assert batch.support_NTW.dtype == np.uint32 and batch.support_NTW.shape[2] == WORDS
    assert not batch.support_NTW[batch.step_ids_NT < 0].any()
    sets, sizes = sets_of(batch), sets_of(batch).sum(axis=1)
    chosen = np.asarray(batch.tokens_NT)[batch.step_ids_NT >= 0]
    assert sets[np.arange(len(chosen)), chosen].all()
    assert sizes.min() >= 1 and sizes.max() > 1
    if top_k and top_p == 1.0:
        assert np.all(sizes == top_k)  # no ties among random numbers
    elif top_k:
        assert sizes.max() <= top_k and len(set(sizes)) > 1
    else:
        assert len(set(sizes)) > 2


@pytest.mark.slow
def test_sets_are_those_of_the_sampling_distribution():
    batch = played("device", (0, 0.8))
    begin = ENV.prompt_width - 1  # the first action is predicted from the end of the prompt
    full = np.flatnonzero(batch.segment_ids_NT[:, begin] > 0)
    logprob = sampling_logprobs(read(params(), batch)[0][full, begin], Sampling(top_p=0.8))
    assert len(full) > 2
    np.testing.assert_array_equal(
        unpack_support(batch.support_NTW[full, begin + 1], SIZE), logprob > -np.inf
    )


@pytest.mark.slow
def test_greedy_play_could_have_sampled_one_token():
    batch = played("device", (0, 0.8), 0, 0.0)
    sampled = batch.step_ids_NT >= 0
    np.testing.assert_array_equal(
        sets_of(batch), np.eye(SIZE, dtype=bool)[batch.tokens_NT[sampled]]
    )
    assert not batch.logprob_NT.any() and not scored(params(), batch, 1.0).logprob_NT.any()
    whole = played("device", (0, 1.0), 0, 0.0)
    np.testing.assert_array_equal(batch.tokens_NT, whole.tokens_NT)


@pytest.mark.parametrize("place", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_without_truncation_there_are_no_sets(place):
    assert played(place, (0, 1.0)).support_NTW is None


# ---------------------------------------------------------------- other parameters


def moved(params, seed=9):
    draw = np.random.default_rng(seed)
    change = lambda x: x + 0.1 * draw.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(change, params)


def test_after_a_change_log_probs_are_those_of_the_stored_set():
    batch, other = played("device", (3, 0.8)), moved(params())
    scores = scored(other, batch, 1.0)
    assert np.abs(scores.logprob_NT - batch.logprob_NT).max() > 0.3
    logprob_NTV, drifted = np.asarray(read(other, batch)[0], np.float64), 0
    for row in range(ROWS):
        for t in np.flatnonzero(batch.step_ids_NT[row] >= 0):
            before = np.flatnonzero(batch.segment_ids_NT[row, :t] > 0)[-1]
            z = logprob_NTV[row, before]
            keep = np.asarray(unpack_support(batch.support_NTW[row, t], SIZE))
            inside = z[keep] - np.log(np.exp(z[keep]).sum())
            logprob = inside[np.searchsorted(np.flatnonzero(keep), batch.tokens_NT[row, t])]
            np.testing.assert_allclose(scores.logprob_NT[row, t], logprob, atol=2e-5)
            entropy = -np.sum(np.exp(inside) * inside)
            np.testing.assert_allclose(scores.entropy_NT[row, t], entropy, atol=2e-5)
            drifted += int(np.sort(z[keep])[0] < np.sort(z)[-3])
    assert drifted > 9  # sets computed anew would have been others: at most the 3 best


@pytest.mark.slow
def test_gradients_are_finite_and_push_only_what_could_come():
    """Through the table of a policy that is nothing but logits: outside of a set, exactly 0."""
    batch = played("device", (3, 0.8))
    bias = jnp.zeros(SIZE, jnp.float32)
    shifted = POLICY._replace(
        unembed=lambda p, hidden: (
            POLICY.unembed(p[0], hidden) + jnp.broadcast_to(p[1], (*hidden.shape[:-1], SIZE))
        ),
        apply=lambda p, *args: POLICY.apply(p[0], *args),
        value=None,
    )
    line = jax.tree.map(lambda x: jnp.asarray(x)[:1], batch)

    @jax.jit
    @jax.value_and_grad
    def loss(parameters):
        scores = score(shifted, parameters, line)
        return jnp.sum(scores.logprob_NT) + 0.1 * jnp.sum(scores.entropy_NT)

    _, gradient = loss((params(), bias))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    reachable = sets_of(line).any(axis=0)
    pushed = np.asarray(gradient[1])
    assert not pushed[~reachable].any() and np.abs(pushed[reachable]).max() > 0.1
    step = 1e-2 * jnp.asarray(np.where(reachable, pushed, 0), jnp.float32)
    rise = loss((params(), step))[0] - loss((params(), -step))[0]
    np.testing.assert_allclose(rise, 2e-2 * np.sum(pushed**2), rtol=2e-2)


# ---------------------------------------------------------------- a run


@pytest.mark.full
def test_a_run_with_a_truncated_rollout_trains(tmp_path):
    """On 8 devices, in micro-batches; the entropy teaches where no reward does."""
    session = setup(
        small_config(
            "rollout.top_p=0.9", "eval.top_p=0.9", "eval.greedy=false", "actor.ppo_epochs=1",
            "trainer.val_before_train=false", "rollout.batch_size=16", "actor.lr=1e-2",
            "actor.ppo_mini_batch_size=16", "actor.ppo_micro_batch_size=8", "eval.num_tasks=16",
            "actor.entropy_coeff=0.1",
        )
    )  # fmt: skip
    train(session, tmp_path)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "actor/pg_loss" in row]
    assert len(rows) == 2
    for row in rows:  # one mini-batch an iteration: every ratio is a first ratio
        assert row["agree/logp_absmax"] <= 1e-5 and abs(row["agree/ratio_mean"] - 1) <= 1e-5
        assert row["actor/pg_clipfrac"] == 0 and row["train/nonfinite"] == 0
        assert row["actor/grad_norm"] > 0


# ---------------------------------------------------------------- the value behind the end


def cut_off(batch):
    return np.any(batch.truncated_NS, axis=1)


@pytest.mark.parametrize("place", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_the_final_value_is_that_of_the_state_after_all_that_was_seen(place):
    batch = played(place, (0, 1.0))
    final = scored(params(), batch, 1.0).final_value_N
    assert 2 < cut_off(batch).sum() < ROWS
    value_NT = read(params(), batch)[1]
    for row in range(ROWS):
        last = np.flatnonzero(batch.segment_ids_NT[row] > 0)[-1]
        np.testing.assert_allclose(final[row], value_NT[row, last], atol=1e-5)
        if cut_off(batch)[row]:
            assert batch.step_ids_NT[row, last] == -1  # behind an observation, not an action
    assert np.ptp(final) > 0.1


@pytest.mark.slow
def test_host_and_device_read_the_same_final_values():
    one, other = played("device", (0, 1.0)), played("host", (0, 1.0))
    np.testing.assert_array_equal(cut_off(one), cut_off(other))
    values = [scored(params(), batch, 1.0).final_value_N[cut_off(one)] for batch in (one, other)]
    np.testing.assert_allclose(*values, atol=1e-5)
    for a, b in zip(*(trajectories(x, TEXT.tokenizer) for x in (one, other)), strict=True):
        if a.steps[-1].truncated:
            np.testing.assert_array_equal(a.final_observation_ids, b.final_observation_ids)
            assert len(a.final_observation_ids) == 1
