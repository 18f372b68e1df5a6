"""A tiny Llama of random weights with a tokenizer of letters, in the layout of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make_model(folder: Path, change: dict[str, Any] | None = None) -> None:
    """Writes the model; `change` goes into its `config.json` alone."""
    folder.mkdir(exist_ok=True)
    words = ["<unk>", "<s>", "</s>", *(chr(97 + k) for k in range(26)), " ", ".", ":"]
    tokenizer = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "chat_template": template, "model_max_length": 4096,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    (folder / "config.json").write_text(json.dumps(SHAPE | (change or {})))
    rng = np.random.default_rng(0)
    sizes = {
        "embed_tokens": (32, 16), "norm": (16,), "layers.0.input_layernorm": (16,),
        "layers.0.post_attention_layernorm": (16,), "layers.0.self_attn.q_proj": (16, 16),
        "layers.0.self_attn.k_proj": (8, 16), "layers.0.self_attn.v_proj": (8, 16),
        "layers.0.self_attn.o_proj": (16, 16), "layers.0.mlp.gate_proj": (32, 16),
        "layers.0.mlp.up_proj": (32, 16), "layers.0.mlp.down_proj": (16, 32),
    }  # fmt: skip
    arrays = {
        f"model.{name}.weight": rng.normal(size=size).astype(np.float32)
        for name, size in sizes.items()
    }
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
