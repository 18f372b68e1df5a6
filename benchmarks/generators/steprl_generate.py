"""Contender: `steprl.sampling.generate`, called as the rollouts call it.

python steprl_generate.py MODEL DTYPE, where MODEL is a directory, or a shape as JSON (random weights).
"""

import dataclasses
import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from rounds import WAYS, serve

from steprl.models import DecoderConfig, load_pretrained, make_policy, read_config
from steprl.sampling import Sampling, generate


def load(model: str, dtype: str):
    """Policy and parameters of a directory or of a shape."""
    types = dict(dtype=dtype, param_dtype=dtype, value_head="none")
    if model.startswith("{"):
        config = DecoderConfig(**json.loads(model), **types)
        policy = make_policy(config)
        return policy, jax.jit(policy.init)(jax.random.key(0))
    config = dataclasses.replace(read_config(model), **types)
    return make_policy(config), load_pretrained(model, config)


def main() -> None:
    policy, params = load(*sys.argv[1:])
    key = jax.random.key(0)

    @functools.partial(jax.jit, static_argnames=("new", "top_p"), donate_argnames="cache")
    def run(params, cache, prompts, keys, temperature, new, top_p):
        rows, width = prompts.shape
        return generate(
            policy, params, cache, prompts, jnp.full(rows, width), jnp.zeros(rows, jnp.int32),
            keys, jnp.ones(rows, bool), max_tokens=new, stop_ids=(),
            sampling=Sampling(temperature, top_p=top_p),
        )  # fmt: skip

    def answer(prompts: list[list[int]], new: int, way: str, length: int):
        temperature, top_p = WAYS[way]
        ids = np.asarray(prompts, np.int32)
        output = run(
            params, policy.init_cache(len(ids), length), ids, jax.random.split(key, len(ids)),
            np.float32(temperature), new=new, top_p=top_p,
        )  # fmt: skip
        tokens, logprobs = jax.device_get((output.tokens_BA, output.logprob_BA))
        return tokens, None if way == "greedy" else logprobs

    def bandwidth(size: int) -> float:
        """Bytes a second of reading a matrix of float32 in its product with a vector, at best."""
        matrix, vector = jnp.ones((size, size)), jnp.ones(size)
        product = jax.jit(lambda matrix, vector: matrix @ vector)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(product(matrix, vector))
            times.append(time.perf_counter() - start)
        return matrix.nbytes / min(times)

    def size() -> dict[str, float]:
        """Bytes of the weights, and of the cache a token."""
        cache = jax.eval_shape(functools.partial(policy.init_cache, 1, 1))
        parts = {"weights": params, "cache": cache}
        return {
            name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
            for name, tree in parts.items()
        }

    serve(answer, bandwidth=bandwidth, size=size)


if __name__ == "__main__":
    main()
