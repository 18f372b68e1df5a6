"""Files of questions and passages as users have them: read as they are meant, or refused by name."""

import gzip
import json
import warnings

import pytest

from steprl.config import WikiSearchConfig
from steprl.envs.wiki_search import load_questions, open_index, wiki_search
from steprl.envs.wiki_search.records import PIECE, TEXT_SUFFIXES, Passage, passages_of, read_rows
from steprl.envs.wiki_search.suite import open as open_suite

TRIVIA = {
    "value": "Paris", "aliases": ["Paris", "Lutetia"], "normalized_value": "paris", "type": "WikipediaEntity",
    "normalized_aliases": ["paris", "lutetia"], "matched_wiki_entity_name": "Paris (city)",
    "normalized_matched_wiki_entity_name": "paris city",
}  # fmt: skip
BOTH = ("Paris", "Lutetia")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Answers.


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answer": {"value": "Paris", "aliases": ["Lutetia"]}}, BOTH),
        ({"answer": TRIVIA}, BOTH),
        ({"Question": "Capital?", "Answer": {"Value": "Paris", "Aliases": ["Lutetia"], "Type": "x"}}, BOTH),
        ({"answers": {"text": ["Paris", "Lutetia", "Paris"], "answer_start": [3, 9, 3]}}, BOTH),
        ({"answers": [{"text": "Paris", "answer_start": 3}, {"text": "Lutetia"}]}, BOTH),
        ({"answer": "Paris", "answer_aliases": ["Lutetia"], "answerable": True}, BOTH),  # MuSiQue
        ({"answer": ["Paris", "Lutetia"]}, BOTH),  # NQ-open
        ({"golden_answers": ["Paris", "Lutetia"]}, BOTH),  # FlashRAG
        ({"target": ["Paris", "Lutetia"]}, BOTH),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": ["Paris", "Lutetia"]}}}, BOTH),
        ({"reward_model": {"ground_truth": "Paris"}, "answer": None}, ("Paris",)),
        ({"answer": "Paris", "type": "bridge", "supporting_facts": "[[\"A\", 0]]"}, ("Paris",)),  # 2Wiki
        ({"answer": 1815}, ("1815",)),
        ({"answer": 3.0}, ("3",)),
        ({"answer": 0.25}, ("0.25",)),
        ({"answer": 0}, ("0",)),
        ({"answer": [7, "seven", None]}, ("7", "seven")),
        ({"answer": True}, ("yes", "true")),
        ({"answer": False}, ("no", "false")),
    ],
)  # fmt: skip
def test_answers_of_the_common_data_sets(tmp_path, row, answers):
    asked = row if "Question" in row else {"question": "Capital?", **row}
    (question,) = load_questions(write(tmp_path / "q.jsonl", asked))
    assert (question.text, question.answers) == ("Capital?", answers)


@pytest.mark.parametrize(
    "row",
    [
        {"extra_info": {"index": 0, "question": "Capital?"}},
        {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "Capital?"}]},
        {"question": {"text": "Capital?", "tokens": ["Capital", "?"]}},
    ],
)
def test_questions_as_verl_and_others_have_them(tmp_path, row):
    file = write(tmp_path / "q.jsonl", {"reward_model": {"ground_truth": "Paris"}, **row})
    assert load_questions(file)[0].text == "Capital?"


