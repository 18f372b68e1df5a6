"""Requests that the pages show are answered as they stand, by a server on another port."""

import json
import re
import shlex

import pytest

from steprl.cli.snippets import snippets
from steprl.serving import serve_model
from tests.documented import blocks
from tests.models.chat_models import FAMILIES
from tests.serving.live import running
from tests.serving.tiny import Scripted, tiny_opened

httpx = pytest.importorskip("httpx")
pytest.importorskip("openai")
pytest.importorskip("fastapi")

SHOWN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address():
    opened = tiny_opened(FAMILIES["chatml"])
    engine = Scripted(opened.tokenizer, ["It is 14."] * 3)
    with running(serve_model(opened, "sft")._replace(engine=engine)) as address:
        yield address


def test_the_line_for_curl_is_answered(address):
    (curl,) = [words for b in blocks("docs/jobs.md") for words in b.commands if words[0] == "curl"]
    _, url, _, header, _, body = curl
    asked = httpx.post(
        url.replace(SHOWN, address), content=body, headers=dict([header.split(": ")])
    )
    assert asked.status_code == 200, asked.text
    assert asked.json()["choices"][0]["message"]["content"] == "It is 14."


def test_it_is_the_line_that_serve_prints():
    (curl,) = [words for b in blocks("docs/jobs.md") for words in b.commands if words[0] == "curl"]
    line = snippets(f"{SHOWN}/v1", "sft", None, token=False).partition("\n\n")[0]
    *printed, body = shlex.split(line.replace("\\\n", ""))
    assert curl[:-1] == printed
    assert json.loads(curl[-1]).keys() == json.loads(body).keys()


@pytest.mark.parametrize("page", ["docs/jobs.md", "docs/serving.md"])
def test_the_lines_for_the_client_of_openai_are_answered(page, address, capsys):
    (code,) = [b.text for b in blocks(page) if re.match("from openai import", b.text)]
    assert code.count(SHOWN) == 1
    exec(compile(code.replace(SHOWN, address), page, "exec"), {})
    assert capsys.readouterr().out == "It is 14.\n"
