"""Episodes of text environments that run on the host, the policy on the device: the slot engine.

A slot is a row of the KV cache. Each turn, the slots whose environment has answered read what is new
and sample an action; finished slots take the next job. A slow environment holds up no other: its slot
is lent to another job, and its row of the cache is restored when it answers. What is sampled follows
from (task, sample, step, token) and the row's own tokens alone, whichever rows share the turn.
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.envs import Env
from steprl.envs.answers import OBSERVATION_LIMIT, BadAnswer, checked_reset, checked_step
from steprl.envs.privileged import name_of_env
from steprl.rollout.contexts import Context
from steprl.rollout.episode import (
    Episode,
    Job,
    Limits,
    Sampled,
    advance,
    begin,
    never_begun,
    record,
    rewind,
    sampled_row,
    whole,
)
from steprl.rollout.rollouts import BranchPoint, Rollouts, Usage
from steprl.rollout.slots import BLOCK, copy_rows, device_functions, read_chunks, read_new
from steprl.rollout.workers import EnvWorkers, Fault
from steprl.sampling import Sampling
from steprl.types import Params, Policy, Trajectory

_PATIENCE = 0.1  # of the time of a turn, spent waiting for more environments to answer


class HostMemory(NamedTuple):
    """What is needed to continue from any step of a rollout: a row of the cache and an episode each."""

    cache: Any
    episodes: tuple[Episode, ...]


class HostPlayer:
    """Plays episodes of one environment; holds settings, compiled functions, and workers.

    Args:
        policy: the language model.
        context: how observations become tokens, and where actions end.
        max_steps: turns at most; the environment may end earlier.
        response_length: tokens of one action at most.
        context_length: tokens of one context at most. A trajectory whose next turn does not fit is
            truncated, kept and counted; one whose first observation does not fit has no steps.
        slots: episodes that are played at the same time; 0 for all.
        workers: environments stepped at the same time; 0 steps them in turn, without a deadline.
        timeout: seconds of one step of an environment at most.
        isolate: "thread", or "process" for environments that hang or crash.
        observation_limit: characters of an observation at most; a longer one is a fault.

    A fault of the environment (it raises, hangs, or gives what is no answer, see
    `steprl.envs.answers`) ends its own trajectory and is written there; the first one is logged.
    """

    def __init__(
        self,
        policy: Policy,
        context: Context,
        max_steps: int,
        response_length: int,
        context_length: int,
        slots: int = 0,
        workers: int = 0,
        timeout: float | None = None,
        isolate: str = "thread",
        observation_limit: int = OBSERVATION_LIMIT,
    ):
        self.observation_limit, self._faulty = observation_limit, False
        self.context, self.limits = context, Limits(max_steps, response_length, context_length)
        self.slots, self._settings = slots, (workers, timeout, isolate)
        self._workers: dict[int, tuple[Env, EnvWorkers]] = {}
        self._device = device_functions(
            policy, context_length, response_length, tuple(context.stop_ids), context.pad_id
        )

    @contextmanager
    def workers(self, env: Env) -> Iterator[EnvWorkers]:
        """The workers of an environment, which stay for the next call unless this one is cut short."""
        if id(env) not in self._workers:
            self._workers[id(env)] = env, EnvWorkers(env, *self._settings)
        _, workers = self._workers[id(env)]
        try:
            yield workers
        except BaseException:
            del self._workers[id(env)]
            workers.close()
            raise

    def play(
        self, env: Env, params: Params, key: jax.Array, tasks: Sequence[int], samples: Sequence[int],
        sampling: Sampling = Sampling(),
    ) -> list[Trajectory]:  # fmt: skip
        """One trajectory a row, in the order of `tasks`."""
        return self.explore(env, params, key, tasks, samples, sampling, remember=False).trajectories

    def explore(
        self, env: Env, params: Params, key: jax.Array, tasks: Sequence[int], samples: Sequence[int],
        sampling: Sampling = Sampling(), remember: bool = True,
    ) -> Rollouts:  # fmt: skip
        """As `play`, with what it cost, and a memory to branch from unless `remember` is False."""
        jobs = [Job(task, sample) for task, sample in zip(tasks, samples, strict=True)]
        slots = min(self.slots or len(jobs), len(jobs))
        keep = self._device.init_cache(len(jobs)) if remember and slots < len(jobs) else None
        run = _Run(self, env, params, key, slots, sampling, None, keep)
        episodes, cache = run.all(jobs, keep_slots=remember)
        memory = HostMemory(cache, tuple(episodes)) if remember else None
        return Rollouts(self._records(env, episodes), run.usage, memory)

    def branch(
        self, env: Env, params: Params, key: jax.Array, rollouts: Rollouts,
        points: Sequence[BranchPoint], sampling: Sampling = Sampling(),
    ) -> Rollouts:  # fmt: skip
        """One trajectory for each point, which continues from a step of a trajectory of `rollouts`.

        State and cache of the step are copied; only what is new is read and sampled. The records begin
        with the steps that are shared, and `parent` says with which trajectory.

        Raises:
            ValueError: a point lies outside its trajectory.
        """
        memory: HostMemory = rollouts.memory
        jobs = [
            Job(
                memory.episodes[p.origin].task,
                p.sample,
                rewind(memory.episodes[p.origin], p.step, p.token, p.sample),
                p.origin,
            )
            for p in points
        ]
        if not jobs:
            return Rollouts([], Usage())
        # One of two widths, so that few branches do not pay for many slots.
        most = self.slots or len(memory.episodes)
        slots = next(size for size in (-(-most // 8), most) if len(jobs) <= size or size == most)
        run = _Run(self, env, params, key, slots, sampling, memory.cache, None)
        episodes, _ = run.all(jobs, keep_slots=False)
        return Rollouts(self._records(env, episodes), run.usage)

    def _records(self, env: Env, episodes: Sequence[Episode]) -> list[Trajectory]:
        records = record(env, episodes, name_of_env(env))
        fault = next((one.fault for one in records if one.fault), "")
        if fault and not self._faulty:
            self._faulty = True
            logging.getLogger("steprl").warning(
                "%s. Such attempts are left out and counted as env/fault_frac.", fault
            )
        return records


class _Run:
    """The queue, the slots and the cache of one call; gone when it is over."""

    def __init__(
        self, player: HostPlayer, env: Env, params: Params, key: jax.Array, slots: int,
        sampling: Sampling, source: Any, kept: Any,
    ):  # fmt: skip
        self.player, self.env, self.key = player, env, key
        # An array, so that all temperatures are one program.
        temperature: Any = np.float32(sampling.temperature)
        self.sampling = dataclasses.replace(sampling, temperature=temperature)
        self.device = player._device
        self.params = self.device.prepare(params)
        self.source, self.kept = source, kept
        self.cache = self.device.init_cache(slots)
        self.hidden = self.device.hidden(self.params, slots)
        self.block: Any = None  # a few rows, in which new contexts are read
        self.parking: Any = None  # rows of slots that were lent
        self.parked: dict[int, int] = {}  # job -> row of the parking
        self.job_of: list[int | None] = [None] * slots  # slot -> job
        self.episodes: dict[int, Episode] = {}
        self.actions: dict[int, Sampled] = {}  # jobs whose environment is working
        self.resets: dict[int, int] = {}  # jobs whose environment begins -> tries
        self.name = name_of_env(env)
        self.usage = Usage()

    def all(self, jobs: Sequence[Job], keep_slots: bool) -> tuple[list[Episode], Any]:
        """Plays all jobs; the cache holds a row a job if it was kept."""
        started = time.perf_counter()
        self.jobs, self.waiting = jobs, deque(range(len(jobs)))
        self.back: deque[int] = deque()  # parked jobs whose environment has answered
        self.unfinished, self.patience = len(jobs), 0.0
        with self.player.workers(self.env) as self.workers:
            while self.unfinished:
                self._fill()
                if self._ready():
                    # Others may be about to answer; a turn with them is cheaper than one of their own.
                    until = time.perf_counter() + self.patience
                    while self.workers.pending and (left := until - time.perf_counter()) > 0:
                        self._hear(left)
                    self._lend()
                    self._turn(self._ready())
                else:
                    self._hear(max(self.patience, 0.01) if self.waiting or self.back else None)
                    self._lend()
        self.usage = self.usage._replace(seconds=time.perf_counter() - started)
        cache = self.cache if self.kept is None else self.kept
        return [self.episodes[job] for job in range(len(jobs))], cache if keep_slots else None

    def _ready(self) -> list[int]:
        """Slots whose next action can be sampled."""
        return [
            slot
            for slot, job in enumerate(self.job_of)
            if job is not None and job in self.episodes and job not in self.actions
            if not self.episodes[job].over
        ]

    def _fill(self) -> None:
        """Gives free slots to parked jobs that can continue, then to those that wait."""
        to: list[int] = []
        of: list[int] = []
        to_back: list[int] = []
        of_back: list[int] = []
        for slot, current in enumerate(self.job_of):
            if current is not None:
                continue
            if self.back:
                job = self.back.popleft()
                to_back.append(slot)
                of_back.append(self.parked.pop(job))
            elif self.waiting:
                job = self.waiting.popleft()
                episode = self.jobs[job].episode
                if episode is None:
                    self.resets[job] = 1
                    self.workers.submit(job, "reset", self.jobs[job].task)
                else:
                    self.episodes[job] = episode
                    to.append(slot)
                    of.append(self.jobs[job].row)
            else:
                break
            self.job_of[slot] = job
        self.cache = copy_rows(self.device, self.cache, self.source, to, of)
        self.cache = copy_rows(self.device, self.cache, self.parking, to_back, of_back)
        if to or to_back or self.resets:
            self._hear(0.0)

    def _lend(self) -> None:
        """Slots whose environment has not answered are given to jobs that wait, if there are any."""
        wanted = len(self.waiting) + len(self.back) - self.job_of.count(None)
        slow = [
            slot for slot, job in enumerate(self.job_of)
            if job is not None and (job in self.actions or job in self.resets)
        ]  # fmt: skip
        room = len(self.job_of) - len(self.parked)
        slow = slow[: max(0, min(wanted, room))]
        if not slow:
            return
        if self.parking is None:
            self.parking = self.device.init_cache(len(self.job_of))
        free = [row for row in range(len(self.job_of)) if row not in self.parked.values()]
        self.parking = copy_rows(self.device, self.parking, self.cache, free[: len(slow)], slow)
        for slot, row in zip(slow, free, strict=False):
            self.parked[self.job_of[slot]] = row  # type: ignore[index]
            self.job_of[slot] = None
        self._fill()

    def _turn(self, slots: Sequence[int]) -> None:
        """Reads what is new and samples one action in each of these slots."""
        began = time.perf_counter()
        rows = len(self.job_of)
        task_B, sample_B, step_B, taken_B, next_B = np.zeros((5, rows), np.int32)
        active_B = np.zeros(rows, bool)
        chunks: list[tuple[int, ...] | None] = [None] * rows
        contexts: list[tuple[int, ...] | None] = [None] * rows  # those that are read from the start
        starts = [0] * rows
        for slot in slots:
            job = self.job_of[slot]
            assert job is not None
            episode = self.episodes[job]
            starts[slot] = episode.start
            (chunks if episode.start else contexts)[slot] = episode.ids[episode.start :]
            task_B[slot], sample_B[slot] = episode.task, episode.sample
            step_B[slot], taken_B[slot] = len(episode.steps), len(episode.begun.ids)
            next_B[slot], active_B[slot] = len(episode.ids), True
        self._read(chunks, contexts, starts)
        out = self.device.act(
            self.params, self.cache, self.hidden, next_B, self.key, task_B, sample_B, step_B,
            taken_B, active_B, self.sampling,
        )  # fmt: skip
        self.cache = out.cache
        result = jax.device_get(out._replace(cache=None))
        decoded = int(result.mask_BA[slots].sum())
        self.usage = self.usage._replace(
            decoded=self.usage.decoded + decoded, turns=self.usage.turns + 1
        )
        self.patience = _PATIENCE * (time.perf_counter() - began)
        for slot in slots:
            job = self.job_of[slot]
            assert job is not None
            episode = self.episodes[job]
            self.actions[job] = action = whole(episode, sampled_row(result, slot))
            text = self.player.context.decode(action.ids.tolist())
            self.workers.submit(job, "step", episode.state, text)
        self._hear(0.0)

    def _read(
        self,
        chunks: Sequence[tuple[int, ...] | None],
        contexts: Sequence[tuple[int, ...] | None],
        starts: Sequence[int],
    ) -> None:
        """A context continued in its row is read there; of new contexts, each distinct one once."""
        if any(contexts) and self.block is None:
            self.block = self.device.init_cache(min(BLOCK, len(self.job_of)))
        self.hidden, self.cache, self.block = read_new(
            self.device, self.params, self.cache, self.hidden, contexts, self.block
        )
        self.hidden, self.cache = read_chunks(
            self.device, self.params, self.cache, self.hidden, chunks, starts
        )
        begun = [ids for ids in contexts if ids]
        read = sum(map(len, set(begun)))
        self.usage = self.usage._replace(
            prefilled=self.usage.prefilled + read + sum(len(chunk) for chunk in chunks if chunk),
            reused=self.usage.reused + sum(map(len, begun)) - read + sum(starts),
        )

    def _hear(self, wait: float | None) -> None:
        """Collects what environments have answered."""
        finished: list[int] = []
        for job, answer in self.workers.collect(wait):
            if job in self.resets:
                self._begun(job, self._checked(checked_reset, answer))
            else:
                self.episodes[job] = advance(
                    self.episodes[job], self.actions.pop(job), self._checked(checked_step, answer),
                    self.player.context, self.player.limits, self.name,
                )  # fmt: skip
            if job in self.episodes and self.episodes[job].over:
                finished.append(job)
            elif job in self.parked and job not in self.resets:
                self.back.append(job)
        self._free(finished)

    def _checked(self, check: Callable[..., Any], answer: Any) -> Any:
        """What an environment gave, or the fault that it was."""
        if isinstance(answer, Fault):
            return answer
        try:
            return check(answer, self.player.observation_limit)
        except BadAnswer as error:
            return Fault("crash", str(error))

    def _begun(self, job: int, answer: Any) -> None:
        """An environment has begun; one that failed to gets a second try."""
        task, sample = self.jobs[job].task, self.jobs[job].sample
        if not isinstance(answer, Fault):
            del self.resets[job]
            state, observation = answer
            self.episodes[job] = begin(
                self.player.context, task, sample, state, observation, self.player.limits, self.name
            )
        elif self.resets[job] == 1:
            self.resets[job] = 2
            self.workers.submit(job, "reset", task)
        else:
            del self.resets[job]
            self.episodes[job] = never_begun(self.name, task, sample, answer.message)

    def _free(self, finished: Sequence[int]) -> None:
        """Slots of finished jobs are free again; their rows are copied to `kept` if there is one."""
        self.unfinished -= len(finished)
        in_slots = {job: slot for slot, job in enumerate(self.job_of) if job is not None}
        inside = [job for job in finished if job in in_slots]
        outside = [job for job in finished if job in self.parked]
        if self.kept is not None:
            rows = [in_slots[job] for job in inside]
            self.kept = copy_rows(self.device, self.kept, self.cache, inside, rows)
            rows = [self.parked[job] for job in outside]
            self.kept = copy_rows(self.device, self.kept, self.parking, outside, rows)
        for job in inside:
            self.job_of[in_slots[job]] = None
        for job in outside:
            del self.parked[job]
