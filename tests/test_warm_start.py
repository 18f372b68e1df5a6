"""The warm start that stops at a success rate, and what it measures that by."""

import jax
import numpy as np
import pytest

import steprl.sft
from steprl.checkpoint import all_steps
from steprl.config import ConfigError, load_config
from steprl.metrics import STEP, read_metrics
from steprl.session import load_params, setup
from steprl.sft import Panel, panel_of
from steprl.train import run_warm_start
from tests.small import SMALL, small_config

UNTIL = ("sft.steps=12", "sft.test_freq=5", "sft.save_freq=4", "sft.until=0.5", "sft.test_tasks=6")
RATES = {0: 0.1, 5: 0.2, 10: 0.5, 12: 0.9}  # found at each step


@pytest.fixture(scope="module")
def session():
    return setup(small_config(*UNTIL))


@pytest.fixture
def measured(monkeypatch):
    """Measurements find `RATES`, one after the other; those of this process."""
    found = []

    def scripted(session, params, panel):
        done = sorted(RATES)[len(found) + measured.skipped]
        found.append(done)
        return {"sft/success_rate": RATES[done], "sft/return": 0.0, "sft/entropy": 1.0}

    def measured(skipped):
        found.clear()
        measured.skipped = skipped

    measured.skipped, measured.found = 0, found
    monkeypatch.setattr(steprl.sft, "measure", scripted)
    return measured


def rows_of(run):
    return read_metrics(run / "sft.jsonl")


def test_it_stops_with_the_first_success_rate_that_is_high_enough(session, tmp_path, measured):
    params = run_warm_start(session, tmp_path)
    for kept in (load_params(session, tmp_path, "warm_start"), load_params(session, tmp_path)):
        assert jax.tree.all(jax.tree.map(np.array_equal, kept, params))
    assert [(r[STEP], r["sft/success_rate"]) for r in rows_of(tmp_path)] == [
        (0, 0.1), (5, 0.2), (10, 0.5),
    ]  # fmt: skip
    assert all_steps(tmp_path / "sft")[-1] == 10
    measured(0)
    run_warm_start(session, tmp_path)  # it is over, so nothing is done
    assert measured.found == [] and all_steps(tmp_path / "sft")[-1] == 10
    config = load_config(None, [*SMALL, *UNTIL, "sft.until=0.7"])
    measured(3)
    run_warm_start(session._replace(config=config), tmp_path)  # a higher goal goes on
    assert (
        all_steps(tmp_path / "sft")[-1] == 12 and rows_of(tmp_path)[-1]["sft/success_rate"] == 0.9
    )


def test_a_kill_between_a_measurement_and_its_checkpoint_changes_nothing(
    session, tmp_path, measured
):
    whole = run_warm_start(session, tmp_path / "whole")

    def killed(event):
        if event.step == 10:
            raise RuntimeError("killed")

    measured(0)
    with pytest.raises(RuntimeError, match="killed"):
        run_warm_start(session, tmp_path / "killed", killed)
    assert all_steps(tmp_path / "killed" / "sft")[-1] == 8
    measured(2)
    resumed = run_warm_start(session, tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole))
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert all_steps(tmp_path / "killed" / "sft")[-1] == 10


def test_a_run_without_a_warm_start_has_none_to_take(session, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_params(session, tmp_path, "warm_start")
    with pytest.raises(ValueError, match="expected a number, 'best' or 'warm_start'"):
        load_params(session, tmp_path, "last")


def test_a_start_that_is_good_enough_is_not_trained(session, tmp_path, measured):
    measured(2)  # the first thing that is found is .5
    run_warm_start(session, tmp_path)
    assert measured.found == [10] and all_steps(tmp_path / "sft") == [0]
    measured(0)
    run_warm_start(session, tmp_path)
    assert measured.found == []


def test_the_limit_is_said_where_it_ends_a_warm_start(session, tmp_path, caplog):
    """Measured by what is really played: training tasks, which no demonstration shows."""
    played, shown = [], []
    player = session.player

    def play(params, key, task_N, sample_N, sampling, split):
        played.append((split, float(sampling.temperature), tuple(task_N[:3])))
        return player.play(params, key, task_N, sample_N, sampling, split=split)

    def demonstrate(key, task_N):
        shown.extend(task_N.tolist())
        return player.demonstrate(key, task_N)

    spied = player._replace(play=play, demonstrate=demonstrate, sizes={"train": 6})
    config = load_config(None, [*SMALL, *UNTIL, "sft.steps=2", "sft.until=1.0"])
    run_warm_start(session._replace(config=config, player=spied), tmp_path)
    assert played == 2 * [("train", 1.0, (3, 4, 5))] and set(shown) == {0, 1, 2}
    assert "sft.steps=2 at a success rate of" in caplog.text and "sft.until=1" in caplog.text
    for row in rows_of(tmp_path):
        assert 0 <= row["sft/success_rate"] < 1 and row["sft/entropy"] > 0.1
        assert row["sft/num_tasks"] == 3 and "sft/return" in row


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ({}, Panel(2**30, 6, None)),
        ({"train": 100}, Panel(94, 6, 94)),
        ({"train": 7}, Panel(4, 3, 4)),
        ({"train": 2}, Panel(1, 1, 1)),
    ],
)
def test_success_is_measured_on_the_last_training_tasks_half_of_them_at_most(
    session, sizes, expected
):
    assert panel_of(session._replace(player=session.player._replace(sizes=sizes))) == expected


def test_one_training_task_cannot_be_shown_and_measured(session):
    alone = session._replace(player=session.player._replace(sizes={"train": 1}))
    with pytest.raises(ValueError, match=r"sft.until=0.5: of 1 training tasks none can be kept"):
        panel_of(alone)


def test_without_an_environment_there_is_no_success():
    with pytest.raises(ConfigError, match=r"sft.until=0.3: env.name=none has no tasks"):
        setup(load_config(None, ["env.name=none", "sft.until=0.3"]))
