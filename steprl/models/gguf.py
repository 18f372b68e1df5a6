"""GGUF files in: settings, weights and tokenizer, by the `gguf` package; neither torch nor a hub.

    file = read_gguf("model.gguf")
    config = gguf_config(file, value_head="shared")
    params = load_gguf(file, config, mesh=mesh)
    tokenizer = gguf_tokenizer(file)

Quantised weights are turned into floats as they are placed. What is trained from them is no longer
quantised; it is exported with `steprl.models.pretrained.save_pretrained`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel as ByteLevelOffsets
from tokenizers.processors import Sequence, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from steprl.models.decoder import rotary_frequencies
from steprl.models.presets import DecoderConfig, Llama3Scaling
from steprl.models.pretrained import with_run_settings
from steprl.models.weights import Weight, place_parameters
from steprl.types import Params

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
_CONTROL, _USER_DEFINED = 3, 4  # token types: special, and added but plain

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_SCALINGS = (Llama3Scaling(8.0, 1.0, 4.0, 8192.0), Llama3Scaling(32.0, 1.0, 4.0, 8192.0))
"""Those of Llama 3.1 and 3.2. A file holds only the divisors that follow from them."""


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
        ValueError: another architecture, or a tensor that the decoder does not have.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("reading GGUF files needs: pip install 'steprl[gguf]'") from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: general.architecture={architecture!r}; known are {', '.join(ARCHITECTURES)}"
        )
    last: dict[str, np.ndarray] = {}
    weights, factors = {}, None
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            factors = np.array(tensor.data, np.float32)
            continue
        name = _transformers_name(tensor.name, path)
        heads = 0
        if architecture == "llama" and ".attn_q." in tensor.name:
            heads = metadata["llama.attention.head_count"]
        if architecture == "llama" and ".attn_k." in tensor.name:
            heads = _kv_heads(metadata)
        weights[name] = _weight(tensor, heads, path, last)
    return GGUF(path, metadata, weights, factors)


def gguf_config(file: GGUF, **settings: Any) -> DecoderConfig:
    """The shape of the model in a GGUF file.

    Args:
        file: from `read_gguf`.
        **settings: any of `steprl.models.pretrained.RUN_SETTINGS`; None keeps the default.

    Returns:
        The config of the decoder.

    Raises:
        ValueError: an option that the decoder lacks; the message names it.
    """
    metadata = file.metadata
    architecture = metadata["general.architecture"]

    def get(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if value is None:
            raise ValueError(f"{file.path}: {architecture}.{name} is missing")
        return value

    heads, width = get("attention.head_count"), get("embedding_length")
    size = get("attention.key_length", width // heads)
    for name, value, wanted in (
        ("expert_count", get("expert_count", 0), 0),
        ("rope.scaling.type", get("rope.scaling.type", "none"), "none"),
        ("attention.value_length", get("attention.value_length", size), size),
        ("rope.dimension_count", get("rope.dimension_count", size), size),
    ):
        if value != wanted:
            raise ValueError(f"{file.path}: {name}={value!r} is not supported, only {wanted!r}")
    if "model.embed_tokens.weight" not in file.weights:
        raise ValueError(f"{file.path}: token_embd.weight is missing")
    theta = float(get("rope.freq_base", 10_000.0))
    shape = dict(
        vocab_size=file.weights["model.embed_tokens.weight"].shape[0],
        d_model=width,
        num_layers=get("block_count"),
        num_heads=heads,
        num_kv_heads=_kv_heads(metadata),
        head_dim=size,
        d_ff=get("feed_forward_length"),
        rope_theta=theta,
        rope_scaling=_scaling(file, size, theta),
        # Stored in float32; its shortest decimal is what was meant: 1e-05.
        norm_eps=float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        qk_norm=architecture == "qwen3",
        attention_bias=architecture == "qwen2",
        tie_embeddings="lm_head.weight" not in file.weights,
    )
    return with_run_settings(shape, settings)


def load_gguf(
    file: GGUF,
    config: DecoderConfig,
    *,
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
) -> Params:
    """Parameters from a GGUF file, dequantised and placed one tensor at a time.

    Args:
        file: from `read_gguf`.
        config: from `gguf_config`.
        mesh: places by the rules of `steprl.sharding`; None for the default device.
        key: of a new value head; None for `jax.random.key(0)`.

    Returns:
        Nested dicts as from `make_policy(config).init`; a new value head gives 0, and a separate
        critic starts as a copy of the model.

    Raises:
        ValueError: tensors are missing, not expected, or of another shape; the message names them.
    """
    return place_parameters(config, file.weights, mesh=mesh, key=key, where=str(file.path))


def gguf_tokenizer(file: GGUF) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file, with special tokens and chat template.

    Args:
        file: from `read_gguf`.

    Returns:
        A tokenizer that saves to a directory which `AutoTokenizer` reads.

    Raises:
        ValueError: not a byte-level BPE, or a way to split text into words that is not known here.

    Note:
        The loader of `transformers` needs torch, and forgets that the `smollm` kind splits off each
        digit first, so that blanks before digits become other tokens.
    """
    metadata = file.metadata

    def get(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    if get("model") != "gpt2":
        raise ValueError(
            f"{file.path}: tokenizer.ggml.model={get('model')!r}; only 'gpt2', a byte-level BPE, is "
            "known; take the tokenizer from a Hugging Face directory of the model"
        )
    tokens, kind = get("tokens"), get("pre", "default")
    types = get("token_type") or [1] * len(tokens)
    merges = [tuple(merge.split(" ", 1)) for merge in get("merges")]
    model = BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        ignore_merges=kind in ("llama-bpe", "llama3"),  # a word of the vocabulary is one token
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer(kind, file.path)
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, normalized=False, special=token_type == _CONTROL)
        for token, token_type in zip(tokens, types, strict=True)
        if token_type in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens([token for token in added if not token.special])
    backend.add_special_tokens([token for token in added if token.special])
    names = {
        name: tokens[get(key)]
        for name, key in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        )
        if get(key) is not None
    }
    offsets = ByteLevelOffsets(trim_offsets=False)
    backend.post_processor = offsets
    if get("add_bos_token", False) and "bos_token" in names:
        bos = names["bos_token"]
        template = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B:1",
            special_tokens=[(bos, get("bos_token_id"))],
        )
        backend.post_processor = Sequence([offsets, template])
    length = metadata.get(f"{metadata['general.architecture']}.context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **({} if length is None else {"model_max_length": length}),
        **names,
    )


