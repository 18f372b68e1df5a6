"""What environments bring: suites of all that ship, of one's own, and what is wrong with others."""

import dataclasses
import sys
import textwrap

import jax
import numpy as np
import pytest

from steprl.config import EnvConfig, GameConfig, WikiSearchConfig
from steprl.config.environments import ENVIRONMENTS
from steprl.envs.games import Game, shape_game
from steprl.envs.household import Household
from steprl.envs.opening import open_game, open_suite
from steprl.envs.suite import Suite, suite_of
from steprl.metrics import read_metrics
from steprl.models.tokenizer import phrase_tokenizer
from steprl.session import setup
from steprl.train import train
from tests.lock import LOCK, WORDS, Lock
from tests.small import small_config


class Line:
    """Task n ends after n steps."""

    def reset(self, task, key=None):
        return task, "go"

    def step(self, state, action):
        return state - 1, "", 1.0, state <= 1, False, {"success": True, "valid": True}


# Those that ship.


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_opens_to_a_suite(name, tmp_path):
    suite = open_suite(EnvConfig(name=name, wiki_search=WikiSearchConfig(cache=str(tmp_path))))
    assert isinstance(suite, Suite) and suite.names[0] == "train" and len(set(suite.names)) >= 2
    if suite.game is not None:
        state, prompt = jax.eval_shape(suite.game.make(True).reset, 0, jax.random.key(0))
        assert suite.game.demonstrate and suite.game.optimal
        assert len(phrase_tokenizer(suite.vocabulary)) == suite.game.make(False).vocab_size
        return
    for env in suite.splits.values():
        state, text = env.reset(0)
        assert isinstance(text, str) and text
    env = suite.train if suite.demonstration_env is None else suite.demonstration_env
    actions, (state, _) = suite.demonstrate(0, 0), env.reset(0)
    action = actions(env, state) if callable(actions) else next(iter(actions))
    assert env.step(state, action)[-1]["valid"]
    if suite.vocabulary is not None:
        assert len(phrase_tokenizer(suite.vocabulary)) == len(suite.vocabulary) + 3


def test_prompts_are_limited_and_questions_asked_where_a_suite_can(tmp_path):
    suite = open_suite(
        EnvConfig(name="wiki_search", wiki_search=WikiSearchConfig(cache=str(tmp_path)))
    )
    words = lambda text: len(text.split())  # noqa: E731
    limited = suite.limited(300, words)
    assert all(words(env.reset(0)[1]) <= 300 for env in limited.splits.values())
    assert limited.names == suite.names and limited.sizes == suite.sizes
    assert "Which town?" in limited.question("Which town?").reset(0)[1]
    with pytest.raises(ValueError, match="wiki_search needs some 256"):
        suite.limited(100, words)


def test_an_environment_on_the_host_is_no_game():
    with pytest.raises(ValueError, match="env.name=household runs on the host; inside one program"):
        open_game(EnvConfig(name="household"))


# One's own.


def test_an_environment_speaks_for_itself():
    env = Line()
    env.system, env.max_steps, env.context, env.tools = "Go.", 3, "rebuild", []
    suite = suite_of(env)
    assert (suite.system, suite.max_steps, suite.context, suite.tools) == (
        "Go.", 3, "rebuild", None,
    )  # fmt: skip
    assert suite.names == ("train", "train") and suite.train is env
    assert suite_of({"a": Line(), "b": Line()}).names == ("a", "b")
    assert suite_of(suite) is suite


def test_numbers_of_numpy_are_numbers():
    env = Line()
    env.max_steps, env.num_tasks = np.int64(3), np.int32(7)
    suite = suite_of(env)
    assert (suite.max_steps, suite.sizes) == (3, {"train": 7}) and type(suite.max_steps) is int


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_steps", 0, "max_steps=0"),
        ("max_steps", "5", "max_steps='5'"),
        ("max_steps", np.array([5, 6]), "max_steps=array"),
        (
            "max_steps",
            property(lambda env: 1 / 0),
            "its `max_steps` cannot be read: ZeroDivisionError",
        ),
        ("num_tasks", float("inf"), "sizes['train']=inf"),
        ("num_tasks", property(lambda env: 1 / 0), "its `num_tasks` cannot be read"),
        ("system", 0, "its system is int, not text"),
        ("system", np.array(["a", "b"]), "its system is ndarray"),
        ("system", "\ud800", "its system: it is no valid Unicode"),
        ("context", 0, "its context is 0"),
        ("tools", [{"type": object()}], "its tools cannot be written as JSON"),
        ("metrics", {}, "whose `metrics` is {}, not a method"),
        ("close", True, "whose `close` is True, not a method"),
        ("__getattr__", lambda env, name: 1 / 0, "cannot be read: ZeroDivisionError"),
    ],
)
def test_what_an_environment_says_of_itself_is_checked(name, value, said):
    with pytest.raises(ValueError, match="^mod:make") as caught:
        suite_of(type("Odd", (Line,), {name: value})(), source="mod:make")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"workers": "8"}, "workers='8'"),
        ({"workers": -1}, "workers=-1"),
        ({"sizes": 3}, "`sizes` is 3"),
        ({"splits": {0: Line()}}, "a split is called 0"),
    ],
)
def test_fields_of_a_suite_are_checked(fields, said):
    with pytest.raises(ValueError, match="^Suite: ") as caught:
        Suite(**{"splits": {"train": Line()}} | fields)
    assert said in str(caught.value)


