"""Whatever an environment does, it ends its own trajectory and no other, and is named there."""

import collections
import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.answers import (
    OBSERVATION_LIMIT,
    REWARD_LIMIT,
    BadAnswer,
    checked_metrics,
    checked_observation,
    checked_step,
    describe,
    shown,
)
from steprl.envs.flow import Ending, FlowEnvironment, Turn
from steprl.envs.replayed import replayed
from steprl.envs.tool_environment import ToolEnvironment
from steprl.rollout import HostPlayer, collate, scripted
from steprl.rollout.contexts import plain_context
from tests.rollout.test_host import KEY, TOKENIZER, CountWords, uniform

POLICY, CONTEXT = uniform(), plain_context(TOKENIZER)
SOUND = {"success": False, "valid": True}
BAD, STEP = 1, 1  # the task, and the step, at which something is wrong


class Unreadable:
    """Raises wherever it is looked at."""

    def __repr__(self):
        raise SystemExit("no text")

    __float__ = __bool__ = __len__ = __iter__ = __repr__


class Wrong(CountWords):
    """Counts its steps; `spoil` changes what the task `BAD` answers at one of them, or raises."""

    def __init__(self, spoil=lambda answer: answer, at="step"):
        self.spoil, self.at = spoil, at

    def reset(self, task, key=None):
        answer = (task, 0), "say now"
        return self.spoil(answer) if self.at == "reset" and task == BAD else answer

    def step(self, state, action):
        task, number = state
        # More words each step, so that no trajectory ends early.
        answer = (task, number + 1), f"so far {number}", 0.5, False, False, SOUND
        return self.spoil(answer) if (task, number, self.at) == (BAD, STEP, "step") else answer


def play(env, tasks=3, context=200, observation_limit=OBSERVATION_LIMIT, workers=0):
    player = HostPlayer(
        POLICY, CONTEXT, 3, 4, context, workers=workers, observation_limit=observation_limit
    )
    return player.play(env, {}, KEY, list(range(tasks)), [0] * tasks)


@pytest.fixture(scope="module")
def undisturbed():
    return play(Wrong())


def check_others(found, undisturbed):
    """All but the trajectory of the task `BAD` are as without it."""
    for one, other in zip(found, undisturbed, strict=True):
        if one.task != BAD:
            assert not one.fault and len(one.steps) == 3 == len(other.steps)
            for a, b in zip(one.steps, other.steps, strict=True):
                np.testing.assert_array_equal(a.action_ids, b.action_ids)


def with_(place, value):
    """A spoiler that puts a value at a place of the answer."""
    return lambda answer: (*answer[:place], value, *answer[place + 1 :])


def raising(error):
    def spoil(answer):
        raise error

    return spoil


REWARDS = {
    "None": None, "nan": float("nan"), "-inf": -float("inf"), "1e+38": 1e38, "'1'": "1",
    "array([ True])": np.array([True]), "[1.0]": [1.0], "inf": 10**400, "1j": 1j, "b'1'": b"1",
    "nan ": np.float32("nan"), "cannot be read": Unreadable(),
}  # fmt: skip
OBSERVATIONS = {
    "None": None, "b'text'": b"text", "7 (int)": 7, "[]": [], "['text']": ["text"],
    "'\\udc80', at character 3": "so \udc80 far", "1,000,000": "x" * (OBSERVATION_LIMIT + 1),
    "{'content': 'text'}": [{"content": "text"}], "a chat template": [{"role": "user", "content": "now"}],
    "lone surrogate": [{"role": "user", "content": [{"text": "\ud800"}]}],
}  # fmt: skip
FLAGS = {"None": None, "'no'": "no", "2": 2, "array([ True, False])": np.array([True, False])}
INFOS = {
    "None": None, "expected a dict": [("success", True)], "no 'success'": {"valid": True},
    "no 'valid'": {"success": True}, "info['success'] is 'yes'": {"success": "yes", "valid": True},
    "info['success'] is nan": {"success": float("nan"), "valid": True},
    "info['valid'] is None": {"success": True, "valid": None},
    "info['reason']": SOUND | {"reason": "\ud800"},
}  # fmt: skip
WHOLE = {
    "None": None, "0 values": (), "5 values": (0, "now", 0.0, False, {}), "7 values": (0,) * 7,
    "'abcdef'": "abcdef", "(dict)": dict.fromkeys(range(6)), "(generator)": (x for x in range(6)),
}  # fmt: skip
ERRORS = {
    "LookupError: no door": LookupError("no door"), "SystemExit: 3": SystemExit(3),
    "GeneratorExit": GeneratorExit(), "RecursionError: deep": RecursionError("deep"),
    "MemoryError": MemoryError(), "StopIteration: 1": StopIteration(1),
}  # fmt: skip
WRONG_STEPS = [
    *[(said, with_(2, value)) for said, value in REWARDS.items()],
    *[(said, with_(1, value)) for said, value in OBSERVATIONS.items()],
    *[(f"terminated is {said}", with_(3, value)) for said, value in FLAGS.items()],
    *[(f"truncated is {said}", with_(4, value)) for said, value in FLAGS.items()],
    *[(said, with_(5, value)) for said, value in INFOS.items()],
    *[(said, lambda answer, value=value: value) for said, value in WHOLE.items()],
    *[(said, raising(error)) for said, error in ERRORS.items()],
]


