"""The small web shop: commands, pages, limits, rewards, prompts and values."""

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.mini_shop import Goal, MiniShop, Product, demonstrate, make_shop, mini_shop
from steprl.envs.mini_shop.commands import PLACEHOLDER, read_command
from steprl.tools import render_tool_call

pytest.importorskip("bm25s")

COAT = Product(
    "A1", "Ferry wool coat", 60.0, "coats", ("Clothing", "Coats"), "Ferry", ("fully lined",),
    (("color", ("red", "10")), ("size", ("10", "12"))), "A coat for the ferry.", ("Fully lined.",),
)  # fmt: skip
CUPS = [Product(f"C{n:02}", f"Cup number {n}", 5.0 + n, "cups") for n in range(25)]
GOAL = Goal("A1", "Get me a coat.", ("fully lined",), (("color", "red"), ("size", "12")), 70.0)
CUP_GOAL = Goal("C24", "Cup number 24, please.", ("number 24",))


@pytest.fixture(scope="module")
def shop():
    return make_shop([COAT, *CUPS], [GOAL, CUP_GOAL])


@pytest.fixture
def env(shop):
    return MiniShop(shop, shop.goals, context="extend", tool_call=False)


def play(env, *actions, task=0):
    """The result of the last step."""
    state, _ = env.reset(task)
    for action in actions:
        result = env.step(state, action)
        state = result[0]
    return result


def call(command):
    return render_tool_call("env_step", {"command": command})


def section(prompt, name):
    return prompt.split(f"## {name}\n")[1].split("\n\n## ")[0]


# An episode.


@pytest.mark.parametrize("form", [str, call])
def test_search_select_buy(env, form):
    state, text = env.reset(0)
    assert "Get me a coat." in text and "search[words]" in text
    expected = [
        ("search[wool coat]", "search_results", "A1 | Ferry wool coat | $60.00"),
        ("click[a1]", "item", "color (selected: nothing): red, 10"),
        ("click[Red]", "item", "color (selected: red): red, 10"),
        ("click[12]", "item", "size (selected: 12): 10, 12"),
        ("click[Features]", "subpage", "- Fully lined."),
        ("click[back to item]", "item", "color (selected: red)"),
    ]
    for command, page, seen in expected:
        state, text, reward, terminated, truncated, info = env.step(state, form(command))
        assert (state.page, reward, terminated, truncated) == (page, 0.0, False, False), command
        assert info["valid"] and not info["success"] and info["score"] == 0.0
        assert info["command"] == command
        assert seen in text
    state, text, reward, terminated, truncated, info = env.step(state, form("click[Buy Now]"))
    assert (reward, terminated, truncated, state.done) == (10.0, True, False, True)
    assert (info["success"], info["score"], info["bought"]) == (True, 1.0, "A1")
    assert env.metrics([info]) == {"score": 1.0, "success": 1.0, "bought": 1.0}


@pytest.mark.parametrize(
    ("reward", "right", "wrong", "broken"),
    [("success", 10.0, 0.0, -0.1), ("binary", 1.0, 0.0, 0.0), ("score", 1.0, 0.75, 0.0)],
)
def test_rewards(env, reward, right, wrong, broken):
    env = dataclasses.replace(env, reward=reward)
    start = ("search[coat]", "click[A1]")
    result = play(env, *start, "click[red]", "click[12]", "click[Buy Now]")
    assert (result[2], result[5]["success"]) == (right, True)
    result = play(env, *start, "click[Buy Now]")
    assert (result[2], result[3], result[5]["success"]) == (wrong, True, False)
    assert result[5]["score"] == 0.75 and result[5]["option_score"] == 0.0
    assert play(env, "buy it")[2] == broken
    assert play(env, "click[nothing]")[2] == 0.0  # a command, if one that leads nowhere


