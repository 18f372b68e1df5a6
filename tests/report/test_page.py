"""The page of a run: what its data says, and that no text of a run gets out of its place."""

import base64
import hashlib
import io
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from steprl.cli import main
from steprl.cli.report import report_of_run
from steprl.metrics import MetricWriter
from steprl.report import write_report
from steprl.report.contents import bound, curves, evaluations, number
from steprl.report.contents import settings as settings_of
from steprl.report.samples import samples
from steprl.report.write import embedded, page
from steprl.rollout import Line, StepCredit, write_trajectories
from steprl.types import Parent, Step, Trajectory
from tests.report.made import ODD_TEXTS, odd_run, plain_run
from tests.report.made import settings as write_settings


class Read(HTMLParser):
    """Tags, attributes and the text of scripts and styles, as a browser finds them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.contents, self.text = Counter(), [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag in ("script", "style"):
            self.contents.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.cdata_elem:
            tag, attrs, before = self.contents[-1]
            self.contents[-1] = (tag, attrs, before + data)
        else:
            self.text.append(data)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return odd_run(tmp_path_factory.mktemp("runs") / "odd")


@pytest.fixture(scope="module")
def read(odd):
    return Read(page(odd))


def data_of(read):
    """The JSON blocks of a page, by their ids."""
    return {
        attrs["id"]: json.loads(text)
        for tag, attrs, text in read.contents
        if attrs.get("type") == "application/json"
    }


# Texts stay where they are

texts = st.text(st.characters(exclude_categories=())) | st.sampled_from(ODD_TEXTS)
values = st.recursive(
    texts | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(values)
def test_data_cannot_leave_its_element(value):
    text = embedded(value)
    assert text.isascii() and not set("<>&\n\r\x00") & set(text)
    assert json.loads(text) == value


def test_no_text_of_a_run_becomes_an_element(odd, read, tmp_path):
    plain = Read(page(plain_run(tmp_path / "plain", 1, 1, 1, 1, 2)))
    assert read.tags - Counter(script=read.tags["script"]) == plain.tags - Counter(
        script=plain.tags["script"]
    )
    blocks = len(data_of(read))
    assert read.tags["script"] == blocks + 1
    names = {name for _, name, _ in read.attributes}
    assert not any(name.startswith("on") for name in names) and not names & {"src", "style"}
    assert "hacked" not in "".join(read.text)


def test_the_texts_are_there_as_they_were(read):
    steps = data_of(read)["t6"]["steps"]
    assert tuple(step["read"] for step in steps) == ODD_TEXTS
    assert tuple(step["tokens"][1] for step in steps) == ODD_TEXTS
    assert tuple(step["info"]["said"] for step in steps) == ODD_TEXTS


def test_the_name_of_a_run_is_text_too(tmp_path):
    run = tmp_path / "<b>&'\" {{style}}"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    read = Read(page(run))
    assert read.tags["b"] == 0 and run.name in "".join(read.text)
    assert data_of(read)["data"]["head"]["name"] == run.name


def test_nothing_is_asked_for_and_only_the_script_of_the_page_runs(read):
    (policy,) = (x for _, name, x in read.attributes if name == "content" and "default-src" in x)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for rule, tag in (("style-src", "style"), ("script-src", "script")):
        (own,) = (text for name, attrs, text in read.contents if name == tag and not attrs)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
        addresses = set(re.findall(r"https?://[^\s\"')]+|url\(|@import|import\(|fetch\(", own))
        assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not set(read.tags) & {"link", "img", "iframe", "object", "base"}


# What the page says of trajectories


def test_each_trajectory_has_an_entry_and_its_steps(read):
    found = data_of(read)
    entries = found["data"]["entries"]
    assert sorted(found) == sorted(["data", *(f"t{i}" for i in range(len(entries)))])
    assert [(e["iteration"], e["task"], e["sample"], e["steps"]) for e in entries] == [
        (1, 0, 0, 5), (1, 0, 1, 4), (1, 0, 2, 6), (1, 0, 3, 3), (1, 1, 0, 1), (1, 1, 1, 0),
        (2, 2, 0, 14), (2, 3, 0, 1), (3, 0, 0, 5),
    ]  # fmt: skip
    assert [len(found[f"t{i}"]["steps"]) for i in range(9)] == [e["steps"] for e in entries]
    assert [e["return"] for e in entries[:4]] == [1, 0, 0, 1]
    assert entries[4]["fault"].startswith("KeyError: 'lamp'") and entries[4]["stop"] == "env_crash"
    assert entries[5]["fault"] == "lights, task 1, reset: KeyError"  # it never began
    assert all(entry["fault"] is None for entry in entries[:4])


def test_branches_name_the_place_of_their_parent(read):
    parents = [entry.get("parent") for entry in data_of(read)["data"]["entries"]]
    assert parents[0]["id"] is None  # its own origin
    assert [p["at"] for p in parents[1:4]] == [0, 1, 0]
    assert parents[1] == {
        "at": 0, "id": "0-0", "step": 2, "token": 3, "score": 0.75, "preference": 1,
    }  # fmt: skip
    assert parents[7]["at"] is None and parents[7]["id"] == "3-9"  # not in the file


def written(run, *lines, name="step_000001.jsonl"):
    run.mkdir(exist_ok=True)
    write_settings(run)
    write_trajectories(run / "trajectories" / name, lines, 0, 0)
    return run


def made(tokens=2, **more):
    ids, numbers = np.arange(tokens, dtype=np.int32), np.full(tokens, -0.5)
    return Step("seen", "ab", ids, ids, numbers, -numbers, 1.0, True, False, "stop_token", **more)


def test_a_step_says_what_was_learnt_from_it(tmp_path):
    credit = StepCredit(
        0.5, 0.25, 0.75, np.array([1.0, 2.0]), np.array([-0.5, -0.75]), np.array([-0.5, -1.0]),
        np.array([False, True]),
    )  # fmt: skip
    one = Trajectory(0, 0, (made(),), True)
    found = samples(written(tmp_path / "a", Line(one, [["a", "b"]], [credit])), 10)
    (step,) = found.details[0]["steps"]
    assert (step["reward"], step["trained_reward"], step["return"]) == (1, 0.5, 0.5)
    assert (step["value"], step["target"], step["advantage"]) == (0.25, 0.75, 1.5)
    assert step["advantages"] == [1, 2] and step["mask"] == [0, 1]
    assert step["gap"] == [0, -0.25] and step["reference_gap"] == [0, 0.25]
    assert step["logprob"] == [-0.5, -0.5] and step["entropy"] == [0.5, 0.5]
    assert "spaced" not in step and "masked" not in step


@pytest.mark.parametrize(
    ("tokens", "action", "spaced"),
    [(["look", "up", "<end>"], "look up", True), (["look", " up", "<|end|>"], "look up", False)],
)
def test_tokens_of_phrases_stand_apart(tmp_path, tokens, action, spaced):
    ids = np.arange(3, dtype=np.int32)
    one = Step("seen", action, ids, ids, -np.ones(3), np.ones(3), 0.0, True, False, "stop_token")
    run = written(tmp_path / "a", Line(Trajectory(0, 0, (one,), False), [tokens]))
    assert samples(run, 10).details[0]["steps"][0].get("spaced", False) == spaced


def test_zero_is_said_and_not_left_out(tmp_path):
    zero = StepCredit(0.0, 0.0, 0.0, np.zeros(2), np.zeros(2), None, np.ones(2, bool))
    one = Trajectory(0, 0, (made(),), True)
    (step,) = samples(written(tmp_path / "a", Line(one, None, [zero])), 10).details[0]["steps"]
    assert [step[name] for name in ("value", "target", "advantage", "return")] == [0, 0, 0, 0]


@pytest.mark.parametrize(("most", "shown"), [(100, 24), (24, 24), (12, 12), (7, 4), (3, 0), (0, 0)])
def test_of_many_trajectories_whole_tasks_of_each_file_are_shown(tmp_path, most, shown):
    """Three files of two tasks of four attempts; the page says how many it leaves out."""
    found = samples(plain_run(tmp_path / "run", 3, 2, 4, 1, 2), most)
    assert len(found.entries) == len(found.details) == shown
    groups = Counter((entry["iteration"], entry["task"]) for entry in found.entries)
    assert set(groups.values()) <= {4}
    left = [note for note in found.notes if "more trajectories" in note]
    assert bool(left) == (shown < 24)
    assert not left or left[0].startswith(f"{24 - shown} more")


def test_branches_far_behind_their_original_stay_with_it(tmp_path):
    """On the device all originals come first."""
    originals = [Trajectory(task, 0, (made(),), True, Parent(0, 0)) for task in range(3)]
    branches = [Trajectory(task, 1, (made(),), True, Parent(0, 0)) for task in range(3)]
    found = samples(written(tmp_path / "a", *originals, *branches), 4)
    assert [(e["task"], e["sample"]) for e in found.entries] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"traj_id": "1-', "trajectories/step_000001.jsonl: line 2 is not a step"),
        ('{"format": 7, "traj_id": "1-0", "step": 0}\n', "line 2 has format 7"),
        ('{"traj_id": "1-0", "step": 0}\n', "trajectory 1-0 of iteration 1 is not as it was"),
        ('{"traj_id": [], "step": {}}\n', "of iteration 1 is not as it was written"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path, line, said):
    run = written(tmp_path / "a", Trajectory(0, 0, (made(),), True))
    with (run / "trajectories" / "step_000001.jsonl").open("a") as file:
        file.write(line)
    found = samples(run, 10)
    assert len(found.entries) == 1
    assert any(said in note for note in found.notes) and str(tmp_path) not in str(found.notes)
    assert data_of(Read(page(run)))["data"]["notes"] == found.notes


@pytest.mark.parametrize("odd", ["NaN", "1e999", "-Infinity"])
def test_numbers_that_are_not_finite_leave_gaps(tmp_path, odd):
    run = written(tmp_path / "a", Trajectory(0, 0, (made(),), True))
    file = run / "trajectories" / "step_000001.jsonl"
    file.write_text(
        file.read_text().replace("-0.5", odd).replace('"reward": 1.0', f'"reward": {odd}')
    )
    found = data_of(Read(page(run)))
    assert found["t0"]["steps"][0]["logprob"] == [None, None]
    assert len(found["data"]["entries"]) == 1


def test_a_page_has_a_size_that_opens(odd, monkeypatch):
    sizes = [len(embedded(detail)) for detail in samples(odd, 100).details]
    monkeypatch.setattr("steprl.report.write.MOST_CHARACTERS", sum(sizes[:3]))
    found = data_of(Read(page(odd)))
    assert len(found["data"]["entries"]) == 3 and set(found) == {"data", "t0", "t1", "t2"}
    assert any("the last 6 trajectories are left out" in note for note in found["data"]["notes"])


# What it says of the run


def test_panels_show_the_metrics_that_there_are(odd):
    found = curves(odd)
    titles = [panel["title"] for panel in found["panels"]]
    assert titles[:3] == ["Success", "Return", "Response length"] and "Turns" not in titles
    assert "Faults" in titles
    success = found["panels"][0]["lines"]
    assert success[2]["low"] == "eval/success_rate_low_greedy" and "low" not in success[0]
    names = [[line["label"] for line in panel["lines"]] for panel in found["panels"][:2]]
    assert names[0] == [
        "training",
        "evaluation",
        "evaluation, greedy",
    ]  # of the same colours in both
    assert names[1] == names[0][: len(names[1])]
    faults = next(panel for panel in found["panels"] if panel["title"] == "Faults")
    assert [line["label"] for line in faults["lines"]] == ["crash", "timeout"]
    assert found["others"] == ["env/faults", "timing_s/step"]  # a number of attempts, not a share
    assert found["columns"]["actor/grad_norm"] == [None, None, 1, 1]  # what is no number is a gap
    assert len(found["steps"]) == 4


def test_evaluations_stand_before_and_after_with_their_intervals(odd):
    found = {row["name"]: row for row in evaluations(curves(odd))}
    assert set(found) == {"eval/success_rate", "eval/success_rate_greedy", "eval/f1"}
    assert found["eval/f1"]["first"] == [0, 0.2, 0.1, 0.3]
    assert found["eval/f1"]["last"] == [3, 0.7, 0.6, 0.8]
    assert found["eval/success_rate_greedy"]["label"] == "success, greedy"


def test_one_evaluation_has_no_before(tmp_path):
    with MetricWriter(tmp_path / "metrics.jsonl") as writer:
        row = {"eval/unseen/f1": 0.5, "eval/unseen/f1_low": 0.4, "eval/unseen/f1_high": 0.6}
        writer.write(4, row)
    (row,) = evaluations(curves(tmp_path))
    assert (row["first"], row["last"]) == (None, [4, 0.5, 0.4, 0.6])
    assert row["label"] == "f1, sampled, unseen"


@pytest.mark.parametrize(
    ("name", "low"),
    [("eval/f1", "eval/f1_low"), ("eval/f1_greedy", "eval/f1_low_greedy")],
)
def test_names_of_intervals(name, low):
    assert bound(name, "_low") == low


def test_settings_that_are_not_the_defaults_are_told_apart(tmp_path):
    write_settings(tmp_path, own={"key": [1, None]})
    changed = {name: (here, default) for name, here, default in settings_of(tmp_path)["changed"]}
    assert changed["trainer.seed"] == ("7", "0") and changed["own.key"] == ("[1, null]", None)
    assert "env.name" not in changed  # multihop is the default


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "- a\n",
        "a: {b: [}\n",
        "\x00",
        "a: &a\n  b: *a\n",
        "[" * 5000,
        "a: 2020-13-45\n",
        "a: 2020-10-10\n",
    ],
)
def test_settings_that_cannot_be_read_are_shown_as_they_are(tmp_path, text):
    (tmp_path / "config.resolved.yaml").write_text(text)
    assert settings_of(tmp_path)["text"] == text
    assert data_of(Read(page(tmp_path)))["data"]["settings"]["text"] == text


@pytest.mark.parametrize(
    ("value", "short"),
    [(0.1234567, 0.12346), (2.0, 2), (True, None), (math.nan, None), (-math.inf, None), ("1", None),
     (None, None), (10**400, None), (1e20, 1e20)],
)  # fmt: skip
def test_numbers_are_short_and_finite(value, short):
    assert number(value) == short


# Commands


def test_the_command_writes_the_page_and_says_where(odd, tmp_path, capsys):
    assert main(["report", str(odd)]) == 0
    assert f"report: {odd / 'report.html'}" in capsys.readouterr().out
    assert main(["report", str(odd), "--out", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").read_bytes() == (odd / "report.html").read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.html"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/nothing"], "is not a run"),
        (["{}"], "is not a run"),
        (["{}/run", "--trajectories", "-1"], "--trajectories -1: must be at least 0"),
        (["{}/run", "--out", "{}/run"], "run"),
    ],
)
def test_a_command_that_cannot_be_done_is_one_line(tmp_path, capsys, words, said):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert main(["report", *(word.format(tmp_path) for word in words)]) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("two\nlines"),
        OSError(28, "No space left on device"),
        RuntimeError(),
        MemoryError(),
    ],
)
def test_a_report_that_fails_never_fails_the_run(odd, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("steprl.report.write.page", fail)
    said = io.StringIO()
    report_of_run(odd, Console(file=said, width=10_000))
    (line,) = said.getvalue().splitlines()
    assert line.startswith("no report: ")
    assert (" ".join(str(error).split()) or type(error).__name__) in line


@pytest.mark.parametrize("damage", ["garbage\nmore\n", "\x00", '{"training/global_step": 1'])
def test_lines_that_are_no_metrics_are_passed_over(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_text('{"training/global_step": 3, "a": 1}\n' + damage)
    assert curves(tmp_path)["steps"] == [3]


def test_a_page_is_written_whole_or_not_at_all(odd, tmp_path, monkeypatch):
    target = tmp_path / "x.html"
    target.write_text("before")
    monkeypatch.setattr("steprl.report.write.page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(odd, target)
    assert target.read_text() == "before"
