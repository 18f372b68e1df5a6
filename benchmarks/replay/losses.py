"""verl and Agent-R1: policy and value losses, KL, aggregation, whitening, entropy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from replay.cases import (
    Case,
    Deviations,
    Results,
    empty,
    global_numbers,
    masked_zeroed,
    step_ids,
    whiten,
)

from steprl import ops


def replay_policy_loss(level: str) -> Callable[[Case], tuple[Results, Deviations]]:
    def replay(case: Case) -> tuple[Results, Deviations]:
        ids = step_ids(case["mask"])
        pooled = level == "sequence"
        weights = ops.aggregation_weights(
            ids,
            # The reference's GSPO ignores the reduction it is given, and has no dual clip.
            "seq-mean-token-mean" if pooled else case["loss_agg_mode"],
            dtype=case["log_prob"].dtype,
            **global_numbers(case),
        )

        def loss(log_prob: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return ops.policy_loss(
                log_prob,
                case["old_log_prob"],
                case["advantages"],
                ids,
                level=level,
                clip_low=case["clip_low"],
                clip_high=case["clip_high"],
                dual_clip=None if pooled else case["clip_ratio_c"],
                weights_t=weights,
                rollout_weights_t=case.get("rollout_is_weights"),
            )

        (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["log_prob"])
        got = {
            "loss": value,
            "grad_log_prob": grad,
            "clipfrac": metrics["pg_clipfrac"],
            "clipfrac_lower": metrics["pg_clipfrac_lower"],
            "ppo_kl": metrics["ppo_kl"],
        }
        return got, empty(case, got)

    return replay


def replay_agg_loss(case: Case) -> tuple[Results, Deviations]:
    ids = step_ids(case["mask"])
    total = ops.aggregate(case["loss_mat"], ids, case["loss_agg_mode"], **global_numbers(case))
    got = dict.fromkeys(("verl", "agentr1", "appo"), total)
    return got, empty(case, got)


def replay_value_loss(case: Case) -> tuple[Results, Deviations]:
    ids = step_ids(case["mask"])

    def loss(value: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return ops.value_loss(
            value,
            case["returns"],
            case["values"],
            ids,
            clip=case["cliprange_value"],
            weights_t=ops.aggregation_weights(
                ids, case["loss_agg_mode"], dtype=value.dtype, **global_numbers(case)
            ),
        )

    (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["vpreds"])
    got = {"loss": value, "clipfrac": metrics["vf_clipfrac"], "grad_vpreds": grad}
    got |= {"appo_loss": 2 * value, "appo_grad_vpreds": 2 * grad}  # APPO's has no factor 1/2
    return got, empty(case, got)


def replay_kl(case: Case) -> tuple[Results, Deviations]:
    logprob, ref, kind = jnp.asarray(case["logprob"]), case["ref_logprob"], case["kind"]
    estimate = ops.kl_penalty(logprob, ref, kind)
    grad = jax.grad(lambda x: jnp.sum(ops.kl_penalty(x, ref, kind)))(logprob)
    got = {"kl": estimate, "grad_sum": grad, "appo_kl": estimate, "appo_grad_sum": grad}
    deviations: Deviations = {}
    if kind.endswith("+") and "out_error" in case:
        value = ops.kl_penalty(logprob, ref, kind.removesuffix("+"))
        deviations = {"error": ("plus", None), "kl": ("plus", value)}
        deviations["grad_sum"] = ("plus", case["logprob"] - ref)
    # APPO's copy lacks the inner clamp, so it alone overflows.
    for name in ("appo_kl", "appo_grad_sum"):
        overflow = ~np.isfinite(case.get(f"out_{name}", 0.0))
        if overflow.any():
            ours = case[f"out_{name.removeprefix('appo_')}"]
            deviations[name] = ("overflow", np.where(overflow, ours, case[f"out_{name}"]))
    return got, deviations


def replay_adaptive_kl(case: Case) -> tuple[Results, Deviations]:
    coefficient, values = case["init"], []
    for current, number in zip(case["current_kl"], case["n_steps"], strict=True):
        coefficient = ops.adaptive_kl_coefficient(
            coefficient, current, number, target=case["target"], horizon=case["horizon"]
        )
        values.append(coefficient)
    return {"values": np.array(values)}, {}


def replay_reward_kl(case: Case) -> tuple[Results, Deviations]:
    mask = case["mask"] != 0
    ids = step_ids(case["mask"])
    penalty = ops.kl_penalty(case["old_log_prob"], case["ref_log_prob"], case["kind"], ids)
    mean_kl = jnp.mean(ops.masked_mean(penalty, mask, axis=-1))
    beta = after = case["beta"]
    if case["controller"] == "adaptive":
        after = ops.adaptive_kl_coefficient(
            beta, mean_kl, len(mask), target=case["target"], horizon=case["horizon"]
        )
    rewards = case["token_level_scores"] - beta * penalty
    return {"token_level_rewards": rewards, "mean_kl": mean_kl, "beta_after": after}, {}


def replay_masked_whiten(case: Case) -> tuple[Results, Deviations]:
    values, mask = case["values"], case["mask"] != 0
    got = {
        "mean": ops.masked_mean(values, mask),
        "var": ops.masked_variance(values, mask, ddof=1),
        "var_biased": ops.masked_variance(values, mask),
        "whitened": whiten(values, mask, shift_mean=bool(case["shift_mean"])),
        "row_mean": ops.masked_mean(values, mask, axis=-1),
    }
    active = values[mask]
    deviations: Deviations = {}
    if "out_whitened" in case:
        deviations["whitened"] = ("masked", masked_zeroed(case, "whitened", got))
    if len(active) < 2 or np.ptp(active) <= 8 * np.finfo(values.dtype).eps * abs(active).max():
        still = np.where(mask, 0 if case["shift_mean"] else got["mean"], 0)
        reason = "empty" if not len(active) else "one" if len(active) == 1 else "equal"
        deviations["whitened"] = (reason, still)
        if len(active) < 2:
            deviations |= {"var": (reason, 0.0), "var_biased": (reason, 0.0)}
            deviations |= {"error": (reason, None)}
    return got, deviations


def replay_entropy(case: Case) -> tuple[Results, Deviations]:
    ids = step_ids(case["mask"])

    def loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        entropy = ops.entropy_from_logits(logits)
        total = ops.aggregate(entropy, ids, case["loss_agg_mode"], **global_numbers(case))
        return total, entropy

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def replay(logits: np.ndarray) -> Results:
        (value, entropy), grad = value_and_grad(logits)
        return {"token_entropy": entropy, "loss": value, "grad_logits": grad}

    got = replay(case["logits"])
    deviations = empty(case, got)
    if np.isneginf(case["logits"]).any():
        # As probable as an excluded entry, but finite: its probability is 0, its product too.
        expected = replay(np.maximum(case["logits"], -1e30))
        for name in got:
            if np.isnan(case[f"out_{name}"]).any():
                deviations[name] = ("excluded", expected[name])
    return got, deviations


REASONS: dict[str, str] = {
    "excluded": "an entry whose logit is -inf has no part in the entropy, where the reference is NaN",
    "overflow": "APPO's k3 overflows where ours is clamped",
    "plus": "KL kinds ending in + work, where the reference raises",
}
FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {
    "ppo": replay_policy_loss("token"),
    "agentr1_ppo": replay_policy_loss("token"),
    "gspo": replay_policy_loss("sequence"),
    "agg_loss": replay_agg_loss,
    "value_loss": replay_value_loss,
    "kl": replay_kl,
    "adaptive_kl": replay_adaptive_kl,
    "reward_kl": replay_reward_kl,
    "masked_whiten": replay_masked_whiten,
    "entropy": replay_entropy,
}
