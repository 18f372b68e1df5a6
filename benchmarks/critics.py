"""Which setting of the critic helps? StepPO with one thing changed at a time, and GRPO to beat.

    python benchmarks/critics.py --quick     # one game, 3 variants, 4 seeds
    python benchmarks/critics.py [--save]    # the table: 3 games, 8 seeds; can be resumed
    python benchmarks/critics.py --cells errand-32 --variants plain own

The runs are those of `algorithms.py`: the same games, warm starts, sampled tokens and tuned learning rate and
clip, a whole training in one program, the seeds one axis of it. Only the critic differs
(`critic_study/variants.py`). Of each run are kept: success while learning (area under the curve, and the
mean of the last five iterations), the explained variance of each batch, and, in the middle and at the
end, how well the critic agrees with what is true. For this, states of held-out episodes are continued
many times (`steprl.laboratory.make_value_audit`), and the ranks of the critic's values are correlated
with those of the mean returns. In the longest game only some variants run. Finished runs are kept in
--folder; --fresh starts over.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Small models compile in half the time and run as fast; one thread, as jobs run side by side.
_FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false"


def main() -> None:
    os.environ.setdefault("XLA_FLAGS", _FLAGS)
    options = _arguments()
    from critic_study import outcome, variants

    name = "quick" if options.quick else "standard"
    scale, folder = variants.SCALES[name], Path(options.folder)
    if options.cells:
        scale = scale._replace(cells=tuple(options.cells))
    if options.variants:
        scale = scale._replace(variants=tuple(options.variants))
    if options.seeds:
        scale = scale._replace(seeds=options.seeds)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not options.report:
        _run_all(scale, folder, options.workers)
    found = outcome.read(scale, folder)
    outcome.show(found)
    if options.save:
        suffix = "quick" if options.quick else ""
        for path in outcome.save(found, scale, suffix, folder, options.workers):
            print(f"written: {path}")


def _run_all(scale: Any, folder: Path, workers: int) -> None:
    from critic_study import runs, variants

    warm = [cell for cell in scale.cells if not (folder / cell / "warm.npz").exists()]
    _in_parallel("warm start", _warm, [(cell, str(folder)) for cell in warm], workers)
    left = [
        pair
        for pair in variants.pairs(scale)
        if not runs.file_of(*pair, scale.seeds, folder).exists()
    ]
    # A job has the variants of one program, which is compiled once; the longest game first.
    groups = [
        list(group)
        for _, group in itertools.groupby(left, lambda p: (p[0], variants.program_of(p[1])))
    ]
    groups.sort(key=lambda group: group[0][0] != variants.LONGEST)
    _in_parallel("runs", _run, [(group, scale.seeds, str(folder)) for group in groups], workers)


def _in_parallel(stage: str, function: Any, jobs: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Runs jobs in processes of their own and prints the progress."""
    if not jobs:
        return
    begin = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(function, *job) for job in jobs]
        for number, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            left = (time.perf_counter() - begin) / number * (len(jobs) - number) / 60
            print(f"{stage} {number:2d}/{len(jobs)} {future.result():60s} about {left:.0f} min left",
                  flush=True)  # fmt: skip


def _warm(cell: str, folder: str) -> str:
    from laboratory import jobs

    jobs.warm_start(cell, Path(folder))
    return cell


def _run(group: Sequence[tuple[str, str]], seeds: int, folder: str) -> str:
    from critic_study import runs

    begin = time.perf_counter()
    for cell, variant in group:
        runs.run(cell, variant, seeds, Path(folder))
    names = ", ".join(variant for _, variant in group)
    return f"{group[0][0]} {names} {time.perf_counter() - begin:.0f} s"


def _arguments() -> argparse.Namespace:
    from critic_study import variants

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one game, 3 variants, 4 seeds")
    cells = [*variants.CELLS, *variants.OPTIONAL]
    for name, names in (("--cells", cells), ("--variants", variants.VARIANTS)):
        parser.add_argument(name, nargs="+", choices=list(names), help="in place of the scale's")
    parser.add_argument("--seeds", type=int, help="in place of the scale's")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes, a job each")
    parser.add_argument("--folder", default="runs/critics", help="where runs are kept")
    parser.add_argument("--fresh", action="store_true", help="throw away the runs that are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/critics.*")
    return parser.parse_args()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
