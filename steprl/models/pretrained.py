"""Hugging Face directories of the Llama, Qwen2 and Qwen3 families, in and out.

    config = read_config("models/Qwen3-0.6B", value_head="shared")
    params = load_pretrained("models/Qwen3-0.6B", config, mesh=mesh)
    save_pretrained("export", config, params, tokenizer=tokenizer)

The directory that is written loads with `AutoModelForCausalLM.from_pretrained`. The value head, which
such a model lacks, lies in a folder of its own inside, where other programs do not look for weights.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import save_file

from steprl.models.presets import DecoderConfig, Llama3Scaling
from steprl.models.weights import (
    Weight,
    leaves_by_path,
    own_name,
    place_parameters,
    transformers_name,
)
from steprl.types import Params

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
VALUE_HEAD_FILE = "value_head/value_head.safetensors"
RUN_SETTINGS = ("value_head", "dtype", "param_dtype", "attention_block", "remat")
"""Fields of `DecoderConfig` that are ours to choose; the others are those of the pretrained model."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(directory: str | os.PathLike[str], **settings: Any) -> DecoderConfig:
    """The shape of the model in a Hugging Face directory, from its `config.json`.

    Args:
        directory: with a `config.json`, as `transformers` of any version writes it.
        **settings: any of `RUN_SETTINGS`; None keeps the default.

    Returns:
        The config of a decoder that computes what `transformers` does.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: another family, or an option that the decoder lacks; the message names it.
    """
    from transformers import AutoConfig  # here, as it takes a second

    file = Path(directory) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; is this the directory of a model?")
    raw = json.loads(file.read_text(encoding="utf-8"))
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{file}: model_type={family!r}; known are {', '.join(FAMILIES)}")
    # It knows the defaults of each family and all spellings that config.json ever had.
    hf_config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    biased = getattr(hf_config, "attention_bias", False) or getattr(hf_config, "mlp_bias", False)
    layers = set(getattr(hf_config, "layer_types", None) or ()) - {"full_attention"}
    for unsupported, description in (
        (raw.get("quantization_config"), "quantization_config: quantised weights"),
        (
            hf_config.hidden_act != "silu",
            f"hidden_act={hf_config.hidden_act!r}: another than silu",
        ),
        (family != "qwen2" and biased, "attention_bias, mlp_bias: a bias on every projection"),
        (layers, f"layer_types: {', '.join(sorted(layers))}"),
    ):
        if unsupported:
            raise ValueError(f"{file}: {description} is not supported")
    heads = hf_config.num_attention_heads
    shape = dict(
        vocab_size=hf_config.vocab_size,
        d_model=hf_config.hidden_size,
        num_layers=hf_config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=hf_config.num_key_value_heads or heads,
        head_dim=getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads,
        d_ff=hf_config.intermediate_size,
        rope_theta=float(hf_config.rope_parameters["rope_theta"]),
        rope_scaling=_read_scaling(hf_config.rope_parameters, file),
        norm_eps=float(hf_config.rms_norm_eps),
        qk_norm=family == "qwen3",
        attention_bias=family == "qwen2",
        tie_embeddings=bool(hf_config.tie_word_embeddings),
    )
    return with_run_settings(shape, settings)


def with_run_settings(shape: Mapping[str, Any], settings: Mapping[str, Any]) -> DecoderConfig:
    """A config of a pretrained shape with our own settings.

    Raises:
        ValueError: a setting would change the pretrained model.
    """
    chosen = {name: value for name, value in settings.items() if value is not None}
    fixed = sorted(chosen.keys() - set(RUN_SETTINGS))
    if fixed:
        raise ValueError(
            f"{', '.join(fixed)}: fixed by the pretrained model; free are {', '.join(RUN_SETTINGS)}"
        )
    return DecoderConfig(**{**shape, **chosen})


def load_pretrained(
    directory: str | os.PathLike[str],
    config: DecoderConfig,
    *,
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
) -> Params:
    """Reads the weights of a Hugging Face directory, sharded or not, and places them as they come.

    Each device gets its part of each tensor straight from the mapped file, converted to
    `config.param_dtype`: the host never holds more than one tensor beside the file's own pages.

    Args:
        directory: with `model.safetensors`, or several files and their index.
        config: from `read_config`.
        mesh: places by the rules of `steprl.sharding`; None for the default device.
        key: of a new value head, where the directory has none; None for `jax.random.key(0)`.

    Returns:
        Nested dicts as from `make_policy(config).init`. A value head is read from
        `VALUE_HEAD_FILE` where that exists. A new one gives 0, and a new separate critic starts as
        a copy of the model.

    Raises:
        FileNotFoundError: there are no safetensors files.
        ValueError: tensors are missing, not expected, or of another shape; the message names them.
    """
    directory = Path(directory)
    head = directory / VALUE_HEAD_FILE
    with_head = config.value_head != "none" and head.is_file()
    return place_parameters(
        config,
        _open_directory(directory),
        value_weights=open_file(head) if with_head else None,
        mesh=mesh,
        key=key,
        where=str(directory),
    )


