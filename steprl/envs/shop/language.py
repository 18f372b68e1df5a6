"""Words of the game and their token ids: 0 pad, 1 end, 2 unknown, then the vocabulary."""

from steprl.models.tokenizer import END, PAD, UNKNOWN

KINDS = (
    "shirt", "lamp", "mug", "chair", "scarf", "clock",
    "vase", "rug", "bag", "pillow", "tray", "bowl",
)  # fmt: skip

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")

PLACES = ("first", "second", "third", "fourth")

VALUES = 3
"""Values of each group of options."""

# A value belongs to one group, so it needs no other name on a page or in a command.
OPTIONS = (
    "small", "medium", "large",
    "plain", "striped", "dotted",
    "matte", "glossy", "brushed",
    "light", "solid", "heavy",
    "round", "square", "oval",
    "single", "pair", "dozen",
    "bare", "boxed", "wrapped",
    "imported", "local", "homemade",
    "new", "used", "restored",
    "signed", "numbered", "unmarked",
    "mailed", "carried", "collected",
    "padded", "lined", "unlined",
)  # fmt: skip

_PHRASES = (
    "search",
    "open",
    "choose",
    "buy",
    "now",
    "back",
    "to the list",
    "buy a",
    "then a",
    ".",
    "chosen",
    "bought",
    "nothing happens",
    "invalid: begin with search, open, choose, buy or back",
    "invalid: search needs a kind of goods",
    "invalid: open needs a place",
    "invalid: choose needs an option",
    "invalid: it is buy now",
    "invalid: it is back to the list",
)


def vocabulary() -> tuple[str, ...]:
    """Phrases in the order of their ids, after the three special tokens."""
    return (*_PHRASES, *PLACES, *COLOURS, *KINDS, *OPTIONS)


_IDS = {name: index for index, name in enumerate((PAD, END, UNKNOWN, *vocabulary()))}
SEARCH, OPEN, CHOOSE, BUY, NOW, BACK, TO_LIST = (_IDS[name] for name in _PHRASES[:7])
BUY_A, THEN_A, STOP, CHOSEN, BOUGHT, NOTHING = (_IDS[name] for name in _PHRASES[7:13])
BAD_VERB, BAD_SEARCH, BAD_OPEN, BAD_CHOOSE, BAD_BUY, BAD_BACK = (_IDS[n] for n in _PHRASES[13:])
FIRST_PLACE, FIRST_COLOUR = _IDS[PLACES[0]], _IDS[COLOURS[0]]
FIRST_KIND, FIRST_OPTION = _IDS[KINDS[0]], _IDS[OPTIONS[0]]
VOCAB_SIZE = len(_IDS)
