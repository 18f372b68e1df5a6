"""Configurations that ship are found by name, from any folder, and are in the package that is built."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from steprl.cli import main
from steprl.config import load_config
from steprl.config.shipped import config_file, shipped_configs, summary_of

ROOT = Path(__file__).resolve().parent.parent


def test_each_file_of_the_folder_has_a_name_and_a_summary():
    assert shipped_configs() == {file.stem: file for file in (ROOT / "configs").glob("*.yaml")}
    assert all(summary_of(file).endswith(".") for file in shipped_configs().values())


def test_a_name_finds_what_ships_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart") == load_config(ROOT / "configs" / "quickstart.yaml")


def test_a_file_wins_over_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("trainer: {seed: 7}\n")
    assert load_config("quickstart").trainer.seed == 7


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("configs/quickstart.yaml", "did you mean `quickstart`, which ships with steprl?"),
        ("quickstrat", "did you mean `quickstart`"),
        ("zzz", "`steprl configs` lists those that ship"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(name, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=said.replace("?", r"\?").replace(".", r"\.")):
        config_file(name)


def test_the_command_lists_them_and_prints_one_as_it_is(capsys):
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and summary_of(file)[:40] in listed
               for name, file in shipped_configs().items())  # fmt: skip
    assert main(["configs", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "quickstart.yaml").read_text()


@pytest.mark.parametrize(("version", "is_copied"), [("standard", True), ("editable", False)])
def test_a_wheel_holds_them_and_an_editable_installation_none(version, is_copied, monkeypatch):
    """The build backend itself is installed only where a package is built."""
    for path, interface in (
        ("hatchling.metadata.plugin.interface", "MetadataHookInterface"),
        ("hatchling.builders.hooks.plugin.interface", "BuildHookInterface"),
    ):
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[path], interface, type(interface, (), {"root": str(ROOT)}))
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data: dict = {"force_include": {}}
    module.Configurations().initialize(version, data)
    assert data["force_include"] == ({str(ROOT / "configs"): "steprl/configs"} if is_copied else {})


def test_the_package_says_that_it_has_types():
    assert (ROOT / "steprl" / "py.typed").is_file()
