"""Random tiny models of each family, without drawing from the initialiser: no part may be trivial."""

import jax
import numpy as np

from steprl.models import DecoderConfig, make_policy
from steprl.models.presets import Llama3Scaling

SHAPE = dict(
    vocab_size=48,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=40,
    norm_eps=1e-5,
    value_head="none",
)
FAMILIES = {
    "llama": DecoderConfig(**SHAPE, tie_embeddings=False, rope_theta=500.0),
    "llama, tied": DecoderConfig(**SHAPE),
    # Pairs turn 5.1, 0.5, 0.05 and 0.005 times within the 32 tokens: kept, interpolated, slowed.
    "llama 3": DecoderConfig(**SHAPE, rope_scaling=Llama3Scaling(8.0, 0.2, 1.0, 32.0)),
    "qwen2": DecoderConfig(**SHAPE, attention_bias=True, tie_embeddings=False),
    "qwen2, tied": DecoderConfig(**SHAPE, attention_bias=True, rope_theta=1e6),
    "qwen3": DecoderConfig(
        **{**SHAPE, "head_dim": 12}, qk_norm=True, tie_embeddings=False, rope_theta=1e6
    ),
    "qwen3, tied": DecoderConfig(**{**SHAPE, "num_kv_heads": 1}, qk_norm=True),
}


def random_parameters(config, seed=0, scale=0.2):
    draw = np.random.default_rng(seed)
    abstract = jax.eval_shape(make_policy(config).init, jax.random.key(0))

    def leaf(path, of):
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return (middle + scale * draw.standard_normal(of.shape)).astype(of.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def assert_same_bits(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)
