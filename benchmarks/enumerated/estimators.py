"""The estimators that are judged, and what each is said to be before it is.

`claim` is the factor c of an estimator that is unbiased, E[g] = c * exact gradient. It follows from
the formulas: 1 where trajectories are averaged and tokens added up; times n / L where the sum is
divided by a constant L instead of the n trajectories; times (n - 1) / n where the baseline is the
mean of a group of n that contains the trajectory itself. None claims nothing: then the factor that
fits best is taken, and what is left is a bias of the direction.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from enumerated.world import MAX_STEPS, ROW_LENGTH, TASKS, Rows

from steprl import ops

ANCHORS = 16  # a bound on the number of states
GAMMA, LAMBDA = 0.9, 0.5
LIMIT = 2  # steps, where there is a time limit
SUM = "seq-mean-token-sum"

Advantage = Callable[[Rows], jax.Array]


class Estimator(NamedTuple):
    """A policy gradient: advantages [N, T] of a batch, put through `ops.policy_loss`."""

    name: str
    setting: str
    advantage: Advantage
    claim: float | None = None
    note: str = ""
    size: int = 1  # trajectories that are drawn together; of each task where draw is "groups"
    draw: str = "mixed"  # see `batches`
    level: str = "token"
    reduction: str = SUM
    constants: Mapping[str, float] = {}  # replace what `ops.aggregation_weights` counts
    objective: str = "return"  # or "step" or "token": which discounted one
    max_steps: int = MAX_STEPS  # longer trajectories are truncated
    keep: Callable[[Rows], jax.Array] | None = None  # bool [N], rows that stay in the loss
    divide_by_kept: bool = True  # else by all rows

    @property
    def title(self) -> str:
        """Names it among all others."""
        return f"{self.name}, {self.setting}, n={self.size}"

    def loss(self, logprob_nt: jax.Array, old_logprob_nt: jax.Array, rows: Rows) -> jax.Array:
        """What training minimises."""
        step_ids_nt, weights_nt = rows.step_ids_nt, None
        if self.constants:
            weights_nt = self._weights(step_ids_nt, logprob_nt.dtype)
        if self.keep is not None:
            kept_nt = jnp.where(self.keep(rows)[:, None], step_ids_nt, -1)
            counted_nt = kept_nt if self.divide_by_kept else step_ids_nt
            weights_nt = self._weights(counted_nt, logprob_nt.dtype)
            step_ids_nt = kept_nt
        return ops.policy_loss(
            logprob_nt,
            old_logprob_nt,
            self.advantage(rows),
            step_ids_nt,
            level=self.level,
            dual_clip=3.0,
            reduction=self.reduction,
            weights_t=weights_nt,
        )[0]

    def _weights(self, step_ids_nt: jax.Array, dtype: Any) -> jax.Array:
        return ops.aggregation_weights(step_ids_nt, self.reduction, dtype=dtype, **self.constants)


def step_gae(
    lambda_: float,
    value: str,
    gamma: float = 1.0,
    *,
    whiten: bool = False,
    weigh: bool = False,
    bootstrap: bool = True,
) -> Advantage:
    """Critic over steps; `value` is "exact", "wrong" or "zero", `weigh` multiplies by gamma^step."""

    def advantage(rows: Rows) -> jax.Array:
        steps = rows.reward_ns.shape[1]
        first = jax.vmap(lambda x_t, ids_t: ops.reduce_steps(x_t, ids_t, steps, "first"))
        value_ns = first(_value(rows, value), rows.step_ids_nt)
        follows_ns, behind_n = rows.follows_ns, rows.exact_behind_n
        if not bootstrap:  # a step that does not follow any more counts as an end
            follows_ns = jnp.pad(rows.mask_ns[:, 1:], ((0, 0), (0, 1))).astype(value_ns.dtype)
        gae = jax.vmap(ops.step_gae, in_axes=(0, 0, 0, None, 0))
        advantage_ns = gae(rows.reward_ns, gamma * follows_ns, value_ns, lambda_, behind_n)
        if whiten:
            advantage_ns = ops.masked_whiten(advantage_ns, rows.mask_ns, epsilon_at="std")
        if weigh:
            advantage_ns = advantage_ns * (gamma ** jnp.arange(steps))[None, :]
        return _to_tokens(advantage_ns, rows)

    return advantage


def token_gae(
    lambda_: float,
    value: str,
    gamma: float = 1.0,
    *,
    whiten: bool = False,
    weigh: bool = False,
    bootstrap: bool = True,
) -> Advantage:
    """Critic over tokens; as `step_gae`."""

    def advantage(rows: Rows) -> jax.Array:
        active_nt, follows_nt = rows.step_ids_nt >= 0, rows.follows_nt
        if not bootstrap:
            last_n = jnp.argmax(jnp.where(active_nt, jnp.arange(active_nt.shape[1])[None], -1), 1)
            is_last_nt = jnp.arange(active_nt.shape[1])[None] == last_n[:, None]
            follows_nt = jnp.where(is_last_nt, 0, follows_nt)
        gae = jax.vmap(ops.token_gae, in_axes=(0, 0, 0, None, 0, 0))
        advantage_nt = gae(
            rows.reward_nt,
            gamma * follows_nt,
            _value(rows, value),
            lambda_,
            rows.step_ids_nt,
            rows.exact_behind_n,
        )
        if whiten:
            advantage_nt = ops.masked_whiten(advantage_nt, active_nt)
        if weigh:
            before_nt = jnp.cumsum(active_nt, axis=1) - active_nt
            advantage_nt = advantage_nt * gamma**before_nt
        return advantage_nt

    return advantage


def returns(rows: Rows) -> jax.Array:
    """REINFORCE: the reward from the step on."""
    return _to_tokens(_step_returns(rows), rows)


def whole_return(rows: Rows) -> jax.Array:
    """REINFORCE with the reward of the whole trajectory, also that of the past."""
    return _spread(_score(rows), rows)


def group(kind: str) -> Advantage:
    """Trajectories against the others of their task."""
    return lambda rows: _spread(
        ops.group_advantages(_score(rows), rows.task_n, len(TASKS), kind), rows
    )


def reinforce_pp(whiten: bool, across_gaps: bool = True) -> Advantage:
    """REINFORCE++: token returns, and whitened as published."""

    def advantage(rows: Rows) -> jax.Array:
        whitened_nt, return_nt = ops.reinforce_pp_advantages(
            rows.reward_nt, rows.step_ids_nt, across_gaps=across_gaps
        )
        return whitened_nt if whiten else return_nt

    return advantage


def reinforce_pp_baseline(rows: Rows) -> jax.Array:
    """REINFORCE++ with the mean of the group as baseline."""
    return ops.reinforce_pp_baseline_advantages(
        _score(rows), rows.task_n, len(TASKS), rows.step_ids_nt
    )


def gigpo(kind: str, step_weight: float = 1.0, episode: bool = True) -> Advantage:
    """Trajectories against their group, and steps against those that started in the same state."""

    def advantage(rows: Rows) -> jax.Array:
        score_n = _score(rows) if episode else jnp.zeros_like(_score(rows))
        advantage_ns = ops.gigpo_advantages(
            score_n,
            rows.task_n,
            len(TASKS),
            _step_returns(rows),
            rows.state_ns,
            ANCHORS,
            step_weight=step_weight,
            kind=kind,
        )
        return _to_tokens(advantage_ns, rows)

    return advantage


def informative(rows: Rows) -> jax.Array:
    """Trajectories of groups whose scores are not all equal."""
    return ops.informative_groups(_score(rows), rows.task_n, len(TASKS))


def _value(rows: Rows, value: str) -> jax.Array:
    zero_nt = jnp.zeros_like(rows.exact_nt)
    return {"exact": rows.exact_nt, "wrong": rows.wrong_nt, "zero": zero_nt}[value]


def _score(rows: Rows) -> jax.Array:
    return ops.masked_sum(rows.reward_ns, rows.mask_ns, axis=1)


def _step_returns(rows: Rows) -> jax.Array:
    return jax.vmap(ops.discounted_returns)(rows.reward_ns, rows.follows_ns)


def _to_tokens(x_ns: jax.Array, rows: Rows) -> jax.Array:
    """NaN where masked: no loss may read that."""
    to_tokens = jax.vmap(lambda x_s, ids_t: ops.broadcast_steps(x_s, ids_t, jnp.nan))
    return to_tokens(x_ns, rows.step_ids_nt)


def _spread(x_n: jax.Array, rows: Rows) -> jax.Array:
    return jnp.where(rows.step_ids_nt >= 0, x_n[:, None], jnp.nan)


def _critics() -> list[Estimator]:
    """Step and token GAE, alike."""
    table = []
    for name, gae, level in (("step GAE", step_gae, "step"), ("token GAE", token_gae, "token")):
        one = Estimator(name, "", gae(1.0, "exact"), level=level)
        cut = one._replace(max_steps=LIMIT)
        table += [
            one._replace(setting="λ=1, exact critic", claim=1.0),
            one._replace(setting="λ=1, wrong critic", claim=1.0, advantage=gae(1.0, "wrong"),
                         note="any baseline will do, at the price of variance"),
            one._replace(setting=f"λ={LAMBDA}, exact critic", claim=1.0,
                         advantage=gae(LAMBDA, "exact")),
            one._replace(setting="λ=0, exact critic", claim=1.0, advantage=gae(0.0, "exact")),
            one._replace(setting=f"λ={LAMBDA}, wrong critic", advantage=gae(LAMBDA, "wrong"),
                         note="λ < 1 trusts the critic"),
            *(one._replace(setting="λ=1, exact critic, whitened", size=size,
                           advantage=gae(1.0, "exact", whiten=True),
                           note="divides by a spread of the same batch") for size in (2, 3)),
            one._replace(setting="γ=0.9 for the plain return", advantage=gae(1.0, "wrong", GAMMA),
                         note="late rewards count less"),
            one._replace(setting="γ=0.9 for its discounted return",
                         objective=name.split()[0], advantage=gae(1.0, "wrong", GAMMA),
                         note="γ^t is missing before the advantage"),
            one._replace(setting="γ=0.9 for its discounted return, times γ^t", claim=1.0,
                         objective=name.split()[0],
                         advantage=gae(1.0, "wrong", GAMMA, weigh=True)),
            cut._replace(setting="time limit, bootstrapped", claim=1.0,
                         note="for the return without limit, up to the limit"),
            cut._replace(setting="time limit as an end", advantage=gae(1.0, "exact", bootstrap=False),
                         note="what lies behind the limit counts as nothing"),
        ]  # fmt: skip
    return table


def _reductions() -> list[Estimator]:
    """One advantage, summed up in all ways."""
    one = Estimator("REINFORCE", "", step_gae(1.0, "exact"), level="token")
    two = one._replace(size=2)
    return [
        one._replace(setting="returns", advantage=returns, claim=1.0),
        one._replace(setting="return of the whole trajectory", advantage=whole_return, claim=1.0,
                     note="rewards of the past are only noise"),
        *(one._replace(setting=f"baseline, {level} ratio", level=level, claim=1.0,
                       note="ratios are straight-through: all levels agree on-policy")
          for level in ops.LEVELS),
        two._replace(setting="baseline, seq-mean-token-sum", claim=1.0),
        two._replace(setting="baseline, seq-mean-token-sum-norm", claim=2 / ROW_LENGTH,
                     reduction="seq-mean-token-sum-norm", note="a constant divides"),
        two._replace(setting="baseline, sum over 8 tokens", claim=2 / 8, reduction="token-mean",
                     constants={"batch_num_tokens": 8.0}, note="a constant divides"),
        two._replace(setting="baseline, sum over 4 steps", claim=2 / 4,
                     reduction="step-mean-token-sum", constants={"global_num_steps": 4.0},
                     note="a constant divides"),
        two._replace(setting="baseline, token-mean", reduction="token-mean",
                     note="divides by sampled tokens: long batches count less"),
        two._replace(setting="baseline, seq-mean-token-mean", reduction="seq-mean-token-mean",
                     note="divides by the length: long trajectories count less"),
        two._replace(setting="baseline, step-mean-token-sum", reduction="step-mean-token-sum",
                     note="divides by sampled steps"),
        two._replace(setting="baseline, step-mean-token-mean", reduction="step-mean-token-mean",
                     note="divides by the length of each action"),
    ]  # fmt: skip


def _groups() -> list[Estimator]:
    """Methods without a critic; n is the size of a group."""
    table = [
        Estimator("GRPO", "a group of one", group("grpo"), claim=1 / (1 + 1e-6), draw="group",
                  note="its raw score: REINFORCE"),
    ]  # fmt: skip
    for n in (2, 3):
        one = Estimator("", "sum over tokens", group("rloo"), size=n, draw="group")
        norm = dict(setting="seq-mean-token-sum-norm", reduction="seq-mean-token-sum-norm")
        row_mean = dict(setting="seq-mean-token-mean", reduction="seq-mean-token-mean")
        kept_mean = (n - 1) / n
        table += [
            one._replace(name="RLOO", claim=1.0, note="leaves the trajectory out of its baseline"),
            one._replace(name="Dr. GRPO", advantage=group("dr_grpo"), claim=kept_mean,
                         note="factor (n-1)/n: its own score is in the mean"),
            one._replace(name="Dr. GRPO", advantage=group("dr_grpo"), claim=kept_mean * n / ROW_LENGTH,
                         **norm, note="as published"),
            one._replace(name="GRPO", advantage=group("grpo"),
                         note="divides by the spread of the group"),
            one._replace(name="GRPO", advantage=group("grpo"), **row_mean,
                         note="as published: spread and length"),
            one._replace(name="GRPO", setting="token-mean", advantage=group("grpo"),
                         reduction="token-mean", note="spread and tokens of the batch"),
            one._replace(name="GSPO", setting="RLOO's advantage, sum over tokens", claim=1.0,
                         level="sequence", note="the ratio alone does not bias on-policy"),
            one._replace(name="GSPO", advantage=group("grpo"), level="sequence", **row_mean,
                         note="as published: spread and length"),
            one._replace(name="REINFORCE++", setting="whitened", advantage=reinforce_pp(True),
                         draw="mixed", note="divides by a spread of the same batch"),
            one._replace(name="REINFORCE++ baseline", setting="whitened",
                         advantage=reinforce_pp_baseline, note="spread over tokens of the batch"),
            one._replace(name="GiGPO", setting="episode term, mean only", claim=kept_mean,
                         advantage=gigpo("dr_grpo", 0.0)),
            one._replace(name="GiGPO", setting="step term, mean only",
                         advantage=gigpo("dr_grpo", episode=False),
                         note="(m-1)/m by visits m: rare states count less, those of one visit nothing"),
            one._replace(name="GiGPO", setting="both, mean only", advantage=gigpo("dr_grpo"),
                         note="the step term reweighs states"),
            one._replace(name="GiGPO", setting="both, mean and spread", advantage=gigpo("grpo"),
                         note="as published"),
        ]  # fmt: skip
    plain = Estimator("REINFORCE++", "", reinforce_pp(False))
    pair = Estimator("RLOO", "", group("rloo"), size=2, draw="groups", keep=informative)
    return [
        *table,
        plain._replace(setting="returns, not whitened", claim=1.0),
        plain._replace(setting="step-local returns, not whitened",
                       advantage=reinforce_pp(False, across_gaps=False),
                       note="as shipped: rewards do not pass the world's tokens"),
        pair._replace(setting="a group a task, equal ones left out, all rows divide", claim=1.0,
                      divide_by_kept=False, note="they had no gradient anyway"),
        pair._replace(setting="a group a task, equal ones left out, kept rows divide",
                      note="tasks that are seldom equal count more"),
    ]  # fmt: skip


ESTIMATORS: tuple[Estimator, ...] = (*_reductions(), *_critics(), *_groups())
