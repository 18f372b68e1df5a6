"""How long one optimiser step of a language model takes, from a batch of rollouts to new parameters.

    python benchmarks/train_step.py [--tunix-python PATH] [--models 30M,135M] [--quick] [--save]

Rows of 64 prompt and 64 sampled tokens, float32, clipped gradient, AdamW. The methods:

    grpo      group advantages, clipped loss; on-policy, so the old log-probs cost no pass
    grpo_kl   the same with a KL term: a pass of a reference policy, then the step
    steppo    step GAE, the critic on the policy's trunk; its old values come from the pass of the loss

Contenders are processes of their own and take turns, a step each. PyTorch is the same update written
out with the Llama of transformers; it is left out where it is not installed, and on an accelerator.
tunix runs its own GRPO training step on its own Llama, in the environment of `--tunix-python`
(`pip install google-tunix`), because it cannot share ours. All start from the same weights and
batch: losses and gradient norms of the first step must agree, or the run fails.

We report the entropy of the policy (tunix does too, PyTorch does not) and read no logits of prompt
tokens (PyTorch neither, tunix does). Peak memory is that of the process from its start; for ours also
what the compiled step says it needs, and on an accelerator the peak of the device.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

HERE = Path(__file__).resolve().parent
METHODS = ("grpo_kl", "grpo", "steppo")
GOALS = {"30M": 2.0, "135M": 1.6}  # times tunix, on a CPU
RELATIVE, ABSOLUTE = 1e-3, 1e-4  # of the norm of the gradient, and of the loss


class Contender:
    """A process that makes one step a line."""

    def __init__(self, python: str, script: str, case: dict[str, Any]):
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        }
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(HERE / "trainers" / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self.name: str = self.ask(case)["name"]
        self.steps: list[dict[str, float]] = []

    def ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(line), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.process.args} ended:\n{self.errors.read()[-2000:]}")
        return json.loads(answer)

    def step(self) -> None:
        self.steps.append(self.ask({}))

    def close(self) -> None:
        self.process.communicate()

    def seconds(self) -> list[float]:
        """Of all steps but the first, which compiles."""
        return [step["seconds"] for step in self.steps[1:]]


def race(
    case: dict[str, Any], peers: list[str], tunix_python: str | None, rounds: int
) -> dict[str, Contender]:
    """Every contender on one case, in turn."""
    racing = {"steprl": Contender(sys.executable, "steprl_update.py", case)}
    try:
        if racing["steprl"].name.endswith("cpu"):
            if "PyTorch" in peers and importlib.util.find_spec("torch") is not None:
                racing["PyTorch"] = Contender(sys.executable, "torch_update.py", case)
            if "tunix" in peers and tunix_python and case["method"] != "steppo":
                racing["tunix"] = Contender(tunix_python, "tunix_grpo.py", case)
        for _ in range(rounds + 1):
            for contender in racing.values():
                time.sleep(0.2)  # threads of the previous one keep waiting for work for a while
                contender.step()
    finally:
        for contender in racing.values():
            contender.close()
    return racing


def mismatch(racing: dict[str, Contender]) -> str | None:
    """What differs in the first step, in words."""
    ours = racing["steprl"].steps[0]
    for name, other in racing.items():
        theirs = other.steps[0]
        loss = abs(ours["loss"] - theirs["loss"])
        norm = abs(ours["gradient_norm"] / theirs["gradient_norm"] - 1)
        if loss > ABSOLUTE or norm > RELATIVE:
            return f"{name}: the losses differ by {loss:.1e}, the gradients by a part {norm:.1e}"
    return None


def rows_of(case: dict[str, Any], racing: dict[str, Contender]) -> list[dict[str, Any]]:
    model, method = case["model"], case["method"]
    tokens = case["rows"] * (case["prompt"] + case["completion"])
    label = f"{method}, {model}, {case['rows']} x ({case['prompt']} + {case['completion']})"
    ours = racing["steprl"]
    on_cpu, middle = ours.name.endswith("cpu"), statistics.median(ours.seconds())
    rows = []
    for name, contender in racing.items():
        times = contender.seconds()
        low, median, high = statistics.quantiles(times, n=4)
        row, last = record.row, contender.steps[-1]
        speed = [tokens / high, tokens / low]
        rows.append(row(f"{label}, {name}", tokens / median, "tokens/s", speed))
        rows.append(row(f"{label}, {name}, step", median, "s", [low, high]))
        first = contender.steps[0]["seconds"] - median
        rows.append(row(f"{label}, {name}, first step beyond that", first, "s"))
        rows.append(row(f"{label}, {name}, peak of the process", last["peak_mib"], "MiB"))
        for key, words in (("compiled_mib", "compiled step"), ("device_mib", "peak of the device")):
            if key in last:
                rows.append(row(f"{label}, {name}, {words}", last[key], "MiB"))
        if name == "steprl":
            continue
        goal = GOALS.get(model) if name == "tunix" and on_cpu else None
        ratio = median / middle
        rows.append(
            row(
                f"{label}, steprl over {name}",
                ratio,
                "x",
                None,
                contender.name,
                tokens / median,
                ratio,
                f"{goal:g} x" if goal else None,
                ratio >= goal if goal else None,
            )  # fmt: skip
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tunix-python", help="Python of an environment that has google-tunix")
    parser.add_argument("--models", default="30M,135M", help="of tiny, 30M, 135M")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--peers", default="PyTorch,tunix", help="those to race against")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tiny model, three rounds")
    parser.add_argument("--variant", default="", help="of the file of results")
    parser.add_argument(
        "--save", action="store_true", help="add to benchmarks/results/train_step.json"
    )
    options = parser.parse_args()
    if options.rows % 4 or options.completion % 4:
        parser.error("--rows and --completion must be multiples of 4: groups of 4, 4 steps a row")
    if options.tunix_python is None:
        print("no --tunix-python: without tunix")
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: without PyTorch")
    models, rounds = options.models.split(","), options.rounds
    if options.quick:
        models, rounds = ["tiny"], 3
    load, start, rows, right = os.getloadavg()[0], time.perf_counter(), [], True
    for model in models:
        for method in options.methods.split(","):
            case = dict(
                model=model, method=method, rows=options.rows, prompt=options.prompt,
                completion=options.completion,
            )  # fmt: skip
            racing = race(case, options.peers.split(","), options.tunix_python, rounds)
            case_rows = rows_of(case, racing)
            record.show(case_rows)
            print(flush=True)
            rows += case_rows
            problem = mismatch(racing)
            if problem is not None:
                print(f"{method}, {model}: {problem}", file=sys.stderr)
                right = False
    print(f"load of the machine at the start: {load:.2f}")
    if options.save and right:
        save(rows, (time.perf_counter() - start) / 60, load, options.variant)
    return 0 if right else 1


def save(rows: list[dict[str, Any]], minutes: float, load: float, variant: str) -> None:
    """Cases that the file has already, and that were not measured now, stay."""
    script = "train_step"
    path = record.RESULTS / (f"{script}-{variant}.json" if variant else f"{script}.json")
    if path.exists():
        saved = json.loads(path.read_text())
        measured = {row["name"] for row in rows}
        rows = [row for row in saved["rows"] if row["name"] not in measured] + rows
        minutes += saved["minutes"]
    packages = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers")
        if importlib.util.find_spec(name) is not None
    }
    command = "python benchmarks/train_step.py --tunix-python PYTHON --save"
    path = record.save(script, rows, minutes, variant, command=command, load=load, peers=packages)
    print(f"written: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    sys.exit(main())
