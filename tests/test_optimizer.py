"""Optimisers: who moves at which rate, when, and how far at most."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.config import ActorConfig, CriticConfig, MeshConfig, SftConfig
from steprl.models import decoder_config, make_policy
from steprl.optimizer import learning_rate, make_optimizer, make_sft_optimizer, owner_of
from steprl.sharding import make_mesh, state_shardings

NO = CriticConfig()


def params_of(value=0.0):
    leaf = jnp.full((2,), value)
    return {
        "decoder": {"layers": {"0": {"value": {"kernel": leaf}}}, "head": leaf},
        "value": {"out": {"kernel": leaf}},
        "critic": {"embedding": leaf},
    }


def moves(optimizer, gradient, params=None, updates=1):
    """The updates of that many steps with the same gradient."""
    params = params_of() if params is None else params
    state, found = optimizer.init(params), []
    for _ in range(updates):
        step, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, step)
        found.append(jax.tree.map(lambda x: float(x[0]), step))
    return found


def test_value_and_critic_move_at_the_rate_of_the_critic_and_the_trunk_at_that_of_the_actor():
    optimizer = make_optimizer(ActorConfig(lr=1e-3), CriticConfig(lr=5e-2), 10)
    (step,) = moves(optimizer, params_of(0.1))
    # The first step of Adam is the rate, whatever the gradient.
    assert step["value"]["out"]["kernel"] == pytest.approx(-5e-2, rel=1e-4)
    assert step["critic"]["embedding"] == pytest.approx(-5e-2, rel=1e-4)
    assert step["decoder"]["head"] == pytest.approx(-1e-3, rel=1e-4)
    # The attention's projection is called value too, and is no critic.
    assert step["decoder"]["layers"]["0"]["value"]["kernel"] == pytest.approx(-1e-3, rel=1e-4)


@pytest.mark.parametrize("critic", [NO, CriticConfig(lr=3e-3)], ids=["unset", "the same"])
def test_without_a_rate_of_its_own_the_critic_has_the_actors(critic):
    (step,) = moves(make_optimizer(ActorConfig(lr=3e-3), critic, 10), params_of(0.1))
    assert all(leaf == pytest.approx(-3e-3, rel=1e-4) for leaf in jax.tree.leaves(step))


@pytest.mark.parametrize("frozen", ["actor", "critic"])
def test_a_rate_of_zero_freezes_its_part_only(frozen):
    rates = {"actor": 1e-3, "critic": 1e-3} | {frozen: 0.0}
    optimizer = make_optimizer(ActorConfig(lr=rates["actor"]), CriticConfig(lr=rates["critic"]), 9)
    (step,) = moves(optimizer, params_of(0.1))
    still = {"actor": ("decoder",), "critic": ("value", "critic")}[frozen]
    for name, part in step.items():
        assert all((leaf == 0) == (name in still) for leaf in jax.tree.leaves(part))


@pytest.mark.parametrize(
    "schedule, at_half, at_end",
    [("constant", 1.0, 1.0), ("linear", 0.6, 0.2), ("cosine", 0.6, 0.2)],
)
@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules_start_at_the_peak_and_end_at_the_floor(schedule, at_half, at_end, warmup):
    actor = ActorConfig(lr_schedule=schedule, lr_warmup_steps=warmup, min_lr_ratio=0.2)
    rate = learning_rate(actor, 1e-2, 100 + warmup)
    assert float(rate(warmup)) == pytest.approx(1e-2)
    assert float(rate(warmup + 50)) == pytest.approx(1e-2 * at_half)
    assert float(rate(warmup + 100)) == pytest.approx(1e-2 * at_end)
    assert float(rate(warmup + 500)) == pytest.approx(1e-2 * at_end)
    if warmup:
        ramp = [float(rate(step)) for step in (0, 1, 5)]
        np.testing.assert_allclose(ramp, [0.0, 1e-3, 5e-3], rtol=1e-5)


def test_a_warm_up_as_long_as_the_run_is_no_error():
    rate = learning_rate(ActorConfig(lr_schedule="linear", lr_warmup_steps=10), 1.0, 10)
    assert float(rate(9)) == pytest.approx(0.9)


def test_the_schedule_counts_the_updates_of_both_parts():
    actor = ActorConfig(lr=1e-2, lr_schedule="linear", min_lr_ratio=0.0)
    first, second, third = moves(
        make_optimizer(actor, CriticConfig(lr=1e-1), 2), params_of(0.1), updates=3
    )
    for step, left in ((first, 1.0), (second, 0.5), (third, 0.0)):
        assert step["decoder"]["head"] == pytest.approx(-1e-2 * left, rel=1e-4)
        assert step["value"]["out"]["kernel"] == pytest.approx(-1e-1 * left, rel=1e-4)


def first_moments(actor, gradient):
    """What Adam sees: its first moment after one step, divided by 1 - b1."""
    optimizer, params = make_optimizer(actor, NO, 10), params_of()
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    with_path = jax.tree_util.tree_leaves_with_path(state)
    mu = [x for path, x in with_path if ".mu" in jax.tree_util.keystr(path)]
    assert len(mu) == len(jax.tree.leaves(params))
    return np.concatenate(mu) / (1 - actor.adam_b1)


def test_the_norm_over_all_parts_together_is_clipped():
    seen = first_moments(ActorConfig(grad_clip=0.5), params_of(100.0))
    assert np.linalg.norm(seen) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(seen, seen[0], rtol=1e-5)


@pytest.mark.parametrize("clip, gradient", [(0.0, 100.0), (5.0, 0.1)], ids=["off", "within"])
def test_a_clip_of_zero_is_none_and_a_short_gradient_stays(clip, gradient):
    seen = first_moments(ActorConfig(grad_clip=clip), params_of(gradient))
    np.testing.assert_allclose(seen, gradient, rtol=1e-5)


def moments_apart(actor, critic, gradient):
    """`first_moments` of the policy and of the critic."""
    optimizer, params = make_optimizer(actor, critic, 10), params_of()
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    mu = [(path, x) for path, x in leaves if ".mu" in jax.tree_util.keystr(path)]
    return [
        jnp.concatenate([x for path, x in mu if owner_of(path) == owner]) / (1 - actor.adam_b1)
        for owner in ("actor", "critic")
    ]


BOUND = st.sampled_from([0.0, 0.01, 0.5, 3.0, 1e4])


@given(limits=st.tuples(BOUND, BOUND), sizes=st.tuples(*[st.floats(0.01, 100)] * 2))
@settings(max_examples=15, deadline=None)
def test_policy_and_critic_are_clipped_apart_each_by_its_own_norm(limits, sizes):
    gradient = {name: jax.tree.map(lambda x, n=name: x + sizes[n != "decoder"], part)
                for name, part in params_of().items()}  # fmt: skip
    found = moments_apart(
        ActorConfig(grad_clip=limits[0]), CriticConfig(grad_clip=limits[1]), gradient
    )
    for seen, limit, size in zip(found, limits, sizes, strict=True):
        norm = size * 2  # of four numbers
        want = min(norm, limit) if limit else norm
        np.testing.assert_allclose(seen, want / 2, rtol=1e-4)


def test_a_clip_that_is_traced_is_off_at_zero_as_well():
    def seen(limit):
        return moments_apart(
            ActorConfig(grad_clip=limit), CriticConfig(grad_clip=limit), params_of(9.0)
        )

    for traced, plain in zip(jax.jit(seen)(0.0), seen(0.0), strict=True):
        np.testing.assert_allclose(traced, plain)
    np.testing.assert_allclose(jax.jit(seen)(1.0)[0], 0.5, rtol=1e-5)


def test_a_run_may_change_how_it_clips():
    states = [make_optimizer(ActorConfig(grad_clip=a), CriticConfig(grad_clip=c), 9).init(params_of())
              for a in (0.0, 1.0) for c in (None, 0.0, 1.0)]  # fmt: skip
    assert len({str(jax.tree.structure(state)) for state in states}) == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("traced", [False, True])
def test_a_warm_up_of_the_critic_leaves_the_policy_its_whole_schedule(schedule, traced):
    """In the 10 steps of 15 that it takes, the rate goes through what it goes through in 10."""
    actor = ActorConfig(lr_schedule=schedule, min_lr_ratio=0.1, lr_warmup_steps=2)
    skipped = jnp.float32(5) if traced else 5
    rates = [float(learning_rate(actor, 1.0, 15, skipped=skipped)(count)) for count in range(11)]
    want = [float(learning_rate(actor, 1.0, 10)(count)) for count in range(11)]
    np.testing.assert_allclose(rates, want, rtol=1e-5)


def test_weight_decay_pulls_towards_zero_at_the_rate_of_each_part():
    actor = ActorConfig(lr=1e-2, weight_decay=0.1)
    (step,) = moves(make_optimizer(actor, CriticConfig(lr=1e-1), 9), params_of(0.0), params_of(2.0))
    assert step["decoder"]["head"] == pytest.approx(-1e-2 * 0.1 * 2)
    assert step["critic"]["embedding"] == pytest.approx(-1e-1 * 0.1 * 2)


@pytest.mark.parametrize("steps, warmup", [(12, 2), (2, 5)], ids=["usual", "warm-up is longer"])
def test_the_warm_start_rises_to_its_rate_and_falls_to_its_floor(steps, warmup):
    sft = SftConfig(steps=steps, warmup_steps=warmup, lr=1e-2, min_lr_ratio=0.1, grad_clip=0.0)
    found = moves(make_sft_optimizer(sft), params_of(0.1), updates=max(steps, warmup + 1) + 1)
    rates = [-step["decoder"]["head"] for step in found]
    assert rates[0] == 0.0 and rates[warmup] == pytest.approx(1e-2, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-3, rel=1e-3)
    assert max(rates) == rates[warmup]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "spent, count, place", [(0.0, 3, 3), (0.5, 3, 5), (0.2, 6, 6), (1.2, 0, 10)]
)
def test_the_rate_falls_with_updates_or_budget_whichever_is_further(schedule, spent, count, place):
    actor = ActorConfig(lr_schedule=schedule, min_lr_ratio=0.1)
    got = learning_rate(actor, 1.0, 10, jnp.float32(spent))(count)
    assert float(got) == pytest.approx(float(learning_rate(actor, 1.0, 10)(place)), rel=1e-6)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("total", [30, 20], ids=["a budget for all steps", "a smaller budget"])
def test_what_a_warm_up_of_the_critic_spends_of_a_budget_does_not_lower_the_rate(total, traced):
    """10 of 30 steps train the critic alone, and each spends the same of a budget for `total` steps."""
    actor = ActorConfig(lr_schedule="linear")
    skipped = jnp.float32(10) if traced else 10

    def rate(step):
        spent = jnp.float32(step / total)
        return float(learning_rate(actor, 1.0, 30, spent, skipped)(step - 10))

    rates = [rate(step) for step in range(10, total + 1)]
    assert rates[0] == 1 and rates[-1] == pytest.approx(0, abs=1e-6)
    assert np.all(np.diff(rates) < 0)
    assert rates[len(rates) // 2] == pytest.approx(0.5)


def test_a_budget_does_not_shorten_the_warm_up():
    actor = ActorConfig(lr_schedule="linear", lr_warmup_steps=4)
    assert float(learning_rate(actor, 1.0, 10, jnp.float32(0.5))(2)) == pytest.approx(0.5)


# Parameters of fewer bits than their updates need.


def walk(optimizer, params, steps):
    """The parameters after that many steps of one compiled loop with a random gradient each."""

    def step(carry, key):
        params, state = carry
        gradient = jax.tree.map(
            lambda p: jax.random.normal(key, p.shape).astype(p.dtype) + p.dtype.type(0.5), params
        )
        change, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys)[0])(params)


def weights(dtype):
    """Of the sizes of a decoder: normal with deviation 0.02, and norms of 1."""
    normal = 0.02 * jax.random.normal(jax.random.key(0), (64, 16))
    params = {"decoder": {"kernel": normal, "norm": jnp.ones(16)}, "value": {"out": normal[:1]}}
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(dtype), params)


@pytest.mark.parametrize(
    "optimizer",
    [
        make_optimizer(ActorConfig(lr=5e-6, weight_decay=0.1), CriticConfig(lr=2e-5), 400),
        make_sft_optimizer(SftConfig(lr=5e-6, steps=400, weight_decay=0.1)),
    ],
    ids=["rl", "sft"],
)
def test_a_small_rate_moves_every_bfloat16_weight_as_it_moves_a_float32_one(optimizer):
    half, state = walk(optimizer, weights(jnp.bfloat16), 400)
    single, _ = walk(optimizer, weights(jnp.float32), 400)
    before = weights(jnp.float32)
    for master, want, first, p in zip(
        *map(jax.tree.leaves, (state.params, single, before, half)), strict=True
    ):
        assert master.dtype == jnp.float32 and p.dtype == jnp.bfloat16
        assert np.all(np.asarray(master) != np.asarray(first))
        # Gradients are rounded to 8 bits, so the way is nearly the same.
        np.testing.assert_allclose(master - first, want - first, rtol=0.05, atol=2e-5)
        np.testing.assert_array_equal(p, master.astype(jnp.bfloat16))
    # Far enough to be seen in bfloat16: nearly all of the small weights, which stood still before.
    moved = np.asarray(half["decoder"]["kernel"]) != np.asarray(before["decoder"]["kernel"])
    assert moved.mean() > 0.95


def test_the_norms_move_too_once_the_sum_of_their_updates_is_seen():
    """A norm of 1 has a distance of 1/256 to the next bfloat16 number below."""
    optimizer = make_optimizer(ActorConfig(lr=2e-5), NO, 400)
    half, state = walk(optimizer, weights(jnp.bfloat16), 400)
    norm = np.asarray(half["decoder"]["norm"], np.float32)
    np.testing.assert_array_equal(norm, state.params["decoder"]["norm"].astype(jnp.bfloat16))
    assert np.all(norm < 1)


def test_over_float32_the_optimiser_is_what_it_was():
    optimizer = make_optimizer(ActorConfig(), NO, 10)
    assert not any("master" in str(type(x)).lower() for x in optimizer.init(params_of(0.5)))
    mixed = {"decoder": {"kernel": jnp.ones(3, jnp.bfloat16), "head": jnp.ones(3)}, "value": {}}
    state = optimizer.init(mixed)
    assert [x.shape for x in jax.tree.leaves(state.params)] == [(3,)]  # one copy
    change, _ = optimizer.update(jax.tree.map(jnp.ones_like, mixed), state, mixed)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(change))


def test_the_copies_lie_where_their_parameters_lie(devices):
    policy = make_policy(decoder_config("tiny", vocab_size=64, param_dtype="bfloat16"))
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    state = jax.eval_shape(make_optimizer(ActorConfig(), NO, 10).init, shapes)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    spec = lambda tree: jax.tree.map(lambda x: x.spec, state_shardings(tree, mesh))  # noqa: E731
    assert spec(state).params == spec(shapes)
