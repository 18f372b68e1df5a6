"""A demonstrator that knows the supporting titles: replies in the right form, to learn from."""

from steprl.envs.wiki_search.environment import SearchState, WikiSearch
from steprl.tools import render_tool_call


def demonstrate(env: WikiSearch, state: SearchState) -> str:
    """The next reply: search for the supporting titles that are not found yet, then answer.

    It answers with the data set's first answer if passages of all supporting titles were found, and
    "unknown" otherwise: what it shows should be borne out by evidence.

    Raises:
        ValueError: the question names no supporting titles.
    """
    question = env.question(state.task)
    if not question.titles:
        raise ValueError(f"question {question.identity} names no supporting titles to search for")
    found_titles = {env.index.passage(number).title for _, number in state.found}
    missing = [title for title in question.titles if title not in found_titles]
    open_titles = [t for t in missing if " ".join(t.split()) not in state.history]
    last = state.steps + 1 >= env.max_steps
    if open_titles and not last:
        titles = open_titles[: env.max_calls]
        calls = "\n".join(
            render_tool_call("search", {"query": " ".join(title.split())}) for title in titles
        )
        return f"<analysis>I need the passages about {_listed(titles)}.</analysis>\n{calls}"
    if missing:
        return (
            f"<analysis>There is no passage about {_listed(missing)}.</analysis>\n"
            "<answer>unknown</answer>"
        )
    return (
        f"<analysis>The passages about {_listed(question.titles)} answer the question.</analysis>\n"
        f"<answer>{question.answers[0]}</answer>"
    )


def _listed(titles: tuple[str, ...] | list[str]) -> str:
    *others, last = titles
    return f"{', '.join(others)} and {last}" if others else last
