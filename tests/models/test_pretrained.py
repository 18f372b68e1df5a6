"""Hugging Face directories: what is written loads here and in transformers, and says the same."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from steprl.config import MeshConfig
from steprl.models import make_policy, phrase_tokenizer
from steprl.models.pretrained import (
    VALUE_HEAD_FILE,
    load_pretrained,
    read_config,
    save_pretrained,
)
from steprl.models.weights import Weight, place_parameters, transformers_name
from steprl.ops import ValueSupport
from steprl.sharding import make_mesh, state_shardings
from tests.models.random_models import FAMILIES, assert_same_bits, random_parameters

LLAMA, QWEN2, QWEN3 = FAMILIES["llama"], FAMILIES["qwen2"], FAMILIES["qwen3"]
each_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
TOLERANCE = 5e-4


@functools.cache
def compiled(config):
    policy = make_policy(config)

    def logits(params, tokens_BT, positions_BT, segment_ids_BT, cache=None):
        hidden, cache = policy.apply(params, tokens_BT, positions_BT, segment_ids_BT, cache)
        return policy.unembed(params, hidden), cache

    return jax.jit(logits)


def tokens_of(config, rows=3, length=12):
    return np.random.default_rng(3).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


def left_padded(real_BT):
    """Positions and segments of rows whose real tokens stand at the end."""
    positions = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0)
    return positions.astype(np.int32), real_BT.astype(np.int32)


def logits_of(config, params, tokens):
    return compiled(config)(params, tokens, *left_padded(np.ones_like(tokens)))[0]


# ---------------------------------------------------------------- out and in again


@each_family
def test_what_is_exported_comes_back_bitwise_and_says_the_same(config, tmp_path):
    params = random_parameters(config)
    save_pretrained(tmp_path / "out", config, params)
    found = read_config(tmp_path / "out", value_head="none")
    assert found == config
    loaded = load_pretrained(tmp_path / "out", found)
    assert_same_bits(loaded, params)
    tokens = tokens_of(config)
    assert np.array_equal(logits_of(config, params, tokens), logits_of(config, loaded, tokens))


@pytest.mark.parametrize(
    ("kind", "bins"), [("shared", None), ("shared", ValueSupport(0.0, 1.0, 9)), ("separate", None)]
)
def test_the_value_head_lies_in_a_file_of_its_own(kind, bins, tmp_path):
    config = dataclasses.replace(LLAMA, value_head=kind, value_support=bins)
    params = random_parameters(config)
    save_pretrained(tmp_path / "out", config, params)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not [name for name in names if "value" in name or "critic" in name]
    assert (tmp_path / "out" / VALUE_HEAD_FILE).is_file()
    assert_same_bits(load_pretrained(tmp_path / "out", config), params)
    # The model can be had without it, and not with another kind of it.
    without = load_pretrained(tmp_path / "out", LLAMA)
    assert_same_bits(without, {"decoder": params["decoder"]})
    other = dataclasses.replace(LLAMA, value_head="separate" if kind == "shared" else "shared")
    with pytest.raises(ValueError, match=r"critic\.final_norm\.scale: (missing|unexpected)"):
        load_pretrained(tmp_path / "out", other)
    other = dataclasses.replace(config, value_support=ValueSupport(0.0, 1.0, 8))
    with pytest.raises(ValueError, match=r"value\.out\.kernel: of shape .*, expected \(\d+, 8\)"):
        load_pretrained(tmp_path / "out", other)


def test_a_new_value_head_says_nothing_and_a_new_critic_is_the_model(tmp_path):
    params = random_parameters(LLAMA)
    save_pretrained(tmp_path / "out", LLAMA, params)
    config = read_config(tmp_path / "out", value_head="separate")
    loaded = load_pretrained(tmp_path / "out", config, key=jax.random.key(5))
    drawn = make_policy(config).init(jax.random.key(5))
    assert jax.tree.structure(loaded) == jax.tree.structure(drawn)
    assert_same_bits(loaded["critic"], params["decoder"])
    assert not np.any(loaded["value"]["out"]["kernel"]) and np.any(
        loaded["value"]["hidden"]["kernel"]
    )
    leaves = [*jax.tree.leaves(loaded["critic"]), *jax.tree.leaves(loaded["decoder"])]
    buffers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(buffers) == len(leaves)  # no array twice: parameters are donated to an update


@pytest.mark.parametrize("shard_bytes", [1, 9_000])
def test_large_models_are_written_in_several_files(shard_bytes, tmp_path):
    params = random_parameters(QWEN2)
    save_pretrained(tmp_path / "out", QWEN2, params, shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(files) == (len(jax.tree.leaves(params)) if shard_bytes == 1 else 10)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert_same_bits(load_pretrained(tmp_path / "out", QWEN2), params)
    files[-1].unlink()
    with pytest.raises(FileNotFoundError, match=files[-1].name):
        load_pretrained(tmp_path / "out", QWEN2)


def test_types_of_file_and_parameters_are_free(tmp_path):
    params = random_parameters(LLAMA)
    save_pretrained(tmp_path / "half", LLAMA, params, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    half = read_config(tmp_path / "half", value_head="none", param_dtype="bfloat16")
    assert_same_bits(load_pretrained(tmp_path / "half", half), rounded)
    assert_same_bits(  # widening is exact
        load_pretrained(tmp_path / "half", LLAMA),
        jax.tree.map(lambda x: x.astype(np.float32), rounded),
    )


def test_nothing_is_written_over_and_nothing_is_left_half_done(tmp_path):
    params = random_parameters(LLAMA)
    (tmp_path / "out").mkdir()
    save_pretrained(tmp_path / "out", LLAMA, params)  # an empty one may be there
    with pytest.raises(FileExistsError, match="not empty"):
        save_pretrained(tmp_path / "out", LLAMA, params)

    class Broken:
        model_max_length = 8
        bos_token_id = eos_token_id = pad_token_id = None

        def get_vocab(self):
            return {}

        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_pretrained(tmp_path / "two", LLAMA, params, tokenizer=Broken())
    assert not (tmp_path / "two").exists()
    save_pretrained(tmp_path / "two", LLAMA, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "two"]


def test_the_tokenizer_and_its_special_ids_go_along(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = phrase_tokenizer(["go to", "the", "kitchen"])
    params = random_parameters(LLAMA)
    save_pretrained(tmp_path / "out", LLAMA, params, tokenizer=tokenizer, context_length=64)
    settings = json.loads((tmp_path / "out/config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"], settings["bos_token_id"]) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        None,
    )
    assert settings["max_position_embeddings"] == 64
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("go to the kitchen").input_ids == tokenizer("go to the kitchen").input_ids


# ---------------------------------------------------------------- strict


def exported(tmp_path, config=LLAMA, **changed):
    """An export whose tensors are changed; None takes one away."""
    save_pretrained(tmp_path / "out", config, random_parameters(config))
    file = tmp_path / "out" / "model.safetensors"
    tensors = {**load_file(file), **changed}
    save_file({n: x for n, x in tensors.items() if x is not None}, file)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lm_head.weight", None, r"lm_head\.weight: missing, expected of shape \(48, 32\)"),
        ("model.layers.1.mlp.up_proj.weight", None, r"layers\.1\.mlp\.up_proj\.weight: missing"),
        ("model.layers.7.x", np.ones(3), r"model\.layers\.7\.x: unexpected, of shape \(3,\)"),
        (
            "model.layers.0.self_attn.k_proj.weight",
            np.ones((32, 16)),
            r"k_proj\.weight: of shape \(32, 16\), expected \(16, 32\)",
        ),
    ],
)
def test_missing_unexpected_and_misshapen_tensors_are_named(name, value, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(exported(tmp_path, **{name: value}), LLAMA)
    assert "1 tensors differ" in str(error.value)


def test_a_copy_of_tied_embeddings_must_be_one(tmp_path):
    config = FAMILIES["llama, tied"]
    embedding = random_parameters(config)["decoder"]["embedding"]["embedding"]
    good = exported(tmp_path / "good", config, **{"lm_head.weight": embedding})
    assert_same_bits(load_pretrained(good, config), random_parameters(config))
    bad = exported(tmp_path / "bad", config, **{"lm_head.weight": embedding + 1})
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        load_pretrained(bad, config)


def test_old_constants_are_skipped(tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    assert_same_bits(load_pretrained(exported(tmp_path, **extra), LLAMA), random_parameters(LLAMA))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (LLAMA, {"model_type": "gpt2"}, "model_type='gpt2'; known are llama, qwen2, qwen3"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LLAMA, {"attention_bias": True}, "bias on every projection"),
        (LLAMA, {"mlp_bias": True}, "bias on every projection"),
        (LLAMA, {"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary positions"),
        (QWEN3, {"use_sliding_window": True, "max_window_layers": 1}, "sliding_attention"),
    ],
)
def test_what_the_decoder_lacks_is_refused(config, change, message, tmp_path):
    save_pretrained(tmp_path / "out", config, random_parameters(config))
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "out")


def test_other_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be converted first"):
        load_pretrained(tmp_path, LLAMA)
    with pytest.raises(ValueError, match="no family of transformers has both"):
        both = dataclasses.replace(LLAMA, qk_norm=True, attention_bias=True)
        save_pretrained(tmp_path / "out", both, {})
    with pytest.raises(ValueError, match="rope_theta: fixed by the pretrained model"):
        save_pretrained(tmp_path / "out", LLAMA, random_parameters(LLAMA))
        read_config(tmp_path / "out", rope_theta=1.0)
    with pytest.raises(ValueError, match="is not a parameter of the decoder"):
        transformers_name("decoder/layers/0/attention/lora/kernel")


# ---------------------------------------------------------------- on a mesh


def test_each_device_reads_its_part_only(tmp_path, devices):
    config = dataclasses.replace(LLAMA, value_head="separate")
    params = random_parameters(config)
    save_pretrained(tmp_path / "out", config, params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), devices)
    loaded = load_pretrained(tmp_path / "out", config, mesh=mesh)
    assert_same_bits(loaded, params)
    wanted = state_shardings(params, mesh)
    assert jax.tree.map(lambda x: x.sharding, loaded) == wanted
    save_pretrained(tmp_path / "again", config, loaded)
    for name in ("model.safetensors", VALUE_HEAD_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    # The reads of one tensor cover it once, in parts, though two devices hold each part.
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    sizes = {name: [] for name in tensors}

    def watched(name):
        def read(index):
            part = tensors[name][index]
            sizes[name].append(part.size)
            return part

        return Weight(tensors[name].shape, read)

    place_parameters(LLAMA, {name: watched(name) for name in tensors}, mesh=mesh)
    for name, tensor in tensors.items():
        parts = 4 if tensor.ndim == 2 else 1
        assert sizes[name] == [tensor.size // parts] * parts, name


def test_a_new_value_head_is_placed_too(tmp_path, devices):
    save_pretrained(tmp_path / "out", LLAMA, random_parameters(LLAMA))
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), devices)
    config = read_config(tmp_path / "out", value_head="shared")
    loaded = load_pretrained(tmp_path / "out", config, mesh=mesh)
    assert jax.tree.map(lambda x: x.sharding, loaded) == state_shardings(loaded, mesh)
    plain = load_pretrained(tmp_path / "out", config)
    assert_same_bits(loaded, plain)


# ---------------------------------------------------------------- against transformers


def theirs_logits(model, tokens, real=None):
    import torch

    real = np.ones_like(tokens) if real is None else real
    positions, _ = left_padded(real)
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(real.astype(np.int64)),
            position_ids=torch.from_numpy(positions.astype(np.int64)),
        )
    return out.logits.numpy()


@each_family
def test_transformers_loads_the_export_and_says_the_same(config, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    params = random_parameters(config)
    save_pretrained(tmp_path / "out", config, params, shard_bytes=20_000)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    tokens = tokens_of(config)
    ours = np.asarray(logits_of(config, params, tokens))
    theirs = theirs_logits(model, tokens)
    assert np.max(np.abs(ours - theirs)) < TOLERANCE and np.std(theirs) > 0.3


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_models_of_transformers_load_and_say_the_same(name, tmp_path):
    """With padding on the left, and token by token with a cache."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **shape), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():  # no bias 0, no scale 1
            if key.endswith("bias") or "norm" in key:
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs", value_head="none")
    params = load_pretrained(tmp_path / "theirs", config)

    tokens, length = tokens_of(config, rows=3, length=14), 14
    real = np.arange(length)[None, :] >= np.asarray([[0], [5], [13]])
    real = real.astype(np.int32)
    positions, segments = left_padded(real)
    theirs = theirs_logits(model, tokens, real)
    ours, _ = compiled(config)(params, tokens, positions, segments)
    assert np.max(np.abs(np.asarray(ours) - theirs)[real > 0]) < TOLERANCE
    assert np.std(theirs) > 0.3

    cache = make_policy(config).init_cache(3, length + 2)
    step = compiled(config)
    prompt = 8
    part, cache = step(
        params, tokens[:, :prompt], positions[:, :prompt], segments[:, :prompt], cache
    )
    parts = [part]
    for at in range(prompt, length):
        one = slice(at, at + 1)
        part, cache = step(params, tokens[:, one], positions[:, one], segments[:, one], cache)
        parts.append(part)
    cached = np.concatenate(parts, axis=1)
    assert np.max(np.abs(cached - theirs)[real > 0]) < TOLERANCE
