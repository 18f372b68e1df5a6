"""The decoder: agrees with the papers, in any chunks, layout and batch; padding says nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.models import DecoderConfig, decoder_config, make_policy
from steprl.models.attention import attend

CONFIG = DecoderConfig(
    vocab_size=31, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24
)
VARIANTS = {
    "grouped": dict(),
    "multi-head, qk_norm": dict(num_kv_heads=4, qk_norm=True, norm_eps=1e-5),
    "one key head, bias": dict(num_kv_heads=1, attention_bias=True, rope_theta=100.0),
    "untied, wide heads": dict(tie_embeddings=False, head_dim=12, num_heads=2, attention_block=3),
}
ROWS, LENGTH = 3, 10
few = settings(max_examples=25, deadline=None)


def shaken(policy, seed=0, strength=0.1):
    """Parameters in which no scale is 1 and no bias 0, so that none may be forgotten."""
    params = policy.init(jax.random.key(seed))  # op by op: the next config finds them compiled
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [leaf + strength * draw.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    )


@functools.cache
def made(**changes):
    """Policy, parameters and its compiled `apply`."""
    policy = make_policy(dataclasses.replace(CONFIG, **changes))
    return policy, shaken(policy), jax.jit(policy.apply)


def random_tokens(seed=0, rows=ROWS, length=LENGTH):
    return (
        np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    )


def dense(tokens):
    """Positions and segment ids of rows without padding."""
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape), np.ones_like(
        tokens
    )


def whole(tokens, **changes):
    _, params, apply = made(**changes)
    return np.asarray(apply(params, tokens, *dense(tokens))[0])


# ---------------------------------------------------------------- the papers


def reference_logits(params, tokens, config):
    """One row, in float64, token by token: RMSNorm, RoPE, grouped-query attention, SwiGLU."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["decoder"]

    def rms(x, scale):
        return x / np.sqrt((x**2).mean() + config.norm_eps) * scale["scale"]

    def linear(x, layer):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    def turn(x, position):
        half, out = len(x) // 2, np.empty_like(x)
        for i in range(half):
            angle = position * config.rope_theta ** (-2 * i / len(x))
            out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
            out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
        return out

    x = [params["embedding"]["embedding"][t] for t in tokens]
    for number in range(config.num_layers):
        layer = params["layers"][str(number)]
        attention, keys, values, out = layer["attention"], [], [], []
        for position, x_t in enumerate(x):
            h = rms(x_t, layer["attention_norm"])
            q = linear(h, attention["query"]).reshape(config.num_heads, config.head_dim)
            k = linear(h, attention["key"]).reshape(config.num_kv_heads, config.head_dim)
            if config.qk_norm:
                q = np.stack([rms(row, attention["query_norm"]) for row in q])
                k = np.stack([rms(row, attention["key_norm"]) for row in k])
            keys.append([turn(row, position) for row in k])
            values.append(
                linear(h, attention["value"]).reshape(config.num_kv_heads, config.head_dim)
            )
            mixed = []
            for head in range(config.num_heads):
                shared = head // (config.num_heads // config.num_kv_heads)
                query = turn(q[head], position)
                scores = np.array([query @ key[shared] for key in keys]) / np.sqrt(config.head_dim)
                weight = np.exp(scores - scores.max())
                weight /= weight.sum()
                mixed.append(sum(w * v[shared] for w, v in zip(weight, values, strict=True)))
            x_t = x_t + linear(np.concatenate(mixed), attention["out"])
            h = rms(x_t, layer["mlp_norm"])
            gate = linear(h, layer["mlp"]["gate"])
            gated = gate / (1 + np.exp(-gate)) * linear(h, layer["mlp"]["up"])
            out.append(x_t + linear(gated, layer["mlp"]["down"]))
        x = out
    hidden = np.stack([rms(x_t, params["final_norm"]) for x_t in x])
    head = params["embedding"]["embedding"].T if config.tie_embeddings else params["head"]
    return hidden @ head


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_forward_agrees_with_a_reference_written_from_the_papers(changes):
    policy, params, apply = made(**changes)
    tokens = random_tokens(rows=2)
    logits = policy.unembed(params, apply(params, tokens, *dense(tokens))[0])
    config = dataclasses.replace(CONFIG, **changes)
    expected = np.stack([reference_logits(params, row, config) for row in tokens])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_token_sees_nothing_of_the_future():
    tokens = random_tokens()
    other = tokens.copy()
    other[:, 6:] = (other[:, 6:] + 1) % CONFIG.vocab_size
    before, after = whole(tokens), whole(other)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3


