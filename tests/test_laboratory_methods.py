"""Every method trains in one program, as it does with rollouts on the host."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.algorithms import ALGORITHMS, Algorithm, algorithm, step_credit
from steprl.branching import Plan
from steprl.config import MeshConfig
from steprl.envs.games import text_game
from steprl.envs.opening import open_game
from steprl.laboratory import make_program
from steprl.models.tokenizer import detokenize, phrase_tokenizer
from steprl.ops import nonblank_tokens
from steprl.optimizer import make_optimizer
from steprl.rollout import text_player
from steprl.rollout.branching import grow
from steprl.rollout.contexts import plain_context
from steprl.sharding import make_mesh
from steprl.update import make_update, sizes_in_rows
from tests.lock import assert_close, key_of, lab, moved, table_policy, trains
from tests.rollout.markov import _table as markov_table
from tests.small import KINDS

# Methods


KEY = key_of(11)


@functools.cache
def trained(name):
    return jax.jit(trains(f"algorithm.name={name}"))(KEY)


def check_training(params, metrics):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, metrics)))
    assert metrics["train/nonfinite"].sum() == 0
    assert 0 < metrics["rollout/success_rate"].mean() < 1
    np.testing.assert_allclose(metrics["agree/ratio_mean"], 1.0, atol=1e-5)
    assert moved(params, KEY)["decoder"]["table"] > 1e-2


OTHERS = tuple(name for name in ALGORITHMS if name not in KINDS)


@pytest.mark.parametrize(
    "name",
    [
        "branpo",
        *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name != "branpo"),
        *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.full]) for name in OTHERS),
    ],
)
def test_every_method_trains(name):
    params, metrics = trained(name)
    check_training(params, metrics)
    branches = ALGORITHMS[name].branching is not None
    assert (metrics["branch/count"].sum() > 0) == branches


@pytest.mark.slow
def test_a_method_of_ones_own_trains():
    """GAE over steps with ratios of tokens; it is neither of the two that it is made of."""
    mine = Algorithm(step_credit, "token", "token-mean", ("critic",))
    params, metrics = jax.jit(trains("algorithm.name=steppo", method=mine))(KEY)
    check_training(params, metrics)
    other, _ = trained("steppo")
    assert np.abs(params["decoder"]["table"] - other["decoder"]["table"]).max() > 1e-3


# The same mathematics as on the host

HOPS = table_policy(jnp.asarray(markov_table(4, 0.05)))


def ratio_of(params, before, batch):
    """Log-prob of each token now, less that before the last update."""
    previous = before["decoder"]["table"]
    tokens = np.asarray(batch.tokens_NT)
    logprob = jax.nn.log_softmax(previous)[np.roll(tokens, 1, axis=1), tokens]
    return jnp.where(batch.step_ids_NT >= 0, batch.logprob_NT - logprob, 0.0)


def on_the_host(config, state, key):
    """The rollouts of the second iteration: a batch, success of the originals, tokens, branches."""
    game, mesh = open_game(config.env), make_mesh(MeshConfig(), jax.devices()[:1])
    tokenizer = phrase_tokenizer(game.vocabulary)
    env, method = game.make(False), ALGORITHMS[config.algorithm.name]
    rollout = dataclasses.replace(config.rollout, response_length=env.action_width)
    text = {"train": text_game(game)}
    player = text_player(
        text, plain_context(tokenizer), tokenizer, HOPS, mesh, rollout, env.max_steps
    )
    task_key, play_key, _ = jax.random.split(key, 3)
    first = int(jax.random.randint(task_key, (), 0, 2**30)) + config.rollout.batch_size
    task_N = (first + np.arange(12) // 4).astype(np.int32)
    rows = (state.params, play_key, task_N, np.arange(12, dtype=np.int32) % 4)
    if method.branching is None:
        batch = player.play(*rows)
        return batch, np.mean(batch.success_N), np.sum(np.asarray(batch.step_ids_NT) >= 0), 0
    nonblank = nonblank_tokens([detokenize(tokenizer, [token]) for token in range(env.vocab_size)])
    algorithm = config.algorithm
    plan = Plan(nonblank, algorithm.gamma, method.branching, algorithm.branch, 4, ratio_of)
    grown = grow(player, plan, *rows, before=state.carried.get("previous"))
    originals = [one for group in grown.groups for one in group if one.parent.origin == one.sample]
    success = np.mean([one.success for one in originals])
    batch = player.collate_groups(grown.groups, grown.rows)
    return batch, success, grown.usage.decoded, grown.report["branch/count"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steppo", "branpo", pytest.param("appo", marks=pytest.mark.full)])
def test_an_iteration_is_the_update_of_a_rollout_on_the_host(name):
    config = lab(
        f"algorithm.name={name}", "env.multihop.num_entities=4", "env.multihop.max_hops=3",
        "algorithm.gamma=0.9", "actor.lr=0.01", "actor.ppo_mini_batch_size=12",
    )  # fmt: skip
    program, key = make_program(config, policy=HOPS), key_of(2)
    iterate = jax.jit(program.iterate)
    begun = program.begin(program.warm_start(key_of(0))[0])
    before = iterate(begun, key)[0]  # then a method may ask what the first iteration changed
    after, metrics = iterate(before, key)

    batch, success, sampled, branches = on_the_host(config, before, key)
    assert float(metrics["rollout/success_rate"]) == pytest.approx(float(success))
    assert (metrics["token/decoded"], metrics["branch/count"]) == (sampled, branches)
    optimizer = make_optimizer(config.actor, config.critic, 8)
    update = jax.jit(
        make_update(
            HOPS, algorithm(name), optimizer, sizes_in_rows(config, algorithm(name).branching)
        )
    )
    update_key = jax.random.fold_in(jax.random.split(key, 3)[2], 1)
    want, learnt = update(before, batch, update_key)
    assert_close(after.params, want.params)
    for metric in ("critic/advantages/mean", "actor/pg_loss", "actor/grad_norm"):
        assert float(metrics[metric]) == pytest.approx(float(learnt[metric]), abs=1e-5)
    assert float(metrics["actor/grad_norm"]) > 1e-3 and float(success) > 0


@pytest.mark.parametrize("name", ["appo", "arpo"])
@pytest.mark.parametrize("initial", [4, 7])
def test_attempts_must_be_left_for_branches(name, initial):
    train = trains(f"algorithm.name={name}", f"algorithm.branch.initial={initial}")
    with pytest.raises(ValueError, match=f"algorithm.branch.initial={initial}.*rollout.n=4"):
        jax.eval_shape(train, key_of(0))
