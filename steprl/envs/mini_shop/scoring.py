"""How well a purchase meets a goal: the two scores of WebShop in pure functions.

WebShop: https://arxiv.org/abs/2207.01206. The small score is the one of StepPO's small shop.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from steprl.envs.mini_shop.records import Goal, Product, normalise

SUCCESS = 0.999
"""The lowest score with which a purchase counts as a success."""

FUZZY = 85
"""Phrases are the same when their `token_set_ratio` is above it."""

# In alphabetical order, and the first that occurs in a value stands for it: so "dark red" is "dark".
_COLOURS = """
alabaster almond amber amethyst apricot aqua azure banana beige black blue blush bronze brown
burgundy camel camo caramel champagne charcoal cherry chestnut chocolate cinnamon cobalt coffee copper
coral cream crimson dark denim ebony emerald fuchsia ginger gold graphite gray green grey heather honey
indigo ivory jade khaki lavender lemon leopard light lilac lime magenta maroon mauve mint mocha
multicolor mustard natural navy nude ocean olive orange orchid peach pearl pink platinum plum purple
rainbow raspberry red rose ruby rust sage salmon sand sapphire scarlet silver sky slate smoke steel stone
tan taupe teal tomato topaz turquoise umber vanilla violet walnut wheat white wine yellow
""".split()
_NO_WORD = re.compile(r"[\W_]+")
_LATIN = re.compile("[\x80-\xff]")
_PLAIN = frozenset("a an and at by for from in of on or s the to up with".split())


class Score(NamedTuple):
    """A score and what it is made of.

    Attributes:
        value: the score, in [0, 1].
        product: small: 1 for the goal's own product, else 0; full: how near its type is, 0 to 1.
        attributes, options: shares of those asked for that the purchase has; 1 if none is asked for.
        price: 1 if it may cost so much, else 0.
    """

    value: float
    product: float
    attributes: float
    options: float
    price: float


def small_score(goal: Goal, product: Product, options: Mapping[str, str]) -> Score:
    """The score of StepPO's small shop.

        s = .35 same + .30 attributes + .25 options + .10 price,   halved for another product

    An attribute is met when its words stand in the texts of the product; an option when it is selected
    by its name, exactly.

    Args:
        goal: what was wanted.
        product: what was bought.
        options: what was selected, value by name.
    """
    same = float(product.asin == goal.asin)
    wanted = [normalise(attribute) for attribute in goal.attributes]
    attributes = _share([attribute in product.text for attribute in wanted])
    chosen = {normalise(name): normalise(value) for name, value in options.items()}
    hits = [chosen.get(normalise(name)) == normalise(value) for name, value in goal.options]
    price = float(product.price <= goal.price_upper)
    value = (35 * same + 30 * attributes + 25 * _share(hits) + 10 * price) / 100  # 1.0 exactly
    return Score(value if same else value / 2, same, attributes, _share(hits), price)


def title_words(title: str) -> list[str]:
    """The words of a title that may say what a thing is, in lower case.

    Example:
        >>> title_words("A Jacket for the rain, with 2 pockets")
        ['jacket', 'rain', 'pockets']
    """
    words = _NO_WORD.sub(" ", title.lower()).split()
    return [word for word in words if word not in _PLAIN and not word.isdigit()]


def type_score(
    product: Product, goal_product: Product, nouns: Callable[[str], Sequence[str]] = title_words
) -> float:
    """How near a product's type is to the wanted one's: 1, .5, .1 or 0.

    1 where the kinds are the same, two categories are shared, or more than a fifth of the nouns of the
    wanted title stand in the other; .1 where less than a tenth of them does and 0 where none does,
    whatever else is the same; otherwise .5.
    """
    goal_nouns, product_nouns = list(nouns(goal_product.title)), set(nouns(product.title))
    title = len(product_nouns & set(goal_nouns)) / len(goal_nouns) if goal_nouns else 0.2
    if title == 0.0:
        return 0.0
    if title < 0.1:
        return 0.1
    categories = [{normalise(name) for name in p.categories} for p in (product, goal_product)]
    same = normalise(product.query) == normalise(goal_product.query)
    return 1.0 if same or len(categories[0] & categories[1]) >= 2 or title > 0.2 else 0.5


def full_score(
    goal: Goal,
    goal_product: Product,
    product: Product,
    options: Mapping[str, str],
    nouns: Callable[[str], Sequence[str]] = title_words,
) -> Score:
    """The reward of WebShop (https://arxiv.org/abs/2207.01206).

        s = r_type (attributes met + options met + price met) / (attributes + options + 1)

    An attribute is met when it is like one of the product's (fuzzy ratio above 85) or stands in its
    title, features or description; an option when any selected value is like it, colours by their
    first colour word.

    Args:
        goal: what was wanted.
        goal_product: the product that the goal was made from.
        product: what was bought.
        options: what was selected, value by name.
        nouns: the nouns of a title.

    Note:
        WebShop finds nouns with a tagger (spaCy). Here all words of a title but the plainest stand
        for them, which needs none; pass `nouns` for another choice. The list of colour words is ours.
    """
    texts = (product.title.lower(), " ".join(product.features).lower(), product.description.lower())
    met = [_attribute_met(normalise(wanted), product, texts) for wanted in goal.attributes]
    wanted_options = [normalise_colour(value) for _, value in goal.options]
    selected = [normalise_colour(value) for value in options.values()]
    hits = [
        any(token_set_ratio(value, wanted) > FUZZY for value in selected)
        for wanted in wanted_options
    ]
    price = float(product.price <= goal.price_upper)
    kind = type_score(product, goal_product, nouns)
    value = kind * (sum(met) + sum(hits) + price) / (len(met) + len(hits) + 1)
    return Score(value, kind, _share(met), _share(hits), price)


def normalise_colour(value: str) -> str:
    """The first colour word, alphabetically, that occurs in an option; the option if there is none.

    Example:
        >>> normalise_colour("A-Dark Green"), normalise_colour("x-large")
        ('dark', 'x-large')
    """
    value = normalise(value)
    return next((colour for colour in _COLOURS if colour in value), value)


@functools.lru_cache(maxsize=65536)
def token_set_ratio(first: str, second: str) -> int:
    """How alike two phrases are, 0 to 100, whatever the order of their words and how often they occur.

    The best of three ratios: shared words against either phrase, and both phrases, each with its
    shared words first and all sorted. Accented letters are left out. A ratio is
    `100 * 2 L / (m + n)` of two texts with m and n characters and a longest common subsequence of L.
    It is the number that the package thefuzz gives.

    Example:
        >>> token_set_ratio("machine wash", "Machine-wash cold"), token_set_ratio("red", "blue")
        (100, 29)
    """
    words_a, words_b = (
        set(_NO_WORD.sub(" ", _LATIN.sub("", text).lower()).split()) for text in (first, second)
    )
    if not words_a or not words_b:
        return 0
    shared = " ".join(sorted(words_a & words_b))
    rest_a, rest_b = (" ".join(sorted(rest)) for rest in (words_a - words_b, words_b - words_a))
    if shared and not (rest_a and rest_b):
        return 100
    full_a, full_b = f"{shared} {rest_a}".strip(), f"{shared} {rest_b}".strip()
    ratios = [_ratio(full_a, full_b)]
    if shared:
        ratios += [_ratio(shared, full_a), _ratio(shared, full_b)]
    return round(max(ratios))


def _ratio(first: str, second: str) -> float:
    row = [0] * (len(second) + 1)  # of common subsequences of what was read so far
    for letter in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = diagonal + 1 if letter == other else max(above, row[place - 1])
            diagonal = above
    return 100 * 2 * row[-1] / (len(first) + len(second))


def _attribute_met(wanted: str, product: Product, texts: Sequence[str]) -> bool:
    similar = any(token_set_ratio(attribute, wanted) > FUZZY for attribute in product.attributes)
    return similar or any(wanted in text for text in texts)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 1.0
