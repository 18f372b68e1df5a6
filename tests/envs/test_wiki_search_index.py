"""Files of questions and passages, their shapes, and the index over passages."""

import gzip
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.envs.wiki_search import (
    SAMPLE,
    Passage,
    PassageIndex,
    build_index,
    load_questions,
    open_index,
    wiki_search,
)
from steprl.envs.wiki_search.extract_sample import extract
from steprl.envs.wiki_search.records import passages_of, read_rows, supporting_titles

bm25s = pytest.importorskip("bm25s")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="the larger data files are not here")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# The index.


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(SAMPLE / "passages.jsonl", tmp_path_factory.mktemp("indices"))


@pytest.fixture(scope="module")
def in_memory():
    """bm25s as its readme has it, nothing on disk."""
    rows = [row for _, row in read_rows(SAMPLE / "passages.jsonl")]
    texts = [f"{row['title']}. {row['text']}" for row in rows]
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    return rows, retriever


def test_hits_through_the_memory_map_are_those_in_memory(index, in_memory):
    rows, retriever = in_memory
    assert len(index) == len(rows) == 922
    assert isinstance(index._bm25.scores["data"], np.memmap)
    for question in load_questions(SAMPLE / "questions.jsonl"):
        words = bm25s.tokenize([question.text], stopwords="en", show_progress=False)
        wanted, scores = retriever.retrieve(words, k=6, show_progress=False)
        found = index.search(question.text, 5)
        ties = len(np.unique(scores[0])) < 6
        assert found == wanted[0, :5].tolist() or ties
        assert set(found) <= set(wanted[0].tolist())
        for number in found:
            assert index.passage(number) == Passage(rows[number]["title"], rows[number]["text"])


def test_an_index_is_built_once_and_opened_by_others(index, monkeypatch):
    monkeypatch.setattr(bm25s.BM25, "index", lambda *args, **kwargs: pytest.fail("built again"))
    again = open_index(SAMPLE / "passages.jsonl", index.folder.parent)
    there = pickle.loads(pickle.dumps(index))
    for query in ("Hank Williams", "city of Kansas"):
        assert again.search(query) == there.search(query) == index.search(query) != []
    assert [p.name for p in index.folder.parent.iterdir()] == [index.folder.name]  # no leftovers


def test_changed_passages_get_another_index(tmp_path):
    source, cache = tmp_path / "p.jsonl", tmp_path / "cache"
    write_jsonl(source, [{"title": "One", "text": "first words"}])
    before = open_index(source, cache)
    write_jsonl(source, [{"title": "One", "text": "second words, and more"}])
    after = open_index(source, cache)
    assert before.folder != after.folder
    assert after.search("second") == [0] and before.search("second") == []


def test_the_default_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = write_jsonl(tmp_path / "p.jsonl", [{"title": "One", "text": "words"}])
    assert open_index(source).folder.parent == tmp_path / "steprl" / "wiki_search"


def test_the_same_text_is_kept_once_and_order_stays(tmp_path):
    passages = [Passage("A", "one two"), Passage("B", "three"), Passage("C", "one  two\n")]
    index = build_index([*passages, Passage("D", "four")], tmp_path / "i")
    assert [index.passage(n).title for n in range(len(index))] == ["A", "B", "D"]


def test_ties_come_in_the_order_of_the_passages(tmp_path):
    index = build_index([Passage("", f"same {c}{c}") for c in "abcdefghij"], tmp_path / "i")
    assert [index.search("same", k) for k in (1, 3, 20)] == [[0], [0, 1, 2], list(range(10))]
    assert index.search("same gg", 3) == [6, 0, 1]


@pytest.mark.parametrize(
    "query", ["", "  ", "zzzunknown", "the of", "!?", "\x00", "é", "<|im_end|>"]
)
def test_a_query_without_known_words_finds_nothing(index, query):
    assert index.search(query) in ([], index.search("im_end"))


@settings(max_examples=50)
@given(st.text())
def test_any_query_is_allowed(index, query):
    found = index.search(query)
    assert len(found) == len(set(found)) <= 5


