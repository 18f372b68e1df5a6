"""How long the page of a run takes to open in a browser, and how large it is.

    python benchmarks/report.py [--quick] [--save]

A run with 1,000 trajectories of 20 steps of 30 tokens, each token with its log-probs, entropy and
advantage, is written as `steprl report` does and opened in headless Chromium. The page counts as open
when its list, its first trajectory and its curves are drawn; then all of its texts are searched, and the
time that opening another trajectory takes is measured. Values are medians with quartiles.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the browser of the tests

GOAL_MS = 3000.0
FRAME = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
SEARCH = """(() => { const field = document.querySelector('#filters [name=text]'); field.value = 'xyzzy';
field.dispatchEvent(new Event('input', {bubbles: true})); })()"""


def measured(tasks: int, steps: int, tokens: int, rounds: int) -> list[dict]:
    """Rows of one run, whose iterations have 4 attempts at each task."""
    import record

    from steprl.report import write_report
    from tests.report.chromium import Chromium
    from tests.report.made import plain_run

    name = f"{10 * tasks * 4:,} x {steps} steps"
    with tempfile.TemporaryDirectory() as folder:
        run = plain_run(Path(folder) / "run", 10, tasks, 4, steps, tokens)
        start = time.perf_counter()
        page = write_report(run)
        seconds = time.perf_counter() - start
        size = page.stat().st_size / 1e6
        files = sum(file.stat().st_size for file in (run / "trajectories").iterdir()) / 1e6
        with Chromium(Path(folder) / "profile") as browser:
            opened, searched, another = [], [], []
            for _ in range(rounds):
                begin = time.perf_counter()
                browser.open(page)
                browser.call("Runtime.evaluate", expression=FRAME, awaitPromise=True)
                opened.append(1e3 * (time.perf_counter() - begin))
                begin = time.perf_counter()
                browser.press("j")
                browser.call("Runtime.evaluate", expression=FRAME, awaitPromise=True)
                another.append(1e3 * (time.perf_counter() - begin))
                begin = time.perf_counter()
                browser.evaluate(SEARCH)
                browser.wait("document.getElementById('count').innerText.startsWith('0 of')")
                searched.append(1e3 * (time.perf_counter() - begin))

    def row(what: str, values: list[float], goal: float | None = None) -> dict:
        low, middle, high = np.percentile(values, [25, 50, 75])
        met = (
            {} if goal is None else {"goal": f"at most {goal:.0f} ms", "met": bool(middle <= goal)}
        )
        return record.row(f"{name}, {what}", float(middle), "ms", [float(low), float(high)], **met)

    return [
        row("open", opened, GOAL_MS),
        row("open another trajectory", another),
        row("first search of all texts", searched),
        record.row(f"{name}, writing the page", seconds, "s"),
        record.row(f"{name}, size of the page", size, "MB"),
        record.row(f"{name}, size of the files of trajectories", files, "MB"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 trajectories, opened once")
    parser.add_argument("--rounds", type=int, default=5, help="how often the page is opened")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/report.json")
    options = parser.parse_args()
    import record

    load, start = os.getloadavg()[0], time.perf_counter()
    rows = measured(1, 3, 8, 1) if options.quick else measured(25, 20, 30, options.rounds)
    record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        minutes = (time.perf_counter() - start) / 60
        print(f"written: {record.save('report', rows, minutes, load=load)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
