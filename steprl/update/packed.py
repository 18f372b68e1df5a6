"""An update whose model is run on packed rows (`steprl.rollout.packing`), a micro-batch at a time.

Only micro-batches that hold rows are run: a loop whose length is data, in one program. Where the
lower layers are frozen, what they make of the batch is computed once, for all passes over it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from steprl.models.scoring import Scores, Trunk
from steprl.rollout.packing import Packing
from steprl.sharding import batch_sharding
from steprl.types import Params, Policy, StepBatch
from steprl.update.optimise import Trained
from steprl.update.prepare import Metrics, Sample

Score = Callable[[Params, StepBatch, Trunk | None], Scores]
"""From what is trained, rows with the tree that they are run as, and their frozen trunk."""

Loss = Callable[[Params, Sample, Trunk | None], tuple[jax.Array, Metrics]]


def packed_scores(
    scored: Score,
    params: Params,
    batch: StepBatch,
    packing: Packing,
    trunk: Trunk | None = None,
    mesh: Mesh | None = None,
) -> Scores:
    """Scores of a whole batch, from the micro-batches of the first pass.

    Differentiable where that is a single micro-batch.

    Args:
        scored: scores a micro-batch.
        params: what is trained.
        batch: N rows.
        packing: of the update.
        trunk: from `packed_trunk`.
        mesh: that the blocks of a micro-batch are laid over.
    """
    rows = batch.tokens_NT.shape[0]

    def scores_of(m: Any, k: Any) -> tuple[jax.Array, Scores]:
        mini = _at(packing, 0, m)
        part = _part(mini, k)
        row_R = jnp.append(mini.row, rows)[part.place]  # N where there is none
        taken = _laid_over(mesh, _rows_of_batch(batch, row_R, rows, part))
        return row_R, scored(params, taken, _trunk_of(part, trunk))

    def add(m: Any, k: Any, found: Scores) -> Scores:
        row_R, new = scores_of(m, k)
        return jax.tree.map(lambda all_N, x_R: all_N.at[row_R].set(x_R, mode="drop"), found, new)

    _, shapes = jax.eval_shape(lambda: scores_of(0, 0))
    nothing = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), shapes)
    return _each_part(packing, add, nothing)


def packed_trunk(
    policy: Policy, params: Params, layers: int, packing: Packing, longest: int
) -> Trunk:
    """What the lowest layers make of each token of the first pass: [M * K * D * U, D] hidden states.

    Args:
        policy: with a `trunk`.
        params: of which those of these layers are the same in all passes.
        layers: how many.
        packing: of the update.
        longest: no context has more tokens.
    """
    assert policy.trunk is not None
    read = functools.partial(policy.trunk, layers=layers, longest=longest)

    def hidden_of(m: Any, k: Any) -> jax.Array:
        tree = _at(packing.tree, 0, m, k)
        arrays = (tree.tokens_MGU, tree.positions_MGU, tree.segment_ids_MGU, tree.segment_ends_MGU)
        *contexts, ends_BU = (x[:, 0] for x in arrays)
        return read(params, *contexts, segment_ends_BT=ends_BU)

    params = policy.prepare(params)
    shape = jax.eval_shape(lambda: hidden_of(0, 0))
    micro_batches, slots = packing.used.shape[1] * packing.place.shape[2], shape.size
    parts = packing.place.shape[2]

    def add(m: Any, k: Any, hidden: jax.Array) -> jax.Array:
        return hidden.at[m * parts + k].set(hidden_of(m, k).reshape(-1))

    hidden = _each_part(packing, add, jnp.zeros((micro_batches, slots), shape.dtype))
    return Trunk(layers, jax.lax.stop_gradient(hidden.reshape(-1, shape.shape[-1])))


def packed_gradient(
    loss: Loss,
    params: Params,
    sample: Sample,
    mini: Packing,
    trunk: Trunk | None = None,
    mesh: Mesh | None = None,
) -> tuple[Params, Metrics]:
    """Gradient of a mini-batch, summed over its micro-batches; the weights make the sum exact.

    Losses are sums over micro-batches, the other metrics means over the sampled tokens.

    Args:
        loss: of a micro-batch.
        params: what is trained.
        sample: the mini-batch, with the weights of its loss.
        mini: of that mini-batch.
        trunk, mesh: see `packed_scores`.
    """
    rows = sample.keep_N.shape[0]

    def of_part(k: Any) -> tuple[Params, Metrics, jax.Array]:
        part = _part(mini, k)
        taken = _laid_over(mesh, _rows_of_sample(sample, part.place, rows, part))
        slope = jax.value_and_grad(loss, has_aux=True)
        (_, metrics), gradient = slope(params, taken, _trunk_of(part, trunk))
        return gradient, metrics, jnp.sum(taken.batch.step_ids_NT >= 0).astype(jnp.float32)

    if mini.place.shape[0] == 1:
        gradient, metrics, _ = of_part(0)
        return gradient, metrics

    def add(k: Any, sums: tuple[Params, Metrics, jax.Array]) -> tuple[Params, Metrics, jax.Array]:
        gradient, metrics, tokens = of_part(k)
        weighed = {
            name: value if name.endswith("loss") else tokens * value
            for name, value in metrics.items()
        }
        return jax.tree.map(jnp.add, sums, (gradient, weighed, tokens))

    wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))  # noqa: E731
    nothing = jax.tree.map(wide, jax.eval_shape(lambda: of_part(0)))
    gradient, metrics, tokens = jax.lax.fori_loop(0, mini.used, add, nothing)
    return gradient, {
        name: value if name.endswith("loss") else value / jnp.maximum(tokens, 1)
        for name, value in metrics.items()
    }


def packed_passes(
    step: Callable[[Trained, Sample, Packing], tuple[Trained, Metrics]],
    trained: Trained,
    sample: Sample,
    packing: Packing,
) -> tuple[Trained, Metrics]:
    """The passes over a sample, a step on each mini-batch; metrics are [passes, mini-batches]."""
    sample = sample._replace(batch=dataclasses.replace(sample.batch, tree=None))

    def on_mini_batch(trained: Trained, mini: Packing) -> tuple[Trained, Metrics]:
        return step(trained, jax.tree.map(lambda x: x[mini.row], sample), mini)

    def one_pass(trained: Trained, minis: Packing) -> tuple[Trained, Metrics]:
        return jax.lax.scan(on_mini_batch, trained, minis)

    return jax.lax.scan(one_pass, trained, packing)


def _each_part(packing: Packing, add: Callable[[Any, Any, Any], Any], found: Any) -> Any:
    """`add(m, k, found)` for each micro-batch of the first pass that holds rows."""
    _, minis, parts = packing.place.shape[:3]
    if minis == parts == 1:
        return add(0, 0, found)

    def of_mini(m: Any, found: Any) -> Any:
        return jax.lax.fori_loop(0, packing.used[0, m], functools.partial(add, m), found)

    return jax.lax.fori_loop(0, minis, of_mini, found)


def _at(tree: Any, *index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _part(mini: Packing, k: Any) -> Packing:
    """A micro-batch of a mini-batch."""
    return mini._replace(place=mini.place[k], tree=_at(mini.tree, k), source=mini.source[k])


def _taken(tree: Any, row_R: jax.Array) -> Any:
    return jax.tree.map(lambda x: x.at[row_R].get(mode="clip"), tree)


def _rows_of_batch(batch: StepBatch, row_R: jax.Array, rows: int, part: Packing) -> StepBatch:
    """The rows of a micro-batch, with its tree; where there is none, no token and no step."""
    there_R1 = (row_R < rows)[:, None]
    taken = _taken(dataclasses.replace(batch, tree=None), row_R)
    return dataclasses.replace(
        taken,
        segment_ids_NT=jnp.where(there_R1, taken.segment_ids_NT, 0),
        step_ids_NT=jnp.where(there_R1, taken.step_ids_NT, -1),
        mask_NS=taken.mask_NS & there_R1,
        tree=part.tree,
    )


def _rows_of_sample(sample: Sample, row_R: jax.Array, rows: int, part: Packing) -> Sample:
    """The same of a mini-batch: rows that are not there have no weight."""
    there_R = row_R < rows
    taken = _taken(sample._replace(batch=None), row_R)  # type: ignore[arg-type]
    kept = lambda x_RT: jnp.where(there_R[:, None], x_RT, jnp.zeros_like(x_RT))  # noqa: E731
    credit = taken.credit
    return taken._replace(
        batch=_rows_of_batch(sample.batch, row_R, rows, part),
        credit=credit._replace(critic_mask_NT=kept(credit.critic_mask_NT)),
        keep_N=taken.keep_N & there_R,
        policy_weight_NT=kept(taken.policy_weight_NT),
        value_weight_NT=kept(taken.value_weight_NT),
    )


def _trunk_of(part: Packing, trunk: Trunk | None) -> Trunk | None:
    """The hidden states of a micro-batch, [D, U, D]."""
    return None if trunk is None else Trunk(trunk.layers, trunk.hidden_BUD[part.source])


def _laid_over(mesh: Mesh | None, tree: Any) -> Any:
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))
