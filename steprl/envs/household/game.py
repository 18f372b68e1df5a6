"""What a game is (`HouseholdGame`), and everything in it that can change (`State`)."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from steprl.envs.household.catalogue import FIXTURES, catalogue

NOWHERE = -1  # the place of the agent before it goes anywhere
HAND = -1  # the place of the object that the agent carries
TREATMENTS = {  # verb -> (where, property needed)
    "clean": ("SinkBasin", "cleanable"),
    "heat": ("Microwave", "heatable"),
    "cool": ("Fridge", "coolable"),
}
KNIVES = ("Knife", "ButterKnife")


class Thing(NamedTuple):
    """A receptacle or an object: `Thing("CounterTop", 2)` is called "countertop 2"."""

    type: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.type.lower()} {self.number}"


class Goal(NamedTuple):
    """What is asked for. `receptacle` is "" where `lamp` is not, and the other way round."""

    task_type: str
    object: str
    receptacle: str
    lamp: str
    sentence: str


def listing_order(things: list[Thing]) -> tuple[Thing, ...]:
    """The order in which the engine lists things: by name of the type, highest number first."""
    return tuple(sorted(things, key=lambda thing: (thing.type.lower(), -thing.number)))


@dataclass(frozen=True)
class HouseholdGame:
    """One game: a room with its things, and a goal. All receptacles start closed.

    Attributes:
        receptacles: in listing order.
        objects: in listing order.
        places: for each object the index of its receptacle.
        goal: what to do.
        room: floor plan number, 0 for a generated room.
    """

    receptacles: tuple[Thing, ...]
    objects: tuple[Thing, ...]
    places: tuple[int, ...]
    goal: Goal
    room: int = 0

    @cached_property
    def table(self) -> "Table":
        """What follows from the description, computed at the first use."""
        return _table(self)


class Table(NamedTuple):
    """What follows from a game's description; indices are those of the game."""

    receptacle_names: tuple[str, ...]
    object_names: tuple[str, ...]
    receptacle_index: dict[str, int]
    object_index: dict[str, int]
    openable: frozenset[int]
    holds: tuple[frozenset[int], ...]  # for each receptacle the objects that fit
    fixed: frozenset[int]  # objects that cannot be picked up
    lamps: frozenset[int]
    knives: frozenset[int]
    sliceable: frozenset[int]
    vessels: frozenset[int]  # objects that could hold others
    treatable: dict[str, frozenset[int]]  # verb -> objects
    treats: tuple[str, ...]  # for each receptacle the verb it serves, or ""
    goal_objects: frozenset[int]
    goal_places: frozenset[int]
    goal_lamps: frozenset[int]
    go_commands: tuple[tuple[str, ...], ...]  # at each place, and last from nowhere


def _table(game: HouseholdGame) -> Table:
    facts = catalogue()
    receptacle_names = tuple(thing.name for thing in game.receptacles)
    object_names = tuple(thing.name for thing in game.objects)

    def objects(types: frozenset[str] | tuple[str, ...]) -> frozenset[int]:
        return frozenset(i for i, thing in enumerate(game.objects) if thing.type in types)

    def receptacles(types: frozenset[str] | tuple[str, ...]) -> frozenset[int]:
        return frozenset(i for i, thing in enumerate(game.receptacles) if thing.type in types)

    fitting = {t: objects(facts.fits[t]) for t in {thing.type for thing in game.receptacles}}
    serves = {place: verb for verb, (place, _) in TREATMENTS.items()}
    go = sorted(f"go to {name}" for name in receptacle_names)
    return Table(
        receptacle_names=receptacle_names,
        object_names=object_names,
        receptacle_index={name: i for i, name in enumerate(receptacle_names)},
        object_index={name: i for i, name in enumerate(object_names)},
        openable=receptacles(facts.openable),
        holds=tuple(fitting[thing.type] for thing in game.receptacles),
        fixed=objects(FIXTURES),
        lamps=objects(facts.properties["toggleable"]),
        knives=objects(KNIVES),
        sliceable=objects(facts.properties["sliceable"]),
        vessels=objects(facts.movable_receptacles),
        treatable={verb: objects(facts.properties[p]) for verb, (_, p) in TREATMENTS.items()},
        treats=tuple(serves.get(thing.type, "") for thing in game.receptacles),
        goal_objects=objects((game.goal.object,)),
        goal_places=receptacles((game.goal.receptacle,)),
        goal_lamps=objects((game.goal.lamp,)),
        go_commands=tuple(
            tuple(command for command in go if command != f"go to {here}")
            for here in (*receptacle_names, "")
        ),
    )


class State(NamedTuple):
    """Everything that can change. Sets of objects or receptacles are bit masks of their indices.

    Attributes:
        game: the description, never changed.
        places: for each object the index of its receptacle, or `HAND`.
        at: the receptacle where the agent stands, or `NOWHERE`.
        held: the object in hand, or -1.
        opened: open receptacles.
        clean, hot, cool, sliced, lit: objects in that condition.
        steps: commands given so far, refused ones included.
    """

    game: HouseholdGame
    places: tuple[int, ...]
    at: int = NOWHERE
    held: int = -1
    opened: int = 0
    clean: int = 0
    hot: int = 0
    cool: int = 0
    sliced: int = 0
    lit: int = 0
    steps: int = 0


def start(game: HouseholdGame) -> State:
    """The state before the first command."""
    return State(game, game.places)
