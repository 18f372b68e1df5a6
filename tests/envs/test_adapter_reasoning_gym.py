"""reasoning-gym by value: one question, one reply, the score of the generator."""

import pickle

import pytest

from steprl.envs.adapters.reasoning_gym import environment
from tests.envs.adapter_laws import (
    MALFORMED,
    check_malformed,
    check_same_task_same_observation,
)

pytest.importorskip("reasoning_gym")

NAMES = [
    "basic_arithmetic",
    "countdown",
    "game_of_life",
    "maze",
    "prime_factorization",
    "spell_backward",
]


@pytest.fixture(scope="module")
def env():
    return environment(NAMES, size=50)


@pytest.mark.parametrize("task", range(12))
def test_the_answer_of_the_generator_solves(env, task):
    state, question = env.reset(task)
    reply = f"<answer>no</answer> Or rather <answer> {env.reference_answer(task)} </answer>."
    after, observation, reward, terminated, truncated, info = env.step(state, reply)
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info == {"success": True, "valid": True, "reason": "", "task_type": NAMES[task % 6]}
    with pytest.raises(ValueError, match="the episode is over"):
        env.step(after, reply)


def test_the_score_is_that_of_the_generator(env):
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("countdown", size=50, seed=0)
    task = NAMES.index("countdown") + 4 * len(NAMES)
    state, question = env.reset(task)
    assert question == dataset[4]["question"]
    seen = set()
    for answer in (env.reference_answer(task), "1 + 1", "?", ""):
        reward = env.step(state, f"<answer>{answer}</answer>")[2]
        assert reward == dataset.score_answer(answer, dataset[4])
        seen.add(reward)
    assert len(seen) >= 3  # solved, tried, and nothing


def test_a_reply_without_tags_is_scored_and_not_valid(env):
    state, _ = env.reset(0)
    *_, reward, _, _, info = env.step(state, env.reference_answer(0))
    assert reward == 1.0 and info["success"] and not info["valid"]
    assert info["reason"] == "no <answer>...</answer>"


def test_a_state_can_be_answered_again(env):
    state, _ = env.reset(0)
    right = f"<answer>{env.reference_answer(0)}</answer>"
    rewards = [env.step(state, reply)[2] for reply in (right, "<answer>x</answer>", right)]
    assert rewards[0] == rewards[2] == 1.0 > rewards[1]


@pytest.mark.parametrize("task", range(6), ids=NAMES)
def test_malformed_answers_never_raise(env, task):
    assert check_malformed(env, task) == []
    for text in MALFORMED:
        *_, reward, terminated, _, info = env.step(env.reset(task)[0], f"<answer>{text}</answer>")
        assert terminated and 0 <= reward < 0.999 and not info["success"]


def test_a_generator_that_cannot_read_an_answer_says_so(env):
    task = NAMES.index("prime_factorization")
    info = env.step(env.reset(task)[0], "<answer>two</answer>")[-1]
    assert not info["valid"] and info["reason"].startswith("the answer cannot be read: ValueError")


def test_a_task_is_always_the_same_question_and_tasks_go_round(env):
    check_same_task_same_observation(env, range(12))
    assert env.reset(3)[1] == env.reset(3 + 50 * len(NAMES))[1] != env.reset(3 + len(NAMES))[1]
    other = pickle.loads(pickle.dumps(env))
    assert other == env and other.reset(7) == env.reset(7)


def test_splits_have_questions_of_their_own():
    splits = [environment("countdown", split=s, size=30) for s in ("train", "eval", "test")]
    questions = [{env.reset(task)[1] for task in range(30)} for env in splits]
    assert [len(q) for q in questions] == [30] * 3 and len(set.union(*questions)) == 90
    assert environment("countdown", size=30, seed=30).reset(0)[1] == splits[1].reset(0)[1]


def test_settings_reach_the_generator():
    few = environment("basic_arithmetic", config={"min_terms": 2, "max_terms": 2, "min_digits": 1})
    many = environment(
        ["basic_arithmetic", "countdown"],
        config={"basic_arithmetic": {"min_terms": 9, "max_terms": 9}},
    )
    assert len(many.reset(0)[1]) > 2 * len(few.reset(0)[1])


@pytest.mark.slow
def test_all_generators_start():
    env = environment("all", size=5)
    for task in range(len(env.datasets)):
        state, question = env.reset(task)
        assert question and 0 <= env.step(state, "<answer>1</answer>")[2] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": "rhymes"}, "datasets: .*rhymes.*; choose from"),
        ({"datasets": []}, "datasets: empty"),
        ({"split": "dev"}, "split: .*dev.*; choose from train, eval, test"),
        ({"size": 0}, "size=0 starts at 1"),
        ({"config": {"bogus": 1}}, "config of basic_arithmetic: TypeError: .*bogus"),
        ({"config": {"min_terms": -1}}, "config of basic_arithmetic: AssertionError"),
        (
            {"datasets": ["maze", "countdown"], "config": {"size": 3}},
            "'size' is none of the datasets",
        ),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        environment(**options)