def _kv_heads(metadata: Mapping[str, Any]) -> int:
    architecture = metadata["general.architecture"]
    heads = metadata[f"{architecture}.attention.head_count"]
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise ValueError("attention.head_count differs from layer to layer: not supported")
    return kv_heads


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

    return Weight(shape, read)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection from llama.cpp's order to that of `transformers`.

    Within a head, pair i of the rotation stands at 2i and 2i + 1 there, at i and i + half here.

    Example:
        >>> unpermute(np.asarray([0, 2, 1, 3, 10, 12, 11, 13]), heads=2).tolist()
        [0, 1, 2, 3, 10, 11, 12, 13]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(rows.shape)


def _scaling(file: GGUF, head_dim: int, theta: float) -> Llama3Scaling | None:
    if file.rope_factors is None or np.all(file.rope_factors == 1):
        return None
    half = head_dim // 2
    plain = np.asarray(rotary_frequencies(half, theta, None))
    for scaling in _SCALINGS:
        factors = plain / np.asarray(rotary_frequencies(half, theta, scaling))
        if factors.shape == file.rope_factors.shape and np.allclose(
            factors, file.rope_factors, rtol=1e-3
        ):
            return scaling
    raise ValueError(
        f"{file.path}: rope_freqs.weight is that of neither Llama 3.1 nor 3.2; load the model from a "
        "Hugging Face directory, whose config.json says how it came about"
    )


def _pre_tokenizer(kind: str, path: Path) -> Any:
    """How text is split into words before merging, by llama.cpp's name of it."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind in ("gpt-2", "gpt2"):
        return words
    if kind == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    patterns = {"llama-bpe": _LLAMA3_WORDS, "llama3": _LLAMA3_WORDS, "qwen2": _QWEN2_WORDS}
    if kind not in patterns:
        known = ", ".join(("smollm", "gpt-2", *patterns))
        raise ValueError(f"{path}: tokenizer.ggml.pre={kind!r}; known are {known}")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(patterns[kind]), behavior="isolated")
    return pre_tokenizers.Sequence([split, as_bytes])
