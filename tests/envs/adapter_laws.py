"""What holds for every adapted environment, whatever is behind it."""

import random

# Text that no game understands, and that has broken parsers: a lone surrogate, brackets, digits.
MALFORMED = (
    "",
    "   ",
    "xyzzy plugh",
    "\n",
    "look\naround",
    "[",
    "][",
    "{}",
    "(((",
    "<answer>",
    "</answer><answer>",
    "\x00",
    "\ud800",
    "é" * 3,
    "0",
    "-1",
    "9" * 400,
    "x" * 3000,
    "a\tb\\n\"'",
    '{"name": "look", "arguments": {}}',
)


def play(env, state, actions):
    """The last state and all results, until the episode ends."""
    rows = []
    for action in actions:
        state, *row = env.step(state, action)
        rows.append(row)
        if row[2] or row[3]:
            break
    return state, rows


def check_same_task_same_observation(env, tasks):
    for task in tasks:
        (first, text), (second, again) = env.reset(task), env.reset(task)
        assert text == again and text.strip() and first == second


def check_branches(env, fresh, task, actions, other):
    """From each state of an episode, another action and the rest give what a new episode gives.

    Args:
        env: stepped in a random order, from states of all depths.
        fresh: the same environment once more, played from the start each time.
        task, actions: an episode.
        other: an action that does not belong to it.
    """
    states, rows = [env.reset(task)[0]], []
    for action in actions:
        state, *row = env.step(states[-1], action)
        rows.append(row)
        if state.over:
            break
        states.append(state)
    places = list(range(len(states)))
    random.Random(task).shuffle(places)
    for place in places[:6]:
        rest = actions[place : place + 2]
        start = fresh.reset(task)[0]
        _, expected = play(fresh, start, [*actions[:place], other, *rest])
        state, *row = env.step(states[place], other)
        _, more = ([], []) if state.over else play(env, state, rest)
        assert [row, *more] == expected[place:]
    assert play(env, states[0], actions)[1] == rows


def check_malformed(env, task, texts=MALFORMED):
    """Never raises, costs a step, and the state goes on; what is understood may be anything."""
    state, understood = env.reset(task)[0], []
    for text in texts:
        after, observation, reward, terminated, truncated, info = env.step(state, text)
        assert isinstance(observation, str) and isinstance(info["success"], bool)
        assert info["valid"] or info["reason"]
        if info["valid"]:
            understood.append(text)
        if not (terminated or truncated):
            state = after
    return understood
