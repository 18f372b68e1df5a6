"""The two scores of a purchase: tables made by hand, identities, and the fuzzy ratio."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.mini_shop import Goal, Product, full_score, small_score, token_set_ratio
from steprl.envs.mini_shop.catalogue import goals, products
from steprl.envs.mini_shop.scoring import SUCCESS, normalise_colour, title_words, type_score

SHIRT = Product(
    asin="A1",
    title="Ferry linen shirt, long sleeves",
    price=30.0,
    query="men's shirts",
    categories=("Clothing", "Men", "Shirts"),
    attributes=("machine wash", "long sleeves", "slim fit"),
    options=(("color", ("dark green", "navy")), ("size", ("small", "large"))),
    description="Dries over night.",
    features=("Button closure",),
)
OTHER = dataclasses.replace(SHIRT, asin="A2", title="Harbor cotton shirt", price=50.0)
LAMP = Product("B1", "Brass desk lamp", 80.0, "lamps", ("Home", "Office"), attributes=("dimmable",))
GOAL = Goal(
    "A1",
    "A shirt.",
    ("machine wash", "button closure"),
    (("color", "dark green"), ("size", "large")),
    price_upper=40.0,
)
CHOSEN = {"color": "dark green", "size": "large"}


@pytest.mark.parametrize(
    ("product", "options", "value"),
    [
        (SHIRT, CHOSEN, 1.0),
        (SHIRT, {" Color": "Dark  GREEN", "size": "large"}, 1.0),  # normalised
        (SHIRT, {"color": "navy", "size": "large"}, 0.875),  # .35 + .30 + .125 + .10
        (SHIRT, {"size": "dark green", "color": "large"}, 0.75),  # by name, not by value
        (SHIRT, {}, 0.75),
        # Another product: .30 + .25 + 0, halved; it costs too much.
        (OTHER, CHOSEN, 0.275),
        (dataclasses.replace(OTHER, price=40.0), CHOSEN, 0.325),
        (dataclasses.replace(OTHER, price=40.0), {}, 0.2),
        (LAMP, {}, 0.0),
        (dataclasses.replace(LAMP, price=40.0), {}, 0.05),
        (dataclasses.replace(LAMP, description="Machine wash? No."), {}, 0.075),
    ],
)
def test_small_score_by_hand(product, options, value):
    assert small_score(GOAL, product, options).value == pytest.approx(value, abs=1e-12)


def test_the_small_score_says_what_it_is_made_of():
    found = small_score(GOAL, dataclasses.replace(OTHER, features=()), {"size": "large"})
    assert (found.product, found.attributes, found.options, found.price) == (0.0, 0.5, 0.5, 0.0)
    assert found.value == pytest.approx((0.30 * 0.5 + 0.25 * 0.5) / 2)


def test_a_goal_that_asks_for_nothing_is_met_by_its_product():
    goal = Goal("A1", "Any.")
    assert goal.price_upper == math.inf
    assert small_score(goal, SHIRT, {"size": "small"}).value == 1.0
    assert full_score(goal, SHIRT, SHIRT, {}).value == 1.0


@pytest.mark.parametrize(
    ("product", "options", "value"),
    [
        (SHIRT, CHOSEN, 1.0),
        (OTHER, CHOSEN, 4 / 5),  # the price; the same query makes it the same type
        (SHIRT, {"color": "navy", "size": "large"}, 4 / 5),
        (SHIRT, {"size": "dark green", "color": "large"}, 1.0),  # values, whatever their names
        (SHIRT, {}, 3 / 5),
        (SHIRT, {"color": "dark red", "size": "large"}, 1.0),  # both are "dark": WebShop's rule
        (SHIRT, {"color": "green", "size": "large"}, 4 / 5),
        (dataclasses.replace(SHIRT, features=()), CHOSEN, 4 / 5),
        (dataclasses.replace(SHIRT, attributes=("wash in machine",)), CHOSEN, 1.0),  # fuzzy
        (LAMP, CHOSEN, 0.0),  # no word of the title
    ],
)
def test_full_score_by_hand(product, options, value):
    found = full_score(GOAL, SHIRT, product, options)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.attributes <= 1 and found.options <= 1


@pytest.mark.parametrize(
    ("title", "query", "categories", "expected"),
    [
        ("linen shirt", "Shirts", (), 1.0),  # the query
        ("linen shirt", "x", ("clothing", "Men"), 1.0),  # two categories
        ("linen shirt b", "x", (), 1.0),  # three words of ten
        ("linen shirt", "x", ("Clothing",), 0.5),  # two of ten are not above a fifth
        ("linen", "x", (), 0.5),  # one of ten is not less than a tenth
        ("lamp", "shirts", ("Clothing", "Men"), 0.0),  # whatever else is the same
    ],
)
def test_type_by_query_categories_and_title(title, query, categories, expected):
    wanted = "A linen shirt with b c d e f g h i, 2"
    goal_product = Product("A", wanted, 1.0, "shirts", ("Clothing", "Men", "Shirts"))
    assert len(title_words(wanted)) == 10
    assert type_score(Product("B", title, 1.0, query, categories), goal_product) == expected


def test_less_than_a_tenth_of_a_title_is_hardly_the_same_type():
    goal_product = Product("A", " ".join("abcdefghijklmnopqrstuvwxyz"), 1.0, "letters")
    few = Product("B", "b c 1", 1.0, "letters")
    assert type_score(few, goal_product) == 0.1
    assert full_score(Goal("A", "?"), goal_product, few, {}).value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ("machine wash", "wash machine", 100),
        ("machine wash", "machine washable", 86),  # 2 * 12 / 28
        ("water resistant", "heat resistant", 83),  # 2 * 12 / 29: "resistant ", and "at"
        ("moisture wicking", "wicking", 100),  # one has all words of the other
        ("slim fit", "regular fit", 55),  # "fit" against "fit slim": 2 * 3 / 11
        ("3x-large", "x-large", 93),  # 2 * 7 / 15; "large" is shared
        ("red", "blue", 29),  # 2 * 1 / 7
        ("wide", "wider", 89),
        ("", "", 0),
        ("!?", "red", 0),
        ("long_sleeve", "Long Sleeve", 100),
        ("crème", "crme", 100),  # accented letters are left out
    ],
)
def test_token_set_ratio_by_hand(first, second, ratio):
    assert token_set_ratio(first, second) == token_set_ratio(second, first) == ratio


@pytest.mark.parametrize(("letters", "met"), [(11, False), (12, True)])
def test_phrases_are_alike_above_85(letters, met):
    """Four letters more: 2 * 11 / 26 is 85 of a hundred, 2 * 12 / 28 is 86."""
    short, long = "abcdefghijkl"[:letters], "abcdefghijkl"[:letters] + "mnop"
    assert token_set_ratio(short, long) == 85 + met
    goal = Goal("A1", "?", (long,), (("style", long),))
    product = dataclasses.replace(SHIRT, attributes=(short,))
    found = full_score(goal, SHIRT, product, {"style": short})
    assert (found.attributes, found.options) == (met, met)


@settings(max_examples=200, deadline=None)
@given(*[st.text("abcdeé -_", max_size=12)] * 2)
def test_token_set_ratio_is_that_of_thefuzz(first, second):
    fuzz = pytest.importorskip("thefuzz.fuzz")
    assert token_set_ratio(first, second) == fuzz.token_set_ratio(first, second)


@pytest.mark.parametrize(
    ("value", "colour"),
    [("Black Forest", "black"), ("violet lavender", "lavender"), ("x-large", "x-large"),
     ("dark red", "dark"), ("a-navy  blue", "blue"), ("", "")],
)  # fmt: skip
def test_colours_are_the_first_word_of_the_alphabet(value, colour):
    assert normalise_colour(value) == colour


# What holds for every goal and product.

CASES = st.tuples(
    st.sampled_from(goals()), st.sampled_from(products()), st.randoms(use_true_random=False)
)


def some_options(product, random):
    return {
        name: random.choice(values) for name, values in product.options if random.random() < 0.7
    }


def product_of(goal):
    return next(product for product in products() if product.asin == goal.asin)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_scores_are_in_the_unit_interval_and_another_product_is_never_a_small_success(case):
    goal, product, random = case
    options = some_options(product, random)
    small = small_score(goal, product, options)
    full = full_score(goal, product_of(goal), product, options)
    assert 0.0 <= small.value <= 1.0 and 0.0 <= full.value <= 1.0
    assert (small.value >= SUCCESS) <= (product.asin == goal.asin)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_the_halving_rule(case):
    """Renaming the product takes its own weight, and half of the rest."""
    goal, product, random = case
    options = some_options(product, random)
    own = small_score(goal, dataclasses.replace(product, asin=goal.asin), options).value
    other = small_score(goal, dataclasses.replace(product, asin="Z9"), options).value
    assert other == pytest.approx((own - 0.35) / 2, abs=1e-12)


def test_the_own_product_with_all_options_within_the_price_is_worth_one():
    for goal in goals():
        product = product_of(goal)
        assert product.price <= goal.price_upper
        chosen = dict(goal.options)
        assert small_score(goal, product, chosen).value == 1.0
        assert full_score(goal, product, product, chosen).value == 1.0


def test_any_lack_costs_something():
    for goal in goals()[::7]:
        product, chosen = product_of(goal), dict(goal.options)
        dear = dataclasses.replace(product, price=goal.price_upper + 1)
        assert small_score(goal, dear, chosen).value == pytest.approx(0.9)
        for name in chosen:
            rest = {other: value for other, value in chosen.items() if other != name}
            lost = 0.25 / len(chosen)
            assert small_score(goal, product, rest).value == pytest.approx(1 - lost)
            assert full_score(goal, product, product, rest).value < SUCCESS
