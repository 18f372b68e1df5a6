"""Bad command lines: each ends with exit code 1 or 2 and one short sentence that names the argument."""

import importlib.util
import re

import pytest

from steprl.cli import main, training
from steprl.config import Config
from steprl.config.settings import setting_values
from tests.small import SMALL

INTEGERS = [
    name for name, value in setting_values(Config()).items() if type(value) is int
]  # of every section
NUMBERS = [name for name, value in setting_values(Config()).items() if type(value) is float]
FLAGS = [name for name, value in setting_values(Config()).items() if type(value) is bool]
TEXTS = [name for name, value in setting_values(Config()).items() if type(value) is str]
LISTS = [name for name, value in setting_values(Config()).items() if type(value) is list]
MAPPINGS = [name for name, value in setting_values(Config()).items() if type(value) is dict]

NO_INTEGERS = ("1.5", "1e3", "true", "many", "[1]", "{a: 1}", "null", "", "1:30", "010", "-1.0",
               "2020-01-01", "9" * 30, "9" * 5000, ".inf", ".nan", "${x}", "${", "'", "???", "-",
               "!!float x", "!!bool x", "*a", "&a", "%", "@", "`", "é", "\u2028", "🙂")  # fmt: skip
NO_NUMBERS = ("nan", ".nan", ".inf", "-.inf", "1e400", "true", "fast", "[1, 2]", "{}", "null", "",
              "1,5", "0.5.5", "1:2", "${actor.lr.x}", "${oc.env:STEPRL_NO_SUCH}", "???")  # fmt: skip
NO_FLAGS = ("maybe", "2", "0.5", "[true]", "{}", "null", "")
NO_TEXTS = ("[a]", "{a: b}", "null", "", '"\\0"', "a: b", "[", "{", '"', "!!python/name:os.system",
            "!!python/object/apply:os.system [echo]", "- a", "a: {b: c}")  # fmt: skip
NO_LISTS = ("3", "null", "", "{a: b}", "[[a]]", "[{a: b}]", "[null]", "true", "[a", "${trainer}")
NO_MAPPINGS = (
    "3",
    "null",
    "",
    "[a]",
    "text",
    "{1: 2}",
    "{[a]: b}",
    "{a: 1, a: 2}",
    "{a",
    "{null: 1}",
)
NO_KEYS = ("x=1", "actor=1", "actor=[1]", "actor=null", "actr.lr=1", "actor.l=1", "actor.lr.x=1",
           "actor..lr=1", ".=1", "..=1", "actor.=1", "actor[lr]=1", "actor.lr[0]=1", " =1", "a b=1",
           "é=1", "🙂=1", "[red]=1", "trainer=runs", "env.multihop=3", "env.multihop.a.b.c=3",
           "model.lora=8", "Actor.lr=1", "ACTOR.LR=1", "a" * 3000 + "=1", ("a." * 3000) + "b=1",
           "trainer.experiment_name.x=1", "__class__=1", "actor.__init__=1")  # fmt: skip
DEEP = ("[" * 1000 + "]" * 1000, "{a: " * 1000 + "}" * 1000, "- " * 500 + "1", "[" * 5000)


def settings():
    """(override, what the message must name)."""
    for kinds, values in (
        (INTEGERS, NO_INTEGERS), (NUMBERS, NO_NUMBERS), (FLAGS, NO_FLAGS), (TEXTS, NO_TEXTS),
        (LISTS, NO_LISTS), (MAPPINGS, NO_MAPPINGS), (INTEGERS + TEXTS, DEEP),
    ):  # fmt: skip
        for number, value in enumerate(values):
            # Each value at another setting of that type, so that all sections are met.
            key = kinds[(7 * number) % len(kinds)]
            yield f"{key}={value}", key
    for override in NO_KEYS:
        yield override, override.partition("=")[0].split(".")[0].strip()[:20]


