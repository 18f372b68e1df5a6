"""What one iteration learns from: rollouts of the method's kind, as a batch."""

from collections.abc import Callable

import jax
import numpy as np

from steprl.branching import make_plan
from steprl.rollout import with_anchors
from steprl.rollout.branching import host_gather
from steprl.rollout.rollouts import Experience
from steprl.sampling import sampling_of
from steprl.session import Session
from steprl.update import TrainState

Gather = Callable[[TrainState, jax.Array, np.ndarray, np.ndarray], Experience]
"""From state, key of all rollouts, tasks and samples."""


def make_gather(session: Session) -> Gather:
    """The rollouts of the session's method, with the branches that it needs."""
    config, player, method = session.config, session.player, session.method
    size = session.vocab_size if method.branching else 0
    texts = [player.tokenizer.decode([token]) for token in range(size)]
    plan = make_plan(config, method.branching, session.policy, texts)
    sampling = sampling_of(config.rollout)
    if player.gather is None:
        rollouts = host_gather(player, plan, sampling)
    else:
        rollouts = player.gather(plan, sampling)

    def gather(
        state: TrainState, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray
    ) -> Experience:
        experience = rollouts(state.params, key, task_N, sample_N, state.carried.get("previous"))
        if "anchors" in method.needs:
            similarity = config.algorithm.similarity_thresh
            experience = experience._replace(
                batch=with_anchors(experience.batch, player.tokenizer, similarity)
            )
        return experience

    return gather
