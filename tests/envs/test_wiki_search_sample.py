"""The search environment on its sample: what it holds, and that it can be solved by searching."""

import numpy as np
import pytest

from steprl.envs.wiki_search import (
    SAMPLE,
    Passage,
    Question,
    WikiSearch,
    attempts,
    build_index,
    demonstrate,
    load_questions,
    play,
    summarise,
    wiki_search,
)
from steprl.tools import render_tool_call
from steprl.types import Step, Trajectory

pytest.importorskip("bm25s")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("indices")


@pytest.fixture(scope="module")
def sample(cache):
    return wiki_search(split="all", cache=cache)


@pytest.fixture(scope="module")
def index(cache):
    passages = [Passage("Alpha", "Bo painted Alpha."), Passage("Bo", "Bo was born in Oslo.")]
    return build_index(passages, cache / "small")


def test_the_sample_says_where_it_is_from_and_its_licence():
    notice = (SAMPLE / "NOTICE").read_text()
    for words in (
        "HotpotQA",
        "Wikipedia",
        "Attribution-ShareAlike 4.0",
        "https://creativecommons.org/licenses/by-sa/4.0/",
        "https://arxiv.org/abs/1809.09600",
        "Changes:",
    ):
        assert words in notice
    assert sum(file.stat().st_size for file in SAMPLE.iterdir()) < 700_000


def test_the_sample_has_both_splits_and_all_supporting_passages(sample):
    train, valid = (load_questions(SAMPLE / "questions.jsonl", s) for s in ("train", "valid"))
    assert (len(train), len(valid)) == (94, 80)
    assert len({question.text for question in train + valid}) == 174
    assert {question.kind for question in train} == {question.kind for question in valid}
    titles = {sample.index.passage(number).title for number in range(len(sample.index))}
    assert all(len(question.titles) == 2 for question in train + valid)
    assert all(title in titles for question in train + valid for title in question.titles)


def demonstrator(env, task):
    """The expert as a function of the observation alone, for `play`."""
    states = {}
    state, observation = env.reset(task)
    states[observation] = state

    def reply(observation):
        state = states[observation]
        action = demonstrate(env, state)
        state, observation, *_ = env.step(state, action)
        states[observation] = state
        return action

    return reply


@pytest.mark.parametrize("settings", [{}, {"first_search": False}, {"max_calls": 1}])
def test_who_searches_the_supporting_titles_answers_all(cache, settings):
    env = wiki_search(split="all", cache=cache, **settings)
    results = [play(env, task, demonstrator(env, task)) for task in range(len(env.questions))]
    found = summarise(results)
    assert found["exact_match"] == found["f1"] == found["valid_call_frac"] == 1.0
    assert found["answered_frac"] == 1.0
    assert 0 < found["num_searches"] <= 2


def test_a_title_that_is_not_there_is_not_answered(index):
    env = WikiSearch([Question("q", "Who?", ("me",), titles=("Alpha", "Nowhere"))], index)
    result = play(env, 0, demonstrator(env, 0))
    assert (result.exact_match, result.answered) == (0.0, True)
    with pytest.raises(ValueError, match="no supporting titles"):
        demonstrate(WikiSearch([Question("q", "Who?", ("me",))], index), env.reset(0)[0])


def test_records_of_a_rollout_are_summarised(index):
    env = WikiSearch([Question("q", "Where?", ("Oslo",))], index, first_search=False)
    state, observation = env.reset(0)
    steps = []
    two = "".join(render_tool_call("search", {"query": query}) for query in ("Bo", "Alpha"))
    for reply in (two, "<tool_call>x</tool_call>", "<answer>Oslo</answer>"):
        state, observation, reward, terminated, truncated, info = env.step(state, reply)
        none = np.zeros(0)
        steps.append(
            Step("", reply, none, none, none, none, reward, terminated, truncated, "", info=info)
        )
    (one,) = attempts([Trajectory(0, 0, tuple(steps), True)])
    assert one == (0, 1.0, 1.0, 2, 3, True, 3, 2)
    (cut,) = attempts([Trajectory(0, 0, tuple(steps[:2]), False)])
    assert cut == (0, 0.0, 0.0, 2, 2, False, 3, 2)
