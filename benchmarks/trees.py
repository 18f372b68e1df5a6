"""What training branches of one prefix as one row saves: tokens and time of an update.

    python benchmarks/trees.py [--rounds 5] [--quick] [--save]

A trajectory of 512 tokens in 8 steps is branched after half and after three quarters of it, and it
and its branches (2, 4 and 8 rows in all) are one group. One GRPO update (forward, backward, AdamW) of
a model of 6 M parameters in float32 is made with the rows apart and with the tree of their contexts,
in turn in one process; losses and gradient norms must agree. "Most that tokens allow" is what running
each token once could save: tokens of the rows over tokens of the tree. Processor time is that of all
threads of the process, which on a busy machine is more reliable than the clock; not on an accelerator.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record

from steprl.algorithms import algorithm
from steprl.config import MeshConfig, load_config
from steprl.models import decoder_config, make_policy, score
from steprl.optimizer import make_optimizer
from steprl.rollout.trees import collate_trees
from steprl.sharding import make_mesh
from steprl.types import Step, StepBatch, Trajectory
from steprl.update import initial_state, make_update

STEPS, VOCABULARY = 8, 2048
SHAPE = dict(d_model=384, num_layers=3, num_heads=6, num_kv_heads=6, head_dim=64, d_ff=1024)
QUICK = dict(d_model=64, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=64, d_ff=172)
RELATIVE = 1e-4  # between the two losses, and the two norms of the gradient


def branches(rows: int, share: float, length: int) -> list[Trajectory]:
    """One trajectory and `rows - 1` that branch off after a share of it; half of each step is read."""
    rng = np.random.default_rng(0)
    each = length // STEPS // 2

    def step(last: bool) -> Step:
        ids = lambda: rng.integers(1, VOCABULARY, each).astype(np.int32)  # noqa: E731
        blank = np.zeros(each, np.float32)
        return Step(
            "", "", ids(), ids(), blank, blank, reward=float(rng.normal()), terminated=last,
            truncated=False, stop_reason="stop_token",
        )  # fmt: skip

    shared = round(STEPS * share)
    prefix = [step(False) for _ in range(shared)]
    return [
        Trajectory(0, n, (*prefix, *(step(s == STEPS - 1) for s in range(shared, STEPS))), False)
        for n in range(rows)
    ]


def contenders(rows: int, share: float, length: int, shape: dict[str, int]) -> dict[str, Any]:
    """Two updates as functions without arguments, from the same parameters, and what they run on."""
    policy = make_policy(decoder_config("tiny", vocab_size=VOCABULARY, value_head="none", **shape))
    params = policy.init(jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(params))
    batch = collate_trees([branches(rows, share, length)], STEPS, [length])
    scores = jax.jit(functools.partial(score, policy))(params, batch)
    batch = dataclasses.replace(batch, logprob_NT=scores.logprob_NT)
    config = load_config(
        None,
        [
            "algorithm.name=grpo", "rollout.batch_size=1", f"rollout.n={rows}",
            "actor.ppo_epochs=1", f"actor.ppo_mini_batch_size={rows}",
        ],
    )  # fmt: skip
    optimizer = make_optimizer(config.actor, config.critic, 1000)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    update = jax.jit(make_update(policy, algorithm("grpo"), optimizer, config, mesh))
    state, key = initial_state(params, optimizer, config), jax.random.key(0)

    def step(batch: StepBatch) -> dict[str, float]:
        new, metrics = jax.block_until_ready(update(state, batch, key))
        return {name: float(metrics[name]) for name in ("actor/pg_loss", "actor/grad_norm")}

    batches = {"rows": dataclasses.replace(batch, tree=None), "tree": batch}
    placed = {name: jax.tree.map(jnp.asarray, arrays) for name, arrays in batches.items()}
    assert batch.tree is not None
    return dict(
        parameters=size,
        tokens=dict(
            rows=int(np.sum(np.asarray(batch.segment_ids_NT) > 0)),
            tree=int(np.sum(batch.tree.segment_ids_MGU > 0)),
            room=batch.tree.tokens_MGU.size,
        ),
        step={name: functools.partial(step, arrays) for name, arrays in placed.items()},
    )


def measure(
    rows: int, share: float, length: int, shape: dict[str, int], rounds: int
) -> list[dict[str, Any]]:
    label = f"{rows} rows, {share:.0%} shared"
    case = contenders(rows, share, length, shape)
    tokens, step = case["tokens"], case["step"]
    first = {name: run() for name, run in step.items()}  # compiles
    for name, value in first["rows"].items():
        if abs(first["tree"][name] - value) > RELATIVE * max(1.0, abs(value)):
            raise RuntimeError(f"{label}: {name} is {first['tree'][name]}, of the rows {value}")
    clocks = {"time": time.perf_counter, "processor time": time.process_time}
    if jax.default_backend() != "cpu":
        del clocks["processor time"]
    seconds: dict[tuple[str, str], list[float]] = {(c, n): [] for c in clocks for n in step}
    for turn in range(rounds):
        for name in list(step)[:: 1 if turn % 2 else -1]:
            starts = {clock: read() for clock, read in clocks.items()}
            step[name]()
            for clock, read in clocks.items():
                seconds[clock, name].append(read() - starts[clock])
    limit = tokens["rows"] / tokens["tree"]
    result = [
        record.row(f"{label}, rows apart, tokens", tokens["rows"], "tokens"),
        record.row(f"{label}, tree, tokens", tokens["tree"], "tokens"),
        record.row(f"{label}, tree, room for tokens", tokens["room"], "tokens"),
        record.row(f"{label}, most that tokens allow", limit, "x"),
    ]
    for clock in clocks:
        for name, words in (("rows", "rows apart"), ("tree", "tree")):
            low, middle, high = statistics.quantiles(seconds[clock, name], n=4)
            result.append(
                record.row(f"{label}, {words}, {clock} of an update", middle, "s", [low, high])
            )
        pairs = zip(seconds[clock, "rows"], seconds[clock, "tree"], strict=True)
        low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        peer = statistics.median(seconds[clock, "rows"])
        words = f"{label}, tree over rows apart, {clock}"
        result.append(record.row(words, ratio, "x", [low, high], "rows apart", peer, ratio))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="2,4,8", help="rows of the group, the original included")
    parser.add_argument("--shares", default="0.5,0.75", help="of the tokens, the shared prefix")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small model, three rounds")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/trees.json")
    options = parser.parse_args()
    shape, rounds = (QUICK, 3) if options.quick else (SHAPE, options.rounds)
    load, start, rows = os.getloadavg()[0], time.perf_counter(), []
    for share in map(float, options.shares.split(",")):
        for count in map(int, options.rows.split(",")):
            case_rows = measure(count, share, options.length, shape, rounds)
            record.show(case_rows)
            print(flush=True)
            rows += case_rows
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        minutes = (time.perf_counter() - start) / 60
        size = dict(shape, vocabulary=VOCABULARY, length=options.length)
        path = record.save("trees", rows, minutes, load=load, model=size)
        print(f"written: {path.relative_to(record.RESULTS.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
