"""What one iteration learns from: rollouts of the method's kind, as a batch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from steprl.models.scoring import score
from steprl.ops import nonblank_tokens
from steprl.optimizer import combine, split_trainable
from steprl.rollout import with_anchors
from steprl.rollout.branching import grow_branpo, grow_by_score, grown_batch, token_metrics
from steprl.sampling import sampling_of
from steprl.session import Session
from steprl.types import Params, StepBatch, Trajectory
from steprl.update import TrainState


class Experience(NamedTuple):
    """A batch, what it cost by the names of metrics, and its trajectories where they are records."""

    batch: StepBatch
    report: dict[str, float]
    trajectories: Sequence[Trajectory] | None = None


Gather = Callable[[TrainState, jax.Array, np.ndarray, np.ndarray], Experience]
"""From state, key of all rollouts, tasks and samples."""


def make_gather(session: Session) -> Gather:
    """The rollouts of the session's method: plain ones, or ones that branch."""
    config, player = session.config, session.player
    rollout, name = config.rollout, config.algorithm.name
    sampling = sampling_of(rollout)
    needs = session.method.needs

    def plain(
        state: TrainState, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray
    ) -> Experience:
        if player.on_device or player.explore is None or player.collate is None:
            found = Experience(player.play(state.params, key, task_N, sample_N, sampling), {})
        else:
            played = player.explore(state.params, key, task_N, sample_N, sampling, remember=False)
            batch = player.collate(played.trajectories)
            found = Experience(batch, token_metrics(played.usage), played.trajectories)
        if "anchors" in needs:
            similarity = config.algorithm.similarity_thresh
            anchored = with_anchors(found.batch, player.tokenizer, similarity)
            found = found._replace(batch=anchored)
        return found

    if "branches" not in needs:
        return plain

    settings = config.algorithm.branch
    texts = [player.tokenizer.decode([token]) for token in range(session.model.vocab_size)]
    nonblank_V = nonblank_tokens(texts)

    @jax.jit
    def logprob_before(params: Params, previous: Params, batch: StepBatch) -> jax.Array:
        _, frozen = split_trainable(params, config.model.freeze)
        before = combine(previous, frozen)
        found = score(
            session.policy, before, batch, rollout.temperature, config.model.logprob_chunk
        )
        return found.logprob_NT

    def branching(
        state: TrainState, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray
    ) -> Experience:
        arguments = (player, state.params, key, task_N, sample_N, sampling, settings)
        if name == "branpo":
            grown = grow_branpo(*arguments)
        else:
            log_ratio = None
            previous = state.carried.get("previous")
            if previous is not None:
                log_ratio = lambda batch: (  # noqa: E731
                    batch.logprob_NT - logprob_before(state.params, previous, batch)
                )
            grown = grow_by_score(*arguments, name, nonblank_V, config.algorithm.gamma, log_ratio)
        batch = grown_batch(player, grown, session.mesh)
        return Experience(batch, grown.report, [one for group in grown.groups for one in group])

    return branching
