"""Optax optimisers: clipping, AdamW with a schedule, and a learning rate of its own for the critic."""

from typing import Any

import jax
import optax

from steprl.config import ActorConfig, CriticConfig, SftConfig


def learning_rate(actor: ActorConfig, peak: float, updates: int) -> optax.Schedule:
    """Warm-up from 0 to `peak`, then constant, linear or cosine down to min_lr_ratio * peak."""
    end = peak * actor.min_lr_ratio
    rest = max(1, updates - actor.lr_warmup_steps)
    if actor.lr_schedule == "linear":
        main = optax.linear_schedule(peak, end, rest)
    elif actor.lr_schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, actor.min_lr_ratio)
    else:
        main = optax.constant_schedule(peak)
    if actor.lr_warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(0.0, peak, actor.lr_warmup_steps)
    return optax.join_schedules([warmup, main], [actor.lr_warmup_steps])


def make_optimizer(
    actor: ActorConfig, critic: CriticConfig, updates: int
) -> optax.GradientTransformation:
    """Global-norm clip over everything, then AdamW; "value" and "critic" use the critic's rate.

    Args:
        updates: optimiser steps of the whole run, for the schedule.
    """

    def adam(peak: float) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate(actor, peak, updates),
            b1=actor.adam_b1,
            b2=actor.adam_b2,
            weight_decay=actor.weight_decay,
        )

    critic_lr = actor.lr if critic.lr is None else critic.lr
    parts = optax.partition({"actor": adam(actor.lr), "critic": adam(critic_lr)}, _owner)
    return optax.chain(_clip(actor.grad_clip), parts)


def make_sft_optimizer(sft: SftConfig) -> optax.GradientTransformation:
    """AdamW with warm-up and a cosine down to min_lr_ratio * lr."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        sft.lr,
        sft.warmup_steps,
        max(sft.steps, sft.warmup_steps + 1),
        sft.lr * sft.min_lr_ratio,
    )
    return optax.chain(_clip(sft.grad_clip), optax.adamw(schedule, weight_decay=sft.weight_decay))


def _clip(norm: float) -> optax.GradientTransformation:
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _owner(params: Any) -> Any:
    """Label of each leaf by the part of the policy that it belongs to."""
    label = lambda path, _: "critic" if path[0].key in ("value", "critic") else "actor"  # noqa: E731
    return jax.tree_util.tree_map_with_path(label, params)
