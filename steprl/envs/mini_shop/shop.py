"""A shop: its products, how they are searched, and the goals that it knows."""

import functools
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steprl.envs.mini_shop import catalogue
from steprl.envs.mini_shop.records import Goal, Options, Product
from steprl.envs.mini_shop.search import ProductIndex
from steprl.envs.wiki_search.records import read_rows

SPLITS = ("train", "valid", "test")
_OTHER_NAMES = {"dev": "valid", "validation": "valid"}


@dataclass(frozen=True, eq=False)
class Shop:
    """Products that can be searched, and goals about them.

    Attributes:
        products: in the order of the index.
        index: search over their texts.
        goals: of all splits; each is about one of the products.
        unknown: how many goals were left out because no product has their asin.
    """

    products: tuple[Product, ...]
    index: ProductIndex
    goals: tuple[Goal, ...]
    unknown: int = 0

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {product.asin: number for number, product in enumerate(self.products)}

    def product(self, asin: str) -> Product:
        """The product of an asin; KeyError if there is none."""
        return self.products[self._numbers[asin]]

    def number(self, asin: str) -> int:
        """The number of a product in the index."""
        return self._numbers[asin]

    def goals_of(self, split: str) -> tuple[Goal, ...]:
        """The goals of one split, or of "all"; there may be none."""
        return tuple(goal for goal in self.goals if split in ("all", goal.split))


def make_shop(
    products: Iterable[Product], goals: Iterable[Goal], other_texts: Iterable[str] = ()
) -> Shop:
    """The shop of products and goals, indexed. Goals about products that it lacks are left out.

    Args:
        products: each asin once.
        goals: of any split.
        other_texts: documents that only count in the weights of words: no search returns them.

    Raises:
        ValueError: no product, an asin twice, or no goal about any of the products.
        ImportError: bm25s is missing.
    """
    shop_products, goals = tuple(products), tuple(goals)
    asins = {product.asin.lower() for product in shop_products}
    if len(asins) < len(shop_products):
        raise ValueError("products: two of them have the same asin; each product needs its own")
    exact = {product.asin for product in shop_products}
    known_goals = tuple(goal for goal in goals if goal.asin in exact)
    index = ProductIndex([product.text for product in shop_products], tuple(other_texts))
    if not known_goals:
        raise ValueError(
            f"goals: none of the {len(goals)} is about one of the {len(shop_products)} products"
        )
    return Shop(shop_products, index, known_goals, len(goals) - len(known_goals))


@functools.cache
def small_shop(seed: int = 0) -> Shop:
    """The shop that ships with the project: `catalogue.products` and `catalogue.goals`."""
    return make_shop(catalogue.products(seed), catalogue.goals(seed))


def load_shop(
    products: str | Path, goals: str | Path, other_docs: str | Path | None = None
) -> Shop:
    """The shop of files: JSONL, JSON or parquet.

    Fields of a product: `asin`, `title`, `price`, `query`, `attributes` (a list), `options` (a list of
    `{name, values}`, or an object of lists); texts in `description` or `body_tokens`, `features` (a
    list) and `reviews` (a list); `category`, `categories` (a list) and `brand`, or both in
    `brand_and_category_tokens`. Fields of a goal: `asin`, `instruction`, `attributes`, `goal_options`
    (a list of `{name, value}`, or an object), `price_upper`, `split`. An instruction that does not
    name the price limit has it added. A row of `other_docs` has `tokens`, `text` or `contents`.

    A goal whose row names no split is train, valid or test (80, 10, 10 %) by a checksum of its
    instruction, attributes and options.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a row without a field that it needs; see also `make_shop`.
        ImportError: bm25s is missing, or pyarrow for parquet files.
    """
    shop_products = [_product(row, place) for place, row in read_rows(products)]
    shop_goals = [_goal(row, place) for place, row in read_rows(goals)]
    other_texts = [] if other_docs is None else [_text(row, p) for p, row in read_rows(other_docs)]
    return make_shop(shop_products, shop_goals, other_texts)


def _product(row: dict[str, Any], place: str) -> Product:
    asin, title = (_needed(row, name, place) for name in ("asin", "title"))
    category = str(row.get("category") or "")
    options = row.get("options") or []
    pairs = (
        options.items()
        if isinstance(options, dict)
        else [(item["name"], item["values"]) for item in options]
    )
    return Product(
        asin=asin,
        title=title,
        price=_price(row.get("price"), 100.0, place),
        query=str(row.get("query") or ""),
        categories=tuple(row.get("categories") or ([category] if category else [])),
        brand=str(row.get("brand") or row.get("brand_and_category_tokens") or ""),
        attributes=tuple(row.get("attributes") or ()),
        options=tuple((str(name), tuple(map(str, values))) for name, values in pairs),
        description=str(row.get("description") or row.get("body_tokens") or ""),
        features=tuple(row.get("features") or ()),
        reviews=tuple(map(str, row.get("reviews") or ())),
    )


def _goal(row: dict[str, Any], place: str) -> Goal:
    asin, instruction = (_needed(row, name, place) for name in ("asin", "instruction"))
    chosen = row.get("goal_options", row.get("options")) or []
    pairs = (
        chosen.items()
        if isinstance(chosen, dict)
        else [(item["name"], item["value"]) for item in chosen]
    )
    options: Options = tuple((str(name), str(value)) for name, value in pairs)
    attributes = tuple(row.get("attributes") or ())
    limit = _price(row.get("price_upper"), math.inf, place)
    key = json.dumps([instruction, attributes, options]).encode()
    split = row.get("split") or {8: "valid", 9: "test"}.get(zlib.crc32(key) % 10, "train")
    split = _OTHER_NAMES.get(split, split)
    if split not in SPLITS:
        raise ValueError(f"{place}: split {split!r}; rows are of {', '.join(SPLITS)}")
    if math.isfinite(limit) and f"{limit:.2f}" not in instruction:
        instruction = f"{instruction.rstrip('.')}, for {limit:.2f} dollars at most"
    return Goal(asin, instruction, attributes, options, limit, split)


def _needed(row: dict[str, Any], name: str, place: str) -> str:
    value = str(row.get(name) or "").strip()
    if not value:
        raise ValueError(f"{place}: no {name}; a row of products or goals needs one")
    return value


def _price(value: Any, default: float, place: str) -> float:
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: price {value!r} is not a number of dollars") from None


def _text(row: dict[str, Any], place: str) -> str:
    for name in ("tokens", "text", "contents"):
        if row.get(name):
            return str(row[name])
    raise ValueError(f"{place}: no text in a row of {', '.join(row) or 'nothing'}; add tokens")
