"""The goods of the web shop: the small catalogue, files by path, and both in a run."""

import collections
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from steprl.config import load_config
from steprl.envs.mini_shop import (
    MiniShop,
    demonstrate,
    load_shop,
    mini_shop,
    open_splits,
    small_shop,
)
from steprl.envs.mini_shop.catalogue import GOALS, PER_KIND, goals, products
from steprl.envs.mini_shop.goods import ATTRIBUTES, KINDS
from steprl.envs.mini_shop.search import ProductIndex
from steprl.models import DecoderConfig, make_policy, save_pretrained
from steprl.session import initial_params, setup
from tests.models.chat_models import CHATML, chat_tokenizer

pytest.importorskip("bm25s")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {
    name: DATA / f"webshop_{name}.parquet" for name in ("products", "goals", "other_docs")
}  # WebShop, not shipped
webshop = pytest.mark.skipif(not FILES["products"].exists(), reason="needs the WebShop files")


def solve(env, task):
    """The `info` of the last step, and how many there were."""
    state, _ = env.reset(task)
    while not state.done:
        state, *_, info = env.step(state, demonstrate(env, state))
    return info, state.steps


# The small catalogue.


def test_the_catalogue_is_always_the_same():
    """Python promises the numbers that it is drawn from; a change of the goods changes this."""
    assert zlib.crc32(repr((products(), goals())).encode()) == CHECKSUM
    assert products(1) != products()


CHECKSUM = 3416079458


def test_the_catalogue_has_what_it_should():
    found = products()
    assert len(found) == PER_KIND * len(KINDS) == 153
    assert len({product.asin for product in found}) == len(found)
    for product in found:
        kind = next(kind for kind in KINDS if kind.query == product.query)
        assert kind.low <= product.price < kind.high
        assert set(product.attributes) <= set(kind.attributes)
        assert kind.noun in product.title and product.brand in product.title
        assert [name for name, _ in product.options] == [name for name, _ in kind.options]
        assert all(len(set(values)) == len(values) >= 3 for _, values in product.options)


def test_a_product_says_an_attribute_if_and_only_if_it_has_it():
    """So that the score, which looks for words, means what it says."""
    assert set(ATTRIBUTES) == {name for kind in KINDS for name in kind.attributes}
    for product in products():
        kind = next(kind for kind in KINDS if kind.query == product.query)
        for attribute in kind.attributes:
            assert (attribute in product.text) is (attribute in product.attributes)


def test_an_instruction_names_one_product_and_all_that_counts():
    for goal in goals():
        meant = [p for p in products() if set(goal.attributes) <= set(p.attributes)]
        (product,) = [
            p for p in meant if p.query in goal.instruction or noun(p) in goal.instruction
        ]
        assert product.asin == goal.asin
        assert product.price <= goal.price_upper <= product.price + 20
        assert dict(goal.options).keys() == dict(product.options).keys()
        assert all(value in dict(product.options)[name] for name, value in goal.options)
        said = [*goal.attributes, *(value for _, value in goal.options), f"{goal.price_upper:.0f}"]
        assert all(word in goal.instruction for word in said)


def noun(product):
    return next(kind.noun for kind in KINDS if kind.query == product.query)


def test_splits_are_apart_and_every_product_has_goals():
    train, valid = (mini_shop(split=split).goals for split in ("train", "valid"))
    texts = [{goal.instruction for goal in part} for part in (train, valid)]
    assert not texts[0] & texts[1] and len(train) + len(valid) == len(goals()) == 687
    assert 0.15 < len(valid) / len(goals()) < 0.25
    counted = collections.Counter(goal.asin for goal in goals())
    assert len(counted) == len(products()) and max(counted.values()) == GOALS
    assert mini_shop().shop is mini_shop(split="valid").shop  # made once


@pytest.mark.parametrize("mode", ["small", "full"])
def test_the_demonstrator_solves_every_goal_of_the_catalogue(mode):
    env = MiniShop(small_shop(), goals(), score_mode=mode, context="extend")
    ends = [solve(env, task) for task in range(len(env.goals))]
    assert all(info["success"] and info["score"] == 1.0 for info, _ in ends)
    assert max(steps for _, steps in ends) <= 7


