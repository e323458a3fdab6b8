"""The page in headless Chromium: it loads without a complaint, and what can be clicked, typed and pointed at does its work."""

import json

import pytest

from algoperf_torch.scoring.logs import read_logs
from algoperf_torch.scoring.report import render
from algoperf_torch.scoring.score import score_logs


@pytest.fixture(scope="module")
def report(small, tmp_path_factory):
    root, _ = small
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(
        render(score_logs(read_logs([root], all_columns=True), "v0.5", reference="amber")), encoding="utf-8"
    )
    return path


def names(browser, table="board"):
    rows = f"[...document.querySelectorAll('#{table} tbody tr')]"
    return browser.js(f"{rows}.filter(r => !r.hidden).map(r => r.querySelector('th').innerText.split('\\n')[0].trim())")


def rect(browser, selector):
    return browser.js(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        "const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
    )


def tip(browser, chart):
    return browser.js(f"(t => t.hidden ? null : t.textContent)(document.querySelector('#{chart} .tip'))")


@pytest.mark.parametrize(
    "mode", [{}, {"dark": True}, {"width": 390, "height": 844, "phone": True}], ids=["light", "dark", "phone"]
)
def test_loads_without_complaint(browser, report, mode):
    browser.open(report, **mode)
    assert browser.complaints() == []
    assert browser.js("document.querySelectorAll('.chart svg .line').length") > 10
    assert browser.js("document.documentElement.scrollWidth <= innerWidth"), "the page itself must not scroll sideways"


