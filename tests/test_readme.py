"""What the README says is so: its example runs, its files exist, its numbers come from results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    assert commands == ["quickstart", "test", "search"]
    assert all(f"\n{name}:" in makefile for name in commands)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|benchmarks|steprl)/[\w/.-]+\w", README)))
)
def test_named_files_exist(path):
    assert (ROOT / path).exists()


def test_results_come_from_the_files_of_the_benchmarks():
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
