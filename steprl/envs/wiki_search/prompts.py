"""What the agent reads: the system line, and a user prompt that is rendered from the state each step."""

import re
from collections.abc import Callable, Sequence

SYSTEM = (
    "You are a research agent. You answer questions with evidence from Wikipedia, which you find "
    "with the search tool."
)
SHRINK = 0.72
"""The passages of a prompt that is too long keep this share of their characters, and again."""

_FORMAT = """First think briefly between <analysis> and </analysis>. Then either search:
<tool_call>
{"name": "search", "arguments": {"query": "what to look for"}}
</tool_call>
or finish:
<answer>short answer</answer>"""
# Neither a passage nor a query may open a turn of the chat, or look like a call or an answer.
_ACTIVE = re.compile(r"<(?=\||/?(?:tool_call|tool_response|answer)>)")


def passage_line(number: int, query: str, text: str) -> str:
    """One retrieved passage; numbers start at 1 and count up over the episode."""
    return _quiet(f"[{number}] (query: {query}) {text}")


def user_prompt(
    question: str,
    history: Sequence[str],
    passages: Sequence[str],
    issues: Sequence[str],
    step: int,
    max_steps: int,
    max_calls: int,
    fits: Callable[[str], bool] | None = None,
) -> str:
    """Question, searches so far, passages so far, recent problems, instructions, output format.

    Args:
        question: the question.
        history: queries, in order.
        passages: lines of `passage_line`, in order.
        issues: what was wrong with recent replies; the section is left out if there is none.
        step, max_steps: this step, from 1, and how many there are.
        max_calls: searches that may be made at once.
        fits: whether a prompt is short enough; passages are cut from the end until it is, to 0.72 of
            their characters each time. The other sections are never cut.
    """
    block = "\n".join(passages)

    def render(block: str) -> str:
        sections = [
            ("User Query", _quiet(question)),
            ("History Actions", "\n".join(f"[Search] {_quiet(query)}" for query in history)),
            ("Retrieved Passages", block),
            ("Recent tool/format issues", "\n".join(f"- {_quiet(issue)}" for issue in issues)),
            ("Instructions", _instructions(step, max_steps, max_calls)),
            ("Output Format", _FORMAT),
        ]
        return "\n\n".join(
            f"## {name}\n{text or 'None yet.'}"
            for name, text in sections
            if text or name != "Recent tool/format issues"
        )

    prompt = render(block)
    while fits is not None and block and not fits(prompt):
        block = block[: int(len(block) * SHRINK)]
        prompt = render(block)
    return prompt


def _quiet(text: str) -> str:
    return _ACTIVE.sub("< ", text)


def _instructions(step: int, max_steps: int, max_calls: int) -> str:
    if step >= max_steps:
        clock = f"This is step {step} of {max_steps}, the last one: answer now."
    else:
        clock = f"This is step {step} of {max_steps}; the answer has to come within them."
    return "\n".join(
        (
            f"- If evidence is missing, search for it: up to {max_calls} calls at once, each about one "
            "person, place, work or fact. Passages that you have seen are not shown again.",
            "- If the passages answer the question, answer with a name, a date, a number, a short "
            "phrase, or yes or no. A reply without a tool call is final.",
            f"- {clock}",
        )
    )
