"""`steprl chat` and `steprl serve`: what is typed, what is printed, and how they end."""

import io
import json
import re
import shlex
import signal
import threading
import time

import pytest

from steprl import serving, session
from steprl.cli import main
from steprl.cli.snippets import example_prompt
from steprl.config import load_config
from steprl.envs.wiki_search import SAMPLE, Question, wiki_search
from steprl.rollout.contexts import chat_context
from steprl.serving.access import read_token
from steprl.serving.play import play
from steprl.tools import render_tool_call
from tests.models.chat_models import CHATML
from tests.serving.tiny import Scripted, chatml_tokenizer, tiny_opened

SEARCH = render_tool_call("search", {"query": "Paris"})


@pytest.fixture
def model(monkeypatch):
    """Opens a tiny model; with texts, one that says them. Gives the engine."""

    def arrange(texts=None, tokenizer=None, length=4096):
        opened = tiny_opened(length=length)
        opened = opened._replace(tokenizer=tokenizer or opened.tokenizer)
        monkeypatch.setattr(session, "open_policy", lambda path, step=None: opened)
        if texts is None:
            return None
        engine = Scripted(opened.tokenizer, texts, length)
        real = serving.serve_model
        fake = lambda *args: real(*args)._replace(engine=engine)  # noqa: E731
        monkeypatch.setattr(serving, "serve_model", fake)
        return engine

    return arrange


@pytest.fixture
def typed(monkeypatch):
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))


def test_a_conversation_keeps_its_history(model, typed, capsys):
    engine = model(["Good day.", "I said it."])
    typed("Hello", "", "What?")
    assert main(["chat", "m", "--system", "Be brief."]) == 0
    assert capsys.readouterr().out == "Good day.\nI said it.\n"
    assert engine.prompts[1].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    for said in ("user\nHello", "assistant\nGood day.", "user\nWhat?"):
        assert f"<|im_start|>{said}<|im_end|>" in engine.prompts[1]


def test_commands_begin_anew_and_leave(model, typed, capsys):
    engine = model(["one", "two", "three"])
    typed("a", "/reset", "b", "/system Be kind.", "c", "/what", "/quit", "never asked")
    assert main(["chat", "m"]) == 0
    printed = capsys.readouterr().out
    assert "/what is no command" in printed and len(engine.prompts) == 3
    assert "a<|im_end|>" not in engine.prompts[1]
    assert "Be kind." in engine.prompts[2] and "b<|im_end|>" not in engine.prompts[2]


