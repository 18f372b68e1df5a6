"""Losses: ratios at three levels, the clipped surrogate, values, aggregation as weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl import ops

NAN = float("nan")

# Three rows: two steps with a tool token between; nothing sampled; one step in the middle.
IDS = np.array([[0, 0, -1, 1, -1], [-1, -1, -1, -1, -1], [-1, 0, 0, 0, -1]])
ACTIVE = IDS >= 0


def random_batch(seed=0, spread=0.5):
    """logprob, old logprob, advantage [3, 5], NaN wherever no token was sampled."""
    draw = np.random.default_rng(seed).normal(0, spread, (3, *IDS.shape)).astype(np.float32)
    return tuple(np.where(ACTIVE, x, NAN) for x in (draw[0] - 2, draw[1] - 2, draw[2] * 3))


# --- Aggregation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "row"),
    [
        ("token-mean", [1 / 3, 1 / 3, 0, 1 / 3]),
        ("seq-mean-token-sum", [1, 1, 0, 1]),
        ("seq-mean-token-mean", [1 / 3, 1 / 3, 0, 1 / 3]),
        ("seq-mean-token-sum-norm", [1 / 4, 1 / 4, 0, 1 / 4]),
        ("step-mean-token-sum", [1 / 2, 1 / 2, 0, 1 / 2]),
        ("step-mean-token-mean", [1 / 4, 1 / 4, 0, 1 / 2]),
    ],
)
def test_weights_of_one_row(reduction, row):
    weights = ops.aggregation_weights(jnp.array([0, 0, -1, 1]), reduction)
    np.testing.assert_allclose(weights, row, rtol=1e-6)


def aggregate_by_loop(x, ids, reduction):
    rows = [(x[i], ids[i]) for i in range(len(x)) if (ids[i] >= 0).any()]
    steps = [v[i == s] for v, i in rows for s in np.unique(i[i >= 0])]
    rows = [v[i >= 0] for v, i in rows]
    return {
        "token-mean": lambda: np.concatenate(rows).mean(),
        "seq-mean-token-sum": lambda: np.mean([v.sum() for v in rows]),
        "seq-mean-token-mean": lambda: np.mean([v.mean() for v in rows]),
        "seq-mean-token-sum-norm": lambda: np.concatenate(rows).sum() / x.shape[1],
        "step-mean-token-sum": lambda: np.mean([v.sum() for v in steps]),
        "step-mean-token-mean": lambda: np.mean([v.mean() for v in steps]),
    }[reduction]()


@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_aggregate_equals_a_loop(reduction):
    x = random_batch()[0]
    ours = ops.aggregate(x, jnp.array(IDS), reduction)
    np.testing.assert_allclose(ours, aggregate_by_loop(x, IDS, reduction), rtol=1e-5)
    weights = ops.aggregation_weights(jnp.array(IDS), reduction)
    np.testing.assert_allclose(np.nansum(weights * x), ours, rtol=1e-5)


@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_the_parts_of_a_mini_batch_add_up(reduction):
    x, ids = random_batch()[0], jnp.array(IDS)
    weights = ops.aggregation_weights(ids, reduction)
    parts = [
        ops.aggregate(x[i : i + 1], ids[i : i + 1], weights_t=weights[i : i + 1]) for i in range(3)
    ]
    np.testing.assert_allclose(sum(parts), ops.aggregate(x, ids, reduction), rtol=1e-5)


@pytest.mark.parametrize("mean_of", ["token-sum", "token-mean"])
def test_step_means_are_the_sequence_means_of_one_row_a_step(mean_of):
    x = random_batch()[0]
    split = [(i, s) for i in range(3) for s in np.unique(IDS[i][IDS[i] >= 0])]
    rows = np.array([x[i] for i, _ in split])
    ids = np.array([np.where(IDS[i] == s, 0, -1) for i, s in split])
    np.testing.assert_allclose(
        ops.aggregate(x, jnp.array(IDS), f"step-mean-{mean_of}"),
        ops.aggregate(rows, jnp.array(ids), f"seq-mean-{mean_of}"),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("reduction", "options", "weight"),
    [
        ("token-mean", {"batch_num_tokens": 10}, 1 / 10),
        ("token-mean", {"batch_num_tokens": 10, "dp_size": 2}, 2 / 10),
        ("seq-mean-token-sum", {"global_batch_size": 8, "dp_size": 2}, 2 / 8),
        ("seq-mean-token-mean", {"global_batch_size": 8}, 1 / 8 / 2),
        ("seq-mean-token-sum-norm", {"loss_scale_factor": 16, "dp_size": 2}, 1 / 16),
        ("step-mean-token-sum", {"global_num_steps": 5}, 1 / 5),
    ],
)
def test_global_numbers_replace_the_counted_ones(reduction, options, weight):
    weights = ops.aggregation_weights(jnp.array([0, 0, -1]), reduction, **options)
    np.testing.assert_allclose(weights, [weight, weight, 0], rtol=1e-6)


@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_nothing_to_aggregate_is_zero(reduction):
    x, ids = jnp.full((2, 3), NAN), jnp.full((2, 3), -1)
    loss, grad = jax.value_and_grad(lambda x: ops.aggregate(x, ids, reduction))(x)
    assert loss == 0
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))


# --- Log ratios -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [1, 20, 0, -20]),
        ("step", [10, 10, 0, -40]),  # capped above only
        ("sequence", [2, 2, 0, 2]),
    ],
)
def test_log_ratio_table(level, expected):
    difference = jnp.array([1.0, 45.0, NAN, -40.0])
    ratio = ops.log_ratio(difference, jnp.zeros(4), jnp.array([0, 0, -1, 1]), level)
    np.testing.assert_allclose(ratio, expected, rtol=1e-6)


def pooled_by_loop(difference, level):
    pooled = np.zeros_like(difference)
    for i, ids in enumerate(IDS):
        for t in np.flatnonzero(ids >= 0):
            same = ids == ids[t] if level == "step" else ids >= 0
            pooled[i, t] = difference[i, t] if level == "token" else difference[i, same].mean()
    return pooled


@pytest.mark.parametrize("level", ops.LEVELS)
def test_log_ratio_equals_a_loop_and_passes_each_token_its_own_gradient(level):
    logprob, old, _ = random_batch()
    ratio = ops.log_ratio(logprob, old, jnp.array(IDS), level)
    np.testing.assert_allclose(ratio, pooled_by_loop(logprob - old, level), rtol=1e-5, atol=1e-6)
    grads = jax.grad(
        lambda x, y: jnp.sum(ops.log_ratio(x, y, jnp.array(IDS), level)), argnums=(0, 1)
    )(logprob, old)
    np.testing.assert_array_equal(grads[0], ACTIVE)  # straight-through: 1 at each active token
    np.testing.assert_array_equal(grads[1], np.zeros(IDS.shape))


def test_with_one_step_a_row_step_and_sequence_are_the_same():
    logprob, old, _ = random_batch()
    ids = jnp.array(np.where(ACTIVE, 3, -1))
    step, sequence = (ops.log_ratio(logprob, old, ids, level) for level in ("step", "sequence"))
    np.testing.assert_allclose(step, sequence, rtol=1e-6)


def test_with_one_token_a_step_step_and_token_are_the_same():
    logprob, old, _ = random_batch()
    ids = jnp.array(np.where(ACTIVE, np.arange(5), -1))
    step, token = (ops.log_ratio(logprob, old, ids, level) for level in ("step", "token"))
    np.testing.assert_allclose(step, token, rtol=1e-6)


def test_steps_may_be_numbered_flat_over_the_batch():
    logprob, old, _ = random_batch()
    flat = np.where(ACTIVE, IDS + np.array([[40], [0], [7]]), -1)
    np.testing.assert_array_equal(
        ops.log_ratio(logprob, old, jnp.array(flat)), ops.log_ratio(logprob, old, jnp.array(IDS))
    )


# --- Policy loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip", "loss", "clipped", "clipped_lower"),
    [
        (1.0, 2.0, None, -2.0, 0, 0),
        (2.0, 1.0, None, -1.2, 1, 0),  # already reinforced enough
        (2.0, -1.0, None, 2.0, 0, 0),  # wrong direction: no clip
        (0.5, -1.0, None, 0.8, 1, 0),
        (8.0, -1.0, 3.0, 3.0, 0, 1),  # the dual clip bounds it
        (8.0, 1.0, 3.0, -1.2, 1, 0),  # and leaves positive advantages alone
    ],
)
def test_policy_loss_of_one_token(ratio, advantage, dual_clip, loss, clipped, clipped_lower):
    ours, metrics = ops.policy_loss(
        jnp.log(jnp.array([ratio])),
        jnp.zeros(1),
        jnp.array([advantage]),
        jnp.array([0]),
        dual_clip=dual_clip,
    )
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    assert metrics["pg_clipfrac"] == clipped
    assert metrics["pg_clipfrac_lower"] == clipped_lower
    np.testing.assert_allclose(metrics["ppo_kl"], -np.log(ratio), rtol=1e-6)


@pytest.mark.parametrize("level", ops.LEVELS)
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_policy_loss_equals_a_loop(level, dual_clip):
    logprob, old, advantage = random_batch(spread=1.0)
    ratio = np.exp(pooled_by_loop(logprob - old, level))
    losses = np.zeros(IDS.shape)
    for i, t in zip(*np.nonzero(ACTIVE), strict=True):
        a, r = advantage[i, t], ratio[i, t]
        losses[i, t] = max(-a * r, -a * min(max(r, 0.7), 1.4))
        if dual_clip and a < 0:
            losses[i, t] = min(losses[i, t], -a * dual_clip)
    ours, _ = ops.policy_loss(
        logprob, old, advantage, jnp.array(IDS), level=level, clip_low=0.3, clip_high=0.4,
        dual_clip=dual_clip, reduction="step-mean-token-mean",
    )  # fmt: skip
    np.testing.assert_allclose(
        ours, aggregate_by_loop(losses, IDS, "step-mean-token-mean"), rtol=1e-5
    )


@pytest.mark.parametrize("level", ops.LEVELS)
def test_on_policy_the_gradient_is_that_of_reinforce(level):
    logprob, _, advantage = random_batch()
    ids = jnp.array(IDS)

    def loss(x, old, a):
        return ops.policy_loss(x, old, a, ids, level=level, reduction="token-mean")[0]

    grads = jax.grad(loss, argnums=(0, 1, 2))(logprob, logprob, advantage)
    expected = np.where(ACTIVE, -advantage / ACTIVE.sum(), 0)
    np.testing.assert_allclose(grads[0], expected, rtol=1e-5)
    for stopped in grads[1:]:  # old log-probabilities and advantages are data
        np.testing.assert_array_equal(stopped, np.zeros(IDS.shape))


def test_steppo_with_one_step_a_row_is_gspo():
    ids = jnp.array(np.where(ACTIVE, 0, -1))
    batch = random_batch(spread=1.0)
    for reduction in ("token-mean", "seq-mean-token-mean"):
        gspo = ops.policy_loss(*batch, ids, level="sequence", reduction=reduction)
        steppo = ops.policy_loss(*batch, ids, level="step", reduction=reduction)
        np.testing.assert_allclose(gspo[0], steppo[0], rtol=1e-6)


@pytest.mark.parametrize("level", ops.LEVELS)
def test_by_default_every_unit_with_a_ratio_weighs_the_same(level):
    batch, ids = random_batch(spread=1.0), np.array(IDS)
    ids[2, 3] = -1  # rows, steps and tokens all weigh otherwise
    own = {"token": "token-mean", "step": "step-mean-token-mean", "sequence": "seq-mean-token-mean"}
    losses = {
        r: float(ops.policy_loss(*batch, ids, level=level, reduction=r)[0]) for r in own.values()
    }
    assert len(set(losses.values())) == 3
    assert ops.policy_loss(*batch, ids, level=level)[0] == losses[own[level]]


def test_packed_rows_and_one_row_a_step_give_the_same_loss():
    batch = random_batch(spread=1.0)
    split = [(i, s) for i in range(3) for s in np.unique(IDS[i][IDS[i] >= 0])]
    rows = tuple(np.array([x[i] for i, _ in split]) for x in batch)
    ids = np.array([np.where(IDS[i] == s, 0, -1) for i, s in split])
    packed = ops.policy_loss(*batch, jnp.array(IDS), reduction="step-mean-token-mean")[0]
    apart = ops.policy_loss(*rows, jnp.array(ids), reduction="seq-mean-token-mean")[0]
    np.testing.assert_allclose(packed, apart, rtol=1e-6)


def test_micro_batches_add_up_with_the_weights_of_the_mini_batch():
    batch, ids = random_batch(), jnp.array(IDS)
    weights = ops.aggregation_weights(ids, "seq-mean-token-mean")
    whole = ops.policy_loss(*batch, ids, reduction="seq-mean-token-mean")[0]
    parts = [
        ops.policy_loss(*(x[i] for x in batch), ids[i], weights_t=weights[i])[0] for i in range(3)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_rollout_weights_multiply_the_loss():
    logprob, old, advantage = random_batch()
    double = np.where(ACTIVE, 2.0, NAN)
    arguments = (logprob, old, advantage, jnp.array(IDS))
    np.testing.assert_allclose(
        ops.policy_loss(*arguments, rollout_weights_t=double)[0],
        2 * ops.policy_loss(*arguments)[0],
        rtol=1e-6,
    )


# --- Value loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "loss", "fraction"),
    [(None, 0.5, 0), (0.5, 0.5 * 1.5**2, 1), (3.0, 0.5, 0)],
)
def test_value_loss_of_one_token(clip, loss, fraction):
    value, target, old = jnp.array([2.0, NAN]), jnp.array([3.0, NAN]), jnp.array([1.0, NAN])
    ours, metrics = ops.value_loss(value, target, old, jnp.array([0, -1]), clip=clip)
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    assert metrics["vf_clipfrac"] == fraction


def test_value_loss_equals_a_loop_and_moves_the_new_values_only():
    value, target, old = random_batch(spread=1.0)
    losses = np.zeros(IDS.shape)
    for i, t in zip(*np.nonzero(ACTIVE), strict=True):
        v, r, o = value[i, t], target[i, t], old[i, t]
        losses[i, t] = 0.5 * max((v - r) ** 2, (min(max(v, o - 0.3), o + 0.3) - r) ** 2)

    def loss(*values):
        return ops.value_loss(*values, jnp.array(IDS), clip=0.3)[0]

    ours, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(value, target, old)
    np.testing.assert_allclose(ours, losses[ACTIVE].mean(), rtol=1e-5)
    assert np.abs(grads[0]).sum() > 0
    np.testing.assert_array_equal(grads[1:], np.zeros((2, *IDS.shape)))


def test_step_level_critic_counts_the_first_token_of_each_step():
    value, target, old = random_batch()
    starts = jax.vmap(ops.step_starts)(jnp.array(IDS))
    ours, _ = ops.value_loss(value, target, old, jnp.where(starts, IDS, -1))
    error = (value - target)[np.asarray(starts)]
    np.testing.assert_allclose(ours, 0.5 * np.mean(error**2), rtol=1e-5)


# --- Refusals -------------------------------------------------------------------------------------

ROW, ROW_IDS = jnp.zeros(3), jnp.zeros(3, int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.log_ratio(ROW, ROW, ROW_IDS, "turn"), r"level='turn'.*token, step, sequence"),
        (lambda: ops.aggregate(ROW, ROW_IDS, "mean"), r"reduction='mean'.*token-mean, seq-mean"),
        (lambda: ops.kl_penalty(ROW, ROW, "full"), r"kind='full'.*k1, abs"),
        (lambda: ops.policy_loss(ROW, ROW, ROW, ROW_IDS, dual_clip=1.0), r"dual_clip=1.0"),
        (lambda: ops.policy_loss(ROW, ROW, jnp.zeros(2), ROW_IDS), r"shapes differ.*advantage_t"),
        (lambda: ops.log_ratio(ROW, ROW, ROW_IDS[None]), r"shapes differ.*step_ids"),
        (
            lambda: ops.adaptive_kl_coefficient(1.0, 1.0, 1, target=0.0, horizon=1),
            r"target=0.0",
        ),
    ],
)
def test_refusals_name_the_argument_the_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
