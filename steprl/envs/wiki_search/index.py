"""BM25 over passages: built once, kept on disk, memory-mapped when used."""

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from steprl.envs.wiki_search.records import (
    TEXT_SUFFIXES,
    Passage,
    data_files,
    passages_of,
    read_rows,
)

_FORMAT = 1  # to be raised when an index of before must not be read any more
_PASSAGES, _OFFSETS = "passages.jsonl", "offsets.npy"


class PassageIndex:
    """Passages that can be searched. Opened from a folder; the arrays and texts stay on disk.

    Scores are those of Lucene's BM25 (k1 = 1.5, b = 0.75) over title and text, English stop words
    left out (https://arxiv.org/abs/2407.03618, section 2). Any number of processes may share it.

    Args:
        folder: what `build_index` wrote.

    Raises:
        FileNotFoundError: there is no index in the folder.
        ImportError: bm25s is missing.
    """

    def __init__(self, folder: str | Path):
        bm25s = _bm25s()
        self.folder = Path(folder)
        if not (self.folder / _OFFSETS).is_file():
            raise FileNotFoundError(f"{self.folder}: no index here; make one with build_index")
        self._bm25: Any = bm25s.BM25.load(self.folder, mmap=True, show_progress=False)
        self._offsets = np.load(self.folder / _OFFSETS, mmap_mode="r")
        with open(self.folder / _PASSAGES, "rb") as file:
            self._texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __reduce__(self) -> Any:  # a copy in another process opens the same files
        return PassageIndex, (self.folder,)

    def passage(self, number: int) -> Passage:
        """The passage of a number that `search` returned."""
        if not 0 <= number < len(self):
            raise IndexError(f"passage {number} of {len(self)}")
        line = self._texts[int(self._offsets[number]) : int(self._offsets[number + 1])]
        return Passage(*json.loads(line))

    def search(self, query: str, count: int = 5) -> list[int]:
        """Numbers of the best passages, best first; equal scores in the order of the passages.

        A passage that shares no word with the query is never among them, so there may be fewer.
        """
        words = _tokenise([query])[0]
        scores = self._bm25.get_scores(words) if words else np.zeros(0, np.float32)
        count = min(count, int(np.count_nonzero(scores > 0)))
        if count < 1:
            return []
        # bm25s would pick with jax on the accelerator, and leave the order of ties open.
        best = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        return best[np.lexsort((best, -scores[best]))][:count].tolist()


def build_index(passages: Iterable[Passage], folder: str | Path) -> PassageIndex:
    """Write an index and open it. Of passages with the same text the first is kept.

    Args:
        passages: titles and texts.
        folder: where it is to be; must not exist. It appears there when it is complete.

    Raises:
        ValueError: there is no passage with a word in it.
        FileExistsError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists; open it with PassageIndex, or choose another")
    bm25s = _bm25s()
    by_text: dict[str, Passage] = {}
    for passage in passages:
        by_text.setdefault(" ".join(passage.text.split()), passage)
    unique = list(by_text.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        words = _tokenise([f"{p.title}. {p.text}" for p in unique])
        if not any(words):
            raise ValueError("passages: none of them has a word to search for")
        bm25 = bm25s.BM25()
        bm25.index(words, show_progress=False)
        bm25.save(part, show_progress=False)
        lines = [json.dumps(p, ensure_ascii=False).encode() + b"\n" for p in unique]
        (part / _PASSAGES).write_bytes(b"".join(lines))
        np.save(part / _OFFSETS, np.cumsum([0, *map(len, lines)], dtype=np.int64))
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            if not (folder / _OFFSETS).is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return PassageIndex(folder)


def open_index(passages: str | Path, cache: str | Path | None = None) -> PassageIndex:
    """The index of a file or folder of passages, built the first time and after changes.

    Args:
        passages: JSONL, JSON or parquet with `title` and `text` (or see `passages_of`), or text files,
            see `read_rows`.
        cache: folder of indices, one folder each; default `~/.cache/steprl/wiki_search`.

    Raises:
        FileNotFoundError, ValueError: see `read_rows` and `passages_of`.
    """
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(base) / "steprl" / "wiki_search"
    files = [(str(file.resolve()), file.stat()) for file in data_files(passages, TEXT_SUFFIXES)]
    source = [_FORMAT, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)]
    fingerprint = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    folder = Path(cache).expanduser() / fingerprint
    if folder.is_dir():
        return PassageIndex(folder)
    rows = read_rows(passages, TEXT_SUFFIXES)
    all_passages = (item for place, row in rows for item in passages_of(row, place))
    return build_index(all_passages, folder)


def _tokenise(texts: list[str]) -> list[list[str]]:
    return _bm25s().tokenize(texts, stopwords="en", return_ids=False, show_progress=False)


def _bm25s() -> Any:
    # Only when an index is opened: bm25s asks for a jax device while it is imported.
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("wiki_search needs bm25s: pip install 'steprl[search]'") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # else it logs every index that it builds
    return bm25s
