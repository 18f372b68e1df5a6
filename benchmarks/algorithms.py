"""Which credit is better? Every method from the same warm start, with seeds and intervals.

    python benchmarks/algorithms.py --quick          # one cell, 4 seeds, against the committed table
    python benchmarks/algorithms.py [--save]         # the table: 6 cells, 12 seeds; can be resumed
    python benchmarks/algorithms.py --effects --save # adds the longest cells, for fewer methods
    python benchmarks/algorithms.py --full --save    # 8 cells, 36 seeds; for a GPU

Games that live on the device (`errand`, `shop`, `multihop`) are played, learnt from and evaluated
inside one compiled program, all seeds at once. The same for all: the warm-started model of a cell,
the number of sampled tokens (branches counted), optimiser, batch and mini-batch, and the number of tuning
runs, on seeds that are not in the table: over learning rates and clip fractions, or where a method has a
critic, over learning rates of both and lambda, which grows with the horizon.
The clip of each method is adjusted until the same share of its tokens is clipped, so that ratios of
tokens, steps and sequences are restricted to the same degree. Finished runs are kept in --folder;
--fresh starts over.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Small models compile in half the time and run as fast; one thread, as jobs run side by side.
_FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false"

Job = tuple[str, ...]


def main() -> None:
    options = _arguments()
    scale_name = next((x for x in ("quick", "effects", "full") if getattr(options, x)), "standard")
    os.environ.setdefault("XLA_FLAGS", _FLAGS)
    from laboratory import design, outcome

    scale, folder = design.SCALES[scale_name], Path(options.folder)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not options.report:
        _run_all(scale, options.methods or scale.methods, folder, options)
    runs = outcome.read(scale, options.methods or list(design.METHODS), folder)
    outcome.show(runs, quick=options.quick)
    if options.save:
        for path in outcome.save(runs, outcome.table(runs), scale_name, folder, options.workers):
            print(f"written: {path}")


def _run_all(scale: Any, methods: Sequence[str], folder: Path, options: argparse.Namespace) -> None:
    from laboratory import design

    cells: Sequence[str] = options.cells or scale.cells
    warm_cells = {*cells, design.TUNED_ON} if scale.tune else set(cells)
    warm = [("warm", cell) for cell in design.CELLS if cell in warm_cells]
    firsts = range(0, scale.seeds, design.LANES)
    size = min(scale.seeds, design.LANES)
    tuned = {*methods, *(design.TUNED_TOGETHER if {*methods} & {*design.TUNED_TOGETHER} else ())}
    tuning = [("tune", method) for method in design.METHODS if method in tuned and scale.tune]
    runs = [
        ("run", cell, method, str(first), str(size), "tuned" if scale.tune else "committed")
        for cell in cells
        for method in methods
        for first in firsts
    ]
    for stage in (warm, tuning, runs):
        _in_parallel([job for job in stage if not _done(job, folder)], folder, options.workers)


def _file(job: Job, folder: Path) -> Path:
    from laboratory import design

    if job[0] == "warm":
        return folder / job[1] / "warm.npz"
    if job[0] == "tune":
        return folder / design.TUNED_ON / f"{job[1]}.tuning.npz"
    return folder / job[1] / f"{job[2]}.{job[3]}-{job[4]}.npz"


def _done(job: Job, folder: Path) -> bool:
    return _file(job, folder).exists()


def _in_parallel(jobs: Sequence[Job], folder: Path, workers: int) -> None:
    """Runs jobs in processes of their own and prints the progress."""
    if not jobs:
        return
    begin = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(_work, job, str(folder)): job for job in jobs}
        for number, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            seconds = future.result()
            left = (time.perf_counter() - begin) / number * (len(jobs) - number) / 60
            name = " ".join(waiting[future][:3])
            print(
                f"{number:3d}/{len(jobs)} {name:42s} {seconds:5.0f} s, about {left:.0f} min left "
                "of this stage", flush=True,
            )  # fmt: skip


def _work(job: Job, folder: str) -> float:
    """In a process of its own, which keeps what it has compiled for the next job."""
    from laboratory import design, jobs, outcome

    begin, place = time.perf_counter(), Path(folder)
    if job[0] == "warm":
        jobs.warm_start(job[1], place)
    elif job[0] == "tune":
        jobs.tune(job[1], place)
        # The program is compiled now, and the first seeds of this cell are nearly free.
        alone = job[1] not in design.TUNED_TOGETHER
        if alone and not _done(("run", design.TUNED_ON, job[1], "0", str(design.LANES)), place):
            jobs.run(design.TUNED_ON, job[1], 0, design.LANES, jobs.best(job[1], place), place)
    else:
        _, cell, method, first, seeds, settings = job
        chosen = jobs.best(method, place) if settings == "tuned" else outcome.committed(method)
        jobs.run(cell, method, int(first), int(seeds), chosen, place)
    return time.perf_counter() - begin


def _arguments() -> argparse.Namespace:
    from laboratory import design

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="one cell, 4 seeds, 10 minutes")
    how.add_argument("--effects", action="store_true", help="the longest cells, after the table")
    how.add_argument("--full", action="store_true", help="all cells, 36 seeds, for a GPU")
    for name, names in (("--methods", design.METHODS), ("--cells", design.CELLS)):
        parser.add_argument(name, nargs="+", choices=list(names), help="in place of the scale's")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes, a job each")
    parser.add_argument("--folder", default="runs/algorithms", help="where runs are kept")
    parser.add_argument("--fresh", action="store_true", help="throw away the runs that are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/algorithms.*")
    return parser.parse_args()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
