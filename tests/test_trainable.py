"""What is frozen stays bit for bit, costs no state, and a run with adapters is a run like any other."""

import dataclasses
import functools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.algorithms import algorithm
from steprl.checkpoint import Checkpointer, all_steps, restore
from steprl.config import MeshConfig, save_config
from steprl.metrics import CompilationCounter, read_metrics
from steprl.models import decoder_config, lora_targets, make_policy, merge_lora, score, with_lora
from steprl.models.weights import leaves_by_path
from steprl.optimizer import combine, make_optimizer, make_sft_optimizer, split_trainable
from steprl.rollout import attempts
from steprl.session import abstract_params, initial_params, load_params, open_policy, setup
from steprl.sft import make_sft_update
from steprl.sharding import make_mesh, shard_rows, state_shardings
from steprl.train import train
from steprl.update import TrainState, initial_state, make_update
from tests.models.random_models import assert_same_bits
from tests.small import random_batch, small_config

KEY = jax.random.key(5)
SCALE = 16.0 / 2
LORA = "model.lora.rank=2"
ADAPTERS, CRITIC = r"^lora/", r"^(value|critic)/"


def paths_of(tree):
    return set(leaves_by_path(tree))


@functools.cache
def policy_of(rank, param_dtype="float32", value_head="shared"):
    policy = make_policy(
        decoder_config(
            "tiny", vocab_size=16, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
            d_ff=32, value_head=value_head, param_dtype=param_dtype,
        )
    )  # fmt: skip
    return with_lora(policy, rank, 16.0) if rank else policy


@functools.cache
def params_of(rank, param_dtype="float32", value_head="shared"):
    """Adapters that change something already, and a critic with an opinion."""
    params = jax.device_get(jax.jit(policy_of(rank, param_dtype, value_head).init)(KEY))
    draw = np.random.default_rng(0)
    noise = lambda x: (x + 0.1 * draw.standard_normal(x.shape)).astype(x.dtype)  # noqa: E731
    return {
        name: jax.tree.map(noise, part) if name in ("lora", "value") else part
        for name, part in params.items()
    }


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


# Splitting

leaf_names = st.sampled_from(["a", "b", "c"])
trees = st.recursive(
    st.builds(lambda: np.zeros(1)),
    lambda inner: st.dictionaries(leaf_names, inner, min_size=1, max_size=3),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=60, deadline=None)
@given(trees, st.data())
def test_what_is_split_is_joined_again_and_no_leaf_is_in_both(tree, data):
    paths = sorted(paths_of(tree))
    chosen = data.draw(st.sets(st.sampled_from(paths), min_size=1))
    freeze = "|".join(f"^{path}$" for path in sorted(chosen))
    if len(chosen) == len(paths):
        with pytest.raises(ValueError, match="freezes every parameter"):
            split_trainable(tree, freeze)
        return
    trainable, frozen = split_trainable(tree, freeze)
    assert paths_of(frozen) == chosen and paths_of(trainable) == set(paths) - chosen
    again = combine(trainable, frozen)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    same = jax.tree.map(lambda x, y: x is y, again, tree)
    assert all(jax.tree.leaves(same))

    def no_empty_part(part):
        return not isinstance(part, dict) or (part and all(map(no_empty_part, part.values())))

    assert no_empty_part(trainable) and no_empty_part(frozen)


@pytest.mark.parametrize(
    "rank, value_head, freeze, trained",
    [
        (0, "shared", None, "."),
        (0, "shared", "^decoder/embedding", r"^decoder/(layers|final)|^value/"),
        (0, "separate", CRITIC, "^decoder/"),
        (2, "shared", None, r"^lora/|^value/"),
        (2, "separate", None, r"^lora/|^value/|^critic/"),
        (2, "none", None, "^lora/"),
        (2, "shared", "^value/", "^lora/"),
        (2, "shared", "/mlp/", r"^lora/.*/attention/|^value/"),
        (2, "shared", "^lora/", "^value/"),  # the critic alone
    ],
)
def test_with_adapters_the_decoder_is_frozen_and_freeze_adds_to_it(
    rank, value_head, freeze, trained
):
    shapes = jax.eval_shape(policy_of(rank, value_head=value_head).init, KEY)
    trainable, frozen = split_trainable(shapes, freeze)
    want = {path for path in paths_of(shapes) if re.search(trained, path)}
    assert want and paths_of(trainable) == want
    assert paths_of(frozen) == paths_of(shapes) - want


