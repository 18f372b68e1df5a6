"""How long it takes to compute advantages and returns of every token from a trainer's batch.

    python benchmarks/ops.py [--quick] [--save]

The batch is laid out as the published trainers lay it out: a row is one response, rows come in any
order, and strings say to which trajectory, prompt and observation a row belongs. Both sides are
timed from there to the same results, which are compared first; a mismatch ends the run. The peer is
plain PyTorch as those trainers write it (benchmarks/peers/estimators.py), left out where torch is
not installed. Each side gets its arrays on its own device and in its own types: masks are int32 here
and int64 there. "ids given" leaves out the numbering of the strings; "memory reused" is given
the results of the previous call to write over (donation), as a training loop can, so that no new memory
is touched: on Linux that costs more than the arithmetic. The peer runs with all threads and with one; the
better counts. Goals are those of the time from the strings.

The floor is the bytes of the inputs and results, each moved once, over the bandwidth of `x + 1` on
an array of the same shape, whose result is fresh memory too; with memory reused, over that of a
NumPy copy into memory that is there. Both are measured between the repetitions.
"""

import argparse
import dataclasses
import functools
import inspect
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from peers.batch import Batch, make_batch

from steprl import ops

try:
    import torch
    from peers import estimators
except ImportError:  # a peer is not a dependency
    torch = None

THREADS = 0 if torch is None else torch.get_num_threads()
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
SHAPES = {"64 x 8 x 256": (8, 8, 8, 256), "512 x 32 x 512": (64, 8, 32, 512)}
WAYS = ("from strings", "from strings, memory reused", "ids given", "ids given, memory reused")
GOALS = {"step GAE": 8.0, "token GAE": 15.0, "GiGPO": 20.0}  # at the large shape
BLOCK = 1024  # rows that stay in the cache: large temporaries cost more than the sums themselves


# --- Ours -----------------------------------------------------------------------------------------


def numbered(names: np.ndarray) -> tuple[np.ndarray, int]:
    """Strings to 0, 1, ... by first appearance."""
    number_of: defaultdict[str, int] = defaultdict()
    number_of.default_factory = number_of.__len__
    numbers = np.fromiter(map(number_of.__getitem__, names.tolist()), np.int32, len(names))
    return numbers, len(number_of)


def row_sums(x_nt: jax.Array, mask_nt: jax.Array) -> jax.Array:
    """`masked_sum` of each row, a block of rows at a time."""
    return jax.lax.map(
        lambda row: ops.masked_sum(*row), (x_nt, mask_nt), batch_size=min(BLOCK, len(x_nt))
    )


def on_grid(x_n: jax.Array, cells: tuple[jax.Array, jax.Array], size: tuple) -> jax.Array:
    return jnp.zeros(size, x_n.dtype).at[cells].set(x_n, unique_indices=True)


def spread(x_n: jax.Array, mask_nt: jax.Array) -> jax.Array:
    return jnp.where(mask_nt != 0, x_n[:, None], 0)


def step_gae(rewards, values, mask, trajectory_n, step_n, *, size):
    cells, value_n = (trajectory_n, step_n), values[:, 0]
    reward, value = (on_grid(x, cells, size) for x in (row_sums(rewards, mask), value_n))
    gae = jax.vmap(ops.step_gae, in_axes=(0, None, 0, None))
    advantage_n = gae(reward, jnp.full(size[1], GAMMA), value, LAMBDA)[cells]
    every_n = jnp.ones_like(advantage_n, bool)
    whitened_n = ops.masked_whiten(advantage_n, every_n, epsilon_at="std")
    return spread(whitened_n, mask), spread(advantage_n + value_n, mask)


