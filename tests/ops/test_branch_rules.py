"""BranPO: from where a rollout is continued anew, and which continuation is kept."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl import ops

NAN = float("nan")

attempts_of = jax.jit(ops.branch_attempts)
pair_of = jax.jit(ops.pair_branches)


# --- The difficulty table -------------------------------------------------------------------------

PLAIN = [(1, 2)]
LONG = [(6, 2)]
EASY = [(2, 1)]
HARD = [(3, 1), (3, 2), (3, 3)]
MIXED = [(3, 1), (3, 2)]


@pytest.mark.parametrize(
    ("accuracy", "mean_steps", "reward", "steps", "calls"),
    [
        (0.75, 3.0, 1.0, 4, LONG),
        (0.75, 3.0, 0.8, 4, LONG),
        (0.75, 3.875, 1.0, 4, LONG),  # 0.125 steps too many
        (0.75, 3.9375, 1.0, 4, MIXED),  # 0.0625 are not counted
        (0.875, 3.9375, 1.0, 4, PLAIN),
        (0.875, 3.0, 1.0, 3, PLAIN),
        (0.875, 3.0, 1.0, 1, [(1, 1)]),  # points end with the rollout
        (0.875, 3.0, 0.79, 4, MIXED),
        (1.0, 2.0, 1.0, 4, EASY),
        (1.0, 2.0, 1.0, 1, EASY),
        (0.25, 2.0, 0.0, 4, HARD),
        (0.0, 0.0, 0.79, 2, [(3, 1), (3, 2), (3, 2)]),
        (0.0, 0.0, 0.0, 1, [(3, 1), (3, 1), (3, 1)]),
        (0.25, 2.0, 0.8, 4, MIXED),
        (0.5, 2.0, 1.0, 4, MIXED),  # neither below nor above one half
        (0.5, 2.0, 0.0, 4, MIXED),
        (0.5, 2.0, 0.0, 1, [(3, 1), (3, 1)]),
        (0.75, 2.0, 1.0, 2, MIXED),
    ],
)
def test_each_row_of_the_table(accuracy, mean_steps, reward, steps, calls):
    ours = attempts_of(accuracy, mean_steps, reward, steps)
    for got, expected in zip(ours, zip(*calls, strict=True), strict=True):
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, np.pad(expected, (0, 3 - len(calls))))
    skipped = attempts_of(accuracy, mean_steps, reward, steps, False)
    np.testing.assert_array_equal(skipped, [[1, 0, 0], [min(2, steps), 0, 0]])


def test_the_threshold_is_an_argument():
    np.testing.assert_array_equal(ops.branch_attempts(0.25, 2.0, 0.5, 4)[0], [3, 3, 3])
    lower = ops.branch_attempts(0.25, 2.0, 0.5, 4, threshold=0.5)
    np.testing.assert_array_equal(lower[0], [3, 3, 0])


def test_rollouts_at_once_equal_a_loop():
    grid = itertools.product((0.25, 0.75, 1.0), (1.5, 3.0), (0.0, 0.8), (1, 3), (False, True))
    accuracy, mean_steps, reward, steps, resampled = map(np.array, zip(*grid, strict=True))
    rows = accuracy.astype("f"), mean_steps.astype("f"), reward.astype("f"), steps, resampled
    at_once = attempts_of(*rows)
    loop = [ops.branch_attempts(*row) for row in zip(*rows, strict=True)]
    for ours, lifted, expected in zip(
        at_once, jax.vmap(attempts_of)(*rows), zip(*loop, strict=True), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(lifted, expected)


# --- Pairing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(
    ("original", "new", "preference"), [(0.0, 0.8, 1), (0.79, 1.0, 1), (0.8, 0.79, -1), (1, 0, -1)]
)
def test_crossing_the_threshold_contrasts_at_any_accuracy(original, new, preference, accuracy):
    for steps in (1, 2, 3):
        assert ops.branch_preference(original, 2, new, steps, accuracy) == preference


@pytest.mark.parametrize(
    ("accuracy", "original", "new", "expected"),
    [
        (0.75, 1.0, 1.0, (1, 0, -1)),
        (0.75, 0.8, 0.8, (1, 0, -1)),
        (0.51, 1.0, 1.0, (1, 0, -1)),
        (0.5, 1.0, 1.0, (0, 0, 0)),  # not above one half
        (1.0, 1.0, 1.0, (0, 0, 0)),  # where all are correct, only a drop of the reward contrasts
        (0.75, 0.8, 1.0, (0, 0, 0)),  # both correct, but not equal
        (0.75, 0.5, 0.5, (0, 0, 0)),  # equal, but wrong
    ],
)
def test_equal_rewards_contrast_by_length(accuracy, original, new, expected):
    ours = ops.branch_preference(original, 2, new, np.array([1, 2, 3]), accuracy)
    np.testing.assert_array_equal(ours, expected)


def pair(rewards, steps, valid=(1, 1, 1, 1), original=1.0, accuracy=0.75, num_branches=6):
    tries = np.array(rewards, "f"), np.array(steps), np.array(valid)
    return tuple(map(int, pair_of(original, 2, *tries, accuracy, num_branches)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rewards": [0, 0, 0, 0], "steps": [2, 2, 2, 2]}, (1, 0, 1, -1)),
        ({"rewards": [1, 1, 0, 1], "steps": [2, 2, 2, 1]}, (3, 2, 1, -1)),  # the first one only
        ({"rewards": [1, 1, 0, 0], "steps": [2, 1, 2, 2]}, (2, 1, -1, 1)),
        ({"rewards": [1, 1, 1, 1], "steps": [2, 2, 2, 2]}, (4, -1, 0, 0)),
        ({"rewards": [0, 1, 0, 0], "steps": [2, 2, 2, 2], "valid": [0, 1, 1, 1]}, (3, 2, 1, -1)),
        ({"rewards": [0, 0, 0, 0], "steps": [1, 1, 1, 1], "valid": [0, 0, 0, 0]}, (4, -1, 0, 0)),
        ({"rewards": [1, 1, 0, 0], "steps": [2, 2, 2, 2], "num_branches": 3}, (2, -1, 0, 0)),
        ({"rewards": [1, 0, 0, 0], "steps": [2, 2, 2, 2], "num_branches": 3}, (2, 1, 1, -1)),
        ({"rewards": [0, 0, 0, 0], "steps": [2, 2, 2, 2], "num_branches": 1}, (0, -1, 0, 0)),
        ({"rewards": [1, 1, 0, 1], "steps": [1, 3, 2, 2], "accuracy": 1.0}, (3, 2, 1, -1)),
        ({"rewards": [0, 0.5, 1, 1], "steps": [1, 3, 2, 2], "original": 0.0}, (3, 2, -1, 1)),
    ],
)
def test_the_first_contrasting_continuation_is_kept(arguments, expected):
    assert pair(**arguments) == expected


def test_an_invalid_continuation_is_never_read():
    ours = pair([NAN, 1, NAN, 0], [9, 2, 9, 2], valid=[0, 1, 0, 1])
    assert ours == (4, 3, 1, -1)


def test_without_continuations_nothing_is_kept():
    none = jnp.zeros(0)
    assert tuple(map(int, ops.pair_branches(1.0, 2, none, none, none, 0.75, 6))) == (0, -1, 0, 0)


def random_rollouts(rows=40, tries=4):
    rng = np.random.default_rng(1)
    reward = rng.choice(np.array([0.0, 0.8, 1.0], "f"), (rows, tries + 1))
    steps = rng.integers(1, 4, (rows, tries + 1))
    accuracy = rng.choice(np.array([0.25, 0.75, 1.0], "f"), rows)
    valid = rng.random((rows, tries)) < 0.8
    original = reward[:, 0], steps[:, 0]
    return *original, reward[:, 1:], steps[:, 1:], valid, accuracy, rng.integers(1, 6, rows)


def test_many_rollouts_equal_the_procedure():
    rows = random_rollouts()
    at_once = jax.jit(jax.vmap(ops.pair_branches))(*rows)
    outcomes = set()
    for n, (reward, length, rewards, lengths, valid, accuracy, num_branches) in enumerate(
        zip(*rows, strict=True)
    ):
        expected = [min(num_branches - 1, 4), -1, 0, 0]
        for k in range(expected[0]):
            preference = int(
                ops.branch_preference(reward, length, rewards[k], lengths[k], accuracy)
            )
            if valid[k] and preference:
                expected = [k + 1, k, -preference, preference]
                break
        assert [int(x[n]) for x in at_once] == expected
        outcomes.add(expected[3])
    assert outcomes == {-1, 0, 1}


def test_pairing_takes_one_rollout():
    with pytest.raises(AssertionError):
        ops.pair_branches(*random_rollouts())
