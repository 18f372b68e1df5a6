"""The update of rows that share tokens: the same step as that of the rows alone, however it is cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steprl.algorithms import algorithm
from steprl.config import MeshConfig
from steprl.metrics import CompilationCounter
from steprl.models import decoder_config, make_policy, score
from steprl.rollout import summary
from steprl.rollout.trees import collate_trees
from steprl.sharding import make_mesh, shard_rows, state_shardings
from steprl.types import Branches
from steprl.update import initial_state, make_update
from tests.rollout.groups import VOCAB, group
from tests.small import small_config

GROUPS, ROWS, STEPS = 8, 3, 3
KEY = jax.random.key(5)
POLICY = make_policy(
    decoder_config(
        "tiny", vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=32,
    )
)  # fmt: skip
compiled_score = jax.jit(functools.partial(score, POLICY))
METHODS = ("steppo", "grpo", "branpo", "appo")


@functools.cache
def opinions():
    params = POLICY.init(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 10.0
    params["value"]["out"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), (16, 1))
    return params


@functools.cache
def example(seed=0):
    """Groups of one, two and three; two groups have one task. The policy has moved since it played."""
    rng = np.random.default_rng(seed)
    played = [group(rng, m // 2, 1 + (m + 1) % ROWS, nested=False) for m in range(GROUPS)]
    batch = collate_trees(played, STEPS, [32], 6, rows=ROWS, widths=[48])
    scores = compiled_score(opinions(), batch)
    noise = 0.3 * rng.normal(size=scores.logprob_NT.shape)
    old = np.where(batch.step_ids_NT >= 0, scores.logprob_NT + noise, 0.0).astype(np.float32)
    branches = branches_of(played, batch.tokens_NT)
    return dataclasses.replace(batch, logprob_NT=old, branches=branches)


def branches_of(played, tokens_NT):
    """Rows without a trajectory say the worst: that they branched from the first one."""
    none = Branches(0, 0, 5, 9.0, 1)
    found = []
    for m, together in enumerate(played):
        for n in range(m * ROWS, (m + 1) * ROWS):
            if n - m * ROWS >= len(together):
                found.append(none)
                continue
            one = together[n - m * ROWS]
            alike = np.argmin(tokens_NT[n] == tokens_NT[m * ROWS])
            found.append(
                Branches(n, 1, -1, 0.0, 0)
                if one.parent is None
                else Branches(m * ROWS, one.parent.step, alike - 1, 0.5 + n % 3, n % 3 - 1)
            )
    columns = zip(*found, strict=True)
    types = (np.int32, np.int32, np.int32, np.float32, np.int32)
    return Branches(*(np.array(x, t) for x, t in zip(columns, types, strict=True)))


def rows_alone(batch):
    """The batch as it would be without empty rows and without a tree."""
    there = np.flatnonzero(np.any(batch.mask_NS, axis=1))
    batch = jax.tree.map(lambda x: x[there], dataclasses.replace(batch, tree=None))
    place = np.full(GROUPS * ROWS, -1, np.int32)
    place[there] = np.arange(len(there))
    origin = place[batch.branches.origin_N]
    return dataclasses.replace(batch, branches=batch.branches._replace(origin_N=origin))


def updated(batch, name, mesh, *overrides, mini=None):
    mini = len(batch.task_N) if mini is None else mini
    config = small_config(
        f"algorithm.name={name}", "actor.entropy_coeff=0.01", "actor.grad_clip=0",
        f"rollout.batch_size={len(batch.task_N)}", f"actor.ppo_mini_batch_size={mini}", *overrides,
    )  # fmt: skip
    optimizer = optax.sgd(1.0)
    state = initial_state(opinions(), optimizer, config)
    places = state_shardings(state, mesh)
    update = make_update(POLICY, algorithm(name), optimizer, config, mesh)
    compiled = jax.jit(update, out_shardings=(places, None))

    def run(batch):
        placed = jax.device_put(state, places), shard_rows(batch, mesh)
        return jax.device_get(compiled(*placed, KEY))

    return run(batch), run


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def assert_same(got, want, atol=1e-5, but=()):
    for one, other in zip(*map(jax.tree.leaves, (got[0].params, want[0].params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)
    assert got[1].keys() == want[1].keys()
    for name in want[1].keys() - set(but):
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


def moved(params) -> float:
    changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, opinions())
    return max(jax.tree.leaves(changes))


SETTINGS = (
    "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive",
    "algorithm.bootstrap_truncated=true", "algorithm.scale_rewards=true",
    "algorithm.rollout_is=step",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_rows_that_share_tokens_and_empty_rows_learn_what_the_rows_alone_learn(name):
    batch = example()
    alone = rows_alone(batch)
    assert len(alone.task_N) < len(batch.task_N)
    got, _ = updated(batch, name, one_device(), *SETTINGS)
    want, _ = updated(alone, name, one_device(), *SETTINGS)
    assert moved(want[0].params) > 1e-3
    assert_same(got, want)
    coefficients = [one[0].carried["kl_coefficient"] for one in (got, want)]
    np.testing.assert_allclose(*coefficients, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_mini_and_micro_batches_keep_groups_together(name, monkeypatch):
    """Against the rows alone in the very same mini-batches."""
    batch = example()
    cut = ("actor.ppo_epochs=2", f"actor.ppo_micro_batch_size={2 * ROWS}")
    got, _ = updated(batch, name, one_device(), *cut, mini=4 * ROWS)
    permutation = jax.random.permutation

    def of_groups(key, rows):
        order = permutation(key, rows // ROWS)
        return (order[:, None] * ROWS + jnp.arange(ROWS)[None]).reshape(-1)

    monkeypatch.setattr(jax.random, "permutation", of_groups)
    apart = dataclasses.replace(batch, tree=None)
    want, _ = updated(apart, name, one_device(), *cut, mini=4 * ROWS)
    assert moved(want[0].params) > 1e-3
    assert_same(got, want)


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one(devices):
    batch = example()
    got, run = updated(batch, "steppo", make_mesh(MeshConfig(data=4, fsdp=2)))
    want, _ = updated(batch, "steppo", one_device())
    assert_same(got, want)
    with CompilationCounter() as counter:
        for seed in (1, 2):
            run(example(seed))
    assert counter.count == 0, counter.names


@pytest.mark.parametrize("name", ["ppo_mini_batch_size", "ppo_micro_batch_size"])
def test_parts_that_would_divide_a_group_are_refused(name):
    sizes = {"ppo_mini_batch_size": 12} | {name: 4}
    with pytest.raises(ValueError, match=rf"{name}=4 .* use a multiple of 3"):
        updated(
            example(), "grpo", one_device(),
            *(f"actor.{key}={size}" for key, size in sizes.items() if key != "ppo_mini_batch_size"),
            mini=sizes["ppo_mini_batch_size"],
        )  # fmt: skip


def test_groups_that_the_devices_do_not_divide_are_refused():
    batch = jax.tree.map(lambda x: x[: len(x) // 2], example())  # 12 rows in 4 groups
    mesh = make_mesh(MeshConfig(), jax.devices()[:6])
    with pytest.raises(ValueError, match="4 rows cannot be split over 6 devices"):
        shard_rows(batch, mesh)


def test_the_summary_counts_rows_that_have_a_step():
    batch = example()
    got, want = summary(batch), summary(rows_alone(batch))
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)
