"""Our household game against ALFWorld's own engine: the same games, the same commands.

Skipped where alfworld is missing: it builds GPL parts, so the project never depends on it.

    pip install alfworld==0.4.2 pytest       # in an environment of its own
    PYTHONPATH=. python -m pytest --noconftest -p no:cacheprovider \
        tests/envs/test_household_differential.py
"""

import os
import random

import pytest

from steprl.envs.adapters.alfworld import description, pddl_engine
from steprl.envs.household import TASK_TYPES, Household
from steprl.envs.household import expert as experts
from steprl.envs.household.catalogue import catalogue, kind_of_floor_plan
from steprl.envs.household.game import HouseholdGame, State, Thing

RANDOM_STEPS = 24
EXPERT_STEPS = 20
# (task type, kind of room, rooms, task number): every task type in every kind of room it occurs in;
# one real kitchen less, for the engine is slow there.
CASES = [
    (task_type, kind, rooms, task)
    for task_type in TASK_TYPES
    for kind in sorted(catalogue().room_kinds[task_type])
    for rooms, task in (("real", 1), ("generated", 2), ("real", 3))
    if task < 3 or kind != "Kitchen"
]


@pytest.fixture(scope="module")
def alfworld(tmp_path_factory):
    """Loads a game into the engine; importing alfworld creates a folder, so it gets one of ours."""
    os.environ["ALFWORLD_DATA"] = str(tmp_path_factory.mktemp("alfworld"))
    pytest.importorskip("alfworld", reason="alfworld is not installed (it is optional: GPL parts)")

    def load(game: HouseholdGame) -> tuple:
        engine = pddl_engine()
        engine.load(description(game))
        return engine, engine.reset()

    return load


def random_command(env: Household, state: State, rng: random.Random) -> str:
    """Every kind of command as often as any other; sometimes nonsense."""
    if rng.random() < 0.1:
        names = [t.name for t in (*state.game.objects, *state.game.receptacles)]
        first, second = rng.choice(names), rng.choice(names)
        pairs = (f"take {first} from {second}", f"move {first} to {second}")
        pairs += (f"heat {first} with {second}", f"slice {first} with {second}")
        verb = rng.choice(["use", "open", "examine", "go to", "close", "dance with"])
        return rng.choice([*pairs, f"{verb} {first}"])
    admissible = env.admissible_commands(state)
    verbs = sorted({command.split()[0] for command in admissible})
    if rng.random() < 0.9:
        verbs = [verb for verb in verbs if verb not in ("help", "inventory", "look")]
    verb = rng.choice(verbs)
    return rng.choice([command for command in admissible if command.split()[0] == verb])


def tour_of_treatments(game: HouseholdGame) -> list[str]:
    """Slice, heat, cool and clean four foods in turn, and examine them after each change."""
    where = {t: game.receptacles[p].name for t, p in zip(game.objects, game.places, strict=True)}
    knife = next(t for t in where if t.type in ("Knife", "ButterKnife"))
    foods = [next(t for t in where if t.type == k) for k in ("Apple", "Egg", "Potato", "Tomato")]
    sites = {"heat": "microwave 1", "cool": "fridge 1", "clean": "sinkbasin 1"}

    def fetch(thing: Thing) -> list[str]:
        place = where[thing]
        return [f"go to {place}", f"open {place}", f"take {thing.name} from {place}"]

    commands = fetch(knife)
    for food in foods[:2]:
        commands += [f"go to {where[food]}", f"slice {food.name} with {knife.name}"]
    commands += ["go to countertop 1", f"move {knife.name} to countertop 1"]
    orders = (("clean", "heat", "cool"), ("heat", "cool"), ("heat", "cool", "clean"), ("clean",))
    for food, verbs in zip(foods, orders, strict=True):
        commands += [*fetch(food), f"examine {food.name}"]
        for verb in verbs:
            commands += [f"go to {sites[verb]}", f"{verb} {food.name} with {sites[verb]}"]
            commands += [f"examine {food.name}"]
        commands += ["inventory", "go to countertop 1", f"move {food.name} to countertop 1"]
    return commands


def assert_same_answer(env: Household, engine, state: State, command: str):
    """Give both games a command; texts, admissible commands, reward and end are to be equal."""
    state, text, reward, success, _, info = env.step(state, command)
    theirs, score, done = engine.step(command)
    assert (command, text) == (command, theirs.feedback)
    assert list(info["admissible_commands"]) == theirs["admissible_commands"], command
    assert (reward, success, success) == (score, done, theirs["won"]), command
    assert info["valid"] or text == "Nothing happens."
    return state, text, success


@pytest.mark.parametrize(("task_type", "kind", "rooms", "task"), CASES)
def test_texts_commands_and_wins_equal_alfworlds(alfworld, task_type, kind, rooms, task):
    env = Household(
        task_types=(task_type,),
        room_kinds=(kind,),
        rooms=rooms,
        max_receptacles=16,
        max_steps=10_000,
    )
    state, text = env.reset(task)
    assert rooms == "generated" or kind_of_floor_plan(state.game.room) == kind
    engine, theirs = alfworld(state.game)
    assert text == theirs.feedback
    assert list(env.admissible_commands(state)) == theirs["admissible_commands"]

    rng = random.Random(task)
    for _ in range(RANDOM_STEPS):
        command = random_command(env, state, rng)
        state, _, success = assert_same_answer(env, engine, state, command)
    for _ in range(EXPERT_STEPS):  # the expert goes on from wherever the walk has led
        command = experts.act(experts.knowing_all(state))
        state, _, success = assert_same_answer(env, engine, state, command)
        if success:
            break
    assert success


def test_every_condition_of_a_thing_is_told_as_in_alfworld(alfworld):
    env = Household(room_kinds=("Kitchen",), task_types=("pick_and_place_simple",))
    state, _ = env.reset(5)
    engine, _ = alfworld(state.game)
    told = set()
    for command in tour_of_treatments(state.game):
        state, text, _ = assert_same_answer(env, engine, state, command)
        if command.startswith("examine"):
            told.add(" ".join(text.split()[:-2]))
    conditions = {"clean", "hot", "cold", "cool and clean"}
    conditions |= {f"{c}sliced" for c in ("", "clean ", "hot ", "cool ", "hot and clean ")}
    conditions |= {"cool and clean sliced"}
    assert told == {f"This is a {c}" for c in conditions} | {"There's nothing special about"}
