"""Training until a number of tokens is sampled; the loop of the comparisons on the host.

Tokens of branches count. Held-out tasks are played in between, at equal shares of the budget, and their
tokens do not count.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from steprl.algorithms import algorithm
from steprl.config import Config
from steprl.evaluation import evaluate
from steprl.experience import make_gather
from steprl.laboratory import next_clip, with_settings
from steprl.optimizer import learning_rate, make_optimizer
from steprl.rollout import attempts
from steprl.session import Session
from steprl.sharding import state_shardings
from steprl.types import Params
from steprl.update import TrainState, initial_state, make_update, sizes_in_rows

_BOTH = ("actor.clip_ratio_low", "actor.clip_ratio_high")
_APART = 1_000_000  # tasks between the first ones of two seeds


def learn(
    session: Session,
    params: Params,
    seed: int,
    budget: int,
    points: int,
    clip_fraction: float,
    watch: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains from given parameters on tasks of the seed's own.

    Args:
        session: its method and settings. The schedule of the learning rate goes over the budget, as
            nobody knows how many iterations there will be; it is without warm-up.
        params: to begin with.
        budget: tokens to sample. The last iteration is played to its end.
        points: evaluations, the last one behind the last update.
        clip_fraction: the clip of the ratio moves until this share of the tokens is clipped.
        watch: is told how it goes.

    Returns:
        tokens and success of the evaluations, the first one not among them; and of each iteration
        the tokens so far, the share that was clipped and at which clip, and seconds of play and update
        and of processor.
    """
    config, rate_at = _scheduled_outside(session.config)
    method = algorithm(config.algorithm.name)

    def optimizer(config: Config) -> optax.GradientTransformation:
        return make_optimizer(config.actor, config.critic, 1)

    def update(state: Any, batch: Any, key: jax.Array, clip: jax.Array, factor: jax.Array) -> Any:
        actor_lr = config.actor.lr
        critic_lr = actor_lr if config.critic.lr is None else config.critic.lr
        rates = {"actor.lr": factor * actor_lr, "critic.lr": factor * critic_lr}
        own = with_settings(config, dict.fromkeys(_BOTH, clip) | rates)
        own = sizes_in_rows(own, method.branching)
        learn_from = make_update(session.policy, method, optimizer(own), own, session.mesh)
        return learn_from(state, batch, key)

    def fresh(params: Params) -> TrainState:
        return initial_state(jax.tree.map(jnp.copy, params), optimizer(config), config)

    # What comes out lies where it lay, so that the second call is not another program.
    shardings = state_shardings(jax.eval_shape(fresh, params), session.mesh)
    state = jax.jit(fresh, out_shardings=shardings)(params)
    compiled = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))
    gather = make_gather(session)
    clip = jnp.asarray(config.actor.clip_ratio_high, jnp.float32)
    play_key, update_key = jax.random.split(jax.random.key(seed))
    rollout = config.rollout
    found: dict[str, list[float]] = {name: [] for name in ("tokens", "success")}
    of_each: dict[str, list[float]] = {
        name: []
        for name in (
            "tokens", "clipped", "clip", "gen_seconds", "update_seconds", "processor_seconds"
        )
    }  # fmt: skip
    total, iteration = 0.0, 0
    while total < budget:
        begin, processor = time.perf_counter(), time.process_time()
        first = seed * _APART + iteration * rollout.batch_size
        experience = gather(state, play_key, *attempts(first, rollout.batch_size, rollout.n))
        middle = time.perf_counter()
        key = jax.random.fold_in(update_key, iteration)
        state, learnt = compiled(state, experience.batch, key, clip, rate_at(total / budget))
        learnt = jax.device_get(learnt)
        if learnt["train/nonfinite"]:
            raise FloatingPointError(
                f"{config.algorithm.name}, seed {seed}, iteration {iteration + 1}: loss or gradient "
                "is not finite; try a smaller actor.lr"
            )
        of_each["clip"].append(float(clip))
        clip = next_clip(clip, learnt["actor/pg_clipfrac"], clip_fraction)
        end = time.perf_counter()
        total, iteration = total + experience.report["token/decoded"], iteration + 1
        of_each["tokens"].append(total)
        of_each["clipped"].append(float(learnt["actor/pg_clipfrac"]))
        of_each["gen_seconds"].append(middle - begin)
        of_each["update_seconds"].append(end - middle)
        of_each["processor_seconds"].append(time.process_time() - processor)
        if total >= budget * (len(found["tokens"]) + 1) / points:
            success = heldout(session, state.params)
            found["tokens"].append(total)
            found["success"].append(success)
            watch(
                f"{config.algorithm.name}, seed {seed}: {total:.0f} tokens, success {success:.3f}"
            )
    return found | {"iterations": of_each}


def _scheduled_outside(config: Config) -> tuple[Config, Callable[[float], jax.Array]]:
    """A constant learning rate, and by what to multiply it at a share of the budget."""
    schedule = learning_rate(dataclasses.replace(config.actor, lr_warmup_steps=0), 1.0, 1000)
    actor = dataclasses.replace(config.actor, lr_schedule="constant", lr_warmup_steps=0)
    config = dataclasses.replace(config, actor=actor)
    return config, lambda share: jnp.asarray(schedule(1000 * share), jnp.float32)


def heldout(session: Session, params: Params) -> float:
    """Success at temperature 1 on the tasks of `eval.num_tasks` in rooms that training has not."""
    config = session.config
    rows = config.rollout.batch_size * config.rollout.n
    settings = dataclasses.replace(config.eval, n=1)
    split = session.player.splits[-1]
    found = evaluate(session.player, params, settings, split, rows, settings.temperature)
    return found["success_rate"]
