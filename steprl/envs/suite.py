"""What an environment brings to a run: its splits or its game, its language, its demonstrations."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any

from steprl.config import GameConfig
from steprl.envs import CONTEXTS, Env
from steprl.envs.answers import BadAnswer, checked_observation, describe, shown
from steprl.envs.device_env import check_device_env
from steprl.envs.games import Game, shape_game

Demonstrate = Callable[[int, int], Iterable[str] | Callable[[Any, Any], str]]
"""From task and seed to the actions of a demonstration, or to a function that gives the next action,
from the environment and its state."""

Measure = Callable[[str], int]
"""The length of a text, in tokens of the policy."""

_WORKERS = 8  # environments of your own may wait for something


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """An environment, and all that a run has to know of it.

    It lives on the host, as `splits`, or on the device, as a `game`, which brings its own vocabulary and
    demonstrator and has the splits "train" and "heldout".

    Attributes:
        splits: environments by name: the one to train on first, then the main one to evaluate on.
            A single one serves for both.
        game: in place of splits.
        sizes: tasks of a split, where there are finitely many.
        system: the system message for chat models.
        tools: schemas for the chat template.
        control_tags: names such as "<tool_call>" that the environment itself writes into observations, and
            keeps out of what it quotes: where a tokenizer has a token for one, it is read as that token.
            All other text of an environment never becomes control tokens.
        context: "extend": an observation is added to what was before; "rebuild": it replaces all.
        max_steps: steps of an episode at most; None: `rollout.max_steps`.
        vocabulary: phrases of a small language of its own, which a model may learn from nothing; None:
            it is played in natural language, by a pretrained model.
        demonstrate: task, seed -> actions, or a function of environment and state that gives the next
            one. None where nothing is shown.
        demonstration_env: in which demonstrations are played; None: the training split.
        workers: environments stepped at the same time, unless `rollout.env_workers` sets it.
        limited: (length, measure) -> the suite with prompts that measure so much at most; None where
            prompts cannot be shortened.
        question: the environment of one typed question, for `steprl chat`; None where there is none.

    Raises:
        ValueError: says what is missing, of the wrong kind, or at odds.

    Example:
        >>> from steprl.envs.household import Household
        >>> suite = Suite(
        ...     splits={"train": Household("train"), "new rooms": Household("valid_unseen")},
        ...     system="You act in a house.",
        ...     max_steps=30,
        ... )
        >>> suite.names
        ('train', 'new rooms')
    """

    splits: Mapping[str, Env] = dataclasses.field(default_factory=dict)
    game: Game | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    control_tags: tuple[str, ...] = ()
    context: str = "extend"
    max_steps: int | None = None
    vocabulary: tuple[str, ...] | None = None
    demonstrate: Demonstrate | None = None
    demonstration_env: Env | None = None
    workers: int = 0
    limited: Callable[[int, Measure], "Suite"] | None = None
    question: Callable[[str], Env] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.game, Game) and self.vocabulary is None:
            object.__setattr__(self, "vocabulary", self.game.vocabulary)
        if problem := _problem(self):
            raise ValueError(f"Suite: {problem}")
        if self.max_steps is not None:  # of NumPy's numbers, those of Python
            object.__setattr__(self, "max_steps", index(self.max_steps))
        object.__setattr__(self, "sizes", {name: index(n) for name, n in self.sizes.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """Of the splits: training first, then those to evaluate on, the main one first."""
        if self.game is not None:
            return ("train", "heldout")
        names = tuple(self.splits)
        return names if len(names) > 1 else 2 * names

    @property
    def train(self) -> Env:
        """The environment to train on, of a suite on the host."""
        return next(iter(self.splits.values()))


def suite_of(thing: Any, shape: GameConfig | None = None, source: str | None = None) -> Suite:
    """The suite of what a user has: a `Suite`, a `Game`, an environment, or one for each split.

    Args:
        thing: an environment says of itself what `steprl.envs.Env` lists; of several, the first does.
        shape: the shared settings of games, which one's own obey too; None: all are off.
        source: the function that returned the thing, for errors.

    Raises:
        ValueError: it is none of these, or breaks a contract; says which.
    """
    suite = thing
    if isinstance(thing, Game):
        suite = Suite(game=thing)
    elif not isinstance(thing, Suite):
        splits = dict(thing) if isinstance(thing, Mapping) else {"train": thing}
        for env in splits.values():
            try:
                problem = _not_an_env(env)
            except ValueError as error:
                raise ValueError(f"{source}: {error}" if source else str(error)) from None
            if problem:
                raise ValueError(f"{f'{source} returned' if source else 'env is'} {problem}")
        suite = _of_environments(splits, source)
    if suite.game is not None:
        try:
            env = suite.game.make(False)
            check_device_env(env, suite.game.vocabulary, suite.game.privileged)
        except ValueError as error:
            raise ValueError(f"{source}: {error}" if source else str(error)) from None
    return suite if shape is None else shaped(suite, shape)


def shaped(suite: Suite, shape: GameConfig) -> Suite:
    """The suite, whose game, if it is one, has the shared settings of `env.game`."""
    if suite.game is None:
        return suite
    game = shape_game(suite.game, shape)
    return dataclasses.replace(suite, game=game, vocabulary=game.vocabulary)


def _of_environments(splits: Mapping[str, Env], source: str | None) -> Suite:
    """The suite of some environments; its attributes are read from the first."""
    first = next(iter(splits.values()), None)
    try:
        attributes = {
            name: value
            for name in ("system", "tools", "control_tags", "context", "max_steps")
            if (value := _said(first, name)) is not None
        }
        told = {name: _said(env, "num_tasks") for name, env in splits.items()}
        sizes = {name: n for name, n in told.items() if n is not None and not callable(n)}
        return Suite(splits=splits, sizes=sizes, workers=_WORKERS, **attributes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}" if source else str(error)) from None


def _said(env: Any, name: str) -> Any:
    """What an environment says of itself; None where it says nothing.

    Raises:
        ValueError: asking for it fails.
    """
    try:
        value = getattr(env, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"its `{name}` cannot be read: {describe(error)}") from None
    return None if isinstance(value, str | list | tuple) and not value else value


def is_env(thing: Any) -> bool:
    """It is an object, not a class, with `reset` and `step`."""
    return not isinstance(thing, type) and all(callable(_said(thing, n)) for n in ("reset", "step"))


def _not_an_env(thing: Any) -> str | None:
    if not is_env(thing):
        what = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
        return (
            f"{what} where an object with reset and step was expected (steprl.envs.Env), a Suite "
            "(steprl.envs.suite), or a Game (steprl.envs.games)"
        )
    for name in ("metrics", "close", "privileged"):
        if (found := _said(thing, name)) is not None and not callable(found):
            return f"{type(thing).__name__}, whose `{name}` is {shown(found)}, not a method"
    if hasattr(thing, "prompt_width"):
        return (
            f"{type(thing).__name__} is an environment on token arrays: give "
            "steprl.envs.games.Game(make=..., vocabulary=...)"
        )
    return None


def _problem(suite: Suite) -> str | None:
    """What is wrong with the fields of a suite."""
    if (suite.game is None) == (not suite.splits):
        return "give either `splits` or a `game`"
    if suite.game is not None:
        return _problem_of_game(suite)
    if not isinstance(suite.splits, Mapping):
        return f"`splits` is {type(suite.splits).__name__}: give environments by name"
    for name, env in suite.splits.items():
        if not isinstance(name, str) or not name:
            return f"a split is called {shown(name)}: give names that are text"
        if problem := _not_an_env(env):
            return f"split {name!r} is {problem}"
    if not isinstance(suite.context, str) or suite.context not in CONTEXTS:
        return f"its context is {shown(suite.context)}; {' or '.join(CONTEXTS)}"
    if not isinstance(suite.system, str | None):
        return f"its system is {type(suite.system).__name__}, not text"
    try:
        checked_observation(suite.system or "")
    except BadAnswer as error:
        return f"its system: {str(error).replace('the observation', 'it', 1)}"
    tools = [] if suite.tools is None else suite.tools
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        return "its tools are no list of schemas, see steprl.tools.tool_schema"
    try:
        json.dumps(tools).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"its tools cannot be written as JSON: {describe(error)}"
    tags = suite.control_tags
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        return f"its control_tags are {tags!r}: give a tuple of names such as '<tool_call>'"
    if suite.max_steps is not None and not _is_count(suite.max_steps):
        return f"max_steps={shown(suite.max_steps)}: give a whole number from 1"
    if not _is_count(suite.workers, 0):
        return f"workers={shown(suite.workers)}: give a whole number from 0"
    if not isinstance(suite.sizes, Mapping):
        return f"`sizes` is {shown(suite.sizes)}: give a number of tasks by the name of a split"
    unknown = [name for name in suite.sizes if name not in suite.splits]
    if unknown:
        return f"sizes: there is no split {unknown[0]!r}; there are {', '.join(suite.splits)}"
    for name, size in suite.sizes.items():
        if not _is_count(size):
            return f"sizes[{name!r}]={shown(size)}: give a whole number from 1"
    for name in ("demonstrate", "limited", "question"):
        if getattr(suite, name) is not None and not callable(getattr(suite, name)):
            return f"{name} is {type(getattr(suite, name)).__name__}, not a function"
    if suite.demonstration_env is not None and (problem := _not_an_env(suite.demonstration_env)):
        return f"demonstration_env is {problem}"
    return _problem_of_vocabulary(suite.vocabulary)


def _is_count(value: Any, least: int = 1) -> bool:
    """A whole number, of NumPy too."""
    try:
        return not isinstance(value, bool) and index(value) >= least
    except TypeError:
        return False


def _problem_of_game(suite: Suite) -> str | None:
    if not isinstance(suite.game, Game):
        return f"`game` is {type(suite.game).__name__}: give steprl.envs.games.Game"
    for name in ("demonstrate", "demonstration_env"):
        if getattr(suite, name) is not None:
            return f"{name} of a game belongs to the game: Game({name}=...)"
    return _problem_of_vocabulary(suite.vocabulary)


def _problem_of_vocabulary(vocabulary: Any) -> str | None:
    if vocabulary is None:
        return None
    if not isinstance(vocabulary, tuple | list) or not all(isinstance(p, str) for p in vocabulary):
        return "its vocabulary is no tuple of phrases"
    if not vocabulary:
        return "its vocabulary is empty; give None where there is no language of its own"
    return None
