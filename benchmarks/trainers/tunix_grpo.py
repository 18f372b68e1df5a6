"""The training step of tunix's GRPO learner on its own Llama module, in tunix's environment.

The trainer, its compiled step, the loss and the log-probs of the reference are tunix's, put together
as `GRPOLearner` does; the rollout and the rewards are left out.
"""

import dataclasses
from importlib.metadata import version
from typing import Any

import child
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problem
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import algo_core, common, function_registry, trainer
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.sft.peft_trainer import TrainingConfig

PAD, EOS = 0, 2


def make_model(shape: problem.Shape, reference: bool = False) -> nnx.Module:
    """Its module with the weights of the problem."""
    config = llama.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocabulary,
        embed_dim=shape.width,
        hidden_dim=shape.feed_forward,
        num_heads=shape.heads,
        head_dim=shape.head,
        num_kv_heads=shape.kv_heads,
        rope_theta=int(problem.ROPE_THETA),
        norm_eps=problem.NORM_EPS,
        weight_tying=True,
    )
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    sizes = dict(problem.names(shape))
    transformers_names = {
        "attn": "self_attn",
        "embedder": "model.embed_tokens",
        "final_norm": "model.norm",
    }

    def leaf(path: Any, old: jax.Array) -> jax.Array:
        parts = [transformers_names.get(str(step.key), str(step.key)) for step in path][:-1]
        if parts[0] == "layers":
            parts[0] = "model.layers"
        name = ".".join([part for part in parts if part != "input_embedding"] + ["weight"])
        value = problem.weight(name, sizes[name], reference)
        if value.ndim == 2 and "embed" not in name:
            value = value.T  # [in, out], where a side of heads has two axes
        return jnp.asarray(value.reshape(old.shape))

    weights = jax.tree_util.tree_map_with_path(leaf, state.to_pure_dict())
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def build(case: dict[str, Any]) -> tuple[child.Step, dict[str, Any]]:
    shape, batch = problem.SHAPES[case["model"]], problem.make_batch(case)
    with_reference = case["method"] == "grpo_kl"
    algorithm = GRPOConfig(
        num_generations=problem.GROUP,
        beta=problem.KL if with_reference else 0.0,
        kl_loss_mode="low_var_kl",
        epsilon=problem.CLIP,
    )
    algorithm.temperature = 1.0  # the learner takes it from the rollout
    adam = optax.adamw(**problem.ADAM)
    optimizer = optax.chain(optax.clip_by_global_norm(problem.MAX_NORM), adam)
    actor = trainer.Trainer(
        make_model(shape), optimizer, TrainingConfig(eval_every_n_steps=10**9), lambda: {}
    )
    policy_loss = function_registry.get_policy_loss_fn(algorithm.policy_loss_fn)
    actor.with_loss_fn(
        lambda model, train_example, algo_config: policy_loss(
            model, train_example, algo_config=algorithm, pad_id=PAD, eos_id=EOS
        ),
        has_aux=True,
    )
    actor.with_gen_model_input_fn(
        lambda example: {"train_example": example, "algo_config": algorithm}
    )
    train_step, _ = actor.jit_train_and_eval_step(cache_nnx_graph=True)
    estimator = function_registry.get_advantage_estimator(algorithm.advantage_estimator)
    advantages = estimator(rewards=batch.reward.sum(axis=1), num_generations=problem.GROUP)
    prompt, completion = jnp.asarray(batch.prompt), jnp.asarray(batch.completion)
    example = common.TrainExample(
        prompt_ids=prompt,
        prompt_mask=prompt != PAD,
        completion_ids=completion,
        completion_mask=completion != PAD,
        advantages=jnp.asarray(np.asarray(advantages)),
        ref_per_token_logps=None,
        old_per_token_logps=None,
    )
    reference = nnx.split(make_model(shape, reference=True)) if with_reference else None

    def step() -> dict[str, float]:
        scored_example = example
        if reference is not None:
            logprobs = common.compute_per_token_logps(
                *reference, prompt, completion, PAD, EOS, stop_gradient=True, temperature=1.0
            )
            scored_example = dataclasses.replace(example, ref_per_token_logps=logprobs)
        loss, _, norm = train_step(scored_example)
        jax.block_until_ready(nnx.state(actor.model))
        return dict(loss=float(loss), gradient_norm=float(norm))

    assert algo_core.grpo_loss_fn  # registers the loss
    return step, dict(name=f"tunix {version('google-tunix')}, jax {jax.__version__}")


if __name__ == "__main__":
    child.serve(build)
