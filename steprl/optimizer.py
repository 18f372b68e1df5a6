"""What is trained and how: optax optimisers with clipping and schedules, and the frozen parameters."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from steprl.config import ActorConfig, Config, CriticConfig, SftConfig
from steprl.types import Params

ACTOR, CRITIC = "actor", "critic"
CRITIC_PARTS = ("value", "critic")
"""The parameters of a policy that are the critic's, by their names at the top; a trunk that both read
is the actor's."""


def learning_rate(
    actor: ActorConfig,
    peak: float,
    updates: int,
    spent: jax.Array | None = None,
    skipped: int | jax.Array = 0,
) -> optax.Schedule:
    """Warm-up from 0 to `peak`, then constant, linear or cosine down to min_lr_ratio * peak.

    Args:
        actor: kind and length of the parts.
        peak: the rate after the warm-up.
        updates: optimiser steps of the whole run.
        spent: [] share of a budget that may end the run before; the rate is then at least that far
            down.
        skipped: how many of `updates`, the first ones, are not taken; the schedule goes through the rest
            of them, and through what they leave of the budget.
    """
    end = peak * actor.min_lr_ratio
    rest = max(1, updates - actor.lr_warmup_steps)
    if actor.lr_schedule == "linear":
        main = optax.linear_schedule(peak, end, rest)
    elif actor.lr_schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, actor.min_lr_ratio)
    else:
        main = optax.constant_schedule(peak)
    stretch: float | jax.Array = 1.0
    if not _is_zero(skipped):
        by_count, stretch = main, rest / jnp.maximum(1, rest - skipped)
        main = lambda count: by_count(count * stretch)  # noqa: E731
    if spent is not None:
        by_updates = main
        share = lambda count: _behind_skipped(spent, count + actor.lr_warmup_steps, skipped)  # noqa: E731
        main = lambda count: by_updates(jnp.maximum(count, share(count) * (rest / stretch)))  # noqa: E731
    if actor.lr_warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(0.0, peak, actor.lr_warmup_steps)
    return optax.join_schedules([warmup, main], [actor.lr_warmup_steps])


def _behind_skipped(spent: jax.Array, taken: jax.Array, skipped: int | jax.Array) -> jax.Array:
    """[] the share that is spent of what the skipped steps leave of a budget, if all spend the same.

    Args:
        spent: [] share of the whole budget.
        taken: steps so far, those apart that are skipped.
        skipped: steps before them.
    """
    if _is_zero(skipped):
        return spent
    share = spent * taken / jnp.maximum(1.0, taken + skipped * (1 - spent))
    return jnp.where(jnp.asarray(skipped) > 0, share, spent)


def make_optimizer(
    actor: ActorConfig,
    critic: CriticConfig,
    updates: int,
    spent: jax.Array | None = None,
    *,
    critic_updates: int | None = None,
    warmup: int | jax.Array = 0,
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; `CRITIC_PARTS` use the critic's rate, and its clip if it has one.

    The state is the same whatever the clips, `spent` and `warmup` are.

    Args:
        updates: optimiser steps of the whole run, for the schedule.
        spent: see `learning_rate`.
        critic_updates: those of the critic, where it takes its own; None for `updates`.
        warmup: how many of `updates` train the critic alone.
    """

    def adam(peak: float, updates: int, skipped: int | jax.Array) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate(actor, peak, updates, spent, skipped),
            b1=actor.adam_b1,
            b2=actor.adam_b2,
            weight_decay=actor.weight_decay,
        )

    critic_lr = actor.lr if critic.lr is None else critic.lr
    critic_updates = updates if critic_updates is None else critic_updates
    parts = {ACTOR: adam(actor.lr, updates, warmup), CRITIC: adam(critic_lr, critic_updates, 0)}
    clip = _clip(actor.grad_clip)
    if critic.grad_clip is not None:
        clip = _clip_apart(actor.grad_clip, critic.grad_clip)
    return in_float32(optax.chain(clip, optax.partition(parts, _owners)))


def make_rl_optimizer(
    config: Config, has_critic: bool, spent: jax.Array | None = None
) -> optax.GradientTransformation:
    """`make_optimizer` for the iterations of a whole run.

    Args:
        config: settings of the run.
        has_critic: whether the method trains one; else no iteration is left to it.
        spent: see `learning_rate`.
    """
    actor, critic, trainer = config.actor, config.critic, config.trainer
    rows = config.rollout.batch_size * config.rollout.n
    epochs, size = critic_passes(config)
    per_iteration = actor.ppo_epochs * (rows // actor.ppo_mini_batch_size)
    return make_optimizer(
        actor,
        critic,
        trainer.total_training_steps * per_iteration,
        spent,
        critic_updates=trainer.total_training_steps * epochs * (rows // size),
        warmup=trainer.critic_warmup * per_iteration if has_critic else 0,
    )


def has_own_passes(critic: CriticConfig) -> bool:
    """Whether the critic is trained in passes over the batch of its own."""
    return critic.ppo_epochs is not None or critic.ppo_mini_batch_size is not None


def critic_passes(config: Config) -> tuple[int, int]:
    """Epochs and size of the mini-batches that train the critic."""
    actor, critic = config.actor, config.critic
    return critic.ppo_epochs or actor.ppo_epochs, (
        critic.ppo_mini_batch_size or actor.ppo_mini_batch_size
    )


def make_sft_optimizer(sft: SftConfig) -> optax.GradientTransformation:
    """AdamW with warm-up and a cosine down to min_lr_ratio * lr."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        sft.lr,
        sft.warmup_steps,
        max(sft.steps, sft.warmup_steps + 1),
        sft.lr * sft.min_lr_ratio,
    )
    adam = optax.adamw(schedule, weight_decay=sft.weight_decay)
    return in_float32(optax.chain(_clip(sft.grad_clip), adam))


