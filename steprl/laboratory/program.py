"""A whole run as one compiled program: environment, language model and update, without the host.

    train = make_train(config)
    params, metrics = jax.jit(jax.vmap(train))(jax.random.split(key, 10))        # ten seeds
    params, metrics = jax.jit(lambda keys: jax.lax.map(train, keys))(keys)       # on a CPU faster
    params, metrics = jax.jit(jax.vmap(train, (None, None, 0)))(key, None, {"actor.lr": rates})

Everything is a pure function of a key, so seeds, and settings that are numbers, are one more axis.
Where the keys are laid over the devices of a mesh, each device trains its own seeds.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.algorithms import Algorithm, check_needs
from steprl.branching import initial_attempts, make_plan
from steprl.carried import share_spent
from steprl.config import Config
from steprl.envs.games import Game
from steprl.envs.opening import game_of, open_game
from steprl.envs.privileged import privileged_game
from steprl.envs.suite import Suite, suite_of
from steprl.models import decoder_config, make_policy
from steprl.models.tokenizer import detokenize, phrase_tokenizer
from steprl.models.values import value_support
from steprl.optimizer import make_rl_optimizer, make_sft_optimizer, split_trainable
from steprl.rollout import demonstrations, rollout, summary
from steprl.rollout.anchors import with_device_anchors
from steprl.rollout.device_growth import GrownBatch, grow
from steprl.sampling import Sampling, sampling_of
from steprl.session.checks import check_critic, reads_privileged
from steprl.session.language import own_policy
from steprl.session.method import method_of
from steprl.sft import make_sft_update
from steprl.types import Params, Policy, StepBatch
from steprl.update import Metrics, TrainState, initial_state, make_update, sizes_in_rows

Settings = Mapping[str, Any]
"""Numbers of the configuration by their dotted names; they may be traced."""

TRACED = (
    "actor.lr",
    "actor.grad_clip",
    "actor.clip_ratio_low",
    "actor.clip_ratio_high",
    "actor.entropy_coeff",
    "algorithm.gamma",
    "algorithm.lam",
    "critic.lr",
    "critic.grad_clip",
    "critic.vf_coef",
    "trainer.critic_warmup",
)
"""The settings that may be an array, and so differ along an axis of `vmap`. Two more have short names:

    clip_fraction  `actor.clip_fraction`: the clip of the ratio moves until this share of the tokens is
                   clipped, so that ratios of tokens, steps and sequences are held back alike
    token_budget   `trainer.token_budget`: a run stops training when it has sampled this many tokens:
                   from then on its metrics are NaN, but for `token/decoded`, 0, and `token/total`
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
    game: Game  # that is played


