"""A prompt that no context holds is refused before it is read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.serving import make_app, serve_model
from steprl.serving.prompts import PromptTooLong, bounded
from tests.serving.malformed import CHAT, COMPLETION, chat, completion, post
from tests.serving.tiny import chatml_tokenizer, tiny_opened

pytest.importorskip("fastapi")


class Counting:
    """A tokenizer that counts the characters that it reads."""

    def __init__(self, tokenizer):
        self._tokenizer, self.read = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __len__(self):
        return len(self._tokenizer)

    def encode(self, text, **settings):
        self.read += len(text)
        return self._tokenizer.encode(text, **settings)


@pytest.mark.parametrize("unit", ["a", "word ", " ", "🦉", "<|im_end|>", "\n", "<"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_a_prompt_that_no_context_holds_is_hardly_read(path, unit):
    opened = tiny_opened(length=512)
    opened = opened._replace(tokenizer=Counting(opened.tokenizer))
    served = serve_model(opened, "tiny")
    opened.tokenizer.read = 0
    text = unit * (500_000 // len(unit))
    body = chat() if path == CHAT else completion(prompt=text)
    if path == CHAT:
        body["messages"][0]["content"] = text
    answer = post(make_app(served), path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert opened.tokenizer.read < 64 * 512  # of half a million


def test_many_messages_are_one_prompt(monkeypatch):
    """Each fits into the context, and together they do not: they are hardly read, nor written."""
    opened = tiny_opened(length=512)
    opened = opened._replace(tokenizer=Counting(opened.tokenizer))
    app = make_app(serve_model(opened, "tiny"))
    opened.tokenizer.read = 0
    monkeypatch.setattr(opened.tokenizer._tokenizer, "apply_chat_template", None)
    answer = post(app, CHAT, chat(messages=[{"role": "user", "content": "a" * 400}] * 400))
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert opened.tokenizer.read < 64 * 512


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["a", " ", "\n", "word", "🦉", "<|im_end|>", "é", "  "]), max_size=40),
    st.integers(1, 60),
)
def test_an_early_refusal_is_never_wrong(parts, times):
    """What is given up has more tokens than the context; what is not has the tokens it always had."""
    text, tokenizer = "".join(parts) * times, chatml_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    try:
        found = bounded(tokenizer, 32).encode(text, add_special_tokens=False)
    except PromptTooLong:
        assert len(ids) > 32
    else:
        assert found == ids


def test_a_bounded_tokenizer_is_otherwise_the_same():
    tokenizer = chatml_tokenizer()
    same = bounded(tokenizer, 32)
    assert len(same) == len(tokenizer) and same.eos_token_id == tokenizer.eos_token_id
    assert same("Hi")["input_ids"] == tokenizer("Hi")["input_ids"]
