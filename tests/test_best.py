"""The best checkpoint: found by its metric, never deleted, taken by name."""

import logging
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steprl.train.loop
from steprl.checkpoint import Checkpointer, all_steps, best_steps, restore
from steprl.checkpoint.best import NewestAndBest
from steprl.config import ConfigError, TrainerConfig, load_config
from steprl.session import load_step, setup
from steprl.train import train
from steprl.train.best import Best
from tests.small import small_config

METRIC = "eval/success_rate"


def state_of(step):
    return {"x": jnp.full(3, float(step))}


def saved(folder, values, max_to_keep=1):
    """Steps 1, 2 ... with a value each."""
    first = (all_steps(folder) or [0])[-1] + 1
    with Checkpointer(folder, max_to_keep=max_to_keep, keep_best=METRIC) as saver:
        for step, value in enumerate(values, first):
            row = {} if value is None else {METRIC: value}
            saver.save(step, state_of(step), {"row": row})


@given(st.dictionaries(st.integers(0, 20), st.floats(-1, 1)), st.sets(st.integers(0, 20)))
def test_the_newest_are_kept_and_the_best_and_no_others(values, steps):
    policy, steps = NewestAndBest(2, values), sorted(steps)
    kept = policy.should_preserve([SimpleNamespace(step=s) for s in steps], context=None)
    kept = {step for step, keep in zip(steps, kept, strict=True) if keep}
    others = kept - set(steps[-2:])
    assert set(steps[-2:]) <= kept and len(others) <= 1
    valued = [s for s in steps if s in values]
    if valued:
        best = max(values[s] for s in valued)
        assert min(s for s in valued if values[s] == best) in kept


def test_the_best_step_stays_while_others_go(tmp_path):
    saved(tmp_path, [0.2, 0.9, 0.5, math.nan, None])
    assert all_steps(tmp_path) == [2, 5]
    saved(tmp_path, [0.9, 0.1])  # by another process; as good is not better
    assert all_steps(tmp_path) == [2, 7] and best_steps(tmp_path, METRIC) == [2, 7]
    saved(tmp_path, [0.95, 0.3])
    assert all_steps(tmp_path) == [8, 9] and best_steps(tmp_path, METRIC) == [8, 9]


def test_where_the_best_is_damaged_the_next_best_is_taken(tmp_path, caplog):
    saved(tmp_path, [0.2, 0.9, 0.5, 0.1], max_to_keep=4)
    ranked = best_steps(tmp_path, METRIC)
    assert ranked == [2, 3, 1, 4]
    (tmp_path / "2" / "checksums.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "steprl"):
        restored = restore(tmp_path, state_of(0), ranked)
    assert restored.step == 3 and np.all(np.asarray(restored.state["x"]) == 3)
    assert "step 2 is damaged" in caplog.text and "going back to step 3" in caplog.text
    (tmp_path / "3" / "meta" / "metadata").write_text("no JSON")
    assert best_steps(tmp_path, METRIC) == [2, 1, 4]  # it has no value that could be read


def test_patience_counts_evaluations_since_the_best(tmp_path):
    best = Best(tmp_path, TrainerConfig(test_freq=5, patience=2))
    better, over = [], []
    for iteration, value in ((5, 0.3), (10, 0.5), (15, 0.5), (20, 0.1)):
        better.append(best.see(iteration, {METRIC: value}))
        over.append(best.is_over(iteration))
    assert better == [True, True, False, False] and over == [False, False, False, True]
    assert (best.step, best.value) == (10, 0.5) and not best.is_over(21)
    assert not best.see(25, {METRIC: math.nan})


def test_a_metric_that_evaluations_do_not_measure_is_refused(tmp_path):
    best = Best(tmp_path, TrainerConfig(keep_best="eval/f1"))
    with pytest.raises(ValueError, match=r"keep_best=eval/f1: .* they measure eval/return\. Name"):
        best.check({"eval/return": 1.0, "actor/loss": 0.0})
    best.check({})  # without evaluation there is nothing to say


@pytest.mark.parametrize(
    "override, said",
    [
        ("trainer.keep_best=null", "does not say of which metric"),
        ("trainer.test_freq=0", "makes none before the end"),
    ],
)
def test_patience_without_evaluations_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        setup(load_config(None, ["trainer.patience=2", override]))


def test_a_run_saves_its_best_iteration_and_ends_when_it_has_waited(tmp_path, monkeypatch):
    values = iter([0.4, 0.2, 0.6, 0.5, 0.1, 0.9])  # before the first iteration, then of each
    found = []

    def scripted(*_):
        found.append(next(values))
        return {METRIC: found[-1]}

    monkeypatch.setattr(steprl.train.loop, "evaluate_all", scripted)
    config = small_config(
        "trainer.total_training_steps=5", "trainer.test_freq=1", "trainer.patience=2",
        "trainer.max_to_keep=1", "trainer.save_trajectories=0",
    )  # fmt: skip
    session = setup(config)
    params, _ = train(session, tmp_path)
    assert found == [0.4, 0.2, 0.6, 0.5, 0.1]
    assert all_steps(tmp_path / "checkpoints") == [2, 4]
    assert load_step(session, tmp_path, "best")[1] == 2 and load_step(session, tmp_path)[1] == 4
    train(session, tmp_path)  # it is over
    assert len(found) == 5 and all_steps(tmp_path / "checkpoints") == [2, 4]


def test_a_run_that_was_never_evaluated_has_no_best(tmp_path):
    session = setup(small_config())
    with Checkpointer(tmp_path / "checkpoints") as saver:
        saver.save(1, state_of(1), {"row": {}})
    with pytest.raises(
        FileNotFoundError, match="no checkpoint of it was evaluated by eval/success"
    ):
        load_step(session, tmp_path, "best")
