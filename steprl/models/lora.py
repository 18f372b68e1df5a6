"""LoRA (arXiv 2106.09685) as a part of the parameters: W + scale * A @ B, the base is never written.

    policy = with_lora(make_policy(config), rank=16, alpha=32)
    params = policy.init(key)               # {"decoder": ..., "value": ..., "lora": ...}
    plain = merge_lora(params, 32 / 16)     # the same tree without "lora"; params stay as they are

The adapters of ``decoder/layers/0/attention/query/kernel`` [in, out] are
``lora/decoder/layers/0/attention/query/lora_a`` [in, r] and ``.../lora_b`` [r, out], in float32
whatever the type of the kernel: small steps would be lost in bfloat16.
"""

import functools
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from steprl.types import Params, Policy

ALL_LINEAR = "all-linear"
"""Target of every projection of the decoder; embedding, output matrix and critic are none."""

_KEY_OF_ADAPTERS = 2**31 - 1  # apart from the keys that the base draws from


def lora_targets(params: Params, target: str = ALL_LINEAR) -> list[str]:
    """Paths of the kernels that a target means.

    Args:
        params: of a policy, or their shapes.
        target: "all-linear", or a regular expression that is searched for in the paths of the
            decoder's kernels [in, out], such as ``attention/(query|value)/``.

    Returns:
        Paths such as "decoder/layers/0/attention/query/kernel", in the order of the tree.

    Raises:
        ValueError: it is no regular expression or matches no kernel; the message lists the kernels.
    """
    kernels = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params.get("decoder", {}))
        if leaf.ndim == 2 and path[-1].key == "kernel"
    ]
    kernels = [f"decoder/{path}" for path in kernels]
    if target == ALL_LINEAR:
        chosen = kernels
    else:
        try:
            chosen = [path for path in kernels if re.search(target, path)]
        except re.error as error:
            raise ValueError(f"target={target!r} is not a regular expression: {error}") from None
    if not chosen:
        examples = ", ".join(kernels[:8]) + (", ..." if len(kernels) > 8 else "")
        raise ValueError(
            f"target={target!r} matches no kernel of the decoder; it is searched for in paths such as "
            f"{examples or '(there are none)'}"
        )
    return chosen


def init_lora(key: jax.Array, params: Params, rank: int, target: str = ALL_LINEAR) -> Params:
    """New adapters, which change nothing yet: B is zero, A uniform within 1 / sqrt(in) as in PEFT.

    Args:
        key: each kernel draws from a key of its own path, whatever else is a target.
        params: of a policy; only the shapes matter.
        rank: r.
        target: see `lora_targets`.

    Returns:
        The tree to stand under "lora" beside the others.

    Raises:
        ValueError: rank is below 1, or the target matches nothing.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: adapters need a rank of at least 1")
    lora: Params = {}
    for path in lora_targets(params, target):
        *module, _ = path.split("/")
        kernel = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
        bound = kernel.shape[0] ** -0.5  # kaiming_uniform(a=sqrt(5))
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        shape = (kernel.shape[0], rank)
        branch = lora
        for name in module:
            branch = branch.setdefault(name, {})
        branch["lora_a"] = jax.random.uniform(own_key, shape, jnp.float32, -bound, bound)
        branch["lora_b"] = jnp.zeros((rank, kernel.shape[1]), jnp.float32)
    return lora


def merge_lora(params: Params, scale: float | jax.Array) -> Params:
    """The parameters with adapters added to their kernels, and without "lora".

    Pure and differentiable, computed in float32 and then rounded to the kernel's type. Parameters
    without "lora" come back as they are. What is merged is another tree: whoever keeps the one
    that was given has the base bit for bit, and nothing needs to be taken off again.

    Args:
        params: nested dicts, with or without "lora".
        scale: alpha / rank.
    """
    if "lora" not in params:
        return params
    base = {name: part for name, part in params.items() if name != "lora"}
    return _add(base, params["lora"], scale)


def unmerge_lora(merged: Params, lora: Params, scale: float | jax.Array) -> Params:
    """The inverse of `merge_lora` up to rounding, for when the base itself was not kept.

    Subtraction does not undo the rounding of the sum: a kernel comes back within one step of its
    type at the size of the merged kernel, not bit for bit. Where the base must be exact, keep it.

    Args:
        merged: from `merge_lora`.
        lora: the adapters that were merged.
        scale: that they were merged with.

    Returns:
        The parameters with "lora".
    """
    return _add(merged, lora, -scale) | {"lora": lora}


def with_lora(policy: Policy, rank: int, alpha: float, target: str = ALL_LINEAR) -> Policy:
    """The policy with adapters: its parameters get a part "lora", its functions merge that first.

    With the same key the base is that of `policy`. Parameters without "lora", such as those that
    `prepare` has merged, are taken as they are.

    Args:
        policy: to adapt.
        rank: r.
        alpha: what the adapters add is multiplied by alpha / r.
        target: see `lora_targets`; a target that matches nothing is an error of `init`.

    Raises:
        ValueError: rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: adapters need a rank of at least 1")
    scale = alpha / rank

    def init(key: jax.Array) -> Params:
        params = policy.init(key)
        own_key = jax.random.fold_in(key, _KEY_OF_ADAPTERS)
        return params | {"lora": init_lora(own_key, params, rank, target)}

    def merging(function: Any) -> Any:
        return lambda params, *args, **more: function(merge_lora(params, scale), *args, **more)

    @jax.jit
    def merge_adapters(params: Params) -> Params:
        return policy.prepare(merge_lora(params, scale))

    return policy._replace(
        init=init,
        apply=merging(policy.apply),
        unembed=merging(policy.unembed),
        value=None if policy.value is None else merging(policy.value),
        prepare=merge_adapters,
        trunk=None if policy.trunk is None else merging(policy.trunk),
    )


def _add(tree: Params, lora: Params, scale: float | jax.Array) -> Params:
    """Adds the adapters at the kernels that have some; the others are shared with `tree`."""
    if "lora_a" in lora:
        kernel = tree["kernel"]
        wide_dtype = jnp.promote_types(kernel.dtype, jnp.float32)
        a, b = lora["lora_a"].astype(wide_dtype), lora["lora_b"].astype(wide_dtype)
        # Some devices would multiply float32 with fewer bits.
        change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return tree | {"kernel": (kernel.astype(wide_dtype) + scale * change).astype(kernel.dtype)}
    return tree | {name: _add(tree[name], part, scale) for name, part in lora.items()}