def test_mistakes_are_explained(tmp_path, index):
    with pytest.raises(FileNotFoundError, match="build_index"):
        PassageIndex(tmp_path)
    with pytest.raises(FileExistsError, match="choose another"):
        build_index([Passage("A", "b")], tmp_path)
    for passages in ([], [Passage("", "the")]):
        with pytest.raises(ValueError, match="word"):
            build_index(passages, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    for number in (-1, 922):
        with pytest.raises(IndexError):
            index.passage(number)


def test_missing_packages_say_what_to_install(monkeypatch, tmp_path, index):
    folder = index.folder
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install 'steprl\[search\]'"):
        PassageIndex(folder)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    file = tmp_path / "q.parquet"
    file.touch()
    with pytest.raises(ImportError, match=r"pip install 'steprl\[search\]'"):
        load_questions(file)


# Files.


def test_a_folder_is_all_its_files(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{"title": str(n), "text": f"text {n}"} for n in range(8)]
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "a.jsonl", rows[:2])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n\n" for row in rows[2:4]))
    (tmp_path / "c.json").write_text(json.dumps(rows[4:6]))
    parquet.write_table(pyarrow.Table.from_pylist(rows[6:]), tmp_path / "sub" / "d.parquet")
    (tmp_path / "README.md").write_text("not data")
    assert [row for _, row in read_rows(tmp_path)] == rows
    index = open_index(tmp_path, tmp_path.parent / "cache")
    assert [index.passage(n).title for n in range(8)] == list("01234567")


SENTENCES = [["First.", " Second."], ["Third."]]


@pytest.mark.parametrize(
    "row",
    [
        {"context": [{"title": t, "sentences": s} for t, s in zip("AB", SENTENCES, strict=True)]},
        {"context": {"title": ["A", "B"], "sentences": SENTENCES}},
        {"context": [["A", SENTENCES[0]], ["B", SENTENCES[1]]]},
        {
            "paragraphs": [
                {"title": "A", "text": "First. Second."},
                {"title": "B", "text": "Third."},
            ]
        },
        {
            "paragraphs": [
                {"title": "A", "paragraph_text": "First. Second."},
                {"title": "B", "paragraph_text": "Third."},
            ]
        },
    ],
)
def test_questions_that_bring_their_passages(row):
    assert passages_of(row, "") == [Passage("A", "First. Second."), Passage("B", "Third.")]


@pytest.mark.parametrize(
    "row",
    [
        {"title": "A", "text": "First. Second.", "pid": 3},
        {"contents": '"A"\nFirst. Second.', "id": "0"},
        {"title": " A", "sentences": SENTENCES[0]},
    ],
)
def test_single_passages(row):
    assert passages_of(row, "") == [Passage("A", "First. Second.")]


@pytest.mark.parametrize(
    "row",
    [
        {"supporting_facts": [{"title": "A", "sent_id": 0}, {"title": "B", "sent_id": 3}]},
        {"supporting_facts": {"title": ["A", "A", "B"], "sent_id": [0, 1, 3]}},
        {"supporting_facts": [["A", 0], ["B", 3], ["B", 4]]},
        {"supporting_titles": ["A", "B"]},
        {"paragraphs": [{"title": t, "is_supporting": t != "C"} for t in "ACB"]},
    ],
)
def test_supporting_titles(row):
    assert supporting_titles(row) == ("A", "B")
    assert supporting_titles({}) == ()


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answer": "x"}, ("x",)),
        ({"answer": "x", "answer_aliases": ["y", "x "]}, ("x", "y")),
        ({"golden_answers": ["x", "y"]}, ("x", "y")),
        ({"answers": ["x"], "answer_aliases": None}, ("x",)),
    ],
)
def test_accepted_answers(tmp_path, row, answers):
    file = write_jsonl(tmp_path / "q.jsonl", [{"question": "Q?", **row}])
    (question,) = load_questions(file)
    assert question.answers == answers and question.identity == "0"


def test_named_splits(tmp_path):
    names = ["train", "dev", "validation", "valid", "test"]
    rows = [{"id": i, "question": f"Q{i}", "answer": "a", "split": n} for i, n in enumerate(names)]
    rows.append({"question": "without answer", "answer": None, "answerable": False})
    file = write_jsonl(tmp_path / "q.jsonl", rows)
    found = {
        split: [question.identity for question in load_questions(file, split)]
        for split in ("train", "valid", "test", "all")
    }
    assert found == {
        "train": ["0"], "valid": ["1", "2", "3"], "test": ["4"], "all": ["0", "1", "2", "3", "4"],
    }  # fmt: skip


def test_questions_of_some_kinds(tmp_path):
    kinds = ["bridge", "comparison", "bridge", None]
    rows = [
        {"id": i, "question": f"Q{i}", "answer": "a", "split": "train", "type": kind}
        for i, kind in enumerate(kinds)
    ]
    file = write_jsonl(tmp_path / "q.jsonl", rows)
    for wanted, found in (([], "0123"), (["bridge"], "02"), (["comparison", "bridge"], "012")):
        assert "".join(q.identity for q in load_questions(file, "train", wanted)) == found
    with pytest.raises(
        ValueError, match="kinds: .* no question of 'bridges' in 'train'; .*'bridge'"
    ):
        load_questions(file, "train", ["bridge", "bridges"])


