"""Random groups of trajectories that begin alike, as branches do."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from steprl.ops import pack_support
from steprl.types import Parent, Step, Trajectory

VOCAB = 20


def random_step(rng, observation, action, fresh=False, sets=False):
    """A step of so many tokens; `sets` draws each action token from a set of its own."""
    action_ids = rng.integers(1, VOCAB, action).astype(np.int32)
    keep = rng.random((action, VOCAB)) < 0.5
    keep[np.arange(action), action_ids] = True
    return Step(
        "", "", rng.integers(1, VOCAB, observation).astype(np.int32), action_ids,
        logprobs=-rng.uniform(2, 4, action).astype(np.float32),
        entropies=rng.random(action).astype(np.float32),
        reward=float(rng.normal()), terminated=False, truncated=False, stop_reason="stop_token",
        supports=np.asarray(pack_support(keep)) if sets else None, fresh=fresh,
    )  # fmt: skip


def trajectory(rng, task, steps, first, rebuilt=False, sets=False, parent=None, sample=0):
    """Goes on from the steps `first`. A rebuilt context repeats some of the one before it."""
    steps_, context = list(first), np.zeros(0, np.int32)
    for step in first:
        context = step.observation_ids if step.fresh else np.append(context, step.observation_ids)
        context = np.append(context, step.action_ids)
    for number in range(len(first), max(steps, len(first) + 1)):
        fresh = rebuilt and number > 0 and rng.random() < 0.7
        one = random_step(
            rng, rng.integers(number == 0 or fresh, 4), rng.integers(1, 5), fresh, sets
        )
        if fresh:
            kept = context[: rng.integers(0, len(context) + 1)][:12]
            ids = np.append(kept, one.observation_ids).astype(np.int32)
            one, context = dataclasses.replace(one, observation_ids=ids), np.zeros(0, np.int32)
        context = np.concatenate([context, one.observation_ids, one.action_ids])
        steps_.append(one)
    steps_[-1] = dataclasses.replace(steps_[-1], terminated=bool(rng.integers(2)), truncated=True)
    final = rng.integers(1, VOCAB, rng.integers(0, 3)).astype(np.int32)
    return Trajectory(task, sample, tuple(steps_), False, parent, final_observation_ids=final)


def branch(rng, origin, sample, steps, rebuilt, sets):
    """Goes on from a place of the origin, at the border of a step or within its action."""
    cut = int(rng.integers(0, len(origin.steps)))
    first = [dataclasses.replace(s, terminated=False, truncated=False) for s in origin.steps[:cut]]
    kept = int(rng.integers(0, len(origin.steps[cut].action_ids) + 1))
    if rng.random() < 0.5 or kept == 0:
        kept = 0
        if cut == 0:  # at least the task is the same
            one = origin.steps[0]
            new = random_step(rng, 0, rng.integers(1, 5), False, sets)
            first.append(dataclasses.replace(new, observation_ids=one.observation_ids))
    else:
        one, new = origin.steps[cut], random_step(rng, 0, rng.integers(1, 3), False, sets)
        join = lambda a, b: np.concatenate([a[:kept], b])  # noqa: E731
        first.append(
            dataclasses.replace(
                one,
                action_ids=join(one.action_ids, new.action_ids),
                logprobs=join(one.logprobs, new.logprobs),
                entropies=join(one.entropies, new.entropies),
                supports=join(one.supports, new.supports) if sets else None,
                terminated=False,
                truncated=False,
            )
        )
    return trajectory(
        rng, origin.task, steps, first, rebuilt, sets, Parent(origin.sample, cut, kept), sample
    )


def group(rng, task, members, steps=3, rebuilt=False, sets=False, nested=True):
    """One trajectory and others that go on from any of those before them, or from the first."""
    found = [trajectory(rng, task, rng.integers(1, steps + 1), (), rebuilt, sets)]
    for _ in range(members - 1):
        number = int(rng.integers(len(found))) if nested else 0
        new = branch(rng, found[number], len(found), int(rng.integers(1, steps + 1)), rebuilt, sets)
        found.append(new if len(new.steps) <= steps else found[number])
    return found


@st.composite
def groups(draw, number=2, members=3, rebuilt=False, sets=False):
    """`number` groups of 1 to `members` trajectories of at most 3 steps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [
        group(rng, task, draw(st.integers(1, members)), rebuilt=rebuilt, sets=sets)
        for task in range(number)
    ]
