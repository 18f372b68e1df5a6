"""The shape of the code base: imports go down only, files stay short, nothing happens on import.

The checks are functions of a folder, so that they are themselves tested, on small trees that break
each rule.
"""

import ast
import functools
import graphlib
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from steprl.config.environments import ENVIRONMENTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "steprl"

# A room is a module or folder directly under the package. A new one has to be given a floor here.
FLOORS = (
    ("ops", "types", "config", "disk", "processes"),
    ("models", "sampling", "envs", "tools", "optimizer", "sharding", "checkpoint", "metrics"),
    ("branching", "carried", "algorithms", "rewards", "rollout", "routing", "synthesis"),
    (
        "session",
        "train",
        "sft",
        "evaluation",
        "audit",
        "laboratory",
        "experience",
        "serving",
        "update",
        "report",
        "transcripts",
        "run_directory",
        "interrupts",
    ),  # fmt: skip
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MAX_LINES = 400
MAX_FOLDERS = 2  # under the package
NO_NAMES = {"utils", "util", "common", "helpers", "misc", "experimental"}
ORACLES = {"rlax", "tensorflow", "torch", "trl", "tunix", "verl"}  # tests may, the package may not
IMPORT_NAMES = {
    "orbax-checkpoint": "orbax",
    "pyyaml": "yaml",
}  # where it differs from the name to install


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    on_load: bool  # runs when the file is imported, not only when a function is called


@functools.cache
def import_nodes(source: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports of a file, and whether each runs when the file is imported."""
    tree = ast.parse(source)
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    return [
        (node, node not in lazy)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def imports_of(root: Path) -> list[Import]:
    """Every import under `root / PACKAGE`, relative ones resolved."""
    found = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        for node, on_load in import_nodes(file.read_text(encoding="utf-8")):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                folder = file.relative_to(root).parts[:-1]
                above = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
                base = ".".join(part for part in (above, node.module) if part)
                # `from steprl import ops` names a room only in its second half.
                names = [f"{base}.{alias.name}" for alias in node.names]
            found += [Import(file, node.lineno, name, on_load) for name in names]
    return found


def room_of(file: Path, root: Path) -> str:
    """`ops` for `steprl/ops/losses.py`, `train` for `steprl/train.py`, "" for the package."""
    parts = file.relative_to(root / PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def arrows(root: Path) -> list[tuple[str, str, Import]]:
    """Imports of the package by itself, as (room, imported room, where)."""
    result = []
    for item in imports_of(root):
        parts = item.module.split(".")
        if parts[0] == PACKAGE:
            result.append((room_of(item.file, root), parts[1] if len(parts) > 1 else "", item))
    return result


def wrong_arrows(root: Path) -> list[str]:
    """Imports that point up, `ops` that imports anything, and rooms without a floor."""
    problems = []
    for file in (root / PACKAGE).rglob("*.py"):
        room = room_of(file, root)
        if room and room not in FLOOR_OF:
            problems.append(f"{file.relative_to(root)}: room {room!r} has no floor in FLOORS")
    for room, target, item in arrows(root):
        where = f"{item.file.relative_to(root)}:{item.line}"
        # `__version__` and the like come from the package itself, which imports nothing.
        if not room:
            problems.append(f"{where}: the package imports {item.module} when it is imported")
        elif target in FLOOR_OF and room in FLOOR_OF:
            if FLOOR_OF[target] > FLOOR_OF[room]:
                problems.append(f"{where}: {room} imports {item.module}, which is a floor above")
            elif room == "ops" and target != "ops":
                problems.append(f"{where}: ops imports {item.module}; it takes arrays only")
    return problems


def cycles(root: Path) -> list[str]:
    """Rooms of one floor may know each other, one way."""
    graph: dict[str, set[str]] = {}
    for room, target, _ in arrows(root):
        if target in FLOOR_OF and target != room:
            graph.setdefault(room, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def misshapen_files(root: Path) -> list[str]:
    """Files that are too long, too deep, or named for nothing."""
    problems = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        relative = file.relative_to(root)
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            problems.append(f"{relative}: {lines} lines, at most {MAX_LINES}")
        if len(relative.parts) - 2 > MAX_FOLDERS:
            problems.append(f"{relative}: deeper than {MAX_FOLDERS} folders")
        if NO_NAMES & set(relative.with_suffix("").parts):
            problems.append(f"{relative}: the name does not say what is in it")
    return problems


def undeclared(root: Path) -> list[str]:
    """Foreign packages that the package needs to load and `pyproject.toml` does not list."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w.-]", entry, maxsplit=1)[0] for entry in project["dependencies"]]
    allowed = {IMPORT_NAMES.get(name, name).replace("-", "_").lower() for name in names}
    allowed |= {PACKAGE, *sys.stdlib_module_names}
    problems = []
    for item in imports_of(root):
        top = item.module.split(".")[0]
        where = f"{item.file.relative_to(root)}:{item.line}"
        if top in ORACLES:
            problems.append(f"{where}: {top} is for tests only")
        elif item.on_load and top.lower() not in allowed:
            problems.append(f"{where}: {top} is not among the dependencies of pyproject.toml")
    return problems


