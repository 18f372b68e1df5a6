"""The expert wins, by reading only; and the vocabulary covers all that is read and said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.household import SPLITS, TASK_TYPES, Household
from steprl.envs.household import expert as experts
from steprl.envs.household.catalogue import catalogue
from steprl.envs.household.game import HouseholdGame, start
from steprl.envs.household.rules import act, admissible_commands, won
from steprl.envs.household.texts import HELP
from steprl.envs.household.vocabulary import (
    LARGEST_NUMBER,
    detokenize,
    split_pattern,
    type_names,
    vocabulary,
)

few = settings(deadline=None, max_examples=30)
ENV = Household(admissible=False, max_steps=50)


def demonstrations(env: Household, tasks: range, **how) -> list[experts.Demonstration]:
    return [experts.demonstrate(env, task, **how) for task in tasks]


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("split", SPLITS)
def test_expert_wins_nearly_every_game(task_type, split):
    env = Household(split=split, task_types=(task_type,), admissible=False, max_steps=50)
    played = demonstrations(env, range(25))
    assert sum(d.won for d in played) >= 24


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_expert_that_knows_the_house_wins_every_game_in_few_steps(task_type):
    env = Household(task_types=(task_type,), admissible=False)
    played = demonstrations(env, range(40), knows_all=True)
    assert all(d.won for d in played)
    assert max(len(d.actions) for d in played) <= 11  # twice: go, open, take, go, (open), move


def shortest(game: HouseholdGame, limit: int) -> int:
    """Length of the shortest winning plan, by breadth-first search; `limit` if none is shorter."""
    frontier = [start(game)]
    visited = {frontier[0][1:]}
    for length in range(1, limit):
        found = []
        for state in frontier:
            for command in admissible_commands(state):
                after = act(state, command)[0]._replace(steps=0)
                if won(after):
                    return length
                if after[1:] not in visited:
                    visited.add(after[1:])
                    found.append(after)
        frontier = found
    return limit


@pytest.mark.parametrize("task", range(18))
def test_expert_that_knows_the_house_takes_the_shortest_way_in_small_rooms(task):
    env = Household(rooms="generated", max_receptacles=5, max_object_types=3, copies=(1,))
    played = experts.demonstrate(env, task, knows_all=True)
    assert len(played.actions) == shortest(env.game(task), limit=len(played.actions))


@few
@given(st.integers(0, 10**9))
def test_expert_gives_only_commands_that_are_understood(task):
    played = experts.demonstrate(ENV, task)
    assert "Nothing happens." not in played.observations
    assert len(played.observations) == len(played.actions) + 1


@few
@given(st.integers(0, 10**9))
def test_expert_depends_on_the_texts_alone(task):
    played = experts.demonstrate(ENV, task)
    knowledge = experts.begin(played.observations[0])
    for action, observation in zip(played.actions, played.observations[1:], strict=True):
        assert experts.act(knowledge) == action
        knowledge = experts.observe(knowledge, action, observation)


@few
@given(st.integers(0, 10**9), st.integers())
def test_what_is_read_is_what_is(task, seed):
    """A knowledge built from texts never contradicts the state, even after wandering."""
    played = experts.demonstrate(ENV, task, seed, wander=0.3)
    state, text = ENV.reset(task)
    knowledge = experts.begin(text)
    for action in played.actions:
        state, text, *_ = ENV.step(state, action)
        knowledge = experts.observe(knowledge, action, text)
        truth = experts.knowing_all(state)
        assert (knowledge.at, knowledge.held, knowledge.treated) == (
            truth.at,
            truth.held,
            truth.treated,
        )
        assert knowledge.closed <= truth.closed
        for place, things in knowledge.seen.items():
            assert sorted(things) == sorted(truth.seen[place])


def test_weaker_experts_are_weaker():
    env, tasks = Household(admissible=False), range(60)
    good, lost, quitting = (
        sum(d.won for d in demonstrations(env, tasks, **how))
        for how in ({}, {"wander": 0.7}, {"give_up": 0.1})
    )
    assert good >= 57
    assert lost < good - 5 and quitting < good - 5


def test_every_goal_sentence_is_read_back():
    for task_type, templates in catalogue().sentences.items():
        for template in templates:
            wish = experts.read_wish(template.format(obj="mug", recep="desk", toggle="desklamp"))
            assert wish.task_type == task_type and wish.object == "mug"
            assert {"desk", "desklamp"} & {wish.receptacle, wish.lamp}
    with pytest.raises(ValueError, match="no known goal"):
        experts.read_wish("dance with a mug")


# Vocabulary


def uncovered(text: str) -> str:
    return split_pattern().sub("", text).strip()


@few
@given(st.integers(0, 10**9), st.sampled_from(["real", "generated"]), st.integers())
def test_vocabulary_covers_whatever_is_read_and_said(task, rooms, seed):
    env = Household(rooms=rooms, max_steps=40)
    played = experts.demonstrate(env, task, seed, wander=0.5)
    state, _ = env.reset(task)
    texts = [*played.observations, *played.actions]
    for action in played.actions:
        state, *_, info = env.step(state, action)
        texts += info["admissible_commands"]
        texts += [env.step(state, command)[1] for command in info["admissible_commands"][::7]]
    assert [text for text in dict.fromkeys(texts) if uncovered(text)] == []


@few
@given(st.integers(0, 10**9), st.integers())
def test_commands_come_back_from_their_phrases(task, seed):
    state, _ = ENV.reset(task)
    for action in experts.demonstrate(ENV, task, seed, wander=0.2).actions:
        state = ENV.step(state, action)[0]
        for command in ENV.admissible_commands(state):
            assert detokenize(split_pattern().findall(command)) == command


@pytest.mark.parametrize("condition", ["hot", "cold", "clean", "cool and clean", "hot and clean"])
@pytest.mark.parametrize("sliced", ["", "sliced "])
def test_vocabulary_covers_what_examining_shows(condition, sliced):
    condition = "cool" if condition == "cold" and sliced else condition
    text = f"This is a {condition} {sliced}apple 1."
    assert not uncovered(text) and len(split_pattern().findall(text)) == 4


def test_vocabulary_is_small_and_has_whole_names_numbers_and_help():
    words = vocabulary()
    assert len(words) == len(set(words)) < 300
    assert {str(n) for n in range(1, LARGEST_NUMBER + 1)} <= set(words)
    assert {"countertop", "desklamp", "toiletpaperhanger"} <= set(type_names()) <= set(words)
    assert split_pattern().findall(HELP) == [HELP.strip()]


def test_no_room_needs_a_number_beyond_the_vocabulary():
    counts = [n for room in catalogue().rooms.values() for _, n in room.receptacles]
    assert max(counts) <= LARGEST_NUMBER
