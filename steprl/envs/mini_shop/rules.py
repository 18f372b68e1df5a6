"""The rules of the shop: which commands a page allows, and where they lead. Pure functions of values."""

import dataclasses
from dataclasses import dataclass

from steprl.envs.mini_shop.commands import LONGEST, PLACEHOLDER, Command
from steprl.envs.mini_shop.records import Options, Product, normalise
from steprl.envs.mini_shop.shop import Shop

PAGES = ("home", "search_results", "item", "subpage", "done")
SUBPAGES = ("Description", "Features", "Reviews")
PER_PAGE = 10
"""Products on a page of search results."""

BUY, TO_SEARCH, TO_ITEM, NEXT, PREVIOUS = (
    "Buy Now", "Back to Search", "Back to Item", "Next >", "< Prev",
)  # fmt: skip


@dataclass(frozen=True)
class ShopState:
    """An episode so far, a value: keep it, and step from it as often as you like.

    Attributes:
        task: number of the task.
        page: one of `PAGES`.
        query: the last search.
        hits: numbers of the products that it found, best first.
        number: page of the search results, from 0.
        item: asin of the product that is looked at, or was bought; "" where there is none.
        subpage: which of `SUBPAGES` is open.
        options: what is selected of the item, in the order of selecting.
        steps: actions so far.
        history: the last steps as (what was seen, what was done).
        notice: what was wrong with the last action.
        done: the episode has ended.
    """

    task: int
    page: str = "home"
    query: str = ""
    hits: tuple[int, ...] = ()
    number: int = 0
    item: str = ""
    subpage: str = ""
    options: Options = ()
    steps: int = 0
    history: tuple[tuple[str, str], ...] = ()
    notice: str = ""
    done: bool = False


def listed(shop: Shop, state: ShopState) -> tuple[Product, ...]:
    """The products on this page of the search results."""
    first = state.number * PER_PAGE
    return tuple(shop.products[number] for number in state.hits[first : first + PER_PAGE])


def labels(shop: Shop, state: ShopState) -> tuple[str, ...]:
    """What can be clicked on this page."""
    if state.page == "search_results":
        has_next = (state.number + 1) * PER_PAGE < len(state.hits)
        turns = [PREVIOUS] * (state.number > 0) + [NEXT] * has_next
        return (*(product.asin for product in listed(shop, state)), *turns)
    if state.page == "item":
        values = (value for _, values in shop.product(state.item).options for value in values)
        return (*SUBPAGES, *dict.fromkeys(values), TO_SEARCH, BUY)
    return (TO_ITEM, TO_SEARCH, BUY) if state.page == "subpage" else ()


def commands(shop: Shop, state: ShopState) -> tuple[str, ...]:
    """The commands that this page allows; a search with any words stands as `PLACEHOLDER`."""
    if state.page == "done":
        return ()
    return (PLACEHOLDER, *(f"click[{label}]" for label in labels(shop, state)))


def act(shop: Shop, state: ShopState, command: Command, results: int) -> tuple[ShopState, str]:
    """The state after a command, and "" or why nothing happened.

    Args:
        results: products that a search finds at most.
    """
    if not command.verb:
        return state, f"`{command.text}` is neither search[words] nor click[label]"
    if command.verb == "search":
        if not command.argument:
            return state, "a search needs words between the brackets"
        query = command.argument[:LONGEST]
        hits = shop.index.search(query, results)
        return _go(
            state,
            "search_results",
            query=query,
            hits=hits,
            number=0,
            item="",
            options=(),
        ), ""
    label = _same(command.argument, labels(shop, state))
    if label is None:
        return state, f"there is no `{command.argument[:LONGEST]}` to click on this page"
    if label == BUY:
        return _go(state, "done"), ""
    if label == TO_SEARCH:
        return _go(state, "search_results", item="", options=()), ""
    if label == TO_ITEM:
        return _go(state, "item"), ""
    if state.page == "search_results":
        if label in (NEXT, PREVIOUS):
            turn = 1 if label == NEXT else -1
            return dataclasses.replace(state, number=state.number + turn), ""
        return _go(state, "item", item=label), ""
    if label in SUBPAGES:
        return _go(state, "subpage", subpage=label), ""
    return dataclasses.replace(state, options=_select(shop.product(state.item), state, label)), ""


def _go(state: ShopState, page: str, **changes: object) -> ShopState:
    changes = {"page": page, "subpage": "", **changes}
    return dataclasses.replace(state, **changes)  # type: ignore[arg-type]


def _same(argument: str, labels: tuple[str, ...]) -> str | None:
    return next((label for label in labels if normalise(label) == argument), None)


def _select(product: Product, state: ShopState, value: str) -> Options:
    """A value that several options have goes to the first that does not have it yet."""
    chosen = dict(state.options)
    names = [name for name, values in product.options if value in values]
    name = next((name for name in names if chosen.get(name) != value), names[0])
    return (*(pair for pair in state.options if pair[0] != name), (name, value))
