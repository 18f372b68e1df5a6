"""The household game as its readers may rely on it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.household import ROOM_KINDS, SPLITS, TASK_TYPES, Household
from steprl.envs.household.catalogue import catalogue, places_for
from steprl.envs.household.environment import checksum
from steprl.envs.household.game import Goal, HouseholdGame, State, Thing, start
from steprl.envs.household.rooms import (
    TEST_UNSEEN_ROOMS,
    VALID_UNSEEN_ROOMS,
    generate_room,
    rooms_of,
)
from steprl.envs.household.rules import act, admissible_commands, won
from steprl.envs.household.tasks import possible_goals
from steprl.envs.household.texts import NOTHING_HAPPENS, welcome

few = settings(deadline=None, max_examples=30)
ENV = Household()
TASKS = st.integers(min_value=0, max_value=10**12)
EGG = ["go to diningtable 1", "take egg 1 from diningtable 1"]
KNIFE = ["go to diningtable 1", "take knife 1 from diningtable 1"]


def kitchen(task_type: str = "pick_and_place_simple", target: str = "CounterTop") -> HouseholdGame:
    """A small kitchen: an egg and a knife on the table, another egg in the fridge."""
    receptacles = ("CounterTop", "DiningTable", "Fridge", "Microwave", "SinkBasin")
    return HouseholdGame(
        receptacles=tuple(Thing(kind, 1) for kind in receptacles),
        objects=(Thing("Egg", 2), Thing("Egg", 1), Thing("Knife", 1)),
        places=(2, 1, 1),
        goal=Goal(task_type, "Egg", target, "", "put some egg on countertop"),
    )


def study() -> HouseholdGame:
    """A book on the bed, a lamp on the desk."""
    return HouseholdGame(
        receptacles=(Thing("Bed", 1), Thing("Desk", 1)),
        objects=(Thing("Book", 1), Thing("DeskLamp", 1)),
        places=(0, 1),
        goal=Goal("look_at_obj_in_light", "Book", "", "DeskLamp", "look at book under ..."),
    )


def play(game: HouseholdGame, *commands: str) -> State:
    state = start(game)
    for command in commands:
        state, _, reason = act(state, command)
        assert not reason, (command, reason)
    return state


def walk(env: Household, task: int, seed: int, steps: int = 20) -> list[tuple]:
    """(state before, command, results of the step) along a random walk."""
    rng, (state, _) = random.Random(seed), env.reset(task)
    path = []
    for _ in range(steps):
        command = rng.choice(env.admissible_commands(state))
        results = env.step(state, command)
        path.append((state, command, results))
        state = results[0]
    return path


# What the game says


def test_first_observation_is_alfworlds_welcome():
    assert welcome(kitchen()) == (
        "-= Welcome to TextWorld, ALFRED! =-\n\n"
        "You are in the middle of a room. Looking quickly around you, you see a countertop 1, "
        "a diningtable 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: put some egg on countertop."
    )


@pytest.mark.parametrize(
    ("commands", "text"),
    [
        (["look"],
         "You are in the middle of a room. Looking quickly around you, you see nothing."),
        (["inventory"], "You are not carrying anything."),
        (["go to fridge 1"], "You arrive at fridge 1. The fridge 1 is closed."),
        (["go to fridge 1", "look"], "You are facing the fridge 1. Next to it, you see nothing."),
        (["go to fridge 1", "open fridge 1"],
         "You open the fridge 1. The fridge 1 is open. In it, you see a egg 2."),
        (["go to fridge 1", "open fridge 1", "close fridge 1"], "You close the fridge 1."),
        (["go to diningtable 1"],
         "You arrive at diningtable 1. On the diningtable 1, you see a egg 1, and a knife 1."),
        (["go to diningtable 1", "take egg 1 from diningtable 1"],
         "You pick up the egg 1 from the diningtable 1."),
        ([*EGG, "inventory"],
         "You are carrying: a egg 1."),
        ([*EGG, "examine egg 1"],
         "There's nothing special about egg 1."),
        (["go to diningtable 1", "take knife 1 from diningtable 1", "slice egg 1 with knife 1"],
         "You sliced the egg 1 with the knife 1."),
    ],
)  # fmt: skip
def test_texts(commands, text):
    state = play(kitchen(), *commands[:-1])
    assert act(state, commands[-1])[1] == text


@pytest.mark.parametrize(
    ("treatments", "text"),
    [
        (["heat"], "This is a hot egg 1."),
        (["cool"], "This is a cold egg 1."),
        (["clean"], "This is a clean egg 1."),
        (["clean", "heat"], "This is a hot and clean egg 1."),
        (["heat", "cool", "clean"], "This is a cool and clean egg 1."),
    ],
)
def test_heat_and_cold_replace_each_other_and_cleanness_stays(treatments, text):
    site = {"heat": "microwave 1", "cool": "fridge 1", "clean": "sinkbasin 1"}
    commands = [*EGG]
    for verb in treatments:
        commands += [f"go to {site[verb]}", f"{verb} egg 1 with {site[verb]}"]
    assert act(play(kitchen(), *commands), "examine egg 1")[1] == text


@pytest.mark.parametrize(
    ("commands", "refused", "reason"),
    [
        ([], "", "empty command"),
        ([], "dance", "unknown verb 'dance'"),
        ([], "look around", "look takes no argument"),
        ([], "go to hall 1", "no receptacle called 'hall 1'"),
        ([], "go fridge 1", "no receptacle called 'fridge 1'"),
        ([], "open fridge 1", "not at fridge 1"),
        ([], "use egg 1", "egg 1 cannot be used"),
        (["go to fridge 1"], "go to fridge 1", "already there"),
        (["go to fridge 1"], "close fridge 1", "fridge 1 is closed already"),
        (["go to fridge 1", "open fridge 1"], "open fridge 1", "fridge 1 is open already"),
        (["go to fridge 1"], "take egg 2 from fridge 1", "fridge 1 is closed"),
        (["go to fridge 1"], "take egg 1 from diningtable 1", "not at diningtable 1"),
        (["go to countertop 1"], "open countertop 1", "countertop 1 has no door"),
        (["go to countertop 1"], "take egg 1 from countertop 1", "egg 1 is not there"),
        (["go to countertop 1"], "move egg 1 to countertop 1", "egg 1 is not in hand"),
        (["go to sinkbasin 1"], "clean egg 1 with sinkbasin 1", "egg 1 is not in hand"),
        (["go to diningtable 1"], "examine egg 1", "not in hand"),
        (EGG, "take knife 1 from diningtable 1", "hand is full"),
        (EGG, "heat egg 1 with diningtable 1", "cannot heat with diningtable 1"),
        ([*EGG, "go to fridge 1"], "move egg 1 to fridge 1", "fridge 1 is closed"),
        ([*EGG, "go to sinkbasin 1"], "heat egg 1 with sinkbasin 1",
         "cannot heat with sinkbasin 1"),
        (KNIFE, "slice knife 1 with knife 1", "cannot slice knife 1"),
        (KNIFE, "slice egg 2 with knife 1", "egg 2 is not there"),
        ([*KNIFE, "go to microwave 1"], "heat knife 1 with microwave 1", "cannot heat knife 1"),
        ([*KNIFE, "go to fridge 1", "open fridge 1"], "move knife 1 to fridge 1",
         "knife 1 does not fit fridge 1"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(commands, refused, reason):
    before = play(kitchen(), *commands)
    assert act(before, refused) == (
        before._replace(steps=before.steps + 1),
        "Nothing happens.",
        reason,
    )


def test_a_lamp_is_furniture():
    assert act(play(study(), "go to desk 1"), "take desklamp 1 from desk 1")[2] == (
        "desklamp 1 cannot be picked up"
    )


# What the goals ask


@pytest.mark.parametrize(
    ("game", "before", "last"),
    [
        (kitchen(),
         [*EGG, "go to countertop 1"],
         "move egg 1 to countertop 1"),
        (kitchen("pick_heat_then_place_in_recep"),
         [*EGG, "go to microwave 1",
          "heat egg 1 with microwave 1", "go to countertop 1"],
         "move egg 1 to countertop 1"),
        (kitchen("pick_cool_then_place_in_recep", "DiningTable"),
         [*EGG, "go to fridge 1",
          "cool egg 1 with fridge 1", "go to diningtable 1"],
         "move egg 1 to diningtable 1"),
        (kitchen("pick_clean_then_place_in_recep"),
         [*EGG, "go to sinkbasin 1",
          "clean egg 1 with sinkbasin 1", "go to countertop 1"],
         "move egg 1 to countertop 1"),
        (kitchen("pick_two_obj_and_place", "DiningTable"),
         ["go to fridge 1", "open fridge 1", "take egg 2 from fridge 1", "go to diningtable 1"],
         "move egg 2 to diningtable 1"),
        (study(),
         ["go to bed 1", "take book 1 from bed 1", "go to desk 1"],
         "use desklamp 1"),
    ],
)  # fmt: skip
def test_a_goal_is_reached_by_its_last_command_only(game, before, last):
    state = play(game, *before)
    assert not won(state)
    assert won(act(state, last)[0])


@pytest.mark.parametrize("task_type", [t for t in TASK_TYPES if "_then_" in t])
def test_an_untreated_thing_in_its_place_is_no_win(task_type):
    commands = [*EGG, "go to countertop 1"]
    assert not won(play(kitchen(task_type), *commands, "move egg 1 to countertop 1"))


@pytest.mark.parametrize(("wanted", "other"), [("heat", "cool"), ("cool", "heat")])
def test_a_treatment_undone_is_no_win(wanted, other):
    site = {"heat": "microwave 1", "cool": "fridge 1"}
    commands = [*EGG]
    for verb in (wanted, other):
        commands += [f"go to {site[verb]}", f"{verb} egg 1 with {site[verb]}"]
    game = kitchen(f"pick_{wanted}_then_place_in_recep")
    assert not won(play(game, *commands, "go to countertop 1", "move egg 1 to countertop 1"))


def test_two_things_in_two_receptacles_are_no_win():
    game = kitchen("pick_two_obj_and_place", "DiningTable")
    tables = (*game.receptacles[:2], Thing("DiningTable", 2), *game.receptacles[3:])
    apart = HouseholdGame(tables, game.objects, game.places, game.goal)
    together = HouseholdGame(tables, game.objects, (1, 1, 1), game.goal)
    assert (won(start(apart)), won(start(together))) == (False, True)


def test_light_counts_only_with_the_thing_in_hand_beside_the_lamp():
    lit = play(study(), "go to desk 1", "use desklamp 1", "go to bed 1", "take book 1 from bed 1")
    assert not won(lit)
    assert won(act(lit, "go to desk 1")[0])


# States, tasks and splits


@few
@given(TASKS, st.integers())
def test_states_are_values(task, seed):
    path = walk(ENV, task, seed)
    kept = [tuple(state) for state, _, _ in path]
    for (state, command, results), before in zip(reversed(path), reversed(kept), strict=True):
        assert tuple(state) == before  # nothing that came later has changed it
        assert ENV.step(state, command) == results  # and a branch from it goes the same way


@few
@given(TASKS)
def test_a_task_is_the_same_game_every_time(task):
    again = Household(max_steps=31)  # another environment, so nothing is remembered
    assert again.reset(task, key=5) == ENV.reset(task, key=3)
    assert ENV.game(task).goal.task_type == TASK_TYPES[task % 6]


@few
@given(TASKS, st.sampled_from(SPLITS), st.sampled_from(["real", "generated"]))
def test_splits_share_no_game(task, split, rooms):
    game = Household(split=split, rooms=rooms).game(task)
    allowed = {"valid_seen": {0}, "valid_unseen": {1}, "test_unseen": {2}}
    assert checksum(game) in allowed.get(split, {3, 4, 5, 6, 7})
    if rooms == "real":
        unseen = {"valid_unseen": VALID_UNSEEN_ROOMS, "test_unseen": TEST_UNSEEN_ROOMS}
        seen = set(catalogue().rooms) - VALID_UNSEEN_ROOMS - TEST_UNSEEN_ROOMS
        assert game.room in unseen.get(split, seen)


def test_there_are_120_rooms_in_alfreds_splits():
    sizes = {split: [len(rooms_of(split, kind)) for kind in ROOM_KINDS] for split in SPLITS}
    assert sizes == {
        "train": [27, 27, 27, 27],
        "valid_seen": [27, 27, 27, 27],
        "valid_unseen": [1, 1, 1, 1],
        "test_unseen": [2, 2, 2, 2],
    }


@few
@given(TASKS)
def test_things_lie_where_they_fit_and_the_goal_is_open(task):
    state, _ = ENV.reset(task)
    game = state.game
    assert not won(state)
    for thing, place in zip(game.objects, game.places, strict=True):
        kind = game.receptacles[place].type
        assert kind in places_for(thing.type)
        assert (thing.type, kind) != (game.goal.object, game.goal.receptacle)


@few
@given(st.sampled_from(ROOM_KINDS), st.integers(), st.integers(1, 40), st.integers(1, 30))
def test_generated_rooms_keep_their_limits(kind, seed, receptacles, objects):
    room = generate_room(kind, random.Random(seed), receptacles, objects)
    assert 0 < sum(count for _, count in room.receptacles) <= receptacles
    assert 0 < len(room.objects) <= objects
    for task_type in TASK_TYPES:
        for wanted, _ in possible_goals(room, task_type):
            assert wanted in room.objects


# What an agent may send


@few
@given(TASKS, st.text())
def test_any_text_is_answered_and_costs_a_step(task, action):
    state, _ = ENV.reset(task)
    after, text, reward, terminated, truncated, info = ENV.step(state, action)
    assert (reward, terminated, truncated, after.steps) == (0.0, False, False, 1)
    assert info["valid"] == (action.strip() in ENV.admissible_commands(state))
    if not info["valid"]:
        assert (text, after) == (NOTHING_HAPPENS, state._replace(steps=1))
        assert info["reason"] and not info["won"]


@few
@given(TASKS, st.integers(), st.data())
def test_a_command_is_understood_exactly_if_it_is_listed(task, seed, data):
    state = walk(ENV, task, seed)[-1][2][0]
    listed = admissible_commands(state)
    assert list(listed) == sorted(set(listed))
    names = [thing.name for thing in (*state.game.objects, *state.game.receptacles)]
    verbs = ("take", "move", "heat", "cool", "clean", "slice", "open", "close", "use", "examine")
    pair = (
        f"{data.draw(st.sampled_from(verbs))} {data.draw(st.sampled_from(names))}"
        f"{data.draw(st.sampled_from(['', ' from ', ' to ', ' with ']))}"
        f"{data.draw(st.sampled_from(['', *names]))}"
    )
    assert (not act(state, pair)[2]) == (pair.strip() in listed)
    assert all(not act(state, command)[2] for command in listed)


def test_an_episode_is_truncated_after_max_steps():
    env = Household(max_steps=3)
    state, _ = env.reset(0)
    ends = []
    for _ in range(3):
        state, _, _, terminated, truncated, _ = env.step(state, "dance")
        ends.append((terminated, truncated))
    assert ends == [(False, False), (False, False), (False, True)]


def test_a_win_with_the_last_step_is_no_truncation():
    game = kitchen()
    commands = [*EGG, "go to countertop 1"]
    state = play(game, *commands)
    *_, reward, terminated, truncated, info = Household(max_steps=4).step(
        state, "move egg 1 to countertop 1"
    )
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["won"] and info["success"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "test"},
        {"task_types": ("pick",)},
        {"task_types": ()},
        {"rooms": "mine"},
        {"room_kinds": ("Hall",)},
        {"max_steps": 0},
        {"copies": ()},
    ],
)
def test_unknown_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        Household(**wrong)


def test_a_task_without_a_room_is_refused():
    env = Household(task_types=("pick_heat_then_place_in_recep",), room_kinds=("Bathroom",))
    with pytest.raises(ValueError, match="no game of type"):
        env.reset(0)
    with pytest.raises(ValueError, match="non-negative"):
        ENV.reset(-1)
