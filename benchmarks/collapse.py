"""What keeps a run near its ceiling from collapsing?

    python benchmarks/collapse.py [--save]

GRPO on `multihop` with 2 hops, 4 tasks x 8 attempts an iteration, two epochs of two mini-batches. The
policy of the start has been trained to .94 of the training tasks at a rate of 1e-3; from there on the
rate is 2e-3, at which some seeds are lost. One setting is changed at a time; 6 seeds each, one program.
In the rows "with noise", attempts that are equally good differ by up to .02 in their score, as where a
reward has many parts. Finished variants are kept in --folder.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false"
)

import jax
import jax.numpy as jnp
import numpy as np
import record

from steprl.algorithms import ALGORITHMS, Algorithm, Credit, group_ids, scores
from steprl.config import AlgorithmConfig, Config, load_config
from steprl.laboratory import make_program
from steprl.ops import group_advantages
from steprl.types import Params, StepBatch

SEEDS, ITERATIONS, LATE = 6, 80, 20
NOISE = 0.02
BASE = (
    "env.name=multihop", "env.multihop.num_entities=12", "env.multihop.min_hops=2",
    "env.multihop.max_hops=2", "env.multihop.spare_steps=2", "env.multihop.demo_lazy=0.05",
    "env.multihop.demo_noise=0.02", "algorithm.name=grpo", "model.preset=tiny", "model.d_model=32",
    "model.d_ff=96", "model.num_heads=2", "model.num_kv_heads=2", "model.head_dim=16",
    "model.value_head=none", "sft.batch_size=64", "sft.lr=2e-3", "rollout.batch_size=4", "rollout.n=8",
    "actor.ppo_epochs=2", "actor.ppo_mini_batch_size=16", "actor.lr_schedule=constant",
)  # fmt: skip


class Variant(NamedTuple):
    """What is changed."""

    title: str
    overrides: tuple[str, ...] = ()
    noise: bool = False


VARIANTS = {
    "plain": Variant("GRPO"),
    "target_kl": Variant("`actor.target_kl=0.02`", ("actor.target_kl=0.02",)),
    "half_lr": Variant("half the learning rate", ("actor.lr=1e-3",)),
    "adam_b2": Variant("`actor.adam_b2=0.999`", ("actor.adam_b2=0.999",)),
    "noise": Variant("with noise", noise=True),
    "noise_min_std": Variant(
        "with noise, `algorithm.min_std=0.1`", ("algorithm.min_std=0.1",), noise=True
    ),
}


def _noisy_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """That of GRPO, from scores of which a small part is chance."""
    rows = batch.task_N.shape[0]
    key = jax.random.fold_in(jax.random.key(3), batch.task_N[0])
    score_N = scores(batch) + NOISE * jax.random.uniform(key, (rows,))
    advantage_N = group_advantages(
        score_N, group_ids(batch, config.singleton), rows, min_std=config.min_std
    )
    active_NT = batch.step_ids_NT >= 0
    zero_NT = jnp.zeros(active_NT.shape)
    return Credit(jnp.where(active_NT, advantage_N[:, None], 0.0), zero_NT, zero_NT > 0)


def _config(*overrides: str) -> Config:
    return load_config(overrides=[*BASE, "actor.lr=2e-3", *overrides])


def _start(folder: Path) -> Params:
    """The policy near its ceiling: a warm start, and 80 iterations of 16 tasks."""
    file = folder / "start.npy"
    if file.exists():
        return np.load(file, allow_pickle=True).item()
    warm = make_program(_config("sft.steps=400")).warm_start
    params, _ = jax.jit(warm)(jax.random.key(0))
    program = make_program(
        _config("actor.lr=1e-3", "rollout.batch_size=16", "actor.ppo_mini_batch_size=64",
                "trainer.total_training_steps=80", "sft.steps=0")
    )  # fmt: skip
    state, metrics = jax.jit(
        lambda params: jax.lax.scan(
            lambda state, _: program.iterate(state, jax.random.key(5)), program.begin(params),
            length=80,
        )
    )(params)  # fmt: skip
    print("start:", np.asarray(metrics["rollout/success_rate"]).reshape(-1, 10).mean(1).round(2))
    params = jax.device_get(state.params)
    np.save(file, params, allow_pickle=True)
    return params


def _run(params: Params, variant: Variant) -> dict[str, np.ndarray]:
    """Success and entropy of each iteration, [seeds, iterations]."""
    config = _config(
        *variant.overrides, f"trainer.total_training_steps={ITERATIONS}", "sft.steps=0"
    )
    grpo = ALGORITHMS["grpo"]
    noisy = Algorithm(_noisy_credit, grpo.ratio_level, grpo.reduction, grpo.needs)
    program = make_program(config, method=noisy if variant.noise else None)

    def train(key: jax.Array) -> dict[str, jax.Array]:
        _, metrics = jax.lax.scan(
            lambda state, _: program.iterate(state, key), program.begin(params), length=ITERATIONS
        )
        names = {"success": "rollout/success_rate", "entropy": "actor/entropy"}
        return {short: metrics[name] for short, name in names.items()}

    keys = jax.random.split(jax.random.key(100), SEEDS)
    return jax.device_get(jax.jit(lambda keys: jax.lax.map(train, keys))(keys))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/collapse"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows, minutes = [], 0.0
    for name, variant in VARIANTS.items():
        file = options.folder / f"{name}.npz"
        if not file.exists():
            begun = time.perf_counter()
            found = _run(_start(options.folder), variant)
            np.savez(file, **found, minutes=(time.perf_counter() - begun) / 60)
        found = np.load(file)
        minutes += float(found["minutes"])
        late = found["success"][:, -LATE:].mean(axis=1)
        rows += [
            record.row(f"{name}: success, last {LATE} iterations", float(late.mean()), "share",
                       [float(late.min()), float(late.max())]),
            record.row(f"{name}: seeds below .5", float((late < 0.5).sum()), "seeds"),
            record.row(f"{name}: highest entropy",
                       float(found["entropy"].max(axis=1).mean()), "nats"),
        ]  # fmt: skip
    record.show(rows)
    if options.save:
        print(
            "written:", record.save("collapse", rows, minutes, seeds=SEEDS, spread="range of seeds")
        )


if __name__ == "__main__":
    main()
