"""A run that is killed at random points and resumed is the run that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from faults.cases import Case, settings
from faults.same import differences

ITERATIONS, WARM_UP = 40, 40
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT = 600.0  # seconds of one start


def kills(folder: Path, number: int, seed: int = 0) -> Iterator[Case]:
    """One run without, then runs that are killed some times each until `number` is reached.

    Args:
        folder: in which the runs are made.
        number: of kills.
        seed: of the points.
    """
    rng = random.Random(seed)
    whole = folder / "runs" / "whole"
    if _start(folder, "whole").wait(LIMIT) != 0:
        raise RuntimeError(f"the run without a kill failed, see {folder / 'whole.log'}")
    done, run = 0, 0
    while done < number:
        name = f"killed{run}"
        run += 1
        points = sorted(rng.sample(range(1, ITERATIONS + WARM_UP), min(9, number - done)))
        sent = []
        for point in points:
            kind = rng.choice(SIGNALS)
            process = _start(folder, name)
            while process.poll() is None and _progress(folder / "runs" / name) < point:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.15))
            if process.poll() is not None:
                break  # it had ended before
            process.send_signal(kind)
            process.wait(LIMIT)
            sent.append(f"{kind.name} after {point}")
        done += len(sent)
        code = _start(folder, name).wait(LIMIT)
        other = differences(whole, folder / "runs" / name) if code == 0 else [f"exit code {code}"]
        log = (folder / f"{name}.log").read_text(errors="replace")
        yield Case(
            f"{len(sent)} kills: {', '.join(sent)}",
            right=not other and len(sent) > 0,
            traceback="Traceback (most recent call last)" in log,
            said="; ".join(other)[:300],
        )


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    words = settings(
        folder,
        f"trainer.experiment_name={name}",
        f"trainer.total_training_steps={ITERATIONS}",
        f"sft.steps={WARM_UP}",
        "sft.save_freq=7",
        "trainer.save_freq=3",
        "trainer.max_to_keep=2",
    )
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "steprl.cli", "train", *words, "--resume", "auto"],
            stdout=log, stderr=log, env=os.environ,
        )  # fmt: skip


def _progress(run: Path) -> int:
    """Steps of the warm start and iterations that are written down."""
    files = [run / "sft.jsonl", run / "metrics.jsonl"]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())