def test_colours_follow_the_system_and_the_button(browser, report):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(report)
    assert browser.js(paper) == "rgb(255, 255, 255)"
    browser.open(report, dark=True)
    assert browser.js(paper) == "rgb(20, 23, 26)"
    browser.click("#theme")
    assert browser.js(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(browser, report, dark):
    """Contrast of at least 4.5 to 1, as the accessibility guidelines (WCAG 2, AA) ask for."""
    browser.open(report, dark=dark)
    contrast = """
    (selector, back) => {
      const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const a = light(getComputedStyle(document.querySelector(selector)).color);
      const b = light(getComputedStyle(document.querySelector(back)).backgroundColor);
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    for selector, back in (
        ("h1", "body"),
        ("p.soft", "body"),
        ("nav a", "body"),
        (".note", ".note"),
        ("td.best", "td.best"),
        ("td.best small", "td.best"),
    ):
        assert browser.js(f"({contrast})({json.dumps(selector)}, {json.dumps(back)})") >= 4.5, selector


def test_sorting(browser, report):
    browser.open(report)
    by_score = names(browser)
    browser.click("#board th:nth-child(2) button")
    assert names(browser) == sorted(by_score)
    assert browser.js("document.querySelector('#board th:nth-child(2)').getAttribute('aria-sort')") == "ascending"
    browser.click("#board th:nth-child(2) button")
    assert names(browser) == sorted(by_score, reverse=True)
    browser.click("#board th:nth-child(3) button")
    assert names(browser) == by_score[::-1]
    browser.click("#time-table th:nth-child(2) button")
    values = browser.js(
        "[...document.querySelectorAll('#time-table tbody tr td:nth-child(2)')].map(c => Number(c.dataset.value))"
    )
    assert len(values) == 14


def test_sorting_puts_not_reached_last(browser, report):
    browser.open(report)
    browser.click("#time-table th:nth-child(2) button")
    order = browser.js(
        "[...document.querySelectorAll('#time-table tbody tr td:nth-child(2)')].map(c => c.dataset.value)"
    )
    finite = [float(value) for value in order if value != "Infinity"]
    assert finite == sorted(finite)
    assert order[len(finite) :] == ["Infinity"] * (len(order) - len(finite))
    assert len(finite) < len(order)


def test_keyboard_alone_is_enough(browser, report):
    browser.open(report)
    browser.key("Tab")
    assert browser.js("document.activeElement.className") == "skip"
    browser.js("document.querySelector('#board th:nth-child(2) button').focus()")
    browser.key("Enter")
    assert names(browser) == sorted(names(browser))
    browser.js("document.querySelector('#profile-chart svg').focus()")
    browser.key("ArrowRight")
    first = tip(browser, "profile-chart")
    browser.key("ArrowRight")
    assert first.startswith("τ = 1.03")
    assert tip(browser, "profile-chart").startswith("τ = 1.06")
    browser.key("Escape")
    assert tip(browser, "profile-chart") is None
    browser.js("document.querySelector('#curve-chart svg').focus()")
    browser.key("ArrowRight")
    assert "study 0, trial 1" in tip(browser, "curve-chart")


def test_filtering(browser, report):
    browser.open(report)
    browser.js("document.querySelector('[data-for=time-table] input').focus()")
    for letter in "librispeech":
        browser.key(letter)
    assert names(browser, "time-table") == [
        "librispeech_conformer", "librispeech_deepspeech", "librispeech_conformer_layernorm",
    ]  # fmt: skip
    assert browser.js("document.querySelector('[data-for=time-table] [aria-live]').textContent") == "3 of 14"
    for letter in " deep":
        browser.key(letter)
    assert names(browser, "time-table") == ["librispeech_deepspeech"]


def test_profile_shows_on_hover(browser, report):
    browser.open(report)
    left, top, width, height = rect(browser, "#profile-chart svg")
    browser.hover(left + 46 + (width - 60) / 2, top + height / 2)  # the middle of the axis
    text = tip(browser, "profile-chart")
    assert text.startswith("τ = 2.5")
    assert len(text.splitlines()) == 5
    data = json.loads(browser.js("document.getElementById('data').textContent"))
    for line in text.splitlines()[1:]:
        share, name = line.split(" %  ")
        ratios = data["ratios"][data["submissions"].index(name)]
        assert float(share) == pytest.approx(100 * sum(r is not None and r <= 2.5 for r in ratios) / 8, abs=0.51)
    browser.hover(2, 2)
    assert tip(browser, "profile-chart") is None


def test_legend_hides_a_submission_everywhere(browser, report):
    browser.open(report)
    lines = "document.querySelectorAll('#profile-chart .line').length"
    before = browser.js(lines), browser.js("document.querySelectorAll('#curve-chart .line').length")
    browser.click(".legend button")
    assert browser.js(lines) == before[0] - 1
    assert browser.js("document.querySelectorAll('#curve-chart .line').length") < before[1]
    assert browser.js("[...document.querySelectorAll('.legend button[aria-pressed=false]')].length") == 2
    browser.click(".legend button")
    assert browser.js(lines) == before[0]


def test_training_curves(browser, report):
    browser.open(report)
    choose = "(id, value) => { const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event('change')); }"
    data = json.loads(browser.js("document.getElementById('data').textContent"))
    wmt = next(i for i, w in enumerate(data["workloads"]) if w["name"] == "wmt")
    browser.js(f"({choose})('curve-workload', {wmt})")
    expected = sum(c["workload"] == wmt for c in data["curves"])
    assert browser.js("document.querySelectorAll('#curve-chart polyline').length") == expected
    assert "target 30.8" in browser.js("document.querySelector('#curve-chart svg').textContent")
    browser.js(f"({choose})('curve-x', 'steps')")
    assert "steps" in browser.js("document.querySelector('#curve-chart svg').textContent")
    browser.js(f"({choose})('curve-split', 'train')")  # these logs have none
    assert "nothing to show" in browser.js("document.querySelector('#curve-chart svg').textContent")
    browser.js(f"({choose})('curve-split', 'validation')")
    left, top, _, _ = rect(browser, "#curve-chart svg")
    x, y = browser.js(
        "(c => [Number(c.getAttribute('cx')), Number(c.getAttribute('cy'))])(document.querySelector('#curve-chart circle'))"
    )
    browser.hover(left + x, top + y)
    assert "target after" in tip(browser, "curve-chart")
    assert browser.js("document.querySelectorAll('#curve-chart .hot').length") == 1


def test_parallel_coordinates(browser, report):
    browser.open(report)
    assert browser.js("document.querySelectorAll('#tuning-chart polyline').length") == 6  # two trials in three studies
    assert "learning_rate" in browser.js("document.querySelector('#tuning-chart svg').textContent")
    left, top, _, _ = rect(browser, "#tuning-chart svg")
    x, y = browser.js(
        "document.querySelector('#tuning-chart polyline').getAttribute('points').split(' ')[0].split(',').map(Number)"
    )
    browser.hover(left + x, top + y)
    assert "learning_rate = " in tip(browser, "tuning-chart")


def test_charts_follow_the_width(browser, report):
    browser.open(report, width=1280)
    wide = rect(browser, "#profile-chart svg")[2]
    browser.call("Emulation.setDeviceMetricsOverride", width=500, height=800, deviceScaleFactor=1, mobile=False)
    browser.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert rect(browser, "#profile-chart svg")[2] < wide / 2
    assert browser.js("document.querySelector('#profile-chart svg').viewBox.baseVal.width") < 500


def test_names_are_not_executed(browser, tmp_path, write_reached, own_record):
    evil = "<img src=x onerror='document.title=1'>"
    record = own_record(validity={"flags": [{"name": evil, "reason": evil}]}, environment={"gpus": [{"name": evil}]})
    files = {"hparams.json": json.dumps({evil: evil, "lr": 1, "</script><script>document.title=1</script>": 2})}
    for name in (evil, '"><svg onload=document.title=1>'.replace("/", "")):
        write_reached(tmp_path / "runs", name, 0, "digits", 1, 10.0, record=record, files=files)
    path = tmp_path / "r.html"
    path.write_text(
        render(score_logs(read_logs([tmp_path / "runs"], all_columns=True)), title="safe"), encoding="utf-8"
    )
    browser.open(path)
    browser.js("document.querySelector('#tuning-chart svg').focus()")
    browser.key("ArrowRight")
    assert evil in tip(browser, "tuning-chart")
    assert browser.js("document.title") == "safe"
    assert browser.js("document.images.length") == 0
    assert browser.complaints() == []


def test_policy_refuses_foreign_scripts(browser, report, tmp_path):
    path = tmp_path / "tampered.html"
    path.write_text(
        report.read_text(encoding="utf-8").replace("</main>", "<script>document.title='taken'</script></main>"),
        encoding="utf-8",
    )
    browser.open(path)
    assert browser.js("document.title") == "AlgoPerf results"
