"""An expert for demonstrations: it reads what an agent reads, remembers, and acts.

It looks for things in a fixed order of places (surfaces first, then cupboards with one door, then
rows of drawers and cabinets; lowest number first), among those where such a thing fits. So the next
command follows from the texts alone, and a small model can learn it.

    knowledge = begin(first_observation)
    action = act(knowledge)
    knowledge = observe(knowledge, action, observation)

`knowing_all(state)` knows where everything is: the same rules then give a short
plan. `demonstrate` plays a whole game, as well or as badly as it is told to.
"""

import random
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from steprl.envs.household.catalogue import LAMPS, catalogue, places_for
from steprl.envs.household.game import NOWHERE, TREATMENTS, State
from steprl.envs.household.rules import act as obey
from steprl.envs.household.rules import won
from steprl.envs.household.tasks import treatment_of
from steprl.envs.household.texts import contents, is_accessible, welcome

if TYPE_CHECKING:
    from steprl.envs.household.environment import Household

SEARCH_ORDER = (
    *("CounterTop", "DiningTable", "CoffeeTable", "SideTable", "Desk", "Dresser", "TVStand"),
    *("Bed", "Sofa", "ArmChair", "Ottoman", "Cart", "Toilet", "ToiletPaperHanger"),
    *("TowelHolder", "HandTowelHolder", "LaundryHamper", "SinkBasin", "BathtubBasin"),
    *("CoffeeMachine", "Toaster", "GarbageCan", "Fridge", "Microwave", "Safe"),
    *("StoveBurner", "Shelf", "Drawer", "Cabinet"),
)
_RANK = {kind.lower(): rank for rank, kind in enumerate(SEARCH_ORDER)}
_NAME = re.compile(r"\ba ([a-z]+ \d+)")


class Wish(NamedTuple):
    """The goal as read from its sentence; names of types in lower case, "" where not needed."""

    task_type: str
    object: str
    receptacle: str
    lamp: str


class Knowledge(NamedTuple):
    """What an agent knows after some commands.

    Attributes:
        wish: what is asked for.
        receptacles: names of all receptacles.
        seen: receptacle -> names of the objects in it, for those looked into.
        closed: receptacles last seen closed.
        at: where the agent stands, "" at first.
        held: the object in hand, or "".
        treated: objects that were cleaned, heated or cooled as the wish says.
    """

    wish: Wish
    receptacles: tuple[str, ...]
    seen: Mapping[str, tuple[str, ...]]
    closed: frozenset[str] = frozenset()
    at: str = ""
    held: str = ""
    treated: frozenset[str] = frozenset()


class Demonstration(NamedTuple):
    """A played game: `observations[i]` is read before `actions[i]`, one more is read at the end."""

    task: int
    observations: tuple[str, ...]
    actions: tuple[str, ...]
    won: bool


@cache
def _sentence_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    obj, recep, toggle = r"(?P<object>\w+)", r"(?P<receptacle>\w+)", r"(?P<lamp>\w+)"
    return tuple(
        (task_type, re.compile(template.format(obj=obj, recep=recep, toggle=toggle)))
        for task_type, templates in catalogue().sentences.items()
        for template in templates
    )


def read_wish(sentence: str) -> Wish:
    """The goal that a sentence such as "put a hot apple in fridge" asks for.

    Raises:
        ValueError: it is none of the known sentences.
    """
    for task_type, pattern in _sentence_patterns():
        if match := pattern.fullmatch(sentence):
            words = match.groupdict()
            return Wish(
                task_type, words["object"], words.get("receptacle", ""), words.get("lamp", "")
            )
    raise ValueError(f"no known goal: {sentence!r}")


def begin(observation: str) -> Knowledge:
    """What the first observation of a game tells.

    Raises:
        ValueError: the text has no room or no known goal.
    """
    room, _, sentence = observation.partition("Your task is to: ")
    receptacles = tuple(_NAME.findall(room))
    if not receptacles:
        raise ValueError(f"no room in {observation[:80]!r}")
    return Knowledge(read_wish(sentence.strip().removesuffix(".")), receptacles, {})


