"""The errand game: its rules as a table, its text face, its distances, splits and demonstrator."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import EnvConfig, ErrandConfig, GameConfig
from steprl.envs.errand import Errand, demonstrate, optimal, vocabulary
from steprl.envs.errand import language as words
from steprl.envs.errand.env import DOOR, STATION
from steprl.envs.games import GameText, text_game
from steprl.envs.opening import open_game
from steprl.models.tokenizer import detokenize
from steprl.rollout import demonstrations, rollout, trajectories
from steprl.sampling import LENGTH
from steprl.types import Policy

DEFAULT = ErrandConfig()
PAIR = ErrandConfig(errands=2)
PLAIN = ErrandConfig(hidden=False, transform=False)


@functools.cache
def shared(config=DEFAULT):
    return GameText(Errand(config), vocabulary())


@functools.partial(jax.jit, static_argnums=0)
def best_command(config, state):
    return optimal(config, state)


def tell(action):
    return detokenize(shared().tokenizer, np.asarray(action))


def play(game, state, commands):
    for command in commands:
        state, seen, *_ = game.step(state, command)
    return state, seen


def names(state):
    """What the first errand is about, and what else is in the room."""
    place = lambda index: words.PLACES[int(index)]  # noqa: E731
    return dict(
        thing=words.KINDS[int(state.kind[0])],
        source=place(state.where[0]),
        target=place(state.target[0]),
        form=words.FORMS[int(state.wanted[0]) - 1],
        other=words.KINDS[int(state.kind[1])],
        elsewhere=place(state.where[1]),
        strange=next(k for k in words.KINDS if words.KINDS.index(k) not in state.kind.tolist()),
        absent=words.PLACES[len(state.closed)],
    )


# ---------------------------------------------------------------- rules


def closed_room():
    """A task in which a thing that nobody wants lies by itself in an open place."""
    game = shared()
    for task in range(1000):
        state, prompt = game.reset(task)
        where, target = state.where.tolist(), int(state.target[0])
        open_ = not bool(state.closed[where[1]])
        if open_ and where.count(where[1]) == 1 and where[1] not in (where[0], target):
            if where.count(where[0]) == 1 and target not in where:
                return game, state, prompt
    raise AssertionError("no such task")


@pytest.mark.parametrize(
    ("before", "command", "seen"),
    [
        ("", "go {source}", "it is closed"),
        ("", "go {elsewhere}", "you see the {other}"),
        ("", "go stove", "you are there"),
        ("", "go door", "you are there"),
        ("", "go {absent}", "nothing happens"),
        ("", "open {source}", "nothing happens"),
        ("", "open door", "nothing happens"),
        ("", "take {thing}", "nothing happens"),
        ("", "put {thing}", "nothing happens"),
        ("", "heat {thing}", "nothing happens"),
        ("go {source}", "go {source}", "it is closed"),
        ("go {source}", "open {source}", "you see the {thing}"),
        ("go {source}", "open {target}", "nothing happens"),
        ("go {source}", "take {thing}", "nothing happens"),
        ("go {source}; open {source}", "open {source}", "nothing happens"),
        ("go {source}; open {source}", "take {thing}", "taken"),
        ("go {source}; open {source}", "take {other}", "nothing happens"),
        ("go {source}; open {source}", "take {strange}", "nothing happens"),
        ("go {source}; open {source}", "heat {thing}", "nothing happens"),
        ("FETCH", "take {thing}", "nothing happens"),
        ("FETCH", "put {thing}", "put down"),
        ("FETCH", "put {other}", "nothing happens"),
        ("FETCH", "heat {thing}", "nothing happens"),
        ("FETCH", "go {source}", "you see nothing"),
        ("FETCH; put {thing}", "go {source}", "you see the {thing}"),
        ("FETCH; go {elsewhere}", "take {other}", "nothing happens"),  # one thing in hand
        ("FETCH; go {elsewhere}", "put {thing}", "put down"),
        ("FETCH; go {target}", "put {thing}", "nothing happens"),
        ("FETCH; go {target}", "open {target}", "you see nothing"),
        ("FETCH; go {target}; open {target}", "put {thing}", "put down"),  # as it comes
        ("FETCH; go stove", "heat {thing}", "it is hot"),
        ("FETCH; go sink", "wash {thing}", "it is clean"),
        ("FETCH; go fridge", "cool {thing}", "it is cold"),
        ("FETCH; go fridge", "heat {thing}", "nothing happens"),
        ("FETCH; go fridge", "cool {other}", "nothing happens"),
        ("FETCH; go fridge", "open fridge", "nothing happens"),
        ("FETCH; go fridge", "put {thing}", "nothing happens"),
        ("go {elsewhere}; take {other}; go sink", "wash {other}", "it is clean"),
        ("", "", "invalid: begin with a verb"),
        ("", "{thing}", "invalid: begin with a verb"),
        ("", "Go {source}", "invalid: begin with a verb"),
        ("", "hot {thing}", "invalid: begin with a verb"),
        ("", "<pad> go", "invalid: begin with a verb"),
        ("", "? go {source}", "invalid: begin with a verb"),
        ("", "go", "invalid: this verb needs a place"),
        ("", "go go", "invalid: this verb needs a place"),
        ("", "go {thing}", "invalid: this verb needs a place"),
        ("", "open {thing}", "invalid: this verb needs a place"),
        ("", "open hot", "invalid: this verb needs a place"),
        ("", "take", "invalid: this verb needs a thing"),
        ("", "take {source}", "invalid: this verb needs a thing"),
        ("", "put stove", "invalid: this verb needs a thing"),
        ("", "cool hot", "invalid: this verb needs a thing"),
    ],
)
def test_what_a_command_does(before, command, seen):
    game, state, _ = closed_room()
    filled = names(state)
    before = before.replace("FETCH", "go {source}; open {source}; take {thing}").format(**filled)
    if before:
        state, _ = play(game, state, before.split("; "))
    seen = seen.format(**filled)
    after, observation, *got, info = game.step(state, command.format(**filled))
    assert observation == seen and got == [0.0, False, False]
    assert info["valid"] == (not seen.startswith("invalid"))
    assert info.get("reason") == (None if info["valid"] else seen)
    assert int(after.turn) == int(state.turn) + 1  # whatever is said costs a step
    if seen.startswith(("nothing happens", "invalid")):
        for one, other in zip(after._replace(turn=0), state._replace(turn=0), strict=True):
            np.testing.assert_array_equal(one, other)


def test_mistakes_are_made_good():
    game, state, _ = closed_room()
    filled = names(state)
    station, verb = dict(
        hot=("stove", "heat"), clean=("sink", "wash"), cold=("fridge", "cool")
    )[filled["form"]]  # fmt: skip
    wrong_station, wrong_verb = ("sink", "wash") if filled["form"] != "clean" else ("stove", "heat")
    for line in [
        "go {elsewhere}", "take {other}", "go {source}", "open {source}", "put {other}",
        "take {thing}", f"go {wrong_station}", f"{wrong_verb} {{thing}}", "go {target}",
        "open {target}", "put {thing}", "take {thing}", f"go {station}", f"{verb} {{thing}}",
        "go {target}",
    ]:  # fmt: skip
        state, seen, reward, terminated, _, info = game.step(state, line.format(**filled))
        assert seen != "nothing happens" and info["valid"] and not (reward or terminated)
    _, seen, reward, terminated, truncated, info = game.step(state, f"put {filled['thing']}")
    assert (seen, reward, terminated, truncated) == ("delivered", 1.0, True, False)
    assert info["success"]


def test_what_was_delivered_may_be_spoiled_and_delivered_again():
    game = shared(PAIR)
    state, _ = game.reset(0)
    while int(game.game.distance(state)) > 8:
        state, seen, *_ = game.step(state, tell(best_command(PAIR, state)))
    assert seen == "delivered"
    thing = words.KINDS[int(state.kind[int(np.argmax(state.where[:2] == state.target))])]
    spoiled, seen = play(game, state, [f"take {thing}"])
    assert seen == "taken" and int(game.game.distance(spoiled)) == 9
    assert play(game, spoiled, [f"put {thing}"])[1] == "delivered"


def test_steps_are_spent_whatever_is_done():
    game = shared()
    state, _ = game.reset(0)
    limit = DEFAULT.horizon + DEFAULT.spare_steps
    assert limit == game.max_steps
    for turn in range(limit):
        state, _, reward, terminated, truncated, _ = game.step(
            state, ["go box", "", "take"][turn % 3]
        )
        assert (reward, terminated, truncated) == (0, False, turn == limit - 1)


def test_the_last_step_may_still_deliver():
    game = shared()
    state, _ = game.reset(0)
    state, _ = play(game, state, [""] * DEFAULT.spare_steps)
    for left in range(DEFAULT.horizon, 0, -1):
        command = tell(best_command(DEFAULT, state))
        state, _, reward, terminated, truncated, _ = game.step(state, command)
        assert (reward, terminated, truncated) == (left == 1, left == 1, False)


@pytest.mark.parametrize(
    ("config", "prompt"),
    [
        (DEFAULT, "bring the {form} {thing} from the {source} to the {target}."),
        (PLAIN, "bring the {thing} from the {source} to the {target}."),
        (PAIR, "bring the {form} {thing} from the {source} to the {target}, the {second}."),
    ],
    ids=["one", "plain", "two"],
)
def test_the_prompt_says_all_that_is_needed(config, prompt):
    game = shared(config)
    state, said = game.reset(5)
    second = ""
    if config.errands == 2:
        kind, form = words.KINDS[int(state.kind[1])], words.FORMS[int(state.wanted[1]) - 1]
        source, target = words.PLACES[int(state.where[1])], words.PLACES[int(state.target[1])]
        second = f"{form} {kind} from the {source} to the {target}"
    assert said == prompt.format(**names(state), second=second)
    assert len(game.tokenizer.encode(said)) == game.game.prompt_width


def test_a_state_is_a_value_and_a_task_fixes_it():
    game = shared()
    state, _ = game.reset(0)
    before = jax.device_get(state)
    source = words.PLACES[int(state.where[0])]
    assert game.step(state, f"go {source}")[1:] == game.step(state, f"go {source}")[1:]
    for one, other in zip(before, jax.device_get(state), strict=True):
        np.testing.assert_array_equal(one, other)
    prompts = [game.reset(task, jax.random.key(9))[1] for task in range(20)]
    assert prompts == [game.reset(task)[1] for task in range(20)] and len(set(prompts)) > 18


# ---------------------------------------------------------------- demonstrator


@functools.partial(jax.jit, static_argnums=0)
def shown(config, key, task_N, lazy, forget, noise):
    config = dataclasses.replace(config, demo_lazy=lazy, demo_forget=forget, demo_noise=noise)
    return demonstrations(Errand(config), functools.partial(demonstrate, config), key, task_N)


@pytest.mark.parametrize("changes", [dict(), dict(hidden=False, transform=False)], ids=["8", "4"])
@pytest.mark.parametrize(
    ("lazy", "forget", "noise", "low", "high"),
    [
        (0.0, 0.0, 0.0, 1.0, 1.0),
        (1.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.3, 0.6, 0.99),  # most random commands are made good
        (DEFAULT.demo_lazy, DEFAULT.demo_forget, DEFAULT.demo_noise, 0.25, 0.4),
    ],
    ids=["perfect", "lazy", "forgetful", "noisy", "as configured"],
)
def test_the_demonstrator_is_as_good_as_its_settings(changes, lazy, forget, noise, low, high):
    config = dataclasses.replace(DEFAULT, **changes)
    batch = shown(config, jax.random.key(0), jnp.arange(512), lazy, forget, noise)
    success, steps = np.asarray(batch.success_N), np.asarray(batch.mask_NS).sum(axis=1)
    assert low <= success.mean() <= high
    assert np.all(np.asarray(batch.valid_NS)[np.asarray(batch.mask_NS)])  # it never fumbles
    np.testing.assert_array_equal(batch.reward_NS.sum(axis=1), success)
    assert noise or np.all(steps[success] == config.horizon)


@pytest.mark.parametrize(
    ("errands", "low", "high"), [(2, 0.2, 0.35), pytest.param(4, 0.1, 0.25, marks=pytest.mark.slow)]
)
def test_the_demonstrator_is_weak_whatever_the_horizon(errands, low, high):
    config = dataclasses.replace(DEFAULT, errands=errands)
    weak = (config.demo_lazy, config.demo_forget, config.demo_noise)
    batch = shown(config, jax.random.key(0), jnp.arange(512), *weak)
    assert low <= np.asarray(batch.success_N).mean() <= high


# ---------------------------------------------------------------- batches, shared settings, text


def wandering_policy():
    """Well-formed commands mostly, any token now and then; the next depends on the last."""
    table = np.full((words.VOCAB_SIZE, words.VOCAB_SIZE), 0.03 / words.VOCAB_SIZE)
    verb = slice(words.FIRST_VERB, words.FIRST_VERB + len(words.VERBS))
    table[:, verb] += 1 / len(words.VERBS)
    for number in range(len(words.VERBS)):
        row = table[words.FIRST_VERB + number]
        row[verb] = 0.03 / words.VOCAB_SIZE
        if number <= words.OPEN:
            row[words.FIRST_LOCATION : words.FIRST_LOCATION + 8] += 1 / 8
        else:
            row[words.FIRST_KIND : words.FIRST_KIND + 12] += 1 / 12
    table[:, 0] = 1e-20  # the pad has no text
    logits = jnp.asarray(np.log(table), jnp.float32)

    def apply(params, tokens, positions, segments, cache=None):
        return jax.nn.one_hot(tokens, words.VOCAB_SIZE), cache

    return Policy(
        lambda key: {}, apply, lambda params, hidden: hidden @ logits, None,
        lambda batch, length: jnp.zeros((batch, length)),
    )  # fmt: skip


def played(kind):
    task_N, key = jnp.arange(32), jax.random.key(4)
    if kind == "demonstrator":
        return shown(DEFAULT, key, task_N, 0.5, 0.2, 0.2)
    policy = wandering_policy()
    return jax.jit(lambda: rollout(policy, Errand(DEFAULT), {}, key, task_N, task_N * 0))()


@pytest.mark.parametrize(
    "kind", ["demonstrator", pytest.param("random policy", marks=pytest.mark.slow)]
)
def test_text_play_agrees_with_token_play(kind):
    game, batch = shared(), played(kind)
    compared, invalid, ends = 0, 0, set()
    for row in trajectories(batch, game.tokenizer):
        state, observation = game.reset(row.task)
        for step in row.steps:
            assert step.observation == observation
            assert (
                len(game.tokenizer.encode(step.action)) == 2
            )  # commands of one width, no end token
            state, observation, reward, terminated, truncated, info = game.step(state, step.action)
            assert (reward, terminated, truncated) == (step.reward, step.terminated, step.truncated)
            assert info["valid"] == step.valid
            compared, invalid = compared + 1, invalid + (not step.valid)
            ends.add((terminated, truncated))
        assert info["success"] == row.success
    assert compared > 200
    assert invalid == 0 if kind == "demonstrator" else invalid > 5
    if kind == "random policy":  # no token ends a command, its width does
        np.testing.assert_array_equal(batch.stop_NS[batch.mask_NS], LENGTH)
    assert ends >= ({(True, False), (False, True)} if kind == "demonstrator" else {(False, True)})


@pytest.mark.slow
def test_many_episodes_at_once_are_those_one_by_one():
    env, length = Errand(PAIR), PAIR.horizon + 2
    weak = dataclasses.replace(PAIR, demo_noise=0.3)

    def episode(task):
        def turn(state, _):
            state, seen = env.step(state, demonstrate(weak, state, jax.random.key(task)))
            return state, (seen, env.distance(state))

        state, prompt = env.reset(task, jax.random.key(0))
        return prompt, jax.lax.scan(turn, state, None, length)

    together = jax.jit(jax.vmap(episode))(jnp.arange(6))
    for task in range(6):
        alone = jax.jit(episode)(task)
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(one, other[task])


@pytest.mark.parametrize("heldout", [False, True], ids=["training", "held out"])
@pytest.mark.parametrize(
    "shared",
    [
        pytest.param(GameConfig(), marks=pytest.mark.slow),
        GameConfig(thought_tokens=3, progress_reward=1.0, fatal_errors=1.0),
        pytest.param(GameConfig(progress_reward=0.5, reward_delay=2), marks=pytest.mark.slow),
    ],
    ids=["none", "thoughts", "progress"],
)
def test_the_optimal_player_succeeds_under_any_shared_settings(shared, heldout):
    config = EnvConfig(name="errand", game=shared, errand=PAIR)
    game = open_game(config)
    env, player = game.make(heldout), game.optimal
    batch = jax.jit(lambda: demonstrations(env, player, jax.random.key(1), jnp.arange(32)))()
    reward = np.asarray(batch.reward_NS)
    assert np.all(batch.success_N) and np.all(batch.mask_NS.sum(axis=1) == PAIR.horizon)
    np.testing.assert_allclose(reward.sum(axis=1), 1.0, rtol=1e-5)
    if shared.progress_reward == 1.0:  # a sixteenth of the way, a sixteenth of the reward
        np.testing.assert_allclose(reward[:, : PAIR.horizon], 1 / PAIR.horizon, rtol=1e-5)


def test_a_mistake_may_be_fatal():
    config = EnvConfig(name="errand", game=GameConfig(fatal_errors=1.0), errand=DEFAULT)
    game = text_game(open_game(config))
    state, _ = game.reset(0)
    _, seen, reward, terminated, truncated, info = game.step(state, "go stove")
    assert (seen, reward, terminated, truncated) == ("you are there", 0.0, True, False)
    assert info["valid"] and not info["success"]


def test_words_and_ids_are_those_of_the_tokenizer():
    game = shared()
    assert len(game.tokenizer) == words.VOCAB_SIZE == Errand.vocab_size < 80
    assert open_game(EnvConfig(name="errand")).vocabulary == vocabulary()
    for phrase in vocabulary():
        assert len(game.tokenizer.encode(phrase)) == 1
    for token, text in [
        (words.FIRST_VERB + words.HEAT, "heat"), (words.FIRST_LOCATION + DOOR, "door"),
        (words.FIRST_LOCATION + STATION, "stove"), (words.FIRST_KIND, "apple"),
        (words.FIRST_FORM + 2, "cold"), (words.FIRST_CHANGE + 2, "it is cold"),
        (words.FIRST_SIGHT, "you see the apple"), (words.DELIVERED, "delivered"),
    ]:  # fmt: skip
        assert game.tokenizer.encode(text) == [token]
