"""In and out again: an export says all that its source said, and nothing that the source did not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steprl.checkpoint import Checkpointer
from steprl.cli import main
from steprl.config import load_config
from steprl.config.load import save_config
from steprl.envs.opening import open_suite
from steprl.models import DecoderConfig, init_lora, load_model, merge_lora, read_config
from steprl.models.chat import chat_format, stop_ids
from steprl.models.config_file import config_settings
from steprl.models.generation import end_ids
from steprl.models.presets import Llama3Scaling
from steprl.rollout.contexts import chat_context
from steprl.serving import serve_model
from steprl.session import open_policy
from steprl.session.language import language_of
from tests.models.chat_models import CHATML
from tests.models.random_models import FAMILIES, assert_same_bits, random_parameters
from tests.models.small_model import (
    CONTEXT,
    ENDS,
    SAMPLING,
    TOKENIZER_CONTEXT,
    change,
    said,
    shape_of,
    write_model,
)


def exported(source, folder, *options):
    assert main(["export", str(source), str(folder), *options]) == 0
    return folder


def assert_same_language(ours, source):
    """Tokens, special tokens, end tokens, template and length."""
    assert ours.get_vocab() == source.get_vocab()
    assert ours.special_tokens_map == source.special_tokens_map
    assert ours.all_special_tokens == source.all_special_tokens
    assert ours.added_tokens_decoder == source.added_tokens_decoder
    assert ours.chat_template == source.chat_template
    assert ours.model_max_length == source.model_max_length == TOKENIZER_CONTEXT
    text = "Hello <|further|> <plain><|im_end|>"
    assert ours(text).input_ids == source(text).input_ids
    assert set(stop_ids(ours)) == set(stop_ids(source))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_in_goes_out(family, tmp_path):
    params = write_model(tmp_path / "in", family)
    exported(tmp_path / "in", tmp_path / "out")
    before, after = (load_model(tmp_path / name, value_head="none") for name in ("in", "out"))
    assert after.config == before.config == shape_of(family)
    assert after.config.context_length == before.config.context_length == CONTEXT
    assert_same_bits(after.params, params)
    assert_same_language(after.tokenizer, before.tokenizer)
    config, generation = (
        said(tmp_path / "out" / name) for name in ("config.json", "generation_config.json")
    )
    assert config["max_position_embeddings"] == CONTEXT
    assert {name: generation[name] for name in SAMPLING} == SAMPLING
    ends = after.tokenizer.convert_tokens_to_ids([*ENDS, "<|im_end|>"])
    assert set(config["eos_token_id"]) == set(generation["eos_token_id"]) == set(ends)


def test_once_all_is_said_nothing_is_added(tmp_path):
    write_model(tmp_path / "in", "qwen3")
    exported(tmp_path / "in", tmp_path / "out")
    exported(tmp_path / "out", tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_gguf_goes_out_with_all_that_it_says(tmp_path):
    gguf = pytest.importorskip("gguf")
    from tests.models.test_gguf import their_tensors, tokenizer_writer, write

    config = shape_of("llama")

    def tokenizer(writer):
        tokenizer_writer()(writer)
        writer.add_eot_token_id(0)
        writer.add_uint32("tokenizer.ggml.eom_token_id", 5)
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 7)

    params = random_parameters(config)
    tensors = their_tensors(config, params, "llama")
    file = write(tmp_path / "m.gguf", config, tensors, tokenizer=tokenizer)
    assert gguf.GGUFReader(file).tensors
    before = load_model(file, value_head="none")
    assert end_ids(before.tokenizer) == (1, 0, 5)
    assert before.config.context_length == 128
    after = load_model(exported(file, tmp_path / "out"), value_head="none")
    assert after.config == before.config and after.config.context_length == 128
    assert_same_bits(after.params, params)
    assert stop_ids(after.tokenizer) == stop_ids(before.tokenizer) == (1, 0, 5)
    generation = said(tmp_path / "out" / "generation_config.json")
    assert (generation["temperature"], generation["top_k"]) == (0.5, 7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type_changes_the_numbers_and_nothing_else(dtype, tmp_path):
    params = write_model(tmp_path / "in", "qwen3, tied")
    exported(tmp_path / "in", tmp_path / "out", "--dtype", dtype)
    after = load_model(tmp_path / "out", value_head="none")
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    assert_same_bits(after.params, rounded)
    assert said(tmp_path / "out" / "config.json")["torch_dtype"] == dtype
    assert_same_language(after.tokenizer, load_model(tmp_path / "in").tokenizer)


def test_a_run_with_adapters_goes_out_merged_and_with_the_words_of_its_source(tmp_path):
    params = jax.tree.map(jnp.asarray, write_model(tmp_path / "in", "qwen2"))
    lora = init_lora(jax.random.key(1), params, 2, "all-linear")
    draw = np.random.default_rng(2)
    lora = jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.2, x.shape), x.dtype), lora)
    options = (f"model.path={tmp_path / 'in'}", "model.lora.rank=2", "model.lora.alpha=6")
    config = load_config(None, [*options, "model.value_head=none", "env.name=wiki_search"])
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.resolved.yaml")
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(3, {"params": params | {"lora": lora}})
    after = load_model(exported(tmp_path / "run", tmp_path / "out"), value_head="none")
    merged = merge_lora(params | {"lora": lora}, 6 / 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, merged)
    assert after.config.context_length == CONTEXT
    assert_same_language(after.tokenizer, load_model(tmp_path / "in").tokenizer)


# ---------------------------------------------------------------- end tokens


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, None, ["<|end|>"]),  # the tokenizer's alone
        (5, None, ["5", "<|end|>"]),
        (None, 6, ["6", "<|end|>"]),
        ([5, 7], 6, ["5", "7", "6", "<|end|>"]),
        ([5, 5], [5], ["5", "<|end|>"]),
        ([], [], ["<|end|>"]),
    ],
)
def test_every_file_may_name_end_tokens(generation, config, ends, tmp_path):
    write_model(tmp_path / "in")
    change(tmp_path / "in" / "generation_config.json", eos_token_id=generation)
    change(tmp_path / "in" / "config.json", eos_token_id=config)
    tokenizer = load_model(tmp_path / "in").tokenizer
    ids = [int(end) if end.isdigit() else tokenizer.convert_tokens_to_ids(end) for end in ends]
    assert list(end_ids(tokenizer)) == ids
    # A reply ends first of all as the template writes it.
    chat = chat_format(tokenizer)
    assert list(chat.stop_ids) == [tokenizer.convert_tokens_to_ids("<|im_end|>"), *ids]
    for one in chat.stop_ids:
        assert chat.decode([*chat.encode("a"), one]) == "a"


@pytest.mark.parametrize("template", [CHATML, None])
def test_the_server_and_chat_stop_at_each_of_them(template, tmp_path):
    write_model(tmp_path / "in", template=template)
    opened = open_policy(tmp_path / "in")
    served = serve_model(opened, "m")
    names = [*(["<|im_end|>"] if template else []), *ENDS]
    assert set(served.stop_ids) == set(opened.tokenizer.convert_tokens_to_ids(names))
    assert served.decode([70, served.stop_ids[-1]]) == opened.tokenizer.decode([70])
    # And the context is that of the model, whatever its tokenizer says.
    assert served.engine.context_length == CONTEXT
    with pytest.raises(ValueError, match=f"made for {CONTEXT}"):
        serve_model(opened, "m", CONTEXT + 1)


def test_a_run_reads_no_further_than_its_model_was_made_for(tmp_path):
    write_model(tmp_path / "in")
    options = (f"model.path={tmp_path / 'in'}", f"rollout.context_length={CONTEXT + 1}")
    config = load_config(None, [*options, "env.name=wiki_search"])
    with pytest.raises(
        ValueError, match=f"rollout.context_length={CONTEXT + 1}: .* {CONTEXT} tokens"
    ):
        language_of(config, open_suite(config.env))
    assert language_of(config).config.context_length == CONTEXT  # a run that is there is opened


def test_what_is_written_may_be_read_by_whoever_reads_the_folder(tmp_path):
    write_model(tmp_path / "in")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "in").iterdir()}
    assert set(modes.values()) == {(tmp_path / "in").stat().st_mode & 0o666}, modes


def test_rollouts_stop_at_each_of_them(tmp_path):
    write_model(tmp_path / "in")
    tokenizer = load_model(tmp_path / "in").tokenizer
    context = chat_context(tokenizer)
    assert set(context.stop_ids) == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", *ENDS]))


# ---------------------------------------------------------------- what other programs read


def test_the_tokenizer_is_written_as_transformers_4_and_5_read_it(tmp_path):
    """Checked with transformers 4.57 by hand: it lacks the classes of version 5."""
    write_model(tmp_path / "in")
    exported(tmp_path / "in", tmp_path / "out")
    settings = said(tmp_path / "out" / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|further|>"]
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert not {"extra_special_tokens", "backend", "is_local", "local_files_only"} & settings.keys()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHATML


def test_transformers_reads_the_context_and_every_end_token(tmp_path):
    from transformers import AutoConfig, GenerationConfig

    write_model(tmp_path / "in", "qwen3")
    exported(tmp_path / "in", tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == CONTEXT
    assert config.eos_token_id == generation.eos_token_id and len(config.eos_token_id) == 4
    assert (generation.temperature, generation.top_k) == (0.6, 20)


numbers = st.floats(1e-7, 1e7, allow_nan=False)


@st.composite
def shapes(draw):
    """Any decoder that a family of transformers has."""
    kv_heads, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    scaling = Llama3Scaling(draw(numbers), low, high, float(draw(st.integers(1, 1 << 20))))
    kind = draw(st.sampled_from(["", "qk_norm", "attention_bias"]))
    return DecoderConfig(
        vocab_size=draw(st.integers(1, 1 << 18)),
        d_model=kv_heads * groups * draw(st.integers(1, 512)),
        num_layers=draw(st.integers(1, 200)),
        num_heads=kv_heads * groups,
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 128)),
        d_ff=draw(st.integers(1, 1 << 16)),
        rope_theta=draw(numbers),
        rope_scaling=draw(st.sampled_from([None, scaling])),
        norm_eps=draw(numbers),
        tie_embeddings=draw(st.booleans()),
        context_length=draw(st.none() | st.integers(1, 1 << 20)),
        **({kind: True} if kind else {}),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=shapes())
def test_every_shape_is_read_as_it_was_written(config, tmp_path):
    record = config_settings(config, None, None, ())
    (tmp_path / "config.json").write_text(json.dumps(record))
    found = read_config(tmp_path)
    assert (found, found.context_length) == (config, config.context_length)
    # And in the spelling of transformers 5.
    scaling = record.pop("rope_scaling")
    rope = {"rope_theta": record.pop("rope_theta"), **(scaling or {"rope_type": "default"})}
    (tmp_path / "config.json").write_text(json.dumps({**record, "rope_parameters": rope}))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_what_transformers_writes_by_itself_is_understood(name, tmp_path):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(name, vocab_size=50, hidden_size=64, num_attention_heads=32)
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    head_dim = 2 if name == "qwen2" else theirs.head_dim  # of qwen2, it is not written
    assert (ours.num_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, head_dim)
    assert ours.context_length == theirs.max_position_embeddings
    assert (ours.rope_theta, ours.norm_eps) == (
        theirs.rope_parameters["rope_theta"],
        theirs.rms_norm_eps,
    )
