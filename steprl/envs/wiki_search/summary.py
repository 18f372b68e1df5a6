"""Results of an evaluation: exact match and F1 with intervals, avg@k and pass@k, searches."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from steprl.envs.wiki_search.environment import WikiSearch
from steprl.metrics import mean_interval, pass_at_k
from steprl.types import Trajectory


class Attempt(NamedTuple):
    """What came of one attempt at one question."""

    task: int
    exact_match: float
    f1: float
    searches: int
    steps: int
    answered: bool  # there was a final reply within the steps
    calls: int  # tool calls of all replies, malformed ones included
    valid_calls: int


def attempts(trajectories: Iterable[Trajectory]) -> list[Attempt]:
    """The attempts in recorded trajectories of `WikiSearch`, from the `info` of their steps."""
    result = []
    for trajectory in trajectories:
        infos = [step.info for step in trajectory.steps]
        last = infos[-1] if infos else {}
        result.append(
            Attempt(
                task=trajectory.task,
                exact_match=float(last.get("exact_match", 0.0)),
                f1=float(last.get("f1", 0.0)),
                searches=int(last.get("num_searches", 0)),
                steps=len(infos),
                answered=bool(trajectory.steps and trajectory.steps[-1].terminated),
                calls=sum(int(info.get("num_calls", 0)) for info in infos),
                valid_calls=sum(int(info.get("num_valid_calls", 0)) for info in infos),
            )
        )
    return result


def play(env: WikiSearch, task: int, reply: Callable[[str], str]) -> Attempt:
    """One attempt of anything that turns an observation into a reply.

    Args:
        env: with `context="rebuild"`, unless `reply` remembers.
        task: number of the task.
        reply: the agent.
    """
    state, observation = env.reset(task)
    calls = valid_calls = 0
    while True:
        state, observation, _, terminated, truncated, info = env.step(state, reply(observation))
        calls += info["num_calls"]
        valid_calls += info["num_valid_calls"]
        if terminated or truncated:
            return Attempt(
                task, info["exact_match"], info["f1"], info["num_searches"], state.steps,
                terminated, calls, valid_calls,
            )  # fmt: skip


def summarise(results: Sequence[Attempt], k: int | None = None) -> dict[str, float]:
    """Means over questions, each the mean over its attempts, with 95 % intervals.

    Questions are the sample, attempts at one are not independent: intervals are those of
    `steprl.metrics.mean_interval` over questions.

    Args:
        results: any number of attempts at each task.
        k: of pass@k, at most the smallest number of attempts at a task, which is the default.

    Returns:
        exact_match, f1, each with _low and _high; avg@k (the same mean by its usual name); pass@k;
        num_searches, num_steps, answered_frac,
        valid_call_frac (of all calls; 1 if there was none); num_questions, num_attempts.

    Raises:
        ValueError: no results, or `k` is out of range.

    Example:
        >>> right, wrong = (Attempt(0, em, em, 2, 3, True, 2, 2) for em in (1.0, 0.0))
        >>> metrics = summarise([right, wrong, wrong, wrong], k=2)
        >>> metrics["exact_match"], metrics["avg@2"], metrics["pass@2"], metrics["num_searches"]
        (0.25, 0.25, 0.5, 2.0)
    """
    of_task: dict[int, list[Attempt]] = {}
    for result in results:
        of_task.setdefault(result.task, []).append(result)
    if not of_task:
        raise ValueError("results: there is no attempt to summarise")
    groups = list(of_task.values())
    fewest = min(map(len, groups))
    k = fewest if k is None else k
    if not 1 <= k <= fewest:
        raise ValueError(f"k: {k}; a question has {fewest} attempts only, choose 1 to {fewest}")
    exact_q = np.array([np.mean([attempt.exact_match for attempt in group]) for group in groups])
    f1_q = np.array([np.mean([attempt.f1 for attempt in group]) for group in groups])
    pass_q = [
        pass_at_k(len(g), sum(attempt.exact_match == 1.0 for attempt in g), k) for g in groups
    ]
    calls = sum(attempt.calls for attempt in results)
    metrics: dict[str, float] = {}
    for name, values_q in (("exact_match", exact_q), ("f1", f1_q)):
        low, high = mean_interval(values_q)
        metrics |= {name: float(values_q.mean()), f"{name}_low": low, f"{name}_high": high}
    return metrics | {
        f"avg@{k}": float(exact_q.mean()),
        f"pass@{k}": float(np.mean(pass_q)),
        "num_searches": float(np.mean([attempt.searches for attempt in results])),
        "num_steps": float(np.mean([attempt.steps for attempt in results])),
        "answered_frac": float(np.mean([attempt.answered for attempt in results])),
        "valid_call_frac": sum(attempt.valid_calls for attempt in results) / calls
        if calls
        else 1.0,
        "num_questions": float(len(groups)),
        "num_attempts": float(len(results)),
    }
