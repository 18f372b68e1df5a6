"""What a word on the command line stands for: a run, a configuration, or a pretrained model."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from steprl.config import Config, ConfigError, load_config
from steprl.config.checks import shorten
from steprl.config.environments import ENVIRONMENTS, GAMES, NO_ENVIRONMENT, EnvConfig
from steprl.config.shipped import config_file, shipped_configs
from steprl.run_directory import saved_settings

RUN, CONFIG, MODEL = "run", "configuration", "model"
_FILE = "config.resolved.yaml"
_ROWS = 16  # played at a time, where no configuration says how many


def kind_of(source: str | os.PathLike[str]) -> str:
    """`RUN`, `CONFIG` or `MODEL`; what lies here wins over names.

    Args:
        source: directory of a run; a YAML file, or the name of a configuration that ships; a model as
            `steprl.models.resolve_model` takes it.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder that is neither run nor model.
    """
    text, path = os.fspath(source), Path(source).expanduser()
    # os.path, as pathlib raises for names that no file can have.
    if os.path.isfile(path / _FILE):
        return RUN
    if text.startswith("pypi:"):
        return MODEL
    if os.path.isdir(path):
        if (path / "config.json").is_file():
            return MODEL
        raise FileNotFoundError(
            f"{text} is not a run (no {_FILE}), and not a model (no config.json)"
        )
    exists = os.path.exists(path)
    if path.suffix in (".yaml", ".yml") or (not exists and text in shipped_configs()):
        config_file(text)
        return CONFIG
    if exists:
        return MODEL if path.suffix == ".gguf" else CONFIG
    # OWNER/NAME of the hub; but a folder that is here is meant where its name comes first.
    is_of_hub = len(path.parts) == 2 and not text.startswith((".", "~", os.sep))
    if is_of_hub and not os.path.isdir(path.parent) and len(text) < 200:
        return MODEL
    folders = [folder for folder in {path.parent, Path("runs")} if os.path.isdir(folder)]
    there = sorted(str(file.parent) for folder in folders for file in folder.glob(f"*/{_FILE}"))
    near = [run for run in there if Path(run).name == text]
    near += difflib.get_close_matches(text, [*there, *shipped_configs()], n=1)
    raise FileNotFoundError(
        f"{shorten(text)}: there is no such run, model or configuration"
        + (f" (did you mean {near[0]}?)" if near else "")
        + "; give the directory of a run, a model (directory, .gguf file, pypi:NAME, OWNER/NAME of the "
        "hub), a YAML file, or a name of `steprl configs`"
    )


def settings_of(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The settings of a source.

    A model gets those that play it as it comes: without a critic, 16 episodes at a time, contexts of
    2048 tokens and replies of 256; the overrides name its environment.

    Raises:
        ConfigError: as of `load_config`; or no environment is named for a model.
        FileNotFoundError: as of `kind_of`.
        RunDirectoryError: the settings of a run are damaged.
    """
    kind = kind_of(source)
    if kind == RUN:
        run = Path(source).expanduser()
        saved_settings(run)  # what is wrong there is not said to be wrong in the overrides
        return load_config(run / _FILE, overrides)
    if kind == CONFIG:
        return load_config(Path(source), overrides)
    in_words = ", ".join(name for name in ENVIRONMENTS if name not in GAMES)
    if not any(item.startswith("env.name=") for item in overrides):
        what = "a model" if Path(source).expanduser().exists() else "no run here, so a model"
        raise ConfigError(
            f"{source} is {what}: say what it is to play, as env.name=NAME, such as "
            f"{in_words}, or your own as package.module:function"
        )
    config = load_config(None, [*model_settings(source), *overrides])
    if config.env.name in GAMES:
        raise ConfigError(
            f"env.name={config.env.name} has a small language of its own, which {source} does not speak; "
            f"in natural language there are {in_words}, and your own"
        )
    return config


def model_settings(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Overrides that a model is played or fine-tuned with, unless others say otherwise."""
    devices = jax.device_count()
    rows = -(-_ROWS // devices) * devices
    return (
        f"model.path={source}",
        "model.value_head=none",
        "algorithm.name=reinforce_pp",
        "rollout.context_length=2048",
        "rollout.response_length=256",
        f"rollout.batch_size={rows}",
        f"actor.ppo_mini_batch_size={devices}",
        f"sft.batch_size={devices}",
    )


def tuning_settings(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The settings of a supervised phase, of a configuration, or of a model and conversations alone.

    A model, and a configuration with `model.path` and `sft.data` that names no environment, have none:
    `env.name=none`. A model is trained in batches of 8 rows of 1024 tokens, at a rate of 1e-4; the
    overrides say with which `sft.data`, and how many `sft.steps`.

    Raises:
        ConfigError: as of `load_config`; or no conversations are named for a model.
        ValueError: the source is a run.
        FileNotFoundError: as of `kind_of`.
        RunDirectoryError: the settings of a run are damaged.
    """
    kind = kind_of(source)
    if kind == RUN:
        raise ValueError(
            f"{source} is a run: to train on from it, give its configuration or model, and "
            f"trainer.init_from={source}"
        )
    if kind == CONFIG:
        config = load_config(Path(source), overrides)
        if config.sft.data and config.model.path and config.env == EnvConfig():
            nothing = dataclasses.replace(config.env, name=NO_ENVIRONMENT)
            config = dataclasses.replace(config, env=nothing)
        return config
    if not any(item.startswith("sft.data=") for item in overrides):
        raise ConfigError(
            f"{source} is a model: say what it is to learn from, as sft.data=FILE of conversations, and how "
            "long, as sft.steps=N"
        )
    devices = jax.device_count()
    rows = -(-8 // devices) * devices
    defaults = (
        f"model.path={source}",
        f"env.name={NO_ENVIRONMENT}",
        f"sft.batch_size={rows}",
        "sft.lr=1e-4",
        "rollout.context_length=1024",
        f"rollout.batch_size={devices}",
        f"actor.ppo_mini_batch_size={devices}",
        "trainer.experiment_name=sft",
    )
    return load_config(None, [*defaults, *overrides])
