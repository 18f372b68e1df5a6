"""Adapters as PEFT's files: what is written loads there and says the same, and the other way round."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from steprl.config import MeshConfig
from steprl.models import (
    init_lora,
    load_adapter,
    make_policy,
    merge_lora,
    save_adapter,
    save_pretrained,
    with_lora,
)
from steprl.models.adapters import peft_name
from steprl.sharding import make_mesh, spec_of
from tests.models.random_models import FAMILIES, assert_same_bits, random_parameters

LLAMA = FAMILIES["llama"]
RANK, ALPHA = 3, 6.0
PREFIX = "base_model.model.model.layers."
TOLERANCE = 1e-5


def adapted(config=LLAMA, target="all-linear", seed=0, scale=0.2):
    params = random_parameters(config, seed)
    lora = init_lora(jax.random.key(0), params, RANK, target)
    draw = np.random.default_rng(seed + 1)
    shaped = lambda x: jnp.asarray(scale * draw.standard_normal(x.shape), x.dtype)  # noqa: E731
    return params | {"lora": jax.tree.map(shaped, lora)}


def settings_of(directory):
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.fixture(scope="module")
def params():
    return adapted()


@pytest.fixture
def saved(params, tmp_path):
    """A directory with adapters, and a function that changes its settings and tensors."""
    save_adapter(tmp_path / "a", params, ALPHA)

    def change(settings=None, **tensors):
        file = tmp_path / "a" / "adapter_config.json"
        file.write_text(json.dumps(settings_of(tmp_path / "a") | (settings or {})))
        held = load_file(tmp_path / "a" / "adapter_model.safetensors") | tensors
        held = {name: array for name, array in held.items() if array is not None}
        save_file(held, tmp_path / "a" / "adapter_model.safetensors")
        return tmp_path / "a"

    return change


# Files


@pytest.mark.parametrize(
    "target, modules",
    [
        ("all-linear", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("attention/(query|value)/", "q_proj v_proj"),
        ("layers/1/mlp/up", "model.layers.1.mlp.up_proj"),
        ("layers/0/|query", "model.layers.0.mlp.down_proj model.layers.0.mlp.gate_proj "
         "model.layers.0.mlp.up_proj model.layers.0.self_attn.k_proj model.layers.0.self_attn.o_proj "
         "model.layers.0.self_attn.q_proj model.layers.0.self_attn.v_proj "
         "model.layers.1.self_attn.q_proj"),
    ],
)  # fmt: skip
def test_what_is_written_comes_back_bitwise(target, modules, tmp_path):
    params = adapted(target=target)
    save_adapter(tmp_path / "a", params, 4.5, base_model="some/model")
    found = load_adapter(tmp_path / "a", LLAMA)
    assert (found.rank, found.alpha) == (RANK, 4.5)
    assert_same_bits(found.lora, params["lora"])
    settings = settings_of(tmp_path / "a")
    assert settings["target_modules"] == modules.split()
    assert settings["base_model_name_or_path"] == "some/model"
    assert (settings["r"], settings["lora_alpha"]) == (RANK, 4.5)


def test_the_file_has_the_names_and_the_layout_of_peft(params, saved):
    held = load_file(saved() / "adapter_model.safetensors")
    lora = params["lora"]["decoder"]["layers"]["1"]["attention"]["value"]
    assert len(held) == 2 * 7 * 2  # layers, projections, factors
    for factor, name in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        array = held[f"{PREFIX}1.self_attn.v_proj.{name}.weight"]
        np.testing.assert_array_equal(array, lora[factor].T)
    assert held[f"{PREFIX}0.mlp.down_proj.lora_A.weight"].shape == (RANK, 40)


def test_adapters_go_to_where_their_kernels_lie(params, saved):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    found = load_adapter(saved(), LLAMA, mesh=mesh).lora
    assert_same_bits(jax.device_get(found), jax.device_get(params["lora"]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert leaf.sharding.spec == spec_of(name, leaf.shape, mesh)
        assert leaf.sharding.mesh == mesh


def test_bfloat16_is_widened(params, saved):
    name = peft_name("lora/decoder/layers/0/mlp/up/lora_a").name
    short = np.asarray(
        params["lora"]["decoder"]["layers"]["0"]["mlp"]["up"]["lora_a"].T, jnp.bfloat16
    )
    found = load_adapter(saved(**{name: short}), LLAMA).lora
    leaf = found["decoder"]["layers"]["0"]["mlp"]["up"]["lora_a"]
    assert leaf.dtype == jnp.float32
    np.testing.assert_array_equal(leaf, np.float32(short).T)


# What is refused


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern={'q_proj': 8}"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"something_of_a_later_release": 1}, "something_of_a_later_release=1"),
    ],
)
def test_another_kind_of_adapter_is_named(saved, settings, said):
    with pytest.raises(ValueError) as caught:
        load_adapter(saved(settings), LLAMA)
    assert said in str(caught.value) and "adapter_config.json" in str(caught.value)


B = f"{PREFIX}0.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    "settings, tensors, said",
    [
        ({}, {B: None}, "up_proj.lora_B.weight: missing, expected of shape (40, 3)"),
        ({}, {B: np.zeros((40, 4), np.float32)}, "of shape (40, 4), expected (40, 3)"),
        ({"r": 4}, {}, "of shape (40, 3), expected (40, 4)"),
        ({}, {"base_model.model.lm_head.lora_A.weight": np.zeros((3, 32), np.float32)},
         "lm_head.lora_A.weight: unexpected"),
        ({}, {f"{PREFIX}2.mlp.up_proj.lora_A.weight": np.zeros((3, 32), np.float32)},
         "layers.2.mlp.up_proj.lora_A.weight: unexpected"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(saved, settings, tensors, said):
    with pytest.raises(ValueError) as caught:
        load_adapter(saved(settings, **tensors), LLAMA)
    assert said in str(caught.value)


def test_a_file_with_nothing_of_the_decoder_says_what_it_holds(saved):
    held = load_file(saved() / "adapter_model.safetensors")
    other = {name.replace("base_model.", ""): array for name, array in held.items()}
    with pytest.raises(
        ValueError, match="no adapter of this decoder.* it holds model.model.layers"
    ):
        load_adapter(saved(**dict.fromkeys(held), **other), LLAMA)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    directory = saved()
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_adapter(directory, LLAMA)


def test_nothing_is_written_over_and_nothing_without_adapters(params, saved, tmp_path):
    with pytest.raises(FileExistsError, match="not empty"):
        save_adapter(saved(), params, ALPHA)
    base = {"decoder": params["decoder"]}
    with pytest.raises(ValueError, match='no part "lora"'):
        save_adapter(tmp_path / "b", base, ALPHA)
    mixed = {"decoder": {"q": {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))},
                         "k": {"lora_a": jnp.ones((2, 2)), "lora_b": jnp.ones((2, 2))}}}  # fmt: skip
    with pytest.raises(ValueError, match=r"ranks \[1, 2\]"):
        save_adapter(tmp_path / "b", base | {"lora": mixed}, ALPHA)
    with pytest.raises(ValueError, match="merge them first"):
        save_pretrained(tmp_path / "b", LLAMA, params)
    assert not (tmp_path / "b").exists()


def test_the_scale_of_rank_stabilised_adapters_is_kept(saved):
    found = load_adapter(saved({"use_rslora": True}), LLAMA)
    assert found.alpha / found.rank == pytest.approx(ALPHA / RANK**0.5)


# PEFT itself: `pip install peft torch`, and these run


@functools.cache
def tokens():
    return np.random.default_rng(3).integers(0, LLAMA.vocab_size, (3, 12)).astype(np.int32)


def logits_of(config, params, alpha=ALPHA):
    policy = with_lora(make_policy(config), RANK, alpha)
    positions = np.broadcast_to(np.arange(tokens().shape[1], dtype=np.int32), tokens().shape)

    @jax.jit
    def forward(params):
        hidden, _ = policy.apply(params, tokens(), positions, np.ones_like(tokens()))
        return policy.unembed(params, hidden)

    return np.asarray(forward(params))


def logits_of_peft(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens(), dtype=torch.long)).logits.numpy()


def base_in_torch(config, params, directory):
    import torch
    from transformers import AutoModelForCausalLM

    base = {name: part for name, part in params.items() if name != "lora"}
    save_pretrained(directory, config, base)
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3, tied"])
@pytest.mark.parametrize("target", ["all-linear", "layers/1/.*(query|down)"])
def test_peft_loads_what_is_written_and_says_the_same(family, target, tmp_path):
    peft = pytest.importorskip("peft")
    config = FAMILIES[family]
    params = adapted(config, target, scale=0.1)
    base = base_in_torch(config, params, tmp_path / "base")
    plain = logits_of_peft(base)
    save_adapter(tmp_path / "adapter", params, ALPHA, base_model=str(tmp_path / "base"))
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    theirs = logits_of_peft(model)
    ours = logits_of(config, params)
    assert np.abs(ours - theirs).max() < TOLERANCE
    assert np.abs(plain - theirs).max() > 0.05  # the adapters matter
    merged = merge_lora(params, ALPHA / RANK)
    kernel = merged["decoder"]["layers"]["1"]["mlp"]["down"]["kernel"]
    weight = model.merge_and_unload().model.layers[1].mlp.down_proj.weight
    np.testing.assert_allclose(weight.detach().numpy().T, kernel, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules="all-linear"),
        dict(target_modules=["q_proj", "v_proj"]),
        dict(target_modules=["up_proj"], layers_to_transform=[1]),
        dict(target_modules="all-linear", use_rslora=True),
    ],
    ids=["all", "query and value", "one layer", "rank-stabilised"],
)
def test_what_peft_writes_loads_here_and_says_the_same(options, tmp_path):
    peft = pytest.importorskip("peft")
    import torch

    params = random_parameters(LLAMA)
    base = base_in_torch(LLAMA, params, tmp_path / "base")
    settings = peft.LoraConfig(r=RANK, lora_alpha=5, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(base, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.eval().save_pretrained(tmp_path / "adapter")
    found = load_adapter(tmp_path / "adapter", LLAMA)
    ours = logits_of(LLAMA, params | {"lora": found.lora}, found.alpha)
    assert np.abs(ours - logits_of_peft(model)).max() < TOLERANCE
    assert np.abs(ours - logits_of(LLAMA, params)).max() > 0.01


@pytest.mark.slow
def test_new_adapters_are_drawn_as_in_peft(tmp_path):
    peft = pytest.importorskip("peft")
    params = random_parameters(LLAMA)
    base = base_in_torch(LLAMA, params, tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=64, target_modules="all-linear"))
    model.save_pretrained(tmp_path / "adapter")
    theirs = load_adapter(tmp_path / "adapter", LLAMA).lora
    ours = init_lora(jax.random.key(0), params, 64)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.abs(a).max(), np.abs(b).max(), rtol=0.02)
        np.testing.assert_allclose(np.std(a), np.std(b), rtol=0.1)
