"""An environment out of a calculator: reset, steps, branches, endings."""

import json
import pickle

import numpy as np
import pytest

from steprl.envs.tool_environment import ToolEnvironment, ToolState
from steprl.tools import make_tool, render_tool_call
from tests.tools.functions import add, wait

TASKS = [("What is 1 + 2 + 3?", 6.0), ("What is 2 + 2?", 4.0)]


def multiply(a: float, b: float) -> float:
    """Multiply two numbers.

    Args:
        a, b: the numbers.
    """
    return a * b


def prompt(task, schemas):
    names = ", ".join(schema["function"]["name"] for schema in schemas)
    return f"{task[0]} Tools: {names}"


def reward(task, answer):
    try:
        return float(float(answer) == task[1])
    except ValueError:
        return 0.0


def calculator(**settings):
    return ToolEnvironment([add, multiply], TASKS, prompt, reward, **settings)


def calls(*pairs):
    return "\n".join(render_tool_call("add", {"a": a, "b": b}) for a, b in pairs)


def response(*texts):
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)


def test_an_episode():
    env = calculator()
    state, text = env.reset(0)
    assert text == "What is 1 + 2 + 3? Tools: add, multiply" and state == ToolState(0)
    state, text, reward, terminated, truncated, info = env.step(
        state, "First: " + calls((1, 2), (2, 3))
    )
    assert text == response("3.0", "5.0")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["valid"], info["success"], info["tool_calls"], info["tool_errors"]) == (
        True,
        False,
        2,
        0,
    )
    records = json.loads(info["tool_outcomes"])
    assert [r["arguments"] for r in records] == [{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 3.0}]
    assert [r["status"] for r in records] == ["ok", "ok"]
    state, text, reward, terminated, truncated, info = env.step(state, "So: <answer> 6 </answer>.")
    assert (text, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info["success"] and info["valid"] and state.answer == "6"
    assert [len(turn.outcomes) for turn in state.turns] == [2, 0]


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("  6\n", "6"),
        ("<answer>5</answer> no, <answer>6</answer>", "6"),
        (f"<think>{calls((1, 2))} <answer>5</answer></think>6", "6"),
        (f"<think>It may be <answer>6</answer>, or {calls((1, 2))}", ""),  # cut off
        ("<answer>6</answer> <think>or <answer>5</answer>", "6"),
        ("6 <answer>", "6 <answer>"),
        ("", ""),
    ],
)
def test_an_action_without_a_call_is_the_answer(action, answer):
    env = calculator()
    state, _, reward, terminated, _, info = env.step(env.reset(0)[0], action)
    assert (state.answer, terminated, reward) == (answer, True, float(answer == "6"))
    assert info["valid"] == bool(answer) and bool(info["reason"]) != info["valid"]


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("<tool_call>add(1, 2)</tool_call>", "no valid JSON"),
        (render_tool_call("subtract", {"a": 1, "b": 2}), "no tool `subtract`"),
        (render_tool_call("add", {"a": 1}), "`b` (a number) is missing"),
        ("<tool_call>", "has no end tag"),
    ],
)
def test_a_call_that_cannot_be_made_costs_a_step(action, reason):
    env = calculator()
    state, text, reward, terminated, _, info = env.step(env.reset(0)[0], action)
    assert reason in text and reason in info["reason"] and not info["valid"]
    assert (reward, terminated, len(state.turns), info["tool_errors"]) == (0.0, False, 1, 1)
    assert info["tool_calls"] == 0


def test_good_and_bad_calls_are_answered_in_order():
    env = calculator(max_calls=2)
    action = "<tool_call>1</tool_call>" + calls((1, 1), (2, 2), (3, 3)) + "</tool_call>"
    state, text, *_, info = env.step(env.reset(0)[0], action)
    assert [o.status for o in state.turns[0].outcomes] == [
        "bad_form",
        "ok",
        "ok",
        "too_many",
        "unopened",
    ]
    assert "only 2 calls are made in one step" in text
    assert (info["tool_calls"], info["tool_errors"]) == (2, 3)
    assert info["reason"].startswith("Not called: a block holds one object")
    _, _, *_, info = env.step(env.reset(0)[0], calls((1, 1), (2, 2), (3, 3)))
    assert not info["valid"] and "only 2 calls" in info["reason"]


def test_a_tool_that_fails_was_called_rightly():
    def divide(a: float, b: float) -> float:
        """Divide.

        Args:
            a, b: the numbers.
        """
        return a / b

    env = ToolEnvironment([divide], TASKS, prompt, reward)
    _, text, *_, info = env.step(env.reset(0)[0], render_tool_call("divide", {"a": 1, "b": 0}))
    assert "ZeroDivisionError" in text
    assert info["valid"] and (info["tool_calls"], info["tool_errors"]) == (1, 1)


