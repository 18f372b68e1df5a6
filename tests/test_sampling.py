"""Sampling: the distribution is the one that is recorded, and a row never depends on its batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import sampling
from steprl.models import DecoderConfig, make_policy, score
from steprl.ops import support_words, unpack_support
from steprl.sampling import (
    Sampling,
    draw,
    generate,
    keep_top_k,
    keep_top_p,
    sampling_logprobs,
    trajectory_key,
)
from steprl.types import STOP_REASONS, StepBatch

STOP, VOCAB, ACTION, CONTEXT = 1, 13, 4, 24
few = settings(max_examples=25, deadline=None)

# ---------------------------------------------------------------- what is kept


def logits_of(seed, spread, size=40):
    """Distinct logits; a large spread makes the distribution peaked."""
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def softmax(logits):
    weight = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weight / weight.sum()


distributions = st.builds(
    logits_of, st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 5.0, 30.0])
)


@few
@given(distributions, st.sampled_from([1, 2, 7, 39, 40, 100]))
def test_top_k_keeps_the_first_k_of_the_sorted_tokens(logits, k):
    expected = np.zeros(len(logits), bool)
    expected[np.argsort(-logits)[:k]] = True
    np.testing.assert_array_equal(keep_top_k(jnp.asarray(logits), k), expected)


@few
@given(distributions, st.floats(0.001, 0.999))
def test_top_p_keeps_the_shortest_sorted_prefix_that_weighs_p(logits, p):
    prob = softmax(logits)
    order = np.argsort(-prob)
    mass = np.cumsum(prob[order])
    if np.abs(mass - p).min() < 1e-6:
        return  # rounding decides
    expected = np.zeros(len(logits), bool)
    expected[order[: np.searchsorted(mass, p) + 1]] = True
    kept = jax.jit(keep_top_p)(jax.nn.softmax(jnp.asarray(logits)), p)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    ("prob", "k", "p", "by_k", "by_p"),
    [
        ([0.5, 0.25, 0.25, 0.0], 2, 0.6, [1, 1, 1, 0], [1, 1, 1, 0]),  # ties come together
        ([0.25, 0.25, 0.25, 0.25], 1, 0.2, [1, 1, 1, 1], [1, 1, 1, 1]),
        ([0.1, 0.6, 0.3, 0.0], 1, 0.6, [0, 1, 0, 0], [0, 1, 0, 0]),
        ([0.0, 0.0, 1.0, 0.0], 1, 0.999, [0, 0, 1, 0], [0, 0, 1, 0]),
    ],
)
def test_ties_with_the_last_kept_token_are_kept(prob, k, p, by_k, by_p):
    prob = jnp.asarray(prob)
    np.testing.assert_array_equal(keep_top_k(jnp.log(prob), k), np.array(by_k, bool))
    np.testing.assert_array_equal(keep_top_p(prob, p), np.array(by_p, bool))


def test_kept_sets_are_per_row():
    logits = jnp.stack([jnp.asarray(logits_of(seed, 2.0)) for seed in range(6)]).reshape(2, 3, 40)
    prob = jax.nn.softmax(logits)
    for row in np.ndindex(2, 3):
        np.testing.assert_array_equal(keep_top_k(logits, 5)[row], keep_top_k(logits[row], 5))
        np.testing.assert_array_equal(keep_top_p(prob, 0.8)[row], keep_top_p(prob[row], 0.8))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("k", "p"), [(0, 1.0), (5, 1.0), (0, 0.7), (5, 0.7)])
def test_the_sampling_distribution_is_normalised_over_what_is_kept(k, p, temperature):
    logits = logits_of(0, 2.0)
    prob = softmax(logits / temperature)
    if k:  # first k, then the nucleus of what is left
        prob = np.where(prob >= np.sort(prob)[-k], prob, 0.0)
        prob /= prob.sum()
    order = np.argsort(-prob)
    prob[order[np.searchsorted(np.cumsum(prob[order]), p) + 1 :]] = 0.0
    prob /= prob.sum()
    found = sampling_logprobs(jnp.asarray(logits, jnp.bfloat16).astype(jnp.float32), Sampling())
    assert abs(float(jnp.sum(jnp.exp(found))) - 1) < 1e-5 and found.dtype == jnp.float32
    found = np.exp(sampling_logprobs(jnp.asarray(logits), Sampling(temperature, k, p)))
    np.testing.assert_allclose(found, prob, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found == 0, prob == 0)


# ---------------------------------------------------------------- one draw


@pytest.mark.parametrize(
    ("temperature", "k", "p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.8)]
)
def test_tokens_come_as_often_as_their_probability_says(temperature, k, p):
    logits, count = jnp.asarray(logits_of(3, 1.5, size=8)), 20_000
    keys = jax.random.split(jax.random.key(7), count)
    token, logprob, entropy = jax.jit(
        jax.vmap(lambda key: draw(logits, key, Sampling(temperature, k, p)))
    )(keys)
    expected = np.exp(
        np.asarray(sampling_logprobs(logits, Sampling(temperature, k, p)), np.float64)
    )
    found = np.bincount(token, minlength=8)
    assert np.all(found[expected == 0] == 0)
    sigma = np.sqrt(count * expected * (1 - expected))
    assert np.all(np.abs(found - count * expected) <= 4 * sigma + 1e-3)
    np.testing.assert_allclose(logprob, np.log(expected[np.asarray(token)]), rtol=1e-5, atol=1e-6)
    there = expected[expected > 0]
    np.testing.assert_allclose(entropy, -np.sum(there * np.log(there)), rtol=1e-5)


@pytest.mark.parametrize("size", [3, 256, 257, 1000])  # a block of the running sum is 256 tokens
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_a_draw_inverts_the_distribution_function(size, top_p, monkeypatch):
    logits = jnp.asarray(logits_of(size, 2.0, size=size))
    mass = np.cumsum(
        np.exp(np.asarray(sampling_logprobs(logits, Sampling(1.0, 0, top_p)), np.float64))
    )
    numbers = np.linspace(0.0, 1.0, 200, endpoint=False, dtype=np.float32)
    numbers = numbers[np.abs(mass[None] - numbers[:, None]).min(axis=1) > 1e-5]  # rounding decides
    monkeypatch.setattr(sampling.jax.random, "uniform", lambda key: key)
    token, _, _ = jax.vmap(lambda number: draw(logits, number, Sampling(1.0, 0, top_p)))(numbers)
    np.testing.assert_array_equal(token, np.searchsorted(mass, numbers, side="right"))


def test_the_first_of_equally_likely_tokens_is_taken():
    logits = jnp.zeros(300).at[jnp.array([7, 280])].set(2.0)
    assert int(draw(logits, jax.random.key(0), Sampling(0.0))[0]) == 7
    assert int(draw(jnp.zeros(300), jax.random.key(0), Sampling(0.0))[0]) == 0


def test_temperature_zero_takes_the_most_likely_token_and_is_a_point_mass():
    logits = jnp.stack([jnp.asarray(logits_of(seed, 1.0)) for seed in range(5)])
    keys = jax.random.split(jax.random.key(0), 5)
    for temperature in (0.0, jnp.float32(0.0)):
        token, logprob, entropy = jax.vmap(lambda x, k, t=temperature: draw(x, k, Sampling(t)))(
            logits, keys
        )
        np.testing.assert_array_equal(token, jnp.argmax(logits, axis=-1))
        assert not np.any(logprob) and not np.any(entropy)


@pytest.mark.slow
def test_a_token_of_probability_zero_never_comes_even_by_rounding(monkeypatch):
    """A parallel sum of the probabilities may rise at a token whose probability is 0."""
    risen = []
    for seed in range(20):
        logits = jnp.asarray(logits_of(seed, 3.0, size=1024))
        prob = np.exp(sampling_logprobs(logits, Sampling(top_k=30)))
        mass = np.asarray(jnp.cumsum(prob))
        before = np.concatenate([[0.0], np.maximum.accumulate(mass)[:-1]])
        risen += [(logits, before[v]) for v in np.flatnonzero((prob == 0) & (mass > before))]
        risen.append((logits, np.nextafter(np.float32(1), np.float32(0))))
    for logits, number in risen[:30]:
        monkeypatch.setattr(sampling.jax.random, "uniform", lambda key, x=number: jnp.float32(x))
        token, logprob, _ = draw(logits, jax.random.key(0), Sampling(top_k=30))
        assert np.isfinite(logprob) and logits[token] >= jax.lax.top_k(logits, 30)[0][-1]


# ---------------------------------------------------------------- actions of a batch


@pytest.fixture(scope="module")
def model():
    """A small decoder whose choices are neither certain nor uniform."""
    policy = make_policy(
        DecoderConfig(
            vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24
        )
    )  # fmt: skip
    params = jax.jit(policy.init)(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 15.0
    return policy, params


def prompt_of(task):
    """A prompt of 1 to 4 tokens."""
    ids = jax.random.randint(jax.random.fold_in(jax.random.key(5), task), (4,), 2, VOCAB)
    return jnp.where(jnp.arange(4) < 1 + task % 4, ids, 0), 1 + task % 4


@pytest.fixture(scope="module")
def converse(model):
    """Two turns of each row: prompt, action, an answer of two tokens, action."""
    policy, params = model

    @functools.partial(jax.jit, static_argnames=("top_k", "top_p"))
    def run(task_B, sample_B, temperature=1.0, top_k=0, top_p=1.0):
        rows = len(task_B)
        keys = jax.vmap(trajectory_key, in_axes=(None, 0, 0))(jax.random.key(9), task_B, sample_B)
        turn = functools.partial(
            generate, policy, params, active_B=jnp.ones(rows, bool), max_tokens=ACTION,
            stop_ids=(STOP,), sampling=Sampling(temperature, top_k, top_p),
        )  # fmt: skip
        step = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        prompt, length = jax.vmap(prompt_of)(task_B)
        first = turn(
            cache=policy.init_cache(rows, CONTEXT), tokens_BC=prompt, length_B=length,
            start_B=jnp.zeros(rows, jnp.int32), keys_B=step(keys, 0),
        )  # fmt: skip
        size = jnp.sum(first.mask_BA, axis=1)
        last = jnp.take_along_axis(first.tokens_BA, (size - 1)[:, None], axis=1)
        answer = jnp.stack([2 + task_B % 5, 3 + task_B % 7], axis=1)
        second = turn(
            cache=first.cache, tokens_BC=jnp.concatenate([last, answer], axis=1),
            length_B=jnp.full(rows, 3), start_B=length + size - 1, keys_B=step(keys, 1),
        )  # fmt: skip
        return first._replace(cache=None), answer, second._replace(cache=None)

    return lambda *args, **kwargs: jax.device_get(run(*args, **kwargs))


def rows_of(task_B, played):
    """What was read and sampled, as rows for the training forward."""
    first, answer, second = played
    shape = (len(task_B), CONTEXT)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    steps, logprob, entropy = np.full(shape, -1, np.int32), np.zeros(shape), np.zeros(shape)
    for row, task in enumerate(task_B):
        prompt, length = prompt_of(int(task))
        parts = [(np.asarray(prompt)[:length], -1, 0, 0)]
        for number, out in enumerate((first, second)):
            real = out.mask_BA[row]
            parts.append(
                (
                    out.tokens_BA[row][real],
                    number,
                    out.logprob_BA[row][real],
                    out.entropy_BA[row][real],
                )
            )
            parts.append((answer[row] if number == 0 else [], -1, 0, 0))
        place = 0
        for ids, number, logprobs, entropies in parts:
            span = slice(place, place + len(ids))
            tokens[row, span], steps[row, span], segments[row, span] = ids, number, 1
            logprob[row, span], entropy[row, span] = logprobs, entropies
            place += len(ids)
    zero, no = np.zeros((len(task_B), 2), np.float32), np.zeros((len(task_B), 2), bool)
    return StepBatch(
        tokens, np.where(segments > 0, np.arange(CONTEXT)[None], 0), segments, steps,
        logprob.astype(np.float32), entropy.astype(np.float32), zero, ~no, no, no, no,
        no.astype(np.int32), no[:, 0], task_B, task_B, action_width=2 * ACTION,
    )  # fmt: skip


TASKS, SAMPLES = np.arange(64, dtype=np.int32), np.arange(64, dtype=np.int32) % 3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_decoding_are_those_of_training(model, converse, temperature):
    batch = rows_of(TASKS, converse(TASKS, SAMPLES, np.float32(temperature)))
    policy, params = model
    scores = jax.jit(functools.partial(score, policy, temperature=temperature))(params, batch)
    assert np.sum(batch.step_ids_NT >= 0) > 200
    np.testing.assert_allclose(scores.logprob_NT, batch.logprob_NT, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_NT, batch.entropy_NT, atol=1e-5)
    assert np.abs(batch.logprob_NT).max() > 1


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([11], marks=pytest.mark.slow),
        [3, 11, 0, 40, 41, 42, 63],
        list(range(63, -1, -1)),
    ],
    ids=["1", "7", "reversed"],
)
def test_a_trajectory_does_not_depend_on_its_batch(converse, rows):
    together = converse(TASKS, SAMPLES, np.float32(1.0))
    apart = converse(TASKS[rows], SAMPLES[rows], np.float32(1.0))
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        if one.dtype == np.float32:
            np.testing.assert_allclose(one[rows], other, atol=1e-5)
        else:
            np.testing.assert_array_equal(one[rows], other)


def test_another_sample_of_a_task_is_another_trajectory(converse):
    one = converse(TASKS, SAMPLES, np.float32(1.0))[0]
    other = converse(TASKS, SAMPLES + 1, np.float32(1.0))[0]
    assert np.mean(np.any(one.tokens_BA != other.tokens_BA, axis=1)) > 0.5


def test_an_action_ends_with_its_stop_token_or_at_the_limit(converse):
    for out in converse(TASKS, SAMPLES, np.float32(1.0))[::2]:
        size = out.mask_BA.sum(axis=1)
        assert len(set(size)) > 1
        for row in range(64):
            ids, rest = np.split(out.tokens_BA[row], [size[row]])
            assert out.mask_BA[row, : size[row]].all() and size[row] >= 1
            assert STOP not in ids[:-1]
            stopped = ids[-1] == STOP
            assert stopped or size[row] == ACTION
            assert STOP_REASONS[out.stop_reason_B[row]] == ("stop_token" if stopped else "length")
            assert not rest.any() and not out.logprob_BA[row, size[row] :].any()
            assert not out.entropy_BA[row, size[row] :].any()
        assert np.all(out.logprob_BA <= 0)


def test_a_truncated_distribution_is_what_is_recorded(model, converse):
    played = converse(TASKS, SAMPLES, np.float32(1.0), top_p=0.6)
    batch, (policy, params) = rows_of(TASKS, played), model
    hidden, _ = jax.jit(policy.apply)(
        params, batch.tokens_NT, batch.positions_NT, batch.segment_ids_NT
    )
    logprob = sampling_logprobs(policy.unembed(params, hidden[:, :-1]), Sampling(top_p=0.6))
    chosen = jnp.take_along_axis(logprob, jnp.asarray(batch.tokens_NT)[:, 1:, None], axis=2)[..., 0]
    sampled = batch.step_ids_NT[:, 1:] >= 0
    np.testing.assert_allclose(
        np.asarray(chosen)[sampled], batch.logprob_NT[:, 1:][sampled], atol=1e-5
    )
    plain = jax.jit(functools.partial(score, policy))(params, batch).logprob_NT[:, 1:][sampled]
    assert np.abs(plain - batch.logprob_NT[:, 1:][sampled]).max() > 0.1


def test_the_set_of_a_token_comes_with_it_where_the_distribution_is_truncated(converse):
    for out in converse(TASKS, SAMPLES, np.float32(1.0), top_p=0.6)[::2]:
        assert out.support_BAW.shape == (64, ACTION, support_words(VOCAB))
        keep = np.asarray(unpack_support(out.support_BAW, VOCAB))
        np.testing.assert_array_equal(keep.any(axis=2), out.mask_BA)
        chosen = np.take_along_axis(keep, out.tokens_BA[..., None], axis=2)[..., 0]
        assert chosen[out.mask_BA].all()
        # no entropy exceeds that of the uniform distribution over the set
        sizes = keep.sum(axis=2)[out.mask_BA]
        assert np.all(out.entropy_BA[out.mask_BA] <= np.log(sizes) + 1e-6) and sizes.max() > 2
    for out in converse(TASKS, SAMPLES, np.float32(1.0))[::2]:
        assert out.support_BAW is None


def test_greedy_actions_are_certain(model, converse):
    for out in converse(TASKS, SAMPLES, np.float32(0.0))[::2]:
        assert not out.logprob_BA.any() and not out.entropy_BA.any()
    one, other = (converse(TASKS, s, np.float32(0.0)) for s in (SAMPLES, SAMPLES + 1))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inactive_rows_change_nothing(model):
    policy, params = model
    rows, active = 4, jnp.array([True, False, True, False])
    cache = jax.tree.map(lambda x: x + 1.0, policy.init_cache(rows, CONTEXT))
    run = jax.jit(
        functools.partial(
            generate, policy, params, max_tokens=ACTION, stop_ids=(STOP,), pad_id=12
        )  # fmt: skip
    )
    chunk = jnp.asarray(np.random.default_rng(0).integers(2, VOCAB, (rows, 3)))
    keys = jax.random.split(jax.random.key(0), rows)
    start, length = jnp.zeros(rows, jnp.int32), jnp.array([3, 3, 1, 0])
    out = run(cache, chunk, length, start, keys, active)
    other = run(cache, chunk.at[1].set(5), length.at[1].set(1), start, keys, active)
    for one, two in zip(jax.tree.leaves(out), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)
    inactive = ~np.asarray(active)
    assert np.all(np.asarray(out.tokens_BA)[inactive] == 12) and not np.any(out.mask_BA[inactive])
    assert not np.any(out.logprob_BA[inactive]) and not np.any(out.stop_reason_B[inactive])
    for leaf in jax.tree.leaves(out.cache):
        assert np.all(np.asarray(leaf)[inactive] == 1) and not np.all(
            np.asarray(leaf)[~inactive] == 1
        )
