"""Run directories made by hand, with everything that a page may have to show."""

import json
from pathlib import Path

import numpy as np
import yaml

from steprl.metrics import MetricWriter
from steprl.rollout import Line, StepCredit, write_trajectories
from steprl.types import Parent, Step, Trajectory

# Texts that end an element, start a script or a request, hide, or are no text.
ODD_TEXTS = (
    "</script><script>document.documentElement.dataset.hacked = 1</script>",
    "<img src=x onerror=\"document.documentElement.dataset.hacked = 1\">",
    "<!--<script>", "]]>", "--></style><style>body{display:none}", "{{data}} {{script}}",
    "\ud800 half", "half \udfff", "\u2028\u2029\x85\x00\x1b[31m\x7f", "\u202eabc\u2066", "&lt;b&gt; &amp;",
    "https://example.com/x.png", "javascript:alert(1)", "'\"`${1}`\\u003c",
)  # fmt: skip
WORDS = (
    "the answer search lookup of Ada Bela founder says that is not in <tool_call> because".split()
)


def words(rng, count):
    return [" " + WORDS[i] for i in rng.integers(0, len(WORDS), count)]


def step(rng, number, tokens, said=None, read=None, **more):
    """A step of some tokens, and their texts."""
    texts = words(rng, tokens) if said is None else list(said)
    ids = np.arange(len(texts), dtype=np.int32)
    logprobs = -rng.exponential(1.0, len(texts))
    fields = dict(reward=0.0, terminated=False, truncated=False, stop_reason="stop_token") | more
    one = Step(
        f"observation {number}: " + "".join(words(rng, 12)) if read is None else read,
        "".join(texts), np.arange(9, dtype=np.int32), ids, logprobs,
        rng.exponential(1.0, len(texts)), **fields,
    )  # fmt: skip
    return one, texts


def credit(rng, one, by_token=False, masked=False, reference=True):
    """What an update might have learnt from a step."""
    size = len(one.action_ids)
    advantages = rng.normal(size=size) if by_token else np.full(size, rng.normal())
    value = float(rng.normal())
    return StepCredit(
        one.reward, value, value + float(advantages.mean()), advantages,
        one.logprobs + rng.normal(scale=0.01, size=size),
        one.logprobs + rng.normal(scale=0.2, size=size) if reference else None,
        np.full(size, not masked),
    )  # fmt: skip


def trajectory(rng, task, sample, steps, tokens, parent=None, by_token=False):
    """A trajectory of some steps with its credit; every third solves its task."""
    success = (task + sample) % 3 == 0
    made, texts, learnt = [], [], []
    for number in range(steps):
        last = number == steps - 1
        one, its = step(rng, number, tokens, reward=float(last and success), terminated=last)
        made.append(one)
        texts.append(its)
        learnt.append(credit(rng, one, by_token))
    whole = Trajectory(task, sample, tuple(made), success, parent, metrics={"f1": 0.5 * success})
    return Line(whole, texts, learnt)


def metrics(run: Path, iterations: int) -> None:
    """Curves of a run that learns, with a gap and a value that is not finite."""
    with MetricWriter(run / "metrics.jsonl") as writer:
        for i in range(iterations + 1):
            share = i / max(1, iterations)
            row = {"rollout/success_rate": 0.2 + 0.6 * share, "critic/rewards/mean": share,
                   "response_length/mean": 20.0 - 5 * share, "actor/entropy": 2.0 - share,
                   "actor/pg_clipfrac": 0.1 * share, "critic/vf_explained_var": share,
                   "actor/ppo_kl": 0.002, "env/parse_error_frac": 0.3 - 0.3 * share,
                   "env/crash_frac": 0.01, "env/faults": 1, "env/timeout_frac": 0.0,
                   "timing_s/step": 1.5}  # fmt: skip
            row = (
                {}
                if i == 0
                else row
                | ({"actor/grad_norm": float("nan")} if i == 1 else {"actor/grad_norm": 1.0})
            )
            if i in (0, iterations):
                for name in ("success_rate", "success_rate_greedy", "f1"):
                    base, greedy = (
                        name.removesuffix("_greedy"),
                        "_greedy" * name.endswith("_greedy"),
                    )
                    mean = 0.2 + 0.5 * share
                    row |= {f"eval/{base}{greedy}": mean, f"eval/{base}_low{greedy}": mean - 0.1,
                            f"eval/{base}_high{greedy}": mean + 0.1}  # fmt: skip
            writer.write(i, row)