def test_steps_run_out():
    env = calculator(max_steps=2)
    state, _ = env.reset(0)
    state, *_, truncated, _ = env.step(state, calls((1, 2)))
    assert not truncated
    last, text, reward, terminated, truncated, info = env.step(state, calls((3, 3)))
    assert (text, reward, terminated, truncated) == (response("6.0"), 0.0, False, True)
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(last, "6")
    answered, _, reward, terminated, truncated, _ = env.step(state, "6")
    assert (reward, terminated, truncated) == (1.0, True, False)
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(answered, "6")


def test_a_state_is_a_value():
    """A branch is another step from a state that was kept; nothing that happens later changes it."""
    env = calculator()
    root, _ = env.reset(1)
    middle, *_ = env.step(root, calls((2, 2)))
    kept = pickle.loads(pickle.dumps(middle))
    left = env.step(middle, calls((1, 1)))
    right = env.step(middle, "4")
    assert left[0] != right[0] and left[0].turns[0] is right[0].turns[0] is middle.turns[0]
    assert middle == kept and hash(middle) == hash(kept) and root == ToolState(1)
    again = env.step(kept, calls((1, 1)))
    assert again[:5] == left[:5]
    other = calculator()
    assert other.step(kept, "4")[:5] == right[:5]


def test_tasks_go_round():
    env = calculator()
    assert env.reset(3)[1] == env.reset(1)[1] == env.reset(np.int32(1))[1]
    assert env.step(env.reset(3)[0], "4")[2] == 1.0
    with pytest.raises(ValueError, match="non-negative"):
        env.reset(-1)


def test_the_user_decides_what_is_seen_and_what_is_solved():
    def history(task, state):
        return f"{task[0]} {len(state.turns)} done, last {state.turns[-1].outcomes[0].text}"

    env = calculator(observe=history, success=0.5)
    state, _ = env.reset(0)
    state, text, *_ = env.step(state, calls((1, 2)))
    assert text == "What is 1 + 2 + 3? 1 done, last 3.0"
    half = ToolEnvironment([add], TASKS, prompt, lambda task, answer: 0.5, success=0.5)
    *_, info = half.step(half.reset(0)[0], "x")
    assert info["success"]


def test_what_chat_models_are_told():
    env = calculator()
    assert [schema["function"]["name"] for schema in env.tools] == ["add", "multiply"]
    assert (
        json.loads(json.dumps(env.tools))
        == env.tools
        == [make_tool(f).schema for f in (add, multiply)]
    )
    assert env.context == "extend" and not hasattr(env, "system")
    assert calculator(system="You count.").system == "You count."


def test_a_prompt_may_be_made_anew_each_step():
    def history(task, state):
        seen = [outcome.text for turn in state.turns for outcome in turn.outcomes]
        return [{"role": "user", "content": f"{task[0]} So far: {', '.join(seen)}"}]

    env = calculator(observe=history, context="rebuild")
    state, _ = env.reset(0)
    for expected in ("3.0", "3.0, 3.0"):
        state, messages, *_ = env.step(state, calls((1, 2)))
        assert messages == [{"role": "user", "content": f"What is 1 + 2 + 3? So far: {expected}"}]
    with pytest.raises(ValueError, match="context='rebuild' needs observe"):
        calculator(context="rebuild")


def test_a_tool_that_may_hang_is_stopped():
    tools = [make_tool(wait, may_hang=True)]
    env = ToolEnvironment(tools, TASKS, prompt, reward, time_limit=0.2)
    action = render_tool_call("wait", {"seconds": 60, "says": ""})
    _, text, *_, info = env.step(env.reset(0)[0], action)
    assert "took longer than 0.2 seconds" in text and info["tool_errors"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"max_calls": 0}, "max_calls=0"),
        ({"time_limit": -1}, "time_limit=-1"),
        ({"time_limit": "soon"}, "time_limit='soon'"),
        ({"time_limit": float("nan")}, "time_limit=nan"),
        ({"max_characters": None}, "max_characters=None"),
        ({"max_calls": "4"}, "max_calls='4'"),
        ({"success": None}, "success=None: give the reward"),
        ({"observe": "all"}, "observe: 'all' is no function"),
        ({"context": "grow"}, "choose from rebuild, extend"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        calculator(**settings)
    with pytest.raises(ValueError, match="tasks: there is none"):
        ToolEnvironment([add], [], prompt, reward)


def test_what_the_record_of_a_step_keeps():
    """The loop keeps numbers and texts of `info`: all of it, then."""
    env = calculator()
    *_, info = env.step(env.reset(0)[0], calls((1, 2)))
    assert all(isinstance(value, str | int | float | bool) for value in info.values())
