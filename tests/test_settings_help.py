"""What settings mean: each has a comment, `steprl help` finds it, and the page has them all."""

import dataclasses
import re
from pathlib import Path

import pytest

from steprl.cli import main
from steprl.config import Config, load_config
from steprl.config.described import field_comments, lookup, sections
from steprl.config.load import SHORT_NAMES

SETTINGS = [setting for section in sections().values() for setting in section.settings]
PAGE = (Path(__file__).resolve().parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A section."""

    plain: int = 0
    behind: int = 0  # what it is, None = off
    # Above it,
    # on two lines.
    above: int = 0
    # Of a shape; None keeps it:
    first: int = 0  # width
    second: int = 0  # height

    third: int = 0  # no longer of a shape
    both: int = dataclasses.field(default=0)  # behind the last line
    # About the design of what follows, not about it alone.

    apart: str = "# no comment"  # method_x: False by default


def test_comments_are_read_from_beside_the_fields():
    assert field_comments(Sample) == {
        "plain": "",
        "behind": "What it is, null = off.",
        "above": "Above it, on two lines.",
        "first": "Of a shape; null keeps it: Width.",
        "second": "Of a shape; null keeps it: Height.",
        "third": "No longer of a shape.",
        "both": "Behind the last line.",
        "apart": "method_x: false by default.",
    }


def leaves(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def test_every_setting_is_there_once_and_has_its_default():
    assert [setting.key for setting in SETTINGS] == [key for key, _ in leaves_in_order()]
    text = {setting.key: f"{setting.key}={setting.default}" for setting in SETTINGS}
    given = [text[key] for key, value in leaves(Config()) if value not in (None, {})]
    assert load_config(None, given) == Config()


def leaves_in_order():
    """Settings of a section before its subsections, as the page has them."""
    flat = dict(leaves(Config()))
    return [(s.key, flat[s.key]) for section in sections().values() for s in section.settings]


@pytest.mark.parametrize("section", sections().values(), ids=lambda section: section.key)
def test_every_setting_says_what_it_is(section):
    assert section.meaning
    silent = [setting.key for setting in section.settings if len(setting.meaning) < 8]
    assert not silent, f"write a comment beside {silent}"


def test_the_page_has_every_setting_once():
    assert re.findall(r"^\| `([\w.]+)`", PAGE, re.MULTILINE) == [s.key for s in SETTINGS]
    assert "| `actor.lr` | `0.0003` | number, 0 or more | Learning rate" in PAGE
    assert "| `critic.lr` | `null` | number or null, 0 or more |" in PAGE


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("actor.lr", ["actor.lr"]),
        ("train.steps", ["trainer.total_training_steps"]),
        ("critic", [s.key for s in SETTINGS if s.section == "critic"]),
        ("algorithm.kl_ctrl.", [s.key for s in SETTINGS if s.section == "algorithm.kl_ctrl"]),
        ("lr", ["sft.lr", "actor.lr", "critic.lr"]),
        ("lora.rank", ["model.lora.rank"]),
    ],
)
def test_a_word_means_settings(word, keys):
    assert [setting.key for setting in lookup(word)] == keys


@pytest.mark.parametrize(
    ("word", "near"),
    [("actor.rl", "actor.lr"), ("algoritm", "algorithm"), ("gama", "algorithm.gamma"),
     ("rollout.tempature", "rollout.temperature"), ("qqqq", "sections are env, env.game")],
)  # fmt: skip
def test_an_unknown_word_names_near_ones(word, near, capsys):
    assert main(["help", word]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"error: there is no setting {word}: ") and near in out


def test_a_word_of_no_key_is_looked_for_in_what_settings_mean():
    found = {setting.key for setting in lookup("learning_rate")}
    assert {
        "sft.lr",
        "actor.lr",
        "actor.lr_warmup_steps",
    } <= found and "actor.clip_ratio" not in found
    assert "eval.temperature" in {setting.key for setting in lookup("Sampling")}


def test_every_short_name_is_known():
    assert all(len(lookup(short)) == 1 for short in SHORT_NAMES)


def test_help_prints_default_range_and_meaning(capsys):
    assert main(["help", "actor.lr"]) == 0
    out = capsys.readouterr().out
    assert "actor.lr=0.0003  (number, 0 or more)" in out and "Learning rate of the policy" in out
    assert main(["help", "env"]) == 0
    assert all(s.key in (out := out + capsys.readouterr().out) for s in lookup("env"))


def test_help_alone_lists_the_sections(capsys):
    assert main(["help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in sections())
