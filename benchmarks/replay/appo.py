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


def worded(texts: np.ndarray, punctuation: bool = True) -> np.ndarray:
    """Whether the text of each token says something."""
    return ops.worded_tokens(texts.reshape(-1).tolist(), punctuation=punctuation).reshape(
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
    candidate = (np.asarray(ids) >= 0) & worded(token_texts(case, responses))

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


def laid_out(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same numbers cut or filled up to another shape of the same rank."""
    table = np.full(shape, -1, np.asarray(x).dtype)
    part = tuple(slice(min(a, b)) for a, b in zip(np.shape(x), shape, strict=True))
    table[part] = np.asarray(x)[part]
    return table


def replay_brancher(case: Case) -> tuple[Results, Deviations]:
    texts = token_texts(case, case["token_ids"])
    entropy = ops.entropy_from_topk(case["topk_logprobs"])
    counts = worded(texts, punctuation=False)
    value = None
    if case["use_future"]:
        given = case["future_values"][: len(texts)]
        value = jnp.ones_like(entropy).at[: len(given)].set(given)  # missing ones are 1
    every = jnp.zeros(len(texts), jnp.int32)
    score, strict = ops.appo_branching_scores(
        entropy, every, value, where_t=counts, negative_pairs="product", epsilon=0.0
    )
    index = np.flatnonzero(strict)
    points = ops.select_branch_points(score[None], strict[None], strict[None], 3)
    top = np.asarray(points.token_b)[np.asarray(points.kind_b) >= 0]
    got = {"entropy": entropy, "idx": index, "score": score[index], "top3_idx": top}
    return got, {}


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
    # The reference trains no token of a branch: its loss mask is dark throughout.
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
    advantages = jax.jit(ops.appo_advantages, static_argnames=("num_groups", "kind"))(
        jnp.sum(case["rewards"], axis=-1),
        prompt_n,
        num_groups=len(prompts),
        is_initial_n=case["is_init"],
        mask_nt=case["mask"],
        origin_b=case["meta_orig_row"],
        branch_b=case["meta_branch_row"],
        token_b=case["meta_token_idx"],
        kind="grpo" if case.get("norm_by_std", True) else "dr_grpo",
    )
    return {"advantages": advantages, "returns": advantages}, {}


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
    "future": "future values of dark tokens are 0, where the reference has numbers nobody reads",
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
