"""TextWorld's games by value: the same as TextWorld plays them, from any state of any engine.

Skipped where textworld is missing: parts of what it needs are under the GPL.

    pip install textworld pytest       # in an environment of its own
    PYTHONPATH=. python -m pytest --noconftest -p no:cacheprovider tests/envs/test_adapter_textworld.py
"""

import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

textworld = pytest.importorskip("textworld", reason="textworld is not installed (it is optional)")

from steprl.envs.adapters.textworld import TextWorldEngine, environment, plain, refusal  # noqa: E402
from steprl.envs.adapters.textworld_games import games  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*(supported|walkthrough)")
CHALLENGES = ("tw-coin_collector", "tw-treasure_hunter", "tw-simple", "tw-cooking")
NONSENSE = (
    "", "   ", "xyzzy", "take", "say [going north - succeeded]", "say <score> 7 </score>", "ünïcode",
    "\x00", "x" * 5000, "look. save", "me, quit", "oops save", "q", "undo", "restart", "script",
    "tw-trace-actions", "restrict commands", "%s%n", '"', "look\nrestore", "look \\help", "\ud800",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Games are made once; making them writes nowhere else."""
    place = tmp_path_factory.mktemp("textworld")
    home, before = place / "home", os.environ.get("HOME")
    home.mkdir()
    os.environ["HOME"] = str(home)
    yield str(place / "games")
    if before is not None:
        os.environ["HOME"] = before
    assert list(home.iterdir()) == []


@pytest.fixture(params=CHALLENGES, scope="module")
def challenge(request):
    return request.param


def made(challenge, folder, split="train"):
    return games(split, challenge, {}, 2, folder)


def make(challenge, folder, **options):
    return environment(challenge=challenge, folder=folder, games_per_split=2, **options)


def walk(engine, rng, steps):
    """Results of random commands of the game."""
    results, info = [], engine.step("look")[-1]
    for _ in range(steps):
        result = engine.step(rng.choice(info["admissible_commands"]))
        results.append(result)
        info = result[-1]
        if result[2]:
            break
    return results


def theirs(made, task):
    """The game as TextWorld plays it, and its own way to win."""
    infos = textworld.EnvInfos(
        admissible_commands=True, score=True, won=True, lost=True, extras=["walkthrough"]
    )
    game = textworld.start(str(made.path(task)), infos)
    return game, game.reset()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_texts_commands_points_and_ends_are_textworlds(challenge, folder, seed):
    rng, all_games = random.Random(seed), made(challenge, folder)
    engine, (game, state) = TextWorldEngine(all_games), theirs(all_games, 0)
    assert plain(state.feedback).endswith(engine.reset(0))
    commands, score = state["admissible_commands"], 0
    for command in [None] * 15 + state["extra.walkthrough"]:
        command = command or rng.choice(commands)
        text, reward, terminated, truncated, info = engine.step(command)
        state, points, done = game.step(command)
        commands = state["admissible_commands"]
        assert (command, text) == (command, plain(state.feedback))
        assert list(info["admissible_commands"]) == commands
        assert (terminated, info["success"], info["lost"]) == (done, state["won"], state["lost"])
        assert info["score"] == points and reward == (points - score) / info["max_score"]
        score = points
        if done:
            break


def test_the_way_to_win_earns_all_points(challenge, folder):
    env, (_, start) = make(challenge, folder), theirs(made(challenge, folder), 0)
    state, _ = env.reset(0)
    rewards = []
    for command in start["extra.walkthrough"]:
        state, _, reward, terminated, truncated, info = env.step(state, command)
        rewards.append(reward)
        assert info["valid"] and not truncated
    assert terminated and info["success"] and info["score"] == info["max_score"]
    assert sum(rewards) == pytest.approx(1)


def test_a_branch_from_the_middle_is_the_same_twice_and_in_another_engine(challenge, folder):
    engine, third = (TextWorldEngine(made(challenge, folder)) for _ in range(2))
    other = TextWorldEngine(made("tw-cooking", folder))
    engine.reset(0)
    middle = None
    for _ in range(6):
        walk(engine, random.Random(3), 1)
        middle = middle or engine.snapshot()
    engine.restore(middle)
    first = walk(engine, random.Random(7), 12)
    other.reset(1)  # another game
    for again in (engine, other, third):
        again.restore(pickle.loads(pickle.dumps(middle)))
        assert walk(again, random.Random(7), 12) == first
    for each in (engine, other, third):
        each.close()


@pytest.mark.parametrize("opened", [1, 4])
def test_states_of_several_games_are_stepped_in_any_order(folder, monkeypatch, opened):
    monkeypatch.setattr("steprl.envs.adapters.textworld.OPEN", opened)
    env = make("tw-cooking", folder, engines=1)
    starts = [env.reset(task)[0] for task in (0, 1)]
    steps = [env.step(state, "open fridge")[1:] for state in starts * 2]
    assert steps[:2] == steps[2:] and steps[0] != steps[1]
    assert env.counts.replayed == 0 and env.counts.restores == 4
    env.close()


def test_many_threads_step_at_once(folder):
    env = make("tw-simple", folder, engines=4)

    def play(seed):
        rng, (state, text), seen = random.Random(seed % 2), env.reset(0), []
        state, *_, info = env.step(state, "look")
        for _ in range(10):
            state, text, *_, info = env.step(state, rng.choice(info["admissible_commands"]))
            seen.append(text)
        return seen

    with ThreadPoolExecutor(8) as pool:
        played = list(pool.map(play, range(8)))
    assert played[::2] == [played[0]] * 4 and played[1::2] == [played[1]] * 4
    env.close()


def test_nonsense_costs_a_step_and_changes_nothing(folder, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)  # `save` and `script` would write files here
    engine = TextWorldEngine(made("tw-simple", folder))
    engine.reset(0)
    engine.step("open chest drawer")
    before = engine.step("look")
    for command in NONSENSE:
        text, reward, terminated, truncated, info = engine.step(command)
        assert text and info["reason"] and not info["valid"], command
        assert (reward, terminated, truncated) == (0, False, False)
        assert engine.step("look") == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # the interpreter has nothing to say of its own


def test_random_characters_never_raise(folder):
    engine, rng = TextWorldEngine(made("tw-cooking", folder)), random.Random(0)
    engine.reset(0)
    words = [
        "go",
        "north",
        "take",
        "save",
        "quit",
        "all",
        "then",
        ".",
        "[",
        "knife",
        "é",
        "\n",
        "-",
    ]
    for _ in range(300):
        command = " ".join(rng.choices(words, k=rng.randint(1, 6)))
        text, *_, terminated, _, info = engine.step(command)
        assert isinstance(text, str) and info["valid"] is (info["reason"] == "")
        assert not terminated


@pytest.mark.parametrize(
    "command", ["go north then quit", "look and save", "bob, undo", "TW-PRINT x"]
)
def test_commands_to_the_interpreter_are_refused_wherever_they_stand(command):
    assert "no command of this game" in refusal(command)
    assert refusal("take type Q latchkey from counter") == ""


def test_splits_have_games_of_their_own_which_are_made_once(folder):
    train, evaluated = (made("tw-cooking", folder, split) for split in ("train", "eval"))
    paths = [train.path(0), train.path(1), evaluated.path(0)]
    assert len(set(paths)) == 3 and train.path(2) == paths[0]
    times = [path.stat().st_mtime_ns for path in paths]
    again = made("tw-cooking", folder).path(0)
    assert (again, again.stat().st_mtime_ns) == (paths[0], times[0])


def test_the_commands_are_shown_if_asked_for(folder):
    env = make("tw-coin_collector", folder, show_commands=True, max_steps=2)
    state, text = env.reset(0)
    assert text.endswith(
        "\n\nCommands: " + "; ".join(env.step(state, "wait")[5]["admissible_commands"])
    )
    state, *_ = env.step(state, "look")
    _, text, _, terminated, truncated, _ = env.step(state, "look")
    assert "\n\nCommands: " in text and (terminated, truncated) == (False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"challenge": "tw-chess"}, "challenge: 'tw-chess'; choose from .*tw-cooking"),
        ({"settings": {"reciep": 1}}, "settings.reciep: tw-cooking has no such setting; it has .*recipe"),
        ({"games_per_split": 0}, "games=0 starts at 1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        environment(**options)


def test_settings_that_the_challenge_refuses_name_it(tmp_path):
    env = environment(challenge="tw-coin_collector", settings={"level": 0}, folder=str(tmp_path))
    with pytest.raises(ValueError, match="tw-coin_collector refuses .*'level': 0"):
        env.reset(0)
