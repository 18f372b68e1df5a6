"""A directory of a tiny chat model, as somebody else would have written it."""

import dataclasses
import json

import pytest

from steprl.models import load_model, save_pretrained
from tests.models.chat_models import CHATML, chat_tokenizer
from tests.models.random_models import FAMILIES, random_parameters

ROWS, CONTEXT, TOKENIZER_CONTEXT = 288, 40960, 131072
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
ENDS = ("<|eot|>", "<|end|>", "</s>")  # of generation_config.json and of the tokenizer


def shape_of(family):
    return dataclasses.replace(FAMILIES[family], vocab_size=ROWS, context_length=CONTEXT)


def write_model(folder, family="llama", template=CHATML):
    """Several end tokens, sampling defaults, added tokens, and a tokenizer that says another length."""
    tokenizer = chat_tokenizer(template)
    tokenizer.model_max_length = TOKENIZER_CONTEXT
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|further|>"]})
    tokenizer.add_tokens(["<plain>"])
    config = shape_of(family)
    params = random_parameters(config)
    save_pretrained(folder, config, params, tokenizer=tokenizer)
    eot, end, other = tokenizer.convert_tokens_to_ids(list(ENDS))
    change(folder / "generation_config.json", **SAMPLING, eos_token_id=[eot, end])
    change(folder / "config.json", eos_token_id=other)
    return params


def change(file, **entries):
    """Entries of a JSON file; `...` takes one away."""
    content = {**json.loads(file.read_text()), **entries}
    kept = {name: value for name, value in content.items() if value is not ...}
    file.write_text(json.dumps(kept))


def said(file):
    return json.loads(file.read_text())


def assert_refused(folder, *said):
    """One sentence, which names a file in the folder and says what it says."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(folder, value_head="none")
    assert type(error.value) in (ValueError, FileNotFoundError)
    message = str(error.value)
    for part in (str(folder), *said):
        assert part in message, message
    assert len(message.splitlines()) <= 2 or "tensors differ" in message
    return message
