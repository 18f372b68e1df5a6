"""Runs of the command line in environments that fail: sometimes, and always."""

import json
import textwrap

import pytest

from steprl.checkpoint import all_steps
from steprl.cli import main
from steprl.metrics import read_metrics

ENVIRONMENT = """
import pathlib

COLOURS = ("red", "green", "blue")


class Lights:
    max_steps = 2

    def reset(self, task, key=None):
        if task == 3:
            return (task, 0), "red " * 500  # a first prompt that is too long
        if task == 5:
            return None
        return (task, 0), COLOURS[task % 3]

    def step(self, state, action):
        task, turn = state
        if pathlib.Path("broken").exists() or task == 6:
            raise ConnectionError(f"the simulator is down, {task}")
        reward = float("nan") if (task, turn) == (7, 1) else float(action == COLOURS[task % 3])
        info = {"success": reward == 1.0, "valid": action in COLOURS}
        return (task, turn + 1), "green", reward, turn == 1, False, info


def environment():
    from steprl.envs.suite import Suite

    return Suite(splits={"train": Lights()}, vocabulary=COLOURS, max_steps=2, sizes={"train": 9})
"""
SETTINGS = (
    "model.preset=tiny", "model.d_model=16", "model.num_layers=1", "model.num_heads=2",
    "model.num_kv_heads=1", "model.head_dim=8", "model.d_ff=32", "rollout.batch_size=8",
    "rollout.response_length=2", "rollout.context_length=32", "actor.ppo_mini_batch_size=8",
    "eval.num_tasks=9", "eval.greedy=false", "trainer.total_training_steps=2",
    "trainer.test_freq=0", "trainer.val_before_train=false", "trainer.experiment_name=lights",
)  # fmt: skip
WORDS = ["lights.yaml", "env.name=failing_lights:environment", *SETTINGS]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "failing_lights.py").write_text(textwrap.dedent(ENVIRONMENT))
    (tmp_path / "lights.yaml").write_text("trainer:\n  seed: 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_whose_environment_always_fails_stops_and_says_why(outside, capsys):
    (outside / "broken").touch()
    assert main(["train", *WORDS]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "stopped: iteration 1: the environment failed in all of 8 attempts" in said
    assert "Lights, task 0, step 0: ConnectionError: the simulator is down, 0" in said
    assert "--resume auto: the state behind iteration 0 is saved" in said
    assert all_steps(outside / "runs/lights/checkpoints") == [0]


@pytest.mark.full
@pytest.mark.parametrize(("method", "n"), [("steppo", 1), ("gigpo", 2)])
def test_a_run_passes_over_tasks_that_fail_and_resumes_where_all_failed(method, n, outside, capsys):
    words = [*WORDS, f"algorithm.name={method}", f"rollout.n={n}"]
    (outside / "broken").touch()
    assert main(["train", *words]) == 1
    for command in (["eval", "runs/lights"], ["rollout", "runs/lights", "--tasks", "2"]):
        capsys.readouterr()
        assert main(command) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "the environment failed in all of" in said and "the simulator is down" in said
    (outside / "broken").unlink()
    assert main(["train", *words, "--resume", "auto"]) == 0
    warned = " ".join(capsys.readouterr().out.split())
    rows = read_metrics(outside / "runs/lights/metrics.jsonl")
    assert [row["training/global_step"] for row in rows] == [1, 2]
    # Tasks 0 to 7, then 8 to 15: of the first eight, 3, 5, 6 and 7 fail.
    assert [row["env/faults"] for row in rows] == [4 * n, 0]
    assert rows[0]["env/fault_frac"] == 0.5 and rows[0]["rollout/left_out"] == 4 * n
    assert f"iteration 1: the environment failed in {4 * n} of {8 * n} attempts" in warned
    assert main(["eval", "runs/lights"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the environment failed in 4 of 9 attempts, which are left out" in said
    found = json.loads((outside / "runs/lights/eval.json").read_text())
    assert (found["eval/attempts"], found["eval/faults"]) == (9, 4)
    assert main(["rollout", "runs/lights", "--tasks", "8"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the environment failed: Lights, task 3, reset: it begins with 500 tokens" in said
    assert "The environment failed in 4 of 8 attempts." in said
    assert "the reward is nan" in said and "`reset` returned None" in said
