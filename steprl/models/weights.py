"""From named tensors of a file to parameters on devices: strict on names and shapes, one at a time.

A file is seen as a table of `Weight`: its shape, and a function that reads the part that one device
needs. So neither the whole model nor, where the file can be read in parts, a whole tensor exists
twice on the host.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from steprl.models.policy import abstract_params, make_policy
from steprl.models.presets import DecoderConfig
from steprl.sharding import spec_of, state_shardings
from steprl.types import Params

_MAX_LINES = 20  # of an error message; a wrong model differs in every tensor

_OUTSIDE_LAYERS = {
    "embedding/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
}
_IN_LAYER = {
    "attention_norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}


class Weight(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    """The part with these slices, one a dimension, in any floating type."""
    file: str = ""  # that it is in, for messages


class Name(NamedTuple):
    """What a parameter is called in a file, and whether it lies there transposed."""

    name: str
    transposed: bool


def transformers_name(path: str) -> Name:
    """The name in `transformers` of a parameter of the decoder; its linear layers are [out, in].

    Args:
        path: such as "decoder/layers/0/attention/query/kernel".

    Returns:
        The name and whether the file holds the transpose.

    Raises:
        ValueError: the decoder has no such parameter.

    Example:
        >>> transformers_name("decoder/layers/0/attention/query/kernel")
        Name(name='model.layers.0.self_attn.q_proj.weight', transposed=True)
    """
    inner = path.split("/", 1)[1]  # behind "decoder" or "critic"
    if inner in _OUTSIDE_LAYERS:
        return Name(_OUTSIDE_LAYERS[inner], inner == "head")
    match = re.fullmatch(r"layers/(\d+)/(.+)/(kernel|bias|scale)", inner)
    if not match or match[2] not in _IN_LAYER:
        raise ValueError(f"path={path!r} is not a parameter of the decoder")
    kind = "bias" if match[3] == "bias" else "weight"
    return Name(f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{kind}", match[3] == "kernel")


def own_name(path: str) -> Name:
    """The name of a value head's parameter in its file: our own path, with dots."""
    return Name(path.replace("/", "."), False)


