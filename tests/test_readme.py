"""What the README says is so: it is short, its example runs, and it reads well away from the repository."""

import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RELATIVE = r"\]\((?!https?://)[^)]*\)"


@pytest.fixture
def build_hook(monkeypatch):
    """hatch_build.py; the build backend itself is installed only where a package is built."""
    for path, interface in (
        ("hatchling.metadata.plugin.interface", "MetadataHookInterface"),
        ("hatchling.builders.hooks.plugin.interface", "BuildHookInterface"),
    ):
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[path], interface, type(interface, (), {}))
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    gradient = scope["gradient"]
    assert gradient.shape == (9,)
    assert ((gradient != 0) == (scope["sampled"] == 1)).all()
    # both steps were better than expected, so every sampled token is to become more likely
    assert (gradient[scope["sampled"] == 1] < 0).all()


def test_the_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)$", README, re.MULTILINE)
    assert commands == ["quickstart", "test"]
    assert all(f"\n{name}:" in makefile for name in commands)


def test_it_is_short():
    assert len(README.splitlines()) <= 140


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|benchmarks|steprl)/[\w/.-]+\w", README)))
)
def test_named_files_exist(path):
    assert (ROOT / path).exists()


def test_a_package_index_gets_no_relative_links(build_hook):
    assert re.search(RELATIVE, README)  # or the test says nothing
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    addresses = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    for given in (addresses, {"pages": "", "images": ""}):
        text = build_hook.long_description(README, **given)
        assert not re.search(RELATIVE, text)
        assert re.findall("^#.*", text, re.MULTILINE) == re.findall("^#.*", README, re.MULTILINE)


def test_links_are_completed_where_the_addresses_are_known(build_hook):
    page = (
        "![p](a/b.png)\n\n*Caption.*\n\n[x](c.md#d) [y](#e) [z](https://f)\n\n```\n[x](c.md)\n```\n"
    )
    full = build_hook.long_description(page, "https://h/blob/", "https://h/raw")
    assert full == (
        "![p](https://h/raw/a/b.png)\n\n*Caption.*\n\n"
        "[x](https://h/blob/c.md#d) y [z](https://f)\n\n```\n[x](c.md)\n```\n"
    )
    assert build_hook.long_description(page) == "x y [z](https://f)\n\n```\n[x](c.md)\n```\n"
