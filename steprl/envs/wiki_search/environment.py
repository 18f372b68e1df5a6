"""`WikiSearch`: questions that are answered by searching Wikipedia passages, as a text environment."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index as as_integer
from pathlib import Path
from typing import Any

from steprl.envs import CONTEXTS
from steprl.envs.wiki_search.answers import exact_match, f1_score
from steprl.envs.wiki_search.calls import SEARCH_TOOL, read_calls
from steprl.envs.wiki_search.index import PassageIndex, open_index
from steprl.envs.wiki_search.prompts import SYSTEM, passage_line, user_prompt
from steprl.envs.wiki_search.questions import Question, load_questions
from steprl.tools import CallError, Outcome, last_answer, render_tool_response
from steprl.tools.hermes import TAGS

SAMPLE = Path(__file__).parent / "sample"
"""174 questions of HotpotQA, 143 of them comparisons, and 922 passages: see `sample/NOTICE`."""


@dataclass(frozen=True)
class SearchState:
    """An episode so far, a value: keep it, and step from it as often as you like.

    Attributes:
        task: number of the task.
        steps: replies so far.
        history: queries so far, that of the environment included.
        found: (query, passage number), each text once, in the order of retrieval.
        issues: what was wrong with replies so far.
        searches: searches that the agent made.
        done: the episode has ended.
    """

    task: int
    steps: int = 0
    history: tuple[str, ...] = ()
    found: tuple[tuple[str, int], ...] = ()
    issues: tuple[str, ...] = ()
    searches: int = 0
    done: bool = False


REWARDS = ("exact_match", "f1")


@dataclass(frozen=True, eq=False)
class WikiSearch:
    """Multi-hop question answering with a search tool. `wiki_search` makes one from files.

    A reply with tool calls searches, a reply without ends the episode: its last `<answer>`, or else all
    that it says beside its thoughts (see `steprl.tools.replies`), is compared with the accepted answers.
    The reward is 1 for an exact match after normalisation and 0 otherwise; searching costs nothing but
    steps, and running out of them is 0.

    Attributes:
        questions: task number i is question `i % len(questions)`.
        index: what is searched.
        max_steps: replies at most, the final one included.
        max_calls: searches in one reply; further ones are left out, and the agent is told.
        hits: passages that one search returns at most, those seen before included.
        first_search: search for the question itself before the first step.
        passage_length: characters of a passage that are shown, title included.
        recent_issues: how many problems the prompt repeats.
        context: "rebuild": an observation is the whole user prompt, rendered from the state, and
            stands for all before; "extend": the first one is, later ones hold only what is new.
        prompt_length: what the user prompt may measure; longer ones lose passages. None: no limit.
        measure: length of a prompt, such as its number of tokens; default characters.
        reward: "exact_match", or "f1", which says more where a match is rare. Success is a match.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> env = wiki_search()
        >>> state, prompt = env.reset(0)
        >>> state, prompt, reward, terminated, truncated, info = env.step(
        ...     state, "<answer>Hank Williams Jr</answer>"
        ... )
        >>> reward, info["f1"], info["num_searches"]
        (1.0, 1.0, 0)
    """

    questions: Sequence[Question]
    index: PassageIndex
    max_steps: int = 5
    max_calls: int = 4
    hits: int = 5
    first_search: bool = True
    passage_length: int = 1200
    recent_issues: int = 3
    context: str = "rebuild"
    prompt_length: int | None = None
    measure: Callable[[str], int] = len
    reward: str = "exact_match"

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_calls", "hits", "passage_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; it starts at 1")
        if self.recent_issues < 0 or (self.prompt_length is not None and self.prompt_length < 1):
            raise ValueError("recent_issues starts at 0, and prompt_length at 1 or is None")
        if self.context not in CONTEXTS:
            raise ValueError(f"context: {self.context!r}; choose from {', '.join(CONTEXTS)}")
        if self.reward not in REWARDS:
            raise ValueError(f"reward: {self.reward!r}; choose from {', '.join(REWARDS)}")
        if not self.questions:
            raise ValueError("questions: there is none")

    @property
    def control_tags(self) -> tuple[str, ...]:
        """What its own texts hold and its quotations do not, see `Suite`."""
        return TAGS

    @property
    def system(self) -> str:
        """The system line."""
        return SYSTEM

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The search tool as chat templates take it."""
        return [SEARCH_TOOL]

    def messages(self, state: SearchState) -> list[dict[str, str]]:
        """The two messages of a step, rendered from the state."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.prompt(state)},
        ]

    def question(self, task: int) -> Question:
        """The question of a task number."""
        if as_integer(task) < 0:
            raise ValueError(f"task: {task}; tasks are integers from 0 on")
        return self.questions[as_integer(task) % len(self.questions)]

    def privileged(self, state: SearchState) -> str:
        """What only the critic is told: the answer, and the pages that support it and are not found."""
        question = self.question(state.task)
        found = {self.index.passage(number).title for _, number in state.found}
        missing = [title for title in question.titles if title not in found]
        answer = question.answers[0] if question.answers else "unknown"
        return f"answer: {answer}; to find: {', '.join(missing) or 'nothing'}"

    def reset(self, task: int, key: Any = None) -> tuple[SearchState, str]:
        """The first state and user prompt of a task.

        Args:
            task: a non-negative integer.
            key: unused, nothing here is left to chance.

        Raises:
            ValueError: the task is negative.
        """
        question = self.question(task)
        state = SearchState(task=as_integer(task))
        if self.first_search:
            state = self._search(state, question.text)[0]
        return state, self.prompt(state)

    def step(
        self, state: SearchState, action: str
    ) -> tuple[SearchState, str, float, bool, bool, dict[str, Any]]:
        """Make the searches of one reply, or take it as the answer; any text is allowed.

        Returns:
            State, observation, reward, terminated (the reply was final), truncated (`max_steps` are
            spent without an answer), and info: `success`; `exact_match`, `f1` (0 before the end),
            `answer`; `valid` (everything in the reply was understood), `reason` (what was not);
            `num_searches` of the episode, not counting that of the environment; `num_calls`,
            `num_valid_calls` and `outcomes` of this reply, these as `tool_outcomes` too (JSON text: a
            list of `Outcome.record`); `new_passages`; `question_id`, `kind`, `level`.
        """
        if state.done:
            return state, "", 0.0, True, False, self._info(state, reason="the episode is over")
        calls = read_calls(action, self.max_calls)
        if not calls:
            return self._finish(state, action)
        found_before = len(state.found)
        outcomes = []
        for call in calls:
            if isinstance(call, CallError):
                outcomes.append(Outcome(call.name, "{}", call.kind, call.text))
            else:
                state, text = self._search(state, call.arguments["query"])
                arguments = json.dumps(call.arguments, ensure_ascii=False)
                outcomes.append(Outcome(call.name, arguments, "ok", text))
        issues = tuple(outcome.text for outcome in outcomes if not outcome.ok)
        valid_calls = len(outcomes) - len(issues)
        state = dataclasses.replace(
            state,
            steps=state.steps + 1,
            issues=state.issues + issues,
            searches=state.searches + valid_calls,
            done=state.steps + 1 >= self.max_steps,
        )
        info = self._info(
            state,
            reason=" ".join(issues),
            num_calls=len(outcomes),
            num_valid_calls=valid_calls,
            new_passages=len(state.found) - found_before,
            outcomes=tuple(outcomes),
        )
        if self.context == "rebuild":
            observation = self.prompt(state)
        else:
            observation = render_tool_response(outcomes)
            if state.steps + 1 == self.max_steps:
                observation += "\nThe next step is the last one: answer then."
        return state, observation, 0.0, False, state.done, info

    def metrics(self, infos: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Of an episode beside its reward, from the `info` of its steps."""
        last = infos[-1] if infos else {}
        calls = sum(info["num_calls"] for info in infos)
        valid = sum(info["num_valid_calls"] for info in infos)
        return {
            "exact_match": float(last.get("exact_match", 0.0)),
            "f1": float(last.get("f1", 0.0)),
            "num_searches": float(last.get("num_searches", 0)),
            "tool_calls": float(calls),
            "valid_call_frac": valid / calls if calls else float("nan"),
        }

    def prompt(self, state: SearchState) -> str:
        """The user prompt of a state, shortened to `prompt_length`."""
        limit = self.prompt_length
        return user_prompt(
            self.question(state.task).text,
            state.history,
            [self._line(number, *hit) for number, hit in enumerate(state.found, 1)],
            state.issues[max(len(state.issues) - self.recent_issues, 0) :],
            step=min(state.steps + 1, self.max_steps),
            max_steps=self.max_steps,
            max_calls=self.max_calls,
            fits=None if limit is None else lambda text: self.measure(text) <= limit,
        )

    def _search(self, state: SearchState, query: str) -> tuple[SearchState, str]:
        """The state with the passages that the query finds, and the text that reports them."""
        hits = self.index.search(query, self.hits)
        found_before = {number for _, number in state.found}  # the index holds each text once
        new_hits = tuple((query, number) for number in hits if number not in found_before)
        first_number = len(state.found) + 1
        lines = [self._line(number, *hit) for number, hit in enumerate(new_hits, first_number)]
        if not new_hits:
            lines = [
                "Nothing new: all that was found was shown before." if hits else "Nothing found."
            ]
        state = dataclasses.replace(
            state, history=(*state.history, query), found=state.found + new_hits
        )
        return state, "\n".join(lines)

    def _line(self, number: int, query: str, passage: int) -> str:
        title, text = self.index.passage(passage)
        return passage_line(number, query, f"{title}: {text}"[: self.passage_length])

    def _finish(
        self, state: SearchState, action: str
    ) -> tuple[SearchState, str, float, bool, bool, dict[str, Any]]:
        answers = self.question(state.task).answers
        answer, tagged = last_answer(action)
        match = exact_match(answer, answers) if answers else 0.0
        overlap = f1_score(answer, answers) if answers else 0.0
        state = dataclasses.replace(state, steps=state.steps + 1, done=True)
        info = self._info(
            state,
            reason="" if tagged else "no <answer> in the last reply: all of it was taken",
            success=bool(match),
            exact_match=match,
            f1=overlap,
            answer=answer,
        )
        return state, "", match if self.reward == "exact_match" else overlap, True, False, info

    def _info(self, state: SearchState, reason: str, **known: Any) -> dict[str, Any]:
        question = self.question(state.task)
        unknown: dict[str, Any] = dict(
            success=False, exact_match=0.0, f1=0.0, answer="", num_calls=0, num_valid_calls=0,
            new_passages=0, outcomes=(),
        )  # fmt: skip
        info = {**unknown, **known}
        records = [outcome.record() for outcome in info["outcomes"]]
        return {
            **info,
            "tool_outcomes": json.dumps(records, ensure_ascii=False),
            "valid": not reason,
            "reason": reason,
            "num_searches": state.searches,
            "question_id": question.identity,
            "kind": question.kind,
            "level": question.level,
        }


