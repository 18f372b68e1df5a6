"""A world so small that every trajectory can be listed, with its probability and the exact gradient.

An agent writes actions of one or two tokens ("." stops, "x" goes on), the world answers by chance
with a reward and a state that the agent reads as a token, a masked one, and episodes last one to three
steps. The policy is a table of logits, one row a context: (state, tokens of the action so far). No
state is visited at two different steps, so values are functions of the context alone.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOKENS = ".x"  # the first one ends an action
ACTIONS = (".", "x.", "xx")
MASKED = -1
MAX_STEPS = 3
# A masked token before each step, two of its own, and one at the end.
ROW_LENGTH = 3 * MAX_STEPS + 1

Outcome = tuple[float, float, str]  # probability, reward, state that follows ("" where none does)
World = Mapping[str, Mapping[str, tuple[Outcome, ...]]]

# Task A is rich. B fails at once more often than not, so that its groups often have equal scores.
WORLD: World = {
    "A": {
        ".": ((0.75, 0.0, "C"), (0.25, 0.25, "D")),
        "x.": ((0.25, 0.0, "C"), (0.75, 0.0, "D")),
        "xx": ((1.0, 0.5, ""),),
    },
    "B": {
        ".": ((1.0, 0.0, ""),),
        "x.": ((0.5, 0.0, "C"), (0.5, 0.0, "")),
        "xx": ((0.125, 0.25, "D"), (0.875, 0.0, "")),
    },
    "C": {
        ".": ((1.0, 0.0, ""),),
        "x.": ((1.0, 0.25, "E"),),
        "xx": ((1.0, 1.0, ""),),
    },
    "D": {
        ".": ((1.0, 0.0, "E"),),
        "x.": ((1.0, 0.5, ""),),
        "xx": ((1.0, -0.25, "E"),),
    },
    "E": {
        ".": ((1.0, 0.0, ""),),
        "x.": ((1.0, 1.0, ""),),
        "xx": ((0.5, 1.0, ""), (0.5, 0.0, "")),
    },
}
TASKS = ("A", "B")  # equally likely


class Rows(NamedTuple):
    """Trajectories as arrays, one row each: a listing of all of them, or a batch."""

    token_nt: np.ndarray  # int32, sampled token, 0 where masked
    context_nt: np.ndarray  # int32, row of the table of logits, 0 where masked
    step_ids_nt: np.ndarray  # int32, -1 where masked
    reward_ns: np.ndarray
    reward_nt: np.ndarray  # a step's reward at its last token; NaN where masked, as all below
    follows_ns: np.ndarray  # 1 where another step follows, also beyond the limit, else 0
    follows_nt: np.ndarray  # 1 where another sampled token follows, else 0
    truncated_n: np.ndarray  # bool, cut off by the limit
    mask_ns: np.ndarray  # bool, the step exists
    state_ns: np.ndarray  # int32, what was read before the step, -1 where there is none
    behind_n: np.ndarray  # int32, context that follows the last step, -1 where none does
    task_n: np.ndarray  # int32
    chance_n: np.ndarray  # probability of the task and of the world's answers
    exact_nt: np.ndarray  # value of the context under the policy
    wrong_nt: np.ndarray  # another function of the context
    exact_behind_n: np.ndarray  # value behind the last step


def contexts(world: World) -> list[tuple[str, str]]:
    """(state, tokens of the action so far) of each row of the table of logits."""
    return [(state, prefix) for state in world for prefix in ("", "x")]


def logits(world: World, seed: int = 0) -> np.ndarray:
    """[contexts, tokens] a policy without symmetries."""
    return np.random.default_rng(seed).normal(size=(len(contexts(world)), len(TOKENS)))


def listing(
    world: World, theta: np.ndarray, tasks: tuple[str, ...] = TASKS, max_steps: int = MAX_STEPS
) -> Rows:
    """Every trajectory of at most `max_steps` steps; what goes on after that is truncated."""
    found = [(task, *walk) for task in tasks for walk in _walks(world, task, max_steps)]
    rows, width = len(found), 3 * max_steps + 1
    number = {context: i for i, context in enumerate(contexts(world))}
    states = list(world)

    token, step = np.zeros((rows, width), np.int32), np.full((rows, width), MASKED, np.int32)
    context = np.zeros((rows, width), np.int32)
    reward_t, follows_t = np.full((rows, width), np.nan), np.full((rows, width), np.nan)
    reward_s, follows_s = np.zeros((rows, max_steps)), np.zeros((rows, max_steps))
    state_s = np.full((rows, max_steps), MASKED, np.int32)
    behind, chance = np.full(rows, MASKED, np.int32), np.empty(rows)
    for n, (_, probability, steps, end) in enumerate(found):
        chance[n] = probability / len(tasks)
        behind[n] = number[end, ""] if end else MASKED
        t = 0
        for s, (state, action, reward) in enumerate(steps):
            t += 1  # the observation
            for i, letter in enumerate(action):
                token[n, t], step[n, t] = TOKENS.index(letter), s
                context[n, t] = number[state, action[:i]]
                reward_t[n, t], follows_t[n, t] = 0, 1
                t += 1
            reward_t[n, t - 1] = reward_s[n, s] = reward
            state_s[n, s] = states.index(state)
            follows_s[n, s] = s + 1 < len(steps) or bool(end)
        follows_t[n, t - 1] = bool(end)

    plain = Rows(
        token, context, step, reward_s, reward_t, follows_s, follows_t, behind != MASKED,
        state_s != MASKED, state_s, behind, np.array([tasks.index(f[0]) for f in found], np.int32),
        chance, reward_t, reward_t, np.zeros(rows),
    )  # fmt: skip
    full = plain if not plain.truncated_n.any() else listing(world, theta, tasks)
    exact_c, masked = _values(full, theta), step == MASKED
    wrong_c = np.random.default_rng(1).normal(size=len(exact_c))
    return plain._replace(
        exact_nt=np.where(masked, np.nan, exact_c[context]),
        wrong_nt=np.where(masked, np.nan, wrong_c[context]),
        exact_behind_n=np.where(behind != MASKED, exact_c[behind], 0.0),
    )


def log_probabilities(theta: jax.Array, rows: Rows) -> jax.Array:
    """[N, T] of the sampled tokens, NaN where masked."""
    table = jax.nn.log_softmax(theta, axis=-1)
    return jnp.where(rows.step_ids_nt >= 0, table[rows.context_nt, rows.token_nt], jnp.nan)


def probabilities(theta: jax.Array, rows: Rows) -> jax.Array:
    """[N] of the listed trajectories; they sum to 1."""
    logprob_nt = jnp.where(rows.step_ids_nt >= 0, log_probabilities(theta, rows), 0)
    return rows.chance_n * jnp.exp(jnp.sum(logprob_nt, axis=1))


def objective(theta: jax.Array, rows: Rows, weight_ns: np.ndarray | float = 1.0) -> jax.Array:
    """J = sum over all trajectories of p(trajectory) * (weighted) sum of its rewards."""
    return jnp.sum(probabilities(theta, rows) * np.sum(weight_ns * rows.reward_ns, axis=1))


def step_weights(rows: Rows, gamma: float) -> np.ndarray:
    """[N, S] gamma to the power of the steps before."""
    return gamma ** np.broadcast_to(np.arange(rows.reward_ns.shape[1]), rows.reward_ns.shape)


def token_weights(rows: Rows, gamma: float) -> np.ndarray:
    """[N, T] gamma to the power of the sampled tokens before."""
    active = rows.step_ids_nt >= 0
    return gamma ** (np.cumsum(active, axis=1) - active)


def weights_of_last_tokens(weight_nt: np.ndarray, rows: Rows) -> np.ndarray:
    """[N, S] what the token has at which the reward of the step arrives."""
    weight_ns = np.zeros(rows.reward_ns.shape)
    for n, t in zip(*np.nonzero(rows.step_ids_nt >= 0), strict=True):
        weight_ns[n, rows.step_ids_nt[n, t]] = weight_nt[n, t]
    return weight_ns


def _walks(
    world: World, state: str, steps_left: int
) -> Iterator[tuple[float, list[tuple[str, str, float]], str]]:
    """(probability of the answers, [(state, action, reward)], state behind) from a state on."""
    if not state or not steps_left:
        yield 1.0, [], state
        return
    for action, outcomes in world[state].items():
        for chance, reward, then in outcomes:
            for probability, steps, end in _walks(world, then, steps_left - 1):
                yield chance * probability, [(state, action, reward), *steps], end


def _values(rows: Rows, theta: np.ndarray) -> np.ndarray:
    """[contexts] expected reward to go, from the definition: an average over all trajectories."""
    probability_n = np.asarray(probabilities(jnp.asarray(theta), rows))
    active = rows.step_ids_nt >= 0
    to_go_nt = np.cumsum(np.where(active, rows.reward_nt, 0)[:, ::-1], axis=1)[:, ::-1]
    mass, total = np.zeros(len(theta)), np.zeros(len(theta))
    np.add.at(mass, rows.context_nt[active], np.repeat(probability_n, active.sum(1)))
    np.add.at(total, rows.context_nt[active], (probability_n[:, None] * to_go_nt)[active])
    return total / np.where(mass > 0, mass, 1)
