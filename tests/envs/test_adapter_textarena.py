"""TextArena by value: games of one player, and of two against a fixed opponent."""

import pickle
import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from steprl.envs.adapters.textarena import environment
from tests.envs.adapter_laws import (
    check_branches,
    check_malformed,
    check_same_task_same_observation,
    play,
)

pytest.importorskip("textarena")

HANOI = ["[A C]", "[A B]", "[C B]", "[A C]", "[B A]", "[B C]", "[A C]"]
# One that draws from `random` as it goes on, one that does so at the first move, one of NumPy.
GAMES = ["2048-v0", "Minesweeper-v0", "Sokoban-v0", "TowerOfHanoi-v0"]
EPISODES = {
    "2048-v0": ["up", "left", "up", "right", "down", "left", "up", "left"],
    "Minesweeper-v0": ["[3 4]", "[0 0]", "[7 7]", "[0 7]"],
    "Sokoban-v0": ["up", "left", "down", "right", "right", "up"],
    "TowerOfHanoi-v0": HANOI,
}


def first_free(text):
    """Takes the lowest square that is left."""
    return re.search(r"\[\d\]", text.rsplit("Available Moves:", 1)[1])[0]


def test_a_game_is_won():
    env = environment("TowerOfHanoi-v0")
    state, text = env.reset(0)
    assert "Tower of Hanoi" in text and not hasattr(env, "system")
    _, rows = play(env, state, HANOI)
    assert [row[1] for row in rows] == [0.0] * 6 + [1.0]
    assert rows[-1][2] and rows[-1][4]["success"] and len(rows) == 7
    assert "A: [3, 2]" in rows[0][0] and "Tower of Hanoi" not in rows[0][0]  # only what is new


def test_brackets_may_be_left_out():
    env = environment("TowerOfHanoi-v0")
    _, rows = play(env, env.reset(0)[0], [move.strip("[]") for move in HANOI])
    assert rows[-1][4]["success"]


def test_invalid_moves_are_told_and_the_second_one_loses():
    env = environment("TowerOfHanoi-v0")
    state, *_ = env.step(env.reset(0)[0], "[A C]")
    state, text, reward, terminated, _, info = env.step(state, "[A C]")
    assert not info["valid"] and "invalid move" in text and reward == 0.0 and not terminated
    *_, terminated, _, info = env.step(state, "[A C]")
    assert terminated and not info["valid"] and not info["success"] and info["reason"]
    assert env.step(state, "[A B]")[-1]["valid"]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("every", [0, 1], ids=["replay", "snapshots"])
def test_a_branch_is_what_a_new_episode_gives(game, every):
    env = environment(game)
    other = environment(game, engines=2, snapshot_every=every)
    check_branches(other, env, 3, EPISODES[game], "[1 1]" if "Mine" in game else "[down]")


@pytest.mark.parametrize("game", GAMES)
def test_malformed_actions_never_raise(game):
    check_malformed(environment(game), 0)


def test_chance_is_that_of_the_task_and_leaves_that_of_the_process_alone():
    env = environment("2048-v0", engines=2)
    check_same_task_same_observation(env, range(4))
    assert len({env.reset(task)[1] for task in range(8)}) > 4
    assert environment("2048-v0", split="eval").reset(0)[1] != env.reset(0)[1]
    state = env.reset(1)[0]
    random.seed(5)
    outside = [random.random(), random.random()]
    random.seed(5)
    first = random.random()
    one = env.step(state, "[up]")[1:]
    assert [first, random.random()] == outside and env.step(state, "[up]")[1:] == one


def test_many_threads_at_once():
    env = environment("2048-v0", engines=4)
    moves = EPISODES["2048-v0"]
    alone = [play(env, env.reset(task)[0], moves)[1] for task in range(6)]
    with ThreadPoolExecutor(6) as pool:
        again = pool.map(lambda task: play(env, env.reset(task)[0], moves)[1], [*range(6)] * 3)
        assert list(again) == alone * 3


def test_a_copy_in_another_process_goes_on():
    env = environment("2048-v0")
    state, *_ = env.step(env.reset(2)[0], "[up]")
    copy, same = pickle.loads(pickle.dumps((env, state)))
    assert copy.step(same, "[left]")[1:] == env.step(state, "[left]")[1:]


# Against an opponent.


@pytest.mark.parametrize(
    ("player", "moves", "reward"),
    [(0, ["[4]", "[3]", "[5]"], 1.0), (1, ["[8]", "[7]", "[6]"], -1.0)],
)
def test_a_fixed_opponent_plays_the_others(player, moves, reward):
    env = environment("TicTacToe-v0", players=2, opponent=first_free, player=player)
    state, text = env.reset(0)
    assert ("[0]" in text.rsplit("Available", 1)[1]) == (player == 0)
    _, rows = play(env, state, moves)
    assert (rows[-1][1], rows[-1][2], rows[-1][4]["success"]) == (reward, True, reward == 1)
    options = {"players": 2, "opponent": first_free, "player": player}
    again = environment("TicTacToe-v0", engines=1, snapshot_every=0, **options)
    check_branches(again, env, 0, moves, "[2]")


def test_an_opponent_is_named_by_its_path():
    path = "tests.envs.test_adapter_textarena:first_free"
    env = environment("TicTacToe-v0", players=2, opponent=path)
    assert play(env, env.reset(0)[0], ["[4]", "[3]", "[5]"])[1][-1][4]["success"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": "Solitaire"}, "'Solitaire' does not start"),
        ({"games": []}, "games: empty"),
        ({"games": "TicTacToe-v0"}, "number of players has to be 2.*give players and opponent"),
        ({"games": "TicTacToe-v0", "players": 2}, "opponent: none, and players=2"),
        ({"players": 2, "player": 2, "opponent": first_free}, "player=2 is none of players=2"),
        ({"players": 2, "opponent": "nowhere:play"}, "opponent='nowhere:play': expected"),
        ({"players": 2, "opponent": "random:_pi"}, "opponent='random:_pi'"),
        ({"split": "dev"}, "split: 'dev'; choose from train, eval, test"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        environment(**options)
