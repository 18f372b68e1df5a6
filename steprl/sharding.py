"""Where arrays live: one mesh with axes (data, fsdp), and a short table from names to placements.

Rows of a batch are split over both axes, parameters over `fsdp`. XLA inserts the communication.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.config import MeshConfig

PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    (r"embedding/embedding$", P(None, "fsdp")),
    (r"(decoder|critic)/head$", P("fsdp", None)),
    (r"(query|key|value|gate|up)/(kernel|lora_a)$", P("fsdp", None)),
    (r"(attention/out|down)/(kernel|lora_b)$", P(None, "fsdp")),
    # The other factor is small: so A @ B lies as its kernel does, without communication.
    (r"(query|key|value|gate|up)/lora_b$|(attention/out|down)/lora_a$", P()),
    (r"value/(hidden|out)/kernel$", P()),
    (r"(scale|bias)$", P()),
)
"""First match on the path wins; a parameter that no rule covers is replicated."""

Rules = Sequence[tuple[str, P]]

BATCH = P(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A mesh over all devices, or those given.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count, fsdp = len(devices), config.fsdp
    data = count // fsdp if config.data == -1 else config.data
    if data * fsdp != count:
        raise ValueError(
            f"mesh.data={config.data} and mesh.fsdp={fsdp} do not multiply to the {count} devices here"
        )
    return Mesh(np.asarray(devices).reshape(data, fsdp), ("data", "fsdp"))


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = PARAMETER_RULES) -> P:
    """Placement of one parameter, or of an optimiser's array of the same name.

    Raises:
        ValueError: the mesh does not divide the shape.
    """
    if not shape:
        return P()
    for pattern, spec in rules:
        if re.search(pattern, path):
            for size, axis in zip(shape, spec, strict=False):
                if axis is not None and size % mesh.shape[axis]:
                    raise ValueError(
                        f"mesh.{axis}={mesh.shape[axis]} does not divide {path} of shape {shape}"
                    )
            return spec
    return P()


def state_shardings(tree: Any, mesh: Mesh, rules: Rules = PARAMETER_RULES) -> Any:
    """The placement of each leaf of parameters or of a train state, by its path.

    Args:
        rules: patterns and placements; the first whose pattern is found in the path wins, and what
            none covers is replicated.

    Raises:
        ValueError: the mesh does not divide a shape that a rule splits.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec_of(_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def check_rules(rules: Rules, mesh: Mesh) -> None:
    """Raises ValueError unless rules are pairs of a pattern and a placement on the axes of the mesh."""
    if isinstance(rules, Mapping | str) or not isinstance(rules, Sequence):
        raise ValueError(
            f"rules is {type(rules).__name__}: give a list of (pattern, PartitionSpec)"
        )
    for rule in rules:
        if not (
            isinstance(rule, tuple) and len(rule) == 2
            and isinstance(rule[0], str) and isinstance(rule[1], P)
        ):  # fmt: skip
            raise ValueError(f"rules: {rule!r} is no (pattern, PartitionSpec)")
        pattern, spec = rule
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"rules: {pattern!r} is no regular expression: {error}") from None
        for axis in spec:
            if axis is not None and axis not in mesh.axis_names:
                raise ValueError(
                    f"rules: {pattern!r} names the axis {axis!r}; the mesh has "
                    f"{', '.join(mesh.axis_names)}"
                )


def notice_replicated(params: Any, mesh: Mesh, rules: Rules = PARAMETER_RULES) -> None:
    """Warns, once for all of them, of parameters that `fsdp` would split if a rule covered them."""
    names = [
        _name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.shape and not any(re.search(pattern, _name(path)) for pattern, _ in rules)
    ]
    if names and mesh.shape["fsdp"] > 1:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        warnings.warn(
            f"no sharding rule covers {len(names)} parameters ({shown}): each device keeps all of "
            "them; pass rules=[(pattern, PartitionSpec), ...] to setup to split them over fsdp",
            stacklevel=2,
        )


def _name(path: Any) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def as_abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, types and placements of a tree, for restoring into."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        shardings,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, BATCH)


def shard_rows(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays whose first axis is rows onto the mesh.

    Raises:
        ValueError: the number of rows is not a multiple of the number of devices.
    """
    for rows in {leaf.shape[0] for leaf in jax.tree.leaves(tree)}:
        if rows % mesh.size:
            raise ValueError(
                f"{rows} rows cannot be split over {mesh.size} devices: use a multiple"
            )
    return jax.device_put(tree, batch_sharding(mesh))
