"""Files of data and of models that are not what they should be: refused, naming the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.cases import SMALL, Answer, Case, refused, steprl
from faults.model import make_model

QUESTION = {"question": "Who wrote Emma?", "answer": "Jane Austen"}
PASSAGE = {"title": "Emma", "text": "Emma is a novel by Jane Austen."}
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]

QUESTIONS: dict[str, Any] = {
    "empty": b"",
    "blank lines": b"\n\n",
    "not JSON": b"question,answer\nWho wrote Emma?,Jane Austen\n",
    "half a line": json.dumps(QUESTION).encode()[:-5],
    "not text": bytes(range(256)),
    "latin-1": json.dumps(QUESTION, ensure_ascii=False)
    .replace("Emma", "Emm\xe9")
    .encode("latin-1"),
    "a list": [[1, 2]],
    "no answer": [{"question": "Who?"}],
    "no question": [{"answer": "Jane"}],
    "answer None": [{"question": "Who?", "answer": None}],
    "answer empty": [{"question": "Who?", "answer": ""}],
    "answer of empty ones": [{"question": "Who?", "answers": ["", " "]}],
    "answer without value": [{"question": "Who?", "answer": {"kind": "person"}}],
    "question a list": [{"question": ["Who?"], "answer": "Jane"}],
    "unknown split": [{**QUESTION, "split": "tomorrow"}],
    "prompt and completion": [{"prompt": "Who?", "completion": "Jane"}],
}
PASSAGES: dict[str, Any] = {
    "empty": b"",
    "not JSON": b"Emma is a novel.\n",
    "no text": [{"title": "Emma"}],
    "text empty": [{"title": "Emma", "text": ""}],
    "text a number": [{"title": "Emma", "text": 7}],
    "text a list of numbers": [{"title": "Emma", "text": [1, 2]}],
    "a list": [[1]],
    "context a number": [{"context": 3}],
}
CONVERSATIONS: dict[str, Any] = {
    "empty": b"",
    "not JSON": b"hello\n",
    "messages a text": [{"messages": "hello"}],
    "messages empty": [{"messages": []}],
    "unknown role": [{"messages": [{"role": "narrator", "content": "hello"}]}],
    "no role": [{"messages": [{"content": "hello"}]}],
    "no content": [{"messages": [MESSAGES[0], {"role": "assistant"}]}],
    "content a number": [{"messages": [MESSAGES[0], {"role": "assistant", "content": 3}]}],
    "no reply": [{"messages": MESSAGES[:1]}],
    "prompt without completion": [{"prompt": "hello"}],
    "completion a number": [{"prompt": "hello", "completion": 3}],
}
OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "rope scaling without a type": {"rope_scaling": {"factor": 4.0}},
    "unknown rope scaling": {"rope_scaling": {"rope_type": "spiral", "factor": 4.0}},
    "unknown activation": {"hidden_act": "sine"},
    "code of its own": {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}},
    "not causal": {"is_causal": False},
    "quantised": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "another family": {"model_type": "bert", "architectures": ["BertModel"]},
    "fewer rows than words": {"vocab_size": 8},
    "more layers": {"num_hidden_layers": 2},
    "another width": {"hidden_size": 32},
    "heads that do not divide": {"num_attention_heads": 3},
    "a width of text": {"hidden_size": "sixteen"},
    "not tied": {"tie_word_embeddings": False},
}


def files(folder: Path) -> Iterator[Case]:
    """Each file by itself, the others sound."""
    empty = folder / "empty.yaml"
    empty.write_text("{}\n")
    splits = ("train", "train", "valid")
    sound_questions = _write(folder / "sound.jsonl", [{**QUESTION, "split": x} for x in splits])
    sound_passages = _write(folder / "passages.jsonl", [PASSAGE])
    model = folder / "model"
    make_model(model)

    def words(questions: Path, passages: Path) -> list[str]:
        return [
            *SMALL, "sft.steps=0", "env.name=wiki_search", "model.value_head=separate",
            f"env.wiki_search.questions={questions}", f"env.wiki_search.passages={passages}",
            f"env.wiki_search.cache={folder / 'cache'}",
        ]  # fmt: skip

    def search(questions: Path, passages: Path) -> Answer:
        settings = words(questions, passages)
        return steprl(["train", str(empty), *settings, f"model.path={model}", "--dry-run"])

    def evaluate(path: Path) -> Answer:
        settings = words(sound_questions, sound_passages)
        return steprl(["eval", str(path), *settings, "eval.greedy=false", "--tasks", "1"])

    sound = search(sound_questions, sound_passages)
    yield Case("sound files", sound.code == 0, sound.traceback, said=sound.end)
    sound = evaluate(model)
    yield Case("a sound model", sound.code == 0, sound.traceback, said=sound.end)
    for name, content in QUESTIONS.items():
        file = _write(folder / "questions.jsonl", content)
        yield refused(f"questions: {name}", search(file, sound_passages), ["questions.jsonl"])
    for name, content in PASSAGES.items():
        file = _write(folder / "texts.jsonl", content)
        yield refused(f"passages: {name}", search(sound_questions, file), ["texts.jsonl"])
    for name, content in CONVERSATIONS.items():
        file = _write(folder / "talk.jsonl", content)
        answer = steprl(
            ["sft", str(empty), *SMALL, "env.name=wiki_search", f"model.path={model}",
             "model.value_head=separate", f"sft.data={file}", "sft.steps=1",
             f"env.wiki_search.cache={folder / 'cache'}", f"trainer.output_dir={folder / 'runs'}",
             "--overwrite"]
        )  # fmt: skip
        yield refused(f"conversations: {name}", answer, ["talk.jsonl"])
    for name, change in OTHER_SHAPES.items():
        make_model(folder / "other", change)
        answer = evaluate(folder / "other")
        yield refused(f"model: {name}", answer, ["other"])
    for file in sorted(model.iterdir()):
        for kind in ("truncated", "empty", "missing", "other bytes", "a pointer of Git LFS"):
            if kind == "missing" and file.name in ("generation_config.json",):
                continue  # models without one are common
            make_model(folder / "broken")
            data, target = file.read_bytes(), folder / "broken" / file.name
            target.unlink()
            if kind != "missing":
                target.write_bytes(
                    {"truncated": data[: len(data) * 2 // 3], "empty": b"", "other bytes": b"\xff" * 99}
                    .get(kind, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
                )  # fmt: skip
            answer = evaluate(folder / "broken")
            yield refused(f"model: {file.name}: {kind}", answer, ["broken"])


def _write(file: Path, content: Any) -> Path:
    if not isinstance(content, bytes):
        content = "".join(json.dumps(row) + "\n" for row in content).encode()
    file.write_bytes(content)
    return file
