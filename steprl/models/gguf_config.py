"""The shape of the model in a GGUF file, from its metadata."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from steprl.models.config_file import (
    MAX_LAYERS,
    positive_integer,
    positive_number,
    with_run_settings,
)
from steprl.models.decoder import rotary_frequencies
from steprl.models.gguf_file import GGUF, head_counts
from steprl.models.presets import DecoderConfig, Llama3Scaling

_SCALINGS = (Llama3Scaling(8.0, 1.0, 4.0, 8192.0), Llama3Scaling(32.0, 1.0, 4.0, 8192.0))
"""Those of Llama 3.1 and 3.2. A file holds only the divisors that follow from them."""

# Entries behind the name of the architecture. What is not listed is refused, as it might matter.
_READ = {
    "embedding_length", "block_count", "feed_forward_length", "context_length", "rope.freq_base",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_rms_epsilon",
}  # fmt: skip
_IRRELEVANT = {
    "vocab_size", "expert_used_count", "attention.layer_norm_epsilon", "decoder_start_token_id",
    "rope.scaling.finetuned",
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
    "rope.scaling.type": ("none",),
    "rope.scale_linear": (1.0,),
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scaling.attn_factor": (1.0,),
    "tensor_data_layout": ("Meta AI original pth",),
}


def gguf_config(file: GGUF, **settings: Any) -> DecoderConfig:
    """The shape of the model in a GGUF file.

    Args:
        file: from `read_gguf`.
        **settings: any of `steprl.models.config_file.RUN_SETTINGS`; None keeps the default.

    Returns:
        The config of the decoder.

    Raises:
        ValueError: an entry that the decoder lacks or does not know, or none where one is needed; the
            message names the file and the entry.
    """
    architecture = file.metadata["general.architecture"]
    prefix = f"{architecture}."
    entries = {
        name.removeprefix(prefix): value
        for name, value in file.metadata.items()
        if name.startswith(prefix)
    }

    def count(name: str, default: int | None = None) -> int:
        return positive_integer(entries.get(name, default), f"{file.path}: {prefix}{name}")

    heads, kv_heads = head_counts(file.metadata, file.path)
    width = count("embedding_length")
    size = count("attention.key_length", width // heads)
    _check_entries(entries, size, prefix, file)
    if "model.embed_tokens.weight" not in file.weights:
        raise ValueError(f"{file.path}: token_embd.weight is missing")
    theta = positive_number(
        entries.get("rope.freq_base", 10_000.0), f"{file.path}: {prefix}rope.freq_base"
    )
    epsilon = positive_number(
        entries.get("attention.layer_norm_rms_epsilon"),
        f"{file.path}: {prefix}attention.layer_norm_rms_epsilon",
    )
    shape = dict(
        vocab_size=file.weights["model.embed_tokens.weight"].shape[0],
        d_model=width,
        num_layers=count("block_count"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        d_ff=count("feed_forward_length"),
        rope_theta=theta,
        rope_scaling=_scaling(file, size, theta),
        # Stored in float32; its shortest decimal is what was meant: 1e-05.
        norm_eps=float(str(np.float32(epsilon))),
        qk_norm=architecture == "qwen3",
        attention_bias=architecture == "qwen2",
        tie_embeddings="lm_head.weight" not in file.weights,
        context_length=count("context_length") if "context_length" in entries else None,
    )
    if shape["num_layers"] > MAX_LAYERS:
        raise ValueError(
            f"{file.path}: block_count={shape['num_layers']} is more than any model has"
        )
    return with_run_settings(shape, settings, str(file.path))


def _check_entries(entries: Mapping[str, Any], size: int, prefix: str, file: GGUF) -> None:
    """Refuses what the decoder would have to pass over."""
    only = _ONLY | {
        "attention.value_length": (size,),
        "rope.dimension_count": (size,),
        "attention.scale": (float(np.float32(size**-0.5)),),
    }
    unscaled = entries.get("rope.scaling.type") == "none"  # then llama.cpp reads no other of them
    for name, value in entries.items():
        if name in _READ or name in _IRRELEVANT:
            continue
        if unscaled and name.startswith("rope.scaling."):
            continue
        if name not in only:
            raise ValueError(
                f"{file.path}: {prefix}{name}={value!r} is not known here, and might change what the "
                "model computes; take the model from a Hugging Face directory"
            )
        if value not in only[name]:
            raise ValueError(
                f"{file.path}: {prefix}{name}={value!r} is not supported, only {only[name][0]!r}"
            )


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
