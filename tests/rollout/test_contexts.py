"""Contexts: extended or written anew, the policy reads and trains on the very same tokens."""

import functools

import jax
import numpy as np
import pytest

from steprl.models import DecoderConfig, make_policy, score
from steprl.rollout import HostPlayer, collate, episode, summary, trajectories
from steprl.rollout.contexts import as_text, chat_context, common_prefix, next_context
from steprl.rollout.text_player import apart
from tests.models.chat_models import CHATML, chat_tokenizer

TOKENIZER = chat_tokenizer(CHATML)
KEY = jax.random.key(3)
TASKS, SAMPLES = [0, 1, 2, 3], [0, 1, 0, 1]
CONTEXT, RESPONSE, STEPS = 192, 5, 4


class Diary:
    """An episode of `task % 3 + 2` steps; the prompt says how long the last replies were."""

    def __init__(self, form):
        self.form = form

    def reset(self, task, key=None):
        return (task, ()), self.prompt(task, ())

    def step(self, state, action):
        task, said = state
        said = (*said, action)
        over = len(said) >= task % 3 + 2
        info = {"success": over, "valid": True, "length": len(action)}
        return (task, said), self.prompt(task, said), 1.0, over, False, info

    def prompt(self, task, said):
        if self.form == "messages":  # a conversation that goes on, as a template would write it
            turns = [{"role": "user", "content": f"the task {task}"}]
            for text in said:
                turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "t"}]
            return turns
        if self.form == "rebuild":
            return f"the task {task}, " + " ".join(str(len(text)) for text in said[-1:]) + " then?"
        return f"the answer {len(said)}"

    def metrics(self, infos):
        return {"length": float(sum(info["length"] for info in infos))}


def decoder():
    config = DecoderConfig(
        vocab_size=len(TOKENIZER), d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=24, value_head="shared",
    )  # fmt: skip
    policy = make_policy(config)
    params = jax.jit(policy.init)(jax.random.key(0))
    params["decoder"]["embedding"]["embedding"] *= 10.0  # so that it has opinions
    params["value"]["out"]["kernel"] += 0.5
    return policy, params


@functools.cache
def played(form):
    policy, params = decoder()
    context = chat_context(TOKENIZER, "Be the.", rebuild=form == "rebuild")
    player = HostPlayer(policy, context, STEPS, RESPONSE, CONTEXT)
    return player.play(Diary(form), params, KEY, TASKS, SAMPLES), context


@pytest.mark.parametrize("form", ["extend", "rebuild", "messages"])
def test_every_step_holds_the_tokens_that_its_context_was_made_of(form):
    found, context = played(form)
    for trajectory in found:
        assert len(trajectory.steps) == trajectory.task % 3 + 2
        so_far = []
        for number, step in enumerate(trajectory.steps):
            said = tuple(s.action for s in trajectory.steps[:number])
            observation = Diary(form).prompt(trajectory.task, said)
            if number == 0 or step.fresh:
                assert step.observation_ids.tolist() == context.begin(observation)
                so_far = []
            so_far += [*step.observation_ids.tolist(), *step.action_ids.tolist()]
            assert step.observation == as_text(observation)
            assert context.decode(step.action_ids.tolist()) == step.action
        assert trajectory.metrics == {"length": sum(len(s.action) for s in trajectory.steps)}


def test_only_a_context_written_anew_is_fresh():
    breaks = {
        form: [s.fresh for t in played(form)[0] for s in t.steps] for form in ("extend", "rebuild")
    }
    first = [number == 0 for t in played("extend")[0] for number, _ in enumerate(t.steps)]
    assert not any(breaks["extend"])
    assert breaks["rebuild"] == [not one for one in first]


def test_a_conversation_that_repeats_what_was_said_extends_it():
    _, context = played("messages")
    reply = context.encode("the")
    so_far = [*context.begin([{"role": "user", "content": "x"}]), *reply]
    turns = [("user", "x"), ("assistant", "the"), ("user", "y")]
    observation = [{"role": role, "content": text} for role, text in turns]
    ids, fresh = next_context(context, so_far, observation)
    assert not fresh and ids[: len(so_far)] == so_far
    observation[1]["content"] = "other"
    ids, fresh = next_context(context, so_far, observation)
    assert fresh and ids == context.begin(observation)


