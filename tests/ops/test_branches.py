"""BranPO: which tokens of a prefix and of its suffixes are credited with what."""

import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.ops import branches

FEW = settings(max_examples=20, deadline=None)
NAN = float("nan")
N, T, GROUPS = 8, 10, 3
STATIC = ("num_groups", "kind", "redundant")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

branpo = jax.jit(ops.branpo_advantages, static_argnames=STATIC)
group = jax.jit(ops.group_advantages, static_argnames=("num_groups", "kind"))
masks_of = jax.jit(ops.branpo_masks)


# --- Masks ----------------------------------------------------------------------------------------

IDS = np.array([[-1, 0, -1, 1, 1, -1, 2, -1]], np.int32)


@pytest.mark.parametrize(
    ("branch_step", "original", "base", "branch", "first"),
    [
        (1, True, [1], [3, 4, 6], [3, 4]),
        (1, False, [], [3, 4, 6], [3, 4]),
        (2, True, [1, 3, 4], [6], [6]),
        (0, True, [], [1, 3, 4, 6], [1]),
        (3, True, [1, 3, 4, 6], [], []),
    ],
)
def test_a_row_is_split_at_its_branch_point(branch_step, original, base, branch, first):
    ours = masks_of(IDS, np.array([branch_step]), np.array([original]))
    for mask, tokens in zip(ours, (base, branch, first), strict=True):
        assert mask.dtype == bool
        assert np.flatnonzero(mask[0]).tolist() == tokens


def test_masks_are_disjoint_and_cover_the_active_tokens_of_original_rows():
    ids, at = layout(0)
    base, branch, first = masks_of(ids, at, np.ones(N))
    np.testing.assert_array_equal(base ^ branch, ids >= 0)
    assert not (base & branch).any()
    assert (first <= branch).all()


# --- Advantages -----------------------------------------------------------------------------------


