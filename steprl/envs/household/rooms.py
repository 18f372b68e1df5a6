"""Rooms: the 120 of ALFRED with its splits, and new ones drawn in their likeness."""

import random
from collections import Counter
from functools import cache

from steprl.envs.household.catalogue import Room, catalogue
from steprl.envs.household.game import TREATMENTS

# The rooms of ALFRED's splits, counted from the scene numbers at the end of the task names in
# askforalfred/alfred `data/splits/oct21.json`: "valid_unseen" has these four. "train" has 108 and
# "valid_seen" no others. The remaining eight are those of "tests_unseen", whose entries name no
# scene.
VALID_UNSEEN_ROOMS = frozenset({10, 219, 308, 424})
TEST_UNSEEN_ROOMS = frozenset({9, 29, 215, 226, 315, 325, 404, 425})
SPLITS = ("train", "valid_seen", "valid_unseen", "test_unseen")


@cache
def rooms_of(split: str, kind: str) -> tuple[Room, ...]:
    """The real rooms of one kind in a split: `valid_seen` has the rooms of `train`.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, there are {', '.join(SPLITS)}")
    unseen = VALID_UNSEEN_ROOMS | TEST_UNSEEN_ROOMS
    numbers = {"valid_unseen": VALID_UNSEEN_ROOMS, "test_unseen": TEST_UNSEEN_ROOMS}.get(
        split, frozenset(catalogue().rooms) - unseen
    )
    rooms = (catalogue().rooms[number] for number in sorted(numbers))
    return tuple(room for room in rooms if room.kind == kind)


def generate_room(
    kind: str,
    rng: random.Random,
    max_receptacles: int | None = None,
    max_object_types: int | None = None,
) -> Room:
    """A new room: the count of each receptacle type is that of some training room of its kind.

    So every count is a likely one, but their combination is new; object types are drawn likewise.

    Args:
        kind: one of `ROOM_KINDS`.
        rng: source of randomness.
        max_receptacles: at most so many; the commonest type gives way first, and what cleans,
            heats or cools stays as long as possible.
        max_object_types: at most so many.

    Returns:
        A room with number 0.
    """
    models = rooms_of("train", kind)
    counts: Counter[str] = Counter()
    for receptacle in sorted({r for room in models for r, _ in room.receptacles}):
        counts[receptacle] = dict(rng.choice(models).receptacles).get(receptacle, 0)
    counts = +counts
    needed = {place for place, _ in TREATMENTS.values()}
    while max_receptacles is not None and counts.total() > max(1, max_receptacles):
        # Ties are broken at random, so that small rooms differ.
        victim = max(counts, key=lambda r: (counts[r], r not in needed, rng.random()))
        counts[victim] -= 1
        counts = +counts
    objects = [
        object_type
        for object_type in sorted({o for room in models for o in room.objects})
        if object_type in rng.choice(models).objects
    ]
    if max_object_types is not None and len(objects) > max_object_types:
        objects = sorted(rng.sample(objects, max_object_types))
    return Room(0, kind, tuple(sorted(counts.items())), tuple(objects))
