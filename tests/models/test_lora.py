"""Adapters: what is merged is W + scale * A @ B, the base is never touched, and decoding sees them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from steprl.models import (
    init_lora,
    lora_targets,
    make_policy,
    merge_lora,
    score,
    unmerge_lora,
    with_lora,
)
from steprl.models.weights import leaves_by_path
from steprl.sampling import generate
from steprl.types import Policy
from tests.models.random_models import FAMILIES, SHAPE, assert_same_bits, random_parameters
from tests.small import random_batch

RANK, ALPHA = 3, 4.5
SCALE = ALPHA / RANK
LLAMA = FAMILIES["llama"]
SMALL = type(LLAMA)(**{**LLAMA.__dict__, "num_layers": 1})
PROJECTIONS = (
    "attention/key", "attention/out", "attention/query", "attention/value",
    "mlp/down", "mlp/gate", "mlp/up",
)  # fmt: skip
QUERY_AND_UP = r"(query|up)/kernel$"


def of(tree, path):
    return functools.reduce(lambda part, name: part[name], path.split("/"), tree)


def config_of(base=LLAMA, **changes):
    return type(base)(**{**base.__dict__, **changes})


def adapted(config=LLAMA, target="all-linear", seed=0, scale=0.2):
    """Parameters with adapters that change something: B is not zero."""
    params = random_parameters(config, seed)
    lora = init_lora(jax.random.key(seed), params, RANK, target)
    draw = np.random.default_rng(seed + 1)
    shaped = lambda x: jnp.asarray(scale * draw.standard_normal(x.shape), x.dtype)  # noqa: E731
    return params | {"lora": jax.tree.map(shaped, lora)}


def without_lora(params):
    return {name: part for name, part in params.items() if name != "lora"}


# Merging


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3, tied"])
def test_a_merged_kernel_is_the_sum_in_float32_rounded_once(family, dtype):
    config = type(LLAMA)(**{**FAMILIES[family].__dict__, "param_dtype": dtype})
    params = adapted(config)
    merged = merge_lora(params, SCALE)
    assert merged.keys() == without_lora(params).keys()
    got, base = leaves_by_path(merged), leaves_by_path(without_lora(params))
    assert got.keys() == base.keys()
    for path, leaf in base.items():
        assert got[path].dtype == leaf.dtype
        if not path.endswith("kernel"):
            assert got[path] is leaf  # shared, not copied
            continue
        a, b = (of(params["lora"], path.replace("kernel", name)) for name in ("lora_a", "lora_b"))
        wide = np.float64(np.asarray(leaf, np.float32))
        want = wide + SCALE * np.float64(a) @ np.float64(b)
        step = float(jnp.finfo(leaf.dtype).eps)
        np.testing.assert_allclose(
            np.asarray(got[path], np.float64), want, rtol=step, atol=1e-6, err_msg=path
        )
        assert np.abs(want - wide).max() > 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_adapters_change_no_bit(dtype):
    params = random_parameters(config_of(param_dtype=dtype))
    lora = init_lora(jax.random.key(3), params, RANK)
    assert_same_bits(merge_lora(params | {"lora": lora}, SCALE), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(lora))


def test_merging_twice_is_merging_once_and_the_base_stays():
    params = adapted()
    before = jax.tree.map(lambda x: np.array(x, copy=True), params)
    merged = merge_lora(params, SCALE)
    assert merge_lora(merged, SCALE) is merged
    assert_same_bits(params, before)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([1e-3, 1.0, 1e3]), st.booleans())
def test_taking_the_adapters_off_again_is_exact_up_to_a_rounding_of_the_sum(seed, size, half):
    """Within the steps of the kernel's type, at the size of the sum: no bit more is promised."""
    draw = np.random.default_rng(seed)
    dtype = jnp.bfloat16 if half else jnp.float32
    kernel = jnp.asarray(draw.standard_normal((4, 5)), dtype)
    a, b = (jnp.asarray(draw.standard_normal(s), jnp.float32) for s in ((4, RANK), (RANK, 5)))
    params = {
        "decoder": {"x": {"kernel": kernel}},
        "lora": {"decoder": {"x": {"lora_a": size * a, "lora_b": b}}},
    }
    merged = merge_lora(params, SCALE)
    again = unmerge_lora(merged, params["lora"], SCALE)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    lost = np.abs(np.float64(again["decoder"]["x"]["kernel"]) - np.float64(kernel))
    change = np.abs(SCALE * size * np.float64(a) @ np.float64(b))
    bound = 2 * float(jnp.finfo(dtype).eps) * (np.abs(np.float64(kernel)) + change)
    assert np.all(lost <= bound + 1e-6 * change)


def test_a_base_that_was_not_kept_is_lost_under_a_large_change():
    """Why training keeps the base instead of taking the adapters off."""
    small, large = jnp.full((1, 1), 1e-3), jnp.full((1, 1), 1e6)
    params = {
        "decoder": {"kernel": small},
        "lora": {"decoder": {"lora_a": large, "lora_b": jnp.ones((1, 1))}},
    }
    again = unmerge_lora(merge_lora(params, 1.0), params["lora"], 1.0)
    assert again["decoder"]["kernel"] == 0.0 != params["decoder"]["kernel"]


