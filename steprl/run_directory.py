"""Where a run lives: `<output_dir>/<experiment_name>/`, never overwritten by accident."""

import shutil
from pathlib import Path

from steprl.checkpoint import latest_step
from steprl.config import Config, save_config


class RunDirectoryError(ValueError):
    """The directory holds a run and nothing was said about it, or holds none to go on with."""


def open_run(config: Config, resume: str | None = None, overwrite: bool = False) -> Path:
    """Makes or reopens the directory of a run and writes `config.resolved.yaml`.

    Args:
        config: names the directory.
        resume: None starts anew; "auto" goes on where there is something to go on from and starts
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
            f"{path} already holds a run: --resume auto goes on with it, --overwrite deletes it, "
            "trainer.experiment_name=NAME starts another"
        )
    path.mkdir(parents=True, exist_ok=True)
    save_config(config, path / "config.resolved.yaml")
    return path


def _check_is_run(path: Path) -> None:
    """Deletes nothing that does not look like a run of ours."""
    if not (path / "config.resolved.yaml").is_file():
        raise RunDirectoryError(
            f"--overwrite: {path} is not a run (no config.resolved.yaml), not deleted"
        )


def phase_of(path: Path) -> str:
    """ "rl" when RL checkpoints exist, "sft" when only the warm start's do, else "new"."""
    if latest_step(path / "checkpoints") is not None:
        return "rl"
    return "sft" if latest_step(path / "sft") is not None else "new"