def test_an_answer_is_never_the_name_of_a_field(tmp_path):
    pytest.importorskip("bm25s")
    file = write(tmp_path / "q.jsonl", {"question": "Capital?", "answer": TRIVIA})
    passages = write(tmp_path / "p.jsonl", {"title": "Paris", "text": "Paris is the capital."})
    env = wiki_search(file, passages, "all", cache=tmp_path / "cache")
    state, _ = env.reset(0)
    rewards = {
        text: env.step(state, f"<answer>{text}</answer>")[2]
        for text in ("Paris", "lutetia", "value", "aliases", "type", "WikipediaEntity")
    }
    assert [text for text, reward in rewards.items() if reward] == ["Paris", "lutetia"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "Q", "answer": {"val": "Paris"}}, "answer is an object of val, .*TriviaQA"),
        ({"question": "Q", "answer": {"value": "Paris", "other": 1}}, "answer is an object of value, other"),
        ({"question": "Q", "answer": {}}, "answer is an object of nothing"),
        ({"question": "Q", "annotations": {"short": 1}}, "not an answer in a row of question, annotations"),
        ({"query": "Q", "answer": "a"}, "not a question in a row of query, answer; read are question and"),
        ({"question": ["Q"], "answer": "a"}, "not a question"),
        ({"question": "Q", "answer": None}, "not an answer"),
        ({"question": "Q", "answer": [None]}, "not an answer"),
        ({"question": "Q", "answer": " "}, "not an answer"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused_with_file_and_line(tmp_path, row, says):
    file = write(tmp_path / "q.jsonl", {"question": "Q", "answer": "a"}, row)
    with pytest.raises(ValueError, match=f"q.jsonl:2: .*{says}"):
        load_questions(file)


def test_articles_of_squad_are_questions_and_passages(tmp_path):
    asked = [
        {"id": "1", "question": "Capital?", "answers": [{"text": "Paris", "answer_start": 0}]},
        {"id": "2", "question": "Moon?", "answers": [], "is_impossible": True},
    ]
    article = {"title": "France", "paragraphs": [{"context": "Paris is it.", "qas": asked}]}
    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    assert [(q.identity, q.answers) for q in load_questions(file)] == [("1", ("Paris",))]
    ((place, row),) = read_rows(file)
    assert passages_of(row, place) == [Passage("France", "Paris is it.")]
    row = {"title": "France", "context": "Paris is it.", "question": "Capital?"}
    assert passages_of(row, "") == [Passage("France", "Paris is it.")]
    row = {"context": json.dumps([["France", ["Paris", " is it."]]])}  # 2Wiki in parquet
    assert passages_of(row, "") == [Passage("France", "Paris is it.")]


def test_questions_without_an_answer_are_left_out(tmp_path):
    rows = [
        {"question": "a", "answers": {"text": [], "answer_start": []}},
        {"question": "b", "answer": "x"},
        {"question": "c", "answer": "", "answerable": False},
    ]
    assert [q.text for q in load_questions(write(tmp_path / "q.jsonl", *rows))] == ["b"]
    with pytest.raises(ValueError, match="no question in it has an answer"):
        load_questions(write(tmp_path / "r.jsonl", rows[0]))


def test_two_questions_with_one_id_are_an_error_and_one_question_twice_is_not(tmp_path):
    rows = [{"id": 1, "question": f"Q{n}", "answer": "a"} for n in (1, 1, 2)]
    assert len(load_questions(write(tmp_path / "a.jsonl", *rows[:2]))) == 2
    with pytest.raises(ValueError, match="q.jsonl:3: the id '1' is that of another .*q.jsonl:1"):
        load_questions(write(tmp_path / "q.jsonl", *rows))


# Encodings.


def test_marks_of_byte_order_line_ends_and_blank_lines(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"question": "Q", "answer": "a\xc3\xa9"}\r\n\r\n{"question": "R"}\r\n'
    )
    with pytest.raises(ValueError, match="q.jsonl:3: a question needs"):
        load_questions(file)
    file.write_bytes(file.read_bytes()[:40] + b"\r\n\x0c\r\n")
    assert load_questions(file)[0].answers == ("aé",)
    with gzip.open(tmp_path / "q.json.gz", "wb") as zipped:
        zipped.write(b'\xef\xbb\xbf[{"question": "Q", "answer": "a"}]')
    assert load_questions(tmp_path / "q.json.gz")[0].answers == ("a",)


CUT_OFF = gzip.compress(b'{"question": "Q"}' * 99, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.jsonl", b"", "q.jsonl: the file is empty"),
        ("q.json", b" \n", "q.json: the file is empty"),
        ("q.json", b"[]", "q.json: the file is empty"),
        ("q.jsonl", b'{"question": "Q", "answer": "a"}\n"caf\xe9"', "q.jsonl:2: not text in UTF-8 .*0xe9"),
        ("q.json", b'[{"question":\n"caf\xe9"}]', "q.json:2: not text in UTF-8 .*0xe9"),
        ("q.json", b'{"question": "Q"}\n{"question": "R"}', "q.json: not JSON: .*jsonl"),
        ("q.json", b'["Q"]', "q.json:1: a row is a JSON object, found str"),
        ("q.jsonl.gz", b'{"question": "Q"}', "q.jsonl.gz: it cannot be read"),
        ("q.jsonl.gz", CUT_OFF, "q.jsonl.gz: it cannot be read"),
        ("q.parquet", b"PAR1 and then nothing", "q.parquet: not a parquet file"),
        ("q.csv", b"question,answer\n", "q.csv: not one of .jsonl"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, says):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        load_questions(tmp_path / name)


# Passages as text.


def test_a_folder_of_texts_is_searched(tmp_path):
    pytest.importorskip("bm25s")
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / ".git").mkdir()
    (tmp_path / "docs" / "Ada.txt").write_text(
        "\ufeffAda wrote programs.\r\n\r\nShe lived in London.\r\n"
    )
    (tmp_path / "docs" / "deep" / "notes.md").write_text("# Babbage\n\nHe built engines.")
    (tmp_path / "docs" / "README.md").write_text("about the data")
    (tmp_path / "docs" / "page.html").write_text("<p>not read</p>")
    (tmp_path / "docs" / ".git" / "x.txt").write_text("hidden")
    write(tmp_path / "docs" / "more.jsonl", {"title": "Byron", "text": "A poet."})
    with gzip.open(tmp_path / "docs" / "OLD.TXT.gz", "wt") as file:
        file.write("An old text.")
    with pytest.warns(UserWarning, match=r"docs: 1 files are not read \(.html\)"):
        index = open_index(tmp_path / "docs", tmp_path / "cache")
    assert [index.passage(n) for n in range(len(index))] == [
        Passage("Ada", "Ada wrote programs.\n\nShe lived in London."),
        Passage("OLD", "An old text."),
        Passage("notes", "# Babbage\n\nHe built engines."),
        Passage("Byron", "A poet."),
    ]
    assert index.search("London") == [0]
    (tmp_path / "docs" / "empty.txt").write_text("\n \n")
    (tmp_path / "docs" / "page.html").unlink()
    with pytest.raises(ValueError, match="empty.txt: the file is empty"):
        open_index(tmp_path / "docs", tmp_path / "cache")


