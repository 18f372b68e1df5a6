"""Rollouts grown inside one program: row for row those that the host grows."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.algorithms import ALGORITHMS
from steprl.branching import Plan
from steprl.config import AlgorithmConfig, BranchConfig, MeshConfig
from steprl.envs.games import text_game
from steprl.envs.opening import open_game
from steprl.models.tokenizer import detokenize, phrase_tokenizer
from steprl.ops import nonblank_tokens
from steprl.rollout import attempts, device_player, text_player, trajectories, with_anchors
from steprl.rollout.anchors import with_device_anchors
from steprl.rollout.branching import grow as grow_on_host
from steprl.rollout.contexts import plain_context
from steprl.rollout.device_growth import grow
from steprl.sharding import make_mesh
from steprl.types import Policy
from tests.rollout.markov import decoder, markov_policy
from tests.small import small_config

SEEDS = range(6)
GAMMA = 0.9


class World(NamedTuple):
    """A game and who plays it."""

    name: str
    policy: Policy
    n: int
    tasks: int
    branch: BranchConfig
    game: tuple[str, ...] = ()


CACHED = World("with a cache", markov_policy(4, inner=decoder()), 4, 2, BranchConfig())
WIDE = World(
    # No search fails by chance: the text of a game draws its own.
    "five branches of one", markov_policy(4), 6, 3, BranchConfig(initial=1, refill="none"),
)  # fmt: skip


class Grower(NamedTuple):
    """One world, grown on the host and inside a program; each is compiled once."""

    host: object  # seed -> (Grown, its batch)
    device: object  # seed -> GrownBatch
    one: object  # key -> GrownBatch, not compiled
    plan: Plan
    order: object  # Grown -> the row of the program's batch that each trajectory should be


def some_ratio(params, before, batch):
    """As if the policy had changed: a number of each token by what and where it is."""
    changed = 0.1 * jnp.sin(1.7 * batch.tokens_NT + batch.positions_NT)
    return jnp.where(batch.step_ids_NT >= 0, changed, 0.0).astype(jnp.float32)


def config_of(world: World):
    return small_config(
        "env.multihop.num_entities=4", "env.multihop.max_hops=3", *world.game,
        f"actor.ppo_mini_batch_size={world.n}", f"rollout.n={world.n}",
        f"rollout.batch_size={world.tasks}",
    )  # fmt: skip


@functools.cache
def game_of_world(world: World):
    return open_game(config_of(world).env)


@functools.cache
def setting(world: World):
    """The game, the player of its text on the host, and parameters."""
    config = config_of(world)
    game, mesh = game_of_world(world), make_mesh(MeshConfig(), jax.devices()[:1])
    tokenizer = phrase_tokenizer(game.vocabulary)
    env, text = game.make(False), text_game(game)
    length = env.prompt_width + env.max_steps * (env.action_width + env.observation_width)
    rollout = dataclasses.replace(
        config.rollout, response_length=env.action_width, context_length=2 * length
    )
    player = text_player(
        {"train": text}, plain_context(tokenizer), tokenizer, world.policy, mesh, rollout,
        env.max_steps,
    )  # fmt: skip
    return env, player, world.policy.init(jax.random.key(0))


@functools.cache
def grower(world: World, method: str, told: bool) -> Grower:
    env, player, params = setting(world)
    texts = [detokenize(player.tokenizer, [token]) for token in range(env.vocab_size)]
    plan = Plan(
        nonblank_tokens(texts), GAMMA, ALGORITHMS[method].branching, world.branch, world.n,
        some_ratio if told else None,
    )  # fmt: skip
    task_N, sample_N = (x.astype(np.int32) for x in attempts(3, world.tasks, world.n))

    def one(key):
        rows = (params, key, jnp.asarray(task_N), jnp.asarray(sample_N))
        return grow(world.policy, env, plan, *rows, before={})

    def host(seed):
        rows = (params, jax.random.key(seed), task_N, sample_N)
        grown = grow_on_host(player, plan, *rows, before={})
        return grown, jax.device_get(player.collate_groups(grown.groups, grown.rows))

    def order(grown):
        if method == "branpo":
            return [
                row + place * world.n * world.tasks
                for row, group in enumerate(grown.groups)
                for place in range(len(group))
            ]
        first = world.branch.initial or world.n // 2
        further = world.n - first
        return [
            task * first + place if place < first
            else world.tasks * first + task * further + place - first
            for task, group in enumerate(grown.groups)
            for place in range(len(group))
        ]  # fmt: skip

    compiled = jax.jit(one)
    return Grower(
        functools.cache(host),
        functools.cache(lambda seed: jax.device_get(compiled(jax.random.key(seed)))),
        one,
        plan,
        order,
    )


every_case = pytest.mark.parametrize(
    "world, method, told",
    [
        pytest.param(world, method, told, id=f"{method}{', told' * told}, {world.name}", marks=marks)
        for world, method, told, marks in [
            (CACHED, "branpo", False, pytest.mark.full), (WIDE, "branpo", False, pytest.mark.slow),
            (CACHED, "appo", True, pytest.mark.slow), (WIDE, "appo", False, pytest.mark.full),
            (WIDE, "arpo", False, pytest.mark.slow),
        ]
    ],
)  # fmt: skip


def both(world, method, told, seed):
    """Batches of the host and of the program, and for each row of the first its row of the second."""
    grow = grower(world, method, told)
    grown, batch = grow.host(seed)
    there = np.flatnonzero(np.asarray(batch.mask_NS).any(axis=1))
    order = grow.order(grown)
    assert len(there) == len(order)
    return grown, batch, grow.device(seed), list(zip(there.tolist(), order, strict=True))


def tokens_of(batch, row, x_NT):
    """What belongs to the real tokens of a row, without holes, to the last one that was sampled.

    What a last action was answered is kept on the device, and on the host only where a limit ended it.
    """
    end = np.flatnonzero(batch.step_ids_NT[row] >= 0)[-1] + 1
    return x_NT[row][:end][batch.segment_ids_NT[row][:end] > 0]


CHANCE = WIDE._replace(name="games of chance", game=("env.multihop.search_failure=0.3",))


@pytest.mark.parametrize(
    "method",
    [pytest.param("branpo", marks=pytest.mark.slow), pytest.param("appo", marks=pytest.mark.full)],
)
def test_where_searches_fail_by_chance_the_same_episodes_are_continued(method):
    """The loop of the host, over the device's episodes, as a text draws chances of its own."""
    grow = grower(CHANCE, method, False)
    game, mesh = game_of_world(CHANCE), make_mesh(MeshConfig(), jax.devices()[:1])
    player = device_player(game.make, CHANCE.policy, mesh, phrase_tokenizer(game.vocabulary))
    params = CHANCE.policy.init(jax.random.key(0))
    task_N, sample_N = (x.astype(np.int32) for x in attempts(3, CHANCE.tasks, CHANCE.n))
    grown = grow_on_host(player, grow.plan, params, jax.random.key(SEEDS[0]), task_N, sample_N)
    rows = [one for group in grown.groups for one in group]
    host, device = jax.device_get(player.collate(rows)), grow.device(SEEDS[0]).batch
    for row, own in enumerate(grow.order(grown)):
        for name in ("tokens_NT", "step_ids_NT", "positions_NT"):
            np.testing.assert_array_equal(
                tokens_of(device, own, getattr(device, name)),
                tokens_of(host, row, getattr(host, name)),
                err_msg=f"{name}, row {row}",
            )


