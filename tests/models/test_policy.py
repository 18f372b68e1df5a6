"""The door of the model room: which numbers parameters start from, what of a policy is made once."""

import jax
import numpy as np
import pytest
from flax import nnx

from steprl.models import DecoderConfig, make_policy
from steprl.models.decoder import Decoder
from steprl.models.policy import abstract_params

SHAPE = dict(
    vocab_size=19, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24
)
OPTIONS = [
    {"value_head": "none"},
    {"value_head": "shared", "tie_embeddings": False, "param_dtype": "bfloat16"},
    {"value_head": "separate", "qk_norm": True, "attention_bias": True},
]


def test_parameters_are_drawn_as_flax_draws_them():
    config = DecoderConfig(**SHAPE, value_head="none", tie_embeddings=False)
    key = jax.random.key(7)
    expected = nnx.state(Decoder(config, nnx.Rngs(params=key)))
    ours = make_policy(config).init(key)["decoder"]
    ours, expected = jax.tree.leaves(ours), jax.tree.leaves(nnx.to_pure_dict(expected))
    assert len(ours) == len(expected) == 2 * 9 + 3
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shapes_are_known_without_drawing_a_number(options):
    config = DecoderConfig(**SHAPE, **options)
    expected = jax.eval_shape(make_policy(config).init, jax.random.key(0))
    assert abstract_params(config) == expected


def test_the_same_config_gives_the_same_functions():
    config = DecoderConfig(**SHAPE)
    assert make_policy(config) is make_policy(DecoderConfig(**SHAPE))
    assert make_policy(config) is not make_policy(DecoderConfig(**SHAPE, remat=True))
