"""BranPO: group credit, prefix and suffix credit, the padded batch, the table and the pairing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from replay.cases import Case, Deviations, Results

from steprl import ops

MODEL_TOKENS, ENVIRONMENT_TOKENS = 2, 3  # of every scripted message
NORMAL_END, MAX_STEPS = 0, 1  # kinds of endings; a rollout may also end by an invalid format

REASONS = {
    "branpo_equal": "equal scores of a group give 0, where the reference divides a residue",
    "no_pair": "without a pair the new reward is 0, where the reference has none (NaN)",
}

branpo = jax.jit(ops.branpo_advantages, static_argnames=("num_groups", "kind", "redundant"))


def replay_grpo(case: Case) -> tuple[Results, Deviations]:
    """The suffix is everything, the prefix is empty: BranPO without branches."""
    mask = case["mask"] != 0
    # Rewards of masked tokens count here; a NaN among them is still not read.
    score = ops.masked_sum(case["rewards"], mask | ~np.isnan(case["rewards"]), axis=-1)
    scores = score, score, np.zeros(len(mask))
    got, equal = credit(case, scores, (np.zeros_like(mask), mask, mask), case["norm_by_std"])
    return {"advantages": got}, without_residue(case, {"advantages": equal})


def replay_advantage(case: Case) -> tuple[Results, Deviations]:
    names = "base_scores", "branch_scores", "preferences"
    scores = tuple(jnp.sum(jnp.asarray(case[name]), axis=-1) for name in names)
    masks = tuple(case[f"{name}_mask"] != 0 for name in ("base", "branch", "first"))
    got, equal = credit(case, scores, masks, case["norm_by_std"])
    return {"advantages": got}, without_residue(case, {"advantages": equal})


def replay_pipeline(case: Case) -> tuple[Results, Deviations]:
    got = padded_batch(case)
    # What was cut off is lost, and reads as 0.
    names = "base_scores", "branch_scores", "preferences"
    scores = tuple(jnp.sum(got[name], axis=-1) for name in names)
    masks = tuple(got[f"{name}_mask"] for name in ("base", "branch", "first"))
    case = case | {"group_ids": case["row_prompt_id"]}
    zeros = {}
    for name, redundant in (("shipped", "suffix"), ("intended", "first_step")):
        key = f"advantages_{name}"
        got[key], zeros[key] = credit(case, scores, masks, redundant=redundant)
    got |= {"first_mask_shipped": got["branch_mask"], "first_mask_intended": got["first_mask"]}
    return got, without_residue(case, zeros)


def credit(
    case: Case, scores: tuple, masks: tuple, by_std: bool = True, redundant: str = "first_step"
) -> tuple[np.ndarray, np.ndarray]:
    """The advantages, and the tokens whose group has equal scores (up to rounding)."""
    names, group = np.unique(case["group_ids"], return_inverse=True)
    kind = "grpo" if by_std else "dr_grpo"
    epsilon = case.get("epsilon", 1e-6)
    how = {"num_groups": len(names), "kind": kind, "redundant": redundant, "epsilon": epsilon}
    got = np.asarray(branpo(*scores, group, base_mask_nt=masks[0], branch_mask_nt=masks[1],
                            first_mask_nt=masks[2], **how))  # fmt: skip
    equal = np.zeros_like(masks[0])
    for score, mask in zip(scores, masks[:2], strict=False):
        equal |= mask & equal_in_group(np.asarray(score), group, mask.any(-1))[:, None]
    return got, equal


def equal_in_group(score: np.ndarray, group: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Rows whose group has several members, all with one score up to rounding."""
    equal = np.zeros(len(score), bool)
    for name in np.unique(group):
        members = np.flatnonzero((group == name) & where)
        rounding = 8 * np.finfo(score.dtype).eps * np.abs(score[members]).max(initial=0)
        equal[members] = len(members) > 1 and np.ptp(score[members]) <= rounding
    return equal


def without_residue(case: Case, equal: dict[str, np.ndarray]) -> Deviations:
    """The reference with 0 where all scores of a group are equal."""
    return {
        name: ("branpo_equal", np.where(zero, 0, case[f"out_{name}"]))
        for name, zero in equal.items()
        if zero.any() and not np.isnan(case.get(f"out_{name}", np.nan)).any()
    }


