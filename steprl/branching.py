"""Rollouts that branch: what a method says of its branches, and where these begin.

A method names one of two kinds, as data: `Contrast` continues finished rollouts anew until an ending
contrasts with the original one (BranPO), `ByScore` spends part of the attempts at a task on branches
from the tokens that score highest (APPO, ARPO). What follows from that is decided here, by pure
functions on arrays. They are played by two executors: `steprl.rollout.branching`, a loop on the host,
and `steprl.rollout.device_growth`, inside one compiled program.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import BranchConfig, Config
from steprl.ops import (
    appo_branching_scores,
    appo_future_value,
    arpo_candidates,
    masked_variance,
    nonblank_tokens,
    select_branch_points,
)
from steprl.optimizer import combine, split_trainable
from steprl.types import Branches, Params, Policy, StepBatch

Array = Any
"""A NumPy array or one of JAX, which may be traced."""


class Contrast(NamedTuple):
    """Every attempt begins anew, and has a second row for the continuation that contrasts with it."""

    # (accuracy, mean steps of the correct, reward, steps, may be resampled, threshold=) -> branches and
    # steps from the end of each call, [N, calls] both; see `ops.branch_attempts`
    attempts: Callable[..., tuple[jax.Array, jax.Array]]
    # (reward, steps, new reward, new steps, accuracy, threshold=) -> +1, -1, or 0 without a contrast
    preference: Callable[..., jax.Array]


class ByScore(NamedTuple):
    """Some attempts at a task begin anew, the others branch off from these; each has one row."""

    candidates: Callable[[StepBatch, jax.Array], jax.Array]  # (batch, nonblank_V) -> [N, T] bool
    keep_token: bool  # the branch keeps the token that was chosen, or else samples it anew
    future_value: bool = False  # the score also depends on what the last update changed


Branching = Contrast | ByScore


def rows_per_attempt(branching: Branching | None) -> int:
    """Rows of the batch for each attempt at a task."""
    return 2 if isinstance(branching, Contrast) else 1


def initial_attempts(branching: Branching | None, settings: BranchConfig, attempts: int) -> int:
    """How many of the attempts at a task begin anew.

    Raises:
        ValueError: `settings.initial` leaves no attempt for branches.
    """
    if not isinstance(branching, ByScore):
        return attempts
    initial = (attempts + 1) // 2 if settings.initial is None else settings.initial
    if not 0 < initial < attempts:
        raise ValueError(
            f"algorithm.branch.initial={initial}: of rollout.n={attempts} attempts, at least one begins "
            "anew and at least one must be left for a branch"
        )
    return initial


def keeps_groups(branching: Branching | None) -> bool:
    """Whether the attempts at a task share tokens, so that no mini-batch may part them."""
    return isinstance(branching, ByScore)


def sampled_nonblank(batch: StepBatch, nonblank_V: jax.Array) -> jax.Array:
    """[N, T] the sampled tokens with a text (APPO), but for the last: nothing is sampled behind it."""
    ids_NT = batch.step_ids_NT
    index_1T = jnp.arange(ids_NT.shape[1])[None]
    last_N1 = jnp.max(jnp.where(ids_NT >= 0, index_1T, -1), axis=1, keepdims=True)
    return (ids_NT >= 0) & nonblank_V[batch.tokens_NT] & (index_1T != last_N1)


def first_after_tool(batch: StepBatch, nonblank_V: jax.Array) -> jax.Array:
    """[N, T] the first token of each step behind an answer of the environment (ARPO)."""
    return jax.vmap(arpo_candidates)(batch.step_ids_NT)


# --- A plan ---------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """How the rollouts of a run branch."""

    nonblank_V: Array  # bool, tokens whose text is not blank
    gamma: Any  # discount a token of the future value
    branching: Branching = dataclasses.field(metadata=dict(static=True))
    settings: BranchConfig = dataclasses.field(metadata=dict(static=True))
    attempts: int = dataclasses.field(metadata=dict(static=True))  # at each task
    # (params, what was trained before the last update, batch) -> [N, T] log-prob of each token now,
    # less that before; None scores without a future value
    log_ratio: Callable[[Params, Params, StepBatch], jax.Array] | None = dataclasses.field(
        metadata=dict(static=True), default=None
    )

    @property
    def initial(self) -> int:
        """Attempts at a task that begin anew."""
        return initial_attempts(self.branching, self.settings, self.attempts)


def make_plan(
    config: Config, branching: Branching | None, policy: Policy, texts: Sequence[str]
) -> Plan | None:
    """The plan of a configuration; None where its method does not branch.

    Args:
        texts: text of each token, by id.
    """
    if branching is None:
        return None
    from steprl.models.scoring import score  # the table of methods is imported without models

    settings, temperature = config.algorithm.branch, config.rollout.temperature
    chunk, frozen_parts = (
        config.model.logprob_chunk,
        (config.model.freeze, config.model.train_layers),
    )

    @jax.jit
    def log_ratio(params: Params, before: Params, batch: StepBatch) -> jax.Array:
        _, frozen = split_trainable(params, *frozen_parts)
        scores = score(policy, combine(before, frozen), batch, temperature, chunk)
        return batch.logprob_NT - scores.logprob_NT

    needs_ratio = isinstance(branching, ByScore) and branching.future_value
    return Plan(
        np.asarray(nonblank_tokens(texts)), config.algorithm.gamma, branching, settings,
        config.rollout.n, log_ratio if needs_ratio else None,
    )  # fmt: skip


class Points(NamedTuple):
    """Where branches begin, one row for each that could be."""

    there_K: Array  # bool, there is such a branch
    origin_K: Array  # int32, row whose beginning it shares
    step_K: Array  # int32, the first step that it plays
    token_K: Array  # int32, tokens of that step's action that it keeps
    sample_K: Array  # int32, names the random stream of what comes
    score_K: Array  # float32, branching score of the place


def descend(
    step_ids_NT: Array, origin_N: Array, step_N: Array, token_N: Array, score_N: Array,
    preference_N: Array,
) -> Branches:  # fmt: skip
    """How the rows of a batch descend from each other, of NumPy arrays or of JAX's.

    Args:
        origin_N: row that each shares its beginning with, itself for an original.
        step_N: the first step of the row's own.
        token_N: tokens of that step's action that are shared.
    """
    first_step_NT = step_ids_NT == step_N[:, None]
    begun_NT = first_step_NT & (first_step_NT.cumsum(axis=1) <= token_N[:, None])
    shared_NT = ((step_ids_NT >= 0) & (step_ids_NT < step_N[:, None])) | begun_NT
    place_NT = shared_NT * np.arange(1, step_ids_NT.shape[1] + 1, dtype=np.int32)[None]
    is_branch_N = origin_N != np.arange(len(origin_N), dtype=np.int32)
    last_N = (is_branch_N * place_NT.max(axis=1)).astype(np.int32) - np.int32(1)
    return Branches(origin_N, step_N, last_N, score_N, preference_N)


# --- By score -------------------------------------------------------------------------------------


def score_points(
    plan: Plan, batch: StepBatch, ratio_NT: jax.Array | None, sample_K: jax.Array
) -> tuple[Points, dict[str, jax.Array]]:
    """The branches of each task, those of a task together.

    Args:
        batch: the attempts that began anew, all of a task one after the other, without holes in their
            rows: the future value is discounted by the distance of tokens in a row.
        ratio_NT: from `plan.log_ratio`, or None.
        sample_K: random streams of the branches.

    Returns:
        Where they begin, and what is measured of that.
    """
    branching = plan.branching
    assert isinstance(branching, ByScore)
    initial = plan.initial
    ids_NT, budget = batch.step_ids_NT, plan.attempts - initial
    tasks, length = ids_NT.shape[0] // initial, ids_NT.shape[1]
    scored = functools.partial(appo_branching_scores, negative_pairs=plan.settings.negative_pairs)
    score_NT, strict_NT = jax.vmap(scored)(batch.entropy_NT, ids_NT)
    if ratio_NT is not None:
        value = functools.partial(
            appo_future_value, gamma=plan.gamma, clip=plan.settings.future_clip
        )
        value_NT = jax.vmap(value)(ratio_NT, ids_NT)
        by_value_NT, by_both_NT = jax.vmap(scored)(batch.entropy_NT, ids_NT, value_NT)
        # Where the policies agree the future value says nothing: entropy alone decides.
        spread_N = jax.vmap(masked_variance)(value_NT, ids_NT >= 0)
        differs_N1 = (spread_N > 1e-10)[:, None]
        score_NT = jnp.where(differs_N1, by_value_NT, score_NT)
        strict_NT = jnp.where(differs_N1, by_both_NT, strict_NT)
    candidate_NT = branching.candidates(batch, jnp.asarray(plan.nonblank_V))
    split = lambda x: x.reshape(tasks, initial, length)  # noqa: E731
    choose = functools.partial(select_branch_points, budget=budget, refill=plan.settings.refill)
    chosen = jax.vmap(choose)(split(score_NT), split(strict_NT), split(candidate_NT))
    row_K, token_K = chosen.row_b.ravel(), chosen.token_b.ravel()
    there_K = row_K >= 0
    first_K = jnp.repeat(jnp.arange(tasks, dtype=jnp.int32), budget) * initial
    points = _cut(
        ids_NT, there_K, first_K + jnp.maximum(row_K, 0), jnp.maximum(token_K, 0), sample_K,
        jnp.where(there_K, chosen.score_b.ravel(), 0), branching.keep_token,
    )  # fmt: skip
    count = jnp.sum(there_K)
    number = jnp.maximum(count, 1)
    return points, {
        "branch/count": count,
        "branch/strict_frac": jnp.sum(chosen.num_strict) / number,
        "branch/fallback_frac": jnp.sum(chosen.num_fallback) / number,
        "branch/score_mean": jnp.sum(points.score_K) / number,
        "branch/step_mean": jnp.sum(points.step_K) / number,
    }


def _cut(
    ids_NT: jax.Array, there_K: jax.Array, origin_K: jax.Array, place_K: jax.Array,
    sample_K: jax.Array, score_K: jax.Array, keep_token: bool,
) -> Points:  # fmt: skip
    """Step, and tokens of its action, with which branches at places of rows begin."""
    ids_KT = ids_NT[origin_K]
    step_K = jnp.take_along_axis(ids_KT, place_K[:, None], axis=1)[:, 0]
    same_step_KT = ids_KT == step_K[:, None]
    before_KT = same_step_KT & (jnp.arange(ids_KT.shape[1])[None] < place_K[:, None])
    token_K = jnp.sum(before_KT, axis=1) + keep_token
    # A branch that keeps the whole action begins with the next step.
    complete_K = token_K >= jnp.sum(same_step_KT, axis=1)
    step_K, token_K = jnp.where(complete_K, step_K + 1, step_K), jnp.where(complete_K, 0, token_K)
    none = lambda x_K: jnp.where(there_K, x_K, 0).astype(jnp.int32)  # noqa: E731
    return Points(there_K, origin_K, none(step_K), none(token_K), sample_K, score_K)


# --- By contrast ----------------------------------------------------------------------------------

_WAVES_PER_CALL = 8  # a call continues a rollout at most 5 times


class Originals(NamedTuple):
    """What is known of finished rollouts when they are to be continued."""

    reward_N: jax.Array
    steps_N: jax.Array
    sample_N: jax.Array
    accuracy_N: jax.Array  # share of the attempts at the row's task that are correct
    branches_NC: jax.Array  # of each call, the original included; 0: it is not made
    from_end_NC: jax.Array  # steps before the end, from which each call continues


class Wave(NamedTuple):
    """The k-th continuations of all rollouts are one wave; what has come of those before it."""

    number: jax.Array  # [] int32: the next wave, counted through all calls
    found_N: jax.Array  # bool, a continuation contrasts: the row takes no further part
    preference_N: jax.Array  # of that continuation against its original
    split_N: jax.Array  # the step from which the row is continued


def begin_waves(
    plan: Plan, reward_N: jax.Array, steps_N: jax.Array, normal_N: jax.Array, sample_N: jax.Array
) -> tuple[Originals, Wave]:
    """From where and how often each rollout is continued, by how often its task is solved.

    Args:
        reward_N: return of each rollout, all attempts at a task one after the other.
        steps_N: its number of steps, 0 where the environment failed.
        normal_N: it ended by the environment, or because it ran out of steps; others stay as they are.
        sample_N: its random stream.
    """
    branching, threshold = plan.branching, plan.settings.threshold
    assert isinstance(branching, Contrast)
    reward_N = jnp.asarray(reward_N, jnp.float32)
    correct = (reward_N >= threshold).reshape(-1, plan.attempts)
    # Without steps there was no attempt: the environment failed.
    there = jnp.reshape(jnp.asarray(steps_N) > 0, correct.shape)
    correct = correct & there
    number, tried = jnp.sum(correct, axis=1), jnp.maximum(jnp.sum(there, axis=1), 1)
    steps = jnp.sum(jnp.where(correct, jnp.reshape(steps_N, correct.shape), 0), axis=1)
    back = lambda x: jnp.repeat(x, plan.attempts, total_repeat_length=reward_N.shape[0])  # noqa: E731
    accuracy_N, mean_N = back(number / tried), back(steps / jnp.maximum(number, 1))
    branches_NC, from_end_NC = branching.attempts(
        accuracy_N, mean_N, reward_N, steps_N, normal_N, threshold=threshold
    )
    branches_NC = jnp.where((jnp.asarray(steps_N) > 0)[:, None], branches_NC, 0)
    none_N = jnp.zeros(reward_N.shape, jnp.int32)
    originals = Originals(
        reward_N, jnp.asarray(steps_N, jnp.int32), jnp.asarray(sample_N, jnp.int32), accuracy_N,
        branches_NC, from_end_NC,
    )  # fmt: skip
    wave = Wave(jnp.zeros((), jnp.int32), none_N > 0, none_N, none_N)
    return originals, _to_next(originals, _moved(originals, wave))


def is_over(originals: Originals, wave: Wave) -> jax.Array:
    """Nothing is left to continue."""
    return wave.number >= originals.branches_NC.shape[1] * _WAVES_PER_CALL


def due_points(originals: Originals, wave: Wave) -> Points:
    """The continuations of a wave, a row each."""
    rows = originals.reward_N.shape[0]
    stride = jnp.max(originals.sample_N) + 1
    none_N = jnp.zeros(rows, jnp.int32)
    return Points(
        _is_due(originals, wave), jnp.arange(rows, dtype=jnp.int32), wave.split_N, none_N,
        stride * (1 + wave.number) + originals.sample_N, none_N.astype(jnp.float32),
    )  # fmt: skip


def record_wave(
    plan: Plan,
    originals: Originals,
    wave: Wave,
    reward_N: jax.Array,
    steps_N: jax.Array,
    normal_N: jax.Array,
) -> tuple[Wave, jax.Array]:
    """The wave after this one, in which a row is due, and which rows have found their contrast now.

    Args:
        reward_N, steps_N, normal_N: of the continuations as whole trajectories. Prefixes are the same,
            so these compare as their suffixes do.
    """
    branching = plan.branching
    assert isinstance(branching, Contrast)
    preference_N = branching.preference(
        originals.reward_N, originals.steps_N, jnp.asarray(reward_N, jnp.float32), steps_N,
        originals.accuracy_N, threshold=plan.settings.threshold,
    )  # fmt: skip
    hit_N = _is_due(originals, wave) & (preference_N != 0) & normal_N
    wave = Wave(
        wave.number + 1, wave.found_N | hit_N, jnp.where(hit_N, preference_N, wave.preference_N),
        wave.split_N,
    )  # fmt: skip
    return _to_next(originals, _moved(originals, wave)), hit_N


def contrast_report(
    originals: Originals, wave: Wave, played: int | jax.Array
) -> dict[str, jax.Array]:
    """What is measured of finished waves; `played` continuations were sampled."""
    resampled = jnp.sum(originals.branches_NC[:, 0] > 1)
    kept = jnp.sum(wave.found_N)
    return {
        "branch/count": jnp.asarray(played),
        "branch/kept": kept,
        "branch/contrast_frac": kept / jnp.maximum(resampled, 1),
        "branch/resampled_frac": resampled / originals.reward_N.shape[0],
    }


def _is_due(originals: Originals, wave: Wave) -> jax.Array:
    call = jnp.minimum(wave.number // _WAVES_PER_CALL, originals.branches_NC.shape[1] - 1)
    further_N = originals.branches_NC[:, call] > wave.number % _WAVES_PER_CALL + 1
    return ~wave.found_N & further_N & ~is_over(originals, wave)


def _moved(originals: Originals, wave: Wave) -> Wave:
    """The first wave of a call moves the split of the rows that it continues."""
    call = jnp.minimum(wave.number // _WAVES_PER_CALL, originals.branches_NC.shape[1] - 1)
    begins = (wave.number % _WAVES_PER_CALL == 0) & ~is_over(originals, wave)
    moves_N = begins & (originals.branches_NC[:, call] > 0) & ~wave.found_N
    split_N = originals.steps_N - originals.from_end_NC[:, call]
    return wave._replace(split_N=jnp.where(moves_N, split_N, wave.split_N))


def _to_next(originals: Originals, wave: Wave) -> Wave:
    """Waves in which no row is due are passed over."""

    def idle(wave: Wave) -> jax.Array:
        return ~is_over(originals, wave) & ~jnp.any(_is_due(originals, wave))

    def next_one(wave: Wave) -> Wave:
        return _moved(originals, wave._replace(number=wave.number + 1))

    return jax.lax.while_loop(idle, next_one, wave)
