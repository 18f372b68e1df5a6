"""The contract of a method: what a row of the table must hold, checked from shapes before it is used."""

from typing import Any

import jax
import jax.numpy as jnp

from steprl.algorithms import Algorithm, Credit, algorithm
from steprl.branching import ByScore, Contrast
from steprl.carried import OF_EVERY_METHOD, Carry
from steprl.config import AlgorithmConfig, Config
from steprl.ops import LEVEL_REDUCTIONS, REDUCTIONS
from steprl.rewards import REWARD_TRANSFORMS
from steprl.types import Branches, StepBatch

_ROWS, _TOKENS, _STEPS = 4, 12, 3
_RESERVED = {carry.name for carry in OF_EVERY_METHOD} | {
    transform.name for transform in REWARD_TRANSFORMS
}


GIVEN_METHOD = "method"
"""How messages call a method that was given as a value."""


def method_of(config: Config, method: Any = None) -> tuple[Algorithm, str]:
    """The configured method, or the one that was given; checked, and how messages call it.

    Raises:
        TypeError, ValueError: as of `check_contract` and `steprl.algorithms.algorithm`.
    """
    source = GIVEN_METHOD
    if method is None:
        source = f"algorithm.name={config.algorithm.name}"
        method = algorithm(config.algorithm.name, config.algorithm.options)
    check_contract(method, source, config.algorithm)
    return method, source


def check_contract(method: Algorithm, source: str, config: AlgorithmConfig) -> None:
    """A method keeps to the contract of `steprl.algorithms.Algorithm`; nothing is computed.

    Args:
        source: how the method was given, for messages.
        config: settings that its credit is given.

    Raises:
        TypeError: it is something else.
        ValueError: names the field, what is wrong with it, and what to give.
    """
    if not isinstance(method, Algorithm):
        kind = type(method).__name__
        raise TypeError(f"{source} is {kind}: give a steprl.algorithms.Algorithm")
    if problem := _problem_of_fields(method) or _problem_of_credit(method, config):
        raise ValueError(f"{source}: {problem}")


def _problem_of_fields(method: Algorithm) -> str | None:
    if method.ratio_level not in LEVEL_REDUCTIONS:
        return f"ratio_level={method.ratio_level!r}: allowed are {', '.join(LEVEL_REDUCTIONS)}"
    if method.reduction not in REDUCTIONS:
        return f"reduction={method.reduction!r}: allowed are {', '.join(REDUCTIONS)}"
    for name, kind in (("needs", str), ("carries", Carry)):
        values = getattr(method, name)
        if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
            return (
                f"{name}={values!r}: give a tuple of {kind.__name__}, with a comma behind one alone"
            )
    names = [carry.name for carry in method.carries]
    taken = [name for name in names if name in _RESERVED or names.count(name) > 1]
    if taken:
        return f"carries: the name {taken[0]!r} is taken; give each Carry a name of its own"
    if method.branching is not None and not isinstance(method.branching, Contrast | ByScore):
        return f"branching={method.branching!r}: give steprl.branching.Contrast or ByScore, or None"
    return None


def _problem_of_credit(method: Algorithm, config: AlgorithmConfig) -> str | None:
    """What is wrong with the shapes that credit and candidates give."""
    batch = _batch()
    shape = batch.tokens_NT.shape
    try:
        credit = jax.eval_shape(
            lambda batch, value_NT: method.credit(batch, value_NT, config),
            batch,
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
    except Exception as error:
        return f"credit(batch, value_NT, config) fails: {_first_line(error)}"
    if not isinstance(credit, Credit):
        return f"credit gives {type(credit).__name__}: give steprl.algorithms.Credit"
    for name, array in credit._asdict().items():
        if array.shape != shape:
            return f"credit gives {name} of shape {array.shape}: one number a token is {shape} here"
    if isinstance(method.branching, ByScore):
        nonblank_V = jax.ShapeDtypeStruct((8,), jnp.bool_)
        try:
            candidate_NT = jax.eval_shape(method.branching.candidates, batch, nonblank_V)
        except Exception as error:
            return f"branching.candidates(batch, nonblank_V) fails: {_first_line(error)}"
        if (candidate_NT.shape, candidate_NT.dtype) != (shape, jnp.bool_):
            return (
                f"branching.candidates gives {candidate_NT.dtype} of shape {candidate_NT.shape}: give "
                f"one bool a token, {shape} here"
            )
    return None


def _batch() -> StepBatch:
    """Shapes of a small batch that has everything."""

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    tokens = {name: array((_ROWS, _TOKENS), jnp.int32)
              for name in ("tokens_NT", "positions_NT", "segment_ids_NT", "step_ids_NT")}  # fmt: skip
    numbers = {name: array((_ROWS, _TOKENS), jnp.float32) for name in ("logprob_NT", "entropy_NT")}
    flags = {name: array((_ROWS, _STEPS), jnp.bool_)
             for name in ("mask_NS", "terminated_NS", "truncated_NS", "valid_NS")}  # fmt: skip
    row = array((_ROWS,), jnp.int32)
    return StepBatch(
        **tokens, **numbers, **flags, reward_NS=array((_ROWS, _STEPS), jnp.float32),
        stop_NS=array((_ROWS, _STEPS), jnp.int32), success_N=array((_ROWS,), jnp.bool_),
        task_N=row, sample_N=row, anchor_NS=array((_ROWS, _STEPS), jnp.int32),
        branches=Branches(row, row, row, array((_ROWS,), jnp.float32), row),
        action_width=_TOKENS,
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