def observe(knowledge: Knowledge, action: str, observation: str) -> Knowledge:
    """What is known after a command and its answer."""
    if observation == "Nothing happens.":
        return knowledge
    verb, _, rest = action.strip().partition(" ")
    if verb == "go":
        knowledge = knowledge._replace(at=rest.removeprefix("to "))
    here = knowledge.at
    content = knowledge.seen.get(here, ())
    if verb == "close":
        return knowledge._replace(closed=knowledge.closed | {here})
    if verb == "take":
        thing = rest.split(" from ")[0]
        seen = {**knowledge.seen, here: tuple(name for name in content if name != thing)}
        return knowledge._replace(held=thing, seen=seen)
    if verb == "move":
        thing = rest.split(" to ")[0]
        return knowledge._replace(held="", seen={**knowledge.seen, here: (*content, thing)})
    if verb in TREATMENTS and verb == treatment_of(knowledge.wish.task_type):
        return knowledge._replace(treated=knowledge.treated | {knowledge.held})
    if verb in ("heat", "cool"):  # undoes the other
        return knowledge._replace(treated=knowledge.treated - {knowledge.held})
    if f"The {here} is closed." in observation:
        return knowledge._replace(closed=knowledge.closed | {here})
    if verb in ("go", "open", "examine") and ", you see " in observation and rest != knowledge.held:
        listed = tuple(_NAME.findall(observation.partition(", you see ")[2]))
        return knowledge._replace(
            closed=knowledge.closed - {here}, seen={**knowledge.seen, here: listed}
        )
    return knowledge


def knowing_all(state: State) -> Knowledge:
    """What a player knows who has looked into every receptacle of the house, closed ones too."""
    table = state.game.table
    names, objects = table.receptacle_names, table.object_names
    verb = treatment_of(state.game.goal.task_type)
    treated = {"clean": state.clean, "heat": state.hot, "cool": state.cool}.get(verb, 0)
    return begin(welcome(state.game))._replace(
        seen={name: tuple(objects[o] for o in contents(state, r)) for r, name in enumerate(names)},
        closed=frozenset(name for r, name in enumerate(names) if not is_accessible(state, r)),
        at="" if state.at == NOWHERE else names[state.at],
        held="" if state.held < 0 else objects[state.held],
        treated=frozenset(name for o, name in enumerate(objects) if treated >> o & 1),
    )


def act(knowledge: Knowledge) -> str:
    """The next command; "look" when there is nothing left to try."""
    wish, held = knowledge.wish, knowledge.held
    verb = treatment_of(wish.task_type)
    if not held:
        return _fetch(knowledge, _wanted(knowledge), wish.object)
    if _type(held) != wish.object:
        return _put(knowledge, _those_that_fit(knowledge, _type(held)))
    if wish.lamp:
        lamps = {r: o for r, seen in knowledge.seen.items() for o in seen if _type(o) == wish.lamp}
        place = _nearest(knowledge, list(lamps))
        if not place:
            return _search(knowledge, wish.lamp)
        return f"use {lamps[place]}" if place == knowledge.at else f"go to {place}"
    if verb and held not in knowledge.treated:
        site = _nearest(knowledge, _of_type(knowledge, TREATMENTS[verb][0].lower()))
        if not site:
            return "look"
        return f"{verb} {held} with {site}" if site == knowledge.at else f"go to {site}"
    return _put(knowledge, _targets(knowledge))


def plan(state: State, limit: int) -> list[str]:
    """The commands with which a player who knows where everything is wins from a state.

    Returns:
        `limit` commands where that is not enough.
    """
    commands: list[str] = []
    while not won(state) and len(commands) < limit:
        commands.append(act(knowing_all(state)))
        state = obey(state, commands[-1])[0]
    return commands


def demonstrate(
    env: "Household",
    task: int,
    seed: int = 0,
    knows_all: bool = False,
    wander: float = 0.0,
    give_up: float = 0.0,
    slip: float = 0.0,
) -> Demonstration:
    """Play a game from the start until it is won, lost or given up.

    Args:
        env: the environment.
        task: which game.
        seed: randomness of the settings below; without them there is none.
        knows_all: know where everything is, for shortest plans.
        wander: chance at each step to walk to some receptacle for no reason.
        give_up: chance at each step to stop for good, the game unfinished.
        slip: chance at each step to get the first number of the command wrong. Most such commands
            are refused, so a model also sees how to continue after "Nothing happens.".

    Returns:
        Texts read and commands given.
    """
    rng = random.Random(f"expert {task} {seed}")
    state, text = env.reset(task)
    knowledge = knowing_all(state) if knows_all else begin(text)
    observations, actions = [text], []
    over = won = False
    while not over and rng.random() >= give_up:
        action = act(knowledge)
        if rng.random() < wander:
            action = f"go to {rng.choice(knowledge.receptacles)}"
        if rng.random() < slip:
            action = re.sub(r"\d+", str(rng.randint(1, 4)), action, count=1)
        state, text, _, won, truncated, _ = env.step(state, action)
        knowledge = observe(knowledge, action, text)
        observations.append(text)
        actions.append(action)
        over = won or truncated
    return Demonstration(task, tuple(observations), tuple(actions), won)


