"""Trajectories on disk: JSON lines, one a step, with the ids exactly as they were read and sampled.

The fields are described in docs/report.md. `FORMAT` counts changes that a reader has to know of; files
without it are of format 1, which has no token texts and no credit.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steprl.types import Parent, Step, Trajectory

FORMAT = 2


class StepCredit(NamedTuple):
    """What an update learnt from one step; arrays have one number for each token of its action."""

    reward: float  # that credit was computed from
    value: float | None  # of the critic before the step, None without one
    target: float | None  # of that value
    advantages: np.ndarray
    train_logprobs: np.ndarray  # as training computed them, before the update
    reference_logprobs: np.ndarray | None
    learnt: np.ndarray  # bool, the token is in the loss


class Line(NamedTuple):
    """A trajectory with what is written beside it."""

    trajectory: Trajectory
    tokens: Sequence[Sequence[str]] | None = (
        None  # of the action of each step, the text of each token
    )
    credit: Sequence[StepCredit] | None = None  # of each step


def write_trajectories(
    path: Path,
    trajectories: Iterable[Trajectory | Line],
    policy_version: int,
    seed: int,
) -> None:
    """Writes the steps of some trajectories, complete or not at all.

    Each is written as it comes, so they may be made one after the other. One without steps, whose
    environment failed to begin, is a single line whose `step` is null.

    Args:
        path: file to write; its folder is made.
        trajectories: the records, with their tokens and credit or without.
        policy_version: iterations that the policy had been trained for.
        seed: of the run, which with task, sample and version determines all that was random.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    source = {"policy_version": policy_version, "key": seed}
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for one in trajectories:
            for row in _rows(one if isinstance(one, Line) else Line(one)):
                file.write(_encode({"format": FORMAT} | row | source) + "\n")
    unfinished.replace(path)


def read_trajectories(path: Path) -> list[Trajectory]:
    """What `write_trajectories` wrote; supports, final observations and what only the critic was told
    are not kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is damaged, or of a later format.
    """
    return [_trajectory(rows) for rows in read_rows(path)]


def read_rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The lines of each trajectory of a file, one trajectory after the other, as they are written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is damaged, or of a later format. All before it have been given.
    """
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:  # lines end with \n only: text may hold other line ends
        for number, line in enumerate(file, 1):
            try:
                row = _decode(line, path, number)
            except ValueError:
                if rows and "success" in rows[-1]:  # its last line
                    yield rows
                raise
            if rows and (row["traj_id"] != rows[-1]["traj_id"] or not row["step"]):
                yield rows
                rows = []
            rows.append(row)
    if rows:
        yield rows


def _decode(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=lambda name: None)  # NaN, of the first format
        row["traj_id"], row["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: line {number} is not a step of a trajectory") from error
    if row.get("format", 1) not in (1, FORMAT):
        raise ValueError(
            f"{path}: line {number} has format {row['format']}, and this version of steprl reads up to "
            f"{FORMAT}: install a newer one"
        )
    return row


def _rows(line: Line) -> Iterator[dict[str, Any]]:
    trajectory = line.trajectory
    end = {"success": trajectory.success, "metrics": trajectory.metrics, "fault": trajectory.fault}
    if not trajectory.steps:
        yield _head(trajectory, None) | end
    remaining = sum(step.reward for step in trajectory.steps)
    if line.credit is not None:
        remaining = sum(of_step.reward for of_step in line.credit)
    for number, step in enumerate(trajectory.steps):
        row = _head(trajectory, number) | _of_step(step)
        if line.tokens is not None:
            row["response_tokens"] = line.tokens[number]
        if line.credit is not None:
            credit = line.credit[number]
            row |= _of_credit(credit, remaining)
            remaining -= credit.reward
        yield row | (end if number == len(trajectory.steps) - 1 else {})


def _encode(row: dict[str, Any]) -> str:
    """JSON on one line; a number that is not finite is null, and half a surrogate pair an escape."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False)
    except ValueError:
        return _encode(finite(row))
    return text


def finite(value: Any) -> Any:
    """What JSON can hold: each number that is not finite is None."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _head(trajectory: Trajectory, number: int | None) -> dict[str, Any]:
    task, parent = trajectory.task, trajectory.parent
    return {
        "traj_id": f"{task}-{trajectory.sample}",
        "parent_id": None if parent is None else f"{task}-{parent.origin}",
        "parent": None if parent is None else _of_parent(parent),
        "task": trajectory.task,
        "sample": trajectory.sample,
        "step": number,
    }


def _of_parent(parent: Parent) -> dict[str, Any]:
    return {name: x for name, x in parent._asdict().items() if name != "origin"}


def _of_step(step: Step) -> dict[str, Any]:
    return {
        "observation": step.observation,
        "action": step.action,
        "fresh": step.fresh,
        "prompt_ids": step.observation_ids.tolist(),
        "response_ids": step.action_ids.tolist(),
        "response_logprobs": _rounded(step.logprobs),
        "response_entropies": _rounded(step.entropies),
        "reward": step.reward,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "stop_reason": step.stop_reason,
        "valid": step.valid,
        "info": step.info,
    }


def _of_credit(credit: StepCredit, remaining: float) -> dict[str, Any]:
    """Lists only where the tokens differ: most methods give all tokens of a step the same credit."""
    advantages, learnt = np.asarray(credit.advantages), np.asarray(credit.learnt, bool)
    row: dict[str, Any] = {
        "trained_reward": credit.reward,
        "return": round(remaining, 6),
        "value": credit.value,
        "target": credit.target,
        "advantage": round(float(advantages.mean()), 6) if len(advantages) else None,
        "learnt": bool(learnt.any()),
        "response_train_logprobs": _rounded(credit.train_logprobs),
    }
    if len(advantages) and not np.all(advantages == advantages[0]):
        row["response_advantages"] = _rounded(advantages)
    if learnt.any() and not learnt.all():
        row["response_mask"] = learnt.astype(int).tolist()
    if credit.reference_logprobs is not None:
        row["response_reference_logprobs"] = _rounded(credit.reference_logprobs)
    return row


def _rounded(numbers: np.ndarray) -> list[float]:
    return [round(float(x), 6) for x in numbers]


def _trajectory(rows: list[dict[str, Any]]) -> Trajectory:
    last, parent = rows[-1], None
    if last["parent_id"] is not None:
        parent = Parent(int(last["parent_id"].rsplit("-", 1)[1]), **last["parent"])
    return Trajectory(
        last["task"],
        last["sample"],
        tuple(_step(row) for row in rows if row["step"] is not None),
        last["success"],
        parent,
        metrics={name: _number(value) for name, value in last["metrics"].items()},
        fault=last.get("fault", ""),
    )


def _step(row: dict[str, Any]) -> Step:
    floats = lambda name: np.asarray([_number(x) for x in row[name]], np.float32)  # noqa: E731
    return Step(
        observation=row["observation"],
        action=row["action"],
        observation_ids=np.asarray(row["prompt_ids"], np.int32),
        action_ids=np.asarray(row["response_ids"], np.int32),
        logprobs=floats("response_logprobs"),
        entropies=floats("response_entropies"),
        reward=_number(row["reward"]),
        terminated=row["terminated"],
        truncated=row["truncated"],
        stop_reason=row["stop_reason"],
        valid=row["valid"],
        info=row["info"],
        fresh=row["fresh"],
    )


def _number(value: float | None) -> float:
    """What was not finite is null in the file."""
    return math.nan if value is None else value
