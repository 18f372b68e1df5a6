"""A loss mask is not step ids: what takes ids says so, wherever it can see it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl import ops
from tests.ops import batch_ops, token_ops
from tests.ops.token_ops import T

ROW = jnp.linspace(-2.0, -1.0, T)
MASK = np.array([0, 0, 1, 1, 0, 1, 1])

# Every function that takes ids, with them as its only argument.
BINS = ops.ValueSupport(0.0, 1.0, 12, 0.75)
OF_A_ROW = {
    "step_starts": ops.step_starts,
    "reduce_steps": lambda ids: ops.reduce_steps(ROW, ids, T),
    "broadcast_steps": lambda ids: ops.broadcast_steps(ROW, ids),
    "token_gae": lambda ids: ops.token_gae(ROW, ROW, ROW, 0.9, ids),
    "appo_future_value": lambda ids: ops.appo_future_value(ROW, ids),
    "appo_branching_scores": lambda ids: ops.appo_branching_scores(ROW, ids),
    "arpo_candidates": ops.arpo_candidates,
}
OF_ROWS = {
    "reinforce_pp_advantages": lambda ids: ops.reinforce_pp_advantages(ROW[None], ids),
    "reinforce_pp_baseline_advantages": lambda ids: ops.reinforce_pp_baseline_advantages(
        ROW[:1], jnp.zeros(1, int), 1, ids
    ),
    "branpo_masks": lambda ids: ops.branpo_masks(ids, jnp.zeros(1, int), jnp.ones(1)),
}
OF_BOTH = {
    "aggregation_weights": ops.aggregation_weights,
    "aggregate": lambda ids: ops.aggregate(like(ids), ids),
    "aggregate with weights": lambda ids: ops.aggregate(like(ids), ids, weights_t=like(ids)),
    "log_ratio": lambda ids: ops.log_ratio(like(ids), like(ids), ids),
    "policy_loss": lambda ids: ops.policy_loss(like(ids), like(ids), like(ids), ids),
    "value_loss": lambda ids: ops.value_loss(like(ids), like(ids), like(ids), ids),
    "hl_gauss_loss": lambda ids: ops.hl_gauss_loss(
        jnp.stack([like(ids)] * BINS.bins, axis=-1), like(ids), ids, BINS
    ),
    "kl_penalty": lambda ids: ops.kl_penalty(like(ids), like(ids), step_ids_t=ids),
    "future_kl_weights": lambda ids: ops.future_kl_weights(like(ids), like(ids), ids),
    "future_kl_policy_loss": lambda ids: ops.future_kl_policy_loss(
        like(ids), like(ids), like(ids), ids
    ),
    "rollout_correction_weights": lambda ids: ops.rollout_correction_weights(
        like(ids), like(ids), ids
    ),
}
TAKES_IDS = [
    *(pytest.param(call, "step_ids_t", id=name) for name, call in (OF_A_ROW | OF_BOTH).items()),
    *(
        pytest.param(lambda ids, call=call: call(ids[None]), "step_ids_nt", id=name)
        for name, call in OF_ROWS.items()
    ),
    *(
        pytest.param(lambda ids, call=call: call(ids[None]), "step_ids_t", id=f"{name} of rows")
        for name, call in OF_BOTH.items()
    ),
]
takes_ids = pytest.mark.parametrize(("call", "argument"), TAKES_IDS)


def like(ids):
    """Numbers of the shape of the ids."""
    return jnp.broadcast_to(ROW[: ids.shape[-1]], ids.shape)


def policy_loss(ids):
    return ops.policy_loss(like(ids), like(ids) - 0.1, like(ids), ids)[0]


@takes_ids
def test_a_bool_mask_is_refused(call, argument):
    with pytest.raises(ValueError, match=rf"{argument} is a bool mask.*step_ids_from_mask\(mask\)"):
        call(MASK != 0)


@takes_ids
def test_a_mask_of_integers_is_refused(call, argument):
    message = rf"{argument} interleaves the tokens of its steps.*step_ids_from_mask\(mask\)"
    with pytest.raises(ValueError, match=message):
        call(MASK)
    with pytest.raises(ValueError, match=message):
        call(jnp.array(MASK))


@takes_ids
@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
def test_other_types_are_refused(call, argument, dtype):
    with pytest.raises(ValueError, match=f"{argument} must be signed integers.*{np.dtype(dtype)}"):
        call(MASK.astype(dtype))


def test_a_mask_is_refused_under_jit_and_vmap_by_its_type():
    for lifted in (jax.jit(policy_loss), jax.vmap(policy_loss)):
        with pytest.raises(ValueError, match="is a bool mask"):
            lifted(jnp.array([MASK, MASK]) != 0)


def test_every_function_with_step_ids_is_tried_here():
    tried = {name.split()[0] for name in OF_A_ROW | OF_ROWS | OF_BOTH}
    code = {
        name: getattr(ops, name).__code__.co_varnames[: getattr(ops, name).__code__.co_argcount]
        for name in {n.split()[0] for n in (*token_ops.NAMES, *batch_ops.NAMES)}
    }
    assert tried == {
        name for name, names in code.items() if {"step_ids_t", "step_ids_nt"} & {*names}
    }


@pytest.mark.parametrize(
    "ids",
    [
        [-1, 0, 0, -1, 0, 1, -1],  # masked tokens inside a step
        [-1, 7, 7, 3, -1, 3, 5],  # in any order, from any number
        [0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 1, 2, 3, 4, 5, 6],
        [-1, -1, 1, 1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1],
        [0, 0, -1, 1, 1, 1, 1],
    ],
)
def test_step_ids_pass_without_a_word(ids):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (np.array(ids), np.array([ids, ids])):  # each row has its own step 0
            assert np.isfinite(policy_loss(rows))


@pytest.mark.slow  # op by op, for two more shapes
def test_neither_no_row_nor_no_token_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(policy_loss(np.zeros((0, T), int)))
        assert policy_loss(np.zeros(0, int)) == 0


@pytest.mark.parametrize("ids", [[0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
def test_ids_that_may_be_a_mask_bring_a_warning(ids):
    with pytest.warns(UserWarning, match=r"every token counts as sampled.*step_ids_from_mask"):
        policy_loss(np.array(ids))


def test_the_warning_is_shown_once_a_process():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            policy_loss(np.array([0, 0, 0, 0, 1, 1, 1]))
    assert len(seen) == 1


def test_ids_out_of_a_mask_train_the_sampled_tokens_only():
    ids = ops.step_ids_from_mask(MASK)
    gradient = jax.grad(lambda x: ops.policy_loss(x, ROW, -ROW, ids)[0])(ROW)
    np.testing.assert_array_equal(gradient != 0, MASK != 0)


@pytest.mark.slow
def test_compiled_functions_take_ids_as_they_come():
    """The values of tracers are not looked at, so nothing breaks under transformations."""
    ids = jnp.array([[-1, 0, 0, -1, 1, 1, 2]] * 8)
    expected = policy_loss(ids)
    np.testing.assert_allclose(jax.jit(policy_loss)(ids), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(policy_loss)(ids), [expected] * 8, rtol=1e-6)
    np.testing.assert_allclose(jax.pmap(policy_loss)(ids), [expected] * 8, rtol=1e-6)
    jax.jit(policy_loss)(jnp.array([MASK]))  # the documented limit


def test_constants_of_a_compiled_function_are_seen():
    with pytest.raises(ValueError, match="interleaves"):
        jax.jit(lambda x: ops.policy_loss(x, ROW, ROW, MASK)[0])(ROW)
