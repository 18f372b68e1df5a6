"""What packing saves in the update of a language model on episodes of text, and frozen lower layers.

    python benchmarks/packing.py [--model 135M] [--rounds 3] [--quick] [--save]

Episodes as a small shop has them: 4 tasks with 8 attempts each, 463 tokens on average in rows of 768,
a system message that all share and a prompt that the attempts at a task share, 16 sampled tokens a
step. One GRPO update is measured: a pass for the old log-probs, then two mini-batches of 16 rows with
an optimiser step each (AdamW, float32). The contenders take turns in one process:

    rows            as wide as the longest, micro-batches of 2 rows
    packed          micro-batches of at most 2048 tokens, what rows begin with in common once
    packed, upper   the same, where only the upper third of the layers is trained

The first two must agree in loss and norm of the gradient. Processor time is that of all threads of the
process, which on a busy machine is more reliable than the clock; not on an accelerator.
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
from steprl.rollout.packing import pack_rows
from steprl.rollout.records import collate
from steprl.sharding import make_mesh
from steprl.types import Step, StepBatch, Trajectory
from steprl.update import initial_state, make_update, mini_batches

MODELS = {
    "135M": dict(),
    "30M": dict(d_model=384, num_layers=9, num_heads=6, num_kv_heads=2, d_ff=1024),
    "tiny": dict(
        d_model=64, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=32, d_ff=192, vocab_size=512
    ),
}  # of the preset smollm2-135m
TASKS, ATTEMPTS, LENGTH, ACTION, MOST_TOKENS = 4, 8, 768, 16, 2048
RELATIVE = 1e-3  # between the losses, and the norms of the gradient, after steps of Adam


def episodes(vocabulary: int) -> StepBatch:
    """Lengths are clipped normal, 463 tokens on average."""
    rng = np.random.default_rng(0)
    ids = lambda size: rng.integers(1, vocabulary, size).astype(np.int32)  # noqa: E731
    blank = np.zeros(ACTION, np.float32)
    system, played = ids(60), []
    for task in range(TASKS):
        prompt = np.append(system, ids(rng.integers(90, 200)))
        for sample in range(ATTEMPTS):
            total = np.clip(rng.normal(430, 110), len(prompt) + 30, LENGTH - 90)
            steps: list[Step] = []
            tokens = 0
            while tokens < total:
                seen = ids(rng.integers(20, 60)) if steps else prompt
                tokens += len(seen) + ACTION
                reward = float(rng.normal())
                steps.append(
                    Step("", "", seen, ids(ACTION), blank, blank, reward, False, False, "length")
                )
            played.append(Trajectory(task, sample, tuple(steps), False))
    return collate(played, 40, [LENGTH], ACTION)


class Contender:
    """An update that is compiled when it is first run."""

    def __init__(self, batch: StepBatch, policy: Any, params: Any, overrides: list[str]):
        rows = TASKS * ATTEMPTS
        config = load_config(
            None,
            [
                "algorithm.name=grpo", f"rollout.batch_size={TASKS}", f"rollout.n={ATTEMPTS}",
                "actor.ppo_epochs=1", f"actor.ppo_mini_batch_size={rows // 2}", "actor.lr=1e-5",
                *overrides,
            ],
        )  # fmt: skip
        optimizer = make_optimizer(config.actor, config.critic, 1000)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        update = make_update(policy, algorithm("grpo"), optimizer, config, mesh)
        self.run, self.batch, self.key, self.config = (
            jax.jit(update),
            batch,
            jax.random.key(1),
            config,
        )
        self.state = initial_state(params, optimizer, config)
        self.slots, self.padding = batch.tokens_NT.size, int(np.sum(batch.segment_ids_NT == 0))
        self.packed = config.actor.ppo_micro_batch_size == 0
        self.compiled: Any = None
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def step(self) -> dict[str, float]:
        clocks = time.perf_counter(), time.process_time()
        packing = None
        if self.packed:  # a part of every update
            order = mini_batches(self.batch, self.key, self.config)
            packing, slots, padding = pack_rows(self.batch, order, MOST_TOKENS)
            self.slots, self.padding = slots, padding
        arguments = self.state, self.batch, self.key, None, packing
        if self.compiled is None:
            self.compiled = self.run.lower(*arguments).compile()
        _, metrics = jax.block_until_ready(self.compiled(*arguments))
        self.seconds.append(time.perf_counter() - clocks[0])
        self.processor.append(time.process_time() - clocks[1])
        return {name: float(metrics[name]) for name in ("actor/pg_loss", "actor/grad_norm")}

    def memory(self) -> float:
        analysis = self.compiled.memory_analysis()
        return analysis.temp_size_in_bytes / 2**20


def measure(model: str, rounds: int) -> list[dict[str, Any]]:
    shape = decoder_config("smollm2-135m", value_head="none", **MODELS[model])
    policy = make_policy(shape)
    params = jax.jit(policy.init)(jax.random.key(0))
    batch = episodes(shape.vocab_size)
    scores = jax.jit(functools.partial(score, policy))
    halves = [jax.tree.map(lambda x, n=n: x[n : n + 4], batch) for n in range(0, 32, 4)]
    logprob = np.concatenate([np.asarray(scores(params, one).logprob_NT) for one in halves])
    batch = jax.tree.map(jnp.asarray, dataclasses.replace(batch, logprob_NT=logprob))
    upper = f"model.train_layers={shape.num_layers // 3}"
    settings = {
        "rows": ["actor.ppo_micro_batch_size=2"],
        "packed": ["actor.ppo_micro_batch_size=0"],
        "packed, upper third": ["actor.ppo_micro_batch_size=0", upper],
    }
    racing = {name: Contender(batch, policy, params, one) for name, one in settings.items()}
    found = {name: contender.step() for name, contender in racing.items()}  # compiles
    for name, value in found["rows"].items():
        if abs(found["packed"][name] - value) > RELATIVE * max(1.0, abs(value)):
            raise RuntimeError(f"{name} is {found['packed'][name]} packed, {value} of the rows")
    for turn in range(rounds):
        for name in list(racing)[:: 1 if turn % 2 else -1]:
            racing[name].step()
    tokens = int(np.sum(np.asarray(batch.segment_ids_NT) > 0))
    rows = [record.row(f"{model}, tokens of the episodes", tokens, "tokens")]
    for name, one in racing.items():
        label = f"{model}, {name}"
        goal = dict(goal="10 %", met=one.padding <= 0.1 * one.slots) if one.packed else {}
        rows += [
            record.row(f"{label}: slots", one.slots, "tokens"),
            record.row(f"{label}: padding", one.padding / one.slots, "share", **goal),
            record.row(f"{label}: first update", one.seconds[0], "s"),
            record.row(f"{label}: memory beside parameters", one.memory(), "MiB"),
        ]
        clocks = {"time": "seconds"} | (
            {"processor time": "processor"} if jax.default_backend() == "cpu" else {}
        )
        for clock, key in clocks.items():
            own, base = (getattr(c, key)[1:] for c in (one, racing["rows"]))
            ratios = [b / a for a, b in zip(own, base, strict=True)]
            spread = [min(own), max(own)]
            rows.append(
                record.row(
                    f"{label}: {clock} of an update",
                    statistics.median(own),
                    "s",
                    spread,
                    "rows",
                    statistics.median(base),
                    statistics.median(ratios),
                )  # fmt: skip
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="135M", choices=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/packing.json")
    options = parser.parse_args()
    model, rounds = ("tiny", 1) if options.quick else (options.model, options.rounds)
    load, start = os.getloadavg()[0], time.perf_counter()
    rows = measure(model, rounds)
    record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    if options.save:
        minutes = (time.perf_counter() - start) / 60
        print(f"written: {record.save('packing', rows, minutes, load=load)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
