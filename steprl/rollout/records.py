"""Between records and arrays: collate trajectories into a batch, and read a batch back."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from steprl.branching import descend
from steprl.models.tokenizer import detokenize
from steprl.rollout.privileged import privileged_rows, with_privileged
from steprl.types import STOP_REASONS, Branches, Parent, Step, StepBatch, Trajectory


def collate(
    trajectories: Sequence[Trajectory],
    max_steps: int,
    lengths: Sequence[int],
    response_length: int | None = None,
) -> StepBatch:
    """One row a trajectory: observation and action tokens in turn, then the final observation.

    Where a context was written anew (`Step.fresh`), the contexts of a row are segments of their own,
    each in a block of the same width (`StepBatch.context_width`).

    A step without supports among others that have them was sampled from the whole vocabulary.

    Where a trajectory has a parent, the batch has `branches`. One whose origin is not among the
    trajectories is its own origin.

    Args:
        trajectories: the records; no context may be longer than the largest of `lengths`.
        max_steps: S of the table of steps.
        lengths: allowed lengths of a context, ascending; the smallest that fits is used, so that few
            shapes are ever compiled.
        response_length: tokens of one action at most, which sets the room for sampled tokens; None
            for half of the row.

    Raises:
        ValueError: a trajectory does not fit (nothing is cut silently), or supports are of several
            vocabularies.
    """
    rows = len(trajectories)
    if rows == 0:
        raise ValueError("trajectories: there is none to collate")
    contexts = [_contexts(t) for t in trajectories]
    longest = max((size for sizes in contexts for size in sizes), default=1)
    sampled = max(sum(len(s.action_ids) for s in t.steps) for t in trajectories)
    most = max(1, *(len(t.steps) for t in trajectories))
    blocks = max(1, *map(len, contexts))
    halved = response_length is None
    needed = max(longest, -(-2 * sampled // blocks) if halved else 1)
    fitting = [length for length in lengths if length >= needed]
    if not fitting or most > max_steps:
        raise ValueError(
            f"a trajectory of {longest} tokens ({sampled} sampled) in {most} steps does not fit into rows "
            f"of {max(lengths)} tokens and {max_steps} steps"
        )
    width, length = fitting[0], fitting[0] * blocks
    room = length // 2 if response_length is None else min(length, most * response_length)
    token_NT = {
        name: np.zeros((rows, length), np.int32) for name in ("tokens", "positions", "segments")
    }
    step_ids_NT = np.full((rows, length), -1, np.int32)
    float_NT = {name: np.zeros((rows, length), np.float32) for name in ("logprob", "entropy")}
    support_NTW = _no_supports(trajectories, length)
    reward_NS = np.zeros((rows, max_steps), np.float32)
    stop_NS = np.zeros((rows, max_steps), np.int32)
    flag_NS = {
        k: np.zeros((rows, max_steps), bool) for k in ("mask", "terminated", "truncated", "valid")
    }
    for row, trajectory in enumerate(trajectories):
        place = 0
        for number, step in enumerate(trajectory.steps):
            if step.fresh and number:
                place += -place % width  # the next block
            place = _put(token_NT, row, place, step.observation_ids, width).stop
            span = _put(token_NT, row, place, step.action_ids, width)
            step_ids_NT[row, span] = number
            float_NT["logprob"][row, span] = step.logprobs
            float_NT["entropy"][row, span] = step.entropies
            if support_NTW is not None and step.supports is not None:
                support_NTW[row, span] = step.supports
            place = span.stop
            reward_NS[row, number] = step.reward
            stop_NS[row, number] = STOP_REASONS.index(step.stop_reason)
            flag_NS["mask"][row, number] = True
            flag_NS["terminated"][row, number] = step.terminated
            flag_NS["truncated"][row, number] = step.truncated
            flag_NS["valid"][row, number] = step.valid
        _put(token_NT, row, place, trajectory.final_observation_ids, width)
    arrays: dict[str, Any] = dict(
        tokens_NT=token_NT["tokens"],
        positions_NT=token_NT["positions"],
        segment_ids_NT=token_NT["segments"],
        step_ids_NT=step_ids_NT,
        logprob_NT=float_NT["logprob"],
        entropy_NT=float_NT["entropy"],
        reward_NS=reward_NS,
        mask_NS=flag_NS["mask"],
        terminated_NS=flag_NS["terminated"],
        truncated_NS=flag_NS["truncated"],
        valid_NS=flag_NS["valid"],
        stop_NS=stop_NS,
        success_N=np.array([t.success for t in trajectories]),
        task_N=np.array([t.task for t in trajectories], np.int32),
        sample_N=np.array([t.sample for t in trajectories], np.int32),
        support_NTW=support_NTW,
        privileged=privileged_rows(trajectories, blocks),
        metrics_N=_metrics(trajectories),
        branches=_branches(trajectories, step_ids_NT),
        fault_N=np.array([_failed(t) for t in trajectories]),
    )
    return StepBatch(**arrays, action_width=room, context_width=width if blocks > 1 else 0)


def _branches(trajectories: Sequence[Trajectory], step_ids_NT: np.ndarray) -> Branches | None:
    """How the rows descend from each other; None where no trajectory has a parent."""
    if all(trajectory.parent is None for trajectory in trajectories):
        return None
    row_of: dict[tuple[int, int], int] = {}
    for row, trajectory in enumerate(trajectories):
        row_of.setdefault((trajectory.task, trajectory.sample), row)
    origin, parents = [], []
    for row, trajectory in enumerate(trajectories):
        parent = Parent(trajectory.sample, 0) if trajectory.parent is None else trajectory.parent
        is_original = parent.origin == trajectory.sample
        origin.append(row if is_original else row_of.get((trajectory.task, parent.origin), row))
        parents.append(parent)
    column = lambda name, kind: np.array([getattr(one, name) for one in parents], kind)  # noqa: E731
    return descend(
        step_ids_NT, np.array(origin, np.int32), column("step", np.int32),
        column("token", np.int32), column("score", np.float32), column("preference", np.int32),
    )  # fmt: skip


def _put(
    token_NT: dict[str, np.ndarray], row: int, place: int, ids: np.ndarray, width: int
) -> slice:
    """Writes ids from a place on, into the block of `width` tokens that the place lies in."""
    span, block = slice(place, place + len(ids)), place // width
    token_NT["tokens"][row, span] = ids
    token_NT["positions"][row, span] = np.arange(place, span.stop) - block * width
    token_NT["segments"][row, span] = block + 1
    return span


def _contexts(trajectory: Trajectory) -> list[int]:
    """Tokens of each context of a trajectory."""
    sizes = [0]
    for step in trajectory.steps:
        if step.fresh and sizes[-1]:
            sizes.append(0)
        sizes[-1] += len(step.observation_ids) + len(step.action_ids)
    sizes[-1] += len(trajectory.final_observation_ids)
    return sizes


def _metrics(trajectories: Sequence[Trajectory]) -> dict[str, np.ndarray] | None:
    """All that any trajectory has, NaN for the others."""
    names = dict.fromkeys(name for t in trajectories for name in t.metrics)
    nothing = float("nan")
    return {
        name: np.array([t.metrics.get(name, nothing) for t in trajectories], np.float32)
        for name in names
    } or None


def _failed(trajectory: Trajectory) -> bool:
    """Whether the environment failed; a record from a file may have the last stop reason alone."""
    last = trajectory.steps[-1].stop_reason if trajectory.steps else ""
    return bool(trajectory.fault) or last.startswith("env_")


def pack(
    rows: Sequence[Sequence[Trajectory]], length: int, action_width: int | None = None
) -> StepBatch:
    """Several trajectories a row, contexts kept apart by segment ids: for supervised training only.

    The table of steps is empty, since the trajectories of a row would share it; the success of a row
    is that of all its trajectories. Supports, final observations and what the critic is told are
    dropped: the likelihood of a demonstration is over the whole vocabulary, and no value is used.

    Args:
        rows: what each row holds.
        length: tokens of a row.
        action_width: sampled tokens of a row at most; None for half of its length.

    Raises:
        ValueError: a row holds more than `length` tokens, or more sampled ones than `action_width`.
    """
    room = length // 2 if action_width is None else action_width
    shape = (len(rows), length)
    tokens_NT, positions_NT, segments_NT = (np.zeros(shape, np.int32) for _ in range(3))
    step_ids_NT = np.full(shape, -1, np.int32)
    for row, together in enumerate(rows):
        place, number = 0, 0
        segment = 0
        for trajectory in together:
            for index, step in enumerate(trajectory.steps):
                if index == 0 or step.fresh:
                    begin, segment = place, segment + 1
                ids = np.concatenate([step.observation_ids, step.action_ids])
                span = slice(place, place + len(ids))
                if span.stop > length:
                    raise ValueError(f"row {row} holds more than {length} tokens")
                tokens_NT[row, span] = ids
                positions_NT[row, span] = np.arange(place, span.stop) - begin
                segments_NT[row, span] = segment
                step_ids_NT[row, place + len(step.observation_ids) : span.stop] = number
                place, number = span.stop, number + 1
    if (step_ids_NT >= 0).sum(axis=1).max() > room:
        most = f"half of {length}" if action_width is None else str(room)
        raise ValueError(f"a row holds more sampled tokens than {most}")
    nothing_NT, nothing_NS = np.zeros(shape, np.float32), np.zeros((len(rows), 1), np.float32)
    no_NS = np.zeros((len(rows), 1), bool)
    arrays: dict[str, Any] = dict(
        tokens_NT=tokens_NT,
        positions_NT=positions_NT,
        segment_ids_NT=segments_NT,
        step_ids_NT=step_ids_NT,
        logprob_NT=nothing_NT,
        entropy_NT=nothing_NT,
        reward_NS=nothing_NS,
        mask_NS=no_NS,
        terminated_NS=no_NS,
        truncated_NS=no_NS,
        valid_NS=no_NS,
        stop_NS=np.zeros((len(rows), 1), np.int32),
        success_N=np.array([all(t.success for t in together) for together in rows]),
        task_N=np.array([together[0].task for together in rows], np.int32),
        sample_N=np.zeros(len(rows), np.int32),
    )
    return StepBatch(**arrays, action_width=room)


def _no_supports(trajectories: Sequence[Trajectory], length: int) -> np.ndarray | None:
    """[N, T, W] zeros where a trajectory has supports, None where none has."""
    words = {s.supports.shape[1] for t in trajectories for s in t.steps if s.supports is not None}
    if len(words) > 1:
        raise ValueError(f"supports of {sorted(words)} words cannot be those of one vocabulary")
    return np.zeros((len(trajectories), length, words.pop()), np.uint32) if words else None


def trajectories(batch: StepBatch, tokenizer: Any) -> list[Trajectory]:
    """The records of a batch; the text is a view of the ids, which stay exactly as they were."""
    return list(each_trajectory(batch, tokenizer))


def each_trajectory(batch: StepBatch, tokenizer: Any) -> Iterator[Trajectory]:
    """`trajectories`, one after the other."""
    host: Any = jax.device_get(batch)
    for row in range(host.tokens_NT.shape[0]):
        real = np.flatnonzero(host.segment_ids_NT[row] > 0)
        ids, step_of = host.tokens_NT[row][real], host.step_ids_NT[row][real]
        logprob, entropy = host.logprob_NT[row][real], host.entropy_NT[row][real]
        support = None if host.support_NTW is None else host.support_NTW[row][real]
        context_of = host.segment_ids_NT[row][real]
        steps, begin, context = [], 0, 1
        for number in range(int(host.mask_NS[row].sum())):
            token_places = np.flatnonzero(step_of == number)
            first, last = token_places[0], token_places[-1] + 1
            steps.append(
                Step(
                    observation=detokenize(tokenizer, ids[begin:first]),
                    action=detokenize(tokenizer, ids[first:last]),
                    observation_ids=ids[begin:first],
                    action_ids=ids[first:last],
                    logprobs=logprob[first:last],
                    entropies=entropy[first:last],
                    reward=float(host.reward_NS[row, number]),
                    terminated=bool(host.terminated_NS[row, number]),
                    truncated=bool(host.truncated_NS[row, number]),
                    stop_reason=STOP_REASONS[int(host.stop_NS[row, number])],
                    valid=bool(host.valid_NS[row, number]),
                    supports=None if support is None else support[first:last],
                    fresh=bool(context_of[first] != context),
                )
            )
            begin, context = last, context_of[first]
        trajectory = Trajectory(
            int(host.task_N[row]),
            int(host.sample_N[row]),
            tuple(steps),
            bool(host.success_N[row]),
            _parent(host, row),
            final_observation_ids=ids[begin:],
            metrics={k: float(v[row]) for k, v in (host.metrics_N or {}).items()},
        )
        yield (trajectory if host.privileged is None else with_privileged(trajectory, host, row))


def _parent(host: StepBatch, row: int) -> Parent | None:
    if host.branches is None:
        return None
    origin, step, last, score, preference = (x[row] for x in host.branches)
    shared = int(np.sum(np.asarray(host.step_ids_NT)[row, : last + 1] == step))
    sample = int(host.sample_N[origin])
    return Parent(sample, int(step), shared, float(score), int(preference))
