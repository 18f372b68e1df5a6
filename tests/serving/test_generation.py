"""The engine: tokens as `generate` samples them, from a cache that is reused, in few programs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steprl.sampling import Sampling, generate, sampling_logprobs
from steprl.serving import ReplyEngine, ReplySettings
from steprl.serving.generation import split, truncate
from tests.serving.tiny import VOCABULARY, tiny_opened

CONTEXT = 96


@pytest.fixture(scope="module")
def parts():
    opened = tiny_opened()
    return opened.policy, opened.params


@pytest.fixture(scope="module")
def engine(parts):
    return ReplyEngine(*parts, CONTEXT, cache_length=16, widths=(4, 16), piece=4)


@pytest.fixture(scope="module")
def other(parts):
    """One with other pieces and another cache."""
    return ReplyEngine(*parts, CONTEXT, cache_length=64, widths=(8, 32), piece=1)


def alone(other, prompt):
    """A greedy reply to a prompt that is read from its first token."""
    other.forget()
    found = read(other, prompt, temperature=0.0)
    assert found[4] == 0
    return found


def prompt_of(seed, length):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


def reply_settings(max_tokens, temperature=1.0, top_k=0, top_p=1.0, **settings):
    return ReplySettings(max_tokens, Sampling(temperature, top_k, top_p), **settings)


def read(engine, prompt, **settings):
    """Ids, both kinds of log-probs, reason, and tokens of the prompt that were reused."""
    pieces = list(engine.reply(prompt, reply_settings(**{"max_tokens": 10, **settings})))
    join = lambda name: [x for piece in pieces for x in getattr(piece, name)]  # noqa: E731
    return (
        join("ids"), join("logprobs"), join("sampling_logprobs"), pieces[-1].reason,
        pieces[-1].cached,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("policy", "top_k", "top_p", "stop_ids"))
def at_once(policy, params, tokens, key, temperature, top_k, top_p, stop_ids):
    return generate(
        policy, params, policy.init_cache(1, CONTEXT), tokens,
        jnp.array([tokens.shape[1]]), jnp.array([0]), key[None], jnp.array([True]),
        max_tokens=10, stop_ids=stop_ids, sampling=Sampling(temperature, top_k, top_p),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.0, 0, 1.0), (0.7, 20, 0.8)]
)
def test_a_reply_is_what_generate_samples_at_once(parts, engine, temperature, top_k, top_p):
    prompt, stops = prompt_of(1, 21), tuple(range(0, VOCABULARY, 12))
    key = jax.random.fold_in(jax.random.key(5), 0)
    tokens = jnp.asarray([prompt], jnp.int32)
    wanted = at_once(*parts, tokens, key, temperature, top_k, top_p, stops)
    ids, _, logprobs, reason, _ = read(
        engine, prompt, seed=5, temperature=temperature, top_k=top_k, top_p=top_p, stop_ids=stops
    )
    count = int(wanted.mask_BA.sum())
    assert ids == wanted.tokens_BA[0, :count].tolist()
    np.testing.assert_allclose(logprobs, wanted.logprob_BA[0, :count], atol=1e-5)
    assert reason == ("stop_token" if ids[-1] in stops else "length")


def test_some_replies_stop_and_some_run_into_their_length(engine):
    stops = tuple(range(0, VOCABULARY, 12))
    ends = {read(engine, prompt_of(2, 9), seed=seed, stop_ids=stops)[3] for seed in range(12)}
    assert ends == {"stop_token", "length"}


def test_logprobs_are_those_of_the_model_whatever_was_cut_off(parts, engine):
    policy, params = parts
    prompt = prompt_of(3, 7)
    pieces = list(engine.reply(prompt, reply_settings(10, 0.5, 3, 0.9, seed=1, top_logprobs=4)))
    ids = [one for piece in pieces for one in piece.ids]
    row = jnp.asarray([prompt + ids], jnp.int32)
    positions = jnp.arange(row.shape[1])[None]
    hidden, _ = policy.apply(params, row, positions, jnp.ones_like(row))
    own = np.asarray(jax.nn.log_softmax(policy.unembed(params, hidden[0]))[len(prompt) - 1 : -1])
    np.testing.assert_allclose(
        [one for piece in pieces for one in piece.logprobs], own[range(10), ids], atol=1e-4
    )
    for place, likely in enumerate([one for piece in pieces for one in piece.top]):
        assert [one for one, _ in likely] == np.argsort(-own[place])[:4].tolist()
        np.testing.assert_allclose([x for _, x in likely], np.sort(own[place])[:-5:-1], atol=1e-4)


def test_a_common_prefix_is_not_read_again_and_changes_nothing(engine, other):
    first = prompt_of(4, 30)
    ids = read(engine, first, temperature=0.0)[0]
    longer = first + ids + prompt_of(5, 12)  # the chat goes on
    before = engine.prefilled, engine.reused
    again = read(engine, longer, temperature=0.0)
    # The last sampled token was never read.
    assert again[4] == len(first) + len(ids) - 1
    assert engine.reused - before[1] == again[4]
    assert engine.prefilled - before[0] == len(longer) - again[4]
    ids, logprobs, *_ = alone(other, longer)
    assert again[0] == ids
    np.testing.assert_allclose(again[1], logprobs, atol=1e-4)


@pytest.mark.parametrize("cut", [1, 17, 29])
def test_another_continuation_of_a_prefix_overwrites_what_stood_there(engine, other, cut):
    first = prompt_of(6, 30)
    read(engine, first, temperature=0.0)
    changed = first[:cut] + [(first[cut] + 1) % VOCABULARY] + prompt_of(7, 20)
    found = read(engine, changed, temperature=0.0)
    assert found[4] == cut
    assert found[0] == alone(other, changed)[0]


def test_the_same_prompt_again_reads_only_its_last_token(engine):
    prompt = prompt_of(8, 25)
    first = read(engine, prompt, temperature=0.0)
    again = read(engine, prompt, temperature=0.0)
    assert again[4] == 24 and again[0] == first[0]


def test_a_seed_gives_the_same_bits_whatever_was_asked_before(engine):
    prompt = prompt_of(9, 40)
    first = read(engine, prompt, seed=3)
    read(engine, prompt[:20] + prompt_of(10, 60), temperature=0.0)
    again = read(engine, prompt, seed=3)
    assert again == first and again[4] == 0
    assert read(engine, prompt, seed=4)[0] != first[0]
    assert read(engine, prompt, seed=3, choice=1)[0] != first[0]


def test_without_a_seed_replies_differ(engine):
    assert read(engine, prompt_of(9, 5))[0] != read(engine, prompt_of(9, 5))[0]


def test_a_closed_reply_leaves_a_right_cache(engine, other):
    prompt = prompt_of(11, 20)
    pieces = engine.reply(prompt, reply_settings(40, 0.0))
    ids = []
    while len(ids) < 5:
        ids += next(pieces).ids
    pieces.close()
    found = read(engine, prompt + ids + prompt_of(12, 5), temperature=0.0)
    assert found[4] == len(prompt) + len(ids) - 1
    assert found[0] == alone(other, prompt + ids + prompt_of(12, 5))[0]


def test_an_error_in_the_middle_leaves_no_cache_behind(engine, other, monkeypatch):
    prompt = prompt_of(13, 20)
    step, count = engine._step, 0

    def failing(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("out of memory")
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(engine, "_step", failing)
        read(engine, prompt, temperature=0.0)
    found = read(engine, prompt, temperature=0.0)
    assert found[4] == 0
    assert found[0] == alone(other, prompt)[0]


@pytest.mark.slow
def test_few_programs_are_compiled_whatever_is_asked(parts):
    engine = ReplyEngine(*parts, CONTEXT, cache_length=16, widths=(4, 16))
    lengths = 1 + math.ceil(math.log2(CONTEXT / 16))
    draw = np.random.default_rng(0)
    for number in range(40):
        length = int(draw.integers(1, 80))
        wanted = reply_settings(
            max_tokens=int(draw.integers(1, CONTEXT - length + 1)) if number % 4 else 1,
            temperature=float(draw.choice([0.0, 0.3, 1.0])),
            top_k=int(draw.integers(0, 50)),
            top_p=float(draw.uniform(0.1, 1.0)),
            stop_ids=tuple(draw.integers(0, VOCABULARY, draw.integers(0, 20)).tolist()),
            seed=number if number % 3 else None,
            top_logprobs=int(draw.integers(0, 5)),
        )
        list(engine.reply(prompt_of(number % 5, length), wanted))
    assert 3 <= engine.programs <= 3 * lengths
    compiled = engine.programs
    for length in range(1, 80, 7):
        list(engine.reply(prompt_of(99, length), reply_settings(3, 0.9, length, 1 / length)))
    assert engine.programs == compiled


def test_a_context_may_be_filled_to_its_last_token(engine):
    ids, *_, reason, _ = read(engine, prompt_of(14, 90), max_tokens=6)
    assert len(ids) == 6 and reason == "length"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "says"),
    [([], 1, "0 tokens"), ([1], 0, "max_tokens=0"), ([1] * 90, 7, "context of 96")],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(engine, prompt, max_tokens, says):
    with pytest.raises(ValueError, match=says):
        engine.reply(prompt, reply_settings(max_tokens))


@pytest.mark.parametrize(
    "settings", [dict(context_length=1), dict(widths=()), dict(widths=(4, 2)), dict(piece=0)]
)
def test_settings_out_of_range_are_refused(parts, settings):
    with pytest.raises(ValueError, match="="):
        ReplyEngine(*parts, **{"context_length": 8, **settings})


@given(st.integers(0, 5000), st.sets(st.integers(1, 300), min_size=1, max_size=4).map(sorted))
def test_pieces_cover_a_prompt_and_only_the_last_is_padded(tokens, widths):
    pieces = split(tokens, widths)
    assert {*pieces} <= {*widths} and pieces == sorted(pieces, reverse=True)
    assert tokens <= sum(pieces) and sum(pieces[:-1]) < max(tokens, 1)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 7, 1.0), (0.3, 0, 0.9), (0.7, 20, 0.8), (1.0, 99, 0.99)],
)
def test_traced_truncation_is_the_sampling_distribution(temperature, top_k, top_p):
    logits_BV = jnp.asarray(np.random.default_rng(top_k).normal(size=(50, 40)) * 3, jnp.float32)
    over_rows = jax.vmap(truncate, in_axes=(0, None, None, None))
    kept_BV = jax.jit(over_rows)(logits_BV, temperature, top_k, top_p)
    wanted_BV = sampling_logprobs(logits_BV, Sampling(temperature, top_k, top_p))
    np.testing.assert_array_equal(np.isneginf(kept_BV), np.isneginf(wanted_BV))
    found_BV = jax.nn.log_softmax(kept_BV / temperature)
    np.testing.assert_allclose(jnp.exp(found_BV), jnp.exp(wanted_BV), atol=1e-6)
