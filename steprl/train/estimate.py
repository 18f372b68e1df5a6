"""What a run will cost: before it begins what settings say, and after the first iterations time.

settings -> Work -> `described`         episodes, tokens at most, parameters, disk
Work, rows of iterations -> Ahead       seconds and tokens that are left, as they were measured
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from steprl.config import Config
from steprl.evaluation import splits_of
from steprl.optimizer import split_trainable
from steprl.session import Session, abstract_params
from steprl.train.begin import abstract_state

LONG = 300.0
"""Seconds from which on a run is long, and what is ahead of it is said."""

# Operations of a run that takes about ten minutes on two cores; a decoder takes 2 a parameter and token, with
# its gradient 6.
_MANY_OPERATIONS = 1e13


class Work(NamedTuple):
    """What the settings ask for."""

    iterations: int  # that are ahead
    episodes: int  # of an iteration
    steps: int  # of an episode, at most
    action: int  # tokens of an action, at most
    length: int  # tokens of an episode with what is read, at most
    token_budget: int | None
    epochs: int  # times that a batch is trained on
    evaluations: int
    evaluated: int  # episodes of an evaluation
    sft_steps: int
    sft_rows: int  # of one of them
    parameters: int
    trained: int
    checkpoint: int  # bytes of one
    kept: int  # checkpoints at the end, at most

    @property
    def tokens(self) -> int:
        """That are sampled at most, without those of evaluations."""
        most = self.iterations * self.episodes * self.steps * self.action
        if self.token_budget is None:
            return most
        return min(most, self.token_budget + self.episodes * self.steps * self.action)

    @property
    def long(self) -> bool:
        """It may take more than some minutes on a CPU."""
        operations = self.iterations * self.episodes * (2 + 6 * self.epochs)
        operations += self.sft_steps * self.sft_rows * 6
        return operations * self.length * self.parameters > _MANY_OPERATIONS


class Ahead(NamedTuple):
    """What is left of a run."""

    seconds: float
    tokens: float  # sampled, without those of evaluations
    iterations: int
    seconds_of_iteration: float
    evaluations: int
    seconds_of_evaluation: float


def work_of(session: Session, done: int = 0) -> Work:
    """What a run asks for; nothing is computed, and no parameter exists.

    Args:
        done: iterations that are behind it.
    """
    config, game = session.config, session.suite.game
    trainer = config.trainer
    if game is None:
        action, length = config.rollout.response_length, config.rollout.context_length
        steps = session.suite.max_steps or config.rollout.max_steps
    else:
        env = game.make(False)
        action, steps = int(env.action_width), int(env.max_steps)
        length = int(env.prompt_width) + steps * (action + int(env.observation_width))
    params = abstract_params(session)
    total = trainer.total_training_steps
    best = trainer.keep_best is not None
    saved = _saved(total, trainer.save_freq, trainer.test_freq if best else 0)
    return Work(
        iterations=total - done,
        episodes=config.rollout.batch_size * config.rollout.n,
        steps=steps,
        action=action,
        length=length,
        token_budget=trainer.token_budget,
        epochs=config.actor.ppo_epochs,
        evaluations=_times(total, trainer.test_freq, done)
        + (trainer.val_before_train and done == 0),
        evaluated=_episodes_of_evaluation(session),
        sft_steps=config.sft.steps if done == 0 else 0,
        sft_rows=config.sft.batch_size,
        parameters=_size(params),
        trained=_size(split_trainable(params, config.model.freeze, config.model.train_layers)[0]),
        checkpoint=_bytes(abstract_state(session, params)),
        kept=min(saved, trainer.max_to_keep + best),
    )


def measured(work: Work, config: Config, done: int, rows: Sequence[Mapping[str, Any]]) -> Ahead:
    """What is left when some iterations are done.

    Args:
        work: of the run from its beginning, or from where it goes on.
        config: its settings.
        done: iterations that are behind it now.
        rows: metrics of the last of them; without the first of a process, which compiles.
    """
    trainer = config.trainer
    evaluation = "timing_s/testing"
    step = _mean([row["timing_s/step"] - row.get(evaluation, 0.0) for row in rows])
    tokens = _mean([row["token/decoded"] for row in rows])
    iterations = trainer.total_training_steps - done
    if trainer.token_budget is not None and tokens:
        left = trainer.token_budget - rows[-1]["token/total"]
        iterations = min(iterations, max(math.ceil(left / tokens), 0))
    evaluated = [row[evaluation] for row in rows if evaluation in row]
    # Without an evaluation to measure, its episodes take as long as those that are learnt from.
    playing = _mean([row["timing_s/gen"] for row in rows]) / work.episodes
    seconds = _mean(evaluated) if evaluated else playing * work.evaluated
    evaluations = _times(done + iterations, trainer.test_freq, done) if iterations else 0
    whole = iterations * step + evaluations * seconds
    return Ahead(whole, iterations * tokens, iterations, step, evaluations, seconds)


def described(work: Work) -> str:
    """One line about what is ahead, before anything is measured."""
    parts = [f"a warm start of {_count(work.sft_steps, 'update')}"] if work.sft_steps else []
    parts.append(
        f"{_count(work.iterations, 'iteration')} of {_count(work.episodes, 'episode')} of up to "
        f"{_count(work.steps, 'step')}"
    )
    parts.append(f"at most {_short(work.tokens)} sampled tokens")
    if work.evaluations:
        parts.append(f"{_count(work.evaluations, 'evaluation')} of {work.evaluated:,} episodes")
    parts.append(f"{work.trained:,} of {work.parameters:,} parameters are trained")
    parts.append(f"{_count(work.kept, 'checkpoint')} of {_short(work.checkpoint)}B to keep on disk")
    return f"ahead: {'; '.join(parts)}"


def left(ahead: Ahead) -> str:
    """One line about what is left."""
    text = (
        f"about {duration(ahead.seconds)} and {_short(ahead.tokens)} sampled tokens are left: "
        f"{_count(ahead.iterations, 'iteration')} of {duration(ahead.seconds_of_iteration)}"
    )
    if ahead.evaluations:
        text += f", {_count(ahead.evaluations, 'evaluation')} of {duration(ahead.seconds_of_evaluation)}"
    return text


def duration(seconds: float) -> str:
    """Time in few words: "45 s", "12 min", "1 h 50 min", "3 d 4 h".

    Example:
        >>> duration(6600)
        '1 h 50 min'
    """
    if seconds < 119.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _times(total: int, frequency: int, done: int) -> int:
    """How often something is due that is due every so many iterations, and in the last."""
    if total <= done:
        return 0
    if not frequency:
        return 1
    return total // frequency - done // frequency + (total % frequency > 0)


def _saved(total: int, save_freq: int, test_freq: int) -> int:
    """Iterations that may be saved: those that are due, those that may be the best, and the last."""
    often = [frequency for frequency in (save_freq, test_freq) if frequency]
    count = sum(total // frequency for frequency in often)
    if len(often) == 2:
        count -= total // math.lcm(*often)
    return count + all(total % frequency for frequency in often)


def _episodes_of_evaluation(session: Session) -> int:
    settings, player = session.config.eval, session.player
    attempts = settings.n if settings.temperature else 1
    attempts += settings.greedy and settings.temperature > 0
    most = settings.num_tasks
    return attempts * sum(
        min(most, player.sizes.get(split, most)) for split in splits_of(player, settings)
    )


def _short(x: float) -> str:
    """A large number in three characters or so, with its unit: 950, 12 k, 1.2 M, 0.5 G."""
    for power, unit in ((9, " G"), (6, " M"), (3, " k")):
        if x >= (0.45 if power > 3 else 1.0) * 10**power:
            part = x / 10**power
            return f"{part:.1f}{unit}" if part < 9.95 else f"{part:,.0f}{unit}"
    return f"{x:.0f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
