"""Where a run lives: `<output_dir>/<experiment_name>/`, never overwritten by accident."""

import dataclasses
import shutil
from pathlib import Path

from steprl.config import Config, load_config, save_config


class RunDirectoryError(ValueError):
    """The directory holds a run and nothing was said about it, or holds none to resume."""


def open_run(config: Config, resume: str | None = None, overwrite: bool = False) -> Path:
    """Makes or reopens the directory of a run and writes `config.resolved.yaml`.

    Args:
        config: names the directory.
        resume: None starts anew; "auto" resumes where there is something to resume and starts
            anew elsewhere; a path must hold a run.
        overwrite: delete what is there.

    Raises:
        RunDirectoryError: the directory is in use and neither `resume` nor `overwrite` is given, both
            are, or there is nothing to resume.
    """
    path = Path(config.trainer.output_dir) / config.trainer.experiment_name
    if resume and overwrite:
        raise RunDirectoryError("--resume and --overwrite contradict each other: give one")
    if resume not in (None, "auto"):
        path = Path(str(resume))
        if not (path / "config.resolved.yaml").is_file():
            raise RunDirectoryError(f"--resume {path}: there is no run (no config.resolved.yaml)")
    used = path.exists() and any(path.iterdir())
    if used and overwrite:
        _check_is_run(path)
        shutil.rmtree(path)
    elif used and not resume:
        raise RunDirectoryError(
            f"{path} already holds a run: --resume auto continues it, --overwrite deletes it, "
            "trainer.experiment_name=NAME starts another"
        )
    elif used:
        _check_same_model(path, config)
    path.mkdir(parents=True, exist_ok=True)
    save_config(config, path / "config.resolved.yaml")
    return path


def _check_same_model(path: Path, config: Config) -> None:
    """A run is resumed with its own model and environment; other settings may change."""
    saved = path / "config.resolved.yaml"
    if not saved.is_file():
        raise RunDirectoryError(f"--resume {path}: there is no run (no config.resolved.yaml)")
    before = load_config(saved)
    for name, old, new in (
        ("env.name", before.env.name, config.env.name),
        ("env.options", before.env.options, config.env.options),
        *((f"model.{f.name}", getattr(before.model, f.name), getattr(config.model, f.name))
          for f in dataclasses.fields(config.model)),
    ):  # fmt: skip
        if old != new:
            raise RunDirectoryError(
                f"--resume {path}: it was made with {name}={old}, now {name}={new}; "
                "trainer.experiment_name=NAME starts another run"
            )


def _check_is_run(path: Path) -> None:
    """Deletes nothing that does not look like a run of ours."""
    if not (path / "config.resolved.yaml").is_file():
        raise RunDirectoryError(
            f"--overwrite: {path} is not a run (no config.resolved.yaml), not deleted"
        )
