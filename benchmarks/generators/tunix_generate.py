"""Contender: the sampler of google-tunix on its Llama 3 module of the same shape, random weights.

python tunix_generate.py SHAPE DTYPE, in an environment with `pip install google-tunix`. (The module
of 0.1.7 ignores `rope_theta`, so real weights would not give real text; the time is the same.)
"""

import json
import sys

import jax
import jax.numpy as jnp
from flax import nnx
from rounds import WAYS, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig


class Ids:
    """A tokenizer whose texts are numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(x) for x in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return 2

    def pad_id(self) -> int:
        return 0


def load(shape: dict[str, float], dtype: str) -> Llama3:
    """A model whose weights are all random; its feed-forward ones begin as zeros."""
    config = ModelConfig(
        num_layers=shape["num_layers"], vocab_size=shape["vocab_size"],
        embed_dim=shape["d_model"], hidden_dim=shape["d_ff"], num_heads=shape["num_heads"],
        head_dim=shape["head_dim"], num_kv_heads=shape["num_kv_heads"],
        rope_theta=int(shape["rope_theta"]), norm_eps=shape["norm_eps"], weight_tying=True,
    )  # fmt: skip
    model = Llama3(config, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    values = [
        (0.02 * jax.random.normal(k, x.shape) if x.ndim > 1 else jnp.ones(x.shape)).astype(dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    nnx.update(model, jax.tree.unflatten(tree, values))
    return model


def main() -> None:
    shape, dtype = json.loads(sys.argv[1]), sys.argv[2]
    model = load(shape, dtype)
    samplers: dict[int, Sampler] = {}

    def answer(prompts: list[list[int]], new: int, way: str, length: int):
        if length not in samplers:
            cache = CacheConfig(
                cache_size=length, num_layers=shape["num_layers"],
                num_kv_heads=shape["num_kv_heads"], head_dim=shape["head_dim"],
            )  # fmt: skip
            samplers[length] = Sampler(model, Ids(), cache)
        temperature, top_p = WAYS[way]
        chance = {} if way == "greedy" else dict(temperature=temperature, top_p=top_p)
        # The sampler puts the first token, bos, itself.
        output = samplers[length](
            [" ".join(map(str, row[1:])) for row in prompts], max_generation_steps=new,
            max_prompt_length=len(prompts[0]), eos_tokens=[-1], seed=0,
            return_logprobs=way != "greedy", **chance,
        )  # fmt: skip
        return output.tokens, None if way == "greedy" else output.logprobs

    serve(answer)


if __name__ == "__main__":
    main()
