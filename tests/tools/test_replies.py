"""What a reply says: tags are parsed, thoughts never count, tags inside JSON strings are text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.mini_shop.commands import read_command
from steprl.envs.wiki_search.calls import read_calls
from steprl.tools import (
    ToolCall,
    last_answer,
    make_tools,
    parse_tool_calls,
    read_reply,
    render_tool_call,
)
from tests.tools.functions import add, search

TOOLS = make_tools([search, add])
CALL = render_tool_call("search", {"query": "Ada"})
TRICKY = render_tool_call(
    "search", {"query": "</think> </tool_call> <answer>Paris</answer> <think>"}
)
ANSWER = "<answer>Paris</answer>"
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<analysis>",
     "</analysis>", "<THINK a='1'>", "</Think >", '{"name": "search"', '"', "}", ANSWER, CALL, TRICKY, "x"]
)  # fmt: skip
SOUP = st.lists(PIECES | TEXT, max_size=12).map("".join)
few = settings(max_examples=60, deadline=None)


# Thoughts.


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (f"<think>It may be {ANSWER}, or", ""),  # cut off in the thought
        (f"<think>It may be {ANSWER}</think> <answer>Rome</answer>", "Rome"),
        (f"It may be {ANSWER}, or</think><answer>Rome</answer>", "Rome"),  # opened by the prompt
        (f"{ANSWER} <think>or <answer>Rome</answer>", "Paris"),
        (f"<think>a</think>{ANSWER}<think>b <answer>Rome</answer></think>", "Paris"),
        (f"<think>a <think>b</think> {ANSWER}", ""),  # nested: the outer one is open
        (f"<think>a <think>b</think> c</think> {ANSWER}", "Paris"),
        (f"<think>a</think></think> {ANSWER}", "Paris"),
        (f"{ANSWER}</think>", ""),  # all of it was thought
        (f"<THINK>hm {ANSWER}", ""),
        (f'<think type="slow">hm {ANSWER}', ""),
        (f"<think >hm {ANSWER}", ""),
        (f"<think>hm</THINK > {ANSWER}", "Paris"),
        (f"<think/>{ANSWER}", "Paris"),
        (f"<analysis>hm {ANSWER}", ""),
        (f"<analysis>hm</analysis> {ANSWER}", "Paris"),
        (f"<analysis>hm <think>well</analysis> {ANSWER}", "Paris"),  # closes what is in it
        (f"<reasoning>hm {ANSWER}", ""),
        (f"<thinking>hm {ANSWER}", ""),
        (f"<think>use <answer> tags</think>{ANSWER}", "Paris"),
        (f"<think>use <tool_call> tags</think>{ANSWER}", "Paris"),
        (f"<think>use <tool_call>{{...}} here</think>{ANSWER}", "Paris"),
        (f'<think>{{"name": "f", "parameters": {{"q": "</think>{ANSWER}"}}}} or', ""),
        (f'<think>as {{"a": "</think>"}} or {{"b</think>{ANSWER}', "Paris"),
        (f"I use <tool_call> tags.</think>{ANSWER}", "Paris"),
        ("<think>Paris", ""),
        ("<think>hm</think> Paris ", "Paris"),
        ("<answer>Pa<think>hm</think>ris</answer>", "Paris"),
        ("<answer>Paris<think></answer>", "<answer>Paris"),
        ("I think it is Paris", "I think it is Paris"),
        ("a < b, <thinker> and <b>", "a < b, <thinker> and <b>"),
    ],
)
def test_nothing_inside_a_thought_is_an_answer(reply, answer):
    assert last_answer(reply)[0] == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<ANSWER>Paris</Answer>", "Paris"),
        ('<answer lang="fr">Paris</answer>', "Paris"),
        ("</answer>Rome<answer>Paris</answer>", "Paris"),  # in the wrong order
        ("<answer><answer>Paris</answer></answer>", "Paris"),
        ("<answer>Rome</answer><answer>Paris</answer>", "Paris"),  # the last one
        ("<answer>Paris</answer><answer>Ro", "Paris"),  # the last one that is complete
        (f"<answer>Paris</answer> {TRICKY.replace('Paris', 'Rome')}", "Paris"),
        ("<answers>Paris</answers>", "<answers>Paris</answers>"),
    ],
)
def test_the_last_complete_answer_counts(reply, answer):
    assert last_answer(reply)[0] == answer


BALANCED = st.lists(
    st.sampled_from(
        ["<think>hm</think>", "<analysis>a <think>b</think></analysis>", "<think>", "<Think>", "<answer>",
         ANSWER, CALL, TRICKY, CALL[:-14], f"<think>{TRICKY}</think>", "x",
         '{"name": "search", "parameters": {}}', '{"q": "</think>"}']
    ) | TEXT.map(lambda text: text.replace("</", "")),
    max_size=12,
).map("".join)  # fmt: skip


@given(BALANCED)
@few
def test_an_open_thought_before_anything_that_does_not_close_it_yields_nothing(text):
    for thought in ("<think>", "<THINK>\n", "<analysis>", "well <think>"):
        reply = read_reply(thought + text, TOOLS)
        assert (reply.answers, reply.calls, reply.errors) == ((), [], [])
        assert reply.thinking and reply.text == thought.partition("<")[0]


@given(SOUP)
@few
def test_any_text_is_read_and_a_closed_thought_before_it_changes_nothing(text):
    plain = read_reply(text, TOOLS)
    behind = read_reply(f"<think>{ANSWER}{CALL}</think>" + text, TOOLS)
    assert behind._replace(spans=()) == plain._replace(spans=())
    assert all(0 <= start < end <= len(text) for start, end in plain.spans)
    assert len(plain.calls) + len(plain.errors) <= 65


# Calls.


@given(
    st.dictionaries(TEXT | PIECES, SOUP | st.integers() | st.lists(SOUP, max_size=2), max_size=3)
)
@few
def test_arguments_of_any_text_come_back(arguments):
    text = render_tool_call("f", arguments)
    call = ToolCall(0, "f", arguments)
    assert parse_tool_calls(f"<think>{text}</think>{text} and on") == ([call], [])
    assert parse_tool_calls(f"hm</think>\n{text}") == ([call], [])
    assert parse_tool_calls(f"<think>{text}") == ([], [])
    bare = json.dumps({"name": "f", "parameters": arguments}, ensure_ascii=False)
    assert parse_tool_calls(bare, bare=True) == ([call], [])


def test_environments_call_what_is_said_and_not_what_is_thought():
    [call] = read_calls(f"<think>{CALL} or {TRICKY}</think>\n{TRICKY}", 4)
    assert call.arguments["query"].startswith("</think>")
    assert read_calls(f"<think>perhaps {CALL}", 4) == []
    command = render_tool_call("env_step", {"command": "search[</think> tea]"})
    assert read_command(f"<think>hm</think>{command}")[0].text == "search[</think> tea]"
    assert read_command("<think>hm</think> click[Buy Now]")[0].argument == "buy now"
    assert read_command("<think>click[Buy Now]") == (None, "there is no command")


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        (CALL[:-14], ["unclosed"]),  # its end tag is missing
        (CALL[:-16], ["unclosed"]),
        ('<tool_call>{"name": "search", "arguments": {"query": "a </think> b', ["unclosed"]),
        ("<tool_call>{'name': 'a </think> b'}</tool_call>", ["bad_json"]),
        (f"<tool_call>x <think> {CALL}", ["unclosed"]),
    ],
)
def test_calls_that_are_broken_are_errors_and_no_answer(reply, kinds):
    calls, errors = parse_tool_calls(reply, TOOLS)
    assert calls == [] and [error.kind for error in errors] == kinds


# Calls without tags, as Llama 3 writes them.

BARE = '{"name": "search", "parameters": {"query": "Ada"}}'


@pytest.mark.parametrize(
    "reply",
    [
        BARE,
        f"\n<|python_tag|>{BARE}<|eom_id|>",
        BARE.replace("parameters", "arguments"),
        '{"type": "function", ' + BARE[1:],
        f"<think>hm {BARE}</think>\n{BARE}",
        CALL.replace("arguments", "parameters"),
    ],
)
def test_a_reply_that_is_only_an_object_is_a_call(reply):
    assert parse_tool_calls(reply, TOOLS) == ([ToolCall(0, "search", {"query": "Ada"})], [])


def test_several_objects_are_several_calls():
    for between in ("\n", "; ", ", "):
        calls, errors = parse_tool_calls(BARE + between + BARE, TOOLS)
        assert [call.place for call in calls] == [0, 1] and errors == []


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (BARE[:-1], "bad_json"),
        (BARE.replace("search", "serch"), "unknown_tool"),
        (BARE.replace("query", "words"), "bad_arguments"),
        (BARE.replace('"name"', '"x": 1, "name"'), "bad_form"),
        (BARE.replace('{"query": "Ada"}', '"Ada"'), "bad_form"),
        (BARE[:-1] + ', "arguments": {}}', "bad_form"),
    ],
)
def test_what_is_wrong_with_an_object_is_said(reply, kind):
    calls, errors = parse_tool_calls(reply, TOOLS)
    assert calls == [] and [error.kind for error in errors] == [kind]


def test_text_behind_an_object_is_an_error_beside_the_call():
    calls, [error] = parse_tool_calls(BARE + " please", TOOLS)
    assert (calls[0].place, error.place, error.kind) == (0, 1, "bad_json")


@pytest.mark.parametrize(
    "reply",
    [f"So: {BARE}", '{"name": "Ada"}', '{"name": "Ada", "age": 3}', "{}", "{", "[1]", f"```\n{BARE}\n```"],
)  # fmt: skip
def test_other_json_is_an_answer(reply):
    assert parse_tool_calls(reply, TOOLS) == ([], [])
    assert last_answer(reply) == (reply, False)


def test_objects_are_calls_only_where_there_are_tools():
    assert parse_tool_calls(BARE) == parse_tool_calls(BARE, TOOLS, bare=False) == ([], [])
