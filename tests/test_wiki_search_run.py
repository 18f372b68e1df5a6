"""A language model from files learns to search: trained, evaluated and exported by the command line."""

import json

import jax
import numpy as np
import pytest

from steprl.cli import main
from steprl.config import load_config
from steprl.metrics import read_metrics
from steprl.models import DecoderConfig, load_model, make_policy, save_pretrained
from steprl.rollout import read_rows, read_trajectories
from steprl.session import open_policy, setup
from tests.models.chat_models import CHATML, chat_tokenizer

pytest.importorskip("bm25s")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny chat model as a Hugging Face directory, some questions, and a configuration."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = chat_tokenizer(CHATML)
    config = DecoderConfig(
        vocab_size=len(tokenizer), d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=24, value_head="none",
    )  # fmt: skip
    params = jax.jit(make_policy(config).init)(jax.random.key(0))
    save_pretrained(folder / "model", config, params, tokenizer=tokenizer, context_length=4096)
    questions = [
        {"id": str(n), "question": f"What is {n}?", "answer": str(n), "split": split,
         "type": "comparison" if n % 2 else "bridge",
         "supporting_facts": {"title": [f"Number {n}"], "sent_id": [0]}}
        for split, numbers in (("train", range(6)), ("valid", range(6, 10))) for n in numbers
    ]  # fmt: skip
    passages = [{"title": f"Number {n}", "text": f"The number {n} is {n}."} for n in range(10)]
    for name, rows in (("questions", questions), ("passages", passages)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(
        f"""
env:
  name: wiki_search
  wiki_search:
    questions: {folder / "questions.jsonl"}
    passages: {folder / "passages.jsonl"}
    cache: {folder / "cache"}
    max_steps: 2
    hits: 1
model:
  path: {folder / "model"}
  lora:
    rank: 2
sft:
  steps: 2
  batch_size: 8
  warmup_steps: 1
rollout:
  batch_size: 4
  n: 2
  response_length: 160
  context_length: 1536
actor:
  ppo_mini_batch_size: 8
  ppo_epochs: 1
eval:
  num_tasks: 64
  n: 2
trainer:
  experiment_name: search
  output_dir: {folder / "runs"}
  total_training_steps: 1
  save_trajectories: 1
"""
    )
    return folder


@pytest.fixture(scope="module")
def run(home):
    assert main(["train", str(home / "run.yaml")]) == 0
    return home / "runs" / "search"


@pytest.mark.slow
def test_training_measures_what_the_environment_says(run):
    row = read_metrics(run / "metrics.jsonl")[-1]
    for name in ("exact_match", "f1", "num_searches"):
        assert row[f"eval/{name}_low"] <= row[f"eval/{name}"] <= row[f"eval/{name}_high"]
    assert row["eval/avg@2"] == row["eval/success_rate"] <= row["eval/pass@2"]
    assert row["agree/logp_absmax"] < 1e-4 and row["actor/pg_clipfrac"] == 0.0
    assert 0 <= row["token/prefix_break"] < 1 and "env/valid_call_frac" in row
    assert 0 <= row["perf/padding"] < 1


@pytest.mark.slow
def test_trajectories_are_written_with_what_was_said_and_sampled(run):
    (file,) = (run / "trajectories").iterdir()
    found = read_trajectories(file)
    assert file.name == "step_000001.jsonl" and len(found) == 8
    assert [(t.task, t.sample) for t in found] == [(n // 2, n % 2) for n in range(8)]
    tokenizer = open_policy(run).tokenizer
    for trajectory in found:
        assert trajectory.metrics["f1"] <= 1 and trajectory.steps
        for step in trajectory.steps:
            assert "## User Query" in step.observation
            assert step.observation in tokenizer.decode(step.observation_ids)
            assert len(step.logprobs) == len(step.action_ids)
    for row in (row for rows in read_rows(file) for row in rows):
        assert row["action"] in "".join(row["response_tokens"])
        assert len(row["response_tokens"]) == len(row["response_ids"])
        assert len(row["response_train_logprobs"]) == len(row["response_ids"])
        assert np.isfinite(row["advantage"]) and row["trained_reward"] == row["reward"]


@pytest.mark.slow
def test_an_export_of_a_run_is_the_policy_with_its_adapters(home, run):
    target = home / "export"
    assert main(["export", str(run), str(target)]) == 0
    tokens = np.arange(12)[None] % 50
    segments = np.ones_like(tokens)

    def logits(policy, params):
        hidden, _ = policy.apply(params, tokens, np.arange(12)[None], segments)
        return np.asarray(policy.unembed(params, hidden))

    opened = open_policy(run)
    assert "lora" not in opened.params
    again = load_model(target, value_head="shared")
    policy = make_policy(again.config)
    expected = logits(opened.policy, opened.params)
    np.testing.assert_allclose(logits(policy, again.params), expected, atol=1e-5)
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    found = model(torch.as_tensor(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert transformers.AutoTokenizer.from_pretrained(target).chat_template == CHATML


@pytest.mark.slow
def test_adapters_are_exported_alone(home, run, capsys):
    assert main(["export", str(run), str(home / "adapter"), "--adapter"]) == 0
    assert {f.name for f in (home / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert main(["export", str(home / "model"), str(home / "none"), "--adapter"]) == 1
    assert "has no adapters" in capsys.readouterr().out


def test_the_words_of_an_environment_need_a_model(home, capsys):
    assert main(["train", str(home / "run.yaml"), "model.path=null", "--dry-run"]) == 1
    assert "model.path" in capsys.readouterr().out
    assert main(["train", str(home / "run.yaml"), "model.d_model=8", "--dry-run"]) == 1
    assert "model.d_model is fixed by model.path" in capsys.readouterr().out


def test_questions_of_some_kinds_are_trained_and_evaluated_on(home):
    sizes = {
        kinds: setup(
            load_config(home / "run.yaml", [f"env.wiki_search.kinds={kinds}"])
        ).player.sizes
        for kinds in ("[]", "[comparison]")
    }
    assert sizes["[]"] == {"train": 6, "valid": 4}
    assert sizes["[comparison]"] == {"train": 3, "valid": 2}


@pytest.mark.slow
def test_a_warm_start_on_conversations_of_a_file(home):
    turns = [("user", "What is 1?"), ("assistant", "1"), ("user", "Sure?"), ("assistant", "Yes.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (home / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    words = [str(home / "run.yaml"), f"sft.data={home / 'chats.jsonl'}", "eval.num_tasks=1"]
    words += ["sft.steps=20", "sft.lr=3e-2", "eval.n=1", "trainer.experiment_name=chats"]
    assert main(["sft", *words, "model.lora.rank=0", "rollout.response_length=8"]) == 0
    rows = read_metrics(home / "runs" / "chats" / "sft.jsonl")
    assert rows[-1]["sft/loss"] < 0.7 * rows[0]["sft/loss"]
