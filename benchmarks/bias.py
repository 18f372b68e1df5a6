"""Which policy gradients are unbiased, and how large is the bias of the others? Enumerated, not sampled.

    python benchmarks/bias.py [--save] [--only TEXT]

In a world so small that all trajectories, and all batches of two or three of them, can be listed,
the expectation of each estimator's first gradient (on-policy, through `ops.policy_loss`) is a sum.
It is compared with the exact gradient of the expected return. Estimators that claim to be unbiased
have to agree with it up to rounding and a factor that is stated beforehand; of the others the bias
of the direction is shown. The exit status is 1 if a claim does not hold.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import record
from enumerated.estimators import ESTIMATORS, GAMMA, LIMIT, Estimator
from enumerated.expectation import Batches, Bias, batches, compare, moments
from enumerated.world import (
    MAX_STEPS,
    TASKS,
    WORLD,
    Rows,
    World,
    listing,
    log_probabilities,
    logits,
    objective,
    probabilities,
    step_weights,
    token_weights,
    weights_of_last_tokens,
)
from rich.console import Console
from rich.table import Table

TOLERANCE = 1e-8


class Judge:
    """One world and one policy: all trajectories, and the exact gradients."""

    def __init__(self, world: World, seed: int = 0) -> None:
        self.theta = logits(world, seed)
        self.rows = {
            steps: listing(world, self.theta, TASKS, steps) for steps in (LIMIT, MAX_STEPS)
        }
        full = self.rows[MAX_STEPS]
        last_ns = weights_of_last_tokens(token_weights(full, GAMMA), full)
        weights = {"return": 1.0, "step": step_weights(full, GAMMA), "token": last_ns}
        gradient = jax.grad(objective)
        self.exact = {
            name: np.asarray(gradient(jnp.asarray(self.theta), full, weight_ns))
            for name, weight_ns in weights.items()
        }
        self._batches: dict[tuple[int, str, int], Batches] = {}

    def batches(self, size: int, draw: str, max_steps: int = MAX_STEPS) -> Batches:
        """All batches."""
        key = (size, draw, max_steps)
        if key not in self._batches:
            rows = self.rows[max_steps]
            probability_n = np.asarray(probabilities(jnp.asarray(self.theta), rows))
            self._batches[key] = batches(probability_n, rows.task_n, size, draw)
        return self._batches[key]

    def bias(self, estimator: Estimator) -> Bias:
        """Of one estimator."""
        rows = self.rows[estimator.max_steps]
        sampled = self.batches(estimator.size, estimator.draw, estimator.max_steps)
        sampling = jnp.asarray(self.theta)

        def loss(theta: jax.Array, batch: Rows) -> jax.Array:
            old_nt = log_probabilities(sampling, batch)
            return estimator.loss(log_probabilities(theta, batch), old_nt, batch)

        mean, trace = moments(loss, self.theta, rows, sampled)
        # Where a limit cuts trajectories off, only the logits that are used before it count.
        reached = np.isin(np.arange(len(self.theta)), rows.context_nt[rows.step_ids_nt >= 0])
        exact = np.where(reached[:, None], self.exact[estimator.objective], 0)
        return compare(mean, trace, exact, sampled.index_bn.shape[1], estimator.claim)


def holds(estimator: Estimator, bias: Bias) -> bool:
    """Whether what it claims is so; one that claims nothing always holds."""
    return estimator.claim is None or bias.relative <= TOLERANCE


def table(judged: Sequence[tuple[Estimator, Bias]]) -> Table:
    """One line an estimator."""
    result = Table(title="Expected gradient of the first update against the exact policy gradient")
    for name in ("estimator", "setting", "note"):
        result.add_column(name, overflow="fold")
    for name in ("n", "unbiased?", "relative bias", "cosine", "factor", "variance"):
        result.add_column(name, justify="right", no_wrap=True)
    for estimator, bias in judged:
        claim = "" if estimator.claim is None else "yes" if holds(estimator, bias) else "NO"
        result.add_row(
            estimator.name,
            estimator.setting,
            estimator.note,
            str(estimator.size),
            claim,
            f"{bias.relative:.1e}" if bias.relative < 1e-4 else f"{bias.relative:.4f}",
            f"{bias.cosine:.5f}",
            f"{bias.scale:.4f}",
            f"{bias.variance:.2f}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if one that claims to be unbiased is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/bias.json")
    parser.add_argument("--only", default="", help="estimators whose title contains this")
    options = parser.parse_args(arguments)
    chosen = [estimator for estimator in ESTIMATORS if options.only in estimator.title]

    start = time.perf_counter()
    with jax.enable_x64(True):
        judge = Judge(WORLD)
        judged = [(estimator, judge.bias(estimator)) for estimator in chosen]
    minutes = (time.perf_counter() - start) / 60

    console = Console(width=170 if not sys.stdout.isatty() else None)
    console.print(table(judged))
    console.print(
        f"unbiased?: whether the claim holds (relative bias at most {TOLERANCE:g}). "
        "relative bias: |E[g] - c g*| / |c g*|, with the factor c that was stated beforehand or, "
        "without a claim, the one that fits best. variance: trace of the covariance of g, times "
        "the trajectories it takes, over |c g*|^2.",
        markup=False,
    )
    failed = [estimator.title for estimator, bias in judged if not holds(estimator, bias)]
    for title in failed:
        console.print(f"NOT UNBIASED: {title}", markup=False)
    if options.save:
        rows = [
            record.row(
                estimator.title,
                bias.relative,
                "relative bias of the expected gradient",
                goal=None if estimator.claim is None else f"unbiased: at most {TOLERANCE:g}",
                met=None if estimator.claim is None else holds(estimator, bias),
            )
            | {"cosine": bias.cosine, "factor": bias.scale, "variance": bias.variance}
            | {"note": estimator.note}
            for estimator, bias in judged
        ]
        print(
            f"saved {record.save('bias', rows, minutes, trajectories=len(judge.rows[MAX_STEPS].task_n))}"
        )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
