"""Configurations that ship with the project, found by their names."""

import difflib
import os
from pathlib import Path

import steprl
from steprl.config.checks import shown

_PACKAGE = Path(steprl.__file__).resolve().parent
# In a wheel they lie inside of the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def shipped_configs() -> dict[str, Path]:
    """The files by name, such as `quickstart`, sorted."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def config_file(name: str | os.PathLike[str]) -> Path:
    """The file that a configuration on the command line means.

    Args:
        name: path of a YAML file, or the name of a configuration that ships; what lies here wins.

    Raises:
        FileNotFoundError: there is neither; names what ships under a similar name.
    """
    path, shipped = Path(name), shipped_configs()
    suffixed = f"{os.fspath(name)}.yaml"
    if os.path.exists(path):  # pathlib raises for names that no file can have
        return path
    if os.fspath(name) in shipped:
        return shipped[os.fspath(name)]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = "`steprl configs` lists those that ship"
    if os.path.exists(suffixed):
        hint = f"did you mean {shown(suffixed)}?"
    elif os.fspath(name).startswith("pypi:") or path.suffix == ".gguf":
        hint = f"a model is named in a configuration, as model.path={name}"
    elif near:
        hint = f"did you mean `{near[0]}`, which ships with steprl?"
    raise FileNotFoundError(f"config file {shown(os.fspath(name))} does not exist; {hint}")


def summary_of(file: Path) -> str:
    """The first sentence of the comment at the head of a configuration."""
    head = file.read_text(encoding="utf-8").splitlines()[:1]
    return head[0].removeprefix("# ") if head and head[0].startswith("#") else ""
