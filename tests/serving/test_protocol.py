"""Requests are read strictly: what would change the reply and is not supported is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steprl.serving.access import check_access, is_loopback
from steprl.serving.conversation import as_text, message_format
from steprl.serving.protocol import ApiError, parse_json, read_chat, read_completion
from tests.models.chat_models import CHATML, FAMILIES
from tests.serving.tiny import chatml_tokenizer

HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
PROMPT = {"model": "m", "prompt": "Hello"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("messages", [], "at least one message"),
        ("messages", [{"role": "pirate", "content": "x"}], "messages[0]"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "parts of text"),
        ("messages", [{"role": "user"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": "\ud800"}], "surrogate"),
        ("messages", [{"role": "user", "content": "", "tool_calls": [CALL]}], "role 'assistant'"),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}], "tool_calls[0]"),
        ("model", None, "`model` is missing"),
        ("temperature", -0.1, "from 0 to 100"),
        ("temperature", float("nan"), "`temperature` is nan"),
        ("temperature", True, "`temperature` is True"),
        ("top_p", 0, "`top_p` is 0"),
        ("top_p", 1.01, "`top_p` is 1.01"),
        ("top_k", 1.5, "`top_k` is 1.5"),
        ("n", 0, "from 1 to 128"),
        ("max_tokens", 0, "`max_tokens` is 0"),
        ("max_completion_tokens", "5", "`max_completion_tokens` is '5'"),
        ("seed", 2**63, "`seed`"),
        ("stop", [""], "`stop`"),
        ("stop", 3, "`stop`"),
        ("stream", 1, "true or false"),
        ("stream_options", {"include_usage": True}, "needs `stream`"),
        ("top_logprobs", 3, "needs `logprobs`"),
        ("tools", [{"type": "retrieval"}], "`tools[0]`"),
        ("tool_choice", "required", "'none' and 'auto'"),
        ("tool_choice", {"type": "function", "function": {"name": "add"}}, "'none' and 'auto'"),
        ("parallel_tool_calls", False, "True only"),
        ("response_format", {"type": "json_object"}, "'text'"),
        ("frequency_penalty", 0.5, "0 only"),
        ("logit_bias", {"5": 3}, "{} only"),
        ("temprature", 0.5, "`temprature` is not known"),
    ],
)
def test_a_wrong_chat_request_is_refused_by_the_name_of_the_field(field, value, says):
    with pytest.raises(ApiError) as refused:
        read_chat({**HELLO, field: value})
    error = refused.value.body()["error"]
    assert refused.value.status == 400 and says in error["message"]
    assert error["param"].partition("[")[0] == field
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_has_to_be_an_object(body):
    with pytest.raises(ApiError, match="JSON object"):
        read_chat(body)


def test_defaults_are_those_of_openai():
    options = read_chat(HELLO).options
    assert (options.temperature, options.top_p, options.n, options.max_tokens) == (1, 1, 1, None)
    assert not (options.stream or options.logprobs or options.stops or options.top_k)
    assert options.seed is None
    assert read_completion(PROMPT).options.max_tokens == 16


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"stop": "x"}, "stops", ("x",)),
        ({"top_k": -1}, "top_k", 0),
        ({"max_completion_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"logprobs": True, "top_logprobs": 20}, "top_logprobs", 20),
        ({"stream": True, "stream_options": {"include_usage": True}}, "include_usage", True),
        ({"user": "me", "metadata": {}, "store": False, "frequency_penalty": 0.0}, "n", 1),
        ({"response_format": {"type": "text"}, "logit_bias": None, "temperature": None}, "n", 1),
    ],
)
def test_what_clients_send_is_read(given, name, value):
    assert getattr(read_chat({**HELLO, **given}).options, name) == value


def test_tools_are_told_unless_the_choice_is_none():
    assert read_chat({**HELLO, "tools": [TOOL]}).tools == [TOOL]
    assert read_chat({**HELLO, "tools": [TOOL], "tool_choice": "auto"}).tools == [TOOL]
    assert read_chat({**HELLO, "tools": [TOOL], "tool_choice": "none"}).tools == []


def test_messages_become_what_templates_take():
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    read = read_chat({**HELLO, "messages": messages}).messages
    assert read[0] == {"role": "system", "content": "ab"}
    assert read[1]["content"] == "" and read[1]["tool_calls"][0]["function"] == {
        "name": "add",
        "arguments": {"a": 1},
    }
    assert read[2] == {"role": "tool", "content": "3", "tool_call_id": "1"}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2]], [[1], [2]])],
)
def test_prompts_are_texts_or_ids(prompt, prompts):
    assert read_completion({**PROMPT, "prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", [None, [], 3, [True], [[]], ["a", 3], [[1.5]], "\ud800"])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ApiError, match="prompt"):
        read_completion({**PROMPT, "prompt": prompt})


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, b"\xff"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ApiError, match="no valid JSON"):
        parse_json(text, "body")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
            ["role", "content", "type", "text", "function", "name", "tool_calls", "arguments"]
        ), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*HELLO, "tools", "stop", "n", "logprobs", "x"]), values))
def test_any_body_is_read_or_refused(body):
    for read in (read_chat, read_completion):
        try:
            read(body)
        except ApiError as error:
            assert error.status == 400


# Messages with tools, as tokens.

MESSAGES = [
    {"role": "user", "content": "1 + 2?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}] * 2,
    },
    {"role": "tool", "content": "3"},
    {"role": "tool", "content": "4<|im_end|>"},
]


def test_without_tools_in_the_template_calls_and_results_are_text():
    written = as_text(MESSAGES, [TOOL])
    assert [message["role"] for message in written] == ["system", "user", "assistant", "user"]
    assert '"name": "add"' in written[0]["content"]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert written[2]["content"] == f"{call}\n{call}"
    # What a tool returned does not end the turn.
    response = "<tool_response>\n{}\n</tool_response>"
    assert written[3]["content"] == "\n".join(map(response.format, ["3", "4< |im_end|>"]))


def test_tools_join_the_system_message_that_is_there():
    told = as_text([{"role": "system", "content": "Be brief."}, *MESSAGES], [TOOL])
    assert told[0]["content"].startswith("Be brief.\n\nYou may call tools.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_templates_shows_the_tools(family):
    tokenizer = chatml_tokenizer(FAMILIES[family])
    talk = message_format(tokenizer)
    with_tools = tokenizer.decode(talk.encode(MESSAGES[:1], [TOOL]))
    assert '"add"' in with_tools
    assert '"add"' not in tokenizer.decode(talk.encode(MESSAGES[:1], []))


def test_a_tokenizer_without_a_template_holds_no_conversation():
    with pytest.raises(ValueError, match="no chat template"):
        message_format(chatml_tokenizer(None))


# Who may ask.


def headers(**given):
    base = {"host": "127.0.0.1:8000", "content-type": "application/json"}
    merged = base | {name.replace("_", "-"): value for name, value in given.items()}
    return {name.encode(): value.encode() for name, value in merged.items() if value is not None}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:80", "[::1]:8000", "127.9.9.9:1", "LocalHost"]
)
def test_names_of_this_machine_are_answered(host):
    check_access(headers(host=host, origin=f"http://{host}"), None, "POST")


@pytest.mark.parametrize(
    ("given", "token", "status"),
    [
        (dict(host="evil.example:8000"), None, 403),
        (dict(host="127.0.0.1.evil.example"), None, 403),
        (dict(host=""), None, 403),
        (dict(host=None), None, 403),
        (dict(origin="https://evil.example"), None, 403),
        (dict(origin="null"), None, 403),
        (dict(content_type="text/plain"), None, 415),
        (dict(content_type=None), None, 415),
        (dict(), "secret", 401),
        (dict(authorization="Bearer wrong"), "secret", 401),
        (dict(authorization="Basic secret"), "secret", 401),
        (dict(authorization="Bearer secret "), "secret", None),
        (dict(authorization="bearer secret", host="gpu.example"), "secret", None),
        (dict(authorization="Bearer é"), "secret", 401),
    ],
)
def test_access(given, token, status):
    try:
        check_access(headers(**given), token, "POST")
    except ApiError as error:
        assert error.status == status
    else:
        assert status is None


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
        ("192.168.1.2", False), ("example.com", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host, inside):
    assert is_loopback(host) is inside


def test_plain_chatml_is_used_here():
    assert "tools" not in CHATML  # so that the fallback above is what is tested
