"""Malformed requests: each is refused with a status of its own and an error that names the field, and
the server answers the next one as if nothing had been."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steprl.serving import make_app, serve_model
from tests.models.chat_models import FAMILIES
from tests.serving.malformed import (
    BODIES,
    CALL,
    CHAT,
    CHATS,
    COMPLETION,
    COMPLETIONS,
    HALF,
    TOOL,
    answered,
    chat,
    completion,
    message,
    post,
    post_all,
    said,
    served_with,
)
from tests.serving.tiny import Scripted, chatml_tokenizer, tiny_opened

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def served():
    return served_with()


@pytest.fixture(scope="module")
def app(served):
    return make_app(served)


def check_refusal(answer, field):
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert error["message"].endswith(".") and len(error["message"]) < 400
    assert field in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_what_is_no_json_object_is_refused(app, path, body):
    answer = post(app, path, body)
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(("body", "field"), CHATS, ids=range(len(CHATS)))
def test_a_malformed_chat_names_its_field(app, body, field):
    check_refusal(post(app, CHAT, body), field)


@pytest.mark.parametrize(("body", "field"), COMPLETIONS, ids=range(len(COMPLETIONS)))
def test_a_malformed_completion_names_its_field(app, body, field):
    check_refusal(post(app, COMPLETION, body), field)


def test_the_server_lives_on(app, served):
    served.engine.prompts.clear()
    for path, body in ((CHAT, chat()), (COMPLETION, completion())):
        assert post(app, path, body).json()["usage"]["completion_tokens"] == 1
    assert len(served.engine.prompts) == 2  # nothing of the malformed ones has reached the model


# What is well formed, however odd.


@pytest.mark.parametrize(
    "body",
    [
        chat(user="me", metadata={"a": {"b": 1}}, store=False, service_tier="auto", seed=-1),
        chat(temperature=None, tools=None, stop=None, stream_options=None, functions=None),
        chat(tools=[], functions=[], function_call="none", logit_bias={}, tool_choice="auto"),
        chat(stop=[], stream=False, n=1, top_k=-1, frequency_penalty=0.0, best_of=1),
        said("\x00\x7f\u202e\U0010ffff<|im_end|>"),
        said([{"type": "text", "text": "a"}, {"text": "b"}]),
        answered(content=None, refusal=None, audio=None, function_call=None, annotations=[]),
        answered(refusal="No.", tool_calls=[]),
        answered(tool_calls=[{**CALL, "index": 0}, {**CALL, "id": None}], content=None),
        message(role="tool", content="", tool_call_id="1", colour=None),
        chat(tools=[{"type": "function", "function": {"name": "ä", "strict": False}}]),
        chat(tools=[{**TOOL, "function": {"name": "a", "parameters": {"anyOf": [{}] * 9}}}]),
    ],
)
def test_what_clients_may_send_is_answered(app, body):
    answer = post(app, CHAT, body)
    assert answer.status_code == 200, answer.text


EXTREMES = [
    *({"temperature": 10.0**-exponent} for exponent in (0, 2, 6, 7, 30, 37, 40, 45, 300)),
    {"temperature": 0}, {"temperature": 100}, {"temperature": 5e-324}, {"top_p": 1e-6},
    {"top_p": 1 - 1e-16}, {"top_k": 1}, {"top_k": 2**31 - 1}, {"seed": 2**63 - 1},
    {"seed": -(2**63)}, {"temperature": 0, "top_p": 0.5, "top_k": 3},
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.full)])
def test_extreme_settings_give_numbers_that_json_has(stream):
    """By a real engine: no infinite log-prob, which would end the answer."""
    app = make_app(serve_model(tiny_opened(FAMILIES["chatml"], 512), "tiny"))
    asked = {"max_tokens": 2, "logprobs": True, "top_logprobs": 20, "stream": stream}
    answers = post_all(app, [(CHAT, chat(**asked, **extreme)) for extreme in EXTREMES])
    for answer, extreme in zip(answers, EXTREMES, strict=True):
        assert answer.status_code == 200, (extreme, answer.text)
        assert "NaN" not in answer.text and "Infinity" not in answer.text, extreme
        assert "failed" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_in_a_call_of_the_model_is_no_call(stream):
    text = '<tool_call>\n{"name": "add", "arguments": {"a": "\\ud800"}}\n</tool_call>'
    opened = tiny_opened(FAMILIES["chatml"], 512)
    served = serve_model(opened, "tiny")._replace(engine=Scripted(opened.tokenizer, [text], 512))
    answer = post(make_app(served), CHAT, chat(tools=[TOOL], stream=stream))
    assert answer.status_code == 200
    assert "tool_calls" not in answer.text and "failed" not in answer.text


def test_what_the_model_refused_before_is_what_it_said(served, app):
    post(app, CHAT, answered(refusal="I will not."))
    assert "I will not." in chatml_tokenizer().decode(served.engine.prompts[-1])


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_read_where_the_template_reads_them(name):
    served = served_with(
        "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    answer = post(make_app(served), CHAT, answered(content="3", **{name: "1 + 2"}))
    assert answer.status_code == 200, answer.text
    assert "<think>1 + 2</think>3" in chatml_tokenizer().decode(served.engine.prompts[-1])


# What nobody has thought of.

RICH = {
    **chat(
        tools=[TOOL], stream=False, n=1, stop=["x"], seed=3, temperature=0.5, top_p=0.9, user="me"
    ),
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ],
}
odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([HALF, "\0", "", [], {}, [[]], [{}], {"": {}}, 10**100, -1, "1", "{", "<|im_end|>"]),
)  # fmt: skip


@st.composite
def mutated(draw):
    """A request in which a few values, found by chance, are other ones, or missing."""
    body = json.loads(json.dumps(RICH))
    for _ in range(draw(st.integers(1, 3))):
        place = body
        while place:
            key = draw(
                st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
            )
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.booleans()):
                place[key] = copy.deepcopy(draw(odd))
            else:
                del place[key]
            break
    return body


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=mutated())
def test_whatever_comes_is_answered_or_refused(app, body):
    answer = post(app, CHAT, body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"] and (error["param"] is not None or "JSON" in error["message"])
