"""Flax modules of the user's own as policies: NNX and Linen, by value and by a function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from steprl.models import make_policy
from steprl.models.contract import check_policy, takes_trees
from steprl.models.modules import as_policy
from steprl.models.presets import decoder_config
from tests.models.recurrent import LinenModel, NnxModel

VOCAB, ROWS, LENGTH = 11, 3, 6
WAYS = {
    "a function that makes an NNX module": lambda: functools.partial(NnxModel, VOCAB),
    "an NNX module": lambda: NnxModel(VOCAB, rngs=nnx.Rngs(5)),
    "a Linen module": lambda: LinenModel(VOCAB),
}


@pytest.fixture(params=WAYS, scope="module")
def policy(request):
    return as_policy(WAYS[request.param]())


def rows_of(seed=0):
    """Rows with a hole in the middle; positions count real tokens."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    real = np.ones((ROWS, LENGTH), np.int32)
    real[1, 2] = 0
    return tokens, np.where(real, np.cumsum(real, axis=1) - 1, 0).astype(np.int32), real


def test_it_keeps_the_contract(policy):
    check_policy(policy, VOCAB)
    assert not takes_trees(policy)


def test_parameters_are_nested_dicts_of_plain_names(policy):
    params = policy.init(jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(params)
    assert all(isinstance(key.key, str) for path, _ in paths for key in path)
    assert {path[0].key for path, _ in paths} >= {"embedding", "head", "critic"}


@pytest.mark.parametrize("way", ["a function that makes an NNX module", "a Linen module"])
def test_parameters_follow_from_the_key(way):
    policy = as_policy(WAYS[way]())
    one, same, other = (policy.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    heads = [params["head"]["kernel"] for params in (one, other)]
    assert np.abs(heads[0] - heads[1]).max() > 0.01


def test_a_module_begins_with_the_parameters_that_it_has():
    module = NnxModel(VOCAB, rngs=nnx.Rngs(5))
    params = as_policy(module).init(jax.random.key(0))
    np.testing.assert_array_equal(params["head"]["kernel"], module.head.kernel[...])


def test_reading_in_pieces_is_reading_at_once(policy):
    params = policy.init(jax.random.key(1))
    tokens, positions, real = rows_of()
    at_once, _ = policy.apply(params, tokens, positions, real)
    cache = policy.init_cache(ROWS, LENGTH)
    pieces = []
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        columns = (tokens[:, part], positions[:, part], real[:, part])
        begin = np.maximum(np.cumsum(real, axis=1)[:, part] - real[:, part], 0)
        hidden, cache = policy.apply(params, columns[0], begin.astype(np.int32), columns[2], cache)
        pieces.append(hidden)
    found = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(found[real > 0], np.asarray(at_once)[real > 0], atol=1e-6)
    logits = policy.unembed(params, at_once)
    assert logits.dtype == jnp.float32 and logits.shape == (ROWS, LENGTH, VOCAB)
    assert policy.value(params, tokens, positions, real, at_once).shape == (ROWS, LENGTH)


def test_gradients_reach_every_parameter(policy):
    tokens, positions, real = rows_of()

    def loss(params):
        hidden, _ = policy.apply(params, tokens, positions, real)
        value = policy.value(params, tokens, positions, real, hidden)
        return jnp.sum(policy.unembed(params, hidden) ** 2) + jnp.sum(value**2)

    gradient = jax.jit(jax.grad(loss))(policy.init(jax.random.key(2)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


class WithoutCritic(NnxModel):
    value = None


class WithTrees(NnxModel):
    def __call__(self, tokens, positions, segments, cache=None, segment_ends_BT=None, longest=None):
        return super().__call__(tokens, positions, segments, cache)


def test_what_a_module_can_do_is_found_out():
    assert as_policy(functools.partial(WithoutCritic, VOCAB)).value is None
    assert takes_trees(as_policy(functools.partial(WithTrees, VOCAB)))
    assert takes_trees(make_policy(decoder_config("tiny", vocab_size=VOCAB)))


class NoCache(nnx.Module):
    def unembed(self, hidden):
        return hidden


class Normalised(NnxModel):
    def __init__(self, vocab_size, *, rngs):
        super().__init__(vocab_size, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)


class LinenNormalised(LinenModel):
    def setup(self):
        super().setup()
        self.norm = linen.BatchNorm(use_running_average=False)

    def unembed(self, hidden):
        return self.norm(super().unembed(hidden))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "policy is int: give a steprl.types.Policy, a Flax Linen module"),
        (lambda rngs: 3, TypeError, "makes something else than an nnx.Module"),
        (lambda rngs: NoCache(), ValueError, "NoCache has no method init_cache"),
        (
            lambda rngs: Normalised(VOCAB, rngs=rngs),
            ValueError,
            "Normalised keeps norm/mean, which is no nnx.Param",
        ),
        (linen.Dense(3), ValueError, "Dense has no method unembed"),
    ],
)
def test_what_is_no_policy_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        as_policy(given)


def test_statistics_of_batches_are_refused():
    with pytest.raises(ValueError, match="the collection 'batch_stats' beside params"):
        as_policy(LinenNormalised(VOCAB)).init(jax.random.key(0))