@every_case
def test_trajectories_are_those_of_the_host(world, method, told):
    for seed in SEEDS:
        _, host, device, pairs = both(world, method, told, seed)
        batch = device.batch
        for row, own in pairs:
            for name in ("tokens_NT", "step_ids_NT", "positions_NT"):
                np.testing.assert_array_equal(
                    tokens_of(batch, own, getattr(batch, name)),
                    tokens_of(host, row, getattr(host, name)),
                    err_msg=f"{name}, seed {seed}, row {row}",
                )
            for name in ("logprob_NT", "entropy_NT"):
                np.testing.assert_allclose(
                    tokens_of(batch, own, getattr(batch, name)),
                    tokens_of(host, row, getattr(host, name)),
                    atol=1e-5,
                )
            for name in ("reward_NS", "mask_NS", "terminated_NS", "truncated_NS", "valid_NS",
                         "stop_NS", "success_N", "task_N"):  # fmt: skip
                np.testing.assert_array_equal(
                    getattr(batch, name)[own], getattr(host, name)[row], err_msg=name
                )
        others = np.setdiff1d(np.arange(len(batch.task_N)), [own for _, own in pairs])
        assert not batch.mask_NS[others].any()  # a place for a branch that was not needed
        assert not batch.segment_ids_NT[others].any() and not batch.tokens_NT[others].any()
        assert (batch.step_ids_NT[others] == -1).all() and not batch.reward_NS[others].any()