def refused(capsys, arguments, word):
    """The message of a refused command line."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    message = (out + err).strip()
    assert code in (1, 2), (code, message)
    assert "Traceback" not in message
    last = message.splitlines()[-1]
    assert "error: " in last and len(last) < 600, last
    if code == 1:
        assert len(message.splitlines()) == 1
    assert word in last
    return last


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "good.yaml"
    path.write_text("trainer: {experiment_name: a}\n")
    return path


SETTINGS = list(settings())
assert len(SETTINGS) > 100


@pytest.mark.parametrize(("override", "word"), SETTINGS, ids=range(len(SETTINGS)))
def test_a_bad_setting_is_named(file, capsys, override, word):
    refused(capsys, ["train", str(file), override], word)


@pytest.mark.parametrize("key", INTEGERS + NUMBERS)
def test_every_number_has_a_largest_value(file, capsys, key):
    refused(
        capsys,
        ["train", str(file), f"{key}=1e400" if key in NUMBERS else f"{key}=" + "9" * 19],
        key,
    )


FILES = {
    "no mapping": b"- a\n",
    "a number": b"3",
    "no yaml": b"a: [1",
    "tabs": b"actor:\n\tlr: 1",
    "unhashable": b"? [a]\n: b",
    "mapping as key": b"{a: 1}: 2",
    "twice": b"actor: {lr: 1.0e-3}\nactor: {lr: 2.0e-3}\n",
    "twice inside": b"actor:\n  lr: 1.0e-3\n  lr: 2.0e-3\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "binary": bytes(range(256)),
    "utf-16": "actor: {lr: 1.0}".encode("utf-16"),
    "latin": "trainer: {experiment_name: é}".encode("latin-1"),
    "null byte": b"trainer: {experiment_name: a\0b}",
    "control": b"trainer: {experiment_name: \x1b[31m}",
    "anchor of itself": b"env: {options: &a {b: *a}}",
    "laughs": b"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    b"e: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
    "deep": b"env: {options: " + b"{a: " * 500 + b"1" + b"}" * 501,
    "code": b"env: !!python/object/apply:os.system [echo]\n",
    "unknown tag": b"actor: !mine {lr: 1}\n",
    "bytes": b"trainer: {experiment_name: !!binary aGk=}\n",
    "a set": b"env: {options: {a: !!set {b, c}}}\n",
    "a time": b"env: {options: {a: !!timestamp 2020-99-99}}\n",
    "huge number": b"trainer: {seed: " + b"9" * 5000 + b"}",
    "a date": b"actor: {lr: 2020-01-01}\n",
    "list of settings": b"actor: [lr, 1]\n",
    "empty section": b"actor:\n",
    "number as key": b"1: 2\n",
    "null as key": b"null: 2\n",
    "octal": b"trainer: {seed: 010}\n",
    "sixties": b"trainer: {seed: 1:30}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_named_or_its_setting_is(tmp_path, capsys, name):
    path = tmp_path / "bad.yaml"
    path.write_bytes(FILES[name])
    line = refused(capsys, ["train", str(path)], "")
    keys = re.findall(rb"\w+", FILES[name])
    assert "bad.yaml" in line or any(key.decode("latin-1") in line for key in keys)


WORDS = [
    (["configs", "."], "config file '.' cannot be read: Is a directory"),
    (["fly"], "fly"),
    (["--fly"], "--fly"),
    (["train"], "CONFIG"),
    (["train", ""], "directory"),
    (["train", "."], "directory"),
    (["train", "/dev/null"], "/dev/null"),
    (["train", "nowhere.yaml"], "nowhere.yaml"),
    (["train", "[red]nowhere[/red].yaml"], "[red]nowhere[/red].yaml"),
    (["train", ":smile:.yaml"], ":smile:.yaml"),
    (["train", "a\0b"], "a"),
    (["train", "x" * 5000], "xxx"),
    (["train", "FILE", "actor.lr"], "actor.lr"),
    (["train", "FILE", "=3"], "=3"),
    (["train", "FILE", "="], "="),
    (["train", "FILE", ""], "override"),
    (["train", "FILE", "--actor.lr=3"], "--actor.lr=3"),
    (["train", "FILE", "--actor.lr", "3"], "--actor.lr"),
    (["train", "FILE", "--", "--actor.lr=3"], "--actor.lr=3"),
    (["train", "FILE", "actor.lr", "=", "3"], "actor.lr"),
    (["train", "FILE", "FILE"], "good.yaml"),
    (["train", "FILE", "--res"], "--res"),
    (["train", "FILE", "--over"], "--over"),
    (["train", "FILE", "--dry-run=yes"], "--dry-run"),
    (["train", "FILE", "--all"], "--all"),
    (["train", "FILE", "env.name=a:b:c"], "a:b:c"),
    (["train", "FILE", "env.name=:"], "':'"),
    (["train", "FILE", "env.name=[red]"], "env.name"),
    (["train", "FILE", "env.name='[red]x[/red]'"], "[red]x[/red]"),
    (["train", "FILE", "env.name=':smile:'"], ":smile:"),
    (["train", "FILE", "env.name=subprocess:check_output"], "subprocess"),
    (["train", "FILE", "env.name=sys:exit"], "sys:exit"),
    (["train", "FILE", "env.name=os:abort"], "os:abort"),
    (["train", "FILE", "env.name=nowhere:make"], "nowhere"),
    (["train", "FILE", "env.name=__main__:nothing"], "nothing"),
    (["train", "FILE", "env.name=../x:y"], "../x:y"),
    (["train", "FILE", "env.name=multihop", "env.options.a=1"], "env.options"),
    (["train", "FILE", "algorithm.name=grop"], "grop"),
    (["train", "FILE", "algorithm.name=os:getcwd"], "os:getcwd"),
    (["train", "FILE", "algorithm.name=a:b"], "a:b"),
    (["train", "FILE", "algorithm.options.a=1"], "algorithm.options"),
    (["train", "FILE", "model.name=os:getcwd"], "os:getcwd"),
    (["train", "FILE", "model.name=tiny"], "tiny"),
    (["train", "FILE", "model.preset=tini"], "tini"),
    (["train", "FILE", "model.freeze='('"], "model.freeze"),
    (["train", "FILE", "model.freeze=nothing"], "model.freeze"),
    (["train", "FILE", "model.lora.rank=2", "model.lora.target='('"], "model.lora.target"),
    (["train", "FILE", "model.num_kv_heads=3"], "num_kv_heads"),
    (["train", "FILE", "env.name=wiki_search"], "model.path"),
    (["train", "FILE", "env.name=wiki_search", "model.path=nowhere/model"], "nowhere/model"),
    (["train", "FILE", "env.name=wiki_search", "model.path=pypi:steprl-no-such"], "steprl-no-such"),
    (["train", "FILE", "env.name=wiki_search", "model.path='pypi:'"], "pypi:"),
    (["train", "FILE", "env.name=wiki_search", "model.path=nowhere.gguf"], "nowhere.gguf"),
    (["train", "FILE", "env.name=wiki_search", "env.wiki_search.questions=no.jsonl"], "questions"),
    (["train", "FILE", "trainer.logger=tensorbord"], "tensorbord"),
    (["train", "FILE", "trainer.seed=4294967296"], "trainer.seed"),
    (["train", "FILE", "trainer.seed=-1"], "trainer.seed"),
    (["train", "FILE", "trainer.init_from=nowhere"], "nowhere"),
    (["train", "FILE", "sft.steps=1", "sft.data=nowhere.jsonl"], "chat template"),
    (["train", "FILE", "mesh.fsdp=3"], "8 devices"),
    (["train", "FILE", "mesh.data=0"], "mesh"),
    (["train", "FILE", "mesh.fsdp=1000000"], "devices"),
    (["train", "FILE", "algorithm.name=appo", "rollout.n=2", "actor.ppo_mini_batch_size=8",
      "actor.clip_ratio_c=0", "model.value_head=none"], "actor.clip_ratio_c"),
    (["train", "FILE", "actor.use_kl_loss=true", "actor.kl_loss_type=kl"], "kl_loss_type=kl"),
    (["sft", "FILE", "sft.steps=0"], "sft.steps"),
    (["sft", "FILE", "sft.steps=1", "sft.data=."], "chat template"),
    (["eval"], "RUN|MODEL|CONFIG"),
    (["eval", ""], "not a run"),
    (["eval", "nowhere"], "nowhere"),
    (["eval", "FILE", "--step", "3"], "good.yaml is a configuration"),
    (["eval", "nowhere", "--n", "8"], "--n"),
    (["eval", "nowhere", "--tasks", "x"], "--tasks"),
    (["eval", "nowhere", "--tasks", "1.5"], "--tasks"),
    (["eval", "nowhere", "--tasks", "0"], "--tasks"),
    (["eval", "nowhere", "--tasks", "-3"], "--tasks"),
    (["eval", "nowhere", "--tasks"], "--tasks"),
    (["eval", "nowhere", "--step", "x"], "--step"),
    (["rollout", "nowhere", "--tasks", "0"], "--tasks"),
    (["rollout", "nowhere", "--first", "x"], "--first"),
    (["rollout", "[bold]nowhere[/]"], "[bold]nowhere[/]"),
    (["audit", "nowhere"], "nowhere"),
    (["export", "nowhere"], "FOLDER"),
    (["export", "nowhere", "out"], "nowhere"),
    (["export", "nowhere", "out", "--dtype", "int8"], "int8"),
    (["serve"], "RUN|MODEL|CONFIG"),
    (["serve", "nowhere", "--port", "x"], "--port"),
    (["serve", "nowhere", "--port", "99999"], "--port"),
    (["serve", "nowhere", "--bogus"], "--bogus"),
    (["chat", "nowhere", "--temperature", "-1"], "--temperature"),
    (["chat", "nowhere", "--temperature", "nan"], "--temperature"),
    (["chat", "nowhere", "--max-tokens", "0"], "--max-tokens"),
    (["chat", "nowhere", "extra"], "extra"),
    (["chat", "nowhere", "extra=1"], "extra=1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "word"), WORDS, ids=[" ".join(w)[:60].replace("\0", "0") for w, _ in WORDS]
)
def test_a_bad_word_is_named(file, tmp_path, monkeypatch, capsys, words, word):
    monkeypatch.chdir(tmp_path)
    arguments = [str(file) if item == "FILE" else item for item in words]
    if words[0] in ("train", "sft") and len(words) > 2:
        arguments[2:2] = SMALL
    refused(capsys, arguments, word)
    assert list(tmp_path.iterdir()) == []  # no run directory


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (SystemExit(0), "error: code that was run, such as an environment's, left with 0"),
        (
            MemoryError("Unable to allocate 1 TiB"),
            "error: not enough memory: try a smaller rollout",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore"), "error: not enough memory"),
        (
            ValueError("[red]a[/red] :smile: a:b:c \x1b[31m"),
            r"error: [red]a[/red] :smile: a:b:c \x1b[31m",
        ),
        (ValueError(""), "error: ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_a_command_is_said(file, capsys, monkeypatch, raised, said):
    def fails(options, console):
        raise raised

    monkeypatch.setattr(training, "_train", fails)
    assert main(["train", str(file)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(said) and len(out.strip().splitlines()) == 1


def test_an_error_of_the_project_itself_keeps_its_traceback(file, monkeypatch):
    def fails(options, console):
        raise RuntimeError("a bug")

    monkeypatch.setattr(training, "_train", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", str(file)])


@pytest.mark.parametrize(
    "setting", ["trainer.logger=tensorboard", "trainer.logger=[jsonl,tensorboard]"]
)
def test_a_logger_whose_package_is_missing_is_found_before_a_run_is_made(
    file, tmp_path, monkeypatch, capsys, setting
):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "tensorboardX" else there(name, *a),
    )
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        refused(capsys, ["train", str(file), *SMALL, setting, *more], "pip install tensorboardX")
    assert list(tmp_path.iterdir()) == []


def test_there_are_many():
    assert len(SETTINGS) + len(INTEGERS + NUMBERS) + len(FILES) + len(WORDS) > 300
