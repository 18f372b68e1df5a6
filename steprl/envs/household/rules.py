"""The rules of ALFWorld's text game: what a command does and what the game answers.

A state is a tuple of small integers and one tuple of places; acting returns a new state. Texts and
the list of admissible commands equal those of ALFWorld's own engine (`PddlEnv` of TextWorld with
`alfworld/data/alfred.pddl` and `alfred.twl2`), which a differential test checks.

Rules that surprise: `examine` works on the object in hand and on the place one stands at, but not
on things that lie there; cleaning, heating and cooling need the object in hand but no open door;
there is one hand; a lamp cannot be switched off; `look` sees nothing before the first walk;
slicing reaches into closed receptacles; heat and cold replace each other, cleanness stays.

    state = start(game)
    text = welcome(game)
    state, text, reason = act(state, "go to desk 1")     # reason is "" if it was understood
"""

from bisect import bisect

from steprl.envs.household.game import HAND, NOWHERE, State
from steprl.envs.household.texts import (
    HELP,
    NOTHING_HAPPENS,
    contents,
    is_accessible,
    look,
    view,
    view_object,
)

Outcome = tuple[State, str] | str  # what follows, or the reason why nothing happens


def act(state: State, command: str) -> tuple[State, str, str]:
    """Obey a command.

    Args:
        state: stays as it is.
        command: any text; white space around it is ignored, as in the engine.

    Returns:
        The next state (one step later in any case), the observation, and the reason why the
        command was refused: "" if it was not. A refused command is answered "Nothing happens.".
    """
    command = command.strip()
    verb, _, rest = command.partition(" ")
    rule = _RULES.get(verb)
    if rule is None:
        outcome: Outcome = f"unknown verb {verb[:40]!r}" if verb else "empty command"
    else:
        outcome = rule(state, rest, verb)
    if isinstance(outcome, str):
        return state._replace(steps=state.steps + 1), NOTHING_HAPPENS, outcome
    next_state, text = outcome
    return next_state._replace(steps=state.steps + 1), text, ""


def won(state: State) -> bool:
    """Is the goal reached? The six conditions of `alfworld/gen/goal_library.py`."""
    table, task_type = state.game.table, state.game.goal.task_type
    if task_type == "look_at_obj_in_light":
        return state.held in table.goal_objects and any(
            state.lit >> lamp & 1 and state.places[lamp] == state.at for lamp in table.goal_lamps
        )
    placed = [o for o in table.goal_objects if state.places[o] in table.goal_places]
    if task_type == "pick_and_place_simple":
        return bool(placed)
    if task_type == "pick_two_obj_and_place":
        return len({state.places[o] for o in placed}) < len(placed)
    if task_type == "pick_clean_then_place_in_recep":
        return any(state.clean >> o & 1 for o in placed)
    if task_type == "pick_heat_then_place_in_recep":
        return any(state.hot >> o & 1 for o in placed)
    if task_type == "pick_cool_then_place_in_recep":
        return any(state.cool >> o & 1 for o in placed)
    raise ValueError(f"unknown task type {task_type!r}")


def admissible_commands(state: State) -> tuple[str, ...]:
    """All commands that the game understands now, sorted, as the engine lists them."""
    table, here, held = state.game.table, state.at, state.held
    names = table.object_names
    commands = ["help", "inventory", "look"]
    if held >= 0:
        commands.append(f"examine {names[held]}")
    if here != NOWHERE:
        place = table.receptacle_names[here]
        accessible = is_accessible(state, here)
        commands.append(f"examine {place}")
        if here in table.openable:
            commands.append(f"close {place}" if accessible else f"open {place}")
        for thing in contents(state, here):
            if thing in table.lamps:
                commands.append(f"use {names[thing]}")
            if held < 0 and accessible and thing not in table.fixed:
                commands.append(f"take {names[thing]} from {place}")
            if held in table.knives and thing in table.sliceable:
                commands.append(f"slice {names[thing]} with {names[held]}")
        if held in table.holds[here] and accessible:
            commands.append(f"move {names[held]} to {place}")
        verb = table.treats[here]
        if verb and held in table.treatable[verb]:
            commands.append(f"{verb} {names[held]} with {place}")
    commands.sort()
    before_go = bisect(commands, "go to")
    return (*commands[:before_go], *table.go_commands[here], *commands[before_go:])


def _do_look(state: State, rest: str, verb: str) -> Outcome:
    return "look takes no argument" if rest else (state, look(state))


def _do_inventory(state: State, rest: str, verb: str) -> Outcome:
    if rest:
        return "inventory takes no argument"
    if state.held < 0:
        return state, "You are not carrying anything."
    return state, f"You are carrying: a {state.game.table.object_names[state.held]}."


def _do_help(state: State, rest: str, verb: str) -> Outcome:
    return "help takes no argument" if rest else (state, HELP)


def _do_go(state: State, rest: str, verb: str) -> Outcome:
    place = state.game.table.receptacle_index.get(rest.removeprefix("to "))
    if place is None or not rest.startswith("to "):
        return f"no receptacle called {rest.removeprefix('to ')[:40]!r}"
    if place == state.at:
        return "already there"
    next_state = state._replace(at=place)
    return next_state, f"You arrive at {rest[3:]}. {view(next_state, place)}"