@every_case
def test_who_descends_from_whom_is_as_on_the_host(world, method, told):
    for seed in SEEDS:
        _, host, device, pairs = both(world, method, told, seed)
        place = dict(pairs)
        for row, own in pairs:
            theirs, ours = (jax.tree.map(lambda x, r=r: x[r], b.branches)
                            for b, r in ((host, row), (device.batch, own)))  # fmt: skip
            assert ours.origin_N == place[int(theirs.origin_N)]
            assert (ours.step_N, ours.preference_N) == (theirs.step_N, theirs.preference_N)
            np.testing.assert_allclose(ours.score_N, theirs.score_N, atol=1e-4)
            # Tokens stand at other places: the last shared one is the same of those sampled.
            shared = [np.sum(b.step_ids_NT[r, : x.token_N + 1] >= 0)
                      for b, r, x in ((host, row, theirs), (device.batch, own, ours))]  # fmt: skip
            assert shared[0] == shared[1]


@every_case
def test_records_of_the_program_say_what_those_of_the_host_say(world, method, told):
    """Each names its parent by a sample that is there, and a batch of them has the same branches."""
    tokenizer = setting(world)[1].tokenizer
    for seed in SEEDS[:2]:
        grown, _, device, _ = both(world, method, told, seed)
        told_by_host = {(one.task, one.sample): one for group in grown.groups for one in group}
        own = [one for one in trajectories(device.batch, tokenizer) if one.steps]
        assert {(one.task, one.sample) for one in own} == told_by_host.keys()
        for one in own:
            other = told_by_host[one.task, one.sample]
            assert one.parent._replace(score=0.0) == other.parent._replace(score=0.0)
            assert one.parent.score == pytest.approx(other.parent.score, abs=1e-4)
            assert (one.task, one.parent.origin) in told_by_host
            assert [s.action for s in one.steps] == [s.action for s in other.steps]


@every_case
def test_what_is_sampled_and_thrown_away_is_counted(world, method, told):
    for seed in SEEDS:
        grown, _, device, _ = both(world, method, told, seed)
        assert int(device.usage.decoded) == grown.usage.decoded
        assert device.report.keys() <= grown.report.keys()
        for name, number in device.report.items():
            assert float(number) == pytest.approx(grown.report[name], abs=1e-4), name


@every_case
def test_credit_is_the_same_row_for_row(world, method, told):
    """Places that are no branch change nothing."""
    # Few of these groups have two scores: those of one count as well.
    config = AlgorithmConfig(name=method, gamma=GAMMA, singleton="score")
    credit = jax.jit(functools.partial(ALGORITHMS[method].credit, config=config))
    learnt = 0
    for seed in SEEDS:
        _, host, device, pairs = both(world, method, told, seed)
        theirs, ours = (
            np.asarray(credit(b, jnp.zeros(b.tokens_NT.shape)).advantage_NT)
            for b in (host, device.batch)
        )
        assert not ours[device.batch.step_ids_NT < 0].any()
        learnt += bool(ours.any())
        for row, own in pairs:
            np.testing.assert_allclose(
                tokens_of(device.batch, own, ours), tokens_of(host, row, theirs), atol=1e-5
            )
    assert learnt


