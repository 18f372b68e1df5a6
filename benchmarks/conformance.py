"""Do our functions return what the published reference implementations return?

    python benchmarks/conformance.py DIR [--family NAME ...]

replays the vector files (`*.npz`) of DIR: each array is `<family>_case<i>_<name>`, inputs have
plain names, expected results start with `out_`. It prints a line a family, then the intended
deviations that occurred, and last `N passed, N failed, N skipped` (cases; a family that is not
built counts as skipped). The exit status is 1 if a case failed, 2 if there was nothing to replay.

A family is one function: case -> (results, deviations). *Every* `out_` array of a case must be
among the results and match within the tolerances of the case, unless a deviation replaces it: an
entry `name: (reason, expected)` states which values hold instead, and those are compared with the
same strictness. Whether a deviation applies is decided from the data alone.
"""

import argparse
import collections
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steprl import ops

Case = dict[str, Any]
Results = dict[str, Any]
Deviations = dict[str, tuple[str, Any]]

REASONS = {
    "one": "one element has no spread: whitened to 0, where the reference is NaN or raises",
    "equal": "equal elements whiten to 0, where the reference divides a rounding residue",
    "dark": "dark tokens are 0 after whitening, where the reference leaves (0 - mean) / std",
    "empty": "nothing is active: 0, where the reference is NaN or raises",
    "poison": "NaN at a dark token is not read, where the reference returns NaN",
    "overflow": "APPO's k3 overflows where ours is clamped",
    "plus": "KL kinds ending in + work, where the reference raises",
}


# --- Advantages -----------------------------------------------------------------------------------


def replay_step_gae(case: Case) -> tuple[Results, Deviations]:
    mask = case["mask"] != 0
    reward_n = ops.masked_sum(case["rewards"], mask, axis=-1)
    value_n = jnp.asarray(case["values"][:, 0])
    cells = _cells(case)
    reward, value = _grid(reward_n, cells), _grid(value_n, cells)
    discount = jnp.full_like(reward, case["gamma"])
    gae = jax.jit(jax.vmap(ops.step_gae, in_axes=(0, 0, 0, None)))
    advantage_n = np.asarray(gae(reward, discount, value, case["lam"]))[cells]
    whitened_n = _whiten(advantage_n, np.ones(len(mask), bool), epsilon_at="std")
    got = {
        "advantages": np.where(mask, np.asarray(whitened_n)[:, None], 0),
        "returns": np.where(mask, np.asarray(advantage_n + value_n)[:, None], 0),
    }
    return got, _no_spread(advantage_n, np.zeros(mask.shape))


def replay_token_gae(case: Case) -> tuple[Results, Deviations]:
    mask = case["mask"] != 0
    width = mask.shape[1]
    # One packed row: trajectories one after the other, their rows in the order of their steps.
    trajectory_n = np.unique(case["trajectory_ids"], return_inverse=True)[1]
    order = np.lexsort((case["step_ids"], trajectory_n))
    step_ids = np.where(mask, np.arange(len(mask))[:, None], -1)[order].reshape(-1)
    discount = np.full(step_ids.shape, case["gamma"], case["values"].dtype)
    owner = np.repeat(trajectory_n[order], width)
    for trajectory in range(trajectory_n.max() + 1):
        last = np.flatnonzero((owner == trajectory) & (step_ids >= 0))[-1:]
        discount[last] = 0
    advantage = np.empty_like(case["values"])
    reward, value = (case[name][order].reshape(-1) for name in ("rewards", "values"))
    packed = jax.jit(ops.token_gae)(reward, discount, value, case["lam"], step_ids)
    advantage[order] = np.asarray(packed).reshape(mask.shape)
    got = {
        "advantages": _whiten(advantage, mask),
        "returns": np.where(mask, advantage + case["values"], 0),
    }
    deviations = _no_spread(advantage[mask], np.zeros(mask.shape))
    if "out_advantages" in case and not deviations:
        deviations["advantages"] = ("dark", _dark_zeroed(case, "advantages", got))
    if "out_error" in case:
        reason = "one" if mask.any() else "empty"
        deviations = {"advantages": (reason, np.zeros(mask.shape)), "error": (reason, None)}
    return got, deviations


