"""The update of packed rows: the same step as that of the rows on their own, with little padding."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.algorithms import algorithm
from steprl.config import MeshConfig
from steprl.models import decoder_config, make_policy, score, with_lora
from steprl.optimizer import combine, frozen_layers, split_trainable
from steprl.rollout.packing import block_widths, pack_rows
from steprl.rollout.records import collate
from steprl.sharding import make_mesh, shard_rows
from steprl.types import Step, Trajectory
from steprl.update import initial_state, make_update, mini_batches
from tests.rollout.groups import VOCAB, trajectory
from tests.small import small_config

STEPS, LENGTH, ACTION, ROWS = 3, 32, 6, 8
KEY = jax.random.key(5)
PLAIN = make_policy(
    decoder_config(
        "tiny", vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=32,
    )
)  # fmt: skip
ADAPTED = with_lora(PLAIN, rank=2, alpha=4.0, target="layers/1/")
few = settings(max_examples=4, deadline=None)


@functools.cache
def opinions(policy=PLAIN):
    params = jax.jit(policy.init)(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 10.0
    params["value"]["out"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), (16, 1))
    return params


def batch_of(seed, rebuilt=False, sets=False):
    """Two attempts at each task, which begin alike; the policy has moved since it played."""
    rng = np.random.default_rng(seed)
    played = []
    for task in range(ROWS // 2):
        steps = int(rng.integers(1, STEPS + 1))
        played += [trajectory(rng, task, steps, (), rebuilt, sets, sample=n) for n in range(2)]
        first = played[-2].steps[0].observation_ids
        shown = dataclasses.replace(played[-1].steps[0], observation_ids=first)
        played[-1] = dataclasses.replace(played[-1], steps=(shown, *played[-1].steps[1:]))
    return collate(played, STEPS, [LENGTH], ACTION)


def config_of(*overrides):
    return small_config(
        "algorithm.name=steppo", "actor.entropy_coeff=0.01", "actor.grad_clip=0",
        f"rollout.batch_size={ROWS}", f"actor.ppo_mini_batch_size={ROWS // 2}", *overrides,
    )  # fmt: skip


@functools.cache
def compiled(policy, overrides, mesh=None):
    config, optimizer = config_of(*overrides), optax.sgd(1.0, momentum=0.0)
    method = algorithm(config.algorithm.name)
    state = initial_state(opinions(policy), optimizer, config)
    update = jax.jit(make_update(policy, method, optimizer, config, mesh))
    return config, lambda batch, packing=None: jax.device_get(
        update(state, batch, KEY, None, packing)
    )


def both(batch, *overrides, policy=PLAIN, width=40):
    """What the packed update and that of the rows give."""
    config, update = compiled(policy, overrides)
    packed = pack_rows(batch, mini_batches(batch, KEY, config), width)
    return update(batch, packed.packing), update(batch), packed


def assert_same(got, want, before, atol=3e-6):  # sums in another order: 1e-6 is usual
    """The last gradient, changes of parameters, of which SGD makes gradients, and the metrics."""
    flat = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])  # noqa: E731
    one, other = (flat(state.opt_state) for state, _ in (got, want))
    assert np.linalg.norm(one - other) <= atol * np.linalg.norm(other)
    change = lambda state: jax.tree.map(lambda a, b: a - b, state.params, before)  # noqa: E731
    one, other = (flat(change(state)) for state, _ in (got, want))
    assert np.linalg.norm(other) > 1e-3
    assert np.linalg.norm(one - other) <= atol * np.linalg.norm(other)
    assert got[1].keys() == want[1].keys()


def assert_metrics(got, want):
    for name, value in want[1].items():
        np.testing.assert_allclose(got[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


ONE_GRADIENT = ("actor.ppo_epochs=1", f"actor.ppo_mini_batch_size={ROWS}")


@pytest.mark.slow
@few
@given(st.integers(0, 2**32 - 1))
def test_the_gradient_of_packed_rows_is_that_of_the_rows(seed):
    got, want, packed = both(batch_of(seed), *ONE_GRADIENT)
    assert packed.packing.used.max() > 1
    assert_same(got, want, opinions())


def test_all_of_a_batch_in_one_block_goes_through_one_pass():
    got, want, packed = both(batch_of(3), *ONE_GRADIENT, width=200)
    assert packed.packing.place.shape[:3] == (1, 1, 1)
    assert_same(got, want, opinions())
    assert_metrics(got, want)


EPOCHS = ("actor.ppo_epochs=2", "actor.use_kl_loss=true", "algorithm.use_kl_in_reward=true")
FROZEN = ("actor.ppo_epochs=2", "model.train_layers=1")


@pytest.mark.parametrize(
    ("overrides", "policy"),
    [
        (FROZEN, PLAIN),
        pytest.param((*EPOCHS, *FROZEN), PLAIN, marks=pytest.mark.slow),
        pytest.param(EPOCHS, PLAIN, marks=pytest.mark.slow),
        pytest.param(EPOCHS, ADAPTED, marks=pytest.mark.slow),
    ],
    ids=["upper layers", "upper layers, a reference", "all", "adapters above"],
)
def test_passes_take_the_same_mini_batches_and_frozen_layers_are_run_once(overrides, policy):
    got, want, packed = both(
        batch_of(4, rebuilt=True, sets=True), *overrides, policy=policy, width=60
    )
    assert packed.packing.used.shape == (2, 2)
    assert_same(got, want, opinions(policy), atol=1e-5)
    assert_metrics(got, want)
    if FROZEN[-1] in overrides:
        lowest = got[0].params["decoder"]["layers"]["0"], opinions()["decoder"]["layers"]["0"]
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), *lowest))


@pytest.mark.slow
def test_devices_run_a_block_each(devices):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices[:4])
    config, update = compiled(PLAIN, ONE_GRADIENT, mesh)
    batch = batch_of(5)
    order = mini_batches(batch, KEY, config)
    got = update(shard_rows(batch, mesh), pack_rows(batch, order, 40, mesh.size).packing)
    assert_same(got, compiled(PLAIN, ONE_GRADIENT)[1](batch), opinions())


# ---------------------------------------------------------------- what blocks hold


def episodes(seed, tasks=4, attempts=8, length=768):
    """Token counts as a small shop has them: 463 tokens on average, of which 200 are its prompt."""
    rng = np.random.default_rng(seed)
    system, played = rng.integers(1, 9999, 60), []
    for task in range(tasks):
        prompt = np.append(system, rng.integers(1, 9999, rng.integers(90, 200)))
        for sample in range(attempts):
            total = np.clip(rng.normal(463, 110), len(prompt) + 30, length - 90)
            steps, tokens = [], 0
            while tokens < total:
                read = rng.integers(1, 9999, rng.integers(20, 60)) if steps else prompt
                ids, blank = rng.integers(1, 9999, 16), np.zeros(16, np.float32)
                tokens += len(read) + 16
                steps.append(Step("", "", read, ids, blank, blank, 0.0, False, False, "stop_token"))
            played.append(Trajectory(task, sample, tuple(steps), False))
    return collate(played, 40, [length], 16)


@pytest.mark.parametrize("most_tokens", [2048, 4096])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_tenth_of_the_slots_is_padding_in_few_shapes(parts, most_tokens):
    """Each shape is a program to compile, which takes as long as an iteration of a small model."""
    shares, shapes = [], set()
    for seed in range(8):
        batch = episodes(seed)
        order = np.random.default_rng(seed).permutation(32).reshape(1, parts, -1)
        packed = pack_rows(batch, order, most_tokens)
        shares.append(packed.padding / packed.slots)
        shapes.add(tuple(x.shape for x in jax.tree.leaves(packed.packing)))
        assert packed.packing.tree.tokens_MGU.shape[-1] <= most_tokens
        assert packed.slots < 0.6 * batch.tokens_NT.size
    assert np.mean(shares) <= 0.1, shares
    assert len(shapes) <= 3


@pytest.mark.parametrize("devices", [1, 3])
def test_each_row_is_in_one_block_of_its_mini_batch(devices):
    batch = batch_of(6, rebuilt=True)
    order = np.random.default_rng(0).permutation(ROWS).reshape(1, 2, -1)
    packing = pack_rows(batch, order, 60, devices).packing
    for mini, places in enumerate(packing.place[0]):
        held = np.sort(places[places < ROWS // 2])
        has_tokens = (batch.segment_ids_NT[order[0, mini]] > 0).any(axis=1)
        np.testing.assert_array_equal(held, np.flatnonzero(has_tokens))
        assert (places[packing.used[0, mini] :] == ROWS // 2).all()


def test_a_block_is_as_wide_as_the_largest_row_needs():
    assert min(block_widths(64, largest_row=150, least=1000)) >= 150
    assert max(block_widths(64, largest_row=150, least=1000)) == 160
    assert max(block_widths(4096, largest_row=600, least=20000)) == 4096
    with pytest.raises(ValueError, match="most_tokens=0: give at least 1"):
        pack_rows(batch_of(0), np.arange(ROWS)[None, None], 0)


@pytest.mark.parametrize(
    ("frozen_by", "layers"),
    [
        (dict(train_layers=1), 1),
        (dict(train_layers=2), 0),
        (dict(freeze="decoder/(embedding|layers/0)"), 1),
        (dict(freeze="decoder/layers/0"), 0),  # the embedding below is trained
        (dict(freeze="decoder/"), 2),
    ],
)
def test_layers_are_frozen_from_the_lowest_up(frozen_by, layers):
    assert frozen_layers(*split_trainable(opinions(), **frozen_by)) == layers


def kept_for_the_backward_pass(layers, train_layers):
    """Numbers that depend on the tokens: parameters are there anyway."""
    policy = make_policy(
        decoder_config("tiny", vocab_size=VOCAB, num_layers=layers, value_head="none")
    )
    shapes = jax.eval_shape(policy.init, KEY)
    trainable, frozen = split_trainable(shapes, None, train_layers)
    batch = batch_of(0)

    def pull_back(part, frozen):
        loss = lambda part: score(policy, combine(part, frozen), batch).logprob_NT  # noqa: E731
        return jax.vjp(loss, part)[1]

    parameters = {leaf.shape for leaf in jax.tree.leaves(shapes)}
    leaves = jax.tree.leaves(jax.eval_shape(pull_back, trainable, frozen))
    return sum(leaf.size for leaf in leaves if leaf.shape not in parameters)


def test_nothing_is_kept_of_frozen_layers():
    alone = kept_for_the_backward_pass(1, 1)
    assert kept_for_the_backward_pass(4, 1) == alone
    assert kept_for_the_backward_pass(4, 2) > 1.5 * alone


def test_more_layers_than_there_are_cannot_be_trained():
    with pytest.raises(ValueError, match="model.train_layers=3: the model has 2 layers"):
        split_trainable(opinions(), None, 3)
