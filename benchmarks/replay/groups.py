"""StepPO and Agent-R1: GRPO, RLOO, REINFORCE++ and GiGPO."""

import functools
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

import jax
import numpy as np
from replay.cases import (
    Case,
    Deviations,
    Results,
    masked_zeroed,
    no_spread,
    step_ids,
    sum_rows,
)

from steprl import ops

normalise = jax.jit(ops.group_advantages, static_argnums=(2, 3), static_argnames="epsilon")
baseline = jax.jit(ops.reinforce_pp_baseline_advantages, static_argnums=2)
rfpp = jax.jit(ops.reinforce_pp_advantages, static_argnames="across_gaps")
gigpo = jax.jit(ops.gigpo_advantages, static_argnums=(2, 5), static_argnames="kind")
sum_steps = jax.jit(ops.reduce_steps, static_argnums=2)
OUTPUTS = ("advantages", "returns")  # the same in all families but REINFORCE++


def trajectories(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Trajectory of each row; score and group of each trajectory; number of groups."""
    _, first, trajectory_of_row = np.unique(
        case["trajectory_ids"], return_index=True, return_inverse=True
    )
    names, group_of_row = np.unique(case["group_ids"], return_inverse=True)
    reward_n = sum_rows(case["rewards"], case["mask"])
    score = sum_steps(reward_n, trajectory_of_row, len(first))
    return trajectory_of_row, np.asarray(score), group_of_row[first], len(names)


def on_active(case: Case, x_n: Any) -> np.ndarray:
    return np.where(case["mask"] != 0, np.asarray(x_n)[:, None], 0)


def without_residue(x: np.ndarray, ids: np.ndarray, divide: bool, **edges: Any) -> np.ndarray:
    """What a group should get, in float64: numbers equal up to rounding have no deviation."""
    y = np.empty(x.shape, np.float64)
    for members in (ids == i for i in np.unique(ids)):
        group = x[members].astype(np.float64)
        y[members] = group - group.mean()
        if len(group) == 1:
            y[members] = group / (1 + edges["epsilon"] * divide) if edges["raw"] else 0
        elif equal(x[members]):
            y[members] = 0
        elif divide:
            y[members] /= group.std(ddof=1) + edges["epsilon"]
    return y


def equal(group: np.ndarray) -> bool:
    """Whether the numbers of a group of two or more are equal up to rounding."""
    rounding = 8 * np.finfo(group.dtype).eps * np.abs(group).max()
    return len(group) > 1 and bool(np.ptp(group) <= rounding)


def in_equal_group(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.isin(ids, [i for i in np.unique(ids) if equal(x[ids == i])])


def residues_removed(case: Case, got: Results, row: np.ndarray, value: np.ndarray) -> Deviations:
    """Rows where the reference carries a rounding residue hold `value`, the others its numbers."""
    if not row.any() or np.isnan(case.get("out_advantages", np.nan)).any():
        return {}
    return {
        name: (
            "equal",
            np.where(row[:, None], on_active(case, value), masked_zeroed(case, name, got)),
        )
        for name in OUTPUTS
    }


def replay_groups(kind: str, case: Case) -> tuple[Results, Deviations]:
    trajectory_of_row, score, group, num_groups = trajectories(case)
    if not case.get("norm_adv_by_std_in_grpo", True):
        kind = "dr_grpo"
    epsilon = case.get("epsilon", 1e-6)
    advantage = np.asarray(normalise(score, group, num_groups, kind, epsilon=epsilon))
    got = dict.fromkeys(OUTPUTS, on_active(case, advantage[trajectory_of_row]))
    residue = in_equal_group(score, group)[trajectory_of_row]
    return got, residues_removed(case, got, residue, np.zeros(len(residue)))


def replay_rfpp_baseline(case: Case) -> tuple[Results, Deviations]:
    trajectory_of_row, score, group, num_groups = trajectories(case)
    # One row a trajectory: its rows of the reference side by side.
    mask = case["mask"] != 0
    trajectory_of_token = np.broadcast_to(trajectory_of_row[:, None], mask.shape).reshape(-1)
    own = trajectory_of_token == np.arange(len(score))[:, None]
    ids = np.where(own & mask.reshape(-1), 0, -1)
    wide = np.asarray(baseline(score, group, num_groups, ids))
    got = dict.fromkeys(OUTPUTS, wide.sum(axis=0).reshape(mask.shape))
    centred = without_residue(score, group, divide=False, raw=True, epsilon=0)
    spread = np.broadcast_to(centred[trajectory_of_row, None], mask.shape)[mask]
    found = whitening_deviations(case, spread.astype(score.dtype))
    if "advantages" in found:
        found["returns"] = found["advantages"]
    return got, found


def replay_rfpp(case: Case) -> tuple[Results, Deviations]:
    advantages, returns = rfpp(
        case["rewards"], step_ids(case["mask"]), case["gamma"], across_gaps=False
    )
    got = {"advantages": np.asarray(advantages), "returns": np.asarray(returns)}
    found = whitening_deviations(case, got["returns"][case["mask"] != 0])
    if not np.isnan(case.get("out_returns", np.nan)).any():
        found["returns"] = ("masked_return", masked_zeroed(case, "returns", got))
    return got, found


def whitening_deviations(case: Case, whitened: np.ndarray) -> Deviations:
    """What whitening these numbers, those of the active tokens, gives where they have no spread."""
    zeros = np.zeros(case["mask"].shape)
    if "out_error" in case:
        reason = "one" if len(whitened) else "empty"
        return {"advantages": (reason, zeros), "error": (reason, None)}
    return no_spread(whitened, zeros)


def replay_gigpo(case: Case) -> tuple[Results, Deviations]:
    trajectory_of_row, score, group, num_groups = trajectories(case)
    row_group = np.unique(case["group_ids"], return_inverse=True)[1]
    similarity = case["similarity_thresh"] if case["enable_similarity"] else None
    anchors, number = ops.anchor_ids(
        case["anchors"], case["group_ids"], similarity=similarity, autojunk=True
    )
    # The place of a row among those of its trajectory: which one does not matter here.
    place = np.array([(trajectory_of_row[:i] == t).sum() for i, t in enumerate(trajectory_of_row)])
    cells = trajectory_of_row, place
    table = (len(score), int(place.max()) + 1)
    mode, epsilon, weight = case["mode"], case["epsilon"], case["step_advantage_w"]
    return_ns, anchor_ids_ns = np.zeros(table, score.dtype), np.full(table, -1)
    return_ns[cells], anchor_ids_ns[cells] = case["step_rewards"], anchors  # these are returns
    advantage = gigpo(
        score,
        group,
        num_groups,
        return_ns,
        anchor_ids_ns,
        number,
        step_weight=weight,
        kind={"mean_std_norm": "grpo", "mean_norm": "dr_grpo"}.get(mode, mode),
        epsilon=epsilon,
    )
    got: Results = dict.fromkeys(OUTPUTS, on_active(case, np.asarray(advantage)[cells]))
    inside = np.empty_like(anchors)
    for i in np.unique(row_group):
        inside[row_group == i] = np.unique(anchors[row_group == i], return_inverse=True)[1]
    got["cluster_in_group"] = inside
    for name, autojunk in (("ratio_to_row0", True), ("ratio_to_row0_noautojunk", False)):
        if f"out_{name}" in case:
            texts = case["anchors"].tolist()
            got[name] = [SequenceMatcher(None, x, texts[0], autojunk).ratio() for x in texts]

    returns = case["step_rewards"]
    row = in_equal_group(score, group)[trajectory_of_row] | in_equal_group(returns, anchors)
    divide = mode == "mean_std_norm"
    episode = without_residue(score, group, divide, raw=True, epsilon=epsilon)
    step = without_residue(returns, anchors, divide, raw=False, epsilon=epsilon)
    return got, residues_removed(case, got, row, episode[trajectory_of_row] + weight * step)


REASONS: dict[str, str] = {
    "masked_return": "returns at masked tokens are 0, where the reference stores what lies behind them",
}
FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {
    "grpo": functools.partial(replay_groups, "grpo"),
    "agentr1_grpo": functools.partial(replay_groups, "grpo"),
    "rloo": functools.partial(replay_groups, "rloo"),
    "rfpp_baseline": replay_rfpp_baseline,
    "rfpp": replay_rfpp,
    "gigpo": replay_gigpo,
}
