"""Requests, most of them malformed, and a server in this process that they are sent to."""

import asyncio
import json

import pytest

from steprl.serving import serve_model
from tests.models.chat_models import FAMILIES
from tests.serving.tiny import scripted_pieces, tiny_opened

httpx = pytest.importorskip("httpx")

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
HALF = "\ud800"


class Obedient:
    """In place of an engine: one token a request."""

    def __init__(self, context_length=512):
        self.context_length, self.prompts = context_length, []

    def reply(self, prompt, settings):
        self.prompts.append(prompt)
        yield from scripted_pieces([72])


def served_with(template=FAMILIES["chatml"], context_length=512):
    opened = tiny_opened(template, context_length)
    return serve_model(opened, "tiny")._replace(engine=Obedient(context_length))


def post_all(app, requests, **headers):
    """The answers to bodies at paths: bytes, or values as JSON, where lone surrogates are escapes."""
    headers = {"content-type": "application/json"} | headers

    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [
                await client.post(
                    path,
                    content=body if isinstance(body, bytes) else json.dumps(body),
                    headers=headers,
                )
                for path, body in requests
            ]

    return asyncio.run(send())


def post(app, path, body, **headers):
    """The answer to one."""
    return post_all(app, [(path, body)], **headers)[0]


def chat(**fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}


def message(**fields):
    return chat(messages=[{"role": "user", "content": "Hi"}, fields])


def said(content):
    return chat(messages=[{"role": "user", "content": content}])


def answered(**fields):
    return message(role="assistant", **fields)


def with_call(**fields):
    return answered(tool_calls=[{**CALL, **fields}])


def completion(**fields):
    return {"model": "tiny", "prompt": "Hi", **fields}


def deep(levels, name="a"):
    """Objects within each other."""
    return json.loads(f'{{"{name}": ' * levels + "1" + "}" * levels)


# Bodies that are no JSON of the form asked for.
BODIES = [
    b"", b" ", b"{", b"null", b"[]", b'"x"', b"3", b"true", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{",
    b"[" * 100_000, b'{"a":' * 100_000, b'{"model": "tiny", "prompt": NaN}', b'{"seed": Infinity}',
    b'{"seed": -Infinity}', b'{"temperature": 1e999}', b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"model": "tiny", "model": "tiny", "prompt": "x"}', b"{'model': 'tiny'}",
    b'{"model": "tiny", "prompt": "x"} {}', b'{"model": "tiny", "prompt": "\\ud800"}',
    b'{"prompt": "\t"}',
    b"{" + b", ".join(b'"%d": 0' % n for n in range(100_000)) + b', "0": 0}',
    b'{"' + b"k" * 1_000_000 + b'": [' + b"0, " * 100_000 + b'"\\ud800"]}',
 b'{"\\udc00": 1}', "{\"model\": \"tiný\"}".encode("latin-1"),
]  # fmt: skip

