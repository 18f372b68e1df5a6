"""What a GGUF file holds: metadata, and tensors under the names of `transformers`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steprl.models.config_file import positive_integer
from steprl.models.gguf_header import check_header
from steprl.models.weights import Weight

ARCHITECTURES = ("llama", "qwen2", "qwen3")

_OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_INTEGERS = ("I8", "I16", "I32", "I64")


class GGUF(NamedTuple):
    """What a file holds."""

    path: Path
    metadata: dict[str, Any]
    weights: dict[str, Weight]  # under the names of `transformers`, in float32
    rope_factors: np.ndarray | None  # divisors of the rotary frequencies


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Opens a GGUF file; its tensors are read, and dequantised, one at a time when asked for.

    llama.cpp stores the rows of the query and key projections of its `llama` architecture in another
    order (pairs that rotate together stand side by side); here they are in that of `transformers`.

    Args:
        path: of one file with the whole model, of any type that `gguf` can dequantise.

    Returns:
        Metadata and weights.

    Raises:
        ImportError: the package `gguf` is missing.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or one part of several, is of another architecture, or has a
            tensor that the decoder does not have; the message names the file.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("reading GGUF files needs: pip install 'steprl[gguf]'") from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_header(path)
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # of NumPy, as it reads what is not there
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): copy or download it again"
        ) from error
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: general.architecture={architecture!r}; known are {', '.join(ARCHITECTURES)}"
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise ValueError(
            f"{path} is one of {metadata['split.count']} parts: join them first with "
            "`llama-gguf-split --merge` of llama.cpp"
        )
    last: dict[str, np.ndarray] = {}
    weights, factors = {}, None
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            factors = np.array(tensor.data, np.float32)
            continue
        name = _transformers_name(tensor.name, path)
        if tensor.tensor_type.name in _INTEGERS:
            raise ValueError(
                f"{path}: {tensor.name} is of type {tensor.tensor_type.name}: integers without scales are "
                "no weights; convert the model again"
            )
        heads = 0
        if architecture == "llama" and ".attn_q." in tensor.name:
            heads = head_counts(metadata, path)[0]
        if architecture == "llama" and ".attn_k." in tensor.name:
            heads = head_counts(metadata, path)[1]
        weights[name] = _weight(tensor, heads, path, last)
    return GGUF(path, metadata, weights, factors)


def head_counts(metadata: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Heads of queries, and of keys and values.

    Raises:
        ValueError: they are missing, or differ from layer to layer.
    """
    name = f"{metadata['general.architecture']}.attention.head_count"
    heads, kv_heads = metadata.get(name), metadata.get(f"{name}_kv")
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise ValueError(f"{path}: {name} differs from layer to layer: not supported")
    heads = positive_integer(heads, f"{path}: {name}")
    return heads, heads if kv_heads is None else positive_integer(kv_heads, f"{path}: {name}_kv")


def _transformers_name(name: str, path: Path) -> str:
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if not match or match[2] not in _IN_LAYER:
        raise ValueError(f"{path}: the tensor {name} is unexpected: the decoder has no such part")
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"


def _weight(tensor: Any, permuted_heads: int, path: Path, last: dict[str, np.ndarray]) -> Weight:
    """A tensor of `gguf`, which lists its dimensions in reverse.

    Blocks of quantised numbers are turned into floats as a whole. `last` keeps those of one tensor,
    from which the parts for several devices are taken.
    """
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read(index: tuple[slice, ...]) -> np.ndarray:
        from gguf.quants import dequantize

        if tensor.name not in last:
            last.clear()
            try:
                values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            except NotImplementedError as error:
                raise ValueError(
                    f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which the package "
                    "gguf cannot dequantise"
                ) from error
            last[tensor.name] = unpermute(values, permuted_heads) if permuted_heads else values
        return last[tensor.name][index]

    return Weight(shape, read, str(path))


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection from llama.cpp's order to that of `transformers`.

    Within a head, pair i of the rotation stands at 2i and 2i + 1 there, at i and i + half here.

    Example:
        >>> unpermute(np.asarray([0, 2, 1, 3, 10, 12, 11, 13]), heads=2).tolist()
        [0, 1, 2, 3, 10, 11, 12, 13]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(rows.shape)
