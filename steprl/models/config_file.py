"""`config.json` of the Llama, Qwen2 and Qwen3 families, in and out.

Every entry of a file is read, or known to change nothing, or refused: a setting that would change
what the model computes is never passed over.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steprl.models.files import read_json
from steprl.models.generation import one_or_all
from steprl.models.presets import DecoderConfig, Llama3Scaling

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
RUN_SETTINGS = ("value_head", "value_support", "dtype", "param_dtype", "attention_block", "remat")
"""Fields of `DecoderConfig` that are ours to choose; the others are those of the pretrained model."""

_LARGEST = float(np.finfo(np.float32).max)
MAX_LAYERS = 10_000  # more is no model but a damaged file, and would take hours to lay out
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
"""Where a file says nothing, as in the configs of transformers; None is a default of all families."""

_READ = {
    "architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings",
    "attention_bias", "mlp_bias", "max_position_embeddings", "eos_token_id", "layer_types",
}  # fmt: skip
_READ_OF_QWEN = {"use_sliding_window", "sliding_window", "max_window_layers"}

# Entries that the decoder knows with one value only. What is not listed anywhere is refused as well.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
    "num_experts": (0,),
    "num_local_experts": (0, 1),
    "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
}
_MEANS: Mapping[str, str] = {
    "quantization_config": "quantised weights are not supported; take the model as it was before",
    "compression_config": "compressed weights are not supported; take the model as it was before",
    "auto_map": "the model brings code of its own, which is not run; if it computes what its model_type "
    "does, remove the entry",
}

# Entries that change nothing of what the model computes: of training elsewhere, of sampling (which
# generation_config.json says), of classification heads, or names.
_IRRELEVANT = {
    "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "attention_dropout", "pretraining_tp", "output_attentions", "output_hidden_states", "return_dict",
    "return_dict_in_generate", "torchscript", "use_bfloat16", "tf_legacy_loss", "id2label", "label2id",
    "num_labels", "problem_type", "finetuning_task", "tokenizer_class", "prefix",
    "task_specific_params", "bos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "is_decoder", "cross_attention_hidden_size",
    "chunk_size_feed_forward", "name_or_path", "attn_implementation", "max_length", "min_length",
    "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "suppress_tokens", "begin_suppress_tokens",
    "exponential_decay_length_penalty", "remove_invalid_values", "max_sequence_length",
    "transformers.js_config", "is_llama_config", "unsloth_fixed", "unsloth_version", "model_name",
    "neftune_noise_alpha",
}  # fmt: skip
_SCALING_NUMBERS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def read_config(directory: str | os.PathLike[str], **settings: Any) -> DecoderConfig:
    """The shape of the model in a Hugging Face directory, from its `config.json`.

    Args:
        directory: with a `config.json`, as `transformers` of any version writes it.
        **settings: any of `RUN_SETTINGS`; None keeps the default.

    Returns:
        The config of a decoder that computes what `transformers` does.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: another family, an entry that the decoder lacks or does not know, or a damaged
            file; the message names the file and the entry.
    """
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; {_what_it_is(Path(directory))}")
    raw = read_json(file)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"{file}: model_type={family!r}; known are {', '.join(FAMILIES)}")
    _check_entries(raw, family, file)
    values = {**_DEFAULTS[family], **raw}

    def count(name: str, default: int | None = None) -> int:
        value = values.get(name)
        return positive_integer(default if value is None else value, f"{file}: {name}")

    heads, width, layers = (
        count(name) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    )
    if layers > MAX_LAYERS:
        raise ValueError(f"{file}: num_hidden_layers={layers} is more than any model has")
    _check_layers(values, layers, family, file)
    if width % heads and (family == "llama" or values.get("head_dim") is None):
        raise ValueError(
            f"{file}: hidden_size={width} is no multiple of num_attention_heads={heads}, as it has to be "
            "for this model_type, or where there is no head_dim"
        )
    kv_heads = count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(
            f"{file}: num_key_value_heads={kv_heads} has to divide num_attention_heads={heads}"
        )
    context = values.get("max_position_embeddings")
    shape = dict(
        vocab_size=count("vocab_size"),
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=count("head_dim", width // heads),
        d_ff=count("intermediate_size"),
        norm_eps=positive_number(values.get("rms_norm_eps", 1e-6), f"{file}: rms_norm_eps"),
        qk_norm=family == "qwen3",
        attention_bias=family == "qwen2",
        tie_embeddings=_flag(values, "tie_word_embeddings", file),
        context_length=None if context is None else count("max_position_embeddings"),
        **_read_rope(values, file),
    )
    return with_run_settings(shape, settings, str(file))


def with_run_settings(
    shape: Mapping[str, Any], settings: Mapping[str, Any], where: str = "the model"
) -> DecoderConfig:
    """A config of a pretrained shape with our own settings.

    Raises:
        ValueError: a setting would change the pretrained model, or its shape contradicts itself.
    """
    chosen = {name: value for name, value in settings.items() if value is not None}
    fixed = sorted(chosen.keys() - set(RUN_SETTINGS))
    if fixed:
        raise ValueError(
            f"{', '.join(fixed)}: fixed by the pretrained model; free are {', '.join(RUN_SETTINGS)}"
        )
    try:
        return DecoderConfig(**{**shape, **chosen})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def config_settings(
    config: DecoderConfig, dtype: str | None, tokenizer: Any, end_ids: tuple[int, ...]
) -> dict[str, Any]:
    """The `config.json` of a decoder, in the spelling that all versions of `transformers` read.

    Raises:
        ValueError: no family has the shape of `config`.
    """
    if config.qk_norm and config.attention_bias:
        raise ValueError("qk_norm and attention_bias together: no family of transformers has both")
    family = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
    if family == "llama" and config.d_model % config.num_heads:
        raise ValueError(
            f"d_model={config.d_model} is no multiple of num_heads={config.num_heads}: transformers loads "
            "no Llama of that shape, nor is there another family for it"
        )
    scaling = config.rope_scaling
    settings: dict[str, Any] = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": int(scaling.original_context),
        },
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype or config.param_dtype,
        "use_cache": True,
    }
    if family == "llama":
        settings |= {"attention_bias": False, "mlp_bias": False}
    if config.context_length is not None:
        settings["max_position_embeddings"] = config.context_length
    # Written even if None: else a family's default applies, out of range in a small vocabulary.
    settings["eos_token_id"] = one_or_all(end_ids)
    for name in ("bos_token_id", "pad_token_id"):
        settings[name] = None if tokenizer is None else getattr(tokenizer, name)
    return settings


def positive_integer(value: Any, name: str) -> int:
    """The value, if it is one; else a ValueError that begins with its name."""
    if value is None:
        raise ValueError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} has to be a whole number from 1")
    return value


def positive_number(value: Any, name: str) -> float:
    """The value as a float, if it is above 0 in float32; else a ValueError that begins with its name."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not 0 < value <= _LARGEST:
        raise ValueError(f"{name}={value!r} has to be a number above 0")
    return float(value)