def token_gae(rewards, values, mask, trajectory_n, step_n, *, size):
    """Last rows of all trajectories, then those before, so that the working set fits the cache."""
    rows, tokens = rewards.shape
    row_bs = jnp.full(size, rows, jnp.int32).at[trajectory_n, step_n].set(jnp.arange(rows))
    gae = jax.vmap(ops.token_gae, in_axes=(0, None, 0, None, 0, 0, 0))
    discount_t = jnp.full(tokens, GAMMA)

    def piece(state, row_b):
        behind, advantages = state
        at = jnp.minimum(row_b, rows - 1)
        reward, value = rewards[at], values[at]
        active = (mask[at] != 0) & (row_b < rows)[:, None]
        ids = jnp.where(active, 0, -1)
        here = gae(reward, discount_t, value, LAMBDA, ids, *behind)
        first = jnp.arange(len(row_b)), jnp.argmax(active, axis=1)
        behind = tuple(
            jnp.where(active[first], x[first], y)
            for x, y in zip((value, here), behind, strict=True)
        )
        mean = ops.masked_mean(here, active)
        spread = ops.masked_sum(jnp.square(here - mean), active)
        advantages = advantages.at[row_b].set(here, unique_indices=True, mode="drop")
        return (behind, advantages), (active.sum(), mean, spread)

    nothing = jnp.zeros(size[0])
    start = ((nothing, nothing), jnp.zeros_like(rewards))
    (_, advantages), parts = jax.lax.scan(piece, start, row_bs.T, reverse=True)
    number_s, mean_s, spread_s = parts
    number = number_s.sum()
    mean = (number_s * mean_s).sum() / number
    variance = (spread_s + number_s * jnp.square(mean_s - mean)).sum() / (number - 1)
    active = mask != 0
    whitened = jnp.where(active, (advantages - mean) * jax.lax.rsqrt(variance + 1e-8), 0)
    return whitened, jnp.where(active, advantages + values, 0)


def grpo(rewards, mask, trajectory_n, group_n, *, size, groups):
    score_b = jax.ops.segment_sum(row_sums(rewards, mask), trajectory_n, size[0])
    group_b = jnp.zeros(size[0], jnp.int32).at[trajectory_n].set(group_n)
    return (spread(ops.group_advantages(score_b, group_b, groups)[trajectory_n], mask),)


def gigpo(rewards, mask, trajectory_n, group_n, step_n, anchor_n, *, size, groups):
    cells = (trajectory_n, step_n)
    reward_bs = on_grid(row_sums(rewards, mask), cells, size)
    returns = jax.vmap(ops.discounted_returns, in_axes=(0, None))
    return_bs = returns(reward_bs, jnp.full(size[1], GAMMA))
    anchor_bs = jnp.full(size, -1, jnp.int32).at[cells].set(anchor_n, unique_indices=True)
    group_b = jnp.zeros(size[0], jnp.int32).at[trajectory_n].set(group_n)
    # The number of rows bounds that of clusters and does not change from batch to batch.
    advantage_bs = ops.gigpo_advantages(
        reward_bs.sum(axis=1), group_b, groups, return_bs, anchor_bs, len(rewards)
    )
    return (spread(advantage_bs[cells], mask),)


