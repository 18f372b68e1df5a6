"""What a shop is about: products, goals, and how their words are compared."""

import dataclasses
import functools
import math
import re

Options = tuple[tuple[str, str], ...]
"""Selected or wanted options, as pairs (name, value)."""

_WORD = re.compile(r"[a-z0-9]+")


@dataclasses.dataclass(frozen=True)
class Product:
    """Something on sale; all texts but titles and brands are in lower case where it matters.

    Attributes:
        asin: the identifier that is clicked.
        title: name, as search results show it.
        price: in dollars.
        query: the kind of product, such as "rain jackets".
        categories: from the widest to the narrowest.
        brand: who makes it.
        attributes: short phrases, such as "machine washable".
        options: what can be chosen, as (name, values).
        description, features, reviews: texts of the pages below the item.
    """

    asin: str
    title: str
    price: float
    query: str
    categories: tuple[str, ...] = ()
    brand: str = ""
    attributes: tuple[str, ...] = ()
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    description: str = ""
    features: tuple[str, ...] = ()
    reviews: tuple[str, ...] = ()

    @functools.cached_property
    def text(self) -> str:
        """All that is known of it but price and reviews, normalised; what is searched."""
        chosen = (part for name, values in self.options for part in (name, *values))
        parts = (
            self.title, self.brand, *self.categories, self.query, self.description,
            *self.features, *self.attributes, *chosen,
        )  # fmt: skip
        return normalise(" ".join(parts))


@dataclasses.dataclass(frozen=True)
class Goal:
    """What somebody wants to have bought.

    Attributes:
        asin: the product that the goal was made from.
        instruction: what the agent is told.
        attributes: phrases that the product should have.
        options: what should be chosen.
        price_upper: dollars that it may cost; infinity where the goal does not say.
        split: "train", "valid" or "test".
    """

    asin: str
    instruction: str
    attributes: tuple[str, ...] = ()
    options: Options = ()
    price_upper: float = math.inf
    split: str = "train"


def normalise(text: str) -> str:
    """Lower case, and one blank between words.

    Example:
        >>> normalise(" Hot  Pink ")
        'hot pink'
    """
    return " ".join(text.lower().split())


def words(text: str) -> list[str]:
    """Letters and digits in lower case, in order: what search compares.

    Example:
        >>> words("Men's T-Shirt, 2 pieces")
        ['men', 's', 't', 'shirt', '2', 'pieces']
    """
    return _WORD.findall(text.lower())
