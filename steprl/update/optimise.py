"""Third part of an update: gradients over parts of a sample, and steps of the optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.sharding import BATCH
from steprl.types import Params, StepBatch
from steprl.update.prepare import Metrics, Sample


class Trained(NamedTuple):
    """What an optimiser step changes."""

    params: Params  # those that are trained
    opt_state: Any


Gradient = Callable[[Params, Sample], tuple[Params, Metrics]]
"""From what is trained and a sample with its weights to the gradient of the loss, and metrics."""

Step = Callable[[Trained, Sample], tuple[Trained, Metrics]]


def optimiser_step(
    gradient_of: Gradient,
    optimizer: optax.GradientTransformation,
    trained: Trained,
    sample: Sample,
) -> tuple[Trained, Metrics]:
    """One step on a mini-batch; one whose loss or gradient is not finite changes nothing.

    Such a step is counted in `train/nonfinite`. Where no token has a weight there is nothing to learn:
    parameters and moments stay as they are.
    """
    params, opt_state = trained
    gradient, metrics = gradient_of(params, sample)
    norm = optax.tree.norm(gradient)
    updates, new_opt_state = optimizer.update(gradient, opt_state, params)
    fine = jnp.isfinite(norm) & jnp.isfinite(metrics["actor/pg_loss"] + metrics["critic/vf_loss"])
    weighted = jnp.any(sample.policy_weight_NT != 0) | jnp.any(sample.value_weight_NT != 0)
    keep = lambda new, old: jnp.where(fine & weighted, new, old)  # noqa: E731
    params = jax.tree.map(keep, optax.apply_updates(params, updates), params)
    opt_state = jax.tree.map(keep, new_opt_state, opt_state)
    metrics |= {"actor/grad_norm": norm, "train/nonfinite": (~fine).astype(jnp.float32)}
    return Trained(params, opt_state), metrics


def within_kl(step: Step, target_kl: float | jax.Array) -> Step:
    """The step, not taken on a mini-batch whose `actor/approx_kl` to the sampling policy is above the target.

    What is not taken changes neither parameters nor moments, so once the policy has come that far, an
    update stays there. `actor/kl_stopped` is 1 where it was not taken.
    """

    def step_within(trained: Trained, sample: Sample) -> tuple[Trained, Metrics]:
        new, metrics = step(trained, sample)
        near = metrics["actor/approx_kl"] <= target_kl
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


def check_parts(batch: StepBatch, mini: int, micro: int) -> None:
    """Refuses sizes of mini- and micro-batches that would part rows that share tokens.

    Raises:
        ValueError: says which size, and of what it must be a multiple.
    """
    rows = batch.tokens_NT.shape[0] // groups(batch)
    for name, size in (("ppo_mini_batch_size", mini), ("ppo_micro_batch_size", micro)):
        if size % rows:
            raise ValueError(
                f"actor.{name}={size} would part rows that share tokens: use a multiple of {rows}"
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