# ---------------------------------------------------------------- cache


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({}, (10,)),
        ({}, (3, 7)),
        pytest.param({}, (7, 1, 1, 1), marks=pytest.mark.slow),
        pytest.param(VARIANTS["multi-head, qk_norm"], (4, 6), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_chunks_through_the_cache_equal_the_full_forward(widths, changes):
    policy, params, apply = made(**changes)
    tokens = random_tokens(1)
    positions, segments = dense(tokens)
    cache, hidden, begin = policy.init_cache(ROWS, LENGTH), [], 0
    for width in widths:
        part = slice(begin, begin + width)
        out, cache = apply(params, tokens[:, part], positions[:, part], segments[:, part], cache)
        hidden.append(np.asarray(out))
        begin += width
    np.testing.assert_allclose(
        np.concatenate(hidden, axis=1), whole(tokens, **changes), rtol=1e-5, atol=1e-5
    )


@st.composite
def ragged_splits(draw):
    """For each row the sizes of its chunks, the same number of chunks for all, 0 allowed."""
    chunks = draw(st.integers(1, 4))
    cuts = st.lists(st.integers(0, LENGTH), min_size=chunks - 1, max_size=chunks - 1).map(sorted)
    return [np.diff([0, *draw(cuts), LENGTH]) for _ in range(ROWS)]


@few
@given(ragged_splits(), st.sampled_from([-1, 0, 5, CONFIG.vocab_size, 2**30]))
def test_right_padded_ragged_chunks_equal_the_full_forward(sizes, garbage):
    policy, params, apply = made()
    tokens = random_tokens(2)
    cache, found = policy.init_cache(ROWS, LENGTH), [[] for _ in range(ROWS)]
    begin = np.zeros(ROWS, int)
    for number in range(len(sizes[0])):
        chunk = np.full((ROWS, LENGTH), garbage, np.int32)
        segments = np.zeros((ROWS, LENGTH), np.int32)
        positions = begin[:, None].astype(np.int32) + np.arange(LENGTH, dtype=np.int32)[None, :]
        for row in range(ROWS):
            size = sizes[row][number]
            chunk[row, :size] = tokens[row, begin[row] : begin[row] + size]
            segments[row, :size] = 1
        hidden, cache = apply(params, chunk, positions, segments, cache)
        assert np.isfinite(hidden).all()
        for row in range(ROWS):
            found[row].append(np.asarray(hidden[row, : sizes[row][number]]))
            begin[row] += sizes[row][number]
    found = np.stack([np.concatenate(parts) for parts in found])
    np.testing.assert_allclose(found, whole(tokens), rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_leaves_the_cache_as_it_was():
    policy, params, apply = made()
    tokens = random_tokens(3)
    positions, segments = dense(tokens)
    _, cache = apply(params, tokens, positions, segments, policy.init_cache(ROWS, LENGTH))
    padded = segments.copy()
    padded[1] = 0
    _, after = apply(params, (tokens + 1) % 31, positions, padded, cache)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert np.abs(np.asarray(old[0]) - np.asarray(new[0])).max() > 1e-3


# ---------------------------------------------------------------- padding, rows, segments

WIDE = 14


@st.composite
def holes(draw):
    """Places of the real tokens in a wider row, and what stands in the padding."""
    places = [
        sorted(
            draw(st.sets(st.integers(0, WIDE - 1), min_size=LENGTH, max_size=LENGTH)),
        )
        for _ in range(ROWS)
    ]
    garbage = st.integers(-(2**31), 2**31 - 1)
    return np.array(places), draw(garbage), draw(garbage)


def spread(places, garbage_id, garbage_position, tokens):
    """The rows of `tokens` with holes."""
    rows = np.arange(ROWS)[:, None]
    wide = [np.full((ROWS, WIDE), fill, np.int32) for fill in (garbage_id, garbage_position, 0)]
    for array, x in zip(wide, (tokens, *dense(tokens)), strict=True):
        array[rows, places] = x
    return wide


@pytest.mark.parametrize("block", [128, 4])
@few
@given(holes())
def test_padding_changes_nothing_wherever_and_whatever_it_is(block, holed):
    _, params, apply = made(attention_block=block)
    tokens = random_tokens(4)
    hidden = np.asarray(apply(params, *spread(*holed, tokens))[0])
    assert np.isfinite(hidden).all()
    found = np.take_along_axis(hidden, holed[0][:, :, None], axis=1)
    np.testing.assert_allclose(found, whole(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_padding_gives_no_gradient_and_no_nan():
    policy, params, _ = made()
    tokens = random_tokens(4)
    places = np.tile(np.arange(2, LENGTH + 2), (ROWS, 1))

    @jax.jit
    def gradient(tokens, positions, segments):
        def total(params):
            hidden, _ = policy.apply(params, tokens, positions, segments)
            return jnp.sum(jnp.where(segments[:, :, None] > 0, hidden, 0.0) ** 3)

        return jax.grad(total)(params)

    expected = gradient(tokens, *dense(tokens))
    found = gradient(*spread(places, CONFIG.vocab_size + 5, 2**31 - 1, tokens))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_permuting_rows_permutes_results(order):
    tokens = random_tokens(5)
    order = np.array(order)
    np.testing.assert_allclose(whole(tokens[order]), whole(tokens)[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [128, 4])
@pytest.mark.parametrize("first", [1, 4])
def test_two_segments_of_one_row_are_two_rows(first, block):
    _, params, apply = made(attention_block=block)
    tokens = random_tokens(6)
    index = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    segments = np.where(index < first, 1, 2).astype(np.int32)
    positions = np.where(index < first, index, index - first).astype(np.int32)
    packed = np.asarray(apply(params, tokens, positions, segments)[0])
    apart = np.concatenate([whole(tokens[:, :first]), whole(tokens[:, first:])], axis=1)
    np.testing.assert_allclose(packed, apart, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- the same numbers for less memory


@pytest.mark.parametrize("block", [5, 12])
def test_attention_in_blocks_is_attention(block):
    draw = np.random.default_rng(0)
    q, k, v = (draw.normal(size=(2, 12, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    mask = np.tril(np.ones((12, 12), bool)) & (draw.random((2, 12, 12)) < 0.8)
    mask |= np.eye(12, dtype=bool)[None]

    @functools.partial(jax.jit, static_argnums=3)
    def run(q, k, v, block):
        def total(q, k, v):
            out = attend(q, k, v, jnp.asarray(mask), block)
            return jnp.sum(jnp.sin(out)), out

        (_, out), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    for one, other in zip(run(q, k, v, 0), run(q, k, v, block), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_remat_changes_no_value_and_no_gradient():
    tokens = random_tokens(7)

    def run(remat):
        policy = make_policy(dataclasses.replace(CONFIG, remat=remat))
        loss = lambda p: jnp.sum(jnp.sin(policy.apply(p, tokens, *dense(tokens))[0]))  # noqa: E731
        program = str(jax.make_jaxpr(loss)(made()[1]))
        return jax.jit(jax.value_and_grad(loss))(made()[1]), program

    (plain, plain_program), (again, again_program) = run(False), run(True)
    assert "remat" not in plain_program and "remat" in again_program
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "param_dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_bfloat16_is_finite_and_close(param_dtype):
    policy = make_policy(dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype=param_dtype))
    params = jax.tree.map(lambda x: x.astype(param_dtype), made()[1])
    tokens = random_tokens(8)
    positions, segments = dense(tokens)
    hidden, _ = jax.jit(policy.apply)(params, tokens, positions, segments)
    logits = policy.unembed(params, hidden)
    exact = made()[0].unembed(made()[1], whole(tokens))
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    cached, cache = jax.jit(policy.apply)(
        params, tokens, positions, segments, policy.init_cache(ROWS, LENGTH)
    )
    assert jax.tree.leaves(cache)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (cached, hidden)), atol=0.1)
    assert policy.value(params, tokens, positions, segments, hidden).dtype == jnp.float32


# ---------------------------------------------------------------- parameters and values


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("tiny", 115_008),
        ("small", 853_120),
        pytest.param("smollm2-135m", 134_515_008, marks=pytest.mark.slow),
        pytest.param("qwen3-0.6b", 596_049_920, marks=pytest.mark.slow),
        pytest.param("qwen3-1.7b", 1_720_574_976, marks=pytest.mark.slow),
    ],
)
def test_a_preset_has_the_size_of_its_model(preset, expected):
    config = decoder_config(preset)
    assert config.tie_embeddings
    shapes = jax.eval_shape(make_policy(config).init, jax.random.key(0))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(shapes["decoder"]) == expected
    assert count(shapes["value"]) == config.d_model**2 + 2 * config.d_model + 1


def values(value_head, params_of=lambda policy: policy.init(jax.random.key(1))):
    policy = make_policy(dataclasses.replace(CONFIG, value_head=value_head))
    tokens = random_tokens(9)
    row = (tokens, *dense(tokens))

    def run(params):
        hidden, _ = policy.apply(params, *row)
        return policy.value(params, *row, hidden)

    return run, params_of(policy)


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_a_new_critic_claims_nothing(value_head):
    run, params = values(value_head)
    value_BT = jax.jit(run)(params)
    assert value_BT.shape == (ROWS, LENGTH) and not np.any(value_BT)


@pytest.mark.slow
def test_only_a_shared_trunk_learns_from_the_value():
    def size(tree):
        return sum(float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(tree))

    gradient = {}
    for value_head in ("shared", "separate"):
        run, params = values(value_head, shaken)
        gradient[value_head] = jax.jit(jax.grad(lambda p, run=run: jnp.sum(run(p))))(params)
    assert size(gradient["shared"]["decoder"]) > 0 and "critic" not in gradient["shared"]
    assert size(gradient["separate"]["decoder"]) == 0 and size(gradient["separate"]["critic"]) > 0


def test_a_critic_of_its_own_starts_from_other_numbers():
    _, params = values("separate")
    one, other = (params[part]["embedding"]["embedding"] for part in ("decoder", "critic"))
    assert one.shape == other.shape and np.abs(one - other).max() > 0


def test_without_a_value_head_there_is_no_value():
    policy = make_policy(dataclasses.replace(CONFIG, value_head="none"))
    assert policy.value is None
    assert set(policy.init(jax.random.key(0))) == {"decoder"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: dataclasses.replace(CONFIG, num_kv_heads=3), "num_kv_heads=3"),
        (lambda: dataclasses.replace(CONFIG, head_dim=7), "head_dim=7"),
        (lambda: decoder_config("qwen3-0.6"), "'qwen3-0.6b'"),
        (lambda: decoder_config("nothing like it"), "known presets"),
        (lambda: make_policy(dataclasses.replace(CONFIG, value_head="both")), "value_head='both'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()
