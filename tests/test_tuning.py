"""Supervised training on conversations alone: no environment, prompts with completions, parquet."""

import json

import pytest

from steprl.cli import main
from steprl.config import load_config
from steprl.metrics import read_metrics
from steprl.rollout.conversation_files import read_conversations
from tests.chat_model import write_chat_model

ASK, SAY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}
BEFORE = {"role": "assistant", "content": "before"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hi?", "completion": "Ho."}, [ASK, SAY]),
        ({"prompt": "Hi?", "response": "Ho."}, [ASK, SAY]),
        ({"prompt": [ASK], "completion": [SAY]}, [ASK, SAY]),
        ({"prompt": [ASK, BEFORE, ASK], "completion": "Ho."},
         [ASK, {**BEFORE, "weight": 0}, ASK, SAY]),
        ({"prompt": "Hi?", "completion": "Ho.", "system": "Be brief."},
         [{"role": "system", "content": "Be brief."}, ASK, SAY]),
        # Where there are messages too, they are the conversation.
        ({"prompt": "Hi?", "messages": [ASK, SAY]}, [ASK, SAY]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_prompts_and_completions_are_conversations(home, kind, row, messages):
    path = home / f"data.{kind}"
    if kind == "jsonl":
        write(path, row)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([row]), path)
    (one,) = read_conversations(path)
    assert one.messages == messages and one.place == f"{path}:1"


def test_a_field_of_another_row_is_absent_in_a_row_of_parquet(home):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    rows = [
        {"messages": [ASK, {**SAY, "tool_calls": [call]}], "prompt": None, "completion": None},
        {"prompt": "Hi?", "completion": "Ho."},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), home / "data.parquet")
    first, second = read_conversations(home / "data.parquet")
    assert first.messages[0] == ASK and second.messages == [ASK, SAY]
    assert first.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi?", "completion": ""}, '"completion" is empty'),
        ({"prompt": "Hi?", "completion": "  "}, '"completion" is empty'),
        (
            {"prompt": "Hi?", "completion": None},
            '"completion" is text or a list of messages, found N',
        ),
        ({"prompt": 3, "completion": "Ho."}, '"prompt" is text or a list of messages, found int'),
        ({"prompt": [], "completion": "Ho."}, '"prompt" is text or .* found an empty list'),
        (
            {"completion": "Ho.", "text": "x"},
            '"completion" without "prompt"; the line has comp.*text',
        ),
        ({"prompt": "Hi?"}, 'and no "prompt" with a "completion"; the line has prompt'),
        ({"prompt": "Hi?", "completion": [ASK]}, "no message of the assistant"),
        ({"prompt": ["Hi?"], "completion": "Ho."}, "message 1 is str, not an object"),
        ("[" * 100_000, "not valid JSON"),
        ('"Hi?"', "a line is a JSON object, found str"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(home, row, said):
    path = write(home / "data.jsonl", {"prompt": "Hi?", "completion": "Ho."}, "", row)
    with pytest.raises(ValueError, match=rf"data\.jsonl:3: .*{said}"):
        list(read_conversations(path))


def test_what_is_no_parquet_file_is_named(home):
    pytest.importorskip("pyarrow")
    (home / "data.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"data\.parquet: not a parquet file"):
        list(read_conversations(home / "data.parquet"))


# From the command line


def last_line(capsys):
    lines = capsys.readouterr().out.strip().splitlines()
    return lines[-1]


@pytest.mark.full
def test_a_model_learns_from_conversations_alone(home, capsys):
    write_chat_model(home / "model")
    write(home / "chats.jsonl", *[{"prompt": "Hi?", "completion": "Ho."}] * 4)
    tune = [
        "sft",
        "model",
        "sft.data=chats.jsonl",
        "sft.steps=20",
        "sft.lr=0.05",
        "sft.warmup_steps=1",
    ]
    assert main([*tune, "rollout.context_length=64"]) == 0
    out = capsys.readouterr().out
    run = home / "runs" / "sft"
    assert "steprl chat runs/sft" in out and "trainer.init_from=runs/sft" in out
    assert "success" not in out  # there is nothing to play
    first, last = [row["sft/loss"] for row in read_metrics(run / "sft.jsonl")]
    assert last < first
    assert load_config(run / "config.resolved.yaml").env.name == "none"
    assert (
        main(["chat", "runs/sft", "--question", "Hi?", "--temperature", "0", "--max-tokens", "9"])
        == 0
    )
    assert main(["eval", "runs/sft"]) == 1
    assert "env.name=none: there is nothing to play" in last_line(capsys)


def test_a_configuration_that_names_no_environment_has_none(home, capsys):
    write_chat_model(home / "model")
    write(home / "chats.jsonl", {"prompt": "Hi?", "completion": "Ho."})
    (home / "tune.yaml").write_text(
        "model: {path: model}\nsft: {data: chats.jsonl, steps: 1, batch_size: 8}\n"
        "rollout: {batch_size: 8, context_length: 64}\nactor: {ppo_mini_batch_size: 8}\n"
    )
    assert main(["sft", "tune.yaml", "--dry-run"]) == 0
    assert "name: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "model"], "model is a model: say what it is to learn from, as sft.data=FILE"),
        (["sft", "model", "sft.data=chats.jsonl"], "sft.steps=0"),
        (["sft", "model", "sft.data=nowhere.jsonl", "sft.steps=1"], "nowhere.jsonl: no such file"),
        (["sft", "model", "sft.data=bad.jsonl", "sft.steps=1"], "bad.jsonl:1: not valid JSON"),
        (["sft", "plain", "sft.data=chats.jsonl", "sft.steps=1"], "no chat template"),
        (["sft", "runs/a", "sft.data=chats.jsonl"], "trainer.init_from=runs/a"),
        (["train", "tune.yaml", "env.name=none"], "env.name=none: there is nothing to play"),
        (["rollout", "model", "env.name=none"], "env.name=none: there is nothing to play"),
    ],
)
def test_what_cannot_be_learnt_leaves_no_run_behind(home, arguments, said, capsys):
    write_chat_model(home / "model")
    write_chat_model(home / "plain", template=None)
    write(home / "chats.jsonl", {"prompt": "Hi?", "completion": "Ho."})
    write(home / "bad.jsonl", "{")
    (home / "tune.yaml").write_text("model: {path: model}\n")
    (home / "runs" / "a").mkdir(parents=True)
    (home / "runs" / "a" / "config.resolved.yaml").write_text("")
    assert main(arguments) == 1
    assert said in last_line(capsys)
    assert [path.name for path in (home / "runs").iterdir()] == ["a"]
