"""Texts as tokens, given up early where no context holds them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_SLACK = 64  # tokens by which more text may shorten what stands before it
_TIMES = 4  # as often as the texts of one conversation may be read, in pieces and as a whole


class PromptTooLong(ValueError):
    """A prompt has more tokens than the context, however few of them a reply would have."""


def bounded(tokenizer: Any, context_length: int) -> Any:
    """The tokenizer, whose `encode` reads no more of a text than is needed to know that it is too long.

    A long text is read from its beginning, twice as much each time: the tokens of a beginning are those
    of the whole text but for a few at the cut, so when they are more than the context, no more is read.
    The work is bounded by the context, whatever a client sends; that for a text in many pieces is where
    they are read in `one_prompt`.
    """
    return Bounded(tokenizer, context_length)


class Bounded:
    """See `bounded`; everything but `encode` is the tokenizer's own."""

    def __init__(self, tokenizer: Any, context_length: int):
        self._tokenizer, self._context_length = tokenizer, context_length
        self._lock = threading.Lock()  # a tokenizer is not for several threads
        self._prompt = threading.local()

    def one_prompt(self, encode: Callable[..., list[int]]) -> Callable[..., list[int]]:
        """The function; all that this tokenizer encodes in one call of it is one prompt.

        Its arguments are messages and tools. Where they are long, their texts are read alone first,
        since to write a conversation is work too.
        """

        def bounded_encode(*arguments: Any) -> list[int]:
            found = list(texts(arguments))
            if sum(map(len, found)) > 4 * (self._context_length + _SLACK):
                with self._counted():
                    for text in found:
                        self.encode(text, add_special_tokens=False)
            with self._counted():
                return encode(*arguments)

        return bounded_encode

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._prompt.tokens = 0
        try:
            yield
        finally:
            self._prompt.tokens = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copies and pickles, which look before there are attributes
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self._tokenizer(*arguments, **settings)

    def encode(self, text: str, **settings: Any) -> list[int]:
        """The ids of a text.

        Raises:
            PromptTooLong: the text has more tokens than the context.
        """
        ids = self._encode(text, settings)
        if (tokens := getattr(self._prompt, "tokens", None)) is not None:
            self._prompt.tokens = tokens + len(ids)
            if self._prompt.tokens > _TIMES * (self._context_length + _SLACK):
                raise PromptTooLong(
                    f"This model's context has {self._context_length} tokens, and the prompt many more: "
                    "shorten it."
                )
        return ids

    def _encode(self, text: str, settings: dict[str, Any]) -> list[int]:
        most = self._context_length + _SLACK
        size = 4 * most  # most tokenizers need more tokens than that for none but blank texts
        with self._lock:
            while size < len(text):
                found = len(self._tokenizer.encode(text[:size], **settings))
                if found > most:
                    raise PromptTooLong(
                        f"This model's context has {self._context_length} tokens. The first {size} of "
                        f"{len(text)} characters of the prompt have {found}: shorten it."
                    )
                size *= 2
            return self._tokenizer.encode(text, **settings)


def texts(value: Any) -> Iterator[str]:
    """Every text in a value as JSON has it, keys included.

    Example:
        >>> list(texts([{"a": "b", "c": [1, "d"]}]))
        ['a', 'b', 'c', 'd']
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            waiting += reversed([part for pair in one.items() for part in pair])
        elif isinstance(one, list | tuple):
            waiting += reversed(one)
