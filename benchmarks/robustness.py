"""What do kills, damage, broken environments, wrong files and wrong command lines do to a run?

    python benchmarks/robustness.py [--save] [--only kills damage environments files commands] [--kills 25]

kills: a run is killed at random points (SIGKILL, SIGTERM, SIGINT) and resumed, until it is over; metrics
and parameters are compared bit for bit with those of a run that was left alone. damage: each file of
the newest checkpoint of a run is truncated, emptied, removed, or has one bit flipped; the run is
continued and has to come to the same. environments: one run in which every task misbehaves in another
way. files: questions, passages, conversations, settings and models that are not what they should be.
commands: command lines that cannot work. A case is right if the program did what it should and said so;
tracebacks, silence and lost trajectories are counted by themselves.
"""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CACHE = tempfile.mkdtemp(prefix="steprl-robustness-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # programs compile sooner, and compute the same
os.environ["MPLBACKEND"] = "Agg"
os.environ["COLUMNS"] = "400"

import record  # noqa: E402  JAX reads the settings above when it is imported
from faults.cases import Case  # noqa: E402
from faults.commands import commands  # noqa: E402
from faults.damage import damage  # noqa: E402
from faults.environments import environments  # noqa: E402
from faults.files import files  # noqa: E402
from faults.kills import kills  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parts = ("kills", "damage", "environments", "files", "commands")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--kills", type=int, default=25, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/robustness.*")
    options = parser.parse_args()
    campaigns: dict[str, Callable[[Path], Iterator[Case]]] = {
        "kills": lambda folder: kills(folder, options.kills, options.seed),
        "damage": damage,
        "environments": environments,
        "files": files,
        "commands": lambda folder: commands(folder, options.seed),
    }
    begin, rows, wrong = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory(prefix="steprl-robustness-") as scratch:
        for part in options.only:
            folder = Path(scratch) / part
            folder.mkdir()
            found = []
            for case in campaigns[part](folder):
                found.append(case)
                if not case.right or case.traceback:
                    wrong.append(f"{part}: {case.name}: {case.said}")
                    print(f"WRONG {wrong[-1]}", file=sys.stderr, flush=True)
            rows += _counted(part, found)
    record.show(rows)
    if options.save:
        minutes = (time.perf_counter() - begin) / 60
        more = {"seed": options.seed, "kills": options.kills, "wrong": wrong}
        print(record.save("robustness", rows, minutes, **more))


def _counted(part: str, cases: list[Case]) -> list[dict]:
    right = sum(case.right for case in cases)
    counts = {
        "tracebacks": sum(case.traceback for case in cases),
        "silent": sum(case.silent for case in cases),
        "lost trajectories": sum(case.lost for case in cases),
    }
    goal = f"{len(cases)}"
    rows = [record.row(part, right, "cases right", goal=goal, met=right == len(cases))]
    return rows + [
        record.row(f"{part}: {name}", count, "", goal="0", met=count == 0)
        for name, count in counts.items()
    ]


if __name__ == "__main__":
    main()
