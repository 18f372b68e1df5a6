"""The server, asked by the official client of OpenAI and by bare HTTP."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from steprl.serving import Piece, make_app, serve_model
from steprl.tools import render_tool_call
from tests.models.chat_models import FAMILIES
from tests.serving.live import running
from tests.serving.tiny import Scripted, chatml_tokenizer, tiny_opened

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

HELLO = [{"role": "user", "content": "Hello, 🦉!"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}


def client_of(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def opened():
    return tiny_opened()


@pytest.fixture(scope="module")
def served(opened):
    return serve_model(opened, "tiny")


@pytest.fixture(scope="module")
def address(served):
    with running(served) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return client_of(address)


def chat(client, messages=HELLO, **settings):
    return client.chat.completions.create(
        model="tiny", messages=messages, **{"max_tokens": 24, **settings}
    )


def test_models_and_health(client, address):
    [model] = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("tiny", "model", 512)
    assert client.models.retrieve("tiny").id == "tiny"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_a_chat_is_answered_with_the_tokens_that_were_sampled(client, served):
    answer = chat(client, seed=7)
    [choice] = answer.choices
    ids = choice.token_ids
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and choice.message.content == served.decode(ids)
    assert choice.finish_reason == ("stop" if ids[-1] in served.stop_ids else "length")
    prompt = served.conversation.encode(HELLO, [])
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(ids) <= 24
    assert answer.usage.total_tokens == len(prompt) + len(ids)


@pytest.mark.parametrize(
    "settings", [{"seed": 3}, {"temperature": 0}, {"seed": 4, "stop": ["a", "e"]}]
)
def test_a_stream_says_what_the_whole_answer_says(client, settings):
    whole = chat(client, **settings, logprobs=True, top_logprobs=2)
    usage_asked = {"stream_options": {"include_usage": True}}
    chunks = list(
        chat(client, **settings, logprobs=True, top_logprobs=2, stream=True, extra_body=usage_asked)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    choices = [one for chunk in chunks for one in chunk.choices]
    [wanted] = whole.choices
    assert "".join(one.delta.content or "" for one in choices) == wanted.message.content
    assert [i for one in choices for i in one.token_ids] == wanted.token_ids
    told = [t for one in choices if one.logprobs for t in one.logprobs.content]
    np.testing.assert_allclose(
        [t.logprob for t in told], [t.logprob for t in wanted.logprobs.content], atol=1e-5
    )
    assert [one.finish_reason for one in choices][-1] == wanted.finish_reason
    assert all(one.finish_reason is None for one in choices[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    if "stop" in settings:
        assert wanted.finish_reason == "stop" and not set("ae") & set(wanted.message.content)


def own_logprobs(opened, prompt, ids):
    row = jax.numpy.asarray([[*prompt, *ids]])
    positions = jax.numpy.arange(row.shape[1])[None]

    @jax.jit
    def read(params):
        hidden, _ = opened.policy.apply(params, row, positions, jax.numpy.ones_like(row))
        return jax.nn.log_softmax(opened.policy.unembed(params, hidden[0]))

    return np.asarray(read(opened.params))[len(prompt) - 1 : -1]


def test_logprobs_are_those_of_the_policy(client, opened, served):
    prompt = served.encode("Hello")
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=9, seed=1, logprobs=3, temperature=0.5
    )
    [choice] = answer.choices
    own = own_logprobs(opened, prompt, choice.token_ids)
    found, places = choice.logprobs, range(len(choice.token_ids))
    np.testing.assert_allclose(found.token_logprobs, own[places, choice.token_ids], atol=1e-4)
    for place, likely in enumerate(found.top_logprobs):
        assert max(likely.values()) == pytest.approx(own[place].max(), abs=1e-4)
    # Under the distribution really sampled from: temperature 0.5.
    sharp = np.asarray(jax.nn.log_softmax(own / 0.5))
    np.testing.assert_allclose(choice.sampling_logprobs, sharp[places, choice.token_ids], atol=1e-3)
    assert found.text_offset == [sum(map(len, found.tokens[:i])) for i in places]


def test_prompts_of_a_completion_are_text_or_tokens(client, served):
    ask = dict(model="tiny", max_tokens=5, temperature=0)
    answer = client.completions.create(prompt=["Hello", "Good day"], **ask)
    tokens = client.completions.create(
        prompt=[served.encode("Hello"), served.encode("Good day")], **ask
    )
    assert answer.object == "text_completion"
    assert [one.index for one in answer.choices] == [0, 1]
    assert [one.token_ids for one in answer.choices] == [one.token_ids for one in tokens.choices]
    stream = client.completions.create(prompt="Hello", stream=True, **ask)
    assert "".join(part.choices[0].text for part in stream) == answer.choices[0].text


def test_several_choices_differ_and_are_reproducible(client):
    answers = [chat(client, n=3, seed=5, max_tokens=6) for _ in range(2)]
    ids = [[one.token_ids for one in answer.choices] for answer in answers]
    assert ids[0] == ids[1] and len({*map(tuple, ids[0])}) == 3
    assert answers[0].usage.completion_tokens == sum(map(len, ids[0]))


def test_a_chat_that_goes_on_reads_only_what_is_new(client, served):
    first = chat(client, temperature=0, max_tokens=4)
    text = first.choices[0].message.content
    more = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    again = chat(client, more, temperature=0, max_tokens=4)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens <= cached < again.usage.prompt_tokens


def test_requests_that_come_together_are_all_answered(client):
    alone = [chat(client, seed=seed).choices[0].token_ids for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda seed: chat(client, seed=seed).choices[0].token_ids, range(8))
        assert list(together) == alone


@pytest.mark.parametrize(
    ("settings", "kind", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 500}, openai.BadRequestError, "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "a" * 600}], "max_tokens": None},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        ({"temperature": -1}, openai.BadRequestError, None),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, None),
        ({"stream": True, "n": 0}, openai.BadRequestError, None),
    ],
)
def test_errors_have_the_form_and_the_class_of_openai(client, settings, kind, code):
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **settings})
    assert refused.value.code == code and refused.value.body["message"]


@pytest.mark.parametrize(
    ("method", "path", "given", "status"),
    [
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/v1/models/gpt-9", {}, 404),
        ("GET", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/completions", {"content": "{", "headers": {"content-type": "application/json"}}, 400),
        ("POST", "/v1/completions", {"content": "{}"}, 415),
        ("GET", "/health", {"headers": {"host": "evil.example"}}, 403),
        ("POST", "/v1/completions", {"json": {"model": "tiny", "prompt": [275]}}, 400),
        ("POST", "/v1/completions", {"json": {"model": "tiny", "prompt": "x" * 9 * 2**20}}, 413),
    ],
)  # fmt: skip
def test_every_refusal_is_an_error_in_json(address, method, path, given, status):
    answer = httpx.request(method, f"{address}{path}", **given)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "access-control-allow-origin" not in answer.headers


def test_with_a_token_every_request_needs_it(served):
    with running(served, token="secret", host="0.0.0.0") as address:
        for path in ("/health", "/v1/models"):
            assert httpx.get(f"{address}{path}").status_code == 401
        with pytest.raises(openai.AuthenticationError, match="token is needed"):
            chat(client_of(address, "guess"))
        assert chat(client_of(address, "secret"), max_tokens=2).choices


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1"])
def test_a_host_that_others_reach_needs_a_token(served, host):
    with pytest.raises(ValueError, match="--token-file"):
        make_app(served, host=host)
    make_app(served, host=host, token="secret")


# Tools: what the model writes is fixed, so that the way through is what is tested.

CALL = render_tool_call("add", {"a": 1, "b": 2})


def scripted(texts, template=None, **settings):
    opened = tiny_opened(template or FAMILIES["chatml"])
    engine = Scripted(opened.tokenizer, texts, **settings)
    return serve_model(opened, "tiny")._replace(engine=engine), engine


@pytest.mark.parametrize("family", ["chatml", "qwen"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_answered_and_talked_about(family, stream):
    served, engine = scripted([f"Let me see.\n{CALL}", "It is 3."], FAMILIES[family])
    with running(served) as address:
        client = client_of(address)
        first = chat(client, tools=[TOOL], stream=stream, extra_headers={})
        message, finish = joined(first) if stream else whole(first)
        [call] = message["tool_calls"]
        assert finish == "tool_calls" and message["content"] == "Let me see.\n"
        assert call["function"]["name"] == "add"
        assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
        answered = {"role": "tool", "tool_call_id": call["id"], "content": "3"}
        second = chat(client, [*HELLO, message, answered], tools=[TOOL])
        assert second.choices[0].message.content == "It is 3."
        assert second.choices[0].finish_reason == "stop"
    assert '"add"' in engine.prompts[0]
    assert "<tool_call>" in engine.prompts[1].partition("Let me see.")[2]
    assert "<tool_response>\n3\n</tool_response>" in engine.prompts[1]


def whole(answer):
    [choice] = answer.choices
    return choice.message.model_dump(exclude_none=True), choice.finish_reason


def joined(stream):
    """The message that the chunks of a stream make together."""
    content, calls, finish = "", [], None
    for chunk in stream:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        finish = choice.finish_reason or finish
    calls = [call.model_dump(exclude={"index"}) for call in calls]
    return {"role": "assistant", "content": content, "tool_calls": calls}, finish


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("<tool_call>add 1 2</tool_call>", {"tools": [TOOL]}),
        (CALL, {"tools": [TOOL], "tool_choice": "none"}),
        (CALL, {}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_call_stays_text(text, settings, stream):
    served, _ = scripted([text])
    with running(served) as address:
        answer = chat(client_of(address), stream=stream, **settings)
        message, finish = joined(answer) if stream else whole(answer)
    assert message["content"] == text and finish == "stop" and not message.get("tool_calls")


# A client that leaves, and an engine that fails.


class Endless:
    """Replies until it is closed."""

    context_length = 10**9

    def __init__(self):
        self.closed, self.begun = threading.Event(), threading.Event()

    def reply(self, prompt, sampling):
        try:
            while not sampling.seed:
                self.begun.set()
                time.sleep(0.01)
                yield Piece((65,), (0.0,), (0.0,), ((),))
            yield Piece((66,), (0.0,), (0.0,), ((),), "length")
        finally:
            self.closed.set()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(served, stream):
    engine = Endless()
    with running(served._replace(engine=engine)) as address:
        body = {"model": "tiny", "prompt": "x", "stream": stream, "max_tokens": 10**8}
        with contextlib.suppress(httpx.ReadTimeout):
            with httpx.Client(timeout=0.5) as browser:
                with browser.stream("POST", f"{address}/v1/completions", json=body) as answer:
                    next(answer.iter_lines())
        assert engine.begun.is_set() and engine.closed.wait(10)
        found = client_of(address).completions.create(model="tiny", prompt="x", seed=1)
        assert found.choices[0].finish_reason == "length"


def test_one_that_waits_for_its_turn_may_leave_too(served):
    engine = Endless()
    with running(served._replace(engine=engine)) as address, ThreadPoolExecutor(1) as pool:
        ask = dict(model="tiny", prompt="x")
        stream = client_of(address).completions.create(stream=True, **ask)
        next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            client_of(address).completions.create(**ask, timeout=0.3)
        last = pool.submit(lambda: client_of(address).completions.create(**ask, seed=1))
        time.sleep(0.3)
        assert not last.done() and not engine.closed.is_set()
        stream.close()
        assert last.result(20).choices[0].text == served.token_text(66)


class Failing:
    context_length = 512

    def reply(self, prompt, sampling):
        yield Piece((65,), (0.0,), (0.0,), ((),))
        raise RuntimeError("no memory left")


def test_a_failure_is_an_error_before_the_answer_and_within_a_stream(served):
    lines = []
    with running(served._replace(engine=Failing()), report=lines.append) as address:
        client = client_of(address)
        with pytest.raises(openai.InternalServerError):
            chat(client)
        with pytest.raises(openai.APIError, match="reply failed"):
            list(chat(client, stream=True))
        assert httpx.get(f"{address}/health").status_code == 200
    assert any("no memory left" in line for line in lines)


def test_a_model_without_a_chat_template_completes_only(opened):
    plain = opened._replace(tokenizer=chatml_tokenizer(None))
    with running(serve_model(plain, "tiny")) as address:
        client = client_of(address)
        assert client.completions.create(model="tiny", prompt="Hi", max_tokens=2).choices
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            chat(client)


@pytest.mark.parametrize(("asked", "length"), [(None, 512), (64, 64), (512, 512)])
def test_the_context_is_the_tokenizers_or_shorter(opened, asked, length):
    assert serve_model(opened, "tiny", asked).engine.context_length == length


def test_a_context_that_the_model_does_not_have_is_refused(opened):
    with pytest.raises(ValueError, match="made for 512"):
        serve_model(opened, "tiny", 513)