@pytest.mark.parametrize(("said", "spoil"), WRONG_STEPS)
def test_a_wrong_step_ends_its_own_trajectory(undisturbed, said, spoil):
    found = play(Wrong(spoil))
    check_others(found, undisturbed)
    faulty = found[BAD]
    assert faulty.fault.startswith(f"Wrong, task {BAD}, step {STEP}: ")
    assert said.strip() in faulty.fault and len(faulty.fault) < 700 and "\n" not in faulty.fault
    assert len(faulty.steps) == STEP + 1 and not faulty.success
    last = faulty.steps[-1]
    assert (last.stop_reason, last.truncated, last.reward) == ("env_crash", True, 0.0)
    assert last.info["fault"] == faulty.fault
    assert np.asarray(collate(found, 3, [256]).fault_N).tolist() == [False, True, False]


WRONG_RESETS = [
    ("`reset` returned None", lambda answer: None),
    ("`reset` returned 3 values", lambda answer: (*answer, {})),
    ("(str)", lambda answer: "ab"),
    ("the observation is None", with_(1, None)),
    ("the observation is b'text'", with_(1, b"text")),
    ("lone surrogate", with_(1, "\udc80")),
    ("1,000,001 characters", with_(1, "x" * 1_000_001)),
    ("no tokens", with_(1, " ")),
    ("301 tokens and an action may need 4 more", with_(1, "say" + " now" * 300)),
    ("a chat template", with_(1, [{"role": "user", "content": "now"}])),
    ("OSError: no such place", raising(OSError("no such place"))),
    ("SystemExit: 1", raising(SystemExit(1))),
]


@pytest.mark.parametrize(("said", "spoil"), WRONG_RESETS)
def test_a_wrong_reset_ends_its_own_trajectory_before_a_step(undisturbed, said, spoil):
    found = play(Wrong(spoil, at="reset"))
    check_others(found, undisturbed)
    assert found[BAD].fault.startswith(f"Wrong, task {BAD}, reset: ") and said in found[BAD].fault
    assert found[BAD].steps == () and not found[BAD].success
    assert np.asarray(collate(found, 3, [256]).fault_N).tolist() == [False, True, False]


def test_faults_are_the_same_in_threads(undisturbed):
    found = play(Wrong(with_(2, None)), workers=2)
    check_others(found, undisturbed)
    assert (
        found[BAD].fault == f"Wrong, task {BAD}, step {STEP}: the reward is None; expected a number"
    )


def test_what_the_user_interrupts_is_no_fault():
    with pytest.raises(KeyboardInterrupt):
        play(Wrong(raising(KeyboardInterrupt())))


class Whole(int):
    def __abs__(self):
        raise RuntimeError("no size")


class Name(str):
    def __len__(self):
        return 10**12

    def __hash__(self):
        return 0  # and `==` below, wherever a dict is made of it

    def __eq__(self, other):
        raise RuntimeError("not to be compared")


def test_the_record_of_a_step_has_numbers_and_texts_of_python_whatever_they_were():
    info = SOUND | {
        "a": np.float32(0.5), "b": np.int64(3), "c": jax.numpy.array(True), "d": Whole(4), "e": Name("x"),
        "f": np.array([1, 2]), "g": object(), "h": 10**400, 7: "no name",
    }  # fmt: skip
    step = play(Wrong(with_(5, info)))[BAD].steps[STEP]
    assert step.info == SOUND | {"a": 0.5, "b": 3, "c": True, "d": 4, "e": "x"}
    assert {type(value) for value in step.info.values()} == {bool, float, int, str}
    assert play(Wrong(with_(5, {**SOUND, Name("k"): 1})))[BAD].steps[STEP].info == SOUND | {"k": 1}


@pytest.mark.parametrize("value", [np.array([1, 2]), {1, 2}, b"text", object(), Unreadable()])
@pytest.mark.parametrize("place", ["content", "tool_calls"])
def test_messages_hold_what_json_can(place, value):
    """`content or ''` of an array would end the run, behind the check."""
    with pytest.raises(BadAnswer):
        checked_observation([{"role": "user", "content": "now", place: [value]}])
    kept = [{"role": "user", "content": np.str_("now"), "more": [{"n": np.int64(3), "x": None}]}]
    assert checked_observation(kept) == [
        {"role": "user", "content": "now", "more": [{"n": 3, "x": None}]}
    ]


