"""Trajectories on disk: JSON lines, one a step, with the ids exactly as they were read and sampled."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from steprl.types import Parent, Step, Trajectory


def write_trajectories(
    path: Path, trajectories: Iterable[Trajectory], policy_version: int, seed: int
) -> None:
    """Writes the steps of some trajectories, complete or not at all.

    Args:
        path: file to write; its folder is made.
        trajectories: the records.
        policy_version: iterations that the policy had been trained for.
        seed: of the run, which with task, sample and version determines all that was random.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        for trajectory in trajectories:
            for number, step in enumerate(trajectory.steps):
                row = _head(trajectory, number) | _of_step(step)
                if number == len(trajectory.steps) - 1:
                    # JSON has no NaN.
                    metrics = {k: None if v != v else v for k, v in trajectory.metrics.items()}
                    row |= {"success": trajectory.success, "metrics": metrics}
                row |= {"policy_version": policy_version, "key": seed}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def read_trajectories(path: Path) -> list[Trajectory]:
    """What `write_trajectories` wrote; without supports and final observations, which are not kept.

    Raises:
        FileNotFoundError: there is no such file.
    """
    rows_by_id: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows_by_id.setdefault(row["traj_id"], []).append(row)
    return [_trajectory(rows) for rows in rows_by_id.values()]


def _head(trajectory: Trajectory, number: int) -> dict[str, Any]:
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
        "response_logprobs": [round(float(x), 6) for x in step.logprobs],
        "response_entropies": [round(float(x), 6) for x in step.entropies],
        "reward": step.reward,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "stop_reason": step.stop_reason,
        "valid": step.valid,
        "info": step.info,
    }


def _trajectory(rows: list[dict[str, Any]]) -> Trajectory:
    steps = tuple(
        Step(
            observation=row["observation"],
            action=row["action"],
            observation_ids=np.asarray(row["prompt_ids"], np.int32),
            action_ids=np.asarray(row["response_ids"], np.int32),
            logprobs=np.asarray(row["response_logprobs"], np.float32),
            entropies=np.asarray(row["response_entropies"], np.float32),
            reward=row["reward"],
            terminated=row["terminated"],
            truncated=row["truncated"],
            stop_reason=row["stop_reason"],
            valid=row["valid"],
            info=row["info"],
            fresh=row["fresh"],
        )
        for row in rows
    )
    last = rows[-1]
    parent = None
    if last["parent_id"] is not None:
        parent = Parent(int(last["parent_id"].rsplit("-", 1)[1]), **last["parent"])
    return Trajectory(
        last["task"],
        last["sample"],
        steps,
        last["success"],
        parent,
        metrics={k: float("nan") if v is None else v for k, v in last["metrics"].items()},
    )
