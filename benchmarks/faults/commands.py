"""Command lines that cannot work: each is refused in a sentence that names what is wrong."""

import dataclasses
import random
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.cases import Case, refused, settings, steprl
from steprl.config import Config

NUMBER = 240
GENERATED = 160  # of them from the settings and their types

BY_TYPE: dict[type, tuple[str, ...]] = {
    int: (
        "abc",
        "1.5",
        "nan",
        "[1]",
        "{a: 1}",
        "1e400",
        "-1000000000",
        "",
        "9" * 400,
        "0x",
        "true",
    ),
    float: ("abc", "nan", "inf", "[0.1]", "{a: 1}", "1e400", "-1e99", "1,5", "''", "true"),
    bool: ("maybe", "2", "[true]", "{a: true}", "1.0", "nan"),
    list: ("{a: 1}", "{a: [}", "3"),
    dict: ("[1]", "5", "text", "{a: [}"),
}

# What stands behind `steprl`; SETTINGS is replaced by a file and the small run.
BY_HAND = (
    "trian", "train", "train nofile.yaml", "train FOLDER", "train FILE.bin", "train FILE.list",
    "train FILE.text", "train FILE.broken", "train FILE.double", "train FILE.unknown", "train FILE.tab",
    "train FILE.latin", "train FILE.anchor", "train FILE.deep", "train FILE.null", "train FILE.python",
    "train SETTINGS =", "train SETTINGS =3", "train SETTINGS actor.lr", "train SETTINGS actor",
    "train SETTINGS actor=3", "train SETTINGS actor=", "train SETTINGS actor.lr.more=3",
    "train SETTINGS actor..lr=3", "train SETTINGS .lr=3", "train SETTINGS actor.=3",
    "train SETTINGS ACTOR.LR=3", "train SETTINGS actor.lrr=3", "train SETTINGS actor.lr=${",
    "train SETTINGS actor.lr=${nothing}", "train SETTINGS actor.lr=${actor.lr}",
    "train SETTINGS actor.lr=${oc.env:NOTHING}", "train SETTINGS actor.lr=???",
    "train SETTINGS trainer.experiment_name=", "train SETTINGS trainer.experiment_name=.",
    "train SETTINGS trainer.experiment_name=..", "train SETTINGS trainer.experiment_name=/",
    "train SETTINGS trainer.experiment_name=../elsewhere", "train SETTINGS trainer.output_dir=/dev/null",
    "train SETTINGS trainer.output_dir=FILE.text", "train SETTINGS trainer.logger=[paper]",
    "train SETTINGS trainer.logger=paper", "train SETTINGS trainer.init_from=nowhere",
    "train SETTINGS trainer.seed=18446744073709551616", "train SETTINGS env.name=chess",
    "train SETTINGS env.name=", "train SETTINGS env.name=a:b:c", "train SETTINGS env.name=:",
    "train SETTINGS env.name=nomodule:make", "train SETTINGS env.name=json:nothing",
    "train SETTINGS env.name=subprocess:check_output env.options.args=true",
    "train SETTINGS env.name=os:getcwd", "train SETTINGS env.name=builtins:print",
    "train SETTINGS env.name=json:dumps env.options.obj=1", "train SETTINGS env.name=math:pi",
    "train SETTINGS env.name=pathlib:Path", "train SETTINGS env.name=numpy:zeros env.options.shape=3",
    "train SETTINGS algorithm.name=magic", "train SETTINGS algorithm.name=os:getcwd",
    "train SETTINGS algorithm.name=a:b:c", "train SETTINGS model.name=os:getcwd",
    "train SETTINGS model.name=nomodule:make", "train SETTINGS model.preset=huge",
    "train SETTINGS model.path=nowhere", "train SETTINGS model.path=FILE.text",
    "train SETTINGS model.path=pypi:no-such-package-of-models", "train SETTINGS model.path=pypi:",
    "train SETTINGS model.path=FILE.gguf", "train SETTINGS model.freeze=(",
    "train SETTINGS model.lora.rank=2 model.lora.target=(",
    "train SETTINGS model.lora.rank=2 model.lora.target=nothing_like_it",
    "train SETTINGS model.num_heads=3 model.num_kv_heads=2", "train SETTINGS model.head_dim=7",
    "train SETTINGS actor.ppo_mini_batch_size=7", "train SETTINGS actor.ppo_micro_batch_size=3",
    "train SETTINGS rollout.n=1 algorithm.name=grpo", "train SETTINGS model.value_head=none",
    "train SETTINGS mesh.data=3", "train SETTINGS mesh.fsdp=1000", "train SETTINGS sft.data=nowhere.jsonl",
    "train SETTINGS --resume --overwrite", "train SETTINGS --resume nowhere", "train SETTINGS --no-such",
    "train SETTINGS -x", "train SETTINGS --seed=3", "sft SETTINGS sft.steps=0", "sft", "eval",
    "eval nowhere", "eval FOLDER", "eval FILE.text", "eval nowhere --step x", "rollout", "rollout nowhere",
    "rollout FOLDER --n x", "rollout FOLDER --n -1", "audit nowhere", "export nowhere out", "export",
    "chat nowhere", "serve nowhere", "serve nowhere --port x", "serve nowhere --port 99999999",
    "report nowhere", "report FOLDER", "help nothing.like.it", "help actor.lrr",
    "train SETTINGS env.multihop.min_hops=5 env.multihop.max_hops=3",
    "train SETTINGS env.options.a=1", "train SETTINGS algorithm.options.a=1",
    "train SETTINGS eval.num_tasks=0", "train SETTINGS trainer.total_training_steps=-1",
)  # fmt: skip

