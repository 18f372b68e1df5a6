"""The slot engine: slots are refilled, lent and forked, and no trajectory can tell."""

import functools
import random
import time

import jax
import numpy as np
import pytest

from steprl.models import DecoderConfig, make_policy, score
from steprl.rollout import BranchPoint, HostPlayer, collate
from steprl.rollout.contexts import chat_context
from steprl.rollout.slots import BLOCK, NARROW, ONE, WIDE, device_functions, pieces
from steprl.types import STOP_REASONS
from tests.models.chat_models import CHATML, chat_tokenizer

TOKENIZER = chat_tokenizer(CHATML)
KEY = jax.random.key(5)
CONTEXT, RESPONSE, STEPS = 448, 6, 5
TASKS, SAMPLES = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1], [0] * 8 + [1] * 2
FORMS = ("extend", "rebuild")


class Diary:
    """A game of `task % 4 + 2` steps whose answers follow from all that was said.

    `faults` says what goes wrong: (task, step) -> seconds to wait, or an exception to raise.
    """

    def __init__(self, form="extend", faults=None):
        self.form, self.faults = form, faults or {}

    def reset(self, task, key=None):
        self.wait(task, -1)
        return (task, ()), self.prompt(task, ())

    def step(self, state, action):
        task, said = state
        self.wait(task, len(said))
        said = (*said, len(action))
        over = len(said) >= task % 4 + 2
        reward = float(sum(said) % 3)
        info = {"success": over and reward > 0, "valid": True}
        return (task, said), self.prompt(task, said), reward, over, False, info

    def prompt(self, task, said):
        if self.form == "rebuild":
            return f"the task {task}, then " + " ".join(str(n) for n in said[-2:])
        return f"the answer {sum(said)} " + "and the " * (task + len(said))

    def wait(self, task, step):
        fault = self.faults.get((task, step), 0.0)
        if isinstance(fault, Exception):
            raise fault
        time.sleep(fault)


@functools.cache
def model():
    config = DecoderConfig(
        vocab_size=len(TOKENIZER), d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=24, value_head="none",
    )  # fmt: skip
    policy = make_policy(config)
    params = jax.jit(policy.init)(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 10.0  # so that it has opinions
    return policy, params


def player(form="extend", **settings):
    context = chat_context(TOKENIZER, "Be the.", rebuild=form == "rebuild")
    return HostPlayer(
        model()[0], context, settings.pop("max_steps", STEPS), RESPONSE, CONTEXT, **settings
    )


def explore(form="extend", tasks=TASKS, samples=SAMPLES, faults=None, remember=True, **settings):
    made = player(form, **settings)
    env = Diary(form, faults)
    return made, env, made.explore(env, model()[1], KEY, tasks, samples, remember=remember)


@functools.cache
def plain(form, slots=0):
    return explore(form, slots=slots)


def same(one, other, equal=np.testing.assert_array_equal):
    """Bit for bit, unless `equal` says otherwise of what the model computed."""
    assert (one.task, one.sample, one.success) == (other.task, other.sample, other.success)
    assert len(one.steps) == len(other.steps)
    for a, b in zip(one.steps, other.steps, strict=True):
        for name in ("observation_ids", "action_ids"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for name in ("logprobs", "entropies"):
            equal(getattr(a, name), getattr(b, name))
        for name in ("reward", "terminated", "truncated", "stop_reason", "fresh", "action"):
            assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(one.final_observation_ids, other.final_observation_ids)


# ------------------------------------------------------------------ scheduling does not show


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "slots", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(7, marks=pytest.mark.slow)]
)
def test_refilled_slots_give_the_trajectories_of_all_at_once(form, slots):
    """Another number of slots is another program: equal up to rounding."""
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    for one, other in zip(
        plain(form, slots)[2].trajectories, plain(form)[2].trajectories, strict=True
    ):
        same(one, other, close)


