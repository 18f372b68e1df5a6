"""Placement: each parameter by exactly one intended rule, or an error that names it."""

import re
import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from steprl.config import ActorConfig, Config, CriticConfig, MeshConfig
from steprl.models import decoder_config, make_policy, with_lora
from steprl.models.presets import PRESETS
from steprl.optimizer import make_optimizer, make_sft_optimizer
from steprl.sharding import (
    PARAMETER_RULES,
    batch_sharding,
    make_mesh,
    notice_replicated,
    shard_rows,
    spec_of,
    state_shardings,
)
from steprl.update import initial_state
from tests.small import small_config

# What the rules are meant to say, in other words: kind of parameter -> what is split over fsdp.
INTENDED = {
    "embedding": P(None, "fsdp"),  # [V, D]: width
    "head": P("fsdp", None),  # [D, V]: width
    "query": P("fsdp", None),
    "key": P("fsdp", None),
    "value": P("fsdp", None),
    "gate": P("fsdp", None),
    "up": P("fsdp", None),
    "out": P(None, "fsdp"),  # [heads, D]: width
    "down": P(None, "fsdp"),
}
# Which adapter [in, r] or [r, out] has the split axis of its kernel; the other is whole.
SPLIT_ADAPTER = {P("fsdp", None): "lora_a", P(None, "fsdp"): "lora_b"}


def intended(path: str) -> P:
    """Placement of a parameter by what it is."""
    *folders, last = path.split("/")
    if last in ("scale", "bias") or folders[0] == "value":
        return P()
    if folders[0] == "lora":
        kernel = INTENDED[folders[-1]]
        return kernel if SPLIT_ADAPTER[kernel] == last else P()
    return INTENDED[last if last in ("embedding", "head") else folders[-1]]


def name_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def params_of(preset, value_head, rank=0, **more):
    policy = make_policy(decoder_config(preset, value_head=value_head, **more))
    policy = with_lora(policy, rank, alpha=16.0) if rank else policy
    return jax.eval_shape(policy.init, jax.random.key(0))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=4, fsdp=2))


VARIANTS = [(preset, head) for preset in PRESETS for head in ("shared", "separate", "none")]


@pytest.mark.parametrize("preset, value_head", VARIANTS)
def test_every_parameter_stands_where_it_is_meant_to(preset, value_head, mesh):
    layers = {"num_layers": 2}  # the others are alike
    params = params_of(preset, value_head, **layers)
    placed = jax.tree_util.tree_leaves_with_path(state_shardings(params, mesh))
    assert len(placed) == len(jax.tree.leaves(params))
    parts = {name_of(path).split("/")[0] for path, _ in placed}
    assert parts == {"decoder"} | {
        "shared": {"value"}, "separate": {"value", "critic"}, "none": set()
    }[value_head]  # fmt: skip
    for path, sharding in placed:
        assert sharding.spec == intended(name_of(path)), name_of(path)


@pytest.mark.parametrize("preset", PRESETS)
def test_adapters_lie_so_that_their_product_lies_as_its_kernel(preset, mesh):
    params = params_of(preset, "shared", rank=3, num_layers=2)
    placed = jax.tree_util.tree_leaves_with_path(state_shardings(params, mesh))
    adapters = [path for path, _ in placed if name_of(path).startswith("lora/")]
    assert len(adapters) == 2 * 7 * 2  # layers, projections, factors
    for path, sharding in placed:
        assert sharding.spec == intended(name_of(path)), name_of(path)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_options_of_the_decoder_are_covered(tie, bias, mesh):
    params = params_of("tiny", "separate", tie_embeddings=tie, attention_bias=bias, qk_norm=True)
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert ("decoder/head" in names) == (not tie)
    assert any(name.endswith("query/bias") for name in names) == bias
    for path, sharding in jax.tree_util.tree_leaves_with_path(state_shardings(params, mesh)):
        assert sharding.spec == intended(name_of(path)), name_of(path)


def test_each_parameter_matches_one_rule_and_no_rule_is_idle():
    params = params_of(
        "tiny", "separate", rank=4, tie_embeddings=False, attention_bias=True, qk_norm=True
    )
    used = Counter()
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        matching = [r for r, (pattern, _) in enumerate(PARAMETER_RULES)
                    if re.search(pattern, name_of(path))]  # fmt: skip
        assert len(matching) == 1, name_of(path)
        used.update(matching)
    assert sorted(used) == list(range(len(PARAMETER_RULES)))


