"""The data that flows: host records of what happened, arrays for the update, and the axis legend.

Axis legend, used in every name of the project:

    ops           _t token   _s step   _n trajectory row, with _nt and _ns; rules in `steprl.ops`
    batched code  N trajectory row   T token   S step   A action token   B sampling row   C prompt chunk
                  M group of rows   G block of a group   U token of a block   P scored token of a group
                  D model width   V vocabulary   H query head   K key/value head   Z bin of values

One idea carries the design: tokens point at steps. ``step_ids[n, t]`` is the index, in row n's own
table of steps, of the step whose action sampled token t, and -1 for prompt, observation and padding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.ops import ValueSupport

Params = Any
"""A pytree of arrays: nested dicts with string keys."""

STOP_REASONS = (
    "running",
    "stop_token",
    "length",
    "context_full",
    "env_timeout",
    "env_crash",
)
"""Why an action ended, or what ended the trajectory behind it; compiled code returns the index."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One decision: what was read, the complete action, and what the environment answered.

    ``observation_ids`` are the tokens that this step added to the context, or where that is ``fresh``
    the whole of it; ``action_ids`` the tokens exactly as sampled, stop token included. Text is only a
    view of them.
    """

    observation: str
    action: str
    observation_ids: np.ndarray
    action_ids: np.ndarray
    logprobs: np.ndarray
    entropies: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    stop_reason: str
    valid: bool = True
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    supports: np.ndarray | None = None
    """[A, W] uint32, the set each token was drawn from (`ops.pack_support`); None: all tokens."""
    fresh: bool = False
    """The context was written anew: the observation stands for all that was before it."""
    privileged_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    """What only the critic is told of the state before the action; the policy never reads it."""


class Parent(NamedTuple):
    """From where a trajectory branched off, or its own suffix begins."""

    origin: (
        int  # sample of the trajectory of the same task whose beginning it shares; may be its own
    )
    step: int  # the first step of its own
    token: int = 0  # tokens of that step's action that are shared
    score: float = 0.0  # branching score of the place
    preference: int = 0  # +1 or -1 against the other suffix of its pair, 0 without one


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The steps of one attempt at one task; ``parent`` is None for one that knows of no branches."""

    task: int
    sample: int
    steps: tuple[Step, ...]
    success: bool
    parent: Parent | None = None
    final_observation_ids: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32)
    )
    """What the last action was answered, which no step has read; empty where it was not kept."""
    final_privileged_ids: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32)
    )
    """`Step.privileged_ids` of the state behind the last action, where its observation was kept."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """What the environment says of it beside reward and success, such as F1."""
    fault: str = ""
    """What went wrong with the environment, with its name, the task, the step and the value; "" where
    nothing did. Such an attempt is not learnt from, and its success is not counted."""

    @property
    def total_reward(self) -> float:
        """Undiscounted return."""
        return sum(step.reward for step in self.steps)


class Branches(NamedTuple):
    """How the rows of a batch descend from each other; an original row is its own origin."""

    origin_N: jax.Array  # int32, row whose prefix this row shares
    step_N: jax.Array  # int32, first step of the suffix that is the row's own
    token_N: jax.Array  # int32, last token of the shared prefix, -1 where there is none
    score_N: jax.Array  # float32, branching score of the place where it was cut
    preference_N: jax.Array  # int32, +1 or -1 against the other suffix of its pair, 0 without one


class Privileged(NamedTuple):
    """What only the critic reads: tokens that are put before actions in its view of the rows.

    P is divided among the contexts of a row as T is (`StepBatch.context_width`). Within a context the
    step ids do not fall. What is told again unchanged is not repeated in a context.
    """

    tokens_NP: jax.Array  # int32
    step_ids_NP: (
        jax.Array
    )  # int32, the step whose action it stands before; where the row has no such
    # step, it stands behind the last token; -1 at padding


class TreeLayout(NamedTuple):
    """How the model is run on a batch: each token once, however many rows begin with it.

    N = M * R: group m holds the contexts of the rows m * R .. m * R + R - 1, a token with the same
    ones before it only once. The tokens of a block stand in preorder of the tree of its contexts
    (of the trees, where they begin otherwise), so what a token sees stands before it. Places are
    those in the G * U tokens of a group.
    """

    tokens_MGU: jax.Array  # int32
    positions_MGU: jax.Array  # int32, place of the token in its context, 0 at padding
    segment_ids_MGU: jax.Array  # int32, number in preorder within the block, from 1; 0 at padding
    segment_ends_MGU: jax.Array  # int32, the first number that does not descend from the token
    target_MP: jax.Array  # int32, place of each token that is scored, G * U where there is none
    before_MP: jax.Array  # int32, place of the token that it was predicted from
    support_MPW: jax.Array | None  # uint32, what it was drawn from; None: all tokens
    scored_NT: jax.Array  # int32, which of the P each token of the batch is, -1 if not sampled
    last_N: jax.Array  # int32, place of the row's last token, -1 where it has none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepBatch:
    """Trajectories as arrays, one row each; holes and padding are allowed anywhere in a row."""

    tokens_NT: jax.Array  # int32, exactly the ids that were read and sampled
    positions_NT: jax.Array  # int32, place of the token in its context, 0 at padding
    segment_ids_NT: jax.Array  # int32, 0 at padding, k for the row's k-th context
    step_ids_NT: jax.Array  # int32, step that sampled the token, -1 elsewhere
    logprob_NT: jax.Array  # float32, log-prob under the distribution really sampled from
    entropy_NT: jax.Array  # float32, entropy of that distribution
    reward_NS: jax.Array  # float32, reward of the step
    mask_NS: jax.Array  # bool, the step exists
    terminated_NS: jax.Array  # bool, the environment ended here
    truncated_NS: jax.Array  # bool, a limit ended the trajectory here
    valid_NS: jax.Array  # bool, the environment understood the action
    stop_NS: jax.Array  # int32, why the action ended: index into STOP_REASONS
    success_N: jax.Array  # bool, the task was solved
    task_N: jax.Array  # int32, id of the task
    sample_N: jax.Array  # int32, which attempt at the task
    # What only some runs have:
    support_NTW: jax.Array | None = None  # uint32, bit v: token v could be sampled (top-k, top-p)
    anchor_NS: jax.Array | None = None  # int32, steps of a task that saw the same, -1 without step
    branches: Branches | None = None
    metrics_N: dict[str, jax.Array] | None = None  # float32, what the environment says of each row
    fault_N: jax.Array | None = None  # bool, the environment failed, perhaps before any step
    tree: TreeLayout | None = None  # rows that share a beginning run as one; None: each on its own
    privileged: Privileged | None = None  # what the critic is told beside; None: nothing
    action_width: int = dataclasses.field(metadata=dict(static=True), default=0)
    # ^ at least the sampled tokens of any row: heads run on these only
    context_width: int = dataclasses.field(metadata=dict(static=True), default=0)
    # ^ no context crosses a multiple of this many tokens; 0: a row is one block


class Policy(NamedTuple):
    """A language model as pure functions on a parameter pytree; users may pass their own.

    init(key) -> params
    apply(params, tokens_BT, positions_BT, segment_ids_BT, cache=None) -> (hidden_BTD, cache)
    unembed(params, hidden_..D) -> logits_..V in float32
    value(params, tokens_BT, positions_BT, segment_ids_BT, hidden_BTD) -> value_BT in float32;
        None where the model has no value head; with a support logits_BTZ of its bins. Where a batch has
        `privileged`, hidden_BTD is None: the critic is a network of its own
    For batches with a `tree`, apply and value also take segment_ends_BT and longest by name: the
        token q sees the token k where segment_id_k <= segment_id_q < segment_end_k and k's position
        is not behind its own; tokens stand in the order of their ids, and no context has more than
        `longest`. Without, a segment ends at its own id + 1: a token sees its own segment only.
    init_cache(batch, length) -> cache; slot s of a row holds the token at position s
    trunk(params, tokens_BT, positions_BT, segment_ids_BT, layers=, segment_ends_BT=, longest=) ->
        hidden_BTD behind the lowest `layers` layers, which apply goes on from where it is given
        trunk_BTD and trunk_layers by name; None where the model cannot be cut
    prepare(params) -> params that all the others take too: what is best done once before many calls
        on the same parameters, such as merging adapters; idempotent
    support: the bins of a critic that predicts a distribution of values; a run sets it from
        `critic.head`
    """

    init: Callable[..., Params]
    apply: Callable[..., tuple[jax.Array, Any]]
    unembed: Callable[[Params, jax.Array], jax.Array]
    value: Callable[..., jax.Array] | None
    init_cache: Callable[[int, int], Any]
    prepare: Callable[[Params], Params] = lambda params: params
    support: ValueSupport | None = None
    trunk: Callable[..., jax.Array] | None = None
