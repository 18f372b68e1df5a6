"""Do our functions return what the published reference implementations return?

    python benchmarks/conformance.py DIR [--family NAME ...]

replays the vector files (`*.npz`) of DIR: each array is `<family>_case<i>_<name>`, inputs have
plain names, expected results start with `out_`. It prints a line a family, then the intended
deviations that occurred, and last `N passed, N failed, N skipped` (cases; a family that is not
built counts as skipped). The exit status is 1 if a case failed, 2 if there was nothing to replay.

A family is one function: case -> (results, deviations). *Every* `out_` array of a case must be
among the results and match within the tolerances of the case, unless a deviation replaces it: an
entry `name: (reason, expected)` states which values hold instead, and those are compared with the
same strictness. Whether a deviation applies is decided from the data alone.
"""

import argparse
import collections
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from replay import advantages, appo, branpo, groups, losses
from replay.cases import COMMON_REASONS, Case, Deviations, Results

MODULES = (advantages, groups, losses, branpo, appo)
REASONS: dict[str, str] = {**COMMON_REASONS}
FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {}
for module in MODULES:
    REASONS |= module.REASONS
    FAMILIES |= module.FAMILIES


def load_cases(directory: Path) -> Iterator[tuple[str, int, Case]]:
    """Every case of every vector file: (family, number, arrays by name; scalars as Python's).

    A table of the file (`token_table_*`) is part of each of its cases.
    """
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            tables = {key: file[key] for key in file.files if key.startswith("token_table_")}
            cases: dict[tuple[str, int], Case] = collections.defaultdict(dict)
            for key in file.files:
                if match := re.fullmatch(r"(.+?)_case(\d+)_(.+)", key):
                    array = file[key]
                    value = array if array.ndim else array.item()
                    cases[match[1], int(match[2])][match[3]] = value
        for (family, number), case in sorted(cases.items()):
            yield family, number, tables | case


def check_case(family: str, case: Case) -> tuple[list[str], set[str]]:
    """Replay one case: (what is wrong, names of the deviations that made a difference)."""
    wide = any(np.asarray(x).dtype == np.float64 and np.ndim(x) for x in case.values())
    error = None
    try:
        with jax.enable_x64(wide or family == "reward_scaling"):
            results, deviations = FAMILIES[family](case)
            if clean := _without_poison(case):
                unpoisoned = FAMILIES[family](clean)[0]
                # Metrics and gradient of a loss that has read the NaN have read it too.
                nan_loss = np.isnan(case.get("out_loss", 0.0))
                for name in unpoisoned:
                    if nan_loss or np.isnan(case.get(f"out_{name}", 0.0)).any():
                        deviations.setdefault(name, ("poison", unpoisoned[name]))
            results = {name: np.asarray(value) for name, value in results.items()}
            deviations = {n: (why, _host(value)) for n, (why, value) in deviations.items()}
    except Exception as raised:  # a case that breaks must not hide the ones after it
        error = raised
    if "out_error" in case and error is not None:
        refused = isinstance(error, ValueError | NotImplementedError)
        return ([] if refused else [f"raised {error!r}, not {case['out_error']}"]), set()
    if error is not None:
        return [f"raised {type(error).__name__}: {error}"], set()

    problems, reasons = [], set()
    if "out_error" in case:
        if "error" not in deviations:
            return [f"did not raise {case['out_error']}"], set()
        reasons.add(deviations["error"][0])
    expected = {n.removeprefix("out_"): x for n, x in case.items() if n.startswith("out_")}
    expected.pop("error", None)
    unstable = case["check"] == "unstable"
    for name in expected | {n: None for n in deviations if n != "error" and n in results}:
        if name not in results:
            problems.append(f"{name} is not replayed")
            continue
        reference, ours = expected.get(name), results[name]
        if reference is not None and ours.shape != np.shape(reference):
            problems.append(f"{name} has shape {ours.shape}, not {np.shape(reference)}")
            continue
        if name in deviations:
            reason, replacement = deviations[name]
            if reference is None or not _close(replacement, reference, case):
                reasons.add(reason)
            reference = replacement
        elif unstable:
            reference = ours
        if not np.isfinite(ours).all():
            problems.append(f"{name} is not finite")
        elif not _close(ours, reference, case):
            gap = np.nanmax(np.abs(ours - np.asarray(reference, np.float64)))
            problems.append(f"{name} differs by up to {gap:.3g}")
    return problems, reasons


def _without_poison(case: Case) -> Case | None:
    """The case with its NaN inputs at masked tokens zeroed; None if there are none."""
    if np.ndim(case.get("mask")) == 0:
        return None
    masked = case["mask"] == 0
    poisoned = {
        name: np.where(masked & np.isnan(x), 0, x)  # what is masked may count (BranPO, APPO)
        for name, x in case.items()
        if np.shape(x) == masked.shape and x.dtype.kind == "f" and not name.startswith("out_")
        if np.isnan(x[masked]).any()
    }
    return case | poisoned if poisoned else None


def _host(value: Any) -> Any:
    return None if value is None else np.asarray(value)


def _close(ours: Any, reference: Any, case: Case) -> bool:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return np.allclose(ours, reference, rtol=case["rtol"], atol=case["atol"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, help="folder with the vector files")
    parser.add_argument("--family", action="append", help="replay this family only (repeatable)")
    options = parser.parse_args(arguments)

    tally: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    deviations: collections.Counter[tuple[str, str]] = collections.Counter()
    failures = []
    for family, number, case in load_cases(options.directory):
        if options.family and family not in options.family:
            continue
        if family not in FAMILIES:
            tally[family][2] += 1
            continue
        problems, reasons = check_case(family, case)
        tally[family][bool(problems)] += 1
        failures += [f"  {family} case {number}: {problem}" for problem in problems]
        deviations.update((family, reason) for reason in reasons)

    for family, (passed, failed, skipped) in sorted(tally.items()):
        note = "  (not built)" if skipped else ""
        print(f"{family:24} {passed:4} passed {failed:4} failed {skipped:4} skipped{note}")
    for family, reason in sorted(deviations):
        number = deviations[family, reason]
        print(f"deviation, {family}, {number} case(s): {REASONS[reason]}")
    print(*failures, sep="\n", end="\n" if failures else "")
    passed, failed, skipped = (sum(counts[i] for counts in tally.values()) for i in range(3))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    if not tally:
        print(f"no vectors in {options.directory}", file=sys.stderr)
        return 2
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
