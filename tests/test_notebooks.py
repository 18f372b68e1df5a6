"""Every notebook runs from top to bottom as a reader runs it, and is kept with what it showed."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_PICTURE = 60_000  # bytes
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SHORT = FOLDER / "01_step_credit.ipynb"

RUN = """
import json, sys

scope = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
"""


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(path, folder, env):
    """In a process of its own, since some settings must stand before jax is imported."""
    command = [sys.executable, "-c", RUN, str(path)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path if path == SHORT else pytest.param(path, marks=pytest.mark.full) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_from_any_folder(path, tmp_path, plain_env):
    done = run(path, tmp_path, plain_env)
    assert done.returncode == 0, done.stderr


def test_it_runs_in_the_environment_of_a_user(plain_env):
    assert not {"JAX_NUMPY_RANK_PROMOTION", "STEPRL_TESTS_BEFORE"} & set(plain_env)
    assert "device_count" not in plain_env.get("XLA_FLAGS", "")


def test_a_cell_that_fails_is_noticed(tmp_path, plain_env):
    cells = [
        {"cell_type": "markdown", "source": ["no code"]},
        {"cell_type": "code", "source": ["x = 1\n", "print(x)"]},
        {"cell_type": "code", "source": ["x / 0"]},
    ]
    path = tmp_path / "broken.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    done = run(path, tmp_path, plain_env)
    assert done.returncode == 1 and done.stdout == "1\n"
    assert 'File "cell 2", line 1' in done.stderr and "ZeroDivisionError" in done.stderr


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@EACH
def test_it_is_kept_as_it_ran(path):
    cells = code_cells(path)
    numbers = [cell["execution_count"] for cell in cells]
    assert numbers == list(range(1, len(cells) + 1)), "run all cells, once, in order"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not re.findall(r"/(?:home|tmp|root|work|Users)/", json.dumps(outputs))


@EACH
def test_its_pictures_are_there_and_small(path):
    pictures = [
        base64.b64decode(output["data"]["image/png"])
        for cell in code_cells(path)
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert max(map(len, pictures)) <= MAX_PICTURE


@EACH
def test_what_it_links_to_exists(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (FOLDER / target).exists(), target
