"""A tokenizer for environments with a small fixed language: whole phrases are tokens."""

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from steprl.models.generation import end_ids
from steprl.models.plain_text import unshield

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
    """The words of a text that become `unk_token`, in their order; marks of `plain_text` are none."""
    plain = unshield(text)
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(plain)
    known = tokenizer.get_vocab()
    return [word for word, _ in words if word not in known]
