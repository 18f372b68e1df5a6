"""Short answers: how they are compared.

The rules are those of the SQuAD and HotpotQA scripts: https://arxiv.org/abs/1606.05250, section 6.1,
https://arxiv.org/abs/1809.09600, section 5.2.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = ("yes", "no", "noanswer")


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces; in this order.

    Example:
        >>> normalise_answer(" The  U.S. Open, a tournament!")
        'us open tournament'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers after normalisation, else 0.

    Note:
        Where nothing is left of an answer ("The The", "A"), the plain lower-case texts are compared:
        by the scripts an empty prediction would be right.

    Raises:
        ValueError: there is no answer, or it is one string instead of a sequence.

    Example:
        >>> exact_match("the Eiffel Tower.", ["Eiffel tower", "Tour Eiffel"])
        1.0
        >>> exact_match("", ["The The"])
        0.0
    """
    return max(_same(prediction, answer) for answer in _several(answers))


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of words after normalisation, the best over the answers.

        F1 = 2 P R / (P + R),   P = shared / words of prediction,   R = shared / words of answer

    Words count as often as they occur. "yes", "no" and "noanswer" match only themselves, as in
    HotpotQA (https://arxiv.org/abs/1809.09600): "no" has no part in "no idea".

    Raises:
        ValueError: there is no answer, or it is one string instead of a sequence.

    Example:
        >>> f1_score("Barack Obama", ["Barack Hussein Obama"])
        0.8
        >>> f1_score("yes he did", ["yes"])
        0.0
    """
    return max(_overlap(prediction, answer) for answer in _several(answers))


def _several(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers: {answers!r}; give a sequence of at least one accepted answer")
    return answers


def _same(prediction: str, answer: str) -> float:
    left, right = normalise_answer(prediction), normalise_answer(answer)
    if not left and not right:
        left, right = prediction.strip().lower(), answer.strip().lower()
    return float(left == right)


def _overlap(prediction: str, answer: str) -> float:
    left, right = normalise_answer(prediction), normalise_answer(answer)
    if left == right or left in _CLOSED or right in _CLOSED:
        return _same(prediction, answer)
    prediction_words, answer_words = left.split(), right.split()
    shared = (Counter(prediction_words) & Counter(answer_words)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction_words), shared / len(answer_words)
    return 2 * precision * recall / (precision + recall)