@pytest.mark.parametrize("slots", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_delays_do_not_show(slots, seed):
    """Whoever waits for whom, whichever slot a task gets: the same, bit for bit."""
    rng = random.Random(seed)
    faults = {
        (task, step): rng.choice([0.0, 0.0, 0.01, 0.05])
        for task in range(8)
        for step in range(-1, 5)
    }
    found = explore(faults=faults, slots=slots, workers=5)[2].trajectories
    for one, other in zip(found, plain("extend", slots)[2].trajectories, strict=True):
        same(one, other)


@pytest.mark.parametrize("workers", [2, 6])
def test_faults_end_their_own_trajectory_as_truncated_and_no_other(workers):
    faults = {(3, 1): 30.0, (5, 0): ValueError("broken"), (6, 2): 30.0}
    found = explore(faults=faults, workers=workers, timeout=0.5, slots=4)[2].trajectories
    for one, other in zip(found, plain("extend", 4)[2].trajectories, strict=True):
        where = [step for task, step in faults if task == one.task and step >= 0]
        if not where:
            same(one, other)
            continue
        last = one.steps[-1]
        assert len(one.steps) == where[0] + 1 and last.truncated and not last.terminated
        kind = "env_crash" if one.task == 5 else "env_timeout"
        assert last.stop_reason == kind and last.reward == 0.0 and last.info["fault"]
        for a, b in zip(one.steps, other.steps, strict=False):
            np.testing.assert_array_equal(a.action_ids, b.action_ids)
    batch = collate(found, STEPS, [CONTEXT])
    assert (np.asarray(batch.stop_NS) == STOP_REASONS.index("env_timeout")).sum() == 2
    assert (np.asarray(batch.stop_NS) == STOP_REASONS.index("env_crash")).sum() == 1


def test_an_environment_that_fails_to_begin_gets_a_second_try_and_an_empty_trajectory():
    class Moody(Diary):
        tries = 0

        def reset(self, task, key=None):
            if task == 1 or (task == 2 and not self.tries):
                self.tries += task == 2
                raise OSError("no such place")
            return super().reset(task, key)

    made = player(workers=2)
    found = made.explore(Moody(), model()[1], KEY, [0, 1, 2], [0, 0, 0]).trajectories
    assert [len(one.steps) > 0 for one in found] == [True, False, True]
    assert not found[1].success and found[1].task == 1
    undisturbed = explore(tasks=[0, 1, 2], samples=[0] * 3)[2].trajectories
    same(found[2], undisturbed[2])


def test_where_no_environment_begins_each_trajectory_says_why():
    class Broken(Diary):
        def reset(self, task, key=None):
            raise OSError("no such place")

    found = player().explore(Broken(), model()[1], KEY, [0, 1], [0, 0]).trajectories
    assert [one.fault for one in found] == [
        f"Broken, task {task}, reset: OSError: no such place" for task in (0, 1)
    ]
    assert not any(one.steps or one.success for one in found)


def test_one_slow_environment_does_not_hold_up_the_others():
    """With one slot, six quick episodes are played while the first one waits."""
    made, env = player(slots=1, workers=2, timeout=20.0), Diary(faults={(0, 0): 2.0})
    order, step = [], env.step

    def noted(state, action):
        answer = step(state, action)
        order.append(state[0])
        return answer

    env.step = noted
    tasks = [0, 1, 2, 3]
    found = made.explore(env, model()[1], KEY, tasks, [0] * 4).trajectories
    assert order.index(0) > order.index(1)
    for one, other in zip(found, plain("extend", 1)[2].trajectories, strict=False):
        same(one, other)


# ------------------------------------------------------------------ counters and programs


def test_pieces_cover_a_length_with_less_than_a_narrow_one_to_spare():
    for length in (1, 31, 32, 33, 255, 256, 257, 700):
        found = pieces(length)
        assert 0 <= sum(found) - length < NARROW and set(found) <= {WIDE, NARROW, ONE}


def test_prefilled_decoded_and_reused_tokens_add_up():
    _, _, found = plain("extend")
    usage, steps = found.usage, [s for t in found.trajectories for s in t.steps]
    assert usage.decoded == sum(len(s.action_ids) for s in steps)
    read = sum(len(s.observation_ids) for s in steps)
    again = sum(  # the last two attempts begin with what others have read in the same turn
        len(t.steps[0].observation_ids) for t in found.trajectories if t.sample == 1
    )
    # The last token of an action is read with the observation that follows it.
    assert usage.prefilled == read - again + sum(len(t.steps) - 1 for t in found.trajectories)
    contexts = 0
    for trajectory in found.trajectories:
        length = 0
        for step in trajectory.steps:
            length += len(step.observation_ids)
            contexts += length
            length += len(step.action_ids)
    assert usage.prefilled + usage.reused == contexts


@pytest.mark.parametrize("form", FORMS)
def test_attempts_at_a_task_read_their_first_observation_once_and_alike(form):
    """The same bit for bit, whether the other slots have the same task or others of their own."""
    count = 2 * BLOCK
    alike = explore(form, [3] * count, range(count))[2]
    mixed = explore(form, [*range(4, 4 + BLOCK), *[3] * BLOCK], range(count))[2]
    for one, other in zip(alike.trajectories[BLOCK:], mixed.trajectories[BLOCK:], strict=True):
        same(one, other)
    (first,) = {tuple(one.steps[0].observation_ids) for one in alike.trajectories}
    made = player(form, max_steps=1)
    usage = made.explore(Diary(form), model()[1], KEY, [3] * count, range(count)).usage
    assert (usage.prefilled, usage.reused) == (len(first), (count - 1) * len(first))


def test_many_calls_share_a_few_programs():
    made, env, found = explore("rebuild", slots=3)
    device = device_functions(
        model()[0], CONTEXT, RESPONSE, made.context.stop_ids, made.context.pad_id
    )
    before = [f._cache_size() for f in (device.read, device.act, device.copy)]
    for seed in range(3):
        made.explore(env, model()[1], jax.random.key(seed), TASKS[seed:], SAMPLES[seed:])
        points = [BranchPoint(o, 1, 0, 7) for o in range(8 - seed)]
        made.branch(env, model()[1], KEY, found, points)
    after = [f._cache_size() for f in (device.read, device.act, device.copy)]
    # Other numbers of kept rows are other shapes of the copy; reading and acting have one each.
    assert after[0] - before[0] <= 2 and after[1] - before[1] <= 1


# ------------------------------------------------------------------ forks


def points_of(found):
    return [
        BranchPoint(origin, step, token, 100 + token)
        for origin, one in enumerate(found.trajectories)
        for step, at in enumerate(one.steps)
        for token in {0, len(at.action_ids) // 2}
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slots", [0, 3])
def test_a_branch_shares_its_prefix_and_goes_on_alone(form, slots):
    made, env, found = explore(form, slots=slots)
    points = points_of(found)
    branches = made.branch(env, model()[1], KEY, found, points)
    for point, branch in zip(points, branches.trajectories, strict=True):
        origin = found.trajectories[point.origin]
        assert (
            branch.parent[:3] == (origin.sample, point.step, point.token)
            and branch.task == origin.task
        )
        for a, b in zip(branch.steps[: point.step], origin.steps, strict=False):
            assert a is b  # the very same record, not a copy of it
        kept = origin.steps[point.step].action_ids[: point.token]
        np.testing.assert_array_equal(branch.steps[point.step].action_ids[: point.token], kept)
        state, _ = env.reset(branch.task)
        for step in branch.steps:  # and the environment went on from the right state
            state, _, reward, *_ = env.step(state, step.action)
            assert reward == step.reward
    assert any(
        b.steps[p.step].action_ids.tolist()
        != found.trajectories[p.origin].steps[p.step].action_ids.tolist()
        for p, b in zip(points, branches.trajectories, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_fork_then_continue_is_reading_everything_again(form):
    """Log-probs of a branch are those of one pass over its whole row."""
    made, env, found = plain(form)
    branches = made.branch(env, model()[1], KEY, found, points_of(found)).trajectories
    batch = collate(branches, STEPS, [CONTEXT])
    again = jax.jit(functools.partial(score, model()[0]))(model()[1], batch)
    np.testing.assert_allclose(again.logprob_NT, batch.logprob_NT, atol=1e-5)


def test_a_branch_that_goes_on_with_the_same_randomness_is_its_origin():
    made, env, found = plain("extend")
    points = [
        BranchPoint(o, len(t.steps) // 2, 1, t.sample) for o, t in enumerate(found.trajectories)
    ]
    for point, branch in zip(
        points, made.branch(env, model()[1], KEY, found, points).trajectories, strict=True
    ):
        origin = found.trajectories[point.origin]
        assert [s.action for s in branch.steps] == [s.action for s in origin.steps]


def test_64_forks_with_the_same_key_are_equal_bit_for_bit():
    made, env, found = plain("extend")
    one, *others = made.branch(
        env, model()[1], KEY, found, [BranchPoint(3, 2, 0, 9)] * 64
    ).trajectories
    for other in others:
        same(one, other)


def test_a_branch_reads_one_token_and_what_is_new():
    made, env, found = plain("extend")
    points = [BranchPoint(3, step, 0, 11) for step in range(4)]
    branches = made.branch(env, model()[1], KEY, found, points)
    new = sum(
        len(step.observation_ids) + 1
        for point, one in zip(points, branches.trajectories, strict=True)
        for step in one.steps[point.step + 1 :]
    )
    assert branches.usage.prefilled == len(points) + new


@pytest.mark.parametrize("point", [(0, 9, 0), (0, 0, 6), (0, -1, 0)])
def test_a_point_outside_its_trajectory_is_refused(point):
    made, env, found = plain("extend")
    with pytest.raises(ValueError, match="step=|token="):
        made.branch(env, model()[1], KEY, found, [BranchPoint(*point, 3)])
