"""The exact value of what a policy does in a game, from its probabilities, without sampling.

All that is likelier than a threshold is enumerated, token by token and through the rules themselves,
and what is not is bounded: between no reward and the largest that the rules still allow. So every number
is an interval that holds the true one for certain, up to rounding. A policy reads its whole context, so
equal states behind different histories are different contexts, and nothing can be merged.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import Config
from steprl.envs.games import Enumerable, Game
from steprl.envs.suite import Suite
from steprl.sampling import Sampling, prefill, sampling_logprobs, sampling_of
from steprl.types import Params, Policy, Trajectory

_ROWS = 256  # contexts that are read at the same time


class Bounds(NamedTuple):
    """Of each step of some trajectories, [S, 2]: from below and from above."""

    value_s: np.ndarray  # V before the step
    action_value_s: np.ndarray  # Q of what was done
    variance_s: np.ndarray  # of Q over the actions that could have been taken


def why_not(suite: Suite, config: Config) -> str | None:
    """Why a run cannot be enumerated; None where it can."""
    if suite.game is None or suite.game.enumerable is None:
        return (
            f"env.name={config.env.name} does not say what an enumeration needs (Game.enumerable)"
        )
    if suite.game.enumerable.chance is not None:
        return f"{suite.game.enumerable.chance}, which is not enumerated"
    if config.rollout.temperature <= 0:
        return "rollout.temperature=0 has no distribution"
    return None


def check(suite: Suite, config: Config, threshold: float) -> None:
    """Raises ValueError where a run cannot be enumerated, or not down to this threshold."""
    if problem := why_not(suite, config):
        raise ValueError(f"the exact values cannot be found: {problem}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} must be between 0 and 1")


class _Level(NamedTuple):
    """Tokens that were kept at one depth, and what they lead to."""

    parent_c: np.ndarray  # context of the level that each token continues
    prob_c: np.ndarray
    whole_c: np.ndarray  # bool, the token ends its action
    reward_c: np.ndarray
    child_c: np.ndarray  # context of the next level, -1 where the trajectory is over
    place_c: np.ndarray  # of the tree of visited tokens, -1 for none
    start_k: np.ndarray  # of each context: place where a visited step begins, -1 for none
    unseen_k: np.ndarray  # largest return of what was left out, times its probability


def enumerate_steps(
    policy: Policy,
    params: Params,
    suite: Suite,
    config: Config,
    heldout: bool,
    trajectories: Sequence[Trajectory],
    threshold: float,
) -> Bounds:
    """V, Q and the variance of Q at each step of trajectories, by their order.

    Args:
        suite: of a game.
        trajectories: played under `config`, with the temperature of its rollouts.
        threshold: what is less likely than this, seen from the last step before it that was really
            played, is bounded.

    Raises:
        ValueError: the run cannot be enumerated, or the threshold is not between 0 and 1.
    """
    check(suite, config, threshold)
    game = suite.game
    assert game is not None and game.enumerable is not None
    rows: dict[int, list[int]] = {}
    for row, trajectory in enumerate(trajectories):
        rows.setdefault(trajectory.task, []).append(row)
    # Whatever devices the parameters were spread over, few rows are read best on one.
    params = jax.device_put(jax.device_get(policy.prepare(params)), jax.local_devices()[0])
    bounds_of_row: dict[int, Bounds] = {}
    for task, task_rows in rows.items():
        task_setup = _Task(policy, game, game.enumerable, config, heldout, task)
        bounds = _of_task(task_setup, params, [trajectories[row] for row in task_rows], threshold)
        bounds_of_row |= dict(zip(task_rows, bounds, strict=True))
    joined = (np.concatenate([bounds_of_row[row][part] for row in range(len(trajectories))])
              for part in range(len(Bounds._fields)))  # fmt: skip
    return Bounds(*joined)


class _Task:
    """One task of a game and the compiled functions of it: reading, and the rules."""

    def __init__(
        self, policy: Policy, game: Game, known: Enumerable, config: Config, heldout: bool, task: int
    ):  # fmt: skip
        self.env = cast(Any, game.make(heldout))  # hashable, as its program is kept
        self.gamma, self.policy = config.algorithm.gamma, policy
        self.read, self.step, self.hope = _compiled(
            policy, self.env, known, sampling_of(config.rollout)
        )
        # Nothing is left to chance, so the key decides nothing; an array of numbers can be kept on the host.
        state, prompt = self.env.reset(task, jax.random.PRNGKey(0))
        self.state = jax.tree.map(np.asarray, jax.device_get(state))
        self.prompt = np.asarray(prompt)[np.asarray(prompt) != 0]


@functools.lru_cache(maxsize=4)
def _compiled(policy: Policy, env: Any, known: Enumerable, sampling: Sampling) -> Any:
    """Reading a few tokens behind a context, one step of the environment, and what a state can still
    bring; all in rows."""

    @jax.jit
    def read(params, cache, tokens_BC, length_B, start_B):  # type: ignore[no-untyped-def]
        active_B = jnp.ones(length_B.shape, bool)
        hidden_BD, cache = prefill(policy, params, cache, tokens_BC, length_B, start_B, active_B)
        return jnp.exp(sampling_logprobs(policy.unembed(params, hidden_BD), sampling)), cache

    def hope(state: Any) -> tuple[jax.Array, jax.Array]:
        return known.largest_return(state), known.last_action(state)

    def step(state: Any, action: jax.Array) -> Any:
        after, seen = env.step(state, action)
        return after, seen, hope(after)

    return read, jax.jit(jax.vmap(step)), jax.jit(hope)


class _Contexts(NamedTuple):
    """The contexts that the policy may continue at one depth, a row each."""

    prob_KV: np.ndarray  # of the next token
    cache: Any
    state: Any
    largest_K: np.ndarray  # return that the state can still bring
    last_KA: np.ndarray  # the only rewarded action of a last step, 0 where it is not the last
    prefix_KA: np.ndarray  # tokens of the unfinished action
    size_K: np.ndarray  # how many
    position_K: np.ndarray  # of the next token
    weight_K: np.ndarray  # probability since the last visited step
    place_K: np.ndarray  # of the tree of visited tokens, -1 for none
    start_K: np.ndarray  # the same where a visited step begins here


def _of_task(
    task: _Task, params: Params, played: Sequence[Trajectory], threshold: float
) -> list[Bounds]:
    tree, paths = _visited(played)
    begins = {place for path in paths for place in path[:-1]}
    contexts, levels = _first(task, params), []
    while len(contexts.prob_KV):
        level, contexts = _deeper(task, params, contexts, tree, begins, threshold)
        levels.append(level)
    value, variance, action_value = _values(levels, task.gamma)
    return [
        Bounds(
            np.array([value[place] for place in path[:-1]]).reshape(-1, 2),
            np.array([action_value[place] for place in path[1:]]).reshape(-1, 2),
            np.array([variance[place] for place in path[:-1]]).reshape(-1, 2),
        )
        for path in paths
    ]


def _visited(played: Sequence[Trajectory]) -> tuple[list[dict[int, int]], list[list[int]]]:
    """The tree of all sampled tokens, and the places where the steps of each trajectory begin."""
    tree: list[dict[int, int]] = [{}]
    paths = []
    for trajectory in played:
        path = [0]
        for step in trajectory.steps:
            place = path[-1]
            for token in step.action_ids.tolist():
                if token not in tree[place]:
                    tree[place][token] = len(tree)
                    tree.append({})
                place = tree[place][token]
            path.append(place)
        paths.append(path)
    return tree, paths


def _first(task: _Task, params: Params) -> _Contexts:
    env, size = task.env, len(task.prompt)
    length = env.prompt_width + env.max_steps * (env.action_width + env.observation_width)
    tokens = np.zeros((1, env.prompt_width), np.int32)
    tokens[0, :size] = task.prompt
    zero, one = np.zeros(1, np.int32), np.ones(1)
    cache = task.policy.init_cache(1, length)
    prob, cache = jax.device_get(task.read(params, cache, tokens, zero + size, zero))
    state = jax.tree.map(lambda x: x[None], task.state)
    prefix = np.zeros((1, env.action_width), np.int32)
    largest, last = (np.array(x)[None] for x in jax.device_get(task.hope(task.state)))
    return _Contexts(prob, cache, state, largest, last, prefix, zero, zero + size, one, zero, zero)


def _deeper(
    task: _Task, params: Params, at: _Contexts, tree: list[dict[int, int]], begins: set[int],
    threshold: float,
) -> tuple[_Level, _Contexts]:  # fmt: skip
    """The tokens that are followed from some contexts, and the contexts behind them."""
    forced_KV = np.zeros(at.prob_KV.shape, bool)
    for row in np.flatnonzero(at.place_K >= 0):
        forced_KV[row, list(tree[at.place_K[row]])] = True
    prob_KV = at.prob_KV.astype(np.float64)
    most_KV = _most(at)
    keep_KV = forced_KV | ((at.weight_K[:, None] * prob_KV >= threshold) & (most_KV > 0))
    unseen_K = np.sum(np.where(keep_KV, 0.0, prob_KV * most_KV), axis=1)

    parent_C, token_C = np.nonzero(keep_KV)
    prefix_CA, size_C = at.prefix_KA[parent_C], at.size_K[parent_C] + 1
    prefix_CA[np.arange(len(parent_C)), size_C - 1] = token_C
    whole_C = np.isin(token_C, task.env.stop_ids) | (size_C == task.env.action_width)
    place_C = np.array(
        [
            tree[place].get(int(token), -1) if place >= 0 else -1
            for place, token in zip(at.place_K[parent_C], token_C, strict=True)
        ],
        np.int64,
    )
    reward_C, over_C = np.zeros(len(parent_C)), np.zeros(len(parent_C), bool)
    seen_CO = np.zeros((len(parent_C), task.env.observation_width), np.int32)
    before = (at.state, at.largest_K, at.last_KA)
    states, largest_C, last_CA = jax.tree.map(lambda x: x[parent_C], before)
    done = np.flatnonzero(whole_C)
    if len(done):
        after, seen, hope = _in_rows(task.step, len(done), *_take((states, prefix_CA), done))
        reward_C[done], over_C[done] = seen.reward, seen.terminated | seen.truncated
        seen_CO[done] = seen.tokens
        largest_C[done], last_CA[done] = hope
        for old, new in zip(jax.tree.leaves(states), jax.tree.leaves(after), strict=True):
            old[done] = new

    # Where no reward can be reached all is known; only what was really played goes on.
    on = np.flatnonzero(~over_C & ((largest_C > 0) | (place_C >= 0)))
    child_C = np.full(len(parent_C), -1)
    child_C[on] = np.arange(len(on))
    weight_C = at.weight_K[parent_C] * prob_KV[parent_C, token_C]
    begins_C = whole_C & np.isin(place_C, list(begins))
    start_C = np.where(begins_C, place_C, -1)
    level = _Level(
        parent_C, prob_KV[parent_C, token_C], whole_C, reward_C, child_C, place_C, at.start_K,
        unseen_K,
    )  # fmt: skip
    tokens_CO = np.concatenate([token_C[:, None], seen_CO], axis=1).astype(np.int32)
    length_C = (1 + np.sum(seen_CO != 0, axis=1)).astype(np.int32)
    position_C = at.position_K[parent_C]
    fed = (jax.tree.map(lambda x: x[parent_C], at.cache), tokens_CO, length_C, position_C)
    prob, cache = np.zeros((0, prob_KV.shape[1]), np.float32), at.cache
    if len(on):
        prob, cache = _in_rows(functools.partial(task.read, params), len(on), *_take(fed, on))
    kept = whole_C[on]
    return level, _Contexts(
        prob, cache, _take(states, on), largest_C[on], last_CA[on],
        np.where(kept[:, None], 0, prefix_CA[on]), np.where(kept, 0, size_C[on]).astype(np.int32),
        position_C[on] + length_C[on], np.where(begins_C, 1.0, weight_C)[on], place_C[on],
        start_C[on],
    )  # fmt: skip


def _most(at: _Contexts) -> np.ndarray:
    """[K, V] the largest return behind each token: in a last step only one action has any."""
    most_KV = np.repeat(at.largest_K.astype(np.float64)[:, None], at.prob_KV.shape[1], axis=1)
    for row in np.flatnonzero(at.last_KA.any(axis=1)):
        size, last_A = int(at.size_K[row]), at.last_KA[row]
        begun = (at.prefix_KA[row, :size] == last_A[:size]).all()
        expected = int(last_A[size]) if begun else 0  # 0 behind the end of a shorter action
        most_KV[row, np.arange(most_KV.shape[1]) != expected] = 0.0
        most_KV[row, 0] = 0.0
    return most_KV


def _take(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def _in_rows(function: Any, count: int, *arguments: Any) -> Any:
    """A compiled function on any number of rows, in pieces of one size."""
    parts = []
    for first in range(0, count, _ROWS):
        rows = np.minimum(np.arange(first, first + _ROWS), count - 1)
        result = jax.device_get(function(*_take(arguments, rows)))
        parts.append(jax.tree.map(lambda x, n=count - first: np.array(x[:n]), result))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _values(levels: Sequence[_Level], gamma: float) -> Any:
    """V, variance of Q, and Q, each a dict from place to (low, high); from the ends to the question.

    Of every context the first and the second moment of Q over the actions that may come of it.
    """
    value: dict[int, np.ndarray] = {}
    variance: dict[int, np.ndarray] = {}
    action_value: dict[int, np.ndarray] = {}
    first_K2, second_K2 = np.zeros((0, 2)), np.zeros((0, 2))
    for level in reversed(levels):
        on_C1 = (level.child_c >= 0)[:, None]
        none = len(first_K2) == 0
        behind = lambda x: 0.0 if none else np.where(on_C1, x[level.child_c], 0.0)  # noqa: B023, E731
        whole_C1 = level.whole_c[:, None]
        q_C2 = level.reward_c[:, None] + gamma * behind(first_K2) * np.ones((1, 2))
        first_C2 = np.where(whole_C1, q_C2, behind(first_K2))
        second_C2 = np.where(whole_C1, q_C2**2, behind(second_K2))
        for c in np.flatnonzero(level.whole_c & (level.place_c >= 0)):
            action_value[int(level.place_c[c])] = q_C2[c]
        count = len(level.unseen_k)
        first_K2, second_K2 = (
            np.stack([
                np.bincount(level.parent_c, level.prob_c * x_C2[:, 0], count),
                np.bincount(level.parent_c, level.prob_c * x_C2[:, 1], count) + level.unseen_k,
            ], axis=1)
            for x_C2 in (first_C2, second_C2)
        )  # fmt: skip
        for k in np.flatnonzero(level.start_k >= 0):
            (low, high), (low2, high2) = first_K2[k], second_K2[k]
            value[int(level.start_k[k])] = first_K2[k]
            spread = max(low2 - high**2, 0.0), max(high2 - low**2, 0.0)
            variance[int(level.start_k[k])] = np.array(spread)
    return value, variance, action_value