# Targets


@pytest.mark.parametrize(
    "target, layers, projections",
    [
        ("all-linear", "01", PROJECTIONS),
        ("attention", "01", PROJECTIONS[:4]),
        (QUERY_AND_UP, "01", ("attention/query", "mlp/up")),
        ("layers/1/.*(query|value)", "1", ("attention/query", "attention/value")),
        ("^decoder/layers/0/mlp/down/kernel$", "0", ("mlp/down",)),
    ],
)
def test_a_target_is_searched_for_in_the_paths_of_kernels(target, layers, projections):
    params = random_parameters(config_of(value_head="separate"))
    want = [f"decoder/layers/{layer}/{name}/kernel" for layer in layers for name in projections]
    assert lora_targets(params, target) == want
    lora = leaves_by_path(init_lora(jax.random.key(0), params, RANK, target))
    assert list(lora) == [
        f"{path.removesuffix('kernel')}lora_{factor}" for path in want for factor in "ab"
    ]
    for path in want:
        inputs, outputs = of(params, path).shape
        assert lora[path.replace("kernel", "lora_a")].shape == (inputs, RANK)
        assert lora[path.replace("kernel", "lora_b")].shape == (RANK, outputs)


@pytest.mark.parametrize(
    "target", ["embedding", "head", "norm", "^critic", "^value/", "q_proj", "bias"]
)
def test_a_target_that_matches_no_kernel_says_what_there_is(target):
    params = random_parameters(config_of(value_head="separate", attention_bias=True))
    with pytest.raises(ValueError) as caught:
        init_lora(jax.random.key(0), params, RANK, target)
    assert f"target={target!r} matches no kernel of the decoder" in str(caught.value)
    assert "decoder/layers/0/attention/query/kernel" in str(caught.value)


def test_what_is_no_regular_expression_is_said():
    with pytest.raises(ValueError, match=re.escape("target='(query' is not a regular expression")):
        lora_targets(random_parameters(LLAMA), "(query")


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank={rank}"):
        with_lora(make_policy(LLAMA), rank, ALPHA)
    with pytest.raises(ValueError, match=f"rank={rank}"):
        init_lora(jax.random.key(0), random_parameters(LLAMA), rank)


# Initialisation


def test_a_is_uniform_as_in_peft_and_b_is_zero():
    params = random_parameters(LLAMA)
    lora = leaves_by_path(init_lora(jax.random.key(0), params, 64))
    for path, leaf in lora.items():
        if path.endswith("lora_b"):
            assert not leaf.any()
            continue
        bound = leaf.shape[0] ** -0.5
        assert 0.98 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.05)
    firsts = {float(leaf[0, 0]) for path, leaf in lora.items() if path.endswith("lora_a")}
    assert len(firsts) == len(lora) // 2  # no two are the same


def test_the_seed_gives_the_base_of_the_policy_and_each_kernel_its_own_adapter():
    shapes = random_parameters(SMALL)

    def init(key):
        draw = lambda path, x: jax.random.normal(key, x.shape)  # noqa: E731
        return jax.tree_util.tree_map_with_path(draw, shapes)

    policy, key = make_policy(SMALL)._replace(init=init), jax.random.key(7)
    every, few = (
        with_lora(policy, RANK, ALPHA, target).init(key) for target in ("all-linear", QUERY_AND_UP)
    )
    assert_same_bits(without_lora(every), init(key))
    assert_same_bits(without_lora(few), init(key))
    for path, leaf in leaves_by_path(few["lora"]).items():
        np.testing.assert_array_equal(leaf, of(every["lora"], path))
    assert 0 < len(leaves_by_path(few["lora"])) < len(leaves_by_path(every["lora"]))


# The policy


def tokens_of(rows=2, length=6, seed=0):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, SHAPE["vocab_size"], (rows, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens)


def logits_of(policy, params, tokens):
    return policy.unembed(params, policy.apply(params, *tokens)[0])


@pytest.mark.parametrize(
    "dtype, value_head",
    [pytest.param("float32", "shared", marks=pytest.mark.slow), ("bfloat16", "separate")],
)
def test_the_adapted_policy_is_the_policy_on_merged_parameters(dtype, value_head):
    config = config_of(SMALL, dtype=dtype, param_dtype=dtype, value_head=value_head)
    base, params, tokens = make_policy(config), adapted(config), tokens_of()
    policy = with_lora(base, RANK, ALPHA)

    def outputs(policy, params):
        hidden, _ = policy.apply(params, *tokens)
        return hidden, policy.unembed(params, hidden), policy.value(params, *tokens, hidden)

    want = outputs(base, merge_lora(params, SCALE))
    assert_same_bits(outputs(policy, params), want)
    plain = outputs(policy, without_lora(params))  # no adapters, no error
    assert np.abs(np.float32(plain[1]) - np.float32(want[1])).max() > 0.05


