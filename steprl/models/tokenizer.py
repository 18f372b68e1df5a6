"""A tokenizer for environments with a small fixed language: whole phrases are tokens."""

import codecs
import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from steprl.models.generation import end_ids

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def phrase_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokens are the longest phrases of the vocabulary; blanks between them are skipped.

    Ids: 0 `<pad>`, 1 `<end>` (ends an action), 2 `<unk>`, then the vocabulary in order.

    Args:
        vocabulary: distinct phrases, such as "You arrive at", "cabinet", "12".

    Raises:
        ValueError: a phrase occurs twice, is blank, or has a special token's name.
    """
    names = [PAD, END, UNKNOWN, *vocabulary]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"vocabulary: these phrases occur twice or are special: {twice}")
    if any(not name.strip() for name in names):
        raise ValueError("vocabulary: a phrase is blank")
    ids = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    # A phrase that ends in a letter or digit must not end inside a word.
    by_length = sorted(vocabulary, key=len, reverse=True)
    phrases = [
        re.escape(p).replace("/", r"\/") + (r"(?!\w)" if p[-1].isalnum() else "") for p in by_length
    ]
    piece = "|".join([*phrases, r"\w+", r"[^\w\s]"])
    backend.pre_tokenizer = Split(Regex(piece), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def detokenize(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> str:
    """The text view of some ids. It never goes back into training: what was sampled is kept as ids.

    Of a phrase tokenizer: phrases joined by blanks, none before punctuation, `<end>` dropped. A `<pad>`
    that was sampled stays to be seen, and makes a command the nonsense that it is. Of any other: what
    it decodes, special tokens included, but for one that ends the sequence.
    """
    numbers, end = [int(i) for i in ids], tokenizer.eos_token_id
    if not isinstance(tokenizer.backend_tokenizer.model, WordLevel):
        numbers = numbers[:-1] if numbers and numbers[-1] in end_ids(tokenizer) else numbers
        return str(tokenizer.decode(numbers, clean_up_tokenization_spaces=False))
    words = tokenizer.convert_ids_to_tokens([i for i in numbers if i != end])
    return re.sub(r" ([,.?;:!])", r"\1", " ".join(words))


def unknown_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The words of a text that become `unk_token`, in their order."""
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    places = zip(found.ids, found.offsets, strict=True)
    return [text[begin:end] for token, (begin, end) in places if token == tokenizer.unk_token_id]


def token_texts(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> list[str]:
    """The text of each token as a reader should see it, without signs of a vocabulary (Ġ, Ċ, ▁, <0x0A>).

    Of a phrase tokenizer: the phrases. Of any other: parts that add up to the text, special tokens
    included. A character that takes several tokens is with the last of them, and the others are "";
    bytes that are no character are U+FFFD.
    """
    numbers, backend = [int(i) for i in ids], tokenizer.backend_tokenizer
    pieces = tokenizer.convert_ids_to_tokens(numbers)
    if isinstance(backend.model, WordLevel):
        return [piece or "" for piece in pieces]
    added = backend.get_added_tokens_decoder()
    by_byte = _BYTE_OF_SIGN if "ByteLevel(" in str(backend.decoder) else None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts = []
    for number, piece in zip(numbers, pieces, strict=True):
        if number in added:
            data = added[number].content.encode()
        else:
            data = _bytes_of(piece or "", by_byte)  # an id without a token says nothing
        parts.append(decoder.decode(data))
    if parts:
        parts[-1] += decoder.decode(b"", final=True)
    return parts


def _bytes_of(piece: str, by_byte: dict[str, int] | None) -> bytes:
    if by_byte is not None:
        return b"".join(bytes([by_byte[c]]) if c in by_byte else c.encode() for c in piece)
    if _FALLBACK.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _byte_signs() -> dict[str, int]:
    """The byte that each sign of a byte-level vocabulary stands for: itself if it can be printed, else
    one from U+0100 on, as in GPT-2."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    signs = {chr(byte): byte for byte in printed}
    return signs | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_SIGN = _byte_signs()
_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
