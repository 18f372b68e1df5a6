"""The phrases of the household game, for a tokenizer with one token a phrase.

Splitting a text by `split_pattern()` (longest phrase first, white space between phrases dropped)
covers every observation, every command and every goal sentence of the game. "go to cabinet 12"
is three tokens, and a table with ten things on it some thirty.
"""

import re
from functools import cache

from steprl.envs.household.catalogue import FIXTURES, catalogue
from steprl.envs.household.game import TREATMENTS
from steprl.envs.household.texts import HELP, NOTHING_HAPPENS

LARGEST_NUMBER = 60
_WELCOME = (
    "-= Welcome to TextWorld, ALFRED! =-",
    "You are in the middle of a room. Looking quickly around you, you see a",
    "You are in the middle of a room. Looking quickly around you, you see nothing.",
    "Your task is to:",
)
_COMMANDS = (
    *("look", "inventory", "help", "go to", "open", "close", "examine", "use", "take", "move"),
    *("slice", *TREATMENTS, "from", "to", "with"),
)
_VIEWS = (
    "You arrive at",
    ". On the",
    ". The",
    "On the",
    "The",
    "is closed.",
    "is open. In it, you see a",
    "is open. In it, you see nothing.",
    ", you see a",
    ", you see nothing.",
    ", a",
    ", and a",
    ".",
    "You are facing the",
    ". Next to it, you see nothing.",
)
_ACTS = (
    "You open the",
    "You close the",
    "You pick up the",
    "You move the",
    "You turn on the",
    "You sliced the",
    *(f"You {verb} the" for verb in TREATMENTS),
    "from the",
    "to the",
    "using the",
    "with the",
    "You are carrying: a",
    "You are not carrying anything.",
    NOTHING_HAPPENS,
)
_CONDITIONS = ("", "hot", "cold", "cool", "clean", "hot and clean", "cool and clean")
_EXAMINED = (
    "There's nothing special about",
    "This is a normal",
    ". In it, you see nothing.",
    *(f"This is a {condition}" for condition in _CONDITIONS if condition),
    *(f"This is a {condition} sliced".replace("  ", " ") for condition in _CONDITIONS),
)


def goal_phrases() -> tuple[str, ...]:
    """The words between the types in the goal sentences: "put a hot", "in", "and put it in", ..."""
    pieces = (
        piece.strip()
        for templates in catalogue().sentences.values()
        for template in templates
        for piece in re.split(r"\{\w+\}", template)
    )
    return tuple(sorted({piece for piece in pieces if piece}))


def type_names() -> tuple[str, ...]:
    """The types of receptacles and objects, as the texts spell them."""
    fits = catalogue().fits
    return tuple(sorted({t.lower() for t in {*fits, *FIXTURES}.union(*fits.values())}))


@cache
def vocabulary() -> tuple[str, ...]:
    """All phrases, without duplicates and in a fixed order.

    Returns:
        Fixed phrases (each as long as it can be), goal phrases, names of types, numbers 1 to 60.
    """
    numbers = (str(number) for number in range(1, LARGEST_NUMBER + 1))
    fixed = (*_WELCOME, *_COMMANDS, *_VIEWS, *_ACTS, *_EXAMINED, HELP.strip())
    return tuple(dict.fromkeys((*fixed, *goal_phrases(), *type_names(), *numbers)))


@cache
def split_pattern() -> re.Pattern[str]:
    """Matches one phrase, the longest that fits."""
    phrases = sorted(vocabulary(), key=len, reverse=True)
    return re.compile("|".join(re.escape(phrase) for phrase in phrases))


def detokenize(phrases: list[str]) -> str:
    """The text of some phrases: joined by spaces, except before a comma or a full stop.

    Commands come out exactly as the game reads them, observations up to their line breaks.
    """
    return re.sub(r" (?=[.,])", "", " ".join(phrases))
