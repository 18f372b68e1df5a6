"""What a branch costs: one new step after a long prefix.

    python benchmarks/branching.py [--quick] [--save]

Two ways to play one step again at depth d of an episode (benchmarks/played/walk.py: observations of 12
to 20 tokens, actions of 8, no token ends one early; float32, random weights):

- fork: `HostPlayer.branch` on the memory of a rollout. The state of the environment is a value, the row
  of the KV cache is copied, the last token before the action is read again, the action is sampled, the
  environment is stepped.
- replay: `reset`, all earlier actions again in the environment, the whole context read into an empty cache,
  then the same. It is timed without the engine around it and with a cache that is already allocated; it
  runs the same compiled functions.

All depths and both ways take turns in every repetition; values are medians with quartiles, ratios are
those of the medians. The CPU time of all threads, which other processes disturb less, is given as well.
Tokens are those that `Rollouts.usage` counts.
"""

import argparse
import dataclasses
import functools
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import record
from played.models import ACTION, MODELS, TINY, model, number_context
from played.walk import Walk

from steprl.envs.answers import checked_step
from steprl.envs.household import Household
from steprl.models import score
from steprl.rollout import BranchPoint, HostPlayer, Rollouts, collate, host
from steprl.rollout.episode import Episode, Limits, Sampled, advance, begin
from steprl.rollout.slots import Device, read_chunks
from steprl.sampling import Sampling

DEPTHS = (1, 4, 16, 32, 64)
LENGTH = 2048  # tokens of a context: 64 steps of at most 28, and the step behind them
KEY = jax.random.key(7)
SMALL, LARGE = MODELS
FLAT, FASTER, REUSE, SAME = 1.2, 8.0, 2.0, 1e-5  # goals
TURNS, EPISODES, SHORT = 8, 8, 256  # of the comparison with and without reuse between turns
FORKS = 64


class Setup(NamedTuple):
    """A model, an episode as long as the deepest branch, and the compiled functions."""

    policy: Any
    params: Any
    env: Walk
    length: int
    rollouts: Rollouts
    device: Device

    def player(self, max_steps: int, slots: int = 0) -> HostPlayer:
        return HostPlayer(self.policy, number_context(), max_steps, ACTION, self.length, slots)


def set_up(name: str, depth: int, length: int) -> Setup:
    """Plays the one episode that is branched from."""
    policy, params = model(name)
    env, player = Walk(), HostPlayer(policy, number_context(), depth + 1, ACTION, length)
    rollouts = player.explore(env, params, KEY, [0], [0])
    return Setup(policy, params, env, length, rollouts, player._device)


# --- The two ways ---------------------------------------------------------------------------------


def fork(setup: Setup, depth: int, sample: int) -> Rollouts:
    """One step at this depth, from the memory of the rollout."""
    player = setup.player(depth + 1)  # ends behind the new step
    point = BranchPoint(origin=0, step=depth, token=0, sample=sample)
    return player.branch(setup.env, setup.params, KEY, setup.rollouts, [point])


class Replayed(NamedTuple):
    episode: Episode
    tokens: int  # read
    cache: Any  # to lend to the next replay


def replay(setup: Setup, depth: int, sample: int, cache: Any) -> Replayed:
    """The same step from nothing but the actions before it."""
    context, limits = number_context(), Limits(depth + 1, ACTION, setup.length)
    (origin,) = setup.rollouts.trajectories
    episode = begin(context, 0, sample, *setup.env.reset(0), limits)
    for step in origin.steps[:depth]:
        sampled = Sampled(step.action_ids, step.logprobs, step.entropies, None, step.stop_reason)
        answer = checked_step(
            setup.env.step(episode.state, context.decode(step.action_ids.tolist()))
        )
        episode = advance(episode, sampled, answer, context, limits)
    device, params = setup.device, setup.device.prepare(setup.params)
    hidden_BD = device.hidden(params, 1)
    hidden_BD, cache = read_chunks(device, params, cache, hidden_BD, [episode.ids], [0])
    row = lambda number: np.asarray([number], np.int32)  # noqa: E731
    out = device.act(
        params, cache, hidden_BD, row(len(episode.ids)), KEY, row(0), row(sample), row(depth), row(0),
        np.ones(1, bool), Sampling(np.float32(1.0)),
    )  # fmt: skip
    turn = jax.device_get(out._replace(cache=None))
    action = Sampled(turn.tokens_BA[0], turn.logprob_BA[0], turn.entropy_BA[0], None, "length")
    answer = checked_step(setup.env.step(episode.state, context.decode(action.ids.tolist())))
    return Replayed(advance(episode, action, answer, context, limits), len(episode.ids), out.cache)


