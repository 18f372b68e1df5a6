"""Words of the game and their token ids: 0 pad, 1 end, 2 unknown, then the vocabulary."""

from steprl.models.tokenizer import END, PAD, UNKNOWN

PLACES = (
    "box", "drawer", "cabinet", "safe", "chest", "wardrobe", "trunk", "locker", "crate", "cupboard",
    "suitcase", "bag", "desk", "bin",
)  # fmt: skip
STATIONS = ("stove", "sink", "fridge")
"""Where things become hot, clean and cold."""

LOCATIONS = (*PLACES, *STATIONS, "door")
"""Where one can be, by number. Things lie in places only."""

KINDS = (
    "apple", "egg", "potato", "tomato", "bread", "mug", "cup", "plate", "bowl", "pan", "knife", "spoon",
)  # fmt: skip
FORMS = ("hot", "clean", "cold")
"""Forms number 1, 2, 3; a thing is at first of form 0, as it comes."""

VERBS = ("go", "open", "take", "put", "heat", "wash", "cool")
GO, OPEN, TAKE, PUT, HEAT = range(5)
"""Numbers of verbs; those from HEAT on make the forms, in their order."""

_PHRASES = (
    "bring the",
    ", the",
    "from the",
    "to the",
    ".",
    "it is closed",
    "you see nothing",
    "you are there",
    "taken",
    "put down",
    "delivered",
    "nothing happens",
    "invalid: begin with a verb",
    "invalid: this verb needs a place",
    "invalid: this verb needs a thing",
)
_SIGHTS = tuple(f"you see the {kind}" for kind in KINDS)
_CHANGES = tuple(f"it is {form}" for form in FORMS)


def vocabulary() -> tuple[str, ...]:
    """Phrases in the order of their ids, after the three special tokens."""
    return (*VERBS, *LOCATIONS, *KINDS, *FORMS, *_SIGHTS, *_CHANGES, *_PHRASES)


_IDS = {name: index for index, name in enumerate((PAD, END, UNKNOWN, *vocabulary()))}
BRING, AND, FROM, TO, STOP = (_IDS[name] for name in _PHRASES[:5])
CLOSED, EMPTY, THERE, TAKEN, DROPPED, DELIVERED, NOTHING = (_IDS[name] for name in _PHRASES[5:12])
BAD_VERB, BAD_PLACE, BAD_THING = (_IDS[name] for name in _PHRASES[12:])
FIRST_VERB, FIRST_LOCATION, FIRST_KIND = _IDS[VERBS[0]], _IDS[LOCATIONS[0]], _IDS[KINDS[0]]
FIRST_FORM, FIRST_SIGHT, FIRST_CHANGE = _IDS[FORMS[0]], _IDS[_SIGHTS[0]], _IDS[_CHANGES[0]]
VOCAB_SIZE = len(_IDS)
