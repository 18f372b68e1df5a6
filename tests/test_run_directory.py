"""The run directory: nothing is overwritten unasked, and nothing deleted that is not a run."""

import copy
import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steprl.config import load_config
from steprl.disk import WriteError
from steprl.run_directory import RunDirectoryError, locked, open_run, record_settings
from steprl.run_directory.lock import release
from steprl.run_directory.settings import changes
from steprl.session.sources import settings_of

BASE = load_config(None, ["trainer.experiment_name=a", "actor.ppo_mini_batch_size=1"])


@pytest.fixture
def config(tmp_path):
    trainer = dataclasses.replace(BASE.trainer, output_dir=str(tmp_path))
    return dataclasses.replace(BASE, trainer=trainer)


@pytest.fixture
def run(config):
    """A run that has written something."""
    path = open_run(config)
    (path / "metrics.jsonl").write_text("{}\n")
    return path


@pytest.fixture(autouse=True)
def give_back(tmp_path):
    """The locks of a test end with it."""
    yield
    for folder in (tmp_path, *tmp_path.rglob("*")):
        release(folder)


def contents(folder):
    """Every file with its bytes."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def named(config, name):
    trainer = dataclasses.replace(config.trainer, experiment_name=name)
    return dataclasses.replace(config, trainer=trainer)


def changed(config, *overrides):
    where = [f"trainer.output_dir={config.trainer.output_dir}", "trainer.experiment_name=a"]
    return load_config(None, [*where, "actor.ppo_mini_batch_size=1", *overrides])


def checkpoint(folder, step):
    for part in ("state", "meta"):
        (folder / str(step) / part).mkdir(parents=True)


def test_a_new_run_gets_its_directory_and_its_settings(config, tmp_path):
    path = open_run(config)
    assert path == tmp_path / "a"
    assert load_config(path / "config.resolved.yaml") == config


def test_an_empty_directory_is_taken(config, tmp_path):
    (tmp_path / "a").mkdir()
    assert open_run(config) == tmp_path / "a"


def test_a_run_that_is_there_is_refused_and_the_ways_out_are_named(config, run):
    with pytest.raises(RunDirectoryError) as caught:
        open_run(config)
    for word in (str(run), "--resume auto", "--overwrite", "trainer.experiment_name=NAME"):
        assert word in str(caught.value)
    assert (run / "metrics.jsonl").exists()


@pytest.mark.parametrize("how", ["auto", "path"])
def test_resume_keeps_what_is_there(config, run, how):
    assert open_run(config, resume="auto" if how == "auto" else str(run)) == run
    assert (run / "metrics.jsonl").exists()


def test_resume_auto_starts_a_run_that_is_not_there(config, tmp_path):
    assert open_run(config, resume="auto") == tmp_path / "a"
    assert (tmp_path / "a" / "config.resolved.yaml").is_file()


def test_resume_of_a_path_goes_on_there_whatever_the_settings_name(config, run):
    other = load_config(None, [f"trainer.output_dir={run.parent}", "trainer.experiment_name=b"])
    assert open_run(other, resume=str(run)) == run
    assert not (run.parent / "b").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_resume_of_a_path_without_a_run_is_refused(config, tmp_path, exists):
    path = tmp_path / "elsewhere"
    if exists:
        path.mkdir()
    with pytest.raises(RunDirectoryError, match="there is no run"):
        open_run(config, resume=str(path))
    assert path.exists() == exists


def test_overwrite_deletes_a_run(config, run):
    checkpoint(run / "checkpoints", 3)
    assert open_run(config, overwrite=True) == run
    assert sorted(path.name for path in run.iterdir()) == [".lock", "config.resolved.yaml"]


def test_overwrite_never_deletes_what_is_not_a_run(config, tmp_path):
    precious = tmp_path / "a" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(RunDirectoryError, match="is not a run .* not deleted"):
        open_run(config, overwrite=True)
    assert precious.read_text() == "years of work"
    assert not (precious.parent / "config.resolved.yaml").exists()


def test_overwrite_of_nothing_starts_a_run(config, tmp_path):
    assert open_run(config, overwrite=True) == tmp_path / "a"


def test_resume_and_overwrite_contradict_each_other(config, run):
    with pytest.raises(RunDirectoryError, match="contradict"):
        open_run(config, resume="auto", overwrite=True)
    assert (run / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "change", ["model.num_layers=3", "model.value_head=separate", "env.name=household"]
)
def test_a_run_goes_on_with_its_own_model_only(config, run, change):
    before = (run / "config.resolved.yaml").read_text()
    where = [f"trainer.output_dir={run.parent}", "trainer.experiment_name=a"]
    with pytest.raises(RunDirectoryError, match=change.split("=")[0]):
        open_run(load_config(None, [*where, change]), resume="auto")
    assert (run / "config.resolved.yaml").read_text() == before
    assert open_run(load_config(None, [*where, "actor.lr=1e-5"]), resume="auto") == run


# Names


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../b", "a/..", "a/../b", "a//b", "/tmp/elsewhere", "a/", "~", "~/runs/a",
     "./a", "a/ /b", "a\nb", "a\0b", "n" * 300],
)  # fmt: skip
def test_a_name_that_is_no_folder_below_the_runs_is_refused(config, run, tmp_path, name):
    before = contents(tmp_path)
    for how in ({}, {"overwrite": True}, {"resume": "auto"}):
        with pytest.raises(RunDirectoryError, match="trainer.experiment_name=") as caught:
            open_run(named(config, name), **how)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["b", "a/seed1", "with a space", "a.b", "ünï", "3", "-x"])
def test_other_names_are_taken(config, run, tmp_path, name):
    assert open_run(named(config, name)) == tmp_path / name


@pytest.mark.parametrize("name", ["a/checkpoints", "a/plots/x", "a/sft", "a/metrics.jsonl"])
def test_a_run_cannot_be_a_part_of_another_run(config, run, name):
    with pytest.raises(RunDirectoryError, match="is a run, and .* is its own"):
        open_run(named(config, name))


def test_a_home_directory_is_one(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    trainer = dataclasses.replace(config.trainer, output_dir="~/runs")
    path = open_run(dataclasses.replace(config, trainer=trainer))
    assert path == tmp_path / "home" / "runs" / "a"


def test_a_file_in_the_place_of_a_run_is_named(config, tmp_path):
    (tmp_path / "a").write_text("")
    for how in ({}, {"overwrite": True}, {"resume": "auto"}):
        with pytest.raises(RunDirectoryError, match="is a file"):
            open_run(config, **how)


def test_a_folder_of_something_else_is_not_said_to_be_a_run(config, tmp_path):
    (tmp_path / "a" / "seed1").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="is not empty, and holds no run"):
        open_run(config)


# Deleting


def test_overwrite_deletes_what_runs_write_and_nothing_else(config, run, tmp_path, caplog):
    other = open_run(named(config, "a/seed1"))
    for step in ("3", "4", "3.damaged", "5.orbax-checkpoint-tmp"):
        checkpoint(run / "checkpoints", step)
    checkpoint(run / "sft", 9)
    own = ["trajectories/step_000001.jsonl", "plots/credit.png", "eval.json", "audit.json",
           "sft.jsonl", "metrics.jsonl.damaged", "report.html",
           "tensorboard/events.out.tfevents.1"]  # fmt: skip
    foreign = ["notes.txt", "plots/mine.pdf", "checkpoints/why.txt", "hf/model.safetensors",
               "trajectories/labelled.csv", "data.parquet"]  # fmt: skip
    for name in own + foreign:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    assert open_run(config, overwrite=True) == run
    left = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert left == {
        *foreign, ".lock", "config.resolved.yaml", "seed1/config.resolved.yaml", "seed1/.lock",
    }  # fmt: skip
    assert load_config(other / "config.resolved.yaml").trainer.experiment_name == "a/seed1"
    for name in ("seed1", "notes.txt", "hf"):
        assert name in caplog.text
    assert not (run / "sft").exists()


def test_overwrite_follows_no_links(config, run, tmp_path):
    checkpoint(run / "checkpoints", 3)
    for name in ("link", "folder"):
        (tmp_path / name).symlink_to(run if name == "link" else tmp_path)
    for name in ("link", "folder/a"):
        with pytest.raises(RunDirectoryError, match="is a link to .* not deleted"):
            open_run(named(config, name), overwrite=True)
    assert (run / "checkpoints" / "3").is_dir() and (run / "metrics.jsonl").exists()
    # Links within a run: what they lead to stays.
    disk = tmp_path / "disk"
    checkpoint(disk, 7)
    open_run(named(config, "b"))
    (tmp_path / "b" / "checkpoints").symlink_to(disk)
    (tmp_path / "b" / "sft").mkdir()
    (tmp_path / "b" / "sft" / "7").symlink_to(disk / "7")
    open_run(named(config, "b"), overwrite=True)
    assert (disk / "7" / "state").is_dir() and not (tmp_path / "b" / "checkpoints").exists()


# Resuming with other settings


REFUSED = ("env.multihop.max_hops=3", "env.game.thought_tokens=4", "model.path=elsewhere",
           "algorithm.name=grpo", "model.dtype=bfloat16", "env.name=errand",
           "critic.head=hl_gauss")  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_trained_does_not_change(config, run, tmp_path, change):
    before = contents(tmp_path)
    key = change.split("=")[0]
    with pytest.raises(RunDirectoryError, match=rf"cannot change \(.*{key}: \S+ -> \S+") as caught:
        open_run(changed(config, change, "actor.lr=1e-5"), resume="auto")
    assert "actor.lr" not in str(caught.value)  # that one may change
    assert contents(tmp_path) == before


def test_all_settings_that_cannot_change_are_named_at_once(config, run):
    with pytest.raises(RunDirectoryError) as caught:
        open_run(changed(config, *REFUSED), resume="auto")
    assert all(change.split("=")[0] in str(caught.value) for change in REFUSED)


ANNOUNCED = {
    "actor.lr=1e-5": "actor.lr: 0.0003 -> 1e-05",
    "trainer.seed=7": "trainer.seed: 0 -> 7",
    "rollout.n=2": "rollout.n: 1 -> 2",
    "critic.lr=0.5": "critic.lr: null -> 0.5",
    "critic.value_max=9": "critic.value_max: 1.0 -> 9.0",  # of a critic of another kind
    "env.shop.goods=5": "env.shop.goods: 8 -> 5",  # of an environment that is not played
    "env.wiki_search.cache=x": "env.wiki_search.cache: null -> x",
    "model.remat=true": "model.remat: False -> True",
    "trainer.logger=[jsonl,wandb]": "trainer.logger: ['jsonl'] -> ['jsonl', 'wandb']",
}


def test_each_other_setting_that_changes_is_said_when_training_goes_on(config, run, caplog):
    now = changed(config, *ANNOUNCED)
    saved = (run / "config.resolved.yaml").read_bytes()
    assert open_run(now, resume="auto") == run
    assert (run / "config.resolved.yaml").read_bytes() == saved and not caplog.records
    record_settings(run, now)
    assert sorted(r.getMessage() for r in caplog.records) == sorted(ANNOUNCED.values())
    assert load_config(run / "config.resolved.yaml") == now
    caplog.clear()
    record_settings(run, now)
    assert not caplog.records


def test_every_setting_is_either_fixed_or_said(config):
    """No field is forgotten: whatever differs is found, at every depth."""

    def leaves(settings, prefix=""):
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if dataclasses.is_dataclass(value):
                yield from leaves(value, f"{prefix}{field.name}.")
            else:
                yield prefix + field.name

    def with_other(settings, key):
        head, _, rest = key.partition(".")
        value = with_other(getattr(settings, head), rest) if rest else object()
        other = copy.copy(settings)  # not checked, so that any value will do
        object.__setattr__(other, head, value)
        return other

    place = {"trainer.experiment_name", "trainer.output_dir"}
    for key in leaves(config):
        found = [change.key for change in changes(config, with_other(config, key))]
        assert found == ([] if key in place else [key])


def test_a_run_that_is_resumed_by_its_path_keeps_its_name(config, run):
    other = named(changed(config, "actor.lr=1e-5"), "b")
    record_settings(open_run(other, resume=str(run)), other)
    saved = load_config(run / "config.resolved.yaml")
    assert saved.trainer.experiment_name == "a" and saved.actor.lr == 1e-5


@pytest.mark.parametrize("text", ["[", "actor: 3\n", "no_such: 1\n", "\0\0\0", "", "\n"])
def test_settings_of_a_run_that_cannot_be_read_are_named(config, run, text):
    (run / "config.resolved.yaml").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"config.resolved.yaml cannot be read: ") as caught:
        open_run(config, resume="auto")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 200])
def test_settings_that_were_cut_off_do_not_become_the_defaults(config, run, left):
    """At the end of a section, what is left of the file is a file of settings too."""
    file = run / "config.resolved.yaml"
    lines = file.read_text().splitlines(keepends=True)
    sections = [n for n, line in enumerate(lines) if line[0] not in " -"]
    file.write_text("".join(lines[: max((n for n in sections if n <= left), default=0)]))
    for read in (lambda: open_run(config, resume="auto"), lambda: settings_of(run)):
        with pytest.raises(
            RunDirectoryError,
            match="config.resolved.yaml (has no settings of .*cut off|cannot be read: it is empty)",
        ):
            read()


# One process at a time


OTHER = """
import fcntl, sys
file = open(sys.argv[1], "a")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused", flush=True)
else:
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process():
    """Starts a process that takes the lock of a run, and holds it until it is killed."""
    started = []

    def start(run):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", OTHER, str(run / ".lock")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_belongs_to_one_process_until_it_is_dead(config, run, tmp_path, other_process):
    assert other_process(run)[1] == "refused"
    release(run)
    process, said = other_process(run)
    assert said == "locked"
    before = contents(tmp_path)
    for how in ({"resume": "auto"}, {"resume": str(run)}, {"overwrite": True}):
        with pytest.raises(RunDirectoryError, match="is in use by ") as caught:
            open_run(config, **how)
        assert str(run) in str(caught.value) and "\n" not in str(caught.value)
        if sys.platform == "linux":
            assert f"process {process.pid}:" in str(caught.value)
    with pytest.raises(RunDirectoryError, match="is in use by "), locked(run):
        pass
    assert contents(tmp_path) == before
    process.kill()
    process.wait()
    assert open_run(config, resume="auto") == run
    with locked(run):  # as `train` does, which gives it back at its end
        assert other_process(run)[1] == "refused"
    assert other_process(run)[1] == "locked"


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_child_that_survives_its_trainer_blocks_nobody(run, other_process):
    child = os.fork()
    if child == 0:  # with all files of its parent open
        signal.pause()
        os._exit(0)
    try:
        release(run)
        assert other_process(run)[1] == "locked"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_same_process_may_open_a_run_again(config, run):
    for how in ({"resume": "auto"}, {"overwrite": True}, {"resume": "auto"}):
        assert open_run(config, **how) == run
    shutil.rmtree(run)
    assert open_run(config) == run
    with locked(run), locked(run):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_works(config, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert (open_run(config) / "config.resolved.yaml").is_file()
    assert "its file system has no locks; make sure that no other process" in caplog.text


# A disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_is_named(config, tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    for what, path in (("mkdir", "a"), ("write_text", "a/config.resolved.yaml")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, what, refuse)
            message = re.escape(f"{tmp_path / path} cannot be written: {os.strerror(number)}")
            with pytest.raises(WriteError, match=f"^{message}$"):
                open_run(config)
        assert not (tmp_path / "a" / "config.resolved.yaml").exists()
    (tmp_path / "a" / "config.resolved.yaml.tmp").write_text("env:")  # as far as it came
    assert open_run(config)


# A run that failed before its first record.


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_has_recorded_nothing_does_not_block_the_next_try(config, tmp_path, resume):
    path = open_run(config)
    release(path)
    (path / "checkpoints").mkdir()
    (path / "metrics.jsonl").touch()
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "events").write_text("begun")
    other = load_config(None, [f"trainer.output_dir={tmp_path}", "trainer.experiment_name=a",
                               "env.name=shop", "actor.lr=0.5"])  # fmt: skip
    assert open_run(other, resume=resume) == path
    assert load_config(path / "config.resolved.yaml") == other


@pytest.mark.parametrize("file", ["metrics.jsonl", "sft.jsonl", "checkpoints/1/state", "notes.txt"])
def test_one_record_is_enough_to_keep_it(config, tmp_path, file):
    path = open_run(config)
    release(path)
    (path / file).parent.mkdir(parents=True, exist_ok=True)
    (path / file).write_text("{}")
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        open_run(config)