@pytest.mark.parametrize("check", [wrong_arrows, cycles, misshapen_files, undeclared])
def test_the_package(check):
    problems = check(ROOT)
    assert not problems, "\n".join(problems)


# Environments are opened by `steprl.envs.opening`; what plays, trains and judges them knows none.
NO_ENVIRONMENT_BY_NAME = (
    "rollout", "session", "cli", "audit", "laboratory", "train", "evaluation", "experience", "serving",
)  # fmt: skip


def named_environments(root: Path) -> list[str]:
    """Strings that are the name of an environment, and imports of its package, in rooms above it."""
    names = "|".join(ENVIRONMENTS)
    pattern = re.compile(rf"""["']({names})["']|steprl\.envs\.({names})\b""")
    return [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for file in sorted((root / PACKAGE).rglob("*.py"))
        if room_of(file, root) in NO_ENVIRONMENT_BY_NAME
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_environment_is_named_outside_its_table():
    problems = named_environments(ROOT)
    assert not problems, "\n".join(problems)


# The checks can fail.


@pytest.fixture
def tree(tmp_path):
    """Writes a small package from {path: source} and returns its root."""

    def write(files):
        (tmp_path / "pyproject.toml").write_text(
            '[project]\ndependencies = ["jax>=0.10", "orbax-checkpoint>=0.1", "etils[epath]"]\n'
        )
        for name, source in {"__init__.py": '"""Doc."""', **files}.items():
            path = tmp_path / PACKAGE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return tmp_path

    return write


def test_a_good_tree_has_no_problem(tree):
    root = tree(
        {
            "ops/__init__.py": "from steprl.ops.returns import gae",
            "ops/returns.py": "import jax\nimport math\nfrom . import segments",
            "ops/segments.py": "import jax.numpy as jnp",
            "envs/a/b.py": "from ... import types\nfrom steprl.envs.a import c",
            "types.py": "from steprl import ops",
            "metrics.py": "import orbax.checkpoint as ocp\nfrom etils import epath",
            "report.py": "from steprl.metrics import STEP\n\ndef f():\n    import wandb",
            "cli.py": "from steprl import __version__, report",
        }
    )
    assert [check(root) for check in (wrong_arrows, cycles, misshapen_files, undeclared)] == [
        []
    ] * 4


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        (
            "models/a.py",
            "import steprl.train",
            "models imports steprl.train, which is a floor above",
        ),
        ("models/a.py", "from steprl import rollout", "models imports steprl.rollout, which is"),
        ("models/a.py", "from ..train import x", "models imports steprl.train.x, which is"),
        (
            "types.py",
            "def f():\n    from .models import x",
            "types.py:2: types imports steprl.models",
        ),
        (
            "ops/a.py",
            "from steprl.types import Step",
            "ops imports steprl.types.Step; it takes arrays",
        ),
        ("ops/a.py", "from .. import config", "ops imports steprl.config; it takes arrays"),
        (
            "ops/a.py",
            "if TYPE_CHECKING:\n    from steprl.models import M",
            "ops imports steprl.models",
        ),
        ("__init__.py", "from steprl.ops import gae", "the package imports steprl.ops.gae when"),
        ("extra.py", "", "room 'extra' has no floor"),
    ],
)
def test_arrows_that_point_up_are_found(tree, file, source, message):
    (problem,) = wrong_arrows(tree({file: source}))[:1]
    assert message in problem