# --- What is measured -----------------------------------------------------------------------------


def quartiles(values: Sequence[float]) -> list[float]:
    return np.percentile(values, [25, 75]).tolist()


def depths_of(name: str, setup: Setup, depths: Sequence[int], rounds: int) -> Iterator[dict]:
    """Time and tokens of a branch at every depth, both ways."""
    times: dict[tuple[str, int], list[float]] = {(w, d): [] for w in WAYS for d in depths}
    work: dict[tuple[str, int], list[float]] = {(w, d): [] for w in WAYS for d in depths}
    cache = setup.device.init_cache(1)
    worst, forked, replayed = 0.0, {}, {}
    for number in range(rounds + 1):  # the first one compiles
        for depth in depths if number else (min(16, depths[-1]),):
            start, start_work = time.perf_counter(), time.process_time()
            forked[depth] = fork(setup, depth, number)
            forked_at, forked_work = time.perf_counter(), time.process_time()
            replayed[depth] = replay(setup, depth, number, cache)
            end, end_work = time.perf_counter(), time.process_time()
            cache = replayed[depth].cache
            worst = max(worst, difference(forked[depth], replayed[depth]))
            if number:
                times["fork", depth].append(1000 * (forked_at - start))
                times["replay", depth].append(1000 * (end - forked_at))
                work["fork", depth].append(1000 * (forked_work - start_work))
                work["replay", depth].append(1000 * (end_work - forked_work))
    median = {key: statistics.median(values) for key, values in times.items()}
    for depth in depths:
        ratio = median["replay", depth] / median["fork", depth]
        goal = FASTER if (name, depth) == (LARGE, 32) else None
        yield record.row(
            f"{name}, depth {depth}: fork", median["fork", depth], "ms",
            quartiles(times["fork", depth]), "reset, replay, re-prefill", median["replay", depth],
            ratio, goal and f"{goal:g} x", goal and ratio >= goal,
        )  # fmt: skip
        yield record.row(
            f"{name}, depth {depth}: replay", median["replay", depth], "ms",
            quartiles(times["replay", depth]),
        )  # fmt: skip
        cpu, peer_cpu = (statistics.median(work[way, depth]) for way in WAYS)
        yield record.row(
            f"{name}, depth {depth}: fork, CPU time of all threads", cpu, "ms",
            quartiles(work["fork", depth]), "reset, replay, re-prefill", peer_cpu, peer_cpu / cpu,
        )  # fmt: skip
        usage = forked[depth].usage
        for kind, value in (
            ("fork, prefilled", usage.prefilled),
            ("fork, reused", usage.reused),
            ("replay, prefilled", replayed[depth].tokens),
            ("either, decoded", usage.decoded),
        ):
            yield record.row(f"{name}, depth {depth}: {kind}", value, "tokens")
    first, last = depths[0], depths[-1]
    growth = median["fork", last] / median["fork", first]
    yield record.row(
        f"{name}: fork at depth {last} over depth {first}", growth, "x", goal=f"<= {FLAT:g}",
        met=growth <= FLAT,
    )  # fmt: skip
    yield record.row(
        f"{name}: log-probs of a forked step and a replayed one", worst, "largest difference",
        goal=f"<= {SAME:g}", met=worst <= SAME,
    )  # fmt: skip


WAYS = ("fork", "replay")


def difference(forked: Rollouts, replayed: Replayed) -> float:
    """Of the log-probs of the new step; inf where the two are not the same step."""
    fork_steps, steps = forked.trajectories[0].steps, replayed.episode.steps
    same = len(fork_steps) == len(steps) and all(
        a.observation == b.observation and a.action == b.action
        for a, b in zip(fork_steps, steps, strict=False)
    )
    return float(np.abs(fork_steps[-1].logprobs - steps[-1].logprobs).max()) if same else np.inf