def _what_it_is(directory: Path) -> str:
    """What to do with a folder that is no model."""
    packed = sorted(directory.glob("*.gguf"))
    if packed:
        return f"give the file {packed[0]}"
    if (directory / "adapter_config.json").is_file():
        return "these are adapters: merge them into their base with PEFT (merge_and_unload) first"
    if (directory / "config.resolved.yaml").is_file():
        return f"this is a run: `steprl export {directory} NEW_DIRECTORY` makes a model of it"
    return "is this the directory of a model?"


def _check_entries(raw: Mapping[str, Any], family: str, file: Path) -> None:
    """Refuses what the decoder would have to pass over."""
    read = _READ | (_READ_OF_QWEN if family != "llama" else set())
    for name, value in raw.items():
        if name in read or name in _IRRELEVANT or name.startswith("_"):
            continue
        if name in _MEANS:
            if value:
                raise ValueError(f"{file}: {name}: {_MEANS[name]}")
        elif name in _ONLY:
            if value is not None and value not in _ONLY[name]:
                raise ValueError(
                    f"{file}: {name}={value!r} is not supported, only {_ONLY[name][0]!r}"
                )
        elif value is not None:
            raise ValueError(
                f"{file}: {name}={value!r} is not known here, and might change what the model computes; "
                "if it does not, remove the entry"
            )
    for name in ("torch_dtype", "dtype"):
        if not isinstance(raw.get(name), str | None):
            raise ValueError(f"{file}: {name}={raw[name]!r} has to be the name of a type")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"{file}: hidden_act={activation!r}: another than silu is not supported")
    if family != "qwen2" and (_flag(raw, "attention_bias", file) or _flag(raw, "mlp_bias", file)):
        raise ValueError(
            f"{file}: attention_bias, mlp_bias: a bias on every projection is not supported"
        )
    if family == "qwen2" and _flag(raw, "mlp_bias", file):
        raise ValueError(f"{file}: mlp_bias: a bias in the feed-forward part is not supported")
    architectures = raw.get("architectures") or [FAMILIES[family]]
    if str(architectures).lower() != str([FAMILIES[family]]).lower():
        raise ValueError(
            f"{file}: architectures={architectures!r}: only {FAMILIES[family]}, a language model with "
            "its output matrix, is supported for this model_type"
        )