def test_a_game_brings_its_vocabulary_and_obeys_the_shared_settings():
    assert suite_of(LOCK).vocabulary == WORDS and suite_of(LOCK).names == ("train", "heldout")
    suite = suite_of(LOCK, GameConfig(thought_tokens=2, progress_reward=0.5))
    assert len(suite.vocabulary) == len(WORDS) + 8 and suite.game.make(False).action_width == 4


def without_distance(config):
    class Far(Lock):
        distance = None

    return shape_game(Game(Far, WORDS), config)


def test_only_settings_that_count_steps_need_a_distance():
    assert without_distance(GameConfig(thought_tokens=1)).make(False).reset(0, jax.random.key(0))
    with pytest.raises(ValueError, match="Far has no method `distance`"):
        without_distance(GameConfig(fatal_errors=0.5))


def suite(**fields):
    return Suite(**{"splits": {"train": Line()}, **fields})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "env is int where an object with reset and step was expected"),
        (lambda: Line, "env is the class Line where an object"),
        (lambda: Lock(), r"Lock is an environment on token arrays: give .*Game\(make=..., voc"),
        (lambda: {}, "give either `splits` or a `game`"),
        (lambda: {"train": Line(), "eval": "line"}, "env is str where"),
        (lambda: dataclasses.replace(LOCK, vocabulary=WORDS[:2]), "game.vocab_size=7: .* 2 phrases"),
        (lambda: suite(game=LOCK), "Suite: give either `splits` or a `game`"),
        (lambda: suite(splits=[Line()]), "`splits` is list: give environments by name"),
        (lambda: suite(splits={"train": Line()}, context="grow"), "its context is 'grow'; rebuild or"),
        (lambda: suite(splits={"train": Line}), "split 'train' is the class Line"),
        (lambda: suite(system=3), "its system is int, not text"),
        (lambda: suite(tools={"a": 1}), "its tools are no list of schemas"),
        (lambda: suite(max_steps=0), "max_steps=0: give a whole number from 1"),
        (lambda: suite(sizes={"eval": 3}), "sizes: there is no split 'eval'; there are train"),
        (lambda: suite(demonstrate=["go"]), "demonstrate is list, not a function"),
        (lambda: suite(vocabulary="go"), "its vocabulary is no tuple of phrases"),
        (lambda: suite(demonstration_env=3), "demonstration_env is int where"),
        (lambda: Suite(game=Lock()), "`game` is Lock: give steprl.envs.games.Game"),
        (lambda: Suite(game=LOCK, demonstrate=lambda *_: []), r"Game\(demonstrate=...\)"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        suite_of(make())


MODULE = '''
from steprl.envs.suite import Suite
from tests.lock import LOCK


class Echo:
    """Say the colour that is shown."""

    def __init__(self, colors):
        self.colors = colors

    def reset(self, task, key=None):
        color = self.colors[task % len(self.colors)]
        return color, f"say {color}"

    def step(self, state, action):
        right = action == state
        return state, "yes", float(right), True, False, {"success": right, "valid": True}


def make(context="extend"):
    train = Echo(["red", "green"])
    return Suite(
        splits={"train": train, "unseen": Echo(["blue"])},
        sizes={"train": 2, "unseen": 1},
        context=context,
        max_steps=1,
        vocabulary=("say", "red", "green", "blue", "yes"),
        demonstrate=lambda task, seed: [train.colors[task % 2]],
    )


def game():
    return LOCK


def of_split(split):
    return make()
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "user_echo.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "user_echo"
    sys.modules.pop("user_echo", None)


@pytest.mark.slow
def test_a_suite_of_the_user_is_warmed_up_trained_and_evaluated(module, tmp_path):
    config = small_config(
        f"env.name={module}:make", "sft.steps=2", "trainer.total_training_steps=1",
        "trainer.test_freq=1", "rollout.response_length=4", "rollout.context_length=16",
        "actor.ppo_epochs=1",
    )  # fmt: skip
    session = setup(config)
    assert session.player.splits == session.suite.names == ("train", "unseen")
    assert session.model.vocab_size == 3 + 5
    shown = session.player.demonstrate(jax.random.key(0), np.arange(8))
    said = np.asarray(shown.tokens_NT)[np.asarray(shown.step_ids_NT) >= 0]
    assert set(said.tolist()) == {1, 4, 5}  # the end of an action, red, green
    run = tmp_path / "run"
    run.mkdir()
    train(session, run)
    rows = read_metrics(run / "metrics.jsonl")
    assert any("eval/success_rate" in row for row in rows)
    assert any("actor/grad_norm" in row for row in rows)


def test_a_function_may_return_a_game(module):
    assert open_suite(EnvConfig(name=f"{module}:game")).game is not None
    shaped = open_suite(EnvConfig(name=f"{module}:game", game=GameConfig(thought_tokens=1)))
    assert shaped.game.make(True).action_width == 3


def test_a_suite_brings_its_own_splits(module):
    with pytest.raises(ValueError, match="returned a Suite for a split: .* takes no `split`"):
        open_suite(EnvConfig(name=f"{module}:of_split"))


def test_the_critic_is_not_asked_about_contexts_that_are_rebuilt(module):
    with pytest.raises(ValueError, match="bootstrap_truncated .* not kept where contexts are rebu"):
        setup(small_config(
            f"env.name={module}:make", "env.options.context=rebuild",
            "algorithm.bootstrap_truncated=true", "algorithm.name=ppo",
        ))  # fmt: skip


def test_a_household_may_be_given_by_split():
    splits = {name: Household(name) for name in ("train", "valid_unseen")}
    assert suite_of(splits).max_steps == 30
