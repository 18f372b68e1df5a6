"""Rollouts that branch, with a player that says beforehand how every continuation ends."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.algorithms import ALGORITHMS
from steprl.branching import Plan
from steprl.config import BranchConfig
from steprl.ops import branch_attempts, pair_branches
from steprl.rollout import BranchPoint, Rollouts, Usage, collate
from steprl.rollout.branching import grow
from steprl.rollout.text_player import Player
from steprl.rollout.trees import collate_trees
from steprl.types import Parent, Step, Trajectory

KEY, STEPS, WORDS = jax.random.key(0), 6, 40


def step_of(rng, reward=0.0, stop="stop_token"):
    size = int(rng.integers(2, 5))
    return Step(
        observation="", action="", observation_ids=rng.integers(5, WORDS, 3).astype(np.int32),
        action_ids=rng.integers(5, WORDS, size).astype(np.int32),
        logprobs=np.full(size, -1.0, np.float32),
        entropies=rng.uniform(0, 2, size).astype(np.float32),
        reward=reward, terminated=False, truncated=stop != "stop_token", stop_reason=stop,
    )  # fmt: skip


def ended(task, sample, steps, reward, rng, shared=(), stop="stop_token", parent=None):
    own = [step_of(rng) for _ in range(steps - len(shared) - 1)] + [step_of(rng, reward, stop)]
    return Trajectory(task, sample, (*shared, *own), reward >= 0.8, parent)


class Scripted:
    """Outcomes by (origin, split, k-th continuation from there)."""

    def __init__(self, originals, outcomes, seed=0):
        self.originals, self.outcomes = originals, outcomes
        self.asked: list[BranchPoint] = []
        self.tried: dict[tuple[int, int], int] = {}
        self.rng = np.random.default_rng(seed)

    def explore(self, params, key, task_N, sample_N, sampling, **how):
        return Rollouts(self.originals, Usage(decoded=100), "memory")

    def branch(self, params, key, rollouts, points, sampling, **how):
        assert rollouts.memory == "memory"
        made = []
        for point in points:
            self.asked.append(point)
            origin = self.originals[point.origin]
            number = self.tried.get((point.origin, point.step), 0)
            self.tried[point.origin, point.step] = number + 1
            steps, reward, stop = self.outcomes(point.origin, point.step, number)
            shared = origin.steps[: point.step]
            made.append(
                ended(origin.task, point.sample, point.step + steps, reward, self.rng, shared, stop,
                      Parent(origin.sample, point.step, point.token))
            )  # fmt: skip
        return Rollouts(made, Usage(decoded=len(points)))

    def player(self):
        lengths = [80, 160]
        return Player(
            None, None, None, ("train", "eval"), {}, self.explore, self.branch,
            lambda played: collate(played, 2 * STEPS, lengths, 5),
            lambda groups, rows: collate_trees(groups, 2 * STEPS, lengths, 5, rows),
        )  # fmt: skip


def plan_of(method, n, settings=None, nonblank=None, log_ratio=None):
    nonblank = np.ones(WORDS, bool) if nonblank is None else nonblank
    return Plan(
        nonblank, 1.0, ALGORITHMS[method].branching, settings or BranchConfig(), n, log_ratio
    )


def batch_of(script, grown):
    return script.player().collate_groups(grown.groups, grown.rows)


# ------------------------------------------------------------------ BranPO


@st.composite
def prompts(draw):
    """Rollouts of some tasks: (steps, reward, stop reason) each."""
    stop = st.sampled_from(["stop_token"] * 4 + ["context_full", "env_crash"])
    one = st.tuples(st.integers(1, STEPS - 1), st.sampled_from([0.0, 1.0]), stop)
    tasks = draw(st.integers(1, 3))
    n = draw(st.integers(2, 4))
    return draw(st.lists(st.lists(one, min_size=n, max_size=n), min_size=tasks, max_size=tasks))


@settings(max_examples=40, deadline=None)
@given(tasks=prompts(), seed=st.integers(0, 99))
@pytest.mark.slow
def test_branpo_runs_the_calls_of_the_difficulty_table_until_a_pair_is_found(tasks, seed):
    """As many continuations, from the same places, and the same pair as `ops` decides."""
    rng = np.random.default_rng(seed)
    n = len(tasks[0])
    originals = [
        ended(task, sample, steps, reward, rng, stop=stop)
        for task, rows in enumerate(tasks)
        for sample, (steps, reward, stop) in enumerate(rows)
    ]
    table = {
        (row, split, k): (
            int(rng.integers(1, 4)), float(rng.integers(0, 2)),
            str(rng.choice(["stop_token", "stop_token", "context_full"])),
        )
        for row, split, k in itertools.product(range(len(originals)), range(STEPS), range(12))
    }  # fmt: skip
    script = Scripted(originals, lambda *place: table[place], seed)
    task_N, sample_N = np.repeat(np.arange(len(tasks)), n), np.tile(np.arange(n), len(tasks))
    grown = grow(script.player(), plan_of("branpo", n), {}, KEY, task_N, sample_N)

    number = 0
    for row, original in enumerate(originals):
        mates = [o for o in originals if o.task == original.task]
        correct = [len(o.steps) for o in mates if o.total_reward >= 0.8]
        accuracy, steps = len(correct) / n, len(original.steps)
        normal = original.steps[-1].stop_reason == "stop_token"
        branches, from_end = branch_attempts(
            accuracy, np.mean(correct or [0.0]), original.total_reward, steps, normal
        )
        want, tried = None, dict.fromkeys(range(STEPS), 0)
        for count, back in zip(branches.tolist(), from_end.tolist(), strict=True):
            if not count or want:
                continue
            split = steps - back
            new = [table[row, split, tried[split] + k] for k in range(5)]
            pair = pair_branches(
                original.total_reward, steps - split,
                *(np.array(x, np.float32) for x in ([r for _, r, _ in new], [s for s, _, _ in new])),
                np.array([stop == "stop_token" for *_, stop in new]), accuracy, count,
            )  # fmt: skip
            tried[split] += int(pair.attempts)
            number += int(pair.attempts)
            if int(pair.kept) >= 0:
                want = new[int(pair.kept)], int(pair.preference_new)
        group = grown.groups[row]
        parents = [one.parent for one in group]
        assert group[0].steps is original.steps and parents[0].step == split
        assert len(group) == (2 if want else 1)
        if want:
            (size, reward, _), preference = want
            assert (len(group[1].steps) - split, group[1].total_reward) == (size, reward)
            assert [parent.preference for parent in parents] == [-preference, preference]
            assert parents[1].step == split and parents[1].origin == original.sample
    assert len(script.asked) == number == grown.report["branch/count"]
    assert grown.usage.decoded == 100 + number  # what a branch samples counts
    assert (
        len({(p.origin, p.sample) for p in script.asked}) == number
    )  # random streams of their own
    assert not {p.sample for p in script.asked} & set(range(n))


def test_a_batch_of_branpo_says_who_descends_from_whom():
    rng = np.random.default_rng(1)
    rewards = [1.0, 0.0, 1.0, 0.0]
    originals = [ended(0, k, 4, reward, rng) for k, reward in enumerate(rewards)]
    script = Scripted(originals, lambda row, split, k: (2, 1.0 - rewards[row], "stop_token"))
    plan = plan_of("branpo", 4)
    batch = batch_of(script, grow(script.player(), plan, {}, KEY, np.zeros(4, int), np.arange(4)))
    assert batch.task_N.shape == (8,)
    there = np.asarray(batch.mask_NS).any(axis=1)
    for row in np.flatnonzero(there):
        origin = row - row % 2
        assert batch.branches.origin_N[row] == origin
        token, split = batch.branches.token_N[row], batch.branches.step_N[row]
        if row == origin:
            assert token == -1
            continue
        ids = batch.step_ids_NT[row]
        assert ids[token] == split - 1 and not (ids[token + 1 :] == split - 1).any()
        np.testing.assert_array_equal(
            batch.tokens_NT[row, : token + 1], batch.tokens_NT[origin, : token + 1]
        )


# ------------------------------------------------------------------ APPO and ARPO


def attempts_of(tasks, n, rng):
    return [ended(t, s, 4, float(rng.integers(0, 2)), rng) for t in range(tasks) for s in range(n)]


def by_score(
    method, seed=0, tasks=3, n=6, initial=None, log_ratio=None, nonblank=None, refill="cycle"
):
    rng = np.random.default_rng(seed)
    first = initial or n // 2
    script = Scripted(attempts_of(tasks, first, rng), lambda *_: (3, 1.0, "stop_token"), seed)
    task_N, sample_N = np.repeat(np.arange(tasks), n), np.tile(np.arange(n), tasks)
    changed = None if log_ratio is None else lambda params, before, batch: log_ratio(batch)
    plan = plan_of(method, n, BranchConfig(initial=initial, refill=refill), nonblank, changed)
    grown = grow(script.player(), plan, {}, KEY, task_N, sample_N, before={})
    return script, grown, n, first


@pytest.mark.parametrize("method", ["appo", "arpo"])
@pytest.mark.parametrize("initial", [None, 1, 4])
def test_the_budget_of_a_task_is_spent_on_branches_of_its_own_attempts(method, initial):
    script, grown, n, first = by_score(method, initial=initial)
    assert [len(group) for group in grown.groups] == [n] * 3
    for task, group in enumerate(grown.groups):
        assert {one.task for one in group} == {task}
        assert sorted(one.sample for one in group[first:]) == list(range(first, n))
    for point in script.asked:
        assert 0 <= point.step < 4
    assert grown.report["branch/count"] == 3 * (n - first)


def test_attempts_may_be_left_out_where_places_are_few():
    grown = by_score("arpo", n=6, initial=1, refill="none")[1]
    assert [len(group) for group in grown.groups] == [4] * 3  # four steps, three answers of a tool


def test_appo_branches_behind_the_tokens_of_highest_entropy_where_nothing_else_is_known():
    script, grown, n, first = by_score("appo", n=4, initial=3)
    for group in grown.groups:
        parent = group[first].parent
        origin = group[parent.origin]
        scored = []
        for row, one in enumerate(group[:first]):
            flat = np.concatenate([s.entropies for s in one.steps])
            z = (flat - flat.mean()) / (flat.std() + 1e-6)
            scored += [(value, row, place) for place, value in enumerate(z[:-1])]
        best = max(scored)
        assert best[1] == parent.origin
        sizes = [len(s.action_ids) for s in origin.steps]
        place = sum(sizes[: parent.step]) + parent.token  # sampled tokens that are shared
        assert place == best[2] + 1
        assert parent.score == pytest.approx(best[0], abs=1e-4)


def test_appo_looks_at_tokens_with_a_text_only():
    nonblank = np.zeros(WORDS, bool)
    nonblank[:20] = True
    script, grown, n, first = by_score("appo", nonblank=nonblank)
    for group in grown.groups:
        for parent in (one.parent for one in group[first:]):
            origin = group[parent.origin]
            ids = np.concatenate([s.action_ids for s in origin.steps])
            sizes = [len(s.action_ids) for s in origin.steps]
            assert nonblank[ids[sum(sizes[: parent.step]) + parent.token - 1]]


def test_appo_prefers_tokens_after_which_the_policy_has_changed():
    """A ratio that is large from the middle of one attempt on moves the branches."""
    plain = by_score("appo", seed=3)[0].asked
    told = by_score(
        "appo", seed=3,
        log_ratio=lambda batch: np.where(np.asarray(batch.step_ids_NT) == 1, 0.1, 0.0).astype(np.float32),
    )[0].asked  # fmt: skip
    agree = by_score("appo", seed=3, log_ratio=lambda batch: 0.0 * batch.entropy_NT)[0].asked
    assert agree == plain  # policies that agree tell nothing: entropy decides
    assert told != plain and all(point.step <= 2 for point in told)


def test_what_has_changed_is_computed_once_for_what_attempts_at_a_task_share():
    seen = []
    script = by_score("appo", log_ratio=lambda batch: seen.append(batch) or 0 * batch.entropy_NT)[0]
    (batch,) = seen
    apart = script.player().collate(script.originals)
    assert batch.tree.tokens_MGU.shape[0] == 3 and apart.tree is None
    for name in ("tokens_NT", "step_ids_NT", "logprob_NT", "task_N"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(apart, name))


def test_arpo_branches_where_a_tool_has_just_answered():
    script, _, _, _ = by_score("arpo")
    assert all(point.step > 0 and point.token == 0 for point in script.asked)


@pytest.mark.parametrize("initial", [6, 7])
def test_attempts_must_be_left_for_branches(initial):
    with pytest.raises(ValueError, match=f"algorithm.branch.initial={initial}.*rollout.n=6"):
        by_score("appo", initial=initial)


def test_a_batch_of_appo_says_which_token_is_the_last_shared():
    script, grown, n, first = by_score("appo")
    batch = batch_of(script, grown)
    for row in range(len(batch.task_N)):
        task, place = divmod(row, n)
        parent = grown.groups[task][place].parent
        assert batch.branches.origin_N[row] == task * n + parent.origin
        if place < first:
            assert batch.branches.token_N[row] == -1
            continue
        origin = grown.groups[task][parent.origin]
        sizes = [len(s.action_ids) for s in origin.steps]
        shared = sum(sizes[: parent.step]) + parent.token
        active = np.flatnonzero(batch.step_ids_NT[row] >= 0)
        assert batch.branches.token_N[row] == active[shared - 1]
        assert batch.branches.score_N[row] == np.float32(parent.score)