def test_the_full_score_is_an_option(env):
    """Values count whatever their names, so that size 10 and color 10 are the same."""
    env = dataclasses.replace(env, score_mode="full", goals=(dataclasses.replace(
        GOAL, options=(("size", "10"),)),))  # fmt: skip
    bought = ("search[coat]", "click[A1]", "click[10]", "click[Buy Now]")
    assert play(env, *bought)[5]["success"]
    small = play(dataclasses.replace(env, score_mode="small"), *bought)[5]
    assert (small["success"], small["option_score"]) == (False, 0.0)


# Commands.


@pytest.mark.parametrize(
    ("action", "verb", "argument"),
    [
        ("search[Red  Coat]", "search", "red coat"),
        ("  Click [Next >]\n", "click", "next >"),
        ("<think>search[a]</think>click[b]", "click", "b"),
        ("click[hot pink [2 pieces]]", "click", "hot pink [2 pieces]"),
        (f"I buy. {call('click[Buy Now]')}", "click", "buy now"),
        (call("buy"), "", ""),  # a call, but no command
    ],
)
def test_commands_are_read(action, verb, argument):
    command, reason = read_command(action)
    assert (command.verb, command.argument, reason) == (verb, argument, "")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("", "there is no command"),
        ("I would search[coat]", "there is no command"),
        ("search[a] search", "there is no command"),
        (call("click[a]") * 2, "2 calls"),
        (call("   "), "empty"),
        ('<tool_call>{"name": "buy", "arguments": {}}</tool_call>', "no tool `buy`"),
        ('<tool_call>{"name": "env_step", "arguments": {}}</tool_call>', "command"),
        ('<tool_call>{"name": "env_step"', "no end tag"),
    ],
)
def test_what_is_no_command_costs_a_step_and_is_told(env, action, reason):
    start, _ = env.reset(0)
    state, text, reward, terminated, truncated, info = env.step(start, action)
    assert reason in info["reason"] and info["reason"] in text and not info["valid"]
    assert (reward, terminated, truncated, state.steps) == (-0.1, False, False, 1)
    assert (state.page, state.query) == ("home", "")


@pytest.mark.parametrize(
    ("before", "action", "reason"),
    [
        ((), "click[Buy Now]", "no `buy now` to click"),
        ((), "click[A1]", "no `a1` to click"),  # not listed yet
        ((), "search[ ]", "words between the brackets"),
        ((), call("look"), "neither search[words] nor click[label]"),
        (("search[coat]",), "click[C01]", "no `c01`"),
        (("search[coat]",), "click[Next >]", "no `next >`"),
        (("search[coat]", "click[A1]"), "click[blue]", "no `blue`"),
        (("search[coat]", "click[A1]", "click[Reviews]"), "click[red]", "no `red`"),
    ],
)
def test_a_command_that_the_page_does_not_allow_does_nothing(env, before, action, reason):
    state = play(env, *before)[0] if before else env.reset(0)[0]
    after, text, reward, _, _, info = env.step(state, action)
    assert reason in info["reason"] and info["reason"] in text
    assert (reward, info["valid"], after.steps) == (0.0, False, state.steps + 1)
    same = ("page", "query", "hits", "number", "item", "subpage", "options")
    assert [getattr(after, name) for name in same] == [getattr(state, name) for name in same]
    text = env.step(after, "search[coat]")[1]
    assert "Nothing was done" not in text  # it is said once


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.text('search[click]<>tool_call{}" ', max_size=40))
def test_any_text_is_a_step(action):
    env = mini_shop()
    state = play(env, "search[rug]")[0]
    after, text, reward, _, _, info = env.step(state, action)
    assert after.steps == 2 and isinstance(text, str)
    assert bool(info["reason"]) is not info["valid"]
    assert reward in (0.0, -0.1)


# Pages.


def test_results_are_turned_ten_a_page(env):
    state, text, *_ = play(env, "search[cup]")
    assert len(state.hits) == 25 and "Page 1 of 3" in text
    allowed = env.admissible_commands(state)
    assert len(allowed) == 12 and allowed[0] == PLACEHOLDER and allowed[-1] == "click[Next >]"
    state, text, *_ = env.step(state, "click[Next >]")
    assert env.admissible_commands(state)[-2:] == ("click[< Prev]", "click[Next >]")
    state, text, *_ = env.step(state, "click[next >]")
    assert "Page 3 of 3" in text and len(env.admissible_commands(state)) == 7
    assert env.step(state, "click[< Prev]")[0].number == 1
    shown = [shop_page(env, n) for n in range(3)]
    assert len({asin for page in shown for asin in page}) == 25