def test_the_same_seed_and_words_get_the_same_replies(model, typed, capsys):
    printed = []
    for seed in ("1", "1", "2"):
        model()
        typed("Hello", "And?")
        assert main(["chat", "m", "--seed", seed, "--max-tokens", "20", "--temperature", "1"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_what_a_model_writes_cannot_command_the_terminal(model, capsys):
    model(["\x1b[2Jred [bold]x[/]\r"])
    assert main(["chat", "m", "--question", "?"]) == 0
    assert capsys.readouterr().out == "\ufffd[2Jred [bold]x[/]\ufffd\n"


def test_a_full_context_is_said_and_a_new_conversation_helps(model, typed, capsys):
    engine = model(["ok", "fine"], length=120)
    typed("Hello", "x" * 100, "/reset", "Hi")
    assert main(["chat", "m"]) == 0
    printed = capsys.readouterr().out
    assert "context of 120 tokens is full" in printed and printed.endswith("fine\n")
    assert len(engine.prompts) == 2


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: whoever was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_reply_and_not_the_conversation(interruptible, model, typed, capsys):
    engine = model(["Good day to you.", "Yes."])
    whole = engine.reply

    def interrupted(prompt, sampling):
        for number, piece in enumerate(whole(prompt, sampling)):
            if number == 2 and len(engine.prompts) == 1:
                signal.raise_signal(signal.SIGINT)
            yield piece

    engine.reply = interrupted
    typed("Hello", "Go on")
    assert main(["chat", "m"]) == 0
    assert capsys.readouterr().out == "Good d (stopped)\nYes.\n"
    assert "<|im_start|>assistant\nGood d<|im_end|>" in engine.prompts[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-tokens", "0"], "--max-tokens"),
        (["--temperature", "-1"], "--temperature"),
        (["--context", "9999"], "made for 4096"),
    ],
)
def test_settings_out_of_range_are_refused(model, capsys, arguments, says):
    model()
    assert main(["chat", "m", "--question", "?", *arguments]) == 1
    assert says in capsys.readouterr().out


def test_a_model_that_does_not_talk_is_refused(model, capsys):
    model(tokenizer=chatml_tokenizer(None))
    assert main(["chat", "m", "--question", "?"]) == 1
    assert "no chat template" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_help_is_printed(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and "--context" in capsys.readouterr().out


# With an environment.


@pytest.fixture
def passages(monkeypatch, tmp_path):
    pytest.importorskip("bm25s")
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_typed_question_is_played_through_the_environment(model, passages, capsys):
    engine = model([SEARCH, "<tool_call>{}</tool_call>", "<answer>Paris</answer>"])
    question = ["--env", "wiki_search", "--question", "Which town?", "--max-tokens", "64"]
    assert main(["chat", "m", *question]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Which town?") < printed.index("search {") < printed.index("not called")
    assert printed.endswith("Answer: Paris\n")
    # The agent reads what it found: the context is written anew each step.
    assert "[Search] Paris" in engine.prompts[1] and "[Search] Paris" not in engine.prompts[0]
    assert len(engine.prompts) == 3


def test_steps_that_run_out_end_without_an_answer(model, passages, capsys):
    model([SEARCH] * 5)
    question = ["--env", "wiki_search", "--question", "Which town?", "--max-tokens", "64"]
    assert main(["chat", "m", *question]) == 0
    assert capsys.readouterr().out.endswith("No answer within the steps.\n")


def test_replies_that_leave_no_room_for_a_prompt_are_refused(model, passages, capsys):
    model(length=512)
    assert (
        main(["chat", "m", "--env", "wiki_search", "--question", "?", "--max-tokens", "400"]) == 1
    )
    assert "--max-tokens 400 leaves" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["extend", "rebuild"])
def test_a_played_task_has_the_contexts_of_a_rollout(kind, passages, tmp_path):
    tokenizer = chatml_tokenizer()
    context = chat_context(tokenizer, rebuild=kind == "rebuild")
    env = wiki_search(
        SAMPLE / "questions.jsonl", SAMPLE / "passages.jsonl", cache=tmp_path, context=kind
    )
    actions, seen = iter([SEARCH, "<answer>Paris</answer>"]), []

    def reply(ids):
        seen.append(list(ids))
        return context.encode(next(actions))

    turns = list(play(env, context, 3, reply))
    assert [turn.action for turn in turns] == [None, SEARCH, "<answer>Paris</answer>"]
    assert [turn.over for turn in turns] == [False, False, True]
    assert seen[0] == context.begin(turns[0].observation)
    if kind == "extend":
        so_far = seen[0] + context.encode(SEARCH)
        assert seen[1] == so_far + context.extend(turns[1].observation)
    else:
        assert seen[1] == context.begin(turns[1].observation)


def test_a_question_that_nobody_can_answer_is_not_rewarded(passages, tmp_path):
    env = wiki_search(cache=tmp_path)
    questions = (Question("typed", "Which town?", ()),)
    env = type(env)(questions, env.index)
    state, _ = env.reset(0)
    *_, reward, terminated, _, info = env.step(state, "<answer></answer>")
    assert terminated and reward == info["f1"] == 0.0 and not info["success"]


# The server.


def test_serve_says_where_answers_and_ends_with_ctrl_c(model, monkeypatch, capsys):
    httpx = pytest.importorskip("httpx")
    uvicorn = pytest.importorskip("uvicorn")
    model(length=64)
    seen = {}
    startup = uvicorn.Server.startup

    async def started(self, sockets=None):
        await startup(self, sockets)
        seen["port"] = sockets[0].getsockname()[1]

    def ask():
        while "port" not in seen:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{seen['port']}"
        ask = {"model": "tiny", "prompt": "x", "max_tokens": 3}
        bearer = {"authorization": "Bearer secret"}
        seen["answer"] = httpx.post(f"{address}/v1/completions", json=ask, headers=bearer).json()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(uvicorn.Server, "startup", started)
    monkeypatch.setenv("STEPRL_SERVE_TOKEN", "secret")
    threading.Thread(target=ask, daemon=True).start()
    assert main(["serve", "some/tiny", "--port", "0"]) == 0
    printed = capsys.readouterr().out
    assert seen["answer"]["usage"]["completion_tokens"] <= 3
    assert f"http://127.0.0.1:{seen['port']}/v1" in printed and "context of 64 tokens" in printed
    assert "curl" in printed and 'model="tiny"' in printed and "secret" not in printed
    assert printed.endswith("Stopped.\n") and seen["answer"]["id"] in printed


@pytest.mark.parametrize("template", [CHATML, None], ids=["chats", "completes"])
def test_the_lines_that_serve_shows_work(template, model, monkeypatch, capsys):
    httpx = pytest.importorskip("httpx")
    uvicorn = pytest.importorskip("uvicorn")
    model(tokenizer=chatml_tokenizer(template), length=128)
    shown, seen = [], {}
    startup = uvicorn.Server.startup

    async def started(self, sockets=None):
        await startup(self, sockets)
        shown.append(capsys.readouterr().out)

    def ask():
        while not shown:
            time.sleep(0.01)
        line = re.search(r"^curl .*?\n  -d [^\n]*", shown[0], re.M | re.S)[0].replace("\\\n", "")
        _, url, _, header, _, body = shlex.split(line)
        seen["body"] = json.loads(body) | {"max_tokens": 3}
        headers = dict([header.split(": ")])
        seen["answer"] = httpx.post(url, content=json.dumps(seen["body"]), headers=headers)
        client = shown[0][shown[0].index("from openai") : shown[0].rindex("Ctrl-C")]
        seen["code"] = compile(client, "client", "exec")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(uvicorn.Server, "startup", started)
    monkeypatch.delenv("STEPRL_SERVE_TOKEN", raising=False)
    threading.Thread(target=ask, daemon=True).start()
    assert main(["serve", "m", "--port", "0", "--name", 'it\'s "mine"']) == 0
    assert seen["answer"].status_code == 200, seen["answer"].text
    assert seen["body"]["model"] == 'it\'s "mine"' and seen["code"]
    assert ("messages" in seen["body"]) == (template is not None)
    assert ("/v1/completions answers" in shown[0]) == (template is None)


def test_a_run_of_a_game_is_asked_in_its_own_language():
    game = load_config("quickstart")
    assert re.fullmatch(r"who is the .* of \w+ ?\?", example_prompt(game))
    assert example_prompt(None) == "Once upon a time"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--port", "70000"], "--port 70000"),
        (["--token", "secret"], "everyone on this machine can read a command line"),
        (["--token"], "--token-file"),
        (["--token-file", "no/such/file"], "--token-file no/such/file: No such file"),
    ],
)
def test_serve_refuses_before_it_opens_anything(monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(session, "open_policy", None)
    assert main(["serve", "m", *arguments]) == 1
    assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_secret_that_others_may_read_is_warned_of(monkeypatch, capsys, tmp_path, mode):
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(mode)
    monkeypatch.setattr(session, "open_policy", None)
    assert main(["serve", "m", "--token-file", str(file), "--port", "-1"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert ("others on this machine may read it" in printed) == (mode == 0o644)
    assert "secret" not in printed.replace(str(file), "")


@pytest.mark.parametrize(
    ("text", "token", "says"),
    [
        (b"secret\n", "secret", ""),
        (b" \n", None, "it is empty"),
        (b"\xff", None, "it holds no text"),
    ],
)
def test_a_token_comes_from_a_file_or_the_environment(tmp_path, text, token, says):
    file = tmp_path / "token"
    file.write_bytes(text)
    variables = {"STEPRL_SERVE_TOKEN": "other"}
    assert read_token(None, None, variables) == "other"
    assert read_token(None, None, {"STEPRL_SERVE_TOKEN": ""}) is None
    if token:
        assert read_token(None, str(file), variables) == token
    else:
        with pytest.raises(ValueError, match=f"--token-file .*: {says}"):
            read_token(None, str(file), variables)


def test_a_port_that_is_taken_is_named(monkeypatch, capsys):
    import socket

    pytest.importorskip("uvicorn")
    monkeypatch.setattr(session, "open_policy", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "m", "--port", str(port)]) == 1
    assert f"--port {port}" in capsys.readouterr().out
