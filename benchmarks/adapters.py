"""What a step, a reset and a branch cost in the environments of other packages.

    python benchmarks/adapters.py --save

One engine plays all states of an environment, so it is in another state when a branch is made: "branch" is
the time of a step from a state that is `DEPTH` steps deep, after the engine has started another task.
Packages that are not installed are left out; `--save` keeps their saved rows, and fills the table in
docs/environments.md, which `--check` compares.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "environments.md"
SAVED = ROOT / "benchmarks" / "results" / "adapters.json"
BEGIN, END = "<!-- adapters: made by benchmarks/adapters.py -->", "<!-- end of adapters -->"
DEPTH = 8
ROUNDS = 5


class Case(NamedTuple):
    """An environment to measure.

    Attributes:
        name: of `env.name`, and of the package that it needs.
        state: how a state is kept.
        title: what is measured; "" where there is one case.
        options: of `env.options`.
        actions: taken at random where the environment does not list what is admissible.
    """

    name: str
    state: str
    title: str = ""
    options: dict[str, Any] = {}
    actions: Sequence[str] = ("look",)


FEW = {"games_per_split": 2}  # games take seconds to make
TEXTWORLD = ("textworld", "snapshot: Z-machine and facts")
BIG = {"recipe": 3, "take": 3, "go": 6, "cut": True}
GYMNASIUM = ("gymnasium", "snapshot: deep copy, or replay")
VALUE = "value"
CASES = (
    Case(*TEXTWORLD, "tw-cooking, 1 room", {"challenge": "tw-cooking", **FEW}),
    Case(
        *TEXTWORLD, "tw-cooking, 6 rooms",
        {"challenge": "tw-cooking", "settings": BIG, **FEW},
    ),
    Case(*TEXTWORLD, "tw-coin_collector", {"challenge": "tw-coin_collector", **FEW}),
    Case("alfworld", "replay"),
    Case(*GYMNASIUM, "CartPole-v1, copied", {"id": "CartPole-v1"}, ("0", "1")),
    Case(*GYMNASIUM, "CartPole-v1, replayed", {"id": "CartPole-v1", "keep": "replay"}, ("0", "1")),
    Case(
        "scienceworld", "replay", "boil",
        {"tasks": "boil"}, ("look around", "inventory", "open door to hallway", "wait1"),
    ),
    Case(
        "textworld_express", "replay", "cookingworld",
        {"games": "cookingworld"},
    ),
    Case(
        "textarena", "snapshot: deep copy", "TowerOfHanoi-v0", {},
        ("[A B]", "[A C]", "[B C]"),
    ),
    Case("reasoning_gym", VALUE, "basic_arithmetic"),
)  # fmt: skip


class Times(NamedTuple):
    """First quartiles, in ms: whatever else runs on the machine only adds."""

    step: float
    reset: float
    branch: float


def measure(env: Any, choose: Callable[[dict], str], clock: Callable[[], float]) -> Times:
    """Times of an environment that has one engine."""
    steps, resets, branches = [], [], []
    for task in range(ROUNDS):
        env.reset(task)  # what is made or loaded once is not what a reset costs
        env.reset(task + 1)
        begin = clock()
        state, _ = env.reset(task)
        resets.append(clock() - begin)
        info: dict = {}
        for _ in range(DEPTH):
            begin = clock()
            next_state, _, _, terminated, truncated, info = env.step(state, choose(info))
            steps.append(clock() - begin)
            if terminated or truncated:
                break
            state = next_state
        env.reset(task + 1)
        begin = clock()
        env.step(state, choose(info))
        branches.append(clock() - begin)
    return Times(*(1000 * statistics.quantiles(x, n=4)[0] for x in (steps, resets, branches)))


def chooser(actions: Sequence[str], seed: int = 0) -> Callable[[dict], str]:
    rng = random.Random(seed)
    return lambda info: rng.choice(info.get("admissible_commands") or actions)


def measured(cases: Sequence[Case], only: str) -> Iterator[tuple[Case, Times]]:
    from steprl.envs.custom import load_suite

    for case in cases:
        if only and only != case.name:
            continue
        if importlib.util.find_spec(case.name) is None:
            print(f"{case.name}: left out, it is not installed", file=sys.stderr)
            continue
        extra = {"engines": 1} if case.state != VALUE else {}
        env: Any = load_suite(case.name, {**case.options, **extra, "split": "train"}).train
        yield case, measure(env, chooser(case.actions), time.perf_counter)
        if extra:
            env.close()


def versions(only: str) -> dict[str, str]:
    """Versions of the packages that were measured."""
    names = {only} if only else {case.name for case in CASES}
    installed = sorted(name for name in names if importlib.util.find_spec(name))
    return {name: importlib.metadata.version(name.replace("_", "-")) for name in installed}


def key(case: Case, what: str) -> str:
    return f"{case.name}{f', {case.title}' if case.title else ''}: {what}"


def table(rows: Sequence[dict]) -> str:
    """The table of the page, from saved rows."""
    values = {row["name"]: row["value"] for row in rows}
    lines = [
        "| `env.name` | install | how a state is kept | measured | step | reset | branch |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if key(case, "step") in values:
            times = (values[key(case, what)] for what in Times._fields)
            extra = f"`steprl[{case.name.replace('_', '-')}]`"
            cells = [f"`{case.name}`", extra, case.state, case.title]
            lines.append(
                "| "
                + " | ".join([*cells, *(f"{x:.2g}" if x < 100 else f"{x:.0f}" for x in times)])
                + " |"
            )
    return "\n".join(lines)


def page(text: str, record: dict) -> str:
    """The page with the table in its place."""
    context = f"on {record['hardware']}; a branch is {DEPTH} steps deep."
    note = f"First quartiles in ms, for their order of magnitude, {context}"
    begin, end = (text.index(mark) for mark in (BEGIN, END))
    return f"{text[: begin + len(BEGIN)]}\n{table(record['rows'])}\n\n{note}\n{text[end:]}"


def main(arguments: argparse.Namespace) -> int:
    if arguments.check:
        record = json.loads(SAVED.read_text())
        return int(page(PAGE.read_text(), record) != PAGE.read_text())
    begin = time.perf_counter()
    from record import row, save, show

    rows = [
        row(key(case, what), round(getattr(times, what), 3), "ms")
        for case, times in measured(CASES, arguments.only)
        for what in Times._fields
    ]
    show(rows)
    if arguments.save:
        saved = json.loads(SAVED.read_text()) if SAVED.exists() else {"rows": []}
        merged = {r["name"]: r for r in [*saved["rows"], *rows]}
        packages = saved.get("packages", {}) | versions(arguments.only)
        minutes = (time.perf_counter() - begin) / 60
        row_names = [key(case, what) for case in CASES for what in Times._fields]
        rows = [merged[name] for name in row_names if name in merged]
        record = json.loads(save("adapters", rows, minutes, packages=packages).read_text())
        PAGE.write_text(page(PAGE.read_text(), record))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("--only", default="", help="measure the cases of this env.name")
    parser.add_argument("--save", action="store_true", help="write the results and the table")
    parser.add_argument("--check", action="store_true", help="is the table that of the results?")
    sys.exit(main(parser.parse_args()))
