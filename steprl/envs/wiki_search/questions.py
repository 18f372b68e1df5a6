"""Questions of a JSONL, JSON or parquet file, and their splits."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steprl.envs.wiki_search.answers import normalise_answer
from steprl.envs.wiki_search.records import Row, read_rows, supporting_titles

SPLITS = ("train", "valid", "test")
_OTHER_NAMES = {"dev": "valid", "validation": "valid"}


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

    Fields: `question`; `answer`, `answers` or `golden_answers` (a string or a list); `answer_aliases`;
    `id` or `_id`; `type`; `level`; supporting passages as HotpotQA and MuSiQue name them. Rows that say
    `answerable: false` are left out.

    A row belongs to the split that its field `split` names. Without the field, a checksum of the
    question decides: 80 % train, 10 % valid, 10 % test, whatever else is in the file.

    Raises:
        ValueError: an unknown split, a split without questions or without one of `kinds` or `answers`,
            or a row without question or answer.

    Example:
        >>> from steprl.envs.wiki_search import SAMPLE
        >>> load_questions(SAMPLE / "questions.jsonl", "train")[0].kind
        'bridge'
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: {split!r}; choose from {', '.join((*SPLITS, 'all'))}")
    questions = []
    for number, (place, row) in enumerate(read_rows(path)):
        if row.get("answerable") is False:
            continue
        question = _question(row, number, place)
        if split in ("all", _split_of(row, question, place)):
            questions.append(question)
    if not questions:
        raise ValueError(f"split: {path} has no question in {split!r}; try another, or 'all'")
    available = {question.kind for question in questions}
    if missing := [kind for kind in kinds if kind not in available]:
        raise ValueError(
            f"kinds: {path} has no question of {missing[0]!r} in {split!r}; there are "
            f"{', '.join(sorted(map(repr, available)))}"
        )
    selected = [question for question in questions if not kinds or question.kind in kinds]
    if answers:
        accepted = {normalise_answer(text) for text in answers}
        matches = lambda question: accepted & {normalise_answer(text) for text in question.answers}  # noqa: E731
        selected = [question for question in selected if matches(question)]
        if not selected:
            raise ValueError(
                f"answers: no question of {path} in {split!r} is answered by one of "
                f"{', '.join(map(repr, answers))}"
            )
    return tuple(selected)


def _question(row: Row, number: int, place: str) -> Question:
    answers: list[str] = []
    for name in ("answer", "answers", "golden_answers", "answer_aliases"):
        value = row.get(name)
        answers += [value] if isinstance(value, str) else list(value or ())
    accepted = tuple(dict.fromkeys(text.strip() for text in answers if text.strip()))
    text = str(row.get("question") or "").strip()
    if not text or not accepted:
        raise ValueError(f"{place}: a question needs the fields question and answer")
    identity = row["id"] if row.get("id") is not None else row.get("_id")
    return Question(
        identity=str(number if identity is None else identity),
        text=text,
        answers=accepted,
        kind=str(row.get("type") or ""),
        level=str(row.get("level") or ""),
        titles=supporting_titles(row),
    )


def _split_of(row: Row, question: Question, place: str) -> str:
    named = row.get("split")
    if named is not None:
        split = _OTHER_NAMES.get(named, named)
        if split not in SPLITS:
            raise ValueError(f"{place}: split {named!r}; rows are of {', '.join(SPLITS)}")
        return split
    # Of the text, not of the id: the same question under two ids must not be in two splits.
    bucket = zlib.crc32(normalise_answer(question.text).encode()) % 10
    return {8: "valid", 9: "test"}.get(bucket, "train")