def appo_scores(current, behavior, entropy, mask):
    def row(x):
        current_t, behavior_t, entropy_t, mask_t = x
        ids_t = jnp.where(mask_t != 0, 0, -1)
        future_t = ops.appo_future_value(current_t - behavior_t, ids_t, 1.0, CLIP)
        return ops.appo_branching_scores(entropy_t, ids_t, future_t, negative_pairs="product")

    arrays = (current, behavior, entropy, mask)
    return jax.lax.map(row, arrays, batch_size=min(BLOCK // 2, len(mask)))


@dataclasses.dataclass
class Case:
    """One estimator on one batch, both sides."""

    ours: dict[str, Callable[[], Any]]  # by the names of WAYS
    peer: Callable[[], Any] | None
    moved: int  # bytes of the inputs and the results


def cases(batch: Batch) -> dict[str, Case]:
    rows, tokens = batch.mask.shape
    plain = {k: jnp.asarray(getattr(batch, k)) for k in ARRAYS}
    mask = jnp.asarray(batch.mask, jnp.int32)
    r, v, current, behavior, entropy = plain.values()
    cell = rows * tokens

    def ids(*which: str) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The numbers of the strings that an estimator asks for, and the sizes they set."""
        numbers, sizes = [], {}
        for name in which:
            if name == "steps":
                number_n, number = batch.steps.astype(np.int32), int(batch.steps.max()) + 1
            elif name == "anchors":
                number_n, number = ops.anchor_ids(batch.anchors, batch.groups)
            else:
                number_n, number = numbered(getattr(batch, name))
            numbers.append(number_n)
            sizes[name] = number
        static = {"size": (sizes["trajectories"], sizes.get("steps", 1))} if which else {}
        return numbers, static | ({"groups": sizes["groups"]} if "groups" in sizes else {})

    t = {} if torch is None else {k: torch.from_numpy(getattr(batch, k)) for k in ARRAYS}
    tm = None if torch is None else torch.from_numpy(batch.mask)
    e = None if torch is None else estimators
    names, prompts, steps, anchors = batch.trajectories, batch.groups, batch.steps, batch.anchors
    table = {
        "step GAE": (
            step_gae, (r, v, mask), ("trajectories", "steps"), 16 * cell + 4 * rows,
            lambda: e.step_gae(t["rewards"], t["values"], tm, names, steps, GAMMA, LAMBDA),
        ),
        "token GAE": (
            token_gae, (r, v, mask), ("trajectories", "steps"), 20 * cell,
            lambda: e.token_gae(t["rewards"], t["values"], tm, names, steps, GAMMA, LAMBDA),
        ),
        "GRPO": (
            grpo, (r, mask), ("trajectories", "groups"), 12 * cell,
            lambda: e.grpo(t["rewards"], tm, names, prompts),
        ),
        "GiGPO": (
            gigpo, (r, mask), ("trajectories", "groups", "steps", "anchors"), 12 * cell,
            lambda: e.gigpo(t["rewards"], tm, anchors, names, prompts, steps, GAMMA),
        ),
        "APPO scores": (
            appo_scores, (current, behavior, entropy, mask), (), 21 * cell,
            lambda: e.appo_scores(t["current"], t["behavior"], t["entropy"], tm, 1.0, CLIP),
        ),
    }  # fmt: skip
    return {k: _case(*x, ids) if e else _case(*x[:-1], None, ids) for k, x in table.items()}


ARRAYS = ("rewards", "values", "current", "behavior", "entropy")


def _case(function, arrays, which, moved, peer, ids) -> Case:
    names = tuple(set(inspect.signature(function).parameters) & {"size", "groups"})
    run = jax.jit(function, static_argnames=names)
    number, static = ids(*which)
    on_device = [jnp.asarray(x) for x in number]

    @functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    def run_in_place(_, *arguments):
        return function(*arguments, **static)

    memory = [run(*arrays, *on_device, **static)]

    def reused(strings: bool) -> Any:
        memory[0] = run_in_place(memory[0], *arrays, *(ids(*which)[0] if strings else on_device))
        return memory[0]

    def from_strings() -> Any:
        number, static = ids(*which)
        return run(*arrays, *number, **static)

    ways = (
        from_strings,
        functools.partial(reused, True),
        lambda: run(*arrays, *on_device, **static),
        functools.partial(reused, False),
    )
    chosen = list(zip(WAYS, ways, strict=True))[0 if which else 2 :]
    return Case(dict(chosen), peer, moved)


# --- Checked and timed ----------------------------------------------------------------------------


def mismatch(case: Case, batch: Batch) -> float:
    """Largest difference at active tokens; inf where a result is off by more than rounding."""
    assert case.peer is not None
    active, worst = batch.mask != 0, 0.0
    expected = case.peer()
    for run in case.ours.values():
        for ours, theirs in zip(run(), expected, strict=False):
            a, b = np.asarray(ours)[active], theirs.numpy()[active]
            if b.dtype == bool:  # which of two nearly equal numbers is the larger
                worst = max(worst, 0.0 if (a != b).mean() < 1e-4 else np.inf)
                continue
            worst = max(worst, float(np.abs(a - b).max()))
            if not np.allclose(a, b, rtol=1e-3, atol=2e-4):
                return np.inf
    return worst


def milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = function()
    if torch is None or not isinstance(result, tuple) or isinstance(result[0], jax.Array):
        jax.block_until_ready(result)
    return 1e3 * (time.perf_counter() - start)


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int, often: int) -> dict[str, list[float]]:
    """Times of each side; every round has all of them, the quick ones `often` times."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            if name.startswith("peer"):
                torch.set_num_threads(1 if name.endswith("1") else THREADS)
            time.sleep(0.02)  # threads of the previous side keep waiting for work for a while
            slow = times[name] and min(times[name]) > 50
            for _ in range(1 if slow else often):
                times[name].append(milliseconds(side))
    return times


def quartiles(x: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(x, n=4)
    return [low, high]


def measure(shape: str, rounds: int, only: str = "") -> tuple[list[dict[str, Any]], bool]:
    batch = make_batch(*SHAPES[shape])
    large, right = batch.mask.size > 1 << 20, True
    x, y = jnp.asarray(batch.rewards), np.empty_like(batch.rewards)
    add = jax.jit(lambda x: x + 1)
    rows = []
    for name, case in cases(batch).items():
        if only not in name:
            continue
        error = None
        if case.peer is not None:
            error = mismatch(case, batch)
            right &= error < np.inf
        functions = case.ours | {"add": lambda: add(x), "copy": lambda: np.copyto(y, batch.rewards)}
        functions |= {} if case.peer is None else {"peer": case.peer, "peer 1": case.peer}
        times = in_turn(functions, rounds, 2 if large else 10)
        middle = {k: statistics.median(v) for k, v in times.items()}
        peer = None
        if case.peer is not None:  # the better of all threads and one
            best = min(("peer", "peer 1"), key=middle.__getitem__)
            middle["peer"], threads = middle[best], 1 if best == "peer 1" else THREADS
            peer = f"plain PyTorch, CPU, {threads} thread{'s' if threads > 1 else ''}"
        for way in case.ours:
            row = record.row(
                f"{name}, {shape}, {way}", middle[way], "ms", quartiles(times[way]), peer,
                middle.get("peer"), middle["peer"] / middle[way] if peer else None,
            )  # fmt: skip
            if peer and (way.startswith("from strings") or name not in GOALS):
                goal = GOALS.get(name, 1.0) if large else 1.0
                row["goal"], row["met"] = f"{goal:g} x", row["ratio"] >= goal
            rows.append(row)
            ratio = f"  {row['ratio']:6.1f} x" if peer else ""
            print(f"{row['name']:58s} {row['value']:9.3f} ms{ratio}", flush=True)
        bytes_moved = 2 * batch.rewards.nbytes
        for floor, side, way in (("x + 1", "add", WAYS[2]), ("NumPy copy", "copy", WAYS[3])):
            floor_ms = case.moved / bytes_moved * middle[side]
            row = record.row(f"{name}, {shape}, floor of {floor}", floor_ms, "ms")
            ratio_row = record.row(
                f"{name}, {shape}, {way}, over that", middle[way] / floor_ms, "x"
            )
            if large and side == "add":
                ratio_row["goal"], ratio_row["met"] = "2 x", ratio_row["value"] <= 2
            rows += [row, ratio_row]
        if error is not None:
            rows.append(record.row(f"{name}, {shape}, largest difference", 1e6 * error, "1e-6"))
    return rows, right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small shape, few repetitions")
    parser.add_argument("--only", default="", help="estimators whose name has this in it")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/ops.json")
    options = parser.parse_args()
    if torch is None:
        print("torch is not installed: our times only")
    load, start = os.getloadavg()[0], time.perf_counter()
    rows, right = [], True
    for shape in list(SHAPES)[: 1 if options.quick else None]:
        shape_rows, agree = measure(shape, 3 if options.quick else 9, options.only)
        rows, right = rows + shape_rows, right and agree
    record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        version = None if torch is None else torch.__version__
        minutes = (time.perf_counter() - start) / 60
        path = record.save("ops", rows, minutes, torch=version, load=load)
        print(f"written: {path}")
    if not right:
        print("the two sides differ", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
