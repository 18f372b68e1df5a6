"""Make `rooms.json` from the alfworld package: which rooms there are and what fits where.

    pip install alfworld==0.4.2
    python -m steprl.envs.household.extract_rooms > steprl/envs/household/rooms.json

The table holds facts only (types and counts); alfworld is MIT-licensed, see `NOTICE` beside it.
Only this script needs alfworld, the environment does not.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
BASINS = {"Sink": "SinkBasin", "Bathtub": "BathtubBasin"}
FIXTURES = ("DeskLamp", "FloorLamp", "HousePlant", "Television")
STOVE_BURNERS = 4  # the layouts say that a stove is there, not how many burners it has


def room_table(layouts: Path, constants: Any) -> dict[str, dict[str, Any]]:
    """Receptacle counts and object types of every floor plan.

    Args:
        layouts: folder with `FloorPlan<n>-objects.json` and `FloorPlan<n>-openable.json`.
        constants: the module `alfworld.gen.constants`.

    Returns:
        Floor plan number -> `{"receptacles": {type: count}, "objects": [types]}`. A receptacle
        that the plan names without a position is counted once (stove burners: four times).
    """
    movable = set(constants.MOVABLE_RECEPTACLES)
    receptacle_types = set(constants.VAL_RECEPTACLE_OBJECTS) - movable
    fitting = set().union(*constants.VAL_RECEPTACLE_OBJECTS.values())
    rooms = {}
    for number in sorted(n for plans in constants.SCENE_TYPE.values() for n in plans):
        types = set(json.loads((layouts / f"FloorPlan{number}-objects.json").read_text()))
        positions = json.loads((layouts / f"FloorPlan{number}-openable.json").read_text())
        named = Counter(key.split("|")[0] for key in positions)
        counts = Counter({BASINS.get(kind, kind): n for kind, n in named.items()})
        for kind in types & receptacle_types - set(counts):
            counts[kind] = STOVE_BURNERS if kind == "StoveBurner" else 1
        rooms[str(number)] = {
            "receptacles": {k: counts[k] for k in sorted(counts) if k in receptacle_types},
            "objects": sorted(t for t in types if t in fitting or t in FIXTURES),
        }
    return rooms


def extract() -> dict[str, Any]:
    """Everything that `rooms.json` holds, read from the installed alfworld package."""
    os.environ.setdefault("ALFWORLD_DATA", tempfile.mkdtemp())  # importing it makes this folder
    import alfworld
    from alfworld import info
    from alfworld.gen import constants, goal_library

    movable = set(constants.MOVABLE_RECEPTACLES)
    return {
        "source": f"alfworld {info.__version__} (MIT), see NOTICE",
        "movable_receptacles": sorted(movable),
        "openable": sorted(set(constants.OPENABLE_CLASS_LIST) - movable),
        "properties": {
            name.lower(): sorted(t for t in types if not t.endswith("Sliced"))
            for name, types in sorted(constants.VAL_ACTION_OBJECTS.items())
        },
        "fits": {
            receptacle: sorted(t for t in types if not t.endswith("Sliced"))
            for receptacle, types in sorted(constants.VAL_RECEPTACLE_OBJECTS.items())
            if receptacle not in movable
        },
        "sentences": {task: goal_library.gdict[task]["templates"] for task in TASK_TYPES},
        "room_kinds": {task: sorted(constants.GOALS_VALID[task]) for task in TASK_TYPES},
        "rooms": room_table(Path(alfworld.__file__).parent / "gen" / "layouts", constants),
    }


def dump(table: dict[str, Any]) -> str:
    """JSON with one line an entry, so that a change of one room is a change of one line."""
    lines = []
    for key, value in table.items():
        if isinstance(value, dict):
            entries = ",\n".join(
                f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items()
            )
            lines.append(f"{json.dumps(key)}: {{\n{entries}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(dump(extract()))
