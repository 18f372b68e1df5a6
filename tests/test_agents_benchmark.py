"""What the comparison of agents promises: one warm start, the same tokens, results that can be read."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from steprl.metrics import STEP
from steprl.types import Step, Trajectory

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))  # as running the script does

import agents  # noqa: E402
import record  # noqa: E402

STAGES = (agents.WARM_START, *agents.METHODS)


@pytest.fixture(autouse=True)
def in_an_own_place(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")


def config_of(task, stage, folder, *overrides):
    path = str(BENCHMARKS.parent / agents.TASKS[task].config)
    return agents.config_of(agents.TASKS[task]._replace(config=path), stage, folder, overrides)


def measurement(task, value):
    """As `evaluate_all` returns it, each measure with its interval."""
    results = {}
    for name in agents.TASKS[task].measures:
        results |= {f"eval/{name}": value, f"eval/{name}_low": value - 0.05}
        results[f"eval/{name}_high"] = value + 0.05
    return {"minutes": 10.0, "results": results}


def play(task, action, success):
    ids, blank = np.arange(3), np.zeros(3, np.float32)
    step = Step(
        "You see a drawer.", action, ids, ids, blank, blank, float(success), True, False, "end"
    )
    return Trajectory(task, 0, (step,), success)


@pytest.mark.parametrize("task", agents.TASKS)
@pytest.mark.parametrize("overrides", [(), agents.QUICK], ids=["whole", "quick"])
def test_methods_begin_with_one_warm_start_and_differ_in_nothing_else(task, overrides, tmp_path):
    warm, *runs = (config_of(task, stage, tmp_path, *overrides) for stage in STAGES)
    assert warm.sft.steps > 0 and warm.trainer.init_from is None
    for config in runs:
        assert config.sft.steps == 0
        assert config.trainer.init_from == str(tmp_path / agents.WARM_START)
        assert (config.actor, config.rollout, config.eval) == (
            warm.actor, warm.rollout, warm.eval,
        )  # fmt: skip
        assert config.trainer.total_training_steps == warm.trainer.total_training_steps
    assert [config.algorithm.name for config in runs] == list(agents.METHODS)


@pytest.mark.parametrize("task", agents.TASKS)
def test_a_row_a_measure_and_stage_and_the_minutes_of_each(task):
    measured = {stage: measurement(task, 0.1 * n) for n, stage in enumerate(STAGES, 2)}
    rows = {row["name"]: row for row in agents.rows_of(agents.TASKS[task], measured)}
    for title in agents.TASKS[task].measures.values():
        assert rows[f"{title}, after the warm start"]["value"] == pytest.approx(0.2)
        assert rows[f"{title}, after StepPO"]["spread"] == pytest.approx([0.35, 0.45])
    assert len(rows) == len(STAGES) * (len(agents.TASKS[task].measures) + 1)
    assert rows["minutes, GRPO"]["value"] == 10.0


def test_what_is_measured_is_not_trained_again(tmp_path):
    found = measurement("shop", 0.5)
    (tmp_path / "grpo.json").write_text(json.dumps(found))
    config = config_of("shop", "grpo", tmp_path)
    assert agents.measure("grpo", config, tmp_path, tasks=200) == found


def test_a_task_is_shown_that_training_has_taught(tmp_path, monkeypatch):
    before = (play(0, "look", True), play(1, "look", False), play(2, "look", False))
    after = (play(0, "look", True), play(1, "look", False), play(2, "open it", True))
    monkeypatch.setattr(agents, "setup", lambda config: None)
    monkeypatch.setattr(agents, "load_params", lambda session, run: run.name)
    plays = {agents.WARM_START: before, "grpo": after}
    monkeypatch.setattr(agents, "_play", lambda session, name, tasks: plays[name])
    text = agents.transcripts(None, tmp_path, "grpo", tasks=3)
    first, second = text.split("Held-out task 2, sampled, after GRPO:")
    assert first.startswith("Held-out task 2, sampled, after the warm start:")
    assert "> look\nnot solved, return 0.00" in first
    assert "    You see a drawer.\n> open it\nsolved, return 1.00" in second


def test_result_curve_and_transcripts_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["agents.py", "shop", "--save"])
    for name in agents.METHODS:
        (tmp_path / name).mkdir()
        rows = [{STEP: n, "eval/success_rate": 0.1 * n, "token/total": 100.0 * n} for n in (0, 4)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "transcripts.txt").write_text("before and after")
    configs = {stage: config_of("shop", stage, tmp_path) for stage in STAGES}
    measured = {stage: measurement("shop", 0.5) for stage in STAGES}
    options = argparse.Namespace(
        task="shop", methods=list(agents.METHODS), tasks=200, overrides=["actor.lr=1e-5"]
    )
    agents.save(options, tmp_path, agents.rows_of(agents.TASKS["shop"], measured), configs)
    saved = json.loads((record.RESULTS / "agents-shop.json").read_text())
    assert saved["minutes"] == 30.0 and saved["heldout_tasks"] == 200
    assert saved["tokens"] == dict.fromkeys(agents.METHODS, 400.0)
    assert (record.RESULTS / "agents-shop.png").stat().st_size > 0
    assert (record.RESULTS / "agents-shop.txt").read_text() == "before and after"
