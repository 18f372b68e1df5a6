"""The language model: a decoder behind pure functions, its presets, and the scores of a batch."""

from steprl.models.decoder import KVCache
from steprl.models.policy import make_policy
from steprl.models.presets import PRESETS, DecoderConfig, decoder_config
from steprl.models.scoring import Scores, logprobs_and_entropy, sampled_places, score
from steprl.models.tokenizer import phrase_tokenizer

__all__ = [
    "PRESETS",
    "DecoderConfig",
    "KVCache",
    "Scores",
    "decoder_config",
    "logprobs_and_entropy",
    "make_policy",
    "phrase_tokenizer",
    "sampled_places",
    "score",
]
