"""One optimisation of the policy on one batch, for every method of the table, in three parts.

    prepare     scores of the batch -> rewards -> credit -> rollout correction -> a `Sample`
    loss        weights of the tokens, new scores of a `Sample`                -> loss, metrics
    optimise    gradient over micro-batches -> optimiser step, if it is finite -> parameters

`make_update` puts them together. All are pure functions; none is compiled yet.
"""

from steprl.update.loss import sample_loss, with_weights
from steprl.update.make import make_update, mini_batches, sizes_in_rows
from steprl.update.optimise import micro_batch_gradient, optimiser_step, passes
from steprl.update.prepare import Metrics, Prepared, Sample, prepare
from steprl.update.record import TokenRecord
from steprl.update.state import TrainState, carries, initial_state

__all__ = [
    "Metrics",
    "Prepared",
    "Sample",
    "TokenRecord",
    "TrainState",
    "carries",
    "initial_state",
    "make_update",
    "micro_batch_gradient",
    "mini_batches",
    "optimiser_step",
    "passes",
    "prepare",
    "sample_loss",
    "sizes_in_rows",
    "with_weights",
]