@pytest.mark.full
def test_the_cases_hold_what_can_happen():
    """What the tests above are worth."""
    preferences, splits, played, kept, lengths = set(), set(), [], [], set()
    for world in (CACHED, WIDE):
        for seed in SEEDS:
            grown, batch, *_ = both(world, "branpo", False, seed)
            played.append(grown.report["branch/count"])
            kept.append(grown.report["branch/kept"])
            for original, *contrasts in grown.groups:
                lengths.add(len(original.steps))
                for one in contrasts:
                    preferences.add(one.parent.preference)
                    splits.add(len(original.steps) - one.parent.step)
    assert preferences == {-1, 1} and splits >= {1, 2, 3} and len(lengths) > 3
    assert any(k < p for k, p in zip(kept, played, strict=True)) and max(kept) >= 3
    inside = behind = places = 0
    for seed in SEEDS:
        for group in grower(CACHED, "appo", True).host(seed)[0].groups:
            inside += sum(one.parent.token > 0 for one in group)
            behind += sum(one.parent.token == 0 and one.parent.step > 0 for one in group)
        grown = grower(WIDE, "arpo", False).host(seed)[0]
        places += sum(len(group) < WIDE.n for group in grown.groups)
    assert inside and behind and places


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["branpo", *(pytest.param(name, marks=pytest.mark.full) for name in ("appo", "arpo"))]
)
def test_keys_may_be_one_more_axis(method):
    """Lanes that have finished wait for the others and stay as they are."""
    grow = grower(WIDE, method, False)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(SEEDS)))
    together = jax.device_get(jax.jit(jax.vmap(grow.one))(keys))
    for seed in SEEDS:
        alone = grow.device(seed)
        lane = jax.tree.map(lambda x, seed=seed: x[seed], together)
        for a, b in zip(jax.tree.leaves(lane), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


# Steps that saw the same


def blind_policy(words):
    """All tokens are as likely, whatever was read."""
    return Policy(
        init=lambda key: {},
        apply=lambda params, tokens, *_: (jnp.zeros((*tokens.shape, 1)), _[2]),
        unembed=lambda params, hidden: jnp.zeros((*hidden.shape[:-1], words)),
        value=None,
        init_cache=lambda batch, length: jnp.zeros((batch, length)),
    )


@pytest.mark.parametrize(
    "name",
    ["multihop", *(pytest.param(name, marks=pytest.mark.slow) for name in ("errand", "shop"))],
)
def test_anchors_part_the_steps_as_on_the_host(name):
    config = small_config(f"env.name={name}", "env.multihop.num_entities=4",
                          "env.multihop.search_failure=0.3", "env.multihop.spare_steps=4")  # fmt: skip
    env = open_game(config.env).make(False)
    policy = markov_policy(4) if name == "multihop" else blind_policy(env.vocab_size)
    task_N, sample_N = (x.astype(np.int32) for x in attempts(0, 4, 6))
    play = jax.jit(functools.partial(grow, policy, env, None, {}))
    anchors = jax.jit(functools.partial(with_device_anchors, env))
    credit = jax.jit(functools.partial(ALGORITHMS["gigpo"].credit, config=AlgorithmConfig()))
    repeated, learnt = 0, False
    for seed in SEEDS:
        grown = play(jax.random.key(seed), task_N, sample_N)
        batch = jax.device_get(anchors(grown.batch))
        anchored = with_anchors(batch, None)
        own_NS, host_NS = batch.anchor_NS, np.asarray(anchored.anchor_NS)
        there = batch.mask_NS
        assert (own_NS[~there] == -1).all() and (host_NS[~there] == -1).all()
        assert own_NS[there].min() >= 0 and own_NS.max() < own_NS.size
        pairs = set(zip(own_NS[there].tolist(), host_NS[there].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        repeated += there.sum() - len(pairs)
        assert grown.usage.decoded == (batch.step_ids_NT >= 0).sum()
        value = jnp.zeros(batch.tokens_NT.shape)
        ours, theirs = (credit(one, value).advantage_NT for one in (batch, anchored))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        learnt |= bool(np.asarray(ours).any())
    assert repeated > 0 and learnt == (name == "multihop")  # the blind are never rewarded
