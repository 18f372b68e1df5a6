"""A contender as a process: JSON lines in, JSON lines out.

    {"model": "30M", "method": "grpo_kl", "rows": 8, "prompt": 64, "completion": 64}   first
    {}                                                                                 one step

Each line is answered by one line. Peak memory is that of the process since its start.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], dict[str, float]]


def serve(build: Callable[[dict[str, Any]], tuple[Step, dict[str, Any]]]) -> None:
    """Answers until the input ends.

    Args:
        build: from the case to a function that makes one optimiser step, waits for it and returns
            its loss and the norm of its gradient; and further facts about it.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print

    def answer(**entries: Any) -> None:
        print(json.dumps(entries), file=answers, flush=True)

    case = json.loads(sys.stdin.readline())
    step, facts = build(case)
    answer(**facts)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer(seconds=seconds, peak_mib=peak, **result)
