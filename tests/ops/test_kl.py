"""Divergence from a reference policy, its coefficient, and entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.config import KL_PENALTIES, ConfigError, load_config
from steprl.config.settings import KL_WITHOUT_GRADIENT

FEW = settings(max_examples=15, deadline=None)


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    [
        ("kl", -0.5, 1),
        ("k1", -0.5, 1),
        ("abs", 0.5, -1),
        ("mse", 0.125, -0.5),
        ("k2", 0.125, -0.5),
        ("low_var_kl", np.exp(0.5) - 1.5, 1 - np.exp(0.5)),
        ("k3", np.exp(0.5) - 1.5, 1 - np.exp(0.5)),
        ("kl+", -0.5, -0.5),  # "+": the gradient of k2
        ("abs+", 0.5, -0.5),
        ("k3+", np.exp(0.5) - 1.5, -0.5),
    ],
)
def test_kl_table(kind, value, gradient):
    ours, grad = jax.value_and_grad(lambda x: ops.kl_penalty(x, jnp.float32(-1.0), kind))(-1.5)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    np.testing.assert_allclose(grad, gradient, rtol=1e-5)


@pytest.mark.parametrize("kind", ops.KL_KINDS)
def test_kl_of_equal_policies_is_flat_zero(kind):
    value, grad = jax.value_and_grad(lambda x: ops.kl_penalty(x, jnp.float32(-1.0), kind))(-1.0)
    assert value == 0
    assert grad == (1 if kind in ("kl", "k1") else 0)


def test_k1_and_k3_are_unbiased_and_so_is_the_gradient_of_k2():
    logits, ref = (jnp.array(x) for x in np.random.default_rng(0).normal(size=(2, 5)))
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
    exact = jnp.sum(jnp.exp(p) * (p - q))
    for kind in ("k1", "k3"):
        mean = jnp.sum(jnp.exp(p) * ops.kl_penalty(p, q, kind))
        np.testing.assert_allclose(mean, exact, rtol=1e-5)

    def sampled(x):  # the sampling weights are data
        return jnp.sum(jnp.exp(p) * ops.kl_penalty(jax.nn.log_softmax(x), q, "k3+"))

    def true(x):
        return jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - q))

    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(true)(logits), atol=1e-6)


@FEW
@given(st.floats(-60, 60, width=32), st.floats(-60, 60, width=32))
def test_k3_is_bounded_and_never_negative(a, b):
    assert 0 <= ops.kl_penalty(jnp.float32(a), jnp.float32(b), "k3") <= 10


def test_adaptive_coefficient_rises_above_the_target_and_falls_below():
    def after(kl):
        return float(ops.adaptive_kl_coefficient(0.5, kl, 10, target=0.1, horizon=100))

    np.testing.assert_allclose(
        [after(0.1), after(9.0), after(0.0), after(0.11)], [0.5, 0.51, 0.49, 0.505], rtol=1e-6
    )


def test_entropy_table():
    logits = jnp.array([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, -jnp.inf, -jnp.inf], [0.0, 99.0, 0, 0]])
    entropy = ops.entropy_from_logits(logits)
    np.testing.assert_allclose(entropy, [np.log(4), np.log(2), 0], atol=1e-6)
    assert np.isfinite(jax.grad(lambda z: ops.entropy_from_logits(z).sum())(logits)).all()


def test_entropy_is_the_mean_surprise():
    logits = jnp.array(np.random.default_rng(0).normal(0, 3, (4, 7)))
    logp = jax.nn.log_softmax(logits)
    expected = -(np.exp(logp) * logp).sum(-1)
    np.testing.assert_allclose(ops.entropy_from_logits(logits), expected, rtol=1e-5)


# As a loss: the gradient in expectation, on a distribution that can be enumerated.


def log_policy(x):
    return jax.nn.log_softmax(x)


DIVERGENCES = {
    "KL(policy, reference)": lambda p, q: jnp.sum(jnp.exp(p) * (p - q)),
    "KL(reference, policy)": lambda p, q: jnp.sum(jnp.exp(q) * (q - p)),
    "twice the total variation": lambda p, q: jnp.sum(jnp.abs(jnp.exp(p) - jnp.exp(q))),
    "nothing": lambda p, q: jnp.zeros(()),
}
PULLS_TOWARDS = {
    "kl": "nothing",
    "k1": "nothing",
    "abs": "twice the total variation",
    "mse": "KL(policy, reference)",
    "k2": "KL(policy, reference)",
    "low_var_kl": "KL(reference, policy)",
    "k3": "KL(reference, policy)",
} | {f"{kind}+": "KL(policy, reference)" for kind in ops.KL_KINDS}


@pytest.mark.parametrize("kind", KL_PENALTIES)
def test_the_expected_gradient_of_a_kl_loss_is_that_of_a_divergence(kind):
    # Near enough that no estimate is clipped.
    logits, ref = jnp.array(np.random.default_rng(3).normal(0, 0.5, (2, 6)))
    probability, q = jnp.exp(log_policy(logits)), log_policy(ref)

    def loss(x):  # tokens come with the policy's probability, which is data
        return jnp.sum(probability * ops.kl_penalty(log_policy(x), q, kind))

    divergence = DIVERGENCES[PULLS_TOWARDS[kind]]
    want = jax.grad(lambda x: divergence(log_policy(x), q))(logits)
    np.testing.assert_allclose(jax.grad(loss)(logits), want, atol=1e-6)
    assert (np.abs(want).max() < 1e-6) == (kind in KL_WITHOUT_GRADIENT)


@pytest.mark.parametrize("kind", KL_PENALTIES)
def test_a_kl_loss_that_pulls_nowhere_is_refused(kind):
    overrides = [f"actor.kl_loss_type={kind}", "actor.use_kl_loss=true"]
    if kind in KL_WITHOUT_GRADIENT:
        with pytest.raises(
            ConfigError, match=rf"kl_loss_type={kind}: the gradient .* use {kind}\+"
        ):
            load_config(None, overrides)
        assert load_config(None, overrides[:1]).actor.kl_loss_type == kind  # no loss, no matter
    else:
        assert load_config(None, overrides).actor.kl_loss_type == kind