def test_questions_with_some_answers(tmp_path):
    answers = ["Yes", ["no", "not at all"], "Paris", "yes."]
    rows = [
        {"id": i, "question": f"Q{i}", "answer": answer, "split": "train", "type": "comparison"}
        for i, answer in enumerate(answers)
    ]
    file = write_jsonl(tmp_path / "q.jsonl", rows)
    for wanted, found in (([], "0123"), (["yes", "no"], "013"), (["not at all"], "1")):
        asked = load_questions(file, "train", ["comparison"], wanted)
        assert "".join(q.identity for q in asked) == found
    with pytest.raises(ValueError, match="answers: no question of .* in 'train' .* 'perhaps'"):
        load_questions(file, "train", answers=["perhaps"])


def test_splits_by_checksum_part_the_questions_whatever_else_is_there(tmp_path):
    rows = [{"id": n, "question": f"Question {n}?", "answer": "a"} for n in range(1000)]
    file = write_jsonl(tmp_path / "q.jsonl", rows)
    parts = {split: load_questions(file, split) for split in ("train", "valid", "test")}
    sizes = {split: len(part) for split, part in parts.items()}
    assert sum(sizes.values()) == 1000
    assert 750 < sizes["train"] < 850 and min(sizes["valid"], sizes["test"]) > 70
    # The same question under another id, in another file, in another place.
    again = [
        {"id": f"x{n}", "question": f"question {n}", "answer": "a"} for n in range(999, -1, -3)
    ]
    texts = {question.text for question in load_questions(file, "valid")}
    for question in load_questions(write_jsonl(tmp_path / "r.jsonl", again), "valid"):
        assert question.text.capitalize() + "?" in texts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "q.jsonl:2: not JSON"),
        ("[1]", "q.jsonl:2: a row is a JSON object"),
        ('{"question": "Q"}', "q.jsonl:2: a question needs"),
        ('{"question": "", "answer": "a"}', "q.jsonl:2: a question needs"),
        ('{"question": "Q", "answer": "a", "split": "extra"}', "q.jsonl:2: split 'extra'"),
    ],
)
def test_bad_rows_are_named_by_their_place(tmp_path, line, message):
    file = tmp_path / "q.jsonl"
    file.write_text(f'{{"question": "Q", "answer": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        load_questions(file, "train")


def test_bad_paths_and_splits(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_questions(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="without data files"):
        open_index(tmp_path)
    text = tmp_path / "q.txt"
    text.touch()
    with pytest.raises(ValueError, match="not one of"):
        load_questions(text)
    with pytest.raises(ValueError, match="choose from train, valid, test, all"):
        load_questions(SAMPLE / "questions.jsonl", "dev")
    with pytest.raises(ValueError, match="no question in 'test'"):
        load_questions(SAMPLE / "questions.jsonl", "test")
    file = write_jsonl(tmp_path / "p.jsonl", [{"title": "A", "text": " "}])
    with pytest.raises(ValueError, match=r"p.jsonl:1: no passage in a row of title, text"):
        open_index(file, tmp_path / "cache")


# The larger files, where they are.


@with_data
@pytest.mark.parametrize(
    ("file", "count", "titles"),
    [
        ("hotpotqa_with_contexts.parquet", 238, 2),
        ("hotpotqa_open_qa.parquet", 696, 0),
        ("musique_with_contexts.parquet", 80, 1),
    ],
)
def test_the_larger_files_of_questions(file, count, titles):
    questions = load_questions(DATA / file)
    assert len(questions) == count
    assert all(question.answers and len(question.titles) >= titles for question in questions)
    splits = [load_questions(DATA / file, split) for split in ("train", "valid", "test")]
    assert sum(map(len, splits)) == count and len(splits[0]) > 0.7 * count


@with_data
@pytest.mark.slow
def test_retrieval_on_the_larger_passages(tmp_path):
    env = wiki_search(
        DATA / "hotpotqa_open_qa.parquet", DATA / "wiki_passages.parquet", "all", tmp_path
    )
    assert len(env.index) == 18_460  # one text is there twice
    hits = 0
    for task in range(len(env.questions)):
        state, _ = env.reset(task)
        texts = [env.index.passage(number).text for _, number in state.found]
        hits += any(env.question(task).answers[0].lower() in text.lower() for text in texts)
    assert 0.75 < hits / len(env.questions) < 0.85


@with_data
def test_questions_that_bring_their_passages_are_a_corpus_of_their_own(tmp_path):
    file = DATA / "musique_with_contexts.parquet"
    env = wiki_search(file, file, "all", tmp_path)
    titles = {env.index.passage(number).title for number in range(len(env.index))}
    assert all(title in titles for question in env.questions for title in question.titles)


@with_data
def test_the_sample_is_what_its_script_extracts(tmp_path):
    files = ("hotpotqa_with_contexts", "hotpotqa_open_qa", "wiki_passages")
    extract(*(DATA / f"{name}.parquet" for name in files), tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text(encoding="utf-8") == (SAMPLE / file.name).read_text(encoding="utf-8")
