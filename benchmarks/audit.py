"""How well does each credit agree with the exact values of the policy's actions, early and late?

    python benchmarks/audit.py [--save] [--resume] [--tasks 24] [key=value ...]

StepPO and PPO learn `multihop` from the same warm start for 30 iterations, with the other settings of
configs/quickstart.yaml and one seed. At iteration 10 and at the last one, held-out tasks are played 8
times each; 8 continuations are played from every step, and all that is likelier than 1e-5 is enumerated.
Values, credit and branching scores are compared with the enumerated truth: Spearman's and Pearson's
correlation over steps, 95 % intervals by the bootstrap over tasks. The first weighs every difference
the same, and where most tasks are solved most differences are tiny; in the second the few steps that
matter most have the most weight. With --resume finished runs are kept.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import record

from steprl.audit import CONTINUATIONS, ENUMERATED, Audit, run_audit
from steprl.audit.pictures import draw_comparison
from steprl.checkpoint import all_steps
from steprl.config import load_config
from steprl.run_directory import open_run
from steprl.session import load_params, setup
from steprl.train import run_warm_start, train

CONFIG = "configs/quickstart.yaml"
EARLY, ATTEMPTS, CONTINUED, THRESHOLD = 10, 8, 8, 1e-5
OFTEN = ("trainer.total_training_steps=30", "trainer.save_freq=5", "trainer.max_to_keep=1000",
         "trainer.test_freq=0", "trainer.val_before_train=false", "eval.num_tasks=256")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/audit.*")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    resume = "auto" if options.resume else None

    begin = time.perf_counter()
    warm = learn("warm", options.overrides, resume)
    rows: list[dict[str, Any]] = []
    scores = {}
    for method in ("steppo", "ppo"):
        settings = [f"algorithm.name={method}", "sft.steps=0", f"trainer.init_from={warm}"]
        run = learn(method, [*options.overrides, *settings], resume)
        for step in (EARLY, all_steps(run / "checkpoints")[-1]):
            name = f"{method}, iteration {step}"
            audit = look(run, step, options.tasks)
            scores[name] = [score for score in audit.scores if score.truth == ENUMERATED]
            rows += measured(name, audit)
            minutes = (time.perf_counter() - begin) / 60
            print(f"{name}: {audit.facts['steps']:.0f} steps, {minutes:.1f} min", flush=True)
    record.show(rows)
    if options.save:
        minutes = (time.perf_counter() - begin) / 60
        path = record.save(
            "audit", rows, minutes, seed=0, config=CONFIG, tasks=options.tasks, attempts=ATTEMPTS,
            continuations=CONTINUED, threshold=THRESHOLD, resumed=options.resume,
        )  # fmt: skip
        title = "Estimates against the enumerated truth, multihop, held-out tasks"
        picture = draw_comparison(scores, path.with_suffix(".png"), title)
        print(f"written: {path} and {picture.name}")


def learn(name: str, overrides: list[str], resume: str | None) -> Path:
    """A run of the quickstart; "warm" is its warm start alone."""
    config = load_config(CONFIG, [*OFTEN, *overrides, f"trainer.experiment_name=audit/{name}"])
    session = setup(config)
    run = open_run(config, resume, overwrite=resume is None)
    if name == "warm":
        run_warm_start(session, run)
    else:
        train(session, run)
    return run


def look(run: Path, step: int, tasks: int) -> Audit:
    session = setup(load_config(run / "config.resolved.yaml"))
    older = max(s for s in all_steps(run / "checkpoints") if s < step)
    params, older_params = (load_params(session, run, s) for s in (step, older))
    return run_audit(
        session, params, "heldout", tasks, ATTEMPTS, CONTINUED, True, older_params, THRESHOLD
    )


def measured(name: str, audit: Audit) -> list[dict[str, Any]]:
    """Correlations with the enumerated truth, and the numbers that tell how far to trust them."""
    rows = [
        record.row(f"{name}: {s.estimate} against {s.target}", s.correlation,
                   f"{s.kind} correlation", [s.low, s.high])
        for s in audit.scores if s.truth == ENUMERATED
    ]  # fmt: skip
    facts = audit.facts
    rows += [
        record.row(f"{name}: {label}", facts[key], unit)
        for label, key, unit in (
            ("success", "success_rate", "share"),
            ("critic, root mean square error", "critic_rmse", "return"),
            ("width of the enumerated bounds of V, mean", "enumerated_width_mean", "return"),
            ("width of the enumerated bounds of V, largest", "enumerated_width_max", "return"),
            ("squared error of continuations over what chance explains",
             "squared_error_over_expected", "ratio"),
        )
    ]  # fmt: skip
    for target, reliability in audit.reliability.items():
        label = f"{name}: halves of the {CONTINUATIONS} with each other, {target}"
        rows.append(record.row(label, reliability.halves, "rank correlation"))
    return rows


if __name__ == "__main__":
    main()
