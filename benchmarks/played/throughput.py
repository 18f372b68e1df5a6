"""Agent steps a second of the slot engine: with tools that fail, and with slots that are refilled."""

import functools
import statistics
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import record
from played.models import ACTION, MODELS, TINY, model, number_context
from played.walk import Walk, Weather, always, fault_of, mixed, with_tool

from steprl.rollout import HostPlayer, Usage
from steprl.rollout.workers import EnvWorkers
from steprl.types import Trajectory

PLURAL = {"thread": "threads", "process": "processes"}
KEY = jax.random.key(11)
DEADLINE = 0.5  # seconds of a call
KEPT = 0.8  # of the healthy steps a second: the goal
HEALTHY = "healthy"
WEATHERS = {
    HEALTHY: Weather(),
    "5 % hang": Weather(hanging=0.05),
    "5 % crash": Weather(crashing=0.05),
    "5 % hang, 5 % crash": Weather(hanging=0.05, crashing=0.05),
}
SHORTEST, LONGEST = 2, 16  # steps of an episode


def quartiles(values: Sequence[float]) -> list[float]:
    return np.percentile(values, [25, 75]).tolist()


def played_steps(found: Sequence[Trajectory]) -> int:
    return sum(len(trajectory.steps) for trajectory in found)


def faults(
    isolate: str, slots: int, tasks: int, steps: int, rounds: int, quick: bool = False
) -> Iterator[dict]:
    """Throughput with a healthy tool and with tools that fail.

    Args:
        isolate: "thread" or "process".
        tasks: in the queue, each played once.
        steps: of an episode that nothing cuts off.
        quick: the healthy tool and the worst one only.
    """
    policy, params = model(TINY if quick else next(iter(MODELS)))
    names = list(WEATHERS) if isolate == "thread" and not quick else [HEALTHY, list(WEATHERS)[-1]]
    length = (steps + 1) * 28
    workers = 2 * slots  # those that hang keep theirs until the deadline
    times: dict[str, list[float]] = {name: [] for name in names}
    trajectories: dict[str, list[Trajectory]] = {}
    usage: dict[str, Usage] = {}
    queue, samples = list(range(tasks)), [0] * tasks
    players = {
        name: (
            HostPlayer(
                policy, number_context(), steps, ACTION, length, slots, workers, DEADLINE, isolate
            ),
            with_tool(WEATHERS[name], functools.partial(always, steps), dies=isolate == "process"),
        )
        for name in names
    }
    for number in range(rounds + 1):  # the first one compiles, and starts the workers
        for name, (player, env) in players.items():
            batch = queue if number else queue[: 2 * slots]
            start = time.perf_counter()
            rollouts = player.explore(
                env, params, KEY, batch, samples[: len(batch)], remember=False
            )
            if number:
                times[name].append(time.perf_counter() - start)
                trajectories[name], usage[name] = rollouts.trajectories, rollouts.usage
    for player, env in players.values():
        with player.workers(env) as hired:
            hired.close()
    title = f"{PLURAL[isolate]}, {slots} slots, {tasks} tasks"
    speed = {n: played_steps(trajectories[n]) / statistics.median(times[n]) for n in names}
    for name in names:
        spread = sorted(played_steps(trajectories[name]) / x for x in quartiles(times[name]))
        kept = speed[name] / speed[HEALTHY]
        peer = (None, None, None, None, None)
        if name != HEALTHY:
            peer = (HEALTHY, speed[HEALTHY], kept, f"{KEPT:g} x", kept >= KEPT)
        yield record.row(f"{title}, {name}: agent steps", speed[name], "steps/s", spread, *peer)
        episodes = [tasks / x for x in times[name]]
        yield record.row(
            f"{title}, {name}: episodes", statistics.median(episodes), "episodes/s",
            quartiles(episodes),
        )  # fmt: skip
        yield record.row(
            f"{title}, {name}: slots that act in a turn",
            played_steps(trajectories[name]) / (usage[name].turns * slots), "share",
        )  # fmt: skip
        if name == HEALTHY:
            turn = 1000 * statistics.median(times[name]) / usage[name].turns
            yield record.row(f"{title}, {name}: a turn", turn, "ms")
            continue
        yield from accounts(
            f"{title}, {name}", trajectories[name], trajectories[HEALTHY], WEATHERS[name], steps
        )


