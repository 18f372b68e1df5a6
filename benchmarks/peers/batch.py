"""The batch that both sides take, laid out as the published trainers lay it out."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Batch:
    """Rows are responses; the ids are Python strings, as in the trainers."""

    rewards: np.ndarray
    values: np.ndarray
    entropy: np.ndarray
    current: np.ndarray
    behavior: np.ndarray
    mask: np.ndarray
    trajectories: np.ndarray
    groups: np.ndarray
    steps: np.ndarray
    anchors: np.ndarray


def make_batch(prompts: int, samples: int, steps: int, tokens: int, seed: int = 0) -> Batch:
    """`samples` trajectories of each prompt, all of `steps` rows, in shuffled order."""
    rng = np.random.default_rng(seed)
    rows = prompts * samples * steps
    shape = (rows, tokens)
    rewards, values, behavior, noise = rng.normal(size=(4, *shape)).astype(np.float32)
    length = rng.integers(tokens // 2, tokens + 1, size=(rows, 1))
    tool = rng.integers(0, tokens, size=(rows, 1))  # tool output, not sampled by the policy
    t = np.arange(tokens)
    mask = ((t < length) & ((t < tool) | (t >= tool + tokens // 8))).astype(np.int64)
    names = np.array([rng.bytes(16).hex() for _ in range(prompts * samples)], object)
    prompt_names = np.array([rng.bytes(16).hex() for _ in range(prompts)], object)
    order = rng.permutation(rows)
    trajectory = np.arange(rows) // steps
    places = [
        f"You are in room {i} of the house. You see a desk, a drawer {i % 7} and a lamp. "
        "What do you do next?"
        for i in range(2 * steps)
    ]
    return Batch(
        rewards=rewards,
        values=values,
        entropy=np.abs(noise),
        current=behavior + 0.002 * noise[::-1],
        behavior=behavior,
        mask=mask,
        trajectories=names[trajectory][order],
        groups=prompt_names[trajectory // samples][order],
        steps=(np.arange(rows) % steps)[order],
        anchors=np.array([places[i] for i in rng.integers(0, len(places), rows)], object),
    )
