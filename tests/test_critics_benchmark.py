"""What the comparison of critics promises: one thing changed at a time, programs shared, differences kept."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))  # as running the script does

from critic_study import outcome, runs, variants  # noqa: E402
from laboratory import design  # noqa: E402
from pages import critics as page  # noqa: E402


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_the_settings_of_a_variant_are_settings(variant):
    config = variants.config_of("errand-8", variant)
    plain = variants.config_of("errand-8", variants.PLAIN)
    # The critic differs, and nothing else does.
    assert config.env == plain.env and config.rollout == plain.rollout
    assert config.sft == plain.sft and config.actor == plain.actor
    if variant != variants.GRPO:
        assert config.algorithm == plain.algorithm
        assert (config == plain) == (variant == variants.PLAIN)


def test_what_differs_in_numbers_alone_shares_a_program():
    assert variants.program_of("lr_x10") == variants.program_of(variants.PLAIN)
    assert variants.program_of("separate") != variants.program_of(variants.PLAIN)
    assert variants.settings_of("errand-8", "lr_x10")["critic.lr"] == 1e-2
    assert variants.settings_of("errand-8", variants.PLAIN)["critic.lr"] == variants.LR


@pytest.mark.parametrize("scale", variants.SCALES.values(), ids=list(variants.SCALES))
def test_pairs_of_one_program_stand_together(scale):
    pairs = variants.pairs(scale)
    programs = [(cell, variants.program_of(variant)) for cell, variant in pairs]
    changes = sum(a != b for a, b in zip(programs, programs[1:], strict=False))
    assert changes == len(set(programs)) - 1
    assert all(variants.VARIANTS[v].long for cell, v in pairs if cell == variants.LONGEST)
    assert {variants.PLAIN, variants.GRPO} <= {variant for _, variant in pairs}
    assert set(scale.cells) <= set(design.CELLS)


SCALE = variants.Scale(("errand-8",), 4, (variants.PLAIN, "lr_x10", variants.GRPO))


def put_runs(folder, variant, success, rank):
    """Runs that learn at once and stay; the last two iterations come after the budget."""
    budget = design.token_budget("errand-8")
    tokens = np.append(np.linspace(budget / 10, budget, 10), [budget, budget])
    seeds = np.linspace(-0.01, 0.01, SCALE.seeds)
    table = {
        "tokens": np.tile(tokens, (SCALE.seeds, 1)),
        "success": np.repeat((success + seeds)[:, None], 12, axis=1),
        "entropy": np.ones((SCALE.seeds, 12)),
        "explained": np.repeat((rank + seeds)[:, None], 12, axis=1),
        "nonfinite": np.zeros((SCALE.seeds, 12)),
        "heldout": success + seeds,
        "seconds": np.array([60.0]),
    }
    for name in ("success", "explained", "nonfinite"):
        table[name][:, 10:] = np.nan  # nothing was measured while it stood still
    if variant != variants.GRPO:
        table["explained"][:, 0] = -92344.0
        for when in runs.LOOKS:
            for name in ("rank", "ceiling", "true_explained"):
                table[f"{name}_{when}"] = np.append(rank + seeds[1:], np.nan)
    path = runs.file_of("errand-8", variant, SCALE.seeds, folder)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **table)


@pytest.fixture
def found(tmp_path):
    put_runs(tmp_path, variants.PLAIN, 0.5, 0.2)
    put_runs(tmp_path, "lr_x10", 0.7, 0.6)
    put_runs(tmp_path, variants.GRPO, 0.6, 0.0)
    (tmp_path / "errand-8" / "warm.json").write_text('{"success": 0.1, "seconds": 60.0}')
    return outcome.read(SCALE, tmp_path)


def test_differences_are_to_the_plain_critic(found):
    rows = {row["name"]: row for row in outcome.rows(found)}
    assert rows["errand-8: lr_x10: area"]["value"] == pytest.approx(0.7)
    gap = rows["errand-8: lr_x10 less plain: area"]
    assert gap["value"] == pytest.approx(0.2) and gap["spread"][0] > 0.18
    assert rows["errand-8: grpo less plain: last five"]["value"] == pytest.approx(0.1)
    assert "errand-8: plain less plain: area" not in rows


def test_a_method_without_a_critic_has_no_score_of_one(found):
    names = [row["name"] for row in outcome.rows(found) if ": grpo" in row["name"]]
    assert names and not any("rank" in name or "explained" in name for name in names)


def test_a_critic_that_ranks_nothing_counts_as_nothing(found):
    scores = found["errand-8"]["lr_x10"].scores
    assert scores["rank correlation, end"].min() == 0.0
    # One absurd number of an early batch does not stand for a run.
    assert min(y.min() for y in found["errand-8"]["lr_x10"].explained[1]) == -1.0
    np.testing.assert_allclose(scores["explained variance, late"].mean(), 0.6, atol=1e-6)


def test_the_page_shows_what_was_saved(found, tmp_path, monkeypatch):
    results = tmp_path / "results"
    monkeypatch.setattr(outcome.record, "RESULTS", results)
    paths = outcome.save(found, SCALE, "", tmp_path, workers=2)
    assert [path.suffix for path in paths] == [".json", ".png"]
    text = page.in_short(results, "results")
    assert "| critic's rate x 10 (`critic.lr=1e-2`) | **+0.200 [" in text
    assert "| GRPO, no critic | **+0.100 [" in text and "4 seeds" in text and "2 minutes" in text
    assert page.in_short(tmp_path / "nothing", "results") == ""


def test_a_table_with_holes_is_not_saved(found, tmp_path):
    few = {"errand-8": {variants.PLAIN: found["errand-8"][variants.PLAIN]}}
    with pytest.raises(ValueError, match="has no errand-8"):
        outcome.save(few, SCALE, "", tmp_path, workers=2)


@pytest.mark.slow
@pytest.mark.full
def test_a_job_trains_and_looks_twice(tmp_path, monkeypatch):
    small = design.CELLS["errand-4"]._replace(warm_steps=2)
    monkeypatch.setitem(design.CELLS, "errand-4", small)
    for name, value in (("ITERATIONS", 2), ("CHUNK", 1), ("HELDOUT", 4)):
        monkeypatch.setattr(design, name, value)
    for name, value in (("ROWS", 4), ("STATES", 8), ("CONTINUATIONS", 2), ("MIDDLE", 1)):
        monkeypatch.setattr(variants, name, value)
    runs.run("errand-4", variants.PLAIN, 2, tmp_path)
    table = dict(np.load(runs.file_of("errand-4", variants.PLAIN, 2, tmp_path)))
    assert table["tokens"].shape == table["explained"].shape and (table["tokens"][:, 0] > 0).all()
    assert table["heldout"].shape == table["rank_middle"].shape == table["error_end"].shape == (2,)
    assert not table["nonfinite"].any()
