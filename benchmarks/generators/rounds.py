"""The conversation between `generate.py` and a contender: one JSON line per request and per answer.

Standard library only, because contenders run in environments of their own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

WAYS = {"greedy": (0.0, 1.0), "sampled": (1.0, 1.0), "top-p": (1.0, 0.95)}
"""Temperature and top-p; all but greedy return the log-probs of the sampled tokens too."""


def serve(generate: Callable[..., Any], **other: Callable[..., Any]) -> None:
    """Answers requests until the input ends.

    Args:
        generate: of (prompts [B][P], new, way); returns tokens [B][new] and log-probs or None.
        other: further questions, by their name in the request; what they return is the answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        question = request.pop("question")
        if question == "generate":
            start = time.perf_counter()
            tokens, logprobs = generate(**request)
            seconds = time.perf_counter() - start
            answer: Any = {"seconds": seconds, "tokens": [[int(x) for x in row] for row in tokens]}
            if logprobs is not None:
                answer["logprobs"] = [[float(x) for x in row] for row in logprobs]
        else:
            answer = other[question](**request)
        print(json.dumps(answer), file=answers, flush=True)
