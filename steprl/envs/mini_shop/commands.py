"""What an agent may say: `search[words]` or `click[label]`, plain or in a tool call."""

import re
from typing import Any, NamedTuple

from steprl.envs.mini_shop.records import normalise
from steprl.tools import make_tools, read_reply

PLACEHOLDER = "search[<your query>]"
"""How a search stands among the commands that a page allows."""

LONGEST = 200
"""Characters of a search that are read, and of a command that is remembered."""

_COMMAND = re.compile(r"(search|click)\s*\[(.*)\]", re.IGNORECASE | re.DOTALL)


class Command(NamedTuple):
    """`verb` is "search", "click", or "" where `text` is neither; `argument` is normalised."""

    verb: str
    argument: str
    text: str


def env_step(command: str) -> str:
    """Do one thing in the shop.

    Args:
        command: search[words] or click[label], such as search[rain jackets] or click[Buy Now].
    """
    # What it does depends on the episode: `MiniShop.step` does it.
    raise NotImplementedError(f"env_step({command!r}) is made by MiniShop.step")


TOOLS = make_tools([env_step])
STEP_TOOL: dict[str, Any] = TOOLS["env_step"].schema


def read_command(action: str) -> tuple[Command | None, str]:
    """The command of an action, or None and why there is none.

    Text with tool calls must hold exactly one, of `env_step`. Other text must be a command and nothing
    else. Thoughts are skipped.

    Example:
        >>> read_command("click[Buy Now]")[0]
        Command(verb='click', argument='buy now', text='click[Buy Now]')
        >>> read_command("I would buy it.")[1]
        'there is no command'
    """
    reply = read_reply(action, TOOLS)
    calls = reply.calls
    if reply.errors:
        return None, reply.errors[0].text
    if calls:
        if len(calls) > 1:
            return None, f"there are {len(calls)} calls of env_step, where one is made in a step"
        command = command_of(str(calls[0].arguments["command"]))
        return (command, "") if command.text else (None, "the command is empty")
    command = command_of(reply.text)
    return (command, "") if command.verb else (None, "there is no command")


def command_of(text: str) -> Command:
    """A text as a command; `verb` is "" if it is none."""
    text = " ".join(text.split())
    match = _COMMAND.fullmatch(text)
    if match is None:
        return Command("", "", text[:LONGEST])
    return Command(match[1].lower(), normalise(match[2]), text[:LONGEST])
