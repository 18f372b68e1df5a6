"""The shop: its rules as a table, its distances against a search, its splits and demonstrator."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import EnvConfig, GameConfig, ShopConfig
from steprl.envs.games import text_game
from steprl.envs.opening import open_game
from steprl.envs.shop import COLOURS, KINDS, OPTIONS, PLACES, Shop, demonstrate, optimal
from steprl.envs.shop import language as words
from steprl.models.tokenizer import detokenize
from steprl.rollout import demonstrations, rollout, trajectories
from steprl.types import Policy

SMALL = ShopConfig(goods=4, results=2, options=2, spare_steps=3)
TWO = ShopConfig(goods=4, results=2, options=1, purchases=2, spare_steps=6, reward="score")
WEAK = ShopConfig()
LONG = ShopConfig(goods=12, results=4, options=5, purchases=4)


@functools.cache
def text_of(config):
    return text_game(open_game(EnvConfig(name="shop", shop=config)))


def wish(state, number=0):
    """The words for one wanted product, and for those that do not fit it."""
    kind, colour = int(state.kinds[number]), int(state.colours[number])
    place = state.shelf[kind].tolist().index(colour)
    values = state.values[number].tolist()
    return dict(
        kind=KINDS[kind], colour=COLOURS[colour], place=PLACES[place],
        **{f"value{group}": OPTIONS[value] for group, value in enumerate(values)},
        other_kind=KINDS[next(k for k in range(4) if k not in state.kinds.tolist())],
        other_place=PLACES[1 - place], other_colour=COLOURS[int(state.shelf[kind][1 - place])],
        other_value=OPTIONS[(values[0] + 1) % 3],
    )  # fmt: skip


def play(game, state, commands, number=0):
    """The last answer to commands, in which the words of a wish stand in braces."""
    answer = None
    for command in commands:
        answer = game.step(state, command.format(**wish(state, number)))
        state = answer[0]
    return answer


# ---------------------------------------------------------------- rules

LIST = ["search {kind}"]
PAGE = [*LIST, "open {place}"]
CHOSEN = [*PAGE, "choose {value0}", "choose {value1}"]


@pytest.mark.parametrize(
    ("before", "command", "seen"),
    [
        ([], "open {place}", "nothing happens"),
        ([], "choose {value0}", "nothing happens"),
        ([], "buy now", "nothing happens"),
        ([], "back to the list", "nothing happens"),
        ([], "search vase", "nothing happens"),  # a word, but no goods of this shop
        (LIST, "back to the list", "nothing happens"),
        (LIST, "choose {value0}", "nothing happens"),
        (LIST, "buy now", "nothing happens"),
        (LIST, "open third", "nothing happens"),  # two are listed
        (LIST, "open {place}", "{colour} {kind}"),
        (LIST, "open {other_place}", "{other_colour} {kind}"),
        (PAGE, "open {place}", "nothing happens"),
        (PAGE, "choose {value0}", "chosen"),
        (PAGE, "choose {other_value}", "chosen"),
        (PAGE, "choose {value1}", "chosen"),
        (PAGE, "choose matte", "nothing happens"),  # of a third group of options
        (["search {other_kind}"], "open {place}", None),
    ],
)
def test_what_a_command_does(before, command, seen):
    game = text_of(SMALL)
    state, _ = game.reset(1)
    after, text, reward, *ends, info = play(game, state, [*before, command])
    if seen is None:
        seen = COLOURS[state.shelf[int(after.listed), int(after.place)]] + " {other_kind}"
    assert text == seen.format(**wish(state))
    assert (reward, ends) == (0, [False, False])
    assert info == {"success": False, "valid": True}
    assert int(after.turn) == len(before) + 1


@pytest.mark.parametrize(
    ("before", "command"),
    [([], "search {kind}"), (LIST, "search {kind}"), (PAGE, "search {kind}"),
     (PAGE, "back to the list"), (["search {other_kind}", "open first"], "search {kind}")],
)  # fmt: skip
def test_a_list_says_the_colours_by_their_places(before, command):
    game = text_of(SMALL)
    state, _ = game.reset(1)
    _, text, *_ = play(game, state, [*before, command])
    row = [COLOURS[c] for c in state.shelf[int(state.kinds[0])]]
    assert text == f"first {row[0]} second {row[1]}"
    assert wish(state)["colour"] in row


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "begin with search, open, choose, buy or back"),
        ("shirt", "begin with search, open, choose, buy or back"),
        ("Search shirt", "begin with search, open, choose, buy or back"),
        ("buy a shirt", "begin with search, open, choose, buy or back"),
        ("search", "search needs a kind of goods"),
        ("search {colour}", "search needs a kind of goods"),
        ("search it", "search needs a kind of goods"),
        ("open", "open needs a place"),
        ("open {kind}", "open needs a place"),
        ("choose", "choose needs an option"),
        ("choose {colour}", "choose needs an option"),
        ("buy", "it is buy now"),
        ("buy {kind}", "it is buy now"),
        ("back", "it is back to the list"),
        ("back now", "it is back to the list"),
    ],
)
def test_what_is_not_understood_is_told_why_and_costs_a_step(command, reason):
    game = text_of(SMALL)
    state, *_ = play(game, game.reset(1)[0], PAGE)
    after, text, reward, *ends, info = play(game, state, [command])
    assert text == info["reason"] == f"invalid: {reason}"
    assert (reward, ends, info["valid"]) == (0, [False, False], False)
    assert int(after.turn) == int(state.turn) + 1
    for name in ("listed", "place", "chosen", "bought"):
        np.testing.assert_array_equal(getattr(after, name), getattr(state, name))


@pytest.mark.parametrize(
    ("commands", "score"),
    [
        (CHOSEN, 3),
        ([*PAGE, "choose {value1}", "choose {value0}"], 3),  # any order
        ([*PAGE, "choose {other_value}", "choose {value1}", "choose {value0}"], 3),  # overwritten
        ([*LIST, "open {other_place}", "back to the list", *CHOSEN[1:]], 3),
        ([*CHOSEN, "search {other_kind}", *CHOSEN], 3),
        (CHOSEN[:-1], 2),
        ([*CHOSEN, "choose {other_value}"], 2),
        ([*CHOSEN, "back to the list", "open {place}"], 1),  # a page that is left forgets
        (PAGE, 1),
        ([*LIST, "open {other_place}", *CHOSEN[2:]], 2),
        (["search {other_kind}", *CHOSEN[1:]], 0),  # what else fits does not matter
    ],
)
@pytest.mark.parametrize("reward", ["success", "score"])
def test_a_purchase_is_worth_what_of_it_fits(commands, score, reward):
    config = ShopConfig(goods=4, results=2, options=2, spare_steps=6, reward=reward)
    game = text_of(config)
    _, text, got, *ends, info = play(game, game.reset(1)[0], [*commands, "buy now"])
    assert (text, ends, info["success"]) == ("bought", [True, False], score == 3)
    assert got == pytest.approx(score / 3 if reward == "score" else float(score == 3))


@pytest.mark.parametrize(
    ("first", "second", "score", "lost"),
    [
        ([*PAGE, "choose {value0}"], [*PAGE, "choose {value0}"], 4, 0),
        (PAGE, [*PAGE, "choose {value0}"], 3, 6),  # one choice and two purchases of 4 steps less 2
        ([*PAGE, "choose {value0}"], PAGE, 3, 0),
        (["search {other_kind}", "open first"], [*PAGE, "choose {value0}"], 2, 8),
    ],
)
def test_a_wrong_purchase_of_several_cannot_be_mended(first, second, score, lost):
    game = text_of(TWO)
    state, *_ = play(game, game.reset(0)[0], first)
    state, text, got, *ends, _ = play(game, state, ["buy now"])
    assert (text, got, ends) == ("bought", 0, [False, False])
    assert (int(state.bought), int(state.place), int(state.listed)) == (1, -1, -1)
    assert int(state.lost) == lost
    _, _, got, *ends, info = play(game, state, [*second, "buy now"], number=1)
    assert (got, ends, info["success"]) == (score / 4, [True, False], score == 4)


def test_the_wishes_name_all_that_is_wanted():
    state, prompt = text_of(TWO).reset(3)
    one, two = wish(state), wish(state, 1)
    assert prompt == (
        f"buy a {one['colour']} {one['kind']} {one['value0']} "
        f"then a {two['colour']} {two['kind']} {two['value0']}."
    )
    prompts = [text_of(TWO).reset(task, jax.random.key(9))[1] for task in range(20)]
    assert prompts == [text_of(TWO).reset(task)[1] for task in range(20)]  # the key changes nothing
    assert len(set(prompts)) == 20


def test_steps_are_spent_whatever_is_done():
    game = text_of(SMALL)
    state, _ = game.reset(2)
    for turn in range(game.max_steps):
        state, _, reward, *ends, _ = game.step(state, ["", "search shirt", "buy now"][turn % 3])
        assert (reward, ends) == (0, [False, turn == 5 + SMALL.spare_steps - 1])


# ---------------------------------------------------------------- the best play and its length


@pytest.mark.parametrize(
    ("options", "purchases", "horizon"),
    [
        (1, 1, 4),
        pytest.param(5, 1, 8, marks=pytest.mark.slow),
        pytest.param(5, 2, 16, marks=pytest.mark.slow),
        (5, 4, 32),
    ],
)
def test_the_best_play_is_as_long_as_the_horizon(options, purchases, horizon):
    config = ShopConfig(options=options, purchases=purchases, spare_steps=2)
    player = lambda state, key: optimal(config, state)  # noqa: E731
    run = jax.jit(lambda tasks: demonstrations(Shop(config), player, jax.random.key(0), tasks))
    batch = run(jnp.arange(32))
    assert Shop(config).horizon == horizon == Shop(config).max_steps - 2
    np.testing.assert_array_equal(batch.mask_NS.sum(axis=1), horizon)
    np.testing.assert_array_equal(batch.reward_NS[:, horizon - 1], 1.0)
    assert np.all(batch.success_N) and not np.any(batch.truncated_NS)


def commands_of(config):
    """All that can be said with a meaning, a place that is not listed, and nonsense."""
    said = [(words.SEARCH, words.FIRST_KIND + kind) for kind in range(config.goods)]
    said += [(words.OPEN, words.FIRST_PLACE + place) for place in range(config.results + 1)]
    said += [(words.CHOOSE, words.FIRST_OPTION + o) for o in range(3 * config.options)]
    return np.array([*said, (words.BUY, words.NOW), (words.BACK, words.TO_LIST), (0, 0)], np.int32)


def explored(config, task):
    """All states that commands lead to, as rows of numbers; edges, successes, distances, best plays."""
    env, commands, chunk = Shop(config), commands_of(config), 64
    start, _ = env.reset(task, jax.random.key(0))

    def state_of(row):
        listed, place, bought, fits, lost = row[:5]
        return start._replace(
            listed=listed, place=place, bought=bought, fits=fits, lost=lost, chosen=row[5:]
        )

    def row_of(state):
        head = jnp.stack([state.listed, state.place, state.bought, state.fits, state.lost])
        return jnp.concatenate([head, state.chosen])

    @jax.jit
    @jax.vmap
    def around(row):
        state = state_of(row)
        new, seen = jax.vmap(env.step, in_axes=(None, 0))(state, jnp.asarray(commands))
        after, gone = env.step(state, optimal(config, state))
        last = (row_of(after), env.distance(after), gone.success)
        return jax.vmap(row_of)(new), seen, env.distance(state), last

    rows, front = {}, [tuple(np.asarray(row_of(start)).tolist())]
    while front:
        batch, front = front[:chunk], front[chunk:]
        padded = np.array(batch + [batch[0]] * (chunk - len(batch)), np.int32)
        new, seen, distance, played = jax.device_get(around(padded))
        for number, row in enumerate(batch):
            ends = seen.terminated[number]
            rows[row] = dict(
                after=[
                    tuple(r) for r, end in zip(new[number].tolist(), ends, strict=True) if not end
                ],
                wins=bool(seen.success[number].any()),
                distance=int(distance[number]),
                played=tuple(x[number] for x in played),
            )
        known = set(rows) | set(front)
        front += list({r for row in batch for r in rows[row]["after"]} - known)
    return rows


@pytest.mark.parametrize(
    ("config", "states"),
    # At home, on 4 lists, on 8 pages with 16 ways to have chosen; more of them after a purchase.
    [pytest.param(
        ShopConfig(goods=4, results=2, options=2, spare_steps=64), 1 + 4 + 8 * 16,
        marks=pytest.mark.slow),
     (ShopConfig(goods=4, results=2, options=1, purchases=2, spare_steps=64), None),
     (ShopConfig(goods=4, results=3, options=0, spare_steps=64), 1 + 4 + 4 * 3),
     pytest.param(
        ShopConfig(goods=4, results=2, options=0, purchases=3, spare_steps=64), None,
        marks=pytest.mark.slow)],
    ids=["two options", "two purchases", "no option", "three purchases"],
)  # fmt: skip
def test_the_distance_is_that_of_a_search_through_all_states(config, states):
    rows = explored(config, task=1)
    assert states is None or len(rows) == states
    before = {row: [] for row in rows}
    for row, found in rows.items():
        for after in found["after"]:
            before[after].append(row)
    steps = {row: 1 for row, found in rows.items() if found["wins"]}
    front = list(steps)
    for row in front:  # grows while it is read: breadth first
        for earlier in before[row]:
            if earlier not in steps:
                steps[earlier] = steps[row] + 1
                front.append(earlier)

    lost = 0
    for row, found in rows.items():
        if row in steps:
            assert found["distance"] == steps[row], row
            after, distance, success = found["played"]
            assert success if steps[row] == 1 else steps[tuple(after.tolist())] == distance
            assert success or distance == found["distance"] - 1
        else:  # no way to success: there is nothing more to gain, and there was not on the way here
            lost += 1
            assert row[4] > 0
            assert all(rows[after]["distance"] == found["distance"] for after in found["after"])
        for after in found["after"]:
            assert after in steps or rows[after]["distance"] >= found["distance"]
    assert (lost > 0) == (config.purchases > 1)
    assert max(steps.values()) == Shop(config).horizon


# ---------------------------------------------------------------- splits


@functools.partial(jax.jit, static_argnums=0)
def asked(config, heldout, task_N):
    return jax.vmap(lambda task: Shop(config, heldout).reset(task, jax.random.key(0))[0])(task_N)


def test_the_held_out_split_shares_no_pair_of_kind_and_colour_with_training():
    pairs = {}
    for heldout in (False, True):
        states = asked(LONG, heldout, jnp.arange(2000))
        wanted = np.stack([states.kinds, states.colours], axis=-1).reshape(-1, 2)
        pairs[heldout] = {tuple(pair) for pair in wanted.tolist()}
    assert not pairs[True] & pairs[False]
    assert len(pairs[True] | pairs[False]) == 12 * 8  # and each pair is asked in one of them
    assert all((kind + 2 * colour) % 5 == 0 for kind, colour in pairs[True])


def test_lists_and_wishes_are_drawn_evenly():
    states = jax.device_get(asked(LONG, False, jnp.arange(2000)))
    assert all(len(set(row)) == 4 for shelf in states.shelf[:100].tolist() for row in shelf)
    assert all(len(set(kinds)) == 4 for kinds in states.kinds.tolist())
    lists = np.take_along_axis(states.shelf, states.kinds[:, :, None], axis=1)
    fits = lists == states.colours[:, :, None]
    np.testing.assert_array_equal(fits.sum(axis=2), 1)
    np.testing.assert_allclose(fits.mean(axis=(0, 1)), 1 / 4, atol=0.025)
    np.testing.assert_array_equal(states.values // 3, np.broadcast_to(np.arange(5), (2000, 4, 5)))
    shares = np.bincount(states.values.ravel(), minlength=15) / states.values[..., 0].size
    np.testing.assert_allclose(shares, 1 / 3, atol=0.025)


# ---------------------------------------------------------------- demonstrator


@functools.partial(jax.jit, static_argnums=0)
def shown(config, task_N, lazy, first, noise):
    config = dataclasses.replace(config, demo_lazy=lazy, demo_first=first, demo_noise=noise)
    player = functools.partial(demonstrate, config)
    return demonstrations(Shop(config), player, jax.random.key(0), task_N)


@pytest.mark.parametrize(
    ("lazy", "first", "noise", "low", "high"),
    [
        (0.0, 0.0, 0.0, 1.0, 1.0),
        (0.0, 0.0, 0.1, 0.7, 0.99),  # it mends what noise did, if steps are left
        (1.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 0.44, 0.56),  # one of two fits
        (WEAK.demo_lazy, WEAK.demo_first, WEAK.demo_noise, 0.15, 0.3),
    ],
    ids=["perfect", "noisy", "lazy", "the first", "as configured"],
)
def test_the_demonstrator_is_as_good_as_its_settings(lazy, first, noise, low, high):
    batch = shown(ShopConfig(), jnp.arange(1024), lazy, first, noise)
    success = np.asarray(batch.success_N)
    assert low <= success.mean() <= high
    assert np.all(np.asarray(batch.valid_NS)[np.asarray(batch.mask_NS)])  # it never fumbles
    np.testing.assert_array_equal(batch.reward_NS.sum(axis=1), success)


def test_demonstrations_open_the_first_result_and_skip_the_last_option_at_their_rates():
    batch = jax.device_get(shown(ShopConfig(), jnp.arange(1024), 0.7, 0.4, 0.0))
    verb, word = batch.tokens_NT[:, :-1], batch.tokens_NT[:, 1:]
    of_last = (word >= words.FIRST_OPTION + 12) & (word < words.FIRST_OPTION + 15)
    chooses = ((verb == words.CHOOSE) & of_last).any(axis=1)
    first = ((verb == words.OPEN) & (word == words.FIRST_PLACE)).any(axis=1)
    assert 1 - chooses.mean() == pytest.approx(0.7, abs=0.05)
    assert first.mean() == pytest.approx(0.4 + 0.6 / 2, abs=0.05)


# ---------------------------------------------------------------- shared settings


def test_an_optimal_player_with_thoughts_is_paid_for_progress():
    shared = GameConfig(thought_tokens=3, progress_reward=0.5, fatal_errors=1.0)
    config = EnvConfig(name="shop", shop=TWO, game=shared)
    whole = open_game(config)
    game, player = whole.make(False), whole.optimal
    batch = jax.jit(lambda tasks: demonstrations(game, player, jax.random.key(0), tasks))(
        jnp.arange(32)
    )
    assert game.action_width == 5 and len(whole.vocabulary) + 3 == game.vocab_size
    assert np.all(batch.success_N)
    np.testing.assert_array_equal(batch.mask_NS.sum(axis=1), 8)
    expected = np.full((32, 8), 0.5 / 8) + 0.5 * (np.arange(8) == 7)[None, :]
    np.testing.assert_allclose(batch.reward_NS[:, :8], expected, rtol=1e-5)


def test_a_wrong_purchase_earns_no_progress_and_neither_does_what_follows():
    config = EnvConfig(name="shop", shop=TWO, game=GameConfig(progress_reward=1.0))
    game = text_game(open_game(config))
    state, _ = game.reset(0)
    paid = []
    for number, command in [
        *((0, command) for command in [*PAGE, "buy now"]),
        *((1, command) for command in [*PAGE, "choose {value0}", "buy now"]),
    ]:
        state, _, reward, *_ = game.step(state, command.format(**wish(state.game, number)))
        paid.append(reward)
    np.testing.assert_allclose(paid, [1 / 8, 1 / 8, 0, 0, 0, 0, 0], atol=1e-6)


# ---------------------------------------------------------------- one by one = many at once


@functools.cache
def sampled():
    """Episodes of a random policy that knows what words follow one another."""
    size, noise = words.VOCAB_SIZE, 0.02
    table = np.full((size, size), noise / size)
    verbs = {
        words.SEARCH: 0.2,
        words.OPEN: 0.3,
        words.CHOOSE: 0.4,
        words.BUY: 0.05,
        words.BACK: 0.05,
    }
    for verb, chance in verbs.items():
        table[:, verb] += chance
    for verb in verbs:
        table[verb] = noise / size
    for verb, word in commands_of(SMALL)[:-1].tolist():
        table[verb, word] += 1.0
    table[:, 0] = 1e-20  # it has no text
    logits = jnp.asarray(np.log(table / table.sum(axis=1, keepdims=True)), jnp.float32)
    policy = Policy(
        init=lambda key: {},
        apply=lambda params, tokens, positions, segments, cache=None: (
            jax.nn.one_hot(tokens, size), cache,
        ),
        unembed=lambda params, hidden: hidden @ logits,
        value=None,
        init_cache=lambda batch, length: jnp.zeros((batch, length)),
    )  # fmt: skip
    tasks, key = jnp.arange(64), jax.random.key(1)
    return jax.device_get(
        jax.jit(lambda: rollout(policy, Shop(SMALL), {}, key, tasks, tasks * 0))()
    )


def test_text_play_agrees_with_token_play():
    game, batch = text_of(SMALL), sampled()
    seen, ends, invalid = set(), set(), 0
    for row, played in enumerate(trajectories(batch, game.tokenizer)):
        state, observation = game.reset(played.task)
        for step in played.steps:
            assert step.observation == observation
            state, observation, reward, terminated, truncated, info = game.step(state, step.action)
            assert (reward, terminated, truncated) == (step.reward, step.terminated, step.truncated)
            assert info["valid"] == step.valid
            seen.add(observation.split()[0])
            ends.add((terminated, truncated))
            invalid += not step.valid
        last = np.flatnonzero(batch.step_ids_NT[row] >= 0)[-1] + 1
        rest = batch.tokens_NT[row, last:][batch.segment_ids_NT[row, last:] > 0]
        assert detokenize(game.tokenizer, rest) == observation
        assert info["success"] == played.success
    assert {"first", "nothing", "chosen", "bought", "invalid:"} <= seen
    assert ends == {(False, False), (True, False), (False, True)}


@pytest.mark.slow
def test_many_at_once_are_what_each_is_alone():
    env = Shop(LONG)

    def begin(task):
        state, prompt = env.reset(task, jax.random.key(0))
        return prompt, env.step(state, optimal(LONG, state))

    many = jax.jit(jax.vmap(begin))(jnp.arange(3))
    for row in range(3):
        alone = jax.jit(begin)(row)
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(many), strict=True):
            np.testing.assert_array_equal(one, other[row])
            assert one.dtype == other.dtype


def test_one_program_serves_both_splits():
    traced = asked(SMALL, jnp.asarray(True), jnp.arange(8))
    fixed = jax.jit(jax.vmap(lambda task: Shop(SMALL, True).reset(task, jax.random.key(0))[0]))
    jax.tree.map(np.testing.assert_array_equal, traced, fixed(jnp.arange(8)))


def test_words_and_ids_are_those_of_the_tokenizer():
    tokenizer = text_of(SMALL).tokenizer
    assert len(tokenizer) == words.VOCAB_SIZE == Shop.vocab_size < 90
    assert open_game(EnvConfig(name="shop")).vocabulary == words.vocabulary()
    for token, text in [
        (words.SEARCH, "search"), (words.OPEN, "open"), (words.CHOOSE, "choose"),
        (words.BUY, "buy"), (words.NOW, "now"), (words.BACK, "back"), (words.STOP, "."),
        (words.TO_LIST, "to the list"), (words.BUY_A, "buy a"), (words.THEN_A, "then a"),
        (words.CHOSEN, "chosen"), (words.BOUGHT, "bought"), (words.NOTHING, "nothing happens"),
        (words.FIRST_PLACE, PLACES[0]), (words.FIRST_COLOUR, COLOURS[0]),
        (words.FIRST_KIND, KINDS[0]), (words.FIRST_OPTION, OPTIONS[0]),
    ]:  # fmt: skip
        assert tokenizer.encode(text) == [token]