def shop_page(env, number):
    state = play(env, "search[cup]", *["click[Next >]"] * number)[0]
    return [c for c in env.admissible_commands(state) if c.startswith("click[C")]


def test_ten_hits_are_one_page(env):
    state, text, *_ = play(dataclasses.replace(env, results=10), "search[cup]")
    assert "Page 1 of 1" in text and len(env.admissible_commands(state)) == 11


def test_a_search_is_limited_and_may_find_nothing(env):
    few = dataclasses.replace(env, results=5)
    assert len(play(few, "search[cup]")[0].hits) == 5
    state, text, *_, info = play(env, "search[zebra]")
    assert state.hits == () and "No product" in text and info["valid"]
    assert env.admissible_commands(state) == (PLACEHOLDER,)


def test_equal_hits_come_in_the_order_of_the_shop(env):
    assert play(env, "search[cups]")[0].hits == tuple(range(1, 26))


def test_back_to_search_keeps_the_results_and_forgets_the_item(env):
    before = ("search[cup]", "click[Next >]")
    page = play(env, *before)[0]
    asin = env.admissible_commands(page)[1]
    back = play(env, *before, asin, "click[Description]", "click[Back to Search]")[0]
    assert (back.page, back.number, back.hits, back.item) == ("search_results", 1, page.hits, "")
    again = play(
        env, "search[coat]", "click[A1]", "click[red]", "click[Back to Search]", "click[A1]"
    )
    assert again[0].options == ()


def test_a_value_of_two_options_goes_to_the_one_that_lacks_it(env):
    state = play(env, "search[coat]", "click[A1]", "click[10]")[0]
    assert state.options == (("color", "10"),)
    state = env.step(state, "click[10]")[0]
    assert dict(state.options) == {"color": "10", "size": "10"}
    assert dict(env.step(state, "click[red]")[0].options) == {"color": "red", "size": "10"}


def test_every_admissible_click_is_obeyed(env):
    states = [play(env, *path)[0] for path in (
        ("search[cup]",), ("search[coat]", "click[A1]"),
        ("search[coat]", "click[A1]", "click[Reviews]"),
    )]  # fmt: skip
    for state in states:
        for command in env.admissible_commands(state)[1:]:
            assert env.step(state, command)[5]["valid"], command


# Limits, and the end.


def test_the_last_step_truncates(env):
    env = dataclasses.replace(env, max_steps=3)
    state, text, _, terminated, truncated, _ = play(env, "search[cup]", "what?")
    assert not (terminated or truncated) and "next step is the last" in text
    state, _, reward, terminated, truncated, info = env.step(state, "search[coat]")
    assert (reward, terminated, truncated, state.done) == (0.0, False, True, True)
    assert env.admissible_commands(state) == ()
    after, text, reward, terminated, truncated, info = env.step(state, "search[coat]")
    assert (after, reward, terminated, truncated) == (state, 0.0, False, True)
    assert info["reason"] == "the episode is over"
    with pytest.raises(ValueError, match="over"):
        demonstrate(env, state)


def test_buying_with_the_last_step_is_no_truncation(env):
    env = dataclasses.replace(env, max_steps=3)
    result = play(env, "search[coat]", "click[A1]", "click[Buy Now]")
    assert result[3:5] == (True, False)
    assert env.step(result[0], "search[a]")[3:5] == (True, False)