def test_a_reply_that_was_cut_off_is_closed_before_the_next_message():
    context = chat_context(TOKENIZER)
    so_far = context.begin("x") + context.encode("the")[:-1]
    whole, _ = next_context(context, [*so_far, context.stop_ids[0]], "y")
    assert next_context(context, so_far, "y") == (whole, False)


@pytest.mark.parametrize("form", ["extend", "rebuild", "messages"])
def test_what_was_sampled_is_what_is_trained(form):
    policy, params = decoder()
    found, _ = played(form)
    batch = collate(found, STEPS, [CONTEXT // 2, CONTEXT], RESPONSE)
    scores = jax.jit(functools.partial(score, policy))(params, batch)
    np.testing.assert_allclose(scores.logprob_NT, batch.logprob_NT, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_NT, batch.entropy_NT, atol=1e-5)
    for one, other in zip(found, trajectories(batch, TOKENIZER), strict=True):
        assert len(one.steps) == len(other.steps) and one.metrics == other.metrics
        for a, b in zip(one.steps, other.steps, strict=True):
            np.testing.assert_array_equal(a.observation_ids, b.observation_ids)
            np.testing.assert_array_equal(a.action_ids, b.action_ids)
            assert a.fresh == b.fresh


@pytest.mark.slow
def test_a_row_of_contexts_says_what_each_context_says_alone():
    policy, params = decoder()
    found, _ = played("rebuild")
    together = collate(found, STEPS, [CONTEXT], RESPONSE)
    assert together.context_width == CONTEXT
    run = jax.jit(functools.partial(score, policy))
    whole = jax.device_get(run(params, together))
    for row, trajectory in enumerate(found):
        pieces = apart(trajectory)
        assert len(pieces) == len(trajectory.steps)
        alone = collate(pieces, STEPS, [CONTEXT], RESPONSE)
        single = jax.device_get(run(params, alone))
        for name in ("logprob_NT", "entropy_NT", "value_NT"):
            ours = getattr(whole, name)[row].reshape(-1, CONTEXT)[: len(pieces)]
            np.testing.assert_allclose(ours, getattr(single, name), atol=1e-5)


def test_another_context_of_the_row_does_not_matter():
    policy, params = decoder()
    batch = collate(played("rebuild")[0], STEPS, [CONTEXT], RESPONSE)
    other = batch.tokens_NT.copy()
    other[:, :CONTEXT] = np.where(batch.segment_ids_NT[:, :CONTEXT] > 0, 5, 0)
    run = jax.jit(functools.partial(score, policy))
    before = run(params, batch).logprob_NT
    object.__setattr__(batch, "tokens_NT", other)
    np.testing.assert_array_equal(before[:, CONTEXT:], run(params, batch).logprob_NT[:, CONTEXT:])


def test_a_prefix_that_stays_is_not_read_again(monkeypatch):
    policy, params = decoder()
    found, context = played("rebuild")
    monkeypatch.setattr(episode, "common_prefix", lambda first, second: 0)
    player = HostPlayer(policy, context, STEPS, RESPONSE, CONTEXT)
    again = player.play(Diary("rebuild"), params, KEY, TASKS, SAMPLES)
    for one, other in zip(found, again, strict=True):
        for a, b in zip(one.steps, other.steps, strict=True):
            np.testing.assert_array_equal(a.action_ids, b.action_ids)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_prefix_breaks_are_counted():
    found, _ = played("rebuild")
    steps = sum(len(t.steps) for t in found)
    metrics = summary(collate(found, STEPS, [CONTEXT], RESPONSE))
    assert float(metrics["token/prefix_break"]) == pytest.approx((steps - len(found)) / steps)
    assert float(metrics["env/length"]) == pytest.approx(
        np.mean([t.metrics["length"] for t in found])
    )
    extended = summary(collate(played("extend")[0], STEPS, [CONTEXT], RESPONSE))
    assert float(extended["token/prefix_break"]) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "size"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 5, 3], 1)]
)
def test_common_prefix(first, second, size):
    assert common_prefix(first, second) == common_prefix(second, first) == size