def _do_open_or_close(state: State, rest: str, verb: str) -> Outcome:
    table = state.game.table
    place = table.receptacle_index.get(rest)
    if place is None:
        return f"no receptacle called {rest[:40]!r}"
    if place != state.at:
        return f"not at {rest}"
    if place not in table.openable:
        return f"{rest} has no door"
    if bool(state.opened >> place & 1) == (verb == "open"):
        return f"{rest} is {'open' if verb == 'open' else 'closed'} already"
    next_state = state._replace(opened=state.opened ^ 1 << place)
    text = f"You {verb} the {rest}."
    return next_state, f"{text} {view(next_state, place)}" if verb == "open" else text


def _parse_pair(state: State, rest: str, separator: str) -> tuple[int, int] | str:
    """ "apple 1 from desk 2" -> indices of object and receptacle, standing there."""
    table = state.game.table
    thing_name, _, place_name = rest.partition(separator)
    thing = table.object_index.get(thing_name)
    place = table.receptacle_index.get(place_name)
    if thing is None:
        return f"no object called {thing_name[:40]!r}"
    if place is None:
        return f"no receptacle called {place_name[:40]!r}"
    return (thing, place) if place == state.at else f"not at {place_name}"


def _do_take(state: State, rest: str, verb: str) -> Outcome:
    pair = _parse_pair(state, rest, " from ")
    if isinstance(pair, str):
        return pair
    table, (thing, place) = state.game.table, pair
    name, where = table.object_names[thing], table.receptacle_names[place]
    if not is_accessible(state, place):
        return f"{where} is closed"
    if state.places[thing] != place:
        return f"{name} is not there"
    if state.held >= 0:
        return "hand is full"
    if thing in table.fixed:
        return f"{name} cannot be picked up"
    places = (*state.places[:thing], HAND, *state.places[thing + 1 :])
    return state._replace(places=places, held=thing), f"You pick up the {name} from the {where}."


def _do_move(state: State, rest: str, verb: str) -> Outcome:
    pair = _parse_pair(state, rest, " to ")
    if isinstance(pair, str):
        return pair
    table, (thing, place) = state.game.table, pair
    name, where = table.object_names[thing], table.receptacle_names[place]
    if state.held != thing:
        return f"{name} is not in hand"
    if not is_accessible(state, place):
        return f"{where} is closed"
    if thing not in table.holds[place]:
        return f"{name} does not fit {where}"
    places = (*state.places[:thing], place, *state.places[thing + 1 :])
    return state._replace(places=places, held=-1), f"You move the {name} to the {where}."


def _do_treat(state: State, rest: str, verb: str) -> Outcome:
    pair = _parse_pair(state, rest, " with ")
    if isinstance(pair, str):
        return pair
    table, (thing, place) = state.game.table, pair
    name, where = table.object_names[thing], table.receptacle_names[place]
    if state.held != thing:
        return f"{name} is not in hand"
    if table.treats[place] != verb:
        return f"cannot {verb} with {where}"
    if thing not in table.treatable[verb]:
        return f"cannot {verb} {name}"
    bit = 1 << thing
    if verb == "clean":
        next_state = state._replace(clean=state.clean | bit)
    elif verb == "heat":
        next_state = state._replace(hot=state.hot | bit, cool=state.cool & ~bit)
    else:
        next_state = state._replace(cool=state.cool | bit, hot=state.hot & ~bit)
    return next_state, f"You {verb} the {name} using the {where}."


def _do_use(state: State, rest: str, verb: str) -> Outcome:
    table = state.game.table
    thing = table.object_index.get(rest)
    if thing is None:
        return f"no object called {rest[:40]!r}"
    if thing not in table.lamps:
        return f"{rest} cannot be used"
    if state.at == NOWHERE or state.places[thing] != state.at:
        return f"{rest} is not there"
    return state._replace(lit=state.lit | 1 << thing), f"You turn on the {rest}."


def _do_slice(state: State, rest: str, verb: str) -> Outcome:
    table = state.game.table
    name, _, knife_name = rest.partition(" with ")
    thing, knife = table.object_index.get(name), table.object_index.get(knife_name)
    if thing is None or knife is None:
        return f"no object called {(name if thing is None else knife_name)[:40]!r}"
    if state.held != knife or knife not in table.knives:
        return f"{knife_name} is not a knife in hand"
    if thing not in table.sliceable:
        return f"cannot slice {name}"
    if state.at == NOWHERE or state.places[thing] != state.at:
        return f"{name} is not there"
    sliced = state.sliced | 1 << thing
    return state._replace(sliced=sliced), f"You sliced the {name} with the {knife_name}."


def _do_examine(state: State, rest: str, verb: str) -> Outcome:
    table = state.game.table
    place, thing = table.receptacle_index.get(rest), table.object_index.get(rest)
    if place is not None:
        return (state, view(state, place)) if place == state.at else f"not at {rest}"
    if thing is not None:
        return (state, view_object(state, thing)) if thing == state.held else "not in hand"
    return f"nothing called {rest[:40]!r}"


_RULES = {
    "look": _do_look,
    "inventory": _do_inventory,
    "help": _do_help,
    "go": _do_go,
    "open": _do_open_or_close,
    "close": _do_open_or_close,
    "take": _do_take,
    "move": _do_move,
    "clean": _do_treat,
    "heat": _do_treat,
    "cool": _do_treat,
    "use": _do_use,
    "slice": _do_slice,
    "examine": _do_examine,
}