def continued(name: str, setup: Setup, depths: Sequence[int]) -> dict:
    """Forks that continue for three steps, from the first and from a later token of an action, against
    one pass over the whole row, as in training."""
    steps, worst = 3, 0.0
    for depth in depths:
        player = setup.player(depth + steps)
        points = [BranchPoint(0, depth, token, 1000 + token) for token in (0, ACTION // 2)]
        branches = player.branch(setup.env, setup.params, KEY, setup.rollouts, points).trajectories
        batch = collate(branches, depth + steps, [setup.length])
        rescored = jax.jit(functools.partial(score, setup.policy))(setup.params, batch)
        gap = np.where(batch.step_ids_NT >= 0, rescored.logprob_NT - batch.logprob_NT, 0.0)
        worst = max(worst, float(np.abs(gap).max()))
    return record.row(
        f"{name}: log-probs of {len(depths)} x 2 forks that go on {steps} steps, and of one pass over "
        "their rows", worst, "largest difference", goal=f"<= {SAME:g}", met=worst <= SAME,
    )  # fmt: skip


def equal_forks(name: str, setup: Setup, depth: int, slots: int) -> dict:
    """How many of 64 forks of one point, with one key, are the first one bit for bit."""
    player = setup.player(depth + 2, slots)
    points = [BranchPoint(0, depth, 0, 5)] * FORKS
    branches = player.branch(setup.env, setup.params, KEY, setup.rollouts, points).trajectories
    content = lambda one: [  # noqa: E731
        (s.observation, s.action_ids.tobytes(), s.logprobs.tobytes(), s.entropies.tobytes())
        for s in one.steps
    ]
    equal = sum(content(one) == content(branches[0]) for one in branches)
    return record.row(
        f"{name}: of {FORKS} forks with the same key, equal bit for bit ({slots} slots)", equal,
        "forks", goal=f"{FORKS}", met=equal == FORKS,
    )  # fmt: skip


def without_reuse(episode: Episode, *arguments: Any) -> Episode:
    """As `advance`, but the next turn reads its whole context again."""
    return dataclasses.replace(advance(episode, *arguments), start=0)


def reuse(name: str, rounds: int, episodes: int) -> Iterator[dict]:
    """Episodes of eight turns, the cache kept between turns or not."""
    policy, params = model(name)
    env = Walk(length=lambda task: TURNS)
    tasks, samples = list(range(episodes)), [0] * episodes

    def explore(turns: int) -> Rollouts:
        player = HostPlayer(policy, number_context(), turns, ACTION, SHORT)
        return player.explore(env, params, KEY, tasks, samples, remember=False)

    explore(1)  # compiles
    times: dict[str, list[float]] = {"with": [], "without": []}
    usages = {}
    for _ in range(rounds):
        played = {}
        for variant, step in (("with", advance), ("without", without_reuse)):
            with mock.patch.object(host, "advance", step):
                start = time.perf_counter()
                played[variant] = explore(TURNS)
                times[variant].append(time.perf_counter() - start)
            usages[variant] = played[variant].usage
        actions = [[[s.action for s in t.steps] for t in r.trajectories] for r in played.values()]
        if actions[0] != actions[1]:
            raise RuntimeError("episodes with and without reuse of the cache differ")
    median = {variant: statistics.median(values) for variant, values in times.items()}
    title = f"{name}, {episodes} episodes of {TURNS} turns"
    tokens = [usages[variant].prefilled for variant in ("with", "without")]
    yield record.row(
        f"{title}: prefilled", tokens[0], "tokens", None, "every turn reads all again", tokens[1],
        tokens[1] / tokens[0],
    )  # fmt: skip
    ratio = median["without"] / median["with"]
    yield record.row(
        f"{title}: time", median["with"], "s", quartiles(times["with"]), "every turn reads all again",
        median["without"], ratio, f"{REUSE:g} x", ratio >= REUSE,
    )  # fmt: skip


def household(depths: Sequence[int], rounds: int) -> Iterator[dict]:
    """Going back in an environment alone: a step from a kept state, or reset and all steps again."""
    env, rng = Household(max_steps=depths[-1] + 2), random.Random(0)
    state, _ = env.reset(0)
    states, actions = [state], []
    while len(actions) <= depths[-1]:
        next_state, _, _, terminated, _, info = env.step(state, "look")
        action = rng.choice(info["admissible_commands"])
        next_state, _, _, terminated, _, _ = env.step(state, action)
        if terminated:
            continue
        state = next_state
        states.append(state)
        actions.append(action)
    times: dict[tuple[str, int], list[float]] = {(w, d): [] for w in WAYS for d in depths}
    for _ in range(rounds):
        for depth in depths:
            start = time.perf_counter()
            env.step(states[depth], actions[depth])
            stepped_at = time.perf_counter()
            state, _ = env.reset(0)
            for action in actions[: depth + 1]:
                state, *_ = env.step(state, action)
            end = time.perf_counter()
            if state != states[depth + 1]:
                raise RuntimeError("household: a replay came to another state")
            times["fork", depth].append(1000 * (stepped_at - start))
            times["replay", depth].append(1000 * (end - stepped_at))
    for depth in depths:
        value, other = (statistics.median(times[way, depth]) for way in WAYS)
        yield record.row(
            f"household, environment alone, depth {depth}: a step from a kept state", value, "ms",
            quartiles(times["fork", depth]), "reset and replay", other, other / value,
        )  # fmt: skip


# --- The picture and the table --------------------------------------------------------------------


def draw(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """Time of a branch against its depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for way, color in zip(WAYS, ("tab:blue", "tab:red"), strict=True):
            points = [
                (int(r["name"].split("depth ")[1].split(":")[0]), r["value"], *r["spread"])
                for r in rows
                if r["name"].startswith(f"{name}, depth") and r["name"].endswith(f": {way}")
            ]
            depth, value, low, high = zip(*points, strict=True)
            label = {"fork": "fork", "replay": "reset, replay, re-prefill"}[way]
            axis.plot(depth, value, "o-", color=color, label=label, markersize=4)
            axis.fill_between(depth, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set(xscale="log", yscale="log", title=name, xlabel="steps before the branch")
        axis.set_xticks(depth, [str(d) for d in depth])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms for one new step")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def measure(name: str, depths: Sequence[int], length: int, rounds: int) -> Iterator[dict]:
    """All rows of one model, except those about reuse between turns."""
    setup = set_up(name, depths[-1], length)
    yield from depths_of(name, setup, depths, rounds)
    yield continued(name, setup, depths[1:3] if len(depths) > 2 else depths[-1:])
    if name != LARGE:
        yield equal_forks(name, setup, min(16, depths[-1]), 16)


def measured(only: str, rounds: int, quick: bool) -> list[dict]:
    """All rows; a model's memory is given back before the next."""
    rows: list[dict] = []
    depths, length = ((1, 4), SHORT) if quick else (DEPTHS, LENGTH)
    for name in models_of(only, quick):
        few = quick or name == LARGE
        parts = (
            measure(name, depths, length, rounds),
            reuse(name, min(rounds, 2) if few else rounds, 2 if few else EPISODES),
        )
        rows += [_shown(row) for part in parts for row in part]
    return rows + list(household(depths, 5 * rounds))


def _shown(row: dict) -> dict:
    """Prints a row at once, so that long runs show each number as soon as it is measured."""
    print(f"{row['name']}: {row['value']:.4g} {row['unit']}", file=sys.stderr, flush=True)
    return row


def models_of(only: str, quick: bool) -> list[str]:
    return [TINY] if quick else [name for name in MODELS if name.startswith(only)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, few short repetitions")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of everything")
    parser.add_argument("--only", default="", help="models whose name begins so")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/branching.json"
    )
    options = parser.parse_args()
    load, start = os.getloadavg()[0], time.perf_counter()
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    rows = measured(options.only, rounds, options.quick)
    record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        minutes = (time.perf_counter() - start) / 60
        print(f"written: {record.save('branching', rows, minutes, load=load)}")
        draw(rows, models_of(options.only, options.quick), record.RESULTS / "branching.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
