"""Logits of the same tokens here and in transformers, and models for both."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.models import DecoderConfig, make_policy
from steprl.types import Params

try:
    import torch
except ImportError:  # a peer is not a dependency
    torch = None

FAMILIES = ("llama", "llama 3", "qwen2", "qwen3")
# Pairs turn 5.1, 1.6, 0.5, 0.16 ... times within 32 tokens: two kept, one interpolated, others slowed.
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=0.2, high_freq_factor=1.0,
    original_max_position_embeddings=32,
)  # fmt: skip


class Batch(NamedTuple):
    """Rows of tokens; places without a token have segment 0."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segment_ids_BT: np.ndarray


def padded(rows: Sequence[Sequence[int]], left: bool = True) -> Batch:
    """Prompts of any lengths as a batch, the padding on one side."""
    width = max(map(len, rows))
    tokens, real = np.zeros((2, len(rows), width), np.int32)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), None) if left else slice(len(row))
        tokens[number, columns], real[number, columns] = row, 1
    return Batch(tokens, np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0), real)


def packed(rows: Sequence[Sequence[int]]) -> Batch:
    """All prompts in one row, each its own segment."""
    parts = [
        (row, np.arange(len(row)), np.full(len(row), number))
        for number, row in enumerate(rows, start=1)
    ]
    return Batch(*(np.concatenate(x)[None].astype(np.int32) for x in zip(*parts, strict=True)))


@functools.cache
def compiled(config: DecoderConfig) -> Any:
    """params, batch and a cache or None -> logits [B, T, V] and the cache."""
    policy = make_policy(config)

    def logits(params: Params, batch: Batch, cache: Any = None) -> tuple[jax.Array, Any]:
        hidden, cache = policy.apply(params, *batch, cache)
        return policy.unembed(params, hidden), cache

    return jax.jit(logits)


def ours(config: DecoderConfig, params: Params, batch: Batch) -> np.ndarray:
    """Logits of all places, [B, T, V], without a cache."""
    return np.asarray(compiled(config)(params, batch)[0])


def ours_decoded(
    config: DecoderConfig, params: Params, batch: Batch, chunks: Sequence[int]
) -> np.ndarray:
    """The same, chunk after chunk with a cache of keys and values."""
    rows, width = batch.tokens_BT.shape
    assert sum(chunks) == width
    cache = make_policy(config).init_cache(rows, width + 2)
    parts, begin = [], 0
    for size in chunks:
        chunk = Batch(*(x[:, begin : begin + size] for x in batch))
        logits, cache = compiled(config)(params, chunk, cache)
        parts.append(np.asarray(logits))
        begin += size
    return np.concatenate(parts, axis=1)


def theirs(model: Any, batch: Batch) -> np.ndarray:
    """Logits of a model of transformers."""
    ids, positions, mask = (torch.from_numpy(x.astype(np.int64)) for x in batch)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions)
    return output.logits.float().numpy()


def random_model(family: str, tied: bool) -> Any:
    """A tiny model without any trivial part: no bias 0, no scale 1."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(FAMILIES.index(family) * 2 + tied)
    shape: dict[str, Any] = dict(
        vocab_size=250, hidden_size=64, intermediate_size=96, num_hidden_layers=3, initializer_range=0.2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, head_dim=16,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    if family == "qwen2":
        del shape["head_dim"]
    if family == "qwen3":
        shape["head_dim"] = 24  # not the width of the model over its heads
    if family == "llama 3":
        shape["rope_parameters"] = LLAMA3
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family.split()[0], **shape), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def transformers_model(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    if any(info.values()):
        raise ValueError(f"transformers did not load all of the export: {info}")
    return model.eval()
