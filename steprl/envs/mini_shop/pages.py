"""What the agent sees of a page, and the prompt that is rendered from the state each step."""

import re

from steprl.envs.mini_shop.rules import PER_PAGE, ShopState, labels, listed
from steprl.envs.mini_shop.shop import Shop
from steprl.tools import render_tool_call

SYSTEM = (
    "You shop in a small web shop. Find the product that fits the shopping instruction, select the "
    "options that it names, and buy it."
)
NOTICE = "Nothing was done: {reason}. The page is as it was.\n\n"

_PLAIN = "Reply with one command and nothing else, such as search[green tea] or click[Buy Now]."
_CALL = f"""Reply with one call of env_step, such as:
{render_tool_call("env_step", {"command": "search[green tea]"})}"""
# Neither a text of the shop nor a query may open a turn of the chat, or look like a call.
_ACTIVE = re.compile(r"<(?=\||/?(?:tool_call|tool_response|answer)>)")


def page(shop: Shop, state: ShopState, text_length: int) -> str:
    """The page that the state shows.

    Args:
        text_length: characters of a description, and of all features; a tenth of it for a title.
    """
    text = {"home": _home, "search_results": _results, "item": _item, "subpage": _subpage}.get(
        state.page, _done
    )(shop, state, text_length)
    notice = NOTICE.format(reason=state.notice) if state.notice else ""
    return quiet(notice + text)


def user_prompt(
    instruction: str,
    seen: str,
    history: tuple[tuple[str, str], ...],
    allowed: tuple[str, ...],
    step: int,
    max_steps: int,
    tool_call: bool,
) -> str:
    """Shopping instruction, observation, recent history, available actions, instructions.

    Args:
        instruction: what is to be bought.
        seen: the page.
        history: the last steps as (what was seen, what was done), already shortened.
        allowed: commands that the page allows.
        step, max_steps: this step, from 1, and how many there are.
        tool_call: ask for a tool call, not for a plain command.
    """
    first_step = step - len(history)
    recent = (
        f"[Observation {number}]\n{observation}\n[Action {number}]\n{quiet(action)}"
        for number, (observation, action) in enumerate(history, first_step)
    )
    sections = (
        ("Shopping Instruction", quiet(instruction)),
        ("Current Observation", seen),
        ("Recent History", "\n\n".join(recent) or "None yet."),
        ("Available Actions", quiet("\n".join(f"- {command}" for command in allowed)) or "None."),
        ("Instructions", instructions(step, max_steps, tool_call)),
    )
    return "\n\n".join(f"## {name}\n{text}" for name, text in sections)


def instructions(step: int, max_steps: int, tool_call: bool) -> str:
    """What to do, in which form, and how much time is left."""
    return "\n".join(
        (
            "- Do one of the available actions; in a search, put a few words in place of <your query>.",
            "- Buy only when the product fits and its options are selected; buying ends the task.",
            f"- This is step {step} of {max_steps}.",
            f"- {_CALL if tool_call else _PLAIN}",
        )
    )


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, and a sign where there were more."""
    text = text.strip()
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."


def quiet(text: str) -> str:
    """The text without anything that a chat or a parser could take for its own."""
    return _ACTIVE.sub("< ", text)


def _home(shop: Shop, state: ShopState, text_length: int) -> str:
    return f"Home\n{len(shop.products)} products. Search for one with search[words]."


def _results(shop: Shop, state: ShopState, text_length: int) -> str:
    if not state.hits:
        return f"Search Results for: {state.query}\nNo product has any of these words."
    pages = -(-len(state.hits) // PER_PAGE)
    lines = [
        f"{product.asin} | {shorten(product.title, text_length // 10)} | ${product.price:.2f}"
        for product in listed(shop, state)
    ]
    head = f"Search Results for: {state.query}\nPage {state.number + 1} of {pages}"
    return "\n".join((head, *lines, *_buttons(shop, state)))


def _item(shop: Shop, state: ShopState, text_length: int) -> str:
    product, chosen = shop.product(state.item), dict(state.options)
    lines = [
        f"Item {product.asin}",
        f"Title: {shorten(product.title, text_length // 10)}",
        f"Price: ${product.price:.2f}",
        *([f"Category: {' > '.join(product.categories)}"] if product.categories else []),
    ]
    for name, values in product.options:
        lines.append(f"{name} (selected: {chosen.get(name, 'nothing')}): {', '.join(values)}")
    return "\n".join((*lines, *_buttons(shop, state)))


def _subpage(shop: Shop, state: ShopState, text_length: int) -> str:
    product = shop.product(state.item)
    texts = {
        "Description": product.description,
        "Features": "\n".join(f"- {line}" for line in product.features or product.attributes),
        "Reviews": "\n".join(f"- {line}" for line in product.reviews),
    }
    body = shorten(texts[state.subpage], text_length) or "There are none."
    head = f"{state.subpage} of {product.asin}\n{shorten(product.title, text_length // 10)}"
    return "\n".join((head, body, *_buttons(shop, state)))


def _done(shop: Shop, state: ShopState, text_length: int) -> str:
    return f"You bought {state.item}."


def _buttons(shop: Shop, state: ShopState) -> list[str]:
    """The labels that the page does not show otherwise."""
    shown = {product.asin for product in listed(shop, state)}
    if state.page == "item":
        shown = {v for _, values in shop.product(state.item).options for v in values}
    buttons = [label for label in labels(shop, state) if label not in shown]
    return [f"Buttons: {', '.join(buttons)}"] if buttons else []
