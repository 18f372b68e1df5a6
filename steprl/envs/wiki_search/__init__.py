"""Multi-hop questions over Wikipedia passages, answered with a search tool; any files by path.

    from steprl.envs.wiki_search import wiki_search

    env = wiki_search()  # the sample; or wiki_search("questions.parquet", "passages/", split="valid")
    state, prompt = env.reset(0)
    state, prompt, reward, terminated, truncated, info = env.step(state, "<answer>Paris</answer>")

Searching needs `pip install 'steprl[search]'`.
"""

from steprl.envs.wiki_search.answers import exact_match, f1_score, normalise_answer
from steprl.envs.wiki_search.environment import SAMPLE, SearchState, WikiSearch, wiki_search
from steprl.envs.wiki_search.expert import demonstrate
from steprl.envs.wiki_search.index import PassageIndex, build_index, open_index
from steprl.envs.wiki_search.questions import Question, load_questions
from steprl.envs.wiki_search.records import Passage
from steprl.envs.wiki_search.suite import open
from steprl.envs.wiki_search.summary import Attempt, attempts, play, summarise

__all__ = [
    "SAMPLE",
    "Attempt",
    "Passage",
    "PassageIndex",
    "Question",
    "SearchState",
    "WikiSearch",
    "attempts",
    "build_index",
    "demonstrate",
    "exact_match",
    "f1_score",
    "load_questions",
    "normalise_answer",
    "open",
    "open_index",
    "play",
    "summarise",
    "wiki_search",
]
