"""The ops that compare the rows of a batch, in one table for the tests of what all of them promise."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from steprl import ops
from tests.ops.battery import NAN

# No two alike, so that a shape says which axes it has.
N, T, B, BUDGET = 8, 5, 12, 30  # some branches find no token, or one that has a branch
G, ANCHORS = 3, 6


class Batch(NamedTuple):
    """Trajectories, their tokens (or steps), and the branches between them."""

    score_n: np.ndarray
    other_n: np.ndarray
    x_nt: np.ndarray
    y_nt: np.ndarray
    z_nt: np.ndarray
    score_b: np.ndarray
    group_ids_n: np.ndarray
    step_ids_nt: np.ndarray
    anchor_ids_nt: np.ndarray
    is_initial_n: np.ndarray
    branch_step_n: np.ndarray
    preference_n: np.ndarray
    origin_b: np.ndarray
    branch_b: np.ndarray
    token_b: np.ndarray
    placed_b: np.ndarray


FLOATS = ("score_n", "other_n", "x_nt", "y_nt", "z_nt", "score_b")


def branpo(b, redundant):
    base_nt, branch_nt, first_nt = ops.branpo_masks(b.step_ids_nt, b.branch_step_n, b.is_initial_n)
    # The score of an empty prefix or suffix is never read.
    base_n = jnp.where(base_nt.any(axis=1), b.score_n, NAN)
    branch_n = jnp.where(branch_nt.any(axis=1), b.other_n, NAN)
    return ops.branpo_advantages(
        base_n, branch_n, b.preference_n, b.group_ids_n, G, base_nt, branch_nt, first_nt,
        redundant=redundant,
    )  # fmt: skip


def select(b, refill):
    candidate_nt = b.step_ids_nt >= 0
    return ops.select_branch_points(b.x_nt, b.y_nt > 0, candidate_nt, BUDGET, refill=refill)


OPS = {
    "group_advantages where": lambda b: ops.group_advantages(
        b.score_n, b.group_ids_n, G, "grpo", b.is_initial_n, ddof=0, singleton="zero"
    ),
    "gigpo_advantages": lambda b: ops.gigpo_advantages(
        b.score_n, b.group_ids_n, G, b.x_nt, b.anchor_ids_nt, ANCHORS, step_weight=0.5
    ),
    "reinforce_pp_advantages": lambda b: ops.reinforce_pp_advantages(b.x_nt, b.step_ids_nt, 0.9),
    "reinforce_pp_advantages shipped": lambda b: ops.reinforce_pp_advantages(
        b.x_nt, b.step_ids_nt, 0.9, across_gaps=False
    ),
    "reinforce_pp_baseline_advantages": lambda b: ops.reinforce_pp_baseline_advantages(
        b.score_n, b.group_ids_n, G, b.step_ids_nt
    ),
    "informative_groups": lambda b: ops.informative_groups(b.score_n, b.group_ids_n, G),
    "branpo_masks": lambda b: ops.branpo_masks(b.step_ids_nt, b.branch_step_n, b.is_initial_n),
    "branpo_advantages first_step": lambda b: branpo(b, "first_step"),
    "branpo_advantages suffix": lambda b: branpo(b, "suffix"),
    "select_branch_points none": lambda b: select(b, "none"),
    "select_branch_points cycle": lambda b: select(b, "cycle"),
    "appo_reward_scale": lambda b: ops.appo_reward_scale(
        jnp.where(b.step_ids_nt >= 0, b.x_nt, 0), b.origin_b, b.token_b, b.score_b, b.placed_b
    ),
    "appo_advantages": lambda b: ops.appo_advantages(
        b.score_n, b.group_ids_n, G, b.is_initial_n, b.step_ids_nt >= 0,
        b.origin_b, b.branch_b, b.token_b,
    ),
    "future_kl_policy_loss": lambda b: ops.future_kl_policy_loss(
        b.x_nt, b.y_nt, b.z_nt, b.step_ids_nt
    ),
    "rollout_correction_weights": lambda b: ops.rollout_correction_weights(
        b.x_nt, b.y_nt, b.step_ids_nt, level="step"
    ),
}  # fmt: skip
for kind in ops.KINDS:
    OPS[f"group_advantages {kind}"] = lambda b, k=kind: ops.group_advantages(
        b.score_n, b.group_ids_n, G, k
    )
NAMES = sorted(OPS)


def battery(batch):
    """Each op on one batch: {name: its results}."""
    return {name: op(batch) for name, op in OPS.items()}


def example(seed=0):
    """A group of one, one of equal scores, a row of no group, an empty row, branches of nobody."""
    rng = np.random.default_rng(seed)

    def floats(*shape):
        return rng.normal(size=shape).astype(np.float32)

    order = rng.permutation(N)
    group_ids_n = np.array([0, 0, 0, 0, 1, 1, 2, -1], np.int32)[order]
    is_initial_n = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)[order]
    step_ids_nt = np.sort(rng.integers(0, 3, (N, T)), axis=1)
    step_ids_nt = np.where(rng.random((N, T)) < 0.7, step_ids_nt, -1)
    step_ids_nt[order == 5] = -1
    anchor_ids_nt = 2 * group_ids_n[:, None] + rng.integers(0, 2, (N, T))
    score_n = floats(N)
    score_n[group_ids_n == 1] = 0.1
    # Half of the branches are as they should be, the others from anywhere to anywhere.
    anyone = [-1, *range(N), 99]
    origins, branches = (np.flatnonzero(where) for where in (order < 2, (order >= 2) & (order < 4)))
    half = B // 2
    return Batch(
        score_n=score_n,
        other_n=floats(N),
        x_nt=floats(N, T),
        y_nt=floats(N, T),
        z_nt=floats(N, T),
        score_b=np.append(np.abs(floats(half)), floats(half)),
        group_ids_n=group_ids_n,
        step_ids_nt=step_ids_nt.astype(np.int32),
        anchor_ids_nt=np.where(step_ids_nt >= 0, anchor_ids_nt, -1).astype(np.int32),
        is_initial_n=is_initial_n,
        branch_step_n=rng.integers(0, 3, N).astype(np.int32),
        preference_n=rng.integers(-1, 2, N).astype(np.int32),
        origin_b=np.append(rng.choice(origins, half), rng.choice(anyone, half)).astype(np.int32),
        branch_b=np.append(rng.choice(branches, half), rng.choice(anyone, half)).astype(np.int32),
        token_b=rng.integers(-1, T + 1, B).astype(np.int32),
        placed_b=rng.random(B) < 0.7,
    )


def counted(batch):
    """Where each float array holds a number that may be read."""
    in_group_n, active_nt = batch.group_ids_n >= 0, batch.step_ids_nt >= 0
    places = (in_group_n, in_group_n, active_nt, active_nt, active_nt, batch.placed_b)
    return dict(zip(FLOATS, places, strict=True))


def filled(batch, value):
    """The batch with `value` wherever nothing may be read."""
    places = counted(batch)
    return batch._replace(
        **{n: np.where(places[n], getattr(batch, n), np.float32(value)) for n in FLOATS}
    )


def in_order(batch, order):
    """The same batch with its rows in another order."""
    moved = {n: x[order] for n, x in batch._asdict().items() if n.endswith(("_n", "_nt"))}
    return batch._replace(
        **moved, origin_b=renamed(batch.origin_b, order), branch_b=renamed(batch.branch_b, order)
    )


def renamed(row, order):
    """Row numbers after the rows were put in another order; those of no row stay."""
    row = np.asarray(row)
    inside = (row >= 0) & (row < N)
    return np.where(inside, np.argsort(order)[np.clip(row, 0, N - 1)], row).astype(row.dtype)


def padded(batch):
    """With two more rows of no group, three more masked tokens, two more branches of nobody."""

    def pad(name, x):
        more = {"n": (0, 2), "t": (0, 3), "b": (0, 2)}
        width = [more[axis] for axis in name.rsplit("_", 1)[1]]
        nothing = NAN if name in FLOATS else 0 if x.dtype == bool else -1
        return np.pad(x, width, constant_values=nothing)

    return Batch(**{name: pad(name, x) for name, x in batch._asdict().items()})


def unpadded(result):
    """What `padded` added, cut off again."""
    size = {N + 2: N, T + 3: T}
    return result[tuple(slice(size.get(length, length)) for length in result.shape)]
