"""The tokenizer in a GGUF file, with all its end tokens."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel as ByteLevelOffsets
from tokenizers.processors import Sequence, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from steprl.models.generation import Generation, keep_generation, token_ids
from steprl.models.gguf_file import GGUF

_CONTROL, _USER_DEFINED = 3, 4  # token types: special, and added but plain
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, a turn, a message
_SAMPLING = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "temp": "temperature"}
"""Names of sampling defaults in `generation_config.json` by those behind `general.sampling.`"""

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def gguf_tokenizer(file: GGUF) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file, with special tokens and chat template.

    Args:
        file: from `read_gguf`.

    Returns:
        A tokenizer that saves to a directory which `AutoTokenizer` reads. Every end token that the file
        names, and its sampling defaults, are kept with it.

    Raises:
        ValueError: not a byte-level BPE, a way to split text into words that is not known here, or a
            list or an id that does not fit to the others; the message names the file.

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
    _check_lists(tokens, get("token_type"), get("merges"), file)
    types = get("token_type") or [1] * len(tokens)
    ids = {
        key: token_ids(get(key), f"{file.path}: tokenizer.ggml.{key}", len(tokens))
        for key in (*_END_KEYS, "bos_token_id", "unknown_token_id", "padding_token_id")
    }
    try:
        model = BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in get("merges")],
            ignore_merges=kind in ("llama-bpe", "llama3"),  # a word of the vocabulary is one token
        )
    except Exception as error:  # the class of tokenizers, for a merge of tokens that are not there
        raise ValueError(
            f"{file.path}: tokenizer.ggml.merges and tokens do not fit together: {error}"
        ) from error
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
        name: tokens[ids[key][0]]
        for name, key in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        )
        if ids[key]
    }
    offsets = ByteLevelOffsets(trim_offsets=False)
    backend.post_processor = offsets
    if get("add_bos_token", False) and "bos_token" in names:
        bos = names["bos_token"]
        template = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B:1",
            special_tokens=[(bos, ids["bos_token_id"][0])],
        )
        backend.post_processor = Sequence([offsets, template])
    length = metadata.get(f"{metadata['general.architecture']}.context_length")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **({} if length is None else {"model_max_length": length}),
        **names,
    )
    ends = dict.fromkeys(token_id for key in _END_KEYS for token_id in ids[key])
    sampling = {
        ours: metadata[f"general.sampling.{theirs}"]
        for theirs, ours in _SAMPLING.items()
        if f"general.sampling.{theirs}" in metadata
    }
    defaults = {"do_sample": True, **sampling} if sampling else {}
    keep_generation(tokenizer, Generation(tuple(ends), defaults))
    return tokenizer


def _check_lists(tokens: Any, types: Any, merges: Any, file: GGUF) -> None:
    for name, one in (("tokens", tokens), ("merges", merges)):
        if not isinstance(one, list) or not all(isinstance(item, str) for item in one):
            raise ValueError(f"{file.path}: tokenizer.ggml.{name} is no list of texts")
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise ValueError(f"{file.path}: tokenizer.ggml.tokens has {twice!r} twice")
    if types is not None and len(types) != len(tokens):
        raise ValueError(
            f"{file.path}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens"
        )
    strange = next((merge for merge in merges if " " not in merge), None)
    if strange is not None:
        raise ValueError(f"{file.path}: tokenizer.ggml.merges: {strange!r} is no pair")


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
