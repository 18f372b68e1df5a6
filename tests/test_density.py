"""Signal and noise of gradients: what is reckoned from known ones, and what is measured in a game."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.rollout.device import remembered_rollout
from tests.lock import SAYS, TABLE, Lock, key_of
from tests.small import small_config

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))  # as running the script does

from laboratory import gradients  # noqa: E402
from pages import density as page  # noqa: E402


def drawn(groups, signal, noise, dimensions=50, seed=0):
    """Gradients [groups, dimensions] with |mean|^2 = signal^2 and trace of the covariance noise^2."""
    x = np.random.default_rng(seed).normal(size=(groups, dimensions)) * noise / dimensions**0.5
    return x + signal / dimensions**0.5


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 1.0), (0.5, 2.0), (3.0, 1.0)])
def test_signal_to_noise_of_known_gradients(signal, noise):
    x = drawn(1000, signal, noise)
    assert gradients.signal_to_noise(x @ x.T) == pytest.approx((signal / noise) ** 2, rel=0.15)


def test_noise_alone_is_no_signal_however_few_groups_there_are():
    found = [
        gradients.signal_to_noise(x @ x.T) for x in (drawn(8, 0, 1, seed=s) for s in range(300))
    ]
    assert abs(np.mean(found)) < 0.01  # the squared mean of 8 would be an eighth of the noise


def test_a_group_that_is_drawn_twice_is_not_its_own_witness():
    x = drawn(40, 0.0, 1.0)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=400)
    found = [gradients.signal_to_noise(x @ x.T, weight) for weight in weights]
    assert np.mean(found) == pytest.approx(gradients.signal_to_noise(x @ x.T), abs=0.01)


def test_the_noise_of_continuations_is_not_counted():
    x, errors = drawn(800, 1.0, 1.0), [drawn(800, 0.0, 3.0, seed=s) for s in (1, 2)]
    found = gradients.products(np.stack([x, x, x + errors[0], x + errors[1]], axis=1))
    assert gradients.signal_to_noise(found["true"]) == pytest.approx(1.0, rel=0.25)
    first = (x + errors[0]) @ (x + errors[0]).T
    assert gradients.signal_to_noise(first) < 0.2  # as it is of one half alone


def test_ratios_are_of_amplitudes():
    plain, sharp = drawn(400, 1.0, 2.0), drawn(400, 1.0, 1.0, seed=1)
    found = {"trajectory": plain @ plain.T, "critic": sharp @ sharp.T}
    (name, values), *none = gradients.ratios(found, 50, np.random.default_rng(0)).items()
    assert (name, none) == ("critic", []) and values.shape == (51,)
    assert values[0] == pytest.approx(2.0, rel=0.25) and 0 < values[1:].std() < 0.4


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0])
def test_the_exponent_is_the_slope_whatever_the_level_of_each_horizon(power):
    density, horizon = np.array([1, 1 / 2, 1 / 4, 1, 1 / 8]), np.array([16, 16, 16, 32, 32])
    level = np.where(horizon == 16, 1.3, 0.4)
    ratio = (level * density**power)[:, None] * np.array([1.0, 2.0])
    np.testing.assert_allclose(gradients.exponent(density, ratio, horizon), power, atol=1e-9)


ATTEMPTS, MANY, GROUPS = 4, 2, 64


@pytest.fixture(scope="module")
def played():
    """Groups of attempts at opening a lock by a policy that is one table: gradients, batches, and true
    advantages."""
    config = small_config("rollout.n=4", "algorithm.norm_adv=false", "algorithm.lam=1.0")
    policy, env = SAYS, Lock()
    params = policy.init(key_of(0))

    def group(task):
        key = key_of(1)
        found = gradients.group_gradients(policy, env, params, key, task, config, MANY)
        sample = jnp.arange(ATTEMPTS, dtype=jnp.int32)
        batch, memory = remembered_rollout(
            policy, env, params, key, jnp.full_like(sample, task), sample
        )
        return found, batch, gradients._true_advantages(policy, env, params, key, memory, MANY)

    run = jax.jit(lambda tasks: jax.lax.map(group, tasks))
    return jax.device_get(run(jnp.arange(GROUPS, dtype=jnp.int32)))


@pytest.mark.slow
def test_true_advantages_add_up_to_the_return_less_the_first_value(played):
    _, batch, true = played
    returns = batch.reward_NS.sum(axis=2)[..., None]
    assert 0.1 < returns.mean() < 0.9
    first_value = returns - true.sum(axis=2)  # a mean of continuations
    np.testing.assert_allclose(first_value * MANY, np.round(first_value * MANY), atol=1e-5)
    assert np.all((first_value > -1e-5) & (first_value < 1 + 1e-5))
    assert abs(first_value.mean() - returns.mean()) < 0.1
    assert not np.any(true[~batch.mask_NS])


@pytest.mark.slow
def test_true_advantages_are_zero_on_average_whatever_happened_before(played):
    _, batch, true = played
    for step in range(3):
        of = true[:, :, step][batch.mask_NS[:, :, step]]
        assert abs(of.mean()) < 4 * of.std() / len(of) ** 0.5


@pytest.mark.slow
def test_halves_of_the_continuations_are_independent(played):
    _, batch, true = played
    last = true[..., 0, :][batch.mask_NS[..., 0]]  # of the first step
    assert np.any(last[:, 0] != last[:, 1])


@pytest.mark.slow
def test_all_credits_have_gradients_of_the_policy_alone_that_point_the_same_way(played):
    found = played[0]
    assert found.shape == (GROUPS, len(gradients.CREDITS), TABLE.size)
    trajectory, critic, first, second = found.mean(axis=0)
    for other in (critic, first, second):  # of each, the expectation is a gradient of success
        assert trajectory @ other > 0.5 * np.linalg.norm(trajectory) * np.linalg.norm(other)


def test_the_page_shows_each_cell_and_the_exponents(tmp_path):
    row = lambda name, value, spread=None: dict(name=name, value=value, spread=spread)  # noqa: E731
    rows = [row("16 steps, density 1/2: success", 0.25)]
    rows += [row("16 steps, density 1/2: explained variance", 0.4)]
    rows += [row("16 steps, density 1/2: critic over trajectory", 1.25, [1.1, 1.5])]
    rows += [row("16 steps, density 1/2: true over trajectory", 0.0)]
    rows += [row("exponent, true, 16 steps", -0.41, [-0.7, -0.2])]
    record = dict(rows=rows, cells={"16 steps, density 1/2": {}}, groups=9, attempts=8, seeds=4,
                  claim=-0.5, minutes=3, hardware="a machine")  # fmt: skip
    assert page.in_short(tmp_path, "") == ""
    (tmp_path / "density.json").write_text(json.dumps(record))
    text = page.in_short(tmp_path, "results")
    assert "| 16 steps, density 1/2 | 0.25 | 0.40 | 1.25 [1.10, 1.50] | no signal found |" in text
    assert "| true advantages of steps | -0.41 [-0.70, -0.20] |  |  |" in text
