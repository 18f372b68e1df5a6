"""The small catalogue: some 150 invented products and goals about them, always the same ones."""

import functools
import random
import zlib
from collections.abc import Sequence
from itertools import combinations
from typing import TypeVar

from steprl.envs.mini_shop.goods import (
    ATTRIBUTES,
    BRANDS,
    INSTRUCTIONS,
    KINDS,
    OPENINGS,
    REVIEWS,
    VALUES,
    Kind,
)
from steprl.envs.mini_shop.records import Goal, Options, Product

PER_KIND = 9
"""Products of each kind."""

GOALS = 6
"""Goals about a product, at most: as many as there are selections of its options."""

_Item = TypeVar("_Item")


class _Chance:
    """Draws that rest on `random()` alone, whose numbers Python promises not to change."""

    def __init__(self, seed: str):
        self._random = random.Random(zlib.crc32(seed.encode()))

    def below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def one(self, items: Sequence[_Item]) -> _Item:
        return items[self.below(len(items))]

    def some(self, items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
        """So many of the items, in the order in which they are given."""
        remaining = list(range(len(items)))
        chosen = sorted(remaining.pop(self.below(len(remaining))) for _ in range(count))
        return tuple(items[place] for place in chosen)


@functools.cache
def products(seed: int = 0) -> tuple[Product, ...]:
    """Invented products, the kinds one after the other.

    No two of a kind have the same attributes, nor has one all attributes of another: so its
    attributes distinguish each from all others.
    """
    chance = _Chance(f"mini_shop products {seed}")
    numbers = [f"S{number}" for number in range(1000, 10000)]
    result: list[Product] = []
    for kind in KINDS:
        sets: list[frozenset[str]] = []
        while len(sets) < PER_KIND:
            attributes = chance.some(kind.attributes, 3 + chance.below(2))
            attribute_set = frozenset(attributes)
            if any(attribute_set <= old or old <= attribute_set for old in sets):
                continue
            sets.append(attribute_set)
            asin = numbers.pop(chance.below(len(numbers)))
            result.append(_product(kind, asin, attributes, chance))
    return tuple(result)


def _product(kind: Kind, asin: str, attributes: tuple[str, ...], chance: _Chance) -> Product:
    brand, style = chance.one(BRANDS), chance.one(kind.styles)
    named = chance.some(attributes, 2)
    opening = chance.one(OPENINGS).format(brand=brand, noun=kind.noun, style=style)
    options = []
    for name, pool in kind.options:
        values = VALUES[pool]
        options.append((name, chance.some(values, min(len(values), 3 + chance.below(3)))))
    stars = 30 + chance.below(20)
    cents = chance.one((0, 49, 95, 99))
    return Product(
        asin=asin,
        title=f"{brand} {style} {kind.noun}, {', '.join(named)}",
        price=kind.low + chance.below(kind.high - kind.low) + cents / 100,
        query=kind.query,
        categories=kind.categories,
        brand=brand,
        attributes=attributes,
        options=tuple(options),
        description=" ".join([opening, *(ATTRIBUTES[name] for name in attributes)]),
        features=tuple(f"{name.capitalize()}: {ATTRIBUTES[name]}" for name in attributes),
        reviews=(f"{stars / 10} of 5 stars", *chance.some(REVIEWS, 2)),
    )


@functools.cache
def goals(seed: int = 0) -> tuple[Goal, ...]:
    """Goals about `products(seed)`, one product after the other.

    Each names attributes that no other product of the kind has together, one value of every option,
    and a price. A checksum of the instruction decides that a fifth of them is "valid".
    """
    kinds = {kind.query: kind for kind in KINDS}
    catalogue = products(seed)
    result = []
    for product in catalogue:
        chance = _Chance(f"mini_shop goals {seed} {product.asin}")
        others = [o.attributes for o in catalogue if o.query == product.query and o != product]
        distinctive = [
            chosen
            for size in (2, 3, 4)
            for chosen in combinations(product.attributes, min(size, len(product.attributes)))
            if not any(set(chosen) <= set(attributes) for attributes in others)
        ]
        shortest = min(map(len, distinctive))
        distinctive = [chosen for chosen in distinctive if len(chosen) == shortest]
        selections: dict[Options, None] = {}
        for _ in range(GOALS):
            options = tuple((name, chance.one(values)) for name, values in product.options)
            selections.setdefault(options)
        for options in selections:
            price = 5.0 * (product.price // 5 + 1 + chance.below(4))
            text = chance.one(INSTRUCTIONS)
            attributes = chance.one(distinctive)
            instruction = _instruction(text, kinds[product.query], attributes, options, price)
            held_out = zlib.crc32(instruction.encode()) % 5 == 0
            result.append(
                Goal(
                    product.asin, instruction, attributes, options, price,
                    "valid" if held_out else "train",
                )
            )  # fmt: skip
    return tuple(result)


def _instruction(
    text: str, kind: Kind, attributes: tuple[str, ...], options: Options, price: float
) -> str:
    plural = kind.noun.endswith("s")
    article = "a pair of" if plural else "an" if kind.noun[0] in "aeiou" else "a"
    chosen = " and ".join(f"{name} {value}" for name, value in options)
    fields = {
        "a noun": f"{article} {kind.noun}",
        "query": kind.query,
        "attributes": f"{', '.join(attributes[:-1])} and {attributes[-1]}",
        "options": f" Take {chosen}." if chosen else "",
        "price": f" It may cost {price:.0f} dollars at most.",
    }
    return text.format(**fields)