def test_cycles_between_rooms_are_found(tree):
    files = {"models/a.py": "import steprl.envs.x", "envs/x.py": "import steprl.sampling"}
    assert cycles(tree(files)) == []
    (problem,) = cycles(tree({"sampling.py": "from steprl import models"}))
    assert set(problem.split(" <- ")) == {"models", "envs", "sampling"}


def test_environments_by_name_are_found(tree):
    files = {
        "session.py": "x = 'household'",
        "envs/a.py": "x = 'household'",
        "cli.py": "# household",
    }
    assert len(named_environments(tree(files))) == 1
    assert len(named_environments(tree({"cli.py": "from steprl.envs.shop import Shop"}))) == 2


def test_misshapen_files_are_found(tree):
    root = tree({"train.py": "x = 1\n" * 401, "envs/utils.py": "", "envs/a/b/c.py": ""})
    long, deep, named = sorted(misshapen_files(root), key=lambda p: p.split(": ")[1])
    assert long == "steprl/train.py: 401 lines, at most 400"
    assert deep == "steprl/envs/a/b/c.py: deeper than 2 folders"
    assert named == "steprl/envs/utils.py: the name does not say what is in it"


def test_undeclared_packages_and_oracles_are_found(tree):
    root = tree({"a.py": "import yaml.nodes", "b.py": "def f():\n    from torch import nn"})
    assert undeclared(root) == [
        "steprl/a.py:1: yaml is not among the dependencies of pyproject.toml",
        "steprl/b.py:2: torch is for tests only",
    ]


# Nothing happens on import.


def run_python(code, env):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_itself_is_light(plain_env):
    code = """
        import sys
        import steprl
        assert steprl.__version__
        print(*sorted({name.split(".")[0] for name in sys.modules} & {"jax", "numpy", "flax"}))
    """
    assert run_python(code, plain_env).strip() == ""


NO_WORK = """
    import importlib, pkgutil, socket, sys

    def refuse(*args, **kwargs):
        raise AssertionError("network on import")

    socket.socket.connect = refuse
    sys.argv = ["program", "--unknown-flag"]
    import steprl
    for name in {modules}:
        importlib.import_module(name)
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "a device was asked for"
    {extra}
"""


def test_no_module_asks_for_a_device_or_the_network(plain_env):
    modules = '[m.name for m in pkgutil.walk_packages(steprl.__path__, "steprl.")]'
    run_python(NO_WORK.format(modules=modules, extra=""), plain_env)


def test_ops_stand_alone(plain_env):
    code = NO_WORK.format(
        modules='["steprl.ops"]',
        extra='print(*[m for m in sys.modules if m.startswith("steprl.")])',
    )
    loaded = run_python(code, plain_env).split()
    assert loaded and all(name.split(".")[1] == "ops" for name in loaded), loaded


def test_adapters_and_the_household_game_need_no_jax(plain_env):
    """They are compared with other packages' games in an environment that has only those."""
    code = """
        import importlib, sys
        for absent in ("jax", "flax", "omegaconf", "transformers", "yaml"):
            sys.modules[absent] = None
        for name in ("household.expert", "adapters.alfworld", "adapters.gymnasium",
                     "adapters.scienceworld", "adapters.textworld", "flow"):
            importlib.import_module("steprl.envs." + name)
    """
    run_python(code, plain_env)


def test_the_device_check_can_fail(plain_env):
    code = NO_WORK.format(modules='["jax"]', extra="").replace(
        "from jax._src import", "sys.modules['jax'].devices()\n    from jax._src import"
    )
    with pytest.raises(AssertionError, match="a device was asked for"):
        run_python(code, plain_env)