@pytest.mark.parametrize(
    "rank, freeze, said",
    [
        (0, "q_proj", "model.freeze='q_proj' matches no parameter"),
        (0, "(decoder", "model.freeze='(decoder' is not a regular expression"),
        (0, "/", "freezes every parameter: nothing would be trained"),
        (2, "^(lora|value)/", "freezes every parameter: nothing would be trained"),
    ],
)
def test_a_freeze_that_cannot_be_meant_is_said_before_anything_is_computed(rank, freeze, said):
    with pytest.raises(ValueError) as caught:
        setup(small_config(f"model.lora.rank={rank}", f"model.freeze={freeze}"))
    assert said in str(caught.value)
    if "no parameter" in said:
        assert "decoder/embedding/embedding" in str(caught.value)


def test_so_is_a_target_that_matches_nothing():
    with pytest.raises(ValueError, match="target='q_proj' matches no kernel of the decoder"):
        setup(small_config(LORA, "model.lora.target=q_proj"))


# The state of the optimiser


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if leaf.ndim)


@pytest.mark.parametrize("freeze", [None, "^value/"])
@pytest.mark.parametrize("phase", ["rl", "sft"])
def test_the_state_of_the_optimiser_is_that_of_what_is_trained(phase, freeze):
    config = small_config(LORA, *([f"model.freeze={freeze}"] if freeze else []))
    optimizer = {
        "rl": make_optimizer(config.actor, config.critic, 10),
        "sft": make_sft_optimizer(config.sft),
    }[phase]
    params = jax.eval_shape(policy_of(2).init, KEY)
    state = jax.eval_shape(lambda p: initial_state(p, optimizer, config), params)
    trained = bytes_of(params["lora"]) + (0 if freeze else bytes_of(params["value"]))
    assert bytes_of(state.opt_state) == 2 * trained  # two moments
    assert paths_of(state.params) == paths_of(params)  # the checkpoint holds everything


# Updates


def assert_only_moved(before, after, trained):
    """Everything that is trained has moved, and nothing else by a bit."""
    before, after = leaves_by_path(before), leaves_by_path(jax.device_get(after))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        assert after[path].dtype == leaf.dtype
        same = np.asarray(leaf).tobytes() == np.asarray(after[path]).tobytes()
        assert same != bool(re.search(trained, path)), path


def on_policy(policy, params, seed=11):
    """A batch that the policy itself might have played."""
    batch = random_batch(seed, rows=8)
    scores = jax.jit(functools.partial(score, policy))(params, batch)
    return dataclasses.replace(batch, logprob_NT=scores.logprob_NT)


def watching(optimizer, seen):
    """The optimiser, which notes the paths of the gradients that it is given."""

    def update(gradient, state, params=None):
        seen.update(paths_of(gradient))
        assert paths_of(gradient) == paths_of(params)
        return optimizer.update(gradient, state, params)

    return optax.GradientTransformation(optimizer.init, update)


