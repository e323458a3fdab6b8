"""Makes the README's picture of a terminal.

Run: `script -qec "make demo" demo.ansi; python docs/images/terminal.py demo.ansi docs/images/demo.png`

Needs Chromium, which draws the page that rich exports.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 118  # characters
CLEAR = "\x1b[2K"  # of the line that the cursor stands on
UP_AND_CLEAR = "\x1b[1A" + CLEAR


def main(source: Path, target: Path) -> None:
    raw = source.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    lines: list[str] = []
    for line in raw.split("\n"):
        for _ in range(line.count(UP_AND_CLEAR)):  # a progress bar takes itself away
            lines.pop()
        if not re.match(r"Script (started|done)", line):
            lines.append(line.rpartition(CLEAR)[2])
    text = Text.from_ansi("\n".join(lines).strip("\n"))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(text, soft_wrap=False, highlight=False)
    page = console.export_html(theme=MONOKAI, inline_styles=True)
    page = page.replace(
        "<body>", '<body style="margin:0;padding:14px;background:#0c0c0c;color:#d9d9d9;font-size:14px">'
    )
    height = 19 * (len(console.render_lines(text, pad=False)) + 1) + 28
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "terminal.html"
        html.write_text(page, encoding="utf-8")
        subprocess.run(
            [
                *["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size=1040,{height}"],
                *[f"--screenshot={target.resolve()}", html.as_uri()],
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