def save_pretrained(
    directory: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    tokenizer: Any = None,
    context_length: int | None = None,
    dtype: str | None = None,
    shard_bytes: int = 2 << 30,
) -> None:
    """Writes a directory that `AutoModelForCausalLM.from_pretrained` loads.

    It is written under another name and renamed when complete. With several processes all must call
    it, on a directory that they share; the first writes.

    Args:
        directory: to be made; an empty one may be there.
        config: of the policy.
        params: its parameters, wherever they lie. The value head, and a separate critic, go into
            `VALUE_HEAD_FILE` in their own type.
        tokenizer: saved beside the weights, and its special ids noted in `config.json`.
        context_length: most tokens that the model is meant for; None for the tokenizer's.
        dtype: of the weights in the file, such as "bfloat16"; None for that of `params`.
        shard_bytes: a file holds at most this much, or one tensor; so much is held on the host.

    Raises:
        FileExistsError: the directory has something in it.
        ValueError: no family has the shape of `config`, or the parameters hold adapters.
    """
    directory = Path(directory)
    if "lora" in params:
        raise ValueError(
            'params hold adapters under "lora": merge them first (merge_lora, or prepare of the policy), '
            "or write them by themselves with save_adapter"
        )
    settings = _settings(config, dtype, tokenizer, context_length)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; name a new directory to export to")
    target = directory.with_name(directory.name + ".partial")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(target, ignore_errors=True)
        (target / VALUE_HEAD_FILE).parent.mkdir(parents=True)
    leaves = leaves_by_path(params)
    decoder = {path: leaf for path, leaf in leaves.items() if path.startswith("decoder/")}
    _write_model(target, decoder, dtype, shard_bytes, writes)
    value_leaves = {own_name(path).name: leaves[path] for path in leaves.keys() - decoder.keys()}
    arrays = {name: on_host(leaf, None) for name, leaf in sorted(value_leaves.items())}
    if not writes:
        return
    if arrays:
        save_file(arrays, target / VALUE_HEAD_FILE)
    else:
        (target / VALUE_HEAD_FILE).parent.rmdir()
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    _write_json(target / "config.json", settings)
    if directory.exists():
        directory.rmdir()
    target.rename(directory)


def _read_scaling(rope: Mapping[str, Any], file: Path) -> Llama3Scaling | None:
    kind = rope.get("rope_type", "default")
    if kind == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0:
        return None
    if kind != "llama3":
        raise ValueError(f"{file}: rotary positions {dict(rope)} are not supported, only llama3's")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return Llama3Scaling(*(float(rope[name]) for name in names))


def _settings(
    config: DecoderConfig, dtype: str | None, tokenizer: Any, context_length: int | None
) -> dict[str, Any]:
    """The `config.json` of a decoder, in the spelling that all versions of `transformers` read."""
    if config.qk_norm and config.attention_bias:
        raise ValueError("qk_norm and attention_bias together: no family of transformers has both")
    family = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
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
    if context_length is None and tokenizer is not None:
        limit = tokenizer.model_max_length
        context_length = limit if limit < 1 << 30 else None  # a huge number says "not known"
    if context_length is not None:
        settings["max_position_embeddings"] = int(context_length)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # Written even if None: else a family's default applies, out of range in a small vocabulary.
        settings[name] = None if tokenizer is None else getattr(tokenizer, name)
    return settings


def open_file(file: Path) -> dict[str, Weight]:
    """All tensors of a safetensors file; nothing is read yet, and the file stays mapped."""
    handle = safe_open(file, framework="numpy")
    return {
        name: Weight(
            tuple(handle.get_slice(name).get_shape()),
            lambda index, name=name: handle.get_slice(name)[index],  # type: ignore[misc]
        )
        for name in handle.keys()
    }


def _open_directory(directory: Path) -> dict[str, Weight]:
    if (directory / _INDEX).is_file():
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    elif (directory / _WEIGHTS).is_file():
        index = None
    else:
        raise FileNotFoundError(
            f"{directory} has neither {_WEIGHTS} nor {_INDEX}; other formats must be converted first, "
            "e.g. by save_pretrained of transformers"
        )
    weights: dict[str, Weight] = {}
    for name in [_WEIGHTS] if index is None else sorted(set(index.values())):
        if Path(name).name != name or not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / _INDEX} names the file {name!r}, not found")
        tensors = open_file(directory / name)
        if index is not None:
            listed = {tensor for tensor, file in index.items() if file == name}
            if listed != tensors.keys():
                differ = ", ".join(sorted(listed ^ tensors.keys())[:5])
                raise ValueError(f"{directory / _INDEX} and {name} differ on: {differ}")
        weights |= tensors
    # Constants that old versions stored with the weights.
    return {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def on_host(leaf: Any, dtype: str | None) -> np.ndarray:
    """An array wherever it lies, in full and in its own type, or in another one."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    return array if dtype is None else array.astype(jnp.dtype(dtype))


def _write_model(
    target: Path, leaves: Mapping[str, Any], dtype: str | None, shard_bytes: int, writes: bool
) -> None:
    """The weights in as many files as needed, one after the other."""
    size = {p: x.size * jnp.dtype(dtype or x.dtype).itemsize for p, x in leaves.items()}
    shards: list[list[str]] = [[]]
    for path in leaves:
        if shards[-1] and sum(size[p] for p in shards[-1]) + size[path] > shard_bytes:
            shards.append([])
        shards[-1].append(path)
    index = {}
    for number, paths in enumerate(shards, start=1):
        file = _WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for path in paths:
            name, transposed = transformers_name(path)
            array = on_host(leaves[path], dtype)
            arrays[name] = np.ascontiguousarray(array.T if transposed else array)
            index[name] = file
        if writes:
            save_file(arrays, target / file, metadata={"format": "pt"})
    if writes and len(shards) > 1:
        record = {"metadata": {"total_size": sum(size.values())}, "weight_map": index}
        _write_json(target / _INDEX, record)


def _write_json(file: Path, record: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
