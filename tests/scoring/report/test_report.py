"""The page without a browser: it holds what it should, loads nothing, and nothing from a log becomes markup."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from algoperf_torch import cli
from algoperf_torch.errors import UsageError
from algoperf_torch.scoring.logs import read_logs
from algoperf_torch.scoring.report import ReportOptions, content, embed, render
from algoperf_torch.scoring.score import score_logs

EVIL = "<img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page(root, *arguments, **options):
    return render(score_logs(read_logs([root], all_columns=True), *arguments, **options))


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture
def own_runs(tmp_path, write_reached, own_record):
    result = {"submission_seconds": 100.0, "data_wait_seconds": 10.0}
    more = {
        "result": result,
        "evaluation_seconds": 20.0,
        "logging_seconds": 1.0,
        "setup_seconds": {"model": 2.0, "compile": 3.0},
        "submission": {
            "reference": "mine.py:Mine",
            "digest": "ab" * 32,
            "sources": ["/home/me/my file.py", "javascript:alert(1)"],
        },
        "validity": {
            "flags": [{"name": "data_stall", "reason": "10 % of the time", "severity": "warn"}],
            "intervals": [{"compile_seconds": 4.0}, {"compile_seconds": 6.0}, "junk"],
        },
    }
    for study in range(3):
        files = {"hparams.json": json.dumps({"lr": 0.1 * (study + 1), "betas": [0.9, 0.99], "schedule": "cosine"})}
        write_reached(tmp_path, "fast", study, "digits", 1, 10.0 + study, record=own_record(**more), files=files)
        write_reached(tmp_path, "slow", study, "digits", 1, 20.0 + study, record=own_record(), files=files)
    write_reached(tmp_path, "slow", 3, "digits", 1, 1.0, record=own_record(status="data_error", void=True))
    return tmp_path


def test_loads_nothing(small):
    root, _ = small
    text = page(root, "v0.5")
    elements = Elements(text)
    assert not any("src" in attributes for _, attributes in elements.found)
    assert not elements.of("link")
    assert all(a["href"].startswith(("#", "file:///")) for a in elements.of("a"))
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "url(" not in text.replace("url(#curve-clip)", "")
    (policy,) = [meta["content"] for meta in elements.of("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")


def test_tables_hold_the_scores(small):
    root, expected = small
    text = page(root, "v0.5", reference="amber")
    for score in expected["scores"].values():
        assert f"{float(score):.4f}" in text
    assert "Speedup over amber" in text
    assert 'alt="' not in text
    data = data_of(text)
    assert data["board"][0]["name"] == "amber"
    assert len(data["curves"]) == sum(1 for trial in read_logs([root]).trials if trial.evaluations is not None)


def test_numbers_that_are_not_finite_are_null(small):
    root, _ = small
    data = data_of(page(root, "v0.5"))
    resnet = next(i for i, w in enumerate(data["workloads"]) if w["name"] == "imagenet_resnet")
    assert all(row[resnet] is None for row in data["times"])


def test_own_runs(own_runs):
    text = page(own_runs)
    data = data_of(text)
    assert "data_stall" in text
    assert "void (data_error)" in text
    assert "Test CPU, 2 processors" in text
    assert 'href="file:///home/me/my%20file.py"' in text
    assert "javascript:" not in text.split('<script type="application/json"')[0]
    (spent,) = [row for row in data["phases"] if row["submission"] == "fast"]
    assert [spent[name] for name in content.PHASES] == [80.0, 10.0, 10.0, 20.0, 1.0, 5.0]
    assert data["tuning"][0]["point"] == {"lr": 0.1, "betas.0": 0.9, "betas.1": 0.99, "schedule": "cosine"}
    assert {(row["submission"], row["status"]) for row in data["statuses"]} >= {("slow", "data_error (void)")}


def test_nothing_from_a_log_becomes_markup(tmp_path, write_reached, own_record):
    record = own_record(
        environment={"gpus": [{"name": EVIL}], "os": EVIL, "packages": {"torch": EVIL}},
        validity={"flags": [{"name": EVIL, "reason": f"</script>{EVIL}"}]},
        submission={"reference": EVIL, "digest": EVIL, "sources": [f"/{EVIL}", '/" onmouseover="alert(1)']},
    )
    hparams = {"hparams.json": json.dumps({EVIL: EVIL, "</script>": 1})}
    write_reached(tmp_path, EVIL, 0, "digits", 1, 10.0, record=record, files=hparams)
    write_reached(tmp_path, "{{ 7 * 7 }}", 0, "digits", 1, 11.0, record=record)
    (tmp_path / f"stray{EVIL}").mkdir()
    text = page(tmp_path)
    elements = Elements(text)
    assert not elements.of("img")
    assert len(elements.of("script")) == 2
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert "{{ 7 * 7 }}" in text
    assert EVIL in data_of(text)["submissions"]


@pytest.mark.parametrize("value", ["</script>", "<!--", "]]>", "&lt;", "\u2028", "\ud800", '"'])
def test_embedded_json_cannot_end_its_element(value):
    text = embed({"a": value})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": value}


def test_odd_records_do_not_break_it(tmp_path, write_reached, own_record, write_trial):
    odd = {
        "result": [],
        "setup_seconds": {"a": "x", "b": True, "c": -1},
        "evaluation_seconds": "long",
        "submission": {"digest": 5, "sources": 3},
        "environment": {"packages": [], "git": {"commit": None}},
    }
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record(**odd), files={"hparams.json": "["})
    write_trial(tmp_path, "alpha", 1, seconds=[], values=[])
    write_trial(tmp_path, "alpha", 2, files={"eval_measurements.csv": "broken"})
    write_reached(
        tmp_path,
        "alpha",
        3,
        "digits",
        1,
        math.inf,
        files={"hparams.json": json.dumps({"a": {"b": {"c": {"d": {"e": 1}}}}})},
    )
    text = page(tmp_path, "local")
    assert "1 damaged file could not be read" in text
    assert "is not valid JSON" in json.dumps(data_of(text)["tuning"])


def test_many_evaluations_are_thinned(tmp_path, write_trial, monkeypatch):
    monkeypatch.setattr(content, "MAX_POINTS", 40)
    values = [0.5] * 700 + [0.99] * 300
    write_trial(tmp_path, seconds=[float(i + 1) for i in range(1000)], values=values)
    (curve,) = data_of(page(tmp_path, "local"))["curves"]
    assert len(curve["seconds"]) <= 41
    assert curve["seconds"][0] == 1.0
    assert curve["seconds"][-1] == 1000.0
    assert curve["seconds"][curve["hit"]] == 701.0


def test_many_submissions_are_not_paired(small, monkeypatch):
    root, _ = small
    monkeypatch.setattr(content, "MAX_PAIRS", 5)
    assert "Is one faster than the other?" not in page(root, "v0.5")


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_figures(own_runs, tmp_path, kind, capsys):
    out = tmp_path / "deep" / "figure.html"
    assert cli.main(["report", str(own_runs), "--out", str(out), "--format", kind]) == 0
    written = sorted(path.name for path in out.parent.iterdir())
    assert written == [f"figure_{name}.{kind}" for name in ("curves", "profile", "times")]
    magic = {"png": b"\x89PNG", "pdf": b"%PDF"}[kind]
    assert all(path.read_bytes().startswith(magic) and path.stat().st_size > 4000 for path in out.parent.iterdir())
    assert "figure_profile" in capsys.readouterr().out


def test_figures_with_odd_names(tmp_path, write_reached):
    for name in ("$x_{", "_hidden", EVIL):
        write_reached(tmp_path / "runs", name, 0, "digits", 1, 10.0)
    command = [
        "report",
        str(tmp_path / "runs"),
        "--version",
        "local",
        "--out",
        str(tmp_path / "f.png"),
        "--format",
        "png",
    ]
    assert cli.main(command) == 0


def test_command(own_runs, tmp_path, capsys):
    out = tmp_path / "made" / "here" / "r.html"
    assert cli.main(["report", str(own_runs), "--out", str(out), "--title", "Mine & yours"]) == 0
    assert str(out) in capsys.readouterr().out
    assert "<title>Mine &amp; yours</title>" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "/dev/null/r.html"], "Cannot write /dev/null/r.html"),
        (["--out", "/"], "Cannot write /"),
        (["--submissions", "nobody"], "No submission 'nobody'"),
        (["--version", "v9"], "Unknown benchmark version"),
    ],
)
def test_mistakes(own_runs, arguments, message, capsys):
    assert cli.main(["report", str(own_runs), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_runs():
    with pytest.raises(UsageError, match="algoperf report runs/"):
        ReportOptions(runs=())


def test_names_that_are_not_unicode(tmp_path, write_reached):
    import os

    write_reached(tmp_path / "runs", os.fsdecode(b"caf\xe9"), 0, "digits", 1, 10.0)
    out = tmp_path / "r.html"
    assert cli.main(["report", str(tmp_path / "runs"), "--version", "local", "--out", str(out)]) == 0
    assert "caf" in out.read_text(encoding="utf-8")
