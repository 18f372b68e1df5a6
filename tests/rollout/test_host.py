"""Episodes of text environments: what is new is read, what was sampled is kept, limits are flagged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import MultihopConfig
from steprl.envs.multihop import Multihop, MultihopText, demonstrate
from steprl.models import phrase_tokenizer, score
from steprl.models.tokenizer import detokenize
from steprl.rollout import HostPlayer, collate, demonstrations, rollout, scripted, trajectories
from steprl.rollout.contexts import plain_context
from steprl.types import Policy
from tests.rollout.markov import decoder, markov_policy

WORDS = (
    "say",
    "now",
    "stop",
    "?",
    "words",
    "too long",
    "too",
    "long",
    "so far",
    "0",
    "1",
    "2",
    "3",
)
TOKENIZER = phrase_tokenizer(WORDS)
EOS = TOKENIZER.eos_token_id


class CountWords:
    """Task n asks for n words in all; "stop" ends, a question is malformed.

    State: (words asked for, words said). The observation after each action repeats the task.
    """

    def reset(self, task, key=None):
        return (task, 0), " ".join(["say"] + ["now"] * task)

    def step(self, state, action):
        task, said = state
        if "?" in action:
            return state, "?", -0.5, False, False, {"success": False, "valid": False, "reason": "?"}
        said += len([word for word in action.split() if word != "stop"])
        done, success = "stop" in action.split(), said >= task
        info = {"success": done and success, "valid": True, "said": said, "state": state}
        return (
            (task, said),
            "so far " + "now " * task,
            float(done and success),
            done,
            said > 40,
            info,
        )


def uniform(widths=None):
    """A policy that may say anything; it notes the chunk widths it is compiled for."""
    logits = jnp.where(jnp.arange(len(TOKENIZER)) == 0, -1e9, 0.0)  # <pad> has no text

    def apply(params, tokens, positions, segments, cache=None):
        if widths is not None:
            widths.append(tokens.shape[1])
        return jnp.zeros((*tokens.shape, 1)), cache

    return Policy(
        init=lambda key: {},
        apply=apply,
        unembed=lambda params, hidden: hidden + logits[(None,) * (hidden.ndim - 1)],
        value=None,
        init_cache=lambda batch, length: jnp.zeros((batch, length)),
    )


TASKS, SAMPLES = [3] * 8 + [1] * 8, list(range(8)) * 2
KEY = jax.random.key(0)


def player(max_steps=6, response=4, context=200, widths=None):
    return HostPlayer(uniform(widths), plain_context(TOKENIZER), max_steps, response, context)


@pytest.fixture(scope="module")
def played():
    return player().play(CountWords(), {}, KEY, TASKS, SAMPLES)


def length_of(trajectory):
    return sum(len(s.observation_ids) + len(s.action_ids) for s in trajectory.steps)


def test_trajectories_come_in_the_order_of_the_tasks(played):
    assert [t.task for t in played] == TASKS and [t.sample for t in played] == SAMPLES


def test_a_record_is_what_the_environment_says_to_its_actions(played):
    env, malformed, ends = CountWords(), 0, set()
    for trajectory in played:
        state, observation = env.reset(trajectory.task)
        solved = False
        for number, step in enumerate(trajectory.steps):
            assert step.observation == observation
            np.testing.assert_array_equal(step.observation_ids, TOKENIZER.encode(observation))
            assert step.action == detokenize(TOKENIZER, step.action_ids)
            state, observation, reward, terminated, _, info = env.step(state, step.action)
            assert (step.reward, step.terminated) == (reward, terminated)
            assert step.valid == info["valid"] and step.info.get("reason") == info.get("reason")
            assert "state" not in step.info  # records hold plain values only
            last = number + 1 == len(trajectory.steps)
            assert last == (terminated or number + 1 == 6)
            assert step.truncated == (last and not terminated)
            malformed, solved = malformed + (not step.valid), solved or info["success"]
            ends.add((step.terminated, step.truncated))
        assert trajectory.success == solved
    assert malformed > 5 and len(ends) == 3


def test_an_action_is_kept_as_it_was_sampled(played):
    reasons = set()
    for step in (s for t in played for s in t.steps):
        assert len(step.action_ids) == len(step.logprobs) == len(step.entropies) <= 4
        assert EOS not in step.action_ids[:-1]
        stopped = step.action_ids[-1] == EOS
        assert step.stop_reason == ("stop_token" if stopped else "length")
        assert stopped or len(step.action_ids) == 4
        np.testing.assert_allclose(step.logprobs, -np.log(len(TOKENIZER) - 1), rtol=1e-5)
        reasons.add(step.stop_reason)
    assert len(reasons) == 2


def test_some_sampled_ids_are_not_those_of_their_text(played):
    """The reason why ids are kept: "too", "long" reads back as one token."""
    steps = [s for t in played for s in t.steps]
    assert any(TOKENIZER.encode(s.action) != [i for i in s.action_ids if i != EOS] for s in steps)
    back = trajectories(collate(played, 6, [256]), TOKENIZER)
    for one, other in zip(steps, (s for t in back for s in t.steps), strict=True):
        np.testing.assert_array_equal(one.action_ids, other.action_ids)
        np.testing.assert_array_equal(one.observation_ids, other.observation_ids)


@pytest.mark.parametrize("rows", [[4], [12, 1, 15]])
def test_a_trajectory_does_not_depend_on_its_batch(played, rows):
    found = player().play(
        CountWords(), {}, KEY, [TASKS[r] for r in rows], [SAMPLES[r] for r in rows]
    )
    for row, other in zip(rows, found, strict=True):
        assert [s.action_ids.tolist() for s in played[row].steps] == [
            s.action_ids.tolist() for s in other.steps
        ]


# ---------------------------------------------------------------- the context


@pytest.mark.parametrize("context", [16, 24, 33])
def test_a_trajectory_whose_next_turn_does_not_fit_is_kept_and_flagged(context):
    found = player(max_steps=20, context=context).play(CountWords(), {}, KEY, TASKS, SAMPLES)
    full = 0
    for trajectory in found:
        assert length_of(trajectory) <= context and trajectory.steps
        for step in trajectory.steps[:-1]:
            assert step.stop_reason != "context_full" and not step.truncated
        last = trajectory.steps[-1]
        if last.stop_reason == "context_full":
            full += 1
            assert last.truncated and not last.terminated
            state, _ = CountWords().reset(trajectory.task)
            for step in trajectory.steps:
                state, observation, *_ = CountWords().step(state, step.action)
            assert length_of(trajectory) + len(TOKENIZER.encode(observation)) + 4 > context
        else:
            assert last.terminated
    assert 0 < full < len(found)


@pytest.mark.parametrize("context", [16, 24, 200])
def test_the_last_observation_of_a_trajectory_that_was_cut_off_is_kept_if_it_fits(context):
    found = player(max_steps=6, context=context).play(CountWords(), {}, KEY, TASKS, SAMPLES)
    kept, dropped = 0, 0
    for trajectory in found:
        state, _ = CountWords().reset(trajectory.task)
        for step in trajectory.steps:
            state, observation, *_ = CountWords().step(state, step.action)
        ids, room = TOKENIZER.encode(observation), context - length_of(trajectory)
        if trajectory.steps[-1].truncated and len(ids) <= room:
            np.testing.assert_array_equal(trajectory.final_observation_ids, ids)
            kept += 1
        else:
            assert len(trajectory.final_observation_ids) == 0
            dropped += trajectory.steps[-1].truncated
    assert kept and (dropped or context == 200)
    again = trajectories(collate(found, 6, [512]), TOKENIZER)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.final_observation_ids, other.final_observation_ids)
        assert len(one.steps) == len(other.steps)


def test_a_trajectory_that_the_environment_cuts_off_keeps_its_last_observation():
    class Impatient(CountWords):
        def step(self, state, action):
            state, observation, reward, _, _, info = super().step(state, action)
            return state, observation + " now", reward, False, True, info

    for trajectory in player().play(Impatient(), {}, KEY, [3, 1], [0, 0]):
        assert len(trajectory.steps) == 1 and trajectory.steps[0].truncated
        text = detokenize(TOKENIZER, trajectory.final_observation_ids)
        assert text.endswith("now")


def test_what_fits_exactly_is_played():
    found = player(context=4 + 4).play(CountWords(), {}, KEY, [3], [0])
    assert len(found[0].steps) == 1


def test_what_is_new_is_read_in_pieces_of_two_widths():
    widths = []
    many = player(max_steps=3, context=1200, widths=widths)
    for task in (1, 9, 15, 16, 31, 32, 40, 300, 500):  # 2 to 501 tokens of a question
        many.play(CountWords(), {}, KEY, [task], [0])
    assert set(widths) == {1, 32, 256}  # 1: the tokens of an action
    assert len(widths) <= 2 * 3 + 9  # each program is traced once for all tasks, shapes each time


# ---------------------------------------------------------------- host = device


CONFIG = MultihopConfig(num_entities=12, max_hops=3, spare_steps=1)
ROWS = 8


@pytest.fixture(scope="module")
def both():
    """The same tasks, key and policy on the device and through text."""
    policy, env, text = markov_policy(inner=decoder()), Multihop(CONFIG), MultihopText(CONFIG)
    params = policy.init(jax.random.key(0))
    task_N, sample_N = np.arange(ROWS, dtype=np.int32), np.arange(ROWS, dtype=np.int32) % 2
    run = jax.jit(functools.partial(rollout, policy, env))
    device = trajectories(run(params, KEY, task_N, sample_N), text.tokenizer)
    host = HostPlayer(policy, plain_context(text.tokenizer), env.max_steps, env.action_width, 64)
    return device, host.play(text, params, KEY, task_N.tolist(), sample_N.tolist()), policy, params


def test_host_and_device_play_the_same_trajectories(both):
    device, host, *_ = both
    assert sum(len(t.steps) for t in host) > 2 * ROWS
    for one, other in zip(device, host, strict=True):
        assert (one.task, one.sample, one.success) == (other.task, other.sample, other.success)
        assert len(one.steps) == len(other.steps)
        for a, b in zip(one.steps, other.steps, strict=True):
            np.testing.assert_array_equal(a.observation_ids, b.observation_ids)
            np.testing.assert_array_equal(a.action_ids, b.action_ids)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
            np.testing.assert_allclose(a.entropies, b.entropies, atol=1e-5)
            for name in ("reward", "terminated", "truncated", "valid", "stop_reason", "action"):
                assert getattr(a, name) == getattr(b, name), name


def test_log_probs_of_host_play_are_those_of_training(both):
    _, host, policy, params = both
    batch = collate(host, 5, [32, 64])
    scores = jax.jit(functools.partial(score, policy))(params, batch)
    np.testing.assert_allclose(scores.logprob_NT, batch.logprob_NT, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_NT, batch.entropy_NT, atol=1e-5)


# ---------------------------------------------------------------- scripted play


def test_a_script_gives_the_tokens_of_the_device_demonstrator():
    expert = functools.partial(demonstrate, CONFIG)
    env, text = Multihop(CONFIG), MultihopText(CONFIG)
    batch = jax.jit(functools.partial(demonstrations, env, expert))(KEY, jnp.arange(ROWS))
    for shown in trajectories(batch, text.tokenizer):
        actions = [step.action for step in shown.steps]
        again = scripted(
            text, plain_context(text.tokenizer), shown.task, [*actions, "search"], env.max_steps, 64
        )
        assert again.success == shown.success and len(again.steps) == len(shown.steps)
        for a, b in zip(shown.steps, again.steps, strict=True):
            np.testing.assert_array_equal(a.observation_ids, b.observation_ids)
            np.testing.assert_array_equal(a.action_ids, b.action_ids)
            assert (a.reward, a.terminated, a.truncated) == (b.reward, b.terminated, b.truncated)


@pytest.mark.parametrize(("max_steps", "context", "steps"), [(9, 200, 4), (2, 200, 2), (9, 18, 3)])
def test_a_script_plays_as_far_as_limits_allow(max_steps, context, steps):
    # The task's 2 tokens, then 2 an action and 2 an answer; the stop comes fourth.
    actions = ["say", "say", "say", "stop", "say"]
    found = scripted(CountWords(), plain_context(TOKENIZER), 1, actions, max_steps, context - 4)
    assert len(found.steps) == steps and length_of(found) <= context
    assert found.success == (steps == 4) == found.steps[-1].terminated
