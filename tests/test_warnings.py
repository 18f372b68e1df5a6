"""Early warnings: which iterations they are raised by, which not, and that each is said once."""

import dataclasses
import logging
import re
from pathlib import Path

import pytest

import steprl.train.warnings
from steprl.config import Config, load_config
from steprl.config.settings import setting_values
from steprl.metrics import STEP, MetricWriter, read_metrics
from steprl.report.contents import curves
from steprl.train.warnings import NAMES, WINDOW, Warnings, early_warnings

HEALTHY = {
    "actor/entropy": 0.4,
    "actor/pg_clipfrac": 0.02,
    "agree/logp_absmax": 2e-5,
    "critic/rewards/max": 1.0,
    "critic/rewards/mean": 0.4,
    "critic/rewards/min": 0.0,
    "critic/vf_explained_var": 0.3,
    "env/context_full_frac": 0.0,
    "env/parse_error_frac": 0.05,
    "env/truncated_frac": 0.1,
    "response_length/clip_ratio": 0.01,
    "rollout/success_rate": 0.4,
}


def rows(count, **columns):
    """Healthy iterations, in some of whose columns other numbers stand: one, or the last few."""
    made = [dict(HEALTHY) for _ in range(count)]
    for name, values in columns.items():
        values = values if isinstance(values, list) else [values] * count
        for row, value in zip(made[-len(values) :], values, strict=True):
            row[name.replace("__", "/")] = value
    return made


def names(found):
    return [one.name for one in found]


def test_a_healthy_run_is_not_warned_of():
    for count in range(2 * WINDOW):
        assert early_warnings(rows(count), Config()) == ()


FLAT = dict(critic__rewards__max=0.0, critic__rewards__mean=0.0, rollout__success_rate=0.0)
SOLVED = dict(critic__rewards__min=1.0, critic__rewards__mean=1.0, rollout__success_rate=1.0)


@pytest.mark.parametrize(
    ("name", "bad", "fine", "says", "remedy"),
    [
        ("no_reward_spread", rows(5, **FLAT), rows(4, **FLAT), "mean return 0.00", "sft.steps"),
        ("no_reward_spread", rows(5, **SOLVED), rows(4, **SOLVED), "all tasks are solved", "harder"),
        ("no_reward_spread", rows(9, rollout__informative_frac=[0.0] * 5),
         rows(9, rollout__informative_frac=[0.0, 0.0, 0.1, 0.0, 0.0]), "in 5 iterations", "rollout.n"),
        ("no_reward_spread", rows(5, env__parse_error_frac=0.9, **FLAT),
         rows(5, env__parse_error_frac=0.9), "90% of the actions were malformed", "sft.steps"),
        ("entropy_low", rows(8, actor__entropy=[0.004] * 3), rows(8, actor__entropy=[0.004] * 2),
         "0.0040 nats", "actor.entropy_coeff"),
        ("entropy_rising", rows(8, actor__entropy=[0.1, 0.1, 0.6, 1.1]),
         rows(8, actor__entropy=[0.1, 0.1, 0.3, 1.1]), "from 0.10 to 0.60", "actor.use_kl_loss"),
        ("clip_share", rows(4, actor__pg_clipfrac=0.8), rows(4, actor__pg_clipfrac=[0.9]),
         "80% of the tokens are clipped", "actor.ppo_epochs"),
        ("blind_critic", rows(15, critic__vf_explained_var=0.0),
         rows(14, critic__vf_explained_var=0.0), "explained 0.000", "critic.lr"),
        # A single batch of returns that hardly differ makes a huge negative number.
        ("blind_critic", rows(15, critic__vf_explained_var=-0.1),
         rows(15, critic__vf_explained_var=[-92344.0]), "-0.100", "model.value_head=separate"),
        ("blind_critic", rows(20, critic__vf_explained_var=0.0),
         rows(20, critic__vf_explained_var=0.0, critic__rewards__max=[0.0] * 4), "0.000", "grpo"),
        ("blind_critic", rows(20, critic__vf_explained_var=0.0, critic__returns__equal=0.0),
         rows(20, critic__vf_explained_var=0.0, critic__returns__equal=[1.0]), "0.000", "grpo"),
        ("logp_gap", rows(1, agree__logp_absmax=0.02), rows(1, agree__logp_absmax=5e-4),
         "up to 0.02 nats", "algorithm.rollout_is=token"),
        ("malformed", rows(9, env__parse_error_frac=[0.3, 0.4, 0.5]),
         rows(9, env__parse_error_frac=[0.1, 0.4, 0.2]), "from 5% to 40%", "lower actor.lr"),
        ("truncated", rows(3, response_length__clip_ratio=0.95),
         rows(2, response_length__clip_ratio=0.95), "95% of the actions", "rollout.response_length=16"),
        ("truncated", rows(3, env__context_full_frac=1.0), rows(3, env__context_full_frac=[1.0]),
         "fill their context", "rollout.context_length=768"),
        ("truncated", rows(3, env__truncated_frac=1.0, rollout__success_rate=0.0),
         rows(3, env__truncated_frac=1.0), "run out of steps", "spare_steps"),
    ],
)  # fmt: skip
def test_a_warning_names_what_was_seen_and_what_helps(name, bad, fine, says, remedy):
    (found,) = early_warnings(bad, Config())
    assert found.name == name and says in found.sentence and remedy in found.remedy
    assert early_warnings(fine, Config()) == ()


