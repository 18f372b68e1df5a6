"""Files of a model, JSON and safetensors: what is damaged, or is another file, is named.

Nothing here says what a file means; see `config_file`, `tokenizer_files` and `pretrained`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from steprl.models.weights import Weight

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of tensors that are numbers by themselves; integers and 8-bit floats need scales."""

_AGAIN = "copy or download it again"
_STARTS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file: run `git lfs pull` in its folder",
    ),
    (b"<!doctype", f"a web page, not the file: {_AGAIN}"),
    (b"<html", f"a web page, not the file: {_AGAIN}"),
    (b"pk\x03\x04", "a PyTorch or zip archive under another name: convert it first"),
    (b"\x80\x02", "a Python pickle under another name: convert it first"),
)


def check_content(file: Path) -> None:
    """Raises ValueError for a file that is empty, or that plainly is another one than it is named."""
    with open(file, "rb") as opened:
        start = opened.read(32).lower()
    if not start.strip():
        raise ValueError(f"{file} is empty: {_AGAIN}")
    for beginning, description in _STARTS:
        if start.lstrip().startswith(beginning):
            raise ValueError(f"{file} is {description}")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or no object; the message names the file.
    """
    check_content(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}): mend it, or {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object: {_AGAIN}")
    return content


def open_file(file: Path) -> dict[str, Weight]:
    """All tensors of a safetensors file; nothing is read yet, and the file stays mapped.

    Raises:
        ValueError: the file is cut off or damaged, or holds numbers that are not plain floats.
    """
    check_content(file)
    try:
        handle = safe_open(file, framework="numpy")
        slices = {name: handle.get_slice(name) for name in handle.keys()}
    except OSError:
        raise
    except (
        Exception
    ) as error:  # safetensors has a class of its own for them, which is no ValueError
        raise ValueError(
            f"{file} is cut off or damaged, or no safetensors file ({error}): {_AGAIN}"
        ) from error
    for name, part in slices.items():
        if part.get_dtype() not in FLOATS:
            raise ValueError(
                f"{file}: {name} is stored as {part.get_dtype()}: quantised weights are not supported, "
                f"only {', '.join(FLOATS)}; take the model as it was before it was quantised"
            )
    return {
        name: Weight(
            tuple(part.get_shape()),
            # A slice remembers nothing, but the handle, which keeps the file mapped, has to live on.
            lambda index, name=name: handle.get_slice(name)[index],  # type: ignore[misc]
            str(file),
        )
        for name, part in slices.items()
    }


def write_file(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file that may be read by whoever may read its folder."""
    save_file(dict(arrays), file, metadata={"format": "pt"})
    file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes it the owner's alone


def open_directory(directory: Path) -> dict[str, Weight]:
    """The tensors of a model in one safetensors file, or in several with an index.

    Raises:
        FileNotFoundError: there are none, or the index names one that is missing.
        ValueError: a file is damaged, or index and files disagree.
    """
    index_file, single = directory / INDEX, directory / WEIGHTS
    if index_file.is_file() and single.is_file():
        raise ValueError(
            f"{directory} has both {WEIGHTS} and {INDEX}: remove the one that is left over, since they "
            "may hold different weights"
        )
    if single.is_file():
        weights = open_file(single)
    elif index_file.is_file():
        weights = _open_shards(index_file)
    else:
        raise FileNotFoundError(
            f"{directory} has neither {WEIGHTS} nor {INDEX}; other formats must be converted first, "
            "e.g. by save_pretrained of transformers"
        )
    # Constants that old versions stored with the weights.
    return {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def _open_shards(index_file: Path) -> dict[str, Weight]:
    index = read_json(index_file).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{index_file}: weight_map has to give a file for each tensor: {_AGAIN}")
    weights: dict[str, Weight] = {}
    for name in sorted(set(index.values())):
        file = index_file.parent / name
        if Path(name).name != name or not file.is_file():
            raise FileNotFoundError(
                f"{index_file} names the file {name!r}, not found: download it too"
            )
        tensors = open_file(file)
        listed = {tensor for tensor, place in index.items() if place == name}
        if listed != tensors.keys():
            differ = ", ".join(sorted(listed ^ tensors.keys())[:5])
            raise ValueError(f"{index_file} and {name} differ on: {differ}")
        weights |= tensors
    return weights
