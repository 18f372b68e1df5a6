"""A whole run as one compiled program: environment, language model and update, without the host.

    train = make_train(config)
    params, metrics = jax.jit(jax.vmap(train))(jax.random.split(key, 10))        # ten seeds
    params, metrics = jax.jit(lambda keys: jax.lax.map(train, keys))(keys)       # on a CPU faster
    params, metrics = jax.jit(jax.vmap(train, (None, None, 0)))(key, None, {"actor.lr": rates})

Everything is a pure function of a key, so seeds, and settings that are numbers, are one more axis.
Where the keys are laid over the devices of a mesh, each device trains its own seeds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.algorithms import Algorithm, algorithm
from steprl.carried import share_spent
from steprl.config import Config
from steprl.envs.games import GAMES, Game, make_game, player_of, vocabulary_of
from steprl.laboratory.checks import check_game, check_policy
from steprl.models import decoder_config, make_policy
from steprl.models.scoring import score
from steprl.models.tokenizer import detokenize, phrase_tokenizer
from steprl.ops import worded_tokens
from steprl.optimizer import combine, make_optimizer, make_sft_optimizer, split_trainable
from steprl.rollout import demonstrations, rollout, summary
from steprl.rollout.branching import begin_anew
from steprl.rollout.device_growth import GrownBatch, grow_branpo, grow_by_score, grow_plain
from steprl.sampling import Sampling, sampling_of
from steprl.sft import make_sft_update
from steprl.types import Params, Policy, StepBatch
from steprl.update import Metrics, TrainState, initial_state, make_update, with_branches

Settings = Mapping[str, Any]
"""Numbers of the configuration by their dotted names; they may be traced."""

TRACED = (
    "actor.lr",
    "actor.clip_ratio_low",
    "actor.clip_ratio_high",
    "actor.entropy_coeff",
    "algorithm.gamma",
    "algorithm.lam",
    "critic.lr",
    "critic.vf_coef",
)
"""The settings that may be an array, and so differ along an axis of `vmap`. Two more have short names:

    clip_fraction  `actor.clip_fraction`: the clip of the ratio moves until this share of the tokens is
                   clipped, so that ratios of tokens, steps and sequences are held back alike
    token_budget   `trainer.token_budget`: a run stands still when it has sampled so many tokens: from
                   then on its metrics are NaN, but for `token/decoded`, 0, and `token/total`
