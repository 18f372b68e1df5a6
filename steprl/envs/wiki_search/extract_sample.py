"""Makes `sample/` from HotpotQA questions that bring their paragraphs.

    python -m steprl.envs.wiki_search.extract_sample QUESTIONS.parquet FOLDER

The first questions of the training set and of the development set by id, comparisons among them, with
all their paragraphs: two that support the answer and eight that distract.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from steprl.envs.wiki_search.records import Passage, passages_of, read_rows, supporting_titles

_SIZES = {"train": {"bridge": 19, "comparison": 5}, "valid": {"bridge": 12, "comparison": 4}}


def extract(source: str | Path, folder: str | Path) -> None:
    """Write `questions.jsonl` and `passages.jsonl`.

    Args:
        source: rows of HotpotQA with a field `source` that says whether they are of its training set.
        folder: must exist.
    """
    rows = [row for _, row in read_rows(source) if len(row["context"]) == 10]
    rows.sort(key=lambda row: row["id"])
    questions: list[dict[str, Any]] = []
    passages: dict[Passage, None] = {}
    for split, sizes in _SIZES.items():
        for kind, size in sizes.items():
            mine = (
                row
                for row in rows
                if row["type"] == kind and ("train" in row["source"]) == (split == "train")
            )
            for row in islice(mine, size):
                fields = {name: row[name] for name in ("id", "question", "answer", "type", "level")}
                questions.append(
                    fields | {"supporting_titles": supporting_titles(row), "split": split}
                )
                passages |= dict.fromkeys(passages_of(row, row["id"]))
    for name, lines in (
        ("questions", questions),
        ("passages", [passage._asdict() for passage in sorted(passages)]),
    ):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (Path(folder) / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    extract(*sys.argv[1:3])