@pytest.mark.parametrize("column", sorted(HEALTHY))
def test_what_is_no_number_warns_of_nothing(column):
    odd = rows(20)
    for row in odd[-2:]:
        row[column] = float("nan")
    assert early_warnings(odd, Config()) == ()


def test_a_malformed_run_from_the_start_is_not_said_to_get_worse():
    assert early_warnings(rows(20, env__parse_error_frac=0.8), Config()) == ()


def test_actions_of_a_game_on_the_device_are_always_as_long_as_they_may_be():
    assert early_warnings(rows(9, response_length__clip_ratio=1.0), Config(), True) == ()


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ([], "algorithm.rollout_is=token"),
        (["rollout.top_p=0.9"], "rollout.top_p=1"),
        (["model.dtype=bfloat16"], None),
        (["algorithm.rollout_is=token"], None),
    ],
)
def test_the_gap_of_log_probs_has_a_bound_by_type(overrides, remedy):
    found = early_warnings(rows(1, agree__logp_absmax=0.1), load_config(overrides=overrides))
    assert names(found) == ["logp_gap"] * (remedy is not None)
    assert not found or remedy in found[0].remedy


def played(file, script, begin, log):
    """Iterations as the loop has them: the warning, then the row."""
    log.clear()
    warnings = Warnings(file, Config(), fixed_width=False)
    with MetricWriter(file) as writer:
        for iteration, row in enumerate(script, begin):
            writer.write(iteration, row | warnings.check(iteration, row))
    return [record.getMessage() for record in log.records]


def test_each_warning_is_said_once_and_kept_whether_or_not_the_run_was_stopped(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="steprl")
    script = rows(30, actor__entropy=[0.4] * 5 + [0.001] * 10 + [0.4] * 5)
    script = script + rows(10, actor__entropy=0.001)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    said = played(whole, script, 1, caplog)
    assert len([x for x in said if "entropy fell" in x]) == 1 and said[0].startswith(
        "iteration 18:"
    )
    in_parts = [
        x
        for a, b in ((0, 17), (17, 25), (25, 40))
        for x in played(parts, script[a:b], a + 1, caplog)
    ]
    assert in_parts == said
    kept = read_metrics(whole)
    assert kept == read_metrics(parts)
    assert all(row.keys() >= {f"warn/{name}" for name in NAMES} for row in kept)
    holds = [row[STEP] for row in kept if row["warn/entropy_low"]]
    assert holds == [*range(18, 26), *range(33, 41)]


def test_the_page_of_a_run_shows_the_warnings_that_there_were(tmp_path):
    run = tmp_path / "run"
    with MetricWriter(run / "metrics.jsonl") as writer:
        for step in (1, 2):
            writer.write(step, {f"warn/{name}": float(name == "clip_share") for name in NAMES})
    found = curves(run)
    (panel,) = found["panels"]
    assert panel["title"] == "Early warnings" and found["others"] == []
    assert panel["lines"] == [{"name": "warn/clip_share", "label": "clip share"}]


def test_the_settings_that_remedies_name_are_there():
    sections = "|".join(field.name for field in dataclasses.fields(Config))
    source = Path(steprl.train.warnings.__file__).read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![.\w])(?:{sections})(?:\.[a-z_]+)+", source))
    assert len(named) > 10 and named <= setting_values(Config()).keys()
