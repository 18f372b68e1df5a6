"""Third part of an update: gradients over parts of a sample, and steps of the optimiser."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.optimizer import ACTOR, CRITIC, combine, grad_norms, owner_of, split_owner
from steprl.sharding import BATCH
from steprl.types import Params, StepBatch
from steprl.update.prepare import Metrics, Sample


class Trained(NamedTuple):
    """What an optimiser step changes."""

    params: Params  # those that are trained
    opt_state: Any


Gradient = Callable[[Params, Sample], tuple[Params, Metrics]]
"""From what is trained and a sample with its weights to the gradient of the loss, and metrics."""

Step = Callable[..., tuple[Trained, Metrics]]
"""From what is trained, a sample and perhaps how it is packed, to what is trained then, and metrics."""

Still = Mapping[str, bool | jax.Array]
"""Whether a step leaves `ACTOR` or `CRITIC` as it is, parameters and moments; who is absent moves."""


def optimiser_step(
    gradient_of: Gradient,
    optimizer: optax.GradientTransformation,
    trained: Trained,
    sample: Sample,
    still: Still | None = None,
) -> tuple[Trained, Metrics]:
    """One step on a mini-batch; one whose loss or gradient is not finite changes nothing.

    Such a step is counted in `train/nonfinite`. Where no token has a weight there is nothing to learn:
    parameters and moments stay as they are. So do those of whoever is to be `still`, whose gradient
    is 0 for the clip.
    """
    still = still or {}
    params, opt_state = trained
    gradient, metrics = gradient_of(params, sample)
    gradient = _where_still(still, jax.tree.map(jnp.zeros_like, gradient), gradient)
    norm, norms = optax.tree.norm(gradient), grad_norms(gradient)
    updates, new_opt_state = optimizer.update(gradient, opt_state, params)
    losses = [metrics[name] for name in ("actor/pg_loss", "critic/vf_loss") if name in metrics]
    fine = jnp.isfinite(norm) & jnp.isfinite(sum(losses))
    weights = {ACTOR: sample.policy_weight_NT, CRITIC: sample.value_weight_NT}
    weighted = [
        jnp.any(weight != 0) & ~jnp.asarray(still.get(owner, False))
        for owner, weight in weights.items()
    ]
    keep = lambda new, old: jnp.where(fine & (weighted[0] | weighted[1]), new, old)  # noqa: E731
    moved = Trained(optax.apply_updates(params, updates), new_opt_state)
    moved = jax.tree.map(keep, moved, trained)
    moved = Trained(*(_where_still(still, *pair) for pair in zip(trained, moved, strict=True)))
    metrics |= {f"{o}/grad_norm": norms[o] for o in weights if still.get(o, False) is not True}
    metrics["train/nonfinite"] = (~fine).astype(jnp.float32)
    return moved, metrics


def _where_still(still: Still, held: Any, moved: Any) -> Any:
    """The leaves of `held` of those who are to be still, and the others of `moved`."""

    def choose(path: Any, held: jax.Array, moved: jax.Array) -> jax.Array:
        where = still.get(owner_of(path) or "", False)
        if isinstance(where, bool):
            return held if where else moved
        return jnp.where(where, held, moved)

    return jax.tree_util.tree_map_with_path(choose, held, moved)


def of_owner(
    owner: str | None,
    gradient_of: Callable[[Params, Params, Sample], tuple[Params, Metrics]],
) -> Gradient:
    """A gradient with respect to what `ACTOR` or `CRITIC` owns alone: 0 elsewhere, metrics of its own.

    Args:
        owner: None for both.
        gradient_of: from what is owned, the rest, and a sample to the gradient of what is owned.
    """

    def gradient_of_all(params: Params, sample: Sample) -> tuple[Params, Metrics]:
        own, rest = split_owner(params, owner)
        gradient, metrics = gradient_of(own, rest, sample)
        if owner is not None:
            of_critic = owner == CRITIC
            metrics = {k: x for k, x in metrics.items() if k.startswith("critic/") == of_critic}
        return combine(gradient, jax.tree.map(jnp.zeros_like, rest)), metrics

    return gradient_of_all


def within_kl(step: Step, target_kl: float | jax.Array, still: Still | None = None) -> Step:
    """The step, not taken on a mini-batch whose `actor/approx_kl` to the sampling policy is above the target.

    What is not taken changes neither parameters nor moments, of a critic in the same step too, so once
    the policy has come that far, an update stays there. `actor/kl_stopped` is 1 where it was not taken.
    A policy that is to be `still` comes no further, and is not stopped.
    """
    stands = (still or {}).get(ACTOR, False)

    def step_within(trained: Trained, *sample: Any) -> tuple[Trained, Metrics]:
        new, metrics = step(trained, *sample)
        near = (metrics["actor/approx_kl"] <= target_kl) | stands
        kept = jax.tree.map(lambda new, old: jnp.where(near, new, old), new, trained)
        return kept, metrics | {"actor/kl_stopped": (~near).astype(jnp.float32)}

    return step_within


def passes(
    step: Step,
    trained: Trained,
    sample: Sample,
    key: jax.Array,
    *,
    epochs: int,
    mini_rows: int,
    mesh: Mesh | None = None,
) -> tuple[Trained, Metrics]:
    """Epochs of mini-batches in a new order each; metrics are [epochs, mini-batches].

    With a mesh, the rows of each mini-batch are laid over its devices.
    """
    parts = sample.batch.tokens_NT.shape[0] // mini_rows

    def epoch(trained: Trained, key: jax.Array) -> tuple[Trained, Metrics]:
        order = jax.random.permutation(key, groups(sample.batch))
        cut = cut_sample(sample, parts, order)
        if mesh is not None:
            placed = NamedSharding(mesh, P(None, *BATCH))
            cut = jax.lax.with_sharding_constraint(cut, placed)
        return jax.lax.scan(step, trained, cut)

    return jax.lax.scan(epoch, trained, jax.random.split(key, epochs))


def micro_batch_gradient(
    loss: Callable[[Params, Sample], tuple[jax.Array, Metrics]],
    params: Params,
    sample: Sample,
    micro_rows: int,
) -> tuple[Params, Metrics]:
    """Gradient of a mini-batch, summed over its micro-batches; the weights make the sum exact."""
    rows = sample.batch.tokens_NT.shape[0]
    if micro_rows in (0, rows):
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, sample)
        return gradient, metrics
    parts = cut_sample(sample, rows // micro_rows)

    def add(total: Params, part: Sample) -> tuple[Params, Metrics]:
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, part)
        return jax.tree.map(jnp.add, total, gradient), metrics

    # The sum is float32 where parameters, and so their gradients, are narrower.
    zeros = jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
    )
    gradient, metrics = jax.lax.scan(add, zeros, parts)
    # Losses are sums over micro-batches, the rest are fractions of each.
    return gradient, {
        name: jnp.sum(value) if name.endswith("loss") else jnp.mean(value)
        for name, value in metrics.items()
    }


def groups(batch: StepBatch) -> int:
    """How many parts a batch can be cut into: rows that share tokens stay together."""
    return (batch.tokens_NT if batch.tree is None else batch.tree.tokens_MGU).shape[0]


def check_parts(batch: StepBatch, mini: int, micro: int, section: str = "actor") -> None:
    """Refuses sizes of mini- and micro-batches that would part rows that share tokens.

    Args:
        section: of the settings whose sizes these are.

    Raises:
        ValueError: says which size, and of what it must be a multiple.
    """
    rows = batch.tokens_NT.shape[0] // groups(batch)
    for name, size in (("ppo_mini_batch_size", mini), ("ppo_micro_batch_size", micro)):
        if size % rows:
            raise ValueError(
                f"{section}.{name}={size} would part rows that share tokens: use a multiple of {rows}"
            )


def cut_sample(sample: Sample, parts: int, order: jax.Array | None = None) -> Sample:
    """Arrays [parts, ...] of what a sample holds, its groups of rows in the given order."""
    number = groups(sample.batch)

    def cut(x: jax.Array) -> jax.Array:
        """Of the rows, R to a group, or of the groups themselves."""
        shape = x.shape[1:]
        if order is not None:
            x = x.reshape(number, -1, *shape)[order]
        return x.reshape(parts, -1, *shape)

    return jax.tree.map(cut, sample)
