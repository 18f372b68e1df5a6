"""Answers in OpenAI's form, whole and in chunks.

Each choice has three fields more: `token_ids`, exactly as sampled, stop token included; with log-probs
also `sampling_logprobs`, under the distribution that was really sampled from (temperature, top-k and
top-p applied), where OpenAI's fields hold those of the model itself.
"""

import itertools
import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from steprl.serving.generation import Piece
from steprl.serving.protocol import Options
from steprl.serving.text import Delta

TokenText = Callable[[int], str]


class Head(NamedTuple):
    """What all parts of one answer begin with."""

    id: str
    created: int
    model: str
    chat: bool

    def fields(self, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion" + ".chunk" * chunk if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def new_head(model: str, chat: bool) -> Head:
    """A new answer."""
    prefix = "chatcmpl-" if chat else "cmpl-"
    return Head(prefix + secrets.token_hex(12), int(time.time()), model, chat)


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """Numbers of tokens; `cached` ones of the prompt were not computed again."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def choice(
    head: Head, index: int, deltas: Sequence[Delta], options: Options, token_text: TokenText
) -> dict[str, Any]:
    """One reply from all its deltas."""
    text = "".join(delta.text for delta in deltas)
    ids = [token for delta in deltas for token in delta.piece.ids]
    fields: dict[str, Any] = {"index": index}
    if head.chat:
        calls = [call for delta in deltas for call in delta.calls]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text if text.strip() else None
            message["tool_calls"] = tool_calls(deltas[-1])
        fields["message"] = message
    else:
        fields["text"] = text
    fields["logprobs"] = None
    if options.logprobs:
        pieces = [delta.piece for delta in deltas]
        fields |= _logprobs(head, pieces, token_text, options.top_logprobs)
    return fields | {"finish_reason": deltas[-1].finish, "token_ids": ids}


def chunk_choice(
    head: Head,
    index: int,
    delta: Delta,
    options: Options,
    token_text: TokenText,
    offset: int = 0,
    first: bool = False,
) -> dict[str, Any]:
    """One delta of a reply; `offset` counts characters of the tokens before it."""
    fields: dict[str, Any] = {"index": index}
    if head.chat:
        change: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
        if delta.text:
            change["content"] = delta.text
        if delta.calls:
            calls = tool_calls(delta)
            change["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        fields["delta"] = change
    else:
        fields["text"] = delta.text
    fields["logprobs"] = None
    if options.logprobs and delta.piece.ids:
        fields |= _logprobs(head, [delta.piece], token_text, options.top_logprobs, offset)
    return fields | {"finish_reason": delta.finish, "token_ids": list(delta.piece.ids)}


def tool_calls(delta: Delta) -> list[dict[str, Any]]:
    """Calls as OpenAI writes them, arguments as JSON text."""
    return [
        {
            "id": "call_" + secrets.token_hex(12),
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in delta.calls
    ]


def _logprobs(
    head: Head, pieces: Sequence[Piece], token_text: TokenText, top: int, offset: int = 0
) -> dict[str, Any]:
    ids = [one for piece in pieces for one in piece.ids]
    logprobs = [one for piece in pieces for one in piece.logprobs]
    tops = [one for piece in pieces for one in piece.top]
    names = [token_text(one) for one in ids]
    sampling = [one for piece in pieces for one in piece.sampling_logprobs]
    if head.chat:
        content = [
            {
                **_token(name, logprob),
                "top_logprobs": [_token(token_text(one), value) for one, value in likely[:top]],
            }
            for name, logprob, likely in zip(names, logprobs, tops, strict=True)
        ]
        return {"logprobs": {"content": content, "refusal": None}, "sampling_logprobs": sampling}
    offsets = list(itertools.accumulate(map(len, names), initial=offset))[:-1]
    likely_ones = [
        {token_text(one): value for one, value in reversed(likely[:top])} for likely in tops
    ]
    return {
        "logprobs": {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": likely_ones if top else None,
            "text_offset": offsets,
        },
        "sampling_logprobs": sampling,
    }


def _token(name: str, logprob: float) -> dict[str, Any]:
    # The bytes of half a character cannot be recovered from its text.
    encoded = None if "\ufffd" in name else list(name.encode("utf-8"))
    return {"token": name, "logprob": logprob, "bytes": encoded}
