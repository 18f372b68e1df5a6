"""What slow and broken environments cost the slot engine, and what refilled slots gain.

    python benchmarks/rollout.py [--quick] [--save]

Faults: every step of an environment calls a tool that takes 5 to 20 ms. Of the calls, 5 % hang until
the deadline of 0.5 s, 5 % crash, or both; task and step decide which, so that every run has the
same ones. A fault ends its trajectory as truncated. Agent steps a second are compared with those of
the healthy tool; no task may be lost, every fault must be where it was drawn, and everything played
before it must equal what the healthy run played. In threads a crash is an exception, in processes the
end of the process, and a hung process is killed; a new one has to be started each time.

Lengths: episodes of 2 to 16 steps. Slots that take the next task as soon as they are free are compared with
batches of as many tasks as slots, each of which starts when the last episode of the previous one has ended.

The model has 1.3 M parameters and random weights: the ratio of its turn of 16 slots to the time of
the tool is about that of a real model to a real search. All contenders take turns; values are medians
with quartiles.
"""

import argparse
import os
import sys
import time

# Processes of environments import this file again: what needs JAX is imported by `main`.


def measured(rounds: int, quick: bool) -> list[dict]:
    from played import throughput

    if quick:
        return [
            *throughput.faults("thread", slots=4, tasks=12, steps=3, rounds=1, quick=True),
            *throughput.refilled(slots=(4,), tasks=8, rounds=1, quick=True),
        ]
    return [
        *throughput.faults("thread", slots=16, tasks=160, steps=8, rounds=rounds),
        *throughput.faults("process", slots=4, tasks=40, steps=8, rounds=rounds),
        throughput.process_start(2 * rounds),
        *throughput.refilled(slots=(1, 4, 16), tasks=48, rounds=rounds),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, threads only, few tasks"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of everything")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/rollout.json")
    options = parser.parse_args()
    load, start = os.getloadavg()[0], time.perf_counter()
    import record

    rows = measured(options.rounds, options.quick)
    record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        minutes = (time.perf_counter() - start) / 60
        print(f"written: {record.save('rollout', rows, minutes, load=load)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