@pytest.mark.parametrize("make", [collections.deque, collections.UserList, tuple])
def test_texts_are_checked_in_whatever_sequence_messages_come(make):
    with pytest.raises(BadAnswer, match="lone surrogate"):
        checked_observation(make([{"role": "user", "content": make(["\ud800"])}]))


def test_names_of_metrics_are_valid_unicode():
    with pytest.raises(BadAnswer, match="the name of a metric is no valid Unicode"):
        checked_metrics({"\ud800": 1.0})


def test_where_all_fail_the_batch_is_empty_but_there():
    found = play(Wrong(raising(OSError()), at="reset"), tasks=2)[1:]
    batch = collate(found, 3, [64])
    assert batch.fault_N.tolist() == [True] and not batch.mask_NS.any()


def test_a_long_observation_is_never_tokenised():
    class Counting:
        longest = 0

        def __call__(self, text):
            self.longest = max(self.longest, len(text))
            return CONTEXT.extend(text)

    counting = Counting()
    player = HostPlayer(POLICY, CONTEXT._replace(extend=counting), 3, 4, 200, observation_limit=50)
    found = player.play(Wrong(with_(1, "now " * 20)), {}, KEY, [0, BAD], [0, 0])
    assert "80 characters; at most 50 are read (rollout.observation_limit)" in found[1].fault
    assert 0 < counting.longest <= 50 and not found[0].fault


def test_the_first_fault_is_logged_in_one_line_and_no_other(caplog):
    player = HostPlayer(POLICY, CONTEXT, 3, 4, 200)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            player.play(Wrong(with_(2, None)), {}, KEY, [0, BAD, BAD], [0, 0, 1])
    [line] = [record.getMessage() for record in caplog.records]
    assert (
        line.startswith(f"Wrong, task {BAD}, step {STEP}: the reward is None") and "\n" not in line
    )


# ---------------------------------------------------------------- metrics of an environment


class Measured(Wrong):
    def __init__(self, of_bad):
        super().__init__()
        self.of_bad = of_bad

    def metrics(self, infos):
        assert len(infos) == 3
        task = infos[0]["task"]
        return self.of_bad() if task == BAD else {"f1": float(task), "unknown": float("nan")}

    def step(self, state, action):
        *answer, info = super().step(state, action)
        return *answer, info | {"task": state[0]}


def fails():
    raise ZeroDivisionError("no words")


@pytest.mark.parametrize(
    ("said", "of_bad"),
    [
        ("`metrics` failed: ZeroDivisionError: no words", fails),
        ("`metrics` returned None; expected a dict", lambda: None),
        ("'f1' as '0.5' (str)", lambda: {"f1": "0.5", "unknown": 0.0}),
        ("'f1' as inf", lambda: {"f1": float("inf"), "unknown": 0.0}),
        ("gave em, f1; for others it gave f1, unknown", lambda: {"f1": 1.0, "em": 1.0}),
        ("gave f1; for others it gave f1, unknown", lambda: {"f1": 1.0}),
    ],
)
def test_metrics_that_fail_for_one_episode_are_its_fault(said, of_bad):
    found = play(Measured(of_bad))
    assert said in found[BAD].fault and found[BAD].fault.startswith(
        f"Measured, task {BAD}, after 3"
    )
    assert len(found[BAD].steps) == 3 and not found[0].fault and not found[2].fault
    batch = collate(found, 3, [256])
    np.testing.assert_array_equal(batch.metrics_N["f1"], [0.0, np.nan, 2.0])


# ---------------------------------------------------------------- environments made of parts


def flow_of(behaviour):
    def flow(task):
        reply = yield "say now"
        reply = yield Turn("so far 0", reward=0.5)
        if task == BAD:
            return (yield from behaviour(reply))
        reply = yield "so far 1"
        return 0.5

    return FlowEnvironment(flow, tasks=[0, 1, 2], context="extend", max_steps=3)


def yields(value):
    def behaviour(reply):
        yield value

    return behaviour


def returns(value):
    def behaviour(reply):
        return value
        yield

    return behaviour


def throws(error):
    def behaviour(reply):
        raise error
        yield

    return behaviour


