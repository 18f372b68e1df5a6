"""Contender: `generate` of transformers on PyTorch, with the KV cache that it has by default.

python transformers_generate.py DIRECTORY DTYPE DEVICE
"""

import os
import sys

import torch
from rounds import WAYS, serve
from transformers import AutoModelForCausalLM


def main() -> None:
    directory, dtype, device = sys.argv[1:]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None  # no row stops early

    @torch.inference_mode()
    def answer(prompts: list[list[int]], new: int, way: str, length: int):
        temperature, top_p = WAYS[way]
        ids = torch.tensor(prompts, device=device)
        settings = dict(max_new_tokens=new, attention_mask=torch.ones_like(ids), pad_token_id=0)
        if way == "greedy":
            output = model.generate(ids, do_sample=False, **settings)
            return output[:, ids.shape[1] :].tolist(), None
        output = model.generate(
            ids, do_sample=True, temperature=temperature, top_k=0, top_p=top_p,
            return_dict_in_generate=True, output_scores=True, **settings,
        )  # fmt: skip
        logprobs = model.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        return output.sequences[:, ids.shape[1] :].tolist(), logprobs.tolist()

    @torch.inference_mode()
    def gap(ids: list[int], tokens: list[int]) -> float:
        """By how much the logit of the first token exceeds that of the second."""
        logits = model(torch.tensor([ids], device=device)).logits[0, -1].float()
        return float(logits[tokens[0]] - logits[tokens[1]])

    serve(answer, gap=gap)


if __name__ == "__main__":
    main()
