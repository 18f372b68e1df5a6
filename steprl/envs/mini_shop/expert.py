"""A demonstrator that knows which product the goal was made from: searches, selects, buys."""

from steprl.envs.mini_shop.commands import LONGEST
from steprl.envs.mini_shop.environment import MiniShop
from steprl.envs.mini_shop.rules import BUY, NEXT, PER_PAGE, PREVIOUS, TO_ITEM, ShopState
from steprl.tools import render_tool_call


def demonstrate(env: MiniShop, state: ShopState) -> str:
    """The next action, in the form that the environment asks for.

    It searches for the words of the goal, turns pages until the product is listed, opens it, selects
    what is wanted and not selected yet, and buys. From any state: if another product is open, or the
    one wanted was not found, it searches again, for the title at last.

    Raises:
        ValueError: the episode is over.
    """
    if state.done:
        raise ValueError("state: the episode is over; there is nothing left to show")
    command = next_command(env, state)
    return render_tool_call("env_step", {"command": command}) if env.tool_call else command


def next_command(env: MiniShop, state: ShopState) -> str:
    """What it does next, as a plain command."""
    goal = env.goal(state.task)
    if state.item == goal.asin:
        if state.page == "subpage":
            return f"click[{TO_ITEM}]"
        chosen = dict(state.options)
        offered = dict(env.shop.product(goal.asin).options)
        for name, value in goal.options:
            if value in offered.get(name, ()) and chosen.get(name) != value:
                return f"click[{value}]"
        return f"click[{BUY}]"
    number = env.shop.number(goal.asin)
    if state.page == "search_results" and number in state.hits:
        place = state.hits.index(number) // PER_PAGE
        if place == state.number:
            return f"click[{goal.asin}]"
        return f"click[{NEXT if place > state.number else PREVIOUS}]"
    return f"search[{_query(env, state)}]"


def _query(env: MiniShop, state: ShopState) -> str:
    """The first query that lists the product on the first page; else the one that lists it highest."""
    goal = env.goal(state.task)
    product = env.shop.product(goal.asin)
    number = env.shop.number(goal.asin)
    kind, features = product.query, " ".join(goal.attributes)
    chosen = " ".join(value for _, value in goal.options)
    best, best_place = product.title, env.results
    for query in (f"{kind} {features}", f"{kind} {features} {chosen}", product.title):
        hits = env.shop.index.search(query[:LONGEST], env.results)
        place = hits.index(number) if number in hits else env.results
        if place < PER_PAGE:
            return query[:LONGEST]
        if place < best_place:
            best, best_place = query, place
    return best[:LONGEST]
