"""How well does each credit agree with the exact values of the policy's actions, early and late?

    python benchmarks/audit.py [--save] [--resume] [--tasks 24] [key=value ...]
    python benchmarks/audit.py --game errand-16 [--save] [--resume]     # or shop-8

StepPO and PPO learn `multihop` from the same warm start for 30 iterations, with the other settings of
configs/quickstart.yaml and one seed. At iteration 10 and at the last one, held-out tasks are played 8
times each; 8 continuations are played from every step, and all that is likelier than 1e-5 is enumerated.
Values, credit and branching scores are compared with the enumerated truth: Spearman's and Pearson's
correlation over steps, 95 % intervals by the bootstrap over tasks. The first weighs every difference
the same, and where most tasks are solved most differences are tiny; in the second the few steps that
matter most have the most weight. With --resume finished runs are kept.

With --game it is a game of the laboratory, with the model and the settings of its table, fewer attempts
(4 at each of 12 tasks), and a threshold of 1e-4.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import record
from laboratory import design

from steprl.audit import CONTINUATIONS, ENUMERATED, Audit, run_audit
from steprl.audit.pictures import draw_comparison
from steprl.checkpoint import all_steps
from steprl.config import load_config
from steprl.run_directory import open_run
from steprl.session import load_params, setup
from steprl.train import run_warm_start, train

CONFIG = "configs/quickstart.yaml"
EARLY, CONTINUED = 10, 8
OFTEN = ("trainer.total_training_steps=30", "trainer.save_freq=5", "trainer.max_to_keep=1000",
         "trainer.test_freq=0", "trainer.val_before_train=false", "eval.num_tasks=256")  # fmt: skip
# Learning rate and share of clipped tokens that the laboratory tuned for StepPO and PPO.
TUNED = ("actor.lr=1e-3", "actor.clip_fraction=0.1")


class Scale(NamedTuple):
    """What is played and how closely it is looked at."""

    config: str | None
    tasks: int
    attempts: int
    threshold: float


QUICKSTART = Scale(CONFIG, 24, 8, 1e-5)
GAME = Scale(None, 12, 4, 1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/audit.*")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tasks", type=int, help="in place of 24, of a game 12")
    # Actions with words of free thought are not enumerated.
    games = [name for name, cell in design.CELLS.items() if "thought" not in str(cell.overrides)]
    parser.add_argument("--game", choices=games, help="of the laboratory")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    resume = "auto" if options.resume else None
    scale = GAME if options.game else QUICKSTART
    scale = scale._replace(tasks=options.tasks or scale.tasks)

    begin = time.perf_counter()
    folder = f"audit/{options.game}" if options.game else "audit"
    settings_of_game = (
        [*design.overrides_of(options.game, "steppo"), *TUNED] if options.game else []
    )
    base = [*settings_of_game, *OFTEN, *options.overrides]
    warm = learn(scale, f"{folder}/warm", base, resume)
    rows: list[dict[str, Any]] = []
    scores = {}
    for method in ("steppo", "ppo"):
        settings = [f"algorithm.name={method}", "sft.steps=0", f"trainer.init_from={warm}"]
        run = learn(scale, f"{folder}/{method}", [*base, *settings], resume)
        for step in (EARLY, all_steps(run / "checkpoints")[-1]):
            name = f"{method}, iteration {step}"
            audit = look(run, step, scale)
            scores[name] = [score for score in audit.scores if score.truth == ENUMERATED]
            rows += measured(name, audit)
            minutes = (time.perf_counter() - begin) / 60
            print(f"{name}: {audit.facts['steps']:.0f} steps, {minutes:.1f} min", flush=True)
    record.show(rows)
    if options.save:
        minutes = (time.perf_counter() - begin) / 60
        game = design.CELLS[options.game].title if options.game else "multihop"
        path = record.save(
            "audit", rows, minutes, options.game or "", seed=0, config=scale.config,
            **({"game": game} if options.game else {}), tasks=scale.tasks, attempts=scale.attempts,
            continuations=CONTINUED, threshold=scale.threshold, resumed=options.resume,
        )  # fmt: skip
        title = f"Estimates against the enumerated truth, {game}, held-out tasks"
        picture = draw_comparison(scores, path.with_suffix(".png"), title)
        print(f"written: {path} and {picture.name}")


def learn(scale: Scale, name: str, overrides: list[str], resume: str | None) -> Path:
    """A run; one whose name ends with "warm" is its warm start alone."""
    config = load_config(scale.config, [*overrides, f"trainer.experiment_name={name}"])
    session = setup(config)
    run = open_run(config, resume, overwrite=resume is None)
    if name.endswith("warm"):
        run_warm_start(session, run)
    else:
        train(session, run)
    return run


def look(run: Path, step: int, scale: Scale) -> Audit:
    session = setup(load_config(run / "config.resolved.yaml"))
    older = max(s for s in all_steps(run / "checkpoints") if s < step)
    params, older_params = (load_params(session, run, s) for s in (step, older))
    return run_audit(
        session, params, "heldout", scale.tasks, scale.attempts, CONTINUED, True, older_params,
        scale.threshold,
    )  # fmt: skip


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
