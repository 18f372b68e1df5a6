"""What a run may be called, and which files are its own."""

import fnmatch
import shutil
from pathlib import Path

from steprl.config import Config
from steprl.disk import writing
from steprl.run_directory.errors import RunDirectoryError

SETTINGS = "config.resolved.yaml"

# What a run and the commands on it write: files, and patterns of what is in its folders.
_FILES = (
    SETTINGS, "metrics.jsonl", "sft.jsonl", "eval.json", "audit.json", "report.html",
    "*.jsonl.tmp", "*.jsonl.damaged", f"{SETTINGS}.tmp",
)  # fmt: skip
_FOLDERS = {
    "checkpoints": ("[0-9]*",),
    "sft": ("[0-9]*",),
    "trajectories": ("step_*.jsonl", "step_*.tmp"),
    "plots": ("*.png",),
    "tensorboard": ("events.out.tfevents.*",),
}


def run_path(config: Config) -> Path:
    """The directory of a run; it need not exist.

    Raises:
        RunDirectoryError: `trainer.experiment_name` is no name of a folder below
            `trainer.output_dir`, or one of a run's own folders; or what should be a folder is a file.
    """
    name, folder = config.trainer.experiment_name, Path(config.trainer.output_dir).expanduser()
    parts = name.split("/")
    wrong = None
    if not name.strip():
        wrong = "it is empty"
    elif name.startswith(("/", "~")):
        wrong = "it must be below trainer.output_dir, which says where runs are"
    elif any(not part.strip() or part in (".", "..") for part in parts):
        wrong = "no part of it may be empty, . or .."
    elif not name.isprintable():
        wrong = "it holds characters that cannot be printed"
    elif any(len(part.encode("utf-8", "surrogateescape")) > 200 for part in parts):
        wrong = "a part of it is longer than 200 bytes"
    if wrong is not None:
        raise RunDirectoryError(
            f"trainer.experiment_name={name!r}: {wrong}; use letters and digits"
        )
    path = folder / name
    for inner, outer in zip((path, *path.parents), path.parents, strict=False):
        if (outer / SETTINGS).is_file() and (inner.name in _FOLDERS or _is_own_file(inner.name)):
            raise RunDirectoryError(
                f"{path}: {outer} is a run, and {inner.name} is its own; choose another "
                "trainer.experiment_name"
            )
    there = next((part for part in (path, *path.parents) if part.exists()), path)
    if there.exists() and not there.is_dir():
        raise RunDirectoryError(
            f"trainer.output_dir={config.trainer.output_dir}: {there} is a file; choose another place "
            "for runs"
        )
    return path


def is_run(path: Path) -> bool:
    """Whether a directory holds a run."""
    return (path / SETTINGS).is_file()


def link_in(path: Path, folder: Path) -> Path | None:
    """The first part of `path`, below `folder`, that is a symbolic link."""
    below = [part for part in (path, *path.parents) if folder in part.parents]
    return next((part for part in reversed(below) if part.is_symlink()), None)


def delete_run(path: Path) -> list[str]:
    """Deletes the files that a run writes, and nothing else: links are removed, not followed.

    Returns:
        Names of what was left.
    """
    with writing(path):
        for name, patterns in _FOLDERS.items():
            folder = path / name
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir() and not is_run(folder):
                for entry in folder.iterdir():
                    if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns):
                        _delete(entry)
                if not any(folder.iterdir()):
                    folder.rmdir()
        # The settings go last: without them, what is left of an interrupted deletion is no run.
        entries = [entry for entry in path.iterdir() if _is_own_file(entry.name)]
        for entry in sorted(entries, key=lambda entry: entry.name == SETTINGS):
            if entry.is_symlink() or entry.is_file():
                entry.unlink()
    return sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")


def _is_own_file(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _FILES)


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