def leaves_by_path(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts under names as "decoder/final_norm/scale"."""
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def place_tree(
    abstract: Any,
    weights: Mapping[str, Weight],
    name_of: Callable[[str], Name],
    *,
    mesh: Mesh | None = None,
    prefix: str = "",
    where: str = "the file",
) -> Any:
    """Arrays for each leaf of `abstract`, read from `weights` straight to where they belong.

    Args:
        abstract: nested dicts of `jax.ShapeDtypeStruct`; a tensor of another type is converted.
        weights: all that the file holds.
        name_of: from the path of a leaf to its name in the file.
        mesh: places each array by the rules of `steprl.sharding`; None for the default device.
        prefix: before the paths of the leaves, e.g. "decoder/".
        where: what an error calls the file.

    Returns:
        A pytree as `abstract`.

    Raises:
        ValueError: tensors are missing, not expected, or of another shape, and nothing was read yet;
            or one holds NaN or infinite numbers. The message names them.
    """
    leaves = leaves_by_path(abstract, prefix)
    names = {path: name_of(path) for path in leaves}
    _check_same_weights(leaves, names, weights, where)
    arrays = [
        _place(path, leaf, names[path], weights, mesh, where) for path, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def place_parameters(
    config: DecoderConfig,
    weights: Mapping[str, Weight],
    *,
    value_weights: Mapping[str, Weight] | None = None,
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
    where: str = "the file",
) -> Params:
    """Parameters of the policy of `config` from tensors with the names of `transformers`.

    Args:
        config: of the decoder; its `param_dtype` is the type of the result.
        weights: the tensors of the language model.
        value_weights: those of the value head and of a separate critic, under our own names. Where
            they are None, the head starts as a new one (it gives 0) and the critic as the model.
        mesh: where the arrays go; None for the default device.
        key: of a new value head; None for `jax.random.key(0)`.
        where: what an error calls the file.

    Returns:
        Nested dicts as from `make_policy(config).init`.

    Raises:
        ValueError: names or shapes differ, or numbers are not finite.
    """
    abstract = abstract_params(config)
    weights = _without_copy_of_embedding(config, weights, where)

    def language_model(part: str) -> Any:
        return place_tree(
            abstract[part],
            weights,
            transformers_name,
            mesh=mesh,
            prefix=f"{part}/",
            where=where,
        )

    params = {"decoder": language_model("decoder")}
    rest = {part: tree for part, tree in abstract.items() if part != "decoder"}
    if rest and value_weights is not None:
        place = f"the value head of {where}"
        return params | place_tree(rest, value_weights, own_name, mesh=mesh, where=place)
    if "critic" in rest:
        params["critic"] = language_model("critic")
    if "value" in rest:
        head = {"value": rest["value"]}
        # Compiled, so that the rest of the model is not drawn only to be thrown away.
        init_value = jax.jit(
            lambda key: {"value": make_policy(config).init(key)["value"]},
            out_shardings=None if mesh is None else state_shardings(head, mesh),
        )
        params |= init_value(jax.random.key(0) if key is None else key)
    return params


def _place(
    path: str,
    leaf: Any,
    name: Name,
    weights: Mapping[str, Weight],
    mesh: Mesh | None,
    where: str,
) -> jax.Array:
    weight = weights[name.name]

    def read(index: tuple[slice, ...]) -> np.ndarray:
        part = weight.read(index[::-1] if name.transposed else index)
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = np.array(part.T if name.transposed else part, dtype=leaf.dtype, order="C")
        if not np.all(np.isfinite(array)):
            damaged = "" if not np.all(np.isfinite(part)) else f" in {leaf.dtype}"
            raise ValueError(
                f"{weight.file or where}: {name.name} holds NaN or infinite numbers{damaged}: "
                + ("choose a wider model.param_dtype" if damaged else "these weights are of no use")
            )
        return array

    if mesh is None:
        return jnp.array(read((slice(None),) * len(leaf.shape)))
    parts: dict[str, np.ndarray] = {}  # what several devices hold is read once

    def read_once(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # of an array with a shape
        if str(index) not in parts:
            parts[str(index)] = read(index)
        return parts[str(index)]

    sharding = NamedSharding(mesh, spec_of(path, leaf.shape, mesh))
    return jax.make_array_from_callback(leaf.shape, sharding, read_once)


def _check_same_weights(
    leaves: Mapping[str, Any],
    names: Mapping[str, Name],
    weights: Mapping[str, Weight],
    where: str,
) -> None:
    expected = {}
    for path, (name, transposed) in names.items():
        shape = tuple(leaves[path].shape)
        expected[name] = shape[::-1] if transposed else shape
    lines = []
    for name in sorted(expected.keys() | weights.keys()):
        if name not in expected:
            lines.append(f"{name}: unexpected, of shape {weights[name].shape}")
        elif name not in weights:
            tied = " (or tie_word_embeddings is true)" if name == "lm_head.weight" else ""
            lines.append(f"{name}: missing, expected of shape {expected[name]}{tied}")
        elif weights[name].shape != expected[name]:
            lines.append(f"{name}: of shape {weights[name].shape}, expected {expected[name]}")
    if lines:
        count = len(lines)
        if count > _MAX_LINES:
            lines = [*lines[:_MAX_LINES], f"... and {count - _MAX_LINES} more"]
        raise ValueError(
            f"{where} does not hold the model that its settings describe; {count} tensors differ:"
            "\n  " + "\n  ".join(lines)
        )


def _without_copy_of_embedding(
    config: DecoderConfig, weights: Mapping[str, Weight], where: str
) -> Mapping[str, Weight]:
    """Some files of models with tied embeddings hold the output matrix too, which must be the same."""
    head, embedding = weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight")
    if not config.tie_embeddings or head is None or embedding is None:
        return weights
    full_index = (slice(None), slice(None))
    same = head.shape == embedding.shape and np.array_equal(
        head.read(full_index), embedding.read(full_index)
    )
    if not same:
        raise ValueError(
            f"{where}: its settings tie the output matrix to the embedding, but lm_head.weight differs "
            "from model.embed_tokens.weight; set tie_word_embeddings to false in its config.json"
        )
    return {name: weight for name, weight in weights.items() if name != "lm_head.weight"}
