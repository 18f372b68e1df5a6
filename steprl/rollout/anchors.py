"""What each step saw, as ids: steps of one task that saw the same can be compared (GiGPO)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steprl.envs.device_env import DeviceEnv
from steprl.models.tokenizer import detokenize
from steprl.ops import anchor_ids
from steprl.types import StepBatch


def observations(batch: StepBatch) -> list[list[np.ndarray | None]]:
    """The tokens that were new to each step [N][S]: prompt or answer of the environment.

    None where there is no step. A row may have holes; steps may be any number of tokens apart.
    """
    ids_NT, mask_NS = np.asarray(batch.step_ids_NT), np.asarray(batch.mask_NS)
    tokens_NT, real_NT = np.asarray(batch.tokens_NT), np.asarray(batch.segment_ids_NT) > 0
    steps = mask_NS.shape[1]
    # The next action after each token is the one that the token was shown to.
    next_NT = np.where(ids_NT >= 0, ids_NT, steps)
    next_NT = np.minimum.accumulate(next_NT[:, ::-1], axis=1)[:, ::-1]
    seen_NT = real_NT & (ids_NT < 0)
    return [
        [
            tokens_NT[row][seen_NT[row] & (next_NT[row] == step)] if mask_NS[row, step] else None
            for step in range(steps)
        ]
        for row in range(len(ids_NT))
    ]


def with_anchors(batch: StepBatch, tokenizer: Any, similarity: float | None = None) -> StepBatch:
    """The batch with `anchor_NS`: one id for all steps of a task whose observations are the same.

    Args:
        batch: on the host or on devices of this process.
        tokenizer: turns tokens into text, for a similarity.
        similarity: ratio of difflib from which two texts are the same; None compares the tokens for
            equality.
    """
    seen, task_N = observations(batch), np.asarray(batch.task_N)
    keys: list[bytes | str] = []
    places: list[tuple[int, int]] = []
    for n, row in enumerate(seen):
        for s, tokens in enumerate(row):
            if tokens is not None:
                places.append((n, s))
                exact = similarity is None
                keys.append(tokens.tobytes() if exact else detokenize(tokenizer, tokens.tolist()))
    ids, _ = anchor_ids(keys, [int(task_N[n]) for n, _ in places], similarity=similarity)
    anchor_NS = np.full(batch.mask_NS.shape, -1, np.int32)
    for place, number in zip(places, ids, strict=True):
        anchor_NS[place] = number
    placed = jax.device_put(anchor_NS, getattr(batch.mask_NS, "sharding", None))
    return dataclasses.replace(batch, anchor_NS=placed)


def with_device_anchors(env: DeviceEnv, batch: StepBatch) -> StepBatch:
    """`with_anchors` without a similarity, inside a compiled program: of rows as the device plays them.

    What a step sees is the prompt, or what the action before was answered.
    """
    rows, steps = batch.mask_NS.shape
    width, block = env.prompt_width, env.action_width + env.observation_width
    blocks = batch.tokens_NT[:, width:].reshape(rows, steps, block)
    answers = blocks[:, :-1, env.action_width :]
    wide = max(width, env.observation_width)
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, wide - x.shape[-1])])  # noqa: E731
    seen = jnp.concatenate([pad(batch.tokens_NT[:, None, :width]), pad(answers)], axis=1)
    seen = seen.reshape(rows * steps, wide)
    task_M = jnp.repeat(batch.task_N, steps, total_repeat_length=rows * steps)
    there_M = batch.mask_NS.ravel()
    # Sorted by task and tokens, equal ones are adjacent.
    order_M = jnp.lexsort((*seen.T, task_M, ~there_M))
    keys = jnp.concatenate([seen, task_M[:, None], there_M[:, None]], axis=1)[order_M]
    new_M = jnp.any(keys[1:] != keys[:-1], axis=1)
    number_M = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), new_M.astype(jnp.int32)]))
    anchor_M = jnp.zeros(rows * steps, jnp.int32).at[order_M].set(number_M)
    anchor_NS = jnp.where(there_M, anchor_M, -1).reshape(rows, steps)
    return dataclasses.replace(batch, anchor_NS=anchor_NS)