def test_long_texts_become_passages_that_can_be_shown(tmp_path):
    words = [f"word{n}" for n in range(900)]
    text = " ".join(words[:300]) + "\n\n" + " ".join(words[300:]) + "\n\n" + "x" * (2 * PIECE + 5)
    (tmp_path / "book.txt").write_text(text)
    rows = [row for _, row in read_rows(tmp_path / "book.txt", TEXT_SUFFIXES)]
    assert all(0 < len(row["text"]) <= PIECE and row["title"] == "book" for row in rows)
    read = " ".join(row["text"] for row in rows).split()
    assert [word for word in read if word.startswith("word")] == words
    assert "".join(read).count("x") == 2 * PIECE + 5


def test_texts_are_no_questions(tmp_path):
    (tmp_path / "q.txt").write_text("Who?")
    with pytest.raises(ValueError, match="q.txt: not one of .jsonl"):
        load_questions(tmp_path / "q.txt")


@pytest.mark.parametrize(
    "row",
    [{"context": 3}, {"paragraphs": ["a"]}, {"context": [["A"]]}, {"title": "A", "body": "b"}],
)
def test_rows_without_a_passage_say_what_is_read(row):
    with pytest.raises(ValueError, match="p.jsonl:4: no passage in a row of .*title and text"):
        passages_of(row, "p.jsonl:4")


# Splits.


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_a_small_file_without_splits_has_something_to_train_and_to_evaluate_on(tmp_path, count):
    rows = [{"question": f"Question {n}?", "answer": "a"} for n in range(count)]
    file = write(tmp_path / "q.jsonl", *rows)
    parts = {split: {q.text for q in load_questions(file, split)} for split in ("train", "valid")}
    if count > 2:
        parts["test"] = {q.text for q in load_questions(file, "test")}
    assert all(parts.values()) and sum(map(len, parts.values())) == count
    assert len(set.union(*parts.values())) == count
    again = write(tmp_path / "r.jsonl", *rows[::-1])  # whatever their order
    assert {q.text for q in load_questions(again, "valid")} == parts["valid"]


@pytest.mark.parametrize(
    ("splits", "shared", "sizes"),
    [
        ([None] * 3, None, (1, 1)),
        (["train", "dev"], None, (1, 1)),
        (["train", "test"], None, (1, 1)),
        ([None], "evaluate on", (1, 1)),
        (["train", "train"], "evaluate on", (2, 2)),
        (["test", "test"], "train on", (2, 2)),
    ],
)
def test_every_file_of_questions_can_be_evaluated(tmp_path, splits, shared, sizes):
    pytest.importorskip("bm25s")
    rows = [
        {"question": f"Q{n}", "answer": "a"} | ({"split": name} if name else {})
        for n, name in enumerate(splits)
    ]
    settings = WikiSearchConfig(
        questions=str(write(tmp_path / "q.jsonl", *rows)),
        passages=str(write(tmp_path / "p.jsonl", {"title": "A", "text": "words"})),
        cache=str(tmp_path / "cache"),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        suite = open_suite(settings)
    told = [str(one.message) for one in said if "share questions" in str(one.message)]
    assert [suite.sizes[name] for name in ("train", "valid")] == list(sizes)
    assert (f"are there to {shared}" in told[0]) if shared else told == []
