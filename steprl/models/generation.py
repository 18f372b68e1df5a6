"""How a model is meant to be sampled from: the tokens that end a reply, and its sampling defaults.

A chat model often has several end tokens, such as `<|im_end|>` and `<|endoftext|>`, while a tokenizer
of `transformers` knows one. All of them are kept with the tokenizer, which goes wherever the model is
spoken with: into rollouts, chat, the server and exports.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from steprl.models.files import read_json

GENERATION_FILE = "generation_config.json"
_ATTRIBUTE = "steprl_generation"


class Generation(NamedTuple):
    """What the files of a model say about sampling from it."""

    end_ids: tuple[int, ...] = ()
    defaults: Mapping[str, Any] = {}  # content of `generation_config.json`


def read_generation(directory: Path, config: Mapping[str, Any], vocab_size: int) -> Generation:
    """Of a Hugging Face directory: its `generation_config.json`, if any, and its `config.json`.

    Args:
        directory: of the model.
        config: content of its `config.json`.
        vocab_size: rows of the embedding.

    Raises:
        ValueError: a file is damaged, or an end token is no token of the model; names file and key.
    """
    file = directory / GENERATION_FILE
    defaults = read_json(file) if file.is_file() else {}
    ids = [
        token_id
        for source, record in ((file, defaults), (directory / "config.json", config))
        for token_id in token_ids(record.get("eos_token_id"), f"{source}: eos_token_id", vocab_size)
    ]
    return Generation(tuple(dict.fromkeys(ids)), defaults)


def token_ids(value: Any, name: str, vocab_size: int) -> tuple[int, ...]:
    """Ids that a file gives as one number, as several, or as none.

    Raises:
        ValueError: they are no tokens of the model; the message begins with `name`.
    """
    values = () if value is None else value if isinstance(value, list) else (value,)
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocab_size:
            raise ValueError(
                f"{name}={value!r}: the ids of the model are whole numbers from 0 to {vocab_size - 1}; "
                "write the end tokens of the model there, or remove the entry"
            )
    return tuple(values)


def keep_generation(tokenizer: Any, generation: Generation) -> None:
    """Keeps what the files said with the tokenizer of the model."""
    setattr(tokenizer, _ATTRIBUTE, generation)


def generation_of(tokenizer: Any) -> Generation:
    """What is kept with a tokenizer, or with the one that it stands for; empty for one by itself."""
    return getattr(tokenizer, _ATTRIBUTE, Generation())


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a text: those that the files of the model name, and `eos_token`."""
    eos = tokenizer.eos_token_id
    own = () if eos is None else (eos,)
    return tuple(dict.fromkeys((*generation_of(tokenizer).end_ids, *own)))


def generation_config(tokenizer: Any, ids: tuple[int, ...]) -> dict[str, Any]:
    """The `generation_config.json` of an export: the defaults of the source, and all end tokens.

    Args:
        tokenizer: of the model.
        ids: the end tokens.
    """
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    record = {name: value for name, value in special.items() if value is not None}
    record |= generation_of(tokenizer).defaults
    record.pop("_from_model_config", None)  # else transformers may derive it anew
    return record | {"eos_token_id": one_or_all(ids)}


def one_or_all(ids: tuple[int, ...]) -> int | list[int] | None:
    """Ids as `transformers` writes them."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)
