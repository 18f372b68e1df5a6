"""Games: a room, its things put in likely places, and a goal that is not yet reached."""

import random

from steprl.envs.household.catalogue import FIXTURES, LAMPS, Room, catalogue, places_for
from steprl.envs.household.game import TREATMENTS, Goal, HouseholdGame, Thing, listing_order

_TREATMENT_OF = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}


def treatment_of(task_type: str) -> str:
    """The verb that a task type asks for ("clean", "heat", "cool"), or ""."""
    return _TREATMENT_OF.get(task_type, "")


def possible_goals(room: Room, task_type: str) -> tuple[tuple[str, str], ...]:
    """Pairs (object type, target) that make a game of this type in this room.

    The target is a receptacle type, or a lamp type for `look_at_obj_in_light`. The object has some
    place that is no target, and is not to be put where it is cleaned, heated or cooled.
    """
    if room.kind not in catalogue().room_kinds[task_type]:
        return ()
    present = {receptacle for receptacle, _ in room.receptacles}
    verb = treatment_of(task_type)
    site, needed = TREATMENTS[verb] if verb else ("", "")
    if verb and site not in present:
        return ()
    goals = []
    for kind in room.objects:
        places = sorted(places_for(kind) & present)
        if kind in FIXTURES or (verb and kind not in catalogue().properties[needed]):
            continue
        if task_type == "look_at_obj_in_light":
            lamps = [lamp for lamp in LAMPS if lamp in room.objects and places_for(lamp) & present]
            goals += [(kind, lamp) for lamp in lamps if places]
        elif len(places) > 1:
            goals += [(kind, place) for place in places if place != site]
    return tuple(goals)


def make_game(
    room: Room, task_type: str, rng: random.Random, copies: tuple[int, ...] = (1, 1, 2, 3)
) -> HouseholdGame | None:
    """Draw a game: the goal first, then for each thing a type of place, then one such place.

    Drawing the type of place first makes a thing as likely to be on the one table as in one of
    twenty drawers; no object of the goal's type starts in a receptacle of the goal's type.

    Args:
        room: where.
        task_type: one of `TASK_TYPES`.
        rng: source of randomness.
        copies: numbers of instances of an object type, one of which is drawn; 0 leaves it out.

    Returns:
        The game, or None if the room has none of this type.
    """
    goals = possible_goals(room, task_type)
    if not goals:
        return None
    goal_kind = rng.choice(sorted({kind for kind, _ in goals}))
    target = rng.choice([place for kind, place in goals if kind == goal_kind])
    light = task_type == "look_at_obj_in_light"

    receptacles = [Thing(kind, n + 1) for kind, count in room.receptacles for n in range(count)]
    present = {thing.type for thing in receptacles}
    place_of: dict[Thing, Thing] = {}
    for kind in room.objects:
        places = sorted(places_for(kind) & present - ({target} if kind == goal_kind else set()))
        number = 1 if kind in FIXTURES else rng.choice(copies)
        if kind == goal_kind:
            number = max(number, 2 if task_type == "pick_two_obj_and_place" else 1)
        for n in range(number if places else 0):
            place = rng.choice(places)
            place_of[Thing(kind, n + 1)] = rng.choice([r for r in receptacles if r.type == place])

    receptacle, lamp = ("", target) if light else (target, "")
    sentence = rng.choice(catalogue().sentences[task_type]).format(
        obj=goal_kind.lower(), recep=receptacle.lower(), toggle=lamp.lower()
    )
    ordered = listing_order(receptacles)
    objects = listing_order(list(place_of))
    return HouseholdGame(
        receptacles=ordered,
        objects=objects,
        places=tuple(ordered.index(place_of[thing]) for thing in objects),
        goal=Goal(task_type, goal_kind, receptacle, lamp, sentence),
        room=room.number,
    )
