"""A tiny random chat model as a Hugging Face directory, for what is played in natural language."""

from pathlib import Path

import jax

from steprl.models import DecoderConfig, make_policy, save_pretrained
from tests.models.chat_models import CHATML, chat_tokenizer


def write_chat_model(folder: Path, template: str | None = CHATML) -> Path:
    """Writes it; without a template, it is no chat model."""
    tokenizer = chat_tokenizer(template)
    config = DecoderConfig(
        vocab_size=len(tokenizer), d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=24, value_head="none",
    )  # fmt: skip
    params = jax.jit(make_policy(config).init)(jax.random.key(0))
    save_pretrained(folder, config, params, tokenizer=tokenizer, context_length=4096)
    return folder
