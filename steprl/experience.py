"""What one iteration learns from: rollouts of the method's kind, as a batch."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from steprl.branching import make_plan
from steprl.config import TrainerConfig
from steprl.models.tokenizer import token_texts
from steprl.rollout import Line, StepCredit, with_anchors, write_trajectories
from steprl.rollout.branching import host_gather
from steprl.rollout.rollouts import Experience
from steprl.sampling import sampling_of
from steprl.session import Session
from steprl.types import StepBatch, Trajectory
from steprl.update import TokenRecord, TrainState

Gather = Callable[[TrainState, jax.Array, np.ndarray, np.ndarray], Experience]
"""From state, key of all rollouts, tasks and samples."""


def make_gather(session: Session) -> Gather:
    """The rollouts of the session's method, with the branches that it needs."""
    config, player, method = session.config, session.player, session.method
    size = session.vocab_size if method.branching else 0
    texts = [player.tokenizer.decode([token]) for token in range(size)]
    plan = make_plan(config, method.branching, session.policy, texts)
    sampling = sampling_of(config.rollout)
    if player.gather is None:
        rollouts = host_gather(player, plan, sampling)
    else:
        rollouts = player.gather(plan, sampling)

    def gather(
        state: TrainState, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray
    ) -> Experience:
        experience = rollouts(state.params, key, task_N, sample_N, state.carried.get("previous"))
        if "anchors" in method.needs:
            similarity = config.algorithm.similarity_thresh
            experience = experience._replace(
                batch=with_anchors(experience.batch, player.tokenizer, similarity)
            )
        return experience

    return gather


# By default: about so many files a run, the last iteration among them, of so many attempts each.
DEFAULT_FILES, DEFAULT_ATTEMPTS = 10, 64


def are_saved(settings: TrainerConfig, iteration: int, last: bool) -> bool:
    """Whether the trajectories of an iteration are written, as `trainer.save_trajectories` says."""
    every = settings.save_trajectories
    if every is None:
        spread = max(1, settings.total_training_steps // DEFAULT_FILES)
        return last or iteration % spread == 0
    return every > 0 and iteration % every == 0


def save_experience(
    path: Path,
    experience: Experience,
    record: TokenRecord | None,
    tokenizer: Any,
    iteration: int,
    settings: TrainerConfig,
) -> None:
    """Writes the trajectories of an iteration with the credit that the update gave them.

    Args:
        path: file to write.
        experience: what the update learnt from.
        record: of that update; None where there was none.
        tokenizer: for the text of each token; None leaves it out.
        iteration: counted from 1.
        settings: where they say nothing, the attempts at the first tasks only, about
            `DEFAULT_ATTEMPTS`, and those in which the environment failed.
    """
    tasks = None
    if settings.save_trajectories is None:
        tasks = _first_tasks(experience.batch, DEFAULT_ATTEMPTS)
    lines = _lines(experience, record, tokenizer, tasks)
    write_trajectories(path, lines, iteration - 1, settings.seed)


def _first_tasks(batch: StepBatch, attempts: int) -> set[int]:
    """The first tasks that have together no more rows than `attempts`; one at least."""
    task_N, mask_NS = jax.device_get((batch.task_N, batch.mask_NS))
    rows_of = Counter(task_N[np.any(mask_NS, axis=1)].tolist())  # in the order of the rows
    total = np.cumsum(list(rows_of.values()))
    return set(list(rows_of)[: max(1, int(np.sum(total <= attempts)))])


def _lines(
    experience: Experience, record: TokenRecord | None, tokenizer: Any, tasks: set[int] | None
) -> Iterator[Line]:
    batch = experience.batch
    table, mask_NS, step_ids_NT, tokens_NT, host = jax.device_get(
        ((batch.task_N, batch.sample_N), batch.mask_NS, batch.step_ids_NT, batch.tokens_NT, record)
    )
    names = zip(*(column.tolist() for column in table), strict=True)
    row_of = {name: row for row, name in enumerate(names) if mask_NS[row].any()}
    for trajectory in experience.trajectories():
        if tasks is not None and trajectory.task not in tasks and not trajectory.fault:
            continue
        texts = None
        if tokenizer is not None:
            texts = [token_texts(tokenizer, step.action_ids) for step in trajectory.steps]
        row = row_of.get((trajectory.task, trajectory.sample))
        if row is None or host is None:
            yield Line(trajectory, texts)
        else:
            of_row = jax.tree.map(operator.itemgetter(row), host)
            credit = _credit_of_row(tokens_NT[row], step_ids_NT[row], of_row, trajectory)
            yield Line(trajectory, texts, credit)


def _credit_of_row(
    tokens_T: np.ndarray, step_ids_T: np.ndarray, record: Any, trajectory: Trajectory
) -> list[StepCredit] | None:
    """What was learnt from each step of a row; None where the row holds another trajectory.

    Args:
        record: `TokenRecord` of the row, with arrays [S] and [T] of the host.
    """
    credit = []
    for number, step in enumerate(trajectory.steps):
        places = np.flatnonzero(step_ids_T == number)
        if not np.array_equal(tokens_T[places], step.action_ids):
            return None
        reference = record.reference_NT
        judged = places[record.judged_NT[places]]
        value, target = (
            float(x_T[judged[0]]) if len(judged) else None
            for x_T in (record.value_NT, record.target_NT)
        )
        credit.append(
            StepCredit(
                float(record.reward_NS[number]),
                value,
                target,
                record.advantage_NT[places],
                record.logprob_NT[places],
                None if reference is None else reference[places],
                record.learnt_NT[places],
            )
        )
    return credit
