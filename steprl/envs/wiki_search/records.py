"""Rows of JSONL, JSON, parquet and text files, and the shapes in which data sets hold passages."""

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

_ROWS = (".jsonl", ".json", ".parquet")
_TEXTS = (".txt", ".md")
SUFFIXES = (*_ROWS, ".jsonl.gz", ".json.gz")
TEXT_SUFFIXES = (*SUFFIXES, *_TEXTS, ".txt.gz", ".md.gz")
PIECE = 1000
"""Characters of a passage of a text file, at most: paragraphs are put together up to it."""

_ABOUT = re.compile(r"(readme|license|licence|notice)(\.(md|txt|rst))?", re.IGNORECASE)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_PART = re.compile(rf"\S.{{0,{PIECE - 2}}}\S(?=\s|\Z)|\S{{1,{PIECE}}}", re.DOTALL)


class Passage(NamedTuple):
    """A paragraph and the title of the page it is from."""

    title: str
    text: str


def data_files(path: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The file itself, or the data files of a folder and its subfolders, sorted.

    In a folder, hidden files are left out, and texts about the data: README, LICENSE, NOTICE. A
    warning says of which other kinds there are files.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is of another kind.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if not path.name.lower().endswith(suffixes):
            raise ValueError(f"{path}: not one of {', '.join(suffixes)}")
        return [path]
    files: list[Path] = []
    others: list[Path] = []
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if hidden or not file.is_file() or _ABOUT.fullmatch(file.name):
            continue
        (files if file.name.lower().endswith(suffixes) else others).append(file)
    if not files:
        problem = "a folder without data files" if path.is_dir() else "no such file or folder"
        raise FileNotFoundError(
            f"{path}: {problem}; give a file or folder of {', '.join(suffixes)}"
        )
    if others:
        kinds = ", ".join(sorted({file.suffix or file.name for file in others})[:8])
        warnings.warn(
            f"{path}: {len(others)} files are not read ({kinds}); read are {', '.join(suffixes)}",
            stacklevel=2,
        )
    return files


def read_rows(path: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[tuple[str, Row]]:
    """Every row of a file or folder, with its place (`file:number`) for messages.

    The rows of a text file are pieces of it, with the name of the file as title: paragraphs together,
    up to `PIECE` characters. Of a JSON object that holds all rows in `data`, as SQuAD's and TriviaQA's
    files, these are the rows.

    Raises:
        ValueError: a line is not a JSON object, or a file is empty, damaged or not in UTF-8.
        ImportError: parquet files need `pip install 'steprl[search]'`.
    """
    for file in data_files(path, suffixes):
        name = _plain_name(file)
        rows: Iterator[tuple[int, Any]]
        if name.endswith(_TEXTS):
            rows = _pieces(file)
        else:
            rows = _parquet(file) if name.endswith(".parquet") else _json(file)
        empty = True
        for number, row in rows:
            place, empty = f"{file}:{number}", False
            if not isinstance(row, dict):
                raise ValueError(f"{place}: a row is a JSON object, found {type(row).__name__}")
            yield place, row
        if empty:
            raise ValueError(f"{file}: the file is empty; fill it or take it away")


def passages_of(row: Row, place: str) -> list[Passage]:
    """The passages of a row: one, or all paragraphs of a question that brings its own.

    Known shapes: `title` and `text`; `contents` with the title in its first line (FlashRAG); HotpotQA's
    `context`; MuSiQue's `paragraphs`; SQuAD's `context` of one text, and its articles.

    Raises:
        ValueError: the row has none of these shapes, or an empty text.
    """
    problem = f"{place}: no passage in a row of {', '.join(map(str, row)) or 'nothing'}"
    shapes = "rows hold title and text, or contents, or context or paragraphs of titled texts"
    try:
        items = _titled_texts(row)
        passages = [Passage(str(title).strip(), text.strip()) for title, text in items]
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{problem} that could be read ({what}); {shapes}") from None
    if not passages or not all(passage.text for passage in passages):
        raise ValueError(f"{problem}; {shapes}")
    return passages


def _titled_texts(row: Row) -> list[tuple[Any, str]]:
    context = row.get("context")
    if isinstance(context, str) and context.lstrip().startswith("["):
        try:  # a list as text, as some have it in a column
            context = json.loads(context)
        except ValueError:
            pass
    if isinstance(context, str):
        return [(row.get("title") or "", context)]
    if context is not None:
        return _titled(context)
    if row.get("paragraphs") is not None:
        paragraphs = row["paragraphs"]
        if isinstance(paragraphs, list) and any("qas" in p for p in paragraphs):
            return [(row.get("title") or "", p["context"]) for p in paragraphs]
        return _titled(paragraphs)
    if "contents" in row:
        title, _, text = str(row["contents"]).partition("\n")
        return [(title.strip('" '), text)]
    return [(row.get("title") or "", _text(row))]


def supporting_titles(row: Row) -> tuple[str, ...]:
    """Titles of the passages that answer the question, where the row says so; each once."""
    if row.get("supporting_titles") is not None:
        titles = list(row["supporting_titles"])
    elif row.get("supporting_facts") is not None:
        facts = row["supporting_facts"]
        facts = json.loads(facts) if isinstance(facts, str) else facts
        titles = facts["title"] if isinstance(facts, dict) else [_first(fact) for fact in facts]
    else:
        paragraphs = row.get("paragraphs")
        listed = paragraphs if isinstance(paragraphs, list) else []
        titles = [p["title"] for p in listed if isinstance(p, dict) and p.get("is_supporting")]
    return tuple(dict.fromkeys(str(title).strip() for title in titles))


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"{file}: parquet files need pyarrow: pip install 'steprl[search]'"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"{file}: not a parquet file, or a damaged one: {first_line}") from None


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    if _plain_name(file).endswith(".json"):
        content = _content(file)
        if not content.strip():
            return
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{file}: not JSON: {error}; rows of one line each are .jsonl"
            ) from None
        if isinstance(found, dict):
            data = found.get("data", found.get("Data"))
            found = data if isinstance(data, list) else [found]
        yield from enumerate(found if isinstance(found, list) else [found], 1)
        return
    opener: Any = gzip.open if _is_zipped(file) else open
    try:
        with opener(file, "rb") as lines:  # one by one: a corpus may be larger than the memory
            for number, raw in enumerate(lines, 1):
                if line := _decoded(raw, file, number).strip():
                    yield number, _parsed(line, f"{file}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: it cannot be read: {error}") from None


