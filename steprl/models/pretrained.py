"""Hugging Face directories of the Llama, Qwen2 and Qwen3 families, in and out.

    config = read_config("models/Qwen3-0.6B", value_head="shared")
    params = load_pretrained("models/Qwen3-0.6B", config, mesh=mesh)
    save_pretrained("export", config, params, tokenizer=tokenizer)

The directory that is written loads with `AutoModelForCausalLM.from_pretrained`. The value head, which
such a model lacks, lies in a folder of its own inside, where other programs do not look for weights.
"""

import dataclasses
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

from steprl.models.chat import stop_ids
from steprl.models.config_file import RUN_SETTINGS, config_settings, read_config
from steprl.models.files import INDEX, WEIGHTS, open_directory, open_file, write_file
from steprl.models.generation import GENERATION_FILE, generation_config, generation_of
from steprl.models.presets import DecoderConfig
from steprl.models.tokenizer_files import check_vocabulary, save_tokenizer
from steprl.models.weights import leaves_by_path, own_name, place_parameters, transformers_name
from steprl.types import Params

__all__ = ["RUN_SETTINGS", "VALUE_HEAD_FILE", "load_pretrained", "read_config", "save_pretrained"]

VALUE_HEAD_FILE = "value_head/value_head.safetensors"


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
        ValueError: a file is damaged, or tensors are missing, not expected, of another shape, or not
            finite; the message names them.
    """
    directory = Path(directory)
    head = directory / VALUE_HEAD_FILE
    with_head = config.value_head != "none" and head.is_file()
    return place_parameters(
        config,
        open_directory(directory),
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
        tokenizer: saved beside the weights; its special ids, and every token that ends a reply, are
            noted in `config.json` and `generation_config.json`, which has the sampling defaults that
            the model came with.
        context_length: most tokens that the model is meant for; None for that of `config`.
        dtype: of the weights in the file, such as "bfloat16"; None for that of `params`.
        shard_bytes: a file holds at most this much, or one tensor; so much is held on the host.

    Raises:
        FileExistsError: the directory has something in it.
        ValueError: no family has the shape of `config`, the parameters hold adapters or numbers that
            are not finite in `dtype`, or the tokenizer has more ids than the embedding has rows.
    """
    directory = Path(directory)
    if "lora" in params:
        raise ValueError(
            'params hold adapters under "lora": merge them first (merge_lora, or prepare of the policy), '
            "or write them by themselves with save_adapter"
        )
    ends = () if tokenizer is None else _all_ends(tokenizer)
    if context_length is not None:
        config = dataclasses.replace(config, context_length=context_length)
    settings = config_settings(config, dtype, tokenizer, ends)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, "the tokenizer", "the model")
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; name a new directory to export to")
    target = directory.with_name(directory.name + ".partial")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(target, ignore_errors=True)
        (target / VALUE_HEAD_FILE).parent.mkdir(parents=True)
    try:
        _write_parameters(target, params, dtype, shard_bytes, writes)
        if not writes:
            return
        if tokenizer is not None:
            save_tokenizer(tokenizer, target)
            _write_json(target / GENERATION_FILE, generation_config(tokenizer, ends))
        _write_json(target / "config.json", settings)
        if directory.exists():
            directory.rmdir()
        target.rename(directory)
    finally:
        if writes:
            shutil.rmtree(target, ignore_errors=True)  # of what did not come to its end


def _write_parameters(
    target: Path, params: Params, dtype: str | None, shard_bytes: int, writes: bool
) -> None:
    """The language model, and apart from it what a language model lacks."""
    leaves = leaves_by_path(params)
    decoder = {path: leaf for path, leaf in leaves.items() if path.startswith("decoder/")}
    _write_model(target, decoder, dtype, shard_bytes, writes)
    value_leaves = {path: leaves[path] for path in sorted(leaves.keys() - decoder.keys())}
    arrays = {own_name(path).name: _finite(path, leaf) for path, leaf in value_leaves.items()}
    if arrays and writes:
        write_file(target / VALUE_HEAD_FILE, arrays)
    elif writes:
        (target / VALUE_HEAD_FILE).parent.rmdir()


def _finite(path: str, leaf: Any, dtype: str | None = None) -> np.ndarray:
    """A parameter on the host; raises ValueError where it could not be read again."""
    array = on_host(leaf, dtype)
    if not np.all(np.isfinite(array)):
        raise ValueError(
            f"params: {path} holds NaN, or numbers that are infinite in {array.dtype}; export an "
            "earlier step, or in a wider type"
        )
    return array


def _all_ends(tokenizer: Any) -> tuple[int, ...]:
    """The end tokens of an export: in the order of its source, then those that training added."""
    return tuple(dict.fromkeys((*generation_of(tokenizer).end_ids, *stop_ids(tokenizer))))


def on_host(leaf: Any, dtype: str | None) -> np.ndarray:
    """An array wherever it lies, in full and in its own type, or in another one."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    if dtype is None:
        return array
    with np.errstate(over="ignore"):  # what overflows is refused where it is written
        return array.astype(jnp.dtype(dtype))


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
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for path in paths:
            name, transposed = transformers_name(path)
            array = _finite(path, leaves[path], dtype)
            arrays[name] = np.ascontiguousarray(array.T if transposed else array)
            index[name] = file
        if writes:
            write_file(target / file, arrays)
    if writes and len(shards) > 1:
        record = {"metadata": {"total_size": sum(size.values())}, "weight_map": index}
        _write_json(target / INDEX, record)


def _write_json(file: Path, record: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
