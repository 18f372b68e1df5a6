"""Success on a fixed panel of tasks, and a close look at single trajectories."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.config import Config, EvalConfig
from steprl.metrics import mean_interval, pass_at_k
from steprl.models.scoring import score
from steprl.models.tokenizer import token_texts
from steprl.rollout import Player, trajectories
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
) -> dict[str, float]:
    """Plays `num_tasks` tasks, `n` times each; greedy once, as all attempts would be the same.

    Args:
        split: of the environment's tasks; where it has fewer, each is played and none twice.
        rows: trajectories played at a time; the last batch is filled up and cut, so one shape is
            compiled.
        temperature: 0 is greedy.

    Returns:
        success_rate with its 95 % interval as success_rate_low and _high, over tasks; with n above 1
        also avg@n and pass@n; return, num_turns, parse_error_frac, truncated_frac; and each metric of
        the environment with its interval, such as f1, f1_low, f1_high.
    """
    n = config.n if temperature > 0 else 1
    num_tasks = min(config.num_tasks, player.sizes.get(split, config.num_tasks))
    parts: list[StepBatch] = []
    for first in range(0, num_tasks * n, rows):
        attempt = np.arange(first, first + rows)
        batch = player.play(
            params, jax.random.key(PANEL_KEY), attempt // n, attempt % n,
            Sampling(temperature, config.top_k, config.top_p), split=split,
        )  # fmt: skip
        # The supports are for training, and large.
        parts.append(jax.device_get(dataclasses.replace(batch, support_NTW=None)))

    def column(pick: Any) -> np.ndarray:
        """[tasks, n]"""
        flat = np.concatenate([np.asarray(pick(part)) for part in parts])
        return flat[: num_tasks * n].reshape(num_tasks, n)

    success = column(lambda b: b.success_N)
    turns = column(lambda b: b.mask_NS.sum(axis=1))
    metrics = _with_interval("success_rate", success.mean(axis=1))
    if n > 1:
        passed = [pass_at_k(n, int(solved), n) for solved in success.sum(axis=1)]
        metrics |= {f"avg@{n}": metrics["success_rate"], f"pass@{n}": float(np.mean(passed))}
    wrong = column(lambda b: (b.mask_NS & ~b.valid_NS).sum(axis=1))
    metrics |= {
        "return": float(column(lambda b: b.reward_NS.sum(axis=1)).mean()),
        "num_turns": float(turns.mean()),
        "parse_error_frac": float(wrong.sum() / turns.sum()),
        "truncated_frac": float(column(lambda b: b.truncated_NS.any(axis=1)).mean()),
    }
    for name in parts[0].metrics_N or {}:
        metrics |= _with_interval(name, _means(column(lambda b, name=name: b.metrics_N[name])))
    return metrics


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    interval = mean_interval(values)
    mean = float(values.mean()) if len(values) else float("nan")
    return {name: mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _means(values_QK: np.ndarray) -> np.ndarray:
    """Of each task over its attempts; an attempt that has no value (NaN) is left out."""
    there = ~np.isnan(values_QK)
    tasks = there.any(axis=1)
    total = np.where(there, values_QK, 0.0).sum(axis=1)
    return total[tasks] / there.sum(axis=1)[tasks]


def evaluate_all(
    player: Player, params: Params, config: Config, num_tasks: int | None = None
) -> dict[str, float]:
    """All splits, sampled and greedy, by the names of metrics.

    The main split is `eval/success_rate` (sampled) and `eval/success_rate_greedy`; another split S
    is `eval/S/success_rate`.
    """
    rows = config.rollout.batch_size * config.rollout.n
    settings = (
        config.eval if num_tasks is None else dataclasses.replace(config.eval, num_tasks=num_tasks)
    )
    metrics: dict[str, float] = {}
    for index, split in enumerate(player.splits[1:]):
        prefix = "eval/" if index == 0 else f"eval/{split}/"
        temperatures = {"": settings.temperature} | ({"_greedy": 0.0} if settings.greedy else {})
        for suffix, temperature in temperatures.items():
            result = evaluate(player, params, settings, split, rows, temperature)
            metrics |= {f"{prefix}{name}{suffix}": value for name, value in result.items()}
    return metrics


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
    """
    config, player, method = session.config, session.player, session.method
    warm = config.eval.temperature if temperature is None else temperature
    batch = player.play(
        params, jax.random.key(PANEL_KEY), task_N, np.zeros(len(task_N), np.int32),
        Sampling(warm), split=split,
    )  # fmt: skip
    raw = dataclasses.replace(config.algorithm, norm_adv=False)

    @jax.jit
    def credit_of(params: Params, batch: StepBatch) -> Any:
        value_NT = score(session.policy, params, batch, config.rollout.temperature).value_NT
        return value_NT, method.credit(batch, value_NT, raw).advantage_NT

    value_NT, advantage_NT = jax.device_get(credit_of(params, batch))
    host = jax.device_get(batch)
    inspected = []
    for row, trajectory in enumerate(trajectories(batch, player.tokenizer)):
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