"""
_SHORT = {"clip_fraction": "actor.clip_fraction", "token_budget": "trainer.token_budget"}


class Program(NamedTuple):
    """The parts of a run, pure functions all; none is compiled yet."""

    policy: Policy
    warm_start: Callable[[jax.Array], tuple[Params, Metrics]]  # key -> parameters, metrics by step
    begin: Callable[..., TrainState]  # (params, settings)
    # (state, key of the run, settings as those that it began with)
    iterate: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., jax.Array]  # (params, key, attempts, temperature) -> success of each


def make_program(
    config: Config,
    method: Algorithm | None = None,
    game: Game | None = None,
    policy: Policy | None = None,
) -> Program:
    """The parts of a run of `config`, whose environment is one of `GAMES`, or one's own.

    Args:
        config: sizes and the names of things are fixed; numbers of `TRACED` may be given anew with
            each call. `trainer.seed`, files, checkpoints and the mesh play no part.
        method: in place of the one that `algorithm.name` names, whose rollouts it still gets.
        game: in place of the one that `env.name` names; its settings are None. `env.game` holds.
        policy: in place of a decoder of the shape of `model`. `model.freeze` and `logprob_chunk` hold.

    Raises:
        ValueError: the environment is not on the device, settings do not fit each other, or a game
            or policy of one's own breaks its contract; says where.
    """
    _check(config, game is not None)
    phrases = vocabulary_of(config.env, game)
    tokenizer = phrase_tokenizer(phrases)
    if game is not None:
        check_game(make_game(config.env, row=game), phrases)
    if policy is not None:
        check_policy(policy, len(tokenizer))
    policy = policy or make_policy(_shape(config, len(tokenizer)))
    method = method or algorithm(config.algorithm.name, _offers(config, policy))
    texts = [detokenize(tokenizer, [token]) for token in range(len(tokenizer))]
    grow = _make_grow(config, policy, method, worded_tokens(texts), game)
    rows = config.rollout.batch_size * config.rollout.n
    per_iteration = config.actor.ppo_epochs * (rows // config.actor.ppo_mini_batch_size)
    updates = config.trainer.total_training_steps * per_iteration

    def begin(params: Params, settings: Settings | None = None) -> TrainState:
        own = with_settings(config, settings or {})
        optimizer = make_optimizer(own.actor, own.critic, updates)
        return initial_state(params, optimizer, own, method)

    def iterate(
        state: TrainState, key: jax.Array, settings: Settings | None = None
    ) -> tuple[TrainState, Metrics]:
        own = with_settings(config, settings or {})
        budget = jnp.inf if own.trainer.token_budget is None else own.trainer.token_budget
        go_on = lambda state: play_and_learn(state, key, own)  # noqa: E731
        _, found = jax.eval_shape(go_on, state)

        def stand_still(state: TrainState) -> tuple[TrainState, Metrics]:
            nothing = {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in found.items()}
            known = {"token/decoded": jnp.zeros(()), "token/total": state.carried["tokens"]}
            return state, nothing | known

        # One run after another, this costs nothing; side by side, all go on until the last stands.
        return jax.lax.cond(state.carried["tokens"] >= budget, stand_still, go_on, state)

    def play_and_learn(
        state: TrainState, key: jax.Array, own: Config
    ) -> tuple[TrainState, Metrics]:
        spent = share_spent(own, state.carried)
        optimizer = make_optimizer(own.actor, own.critic, updates, spent)
        task_key, play_key, update_key = jax.random.split(key, 3)
        # Each run has tasks of its own.
        first = (
            jax.random.randint(task_key, (), 0, 2**30) + state.iteration * own.rollout.batch_size
        )
        attempt_N = jnp.arange(rows, dtype=jnp.int32)
        task_N = first + attempt_N // own.rollout.n
        grown = grow(state, play_key, task_N, attempt_N % own.rollout.n, own)
        found: Metrics = summary(grown.batch) | {
            "rollout/success_rate": _success(grown.batch, task_N, own),
            "token/decoded": grown.sampled,
            "branch/count": grown.branches,
            "actor/clip_ratio": jnp.asarray(own.actor.clip_ratio_high),
        }
        update = make_update(policy, method, optimizer, with_branches(own))
        update_key = jax.random.fold_in(update_key, state.iteration)
        state, learnt = update(state, grown.batch, update_key, grown.sampled)
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in (found | learnt).items()}

    def evaluate(
        params: Params, key: jax.Array, attempts: int, temperature: float | jax.Array = 1.0
    ) -> jax.Array:
        task_N = jnp.arange(attempts, dtype=jnp.int32)
        env = make_game(config.env, heldout=True, row=game)
        batch = rollout(
            policy, env, params, key, task_N, jnp.zeros_like(task_N), Sampling(temperature)
        )
        return batch.success_N

    return Program(policy, _make_warm_start(config, policy, game), begin, iterate, evaluate)


def make_train(
    config: Config,
    method: Algorithm | None = None,
    game: Game | None = None,
    policy: Policy | None = None,
) -> Callable[..., tuple[Params, Metrics]]:
    """`train(key, params=None, settings=None) -> (params, metrics)`, to be compiled and mapped.

    A warm start of `sft.steps`, unless parameters are given, then `trainer.total_training_steps`
    iterations in one `lax.scan`. Metrics are those of the iterations, [iterations] each.

    Args:
        config, method, game, policy: see `make_program`.

    Raises:
        ValueError: as `make_program`; or a name in `settings` is not one of `TRACED`.
    """
    program = make_program(config, method, game, policy)

    def train(
        key: jax.Array, params: Params | None = None, settings: Settings | None = None
    ) -> tuple[Params, Metrics]:
        warm_key, run_key = jax.random.split(key)
        if params is None:
            params, _ = program.warm_start(warm_key)

        def step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            return program.iterate(state, run_key, settings)

        begin, length = program.begin(params, settings), config.trainer.total_training_steps
        state, metrics = jax.lax.scan(step, begin, length=length)
        return state.params, metrics

    return train


def with_settings(config: Config, settings: Settings) -> Config:
    """The configuration with some numbers replaced, which may be traced.

    Raises:
        ValueError: a name is not one of `TRACED`, nor one of the short ones beside it.
    """
    for name, value in settings.items():
        if name not in TRACED and name not in _SHORT:
            allowed = ", ".join((*TRACED, *_SHORT))
            raise ValueError(
                f"settings: {name!r} cannot be given to a compiled run; allowed are {allowed}"
            )
        section, field = _SHORT.get(name, name).split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def _check(config: Config, own_game: bool) -> None:
    if config.env.name not in GAMES and not own_game:
        raise ValueError(
            f"env.name={config.env.name} runs on the host; inside one program there are {', '.join(GAMES)}"
        )
    if config.model.path is not None:
        raise ValueError("model.path: games have a language of their own; leave it out")
    for name, off in (("top_k", 0), ("top_p", 1.0)):
        if getattr(config.rollout, name) != off:
            raise ValueError(
                f"rollout.{name}: one program samples from all tokens; leave it at {off}"
            )
    rows, mini = config.rollout.batch_size * config.rollout.n, config.actor.ppo_mini_batch_size
    if rows % mini:
        raise ValueError(
            f"actor.ppo_mini_batch_size={mini} must divide the {rows} attempts of an iteration"
        )


def _offers(config: Config, policy: Policy) -> tuple[str, ...]:
    critic = policy.value is not None
    return ("anchors", *["critic"] * critic, *["group"] * (config.rollout.n > 1))


def _shape(config: Config, vocab_size: int) -> Any:
    model = config.model
    names = ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
    own = {name: getattr(model, name) for name in (*names, "value_head", "dtype", "param_dtype")}
    return decoder_config(model.preset, vocab_size=vocab_size, remat=model.remat, **own)


def _make_grow(
    config: Config, policy: Policy, method: Algorithm, worded_V: Any, game: Game | None
) -> Callable[..., GrownBatch]:
    """The rollouts of the configured method."""
    env, name = make_game(config.env, row=game), config.algorithm.name
    sampling, branch = sampling_of(config.rollout), config.algorithm.branch

    def grow(
        state: TrainState, key: jax.Array, task_N: jax.Array, sample_N: jax.Array, own: Config
    ) -> GrownBatch:
        rows = (policy, env, state.params, key, task_N, sample_N, sampling)
        if name == "branpo":
            return grow_branpo(*rows, own.rollout.n, branch)
        if name not in ("appo", "arpo"):
            return grow_plain(*rows, "anchors" in method.needs)

        def log_ratio(batch: StepBatch) -> jax.Array:
            _, frozen = split_trainable(state.params, own.model.freeze)
            before = combine(state.carried["previous"], frozen)
            found = score(policy, before, batch, sampling.temperature, own.model.logprob_chunk)
            return batch.logprob_NT - found.logprob_NT

        told = log_ratio if "previous" in state.carried else None
        gamma = own.algorithm.gamma
        worded = jnp.asarray(worded_V)
        return grow_by_score(*rows, own.rollout.n, branch, name, worded, gamma, told)

    return grow


def _success(batch: StepBatch, task_N: jax.Array, config: Config) -> jax.Array:
    """Share of solved among the attempts that began anew; they are the first rows."""
    rows = task_N.shape[0]
    if config.algorithm.name in ("appo", "arpo"):
        n = config.rollout.n
        rows = rows // n * begin_anew(config.algorithm.branch, n)
    return jnp.mean(batch.success_N[:rows].astype(jnp.float32))


def _make_warm_start(
    config: Config, policy: Policy, game: Game | None
) -> Callable[[jax.Array], tuple[Params, Metrics]]:
    if not config.sft.steps:
        return lambda key: (policy.init(jax.random.split(key)[0]), {})
    optimizer = make_sft_optimizer(config.sft)
    update = make_sft_update(policy, optimizer, config.model.logprob_chunk, config.model.freeze)
    env, play = make_game(config.env, shown=True, row=game), player_of(config.env, row=game)
    size = config.sft.batch_size

    def warm_start(key: jax.Array) -> tuple[Params, Metrics]:
        init_key, data_key = jax.random.split(key)
        params = policy.init(init_key)

        def step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            task_N = state.iteration * size + jnp.arange(size, dtype=jnp.int32)
            batch = demonstrations(env, play, jax.random.fold_in(data_key, state.iteration), task_N)
            return update(state, batch)

        trainable, _ = split_trainable(params, config.model.freeze)
        state = TrainState(params, optimizer.init(trainable), jnp.zeros((), jnp.int32))
        state, metrics = jax.lax.scan(step, state, length=config.sft.steps)
        return state.params, metrics

    return warm_start
