"""The question and the accepted answers of a row, in the layouts of the common data sets."""

import math
from collections.abc import Iterator
from typing import Any

from steprl.envs.wiki_search.records import Row

ANSWER_FIELDS = (
    "answer", "answers", "golden_answers", "answer_aliases", "aliases", "target", "ground_truth",
)  # fmt: skip
"""Fields of a row that hold answers; all of them together are accepted."""

_LAYOUTS = (
    "read are question and answer, answers, golden_answers, target, or reward_model.ground_truth, each a "
    'text, a number, true or false, a list of these, {"value": ..., "aliases": [...]} (TriviaQA), '
    '{"text": [...]} (SQuAD) or {"target": [...]} (Search-R1)'
)
# Of answers that are objects: keys that hold answers, and keys that say something else about them.
_HOLDING = ("value", "aliases", "text", "target", "spans", "golden_answers", "answer", "answers")
_BESIDE = {
    "normalizedvalue", "normalizedaliases", "humananswers", "matchedwikientityname",
    "normalizedmatchedwikientityname", "matchedwikientitytitle", "type", "types", "answerstart",
    "answerend", "answerid", "answertype", "id", "score", "weight",
}  # fmt: skip


def read_question(row: Row, place: str) -> tuple[str, tuple[str, ...]] | None:
    """The question of a row and its accepted answers; None where the row says that it has no answer.

    Numbers become text as they are written, a whole one without a decimal point. True is "yes" or
    "true", false "no" or "false".

    Raises:
        ValueError: the row has another layout; says what it has, and what is read.
    """
    text = _question_text(row)
    sources = [(name, _field(row, name)) for name in ANSWER_FIELDS]
    rewarded = _field(row, "reward_model")
    if isinstance(rewarded, dict):
        sources.append(("reward_model.ground_truth", rewarded.get("ground_truth")))
    answers: list[str] = []
    empty = False
    for name, value in sources:
        if value is None:
            continue
        found = list(_texts(value, name, place))
        empty |= not found and isinstance(value, dict | list)
        answers += found
    accepted = tuple(dict.fromkeys(text.strip() for text in answers if text.strip()))
    if (
        text
        and not accepted
        and (_field(row, "is_impossible") is True or (empty and _is_squad(row)))
    ):
        return None
    if not text or not accepted:
        missing = "an answer" if text else "a question"
        raise ValueError(
            f"{place}: a question needs the fields question and answer; there is not {missing} in a row "
            f"of {', '.join(map(str, row)) or 'nothing'}; {_LAYOUTS}"
        )
    return text, accepted


def identity_of(row: Row) -> str | None:
    """What the data set calls the question, if anything."""
    for name in ("id", "_id", "question_id", "QuestionId", "qid"):
        if row.get(name) is not None:
            return str(row[name])
    return None


def _is_squad(row: Row) -> bool:
    """SQuAD 2.0 gives an empty list of texts where the passage has no answer."""
    answers = _field(row, "answers")
    return answers == [] or (isinstance(answers, dict) and "text" in answers)


def _question_text(row: Row) -> str:
    extra = _field(row, "extra_info")
    candidates = [
        _field(row, "question"),
        extra.get("question") if isinstance(extra, dict) else None,
    ]
    prompt = _field(row, "prompt")  # messages, as verl has them
    if isinstance(prompt, list):
        said = [m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"]
        candidates += said[-1:]
    else:
        candidates.append(prompt)
    for value in candidates:
        if isinstance(value, dict):  # of Natural Questions
            value = value.get("text")
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def _field(row: Row, name: str) -> Any:
    """A field by its name, which some data sets capitalise."""
    value = row.get(name)
    return row.get(name.capitalize()) if value is None else value


def _texts(value: Any, name: str, place: str) -> Iterator[str]:
    """All answers in a value, the one that it names first."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield from ("yes", "true") if value else ("no", "false")
    elif isinstance(value, int | float):
        yield str(int(value)) if float(value).is_integer() else str(value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name, place)
    elif isinstance(value, dict):
        named = {key.lower().replace("_", ""): key for key in map(str, value)}
        holding = [key for key in _HOLDING if key.replace("_", "") in named]
        unknown = named.keys() - {key.replace("_", "") for key in _HOLDING} - _BESIDE
        if not holding or unknown:
            raise ValueError(
                f"{place}: {name} is an object of {', '.join(map(str, value)) or 'nothing'}, which is no "
                f"layout of answers that is known; {_LAYOUTS}"
            )
        for key in holding:
            yield from _texts(value[named[key.replace("_", "")]], name, place)
    else:
        raise ValueError(f"{place}: {name} is {type(value).__name__}; {_LAYOUTS}")