# (body of a chat, the field that is named)
CHATS = [
    ({}, "messages"),
    (chat(messages=None), "messages"),
    (chat(messages=[]), "messages"),
    (chat(messages={}), "messages"),
    (chat(messages="Hi"), "messages"),
    (chat(messages=0), "messages"),
    (chat(messages=[None]), "messages[0]"),
    (chat(messages=["Hi"]), "messages[0]"),
    (chat(messages=[[]]), "messages[0]"),
    (chat(messages=[{}]), "messages[0]"),
    (chat(messages=[{"content": "Hi"}]), "messages[0]"),
    (message(role=None, content="Hi"), "messages[1]"),
    (message(role=["user"], content="Hi"), "messages[1]"),
    (message(role="function", name="add", content="3"), "messages[1]"),
    (message(role="User", content="Hi"), "messages[1]"),
    (said(None), "messages[0].content"),
    (said(3), "messages[0].content"),
    (said({"text": "Hi"}), "messages[0].content"),
    (said([]), "messages[0].content"),
    (said(["Hi"]), "messages[0].content[0]"),
    (said([{"type": "text"}]), "messages[0].content[0].text"),
    (said([{"type": "text", "text": None}]), "messages[0].content[0].text"),
    (said([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]),
     "messages[0].content[1]"),
    (said([{"type": "image_url", "text": "a picture", "image_url": {}}]), "messages[0].content[0]"),
    (said([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0]"),
    (said([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]),
     "messages[0].content[0].cache_control"),
    (said(HALF), "messages[0].content"),
    (said([{"type": "text", "text": HALF}]), "messages[0].content[0].text"),
    (message(role="user", content="Hi", name=HALF), "messages[1].name"),
    (message(role="user", content="Hi", name=3), "messages[1].name"),
    (message(role="user", content="Hi", colour="red"), "messages[1].colour"),
    (message(role="user", content="Hi", tool_calls=[CALL]), "messages[1].tool_calls"),
    (message(role="user", content="Hi", reasoning_content="Hm."), "messages[1].reasoning_content"),
    (message(role="user", content="Hi", tool_call_id="1"), "messages[1].tool_call_id"),
    (message(role="tool", content="3", tool_call_id=1), "messages[1].tool_call_id"),
    (answered(content="No.", refusal="No."), "messages[1].refusal"),
    (answered(refusal={"text": "No."}), "messages[1].refusal"),
    (answered(content="3", function_call={"name": "add", "arguments": "{}"}),
     "messages[1].function_call"),
    (answered(content="3", audio={"id": "a"}), "messages[1].audio"),
    (answered(content="3", annotations=[{"type": "url_citation"}]), "messages[1].annotations"),
    (answered(content="3", reasoning_content="1 + 2"), "messages[1].reasoning_content"),
    (answered(content="3", reasoning="1 + 2"), "messages[1].reasoning_content"),
    (answered(content="3", reasoning="a", reasoning_content="a"), "messages[1].reasoning"),
    (answered(content="3", reasoning_content=["a"]), "messages[1].reasoning_content"),
    (answered(content="3", thinking="1 + 2"), "messages[1].thinking"),
    (answered(content=[{"type": "refusal", "refusal": "No."}]), "messages[1].content[0]"),
    (answered(tool_calls={}), "messages[1].tool_calls"),
    (answered(tool_calls=""), "messages[1].tool_calls"),
    (answered(tool_calls=[None]), "messages[1].tool_calls[0]"),
    (answered(tool_calls=[{"id": "1"}]), "messages[1].tool_calls[0]"),
    (with_call(function={"name": None, "arguments": "{}"}), "messages[1].tool_calls[0]"),
    (with_call(id=1), "messages[1].tool_calls[0].id"),
    (with_call(type="custom"), "messages[1].tool_calls[0].type"),
    (with_call(custom={}), "messages[1].tool_calls[0].custom"),
    (with_call(function={"name": "add", "arguments": "{"}),
     "messages[1].tool_calls[0].function.arguments"),
    (with_call(function={"name": "add", "arguments": "3"}),
     "messages[1].tool_calls[0].function.arguments"),
    (with_call(function={"name": "add", "arguments": 0}),
     "messages[1].tool_calls[0].function.arguments"),
    (with_call(function={"name": "add", "arguments": "[" * 100_000}),
     "messages[1].tool_calls[0].function.arguments"),
    (with_call(function={"name": "add", "arguments": '{"a": NaN}'}),
     "messages[1].tool_calls[0].function.arguments"),
    (with_call(function={"name": "add", "arguments": '{"a": "\\ud800"}'}),
     "messages[1].tool_calls[0].function.arguments.a"),
    (with_call(function={"name": HALF, "arguments": "{}"}),
     "messages[1].tool_calls[0].function.name"),
    (with_call(function={"name": "add", "arguments": "{}", "result": 3}),
     "messages[1].tool_calls[0].function.result"),
    (chat(tools={}), "tools"),
    (chat(tools="add"), "tools"),
    (chat(tools=[None]), "tools[0]"),
    (chat(tools=[{"type": "retrieval"}]), "tools[0]"),
    (chat(tools=[{"type": "function"}]), "tools[0]"),
    (chat(tools=[{**TOOL, "cache": 1}]), "tools[0].cache"),
    (chat(tools=[TOOL, TOOL]), "tools[1].function.name"),
    (chat(tools=[TOOL] * 129), "tools"),
    (chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
    (chat(tools=[{"type": "function", "function": {"name": " "}}]), "tools[0].function.name"),
    (chat(tools=[{"type": "function", "function": {"name": HALF}}]), "tools[0].function.name"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "description": 3}}]),
     "tools[0].function.description"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "description": HALF}}]),
     "tools[0].function.description"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "parameters": []}}]),
     "tools[0].function.parameters"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "parameters": {"x": HALF}}}]),
     "tools[0].function.parameters.x"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "parameters": {HALF: 1}}}]),
     "tools[0].function.parameters"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "strict": True}}]),
     "tools[0].function.strict"),
    (chat(tools=[{"type": "function", "function": {"name": "a", "returns": {}}}]),
     "tools[0].function.returns"),
    (chat(tools=[TOOL], tool_choice=""), "tool_choice"),
    (chat(tools=[TOOL], tool_choice=0), "tool_choice"),
    (chat(tools=[TOOL], tool_choice="required"), "tool_choice"),
    (chat(tools=[TOOL], tool_choice={"type": "function"}), "tool_choice"),
    (chat(functions=[{"name": "add"}]), "functions"),
    (chat(function_call="auto"), "function_call"),
    (chat(model=None), "model"),
    (chat(model=3), "model"),
    (chat(model=["tiny"]), "model"),
    (chat(model=HALF), "model"),
    (chat(n=0), "n"), (chat(n=-1), "n"), (chat(n=129), "n"), (chat(n=1.0), "n"), (chat(n="1"), "n"),
    (chat(n=True), "n"), (chat(n=[1]), "n"), (chat(n=10**30), "n"),
    (chat(max_tokens=0), "max_tokens"), (chat(max_tokens=-1), "max_tokens"),
    (chat(max_tokens=1.5), "max_tokens"), (chat(max_tokens=True), "max_tokens"),
    (chat(max_tokens="5"), "max_tokens"), (chat(max_tokens={}), "max_tokens"),
    (chat(max_tokens=5, max_completion_tokens=5), "max_tokens"),
    (chat(max_completion_tokens=0), "max_completion_tokens"),
    (chat(max_tokens=10**9), "messages"), (chat(max_tokens=10**40), "messages"),
    (chat(temperature=-0.1), "temperature"), (chat(temperature=101), "temperature"),
    (chat(temperature="1"), "temperature"), (chat(temperature=True), "temperature"),
    (chat(temperature=[]), "temperature"), (chat(temperature=10**400), "temperature"),
    (chat(top_p=0), "top_p"), (chat(top_p=1.1), "top_p"), (chat(top_p="1"), "top_p"),
    (chat(top_k=-2), "top_k"), (chat(top_k=0.5), "top_k"), (chat(top_k=2**31), "top_k"),
    (chat(seed=0.5), "seed"), (chat(seed="7"), "seed"), (chat(seed=2**63), "seed"),
    (chat(seed=True), "seed"),
    (chat(stop=3), "stop"), (chat(stop={}), "stop"), (chat(stop=""), "stop"),
    (chat(stop=[""]), "stop"), (chat(stop=[1]), "stop"), (chat(stop=["a"] * 17), "stop"),
    (chat(stop=["a" * 1001]), "stop"), (chat(stop=HALF), "stop"), (chat(stop=["a", HALF]), "stop[1]"),
    (chat(stop=False), "stop"),
    (chat(stream=1), "stream"), (chat(stream=1.0), "stream"), (chat(stream="true"), "stream"),
    (chat(stream=[]), "stream"),
    (chat(stream_options=[]), "stream_options"), (chat(stream_options=0), "stream_options"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(stream=True, stream_options={"include": True}), "stream_options"),
    (chat(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
    (chat(stream=True, stream_options={"include_obfuscation": "x"}),
     "stream_options.include_obfuscation"),
    (chat(logprobs=1), "logprobs"), (chat(logprobs="yes"), "logprobs"),
    (chat(top_logprobs=3), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=True), "top_logprobs"),
    (chat(logit_bias={"5": 3}), "logit_bias"), (chat(logit_bias=[]), "logit_bias"),
    (chat(logit_bias={"x": "y"}), "logit_bias"),
    (chat(frequency_penalty=0.5), "frequency_penalty"),
    (chat(frequency_penalty=False), "frequency_penalty"),
    (chat(presence_penalty="0"), "presence_penalty"), (chat(min_p=0.1), "min_p"),
    (chat(best_of=2), "best_of"), (chat(parallel_tool_calls=False), "parallel_tool_calls"),
    (chat(parallel_tool_calls=1), "parallel_tool_calls"),
    (chat(response_format={"type": "json_object"}), "response_format"),
    (chat(response_format="text"), "response_format"), (chat(modalities=["audio"]), "modalities"),
    (chat(user=5), "user"), (chat(user=HALF), "user"), (chat(metadata="x"), "metadata"),
    (chat(metadata={"a": HALF}), "metadata.a"), (chat(metadata={HALF: "a"}), "metadata"),
    (chat(store="no"), "store"), (chat(service_tier=1), "service_tier"),
    (chat(colour="red"), "colour"), (chat(temprature=1), "temprature"), (chat(**{"": 1}), ""),
    (chat(prompt="Hi"), "prompt"), (chat(input="Hi"), "input"),
    (chat(**{"x" * 1_000_000: "y"}), "x" * 200 + "..."),
    (chat(tools=[{"type": "function", "function": {"name": "a", "parameters": deep(97)}}]),
     "tools[0].function.parameters" + ".a" * 86 + "..."),
    (chat(metadata=deep(900, "")), "metadata" + "." * 99),
    (answered(tool_calls=[{**CALL, "function": {"name": "a", "arguments": json.dumps(deep(900))}}]),
     "messages[1].tool_calls[0].function.arguments" + ".a" * 78 + "..."),
    (said("a" * 600), "messages"), (said("a" * 1_000_000), "messages"),
    (said("🦉" * 100_000), "messages"), (said(" " * 1_000_000), "messages"),
    (chat(messages=[{"role": "user", "content": ""}] * 600), "messages"),
    (chat(messages=[{"role": "user", "content": "a"}] * 400), "messages"),
]  # fmt: skip