def _is_zipped(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _plain_name(file: Path) -> str:
    """The name in lower case, without the ending of a zipped file."""
    return file.name.lower().removesuffix(".gz")


def _parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None


def _pieces(file: Path) -> Iterator[tuple[int, Row]]:
    """Passages of a text file."""
    title = file.name[: len(_plain_name(file))].rpartition(".")[0]
    pieces: list[str] = []
    for paragraph in _PARAGRAPHS.split(_content(file)):
        for part in _PART.findall(paragraph):
            if pieces and len(pieces[-1]) + len(part) + 2 <= PIECE:
                pieces[-1] += f"\n\n{part}"
            else:
                pieces.append(part)
    for number, piece in enumerate(pieces, 1):
        yield number, {"title": title, "text": piece}


def _content(file: Path) -> str:
    """A text file in UTF-8, with or without a mark of byte order, lines ended by "\\n"."""
    try:
        raw = gzip.decompress(file.read_bytes()) if _is_zipped(file) else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: it cannot be read: {error}") from None
    return _decoded(raw, file).replace("\r\n", "\n")


def _decoded(raw: bytes, file: Path, line: int = 1) -> str:
    """Text in UTF-8 that begins in a line of a file, without a mark of byte order."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise ValueError(
            f"{file}:{line}: not text in UTF-8 (byte {raw[error.start]:#04x}); convert it, such as with "
            "iconv -f latin1 -t utf-8"
        ) from None


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
