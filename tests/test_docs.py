"""The pages are complete and current: functions, methods, rooms, links, and measured parts."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steprl import ops
from steprl.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "build.py"
PAGE = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"
]  # fmt: skip


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_writes():
    command = [sys.executable, str(SCRIPT), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_public_function_is_on_the_page():
    public = {name for name in ops.__all__ if name[0].islower()}
    assert public == set(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE))


def test_an_equation_and_its_papers_are_read_from_a_docstring(build):
    doc = inspect.cleandoc("""Sum.

        y = a + b
        z = y

    Of a paper (https://arxiv.org/abs/1, eq. 2), and https://arxiv.org/abs/3.

    Args:
        x: https://arxiv.org/abs/1 again.
    """)
    assert build.equation(doc) == "y = a + b\nz = y"
    assert build.papers(doc) == ["https://arxiv.org/abs/1", "https://arxiv.org/abs/3"]
    assert build.equation("Sum.\n\nNothing indented.\n\nArgs:\n    x: y") == ""


def test_a_function_without_a_test_is_noticed(build):
    assert build.tests_of("mean", {"a.py": "ops.mean(x)", "b.py": "ops.means(x)"}) == ["a.py"]
    assert build.tests_of("absent", {"a.py": "ops.mean(x)"}) == []


def test_the_readme_names_every_method():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    part = readme.split("## Methods")[1].split("\n## ")[0]
    assert {name for name in ALGORITHMS if f"`{name}`" not in part} == set()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_readme_says_how_each_method_aggregates(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(
        line for line in readme.splitlines() if line.startswith("| `") and f"`{name}`" in line
    )
    assert ALGORITHMS[name].reduction in row and ALGORITHMS[name].ratio_level in row


def test_measured_parts_come_from_the_files_of_the_benchmarks():
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def anchors(page: Path) -> set[str]:
    """Names by which links may point at the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)#?([^)\s]*)\)", text):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_a_link_to_a_heading_that_is_not_there_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# The `x`, and *y*: z\n```\n# not a heading\n```\n")
    assert anchors(page) == {"the-x-and-y-z"}


def test_every_room_is_described():
    described = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \d \|(.*?)\|", described, re.MULTILINE)
    rooms = {
        path.stem
        for path in (ROOT / "steprl").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert rooms - set(re.findall(r"`(\w+)`", " ".join(table))) == set()


@pytest.mark.slow
def test_the_example_of_the_page_on_branching_runs():
    page = (ROOT / "docs" / "branching.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict = {}
    exec(compile(code, "docs/branching.md", "exec"), scope)
    first, *others = scope["branches"].trajectories
    assert len(others) == 4 and first.parent == (1, 1, 2, 0.0, 0)
    assert all([s.action for s in one.steps] == [s.action for s in first.steps] for one in others)


@pytest.mark.slow
@pytest.mark.full
def test_the_example_of_the_laboratory_trains_seeds_side_by_side(monkeypatch):
    page = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    small = {
        "steps=30": 'steps=2", "sft.steps=2", "sft.batch_size=8", "rollout.n=2',
        "mini_batch_size=32": "mini_batch_size=8",
        ", 10)": ", 2)",
    }
    for long, short in small.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    monkeypatch.chdir(ROOT)
    scope: dict = {}
    exec(compile(code, "laboratory.md", "exec"), scope)
    assert scope["metrics"]["rollout/success_rate"].shape == (2, 2)


def test_a_signature_is_that_of_the_source(build):
    assert build.signature(ops.step_ids_from_mask).startswith("step_ids_from_mask(")
    long = build.signature(ops.policy_loss)
    assert "\n    logprob_t: jax.Array,\n" in long and "\n    *,\n    level: str = " in long
    for name in build.functions():
        assert f"```python\n{name}(" in PAGE
