"""Training on one game, driven in four ways: same model, method, tasks, draws and update.

Each loop is `run(key, params) -> what happened in each iteration`, and all make the same draws from
the key: the attempts of the first iteration are the same in all of them, token by token.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.algorithms import algorithm
from steprl.config import Config
from steprl.envs.games import text_game
from steprl.envs.opening import open_game
from steprl.experience import make_gather
from steprl.laboratory import make_train
from steprl.optimizer import make_optimizer
from steprl.rollout import attempts, summary, text_player
from steprl.rollout.contexts import plain_context
from steprl.rollout.device import answer, batch_of_steps, next_chunk
from steprl.sampling import generate, trajectory_key
from steprl.session import Session
from steprl.sharding import state_shardings
from steprl.types import Params, Policy, StepBatch
from steprl.update import TrainState, initial_state, make_update

Run = Callable[[jax.Array, Params], "Ran"]
Play = Callable[..., StepBatch]  # (state, key, task_N, sample_N)


class Ran(NamedTuple):
    """What happened in a call of a loop."""

    steps: float  # agent steps of all iterations
    success: list[float]  # of each iteration
    in_environment: float = 0.0  # seconds
    batch: StepBatch | None = None  # of the first iteration, where the host has it


def one_program(config: Config) -> Run:
    """All iterations in one compiled program."""
    train = jax.jit(make_train(config))

    def run(key: jax.Array, params: Params) -> Ran:
        _, metrics = jax.device_get(train(key, params))
        success = metrics["rollout/success_rate"].tolist()
        return Ran(float(metrics["step/count"].sum()), success)

    return run


def two_programs(session: Session) -> Run:
    """Rollout and update a program each, as `steprl train` does with games."""
    return _driven(session, _gathered(session))


def call_a_turn(session: Session) -> Run:
    """Episodes are driven from the host: a turn is a call of the language model for all rows and a
    call of the game for all rows, and the host hears what happened after each."""
    return _driven(
        session, played_by_turns(session.policy, open_game(session.config.env).make(False))
    )


def text_environment(session: Session) -> Run:
    """The game as a text environment of the slot engine, as `steprl train` does with the environments
    of others: text out, text in, one episode at a time."""
    config, whole = session.config, open_game(session.config.env)
    game, env = whole.make(False), _Timed(text_game(whole))
    context = plain_context(session.player.tokenizer)._replace(stop_ids=tuple(game.stop_ids))
    length = game.prompt_width + game.max_steps * (game.action_width + game.observation_width)
    # No row is wider than those of the others, and a full context ends no episode.
    settings = dataclasses.replace(
        config.rollout, response_length=game.action_width, context_length=length, env_workers=0
    )
    player = text_player(
        {"train": env}, context, session.player.tokenizer, session.policy, session.mesh, settings,
        game.max_steps,
    )  # fmt: skip
    return _driven(session._replace(player=player), _gathered(session._replace(player=player)), env)


def _gathered(session: Session) -> Play:
    gather = make_gather(session)
    return lambda *arguments: gather(*arguments).batch


class _Timed:
    """An environment that notes how long it takes."""

    def __init__(self, env: Any):
        self._env, self.seconds = env, 0.0

    def reset(self, *arguments: Any) -> Any:
        return self._noted(self._env.reset, *arguments)

    def step(self, *arguments: Any) -> Any:
        return self._noted(self._env.step, *arguments)

    def _noted(self, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = call(*arguments)
        self.seconds += time.perf_counter() - begin
        return result


def _driven(session: Session, play: Play, env: _Timed | None = None) -> Run:
    """The loop of `steprl train`, less its files and evaluations."""
    config = session.config
    rollout, actor, total = config.rollout, config.actor, config.trainer.total_training_steps
    per_iteration = actor.ppo_epochs * (rollout.batch_size * rollout.n // actor.ppo_mini_batch_size)
    optimizer = make_optimizer(actor, config.critic, total * per_iteration)
    method = algorithm(config.algorithm.name)

    def fresh(params: Params) -> TrainState:
        return initial_state(jax.tree.map(jnp.copy, params), optimizer, config)

    # What comes out lies where it lay, so that the second call is not another program.
    shapes = jax.eval_shape(fresh, jax.eval_shape(session.policy.init, jax.random.key(0)))
    shardings = state_shardings(shapes, session.mesh)
    begin = jax.jit(fresh, out_shardings=shardings)
    update = jax.jit(
        make_update(session.policy, method, optimizer, config, session.mesh),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    summarise = jax.jit(summary)

    def run(key: jax.Array, params: Params) -> Ran:
        # The draws of `steprl.laboratory`.
        task_key, play_key, update_key = jax.random.split(jax.random.split(key)[1], 3)
        first = int(jax.random.randint(task_key, (), 0, 2**30))
        state = begin(params)
        before = env.seconds if env else 0.0
        steps, success, batch_of_first = 0.0, [], None
        for iteration in range(total):
            tasks = attempts(first + iteration * rollout.batch_size, rollout.batch_size, rollout.n)
            batch = play(state, play_key, *tasks)
            batch_of_first = batch if iteration == 0 else batch_of_first
            found = jax.device_get(summarise(batch))
            state, learnt = update(state, batch, jax.random.fold_in(update_key, iteration))
            jax.device_get(learnt)
            steps += float(found["step/count"])
            success.append(float(found["rollout/success_rate"]))
        return Ran(steps, success, env.seconds - before if env else 0.0, batch_of_first)

    return run


def played_by_turns(policy: Policy, env: Any) -> Play:
    """As `steprl.rollout.rollout`, whose turns are two calls each."""
    length = env.prompt_width + env.max_steps * (env.action_width + env.observation_width)

    @jax.jit
    def begin(params: Params, key: jax.Array, task_N: jax.Array, sample_N: jax.Array) -> Any:
        keys_N = jax.vmap(trajectory_key, in_axes=(None, 0, 0))(key, task_N, sample_N)
        env_keys_N = jax.vmap(lambda k: jax.random.fold_in(k, 2**31 - 1))(keys_N)
        state, prompt_NP = jax.vmap(env.reset)(task_N, env_keys_N)
        size_N = jnp.sum(prompt_NP != 0, axis=1)
        index = jnp.broadcast_to(jnp.arange(prompt_NP.shape[1])[None, :], prompt_NP.shape)
        real = (index < (size_N - 1)[:, None]).astype(jnp.int32)
        cache = policy.init_cache(task_N.shape[0], length)
        _, cache = policy.apply(params, prompt_NP, index, real, cache)
        last = jnp.take_along_axis(prompt_NP, (size_N - 1)[:, None], axis=1)
        chunk = jnp.pad(last, ((0, 0), (0, env.observation_width)))
        return keys_N, state, prompt_NP, (cache, chunk, jnp.ones_like(size_N)), size_N - 1

    @jax.jit
    def act(params: Params, keys_N: Any, memory: Any, start_N: Any, alive_N: Any, turn: Any) -> Any:
        cache, chunk_NC, chunk_length_N = memory
        out = generate(
            policy, params, cache, chunk_NC, chunk_length_N, start_N,
            jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_N, turn), alive_N,
            max_tokens=env.action_width, stop_ids=env.stop_ids,
        )  # fmt: skip
        found = (out.tokens_BA, out.mask_BA, out.logprob_BA, out.entropy_BA, out.stop_reason_B)
        return (*found, None), out.cache

    @jax.jit
    def step(state: Any, found: Any, cache: Any, start_N: Any, chunk_N: Any, alive_N: Any) -> Any:
        state, out, over_N = answer(env, state, found, alive_N)
        size_N = jnp.sum(out.action_mask, axis=1)
        memory = next_chunk(cache, out.action, size_N, out.observation)
        return state, out, memory, start_N + chunk_N + size_N - 1, alive_N & ~over_N

    @jax.jit
    def batch_of(prompt_NP: Any, turns: Any, task_N: jax.Array, sample_N: jax.Array) -> StepBatch:
        together = jax.tree.map(lambda *x: jnp.stack(x), *turns)
        return batch_of_steps(env, prompt_NP, together, task_N, sample_N)

    def play(
        train_state: Any, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray
    ) -> StepBatch:
        params = policy.prepare(train_state.params)
        rows = (np.asarray(task_N, np.int32), np.asarray(sample_N, np.int32))
        keys_N, state, prompt_NP, memory, start_N = begin(params, key, *rows)
        alive_N, turns = jnp.ones(len(task_N), bool), []
        for turn in range(env.max_steps):
            found, cache = act(params, keys_N, memory, start_N, alive_N, np.int32(turn))
            jax.device_get(found[:2])
            state, out, memory, start_N, alive_N = step(
                state, found, cache, start_N, memory[2], alive_N
            )
            turns.append(out)
            jax.device_get((out.observation, out.reward, alive_N))
        return batch_of(prompt_NP, turns, *rows)

    return play


def parted_attempts(first: StepBatch, second: StepBatch, dropped: int) -> int:
    """Rows whose sampled tokens differ, whatever the layout.

    Args:
        dropped: a token that is lost on its way through text. What follows it in an action is then
            read as another action, so rows of `first` where something does may differ.
    """
    return sum(
        not np.array_equal(a.tokens, b.tokens) and not _followed(a, dropped)
        for a, b in zip(_sampled(first), _sampled(second), strict=True)
    )


class _Sampled(NamedTuple):
    tokens: np.ndarray
    step_ids: np.ndarray


def _sampled(batch: StepBatch) -> list[_Sampled]:
    tokens_NT, ids_NT = np.asarray(batch.tokens_NT), np.asarray(batch.step_ids_NT)
    return [
        _Sampled(tokens[ids >= 0], ids[ids >= 0])
        for tokens, ids in zip(tokens_NT, ids_NT, strict=True)
    ]


def _followed(row: _Sampled, token: int) -> bool:
    return bool(np.any((row.tokens[:-1] == token) & (np.diff(row.step_ids) == 0)))
