"""What the environment brings to a run."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from steprl.config import WikiSearchConfig
from steprl.envs.suite import Measure, Suite
from steprl.envs.wiki_search.environment import WikiSearch, wiki_search
from steprl.envs.wiki_search.expert import demonstrate
from steprl.envs.wiki_search.prompts import SYSTEM
from steprl.envs.wiki_search.questions import NoQuestionsError, Question
from steprl.tools.hermes import TAGS

_LEAST = 256  # tokens of a prompt with the question and a passage


def open(settings: WikiSearchConfig) -> Suite:
    """Questions to train on and panels to evaluate on; prompts describe the one tool themselves."""
    options: dict[str, Any] = dict(
        kinds=settings.kinds, answers=settings.answers, cache=settings.cache,
        max_steps=settings.max_steps, max_calls=settings.max_calls,
        hits=settings.hits, first_search=settings.first_search, recent_issues=settings.recent_issues,
        passage_length=settings.passage_length, context=settings.context, reward=settings.reward,
    )  # fmt: skip
    panels: dict[str, Any] = dict(settings.eval_questions) or {"valid": settings.questions}
    splits = {"train": _part(settings.questions, settings, ("train",), options)}
    for split, questions in panels.items():
        parts = ("all",) if settings.eval_questions else ("valid", "test")
        splits[split] = _part(questions, settings, parts, options)
    return _suite(settings, splits)


def _part(
    questions: str | None, settings: WikiSearchConfig, parts: Sequence[str], options: dict[str, Any]
) -> WikiSearch:
    """The first of the parts of a file that has questions; where none has, all of them."""
    for part in parts:
        try:
            return wiki_search(questions, settings.passages, part, **options)
        except NoQuestionsError:
            continue
    found = wiki_search(questions, settings.passages, "all", **options)
    others = "train on" if "train" in parts else "evaluate on"
    warnings.warn(
        f"{questions}: none of the questions asked for is of the split {' or '.join(parts)}, so all of "
        f"them are there to {others}, and training and evaluation share questions; give others in "
        "env.wiki_search.eval_questions, or a field `split` in the file",
        stacklevel=2,
    )
    return found


def _suite(settings: WikiSearchConfig, splits: Mapping[str, WikiSearch]) -> Suite:
    train = splits["train"]
    # The demonstrator searches for the titles that the data set names, if it names any.
    known = tuple(question for question in train.questions if question.titles)

    def limited(length: int, measure: Measure) -> Suite:
        if length < _LEAST:
            raise ValueError(f"wiki_search needs some {_LEAST}")
        return _suite(
            settings,
            {
                split: dataclasses.replace(env, prompt_length=length, measure=measure)
                for split, env in splits.items()
            },
        )

    return Suite(
        splits=splits,
        sizes={split: len(env.questions) for split, env in splits.items()},
        system=SYSTEM,
        control_tags=TAGS,
        context=settings.context,
        max_steps=settings.max_steps,
        demonstrate=(lambda task, seed: demonstrate) if known else None,
        demonstration_env=dataclasses.replace(train, questions=known) if known else None,
        limited=limited,
        question=lambda text: dataclasses.replace(train, questions=(Question("typed", text, ()),)),
    )