def _dark_zeroed(case: Case, name: str, got: Results) -> np.ndarray:
    """The reference with its dark tokens at 0; unstable numbers are nothing to compare with."""
    reference = got[name] if case["check"] == "unstable" else case[f"out_{name}"]
    return np.where(case["mask"] != 0, reference, 0)


def _no_spread(advantages: np.ndarray, zeros: np.ndarray) -> Deviations:
    """Zeros are right where there is one element, or where all are equal up to rounding."""
    if len(advantages) < 2:
        return {"advantages": ("one", zeros)}
    rounding = 8 * np.finfo(advantages.dtype).eps * np.abs(advantages).max()
    return {"advantages": ("equal", zeros)} if np.ptp(advantages) <= rounding else {}


def _cells(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Where each row stands in the reference's dense table of trajectories and steps."""
    return np.unique(case["trajectory_ids"], return_inverse=True)[1], case["step_ids"]


def _grid(x_n: jax.Array | np.ndarray, cells: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Lay rows out as [trajectory, step]; a missing step is one of reward 0 and value 0."""
    shape = (int(cells[0].max()) + 1, int(cells[1].max()) + 1)
    return jnp.zeros(shape, x_n.dtype).at[cells].set(x_n)


def replay_step_returns(case: Case) -> tuple[Results, Deviations]:
    cells = _cells(case)
    reward = _grid(ops.masked_sum(case["rewards"], case["mask"] != 0, axis=-1), cells)
    returns = jax.vmap(ops.discounted_returns)(reward, jnp.full_like(reward, case["gamma"]))
    return {"step_returns": returns[cells]}, {}


def replay_critic_mask(case: Case) -> tuple[Results, Deviations]:
    ids = _step_ids(case["mask"])
    if case["key"] == "token_gae":
        return {"mask": ids >= 0}, {}
    # A row is a step, tool tokens included, and the critic is read where the step begins.
    return {"mask": jax.vmap(ops.step_starts)(jnp.zeros_like(ids))}, {}


def replay_reward_scaling(case: Case) -> tuple[Results, Deviations]:
    moments = ops.RunningMoments() if case["call"] == 0 else _scaling[case["gamma"]]
    valid_n = ~case["is_pad"]
    reward_n = np.asarray(ops.masked_sum(case["rewards"], case["mask"], axis=-1), np.float64)
    cells = _cells(case)
    reward = _grid(np.where(valid_n, reward_n, 0), cells)
    # The recurrence runs backwards: a forward sum is that of the reversed steps.
    forward = ops.reverse_recurrence(reward.T[::-1], case["gamma"])[::-1].T
    sum_n = forward[cells]
    moments = ops.update_running_moments(moments, sum_n, valid_n)
    _scaling[case["gamma"]] = moments
    scale = 1 / np.sqrt(moments.variance + 1e-8)
    rewards = np.where(valid_n[:, None], case["rewards"] * scale, case["rewards"])
    got = {"rewards": rewards, "scale": scale, "mean": moments.mean}
    return got | {"var": moments.variance, "count": moments.number}, {}


_scaling: dict[float, ops.RunningMoments] = {}  # the reference's scaler lives from call to call


# --- Losses ---------------------------------------------------------------------------------------


def replay_policy_loss(level: str) -> Callable[[Case], tuple[Results, Deviations]]:
    def replay(case: Case) -> tuple[Results, Deviations]:
        ids = _step_ids(case["mask"])
        pooled = level == "sequence"
        weights = ops.aggregation_weights(
            ids,
            # The reference's GSPO ignores the reduction it is given, and has no dual clip.
            "seq-mean-token-mean" if pooled else case["loss_agg_mode"],
            dtype=case["log_prob"].dtype,
            **_global_numbers(case),
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
                weights=weights,
                rollout_weights=case.get("rollout_is_weights"),
            )

        (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["log_prob"])
        got = {
            "loss": value,
            "grad_log_prob": grad,
            "clipfrac": metrics["pg_clipfrac"],
            "clipfrac_lower": metrics["pg_clipfrac_lower"],
            "ppo_kl": metrics["ppo_kl"],
        }
        return got, _empty(case, got)

    return replay


def replay_agg_loss(case: Case) -> tuple[Results, Deviations]:
    ids = _step_ids(case["mask"])
    total = ops.aggregate(case["loss_mat"], ids, case["loss_agg_mode"], **_global_numbers(case))
    got = dict.fromkeys(("verl", "agentr1", "appo"), total)
    return got, _empty(case, got)


def replay_value_loss(case: Case) -> tuple[Results, Deviations]:
    ids = _step_ids(case["mask"])

    def loss(value: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return ops.value_loss(
            value,
            case["returns"],
            case["values"],
            ids,
            clip=case["cliprange_value"],
            weights=ops.aggregation_weights(
                ids, case["loss_agg_mode"], dtype=value.dtype, **_global_numbers(case)
            ),
        )

    (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["vpreds"])
    got = {"loss": value, "clipfrac": metrics["vf_clipfrac"], "grad_vpreds": grad}
    got |= {"appo_loss": 2 * value, "appo_grad_vpreds": 2 * grad}  # APPO's has no factor 1/2
    return got, _empty(case, got)


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
    ids = _step_ids(case["mask"])
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
        "whitened": _whiten(values, mask, shift_mean=bool(case["shift_mean"])),
        "row_mean": ops.masked_mean(values, mask, axis=-1),
    }
    active = values[mask]
    deviations: Deviations = {}
    if "out_whitened" in case:
        deviations["whitened"] = ("dark", _dark_zeroed(case, "whitened", got))
    if len(active) < 2 or np.ptp(active) <= 8 * np.finfo(values.dtype).eps * abs(active).max():
        still = np.where(mask, 0 if case["shift_mean"] else got["mean"], 0)
        reason = "empty" if not len(active) else "one" if len(active) == 1 else "equal"
        deviations["whitened"] = (reason, still)
        if len(active) < 2:
            deviations |= {"var": (reason, 0.0), "var_biased": (reason, 0.0)}
            deviations |= {"error": (reason, None)}
    return got, deviations


def replay_entropy(case: Case) -> tuple[Results, Deviations]:
    ids = _step_ids(case["mask"])

    def loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        entropy = ops.entropy_from_logits(logits)
        total = ops.aggregate(entropy, ids, case["loss_agg_mode"], **_global_numbers(case))
        return total, entropy

    (value, entropy), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["logits"])
    got = {"token_entropy": entropy, "loss": value, "grad_logits": grad}
    return got, _empty(case, got)


_whiten = jax.jit(ops.masked_whiten, static_argnames=("ddof", "epsilon_at", "shift_mean"))


def _step_ids(mask: np.ndarray) -> jax.Array:
    """The references store one step a row: each active token belongs to step 0 of its row."""
    return jnp.where(mask != 0, 0, -1).astype(jnp.int32)


def _global_numbers(case: Case) -> dict[str, Any]:
    return {name.removeprefix("gb_"): case[name] for name in case if name.startswith("gb_")}


def _empty(case: Case, got: Results) -> Deviations:
    """With nothing active, whatever the reference has as NaN is 0."""
    if (case["mask"] != 0).any():
        return {}
    nan = [name for name in got if np.isnan(case.get(f"out_{name}", 0.0)).any()]
    return {name: ("empty", np.zeros_like(case[f"out_{name}"])) for name in nan}


FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {
    "step_gae": replay_step_gae,
    "token_gae": replay_token_gae,
    "agentr1_step_gae": replay_step_gae,
    "agentr1_token_gae": replay_token_gae,
    "step_returns": replay_step_returns,
    "critic_mask": replay_critic_mask,
    "reward_scaling": replay_reward_scaling,
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


# --- The harness ----------------------------------------------------------------------------------


def load_cases(directory: Path) -> Iterator[tuple[str, int, Case]]:
    """Every case of every vector file: (family, number, arrays by name; scalars as Python's)."""
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            cases: dict[tuple[str, int], Case] = collections.defaultdict(dict)
            for key in file.files:
                if found := re.fullmatch(r"(.+?)_case(\d+)_(.+)", key):
                    array = file[key]
                    value = array if array.ndim else array.item()
                    cases[found[1], int(found[2])][found[3]] = value
        for (family, number), case in sorted(cases.items()):
            yield family, number, case


def check_case(family: str, case: Case) -> tuple[list[str], set[str]]:
    """Replay one case: (what is wrong, names of the deviations that made a difference)."""
    wide = any(np.asarray(x).dtype == np.float64 and np.ndim(x) for x in case.values())
    error = None
    try:
        with jax.enable_x64(wide or family == "reward_scaling"):
            got, deviations = FAMILIES[family](case)
            if clean := _without_poison(case):
                unpoisoned = FAMILIES[family](clean)[0]
                for name in unpoisoned:
                    if np.isnan(case.get(f"out_{name}", 0.0)).any():
                        deviations.setdefault(name, ("poison", unpoisoned[name]))
            got = {name: np.asarray(value) for name, value in got.items()}
            deviations = {n: (why, _host(value)) for n, (why, value) in deviations.items()}
    except Exception as raised:  # a case that breaks must not hide the ones after it
        error = raised
    if "out_error" in case and error is not None:
        refused = isinstance(error, ValueError | NotImplementedError)
        return ([] if refused else [f"raised {error!r}, not {case['out_error']}"]), set()
    if error is not None:
        return [f"raised {type(error).__name__}: {error}"], set()

    wrong, used = [], set()
    if "out_error" in case:
        if "error" not in deviations:
            return [f"did not raise {case['out_error']}"], set()
        used.add(deviations["error"][0])
    expected = {n.removeprefix("out_"): x for n, x in case.items() if n.startswith("out_")}
    expected.pop("error", None)
    unstable = case["check"] == "unstable"
    for name in expected | {n: None for n in deviations if n != "error" and n in got}:
        if name not in got:
            wrong.append(f"{name} is not replayed")
            continue
        reference, ours = expected.get(name), got[name]
        if reference is not None and ours.shape != np.shape(reference):
            wrong.append(f"{name} has shape {ours.shape}, not {np.shape(reference)}")
            continue
        if name in deviations:
            reason, replacement = deviations[name]
            if reference is None or not _close(replacement, reference, case):
                used.add(reason)
            reference = replacement
        elif unstable:
            reference = ours
        if not np.isfinite(ours).all():
            wrong.append(f"{name} is not finite")
        elif not _close(ours, reference, case):
            gap = np.nanmax(np.abs(ours - np.asarray(reference, np.float64)))
            wrong.append(f"{name} differs by up to {gap:.3g}")
    return wrong, used


def _without_poison(case: Case) -> Case | None:
    """The case with its NaN inputs at dark tokens zeroed; None if there are none."""
    if np.ndim(case.get("mask")) == 0:
        return None
    dark = case["mask"] == 0
    poisoned = {
        name: np.where(dark, 0, x)
        for name, x in case.items()
        if np.shape(x) == dark.shape and x.dtype.kind == "f" and not name.startswith("out_")
        if np.isnan(x[dark]).any()
    }
    return case | poisoned if poisoned else None


def _host(value: Any) -> Any:
    return None if value is None else np.asarray(value)


def _close(ours: Any, reference: Any, case: Case) -> bool:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return np.allclose(ours, reference, rtol=case["rtol"], atol=case["atol"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, help="folder with the vector files")
    parser.add_argument("--family", action="append", help="replay this family only (repeatable)")
    options = parser.parse_args(arguments)

    tally: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    deviations: collections.Counter[tuple[str, str]] = collections.Counter()
    failures = []
    for family, number, case in load_cases(options.directory):
        if options.family and family not in options.family:
            continue
        if family not in FAMILIES:
            tally[family][2] += 1
            continue
        wrong, used = check_case(family, case)
        tally[family][bool(wrong)] += 1
        failures += [f"  {family} case {number}: {what}" for what in wrong]
        deviations.update((family, reason) for reason in used)

    for family, (passed, failed, skipped) in sorted(tally.items()):
        note = "  (not built)" if skipped else ""
        print(f"{family:24} {passed:4} passed {failed:4} failed {skipped:4} skipped{note}")
    for family, reason in sorted(deviations):
        number = deviations[family, reason]
        print(f"deviation, {family}, {number} case(s): {REASONS[reason]}")
    print(*failures, sep="\n", end="\n" if failures else "")
    passed, failed, skipped = (sum(counts[i] for counts in tally.values()) for i in range(3))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    if not tally:
        print(f"no vectors in {options.directory}", file=sys.stderr)
        return 2
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
