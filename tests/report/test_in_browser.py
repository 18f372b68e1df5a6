"""The page of a run in a browser: it draws itself, is used with keys, and runs no text of a run.

Skipped where there is no Chromium, unless STEPRL_BROWSER=required, and with STEPRL_BROWSER=off.
"""

import os

import pytest

from steprl.report import write_report
from tests.report.chromium import Chromium, find
from tests.report.made import ODD_TEXTS, odd_run, plain_run
from tests.report.made import settings as write_settings

pytestmark = pytest.mark.slow
_wanted = os.environ.get("STEPRL_BROWSER", "")
if _wanted == "off" or (find() is None and _wanted != "required"):
    pytest.skip("there is no Chromium, or it is switched off", allow_module_level=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return write_report(odd_run(tmp_path_factory.mktemp("runs") / "odd"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_report(plain_run(tmp_path_factory.mktemp("runs") / "plain", 2, 10, 4, 3, 8))


@pytest.fixture(autouse=True)
def nothing_is_asked_for_and_nothing_goes_wrong(browser):
    yield
    assert browser.requests() == [] and browser.complaints() == []
    assert browser.evaluate("document.documentElement.dataset.error ?? null") is None


def text_of(browser, selector):
    return browser.evaluate(f"document.querySelector('{selector}').innerText")


def count(browser, selector):
    return browser.evaluate(f"document.querySelectorAll('{selector}').length")


def title(browser):
    return text_of(browser, "#detail h3").split("\n")[0].split("solved")[0].removesuffix("not ")


def fill(browser, name, value):
    """Sets a filter as a user does, and waits for the list."""
    browser.evaluate(
        f"(() => {{ const field = document.querySelector('#filters [name={name}]'); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    browser.wait(f"new URLSearchParams(location.hash.slice(1)).get({name!r}) === {value or None!r}"
                 .replace("None", "null"))  # fmt: skip


def test_curves_evaluations_and_settings_are_drawn(browser, plain):
    browser.open(plain)
    titles = browser.evaluate(
        "[...document.querySelectorAll('#panels h3')].map(x => x.firstChild.data)"
    )
    assert titles[:3] == ["Success", "Return", "Response length"] and "Faults" in titles
    assert count(browser, "#panels path.line") >= len(titles)
    assert count(browser, "#panels path.band") == 3  # success twice, and F1
    assert "0.7 [0.6, 0.8] at 2" in text_of(browser, "#evaluations")
    assert "trainer.seed" in text_of(browser, "#changed")
    assert "0.7" in text_of(browser, "#tiles")
    assert count(browser, "#other-panels .panel") == 0  # drawn when it is opened
    browser.evaluate("document.querySelector('#other-curves').open = true")
    browser.wait("document.querySelectorAll('#other-panels .panel').length === 2")


def test_a_curve_is_read_off_with_the_arrow_keys(browser, plain):
    browser.open(plain)
    browser.evaluate("document.querySelectorAll('#panels svg')[1].focus()")
    at_end = text_of(browser, "#panels .panel:nth-child(2) .legend")
    browser.press("ArrowLeft")
    assert at_end.endswith("1") and text_of(
        browser, "#panels .panel:nth-child(2) .legend"
    ).endswith("0.5")


def test_filters_choose_what_is_listed_and_stand_in_the_address(browser, plain):
    browser.open(plain)
    assert text_of(browser, "#count") == "80 trajectories"
    assert count(browser, ".row") < 40  # only those that are seen are drawn
    fill(browser, "success", "yes")
    solved = int(text_of(browser, "#count").split()[0])
    assert 0 < solved < 80 and title(browser) == "Task 0, attempt 0"
    fill(browser, "iteration", "2")
    assert 0 < int(text_of(browser, "#count").split()[0]) < solved
    fill(browser, "least", "2")
    assert text_of(browser, "#count") == "0 of 80 trajectories"
    assert "None of them" in text_of(browser, "#rows")
    browser.evaluate("document.querySelector('nav a').click()")
    assert "iteration=2" in browser.evaluate("location.hash")  # links of the page leave it alone
    browser.open(plain, "success=no&iteration=2&open=41")
    assert browser.evaluate("document.querySelector('[name=success]').value") == "no"
    assert title(browser) == "Task 10, attempt 1"


def test_faults_and_ends_are_filtered(browser, odd):
    browser.open(odd, "fault=yes")
    assert text_of(browser, "#count") == "2 of 9 trajectories"
    assert "KeyError: 'lamp'" in text_of(browser, "#detail .fault")
    assert count(browser, "#detail .token.masked") == 5
    browser.press("j")
    assert "failed to begin" in text_of(browser, "#detail")
    browser.open(odd, "stop=env_crash")
    assert text_of(browser, "#count") == "2 of 9 trajectories"


def test_a_search_looks_into_observations_actions_and_faults(browser, odd):
    browser.open(odd)
    for text, found in (
        ("a line OF a page", 1),
        ("lamp", 1),
        ("</script><script>", 1),
        ("xyzzy", 0),
    ):
        fill(browser, "text", text)
        assert text_of(browser, "#count") == f"{found} of 9 trajectories", text


def test_steps_show_their_numbers_and_tokens_their_colours(browser, plain):
    browser.open(plain, "open=4")
    assert count(browser, ".step") == 3 and count(browser, ".step .token") == 24
    for name in ("reward", "return", "value", "target", "advantage"):
        assert name in text_of(browser, "#step0 .numbers")
    colours = (
        "[...document.querySelectorAll('.token')].map(x => getComputedStyle(x).backgroundColor)"
    )
    by_advantage = browser.evaluate(colours)
    assert len(set(by_advantage)) > 10  # this one has advantages of tokens
    seen = [by_advantage]
    for key in ("gap", "reference", "entropy", "surprise"):
        browser.press("c")
        assert browser.evaluate("document.querySelector('[name=colour]:checked').value") == key
        seen.append(browser.evaluate(colours))
    assert len({tuple(one) for one in seen}) == 5
    assert browser.evaluate("location.hash").endswith("colour=surprise")
    browser.press("j")  # the choice stays
    assert browser.evaluate("document.querySelector('[name=colour]:checked').value") == "surprise"


def test_a_file_of_the_first_format_shows_what_it_has(browser, odd):
    browser.open(odd, "open=8")
    assert count(browser, ".step") == 5 and count(browser, ".step .token") == 5
    assert browser.evaluate("document.querySelector('[name=colour]:checked')") is None
    assert "line 6 is not a step" in text_of(browser, "#notes")


def test_children_stand_below_their_parent_and_are_jumped_to(browser, odd):
    browser.open(odd, "open=0")
    lanes = browser.evaluate("[...document.querySelectorAll('.lane text')].map(x => x.textContent)")
    assert [lane.split(" · ")[0] for lane in lanes] == [f"attempt {i}" for i in range(4)]
    assert "from step 3, after 3 tokens · score 0.75 · preferred" in lanes[1]
    assert count(browser, ".lane.current") == 1
    # A branch draws its own steps only: 5, 4 - 2, 6 - 3 and 3 - 1.
    assert browser.evaluate(
        "[...document.querySelectorAll('.lane')].map(x => x.querySelectorAll('circle').length)"
    ) == [5, 2, 3, 2]
    browser.evaluate("document.querySelectorAll('.lane')[2].focus()")
    browser.press("Enter")
    assert title(browser) == "Task 0, attempt 2"
    assert "branches off 0-1 here" in text_of(browser, "#step3")
    browser.open(odd, "open=7")
    assert "Branched off from 3-9" in text_of(browser, "#detail")


def test_odd_texts_are_shown_as_text(browser, odd):
    browser.open(odd, "open=6")
    assert browser.evaluate("document.documentElement.dataset.hacked ?? null") is None
    shown = browser.evaluate("[...document.querySelectorAll('.read')].map(x => x.textContent)")
    assert shown[0] == ODD_TEXTS[0] and shown[1] == ODD_TEXTS[1]
    assert shown[6:9] == ["\\ud800 half", "half \\udfff",
                          "\\u2028\\u2029\\u0085\\u0000\\u001b[31m\\u007f"]  # fmt: skip
    assert shown[9] == "\\u202eabc\\u2066"
    assert count(browser, "#detail img, #detail b:not(header b, .number b), #detail script") == 0
    assert browser.evaluate("getComputedStyle(document.body).display") == "block"


def test_the_page_is_used_with_keys(browser, plain):
    browser.open(plain)
    browser.press("j")
    browser.press("j")
    browser.press("k")
    assert title(browser) == "Task 0, attempt 1"
    browser.press("n")
    browser.press("n")
    assert browser.evaluate("document.activeElement.id") == "step1"
    browser.press("p")
    assert browser.evaluate("document.activeElement.id") == "step0"
    browser.press("/")
    assert browser.evaluate("document.activeElement.name") == "text"
    browser.press("Escape")
    assert browser.evaluate("document.activeElement.id") == "list"
    browser.press("End")
    assert title(browser) == "Task 19, attempt 3"
    active = browser.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
    assert (
        active == "row79"
        and browser.evaluate(f"document.getElementById('{active}').ariaSelected") == "true"
    )
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.id") == "detail"
    browser.press("?")
    assert browser.evaluate("document.getElementById('keys').open") is True


def test_long_texts_are_folded(browser, odd):
    browser.open(odd, "open=7")
    assert len(text_of(browser, ".read")) < 1000
    browser.evaluate("document.querySelector('.more').click()")
    assert len(text_of(browser, ".read")) > 1300
    assert "not understood" in text_of(browser, "#step0")
    assert "cut at the limit" in text_of(browser, "#step0")


def test_light_and_dark(browser, plain):
    browser.open(plain)
    page = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(page)
    for _ in range(2):
        browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    assert browser.evaluate(page) != light


def test_a_run_without_trajectories_says_how_to_get_some(browser, tmp_path):
    write_settings(tmp_path)
    browser.open(write_report(tmp_path))
    assert "trainer.save_trajectories=N" in text_of(browser, "#notes")
    assert "no metrics" in text_of(browser, "#panels")
    assert browser.evaluate("document.getElementById('browser').hidden") is True
