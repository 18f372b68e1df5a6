"""An environment that misbehaves in every way at once: each fault ends its own trajectory and no other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults import environment
from faults.cases import Answer, Case, settings, steprl
from faults.model import make_model

SOUND_TASKS = 8  # behind those that misbehave
ATTEMPTS = 2


def environments(folder: Path) -> Iterator[Case]:
    """Trained for one iteration on all faults at once, in threads and in processes."""
    for isolate in ("thread", "process"):
        yield from _faults(folder, isolate)
    yield _nothing_but_crashes(folder)


def _faults(folder: Path, isolate: str) -> Iterator[Case]:
    tasks = len(environment.FAULTS) + SOUND_TASKS
    name = f"faults-{isolate}"
    answer = _train(
        folder, name, "misbehaving", f"rollout.batch_size={tasks}", f"rollout.n={ATTEMPTS}",
        f"actor.ppo_mini_batch_size={tasks}", f"rollout.env_isolate={isolate}",
        "rollout.env_workers=2", f"eval.num_tasks={tasks}",
    )  # fmt: skip
    files = sorted((folder / "runs" / name / "trajectories").glob("*.jsonl"))
    played: dict[int, list[list[dict[str, Any]]]] = {}
    if files:
        by_id: dict[str, list[dict[str, Any]]] = {}
        for line in files[0].read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "traj_id" in row:
                by_id.setdefault(row["traj_id"], []).append(row)
        for rows in by_id.values():
            played.setdefault(rows[0]["task"], []).append(rows)
    whole = [
        len([rows for rows in played.get(task, []) if len(rows) == environment.STEPS])
        for task in range(len(environment.FAULTS), tasks)
    ]
    lost = sum(ATTEMPTS - number for number in whole)
    yield Case(
        f"{isolate}: {SOUND_TASKS * ATTEMPTS} sound trajectories beside {len(environment.FAULTS)} faults",
        right=answer.code == 0 and lost == 0,
        traceback=answer.traceback,
        lost=lost,
        said=answer.end,
    )
    for task, (where, fault) in enumerate(environment.FAULTS):
        rows = played.get(task, [])
        said = [str(attempt[-1].get("fault") or "") for attempt in rows]
        named = [text for text in said if where in text and f"task {task}" in text]
        yield Case(
            f"{isolate}: {where} {fault}",
            right=len(rows) == ATTEMPTS and len(named) == ATTEMPTS,
            silent=not all(said) or not said,
            said=said[0][:300] if said else "no such trajectory",
        )


def _nothing_but_crashes(folder: Path) -> Case:
    answer = _train(folder, "broken", "always_broken", "actor.ppo_mini_batch_size=8")
    return Case(
        "every step raises: the run stops and says why",
        right=answer.code not in (0, None) and "port 8080" in answer.text,
        traceback=answer.traceback,
        silent="port 8080" not in answer.text,
        said=answer.end,
    )


def _train(folder: Path, name: str, env: str, *overrides: str) -> Answer:
    make_model(folder / "model")
    words = settings(
        folder, "sft.steps=0", f"model.path={folder / 'model'}", "model.value_head=separate",
        f"env.name=faults.environment:{env}", "trainer.total_training_steps=1",
        f"trainer.experiment_name={name}", "trainer.save_trajectories=1", "eval.num_tasks=1",
        "trainer.val_before_train=false", "eval.greedy=false", "rollout.context_length=256",
        "rollout.response_length=4", "algorithm.name=grpo", "rollout.env_timeout=20", *overrides,
    )  # fmt: skip
    return steprl(["train", *words])
