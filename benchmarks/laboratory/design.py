"""What is compared: methods, cells, budgets, and what is tuned."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.algorithms import ALGORITHMS, Algorithm, step_credit, token_credit
from steprl.config import Config, load_config

STEPS = "step-mean-token-mean"


class Method(NamedTuple):
    """A method of the table: whose rollouts it gets, and which credit and ratio."""

    name: str  # of `algorithm.name`
    algorithm: Algorithm
    step_lambda: bool = (
        False  # GAE over tokens decays over an action as GAE over steps does over one
    )


METHODS: dict[str, Method] = {
    name: Method(name, ALGORITHMS[name])
    for name in (
        "steppo", "ppo", "grpo", "rloo", "reinforce_pp", "gspo", "gigpo", "branpo", "appo", "arpo"
    )
}  # fmt: skip
# One thing changed at a time: credit of steps or tokens, ratio of steps or tokens.
METHODS |= {
    "step_credit_token_ratio": Method(
        "steppo", Algorithm(step_credit, "token", STEPS, ("critic",))
    ),
    "token_credit_step_ratio": Method("ppo", Algorithm(token_credit, "step", STEPS, ("critic",))),
    "ppo_step_lambda": Method("ppo", ALGORITHMS["ppo"], step_lambda=True),
}
LAMBDA = 0.95  # where it is not tuned
ABLATION = ("steppo", "step_credit_token_ratio", "token_credit_step_ratio", "ppo")
TUNED_TOGETHER = (*ABLATION, "ppo_step_lambda")
WITHOUT_CRITIC = ("grpo", "reinforce_pp")  # in the longest cells, beside those with one

# How the critic is made and trained, of all methods that have one: what measured best.
CRITIC: tuple[str, ...] = ("model.value_head=shared",)


class Cell(NamedTuple):
    """A game in one size; `horizon` and `tokens` are those of an optimal play."""

    title: str
    horizon: int
    tokens: int  # of an action
    overrides: tuple[str, ...]
    warm_steps: int
    slower: float = 1.0  # by what the learning rate is divided


def _errand(title: str, horizon: int, tokens: int, steps: int) -> Cell:
    long = [] if horizon > 4 else ["env.errand.hidden=false", "env.errand.transform=false"]
    many = [] if horizon < 16 else [f"env.errand.errands={horizon // 8}"]
    thought = [f"env.game.thought_tokens={tokens - 2}"] if tokens > 2 else []
    return Cell(title, horizon, tokens, ("env.name=errand", *long, *many, *thought), steps)


CELLS: dict[str, Cell] = {
    "errand-4": _errand("errand, 4 steps", 4, 2, 500),
    "errand-8": _errand("errand, 8 steps", 8, 2, 1000),
    "errand-16": _errand("errand, 16 steps", 16, 2, 2500),
    "errand-32": _errand("errand, 32 steps", 32, 2, 4000),
    "errand-8-long": _errand("errand, 8 steps of 8 tokens", 8, 8, 3000),
    # At the learning rate tuned on short actions, success was 0 within 10 iterations in 48 runs of 48.
    "errand-8-longer": _errand("errand, 8 steps of 32 tokens", 8, 32, 3000)._replace(slower=5.0),
    "shop-8": Cell(
        "shop, 8 steps", 8, 2,
        ("env.name=shop", "env.shop.demo_lazy=0.5", "env.shop.demo_first=0.3"), 1500,
    ),
    "multihop-7": Cell(
        "multihop, 3 to 7 steps", 7, 4, ("env.name=multihop", "env.multihop.max_hops=6"), 1500
    ),
}  # fmt: skip
TUNED_ON = "errand-8"
STANDARD = ("errand-8", "errand-16", "errand-8-long", "errand-4", "multihop-7", "shop-8")
BY_HORIZON = ("errand-4", "errand-8", "errand-16", "errand-32")
BY_TOKENS = ("errand-8", "errand-8-long", "errand-8-longer")

# An iteration of a method without branches samples about as many tokens as this many times its
# episodes, if all last to the limit.
ITERATIONS = 40
CHUNK = 10  # iterations of one call
HELDOUT = 256  # episodes of the last evaluation of each run


class Point(NamedTuple):
    """What is tuned; a method without a critic does not see the last two."""

    lr: float
    clip: float  # share of the tokens that is clipped
    critic: float = 1.0  # the critic's learning rate over the policy's
    # Of GAE: lambda is 1 - decay / horizon, so that credit reaches the same share of an episode in
    # games of every length.
    decay: float = 0.4


# The tuning of every method: 12 points, 6 seeds each, which no run of the table has; from gentle to harsh.
# (With 2 seeds, a second tuning chose other points for 7 methods of 13.) A method with a critic tries
# settings of the critic where others try more learning rates and clips: the same number of runs.
GRID_WITHOUT = tuple(
    Point(lr, clip) for lr in (2.5e-4, 5e-4, 1e-3, 2e-3) for clip in (0.02, 0.05, 0.1)
)
GRID_WITH = tuple(
    Point(lr, 0.1, critic, decay)
    for lr in (5e-4, 1e-3, 2e-3)
    for critic in (1.0, 3.0)
    for decay in (0.8, 0.2)
)
TUNING_SEEDS, SEEDS = 6, 12
LANES = 12  # runs of one program


def has_critic(method: str) -> bool:
    """Whether the method trains one."""
    return "critic" in METHODS[method].algorithm.needs


def grid_of(method: str) -> tuple[Point, ...]:
    """The points that the method is tuned over; as many for all."""
    return GRID_WITH if has_critic(method) else GRID_WITHOUT


class Scale(NamedTuple):
    """How much is run."""

    cells: tuple[str, ...]
    seeds: int
    tune: bool  # else the settings are those of the committed result
    methods: tuple[str, ...] = tuple(METHODS)


SCALES = {
    "quick": Scale((TUNED_ON,), 4, False),
    "standard": Scale(STANDARD, SEEDS, True),
    "effects": Scale(
        ("errand-32", "errand-8-longer"), SEEDS, True, (*TUNED_TOGETHER, *WITHOUT_CRITIC)
    ),
    "full": Scale(tuple(CELLS), 36, True),
}


def config_of(cell: str, method: str, more: Sequence[str] = ()) -> Config:
    """The configuration of a run, `more` overriding it; what is tuned is given to the program."""
    return load_config(overrides=[*overrides_of(cell, method), *more])


def overrides_of(cell: str, method: str) -> list[str]:
    """The settings of a run, without what is tuned."""
    return [
        *CELLS[cell].overrides,
        f"algorithm.name={METHODS[method].name}",
        "algorithm.gamma=1.0",
        f"algorithm.lam={LAMBDA}",
        "model.preset=tiny", "model.d_model=32", "model.d_ff=96", "model.num_heads=2",
        "model.num_kv_heads=2", "model.head_dim=16",
        *(CRITIC if has_critic(method) else ("model.value_head=none",)),
        f"sft.steps={CELLS[cell].warm_steps}", "sft.batch_size=64", "sft.lr=2e-3",
        "rollout.batch_size=8", "rollout.n=8",
        "actor.ppo_epochs=2", "actor.ppo_mini_batch_size=32", "actor.lr_schedule=constant",
        f"trainer.total_training_steps={ITERATIONS}",
    ]  # fmt: skip


def token_budget(cell: str) -> int:
    """Tokens that every run of a cell samples: those of branches count like others."""
    config, game = config_of(cell, "ppo"), CELLS[cell]
    episodes = ITERATIONS * config.rollout.batch_size * config.rollout.n
    return int(0.9 * episodes * (game.horizon + 2) * game.tokens)


def settings_of(points: Sequence[Point], cell: str, method: str) -> dict[str, jax.Array]:
    """What differs between runs of one program, [runs] each."""
    lr, clip, critic, decay = jnp.asarray(points, jnp.float32).T
    lam = 1 - decay / CELLS[cell].horizon
    if METHODS[method].step_lambda:
        lam = lam ** (1 / CELLS[cell].tokens)
    return {
        "actor.lr": lr,
        "critic.lr": critic * lr,
        "algorithm.lam": lam,
        "clip_fraction": clip,
        "token_budget": jnp.full_like(lr, token_budget(cell)),
    }