@pytest.mark.parametrize("value_head", ["shared", "separate", "none"])
@pytest.mark.parametrize("phase", ["rl", "sft"])
def test_the_state_of_the_optimiser_stands_beside_its_parameters(phase, value_head, mesh):
    config = small_config("sft.steps=5")
    optimizer = {
        "rl": make_optimizer(ActorConfig(lr_schedule="linear"), CriticConfig(lr=0.1), 10),
        "sft": make_sft_optimizer(config.sft),
    }[phase]
    params = params_of("tiny", value_head)
    state = jax.eval_shape(lambda p: initial_state(p, optimizer, Config()), params)
    shardings = state_shardings(state, mesh)
    spec_of_name = {
        name_of(path): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings.params)
    }
    met = Counter()
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state.opt_state),
        jax.tree.leaves(shardings.opt_state),
        strict=True,
    ):
        of = [name for name in spec_of_name if name_of(path).endswith("/" + name)]
        if leaf.shape == ():
            assert sharding.spec == P() and not of
        else:
            assert sharding.spec == spec_of_name[max(of, key=len)], name_of(path)
            met[max(of, key=len)] += 1
    assert met == Counter(dict.fromkeys(spec_of_name, 2))  # both moments of each


def test_a_parameter_without_a_rule_is_replicated_with_one_notice(mesh):
    tree = {
        "router": {"weights": jnp.zeros((4, 4)), "bias": jnp.zeros(4)},
        "gru": jnp.zeros((2, 3)),
    }
    assert {place.spec for place in jax.tree.leaves(state_shardings(tree, mesh))} == {P()}
    with pytest.warns(UserWarning) as warned:
        notice_replicated(tree, mesh)
    (notice,) = [str(one.message) for one in warned]
    assert notice.startswith("no sharding rule covers 2 parameters (gru, router/weights)")


def test_rules_of_ones_own_come_in_place_of_the_table(mesh):
    tree = {"router": {"weights": jnp.zeros((4, 4))}}
    rules = [(r"router/weights$", P("fsdp", None))]
    assert state_shardings(tree, mesh, rules)["router"]["weights"].spec == P("fsdp", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notice_replicated(tree, mesh, rules)
        notice_replicated({"x": jnp.zeros(3)}, make_mesh(MeshConfig(data=8)))  # nothing is lost


@pytest.mark.parametrize(
    "path, shape, good",
    [
        ("decoder/layers/0/attention/query/kernel", (6, 7), False),
        ("decoder/layers/0/attention/query/kernel", (8, 7), True),
        ("decoder/layers/0/mlp/down/kernel", (8, 6), False),
        ("decoder/layers/0/mlp/down/kernel", (7, 8), True),
        ("decoder/embedding/embedding", (8, 6), False),
        ("value/hidden/kernel", (6, 7), True),
        ("decoder/final_norm/scale", (7,), True),
    ],
)
def test_a_shape_that_the_mesh_does_not_divide_is_named(path, shape, good):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    if good:
        spec_of(path, shape, mesh)
        return
    with pytest.raises(ValueError) as caught:
        spec_of(path, shape, mesh)
    for word in ("mesh.fsdp=4", "does not divide", path, str(shape)):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "data, fsdp, shape",
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (4, 2, (4, 2)), (1, 8, (1, 8)), (-1, 8, (1, 8))],
)
def test_the_mesh_holds_each_device_once(data, fsdp, shape, devices):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    assert mesh.axis_names == ("data", "fsdp") and mesh.devices.shape == shape
    assert list(mesh.devices.flatten()) == devices


@pytest.mark.parametrize("data, fsdp", [(3, 1), (8, 2), (-1, 3), (0, 1), (-1, 16), (4, 1)])
def test_axes_that_do_not_multiply_to_the_devices_are_refused(data, fsdp):
    with pytest.raises(ValueError) as caught:
        make_mesh(MeshConfig(data=data, fsdp=fsdp))
    for word in (f"mesh.data={data}", f"mesh.fsdp={fsdp}", "8 devices"):
        assert word in str(caught.value)


def test_the_mesh_takes_the_devices_given(devices):
    assert make_mesh(MeshConfig(), devices[:3]).shape == {"data": 3, "fsdp": 1}


@pytest.mark.parametrize("data, fsdp", [(8, 1), (4, 2), (1, 8)])
def test_rows_are_split_over_all_devices_in_order(data, fsdp, devices):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    tree = shard_rows({"a": np.arange(16), "b": np.ones((16, 3))}, mesh)
    assert tree["a"].sharding == batch_sharding(mesh)
    rows = {shard.device: list(np.asarray(shard.data)) for shard in tree["a"].addressable_shards}
    assert rows == {device: [2 * i, 2 * i + 1] for i, device in enumerate(devices)}


def test_rows_that_cannot_be_split_are_counted():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ValueError, match="12 rows cannot be split over 8 devices"):
        shard_rows({"a": np.zeros((12, 2))}, mesh)


def test_a_state_is_really_split(mesh):
    params = make_policy(decoder_config("tiny", num_layers=1)).init(jax.random.key(0))
    optimizer = optax.adam(1e-3)
    state = initial_state(params, optimizer, Config())
    placed = jax.device_put(state, state_shardings(state, mesh))
    kernel = placed.params["decoder"]["layers"]["0"]["attention"]["query"]["kernel"]
    rows, columns = kernel.shape
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(rows // 2, columns)}
