"""What a separate critic begins with, and whole runs of it."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steprl.checkpoint import Checkpointer
from steprl.config import save_config
from steprl.laboratory import make_program
from steprl.metrics import read_metrics
from steprl.models import init_lora, merge_lora
from steprl.session import initial_params, load_params, setup
from steprl.train import train
from steprl.update import initial_state
from tests.lock import LOCK, lab
from tests.small import small_config
from tests.test_update import KEY, same_bits

SGD = optax.sgd(1.0)
COPIED = ("model.value_head=separate", "critic.init=policy")


def trunk(seed):
    rng = np.random.default_rng(seed)
    leaf = lambda: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)  # noqa: E731
    return {"layers": {"0": {"mlp": {"up": {"kernel": leaf()}}}}, "head": leaf()}


def behind_the_warm_start(bias=0.0):
    """Policy and separate critic by their names; a new head gives 0."""
    out = {"kernel": jnp.zeros((4, 1)), "bias": jnp.array([bias])}
    return {"decoder": trunk(0), "critic": trunk(1), "value": {"hidden": jnp.ones(4), "out": out}}


def begun(params, *overrides):
    """Parameters that training begins with."""
    return initial_state(params, SGD, small_config(*overrides)).params


def test_the_critic_begins_as_a_copy_of_the_policy():
    params = behind_the_warm_start()
    first = begun(params, *COPIED)
    same_bits(first, params | {"critic": params["decoder"]})
    # In buffers of its own, as the update is given all of them to write into.
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(first)]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(
    "overrides, bias",
    [(COPIED[:1], 0.0), (COPIED[1:], 0.0), ((*COPIED, "algorithm.name=reinforce_pp"), 0.0),
     (COPIED, 0.1)],
    ids=["not asked for", "not separate", "no critic", "trained already"],
)  # fmt: skip
def test_else_it_stays_as_it_is(overrides, bias):
    params = behind_the_warm_start(bias)
    same_bits(begun(params, *overrides), params)


def test_with_adapters_it_is_a_copy_of_the_policy_that_plays():
    params = behind_the_warm_start()
    params["lora"] = jax.tree.map(lambda x: x + 0.1, init_lora(KEY, params, 2))
    first = begun(params, *COPIED, "model.lora.rank=2", "model.lora.alpha=16")
    same_bits(first["critic"], merge_lora(params, 8.0)["decoder"])
    kernel_of = lambda tree: tree["layers"]["0"]["mlp"]["up"]["kernel"]  # noqa: E731
    assert np.all(kernel_of(first["critic"]) != kernel_of(params["decoder"]))


def test_a_policy_without_two_trunks_of_one_shape_has_nothing_to_copy():
    with pytest.raises(ValueError, match="critic.init=policy copies the policy's 'decoder'"):
        begun({"decoder": trunk(0), "value": {}}, *COPIED)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("critic.head=hl_gauss",), marks=pytest.mark.slow, id="bins"),
        pytest.param(COPIED, id="separate"),
        pytest.param(
            ("model.value_head=none", "algorithm.name=reinforce_pp"),
            marks=pytest.mark.slow,
            id="none",
        ),
    ],
)
def test_a_run_may_begin_with_another_run_whatever_the_critics_of_both(overrides, tmp_path, caplog):
    """A critic of another form begins anew, beside the policy that there was."""
    plain = setup(small_config())
    before = jax.tree.map(lambda x: x + 0.5, initial_params(plain))
    save_config(plain.config, tmp_path / "config.resolved.yaml")
    with Checkpointer(tmp_path / "checkpoints") as saver:
        saver.save(1, {"params": before})
    session = setup(small_config(*overrides, f"trainer.init_from={tmp_path}"))
    start = initial_params(session)
    same_bits(start["decoder"], before["decoder"])
    new = initial_params(setup(small_config(*overrides)))
    assert start.keys() == new.keys()
    same_bits(*({k: x for k, x in tree.items() if k != "decoder"} for tree in (start, new)))
    assert ("so a new one begins" in caplog.text) == ("value" in start)
    same = setup(small_config(f"trainer.init_from={tmp_path}"))
    same_bits(initial_params(same), before)


def test_the_laboratory_begins_with_that_copy_and_trains_it_so():
    """Nothing is computed but the first state: shapes and names are right."""
    config = lab("algorithm.name=steppo", *COPIED, "critic.ppo_epochs=2", "trainer.critic_warmup=1")
    program = make_program(config, env=LOCK)
    params = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(program.policy.init, KEY)
    )
    params["decoder"] = jax.tree.map(lambda x: x + 1, params["decoder"])
    state = program.begin(params)
    same_bits(state.params["critic"], params["decoder"])
    after, metrics = jax.eval_shape(program.iterate, state, KEY)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"actor/grad_norm", "critic/grad_norm", "train/nonfinite"} <= metrics.keys()
    with pytest.raises(ValueError, match="critic.ppo_epochs=2: .* set model.value_head=separate"):
        make_program(small_config("critic.ppo_epochs=2"))


@pytest.mark.slow
def test_a_run_with_all_of_it_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    """Killed in the warm-up of the critic, and when both are trained."""
    on = ("sft.steps=60", "sft.lr=2e-2", "actor.entropy_coeff=0.01",
          "rollout.batch_size=64", "actor.ppo_mini_batch_size=64",
          "trainer.critic_warmup=2", "trainer.save_freq=1", "trainer.max_to_keep=9",
          "trainer.total_training_steps=4", "trainer.val_before_train=false", "eval.greedy=false",
          "critic.ppo_epochs=3", "critic.ppo_mini_batch_size=32", "critic.grad_clip=0.5",
          "actor.lr_schedule=linear", *COPIED)  # fmt: skip
    session = setup(small_config(*on))
    whole = tmp_path / "whole"
    params, _ = train(session, whole)
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["actor/grad_norm"] > 0 for row in rows] == [False, False, True, True]
    assert all(row["critic/grad_norm"] > 0 for row in rows)
    warm = load_params(
        session, Path(shutil.copytree(whole / "sft", tmp_path / "warm" / "sft")).parent
    )
    kept = [load_params(session, whole, step) for step in (1, 2, 3)]
    for one in kept[:2]:
        same_bits(one["decoder"], warm["decoder"])
    assert not np.array_equal(*(x["decoder"]["final_norm"]["scale"] for x in kept[1:]))
    # It began as a copy of the policy, and was trained for one iteration since.
    distances = [
        float(optax.tree.norm(jax.tree.map(jnp.subtract, kept[0]["critic"], other)))
        for other in (warm["decoder"], warm["critic"])
    ]
    assert distances[0] < 0.2 * distances[1]
    for step in (1, 3):
        run = tmp_path / f"stopped {step}"
        shutil.copytree(whole / "sft", run / "sft")
        for number in range(1, step + 1):
            name = f"checkpoints/{number}"
            shutil.copytree(whole / name, run / name)
        again, _ = train(session, run)
        same_bits(again, params)