def _check_layers(values: Mapping[str, Any], layers: int, family: str, file: Path) -> None:
    """Refuses windows: each layer has to see the whole context."""
    kinds = values.get("layer_types")
    if kinds is None:
        window = values.get("sliding_window", 4096)
        first = values.get("max_window_layers", 28)
        slides = (
            family != "llama" and _flag(values, "use_sliding_window", file) and window is not None
        )
        kinds = ["sliding_attention"] if slides and (first is None or first < layers) else []
    elif not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(
            f"{file}: layer_types={kinds!r} has to give one kind for each of {layers} layers"
        )
    others = {str(kind) for kind in kinds} - {"full_attention"}
    if others:
        raise ValueError(f"{file}: layer_types: {', '.join(sorted(others))} is not supported")


def _flag(values: Mapping[str, Any], name: str, file: Path) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{file}: {name}={value!r} has to be true or false")
    return bool(value)


def _read_rope(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Base and scaling of the rotary positions, in the spelling of transformers 4 or 5."""
    names = ("rope_scaling", "rope_parameters")
    given = {name: values[name] for name in names if values.get(name) not in (None, {})}
    for name, one in given.items():
        if not isinstance(one, dict):
            raise ValueError(f"{file}: {name}={one!r} has to be an object")
    name = next(iter(given), "rope_scaling")
    if len(given) == 2 and given["rope_scaling"] != given["rope_parameters"]:
        raise ValueError(f"{file}: rope_scaling and rope_parameters differ; remove one of them")
    rope = {key: value for key, value in given.get(name, {}).items() if value is not None}
    theta = rope.pop("rope_theta", None)
    outside = values.get("rope_theta")
    if None not in (theta, outside) and theta != outside:
        raise ValueError(
            f"{file}: rope_theta={outside!r} and {theta!r} in {name}; remove one of them"
        )
    theta = theta if theta is not None else 10_000.0 if outside is None else outside
    theta = positive_number(theta, f"{file}: rope_theta")
    kinds = {rope.pop(key) for key in ("rope_type", "type") if isinstance(rope.get(key), str)}
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    if (kinds in (set(), {"default"})) and not rope:
        return {"rope_theta": theta, "rope_scaling": None}
    if kinds != {"llama3"} or set(rope) != set(_SCALING_NUMBERS):
        missing = "" if kinds else "it has no rope_type; "
        raise ValueError(
            f"{file}: {name}: {missing}rotary positions {given[name]} are not supported, only llama3's "
            f"with {', '.join(_SCALING_NUMBERS)}"
        )
    numbers = [positive_number(rope[key], f"{file}: {name}.{key}") for key in _SCALING_NUMBERS]
    scaling = Llama3Scaling(*numbers)
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ValueError(f"{file}: {name}: low_freq_factor has to be below high_freq_factor")
    return {"rope_theta": theta, "rope_scaling": scaling}