def _type(name: str) -> str:
    return name.split(" ")[0]


def _order(name: str) -> tuple[int, int]:
    kind, _, number = name.partition(" ")
    return _RANK.get(kind, len(_RANK)), int(number)


def _of_type(knowledge: Knowledge, kind: str) -> list[str]:
    return [name for name in knowledge.receptacles if _type(name) == kind]


@cache
def _place_types(kind: str) -> frozenset[str]:
    """Where an object type (in lower case) may be, in lower case."""
    types = {t for fitting in catalogue().fits.values() for t in fitting} | set(LAMPS)
    return frozenset(place.lower() for t in types if t.lower() == kind for place in places_for(t))


def _those_that_fit(knowledge: Knowledge, kind: str) -> list[str]:
    return [name for name in knowledge.receptacles if _type(name) in _place_types(kind)]


def _nearest(knowledge: Knowledge, places: list[str]) -> str:
    """Of these places the one to use: here, else an open one, else the first in order."""
    return min(
        places, key=lambda r: (r != knowledge.at, r in knowledge.closed, _order(r)), default=""
    )


def _targets(knowledge: Knowledge) -> list[str]:
    """Receptacles to put the object in: beside its twin if one is there already."""
    wish = knowledge.wish
    targets = _of_type(knowledge, wish.receptacle)
    if wish.task_type != "pick_two_obj_and_place":
        return targets
    begun = [r for r in targets if any(_type(o) == wish.object for o in knowledge.seen.get(r, ()))]
    return [_nearest(knowledge, begun)] if begun else targets


def _wanted(knowledge: Knowledge) -> list[tuple[str, str]]:
    """Pairs (receptacle, object) that may be fetched, all of them seen."""
    wish = knowledge.wish
    two = wish.task_type == "pick_two_obj_and_place"
    done = _targets(knowledge) if two else []
    excluded = done if len(done) == 1 else []
    return [
        (place, thing)
        for place, things in knowledge.seen.items()
        for thing in things
        if _type(thing) == wish.object and place not in excluded
    ]


def _fetch(knowledge: Knowledge, wanted: list[tuple[str, str]], kind: str) -> str:
    """Take one of these things, or look for one."""
    if not wanted:
        return _search(knowledge, kind)
    place = _nearest(knowledge, [place for place, _ in wanted])
    things = [thing for where, thing in wanted if where == place]
    # One that is treated already saves the way to the sink; then the lowest number.
    thing = min(things, key=lambda o: (o not in knowledge.treated, _order(o)))
    return _at(knowledge, place) or f"take {thing} from {place}"


def _put(knowledge: Knowledge, places: list[str]) -> str:
    """Put the thing in hand into one of these places."""
    place = _nearest(knowledge, places)
    if not place:
        return "look"
    return _at(knowledge, place) or f"move {knowledge.held} to {place}"


def _at(knowledge: Knowledge, place: str) -> str:
    """The command that is needed before a place can be used, or ""."""
    if knowledge.at != place:
        return f"go to {place}"
    return f"open {place}" if place in knowledge.closed else ""


def _search(knowledge: Knowledge, kind: str) -> str:
    """Look into the next place where such a thing may be; when all are seen, into any other."""
    likely = [r for r in _those_that_fit(knowledge, kind) if r not in knowledge.seen]
    unseen = likely or [r for r in knowledge.receptacles if r not in knowledge.seen]
    if not unseen:
        return "look"
    if knowledge.at in unseen and knowledge.at in knowledge.closed:
        return f"open {knowledge.at}"
    return f"go to {min(unseen, key=_order)}"


def success_table(env: "Household", tasks: range, **settings: Any) -> dict[str, dict[str, float]]:
    """How often the expert wins, and in how many steps.

    Args:
        env: the environment.
        tasks: which games.
        **settings: of `demonstrate`.

    Returns:
        Task type -> number of games, share won, mean and greatest length of the won ones.
    """
    demonstrations: dict[str, list[Demonstration]] = {}
    for task in tasks:
        task_type = env.task_types[task % len(env.task_types)]
        demonstrations.setdefault(task_type, []).append(demonstrate(env, task, **settings))
    table: dict[str, dict[str, float]] = {}
    for task_type, games in demonstrations.items():
        lengths = [len(game.actions) for game in games if game.won]
        table[task_type] = {
            "games": len(games),
            "won": len(lengths) / len(games),
            "mean_steps": sum(lengths) / max(1, len(lengths)),
            "max_steps": max(lengths, default=0),
        }
    return table
