"""Games and policies of one's own in a run that is one program."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.envs.device_env import DeviceObservation
from steprl.envs.games import Game, shape_game, text_game
from steprl.envs.opening import open_game
from steprl.laboratory import make_program, make_train
from steprl.models import decoder_config, make_policy
from steprl.types import Policy
from tests.small import small_config

RED, GREEN, GOOD, BAD = range(3, 7)
WORDS = ("red", "green", "good", "bad")


class LightState(NamedTuple):
    color: jax.Array
    turn: jax.Array


@dataclasses.dataclass(frozen=True)
class Light:
    """Say the colour that is shown; two tries."""

    heldout: bool | jax.Array = False
    prompt_width = 1
    action_width = 1
    observation_width = 1
    max_steps = 2
    vocab_size = 3 + len(WORDS)
    stop_ids: ClassVar[tuple[int, ...]] = ()

    def reset(self, task, key):
        color = (RED + task % 2).astype(jnp.int32)
        return LightState(color, jnp.zeros((), jnp.int32)), color[None]

    def step(self, state, action):
        right = action[0] == state.color
        state = state._replace(turn=state.turn + 1)
        return state, DeviceObservation(
            tokens=jnp.where(right, GOOD, BAD)[None].astype(jnp.int32),
            reward=right.astype(jnp.float32),
            terminated=right,
            truncated=~right & (state.turn >= self.max_steps),
            valid=(action[0] == RED) | (action[0] == GREEN),
            success=right,
        )

    def distance(self, state):
        return jnp.ones((), jnp.int32)


def row(game=Light, words=WORDS, **players):
    return Game(game, words, **players)


LIGHT = row(
    demonstrate=lambda state, key: state.color[None],
    optimal=lambda state, key: state.color[None],
)


def with_step(change):
    """A light whose answer to a step is changed."""

    class Changed(Light):
        def step(self, state, action):
            return change(*super().step(state, action))

    return row(Changed)


def with_width(width):
    class Changed(Light):
        prompt_width = width

    return row(Changed)


@pytest.mark.parametrize(
    ("game", "message"),
    [
        (row(words=WORDS[:3]), r"game.vocab_size=7: .* 3 phrases, which .* makes 6"),
        (with_width(2), r"prompt is int32 of shape \(1,\), and should be int32 of shape \(2,\)"),
        (
            with_step(lambda state, seen: (state._replace(turn=0.5 * state.turn), seen)),
            r"game.step: the state.turn is float32 of shape \(\), and that of game.reset int32",
        ),
        (with_step(lambda state, seen: (state, tuple(seen))), "gives tuple beside the state"),
        (
            with_step(lambda state, seen: (state, seen._replace(reward=seen.success))),
            "game.step: reward is bool of shape .* should be float32",
        ),
        (
            with_step(lambda state, seen: (state, seen._replace(tokens=seen.tokens[0]))),
            r"game.step: tokens is int32 of shape \(\), and should be int32 of shape \(1,\)",
        ),
    ],
)
def test_a_game_that_breaks_its_contract_is_told_where(game, message):
    with pytest.raises(ValueError, match=message):
        make_program(small_config(), env=game)


def bag(vocab=7, width=8, **parts):
    """A policy that reads one token at a time and remembers none."""

    def init(key):
        embed = 0.1 * jax.random.normal(key, (vocab, width))
        return {"embed": embed, "value": {"head": jnp.zeros(width)}}

    made = Policy(
        init=init,
        apply=lambda params, tokens, positions, segments, cache=None: (
            params["embed"][tokens],
            cache,
        ),
        unembed=lambda params, hidden: hidden @ params["embed"].T,
        value=lambda params, tokens, positions, segments, hidden: hidden @ params["value"]["head"],
        init_cache=lambda batch, length: jnp.zeros((batch, 1)),
    )
    return made._replace(**parts)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (bag(vocab=9), r"policy.unembed is float32 of shape \(2, 5, 9\), .* shape \(2, 5, 7\)"),
        (bag(init=lambda key: jnp.zeros(3)), "policy.init gives .*: give nested dicts"),
        (
            bag(apply=lambda params, tokens, *_: (params["embed"][tokens[0]], None)),
            r"policy.apply gives hidden states of shape \(5, 8\) for tokens of shape \(2, 5\)",
        ),
        (
            bag(value=lambda params, tokens, positions, segments, hidden: hidden[:, 0, 0]),
            r"policy.value is float32 of shape \(2,\)",
        ),
        (
            bag(apply=lambda params, tokens, *_: (params["embed"][tokens], None)),
            "policy.apply: the cache has the structure",
        ),
        (bag(init_cache=lambda batch, length: jnp.zeros(4)), "rows come first in all of them"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_told_where(policy, message):
    with pytest.raises(ValueError, match=message):
        make_program(small_config(), env=LIGHT, policy=policy)


def test_a_policy_without_a_critic_is_for_methods_without_one():
    policy = bag(value=None)
    make_program(small_config("algorithm.name=grpo", "rollout.n=2"), env=LIGHT, policy=policy)
    with pytest.raises(ValueError, match="steppo learns from a critic"):
        make_program(small_config("algorithm.name=steppo"), env=LIGHT, policy=policy)


def test_a_game_without_a_demonstrator_begins_from_random_parameters():
    program = make_program(small_config("sft.steps=0"), env=row(), policy=bag())
    params, metrics = program.warm_start(jax.random.key(0))
    assert params["embed"].shape == (7, 8) and metrics == {}
    with pytest.raises(ValueError, match=r"shows no demonstrations; give Game\(demonstrate=...\)"):
        make_program(small_config("sft.steps=5"), env=row(), policy=bag())


def test_shared_settings_hold_for_a_game_of_ones_own_too():
    config = small_config("env.game.thought_tokens=2", "sft.steps=0")
    assert len(shape_game(LIGHT, config.env.game).vocabulary) == 4 + 8
    make_program(config, env=LIGHT, policy=bag(vocab=3 + 4 + 8))


def test_it_is_played_as_text():
    env = text_game(LIGHT)
    state, text = env.reset(1)
    assert text == "green"
    after, text, reward, terminated, truncated, info = env.step(state, "red")
    assert (text, reward, terminated, truncated, info["valid"]) == ("bad", 0.0, False, False, True)
    assert env.step(after, "green")[1:4] == ("good", 1.0, True)


@pytest.mark.slow
def test_a_policy_of_one_table_learns_a_game_of_two_words():
    config = small_config(
        "sft.steps=0", "rollout.batch_size=16", "rollout.n=2", "actor.ppo_mini_batch_size=32",
        "actor.lr=0.1", "actor.lr_schedule=constant", "algorithm.gamma=0.5",
        "trainer.total_training_steps=30",
    )  # fmt: skip
    params, metrics = jax.jit(make_train(config, env=LIGHT, policy=bag()))(jax.random.key(0))
    first_token = jax.nn.softmax(params["embed"] @ params["embed"].T)
    assert first_token[RED, RED] > 0.9 and first_token[GREEN, GREEN] > 0.9
    assert metrics["num_turns/mean"][-1] < 1.2 < metrics["num_turns/mean"][0]


@pytest.mark.slow
def test_a_game_that_is_given_is_played_as_one_that_is_named():
    config = small_config("sft.steps=2", "env.name=errand")
    given = open_game(config.env)
    # The name is then not looked at.
    other = dataclasses.replace(config, env=dataclasses.replace(config.env, name="household"))
    policy, key = bag(vocab=3 + len(given.vocabulary)), jax.random.key(0)
    found = jax.jit(make_train(other, env=given, policy=policy))(key)
    jax.tree.map(
        np.testing.assert_array_equal, found, jax.jit(make_train(config, policy=policy))(key)
    )


def test_a_policy_that_is_given_is_the_one_that_plays():
    config, policy = small_config(), make_policy(decoder_config("tiny", vocab_size=7))
    assert make_program(config, env=LIGHT, policy=policy).policy is policy
    # Without one it is a decoder of the shape of the settings, with the words of the game.
    made = jax.eval_shape(make_program(config, env=LIGHT).policy.init, jax.random.key(0))
    assert made["decoder"]["embedding"]["embedding"].shape == (7, 16)
