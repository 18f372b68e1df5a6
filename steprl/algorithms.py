"""Methods as data: a name, which credit, which loss, what a run must offer, and where it branches.

To add a method, write its credit as a function of a batch and the critic's values, and add a line
to `ALGORITHMS`; one that branches names its kind of branches there (`steprl.branching`).
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.branching import Branching, ByScore, Contrast, first_after_tool, sampled_nonblank
from steprl.carried import PREVIOUS, Carry
from steprl.config import AlgorithmConfig
from steprl.config.import_path import call_function
from steprl.ops import (
    appo_advantages,
    appo_reward_scale,
    branch_attempts,
    branch_preference,
    branpo_advantages,
    branpo_masks,
    broadcast_steps,
    discounted_returns,
    future_kl_policy_loss,
    gigpo_advantages,
    group_advantages,
    masked_whiten,
    policy_loss,
    reduce_steps,
    reinforce_pp_advantages,
    reinforce_pp_baseline_advantages,
    step_gae,
    step_starts,
    token_gae,
)
from steprl.types import Branches, StepBatch


def future_kl_loss(
    *arrays: jax.Array, config: AlgorithmConfig, level: str, **settings: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of APPO in the form of `policy_loss`; its ratio is that of a token."""
    future = config.future_kl
    return future_kl_policy_loss(
        *arrays,
        weight=future.weight,
        decay=future.decay,
        future_clip=future.clip,
        high_only=future.high_only,
        safety=future.safety,
        **settings,
    )


