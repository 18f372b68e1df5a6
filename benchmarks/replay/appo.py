"""APPO: branching, reward scale, dual-group advantages, future-KL loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from replay.cases import Case, Deviations, Results, step_ids

from steprl import ops

PAD = 0

future_value = jax.jit(
    jax.vmap(ops.appo_future_value, in_axes=(0, 0, None, None)), static_argnums=3
)
scores = jax.jit(jax.vmap(lambda *rows: ops.appo_branching_scores(*rows, negative_pairs="product")))
select = jax.jit(ops.select_branch_points, static_argnames=("budget", "refill"))


def token_texts(case: Case, ids: np.ndarray) -> np.ndarray:
    """What each id decodes to: ids that the table of the file lacks are words."""
    table = zip(case["token_table_ids"].tolist(), case["token_table_text"].tolist(), strict=True)
    texts = dict(table)
    return np.array([texts.get(i, "word") for i in ids.reshape(-1).tolist()]).reshape(ids.shape)


def nonblank(texts: np.ndarray, punctuation: bool = True) -> np.ndarray:
    """Whether the text of each token is not blank."""
    return ops.nonblank_tokens(texts.reshape(-1).tolist(), punctuation=punctuation).reshape(
        texts.shape
    )


def continue_from(
    prompt: np.ndarray,
    response: np.ndarray,
    token_index: int,
    generated: np.ndarray,
    max_response_length: int,
) -> np.ndarray:
    """A response restarted behind one of its tokens: prompt, prefix, what was generated since."""
    prefix = response[: token_index + 1]
    return np.concatenate([prompt, np.append(prefix, generated)[:max_response_length]])


def ragged(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of several lengths side by side, -1 behind their ends."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, np.int64)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def replay_request(case: Case) -> tuple[Results, Deviations]:
    responses, length = case["responses"], case["responses"].shape[1]
    ids = step_ids(case["loss_mask"])
    log_ratio = case["current_log_probs"] - case["behavior_log_probs"]
    value = future_value(log_ratio, ids, case["gamma"], case["clip_eps"])
    score, strict = scores(case["entropies"], ids, value)
    candidate = (np.asarray(ids) >= 0) & nonblank(token_texts(case, responses))

    origin, token, chosen = [], [], []
    initial = np.flatnonzero(case["is_init"])
    for prompt in dict.fromkeys(case["group_ids"][initial].tolist()):  # in order of appearance
        rows = initial[case["group_ids"][initial] == prompt]
        points = select(
            score[rows],
            strict[rows],
            candidate[rows],
            budget=max(case["budget"], 0),
            refill="cycle",
        )
        found = np.asarray(points.row_b) >= 0
        origin.append(rows[np.asarray(points.row_b)[found]])
        token.append(np.asarray(points.token_b)[found])
        chosen.append(np.asarray(points.score_b)[found])
    origin, token, chosen = (np.concatenate([*x, []]) for x in (origin, token, chosen))
    origin, token = origin.astype(np.int64), token.astype(np.int64)

    def without_pads(tokens: np.ndarray) -> np.ndarray:
        return tokens[tokens != PAD]

    prompts = [without_pads(case["prompts"][row]) for row in origin]
    prefixes = [
        without_pads(continue_from(prompt, responses[row], at, np.array([], np.int64), length))
        for prompt, row, at in zip(prompts, origin, token, strict=True)
    ]
    size = np.array([len(prompt) for prompt in prompts], np.int64)
    prefix_size = np.array([len(prefix) for prefix in prefixes], np.int64)
    remaining = length - (prefix_size - size)
    kept = np.flatnonzero(remaining > 0)  # a full response is dropped after the budget is filled
    got = {
        "none": len(kept) == 0,
        "n_request": len(kept),
        "orig_row": origin[kept],
        "token_idx": token[kept],
        "score": chosen[kept],
        "remaining_len": remaining[kept],
        "prefix": ragged([prefixes[i] for i in kept]),
        "prefix_len": prefix_size[kept],
        "prompt": ragged([prompts[i] for i in kept]),
        "prompt_len": size[kept],
    }
    if case["check"] == "unstable":
        # Which tokens are chosen hangs on rounding there, and the widths of the tables with them.
        got |= {n: laid_out(x, np.shape(case.get(f"out_{n}", x))) for n, x in got.items()}
        return got, {}
    chosen_points = np.stack([origin, token])[:, kept]
    return got, tied(case, got, chosen_points, np.asarray(score), np.asarray(strict))


def tied(
    case: Case, got: Results, point: np.ndarray, score: np.ndarray, strict: np.ndarray
) -> Deviations:
    """Requests for which the reference took another token of the same rank, by a rounding.

    The scores of a row of two tokens are the same where one has the higher entropy and the other
    the higher future value. Lays such results out as the reference's.
    """
    if "out_token_idx" not in case or len(case["out_token_idx"]) != point.shape[1]:
        return {}
    other = np.stack([case["out_orig_row"], case["out_token_idx"]])
    ours, theirs = score[tuple(point)], score[tuple(other)]
    same = np.abs(ours - theirs) <= 8 * np.finfo(score.dtype).eps * np.abs(ours)
    same &= strict[tuple(point)] == strict[tuple(other)]
    same &= case["group_ids"][point[0]] == case["group_ids"][other[0]]
    same &= (point != other).any(axis=0)
    deviations: Deviations = {}
    for name in got if same.any() else ():
        reference = case[f"out_{name}"]
        if np.ndim(reference):
            got[name] = laid_out(got[name], reference.shape)
            moved = same.reshape(-1, *[1] * (reference.ndim - 1))
            deviations[name] = ("tied", np.where(moved, got[name], reference))
    return deviations


def laid_out(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same numbers cut or filled up to another shape of the same rank."""
    table = np.full(shape, -1, np.asarray(x).dtype)
    part = tuple(slice(min(a, b)) for a, b in zip(np.shape(x), shape, strict=True))
    table[part] = np.asarray(x)[part]
    return table


