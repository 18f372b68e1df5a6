"""The language model: a decoder behind pure functions, its presets, pretrained weights, and scores."""

from steprl.models.adapters import Adapter, load_adapter, save_adapter
from steprl.models.decoder import KVCache
from steprl.models.lora import (
    init_lora,
    lora_targets,
    merge_lora,
    unmerge_lora,
    with_lora,
)
from steprl.models.policy import make_policy
from steprl.models.presets import PRESETS, DecoderConfig, decoder_config
from steprl.models.pretrained import load_pretrained, read_config, save_pretrained
from steprl.models.scoring import Scores, logprobs_and_entropy, sampled_places, score
from steprl.models.sources import Pretrained, Source, load_model, open_model, resolve_model
from steprl.models.tokenizer import phrase_tokenizer

__all__ = [
    "PRESETS",
    "Adapter",
    "DecoderConfig",
    "KVCache",
    "Pretrained",
    "Scores",
    "Source",
    "decoder_config",
    "init_lora",
    "load_adapter",
    "load_model",
    "load_pretrained",
    "logprobs_and_entropy",
    "lora_targets",
    "make_policy",
    "merge_lora",
    "open_model",
    "phrase_tokenizer",
    "read_config",
    "resolve_model",
    "sampled_places",
    "save_adapter",
    "save_pretrained",
    "score",
    "unmerge_lora",
    "with_lora",
]