def settings(run: Path, **changed) -> None:
    tree = {"trainer": {"experiment_name": run.name, "total_training_steps": 3, "seed": 7},
            "algorithm": {"name": "appo"}, "env": {"name": "multihop"}, **changed}  # fmt: skip
    (run / "config.resolved.yaml").write_text(yaml.safe_dump(tree))


def plain_run(
    run: Path, iterations: int, tasks: int, attempts: int, steps: int, tokens: int
) -> Path:
    """A run of many trajectories."""
    rng = np.random.default_rng(0)
    run.mkdir(parents=True)
    settings(run)
    metrics(run, iterations)
    for i in range(1, iterations + 1):
        lines = (
            trajectory(rng, task, sample, steps, tokens, by_token=task % 2 == 1)
            for task in range((i - 1) * tasks, i * tasks)
            for sample in range(attempts)
        )
        write_trajectories(run / "trajectories" / f"step_{i:06d}.jsonl", lines, i - 1, 7)
    return run


def odd_run(run: Path) -> Path:
    """Branches, faults, masks, odd texts, a file of the first format and a damaged one."""
    rng = np.random.default_rng(1)
    run.mkdir(parents=True)
    settings(run, odd={"text": ODD_TEXTS[0]})
    metrics(run, 3)
    family = [
        trajectory(rng, 0, 0, 5, 6, Parent(0, 0)),
        trajectory(rng, 0, 1, 4, 6, Parent(0, 2, 3, 0.75, 1)),
        trajectory(rng, 0, 2, 6, 6, Parent(1, 3, 0, -0.5, -1), by_token=True),
        trajectory(rng, 0, 3, 3, 6, Parent(0, 1)),
    ]
    crash = dict(
        truncated=True, stop_reason="env_crash", info={"fault": "KeyError: 'lamp' " + ODD_TEXTS[1]}
    )
    broken, said = step(rng, 0, 5, **crash)
    faulty = Line(Trajectory(1, 0, (broken,), False), [said], [credit(rng, broken, masked=True)])
    never = Trajectory(1, 1, (), False, fault="lights, task 1, reset: KeyError")
    odd_steps = [step(rng, i, 0, said=["<", text, "", ">"], read=text, info={"said": text})
                 for i, text in enumerate(ODD_TEXTS)]  # fmt: skip
    odd = Line(Trajectory(2, 0, tuple(one for one, _ in odd_steps), True), [said for _, said in odd_steps],
               [credit(rng, one, by_token=True) for one, _ in odd_steps])  # fmt: skip
    long, said = step(rng, 0, 40, read="a line of a page\n" * 80, valid=False, stop_reason="length")
    lost = Line(Trajectory(3, 0, (long,), False, Parent(9, 0)), [said])
    write_trajectories(run / "trajectories" / "step_000001.jsonl", [*family, faulty, never], 0, 7)
    write_trajectories(run / "trajectories" / "step_000002.jsonl", [odd, lost], 1, 7)
    whole = (run / "trajectories" / "step_000001.jsonl").read_text().splitlines()
    old = [json.loads(line) for line in whole[:5]]
    names = "trained_reward return value target advantage learnt fault".split()
    names += [
        f"response_{x}" for x in ("tokens", "train_logprobs", "reference_logprobs", "advantages")
    ]
    new = {"format", *names}
    lines = [json.dumps({k: v for k, v in row.items() if k not in new}) for row in old]
    (run / "trajectories" / "step_000003.jsonl").write_text(
        "\n".join([*lines, '{"traj_id": "torn'])
    )
    return run