CASES = [
    pytest.param(2, None, "float32", r"^(lora|value)/", id="adapters", marks=pytest.mark.slow),
    pytest.param(
        2, "^value/|/mlp/", "bfloat16", "^lora/.*attention", id="bfloat16", marks=pytest.mark.slow
    ),
    pytest.param(
        0, "embedding|norm|/mlp/", "float32", "/attention/.*kernel|^value/", id="freeze alone",
        marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize("rank, freeze, dtype, trained", CASES)
def test_an_update_moves_what_is_trained_and_no_bit_of_the_rest(rank, freeze, dtype, trained):
    config = small_config(
        f"model.lora.rank={rank}", f"model.freeze={freeze or 'null'}", "actor.ppo_epochs=1",
        "actor.ppo_micro_batch_size=4", "actor.use_kl_loss=true", "actor.kl_loss_coef=1.0",
    )  # fmt: skip
    policy, params, mesh = policy_of(rank, dtype), params_of(rank, dtype), one_device()
    seen = set()
    optimizer = watching(optax.adam(1e-2), seen)
    state = jax.jit(lambda p: initial_state(p, optimizer, config))(params)
    update = jax.jit(make_update(policy, algorithm("steppo"), optimizer, config, mesh))
    batch = on_policy(policy, params)
    after, first = update(state, batch, KEY)
    assert_only_moved(params, after.params, trained)
    want = {path for path in paths_of(params) if re.search(trained, path)}
    assert seen == want
    # The reference is what was trained as it was, and stays so.
    reference = after.carried["reference"]
    assert paths_of(state.carried["reference"]) == paths_of(reference) == want
    assert_same_bits(jax.device_get(reference), split_trainable(params, freeze)[0])
    again, second = update(after, on_policy(policy, after.params), KEY)
    assert_only_moved(params, again.params, trained)
    assert first["agree/logp_absmax"] < 1e-5 and second["agree/logp_absmax"] < 1e-5
    assert abs(first["actor/kl_loss"]) < 1e-6 < second["actor/kl_loss"]
    assert first["train/nonfinite"] == second["train/nonfinite"] == 0


@pytest.mark.parametrize("rank, freeze, dtype, trained", CASES)
def test_the_warm_start_moves_what_is_trained_and_no_bit_of_the_rest(rank, freeze, dtype, trained):
    """The critic has no part in its loss, so that it stays where it is too."""
    policy, params = policy_of(rank, dtype), params_of(rank, dtype)
    seen = set()
    optimizer = watching(optax.adam(1e-2), seen)
    trainable, _ = split_trainable(params, freeze)
    state = TrainState(params, optimizer.init(trainable), jnp.zeros((), jnp.int32))
    update = jax.jit(make_sft_update(policy, optimizer, 64, freeze))
    losses = []
    for _ in range(3):
        state, metrics = update(state, random_batch(3))
        losses.append(float(metrics["sft/loss"]))
    assert losses[2] < losses[0]
    assert_only_moved(params, state.params, trained.replace("|^value/", "").replace("|value", ""))
    assert seen == {path for path in paths_of(params) if re.search(trained, path)}


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [(4, 2), pytest.param(1, 8, marks=pytest.mark.full)])
def test_eight_devices_take_the_step_of_one(data, fsdp):
    config = small_config(LORA, "actor.ppo_epochs=1", "actor.use_kl_loss=true")
    policy, params, optimizer = policy_of(2), params_of(2), optax.sgd(0.1)
    batch = on_policy(policy, params)
    found = []
    for mesh in (one_device(), make_mesh(MeshConfig(data=data, fsdp=fsdp))):
        state = initial_state(params, optimizer, config)
        shardings = state_shardings(state, mesh)
        update = jax.jit(
            make_update(policy, algorithm("steppo"), optimizer, config, mesh),
            out_shardings=(shardings, None),
        )
        after, _ = update(jax.device_put(state, shardings), shard_rows(batch, mesh), KEY)
        found.append(after.params)
    for (path, a), b in zip(
        leaves_by_path(found[1]).items(), jax.tree.leaves(found[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=path)
    query = found[1]["lora"]["decoder"]["layers"]["0"]["attention"]["query"]
    assert {shard.data.shape for shard in query["lora_a"].addressable_shards} == {(16 // fsdp, 2)}
    assert {shard.data.shape for shard in query["lora_b"].addressable_shards} == {(2, 16)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_train_state_with_adapters_is_restored_bit_for_bit(dtype, tmp_path):
    config = small_config(LORA, "actor.use_kl_loss=true", "model.freeze=/mlp/")
    optimizer = make_optimizer(config.actor, config.critic, 10)
    fresh = functools.partial(initial_state, optimizer=optimizer, config=config)
    params = jax.tree.map(jnp.asarray, params_of(2, dtype))
    state = fresh(params)
    with Checkpointer(tmp_path) as saver:
        saver.save(1, state)
    abstract = jax.eval_shape(fresh, jax.eval_shape(policy_of(2, dtype).init, KEY))
    assert_same_bits(restore(tmp_path, abstract).state, state)
    types = {path: leaf.dtype for path, leaf in leaves_by_path(state.params).items()}
    assert all(types[path] == jnp.float32 for path in types if path.startswith("lora/"))
    assert types["decoder/embedding/embedding"] == dtype


# Runs

RUN = (LORA, "sft.steps=4", "sft.lr=2e-2", "actor.lr=1e-2", "trainer.val_before_train=false",
       "eval.greedy=false", "algorithm.use_kl_in_reward=true")  # fmt: skip


@pytest.fixture(scope="module")
def session():
    return setup(small_config(*RUN))


@pytest.fixture(scope="module")
def whole(session, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    save_config(session.config, run / "config.resolved.yaml")
    params, compiled = train(session, run)
    return run, jax.device_get(params), compiled


@pytest.mark.slow
def test_a_run_trains_the_adapters_and_leaves_the_decoder(session, whole):
    run, params, compiled = whole
    start = jax.device_get(initial_params(session))
    assert_same_bits(params["decoder"], start["decoder"])
    for name in ("lora", "value"):
        for path, leaf in leaves_by_path(params[name]).items():
            assert np.any(leaf != leaves_by_path(start[name])[path]), path
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:  # adapters that have moved are decoded with at once
        assert row["agree/logp_absmax"] < 1e-4 and abs(row["agree/ratio_mean"] - 1) < 1e-5
    assert compiled.count("jit(compiled)") == 1 and compiled.count("jit(update)") == 2


@pytest.mark.slow
def test_a_run_with_adapters_that_was_stopped_goes_on_bit_for_bit(session, whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(whole[0] / "sft", run / "sft")
    short = dataclasses.replace(
        session.config,
        trainer=dataclasses.replace(session.config.trainer, total_training_steps=1),
    )
    train(session._replace(config=short), run)
    assert all_steps(run / "checkpoints") == [1]
    params, _ = train(session, run)
    assert_same_bits(jax.device_get(params), whole[1])
    optimizer = make_optimizer(session.config.actor, session.config.critic, 1)
    shapes = jax.eval_shape(
        lambda p: initial_state(p, optimizer, session.config), abstract_params(session)
    )
    states = [jax.device_get(restore(r / "checkpoints", shapes, 2).state) for r in (run, whole[0])]
    assert_same_bits(*states)


@pytest.mark.slow
def test_adapters_change_what_is_played_in_the_very_next_step(session, whole):
    """What was played after a step has the log-probs of the new parameters, not of the base."""
    tasks = attempts(0, 8, 1)
    params = jax.device_put(whole[1], state_shardings(whole[1], session.mesh))
    base = {name: part for name, part in params.items() if name != "lora"}
    scores = jax.jit(functools.partial(score, session.policy))
    with CompilationCounter() as counter:
        played = session.player.play(params, KEY, *tasks)
    assert counter.names["jit(compiled)"] <= 1
    gap = {
        name: np.abs(scores(p, played).logprob_NT - played.logprob_NT).max()
        for name, p in (("adapters", params), ("base", base))
    }
    assert gap["adapters"] < 1e-5 and gap["base"] > 1e-3


def kernels_of(params):
    return {path: leaves_by_path(params)[path] for path in lora_targets(params)}


@pytest.mark.slow
def test_a_policy_that_is_opened_is_merged(whole):
    run, params, _ = whole
    opened = open_policy(run)
    assert "lora" not in opened.params
    want = kernels_of(merge_lora(params, SCALE))
    for path, kernel in kernels_of(jax.device_get(opened.params)).items():
        np.testing.assert_allclose(kernel, want[path], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    ["model.lora.rank=0", "model.lora.rank=3", "model.lora.alpha=1", "model.lora.target=mlp"],
)
def test_a_run_may_begin_with_another_run_whatever_the_adapters_of_both(whole, lora):
    """The same adapters go on; others are merged, and new ones begin with what that run had learnt."""
    run, params, _ = whole
    goes_on = setup(small_config(*RUN, f"trainer.init_from={run}"))
    assert_same_bits(jax.device_get(initial_params(goes_on)), params)
    session = setup(small_config(*RUN, lora, f"trainer.init_from={run}"))
    start = jax.device_get(initial_params(session))
    assert ("lora" in start) == (lora != "model.lora.rank=0")
    shapes = jax.eval_shape(session.policy.init, KEY)
    assert jax.tree.structure(start) == jax.tree.structure(shapes)
    want = kernels_of(merge_lora(params, SCALE))
    for path, kernel in kernels_of(jax.device_get(session.policy.prepare(start))).items():
        np.testing.assert_allclose(kernel, want[path], rtol=1e-5, atol=1e-6)


def test_adapters_may_begin_on_a_run_that_has_none(tmp_path, session):
    plain = setup(small_config())
    params = initial_params(plain)
    save_config(plain.config, tmp_path / "config.resolved.yaml")
    with Checkpointer(tmp_path / "checkpoints") as saver:
        saver.save(1, {"params": params})
    begun = setup(small_config(*RUN, f"trainer.init_from={tmp_path}"))
    start = initial_params(begun)
    assert_same_bits(jax.device_get({n: start[n] for n in params}), jax.device_get(params))
    assert paths_of(start["lora"]) == paths_of(initial_params(session)["lora"])
    with pytest.raises(ValueError, match="lora/.*not stored"):
        load_params(begun, tmp_path)
