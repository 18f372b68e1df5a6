"""The same update in plain PyTorch: the Llama of `transformers`, autograd and a fused AdamW.

As we do, it takes the old values from the pass of the loss and the head on sampled tokens only; it
computes no entropy.
"""

from typing import Any

import child
import numpy as np
import problem
import torch
import transformers
from torch.nn import functional as f


def make_model(shape: problem.Shape, reference: bool = False) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        rms_norm_eps=problem.NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": problem.ROPE_THETA},
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, size in problem.names(shape):
            value = torch.from_numpy(problem.weight(name, size, reference))
            model.get_parameter(name).copy_(value)
    return model


def step_advantages(
    reward_ns: torch.Tensor, value_ns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE over the steps, whitened."""
    later, following, reversed_advantages = 0.0, 0.0, []
    for reward_n, value_n in zip(reward_ns.T.flip(0), value_ns.T.flip(0), strict=True):
        later = reward_n + following - value_n + problem.LAMBDA * later
        following = value_n
        reversed_advantages.append(later)
    advantage_ns = torch.stack(reversed_advantages[::-1], dim=1)
    whitened_ns = (advantage_ns - advantage_ns.mean()) / (advantage_ns.std() + 1e-8)
    return whitened_ns, advantage_ns + value_ns


def build(case: dict[str, Any]) -> tuple[child.Step, dict[str, Any]]:
    shape, batch, method = problem.SHAPES[case["model"]], problem.make_batch(case), case["method"]
    torch.manual_seed(0)
    model = make_model(shape)
    parts = torch.nn.ModuleDict({"model": model})
    if method == "steppo":
        head = {k: torch.from_numpy(v) for k, v in problem.value_head(shape).items()}
        parts["hidden"] = torch.nn.Linear(shape.width, shape.width)
        parts["out"] = torch.nn.Linear(shape.width, 1)
        for part in ("hidden", "out"):
            parts[part].load_state_dict({k: head[f"{part}.{k}"] for k in ("weight", "bias")})
    reference = make_model(shape, reference=True) if method == "grpo_kl" else None
    adam = problem.ADAM
    optimizer = torch.optim.AdamW(
        parts.parameters(),
        lr=adam["learning_rate"],
        betas=(adam["b1"], adam["b2"]),
        eps=adam["eps"],
        weight_decay=adam["weight_decay"],
        fused=True,
    )
    prompt, sampled = batch.prompt.shape[1], batch.completion.shape[1]
    tokens = torch.from_numpy(np.concatenate([batch.prompt, batch.completion], axis=1)).long()
    reward_ns = torch.from_numpy(batch.reward)
    score = reward_ns.sum(dim=1).reshape(-1, problem.GROUP)
    spread = score.std(dim=1, keepdim=True) + 1e-6
    group_advantage = ((score - score.mean(dim=1, keepdim=True)) / spread).reshape(-1, 1)
    a_step = sampled // problem.STEPS

    def forward(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of the sampled tokens, and the hidden states that they come from."""
        hidden = model.model(tokens).last_hidden_state[:, prompt - 1 : -1]
        logits = model.lm_head(hidden)
        loss = f.cross_entropy(logits.flatten(0, 1), tokens[:, prompt:].flatten(), reduction="none")
        return -loss.view(len(tokens), sampled), hidden

    with torch.no_grad():
        old_logprob = forward(model)[0]

    def loss_of_step() -> torch.Tensor:
        logprob, hidden = forward(model)
        ratio = logprob - old_logprob
        value_loss = torch.zeros(())
        advantage = group_advantage
        if method == "steppo":
            value_ns = parts["out"](torch.tanh(parts["hidden"](hidden[:, ::a_step])))[..., 0]
            advantage_ns, return_ns = step_advantages(reward_ns, value_ns.detach())
            value_loss = 0.5 * (value_ns - return_ns).square().mean()
            advantage = advantage_ns.repeat_interleave(a_step, dim=1)
            pooled = ratio.unflatten(1, (problem.STEPS, a_step)).mean(dim=2)
            pooled = pooled.repeat_interleave(a_step, dim=1)
            ratio = logprob - logprob.detach() + pooled.detach().clamp(max=10.0)
        ratio = ratio.exp()
        clipped = ratio.clamp(1 - problem.CLIP, 1 + problem.CLIP)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        if method == "steppo":
            least = torch.minimum(loss, -advantage * problem.DUAL_CLIP)
            loss = torch.where(advantage < 0, least, loss)
        total = loss.mean() + problem.VALUE * value_loss
        if reference is not None:
            with torch.no_grad():
                expected = forward(reference)[0]
            gap = expected - logprob
            total = total + problem.KL * (gap.exp() - gap - 1).mean()
        return total

    def step() -> dict[str, float]:
        loss = loss_of_step()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parts.parameters(), problem.MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return dict(loss=float(loss.detach()), gradient_norm=float(norm))

    name = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return step, dict(name=f"{name}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    child.serve(build)
