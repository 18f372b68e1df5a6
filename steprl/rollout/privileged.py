"""What only the critic is told, between the records of steps and the arrays of a batch."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from steprl.types import Privileged, Step, StepBatch, Trajectory

_SMALLEST = 16  # tokens of a context; room doubles from there, so that few shapes are ever compiled


def privileged_rows(trajectories: Sequence[Trajectory], blocks: int) -> Privileged | None:
    """What the critic is told in each row; None where no trajectory has any of it.

    In a context, what is told again unchanged is told once, and nothing stands for no change.

    Args:
        blocks: contexts of a row.
    """
    rows = [list(_told_in_contexts(trajectory)) for trajectory in trajectories]
    most = max((sum(len(ids) for _, ids in context) for row in rows for context in row), default=0)
    if not most:
        return None
    room = _SMALLEST
    while room < most:
        room *= 2
    shape = (len(rows), blocks * room)
    tokens_NP, step_ids_NP = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    for number, row in enumerate(rows):
        for block, context in enumerate(row):
            place = block * room
            for step, ids in context:
                span = slice(place, place + len(ids))
                tokens_NP[number, span], step_ids_NP[number, span] = ids, step
                place = span.stop
    return Privileged(tokens_NP, step_ids_NP)  # type: ignore[arg-type]


def _told_in_contexts(trajectory: Trajectory) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Of each context, what is new before which step."""
    context: list[tuple[int, np.ndarray]] = []

    def tell(number: int, ids: np.ndarray) -> None:
        if len(ids) and not (context and np.array_equal(context[-1][1], ids)):
            context.append((number, ids))

    for number, step in enumerate(trajectory.steps):
        if step.fresh and number:
            yield context
            context = []
        tell(number, step.privileged_ids)
    tell(len(trajectory.steps), trajectory.final_privileged_ids)
    yield context


def with_privileged(trajectory: Trajectory, batch: StepBatch, row: int) -> Trajectory:
    """The record of a row with what the critic was told, which is the last that it was told before.

    Args:
        batch: on the host, with `privileged`.
    """
    assert batch.privileged is not None
    tokens_P, step_ids_P = (np.asarray(x)[row] for x in batch.privileged)
    told: Any = np.zeros(0, np.int32)
    steps: list[Step] = []
    for number, step in enumerate(trajectory.steps):
        new = tokens_P[step_ids_P == number]
        told = new if len(new) or step.fresh else told
        steps.append(dataclasses.replace(step, privileged_ids=told))
    new = tokens_P[step_ids_P == len(steps)]
    kept = bool(steps) and not steps[-1].terminated
    final = (new if len(new) else told) if kept else trajectory.final_privileged_ids
    return dataclasses.replace(trajectory, steps=tuple(steps), final_privileged_ids=final)
