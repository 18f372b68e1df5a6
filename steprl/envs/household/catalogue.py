"""Facts of the household world (`rooms.json`): types, what fits where, rooms, goal sentences."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
ROOM_KINDS = ("Kitchen", "LivingRoom", "Bedroom", "Bathroom")
LAMPS = ("DeskLamp", "FloorLamp")
FIXTURES = (*LAMPS, "HousePlant", "Television")  # seen in the room, never picked up

# Where fixtures stand. ALFWorld takes this from the simulator; this table is ours.
FIXTURE_PLACES = ("TVStand", "Desk", "Dresser", "SideTable", "CoffeeTable", "DiningTable", "Shelf")
FALLBACK_PLACES = ("CounterTop", "Sofa", "ArmChair", "Bed")  # in rooms with none of the above


@dataclass(frozen=True)
class Room:
    """A room without its things: how many receptacles of each type, and which types of object.

    Attributes:
        number: the floor plan of AI2-THOR (1-30, 201-230, 301-330, 401-430), 0 if generated.
        kind: one of `ROOM_KINDS`.
        receptacles: (type, count), sorted by type.
        objects: object types that belong there, sorted, fixtures included.
    """

    number: int
    kind: str
    receptacles: tuple[tuple[str, int], ...]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """The table of facts; `catalogue()` is the only instance one needs.

    Attributes:
        rooms: floor plan number -> room.
        fits: receptacle type -> object types that may be put there.
        openable: receptacle types with a door or a lid.
        movable_receptacles: object types that could hold others (bowls, boxes, ...).
        properties: `cleanable`, `heatable`, ... -> object types.
        sentences: task type -> templates of the goal sentence.
        room_kinds: task type -> kinds of room where it occurs.
    """

    rooms: Mapping[int, Room]
    fits: Mapping[str, frozenset[str]]
    openable: frozenset[str]
    movable_receptacles: frozenset[str]
    properties: Mapping[str, frozenset[str]]
    sentences: Mapping[str, tuple[str, ...]]
    room_kinds: Mapping[str, frozenset[str]]


def kind_of_floor_plan(number: int) -> str:
    """AI2-THOR numbers its rooms by kind: 1-30, 201-230, 301-330, 401-430."""
    return ROOM_KINDS[{0: 0, 2: 1, 3: 2, 4: 3}[number // 100]]


@cache
def catalogue() -> Catalogue:
    """The facts in `rooms.json`, read once."""
    table = json.loads(resources.files(__package__).joinpath("rooms.json").read_text("utf-8"))
    fits = {receptacle: frozenset(types) for receptacle, types in table["fits"].items()}
    rooms = {}
    for key, entry in table["rooms"].items():
        number = int(key)
        rooms[number] = Room(
            number,
            kind_of_floor_plan(number),
            tuple(entry["receptacles"].items()),
            tuple(entry["objects"]),
        )
    return Catalogue(
        rooms=rooms,
        fits=fits,
        openable=frozenset(table["openable"]),
        movable_receptacles=frozenset(table["movable_receptacles"]),
        properties={name: frozenset(types) for name, types in table["properties"].items()},
        sentences={task: tuple(forms) for task, forms in table["sentences"].items()},
        room_kinds={task: frozenset(kinds) for task, kinds in table["room_kinds"].items()},
    )


def places_for(object_type: str) -> frozenset[str]:
    """Receptacle types where an object type may lie; for a fixture, where it may stand."""
    if object_type in FIXTURES:
        return frozenset(FIXTURE_PLACES + FALLBACK_PLACES)
    return frozenset(r for r, types in catalogue().fits.items() if object_type in types)
