"""The comparison on `household`: runs end when their tokens are spent, are kept, and are compared."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
BUDGET = 100


@pytest.fixture(scope="module")
def methods():
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))  # as running the script does
    path = BENCHMARKS / "household_methods.py"
    spec = importlib.util.spec_from_file_location("household_methods", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def size(methods):
    return methods.QUICK._replace(budget=BUDGET)


def put(methods, folder, ends):
    """Runs whose success rises in a line from that of the warm start to an end."""
    (folder / "warm.json").write_text(json.dumps({"success": 0.2, "seconds": 1.0}))
    for method, of_seeds in ends.items():
        for seed, end in enumerate(of_seeds):
            iterations = {"tokens": [60.0, 120.0], "clipped": [0.0, 0.1]}
            one = {"tokens": [120.0], "success": [end], "iterations": iterations, "seconds": 60.0}
            methods.file_of(method, seed, folder).write_text(json.dumps(one))


def test_the_table_compares_ends_and_areas(methods, size, tmp_path):
    put(methods, tmp_path, {"steppo": [0.8, 0.8], "branpo": [0.5, 0.5]})
    runs = methods.read(size, tmp_path)
    rows = {row["name"]: row for row in methods.table(runs, BUDGET)}
    assert rows["steppo: success at the end"]["value"] == pytest.approx(0.8)
    difference = rows["steppo less branpo, success at the end"]
    assert [difference["value"], *difference["spread"]] == pytest.approx([0.3, 0.3, 0.3])
    # A line from 0.2 at 0 tokens to 0.8 at 120 has its mean over 100 at 50 tokens.
    assert rows["steppo: area under the curve"]["value"] == pytest.approx(0.45)
    assert rows["branpo: tokens sampled"]["value"] == pytest.approx(0.12)
    assert rows["branpo: share of tokens clipped"]["value"] == pytest.approx(0.05)


def test_seeds_that_differ_make_an_interval(methods, size, tmp_path):
    put(methods, tmp_path, {"steppo": [0.4, 0.8], "branpo": [0.5, 0.5]})
    rows = {row["name"]: row for row in methods.table(methods.read(size, tmp_path), BUDGET)}
    low, high = rows["steppo: success at the end"]["spread"]
    assert low == pytest.approx(0.4) and high == pytest.approx(0.8)


def test_curves_are_drawn(methods, size, tmp_path):
    put(methods, tmp_path, {"steppo": [0.4, 0.8], "branpo": [0.5, 0.6]})
    drawn = methods.draw(methods.read(size, tmp_path), tmp_path / "curves.png")
    assert drawn.stat().st_size > 10_000


def test_finished_runs_are_not_run_again(methods, size, tmp_path, monkeypatch):
    put(methods, tmp_path, {"steppo": [0.4, 0.8], "branpo": [0.5]})
    asked = []
    monkeypatch.setattr(
        methods, "run", lambda method, seed, *_: asked.append((method, seed)) or 1.0
    )
    first = methods.run_all(size, [], tmp_path, workers=1)
    assert asked == [("branpo", 1)]
    assert methods.run_all(size, [], tmp_path, workers=1) > first  # minutes add up over cuts


def test_runs_of_other_settings_are_not_mixed(methods, size, tmp_path):
    methods._check_same(size, [], tmp_path)
    methods._check_same(size._replace(seeds=5), [], tmp_path)  # more runs of the same
    others = (size._replace(budget=7), size._replace(clip_fraction=0.5))
    for changed, overrides in (*((other, []) for other in others), (size, ["actor.lr=1e-3"])):
        with pytest.raises(SystemExit, match="other settings"):
            methods._check_same(changed, overrides, tmp_path)


@pytest.mark.parametrize("name", ["steppo", "ppo", "grpo", "gigpo", "branpo"])
def test_settings_are_the_same_but_for_the_method(methods, name, tmp_path):
    config = methods.config_of(name, methods.Size(), [], tmp_path)
    other = methods.config_of("grpo", methods.Size(), [], tmp_path)
    assert config.algorithm.name == name
    for part in ("env", "model", "actor", "critic", "rollout", "sft", "eval"):
        assert getattr(config, part) == getattr(other, part)


def test_a_run_is_one_of_training_with_a_budget(methods, tmp_path):
    warm = methods.config_of("grpo", methods.Size(), [], tmp_path)
    config = methods.config_of("grpo", methods.Size(), [], tmp_path, seed=2)
    assert warm.sft.steps > 0 and config.sft.steps == 0
    assert config.trainer.init_from == str(tmp_path / "warm") and config.trainer.seed == 2
    assert (config.trainer.token_budget, config.actor.clip_fraction) == (240_000, 0.1)
    assert (config.actor.lr_schedule, config.actor.min_lr_ratio) == ("linear", 0.1)


def test_a_curve_is_read_from_the_metrics_of_a_run(methods):
    names = ("actor/pg_clipfrac", "actor/clip_ratio", "timing_s/gen", "timing_s/update")
    rows = [dict.fromkeys(names, 0.1) | {"token/total": 60.0 * i} for i in (1, 2, 3)]
    rows[2][methods.SUCCESS] = 0.7
    found = methods.curve_of(rows)
    assert (found["tokens"], found["success"]) == ([180.0], [0.7])
    assert found["iterations"]["tokens"] == [60.0, 120.0, 180.0]


@pytest.mark.slow
@pytest.mark.full
def test_a_run_ends_when_its_tokens_are_spent(methods, size, tmp_path):
    size = size._replace(seeds=1, budget=200)
    methods.run_all(size, [], tmp_path, workers=1)
    runs = methods.read(size, tmp_path)
    for method in size.methods:
        (one,) = runs[method]
        tokens = one["iterations"]["tokens"]
        assert tokens[-1] >= size.budget and (len(tokens) == 1 or tokens[-2] < size.budget)
        assert one["tokens"][-1] == tokens[-1] and len(one["tokens"]) == len(one["success"])
    assert methods.table(runs, size.budget)
