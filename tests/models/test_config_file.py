"""Entries of `config.json`: read, known to change nothing, or refused by name."""

import json
import shutil

import pytest

from steprl.models import decoder_config, read_config
from tests.models.small_model import ROWS, assert_refused, change, shape_of, write_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One model of each family, not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "qwen2", "qwen3"):
        write_model(folder / family, family)
    return folder


@pytest.fixture
def model(good, tmp_path):
    """A model that may be broken."""
    return shutil.copytree(good / "llama", tmp_path / "m")


@pytest.mark.parametrize(
    "entries",
    [
        {"is_causal": False},
        {"is_encoder_decoder": True},
        {"add_cross_attention": True},
        {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"compression_config": {"format": "int-quantized"}},
        {"num_local_experts": 8},
        {"num_experts": 4},
        {"mlp_bias": True},
        {"attention_bias": True},
        {"attention_bias": "yes"},
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": None},
        {"sliding_window": 1024},
        {"use_sliding_window": True},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"layer_types": ["full_attention"]},
        {"partial_rotary_factor": 0.5},
        {"rope_interleaved": True},
        {"logits_scaling": 8.0},
        {"residual_multiplier": 0.22},
        {"pruned_heads": {"0": [1]}},
        {"attn_logit_softcapping": 50.0},  # of other families: not known here
        {"no_rope_layers": [1, 0]},
        {"use_rope": False},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["LlamaModel"]},
        {"rope_scaling": {"factor": 8.0}},
        {"rope_scaling": {"rope_type": "default", "factor": 8.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "unheard"}},
        {"rope_scaling": {"rope_type": None, "factor": 2.0}},
        {"rope_scaling": {**LLAMA3, "type": "linear"}},
        {"rope_scaling": {**LLAMA3, "attention_factor": 2.0}},
        {"rope_scaling": without(LLAMA3, "factor")},
        {"rope_scaling": {**LLAMA3, "factor": "8"}},
        {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
        {"rope_scaling": "linear"},
        {"rope_parameters": {"rope_theta": 500.0, "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_theta": 7.0}},  # and rope_theta says 500
        {"rope_theta": 0},
        {"rope_theta": "500"},
        {"rope_theta": 1e39},  # infinite in float32
        {"hidden_size": 30},  # which 4 heads do not divide
        {"torch_dtype": ["float32"]},
        {"rms_norm_eps": -1.0},
        {"rms_norm_eps": None},
        {"vocab_size": 0},
        {"vocab_size": ...},
        {"hidden_size": 32.5},
        {"num_attention_heads": True},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 0},
        {"num_hidden_layers": 10**9},
        {"head_dim": 7},
        {"head_dim": 0},
        {"max_position_embeddings": -1},
        {"max_position_embeddings": "4096"},
        {"tie_word_embeddings": "false"},
        {"model_type": ["llama"]},
        {"model_type": "mixtral"},
        {"eos_token_id": ROWS},
        {"eos_token_id": -1},
        {"eos_token_id": "2"},
        {"eos_token_id": [1, True]},
    ],
    ids=str,
)
def test_an_entry_that_would_be_passed_over_is_named(entries, model):
    change(model / "config.json", **entries)
    name = next(iter(entries))
    wanted = "rope_theta" if entries.get("rope_parameters") == {"rope_theta": 7.0} else name
    assert_refused(model, "config.json", wanted)


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("llama", {"rope_scaling": {"rope_type": "default"}}),
        ("llama", {"rope_scaling": {}}),
        ("llama", {"rope_theta": ..., "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
        ("llama", {"num_key_value_heads": 2, "pretraining_tp": 2, "attention_dropout": 0.1}),
        ("llama", {"head_dim": None, "hidden_act": "swish", "sliding_window": None}),
        ("llama", {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}}),
        ("llama", {"partial_rotary_factor": 1.0, "is_causal": True, "num_experts": None}),
        ("llama", {"_name_or_path": "somebody/model", "transformers_version": "4.30.0"}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2}),
        ("qwen2", {"use_mrope": False, "layer_types": ["full_attention", "full_attention"]}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": None}),
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_changes_nothing_is_taken(family, entries, good, tmp_path):
    folder = shutil.copytree(good / family, tmp_path / "m")
    change(folder / "config.json", **entries)
    assert read_config(folder, value_head="none") == shape_of(family)


PUBLISHED = {
    "SmolLM2-135M-Instruct": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1,
        eos_token_id=2, hidden_act="silu", hidden_size=576, initializer_range=0.041666666666666664,
        intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192, mlp_bias=False,
        model_type="llama", num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3,
        pad_token_id=2, pretraining_tp=1, rms_norm_eps=1e-05, rope_interleaved=False, rope_scaling=None,
        rope_theta=100000, tie_word_embeddings=True, torch_dtype="bfloat16",
        transformers_version="4.42.3", use_cache=True, vocab_size=49152,
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}},
    ),
    "Llama-3.2-1B-Instruct": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=128000, eos_token_id=[128001, 128008, 128009], head_dim=64, hidden_act="silu",
        hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
        max_position_embeddings=131072, mlp_bias=False, model_type="llama", num_attention_heads=32,
        num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
        rope_scaling={"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        rope_theta=500000.0, tie_word_embeddings=True, torch_dtype="bfloat16",
        transformers_version="4.45.0.dev0", use_cache=True, vocab_size=128256,
    ),
    "Qwen2.5-0.5B-Instruct": dict(
        architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643,
        eos_token_id=151645, hidden_act="silu", hidden_size=896, initializer_range=0.02,
        intermediate_size=4864, max_position_embeddings=32768, max_window_layers=21,
        model_type="qwen2", num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2,
        rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True,
        torch_dtype="bfloat16", transformers_version="4.43.1", use_cache=True,
        use_sliding_window=False, vocab_size=151936,
    ),
    "Qwen3-0.6B": dict(
        architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=151643, eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=1024,
        initializer_range=0.02, intermediate_size=3072, max_position_embeddings=40960,
        max_window_layers=28, model_type="qwen3", num_attention_heads=16, num_hidden_layers=28,
        num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000,
        sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16",
        transformers_version="4.51.0", use_cache=True, use_sliding_window=False, vocab_size=151936,
    ),
}  # fmt: skip
OF_PUBLISHED = {"SmolLM2-135M-Instruct": "smollm2-135m", "Qwen3-0.6B": "qwen3-0.6b"}  # our presets


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_as_they_are_published_are_taken(name, tmp_path):
    record = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(record))
    config = read_config(tmp_path)
    assert config.context_length == record["max_position_embeddings"]
    assert (config.rope_scaling is None) == (record.get("rope_scaling") is None)
    if name in OF_PUBLISHED:
        assert config == decoder_config(OF_PUBLISHED[name])


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_of_qwen_are_refused_where_a_layer_has_one(family, good, tmp_path):
    folder = shutil.copytree(good / family, tmp_path / "m")
    change(folder / "config.json", use_sliding_window=True, max_window_layers=1)
    assert_refused(folder, "sliding_attention")