COMPLETIONS = [
    ({}, "prompt"), (completion(prompt=None), "prompt"), (completion(prompt=[]), "prompt"),
    (completion(prompt=3), "prompt"), (completion(prompt=True), "prompt"),
    (completion(prompt={}), "prompt"), (completion(prompt=[None]), "prompt"),
    (completion(prompt=[True]), "prompt"), (completion(prompt=[1.0]), "prompt"),
    (completion(prompt=[[]]), "prompt"), (completion(prompt=[[[1]]]), "prompt"),
    (completion(prompt=["a", 3]), "prompt"), (completion(prompt=[-1]), "prompt"),
    (completion(prompt=[275]), "prompt"), (completion(prompt=[10**30]), "prompt"),
    (completion(prompt=["a"] * 129), "prompt"), (completion(prompt=[1] * 600), "prompt"),
    (completion(prompt=HALF), "prompt"), (completion(prompt=["a", HALF]), "prompt[1]"),
    (completion(prompt="a" * 600), "prompt"), (completion(prompt="a" * 1_000_000), "prompt"),
    (completion(messages=[]), "messages"), (completion(tools=[TOOL]), "tools"),
    (completion(logprobs=True), "logprobs"), (completion(logprobs=21), "logprobs"),
    (completion(logprobs=-1), "logprobs"), (completion(logprobs="3"), "logprobs"),
    (completion(echo=True), "echo"), (completion(echo=0), "echo"), (completion(suffix="a"), "suffix"),
    (completion(suffix=3), "suffix"), (completion(best_of=0), "best_of"),
    (completion(max_tokens=0), "max_tokens"), (completion(max_tokens=600), "prompt"),
    (completion(max_completion_tokens=5), "max_completion_tokens"),
]  # fmt: skip