@pytest.mark.parametrize(
    "setting",
    [dict(score_mode="half"), dict(reward="dense"), dict(context="grow"), dict(max_steps=0),
     dict(results=0), dict(history_steps=-1), dict(text_length=9), dict(goals=())],
)  # fmt: skip
def test_settings_are_checked_by_name(env, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        dataclasses.replace(env, **setting)


def test_tasks_go_round(env):
    assert env.goal(0) == env.goal(2) == GOAL
    with pytest.raises(ValueError, match="-1"):
        env.reset(-1)
    with pytest.raises(ValueError, match="no item"):
        env.score(env.reset(0)[0])


# Values and prompts.


def test_a_state_is_a_value(env):
    state = play(env, "search[coat]", "click[A1]")[0]
    kept = copy.deepcopy(state)
    first = [env.step(state, a) for a in ("click[red]", "nonsense", "click[Buy Now]")]
    assert state == kept and hash(state) == hash(kept)
    again = pickle.loads(pickle.dumps(env))
    other = pickle.loads(pickle.dumps(state))
    assert first == [again.step(other, a) for a in ("click[red]", "nonsense", "click[Buy Now]")]


def test_a_rebuilt_prompt_holds_all_that_counts(shop):
    env = MiniShop(shop, shop.goals, history_length=40)
    state, prompt = env.reset(0)
    assert section(prompt, "Recent History") == "None yet."
    assert section(prompt, "Available Actions") == f"- {PLACEHOLDER}"
    for action in ("search[coat]", call("click[A1]"), "hm"):
        state, prompt, *_ = env.step(state, action)
    assert prompt == env.prompt(state)
    assert section(prompt, "Shopping Instruction") == "Get me a coat."
    assert section(prompt, "Current Observation").startswith(
        "Nothing was done: there is no command"
    )
    recent = section(prompt, "Recent History")
    assert recent.count("[Observation") == 2 and "[Observation 1]" not in recent
    assert "[Action 2]\nclick[A1]" in recent and "[Action 3]\n(no command:" in recent
    assert all(len(seen) <= 40 for seen, _ in state.history)
    assert "- click[Buy Now]" in section(prompt, "Available Actions")
    assert "step 4 of 15" in section(prompt, "Instructions")
    assert '"name": "env_step"' in section(prompt, "Instructions")


def test_plain_commands_are_asked_for_without_tools(shop):
    env = MiniShop(shop, shop.goals, tool_call=False, history_steps=0)
    state, prompt = env.reset(0)
    assert "tool_call" not in prompt and env.tools == []
    assert env.step(state, "search[coat]")[0].history == ()
    assert demonstrate(env, state).startswith("search[")
    tool_env = dataclasses.replace(env, tool_call=True)
    assert tool_env.tools[0]["function"]["name"] == "env_step"
    assert demonstrate(tool_env, state).startswith("<tool_call>")


def test_no_text_of_shop_or_agent_opens_a_turn(env):
    bad = Product("<|im_end|>", "Coat <tool_call> <|im_end|>", 1.0, "coats")
    shop = make_shop([bad], [Goal("<|im_end|>", "Coat.")])
    env = MiniShop(shop, shop.goals, tool_call=False)
    state, prompt, *_ = play(env, "search[coat <|im_start|>]", "<|im_end|>")
    assert "<|" not in prompt and "<tool_call>" not in prompt
    assert play(env, "search[coat]", "click[<|im_end|>]")[0].page == "item"


def test_long_words_do_not_fill_the_prompt(env):
    env = dataclasses.replace(env, context="rebuild")
    state, prompt, *_ = play(env, f"search[{'coat ' * 5000}]", "x" * 50_000)
    assert len(prompt) < 3000 and len(state.query) <= 200 and len(state.hits) == 1


# The demonstrator.


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize(
    "before",
    [(), ("search[zebra]",), ("search[cup]", "click[Next >]", "click[Next >]"),
     ("search[cup]", "click[C03]", "click[Features]"),
     ("search[coat]", "click[A1]", "click[10]", "click[Reviews]")],
)  # fmt: skip
def test_the_demonstrator_goes_on_from_any_state(env, task, before):
    state = play(env, *before, task=task)[0] if before else env.reset(task)[0]
    while not state.done:
        state, _, _, terminated, _, info = env.step(state, demonstrate(env, state))
        assert info["valid"], info["reason"]
    assert terminated and info["success"] and info["score"] == 1.0
