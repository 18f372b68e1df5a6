"""A run as one compiled program: the same mathematics as a run on the host, with more axes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.algorithms import ALGORITHMS
from steprl.config import LoraConfig
from steprl.laboratory import TRACED, make_program, make_train, next_clip
from steprl.metrics import CompilationCounter
from tests.lock import (
    BLUE,
    LOCK,
    RED,
    SAYS,
    SIZE,
    assert_close,
    key_of,
    lab,
    lane,
    moved,
    trains,
)

# One program


def test_a_hundred_updates_are_one_program_that_never_asks_the_host():
    train = jax.jit(trains("trainer.total_training_steps=25"))
    key, other = jax.device_put((key_of(1), key_of(0)), jax.devices()[0])
    with CompilationCounter() as counter:
        _, metrics = jax.block_until_ready(train(other))
    assert counter.names["jit(train)"] == 1
    with CompilationCounter() as counter, jax.transfer_guard("disallow"):
        again, _ = jax.block_until_ready(train(key))
    assert counter.count == 0
    assert {x.shape for x in jax.tree.leaves(metrics)} == {(25,)}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert np.mean(metrics["rollout/success_rate"][-5:]) > np.mean(
        metrics["rollout/success_rate"][:5]
    )
    assert min(jax.tree.leaves(moved(again, key)["decoder"])) > 0.1
    text = train.lower(key).as_text()
    assert not any(word in text for word in ("callback", "infeed", "outfeed"))


@pytest.fixture(scope="module")
def eight_seeds():
    """The keys, and runs of them as one more axis."""
    keys = jax.random.split(key_of(3), 8)
    return keys, jax.jit(jax.vmap(trains()))(keys)


@pytest.mark.slow
def test_seeds_are_one_more_axis(eight_seeds):
    """Parameters and metrics of each are those of a run alone, to 1e-5."""
    keys, together = eight_seeds
    alone = jax.jit(trains())
    for seed in (0, 5):
        assert_close(lane(together, seed), alone(keys[seed]))
    table = together[0]["decoder"]["table"]
    assert len({x.tobytes() for x in np.asarray(table)}) == 8


@pytest.mark.slow
def test_seeds_laid_over_devices_are_the_same_seeds(eight_seeds, devices):
    keys, together = eight_seeds
    mesh = Mesh(np.array(devices), ("seed",))
    placed = jax.device_put(keys, NamedSharding(mesh, P("seed")))
    run = jax.jit(jax.vmap(trains())).lower(placed).compile()
    apart = run(placed)
    assert_close(jax.device_get(apart), jax.device_get(together))
    for x in jax.tree.leaves(apart[0]):
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {1}
    assert "all-gather" not in run.as_text()


# Numbers that may be traced

NUMBERS = {
    "actor.lr": (0.05, 0.02),
    "actor.grad_clip": (0.3, 0.0),
    "actor.clip_ratio_low": (0.05, 0.3),
    "actor.clip_ratio_high": (0.1, 0.3),
    "actor.entropy_coeff": (0.0, 0.1),
    "algorithm.gamma": (0.9, 1.0),
    "algorithm.lam": (0.5, 1.0),
    "critic.lr": (0.1, 0.2),
    "critic.grad_clip": (0.0, 0.05),
    "critic.vf_coef": (1.0, 0.3),
    "trainer.critic_warmup": (0, 2),
}


@pytest.mark.slow
def test_settings_of_a_call_are_those_of_the_configuration():
    """All of them, as an axis of a map, and each run as if it had been configured so."""
    assert set(NUMBERS) == set(TRACED)
    base, key = "algorithm.name=steppo", key_of(5)
    given = {name: jnp.array(values) for name, values in NUMBERS.items()}
    together = jax.jit(jax.vmap(trains(base), (None, None, 0)))(key, None, given)
    assert np.asarray(together[1]["actor/pg_clipfrac"]).max() > 0.05  # clips matter
    for number in (0, 1):
        own = [f"{name}={values[number]}" for name, values in NUMBERS.items()]
        assert_close(lane(together, number), jax.jit(trains(base, *own))(key))


@pytest.mark.parametrize(
    "name",
    ["steppo", *(pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS if n != "steppo")],
)
def test_every_method_takes_every_setting(name):
    """Nothing is computed: a number that is looked at on the host would raise."""
    given = dict.fromkeys((*TRACED, "clip_fraction", "token_budget"), jnp.float32(0.5))
    train = trains(f"algorithm.name={name}")
    params, metrics = jax.eval_shape(train, key_of(0), None, given)
    assert metrics["actor/clip_ratio"].shape == (4,)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(SAYS.init, key_of(0)))


CLIPS = [  # clip, share clipped, wanted -> next
    (0.2, 0.1, 0.1, 0.2),
    (0.2, 0.2, 0.1, 0.2 * np.sqrt(0.2001 / 0.1001)),
    (0.2, 0.05, 0.1, 0.2 * np.sqrt(0.0501 / 0.1001)),
    (0.2, 0.9, 0.1, 0.3),  # no faster than by half
    (0.2, 0.0, 0.1, 0.2 / 1.5),
    (0.9, 0.9, 0.1, 1.0),
    (1.2e-4, 0.0, 0.1, 1e-4),
    (0.2, 0.0, 0.0, 0.2),
]


@pytest.mark.parametrize("clip, fraction, wanted, expected", CLIPS)
def test_the_clip_moves_towards_the_wanted_share(clip, fraction, wanted, expected):
    assert float(next_clip(jnp.float32(clip), jnp.float32(fraction), wanted)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.fixture(scope="module")
def lanes():
    """Runs of one seed: two wanted shares of clipping, and three budgets of tokens."""
    settings = {
        "clip_fraction": jnp.array([0.05, 0.2, 0.2, 0.2, 0.2]),
        "token_budget": jnp.array([jnp.inf, jnp.inf, 500.0, 0.0, -1.0]),
    }
    train = trains("trainer.total_training_steps=40")
    run = jax.jit(jax.vmap(train, (None, None, 0)))
    key = key_of(7)
    _, metrics = run(key, None, settings)
    # One lane's budget is met exactly by what its first six iterations sample.
    exact = float(metrics["token/total"][1, 5])
    settings["token_budget"] = settings["token_budget"].at[4].set(exact)
    return key, settings, jax.device_get(run(key, None, settings))


@pytest.mark.slow
def test_the_share_that_is_clipped_settles_at_what_is_wanted(lanes):
    _, settings, (_, metrics) = lanes
    for number in (0, 1):
        wanted = float(settings["clip_fraction"][number])
        found = metrics["actor/pg_clipfrac"][number]
        assert abs(found[-20:].mean() - wanted) < max(0.4 * wanted, 0.02), found
    narrow, wide = metrics["actor/clip_ratio"][1, -20:], metrics["actor/clip_ratio"][0, -20:]
    assert narrow.mean() < wide.mean()
    going = settings["token_budget"] > 0
    assert (
        metrics["actor/clip_ratio"][going, 0] == np.float32(0.2)
    ).all()  # as configured at first


@pytest.mark.slow
def test_a_budget_of_tokens_stops_a_run_and_no_other(lanes):
    key, settings, (params, metrics) = lanes
    total, decoded = metrics["token/total"], metrics["token/decoded"]
    free = total[1]
    np.testing.assert_allclose(free, np.cumsum(decoded[1]))
    for number in (2, 3, 4):
        budget = float(settings["token_budget"][number])
        # The iteration that reaches the budget is the last.
        last = 0 if budget <= 0 else int(np.argmax(free >= budget)) + 1
        assert (total[number, :last] == free[:last]).all()
        assert (total[number, last:] == (free[last - 1] if last else 0)).all()
        assert (decoded[number, last:] == 0).all()
        for name in set(metrics) - {"token/total", "token/decoded"}:
            assert np.isnan(metrics[name][number, last:]).all(), name  # nothing was measured
    assert int(np.argmax(free >= settings["token_budget"][4])) == 5
    assert max(jax.tree.leaves(moved(lane(params, 3), key))) < 1e-6  # of rounding
    assert np.abs(params["decoder"]["table"][1] - params["decoder"]["table"][2]).max() > 0


@pytest.mark.slow
def test_a_run_that_stands_still_has_the_parameters_of_its_last_iteration(lanes):
    key, settings, (params, _) = lanes
    program = make_program(lab("trainer.total_training_steps=40"), env=LOCK, policy=SAYS)
    warm_key, run_key = jax.random.split(key)
    given = {"clip_fraction": settings["clip_fraction"][4]}
    state = program.begin(program.warm_start(warm_key)[0], given)
    iterate = jax.jit(program.iterate)
    for _ in range(6):
        state, _ = iterate(state, run_key, given)
    assert float(state.carried["tokens"]) == float(settings["token_budget"][4])
    assert_close(state.params, lane(params, 4))


# Warm start and evaluation


@pytest.mark.slow
def test_a_warm_start_learns_from_demonstrations():
    """A decoder, on questions."""
    program = make_program(lab("sft.steps=60", "sft.lr=2e-2"))
    params, metrics = jax.jit(program.warm_start)(key_of(0))
    loss = metrics["sft/loss"]
    assert loss.shape == (60,) and loss[-5:].mean() < 0.6 * loss[:5].mean()
    assert metrics["train/nonfinite"].sum() == 0
    found = jax.jit(program.evaluate, static_argnums=2)(params, key_of(1), 16)
    assert found.shape == (16,) and found.dtype == bool


@pytest.mark.slow
def test_a_run_begins_with_its_warm_start_unless_parameters_are_given():
    program, key = make_program(lab(), env=LOCK, policy=SAYS), key_of(4)
    params, metrics = program.warm_start(jax.random.split(key)[0])
    assert metrics == {}
    train = jax.jit(trains("trainer.total_training_steps=1"))
    assert_close(train(key, params), train(key))


@pytest.mark.parametrize("knows, solved", [(BLUE, True), (RED, False)])
def test_evaluation_plays_held_out_tasks_only(knows, solved):
    """Blue locks are held out: who says blue opens all of them, who says red opens none."""
    evaluate = jax.jit(make_program(lab(), env=LOCK, policy=SAYS).evaluate, static_argnums=2)
    table = jnp.zeros((SIZE, SIZE)).at[:, knows].set(5.0)
    params = {"decoder": {"table": table}, "value": {"head": jnp.zeros(SIZE)}}
    found = evaluate(params, key_of(0), 32, jnp.float32(0.0))
    assert found.shape == (32,) and found.dtype == bool
    assert bool(found.all() if solved else not found.any())
    warm = evaluate({**params, "decoder": {"table": 0.1 * table}}, key_of(0), 32, jnp.float32(1.0))
    assert not warm.all()


# Bad input


def replaced(config, section, **values):
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **values)}
    )


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("env", {"name": "household"}, "env.name=household runs on the host; .* multihop, errand"),
        ("model", {"path": "somewhere"}, "model.path: games have a language of their own"),
        (
            "model",
            {"lora": LoraConfig(rank=2)},
            "model.lora.rank=2: one program trains the param.* at 0",
        ),
        ("rollout", {"top_p": 0.9}, "rollout.top_p: one program samples from all tokens.* at 1.0"),
        ("rollout", {"top_k": 5}, "rollout.top_k: one program samples from all tokens.* at 0"),
        ("actor", {"ppo_mini_batch_size": 5}, "ppo_mini_batch_size=5 must divide the 12 attempts"),
        ("rollout", {"n": 1, "batch_size": 12}, "grpo compares attempts.*rollout.n=1"),
        ("algorithm", {"name": "stepo"}, "'stepo' is unknown: did you mean steppo"),
    ],
)
def test_settings_that_cannot_be_are_refused(section, values, message):
    with pytest.raises(ValueError, match=message):
        make_train(replaced(lab(), section, **values))


def test_a_method_with_a_critic_needs_a_model_with_one():
    with pytest.raises(ValueError, match="steppo learns from a critic.*model.value_head"):
        make_train(replaced(lab("model.value_head=none"), "algorithm", name="steppo"))


@pytest.mark.parametrize("name", ["actor.rate", "rollout.n", "token_budgets"])
def test_a_setting_that_is_a_part_of_the_program_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be given to a compiled run.*actor.lr"):
        jax.eval_shape(trains(), key_of(0), None, {name: 1.0})
