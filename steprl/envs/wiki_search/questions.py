"""Questions of a JSONL, JSON or parquet file, and their splits."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steprl.envs.wiki_search.answers import normalise_answer
from steprl.envs.wiki_search.fields import identity_of, read_question
from steprl.envs.wiki_search.records import Row, read_rows, supporting_titles

SPLITS = ("train", "valid", "test")
_OTHER_NAMES = {"dev": "valid", "validation": "valid"}


class NoQuestionsError(ValueError):
    """A file has questions, but none of the split that was asked for."""


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        identity: of the data set, else its number in the file.
        text: the question.
        answers: any of these is right; none where nobody knows, so that no reply is rewarded.
        kind, level: as the data set says ("bridge", "hard"), or "".
        titles: of the supporting passages, where the data set names them; the agent never sees them.
    """

    identity: str
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    level: str = ""
    titles: tuple[str, ...] = ()


def load_questions(
    path: str | Path, split: str = "all", kinds: Sequence[str] = (), answers: Sequence[str] = ()
) -> tuple[Question, ...]:
    """The questions of one split, in the order of the file or folder.

    Args:
        path: of the file or folder.
        split: "train", "valid", "test" or "all".
        kinds: of the questions that are wanted, such as `["comparison"]`; none means all.
        answers: that a wanted question may have, such as `["yes", "no"]`; none means any.

    Fields: `question`; `answer`, `answers`, `golden_answers`, `target`, `answer_aliases`, or
    `reward_model.ground_truth`, in the layouts of `read_question`; `id` or `_id`; `type`; `level`;
    supporting passages as HotpotQA and MuSiQue name them. Left out are rows that say
    `answerable: false` or `is_impossible: true`, and those of SQuAD 2.0 without an answer.

    A row belongs to the split that its field `split` names. Without the field, a checksum of the
    question decides: 80 % train, 10 % valid, 10 % test, whatever else is in the file. Of a file without
    the field that is too small for that, the questions with the highest checksums make up one for
    valid, then one for test, as long as one is left to train on.

    Raises:
        ValueError: an unknown split, a split without questions or without one of `kinds` or `answers`,
            a row without question or answer or in an unknown layout, or two questions with one id.

    Example:
        >>> from steprl.envs.wiki_search import SAMPLE
        >>> load_questions(SAMPLE / "questions.jsonl", "train")[0].kind
        'bridge'
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: {split!r}; choose from {', '.join((*SPLITS, 'all'))}")
    found = [
        (split_name, question)
        for split_name, question in _parted(_read(path))
        if split in ("all", split_name)
    ]
    questions = [question for _, question in found]
    if not questions:
        raise NoQuestionsError(f"split: {path} has no question in {split!r}; try another, or 'all'")
    available = {question.kind for question in questions}
    if missing := [kind for kind in kinds if kind not in available]:
        raise NoQuestionsError(
            f"kinds: {path} has no question of {missing[0]!r} in {split!r}; there are "
            f"{', '.join(sorted(map(repr, available)))}"
        )
    selected = [question for question in questions if not kinds or question.kind in kinds]
    if answers:
        accepted = {normalise_answer(text) for text in answers}
        matches = lambda question: accepted & {normalise_answer(text) for text in question.answers}  # noqa: E731
        selected = [question for question in selected if matches(question)]
        if not selected:
            raise NoQuestionsError(
                f"answers: no question of {path} in {split!r} is answered by one of "
                f"{', '.join(map(repr, answers))}"
            )
    return tuple(selected)


def _read(path: str | Path) -> list[tuple[str | None, Question]]:
    """All questions of a file or folder, with the split that each row names."""
    questions: list[tuple[str | None, Question]] = []
    places: dict[tuple[str, str], tuple[str, str]] = {}
    rows = ((place, one) for place, row in read_rows(path) for one in _rows_of_articles(row))
    for number, (place, row) in enumerate(rows):
        if row.get("answerable") is False:
            continue
        read = read_question(row, place)
        if read is None:
            continue
        text, answers = read
        file = place.rpartition(":")[0]
        name = identity_of(row)
        if name:
            before = places.setdefault((file, name), (place, text))
            if before[1] != text:
                raise ValueError(
                    f"{place}: the id {name!r} is that of another question, at {before[0]}"
                )
        question = Question(
            identity=str(number) if name is None else name,
            text=text,
            answers=answers,
            kind=str(row.get("type") or ""),
            level=str(row.get("level") or ""),
            titles=supporting_titles(row),
        )
        questions.append((_named_split(row, place), question))
    if not questions:
        raise ValueError(f"{path}: no question in it has an answer")
    return questions


def _rows_of_articles(row: Row) -> list[Row]:
    """A row, or the questions of an article of SQuAD."""
    paragraphs = row.get("paragraphs")
    if not isinstance(paragraphs, list) or "question" in row:
        return [row]
    asked = [p["qas"] for p in paragraphs if isinstance(p, dict) and isinstance(p.get("qas"), list)]
    rows = [question for questions in asked for question in questions]
    return rows if asked and all(isinstance(one, dict) for one in rows) else [row]


def _named_split(row: Row, place: str) -> str | None:
    named = row.get("split")
    if named is None:
        return None
    split = _OTHER_NAMES.get(named, named) if isinstance(named, str) else named
    if split not in SPLITS:
        raise ValueError(f"{place}: split {named!r}; rows are of {', '.join(SPLITS)}")
    return split


def _parted(questions: list[tuple[str | None, Question]]) -> list[tuple[str, Question]]:
    """Each question with its split."""
    # Of the text, not of the id: the same question under two ids must not be in two splits.
    keys = {question: normalise_answer(question.text) for _, question in questions}
    sums = {key: zlib.crc32(key.encode()) for key in keys.values()}
    parts = {key: {8: "valid", 9: "test"}.get(sum_ % 10, "train") for key, sum_ in sums.items()}
    if all(named is None for named, _ in questions):
        for held_out, least in (("valid", 2), ("test", 3)):
            training = [key for key, part in parts.items() if part == "train"]
            if held_out not in parts.values() and len(parts) >= least and len(training) > 1:
                parts[max(training, key=sums.__getitem__)] = held_out
        if "train" not in parts.values():
            parts[min(parts, key=sums.__getitem__)] = "train"
    return [(named or parts[keys[question]], question) for named, question in questions]
