"""The smallest run that still has everything: a model of a few thousand numbers on `multihop`."""

import jax.numpy as jnp
import numpy as np

from steprl.config import Config, load_config
from steprl.types import Branches, StepBatch

SMALL = (
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_dim=8",
    "model.d_ff=32",
    "env.multihop.num_entities=8",
    "env.multihop.min_hops=2",
    "env.multihop.max_hops=2",
    "env.multihop.spare_steps=1",
    "rollout.batch_size=8",
    "actor.ppo_mini_batch_size=8",
    "sft.batch_size=8",
    "sft.warmup_steps=2",
    "eval.num_tasks=8",
    "trainer.total_training_steps=2",
    "trainer.test_freq=0",
    "trainer.save_freq=0",
)

# A method of each kind: a critic of steps and of tokens, groups, branches by contrast and by score.
KINDS = ("steppo", "ppo", "grpo", "branpo", "appo")


def small_config(*overrides: str) -> Config:
    """The small run with some settings changed."""
    return load_config(None, [*SMALL, *overrides])


def random_batch(
    seed: int, rows: int = 8, steps: int = 3, action: int = 3, vocab: int = 16
) -> StepBatch:
    """Ragged trajectories with holes: prompt, then a block a step of action and observation.

    Log-probs are made up (about one nat below nothing); the critic is asked nowhere. Rows are two
    attempts at each task; of the last four tasks the second attempt branched off from the first.
    """
    rng = np.random.default_rng(seed)
    prompt, seen = 3, 2
    length = prompt + steps * (action + seen)
    step_ids = np.full((rows, length), -1, np.int32)
    real = np.zeros((rows, length), bool)
    mask = np.zeros((rows, steps), bool)
    for row in range(rows):
        real[row, : rng.integers(1, prompt + 1)] = True
        for step in range(rng.integers(1, steps + 1)):
            begin = prompt + step * (action + seen)
            sampled = slice(begin, begin + rng.integers(1, action + 1))
            step_ids[row, sampled] = step
            real[row, sampled] = True
            real[row, begin + action : begin + action + rng.integers(0, seen + 1)] = True
            mask[row, step] = True
    last = mask & ~np.pad(mask[:, 1:], ((0, 0), (0, 1)))
    active = step_ids >= 0
    arrays = dict(
        tokens_NT=np.where(real, rng.integers(1, vocab, real.shape), 0).astype(np.int32),
        positions_NT=np.where(real, np.cumsum(real, axis=1) - 1, 0).astype(np.int32),
        segment_ids_NT=real.astype(np.int32),
        step_ids_NT=step_ids,
        logprob_NT=np.where(active, rng.uniform(-3, -2, real.shape), 0).astype(np.float32),
        entropy_NT=np.where(active, 1.0, 0.0).astype(np.float32),
        reward_NS=np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32),
        mask_NS=mask,
        terminated_NS=last,
        truncated_NS=np.zeros_like(mask),
        valid_NS=mask,
        stop_NS=mask.astype(np.int32),
        success_N=np.zeros(rows, bool),
        task_N=np.arange(rows, dtype=np.int32) // 2,
        sample_N=np.arange(rows, dtype=np.int32) % 2,
        # Each task shows one of two observations at a step.
        anchor_NS=np.where(
            mask, np.arange(rows)[:, None] // 2 * 2 + rng.integers(0, 2, mask.shape), -1
        ).astype(np.int32),
    )
    row = np.arange(rows, dtype=np.int32)
    branched = (row % 2 == 1) & (row >= rows - 8)
    middle = mask.sum(axis=1).astype(np.int32) // 2
    branches = dict(
        origin_N=np.where(branched, row - 1, row),
        step_N=middle,
        token_N=np.where(branched, prompt + middle * (action + seen), -1).astype(np.int32),
        score_N=np.where(branched, rng.uniform(-1, 1, rows), 0).astype(np.float32),
        preference_N=np.where(branched, rng.integers(-1, 2, rows), 0).astype(np.int32),
    )
    arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
    branches = {name: jnp.asarray(value) for name, value in branches.items()}
    return StepBatch(**arrays, branches=Branches(**branches), action_width=steps * action)
