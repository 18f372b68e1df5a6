"""The audit of a policy: what each step was truly worth, beside what methods say of it."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.audit.enumeration import Bounds, check, enumerate_steps
from steprl.audit.estimates import (
    ADVANTAGE,
    CRITIC,
    STAKE,
    TARGETS,
    VALUE,
    Estimates,
    make_estimates,
    with_random,
)
from steprl.audit.truth import Truth, continue_all, join
from steprl.evaluation import PANEL_KEY
from steprl.metrics import correlation, correlation_interval
from steprl.rollout import attempts as rows_of
from steprl.rollout import with_anchors
from steprl.rollout.faults import check_faults
from steprl.sampling import sampling_of
from steprl.session import Session
from steprl.types import Params, Trajectory

CONTINUATIONS, ENUMERATED = "continuations", "enumeration"
RANK, LINEAR = "rank", "linear"


class Score(NamedTuple):
    """Correlation of an estimate with the truth over all steps, with its 95 % interval.

    Of ranks (Spearman), which weighs every difference the same however small it is, and of the
    numbers themselves (Pearson), in which the few steps that mattered a lot have the most weight.
    """

    target: str
    estimate: str
    truth: str  # how it was found: CONTINUATIONS or ENUMERATED
    kind: str  # RANK or LINEAR
    correlation: float
    low: float
    high: float


class Reliability(NamedTuple):
    """How far the truth of finitely many continuations can be trusted."""

    halves: float  # rank correlation between the truths of two halves of the continuations
    ceiling: (
        float  # about what the exact truth would reach against that of all: sqrt(2 r / (1 + r))
    )


class Audit(NamedTuple):
    """All that was found; arrays have a number for each step of each trajectory, in order."""

    trajectories: list[Trajectory]
    truth: Truth
    estimates: Estimates
    bounds: Bounds | None  # from the enumeration
    scores: list[Score]
    reliability: dict[str, Reliability]
    facts: dict[str, float]

    def number_s(self) -> np.ndarray:
        """[S] number of each step in its trajectory."""
        return np.array([k for one in self.trajectories for k in range(len(one.steps))], np.int64)

    def task_s(self) -> np.ndarray:
        """[S] task of each step."""
        return np.array([one.task for one in self.trajectories for _ in one.steps], np.int64)


def run_audit(
    session: Session,
    params: Params,
    split: str,
    tasks: int,
    attempts: int,
    continuations: int,
    critic: bool,
    older: Params | None = None,
    threshold: float | None = None,
    watch: Callable[[str, float], None] = lambda phase, share: None,
) -> Audit:
    """Plays tasks, continues from every step many times, and compares.

    Rollouts are sampled as in training (rollout.temperature, top_k, top_p), no more at a time than an
    iteration of training plays. Rewards are those of the environment, discounted by algorithm.gamma.

    Args:
        tasks: of the split, the first ones; all of it where it has fewer.
        attempts: at each task, which group methods compare.
        continuations: M, from each state.
        critic: the parameters have a trained one.
        older: parameters of an earlier checkpoint, for APPO's score.
        threshold: enumerate as well, down to this probability; None does not.
        watch: called with the phase and the share of it that is done.

    Raises:
        ValueError: a number is too small, no such split, the environment cannot branch or, with a
            threshold, cannot be enumerated.
        EnvironmentFailed: the environment failed in all trajectories.
    """
    player, mesh = session.player, session.mesh
    for name, number, least in (
        ("tasks", tasks, 2), ("attempts", attempts, 1), ("continuations", continuations, 4),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name}={number}: must be at least {least}")
    if split not in player.splits:
        raise ValueError(f"split={split}: this environment has {', '.join(player.splits)}")
    if threshold is not None:
        check(session.suite, session.config, threshold)
    if player.explore is None or player.branch is None or player.collate is None:
        raise ValueError(f"env.name={session.config.env.name}: its rollouts cannot branch")
    tasks = min(tasks, player.sizes.get(split, tasks))
    rollout = session.config.rollout
    how: dict[str, Any] = dict(sampling=sampling_of(rollout), split=split)
    # Whole groups at a time, and as many rows as the mesh can share out.
    unit = mesh.size // math.gcd(mesh.size, attempts)
    together = max(1, min(rollout.batch_size * rollout.n, tasks * attempts) // (attempts * unit))
    together *= unit
    estimate = make_estimates(session, critic, older, attempts)
    key, begin = jax.random.key(PANEL_KEY), time.perf_counter()
    trajectories: list[Trajectory] = []
    faults: list[str] = []
    truths, estimate_parts, decoded = [], [], 0
    for first in range(0, tasks, together):
        kept = min(together, tasks - first) * attempts
        rollouts = player.explore(params, key, *rows_of(first, together, attempts), **how)
        faults += [one.fault for one in rollouts.trajectories[:kept] if one.fault]
        # Where the environment failed there is no credit to judge.
        rollouts = rollouts._replace(
            trajectories=[
                dataclasses.replace(one, steps=()) if one.fault else one
                for one in rollouts.trajectories
            ]
        )

        def report(share: float, first: int = first, kept: int = kept) -> None:
            watch("continuing", (first + share * kept / attempts) / tasks)

        truth, usage = continue_all(
            player, params, key, rollouts, kept, continuations, attempts,
            session.config.algorithm.gamma, report, **how,
        )  # fmt: skip
        batch = with_anchors(
            player.collate(rollouts.trajectories), player.tokenizer,
            session.config.algorithm.similarity_thresh,
        )  # fmt: skip
        steps = len(truth.reward_s)
        estimate_parts.append({t: {n: x[:steps] for n, x in of.items()}
                               for t, of in estimate(params, batch).items()})  # fmt: skip
        truths.append(truth)
        trajectories += rollouts.trajectories[:kept]
        decoded += rollouts.usage.decoded + usage.decoded
    truth = join(truths, together * attempts)
    if faults:
        check_faults("audit", len(faults), len(trajectories), faults[0])
    estimates = {
        target: {
            name: np.concatenate([part[target][name] for part in estimate_parts]) for name in of
        }
        for target, of in estimate_parts[0].items()
    }
    estimates = with_random(estimates, len(truth.reward_s), PANEL_KEY)
    seconds = time.perf_counter() - begin
    bounds, exact_seconds = None, 0.0
    if threshold is not None:
        begin = time.perf_counter()
        bounds = _enumerate(session, params, split, trajectories, threshold, watch)
        exact_seconds = time.perf_counter() - begin
    success = np.array([one.success for one in trajectories if not one.fault], float)
    facts = {
        "success_rate": float(success.mean()),
        "trajectories": float(len(trajectories)),
        "steps": float(len(truth.reward_s)),
        "faults": float(len(faults)),
        "tokens_sampled": float(decoded),
        "seconds": seconds,
        "seconds_enumerating": exact_seconds,
    }  # fmt: skip
    audit = Audit(trajectories, truth, estimates, bounds, [], {}, facts)
    return judged(audit)


def _enumerate(
    session: Session, params: Params, split: str, trajectories: Sequence[Trajectory],
    threshold: float, watch: Callable[[str, float], None],
) -> Bounds:  # fmt: skip
    heldout = split != session.player.splits[0]
    arguments = (session.policy, params, session.suite, session.config, heldout)
    tasks = sorted({one.task for one in trajectories})
    parts = []
    for done, task in enumerate(tasks):
        watch("enumerating", done / len(tasks))
        task_trajectories = [one for one in trajectories if one.task == task]
        parts.append(enumerate_steps(*arguments, task_trajectories, threshold))
    # Trajectories come in the order of their tasks.
    return Bounds(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def judged(audit: Audit) -> Audit:
    """The audit with its correlations."""
    truth, task_s = audit.truth, audit.task_s()
    of_target = {VALUE: truth.value, ADVANTAGE: truth.advantage, STAKE: truth.stake}
    exact = {} if audit.bounds is None else enumerated(audit.bounds)
    scores, reliability, facts = [], {}, dict(audit.facts)
    for target in TARGETS:
        sampled_s = of_target[target]()[0]
        one_s, other_s = (of_target[target](slice(first, None, 2))[0] for first in (0, 1))
        halves = correlation(one_s, other_s, ranks=True)
        ceiling = math.sqrt(2 * halves / (1 + halves)) if halves > 0 else math.nan
        reliability[target] = Reliability(halves, ceiling)
        for name, estimate_s in audit.estimates[target].items():
            truths = {CONTINUATIONS: sampled_s} | ({ENUMERATED: exact[target]} if exact else {})
            for source, truth_s in truths.items():
                for kind in (RANK, LINEAR):
                    ranks, pair = kind == RANK, (estimate_s, truth_s)
                    interval = correlation_interval(*pair, task_s, ranks)
                    coefficient = correlation(*pair, ranks=ranks)
                    scores.append(Score(target, name, source, kind, coefficient, *interval))
    value_s, variance_s = truth.value()
    if CRITIC in audit.estimates[VALUE]:
        off_s = audit.estimates[VALUE][CRITIC] - value_s
        facts["critic_bias"] = float(off_s.mean())
        # The error of the truth is no error of the critic.
        facts["critic_rmse"] = math.sqrt(max(float((off_s**2 - variance_s).mean()), 0.0))
    if audit.bounds is not None:
        exact_s = exact[VALUE]
        facts["enumerated_width_mean"] = float(np.ptp(audit.bounds.value_s, axis=1).mean())
        facts["enumerated_width_max"] = float(np.ptp(audit.bounds.value_s, axis=1).max())
        # About 1 where the continuations are off by chance alone.
        expected = float(variance_s.sum())
        off = float(((value_s - exact_s) ** 2).sum())
        facts["squared_error_over_expected"] = off / expected if expected > 0 else math.nan
    return audit._replace(scores=scores, reliability=reliability, facts=facts)


def enumerated(bounds: Bounds) -> dict[str, np.ndarray]:
    """Each target by the middle of its bounds; at stake is the variance of Q over all actions."""
    value_s = bounds.value_s.mean(axis=1)
    return {
        VALUE: value_s,
        ADVANTAGE: bounds.action_value_s.mean(axis=1) - value_s,
        STAKE: bounds.variance_s.mean(axis=1),
    }


def as_record(audit: Audit) -> dict[str, Any]:
    """All of it as JSON: scores, reliability, facts, and a column of each number a step."""
    value_s, of_value_s = audit.truth.value()
    action_s, _ = audit.truth.action_value()
    advantage_s, of_advantage_s = audit.truth.advantage()
    columns: dict[str, np.ndarray] = {
        "task": audit.task_s(),
        "sample": np.array([one.sample for one in audit.trajectories for _ in one.steps]),
        "step": audit.number_s(),
        "value": value_s,
        "value_error": np.sqrt(of_value_s),
        "action_value": action_s,
        "advantage": advantage_s,
        "advantage_error": np.sqrt(of_advantage_s),
        "stake": audit.truth.stake()[0],
    }
    for target, of in audit.estimates.items():
        columns |= {f"{target}: {name}": x_s for name, x_s in of.items()}
    if audit.bounds is not None:
        for name, bound_s in audit.bounds._asdict().items():
            quantity = name.removesuffix("_s")
            columns[f"enumerated {quantity}, low"] = bound_s[:, 0]
            columns[f"enumerated {quantity}, high"] = bound_s[:, 1]
    return {
        "facts": {name: _plain(x) for name, x in audit.facts.items()},
        "reliability": {
            target: {name: _plain(x) for name, x in one._asdict().items()}
            for target, one in audit.reliability.items()
        },
        "scores": [
            {name: x if isinstance(x, str) else _plain(x) for name, x in one._asdict().items()}
            for one in audit.scores
        ],
        "steps": {
            name: x.tolist() if x.dtype.kind == "i" else [round(float(y), 5) for y in x]
            for name, x in columns.items()
        },
    }


def _plain(x: float) -> float | None:
    """Strict JSON has no NaN."""
    return float(x) if math.isfinite(x) else None
