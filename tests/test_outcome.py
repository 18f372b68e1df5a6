"""What is printed when a run is complete: the task that training has taught, before and after."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import steprl.evaluation
import steprl.session
from steprl.checkpoint import DamagedCheckpoint
from steprl.cli import outcome
from steprl.evaluation import Inspected
from steprl.types import Step, Trajectory
from tests.small import small_config

SOLVED = {"before": {0, 5}, "after": {0, 3, 5}}


def attempt(params, task):
    ids, blank = np.arange(2), np.zeros(2, np.float32)
    solved = task in SOLVED[params]
    step = Step(f"door {task}", params, ids, ids, blank, blank, float(solved), True, False, "end")
    nothing = np.zeros(1)
    return Inspected(
        Trajectory(task, 0, (step,), solved), ids, ids, blank, blank, blank, nothing, nothing
    )


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """Prints the sample of a run; returns it, the tasks that were played for it, and the text."""

    def of(is_text, warm_started=True, load=lambda *_: "before"):
        asked = []

        def inspect(session, params, split, task_N):
            asked.append((params, len(task_N)))
            return [attempt(params, int(task)) for task in task_N]

        monkeypatch.setattr(steprl.evaluation, "inspect", inspect)
        monkeypatch.setattr(steprl.session, "load_params", load)
        if warm_started:
            (tmp_path / "sft" / "10").mkdir(parents=True)
        session = SimpleNamespace(
            config=small_config("rollout.batch_size=16"),
            suite=SimpleNamespace(game=None if is_text else "a game"),
            player=SimpleNamespace(splits=("train", "heldout")),
        )
        console = Console(width=80, record=True, file=io.StringIO())
        sample = outcome._print_sample(session, tmp_path, "after", console)
        return sample, asked, console.export_text()

    return of


def test_of_text_the_few_tasks_that_are_shown_are_played_before_and_after(printed):
    sample, asked, text = printed(is_text=True)
    assert sorted(asked) == [("after", 8), ("before", 8)]
    assert sample.trajectory.task == 3
    before, after = text.split("heldout task 3, after training")
    assert "heldout task 3, after the warm start" in before
    assert "> before" in before and "not solved" in before
    assert "> after" in after and "not solved" not in after


@pytest.mark.parametrize(("is_text", "tasks"), [(True, 8), (False, 16)])
def test_without_a_warm_start_and_of_games_a_sample_is_shown(printed, is_text, tasks):
    _, asked, text = printed(is_text, warm_started=not is_text)
    assert asked == [("after", tasks)]
    assert "a sample: heldout task 0" in text


def test_a_run_whose_warm_start_is_damaged_is_complete_all_the_same(printed):
    def damaged(*_):
        raise DamagedCheckpoint("sft/10", "bytes differ")

    _, asked, text = printed(is_text=True, load=damaged)
    assert asked == [("after", 8)] and "a sample: heldout task 0" in text
