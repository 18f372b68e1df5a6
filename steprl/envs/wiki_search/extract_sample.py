"""Makes `sample/` from HotpotQA questions that bring their paragraphs, and further comparisons.

    python -m steprl.envs.wiki_search.extract_sample QUESTIONS.parquet OPEN.parquet PASSAGES.parquet FOLDER

The first questions of the training set and of the development set by id, comparisons among them, with
all their paragraphs: two that support the answer and eight that distract. Then every other comparison
whose two subjects are known, with four paragraphs: small models can learn these.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from steprl.envs.wiki_search.records import Passage, passages_of, read_rows, supporting_titles

_SIZES = {"train": {"bridge": 19, "comparison": 5}, "valid": {"bridge": 12, "comparison": 4}}
_PARAGRAPHS = 4  # of a further comparison
_FIELDS = ("id", "question", "answer", "type", "level")

_Found = tuple[dict[str, Any], list[Passage]]


def extract(
    source: str | Path, open_source: str | Path, passages: str | Path, folder: str | Path
) -> None:
    """Write `questions.jsonl` and `passages.jsonl`.

    Args:
        source: rows of HotpotQA with a field `source` that says whether they are of its training set.
        open_source: rows of its development set, whose `passage_ids` are those of `passages`.
        passages: rows with `pid`, `title` and `text`.
        folder: must exist.
    """
    rows = [row for _, row in read_rows(source) if len(row["context"]) == 10]
    rows.sort(key=lambda row: row["id"])
    texts = {row["pid"]: Passage(row["title"], row["text"]) for _, row in read_rows(passages)}
    entries = list(_first(rows))
    known = {question["question"] for question, _ in entries}
    entries += _comparisons(rows, [row for _, row in read_rows(open_source)], texts, known)
    lines = {passage: None for _, paragraphs in entries for passage in paragraphs}
    for name, records in (
        ("questions", [question for question, _ in entries]),
        ("passages", [passage._asdict() for passage in sorted(lines)]),
    ):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (Path(folder) / f"{name}.jsonl").write_text(text, encoding="utf-8")


def named_titles(question: str, titles: list[str]) -> list[str]:
    """The titles that a question names, what stands behind them in brackets left out.

    Example:
        >>> named_titles(
        ...     "Who is older, Joseph Epstein or Milan Kundera?",
        ...     ["Joseph Epstein (writer)", "Prague", "Milan Kundera"],
        ... )
        ['Joseph Epstein (writer)', 'Milan Kundera']
    """
    return [
        title
        for title in titles
        if re.sub(r"\s*\([^)]*\)", "", title).strip().lower() in question.lower()
    ]


def _first(rows: list[dict[str, Any]]) -> Iterator[_Found]:
    for split, sizes in _SIZES.items():
        for kind, size in sizes.items():
            matching = (
                row
                for row in rows
                if row["type"] == kind and ("train" in row["source"]) == (split == "train")
            )
            for row in islice(matching, size):
                titles = list(supporting_titles(row))
                yield _question(row, titles, split), passages_of(row, row["id"])


def _comparisons(
    rows: list[dict[str, Any]],
    open_rows: list[dict[str, Any]],
    texts: Mapping[Any, Passage],
    known: set[str],
) -> Iterator[_Found]:
    """Those of the training set are to train on, and every second one of the development set."""
    number = 0
    for row in rows + sorted(open_rows, key=lambda row: row["id"]):
        if row["type"] != "comparison" or row["question"] in known:
            continue
        if "context" in row:
            paragraphs, titles = passages_of(row, row["id"]), list(supporting_titles(row))
        else:
            paragraphs = [texts[passage_id] for passage_id in row["passage_ids"]]
            titles = named_titles(row["question"], [passage.title for passage in paragraphs])
            titles = titles if len(titles) == 2 else []  # of two passages of a title, which one?
        # A search reads words of at least two letters: it never finds "P.O.D.".
        if len(set(titles)) != 2 or not all(re.search(r"\w\w", title) for title in titles):
            continue
        known.add(row["question"])
        paragraphs.sort(key=lambda passage: passage.title not in titles)
        if "train" in row.get("source", ""):
            split = "train"
        else:
            split = ("train", "valid")[number % 2]
            number += 1
        yield _question(row, titles, split), paragraphs[:_PARAGRAPHS]


def _question(row: Mapping[str, Any], titles: list[str], split: str) -> dict[str, Any]:
    return {name: row[name] for name in _FIELDS} | {"supporting_titles": titles, "split": split}


if __name__ == "__main__":
    extract(*sys.argv[1:5])