def clipped_loss(
    *arrays: jax.Array, config: AlgorithmConfig, **settings: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`policy_loss`, which needs no settings of the method."""
    return policy_loss(*arrays, **settings)


class Credit(NamedTuple):
    """What the update learns from, by token; 0 and False where there is nothing to learn."""

    advantage_NT: jax.Array
    return_NT: jax.Array  # target of the critic
    critic_mask_NT: jax.Array  # tokens before which the critic is evaluated


class Algorithm(NamedTuple):
    """One row of the table."""

    credit: Callable[[StepBatch, jax.Array, AlgorithmConfig], Credit]
    ratio_level: str  # "token", "step" or "sequence"
    reduction: str  # of the loss, where actor.loss_agg_mode leaves it open
    needs: tuple[str, ...] = ()  # what a run must offer, keys of `REQUIREMENTS`
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]] = clipped_loss
    carries: tuple[Carry, ...] = ()  # what its rollouts need from the last update
    branching: Branching | None = None  # how its rollouts branch
    family: str = "other"  # methods that are drawn alike


_to_tokens = jax.vmap(broadcast_steps)


def step_discounts(batch: StepBatch, gamma: float) -> jax.Array:
    """[N, S] gamma where a step follows, 0 at the last one: truncation counts as an end."""
    follows = jnp.pad(batch.mask_NS[:, 1:], ((0, 0), (0, 1)))
    return gamma * follows.astype(jnp.float32)


def reward_of_tokens(batch: StepBatch) -> jax.Array:
    """[N, T] the reward of each step at its last token."""
    last_NT = jax.vmap(lambda ids_t: step_starts(ids_t[::-1])[::-1])(batch.step_ids_NT)
    return jnp.where(last_NT, _to_tokens(batch.reward_NS, batch.step_ids_NT), 0.0)


def scores(batch: StepBatch) -> jax.Array:
    """[N] undiscounted return of each trajectory."""
    return jnp.sum(jnp.where(batch.mask_NS, batch.reward_NS, 0.0), axis=1)


def group_ids(batch: StepBatch, singleton: str = "zero") -> jax.Array:
    """[N] int32 below N, the same for attempts at the same task; -1 for a row without any step.

    Args:
        singleton: "zero": a row that is the only one of its task has no group either, as there is
            nothing to compare it with; "score": it has one of its own.
    """
    task_N, there_N = batch.task_N, jnp.any(batch.mask_NS, axis=1)
    rows = task_N.shape[0]
    ids_N = jnp.unique(task_N, return_inverse=True, size=rows)[1].reshape(task_N.shape)
    size_N = jax.ops.segment_sum(there_N.astype(jnp.int32), ids_N, rows)[ids_N]
    grouped_N = there_N if singleton == "score" else there_N & (size_N > 1)
    return jnp.where(grouped_N, ids_N.astype(jnp.int32), -1)


# --- With a critic --------------------------------------------------------------------------------


def step_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """StepPO (arXiv 2604.18401): GAE over steps; all tokens of a step share its advantage.

    The critic is evaluated once a step, before its first token.
    """
    steps = batch.reward_NS.shape[1]
    first = jax.vmap(lambda value_t, ids_t: reduce_steps(value_t, ids_t, steps, "first"))
    value_NS = first(value_NT, batch.step_ids_NT)
    gae = jax.vmap(step_gae, in_axes=(0, 0, 0, None))
    advantage_NS = gae(batch.reward_NS, step_discounts(batch, config.gamma), value_NS, config.lam)
    return_NS = advantage_NS + value_NS
    if config.norm_adv:
        advantage_NS = masked_whiten(advantage_NS, batch.mask_NS, epsilon_at="std")
    return Credit(
        advantage_NT=_to_tokens(advantage_NS, batch.step_ids_NT),
        return_NT=_to_tokens(return_NS, batch.step_ids_NT),
        critic_mask_NT=jax.vmap(step_starts)(batch.step_ids_NT),
    )


def token_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """PPO for language models (arXiv 1707.06347): GAE over the sampled tokens of a trajectory.

    The reward of a step arrives with its last token; the critic is evaluated before every token.
    """
    active_NT = batch.step_ids_NT >= 0
    last_NT = jax.vmap(lambda ids_t: step_starts(ids_t[::-1])[::-1])(batch.step_ids_NT)
    follows_NT = _to_tokens(step_discounts(batch, 1.0), batch.step_ids_NT)
    discount_NT = config.gamma * jnp.where(last_NT, follows_NT, 1.0)
    gae = jax.vmap(token_gae, in_axes=(0, 0, 0, None, 0))
    advantage_NT = gae(
        reward_of_tokens(batch), discount_NT, value_NT, config.lam, batch.step_ids_NT
    )
    return_NT = jnp.where(active_NT, advantage_NT + value_NT, 0.0)
    if config.norm_adv:
        advantage_NT = masked_whiten(advantage_NT, active_NT)
    return Credit(advantage_NT, return_NT, active_NT)


# --- Without ---------------------------------------------------------------------------------------


def _without_critic(advantage_NT: jax.Array) -> Credit:
    nothing_NT = jnp.zeros(advantage_NT.shape, bool)
    return Credit(advantage_NT, jnp.zeros_like(advantage_NT), nothing_NT)


def group_credit(kind: str) -> Callable[[StepBatch, jax.Array, AlgorithmConfig], Credit]:
    """A trajectory against the other attempts at its task: GRPO (arXiv 2402.03300), Dr.GRPO
    (arXiv 2503.20783), RLOO (arXiv 2402.14740); all its tokens share the advantage."""

    def credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
        rows = batch.task_N.shape[0]
        advantage_N = group_advantages(
            scores(batch), group_ids(batch, config.singleton), rows, kind, min_std=config.min_std
        )
        active_NT = batch.step_ids_NT >= 0
        return _without_critic(jnp.where(active_NT, advantage_N[:, None], 0.0))

    return credit


def reinforce_pp_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """REINFORCE++ (arXiv 2501.03262): returns of tokens, whitened over the tokens of the batch."""
    advantage_NT, _ = reinforce_pp_advantages(
        reward_of_tokens(batch), batch.step_ids_NT, config.gamma
    )
    return _without_critic(advantage_NT)


def reinforce_pp_baseline_credit(
    batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig
) -> Credit:
    """REINFORCE++ with the mean of the group as baseline, whitened over the tokens of the batch."""
    ids_N, rows = group_ids(batch, config.singleton), batch.task_N.shape[0]
    return _without_critic(
        reinforce_pp_baseline_advantages(scores(batch), ids_N, rows, batch.step_ids_NT)
    )


def gigpo_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """GiGPO (arXiv 2505.10978): the trajectory in its group, and each step among the steps of the
    group that saw the same."""
    assert batch.anchor_NS is not None, "gigpo needs the anchors of the batch"
    returns = jax.vmap(discounted_returns)
    advantage_NS = gigpo_advantages(
        scores(batch),
        group_ids(batch, config.singleton),
        batch.task_N.shape[0],
        returns(batch.reward_NS, step_discounts(batch, config.gamma)),
        batch.anchor_NS,
        batch.mask_NS.size,
        step_weight=config.step_advantage_w,
        min_std=config.min_std,
        where=batch.mask_NS,
    )
    return _without_critic(_to_tokens(advantage_NS, batch.step_ids_NT))


def branpo_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """BranPO (arXiv 2602.03719): the shared prefix by the mean of its suffixes, each suffix among
    all of its task, and nothing for the redundant step of a suffix that was right but longer."""
    branches, score_N, rows = _branches(batch), scores(batch), batch.task_N.shape[0]
    is_original_N = branches.origin_N == jnp.arange(rows)
    masks = branpo_masks(batch.step_ids_NT, branches.step_N, is_original_N)
    total_N = jax.ops.segment_sum(score_N, branches.origin_N, rows)
    number_N = jax.ops.segment_sum(jnp.ones_like(score_N), branches.origin_N, rows)
    advantage_NT = branpo_advantages(
        total_N / jnp.maximum(number_N, 1.0),
        score_N,
        branches.preference_N,
        group_ids(batch, config.singleton),
        rows,
        *masks,
        redundant=config.redundant,
        singleton=config.singleton,
    )
    return _without_critic(advantage_NT)


def appo_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """APPO (arXiv 2606.12384): originals and branches each in a group of their own; what a branch
    is worth against the others goes to the prefix that it shares with its original."""
    branches, rows = _branches(batch), batch.task_N.shape[0]
    row_N = jnp.arange(rows)
    is_original_N = branches.origin_N == row_N
    reward_NT = appo_reward_scale(
        reward_of_tokens(batch),
        branches.origin_N,
        branches.token_N,
        branches.score_N,
        ~is_original_N,
        discount=config.reward_scale_discount,
    )
    advantage_NT = appo_advantages(
        jnp.sum(reward_NT, axis=1),
        group_ids(batch, config.singleton),
        rows,
        is_original_N,
        batch.step_ids_NT >= 0,
        branches.origin_N,
        row_N,
        branches.token_N,
    )
    return _without_critic(advantage_NT)


def _branches(batch: StepBatch) -> Branches:
    """Those of the batch; a row of a batch without any is its own origin, as is one without a step and
    one whose origin has none, because it was left out."""
    branches, there_N = batch.branches, jnp.any(batch.mask_NS, axis=1)
    row_N = jnp.arange(there_N.shape[0], dtype=jnp.int32)
    if branches is None:
        zero_N = jnp.zeros_like(row_N)
        return Branches(row_N, zero_N, zero_N - 1, jnp.zeros(row_N.shape), zero_N)
    there_N = there_N & there_N[branches.origin_N]
    return branches._replace(
        origin_N=jnp.where(there_N, branches.origin_N, row_N),
        token_N=jnp.where(there_N, branches.token_N, -1),
        score_N=jnp.where(there_N, branches.score_N, 0.0),
        preference_N=jnp.where(there_N, branches.preference_N, 0),
    )


# --- The table -------------------------------------------------------------------------------------

STEPS, TOKENS, ROWS = "step-mean-token-mean", "token-mean", "seq-mean-token-mean"

STEP, TOKEN, GROUP, BRANCHES = "step credit", "token credit", "group", "branches"

ALGORITHMS: dict[str, Algorithm] = {
    "steppo": Algorithm(step_credit, "step", STEPS, ("critic",), family=STEP),
    "ppo": Algorithm(token_credit, "token", TOKENS, ("critic",), family=TOKEN),
    "grpo": Algorithm(group_credit("grpo"), "token", ROWS, ("group",), family=GROUP),
    "dr_grpo": Algorithm(
        group_credit("dr_grpo"), "token", "seq-mean-token-sum-norm", ("group",), family=GROUP
    ),
    "rloo": Algorithm(
        group_credit("rloo"), "token", "seq-mean-token-sum", ("group",), family=GROUP
    ),
    "reinforce_pp": Algorithm(reinforce_pp_credit, "token", TOKENS, family=TOKEN),
    "reinforce_pp_baseline": Algorithm(
        reinforce_pp_baseline_credit, "token", TOKENS, ("group",), family=TOKEN
    ),
    "gspo": Algorithm(group_credit("grpo"), "sequence", ROWS, ("group",), family=GROUP),
    "gigpo": Algorithm(gigpo_credit, "token", STEPS, ("group", "anchors"), family=STEP),
    "branpo": Algorithm(
        branpo_credit, "token", TOKENS, ("group",), family=BRANCHES,
        branching=Contrast(attempts=branch_attempts, preference=branch_preference),
    ),
    "appo": Algorithm(
        appo_credit, "token", TOKENS, ("group",), future_kl_loss, (PREVIOUS,), family=BRANCHES,
        branching=ByScore(sampled_nonblank, keep_token=True, future_value=True),
    ),
    # ARPO (arXiv 2507.19849): branches are attempts like others, so a prefix is credited by all that
    # came of it.
    "arpo": Algorithm(
        group_credit("grpo"), "token", TOKENS, ("group",), family=BRANCHES,
        branching=ByScore(first_after_tool, keep_token=False),
    ),
}  # fmt: skip

REQUIREMENTS = {
    "critic": "learns from a critic, and model.value_head=none has none: "
    "set model.value_head=shared or separate",
    "group": "compares attempts at the same task, and rollout.n=1 makes one at each: "
    "set rollout.n=8 (and rollout.batch_size, the number of tasks, accordingly)",
    "anchors": "compares steps that saw the same, and this run does not say what a step saw",
}


def algorithm(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Algorithm:
    """The method of that name.

    Args:
        name: key of `ALGORITHMS`, or `package.module:function`, which returns an `Algorithm`.
        options: arguments of that function, as in `algorithm.options`.

    Raises:
        ValueError: no such method, or no such function, or it returns something else.
    """
    if ":" in name:
        method = call_function(name, options, "algorithm")
        if not isinstance(method, Algorithm):
            raise ValueError(
                f"algorithm.name={name!r} returned {type(method).__name__}; expected a "
                "steprl.algorithms.Algorithm"
            )
        return method
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(ALGORITHMS)}"
        raise ValueError(
            f"algorithm.name={name!r} is unknown: {hint}, or your own as package.module:function"
        )
    if options:
        raise ValueError("algorithm.options are for a method of your own, package.module:function")
    return ALGORITHMS[name]


def check_needs(method: Algorithm, source: str, offers: Sequence[str]) -> None:
    """Raises ValueError where a run lacks what its method needs.

    Args:
        source: how the method was given, such as "algorithm.name=grpo", for messages.
        offers: what the run has, of the keys of `REQUIREMENTS`.
    """
    unknown = [need for need in method.needs if need not in REQUIREMENTS]
    if unknown:
        raise ValueError(f"{source} needs {unknown[0]!r}; needs are {', '.join(REQUIREMENTS)}")
    # The last need is the one that is hardest to provide: the message names it.
    for need in reversed(method.needs):
        if need not in offers:
            raise ValueError(f"{source} {REQUIREMENTS[need]}")