def make_program(
    config: Config,
    method: Algorithm | None = None,
    env: Game | Suite | None = None,
    policy: Any = None,
) -> Program:
    """The parts of a run of `config`, whose environment is a game on the device.

    Args:
        config: sizes and the names of things are fixed; numbers of `TRACED` may be given anew with
            each call. `trainer.seed`, files, checkpoints and the mesh play no part.
        method: in place of the one that `algorithm.name` names.
        env: a game of your own in place of the one that `env.name` names. `env.game` holds.
        policy: see `steprl.models.modules.as_policy`, in place of the decoder of `model`.
            `model.freeze` and `logprob_chunk` hold.

    Raises:
        ValueError: the environment is not on the device, settings do not fit each other, or a game
            or policy of one's own breaks its contract; says where.
    """
    _check(config)
    game = open_game(config.env) if env is None else game_of(suite_of(env, config.env.game))
    tokenizer = phrase_tokenizer(game.vocabulary)
    is_decoder = policy is None and config.model.name is None
    if is_decoder:
        policy = make_policy(_shape(config, len(tokenizer)))
    else:
        policy = own_policy(config, policy, len(tokenizer))
    method, source = method_of(config, method)
    check_needs(method, source, _offers(config, policy))
    check_critic(config, method, policy, not is_decoder)
    has_own_critic = is_decoder and config.model.value_head == "separate"
    if reads_privileged(config, method, has_own_critic):
        game = privileged_game(game, f"env.name={config.env.name}" if env is None else "the game")
    texts = [detokenize(tokenizer, [token]) for token in range(len(tokenizer))]
    gather = _make_gather(config, policy, method, texts, game)
    rows = config.rollout.batch_size * config.rollout.n
    has_critic = "critic" in method.needs

    def begin(params: Params, settings: Settings | None = None) -> TrainState:
        config_now = with_settings(config, settings or {})
        optimizer = make_rl_optimizer(config_now, has_critic)
        return initial_state(params, optimizer, config_now, method)

    def iterate(
        state: TrainState, key: jax.Array, settings: Settings | None = None
    ) -> tuple[TrainState, Metrics]:
        config_now = with_settings(config, settings or {})
        budget = (
            jnp.inf if config_now.trainer.token_budget is None else config_now.trainer.token_budget
        )
        run_iteration = lambda state: play_and_learn(state, key, config_now)  # noqa: E731
        _, shapes = jax.eval_shape(run_iteration, state)

        def skip_iteration(state: TrainState) -> tuple[TrainState, Metrics]:
            nothing = {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in shapes.items()}
            known = {"token/decoded": jnp.zeros(()), "token/total": state.carried["tokens"]}
            return state, nothing | known

        # Without vmap a stopped run costs nothing; under vmap, all compute until the last one stops.
        return jax.lax.cond(state.carried["tokens"] >= budget, skip_iteration, run_iteration, state)

    def play_and_learn(
        state: TrainState, key: jax.Array, config_now: Config
    ) -> tuple[TrainState, Metrics]:
        spent = share_spent(config_now, state.carried)
        optimizer = make_rl_optimizer(config_now, has_critic, spent)
        task_key, play_key, update_key = jax.random.split(key, 3)
        # Each run has tasks of its own.
        first = (
            jax.random.randint(task_key, (), 0, 2**30)
            + state.iteration * config_now.rollout.batch_size
        )
        attempt_N = jnp.arange(rows, dtype=jnp.int32)
        task_N = first + attempt_N // config_now.rollout.n
        grown = gather(state, play_key, task_N, attempt_N % config_now.rollout.n, config_now)
        metrics: Metrics = summary(grown.batch) | {
            "rollout/success_rate": _success(grown.batch, method, config_now),
            "token/decoded": grown.usage.decoded,
            "branch/count": grown.report.get("branch/count", jnp.zeros((), jnp.int32)),
            "actor/clip_ratio": jnp.asarray(config_now.actor.clip_ratio_high),
        }
        update = make_update(policy, method, optimizer, sizes_in_rows(config_now, method.branching))
        update_key = jax.random.fold_in(update_key, state.iteration)
        state, learnt = update(state, grown.batch, update_key, grown.usage.decoded)
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in (metrics | learnt).items()}

    def evaluate(
        params: Params, key: jax.Array, attempts: int, temperature: float | jax.Array = 1.0
    ) -> jax.Array:
        task_N = jnp.arange(attempts, dtype=jnp.int32)
        batch = rollout(
            policy,
            game.make(True),
            params,
            key,
            task_N,
            jnp.zeros_like(task_N),
            Sampling(temperature),
        )
        return batch.success_N

    return Program(policy, _make_warm_start(config, policy, game), begin, iterate, evaluate, game)


def make_train(
    config: Config,
    method: Algorithm | None = None,
    env: Game | Suite | None = None,
    policy: Any = None,
) -> Callable[..., tuple[Params, Metrics]]:
    """`train(key, params=None, settings=None) -> (params, metrics)`, to be compiled and mapped.

    A warm start of `sft.steps`, unless parameters are given, then `trainer.total_training_steps`
    iterations in one `lax.scan`. Metrics are those of the iterations, [iterations] each.

    Args:
        config, method, env, policy: see `make_program`.

    Raises:
        ValueError: as `make_program`; or a name in `settings` is not one of `TRACED`.
    """
    program = make_program(config, method, env, policy)

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


