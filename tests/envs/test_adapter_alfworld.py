"""ALFWorld's engine by value: the games of `household`, text by text, branches by replay.

Skipped where alfworld is missing: it builds GPL parts.

    pip install alfworld pytest       # in an environment of its own
    PYTHONPATH=. python -m pytest --noconftest -p no:cacheprovider tests/envs/test_adapter_alfworld.py
"""

import importlib.util
import os
import pickle
import random

import pytest

# Not imported to see whether it is there: that would make a folder in the home directory.
if importlib.util.find_spec("alfworld") is None:
    pytest.skip("alfworld is not installed (it is optional)", allow_module_level=True)

from steprl.envs.adapters.alfworld import AlfworldEngine, environment
from steprl.envs.household import Household

OPTIONS = {"rooms": "generated", "max_receptacles": 6, "max_object_types": 8, "max_steps": 12}
NONSENSE = ("", "  ", "dance", "go to", "take\nall", "look ", "x" * 5000, "ünïcode", "\x00")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    home, before = tmp_path_factory.mktemp("home"), dict(os.environ)
    os.environ.pop("ALFWORLD_DATA", None)
    os.environ["HOME"] = str(home)
    made = environment(engines=2, **OPTIONS)
    assert "ALFWORLD_DATA" not in os.environ and list(home.iterdir()) == []
    os.environ.update(before)
    yield made
    made.close()


@pytest.mark.parametrize("task", range(6))
def test_each_task_is_that_of_household_text_by_text(env, task):
    household = Household(**OPTIONS)
    (state, text), (ours, told) = env.reset(task), household.reset(task)
    assert text == told
    rng, commands = random.Random(task), household.admissible_commands(ours)
    for _ in range(OPTIONS["max_steps"]):
        command = rng.choice((*commands, "dance"))
        state, *theirs, info = env.step(state, command)
        ours, *expected, about = household.step(ours, command)
        assert (command, *theirs) == (command, *expected)
        commands = about["admissible_commands"]
        assert info == about | {"reason": info["reason"]}
        assert bool(info["reason"]) is bool(about["reason"])
        if expected[-2] or expected[-1]:
            break


def test_a_branch_from_the_middle_is_the_same_twice(env):
    rng, (state, _) = random.Random(0), env.reset(1)
    state, *_, info = env.step(state, "look")
    for _ in range(4):
        state, *_, info = env.step(state, rng.choice(info["admissible_commands"]))
    before = env.counts.replayed
    env.reset(2), env.reset(3)  # both engines are elsewhere

    def go_on(state):
        rng, seen, info = random.Random(5), [], env.step(state, "look")[-1]
        for _ in range(4):
            state, *rest = env.step(state, rng.choice(info["admissible_commands"]))
            seen.append(rest)
            info = rest[-1]
        return seen

    assert go_on(state) == go_on(pickle.loads(pickle.dumps(state)))
    assert env.counts.replayed > before


def test_nonsense_costs_a_step_and_changes_nothing(env):
    engine = AlfworldEngine(Household(**OPTIONS))
    engine.reset(0)
    *_, info = engine.step("look")
    for command in NONSENSE:
        text, reward, terminated, truncated, now = engine.step(command)
        assert (reward, terminated, truncated) == (0, False, False)
        assert now["admissible_commands"] == info["admissible_commands"]
        assert now["valid"] is (command == "look ") and now["valid"] is (now["reason"] == "")
        assert (text == "Nothing happens.") is not now["valid"]
    engine.close()


def test_splits_and_settings_are_those_of_household():
    evaluated = environment(split="eval", **OPTIONS)
    assert evaluated.reset(0)[1] == Household(split="valid_unseen", **OPTIONS).reset(0)[1]
    assert evaluated.max_steps == OPTIONS["max_steps"]
    evaluated.close()
    with pytest.raises(ValueError, match="split: .*'nowhere'"):
        environment(split="nowhere")
    with pytest.raises(TypeError, match="dragons"):
        environment(dragons=True)
