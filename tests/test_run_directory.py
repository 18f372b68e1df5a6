"""The run directory: nothing is overwritten unasked, and nothing deleted that is not a run."""

import pytest

from steprl.config import load_config
from steprl.run_directory import RunDirectoryError, open_run


@pytest.fixture
def config(tmp_path):
    return load_config(None, [f"trainer.output_dir={tmp_path}", "trainer.experiment_name=a"])


@pytest.fixture
def run(config):
    """A run that has written something."""
    path = open_run(config)
    (path / "metrics.jsonl").write_text("{}\n")
    return path


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
