"""The multi-hop game: its rules as a table, its text face, its splits and its demonstrator."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.config import MultihopConfig
from steprl.envs.multihop import (
    ENTITIES,
    RELATIONS,
    Multihop,
    MultihopText,
    demonstrate,
    vocabulary,
)
from steprl.envs.multihop import language as words
from steprl.models.tokenizer import detokenize
from steprl.rollout import demonstrations, rollout, trajectories
from tests.rollout.markov import markov_policy

SMALL = MultihopConfig(num_entities=12, min_hops=2, max_hops=3, spare_steps=1)
DEFAULT = MultihopConfig()


@pytest.fixture(scope="module")
def game():
    return MultihopText(SMALL)


def episode(game, task=0, hops=None):
    """State and question of the first task from `task` on that asks for so many hops."""
    while True:
        state, question = game.reset(task)
        if hops is None or int(state.hops) == hops:
            return state, question
        task += 1


def names(state):
    """The people of the chain and the relations between them."""
    hops = int(state.hops)
    return (
        [ENTITIES[int(e)] for e in state.chain[: hops + 1]],
        [RELATIONS[int(r)] for r in state.relations[:hops]],
    )


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("action", "seen", "reward", "ends", "reason"),
    [
        ("search {start} {first}", "{second}", 0, False, None),
        ("search {start} {other}", "{elsewhere}", 0, False, None),
        ("answer {end}", "done", 1, True, None),
        ("answer {start}", "done", 0, True, None),
        ("", None, 0, False, "begin with search or answer"),
        ("{start}", None, 0, False, "begin with search or answer"),
        ("find {start} {first}", None, 0, False, "begin with search or answer"),
        ("Search {start} {first}", None, 0, False, "begin with search or answer"),
        ("? search {start} {first}", None, 0, False, "begin with search or answer"),
        ("search", None, 0, False, "search needs a name and a relation"),
        ("search {start}", None, 0, False, "search needs a name and a relation"),
        ("search {first} {start}", None, 0, False, "search needs a name and a relation"),
        ("search {start} {first} {first}", None, 0, False, "search needs a name and a relation"),
        ("search {start} sister", None, 0, False, "search needs a name and a relation"),
        ("search {unknown} {first}", None, 0, False, "search needs a name and a relation"),
        ("answer", None, 0, False, "answer needs one name"),
        ("answer {first}", None, 0, False, "answer needs one name"),
        ("answer {end} {end}", None, 0, False, "answer needs one name"),
        ("answer {unknown}", None, 0, False, "answer needs one name"),
    ],
)
def test_what_an_action_does(game, action, seen, reward, ends, reason):
    state, _ = episode(game, hops=3)
    people, relations = names(state)
    other = next(r for r in RELATIONS if r not in relations)
    filled = dict(
        start=people[0], second=people[1], end=people[-1], first=relations[0], other=other,
        elsewhere=ENTITIES[int(state.graph[state.chain[0], RELATIONS.index(other)])],
        unknown=ENTITIES[SMALL.num_entities],  # a name, but nobody of this graph
    )  # fmt: skip
    assert people[0] != people[-1]
    after, observation, got, terminated, truncated, info = game.step(state, action.format(**filled))
    if reason is not None:
        seen = "invalid: " + reason
        assert info["reason"] == seen
    assert observation == seen.format(**filled)
    assert (got, terminated, truncated) == (reward, ends, False)
    assert info["valid"] == (reason is None) and info["success"] == (reward == 1)
    assert ("reason" in info) == (reason is not None)
    assert int(after.turn) == int(state.turn) + 1  # a malformed action costs a step
    assert int(after.found) == (1 if seen == "{second}" else 0)


@pytest.mark.parametrize("hops", [2, 3])
def test_the_chain_leads_to_the_reward_and_to_no_other(game, hops):
    state, _ = episode(game, hops=hops)
    people, relations = names(state)
    for hop in range(hops):
        state, seen, reward, *ends, info = game.step(
            state, f"search {people[hop]} {relations[hop]}"
        )
        assert (seen, reward, ends) == (people[hop + 1], 0, [False, False])
        assert not info["success"] and int(state.found) == hop + 1
    _, _, reward, terminated, truncated, info = game.step(state, f"answer {people[-1]}")
    assert (reward, terminated, truncated, info["success"]) == (1, True, False, True)


def test_steps_are_spent_whatever_is_done(game):
    state, _ = episode(game, hops=2)
    limit = 2 + 1 + SMALL.spare_steps
    for turn in range(limit):
        action = ["search", "", f"search {ENTITIES[0]} {RELATIONS[0]}"][turn % 3]
        state, _, reward, terminated, truncated, _ = game.step(state, action)
        assert (reward, terminated, truncated) == (0, False, turn == limit - 1)


def test_the_last_step_may_still_answer(game):
    state, _ = episode(game, hops=2)
    people, _ = names(state)
    for _ in range(2 + SMALL.spare_steps):
        state, *_ = game.step(state, "")
    _, _, reward, terminated, truncated, _ = game.step(state, f"answer {people[-1]}")
    assert (reward, terminated, truncated) == (1, True, False)


def test_a_state_is_a_value_that_may_be_branched(game):
    state, _ = episode(game, hops=2)
    before = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    people, relations = names(state)
    search = f"search {people[0]} {relations[0]}"
    first = game.step(state, search)
    game.step(state, f"answer {people[0]}")
    second = game.step(state, search)
    assert first[1:] == second[1:] and int(first[0].found) == 1
    after = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("hops", [2, 3])
def test_the_question_names_the_last_relation_first(game, hops):
    state, question = episode(game, hops=hops)
    people, relations = names(state)
    asked = "who is the " + " of the ".join(reversed(relations)) + f" of {people[0]}?"
    assert question == asked
    assert len(set(relations)) == hops


def test_the_same_task_is_the_same_question_and_another_task_another(game):
    questions = [game.reset(task, jax.random.key(9))[1] for task in range(20)]
    assert questions == [game.reset(task)[1] for task in range(20)]
    assert len(set(questions)) > 18
    assert questions[0] != MultihopText(SMALL, heldout=True).reset(0)[1]


@settings(max_examples=60, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from([*vocabulary()[:14], *ENTITIES[:3], "<end>", "<pad>"])).map(" ".join)
)
def test_no_text_raises(text):
    game = _shared_game()
    state, observation, reward, terminated, truncated, info = game.step(game.reset(0)[0], text)
    assert int(state.turn) == 1 and observation and reward in (0.0, 1.0)
    assert info["valid"] or info["reason"] == observation


@functools.cache
def _shared_game():
    return MultihopText(SMALL)


# ---------------------------------------------------------------- splits


@functools.partial(jax.jit, static_argnums=0)
def asked(config, heldout, task_N):
    states, _ = jax.vmap(Multihop(config, heldout).reset, in_axes=(0, None))(
        task_N, jax.random.key(0)
    )
    return states


def test_the_held_out_split_shares_no_pair_of_first_relations_with_training():
    pairs = {}
    for heldout in (False, True):
        states = asked(DEFAULT, heldout, jnp.arange(4000))
        pairs[heldout] = {tuple(p) for p in np.asarray(states.relations[:, :2]).tolist()}
        hops = np.bincount(states.hops, minlength=5)
        assert set(np.flatnonzero(hops)) == {2, 3, 4} and hops[2:].min() > 4000 / 3 * 0.9
    assert not pairs[True] & pairs[False]
    assert len(pairs[True] | pairs[False]) == 12 * 11  # and each pair is asked in one of them
    assert all((a + 2 * b) % 5 == 0 for a, b in pairs[True])


def test_a_chain_follows_the_graph_along_distinct_relations():
    states = jax.device_get(asked(DEFAULT, False, jnp.arange(200))._replace(key=None))
    for graph, chain, relations in zip(states.graph, states.chain, states.relations, strict=True):
        assert len(set(relations.tolist())) == len(relations)
        for hop, relation in enumerate(relations):
            assert graph[chain[hop], relation] == chain[hop + 1]


# ---------------------------------------------------------------- failing searches


def test_searches_fail_at_their_rate_and_a_retry_may_succeed():
    config = dataclasses.replace(SMALL, search_failure=0.3)
    env, count = Multihop(config), 4000

    @jax.jit
    @jax.vmap
    def twice(seed):
        state, _ = env.reset(3, jax.random.key(seed))
        link, name = state.relations[0] + words.FIRST_RELATION, state.chain[0] + words.FIRST_ENTITY
        action = jnp.stack([words.SEARCH, name, link, words.END_ID])
        state, first = env.step(state, action)
        failed = state.failed
        state, second = env.step(state, action)
        return first, failed, second, state.found

    first, failed, second, found = twice(jnp.arange(count))
    sigma = np.sqrt(count * 0.3 * 0.7)
    assert abs(int(failed.sum()) - 0.3 * count) < 4 * sigma
    np.testing.assert_array_equal(failed, first.tokens[:, 0] == words.NO_RESULT)
    retried = np.asarray(second.tokens[:, 0] == words.NO_RESULT)
    again = int(failed.sum())
    assert abs(retried[failed].sum() - 0.3 * again) < 4 * np.sqrt(again * 0.3 * 0.7)
    np.testing.assert_array_equal(found, ~(np.asarray(failed) & retried))
    assert np.all(first.valid) and not np.any(first.terminated)


# ---------------------------------------------------------------- demonstrator


@functools.partial(jax.jit, static_argnums=0)
def shown(config, key, task_N, lazy, noise):
    config = dataclasses.replace(config, demo_lazy=lazy, demo_noise=noise)
    return demonstrations(Multihop(config), functools.partial(demonstrate, config), key, task_N)


@pytest.mark.parametrize(
    ("lazy", "noise", "low", "high"),
    [
        (0.0, 0.0, 1.0, 1.0),
        (1.0, 0.0, 0.1, 0.35),  # a part of the questions of two hops, and lucky guesses
        (DEFAULT.demo_lazy, DEFAULT.demo_noise, 0.25, 0.5),
    ],
    ids=["perfect", "lazy", "as configured"],
)
def test_the_demonstrator_is_as_good_as_its_settings(lazy, noise, low, high):
    batch = shown(DEFAULT, jax.random.key(0), jnp.arange(512), lazy, noise)
    success = np.asarray(batch.success_N)
    assert low <= success.mean() <= high
    assert np.all(np.asarray(batch.valid_NS)[np.asarray(batch.mask_NS)])  # it never fumbles
    np.testing.assert_array_equal(batch.reward_NS.sum(axis=1), success)


# ---------------------------------------------------------------- text play = token play


def transcripts(kind):
    task_N, key = jnp.arange(48), jax.random.key(4)
    if kind == "demonstrator":
        return shown(SMALL, key, task_N, 0.8, 0.2)
    policy = markov_policy()
    params = policy.init(jax.random.key(0))
    run = jax.jit(lambda: rollout(policy, Multihop(SMALL), params, key, task_N, task_N * 0))
    return run()


@pytest.mark.parametrize(
    "kind", [pytest.param("demonstrator", marks=pytest.mark.slow), "random policy"]
)
def test_text_play_agrees_with_token_play(game, kind):
    batch = transcripts(kind)
    episodes = trajectories(batch, game.tokenizer)
    compared, invalid, ends = 0, 0, set()
    for row, played in enumerate(episodes):
        state, observation = game.reset(played.task)
        for number, step in enumerate(played.steps):
            assert step.observation == observation
            state, observation, reward, terminated, truncated, info = game.step(state, step.action)
            assert (reward, terminated, truncated) == (step.reward, step.terminated, step.truncated)
            assert info["valid"] == step.valid
            compared, invalid = compared + 1, invalid + (not step.valid)
            ends.add((terminated, truncated))
            if number + 1 == len(played.steps):  # what was said last is no step's observation
                host = jax.device_get(batch)
                last = np.flatnonzero(host.step_ids_NT[row] >= 0)[-1] + 1
                rest = host.tokens_NT[row, last:][host.segment_ids_NT[row, last:] > 0]
                assert detokenize(game.tokenizer, rest) == observation
                assert info["success"] == played.success
    assert compared > 100
    if kind == "random policy":
        assert invalid >= 12 and ends == {(False, False), (True, False), (False, True)}
    else:
        assert invalid == 0


def test_words_and_ids_are_those_of_the_tokenizer(game):
    assert len(game.tokenizer) == words.VOCAB_SIZE == Multihop.vocab_size
    for token, text in [
        (words.SEARCH, "search"), (words.ANSWER, "answer"), (words.WHO, "who is the"),
        (words.OF_THE, "of the"), (words.OF, "of"), (words.ASK, "?"), (words.DONE, "done"),
        (words.NO_RESULT, "no result, try again"),
        (words.FIRST_RELATION, RELATIONS[0]), (words.FIRST_ENTITY, ENTITIES[0]),
    ]:  # fmt: skip
        assert game.tokenizer.encode(text) == [token]
