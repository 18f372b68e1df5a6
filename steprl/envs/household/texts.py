"""What the agent reads: the sentences of ALFWorld's grammar (`alfworld/data/alfred.twl2`)."""

from steprl.envs.household.game import NOWHERE, HouseholdGame, State

NOTHING_HAPPENS = "Nothing happens."
HELP = """\
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


_MIDDLE = "You are in the middle of a room. Looking quickly around you, you see"


def welcome(game: HouseholdGame) -> str:
    """The first observation: the room and the goal."""
    room = enumerate_names(list(game.table.receptacle_names))
    return (
        "-= Welcome to TextWorld, ALFRED! =-\n\n"
        f"{_MIDDLE} {room}.\n\n"
        f"Your task is to: {game.goal.sentence}."
    )


def contents(state: State, receptacle: int) -> list[int]:
    """Objects in a receptacle, in listing order, whether one can see them or not."""
    return [thing for thing, place in enumerate(state.places) if place == receptacle]


def is_accessible(state: State, receptacle: int) -> bool:
    """Has it no door, or is the door open?"""
    return receptacle not in state.game.table.openable or bool(state.opened >> receptacle & 1)


def enumerate_names(names: list[str]) -> str:
    """ "a fork 2, a fork 1, and a knife 1", as the engine writes lists."""
    if not names:
        return "nothing"
    listed = ["a " + name for name in names]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])}, and {listed[-1]}"


def look(state: State) -> str:
    """What "look" answers; before the first walk that is "nothing", as in the engine."""
    if state.at == NOWHERE:
        return f"{_MIDDLE} nothing."
    name = state.game.table.receptacle_names[state.at]
    return f"You are facing the {name}. Next to it, you see nothing."


def view(state: State, receptacle: int) -> str:
    """What one sees of a receptacle when standing there."""
    table = state.game.table
    name = table.receptacle_names[receptacle]
    if not is_accessible(state, receptacle):
        return f"The {name} is closed."
    listing = enumerate_names([table.object_names[thing] for thing in contents(state, receptacle)])
    if receptacle in table.openable:
        return f"The {name} is open. In it, you see {listing}."
    return f"On the {name}, you see {listing}."


def view_object(state: State, thing: int) -> str:
    """What one sees of the object in hand."""
    table = state.game.table
    name = table.object_names[thing]
    if thing in table.vessels:
        return f"This is a normal {name}. In it, you see nothing."
    clean, sliced = state.clean >> thing & 1, state.sliced >> thing & 1
    temperature = "hot" if state.hot >> thing & 1 else "cool" if state.cool >> thing & 1 else ""
    kind = f"sliced {name}" if sliced else name
    if temperature and clean:
        return f"This is a {temperature} and clean {kind}."
    if temperature:
        return (
            f"This is a {'cold' if temperature == 'cool' and not sliced else temperature} {kind}."
        )
    if clean:
        return f"This is a clean {kind}."
    if sliced:
        return f"This is a {kind}."
    return f"There's nothing special about {name}."