def test_prepare_merges_once():
    policy, params = with_lora(make_policy(SMALL), RANK, ALPHA), adapted(SMALL)
    prepared = policy.prepare(params)
    merged = merge_lora(params, SCALE)
    assert jax.tree.structure(prepared) == jax.tree.structure(merged)
    for a, b in zip(jax.tree.leaves(prepared), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_same_bits(policy.prepare(prepared), prepared)


def test_a_policy_of_one_s_own_needs_no_prepare():
    base = make_policy(LLAMA)
    own = Policy(base.init, base.apply, base.unembed, base.value, base.init_cache)
    params = random_parameters(LLAMA)
    assert own.prepare(params) is params and base.prepare(params) is params
    assert with_lora(own, RANK, ALPHA).value is None


def test_gradients_of_the_factors_follow_from_that_of_the_merged_kernel():
    """dA = scale dW Bᵀ and dB = scale Aᵀ dW, where dW is the gradient of the model without adapters."""
    base, params, tokens = make_policy(SMALL), adapted(SMALL), tokens_of()
    policy = with_lora(base, RANK, ALPHA)

    def loss(policy, params):
        return -jnp.mean(jax.nn.log_softmax(logits_of(policy, params, tokens))[..., 5])

    of_merged = jax.jit(jax.grad(lambda p: loss(base, p)))(merge_lora(params, SCALE))
    got = jax.jit(jax.grad(lambda lora: loss(policy, params | {"lora": lora})))(params["lora"])
    for path in lora_targets(params):
        dw = np.float64(of(of_merged, path))
        a, b = (
            np.float64(of(params["lora"], path.replace("kernel", n))) for n in ("lora_a", "lora_b")
        )
        da, db = (of(got, path.replace("kernel", n)) for n in ("lora_a", "lora_b"))
        np.testing.assert_allclose(da, SCALE * dw @ b.T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(db, SCALE * a.T @ dw, rtol=1e-4, atol=1e-6)
        assert np.abs(da).max() > 1e-3 and np.abs(db).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_what_decoding_records_is_what_scoring_computes(dtype):
    """The first ratio is 1 with adapters too, and they change what is decoded."""
    config = config_of(SMALL, param_dtype=dtype)
    policy, params = with_lora(make_policy(config), RANK, ALPHA), adapted(config)
    tokens, positions, _ = tokens_of(rows=3)
    width = tokens.shape[1]

    @jax.jit
    def play(params):
        return generate(
            policy, policy.prepare(params), policy.init_cache(3, width + 5), tokens,
            np.full(3, width, np.int32), np.zeros(3, np.int32),
            jax.random.split(jax.random.key(1), 3), np.ones(3, bool), max_tokens=5, stop_ids=(0,),
        )  # fmt: skip

    out = play(params)
    assert out.mask_BA.sum() > 9
    whole = jnp.concatenate([tokens, out.tokens_BA], axis=1)
    real = jnp.concatenate([jnp.ones_like(tokens, bool), out.mask_BA], axis=1)
    place = jnp.broadcast_to(jnp.arange(whole.shape[1]), whole.shape)
    logits = jax.jit(functools.partial(logits_of, policy))(params, (whole, place, real.astype(int)))
    logprob = jax.nn.log_softmax(logits)[:, width - 1 : -1]
    chosen = jnp.take_along_axis(logprob, out.tokens_BA[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.where(out.mask_BA, chosen, 0), out.logprob_BA, atol=2e-5)
    plain = play(without_lora(params))
    assert np.abs(plain.logprob_BA - out.logprob_BA).max() > 1e-2


# Once


def matmuls_over(rank, jaxpr, inside=False):
    """How many products contract an axis of that size: (outside of loops, inside of loops)."""
    found = np.zeros(2, int)
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in axes]
            found[int(inside)] += rank in sizes
        loop = inside or equation.primitive.name in ("while", "scan")
        for inner in jaxprs_in_params(equation.params):
            found += matmuls_over(rank, inner, loop)
    return found


@pytest.mark.slow
def test_a_rollout_and_a_scoring_merge_once_and_outside_of_their_loops():
    rank = 7  # no other axis of the model
    config = config_of(vocab_size=16)
    policy = with_lora(make_policy(config), rank, ALPHA)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    kernels = len(lora_targets(params))

    def play(params, prepare):
        return generate(
            policy, prepare(params), policy.init_cache(2, 16), jnp.ones((2, 4), jnp.int32),
            jnp.full(2, 4), jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(1), 2),
            jnp.ones(2, bool), max_tokens=5, stop_ids=(0,),
        ).tokens_BA  # fmt: skip

    count = lambda f, *args: tuple(matmuls_over(rank, jax.make_jaxpr(f)(*args).jaxpr))  # noqa: E731
    assert count(lambda p: play(p, policy.prepare), params) == (kernels, 0)
    assert count(lambda p: play(p, lambda p: p), params)[1] >= kernels  # what prepare is for
    batch = random_batch(0)
    scoring = lambda p: score(policy, p, batch, chunk_tokens=8).logprob_NT  # noqa: E731
    assert count(scoring, params) == (kernels, 0)
