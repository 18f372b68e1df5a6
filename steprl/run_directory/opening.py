"""Making a run directory, or opening it again."""

import logging
from pathlib import Path

from steprl.config import Config
from steprl.disk import writing
from steprl.run_directory.errors import RunDirectoryError
from steprl.run_directory.lock import LOCK, hold, release
from steprl.run_directory.names import SETTINGS, delete_run, is_run, link_in, run_path
from steprl.run_directory.settings import check_resumable, write_settings

_LOG = logging.getLogger("steprl")


def open_run(config: Config, resume: str | None = None, overwrite: bool = False) -> Path:
    """Makes or reopens the directory of a run, for this process alone.

    A new run gets its `config.resolved.yaml`; that of a run that is resumed is written when its
    training has gone on, by `record_settings`: a resume that is refused changes nothing on disk. The
    directory is locked until `train` ends, or the process.

    Args:
        config: names the directory.
        resume: None starts anew; "auto" resumes where there is something to resume and starts
            anew elsewhere; a path must hold a run.
        overwrite: delete the run that is there: the files that runs write, and no others.

    Raises:
        RunDirectoryError: the directory is in use and neither `resume` nor `overwrite` is given, both
            are, or there is nothing to resume; the name is no name of a folder; settings differ that
            may not; another process trains there.
        WriteError: the directory cannot be written.
    """
    if resume and overwrite:
        raise RunDirectoryError("--resume and --overwrite contradict each other: give one")
    if resume in (None, "auto"):
        path = run_path(config)
    else:
        path = Path(str(resume)).expanduser()
        if not is_run(path):
            raise RunDirectoryError(f"--resume {path}: there is no run (no {SETTINGS})")
    _check(path, config, resume, overwrite)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    hold(path)
    try:
        _check(path, config, resume, overwrite)  # another process may have been here before us
        if _used(path) and overwrite:
            left = delete_run(path)
            if left:
                _LOG.warning("--overwrite %s: no run wrote %s, not deleted", path, ", ".join(left))
        if not is_run(path) or not _used(path):
            write_settings(path, config)
    except BaseException:
        release(path)
        raise
    return path


def _used(path: Path) -> bool:
    """There is something to lose: a run that failed before its first record has left nothing."""
    # Nor has a process that ended before it had written the settings.
    nothing = (LOCK, SETTINGS + ".tmp")
    if not path.is_dir():
        return False
    if not is_run(path):
        return any(entry.name not in nothing for entry in path.iterdir())
    return any(_is_record(file, path) for file in path.rglob("*"))


def _is_record(file: Path, run: Path) -> bool:
    """A link, or a file with something in it, other than those with which every run begins."""
    if file.is_symlink():
        return True
    inside = file.relative_to(run)
    begins = str(inside) in (SETTINGS, LOCK, SETTINGS + ".tmp") or inside.parts[0] == "tensorboard"
    return file.is_file() and not begins and file.stat().st_size > 0


def _check(path: Path, config: Config, resume: str | None, overwrite: bool) -> None:
    """What may not be opened is refused before anything is changed."""
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file: choose another trainer.experiment_name")
    if not _used(path):
        return
    if overwrite:
        _check_deletable(path, config)
    elif resume:
        if not is_run(path):
            raise RunDirectoryError(f"--resume {path}: there is no run (no {SETTINGS})")
        check_resumable(path, config)
    elif is_run(path):
        raise RunDirectoryError(
            f"{path} already holds a run: --resume auto continues it, --overwrite deletes it, "
            "trainer.experiment_name=NAME starts another"
        )
    else:
        raise RunDirectoryError(
            f"{path} is not empty, and holds no run: choose another trainer.experiment_name"
        )


def _check_deletable(path: Path, config: Config) -> None:
    """Deletes nothing that does not look like a run of ours, or that lies elsewhere."""
    if not is_run(path):
        raise RunDirectoryError(f"--overwrite: {path} is not a run (no {SETTINGS}), not deleted")
    link = link_in(path, Path(config.trainer.output_dir).expanduser())
    if link is not None:
        raise RunDirectoryError(
            f"--overwrite: {link} is a link to {link.resolve()}, not deleted; remove the link, or "
            "choose another trainer.experiment_name"
        )
