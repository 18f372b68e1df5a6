"""The phrase tokenizer: the longest phrase wins, nothing is lost, nothing ends inside a word."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from steprl.models import phrase_tokenizer
from steprl.models.tokenizer import END, PAD, UNKNOWN, detokenize, token_texts
from tests.models.chat_models import CHATML, chat_tokenizer

PHRASES = ("go", "go to", "cabinet", "cabinet 1", "1", "12", "ok.", ".", "a/b", "x+y", "on|in", ",")


@pytest.fixture(scope="module")
def tokenizer():
    return phrase_tokenizer(PHRASES)


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("go to cabinet 1", ["go to", "cabinet 1"]),
        ("go  go to", ["go", "go to"]),
        ("cabinet 12", ["cabinet", "12"]),  # "cabinet 1" would end inside a number
        ("cabinet 123", ["cabinet", UNKNOWN]),
        ("goto", [UNKNOWN]),
        ("go tomorrow", ["go", UNKNOWN]),
        ("ok. ok", ["ok.", UNKNOWN]),
        ("go.", ["go", "."]),
        ("1,12", ["1", ",", "12"]),
        ("a/b x+y on|in", ["a/b", "x+y", "on|in"]),  # signs of regular expressions are only signs
        ("a x on", [UNKNOWN] * 3),
        ("Go ?", [UNKNOWN, UNKNOWN]),
        ("élan vital", [UNKNOWN, UNKNOWN]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_text_is_split_into_the_longest_phrases(tokenizer, text, expected):
    assert pieces(tokenizer, text) == expected


def test_ids_are_special_tokens_then_the_vocabulary_in_order(tokenizer):
    names = [PAD, END, UNKNOWN, *PHRASES]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(len(names)))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) == len(names)


@pytest.mark.parametrize(
    ("vocabulary", "says"),
    [
        (("go", "stay", "go"), "'go'"),
        (("go", END), END),
        (("go", " "), "blank"),
        (("go", ""), "blank"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(vocabulary, says):
    with pytest.raises(ValueError, match=says):
        phrase_tokenizer(vocabulary)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["go to", "cabinet", "12", END], "go to cabinet 12"),
        (["go", ",", "go", "."], "go, go."),
        ([PAD, "go", END], f"{PAD} go"),
        ([UNKNOWN, "go"], f"{UNKNOWN} go"),
        ([END], ""),
        ([], ""),
    ],
)
def test_the_text_view_joins_phrases(tokenizer, names, expected):
    assert detokenize(tokenizer, tokenizer.convert_tokens_to_ids(names)) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["go to", "cabinet", "12", ",", "x+y"])))
def test_the_text_view_of_whole_phrases_reads_back_as_the_same_ids(names):
    tokenizer = phrase_tokenizer(PHRASES)
    ids = tokenizer.convert_tokens_to_ids(names)
    assert tokenizer.encode(detokenize(tokenizer, ids)) == ids


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_text_is_refused(text):
    tokenizer = phrase_tokenizer(PHRASES)
    ids = tokenizer.encode(text)
    assert all(0 <= i < len(tokenizer) for i in ids)


# The text of each token


@functools.cache
def byte_level():
    return chat_tokenizer(CHATML)


def sentence_pieces():
    """Pieces with ▁ for a blank, and a byte where no piece fits."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁hello", "▁wor", "ld", "<unk>"]
    ids = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(ids, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@given(st.data())
def test_the_texts_of_tokens_add_up_to_the_text(data):
    tokenizer = byte_level()
    number = st.integers(0, len(tokenizer) - 1)  # any bytes, half characters among them
    ids = data.draw(st.lists(number, max_size=8))
    ids += tokenizer.encode(data.draw(st.text(max_size=8)))
    parts = token_texts(tokenizer, ids)
    assert len(parts) == len(ids)
    assert "".join(parts) == tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def test_signs_of_a_vocabulary_are_not_shown():
    tokenizer = byte_level()
    parts = token_texts(tokenizer, tokenizer.encode("a é\n😀Ġ", add_special_tokens=False))
    assert "".join(parts) == "a é\n😀Ġ"  # the sign itself is text like any other
    assert parts.count("") == 1 + 3 + 1 and " " in parts and "\n" in parts
    tokenizer = sentence_pieces()
    ids = tokenizer.convert_tokens_to_ids(["▁hello", "▁wor", "ld", "<0x0A>", "<0xC3>", "<0xA9>"])
    assert token_texts(tokenizer, ids) == [" hello", " wor", "ld", "\n", "", "é"]
    assert token_texts(tokenizer, ids[:5]) == [" hello", " wor", "ld", "\n", "\ufffd"]


def test_the_texts_of_phrases_are_the_phrases(tokenizer):
    names = ["go to", "1", END, PAD]
    assert token_texts(tokenizer, tokenizer.convert_tokens_to_ids(names)) == names
