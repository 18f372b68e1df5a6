"""What a model says and we do not compute is refused, by file and entry; and so is what is damaged."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from steprl.cli import main
from steprl.models import load_adapter, load_model, read_config, save_adapter, save_pretrained
from steprl.models.files import INDEX, WEIGHTS
from tests.models.random_models import FAMILIES, random_parameters
from tests.models.small_model import ROWS, change, shape_of, write_model

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


def assert_refused(folder, *said):
    """One sentence, which names a file in the folder and says what it says."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(folder, value_head="none")
    assert type(error.value) in (ValueError, FileNotFoundError)
    message = str(error.value)
    for part in (str(folder), *said):
        assert part in message, message
    assert len(message.splitlines()) <= 2 or "tensors differ" in message
    return message


# ---------------------------------------------------------------- config.json


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


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_of_qwen_are_refused_where_a_layer_has_one(family, good, tmp_path):
    folder = shutil.copytree(good / family, tmp_path / "m")
    change(folder / "config.json", use_sliding_window=True, max_window_layers=1)
    assert_refused(folder, "sliding_attention")


# ---------------------------------------------------------------- weights


NAME = "model.layers.1.mlp.up_proj.weight"


def with_tensors(folder, **tensors):
    held = {**load_file(folder / WEIGHTS), **tensors}
    save_file({name: one for name, one in held.items() if one is not None}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value, model):
    tensor = load_file(model / WEIGHTS)[NAME]
    tensor[3, 4] = value
    assert_refused(with_tensors(model, **{NAME: tensor}), WEIGHTS, NAME, "NaN or infinite")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_numbers_without_their_scales_are_refused(dtype, model):
    tensor = np.ones_like(load_file(model / WEIGHTS)[NAME]).astype(dtype)
    assert_refused(with_tensors(model, **{NAME: tensor}), WEIGHTS, NAME, "quantised")


def test_numbers_too_large_for_the_parameters_are_refused(model):
    tensor = np.full(load_file(model / WEIGHTS)[NAME].shape, 1e300)
    assert_refused(with_tensors(model, **{NAME: tensor}), NAME, "in float32")


def test_what_an_export_could_not_hold_is_not_written(tmp_path):
    config = FAMILIES["llama"]
    params = random_parameters(config)
    params["decoder"]["layers"]["0"]["mlp"]["up"]["kernel"][0, 0] = 1e30
    with pytest.raises(ValueError, match="decoder/layers/0/mlp/up/kernel .*infinite in float16"):
        save_pretrained(tmp_path / "out", config, params, dtype="float16")
    params["decoder"]["layers"]["0"]["mlp"]["up"]["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        save_pretrained(tmp_path / "out", config, params)
    assert not list(tmp_path.iterdir())  # nothing half done is left
    adapters = {"decoder": {"layers": {"0": {"mlp": {"up": {
        "lora_a": np.full((32, 2), np.nan, np.float32), "lora_b": np.zeros((2, 40), np.float32),
    }}}}}}  # fmt: skip
    with pytest.raises(ValueError, match=r"up_proj\.lora_A\.weight holds NaN"):
        save_adapter(tmp_path / "adapter", params | {"lora": adapters}, 2.0)


def test_two_sets_of_weights_are_one_too_many(model):
    (model / INDEX).write_text(json.dumps({"weight_map": {}}))
    assert_refused(model, WEIGHTS, INDEX, "left over")


# ---------------------------------------------------------------- tokenizer


def test_more_ids_than_rows_are_refused_and_fewer_are_fine(model, tmp_path):
    tensors = load_file(model / WEIGHTS)
    ids = len(load_model(model).tokenizer)
    assert ids < ROWS

    def with_rows(rows):
        change(model / "config.json", vocab_size=rows, eos_token_id=None)
        cut = {
            name: tensors[name][:rows] for name in ("model.embed_tokens.weight", "lm_head.weight")
        }
        return with_tensors(model, **cut)

    assert len(load_model(with_rows(ids)).tokenizer) == ids
    assert_refused(
        with_rows(ids - 1), f"{ids} ids", f"{ids - 1} rows", "tokenizer.json", "config.json"
    )


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, "auto_map"),
        ({"eos_token": "<|unheard|>"}, "eos_token"),
        ({"bos_token": {"content": "<|unheard|>", "__type": "AddedToken"}}, "bos_token"),
        ({"eos_token": ["<|end|>"]}, "eos_token"),
        ({"model_max_length": "4096"}, "model_max_length"),
    ],
)
def test_settings_of_a_tokenizer_that_cannot_be_followed_are_named(entries, said, model):
    change(model / "tokenizer_config.json", **entries)
    assert_refused(model, "tokenizer_config.json", said)


