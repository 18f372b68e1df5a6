"""Success on a fixed panel of tasks, and a close look at single trajectories."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.config import Config, EvalConfig
from steprl.metrics import mean_interval, pass_at_k
from steprl.models.scoring import score
from steprl.models.tokenizer import token_texts
from steprl.rollout import Player, trajectories, with_anchors
from steprl.rollout.faults import check_faults, faulty_rows, first_fault, without_rows
from steprl.sampling import Sampling
from steprl.session import Session
from steprl.types import Params, StepBatch, Trajectory

PANEL_KEY = 20_260_101
"""Seed of evaluation: the same for all runs, so that curves can be laid over each other."""


def evaluate(
    player: Player,
    params: Params,
    config: EvalConfig,
    split: str,
    rows: int,
    temperature: float,
    first_task: int = 0,
) -> dict[str, float]:
    """Plays `num_tasks` tasks, `n` times each; greedy once, as all attempts would be the same.

    Where an environment on the host does not say how many tasks it has, those that begin alike are
    attempts at one task, and intervals are over the tasks that are left: a panel that goes round
    four tasks tells no more than the four.

    Args:
        split: of the environment's tasks; where it has fewer, each is played and none twice.
        rows: trajectories played at a time; the last batch is filled up and cut, so one shape is
            compiled.
        temperature: 0 is greedy.
        first_task: number of the first of the tasks.

    Returns:
        success_rate with its 95 % interval as success_rate_low and _high, over tasks; num_tasks, how
        many different ones there were; with n above 1 also avg@n and pass@n; return, num_turns,
        parse_error_frac, truncated_frac, entropy, the mean over sampled tokens in nats; and each
        metric of the environment with its interval, such as f1, f1_low, f1_high. All of these are of
        the attempts in which the environment did not fail; attempts and faults say how many were made
        and how many failed.

    Raises:
        EnvironmentFailed: the environment failed in all attempts.
    """
    n = config.n if temperature > 0 else 1
    num_tasks = min(config.num_tasks, player.sizes.get(split, config.num_tasks))
    parts: list[StepBatch] = []
    faults: list[str] = []
    for first in range(0, num_tasks * n, rows):
        attempt = np.arange(first, first + rows)
        batch, found = _play(
            player, params, first_task + attempt // n, attempt % n,
            Sampling(temperature, config.top_k, config.top_p), split,
        )  # fmt: skip
        faults += filter(None, found)
        # The supports are for training, and large.
        parts.append(jax.device_get(dataclasses.replace(batch, support_NTW=None)))

    def column(pick: Any) -> np.ndarray:
        """[tasks, n]"""
        flat = np.concatenate([np.asarray(pick(part)) for part in parts])
        return flat[: num_tasks * n].reshape(num_tasks, n)

    failed = column(faulty_rows)
    if failed.any():
        fault = first_fault(faults, parts)
        check_faults(f"evaluation of split {split!r}", int(failed.sum()), failed.size, fault)
    fine = ~failed
    of_fine = lambda pick: np.where(fine, column(pick), 0)  # noqa: E731
    success, turns = of_fine(lambda b: b.success_N), of_fine(lambda b: b.mask_NS.sum(axis=1))
    # A task in which the environment always failed is left out.
    some, tried = fine.any(axis=1), np.maximum(fine.sum(axis=1), 1)
    task_Q = np.arange(num_tasks)
    if split not in player.sizes and player.gather is None:
        task_Q = _by_beginning(parts, num_tasks, n)
    rate_Q = np.where(some, success.sum(axis=1) / tried, np.nan)
    metrics = _with_interval("success_rate", _means(rate_Q, task_Q))
    metrics["num_tasks"] = float(len(np.unique(task_Q[some])))
    if n > 1:
        passed = [
            pass_at_k(of, int(solved), of)
            for solved, of in zip(success.sum(axis=1), tried, strict=True)
        ]
        metrics |= {
            f"avg@{n}": metrics["success_rate"],
            f"pass@{n}": float(np.mean(np.asarray(passed)[some])),
        }
    wrong = of_fine(lambda b: (b.mask_NS & ~b.valid_NS).sum(axis=1))
    metrics |= {
        "return": float(of_fine(lambda b: b.reward_NS.sum(axis=1)).sum() / fine.sum()),
        "num_turns": float(turns.sum() / fine.sum()),
        "parse_error_frac": float(wrong.sum() / max(turns.sum(), 1)),
        "truncated_frac": float(of_fine(lambda b: b.truncated_NS.any(axis=1)).sum() / fine.sum()),
        "entropy": float(of_fine(_entropy).sum() / max(of_fine(_sampled).sum(), 1)),
        "attempts": float(failed.size),
        "faults": float(failed.sum()),
    }
    for name in dict.fromkeys(name for part in parts for name in part.metrics_N or {}):
        values = np.where(fine, column(lambda b, name=name: _metric(b, name)), np.nan)
        metrics |= _with_interval(name, _means(values, task_Q))
    return metrics


def _play(
    player: Player, params: Params, task_N: np.ndarray, sample_N: np.ndarray, sampling: Sampling,
    split: str,
) -> tuple[StepBatch, list[str]]:  # fmt: skip
    """What was played, and what went wrong with the environment in each row, "" where nothing did."""
    key = jax.random.key(PANEL_KEY)
    if player.gather is not None or player.explore is None or player.collate is None:
        return player.play(params, key, task_N, sample_N, sampling, split=split), [""] * len(task_N)
    played = player.explore(
        params, key, task_N, sample_N, sampling, split=split, remember=False
    ).trajectories
    return player.collate(played), [one.fault for one in played]


def _metric(batch: StepBatch, name: str) -> np.ndarray:
    """What the environment measured of each row, NaN where it did not."""
    nothing_N = np.full(batch.task_N.shape, np.nan, np.float32)
    return np.asarray((batch.metrics_N or {}).get(name, nothing_N))


def _sampled(batch: StepBatch) -> np.ndarray:
    """[N] tokens that were sampled."""
    return (np.asarray(batch.step_ids_NT) >= 0).sum(axis=1)


def _entropy(batch: StepBatch) -> np.ndarray:
    """[N] entropy of what they were sampled from, summed over them."""
    return np.where(np.asarray(batch.step_ids_NT) >= 0, batch.entropy_NT, 0.0).sum(axis=1)


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    interval = mean_interval(values)
    mean = float(values.mean()) if len(values) else float("nan")
    return {name: mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _means(values_Q: np.ndarray, task_Q: np.ndarray) -> np.ndarray:
    """Of each task, over its attempts and whatever played it again; NaN, no value, is left out."""
    rows = values_Q.reshape(len(task_Q), -1)
    there = ~np.isnan(rows)
    total = np.bincount(task_Q, np.where(there, rows, 0.0).sum(axis=1))
    number = np.bincount(task_Q, there.sum(axis=1))
    return total[number > 0] / number[number > 0]


def _by_beginning(parts: list[StepBatch], num_tasks: int, n: int) -> np.ndarray:
    """[tasks] the number of the first task with the same first prompt.

    Where all begin alike, what tells them apart is hidden: each is its own.
    """
    prompts: list[bytes] = []
    for part in parts:
        tokens, real = np.asarray(part.tokens_NT), np.asarray(part.segment_ids_NT) > 0
        end_N = np.argmax(np.asarray(part.step_ids_NT) >= 0, axis=1)
        for row, end in enumerate(end_N):
            prompts.append(tokens[row, :end][real[row, :end]].tobytes())
    first: dict[bytes, int] = {}
    task_Q = np.array([first.setdefault(prompts[q * n], q) for q in range(num_tasks)])
    return np.arange(num_tasks) if len(first) == 1 else task_Q


def evaluate_all(
    player: Player,
    params: Params,
    config: Config,
    num_tasks: int | None = None,
    rows: int | None = None,
) -> dict[str, float]:
    """The splits of `eval.splits`, sampled and greedy, by the names of metrics.

    The main split is `eval/success_rate` (sampled) and `eval/success_rate_greedy`; another split S
    is `eval/S/success_rate`.

    Args:
        num_tasks: None for `eval.num_tasks`.
        rows: as of `evaluate`, None for those of an iteration, whose shape training has compiled.
    """
    rows = config.rollout.batch_size * config.rollout.n if rows is None else rows
    settings = (
        config.eval if num_tasks is None else dataclasses.replace(config.eval, num_tasks=num_tasks)
    )
    metrics: dict[str, float] = {}
    for split in splits_of(player, config.eval):
        prefix = "eval/" if split == player.splits[1] else f"eval/{split}/"
        temperatures = {"": settings.temperature} | ({"_greedy": 0.0} if settings.greedy else {})
        played: dict[float, dict[str, float]] = {}  # at temperature 0, sampled is greedy
        for suffix, temperature in temperatures.items():
            if temperature not in played:
                played[temperature] = evaluate(player, params, settings, split, rows, temperature)
            result = played[temperature]
            metrics |= {f"{prefix}{name}{suffix}": value for name, value in result.items()}
    return metrics


def splits_of(player: Player, config: EvalConfig) -> tuple[str, ...]:
    """The splits to evaluate on, in the order of the environment."""
    heldout = player.splits[1:]
    return tuple(split for split in heldout if not config.splits or split in config.splits)


class Inspected(NamedTuple):
    """A trajectory with what the critic and the method say of it."""

    trajectory: Trajectory
    tokens: list[str]  # [T] text of each real token
    step_ids: np.ndarray  # [T]
    advantage: np.ndarray  # [T] not whitened
    value: np.ndarray  # [T]
    reward: np.ndarray  # [T] on the last token of its step
    values: list[float]  # of each step
    advantages: list[float]  # of each step: mean over its tokens


def inspect(
    session: Session,
    params: Params,
    split: str,
    task_N: np.ndarray,
    temperature: float | None = None,
) -> list[Inspected]:
    """Plays some tasks and computes values and credit of each step.

    Args:
        temperature: of sampling, None for that of the evaluation.

    Raises:
        EnvironmentFailed: the environment failed in all of them.
    """
    config, player, method = session.config, session.player, session.method
    warm = config.eval.temperature if temperature is None else temperature
    batch, faults = _play(
        player, params, task_N, np.zeros(len(task_N), np.int32), Sampling(warm), split
    )
    failed_N = np.asarray(faulty_rows(batch))
    if failed_N.any():
        first = first_fault([fault for fault in faults if fault], [batch])
        faults = [fault or first * bool(bad) for fault, bad in zip(faults, failed_N, strict=True)]
        check_faults(f"tasks of split {split!r}", int(failed_N.sum()), len(failed_N), first)
    if "anchors" in method.needs:
        batch = with_anchors(batch, player.tokenizer, config.algorithm.similarity_thresh)
    # One attempt at each task: methods of groups show its score.
    raw = dataclasses.replace(config.algorithm, norm_adv=False, singleton="score")

    @jax.jit
    def credit_of(params: Params, batch: StepBatch) -> Any:
        value_NT = score(session.policy, params, batch, config.rollout.temperature).value_NT
        fine = without_rows(batch, faulty_rows(batch))
        return value_NT, method.credit(fine, value_NT, raw).advantage_NT

    value_NT, advantage_NT = jax.device_get(credit_of(params, batch))
    host = jax.device_get(batch)
    inspected = []
    for row, trajectory in enumerate(trajectories(batch, player.tokenizer)):
        trajectory = dataclasses.replace(trajectory, fault=faults[row])
        real = np.flatnonzero(host.segment_ids_NT[row] > 0)
        step_ids = host.step_ids_NT[row][real]
        value, advantage = value_NT[row][real], advantage_NT[row][real]
        reward = np.zeros(len(real), np.float32)
        firsts, means = [], []
        for number, step in enumerate(trajectory.steps):
            token_places = np.flatnonzero(step_ids == number)
            reward[token_places[-1]] = step.reward
            firsts.append(float(value[token_places[0]]))
            means.append(float(advantage[token_places].mean()))
        words = token_texts(player.tokenizer, host.tokens_NT[row][real])
        inspected.append(
            Inspected(trajectory, words, step_ids, advantage, value, reward, firsts, means)
        )
    return inspected
