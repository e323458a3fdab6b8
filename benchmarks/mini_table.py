"""Prints the table of docs/mini.md: models, data and terms of the mini benchmark, from its version file and the code.

Run: `python benchmarks/mini_table.py`; a test keeps the page equal to it. `--write` puts it there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from algoperf_torch.versions import load_version
from algoperf_torch.workloads.registry import build_workload

PAGE = Path(__file__).parents[1] / "docs" / "mini.md"
BEGIN, END = "<!-- terms: begin -->\n", "<!-- terms: end -->\n"
HEADINGS = (
    "workload", "parameters", "batch", "examples", "metric", "validation target", "test target", "step hint", "period s",
    "budget s",
)  # fmt: skip


def rows() -> list[list[str]]:
    version = load_version("mini")
    table = []
    for name in version.base_workloads:
        terms, workload = version.terms(name), build_workload(name, model_scale="mini")
        parameters = sum(parameter.numel() for parameter in workload.build_model().parameters())
        table.append(
            [
                name,
                f"{parameters:,}",
                str(workload.spec.batch_size),
                f"{version.data[workload.spec.dataset].examples:,}",
                f"{terms.metric} {'↑' if workload.spec.higher_is_better else '↓'}",
                f"{terms.validation_target:g}",
                "" if terms.test_target is None else f"{terms.test_target:g}",
                str(terms.step_hint),
                f"{terms.eval_period_seconds:g}",
                f"{terms.budget_seconds:g}",
            ]
        )
    return table


def text() -> str:
    lines = [list(HEADINGS), ["---", *["---:"] * 3, "---", *["---:"] * (len(HEADINGS) - 5)], *rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page_with(table: str) -> str:
    """The page with this table in place of its own."""
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{head}{BEGIN}{table}{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        PAGE.write_text(page_with(text()), encoding="utf-8")
    else:
        sys.stdout.write(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