# ---------------------------------------------------------------- damaged files

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 988097824\n"
)
JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", [WEIGHTS, *JSON])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "git lfs pull"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><title>404</title></html>", "web page"),
        (b"PK\x03\x04" + bytes(60), "convert it first"),
        (b"\xff\xfe" * 40, ""),
        (b"[" * 100_000, ""),
        (b"[]", ""),
    ],
    ids=["pointer", "empty", "page", "archive", "bytes", "nested", "list"],
)
def test_another_file_under_the_name_is_told(name, content, said, model):
    (model / name).write_bytes(content)
    assert_refused(model, name, said)


def test_a_pointer_in_place_of_any_other_file_is_told(model):
    (model / "chat_template.jinja").write_bytes(POINTER)
    assert_refused(model, "chat_template.jinja", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_missing_file_is_named(name, model):
    (model / name).unlink()
    assert_refused(model, name)


def test_a_folder_of_a_gguf_says_to_name_the_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert_refused(tmp_path, "give the file", "m.gguf")


@pytest.mark.parametrize(
    ("name", "said"),
    [("adapter_config.json", "merge_and_unload"), ("config.resolved.yaml", "steprl export")],
)
def test_a_folder_of_something_else_says_what_to_do(name, said, tmp_path):
    (tmp_path / name).write_text("{}")
    assert_refused(tmp_path, said)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "not found"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "not found"),
        ({"weight_map": ["a"]}, "weight_map"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_an_index_that_leads_nowhere_is_named(index, said, model):
    (model / WEIGHTS).unlink()
    (model / INDEX).write_text(json.dumps(index))
    assert_refused(model, INDEX, said)


def test_the_command_line_says_it_in_one_line(model, tmp_path, capsys):
    file = model / WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])
    assert main(["export", str(model), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert str(file) in printed.out and "cut off" in printed.out
    assert "Traceback" not in printed.out + printed.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_file_that_is_cut_off_anywhere_is_named(name, data, model):
    file = model / name
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    file.write_bytes(whole[:cut])
    try:
        assert_refused(model, name)
    finally:
        file.write_bytes(whole)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_flipped_bit_in_the_head_of_the_weights_is_seen(data, model):
    file = model / WEIGHTS
    whole = file.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    # Blanks at its end, and what it says about itself, are of no meaning.
    place = data.draw(st.integers(0, len(whole[:head].rstrip()) - 1))
    said = whole.index(b"__metadata__")
    if said - 2 <= place <= whole.index(b"}", said) + 1:
        return
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(flipped)
    try:
        assert_refused(model)
    finally:
        file.write_bytes(whole)


# ---------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tmp_path):
    config = FAMILIES["llama"]
    factors = {"lora_a": np.ones((32, 2), np.float32), "lora_b": np.ones((2, 40), np.float32)}
    lora = {"decoder": {"layers": {"0": {"mlp": {"up": factors}}}}}
    save_adapter(tmp_path / "a", random_parameters(config) | {"lora": lora}, 4.0)
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_model.safetensors", POINTER, "git lfs pull"),
        ("adapter_model.safetensors", b"\x08" + bytes(9), "cut off or damaged"),
        ("adapter_config.json", POINTER, "git lfs pull"),
        ("adapter_config.json", b'{"peft_type": "LORA"', "not valid JSON"),
        ("adapter_config.json", b'{"peft_type": "LORA", "lora_alpha": 4}', "r is missing"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 2}', "lora_alpha"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 0, "lora_alpha": 4}', "r=0"),
    ],
)
def test_damaged_adapters_are_named(name, content, said, adapter):
    load_adapter(adapter, FAMILIES["llama"])
    (adapter / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_adapter(adapter, FAMILIES["llama"])
    assert str(adapter / name) in str(error.value)