@pytest.mark.parametrize(
    ("said", "behaviour"),
    [
        ("it yielded NoneType", yields(None)),
        ("it yielded bytes", yields(b"text")),
        ("the reward is nan", yields(Turn("now", reward=float("nan")))),
        ("the info is 3", yields(Turn("now", info=3))),
        ("valid is 'no'", yields(Turn("now", valid="no"))),
        ("lone surrogate", yields("\ud800")),
        ("it returned nothing", returns(None)),
        ("the reward is 'done'", returns("done")),
        ("the reward is 1e+38", returns(1e38)),
        ("success is 'yes'", returns(Ending(1.0, success="yes"))),
        ("SystemExit: 2", throws(SystemExit(2))),
        ("GeneratorExit", throws(GeneratorExit())),
        ("StopIteration", throws(StopIteration(1.0))),
    ],
)
def test_a_flow_that_goes_wrong_ends_its_own_trajectory(said, behaviour):
    found = play(flow_of(behaviour))
    assert [bool(one.fault) for one in found] == [False, True, False]
    assert said in found[BAD].fault and f"task {BAD}, step 1" in found[BAD].fault


@pytest.mark.parametrize("returned", [None, float("nan"), "1", [1.0]])
def test_a_tool_environment_whose_reward_is_none_ends_its_own_trajectory(returned):
    def look() -> None:
        """Look around."""
        raise SystemExit("nothing here")

    env = ToolEnvironment(
        [look], [0, 1, 2], lambda task, schemas: "say now",
        lambda task, answer: returned if task == BAD else 1.0,
    )  # fmt: skip
    found = play(env)
    assert [bool(one.fault) for one in found] == [False, True, False]
    state, _ = env.reset(0)
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    assert "SystemExit: nothing here" in env.step(state, call)[1]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("expected 5 values", (0, "now", 0.0, False, False, SOUND)),
        ("`step` returned None", None),
        ("the reward is inf", ("now", float("inf"), False, False, SOUND)),
        ("the observation is b'x'", (b"x", 0.0, False, False, SOUND)),
        ("no 'success'", ("now", 0.0, False, False, {})),
    ],
)
def test_an_engine_that_goes_wrong_ends_its_own_trajectory(said, answer):
    class Engine:
        def reset(self, task):
            self.task = task
            return "say now"

        def step(self, action):
            return answer if self.task == BAD else ("now", 0.0, False, False, {"success": False})

        def close(self): ...

    found = play(replayed(Engine))
    assert [bool(one.fault) for one in found] == [False, True, False]
    assert said in found[BAD].fault


@pytest.mark.parametrize(
    "spoil", [with_(2, None), raising(SystemExit(1)), with_(5, {})], ids=range(3)
)
def test_a_demonstration_in_a_broken_environment_fails(spoil):
    with pytest.raises((BadAnswer, SystemExit)):
        scripted(Wrong(spoil), CONTEXT, BAD, ["say"] * 3, 3, 200)
    assert len(scripted(Wrong(spoil), CONTEXT, 0, ["say"] * 3, 3, 200).steps) == 3
    with pytest.raises(ValueError, match="task 0 has the action 3; expected text"):
        scripted(Wrong(), CONTEXT, 0, [3], 3, 200)


# ---------------------------------------------------------------- laws of the check

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers(),
    st.lists(st.floats(), max_size=2), st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
    st.sampled_from([np.array([1.0]), np.float32(1), np.bool_(True), np.array("x"), Unreadable(), object()]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[ANYTHING] * 6)
    | ANYTHING
    | st.tuples(*[ANYTHING] * 4, st.just(False), st.just(SOUND))
)
def test_an_answer_is_either_of_the_types_of_python_or_refused_in_one_line(given_answer):
    try:
        answer = checked_step(given_answer)
    except BadAnswer as error:
        assert "\n" not in str(error) and len(str(error)) < 800
        return
    assert type(answer.reward) is float and abs(answer.reward) <= REWARD_LIMIT
    assert type(answer.terminated) is type(answer.truncated) is bool
    assert {type(answer.info[name]) for name in ("success", "valid")} == {bool}
    assert type(answer.observation) in (str, list)
    str(answer.observation).encode()


@pytest.mark.parametrize(
    "value",
    [1, True, 0.5, np.float64(2), np.int8(3), np.array(1.5), jax.numpy.float32(1), np.bool_(1)],
)
def test_numbers_of_any_library_are_rewards(value):
    answer = checked_step((0, "now", value, np.bool_(False), False, {"success": 1, "valid": 1.0}))
    assert answer.reward == float(value) and answer.info == {"success": True, "valid": True}
    assert checked_metrics({"x": value}) == {"x": float(value)}


def test_messages_that_hold_themselves_come_to_an_end():
    message = {"role": "user"}
    message["content"] = [message]
    with pytest.raises(BadAnswer, match="too many characters"):
        checked_observation([message], limit=1000)


def test_nothing_that_is_described_raises():
    assert shown(Unreadable()) == "a value that cannot be shown"
    assert len(shown("x" * 10**6)) < 200 and len(shown(b"x" * 10**6)) < 200
    assert describe(ValueError()) == "ValueError"
