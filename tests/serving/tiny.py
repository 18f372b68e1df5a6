"""A tiny random chat model, and an engine that says what a test tells it to."""

import jax

from steprl.models import DecoderConfig, make_policy
from steprl.serving import Piece
from steprl.session import Opened
from tests.models.chat_models import CHATML, chat_tokenizer
from tests.models.random_models import random_parameters

VOCABULARY = 275


def chatml_tokenizer(template=CHATML, length=512):
    """Bytes are tokens, and replies end with `<|im_end|>`."""
    tokenizer = chat_tokenizer(template)
    tokenizer.model_max_length = length
    assert len(tokenizer) == VOCABULARY
    return tokenizer


def tiny_opened(template=CHATML, length=512):
    """Random, and sharp enough that tokens are not all alike."""
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        d_ff=32,
        value_head="none",
    )
    params = jax.tree.map(jax.numpy.asarray, random_parameters(config, 0, 0.4))
    tokenizer = chatml_tokenizer(template, length)
    return Opened(make_policy(config), params, tokenizer, config, None)


def scripted_pieces(ids, size=1, reason="stop_token"):
    """A reply with these tokens, in pieces of a size."""
    for begin in range(0, len(ids), size):
        part = tuple(ids[begin : begin + size])
        zeros = (0.0,) * len(part)
        ended = begin + size >= len(ids)
        yield Piece(part, zeros, zeros, ((),) * len(part), reason if ended else "running")


class Scripted:
    """In place of an engine: replies with the tokens of some texts, one a request."""

    def __init__(self, tokenizer, texts, context_length=4096, size=3, reason="stop_token"):
        self.context_length, self.prompts = context_length, []
        self._tokenizer, self._texts = tokenizer, list(texts)
        self._size, self._reason = size, reason

    def reply(self, prompt, sampling):
        self.prompts.append(self._tokenizer.decode(prompt))
        ids = self._tokenizer.encode(self._texts.pop(0), add_special_tokens=False)
        if self._reason == "stop_token":
            ids.append(sampling.stop_ids[0])
        yield from scripted_pieces(ids, self._size, self._reason)
