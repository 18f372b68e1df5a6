"""Texts as tokens, given up early where no context holds them."""

import threading
from typing import Any

_SLACK = 64  # tokens by which more text may shorten what stands before it


class PromptTooLong(ValueError):
    """A prompt has more tokens than the context, however few of them a reply would have."""


def bounded(tokenizer: Any, context_length: int) -> Any:
    """The tokenizer, whose `encode` reads no more of a text than is needed to know that it is too long.

    A long text is read from its beginning, twice as much each time: the tokens of a beginning are those
    of the whole text but for a few at the cut, so when they are more than the context, no more is read.
    The work is bounded by the context, whatever a client sends.
    """
    return _Bounded(tokenizer, context_length)


class _Bounded:
    def __init__(self, tokenizer: Any, context_length: int):
        self._tokenizer, self._context_length = tokenizer, context_length
        self._lock = threading.Lock()  # a tokenizer is not for several threads

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