def padded_batch(case: Case) -> dict[str, Any]:
    """Prompts padded on the left; prefix and suffix joined, padded or cut on the right."""
    left, right = case["max_prompt_length"], case["max_response_length"]
    owner, rewards = case["row_traj"], case["branch_rewards"]
    # A prefix is worth the mean reward of its suffixes.
    value = {name: rewards[owner == name].mean() for name in np.unique(owner)}
    rows = []
    for row, trajectory in enumerate(owner):
        prompt, base, suffix = (
            partial(ragged, case, part, case[f"{part}_lens"][at], at)
            for part, at in (("prompt", trajectory), ("base", trajectory), ("branch", row))
        )
        tokens = prompt("tokens")[-left:] if left else prompt("tokens")[:0]
        pad = left - len(tokens)
        length, total = len(base("tokens")), len(base("tokens")) + len(suffix("tokens"))
        response = np.concatenate([base("tokens"), suffix("tokens")])
        attended = np.concatenate([np.zeros(pad), np.ones(len(tokens)), fit(np.ones(total), right)])
        # Steps: the prefix is step 0, the first response of the suffix step 1, the rest step 2.
        later = np.where(suffix("first_masks") != 0, 1, 2)
        ids = [np.where(base("masks") != 0, 0, -1), np.where(suffix("masks") != 0, later, -1)]
        rows.append({
            "input_ids": np.concatenate([np.zeros(pad), tokens, fit(response, right)]),
            "attention_mask": attended,
            "position_ids": (np.cumsum(attended) - 1) * attended,
            "step_ids": fit(np.concatenate(ids), right, fill=-1).astype(np.int32),
            "base_scores": fit([value[trajectory]], right, length - 1),
            "branch_scores": fit([rewards[row]], right, total - 1),
            "preferences": fit([case["branch_preferences"][row]], right, total - 1),
        })  # fmt: skip
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name in ("base_scores", "branch_scores", "preferences"):
        batch[name] = batch[name].astype(np.float32)
    begins = np.ones(len(rows), np.int32)
    masks = ops.branpo_masks(batch.pop("step_ids"), begins, case["row_branch"] == 0)
    names = "base_mask", "branch_mask", "first_mask"
    batch |= dict(zip(names, map(np.asarray, masks), strict=True))
    return batch | {"response_mask": batch["base_mask"] | batch["branch_mask"]}


def ragged(case: Case, part: str, length: int, row: int, what: str) -> np.ndarray:
    return case[f"{part}_{what}"][row, :length]


def fit(x: Any, width: int, start: int = 0, fill: float = 0.0) -> np.ndarray:
    """x in a row of `fill`, from `start` on; what lies outside is lost."""
    out = np.full(width, fill)
    for at, number in enumerate(x, start):
        if 0 <= at < width:
            out[at] = number
    return out


def replay_rules(case: Case) -> tuple[Results, Deviations]:
    resampled = np.isin(case["kind"], (NORMAL_END, MAX_STEPS))
    names = "accuracy", "mean_steps_correct", "reward", "n_steps"
    branches, points = jax.jit(ops.branch_attempts)(*(case[name] for name in names), resampled)
    # The calls after the one that finds a pair are not made.
    call = np.arange(1, branches.shape[1] + 1)
    found_at = case["found_at"][:, None]
    made = (found_at == 0) | (call <= found_at)
    width = case["out_num_branches"].shape[1]
    padding = ((0, 0), (0, width - len(call)))
    return {
        "num_branches": np.pad(np.where(made, branches, 0), padding),
        "branchpoint": np.pad(np.where(made, points, 0), padding),
    }, {}


def replay_pairing(case: Case) -> tuple[Results, Deviations]:
    steps = np.minimum(case["branchpoint"], case["n_steps"])
    base_steps = case["n_steps"] - steps
    in_time = base_steps[:, None] + case["try_steps"] <= case["max_steps"][:, None]
    valid = (case["try_kind"] == NORMAL_END) & in_time
    new = case["try_reward"], case["try_steps"]
    pair = jax.jit(jax.vmap(ops.pair_branches))(
        case["reward"], steps, *new, valid, case["accuracy"], case["num_branches"]
    )
    attempts, kept, preference_original, preference_new = (np.asarray(x) for x in pair)
    found = kept >= 0
    new_reward, new_steps = (
        np.where(found, np.take_along_axis(x, np.maximum(kept, 0)[:, None], 1)[:, 0], 0)
        for x in new
    )
    # With accuracy 0 only a reward that crosses the threshold contrasts.
    crossed = found & (
        np.asarray(ops.branch_preference(case["reward"], steps, new_reward, 0, 0.0)) != 0
    )
    # Messages alternate, and the last one of a row is the model's: the environment's answer to the
    # prefix belongs to the suffix.
    turn = MODEL_TOKENS + ENVIRONMENT_TOKENS
    got = {
        "attempts_run": attempts,
        "branches_kept": 1 + found,
        "preference_original": preference_original,
        "preference_new": preference_new,
        "reward_new": new_reward,
        "steps_original_suffix": steps,
        "steps_new": new_steps,
        "base_len": np.where(base_steps > 0, turn * base_steps - ENVIRONMENT_TOKENS, 0),
        "efficient_pairs": found & ~crossed,
        "reward_pairs": crossed,
        "original_suffix_tokens": turn * steps - np.where(base_steps > 0, 0, ENVIRONMENT_TOKENS),
        "original_suffix_active": MODEL_TOKENS * steps,
        "original_suffix_first_active": np.where(steps > 0, MODEL_TOKENS, 0),
    }
    return got, {"reward_new": ("no_pair", np.nan_to_num(case["out_reward_new"], nan=0.0))}


FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {
    "branpo_grpo": replay_grpo,
    "branpo_advantage": replay_advantage,
    "branpo_pipeline": replay_pipeline,
    "branpo_rules": replay_rules,
    "branpo_pairing": replay_pairing,
}
