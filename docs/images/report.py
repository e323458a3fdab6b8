"""Makes the pictures of reports in docs/scoring.md, and looks at each page for complaints on its console.

Run: `make demo; python docs/images/report.py OFFICIAL runs/demo docs/images`

OFFICIAL is the directory of the published v0.5 self-tuning logs (submissions inside). Needs Chromium, which the tests of the
report drive (tests/scoring/report/conftest.py).
"""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from algoperf_torch.scoring.logs import read_logs
from algoperf_torch.scoring.report import render
from algoperf_torch.scoring.score import score_logs

DRIVER = Path(__file__).parents[2] / "tests" / "scoring" / "report" / "conftest.py"
WIDTH, MARGIN = 1280, 12  # pixels
PHONE = {"width": 390, "height": 844, "phone": True}


def browser(profile: str) -> Any:
    """The headless Chromium that the tests drive."""
    spec = importlib.util.spec_from_file_location("report_driver", DRIVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        sys.exit("No Chromium on this machine: apt-get install chromium")
    return module.Browser(binary, profile)


def picture(page: Any, target: Path, first: str | None, last: str, **mode: Any) -> None:
    """The part of the open page from one section to another, given by their headings; None: from the top."""
    edges = [
        f"document.getElementById({json.dumps(name)}).closest('section').getBoundingClientRect().{edge}"
        for name, edge in ((first, "top"), (last, "bottom"))
        if name is not None
    ]
    *above, bottom = page.js(f"[{', '.join(edges)}].map(y => y + scrollY)")
    top = max(0, above[0] - MARGIN) if above else 0
    clip = {"x": 0, "y": top, "width": mode.get("width", WIDTH), "height": bottom + MARGIN - top, "scale": 1}
    data = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
    target.write_bytes(base64.b64decode(data))


def open_page(page: Any, path: Path, **mode: Any) -> None:
    page.open(path, **mode)
    if complaints := page.complaints():
        sys.exit(f"{path}: {complaints}")


def main(official: Path, demo: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = browser(folder + "/profile")
        pages = {}
        for name, runs, version in (("official", official, "v0.5"), ("demo", demo, None)):
            pages[name] = Path(folder) / f"{name}.html"
            result = score_logs(read_logs([runs], all_columns=True), version)
            titles = {"official": "AlgoPerf v0.5, self-tuning ruleset", "demo": "make demo"}
            pages[name].write_text(render(result, titles[name]), encoding="utf-8")
        open_page(page, pages["official"])
        picture(page, out / "report-leaderboard.png", None, "leaderboard")
        picture(page, out / "report-profile.png", "profiles", "profiles")
        picture(page, out / "report-curves.png", "curves", "curves")
        open_page(page, pages["official"], dark=True)
        picture(page, out / "report-dark.png", "times", "times")
        open_page(page, pages["demo"])
        picture(page, out / "report-demo.png", "curves", "validity")
        open_page(page, pages["demo"], **PHONE)
        picture(page, out / "report-phone.png", None, "profiles", **PHONE)
        page.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
