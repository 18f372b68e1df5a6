"""Text that grows: nothing is shown that may still change, and all is shown at the end."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.serving import read_calls, read_text
from steprl.serving.conversation import message_format
from steprl.serving.text import split_calls
from steprl.tools import render_tool_call
from tests.models.chat_models import LLAMA, QWEN, chat_tokenizer
from tests.serving.tiny import chatml_tokenizer, scripted_pieces

TOKENIZER = chatml_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
few = settings(max_examples=80, deadline=None)


def decode(ids):
    return TOKENIZER.decode([one for one in ids if one != END])


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def deltas_of(text, size=1, stops=(), reason="length"):
    return list(read_text(scripted_pieces(ids_of(text), size, reason), decode, stops))


def shown(deltas):
    return "".join(delta.text for delta in deltas)


@few
@given(st.text(min_size=1), st.integers(1, 9))
def test_all_text_is_shown_and_never_half_a_character(text, size):
    text = text.replace("\ufffd", "?")
    deltas = deltas_of(text, size)
    assert shown(deltas) == text
    assert not any("\ufffd" in delta.text for delta in deltas)
    assert [one for delta in deltas for one in delta.piece.ids] == ids_of(text)


def test_the_bytes_of_an_emoji_wait_for_each_other():
    assert [delta.text for delta in deltas_of("a😀b")] == ["a", "", "", "", "😀", "b"]


def test_bytes_that_are_no_character_are_shown_at_the_end():
    half = ids_of("😀")[:3]
    deltas = list(read_text(scripted_pieces(half, 1, "length"), decode))
    assert [delta.text for delta in deltas] == ["", "", "\ufffd"]


@few
@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(text, stops, size):
    deltas = deltas_of(text + ".", size, stops)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not found:
        assert shown(deltas) == text + "." and deltas[-1].finish == "length"
        return
    assert shown(deltas) == text[: min(found)[1]] and deltas[-1].finish == "stop"
    # Tokens are those up to its end, whatever the size of the pieces.
    ids = [one for delta in deltas for one in delta.piece.ids]
    assert TOKENIZER.decode(ids) == text[: min(found)[0]]


def test_a_stop_string_is_held_back_until_it_is_known_to_be_none():
    texts = [delta.text for delta in deltas_of("x END y EN", stops=["END"])]
    assert "".join(texts) == "x " and texts[2:] == ["", "", ""]
    texts = [delta.text for delta in deltas_of("x EN y EN", stops=["END"])]
    assert "".join(texts) == "x EN y EN" and texts[2:5] == ["", "", "EN "]


def test_pieces_behind_a_stop_string_are_not_asked_for():
    pieces = scripted_pieces(ids_of("a.bcd"), 1)
    list(read_text(pieces, decode, ["."]))
    assert len(list(pieces)) == 3


CALL = render_tool_call("add", {"a": 1, "b": "<tool_call> and </tool_call>"})
OTHER = render_tool_call("sub", {})


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (CALL, "", ["add"]),
        (f"Look:\n{CALL}\n{OTHER} done", "Look:\n\n done", ["add", "sub"]),
        (f"{CALL}{OTHER}", "", ["add", "sub"]),
        (f"<think>maybe {OTHER}</think>{CALL}", f"<think>maybe {OTHER}</think>", ["add"]),
        (f"<think>maybe {OTHER}</think>no", f"<think>maybe {OTHER}</think>no", []),
        ("<tool_call>add 1 2</tool_call>", "<tool_call>add 1 2</tool_call>", []),
        (CALL[:-5], CALL[:-5], []),
        (CALL + "<tool_call>", CALL + "<tool_call>", []),
        ("1 < 2 <tool", "1 < 2 <tool", []),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_calls_are_taken_out_of_the_text_and_what_is_none_stays(text, content, names, size):
    assert split_calls(text)[0] == content
    deltas = list(read_calls(deltas_of(text, size, reason="stop_token")))
    assert [call.name for call in deltas[-1].calls] == names
    assert shown(deltas) == (content if content.strip() else "")
    assert deltas[-1].finish == ("tool_calls" if names else "stop")
    if names and "<think>" not in text:
        assert not any("<tool" in delta.text for delta in deltas)


BARE = '{"name": "add", "parameters": {"a": "</think> {"}}'


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (BARE, "", ["add"]),
        (f"<think>hm {BARE[:9]}</think>\n{BARE}", f"<think>hm {BARE[:9]}</think>", ["add"]),
        (f"{BARE}; {BARE}", "", ["add", "add"]),
        (f"So: {BARE}", f"So: {BARE}", []),
        ('{"name": "Ada"}', '{"name": "Ada"}', []),
        (BARE[:-1], BARE[:-1], []),
    ],
)
@pytest.mark.parametrize("size", [1, 5])
def test_calls_without_tags_are_taken_out_where_the_model_writes_them_so(
    text, content, names, size
):
    deltas = list(read_calls(deltas_of(text, size, reason="stop_token"), bare=True))
    assert [call.name for call in deltas[-1].calls] == names
    assert shown(deltas).strip() == content
    assert split_calls(text) == (text, ())  # and nowhere else


def test_a_call_in_a_thought_that_the_prompt_opened_is_none():
    assert split_calls(f"perhaps {CALL}", opened="<think>\n") == (f"perhaps {CALL}", ())
    content, calls = split_calls(f"perhaps {OTHER}</think> {CALL}", opened="<think>\n")
    assert content == f"perhaps {OTHER}</think> " and [call.name for call in calls] == ["add"]


def test_the_form_is_that_of_the_chat_template():
    assert message_format(chat_tokenizer(LLAMA)).bare
    assert not message_format(chat_tokenizer(QWEN)).bare


@few
@given(
    st.lists(
        st.text(max_size=8)
        | st.sampled_from(["<tool_call>", "</tool_call>", "</think>", CALL, OTHER])
        | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2).map(json.dumps),
        min_size=1,
        max_size=8,
    ).map("".join),
)
def test_no_text_is_lost_and_none_raises(text):
    if not text or "\ufffd" in text:
        return
    content, calls = split_calls(text)
    assert calls or content == text
    deltas = list(read_calls(deltas_of(text, 2)))
    if not calls:
        assert shown(deltas) == text
