"""The errand game: how far a state is from the end, proved by search, and which tasks are asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import ConfigError, ErrandConfig, load_config
from steprl.envs.errand import Errand, optimal
from steprl.envs.errand import language as words
from steprl.envs.errand.env import DOOR, HAND, STATION

# ---------------------------------------------------------------- horizons and distances


@functools.partial(jax.jit, static_argnums=0)
def _openings(config, heldout):
    env = Errand(config, heldout)
    states, _ = jax.vmap(env.reset, in_axes=(0, None))(jnp.arange(3000), jax.random.key(0))
    return states, jax.vmap(env.distance)(states)


def openings(config, heldout):
    """States at the beginning of many tasks, and how far they are from the end."""
    return jax.device_get(_openings(config, jnp.asarray(heldout)))


@pytest.mark.parametrize(
    ("horizon", "changes"),
    [
        (4, dict(errands=1, hidden=False, transform=False)),
        pytest.param(6, dict(errands=1, hidden=True, transform=False), marks=pytest.mark.slow),
        pytest.param(6, dict(errands=1, hidden=False, transform=True), marks=pytest.mark.slow),
        pytest.param(8, dict(errands=1, hidden=True, transform=True), marks=pytest.mark.slow),
        pytest.param(8, dict(errands=2, hidden=False, transform=False), marks=pytest.mark.slow),
        pytest.param(16, dict(errands=2, hidden=True, transform=True), marks=pytest.mark.slow),
        pytest.param(24, dict(errands=3, hidden=True, transform=True), marks=pytest.mark.slow),
        (32, dict(errands=4, hidden=True, transform=True)),
    ],
)
def test_every_task_of_some_settings_has_the_same_horizon(horizon, changes):
    config = ErrandConfig(**changes)
    assert config.horizon == horizon and Errand(config).max_steps == horizon + config.spare_steps
    for heldout in (False, True):
        np.testing.assert_array_equal(openings(config, heldout)[1], horizon)


def commands_of(config, start):
    """All that could change anything, and a word that changes nothing."""
    places = [*range(config.places), DOOR]
    places += [STATION, STATION + 1, STATION + 2] if config.transform else []
    verbs = range(words.TAKE, len(words.VERBS) if config.transform else words.HEAT)
    every = [(words.GO, words.FIRST_LOCATION + p) for p in places]
    every += [(words.OPEN, words.FIRST_LOCATION + p) for p in range(config.places)]
    every += [(v, words.FIRST_KIND + int(k)) for v in verbs for k in start.kind]
    return np.array([(words.FIRST_VERB + v, noun) for v, noun in [*every, (-1, 0)]], np.int32)


class Numbering:
    """States as numbers: of where the things are, in which form, what is closed, where one is."""

    def __init__(self, config, start):
        self.start, self.objects, self.places = start, config.objects, config.places
        forms = 4 if config.transform else 1
        self.radix = np.array(
            [HAND + 1] * self.objects + [forms] * self.objects + [2] * self.places + [HAND]
        )
        self.weight = np.cumprod([1, *self.radix[:-1]]).astype(np.int64)

    def number(self, states):
        parts = [states.where, states.form, states.closed, states.here[..., None]]
        return np.concatenate([np.asarray(p, np.int64) for p in parts], axis=-1) @ self.weight

    def states(self, number_N):
        digits = (number_N[:, None] // self.weight % self.radix).astype(np.int32)
        cuts = np.cumsum([self.objects, self.objects, self.places])
        where, form, closed, here = np.split(digits, cuts, axis=1)
        fixed = jax.tree.map(lambda x: np.broadcast_to(x, (len(digits), *x.shape)), self.start)
        return fixed._replace(where=where, form=form, closed=closed.astype(bool), here=here[:, 0])


def explored(config, task, chunk=2048):
    """All open states that can be reached, and how far they are from the end.

    Returns:
        Distances by search [N + 1], the last of them 0 for the end; distances as claimed [N]; and
        indices of the states after the optimal command [N], -1 for the end.
    """
    env = Errand(config)
    start = jax.device_get(jax.jit(env.reset)(task, jax.random.key(0))[0])
    code, commands = Numbering(config, start), commands_of(config, start)

    @jax.jit
    def expand(states):
        branch = jax.vmap(jax.vmap(env.step, in_axes=(None, 0)), in_axes=(0, None))
        after, seen = branch(states, commands)
        best, seen_best = jax.vmap(env.step)(states, jax.vmap(lambda s: optimal(config, s))(states))
        return after, seen.success, best, seen_best.success, jax.vmap(env.distance)(states)

    known = new = np.unique(code.number(jax.tree.map(lambda x: x[None], start)))
    rows = []
    while len(new):
        found = []
        for begin in range(0, len(new), chunk):
            part = new[begin : begin + chunk]
            out = jax.device_get(expand(code.states(np.resize(part, chunk))))
            after, success, best, best_success, claimed = jax.tree.map(rows_of(len(part)), out)
            after = np.where(success, -1, code.number(after))
            rows.append((part, after, np.where(best_success, -1, code.number(best)), claimed))
            found.append(np.unique(after[after >= 0]))
        new = np.setdiff1d(np.concatenate(found), known)
        known = np.union1d(known, new)
    number, after, best, claimed = (np.concatenate(x) for x in zip(*rows, strict=True))
    order = np.argsort(number)
    index = lambda x: np.where(x < 0, -1, np.searchsorted(number[order], x))  # noqa: E731
    after, best, claimed = index(after[order]), index(best[order]), claimed[order]

    truth = np.append(np.full(len(number), 10**6), 0)  # the last, index -1, is the end
    while True:
        better = np.append(1 + truth[after].min(axis=1), 0)
        if np.array_equal(better, truth):
            return truth, claimed, best
        truth = better


def rows_of(count):
    return lambda x: x[:count]


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        (dict(errands=1, places=5, objects=1), 500),
        pytest.param(
            dict(errands=1, places=5, objects=2, transform=False), 1000, marks=pytest.mark.slow
        ),
        (dict(errands=2, places=5, objects=3, transform=False, hidden=False), 1000),
        pytest.param(dict(errands=2, places=5, objects=2), 20_000, marks=pytest.mark.slow),
        pytest.param(
            dict(errands=3, places=6, objects=3, transform=False, hidden=False),
            2000,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(errands=4, places=8, objects=4, transform=False, hidden=False),
            50_000,
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda x: " ".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_distances_are_those_of_a_search_and_the_optimal_player_follows_them(changes, least):
    truth, claimed, best = explored(ErrandConfig(**changes), task=1)
    assert len(claimed) > least and truth.max() < 10**6  # no state is lost
    np.testing.assert_array_equal(claimed, truth[:-1])
    np.testing.assert_array_equal(truth[best], truth[:-1] - 1)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("errands", [1, 2, 4])
def test_the_held_out_split_shares_no_thing_and_target_with_training(errands):
    config, pairs = ErrandConfig(errands=errands), {}
    for heldout in (False, True):
        states, _ = openings(config, heldout)
        wanted = states.kind[:, :errands]
        pairs[heldout] = set(
            zip(wanted.ravel().tolist(), states.target.ravel().tolist(), strict=True)
        )
        ends = np.sort(np.concatenate([states.where[:, :errands], states.target], axis=1))
        assert np.all(np.diff(ends) > 0)  # every errand has a source and a target of its own
        assert np.all(np.diff(np.sort(states.kind)) > 0) and set(wanted.ravel()) == set(range(12))
        assert set(states.wanted.ravel()) == {1, 2, 3}
    assert not pairs[True] & pairs[False]
    assert len(pairs[True] | pairs[False]) == 12 * config.places  # each is asked in one of them
    assert all((a + 2 * b) % 5 == 0 for a, b in pairs[True])


@pytest.mark.parametrize(("errands", "places"), [(1, 5), (3, 6), (4, 8)], ids=str)
def test_the_smallest_rooms_have_both_splits(errands, places):
    config = ErrandConfig(errands=errands, places=places, objects=errands)
    for heldout in (False, True):
        states, _ = openings(config, heldout)
        assert np.all(((states.kind + 2 * states.target) % 5 == 0) == heldout)
        ends = np.sort(np.concatenate([states.where, states.target], axis=1))
        assert np.all(np.diff(ends) > 0)


def test_one_program_serves_both_splits():
    for heldout in (False, True):
        alone, _ = jax.jit(Errand(ErrandConfig(), heldout).reset)(3, jax.random.key(0))
        for one, other in zip(alone, openings(ErrandConfig(), heldout)[0], strict=True):
            np.testing.assert_array_equal(one, other[3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["errands=4", "places=7"],
            "env.errand.places=7 must be at least 2 * env.errand.errands=8",
        ),
        (["errands=3", "objects=2"], "env.errand.objects=2 must be at least env.errand.errands=3"),
        (["places=15"], "env.errand.places=15: must be at most 14"),
    ],
)
def test_rooms_that_are_too_small_are_refused(overrides, message):
    with pytest.raises(ConfigError, match="^" + message.replace("*", r"\*")):
        load_config(None, [f"env.errand.{override}" for override in overrides])
