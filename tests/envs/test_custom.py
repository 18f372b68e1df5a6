"""Environments by import path: found, made for each split, and refused with a reason."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from steprl.config import Config, ConfigError, environments, load_config, save_config
from steprl.envs.custom import load_suite

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")

MODULE = '''
class Line:
    """Task n ends after n steps."""

    def __init__(self, slope=1.0):
        self.slope = slope

    def reset(self, task, key=None):
        return task, "go"

    def step(self, state, action):
        return state - 1, "", self.slope, state <= 1, False, {"success": True, "valid": True}


class Split(Line):
    def __init__(self, split, slope=1.0):
        super().__init__(slope)
        self.split = split


class Factory:
    @staticmethod
    def make(slope=1.0):
        return Line(slope)


def make(slope, *, curve=0):
    return Line(slope + curve)


def anything(**options):
    env = Line()
    env.options = options
    return env


def broken(slope):
    return 1 / slope


def number():
    return 3


def a_class():
    return Line


def described(**attributes):
    env = Line()
    vars(env).update(attributes)
    return env


line = Line()
limit = 3
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with modules of a user, and a path and modules that are put back."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    write("user_lines.py", MODULE)
    write("user_package/__init__.py", "")
    write("user_package/inner.py", "from user_package.base import Line as make")
    write("user_package/base.py", "from user_lines import Line")
    write("user_needs.py", "import pandas_of_nobody")
    write("user_fails.py", "x = 1\n\ny = x / 0")
    write("user_syntax.py", "def make(:\n    pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0].startswith("user_") or name in (
            "guess",
            "corridor",
            "rivers",
            "count",
        ):
            del sys.modules[name]


# Found and made.


@pytest.mark.parametrize(
    ("name", "options", "slope"),
    [
        ("user_lines:Line", {}, 1.0),
        ("user_lines:Line", {"slope": 2.0}, 2.0),
        ("user_lines:make", {"slope": 2.0, "curve": 1}, 3.0),
        ("user_lines:Factory.make", {"slope": 0.5}, 0.5),
        ("user_package.inner:make", {"slope": 4}, 4),
    ],
)
def test_a_function_of_the_current_directory_is_called_with_the_options(here, name, options, slope):
    suite = load_suite(name, options)
    assert list(suite.splits) == ["train"] and suite.names == ("train", "train")
    assert suite.train.step(1, "")[2] == slope


def test_a_function_that_takes_split_makes_an_environment_for_each(here):
    envs = load_suite("user_lines:Split", {"slope": 3}).splits
    assert {split: env.split for split, env in envs.items()} == {"train": "train", "eval": "eval"}
    envs = load_suite("user_lines:Split", {"split": "mine"}).splits
    assert {split: env.split for split, env in envs.items()} == {"train": "mine"}


def test_a_function_of_any_options_is_given_these_only(here):
    envs = load_suite("user_lines:anything", {"a": 1, "b": [2]}).splits
    assert list(envs) == ["train"] and envs["train"].options == {"a": 1, "b": [2]}


def test_adapters_have_short_names_that_a_configuration_knows():
    assert not set(environments.ADAPTERS) & set(environments.ENVIRONMENTS)
    for name in environments.ADAPTERS:
        assert load_config(overrides=[f"env.name={name}", "env.options.a=1"]).env.name == name
        module = importlib.import_module(f"steprl.envs.adapters.{name}")
        assert "split" in inspect.signature(module.environment).parameters
    with pytest.raises(ValueError, match=r"env.options.no_such: .*textworld:environment has no"):
        load_suite("textworld", {"no_such": 1})


def test_an_installed_module_will_do():
    options = {"split": "train", "max_steps": 3}
    suite = load_suite("steprl.envs.household:Household", options)
    assert suite.train.max_steps == suite.max_steps == 3


def test_the_current_directory_is_first_in_the_import_and_last_afterwards(here, tmp_path):
    here("colorsys.py", "from user_lines import Line as make")  # there is one in Python
    sys.modules.pop("colorsys", None)
    before = list(sys.path)
    assert load_suite("colorsys:make").train.step(1, "")[2] == 1.0
    del sys.modules["colorsys"]
    assert sys.path == [*before, str(tmp_path)]
    load_suite("user_lines:Line")
    assert sys.path == [*before, str(tmp_path)]
    with pytest.raises(ValueError, match="no module"):
        load_suite("user_nowhere:make")
    assert sys.path == [*before, str(tmp_path)]


# What goes wrong.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("user_nowhere:make", {}, "no module 'user_nowhere', neither installed nor in the current"),
        ("user_package.none:make", {}, "there is no module 'user_package.none'"),
        ("user_none.inner:make", {}, "there is no module 'user_none'"),
        ("user_needs:make", {}, r"user_needs failed at .*user_needs.py:1: ModuleNotFoundError: .*nobody"),
        ("user_fails:make", {}, r"user_fails failed at .*user_fails.py:3: ZeroDivisionError"),
        ("user_syntax:make", {}, r"user_syntax failed: SyntaxError: .*user_syntax.py, line 1"),
        ("user_lines:mak", {}, "user_lines has no 'mak'; it has Line, Split, Factory, make, anything"),
        ("user_lines:Factory.mak", {}, "user_lines has no 'Factory.mak'"),
        ("user_lines:limit", {}, "limit is no function but a value of type int"),
        ("user_lines:line", {}, "line is no function but a value of type Line: give a function that"),
        ("user_lines:make", {}, "needs env.options.slope"),
        ("user_lines:make", {"slop": 1}, "env.options.slop: .*has no argument 'slop'; it takes slope, c"),
        ("user_lines:number", {"x": 1}, "it takes none"),
        ("user_lines:anything", {"a b": 1}, "env.options: 'a b' is no name of an argument"),
        ("user_lines:broken", {"slope": 0}, r"broken\(slope=0\) failed at .*user_lines.py:\d+: ZeroDiv"),
        ("user_lines:number", {}, "returned int where an object with reset and step was expected"),
        ("user_lines:a_class", {}, "returned the class Line where an object"),
        ("user_lines:described", {"context": "grow"}, "its context is 'grow'; rebuild or extend"),
        ("user_lines:described", {"system": 3}, "its system is int, not text"),
        ("user_lines:described", {"tools": {"a": 1}}, "its tools are no list of schemas"),
        ("user_lines.py:make", {}, "expected package.module:function; a file my_env.py is the module"),
        ("folder/user_lines:make", {}, "a file my_env.py is the module my_env"),
        ("user_lines:", {}, "expected package.module:function$"),
        (":make", {}, "expected package.module:function$"),
        ("user_lines", {}, "expected package.module:function$"),
    ],
)  # fmt: skip
def test_an_error_says_what_was_wrong(here, name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_suite(name, options)
    assert "env." in str(caught.value)


def test_the_error_of_the_user_is_its_cause(here):
    with pytest.raises(ValueError) as caught:
        load_suite("user_lines:broken", {"slope": 0})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# Settings.


def test_an_import_path_is_a_name_and_options_are_free():
    overrides = [
        "env.name=my.module:make", "env.options.highest=20", "env.options.paths=[a,b]",
        "env.options.deep.er=0.5", "env.options.split=null",
    ]  # fmt: skip
    env = load_config(None, overrides).env
    assert env.name == "my.module:make"
    assert env.options == {"highest": 20, "paths": ["a", "b"], "deep": {"er": 0.5}, "split": None}


def test_options_are_saved_and_merged(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("env: {name: 'm:make', options: {a: 1, b: {c: [1, 2]}}}\n")
    config = load_config(file, ["env.options.b.d=x", "env.options.a=2"])
    assert config.env.options == {"a": 2, "b": {"c": [1, 2], "d": "x"}}
    save_config(config, file)
    assert load_config(file) == config
    assert load_config() == Config() and Config().env.options == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.name=houshold"], "env.name='houshold': allowed are .*; did you mean household"),
        (["env.name=zzz"], "and your own as package.module:function$"),
        (
            ["env.options.a=1"],
            "for an environment of your own or .*; settings of multihop are those of",
        ),
        (["env.name=textwold"], "did you mean textworld"),
        (["env.name=m:make", "env.options=3"], "env.options"),
        (["env.name=m:make", "env.option.a=3"], "did you mean env.options"),
    ],
)
def test_settings_are_checked(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


# The page.


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs(here):
    scope: dict = {}
    tried = 0
    for number, block in enumerate(blocks()):
        if block.startswith(">>>"):
            examples = doctest.DocTestParser().get_doctest(block, scope, f"block {number}", None, 0)
            result = doctest.DocTestRunner().run(examples, clear_globs=False)
            assert result.failed == 0
            scope, tried = examples.globs, tried + result.attempted
        else:
            name = re.match(r"# (\w+\.py)\n", block)
            here(name[1], block)
    assert tried > 15


def test_the_table_of_adapters_is_what_was_measured():
    command = [sys.executable, str(ROOT / "benchmarks" / "adapters.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
    named = set(re.findall(r"^\| `(\w+)` \| `steprl\[[\w-]+\]` ", PAGE, re.MULTILINE))
    assert named == set(environments.ADAPTERS)


def test_the_files_of_the_page_are_formatted():
    for block in blocks():
        if not block.startswith(">>>"):
            command = [sys.executable, "-m", "ruff", "format", "--check", "--line-length=100", "-"]
            subprocess.run(command, input=block, text=True, check=True, capture_output=True)


def test_the_settings_and_the_command_of_the_page_are_understood(here):
    (settings,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    ((file, overrides),) = re.findall(r"```\nsteprl train (\S+) (.*?)\n```", PAGE)
    here(file, settings)
    here("guess.py", next(block for block in blocks() if block.startswith("# guess.py")))
    assert load_config(file).env.options == {"highest": 20}
    env = load_config(file, overrides.split()).env
    envs = load_suite(env.name, env.options).splits
    assert "from 1 to 30" in envs["train"].reset(0)[1]
    assert envs["train"].tasks[0] not in envs["eval"].tasks


# What is no environment is not called, and where it is not the user's not even imported.

FOREIGN = """
import functools, os, sys
from subprocess import check_output
from pathlib import Path
half = functools.partial(check_output, ["touch", "called"])
def text() -> str: Path("called").touch()
def nothing() -> None: Path("called").touch()
class Bare:
    def __init__(self): Path("called").touch()
