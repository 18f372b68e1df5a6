"""steprl's own update, compiled as `train` compiles it: parameters and state are donated."""

import dataclasses
import functools
import math
from typing import Any

import child
import jax
import jax.numpy as jnp
import numpy as np
import problem

from steprl.algorithms import algorithm
from steprl.config import MeshConfig, load_config
from steprl.models import decoder_config, make_policy
from steprl.models.scoring import score
from steprl.models.weights import transformers_name
from steprl.optimizer import make_optimizer
from steprl.sharding import make_mesh
from steprl.types import Params, StepBatch
from steprl.update import initial_state, make_update


def parameters(policy: Any, shape: problem.Shape, reference: bool = False) -> Params:
    """The model of the problem under our names."""
    sizes, head = dict(problem.names(shape)), problem.value_head(shape)

    def leaf(path: Any, _: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith("value/"):
            part, kind = name.split("/")[1:]
            return jnp.asarray(head[f"{part}.{'weight' if kind == 'kernel' else kind}"].T)
        theirs = transformers_name(name)
        value = problem.weight(theirs.name, sizes[theirs.name], reference)
        return jnp.asarray(value.T if theirs.transposed else value)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(policy.init, jax.random.key(0)))


def step_batch(given: problem.Batch) -> StepBatch:
    rows, prompt = given.prompt.shape
    tokens = np.concatenate([given.prompt, given.completion], axis=1)
    length = tokens.shape[1]
    ids = np.full((rows, length), -1, np.int32)
    sampled = length - prompt
    ids[:, prompt:] = np.arange(sampled) * problem.STEPS // sampled
    mask = np.ones((rows, problem.STEPS), bool)
    last = mask & (np.arange(problem.STEPS) == problem.STEPS - 1)
    blank = np.zeros(tokens.shape, np.float32)
    arrays = dict(
        tokens_NT=tokens,
        positions_NT=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        segment_ids_NT=np.ones_like(tokens),
        step_ids_NT=ids,
        logprob_NT=blank,
        entropy_NT=blank,
        reward_NS=given.reward,
        mask_NS=mask,
        terminated_NS=last,
        truncated_NS=~mask,
        valid_NS=mask,
        stop_NS=mask.astype(np.int32),
        success_N=mask[:, 0],
        task_N=given.task,
        sample_N=np.arange(rows, dtype=np.int32) % problem.GROUP,
    )
    return StepBatch(**jax.tree.map(jnp.asarray, arrays), action_width=sampled)


def build(case: dict[str, Any]) -> tuple[child.Step, dict[str, Any]]:
    shape, method = problem.SHAPES[case["model"]], case["method"]
    policy = make_policy(
        decoder_config(
            "smollm2-135m",
            vocab_size=shape.vocabulary,
            d_model=shape.width,
            num_layers=shape.layers,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head,
            d_ff=shape.feed_forward,
            rope_theta=problem.ROPE_THETA,
            norm_eps=problem.NORM_EPS,
            value_head="shared" if method == "steppo" else "none",
        )
    )
    adam = problem.ADAM
    config = load_config(
        None,
        [
            f"algorithm.name={'steppo' if method == 'steppo' else 'grpo'}",
            f"rollout.batch_size={case['rows'] // problem.GROUP}",
            f"rollout.n={problem.GROUP}",
            "actor.ppo_epochs=1",
            f"actor.ppo_mini_batch_size={case['rows']}",
            f"actor.use_kl_loss={str(method == 'grpo_kl').lower()}",
            f"actor.kl_loss_coef={problem.KL}",
            f"actor.lr={adam['learning_rate']}",
            f"actor.adam_b1={adam['b1']}",
            f"actor.adam_b2={adam['b2']}",
            f"actor.weight_decay={adam['weight_decay']}",
            f"actor.grad_clip={problem.MAX_NORM}",
            f"actor.clip_ratio_c={problem.DUAL_CLIP if method == 'steppo' else 0}",
            f"critic.vf_coef={problem.VALUE}",
            f"algorithm.lam={problem.LAMBDA}",
        ],
    )
    optimizer = make_optimizer(config.actor, config.critic, 1000)
    params = parameters(policy, shape)
    batch = step_batch(problem.make_batch(case))
    sampled = jax.jit(functools.partial(score, policy))(params, batch)
    batch = dataclasses.replace(batch, logprob_NT=sampled.logprob_NT)
    state = initial_state(params, optimizer, config)
    if "reference" in state.carried:
        reference = {"reference": parameters(policy, shape, reference=True)}
        state = state._replace(carried=state.carried | reference)
    del params, sampled
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    update = make_update(policy, algorithm(config.algorithm.name), optimizer, config, mesh)
    run = jax.jit(update, donate_argnums=0)
    key = jax.random.key(0)
    buffers: dict[str, Any] = {"state": state}
    del state

    def step() -> dict[str, float]:
        if "run" not in buffers:
            buffers["run"] = run.lower(buffers["state"], batch, key).compile()
        buffers["state"], metrics = buffers["run"](buffers["state"], batch, key)
        jax.block_until_ready(buffers["state"])
        loss = metrics["actor/pg_loss"] + problem.VALUE * metrics["critic/vf_loss"]
        if "actor/kl_loss" in metrics:
            loss = loss + problem.KL * metrics["actor/kl_loss"]
        norms = [float(metrics.get(f"{part}/grad_norm", 0.0)) for part in ("actor", "critic")]
        result = dict(loss=float(loss), gradient_norm=math.hypot(*norms))
        memory = buffers["run"].memory_analysis()
        if memory is not None:
            peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
            result["compiled_mib"] = peak / 2**20
        device = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in device:
            result["device_mib"] = device["peak_bytes_in_use"] / 2**20
        return result

    return step, dict(name=f"steprl, jax {jax.__version__} on {jax.default_backend()}")


if __name__ == "__main__":
    child.serve(build)
