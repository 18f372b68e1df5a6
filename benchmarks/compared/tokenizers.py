"""Texts of many kinds through two tokenizers, or three."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import steprl.envs.wiki_search

WORDS = (
    " ", "  ", "    ", "\t", "\n", "\r\n", "7", "1999", "3.14", "-", "a", "The", "don't", "def f(x):",
    "x_1 = {}", "**", "</a>", "<tool_call>", '{"a": [1, 2]}', "\\n", "é", "ß", "Ł", "日本", "русский",
    "🦉", "👩\u200d🔬", "🇩🇰", "½", "\u0301", "\u200b", "\u00a0", "\x00", "\x7f", "\ufffd",
)  # fmt: skip


class Compared(NamedTuple):
    """How many there were, and how many did not agree."""

    chats: int
    other_chats: int
    texts: int
    other_texts: int
    other_decoded: int
    otherwise_split: int | None  # as transformers reads the GGUF file
    otherwise_merged: int | None  # the same vocabulary and merges, split as here


def sample(name: str, *fields: str) -> list[str]:
    """Texts of the questions or passages that come with the package."""
    folder = Path(steprl.envs.wiki_search.__path__[0]) / "sample"
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[field] for line in lines for field in fields]


def mixed(count: int, seed: int = 0) -> list[str]:
    """Words, blanks, digits, code and emoji in any order."""
    draw = random.Random(seed)
    return ["".join(draw.choices(WORDS, k=draw.randrange(1, 20))) for _ in range(count)]


def compare(own: Any, exported: Path, file: Path | None) -> Compared:
    """The tokenizer of a GGUF file against the one that was exported and loaded by transformers.

    Args:
        own: our tokenizer.
        exported: a directory that `save_pretrained` wrote.
        file: the GGUF file, for transformers to read by itself; None not to. It leaves out what
            splits digits off before anything else ("smollm" of llama.cpp), so that blanks before
            one are merged otherwise. So it is called again with the words split as here.
    """
    from transformers import AutoTokenizer

    reloaded = AutoTokenizer.from_pretrained(exported)
    texts = [*sample("questions", "question"), *sample("passages", "title", "text"), *mixed(5000)]
    chats = [[{"role": "user", "content": text}] for text in texts[::10]]
    system, answer = (
        {"role": "system", "content": "You search."},
        {"role": "assistant", "content": " 12"},
    )
    chats += [[system, *chat, answer, *chat] for chat in chats[::10]]

    def prompts(tokenizer: Any) -> list[list[int]]:
        return tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)

    ids = own(texts).input_ids
    otherwise_split = otherwise_merged = None
    if file is not None:
        from_gguf = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        otherwise_split = _differ(ids, from_gguf(texts).input_ids)
        from_gguf.backend_tokenizer.pre_tokenizer = own.backend_tokenizer.pre_tokenizer
        otherwise_merged = _differ(ids, from_gguf(texts).input_ids)
    return Compared(
        chats=len(chats),
        other_chats=_differ(prompts(own), prompts(reloaded)),
        texts=len(texts),
        other_texts=_differ(ids, reloaded(texts).input_ids),
        other_decoded=_differ([own.decode(row) for row in ids], texts),
        otherwise_split=otherwise_split,
        otherwise_merged=otherwise_merged,
    )


def _differ(left: Sequence[Any], right: Sequence[Any]) -> int:
    return sum(a != b for a, b in zip(left, right, strict=True))