def wiki_search(
    questions: str | Path | None = None,
    passages: str | Path | None = None,
    split: str = "train",
    cache: str | Path | None = None,
    kinds: Sequence[str] = (),
    answers: Sequence[str] = (),
    **settings: Any,
) -> WikiSearch:
    """The environment of a file of questions and a file or folder of passages.

    Args:
        questions: JSONL, JSON or parquet, see `load_questions`; default: the sample.
        passages: file or folder of the same kinds, see `open_index`; default: the sample. A file of
            questions that bring their paragraphs will do.
        split: "train", "valid", "test" or "all".
        cache: where indices are kept, default `~/.cache/steprl/wiki_search`.
        kinds: of the questions that are asked, such as `["comparison"]`; none means all.
        answers: that these may have, such as `["yes", "no"]`; none means any.
        **settings: of `WikiSearch`.

    Raises:
        ValueError: an unknown split, kind or answer, a row that holds no question or passage, a setting
            out of range; questions without passages, or the other way round.
        FileNotFoundError: a path does not exist.
        ImportError: `pip install 'steprl[search]'` is missing.
    """
    if (questions is None) != (passages is None):
        raise ValueError("questions and passages belong together: give both paths, or neither")
    if questions is None or passages is None:
        questions, passages = SAMPLE / "questions.jsonl", SAMPLE / "passages.jsonl"
    selected = load_questions(questions, split, kinds, answers)
    return WikiSearch(selected, open_index(passages, cache), **settings)