# Files.


def write(folder, name, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_are_read(tmp_path):
    kinds = [
        {"asin": "P1", "title": "Green Mug", "price": 8, "query": "mugs", "attributes": ["oven safe"],
         "options": [{"name": "size", "values": ["small", "large"]}], "category": "kitchen",
         "brand_and_category_tokens": "brand potter kitchen", "body_tokens": "fired twice"},
        {"asin": "P2", "title": "Blue Mug", "price": "9.5", "options": {"size": ["small"]},
         "categories": ["Kitchen", "Mugs"], "features": ["Round."], "reviews": ["Nice."]},
        {"asin": "P3", "title": "Plate"},
    ]  # fmt: skip
    wanted = [
        {"asin": "P1", "instruction": "a mug", "attributes": ["oven safe"], "price_upper": 12.5,
         "goal_options": [{"name": "size", "value": "large"}], "split": "train"},
        {"asin": "P2", "instruction": "blue, below 12.50 dollars", "price_upper": 12.5,
         "goal_options": {"size": "small"}, "split": "dev"},
        {"asin": "P9", "instruction": "unknown", "split": "test"},
    ]  # fmt: skip
    paths = write(tmp_path, "p", kinds), write(tmp_path, "g", wanted)
    others = write(tmp_path, "o", [{"tokens": "mug mug mug"}])
    shop = load_shop(*paths, others)
    first, second, third = shop.products
    assert (first.options, first.attributes) == ((("size", ("small", "large")),), ("oven safe",))
    assert "potter" in first.text and "fired twice" in first.text and first.price == 8.0
    assert (second.price, second.categories) == (9.5, ("Kitchen", "Mugs"))
    assert third.price == 100.0  # WebShop's price of what has none
    assert [goal.split for goal in shop.goals] == ["train", "valid"] and shop.unknown == 1
    assert shop.goals[0].instruction == "a mug, for 12.50 dollars at most"
    assert shop.goals[1].instruction == "blue, below 12.50 dollars"
    assert set(shop.index.search("mug")) == {0, 1}  # never the other document
    envs = open_splits(*paths, others, max_steps=9)
    assert list(envs) == ["train", "valid"] and envs["valid"].max_steps == 9
    assert all(solve(env, 0)[0]["score"] == 1.0 for env in envs.values())


def test_other_documents_weigh_words(tmp_path):
    texts = ["green mug", "blue plate"]
    assert ProductIndex(texts).search("mug plate") == (0, 1)
    assert ProductIndex(texts, ["mug"] * 9).search("mug plate") == (1, 0)  # "mug" says less now


def test_splits_without_a_name_are_drawn_by_checksum(tmp_path):
    rows = [{"asin": "P1", "instruction": f"number {n}"} for n in range(300)]
    paths = write(tmp_path, "p", [{"asin": "P1", "title": "x"}]), write(tmp_path, "g", rows)
    count = collections.Counter(goal.split for goal in load_shop(*paths).goals)
    assert 200 < count["train"] < 275 and 10 < count["valid"] < 60 and 10 < count["test"] < 60


@pytest.mark.parametrize(
    ("product", "goal", "message"),
    [
        ({"title": "x"}, {}, "p.jsonl:1: no asin"),
        ({"asin": "P1"}, {}, "p.jsonl:1: no title"),
        ({"asin": "P1", "title": "x", "price": "cheap"}, {}, "'cheap' is not a number"),
        ({"asin": "P1", "title": "x"}, {"asin": "P1"}, "g.jsonl:1: no instruction"),
        ({"asin": "P1", "title": "x"}, {"asin": "P2", "instruction": "y"}, "none of the 1"),
        ({"asin": "P1", "title": "x"}, {"asin": "P1", "instruction": "y", "split": "a"}, "'a'"),
        ({"asin": "P1", "title": "..."}, {"asin": "P1", "instruction": "y"}, "with a word"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, product, goal, message):
    paths = write(tmp_path, "p", [product]), write(tmp_path, "g", [goal])
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_shop(*paths)


def test_what_is_asked_for_must_exist(tmp_path):
    with pytest.raises(ValueError, match="belong together"):
        mini_shop(products="p.jsonl")
    with pytest.raises(ValueError, match="belong together"):
        mini_shop(other_docs="o.jsonl")
    with pytest.raises(ValueError, match="choose from train"):
        mini_shop(split="dev")
    with pytest.raises(ValueError, match="goals of train, valid"):
        mini_shop(split="test")
    with pytest.raises(FileNotFoundError):
        mini_shop(tmp_path / "p.jsonl", tmp_path / "g.jsonl")


@pytest.fixture(scope="module")
def large():
    pytest.importorskip("pyarrow")
    return load_shop(**FILES)


@webshop
def test_webshop_by_path(large):
    assert (len(large.products), len(large.goals), large.unknown) == (408, 6753, 57)
    assert {goal.split for goal in large.goals} == {"train", "test"}
    assert all(f"{g.price_upper:.2f} dollars" in g.instruction for g in large.goals)


def check_webshop(large, mode, step):
    env = MiniShop(large, large.goals[::step], score_mode=mode, context="extend")
    for task in range(len(env.goals)):
        info, steps = solve(env, task)
        assert info["score"] == 1.0 and info["success"], env.goal(task)
        assert info["bought"] == env.goal(task).asin and steps <= 12


@webshop
@pytest.mark.parametrize("mode", ["small", "full"])
def test_the_demonstrator_solves_webshop(large, mode):
    check_webshop(large, mode, step=13)


@webshop
@pytest.mark.full
@pytest.mark.parametrize("mode", ["small", "full"])
def test_the_demonstrator_solves_all_of_webshop(large, mode):
    check_webshop(large, mode, step=1)


@webshop
def test_what_is_bought_without_looking_is_rarely_right(large):
    """The first hit of the instruction, no option selected: the task is not solved by that."""
    env = MiniShop(large, large.goals[::13])
    scores = []
    for task in range(len(env.goals)):
        state, _ = env.reset(task)
        state, *_ = env.step(state, f"search[{env.goal(task).instruction}]")
        state, *_ = env.step(state, env.admissible_commands(state)[1])
        scores.append(env.step(state, "click[Buy Now]")[5]["score"])
    assert 0.1 < np.mean(scores) < 0.8 and np.mean(np.array(scores) == 1.0) < 0.1


# In a run.


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = chat_tokenizer(CHATML)
    config = DecoderConfig(
        vocab_size=len(tokenizer), d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        d_ff=24, value_head="none",
    )  # fmt: skip
    params = jax.jit(make_policy(config).init)(jax.random.key(0))
    save_pretrained(folder, config, params, tokenizer=tokenizer, context_length=4096)
    return setup(load_config(None, [
        "env.name=mini_shop", "env.mini_shop.max_steps=2", f"model.path={folder}",
        "env.mini_shop.tool_call=false", "env.mini_shop.history_steps=1",
        "rollout.batch_size=8", "rollout.response_length=64", "rollout.context_length=2048",
        "actor.ppo_mini_batch_size=8", "sft.batch_size=8",
    ]))  # fmt: skip


def test_a_run_has_its_splits_and_demonstrations(session):
    player = session.player
    assert player.splits == ("train", "valid") and dict(player.sizes) == {
        "train": 548,
        "valid": 139,
    }
    packed = player.demonstrate(jax.random.key(1), np.arange(8))
    text = player.tokenizer.decode(np.asarray(packed.tokens_NT)[0].tolist())
    assert "Shopping Instruction" in text and "search[" in text


@pytest.mark.slow
def test_a_policy_plays_it(session):
    params = initial_params(session)
    batch = session.player.play(params, jax.random.key(0), np.arange(8), np.zeros(8, int))
    assert np.asarray(batch.mask_NS).sum() == 16 and bool(np.asarray(batch.truncated_NS).any())
    assert set(batch.metrics_N) == {"score", "success", "bought"}
    assert np.asarray(batch.reward_NS).min() == pytest.approx(-0.1)