def process_start(rounds: int) -> dict:
    """What a killed process costs before its place can be used again."""
    env, times = with_tool(Weather(0.0, 0.0), functools.partial(always, 1)), []
    for number in range(rounds):
        with EnvWorkers(env, 1, None, "process") as workers:
            start = time.perf_counter()
            workers.submit(number, "reset", 0)
            workers.collect()
            times.append(1000 * (time.perf_counter() - start))
    return record.row("processes: start of one", statistics.median(times), "ms", quartiles(times))


def accounts(
    title: str, found: list[Trajectory], healthy: list[Trajectory], weather: Weather, steps: int
) -> Iterator[dict]:
    """Nothing is lost, and a fault changes nothing but its own trajectory."""
    lost = sum(
        trajectory.task != healthy_one.task or not trajectory.steps
        for trajectory, healthy_one in zip(found, healthy, strict=True)
    )
    yield record.row(f"{title}: tasks without a trajectory", lost, "tasks", goal="0", met=lost == 0)
    for kind, verb in (("timeout", "by the deadline"), ("crash", "by a crash")):
        expected = 0
        for trajectory in found:
            first_fault = next(
                (f for s in range(steps) if (f := fault_of(weather, trajectory.task, s))), ""
            )
            expected += first_fault == kind
        ended = sum(
            trajectory.steps[-1].stop_reason == f"env_{kind}"
            for trajectory in found
            if trajectory.steps
        )
        yield record.row(
            f"{title}: trajectories ended {verb}", ended, "tasks", None, "drawn", expected, None,
            f"{expected}", ended == expected,
        )  # fmt: skip
    same = sum(
        a.action_ids.tobytes() == b.action_ids.tobytes()
        and a.logprobs.tobytes() == b.logprobs.tobytes()
        for trajectory, healthy_one in zip(found, healthy, strict=True)
        for a, b in zip(trajectory.steps, healthy_one.steps, strict=False)
    )
    total = played_steps(found)
    yield record.row(
        f"{title}: steps as in the healthy run, bit for bit", same, "steps", None, "all", total, None,
        f"{total}", same == total,
    )  # fmt: skip


def refilled(slots: Sequence[int], tasks: int, rounds: int, quick: bool = False) -> Iterator[dict]:
    """Slots that are refilled at once, against batches that end together."""
    policy, params = model(TINY if quick else next(iter(MODELS)))
    env = Walk(functools.partial(mixed, SHORTEST, LONGEST))
    for number in slots:
        player = HostPlayer(policy, number_context(), LONGEST, ACTION, (LONGEST + 1) * 28, number)
        times: dict[str, list[float]] = {"refilled": [], "batches": []}
        turns = {}
        for repetition in range(rounds + 1):  # the first one compiles
            queue = list(range(tasks if repetition else number))
            for mode, size in (("refilled", len(queue)), ("batches", number)):
                start, results = time.perf_counter(), []
                for begin in range(0, len(queue), size):
                    part = queue[begin : begin + size]
                    results.append(
                        player.explore(env, params, KEY, part, [0] * len(part), remember=False)
                    )
                if repetition:
                    times[mode].append(time.perf_counter() - start)
                turns[mode] = sum(result.usage.turns for result in results)
                steps = sum(played_steps(result.trajectories) for result in results)
        speed = {mode: steps / statistics.median(x) for mode, x in times.items()}
        title = f"{number} slots, {tasks} episodes of {SHORTEST} to {LONGEST} steps"
        yield record.row(
            f"{title}: refilled", speed["refilled"], "steps/s",
            sorted(steps / x for x in quartiles(times["refilled"])), "batches that end together",
            speed["batches"], speed["refilled"] / speed["batches"],
        )  # fmt: skip
        yield record.row(
            f"{title}: turns, refilled", turns["refilled"], "turns", None, "batches that end together",
            turns["batches"], turns["batches"] / turns["refilled"],
        )  # fmt: skip
