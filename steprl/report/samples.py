"""The trajectories of a run as the page shows them: a short entry each, and its steps on demand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steprl.report.contents import number
from steprl.rollout.trajectory_file import read_rows

Rows = list[dict[str, Any]]
MOST_CHARACTERS = 60_000_000  # of a page's trajectories, as JSON


class Samples(NamedTuple):
    """What the page holds of the files of trajectories."""

    entries: list[dict[str, Any]]  # one a trajectory, for the list
    details: list[dict[str, Any]]  # in the same order
    notes: list[str]  # what was left out, and what could not be read


def samples(run: Path, most: int) -> Samples:
    """The first tasks of each file, with all attempts at them, `most` trajectories at most.

    A damaged file is read up to where it is damaged.
    """
    files = sorted((run / "trajectories").glob("*.jsonl"))
    found = Samples([], [], [])
    left_out = 0
    if not files:
        found.notes.append(
            "This run has no trajectories: trainer.save_trajectories=N keeps those of every N-th iteration"
        )
    for place, file in enumerate(files):
        share = (most - len(found.entries)) // (len(files) - place)
        kept, others, note = _first_tasks(file, share)
        left_out += others
        if note:
            found.notes.append(note)
        _add(found, kept, _iteration(file))
    if left_out:
        found.notes.append(
            f"{left_out} more trajectories are in the folder of the run; "
            f"steprl report RUN --trajectories N shows more than {most}"
        )
    return found


def _iteration(file: Path) -> int | None:
    digits = file.stem.rsplit("_", 1)[-1]
    return int(digits) if digits.isascii() and digits.isdigit() else None


def _first_tasks(file: Path, most: int) -> tuple[list[Rows], int, str | None]:
    """Trajectories of a file, how many others it has, and what is wrong with it."""
    by_task: dict[Any, list[Rows]] = {}
    kept, others, note = 0, 0, None
    groups = read_rows(file)
    while True:
        try:
            rows = next(groups, None)
        except (OSError, ValueError) as error:
            said = str(error).replace(str(file), f"trajectories/{file.name}")
            note = f"{said}; what stands before it is shown"
            break
        if rows is None:
            break
        task = str(rows[0].get("task"))
        if task not in by_task and kept >= most:
            others += 1
            continue
        by_task.setdefault(task, []).append(rows)
        kept += 1
    while kept > most and by_task:
        _, last = by_task.popitem()
        kept, others = kept - len(last), others + len(last)
    return [rows for task in by_task.values() for rows in task], others, note


def _add(found: Samples, trajectories: Sequence[Rows], iteration: int | None) -> None:
    """Appends the trajectories of a file; one that cannot be shown is noted."""
    place_of: dict[str, int] = {}
    for rows in trajectories:
        try:
            entry, detail = _entry(rows, iteration, place_of), _detail(rows)
            place_of.setdefault(entry["id"], len(found.entries))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            said = (
                f"trajectory {rows[0]['traj_id']} of iteration {iteration} is not as it was written"
            )
            found.notes.append(f"{said} ({type(error).__name__}: {error})")
            continue
        found.entries.append(entry)
        found.details.append(detail)


def _entry(rows: Rows, iteration: int | None, place_of: Mapping[str, int]) -> dict[str, Any]:
    steps, last = [row for row in rows if row["step"] is not None], rows[-1]
    faults = [last.get("fault"), *map(_fault, rows)]
    stop = last.get("stop_reason", "env_crash")
    if last.get("terminated"):
        stop = "terminated"
    said = [row["action"] for row in steps if row["action"].strip()]
    entry = {
        "id": str(last["traj_id"]),
        "iteration": iteration,
        "task": last["task"],
        "sample": last["sample"],
        "steps": len(steps),
        "return": number(sum(row["reward"] or 0.0 for row in steps)),
        "success": bool(last.get("success")),
        "stop": stop,
        "fault": next((fault for fault in faults if fault), None),
        "said": " ".join(said[-1].split())[:160] if said else "",
    }
    origin, branch = last.get("parent_id"), last.get("parent") or {}
    if origin is None:
        return entry
    own = origin == last["traj_id"]
    numbers = {name: number(branch.get(name)) for name in ("step", "token", "score", "preference")}
    origin = {"at": None, "id": None} if own else {"at": place_of.get(origin), "id": str(origin)}
    return entry | {"parent": origin | numbers}


def _fault(row: Mapping[str, Any]) -> str | None:
    """What went wrong in the environment at a step, in its own words where there are some."""
    told = (row.get("info") or {}).get("fault")
    reason = row.get("stop_reason", "env_crash")
    if told:
        return str(told)
    return reason if reason in ("env_crash", "env_timeout", "env_fault") else None


def _detail(rows: Rows) -> dict[str, Any]:
    steps = [_step(row) for row in rows if row["step"] is not None]
    metrics = {str(name): number(x) for name, x in (rows[-1].get("metrics") or {}).items()}
    return {"metrics": metrics, "steps": steps}


def _step(row: Mapping[str, Any]) -> dict[str, Any]:
    """One step; what is not known, or says nothing, is left out."""
    rollout = row["response_logprobs"]
    tokens: list[str] | None = row.get("response_tokens")
    step = {
        "read": row["observation"],
        "said": row["action"],
        "tokens": tokens,
        # The texts of a phrase tokenizer have no blanks of their own.
        "spaced": bool(tokens) and row["action"] not in "".join(tokens or ()),
        "reward": number(row["reward"]),
        "logprob": _column(rollout),
        "entropy": _column(row["response_entropies"]),
        "stop": row["stop_reason"],
        "invalid": not row["valid"],
        "fresh": row["fresh"] and row["step"] > 0,
        "fault": _fault(row),
        "info": {k: str(v) for k, v in (row.get("info") or {}).items() if k != "fault"},
        "read_tokens": len(row["prompt_ids"]),
    }
    if "advantage" in row:
        trained = row["response_train_logprobs"]
        step |= {
            "trained_reward": number(row["trained_reward"]),
            "value": number(row["value"]),
            "target": number(row["target"]),
            "advantage": number(row["advantage"]),
            "return": number(row["return"]),
            "advantages": _column(row.get("response_advantages")),
            "gap": _gap(trained, rollout),
            "masked": not row["learnt"],
            "mask": row.get("response_mask"),
        }
        if "response_reference_logprobs" in row:
            step["reference_gap"] = _gap(trained, row["response_reference_logprobs"])
    # By identity: 0 says something, though it equals False.
    return {name: x for name, x in step.items() if x is not None and x is not False and x != {}}


def _column(numbers: Sequence[float | None] | None) -> list[float | int | None] | None:
    """Of each token; there may be millions, so `number`, which is slower, is for the others."""
    if numbers is None:
        return None
    return [None if x is None else round(x, 4) or 0 for x in numbers]


def _gap(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | int | None]:
    """Differences of log-probs; those that are rounding are 0."""
    return [
        None if a is None or b is None else round(a - b, 4) or 0
        for a, b in zip(one, other, strict=True)
    ]
