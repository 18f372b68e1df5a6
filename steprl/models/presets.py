"""Shapes of the decoder: one frozen dataclass and a table of named sizes."""

import dataclasses
import difflib
from typing import NamedTuple

from steprl.ops import ValueSupport


class Llama3Scaling(NamedTuple):
    """Slower rotation of the slow pairs for a longer context, as in Llama 3.1 (arXiv 2407.21783)."""

    factor: float  # pairs that turn slowly are slowed by this much
    low_freq_factor: float  # fewer turns than this within the original context: slow
    high_freq_factor: float  # more turns than this: left as they are; in between: interpolated
    original_context: float  # tokens that the model was first trained on


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that fixes the shapes and the arithmetic of one decoder, and how far it reaches."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    norm_eps: float = 1e-6
    qk_norm: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    value_head: str = "shared"  # "shared" trunk, "separate" critic, or "none"
    value_support: ValueSupport | None = None  # bins of the value head; None: it gives a number
    dtype: str = "float32"  # of computation; softmax and log-probs are float32 always
    param_dtype: str = "float32"
    attention_block: int = 128  # queries whose scores exist at the same time, 0 = all
    remat: bool = False  # recompute each layer in the backward pass
    # Tokens that the model is made for; None: nobody says. Two configs that differ here compute the same.
    context_length: int | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs")


PRESETS: dict[str, dict[str, int | float | bool]] = {
    # about 0.1 M parameters: learns `multihop` on a CPU in a minute
    "tiny": dict(
        vocab_size=128, d_model=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=32, d_ff=192
    ),
    # about 0.8 M parameters: `household` on a CPU
    "small": dict(
        vocab_size=512, d_model=128, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=64, d_ff=384
    ),
    "smollm2-135m": dict(
        vocab_size=49152, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
        d_ff=1536, rope_theta=100_000.0, norm_eps=1e-5,
    ),
    "qwen3-0.6b": dict(
        vocab_size=151936, d_model=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
        d_ff=3072, rope_theta=1_000_000.0, norm_eps=1e-6, qk_norm=True,
    ),
    "qwen3-1.7b": dict(
        vocab_size=151936, d_model=2048, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
        d_ff=6144, rope_theta=1_000_000.0, norm_eps=1e-6, qk_norm=True,
    ),
}  # fmt: skip


def decoder_config(preset: str, **overrides: object) -> DecoderConfig:
    """The named shape with some fields replaced; an override of None keeps the preset's value.

    Raises:
        ValueError: there is no such preset, or the shape contradicts itself.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known presets: {', '.join(PRESETS)}"
        raise ValueError(f"model.preset={preset!r} is unknown; {hint}")
    replaced = {name: value for name, value in overrides.items() if value is not None}
    return DecoderConfig(**{**PRESETS[preset], **replaced})  # type: ignore[arg-type]