def _check(config: Config) -> None:
    if config.sft.until is not None:
        raise ValueError(
            "sft.until: one program makes a warm start of sft.steps, the same for all; leave it out"
        )
    if config.model.path is not None:
        raise ValueError("model.path: games have a language of their own; leave it out")
    if config.model.lora.rank:
        raise ValueError(
            f"model.lora.rank={config.model.lora.rank}: one program trains the parameters themselves; "
            "leave it at 0"
        )
    for name, off in (("top_k", 0), ("top_p", 1.0)):
        if getattr(config.rollout, name) != off:
            raise ValueError(
                f"rollout.{name}: one program samples from all tokens; leave it at {off}"
            )
    rows = config.rollout.batch_size * config.rollout.n
    for section, mini in (
        ("actor", config.actor.ppo_mini_batch_size),
        ("critic", config.critic.ppo_mini_batch_size),
    ):
        if mini is not None and rows % mini:
            raise ValueError(
                f"{section}.ppo_mini_batch_size={mini} must divide the {rows} attempts of an iteration"
            )


def _offers(config: Config, policy: Policy) -> tuple[str, ...]:
    critic = policy.value is not None
    return ("anchors", *["critic"] * critic, *["group"] * (config.rollout.n > 1))


def _shape(config: Config, vocab_size: int) -> Any:
    model = config.model
    names = ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
    fields = {name: getattr(model, name) for name in (*names, "value_head", "dtype", "param_dtype")}
    support = value_support(config.critic)
    return decoder_config(
        model.preset, vocab_size=vocab_size, remat=model.remat, value_support=support, **fields
    )


def _make_gather(
    config: Config, policy: Policy, method: Algorithm, texts: Sequence[str], game: Game
) -> Callable[..., GrownBatch]:
    """The rollouts of the method."""
    env, sampling = game.make(False), sampling_of(config.rollout)
    plan = make_plan(config, method.branching, policy, texts)

    def gather(
        state: TrainState,
        key: jax.Array,
        task_N: jax.Array,
        sample_N: jax.Array,
        config_now: Config,
    ) -> GrownBatch:
        # The discount may be traced.
        now = None if plan is None else dataclasses.replace(plan, gamma=config_now.algorithm.gamma)
        rows = (state.params, key, task_N, sample_N)
        grown = grow(policy, env, now, *rows, sampling, state.carried.get("previous"))
        if "anchors" in method.needs:
            return grown._replace(batch=with_device_anchors(env, grown.batch))
        return grown

    return gather


def _success(batch: StepBatch, method: Algorithm, config: Config) -> jax.Array:
    """Share of solved among the attempts that began anew; they are the first rows."""
    n = config.rollout.n
    initial = initial_attempts(method.branching, config.algorithm.branch, n)
    solved_N = batch.success_N[: config.rollout.batch_size * initial]
    return jnp.mean(solved_N.astype(jnp.float32))


def _make_warm_start(
    config: Config, policy: Policy, game: Game
) -> Callable[[jax.Array], tuple[Params, Metrics]]:
    if not config.sft.steps:
        return lambda key: (policy.init(jax.random.split(key)[0]), {})
    optimizer = make_sft_optimizer(config.sft)
    model = config.model
    update = make_sft_update(
        policy, optimizer, model.logprob_chunk, model.freeze, model.train_layers
    )
    if game.demonstrate is None:
        raise ValueError(
            f"sft.steps={config.sft.steps}: the game shows no demonstrations; give "
            "Game(demonstrate=...), or set sft.steps=0"
        )
    env, play, size = game.shown(), game.demonstrate, config.sft.batch_size

    def warm_start(key: jax.Array) -> tuple[Params, Metrics]:
        init_key, data_key = jax.random.split(key)
        params = policy.init(init_key)

        def step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            task_N = state.iteration * size + jnp.arange(size, dtype=jnp.int32)
            batch = demonstrations(env, play, jax.random.fold_in(data_key, state.iteration), task_N)
            return update(state, batch)

        trainable, _ = split_trainable(params, config.model.freeze, config.model.train_layers)
        state = TrainState(params, optimizer.init(trainable), jnp.zeros((), jnp.int32))
        state, metrics = jax.lax.scan(step, state, length=config.sft.steps)
        return state.params, metrics

    return warm_start
