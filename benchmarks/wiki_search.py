"""How well does SmolLM2-135M search for answers: pretrained, after demonstrations, after RL?

python benchmarks/wiki_search.py --save              configs/wiki_search_smollm2.yaml, on a CPU
python benchmarks/wiki_search.py --config configs/wiki_search_smollm2_gpu.yaml --variant gpu --save \\
    env.wiki_search.questions=hotpotqa.parquet env.wiki_search.passages=wiki_passages.parquet
python benchmarks/wiki_search.py --config configs/appo_wiki_search.yaml --variant appo --save --trained-only

Exact match and F1 of held-out questions with 95 % intervals, the share of tool calls that could be
made, and the number of searches; and a transcript for docs/search.md.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from learning import Trained, arguments, report, trained
from rich.console import Console

from steprl.config import load_config
from steprl.evaluation import PANEL_KEY, evaluate_all
from steprl.rollout import read_trajectories
from steprl.sampling import Sampling
from steprl.session import initial_params, setup
from steprl.types import Trajectory

MEASURES = {
    "exact_match": "exact match",
    "f1": "F1",
    "valid_call_frac": "tool calls that could be made",
    "num_searches": "searches an episode",
}
METHODS = {"steppo": "StepPO", "branpo": "BranPO"}  # the others are written in capitals
SHOWN = 24  # episodes that the transcript is chosen from


def main() -> None:
    """Measures, trains, measures."""
    options = arguments(__doc__, "configs/wiki_search_smollm2.yaml", "--trained-only")
    config = load_config(options.config, options.overrides)
    untrained_file = (
        Path(config.trainer.output_dir) / f"{config.trainer.experiment_name}-as-it-comes.json"
    )
    if not options.trained_only and not (options.resume and untrained_file.is_file()):
        session = setup(config)
        results = evaluate_all(session.player, initial_params(session), config)
        untrained_file.parent.mkdir(parents=True, exist_ok=True)
        untrained_file.write_text(json.dumps(results))
    done = trained(options)
    measured = [row for row in done.metrics if "eval/success_rate" in row]
    method = METHODS.get(config.algorithm.name, config.algorithm.name.upper())
    stages = {"after the warm start": measured[0], f"after {method}": measured[-1]}
    if not options.trained_only:
        stages = {"as it comes": json.loads(untrained_file.read_text())} | stages
    rows = []
    for index, split in enumerate(done.session.player.splits[1:]):
        prefix = "eval/" if index == 0 else f"eval/{split}/"
        for name, title in MEASURES.items():
            unit = "searches" if name == "num_searches" else "share"
            for stage, results in stages.items():
                key = f"{prefix}{name}"
                interval = [results[f"{key}_low"], results[f"{key}_high"]]
                rows.append(record.row(f"{title}, {split}, {stage}", results[key], unit, interval))
    rows.append(record.row("minutes, evaluation included", done.minutes, "min"))
    report(options, "wiki_search", [_finite(row) for row in rows], done)
    if options.save:
        name = "wiki_search" + (f"-{options.variant}" if options.variant else "")
        (record.RESULTS / f"{name}.txt").write_text(transcript(done))


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: of no call at all, no share could be made."""
    if np.isnan(row["value"]):
        row = row | {"value": 0.0, "spread": None, "name": row["name"] + " (there were none)"}
    return row


def transcript(done: Trained) -> str:
    """An episode with searches, solved if there is one: held-out, else of the last rollouts."""
    player = done.session.player
    assert player.explore is not None
    tasks = np.arange(min(SHOWN, player.sizes.get(player.splits[1], SHOWN)))
    trajectories = player.explore(
        done.params, jax.random.key(PANEL_KEY), tasks, np.zeros_like(tasks),
        sampling=Sampling(0.0), split=player.splits[1], remember=False,
    ).trajectories  # fmt: skip
    if any(trajectory.metrics["num_searches"] for trajectory in trajectories):
        return "A held-out question, greedy.\n\n" + as_text(_best(trajectories))
    return of_training(done.run)


def of_training(run: Path) -> str:
    """An episode of the newest file of trajectories, where the greedy policy never searches."""
    *_, newest = sorted((run / "trajectories").glob("*.jsonl"))
    trajectories = read_trajectories(newest)
    return "A question of the training, sampled at temperature 1.\n\n" + as_text(
        _best(trajectories)
    )


def _best(trajectories: list[Trajectory]) -> Trajectory:
    return max(
        trajectories,
        key=lambda t: (t.success, t.metrics["num_searches"] > 0, t.metrics["f1"], len(t.steps)),
    )


def as_text(trajectory: Trajectory) -> str:
    """Question, then what the agent wrote and what it found, as plain text."""
    output = io.StringIO()
    console = Console(file=output, width=100)
    first = trajectory.steps[0].observation
    console.print(f"Question: {section(first, 'User Query')}", markup=False, highlight=False)
    seen: set[str] = set()
    for step in trajectory.steps:
        for line in section(step.observation, "Retrieved Passages").splitlines():
            number = line.split(" ")[0]
            if number not in seen and line.startswith("["):
                line = re.sub(r"\(query: .*?\) ", "", line, count=1)
                short = line if len(line) <= 96 else line[:93] + "..."
                console.print(f"    {short}", markup=False, highlight=False)
            seen.add(number)
        console.print(f"> {step.action}", markup=False, highlight=False)
    last = trajectory.steps[-1].info
    console.print(
        f"exact match {trajectory.metrics['exact_match']:.0f}, F1 {trajectory.metrics['f1']:.2f}, "
        f"{trajectory.metrics['num_searches']:.0f} searches; question {last['question_id']}",
        markup=False, highlight=False,
    )  # fmt: skip
    return output.getvalue()


def section(prompt: str, name: str) -> str:
    """The text of one section of a prompt."""
    return prompt.partition(f"## {name}\n")[2].partition("\n\n## ")[0]


if __name__ == "__main__":
    main()
