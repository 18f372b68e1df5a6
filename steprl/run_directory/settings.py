"""Which settings may change when a run is resumed. This is the only place that says so."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from steprl.config import Config, load_config, save_config
from steprl.config.yaml_text import parse
from steprl.disk import writing
from steprl.run_directory.errors import RunDirectoryError
from steprl.run_directory.names import SETTINGS

_LOG = logging.getLogger("steprl")

# A run keeps what it trains: environment, model and tokenizer, kind of method. The others may change,
# and each that does is said.
_FIXED = ("env.", "model.", "algorithm.name", "algorithm.options", "critic.head")
# Of a critic that predicts a distribution: which bins, and so which values.
_BINS = ("critic.value_min", "critic.value_max", "critic.num_bins", "critic.sigma_ratio")
_FREE = (
    # How it is computed, not what.
    "model.remat", "model.logprob_chunk",
    # Where data lies, which may have moved.
    "env.wiki_search.questions", "env.wiki_search.passages", "env.wiki_search.eval_questions",
    "env.wiki_search.cache", "env.mini_shop.products", "env.mini_shop.goals",
    "env.mini_shop.other_docs",
)  # fmt: skip
_ALWAYS = ("env", "model", "algorithm", "rollout", "trainer")  # sections of every version
_PLACE = ("trainer.experiment_name", "trainer.output_dir")  # a run stays where it is


class Change(NamedTuple):
    """A setting that differs."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def saved_settings(run: Path) -> Config:
    """The settings that a run was last trained with.

    Raises:
        RunDirectoryError: there are none, or they cannot be read.
    """
    file = run / SETTINGS
    if not file.is_file():
        raise RunDirectoryError(f"{run}: there is no run (no {SETTINGS})")
    try:
        if not file.read_bytes().strip(b"\0 \t\r\n"):  # as a crash of the machine may leave it
            raise ValueError("it is empty")
        config = load_config(file)
        there = parse(file.read_text(encoding="utf-8-sig")) or {}
    except (ValueError, OSError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    missing = [name for name in _ALWAYS if name not in there]
    if missing:  # defaults would take their place, unsaid
        raise RunDirectoryError(
            f"{file} has no settings of {', '.join(missing)}: a run writes all of them, so the file is cut "
            "off; put them back, or start another run"
        )
    return config


def changes(before: Config, now: Config) -> list[Change]:
    """The settings that differ, those of the place of the run aside."""
    return [change for change in _changes(before, now, "") if change.key not in _PLACE]


def check_resumable(run: Path, config: Config) -> None:
    """A run goes on with what it trains; nothing on disk is changed.

    Raises:
        RunDirectoryError: a setting differs that may not; names all of them.
    """
    before = saved_settings(run)
    other = [change for change in changes(before, config) if _is_fixed(change.key, before)]
    if other:
        raise RunDirectoryError(
            f"--resume {run}: it trains with other settings, and these cannot change "
            f"({', '.join(map(str, other))}); trainer.experiment_name=NAME starts another run"
        )


def _is_fixed(key: str, before: Config) -> bool:
    if key in _FREE:
        return False
    sections = [f.name for f in dataclasses.fields(before.env) if dataclasses.is_dataclass(f.type)]
    section = key.split(".")[1]
    if key.startswith("env.") and section in sections and section not in ("game", before.env.name):
        return False  # of an environment that the run does not play
    if key in _BINS:
        return before.critic.head == "hl_gauss"
    return key.startswith(_FIXED)


def record_settings(run: Path, config: Config) -> None:
    """Writes the settings that a run goes on with into its directory, as training does so.

    Each that differs from what the run had so far is said, in the log of "steprl". A directory that
    `open_run` did not make has no settings, and gets none.
    """
    if jax.process_index() != 0 or not (run / SETTINGS).is_file():
        return
    before = saved_settings(run)
    other = changes(before, config)
    if other:
        for change in other:
            _LOG.warning("%s", change)
        trainer = {key.split(".")[1]: getattr(before.trainer, key.split(".")[1]) for key in _PLACE}
        trainer_config = dataclasses.replace(config.trainer, **trainer)
        write_settings(run, dataclasses.replace(config, trainer=trainer_config))


def write_settings(run: Path, config: Config) -> None:
    """Writes every setting, complete or not at all."""
    file = run / SETTINGS
    with writing(file):
        temporary = file.with_name(file.name + ".tmp")
        save_config(config, temporary)
        os.replace(temporary, file)


def _changes(before: Any, now: Any, prefix: str) -> list[Change]:
    found = []
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if dataclasses.is_dataclass(old):
            found += _changes(old, new, f"{prefix}{field.name}.")
        elif old != new:
            found.append(Change(prefix + field.name, old, new))
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
