"""The files of a tokenizer in a Hugging Face directory, in and out, for transformers 4 and 5."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steprl.models.files import check_content, read_json
from steprl.models.presets import DecoderConfig

TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
_VOCABULARIES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "vocab.txt")
_OTHERS = ("special_tokens_map.json", "added_tokens.json", "chat_template.json")
_TEMPLATE = "chat_template.jinja"
_OF_LOADING = ("backend", "is_local", "local_files_only")
"""Entries that transformers 5 writes about how a tokenizer was loaded."""


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model, by `AutoTokenizer`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, or the tokenizer needs code of its own; names the file.
    """
    present = [name for name in _VOCABULARIES if (directory / name).is_file()]
    if not present:
        raise FileNotFoundError(
            f"{directory} has no {TOKENIZER_FILE}: copy the files of the tokenizer there too"
        )
    settings_file = directory / SETTINGS_FILE
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if settings.get("auto_map"):
        raise ValueError(
            f"{settings_file}: auto_map: the tokenizer brings code of its own, which is not run; if "
            f"{TOKENIZER_FILE} holds all of it, remove the entry"
        )
    limit = settings.get("model_max_length")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)):
        raise ValueError(f"{settings_file}: model_max_length={limit!r} has to be a number")
    contents = {}
    for name in (*present, *_OTHERS, _TEMPLATE):
        file = directory / name
        if file.is_file() and name.endswith(".json"):
            contents[name] = read_json(file)
        elif file.is_file():
            check_content(file)
    _check_ends(settings, contents, settings_file)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the classes of two libraries, and those of what a file lacks
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{directory}: its tokenizer ({', '.join(present)}) cannot be read, "
            f"{type(error).__name__}: {lines[0]}; copy or download its files again"
        ) from error


def _check_ends(
    settings: Mapping[str, Any], contents: Mapping[str, Any], settings_file: Path
) -> None:
    """Refuses a first or last token that no vocabulary has.

    It would be added, as one that the model has never read or written.
    """
    described = contents.get(TOKENIZER_FILE, {})
    model = described.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = [described.get("added_tokens"), settings.get("added_tokens_decoder")]
    listed = [one.values() if isinstance(one, dict) else one or () for one in added]
    names = {str(one.get("content")) for part in listed for one in part if isinstance(one, dict)}
    names |= set(contents.get("added_tokens.json", ()))
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str | None):
            raise ValueError(f"{settings_file}: {name}={token!r} has to be a text")
        # Some kinds of tokenizers list pieces with scores instead; those are left to transformers.
        known = token is None or not isinstance(vocabulary, dict) or token in vocabulary
        if not known and token not in names:
            raise ValueError(
                f"{settings_file}: {name}={token!r} is not in the vocabulary of {TOKENIZER_FILE}; write "
                "the token of the model there"
            )


def check_vocabulary(
    tokenizer: Any, config: DecoderConfig, tokenizer_file: object, config_file: object
) -> None:
    """Raises ValueError where a tokenizer has ids for which the embedding has no rows.

    Such an id would be read as NaN. Rows without an id are fine: many models have some.
    """
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if ids > config.vocab_size:
        raise ValueError(
            f"{tokenizer_file} has {ids} ids, and the embedding of {config_file} only "
            f"{config.vocab_size} rows (vocab_size): take the tokenizer that belongs to the model, or "
            "add rows with resize_token_embeddings of transformers"
        )


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes a tokenizer so that transformers 4 and 5 read it, as it is.

    Version 5 names classes that version 4 lacks, and lists further special tokens under a name that
    had another meaning there. Both read `PreTrainedTokenizerFast`, which is what stands in
    `tokenizer.json` and nothing else.
    """
    tokenizer.save_pretrained(directory)
    file = directory / SETTINGS_FILE
    if not file.is_file() or not (directory / TOKENIZER_FILE).is_file():
        return  # one that is not made of a tokenizer.json
    settings = read_json(file)
    for name in _OF_LOADING:
        settings.pop(name, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = list(tokenizer.model_input_names)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