def replay_brancher(case: Case) -> tuple[Results, Deviations]:
    texts = token_texts(case, case["token_ids"])
    entropy = ops.entropy_from_topk(case["topk_logprobs"])
    counts = nonblank(texts, punctuation=False)
    value = None
    if case["use_future"]:
        given = case["future_values"][: len(texts)]
        value = jnp.ones_like(entropy).at[: len(given)].set(given)  # missing ones are 1
    every = jnp.zeros(len(texts), jnp.int32)
    score, strict = ops.appo_branching_scores(
        entropy, every, value, where=counts, negative_pairs="product", epsilon=0.0
    )
    index = np.flatnonzero(strict)
    points = ops.select_branch_points(score[None], strict[None], strict[None], 3)
    top = np.asarray(points.token_b)[np.asarray(points.kind_b) >= 0]
    got = {"entropy": entropy, "idx": index, "score": np.asarray(score)[index], "top3_idx": top}
    deviations: Deviations = {}
    if equal(np.asarray(entropy)[counts]) or (value is not None and equal(value[counts])):
        # Nothing stands out; whatever the reference chose there, it chose by a rounding.
        for name in ("idx", "score", "top3_idx"):
            got[name] = laid_out(got[name], np.shape(case[f"out_{name}"]))
            deviations[name] = ("flat", np.full(np.shape(case[f"out_{name}"]), -1))
    return got, deviations


def equal(x: np.ndarray) -> bool:
    """Whether two numbers or more are equal up to rounding."""
    x = np.asarray(x)
    return len(x) > 1 and bool(np.ptp(x) <= 8 * np.finfo(x.dtype).eps * np.abs(x).max())


def replay_future_values(case: Case) -> tuple[Results, Deviations]:
    ids = step_ids(case["mask"])
    got = {"future_values": future_value(case["log_ratio"], ids, case["gamma"], case["clip_eps"])}
    active = np.where(case["mask"] != 0, case["out_future_values"], 0)
    return got, {"future_values": ("future", active)}


def replay_build_rollout(case: Case) -> tuple[Results, Deviations]:
    limit = case["max_response_len"]
    tokens = continue_from(
        case["prompt"], case["response"], case["branch_token_idx"], case["generated"], limit
    )
    # The reference trains no token of a branch: its loss mask is 0 throughout.
    return {"tokens": tokens, "mask": np.zeros(limit, np.int64)}, {}


def replay_reward_factor(case: Case) -> tuple[Results, Deviations]:
    names = ("token_idx", "score", "max_score", "length", "discount")
    return {"M": ops.appo_reward_factor(*(case[name] for name in names))}, {}


