"""What is gained by playing and learning inside one compiled program?

    python benchmarks/one_program.py [--quick] [--save]

The same model, method, game, tasks and draws, 8 tasks x 8 attempts an iteration, driven in four ways:

    one program       `steprl.laboratory.make_train`: environment, model and update in one `jit`
    two programs      rollout and update compiled, the loop on the host: `steprl train` on a game
    a call a turn     each turn of all episodes is a call of the model and a call of the game
    text environment  the game as text behind the slot engine, one episode at a time: what
                      `steprl train` does with a text environment, here one that takes no time
                      except for the compiled rules and the tokenizer

Then 8 seeds in one program, side by side (`vmap`) and one after another (`lax.map`), against one seed.

Each program computes in one thread: a model as small as these gains nothing from a second, and a core
is free for a second run (XLA_FLAGS in the environment come first). All programs are compiled beforehand,
compile times are shown separately, and all contenders take turns: a ratio is the median over rounds of two
measurements that follow each other. Ratios of processor time, which other work on the machine disturbs
less, are given as well. Before anything
is timed, the attempts of the first iteration are compared token by token. (Text drops an `<end>` inside an
action, which the game reads as part of the action; such attempts may differ.)
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import record
from driven import loops
from laboratory import design

from steprl.laboratory import make_program, make_train
from steprl.session import setup

METHOD = "steppo"
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


class Size(NamedTuple):
    """How much is measured."""

    cells: tuple[str, ...] = ("errand-8", "multihop-7")
    iterations: int = 10  # of a call
    rounds: int = 5
    seeds: int = 8
    warm_steps: int | None = None  # None as of the cell


QUICK = Size(("errand-8",), iterations=3, rounds=3, warm_steps=100)


class Spent(NamedTuple):
    """Of one call."""

    wall: float
    processor: float
    steps: float
    environment: float


def measured(size: Size) -> list[dict[str, Any]]:
    """All rows of all cells."""
    return [row for cell in size.cells for row in of_cell(cell, size)]


def of_cell(cell: str, size: Size) -> list[dict[str, Any]]:
    config = design.config_of(cell, METHOD)
    warm_steps = config.sft.steps if size.warm_steps is None else size.warm_steps
    config = dataclasses.replace(
        config,
        sft=dataclasses.replace(config.sft, steps=warm_steps),
        trainer=dataclasses.replace(config.trainer, total_training_steps=size.iterations),
    )
    session = setup(config)
    key, params = jax.random.key(0), warm_start(config)
    keys = jax.random.split(key, size.seeds)
    drivers: dict[str, loops.Run] = {
        "one program": loops.one_program(config),
        "two programs": loops.two_programs(session),
        "a call a turn": loops.call_a_turn(session),
        "text environment": loops.text_environment(session),
    }
    train = make_train(config)
    side_by_side = jax.jit(jax.vmap(train, in_axes=(0, None)))
    in_turn = jax.jit(lambda keys, params: jax.lax.map(lambda one: train(one, params), keys))

    def seeds_by(several: Any) -> loops.Run:
        def run(_: jax.Array, params: Any) -> loops.Ran:
            _, metrics = jax.device_get(several(keys, params))
            first_success = metrics["rollout/success_rate"][:, 0].tolist()
            return loops.Ran(float(metrics["step/count"].sum()), first_success)

        return run

    vmapped, mapped = f"{size.seeds} seeds side by side", f"{size.seeds} seeds one after another"
    contenders = drivers | {vmapped: seeds_by(side_by_side), mapped: seeds_by(in_turn)}
    first_runs, first_spent = {}, {}
    for name, run in contenders.items():
        first_spent[name], first_runs[name] = timed(run, key, params)
        print(
            f"{cell}: {name}, first call {first_spent[name].wall:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    rows = same_rows(cell, first_runs, vmapped, mapped, session.player.tokenizer.eos_token_id)
    spent: dict[str, list[Spent]] = {name: [] for name in contenders}
    for number in range(size.rounds):
        for name, run in contenders.items():
            spent[name].append(timed(run, key, params)[0])
        print(f"{cell}: round {number + 1} of {size.rounds}", file=sys.stderr, flush=True)
    rows += rate_rows(cell, spent, list(drivers))
    rows += seed_rows(cell, spent, vmapped, mapped)
    for name in contenders:
        extra = first_spent[name].wall - statistics.median(one.wall for one in spent[name])
        label = f"{cell}: {name}, first call beyond a warm one"
        rows.append(record.row(label, extra, "s"))
    return rows


def warm_start(config: Any) -> Any:
    """Warm-started parameters, so that episodes are as long as those of a partly trained policy."""
    params, _ = jax.jit(make_program(config).warm_start)(jax.random.key(0))
    return jax.block_until_ready(params)


def timed(run: loops.Run, key: jax.Array, params: Any) -> tuple[Spent, loops.Ran]:
    wall, processor = time.perf_counter(), time.process_time()
    result = run(key, params)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Spent(wall, processor, result.steps, result.in_environment), result


def same_rows(
    cell: str, first: Mapping[str, loops.Ran], together: str, apart: str, end: int
) -> list[dict[str, Any]]:
    """Whether all played the same; after the first update, rounding makes them diverge."""
    batch = first["two programs"].batch
    rows = []
    for name in ("a call a turn", "text environment"):
        differing = loops.parted_attempts(batch, first[name].batch, end)
        label = f"{cell}: {name}, attempts that are not those of two programs"
        row = record.row(label, differing, f"of {len(batch.task_N)}")
        rows.append(row | {"goal": "0", "met": differing == 0})
    gap = abs(first["one program"].success[0] - first["two programs"].success[0])
    seed_gap = np.abs(np.subtract(first[together].success, first[apart].success)).max()
    for name, value in (
        ("one program against two", gap),
        (f"{together} against {apart}", seed_gap),
    ):
        row = record.row(f"{cell}: success of the first iteration, {name}", float(value), "apart")
        rows.append(row | {"goal": "0", "met": bool(value < 1e-6)})
    return rows


def rate_rows(cell: str, spent: Mapping[str, list[Spent]], ways: list[str]) -> list[dict[str, Any]]:
    """Agent steps a second, and how many times those of the others the one program makes."""
    rows = []
    for name in ways:
        rates = [timing.steps / timing.wall for timing in spent[name]]
        rows.append(summary_row(f"{cell}: {name}", rates, "agent steps/s"))
    goal = 10 if jax.default_backend() == "cpu" else 50
    timings = spent["one program"]
    for name in ways[1:]:
        for kind, per_step in (
            ("wall", lambda timing: timing.wall / timing.steps),
            ("processor", lambda timing: timing.processor / timing.steps),
            (
                "wall, less the environment",
                lambda timing: (timing.wall - timing.environment) / timing.steps,
            ),
        ):
            if kind.endswith("environment") and name != "text environment":
                continue
            row = summary_row(
                f"{cell}: one program over {name}, {kind}", in_turn_ratio(spent[name], timings, per_step), "x"
            )  # fmt: skip
            if name == "text environment" and kind == "wall":
                met = row["value"] >= goal
                row |= {"peer": name, "goal": f"at least {goal}", "met": met}
                row |= {"peer_value": rows[ways.index(name)]["value"], "ratio": row["value"]}
            rows.append(row)
    return rows


def seed_rows(
    cell: str, spent: Mapping[str, list[Spent]], together: str, apart: str
) -> list[dict[str, Any]]:
    """What several seeds cost."""
    rows = []
    for kind, cost in (("wall", lambda x: x.wall), ("processor", lambda x: x.processor)):
        for name in (together, apart):
            ratios = in_turn_ratio(spent[name], spent["one program"], cost)
            rows.append(summary_row(f"{cell}: {name} over 1 seed, {kind}", ratios, "x"))
    for name in (together, apart):
        rates = [timing.steps / timing.wall for timing in spent[name]]
        rows.append(summary_row(f"{cell}: {name}", rates, "agent steps/s"))
    return rows


def in_turn_ratio(
    above: list[Spent], below: list[Spent], cost: Callable[[Spent], float]
) -> list[float]:
    """Of each round."""
    return [cost(a) / cost(b) for a, b in zip(above, below, strict=True)]


def summary_row(name: str, values: list[float], unit: str) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return record.row(name, middle, unit, [low, high])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one game, few and short rounds")
    parser.add_argument("--rounds", type=int, help="repetitions of everything")
    parser.add_argument("--variant", default="", help="part of the name of the result file")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/one_program.json"
    )
    options = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", ONE_THREAD)
    size = QUICK if options.quick else Size()
    size = size._replace(rounds=options.rounds or size.rounds)
    load, start = os.getloadavg()[0], time.perf_counter()
    rows = measured(size)
    record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        minutes = (time.perf_counter() - start) / 60
        path = record.save(
            "one_program", rows, minutes, options.variant, load=load, method=METHOD,
            iterations=size.iterations, flags=os.environ.get("XLA_FLAGS", ""),
        )  # fmt: skip
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