def layout(seed):
    """Rows of up to four steps with masked tokens in between, and where their suffixes begin."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(0, 4, (N, T)), axis=1).astype(np.int32)
    return np.where(rng.random((N, T)) < 0.7, ids, -1), rng.integers(0, 4, N)


def example(seed=0):
    """Arguments of `branpo_advantages` by name; some prefixes and suffixes have no token."""
    rng = np.random.default_rng(seed)
    ids, at = layout(seed)
    ids[-1] = -1
    base, branch, first = (np.array(mask) for mask in masks_of(ids, at, rng.random(N) < 0.6))
    score = rng.choice([0.0, 0.3, 1.0], (2, N)).astype(np.float32)
    return {
        "base_score_n": score[0],
        "branch_score_n": score[1],
        "preference_n": rng.integers(-1, 2, N),
        "group_ids_n": rng.integers(0, GROUPS, N),
        "base_mask_nt": base,
        "branch_mask_nt": branch,
        "first_mask_nt": first,
    }


def advantages(batch, function=branpo, **options):
    return np.asarray(function(**batch, num_groups=GROUPS, **options))


def by_loops(batch, kind, redundant):
    """BranPO written from the paper, group by group and token by token."""

    def credit(score, mask):
        out = np.zeros(N)
        for prompt in range(GROUPS):
            rows = [n for n in range(N) if batch["group_ids_n"][n] == prompt and mask[n].any()]
            scores = score[rows].astype(np.float64)
            for n, s in zip(rows, scores, strict=True):
                mean, std = (0, 1) if len(rows) == 1 else (scores.mean(), np.std(scores, ddof=1))
                out[n] = s - mean if kind == "dr_grpo" else (s - mean) / (std + 1e-6)
        return out

    base_n = credit(batch["base_score_n"], batch["base_mask_nt"])
    branch_n = credit(batch["branch_score_n"], batch["branch_mask_nt"])
    out = np.zeros((N, T))
    for n, t in itertools.product(range(N), range(T)):
        if batch["base_mask_nt"][n, t]:
            out[n, t] += base_n[n]
        within = redundant == "suffix" or batch["first_mask_nt"][n, t]
        lost = batch["preference_n"][n] < 0 and branch_n[n] > 0 and within
        if batch["branch_mask_nt"][n, t] and not lost:
            out[n, t] += branch_n[n]
    return out


@pytest.mark.parametrize("redundant", ["first_step", "suffix"])
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_advantages_equal_a_loop(kind, redundant):
    for seed in range(10):
        batch = example(seed)
        ours = advantages(batch, kind=kind, redundant=redundant)
        np.testing.assert_allclose(ours, by_loops(batch, kind, redundant), rtol=1e-4, atol=1e-5)


@FEW
@given(st.lists(st.sampled_from([0.0, 0.25, 0.8, 1.0]), min_size=N, max_size=N), st.integers(0, 9))
def test_without_branches_it_is_grpo(score, seed):
    score = np.array(score, np.float32)
    ids, _ = layout(seed)
    prompt = np.random.default_rng(seed).integers(0, GROUPS, N)
    masks = masks_of(ids, np.zeros(N, int), np.ones(N))
    ours = branpo(np.full(N, NAN, "f"), score, np.zeros(N, int), prompt, GROUPS, *masks)
    active = ids >= 0
    grpo_n = np.asarray(group(score, prompt, GROUPS, "grpo", active.any(1)))
    np.testing.assert_array_equal(ours, np.where(active, grpo_n[:, None], 0))


# One prompt, two originals and their branches: a prefix of a token, a suffix of a step of two
# tokens and one of one. The scores are such that C is +0.5 or -0.5.
def pairs(preference):
    ids = np.tile(np.array([0, 1, 1, 2], np.int32), (4, 1))
    masks = masks_of(ids, np.ones(4, int), np.array([1, 0, 1, 0]))
    base, branch = np.array([0.75, NAN, 0.25, NAN], "f"), np.array([1, 1, 0, 0], "f")
    return base, branch, np.array(preference), np.zeros(4, int), 1, *masks


def test_a_redundant_first_step_gets_no_credit():
    ours = branpo(*pairs([-1, 1, 0, 0]), kind="dr_grpo")
    np.testing.assert_array_equal(ours[0], [0.25, 0, 0, 0.5])


def test_the_shipped_code_takes_the_credit_of_the_whole_suffix():
    ours = branpo(*pairs([-1, 1, 0, 0]), kind="dr_grpo", redundant="suffix")
    np.testing.assert_array_equal(ours[0], [0.25, 0, 0, 0])


@pytest.mark.parametrize("redundant", ["first_step", "suffix"])
@pytest.mark.parametrize("preference", [0, 1])
def test_a_row_that_did_not_lose_is_untouched(preference, redundant):
    ours = branpo(*pairs([preference] * 4), kind="dr_grpo", redundant=redundant)
    np.testing.assert_array_equal(ours[0], [0.25, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(ours[1], [0, 0.5, 0.5, 0.5])  # its prefix is the original's


@pytest.mark.parametrize("redundant", ["first_step", "suffix"])
def test_a_losing_suffix_keeps_what_is_not_positive(redundant):
    ours = branpo(*pairs([-1] * 4), kind="dr_grpo", redundant=redundant)
    np.testing.assert_array_equal(ours[2], [-0.25, -0.5, -0.5, -0.5])
    np.testing.assert_array_equal(ours[3], [0, -0.5, -0.5, -0.5])


def test_epsilon_is_added_to_the_standard_deviation():
    ours = branpo(*pairs([0] * 4), epsilon=1.0)
    std = np.sqrt(1 / 3), np.sqrt(1 / 8)  # of the suffixes and of the prefixes
    np.testing.assert_allclose(ours[0, 1], 0.5 / (std[0] + 1), rtol=1e-6)
    np.testing.assert_allclose(ours[0, 0], 0.25 / (std[1] + 1), rtol=1e-6)


def test_equal_scores_give_exactly_zero():
    _, _, *rest = pairs([-1, 1, 0, 0])
    np.testing.assert_array_equal(branpo(*[np.full(4, 0.1, "f")] * 2, *rest), 0)


@FEW
@given(st.permutations(range(N)), st.integers(0, 20))
def test_the_order_of_rows_does_not_matter(order, seed):
    batch, order = example(seed), np.array(order)
    shuffled = {name: x[order] for name, x in batch.items()}
    np.testing.assert_allclose(advantages(shuffled), advantages(batch)[order], **CLOSE)


def poisoned(batch):
    """NaN wherever a row has no token to credit."""
    empty = {name: ~batch[f"{name}_mask_nt"].any(1) for name in ("base", "branch")}
    assert all(x.any() for x in empty.values())
    return batch | {
        "base_score_n": np.where(empty["base"], np.float32(NAN), batch["base_score_n"]),
        "branch_score_n": np.where(empty["branch"], np.float32(NAN), batch["branch_score_n"]),
        "preference_n": np.where(empty["branch"], np.float32(NAN), batch["preference_n"]),
    }


def test_a_row_without_tokens_is_never_read():
    batch = example()
    np.testing.assert_array_equal(advantages(poisoned(batch)), advantages(batch))
    np.testing.assert_array_equal(advantages(poisoned(batch))[-1], 0)


@jax.jit
def gradients(batch, weight_nt):
    def total(base_score_n, branch_score_n):
        scores = {"base_score_n": base_score_n, "branch_score_n": branch_score_n}
        return jnp.sum(weight_nt * ops.branpo_advantages(**batch | scores, num_groups=GROUPS))

    return jax.grad(total, argnums=(0, 1))(batch["base_score_n"], batch["branch_score_n"])


@pytest.mark.parametrize("equal", [False, True], ids=["spread", "equal scores"])
def test_gradients_are_finite_and_zero_where_nothing_is_read(equal):
    batch = example()
    if equal:
        batch |= {name: np.full(N, 0.3, "f") for name in ("base_score_n", "branch_score_n")}
    batch = poisoned(batch)
    weight = np.random.default_rng(0).normal(size=(N, T)).astype(np.float32)
    for name, gradient in zip(("base", "branch"), gradients(batch, weight), strict=True):
        assert np.isfinite(gradient).all()
        empty = ~batch[f"{name}_mask_nt"].any(1)
        np.testing.assert_array_equal(np.where(empty, gradient, 0), 0)


def test_whole_scores_are_widened():
    batch = example()
    whole = {n: np.round(4 * batch[n]).astype(np.int32) for n in ("base_score_n", "branch_score_n")}
    widened = {n: x.astype(np.float32) for n, x in whole.items()}
    ours = branpo(**batch | whole, num_groups=GROUPS)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, advantages(batch | widened))


def test_masks_may_be_numbers():
    batch = example()
    numbers = {n: x.astype(np.float32) for n, x in batch.items() if x.dtype == bool}
    np.testing.assert_array_equal(advantages(batch | numbers), advantages(batch))


@pytest.mark.parametrize("option", [{"kind": "ppo"}, {"redundant": "all"}])
def test_unknown_names_are_refused(option):
    with pytest.raises(ValueError, match="is unknown; allowed"):
        advantages(example(), **option)


def test_shapes_are_checked():
    batch = example()
    with pytest.raises(AssertionError):
        advantages(batch | {"first_mask_nt": batch["first_mask_nt"][:, 1:]})
    with pytest.raises(AssertionError):
        advantages(batch | {"base_score_n": batch["base_score_n"][1:]})
    with pytest.raises(AssertionError):
        ops.branpo_masks(np.zeros((2, 3), int), np.zeros(3, int), np.zeros(2))


@pytest.mark.slow
def test_the_examples_of_the_documentation():
    failed, tried = doctest.testmod(branches)
    assert tried > 0
    assert failed == 0