def leaves(): sys.exit(0)
"""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "subprocess:check_output",
            {"args": ["touch", "called"]},
            "not imported: subprocess is part",
        ),
        ("os:system", {"command": "touch called"}, "not imported: os is part of Python"),
        ("posix:system", {"command": "touch called"}, "not imported"),
        ("builtins:exec", {}, "not imported"),
        ("sys:exit", {}, "not imported"),
        ("antigravity:fly", {}, "not imported"),
        (
            "yaml:load",
            {"stream": "a", "Loader": "b"},
            "not imported: yaml belongs to the package PyYAML",
        ),
        (
            "omegaconf:OmegaConf.load",
            {"file_": "x"},
            "omegaconf belongs to the package omegaconf, which",
        ),
        (
            "user_foreign:check_output",
            {"args": ["touch", "called"]},
            "not called: it comes from subproc",
        ),
        ("user_foreign:os.system", {"command": "touch called"}, "not called: it comes from posix"),
        ("user_foreign:half", {}, "not called: it comes from subprocess"),
        ("user_foreign:text", {}, "not called: it says that it returns str"),
        ("user_foreign:nothing", {}, "not called: it says that it returns None"),
        ("user_foreign:Bare", {}, "not called: the class Bare has no reset and step"),
        ("user_foreign:leaves", {}, "leaves.. failed at .*SystemExit"),
        ("user_leaves:make", {}, "user_leaves failed at .*SystemExit"),
    ],
)
def test_what_is_no_environment_is_not_called(here, tmp_path, name, options, message):
    here("user_foreign.py", FOREIGN)
    here("user_leaves.py", "import sys; sys.exit(2)")
    with pytest.raises(ValueError, match=message):
        load_suite(name, options)
    assert not (tmp_path / "called").exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("section", ["model", "algorithm"])
def test_neither_is_what_is_no_model_and_no_method(here, tmp_path, section):
    from steprl.config.import_path import call_function

    here("user_foreign.py", FOREIGN)
    for name in ("subprocess:check_output", "user_foreign:half"):
        with pytest.raises(ValueError, match=f"{section}.name='{name}' is not"):
            call_function(name, {"args": ["touch", "called"]}, section)
    assert not (tmp_path / "called").exists()
