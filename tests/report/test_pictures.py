"""Pictures: they are written, say what they should, and leave nothing behind.

What a picture says is read from its text: an SVG with text kept as text.
"""

import math
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from steprl.metrics import STEP
from steprl.report import plot_credit, plot_learning_curves


@pytest.fixture(autouse=True)
def text_as_text():
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def words(path):
    """The texts of an SVG, in the order in which they were drawn."""
    found = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))
    return [text.replace("&lt;", "<").replace("&gt;", ">").strip() for text in found]


def fills(path):
    """Fill colours of the boxes of an SVG."""
    return re.findall(r'<g id="patch_\d+">\s*<path[^>]*?fill: (#\w+)', path.read_text())


def run_rows(n=6, **extra):
    return [
        {STEP: i, "rollout/success_rate": i / n, "actor/pg_loss": -0.1 * i, **extra}
        for i in range(n)
    ]


def test_learning_curves_draw_what_is_there(tmp_path):
    rows = run_rows()
    rows[0] |= {
        "eval/success_rate": 0.2,
        "eval/success_rate_low": 0.1,
        "eval/success_rate_high": 0.3,
    }
    rows[3] |= {"eval/success_rate": math.nan}  # a gap, not an error
    rows.append({"sft/loss": 1.0})  # a row without a step is not on the axis
    path = plot_learning_curves(rows, tmp_path / "plots" / "curves.svg", "my run")
    text = words(path)
    assert {"my run", "Success rate", "policy loss", "band: 95 % interval", "iteration"} <= {*text}
    assert {"evaluation, sampled", "training rollouts"} <= {*text}
    assert "evaluation, greedy" not in text and "entropy (nats)" not in text


def test_learning_curves_of_several_runs(tmp_path):
    runs = {
        "steppo": run_rows(**{"num_turns/mean": 3.0}),
        "grpo": run_rows(3, **{"eval/success_rate_greedy": 0.5}),
    }
    text = words(plot_learning_curves(runs, tmp_path / "curves.svg"))
    assert {"steppo", "grpo", "evaluation, greedy", "turns per trajectory"} <= {*text}
    assert "band: 95 % interval" not in text


def test_learning_curves_without_a_success_rate(tmp_path):
    text = words(plot_learning_curves([{STEP: 1, "actor/entropy": 0.5}], tmp_path / "c.svg"))
    assert "entropy (nats)" in text and "Success rate" not in text
    with pytest.raises(ValueError, match="no row has any of: eval/success_rate, "):
        plot_learning_curves([{STEP: 1, "other": 2.0}], tmp_path / "d.svg")
    assert not (tmp_path / "d.svg").exists()


TOKENS = ["<go>", " to", "\n", "up", "$x^2$", "down"]
STEP_IDS = np.array([-1, 0, 0, -1, 1, 1])
ADVANTAGE = np.array([math.nan, 0.5, 0.5, math.nan, -1.0, -0.5])
VALUE = np.array([9.0, 0.25, 7.0, 9.0, -0.125, 7.0])
REWARD = np.array([9.0, 0.0, 0.0, 9.0, 0.25, 1.0])


def test_credit_says_the_numbers_of_each_step(tmp_path):
    path = plot_credit(TOKENS, STEP_IDS, ADVANTAGE, VALUE, REWARD, tmp_path / "c.svg", "a title")
    text = words(path)
    assert "a title" in text
    assert {"<go>", "·to", "↵", "up", "$x^2$", "down"} <= {*text}  # a dollar sign starts no formula
    # Mean advantage, value at the first token, sum of rewards; nothing of what was only read.
    zero, one = text.index("step 0"), text.index("step 1")
    assert text[zero + 1 : zero + 4] == ["+0.50", "+0.25", "+0.00"]
    assert text[one + 1 : one + 4] == ["\N{MINUS SIGN}0.75", "\N{MINUS SIGN}0.12", "+1.25"]
    assert text.count("read") == 2


def test_credit_shows_tokens_as_they_are(tmp_path):
    tokens = ["Ġ", "▁", "", " a b\n"]  # signs are text; part of a character; white space
    zero = np.zeros(4)
    drawn = words(plot_credit(tokens, np.zeros(4, int), zero, None, None, tmp_path / "c.svg"))
    assert {"Ġ", "▁", "…", "·a·b↵"} <= {*drawn}


def test_credit_colours_are_centred_at_zero(tmp_path):
    zero = np.where(STEP_IDS >= 0, 0.0, math.nan)
    path = tmp_path / "c.svg"
    drawn = fills(plot_credit(TOKENS, STEP_IDS, zero, None, None, path))
    white = "#f6f7f7"  # the middle of the colour map
    assert drawn.count(white) == 4 and drawn.count("#dadde1") == 2
    one_sided = np.where(STEP_IDS == 1, 3.0, zero)
    drawn = fills(plot_credit(TOKENS, STEP_IDS, one_sided, None, None, path))
    assert drawn.count(white) == 2  # zero stays white though nothing is negative
    assert words(path).count("value") == 0


def test_credit_of_a_long_trajectory_is_cut_with_a_note(tmp_path):
    n = 400
    ids = np.repeat(np.arange(-1, 39), 10)
    ids[:200] = -1
    path = plot_credit(
        [f"t{i}" for i in range(n)], ids, np.zeros(n), None, None, tmp_path / "c.svg"
    )
    text = words(path)
    drawn = [int(t[1:]) for t in text if re.fullmatch(r"t\d+", t)]
    assert len(drawn) == 150
    assert "… 170 more tokens …" in text  # in the middle of the prompt, whose ends stay
    assert drawn[:20] == list(range(20)) and drawn[20:30] == list(range(190, 200))
    assert drawn[-1] == 319 and "… 80 more tokens" in text

    # The cut may fall on the border of a step, and then no empty step follows.
    path = plot_credit(
        [f"t{i}" for i in range(n)], ids, np.zeros(n), None, None, path, max_tokens=40
    )
    assert [t for t in words(path) if "more tokens" in t] == [
        "… 170 more tokens …",
        "… 190 more tokens",
    ]
    assert "step 19" in words(path) and "step 20" not in words(path)


def test_credit_fits_the_page(tmp_path):
    n = 150
    tokens = ["word", " antidisestablishmentarianism" * 3, "\u6f22\u0007"] * 50
    path = plot_credit(
        tokens, np.arange(n) // 30, np.linspace(-1, 1, n), None, None, tmp_path / "c.png"
    )
    pixels = imread(path)
    assert pixels.shape[1] == 1200
    edges = np.concatenate([pixels[:, -10:, :3], pixels[:, :10, :3]], axis=1)
    assert (edges == 1).all()  # nothing runs over the sides
    assert (pixels[-10:, :, :3] == 1).all()


@pytest.mark.filterwarnings("error")  # as of glyphs that the font lacks
def test_credit_of_odd_rows(tmp_path):
    tokens = ["a", "b", "\u6f22"]
    for ids in ([-1, -1, -1], [0, 1, 2], [5, 5, 5]):
        plot_credit(tokens, np.array(ids), np.full(3, math.nan), None, None, tmp_path / "c.png")


def test_credit_refuses_rows_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"value has shape \(5,\); there are 6 tokens"):
        plot_credit(TOKENS, STEP_IDS, ADVANTAGE, VALUE[:5], None, tmp_path / "c.png")
    with pytest.raises(ValueError, match="without tokens"):
        plot_credit([], np.zeros(0, int), np.zeros(0), None, None, tmp_path / "c.png")


def test_pyplot_is_not_touched(plain_env):
    code = "import sys, steprl.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=plain_env, check=True)