FILES: dict[str, bytes] = {
    "FILE.bin": bytes(range(256)),
    "FILE.list": b"- 1\n- 2\n",
    "FILE.text": b"just a sentence\n",
    "FILE.broken": b"actor: {lr: [\n",
    "FILE.double": b"actor:\n  lr: 1\nactor:\n  lr: 2\n",
    "FILE.unknown": b"actor:\n  lrr: 1\n",
    "FILE.tab": b"actor:\n\tlr: 1\n",
    "FILE.latin": "trainer:\n  experiment_name: caf\xe9\n".encode("latin-1"),
    "FILE.anchor": b"actor: &a\n  lr: *a\n",
    "FILE.deep": b"[" * 5000,
    "FILE.null": b"actor: null\n",
    "FILE.python": b"actor: !!python/object/apply:os.getcwd []\n",
    "FILE.gguf": b"GGUF\x03\x00\x00\x00" + b"\xff" * 64,
}


def commands(folder: Path, seed: int) -> Iterator[Case]:
    """The lines that are written by hand, and as many as are missing from the settings' types."""
    small = settings(folder, "trainer.total_training_steps=1")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "FOLDER").mkdir()
    for line in BY_HAND:
        words: list[str] = []
        for word in line.split(" "):
            key, equals, value = word.partition("=")
            place = value if equals else key
            if place in FILES or place == "FOLDER":
                word = f"{key}={folder / place}" if equals else str(folder / place)
            words += small if word == "SETTINGS" else [word]
        dry = ["--dry-run"] if words[0] in ("train", "sft") and "SETTINGS" in line else []
        yield refused(line, steprl([*words, *([] if "--resume" in line else dry)]))
    rng = random.Random(seed)
    typed = list(_typed(Config))
    for key, value in rng.sample(typed, min(len(typed), max(GENERATED, NUMBER - len(BY_HAND)))):
        answer = steprl(["train", *small, f"{key}={value}", "--dry-run"])
        yield refused(f"train SETTINGS {key}={value[:40]}", answer, [key])


def _typed(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting with each value that its type forbids."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from _typed(hint, f"{key}.")
            continue
        types = [typing.get_origin(t) or t for t in typing.get_args(hint) or (hint,)]
        if field.metadata.get("choices"):
            yield from ((key, value) for value in ("nothing", "3", "[1]", "{a: 1}"))
        elif typing.get_origin(hint) in (list, dict):
            yield from ((key, value) for value in BY_TYPE[typing.get_origin(hint)])  # type: ignore[index]
        elif kinds := [t for t in types if t in BY_TYPE]:
            empty_is_none = type(None) in types
            values = BY_TYPE[kinds[0]]
            yield from ((key, v) for v in values if not (empty_is_none and v == ""))