class Masters(NamedTuple):
    """State of an optimiser over parameters of a narrower type."""

    params: Params  # what they are in float32; None where a parameter is float32 itself
    inner: Any  # state of the optimiser, over float32


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser, which keeps a float32 copy of parameters that are of a narrower type.

    A bfloat16 number has 8 bits, so one that an update changes by less than its 512th part stays
    as it is, and small updates are lost for good. Here they add up in the copy, to which the
    parameter is rounded after each step. Over float32 alone it is the optimiser itself.

    Note:
        A trained bfloat16 parameter takes 14 bytes with its copy and the moments of Adam, a float32
        one 12; what is frozen takes 2 in place of 4.
    """

    def init(params: Params) -> Any:
        if not _is_narrow(params):
            return optimizer.init(params)
        masters = jax.tree.map(lambda p: p.astype(jnp.float32) if _narrow(p) else None, params)
        return Masters(masters, optimizer.init(_wide(params, masters)))

    def update(gradient: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        if not _is_narrow(params):
            return optimizer.update(gradient, state, params)
        wide = _wide(params, state.params)
        gradient = jax.tree.map(lambda g: g.astype(jnp.float32) if _narrow(g) else g, gradient)
        change, inner = optimizer.update(gradient, state.inner, wide)
        moved = optax.apply_updates(wide, change)
        masters = jax.tree.map(lambda p, m: m if _narrow(p) else None, params, moved)
        # To the number that the copy is rounded to: the difference is exact in float32.
        change = jax.tree.map(
            lambda p, m, c: (
                m.astype(p.dtype).astype(m.dtype) - p.astype(m.dtype) if _narrow(p) else c
            ),
            params,
            moved,
            change,
        )
        return change, Masters(masters, inner)

    return optax.GradientTransformation(init, update)


def _narrow(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype.itemsize < 4


def _is_narrow(params: Params | None) -> bool:
    return any(map(_narrow, jax.tree.leaves(params)))


def _wide(params: Params, masters: Params) -> Params:
    """The parameters, with the copies in place of those that have one."""
    pick = lambda copy, p: p if copy is None else copy  # noqa: E731
    return jax.tree.map(pick, masters, params, is_leaf=lambda x: x is None)


def split_trainable(
    params: Params, freeze: str | None = None, train_layers: int | None = None
) -> tuple[Params, Params]:
    """What is trained and what is not; gradients and the optimiser's state are of the first only.

    With adapters (a part "lora") the decoder is frozen; they, a value head and a separate critic
    are trained.

    Args:
        params: nested dicts, or their shapes.
        freeze: regular expression; a parameter in whose path, such as
            "decoder/layers/0/mlp/up/kernel", it is found is frozen too.
        train_layers: so many layers of the decoder, the highest, are trained with what stands above
            them, and so are as many of a separate critic; those below and the embedding are frozen.

    Returns:
        Two trees without each other's leaves and without empty dicts; `combine` joins them again.

    Raises:
        ValueError: `freeze` is no regular expression, matches nothing, or leaves nothing to train;
            the model has fewer layers than `train_layers`, or none that can be told by their names.
    """
    if freeze is None and train_layers is None and "lora" not in params:
        return params, {}
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    try:
        frozen = {path for path in paths if freeze is not None and re.search(freeze, path)}
    except re.error as error:
        raise ValueError(f"model.freeze={freeze!r} is not a regular expression: {error}") from None
    if freeze is not None and not frozen:
        examples = ", ".join(paths[:: max(1, len(paths) // 5)])
        raise ValueError(
            f"model.freeze={freeze!r} matches no parameter; it is searched for in paths such as {examples}"
        )
    if train_layers is not None:
        frozen |= _below(paths, train_layers)
    if "lora" in params:
        frozen |= {path for path in paths if path.startswith("decoder/")}
    if len(frozen) == len(paths):
        both = f"model.freeze={freeze!r}"
        both += "" if train_layers is None else f" and model.train_layers={train_layers}"
        raise ValueError(f"{both} freezes every parameter: nothing would be trained")
    return _part(params, lambda path: path not in frozen), _part(params, frozen.__contains__)


_LAYER = re.compile(r"(?:lora/)?(decoder|critic)/layers/(\d+)/")


def _below(paths: list[str], train_layers: int) -> set[str]:
    """Paths of the embedding and of the layers below the highest `train_layers`."""
    numbers = [int(match[2]) for path in paths if (match := _LAYER.match(path))]
    total = max(numbers, default=-1) + 1
    if train_layers > total:
        raise ValueError(
            f"model.train_layers={train_layers}: the model has {total} layers, so at most {total} of "
            "them can be trained"
        )
    return {
        path
        for path in paths
        if re.match("(decoder|critic)/embedding/", path)
        or ((match := _LAYER.match(path)) and int(match[2]) < total - train_layers)
    }


def frozen_layers(trainable: Params, frozen: Params) -> int:
    """How many of the decoder's layers, from the lowest up, nothing is trained in, or below of.

    What they compute of a batch is the same whatever is learnt.
    """
    layers = frozen.get("decoder", {}).get("layers", {})
    if "embedding" in trainable.get("decoder", {}):
        return 0
    found = [
        int(match[2])
        for path, _ in jax.tree_util.tree_leaves_with_path(trainable)
        if (match := _LAYER.match(jax.tree_util.keystr(path, simple=True, separator="/")))
        and match[1] == "decoder"
    ]
    return min(found, default=len(layers))


def combine(trainable: Params, frozen: Params) -> Params:
    """The parameters that `split_trainable` split."""
    if not frozen:
        return trainable
    shared = trainable.keys() & frozen.keys()
    return frozen | trainable | {name: combine(trainable[name], frozen[name]) for name in shared}


def _part(tree: Params, keep: Callable[[str], bool], prefix: str = "") -> Params:
    """The nested dicts with those leaves only whose path is wanted."""
    part = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            value = _part(value, keep, f"{prefix}{name}/")
            if value:
                part[name] = value
        elif keep(prefix + name):
            part[name] = value
    return part


def owner_of(path: Sequence[Any]) -> str | None:
    """`ACTOR` or `CRITIC`, whose leaf it is; None where the path says nothing, as of a count of both.

    Args:
        path: of a leaf of parameters, gradients or the state of an optimiser over them.
    """
    for entry in path:
        if isinstance(entry, jax.tree_util.DictKey):
            return CRITIC if entry.key in CRITIC_PARTS else ACTOR
    return None


def split_owner(params: Params, owner: str | None) -> tuple[Params, Params]:
    """Parameters of `ACTOR` or `CRITIC`, and the others; `combine` joins them again.

    Args:
        params: nested dicts.
        owner: None for both: all, and nothing.
    """
    if owner is None:
        return params, {}
    own = {name: x for name, x in params.items() if (name in CRITIC_PARTS) == (owner == CRITIC)}
    return own, {name: x for name, x in params.items() if name not in own}


def grad_norms(gradient: Params) -> dict[str, jax.Array]:
    """The global norm of the gradient of `ACTOR` and of that of `CRITIC`."""
    norms = {}
    for owner in (ACTOR, CRITIC):
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        own = [leaf for path, leaf in leaves if (owner_of(path) or ACTOR) == owner]
        norms[owner] = optax.tree.norm(own) if own else jnp.zeros(())
    return norms


def _is_zero(number: float | jax.Array) -> bool:
    """A number of the settings is 0; one that is traced may be any."""
    return not isinstance(number, jax.Array) and number == 0


def _clip(norm: float | jax.Array) -> optax.GradientTransformation:
    if isinstance(norm, jax.Array):
        return optax.clip_by_global_norm(jnp.where(norm > 0, norm, jnp.inf))
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _clip_apart(
    actor_norm: float | jax.Array, critic_norm: float | jax.Array
) -> optax.GradientTransformation:
    """Each by a norm of its own; without a state, as `_clip`, so that a run may change its mind."""
    apart = optax.partition({ACTOR: _clip(actor_norm), CRITIC: _clip(critic_norm)}, _owners)
    return optax.stateless(lambda gradient, _: apart.update(gradient, apart.init(gradient))[0])


def _owners(params: Any) -> Any:
    """Label of each leaf by the part of the policy that it belongs to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: owner_of(path) or ACTOR, params)
