"""Answers and their comparison; results of an evaluation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steprl.envs.wiki_search import (
    Attempt,
    exact_match,
    f1_score,
    normalise_answer,
    summarise,
)
from steprl.metrics import pass_at_k, wilson_interval
from steprl.tools import last_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Paris", "paris"),
        ("  The   Eiffel\tTower.\n", "eiffel tower"),
        ("U.S.A.", "usa"),
        ("3,677 seated", "3677 seated"),
        ("1986-2013", "19862013"),  # punctuation goes without a gap
        ("a-ha", "aha"),  # punctuation first: no article is left to take
        ("an apple a day", "apple day"),
        ("Theatre and anthem", "theatre and anthem"),  # whole words only
        ("Beyoncé’s", "beyoncé’s"),  # only ASCII punctuation
        ("the", ""),
        ("?!", ""),
    ],
)
def test_normalisation(text, normal):
    assert normalise_answer(text) == normal


@given(st.text())
def test_normalised_text_has_no_case_or_outer_space(text):
    normal = normalise_answer(text)
    assert normal == " ".join(normal.split())
    assert not {"a", "an", "the"} & set(normal.split())


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("Hank Williams Jr", ["Hank Williams, Jr."], 1, 1),
        ("the spirit", ["a spirit"], 1, 1),
        ("Arthur Conan Doyle", ["Sir Arthur Conan Doyle"], 0, 6 / 7),
        ("Doyle", ["Sir Arthur Conan Doyle"], 0, 0.4),
        ("new york", ["York, New"], 0, 1),  # order does not count in F1
        ("york york", ["new york york york"], 0, 2 / 3),  # words count as often as they occur
        ("York York", ["New York"], 0, 0.5),
        ("Berlin", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
        ("Stanley Hall", ["G. Stanley Hall", "Stanley Hall"], 1, 1),  # any answer
        ("Hall", ["G. Stanley Hall", "Stanley Hall"], 0, 2 / 3),  # the best of them
        ("Yes.", ["yes"], 1, 1),
        ("yes", ["no"], 0, 0),
        ("yes, both", ["yes"], 0, 0),  # closed answers match only themselves
        ("no", ["no idea"], 0, 0),
        ("noanswer", ["noanswer given"], 0, 0),
        ("no idea", ["idea"], 0, 2 / 3),
        ("The The", ["The The"], 1, 1),
        ("the", ["The The"], 0, 0),
        ("", ["The The"], 0, 0),
    ],
)
def test_exact_match_and_f1(prediction, answers, em, f1):
    assert exact_match(prediction, answers) == em
    assert f1_score(prediction, answers) == pytest.approx(f1, abs=1e-15)


@given(st.text(), st.text())
def test_laws_of_the_scores(left, right):
    em, f1 = exact_match(left, [right]), f1_score(left, [right])
    assert em in (0.0, 1.0) and 0.0 <= f1 <= 1.0
    assert f1 >= em
    assert f1 == f1_score(right, [left])
    assert exact_match(left, [left]) == f1_score(left, [left]) == 1.0


@pytest.mark.parametrize("answers", ["Paris", [], ()])
def test_answers_are_a_sequence(answers):
    for score in (exact_match, f1_score):
        with pytest.raises(ValueError, match="at least one"):
            score("Paris", answers)


@pytest.mark.parametrize(
    ("reply", "answer", "tagged"),
    [
        ("<answer>one</answer>", "one", True),
        ("<answer>one</answer><answer> two\n</answer> and on", "two", True),
        ("<answer>one</answer> <answer>two", "one", True),  # cut off: the last whole one
        ("<answer>one</answer> more </answer>", "one", True),
        ("<answer>a <answer>b</answer>", "b", True),
        ("<answer></answer>", "", True),
        (" just text ", "just text", False),
        ("<answer>open", "<answer>open", False),
        ("closed</answer><answer>", "closed</answer><answer>", False),
        ("", "", False),
    ],
)
def test_the_last_answer_of_a_reply(reply, answer, tagged):
    assert last_answer(reply) == (answer, tagged)


# Summaries.


def attempt(task, em, f1=None, searches=1):
    return Attempt(task, em, em if f1 is None else f1, searches, 2, True, searches, searches)


def test_single_attempts_have_wilsons_interval():
    found = summarise([attempt(task, float(task < 3), searches=task) for task in range(8)])
    low, high = wilson_interval(3, 8)
    assert (found["exact_match_low"], found["exact_match_high"]) == (low, high)
    assert found["exact_match"] == found["avg@1"] == found["pass@1"] == 3 / 8
    assert (found["num_searches"], found["num_questions"], found["num_attempts"]) == (3.5, 8, 8)


def test_attempts_at_one_question_are_averaged_first():
    found = summarise([attempt(0, 1.0)] * 3 + [attempt(0, 0.0), attempt(1, 0.0)])
    assert found["exact_match"] == (0.75 + 0) / 2
    assert found["pass@1"] == pytest.approx(0.375)


def test_avg_and_pass_at_k():
    groups = {0: (1, 1, 0, 0), 1: (0, 0, 0, 0), 2: (1, 1, 1, 1), 3: (1, 0, 0, 0)}
    results = [attempt(task, float(em)) for task, ems in groups.items() for em in ems]
    found = summarise(results)
    assert found["avg@4"] == 7 / 16 and found["pass@4"] == 3 / 4
    assert summarise(results, k=2)["pass@2"] == pytest.approx((5 / 6 + 0 + 1 + 1 / 2) / 4)


def test_pass_at_k_is_the_mean_over_all_choices():
    from itertools import combinations

    for n in range(1, 6):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * c + [0] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(np.mean([max(d) for d in draws]))


def test_the_bootstrap_interval_is_that_of_the_normal_law_and_repeats():
    rng = np.random.default_rng(0)
    f1 = rng.beta(2, 3, size=400)
    results = [attempt(task, 0.0, float(value)) for task, value in enumerate(f1)]
    found = summarise(results)
    half = 1.96 * f1.std() / 20
    assert found["f1_low"] == pytest.approx(f1.mean() - half, abs=0.15 * half)
    assert found["f1_high"] == pytest.approx(f1.mean() + half, abs=0.15 * half)
    assert found == summarise(results)
    assert found["exact_match_low"] == 0.0 < found["exact_match_high"]  # not empty at the end


@pytest.mark.parametrize(
    ("results", "k", "message"),
    [
        ([], None, "no attempt"),
        ([attempt(0, 1.0)], 2, "1 attempts"),
        ([attempt(0, 1.0)], 0, "k: 0"),
    ],
)
def test_what_cannot_be_summarised(results, k, message):
    with pytest.raises(ValueError, match=message):
        summarise(results, k)
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)