def replay_reward_scale(case: Case) -> tuple[Results, Deviations]:
    rewards = jax.jit(ops.appo_reward_scale)(
        case["rewards"],
        case["meta_orig_row"],
        case["meta_token_idx"],
        case["meta_score"],
        case["meta_branch_row"] >= 0,
        case["discount"],
    )
    return {"rewards": rewards}, {}


def replay_advantage(case: Case) -> tuple[Results, Deviations]:
    prompts, prompt_n = np.unique(case["group_ids"], return_inverse=True)
    # Rewards of masked tokens count here; a NaN among them is still not read.
    counted = (case["mask"] != 0) | ~np.isnan(case["rewards"])
    score = ops.masked_sum(case["rewards"], counted, axis=-1)
    advantages = jax.jit(ops.appo_advantages, static_argnames=("num_groups", "kind"))(
        score,
        prompt_n,
        num_groups=len(prompts),
        is_initial_n=case["is_init"],
        where=case["mask"],
        origin_b=case["meta_orig_row"],
        branch_b=case["meta_branch_row"],
        token_b=case["meta_token_idx"],
        kind="grpo" if case.get("norm_by_std", True) else "dr_grpo",
    )
    got = {"advantages": advantages, "returns": advantages}
    expected, residue = without_residue(case, np.asarray(score))
    if not residue.any() or np.isnan(case["out_advantages"]).any():
        return got, {}
    return got, {
        name: ("appo_equal", np.where(residue[:, None], expected, case[f"out_{name}"]))
        for name in got
    }


def without_residue(case: Case, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the rows should get, and those with a part from a group whose scores are equal."""
    initial, mask = case["is_init"] != 0, case["mask"] != 0
    own, alike = np.zeros(len(score)), np.zeros(len(score), bool)
    for prompt in np.unique(case["group_ids"]):
        for members in (
            (case["group_ids"] == prompt) & (initial == kind) for kind in (True, False)
        ):
            alike[members] = equal(score[members])
            if members.sum() > 1 and not alike[members].any():
                x = score[members].astype(np.float64)
                scale = x.std() + 1e-6 if case.get("norm_by_std", True) else 1
                own[members] = (x - x.mean()) / scale
    total, number, residue = np.zeros(mask.shape), np.zeros(mask.shape), alike & initial
    names = ("meta_orig_row", "meta_branch_row", "meta_token_idx")
    for origin, branch, token in zip(*(case[name] for name in names), strict=True):
        inside = 0 <= origin < len(score) and 0 <= branch < len(score) and token >= 0
        if inside and initial[origin] and not initial[branch]:
            total[origin, : token + 1] += own[branch]
            number[origin, : token + 1] += 1
            residue[origin] |= alike[branch]
    expected = own[:, None] + total / np.maximum(number, 1)
    return np.where(initial[:, None] & mask, expected, 0), residue


def replay_future_kl(case: Case) -> tuple[Results, Deviations]:
    def loss(log_prob: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return ops.future_kl_policy_loss(
            log_prob,
            case["old_log_prob"],
            case["advantages"],
            step_ids(case["mask"]),
            weight=case["future_kl_weight"],
            clip_low=case.get("clip_ratio_low", case["clip_ratio"]),
            clip_high=case.get("clip_ratio_high", case["clip_ratio"]),
            dual_clip=case["clip_ratio_c"],
            decay=case["decay_rate"],
            future_clip=case["future_kl_clip_ratio"],
            high_only=bool(case["future_kl_clip_high_only"]),
            safety=case["safety_thresh"],
            reduction=case["loss_agg_mode"],
        )

    (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["log_prob"])
    got = {"loss": value, "grad_log_prob": grad} | metrics
    got |= {name: metrics[f"pg_{name}"] for name in ("clipfrac", "clipfrac_lower")}
    return got, {}


REASONS: dict[str, str] = {
    "appo_equal": "equal scores of a group give 0, where the reference divides a rounding residue",
    "flat": "equal numbers have no z above 0: no candidate, where the reference takes a residue",
    "tied": "equal scores keep the order of reading, where a rounding decides in the reference",
    "future": "future values of masked tokens are 0, where the reference has numbers nobody reads",
}
FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {
    "appo_request": replay_request,
    "appo_brancher": replay_brancher,
    "appo_future_values": replay_future_values,
    "appo_build_rollout": replay_build_rollout,
    "appo_reward_scale": replay_reward_scale,
    "appo_M": replay_reward_factor,
    "appo_advantage": replay_advantage,
    "appo_future_kl": replay_future_kl,
}
