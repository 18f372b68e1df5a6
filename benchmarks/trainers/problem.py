"""The input of every contender: one model, one batch and one optimiser, from names and seeds.

Imports only NumPy, so that each contender may live in an environment of its own.
"""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

STEPS, GROUP = 4, 4  # agent steps a row; rows that attempt the same task
KL, CLIP, DUAL_CLIP, VALUE, LAMBDA = 0.04, 0.2, 3.0, 0.5, 0.95  # coefficients of the losses
ADAM = dict(learning_rate=1e-5, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01)
MAX_NORM = 1.0  # of the gradient
ROPE_THETA, NORM_EPS = 1e6, 1e-5  # theta is fixed in the Llama of tunix 0.1.7


class Shape(NamedTuple):
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    head: int = 64


SHAPES = {
    "tiny": Shape(2, 64, 192, 2, 1, 512, 32),
    "30M": Shape(8, 384, 1024, 6, 2, 49152),
    "135M": Shape(30, 576, 1536, 9, 3, 49152),
}


def names(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Parameters as `transformers` calls them; linear layers are [out, in]."""
    width, keys = shape.width, shape.kv_heads * shape.head
    yield "model.embed_tokens.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        inner = {
            "self_attn.q_proj": (shape.heads * shape.head, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, shape.heads * shape.head),
            "mlp.gate_proj": (shape.feed_forward, width),
            "mlp.up_proj": (shape.feed_forward, width),
            "mlp.down_proj": (width, shape.feed_forward),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        for name, size in inner.items():
            yield f"model.layers.{layer}.{name}.weight", size
    yield "model.norm.weight", (width,)


def value_head(shape: Shape) -> dict[str, np.ndarray]:
    """[out, in]: a tanh layer and a linear output."""
    sizes = {"hidden.weight": (shape.width, shape.width), "hidden.bias": (shape.width,)}
    sizes |= {"out.weight": (1, shape.width), "out.bias": (1,)}
    return {name: weight("value." + name, size) for name, size in sizes.items()}


def weight(name: str, size: tuple[int, ...], reference: bool = False) -> np.ndarray:
    """Random, and the same in every process. The reference policy is a little different."""
    if name.endswith("norm.weight"):
        return np.ones(size, np.float32)
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    value = 0.02 * draw.standard_normal(size, np.float32)
    if reference:
        value += 0.002 * draw.standard_normal(size, np.float32)
    return value


class Batch(NamedTuple):
    prompt: np.ndarray  # [N, P] int32, no padding
    completion: np.ndarray  # [N, A] int32, STEPS steps of equal length
    reward: np.ndarray  # [N, STEPS] float32
    task: np.ndarray  # [N] int32


def make_batch(case: dict[str, Any]) -> Batch:
    rows, vocabulary = case["rows"], SHAPES[case["model"]].vocabulary
    draw = np.random.default_rng(0)
    prompt, completion = (
        draw.integers(1, vocabulary, (rows, case[part])).astype(np.int32)  # 0 pads
        for part in ("prompt", "completion")
    )
    reward = draw.standard_normal((rows, STEPS)).astype(np.float32)
    return Batch(prompt, completion, reward, np.arange(rows, dtype=np.int32) // GROUP)
