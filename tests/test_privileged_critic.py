"""A critic that is told more than the policy, from the settings to what it learns."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.envs.device_env import DeviceObservation
from steprl.envs.games import Game
from steprl.envs.suite import Suite
from steprl.laboratory import make_program, make_train
from steprl.session import load_params, setup
from steprl.train import train
from tests import own_agent
from tests.lock import LOCK, SAYS
from tests.small import small_config

PRIVILEGED = ("critic.privileged=true", "model.value_head=separate")


class Guided(own_agent.Lights):
    """Lights that tell the critic which are still to come."""

    def privileged(self, state):
        task, turn, _ = state
        return " ".join(own_agent.COLOURS[colour] for colour in self.colours(task)[turn:])


def suite_of_lights(kind, context="extend"):
    return Suite(
        splits={"train": kind(False), "blue at last": kind(True)},
        vocabulary=(*own_agent.COLOURS, "done"), max_steps=3, context=context,
    )  # fmt: skip


# What it needs


@pytest.mark.parametrize("start", [setup, make_program], ids=["train", "laboratory"])
@pytest.mark.parametrize(
    ("overrides", "given", "said"),
    [
        (PRIVILEGED[:1], {}, "model.value_head=separate"),
        (PRIVILEGED, {"env": LOCK, "policy": SAYS}, "a network of its own"),
        (PRIVILEGED, {"env": LOCK}, "tells the critic nothing; give it privileged=..."),
    ],
)
def test_what_is_missing_is_said_before_anything_is_computed(start, overrides, given, said):
    with pytest.raises(ValueError, match=r"critic\.privileged") as error:
        start(small_config(*overrides), **given)
    assert said in str(error.value)


def test_a_text_environment_needs_the_method():
    with pytest.raises(
        ValueError, match=r"Lights\) tells the critic nothing; give it privileged\(st"
    ):
        setup(small_config(*PRIVILEGED), env=suite_of_lights(own_agent.Lights))


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp"])
def test_methods_without_a_critic_ask_for_nothing(name):
    setup(
        small_config(*PRIVILEGED[:1], f"algorithm.name={name}", "rollout.n=2"),
        env=suite_of_lights(own_agent.Lights),
    )


# What it learns


@dataclasses.dataclass(frozen=True)
class Coin:
    """Whatever is said, the reward is that of a coin which nobody sees."""

    heldout: bool | jax.Array = False
    prompt_width = 1
    action_width = 1
    observation_width = 1
    max_steps = 1
    vocab_size = 6
    stop_ids: ClassVar[tuple[int, ...]] = ()

    def reset(self, task, key):
        return jax.random.bernoulli(key).astype(jnp.int32), jnp.full(1, 3, jnp.int32)

    def step(self, state, action):
        yes = jnp.ones((), bool)
        return state, DeviceObservation(
            tokens=jnp.full(1, 3, jnp.int32), reward=state.astype(jnp.float32), terminated=yes,
            truncated=~yes, valid=yes, success=state > 0,
        )  # fmt: skip


COIN = Game(Coin, ("throw", "heads", "tails"), privileged=lambda coin: 4 + coin[None])


@pytest.mark.slow
@pytest.mark.parametrize(("told", "least", "most"), [(True, 0.9, 1.0), (False, -0.2, 0.2)])
def test_only_what_it_is_told_explains_a_return_that_nothing_shows(told, least, most):
    config = small_config(
        f"critic.privileged={told}".lower(), PRIVILEGED[1], "rollout.batch_size=64",
        "actor.ppo_mini_batch_size=64", "actor.ppo_epochs=4", "critic.lr=0.01",
        "trainer.total_training_steps=30",
    )  # fmt: skip
    _, metrics = jax.jit(make_train(config, env=COIN))(jax.random.key(0))
    explained = metrics["critic/vf_explained_var"][-5:].mean()
    assert least <= explained <= most
    assert metrics["train/nonfinite"].sum() == 0 and metrics["agree/logp_absmax"].max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("context", ["rebuild", pytest.param("extend", marks=pytest.mark.full)])
def test_a_run_on_eight_devices_is_the_same_when_it_is_resumed(context, tmp_path):
    """In text, whose contexts grow or are written anew."""
    settings = (
        *PRIVILEGED, "rollout.response_length=2", "rollout.context_length=32", "actor.ppo_epochs=1",
        "rollout.max_steps=3", "trainer.val_before_train=false", "eval.greedy=false",
    )  # fmt: skip
    session = setup(small_config(*settings), env=suite_of_lights(Guided, context))
    train(session, tmp_path / "whole")
    first = dataclasses.replace(
        session.config, trainer=dataclasses.replace(session.config.trainer, total_training_steps=1)
    )
    train(session._replace(config=first), tmp_path / "half")
    train(session, tmp_path / "half")
    whole, half = (jax.device_get(load_params(session, tmp_path / n)) for n in ("whole", "half"))
    jax.tree.map(np.testing.assert_array_equal, whole, half)
    tasks = np.arange(8, dtype=np.int32)
    batch = session.player.play(whole, jax.random.key(0), tasks, np.zeros_like(tasks))
    assert (batch.context_width > 0) == (context == "rebuild")
    first = Guided(False).privileged((5, 0, 0)).split()
    told, steps = (np.asarray(x)[5] for x in batch.privileged)
    assert told[steps == 0].tolist() == session.player.tokenizer.encode(" ".join(first))
