"""What a model says and we do not compute is refused, by file and entry; and so is what is damaged."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from steprl.cli import main
from steprl.models import load_adapter, load_model, save_adapter, save_pretrained
from steprl.models.files import INDEX, WEIGHTS
from tests.models.random_models import FAMILIES, random_parameters
from tests.models.small_model import ROWS, assert_refused, change, write_model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model that is not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    write_model(folder)
    return folder


@pytest.fixture
def model(good, tmp_path):
    """A model that may be broken."""
    return shutil.copytree(good, tmp_path / "m")


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
