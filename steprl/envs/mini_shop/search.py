"""Search over the products of a shop: BM25, built in memory."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from steprl.envs.mini_shop.records import words


class ProductIndex:
    """Which products share words with a query. A thousand of them are indexed in a moment.

    Scores are those of Lucene's BM25 (k1 = 1.5, b = 0.75; https://arxiv.org/abs/2407.03618, section
    2) over letters and digits in lower case, no word left out.

    Args:
        texts: what is searched, one text a product.
        other_texts: documents that words are weighed by, and that are never found.

    Raises:
        ValueError: there is no text with a word in it.
        ImportError: bm25s is missing.
    """

    def __init__(self, texts: Sequence[str], other_texts: Sequence[str] = ()):
        tokens = [words(text) for text in (*texts, *other_texts)]
        if not texts or not any(tokens):
            raise ValueError("products: there is none with a word to search for")
        self._given = (tuple(texts), tuple(other_texts))
        self._size = len(texts)
        self._bm25: Any = _bm25s().BM25()
        self._bm25.index(tokens, show_progress=False)

    def __len__(self) -> int:
        return self._size

    def __reduce__(self) -> Any:  # smaller than the index, and independent of how bm25s keeps it
        return ProductIndex, self._given

    def search(self, query: str, count: int = 50) -> tuple[int, ...]:
        """Numbers of the best products, best first; equal scores in the order of the products.

        A product that shares no word with the query is never among them.
        """
        tokens = words(query)
        if not tokens:
            return ()
        scores = self._bm25.get_scores(tokens)[: self._size]
        best = np.flatnonzero(scores > 0)
        return tuple(best[np.lexsort((best, -scores[best]))][:count].tolist())


def _bm25s() -> Any:
    # Only when an index is built: bm25s asks for a jax device while it is imported.
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("mini_shop needs bm25s: pip install 'steprl[search]'") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # else it logs every index that it builds
    return bm25s
