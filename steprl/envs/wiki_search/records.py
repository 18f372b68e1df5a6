"""Rows of JSONL, JSON and parquet files, and the shapes in which data sets hold questions and passages."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


class Passage(NamedTuple):
    """A paragraph and the title of the page it is from."""

    title: str
    text: str


def data_files(path: str | Path) -> list[Path]:
    """The file itself, or the data files of a folder and its subfolders, sorted.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is of another kind.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: not one of {', '.join(SUFFIXES)}")
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not files:
        problem = "a folder without data files" if path.is_dir() else "no such file or folder"
        raise FileNotFoundError(
            f"{path}: {problem}; give a file or folder of {', '.join(SUFFIXES)}"
        )
    return files


def read_rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Every row of a file or folder, with its place (`file:number`) for messages.

    Raises:
        ValueError: a line is not a JSON object.
        ImportError: parquet files need `pip install 'steprl[search]'`.
    """
    for file in data_files(path):
        rows = _parquet(file) if file.suffix == ".parquet" else _json(file)
        for number, row in enumerate(rows, 1):
            place = f"{file}:{number}"
            if isinstance(row, str):
                try:
                    row = json.loads(row)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{place}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place}: a row is a JSON object, found {type(row).__name__}")
            yield place, row


def passages_of(row: Row, place: str) -> list[Passage]:
    """The passages of a row: one, or all paragraphs of a question that brings its own.

    Known shapes: `title` and `text`; `contents` with the title in its first line (FlashRAG); HotpotQA's
    `context`; MuSiQue's `paragraphs`.

    Raises:
        ValueError: the row has none of these shapes, or an empty text.
    """
    if "context" in row or "paragraphs" in row:
        items = _titled(row["context"] if "context" in row else row["paragraphs"])
    elif "contents" in row:
        title, _, text = str(row["contents"]).partition("\n")
        items = [(title.strip('" '), text)]
    else:
        items = [(row.get("title") or "", _text(row))]
    passages = [Passage(str(title).strip(), text.strip()) for title, text in items]
    if not passages or not all(passage.text for passage in passages):
        raise ValueError(
            f"{place}: no passage in a row of {', '.join(row) or 'nothing'}; rows hold title and text"
        )
    return passages


def supporting_titles(row: Row) -> tuple[str, ...]:
    """Titles of the passages that answer the question, where the row says so; each once."""
    if row.get("supporting_titles") is not None:
        titles = list(row["supporting_titles"])
    elif row.get("supporting_facts") is not None:
        facts = row["supporting_facts"]
        titles = facts["title"] if isinstance(facts, dict) else [_first(fact) for fact in facts]
    else:
        paragraphs = row.get("paragraphs")
        listed = paragraphs if isinstance(paragraphs, list) else []
        titles = [p["title"] for p in listed if isinstance(p, dict) and p.get("is_supporting")]
    return tuple(dict.fromkeys(str(title).strip() for title in titles))


def _parquet(file: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"{file}: parquet files need pyarrow: pip install 'steprl[search]'"
        ) from error
    with parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def _json(file: Path) -> Iterator[Any]:
    if file.suffix == ".json":
        content = json.loads(file.read_text(encoding="utf-8"))
        yield from content if isinstance(content, list) else [content]
        return
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        yield from (line for line in lines if not line.isspace())


def _titled(context: Any) -> list[tuple[str, str]]:
    if isinstance(context, dict):  # columns, as the hub has it
        return [
            (title, "".join(sentences))
            for title, sentences in zip(context["title"], context["sentences"], strict=True)
        ]
    return [
        (item["title"], _text(item)) if isinstance(item, dict) else (item[0], "".join(item[1]))
        for item in context
    ]


def _text(item: Row) -> str:
    for name in ("text", "paragraph_text", "sentences"):
        if item.get(name):
            return item[name] if isinstance(item[name], str) else "".join(item[name])
    return ""


def _first(fact: Any) -> str:
    return fact["title"] if isinstance(fact, dict) else fact[0]
