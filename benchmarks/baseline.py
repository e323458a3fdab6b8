"""Compares the ratios of a run of the benchmarks with those that are committed for this class of machine.

    python -m benchmarks.baseline .benchmarks/latest.json [--update]

`make bench` calls it. A ratio (`race` in conftest.py: how many times faster than the peer, both in turns in one process) says
more than seconds, which follow the load of the machine. A class is the processor's name and how many of them may be used;
its ratios stand in `results/<class>/ratios.json`. One that falls by more than the tolerance is a regression: exit status 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from algoperf_torch.runner.hardware import cpu_model, usable_cpus

FOLDER = Path(__file__).parent / "results"
TOLERANCE = 0.3  # other work on the machine moves a ratio by more than that where one side uses more processors


def machine_class() -> str:
    """Such as `intel-xeon-platinum-8481c-2`."""
    return f"{re.sub(r'[^a-z0-9]+', '-', cpu_model().lower()).strip('-')}-{usable_cpus()}"


def ratios_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The ratios in a report of pytest-benchmark, by benchmark."""
    found = {row["fullname"]: row["extra_info"].get("ratio") for row in results["benchmarks"]}
    return {name: float(ratio) for name, ratio in sorted(found.items()) if ratio is not None}


def regressions(ratios: Mapping[str, float], baseline: Mapping[str, float], tolerance: float) -> list[str]:
    """Names of the benchmarks whose ratio is below its baseline by more than the tolerance."""
    return [name for name, ratio in ratios.items() if name in baseline and ratio < (1 - tolerance) * baseline[name]]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline", description=__doc__)
    parser.add_argument("results", type=Path, help="what `pytest --benchmark-json` wrote")
    parser.add_argument("--update", action="store_true", help="make the ratios of this run the baseline")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the baselines")
    options = parser.parse_args(arguments)
    if not options.results.is_file():
        print(f"There is no {options.results}. Run `make bench`, which writes it.", file=sys.stderr)
        return 2
    results = json.loads(options.results.read_text())
    ratios, machine = ratios_of(results), machine_class()
    file = options.folder / machine / "ratios.json"
    known = json.loads(file.read_text())["ratios"] if file.exists() else {}
    if options.update:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(conditions(results) | {"ratios": {**known, **ratios}}, indent=1) + "\n")
        print(f"{len(ratios)} ratios are now the baseline of {machine}: {file}")
        return 0
    if not known:
        print(f"No baseline for machines of the class {machine}, so nothing is compared. Add one with --update.")
        return 0
    worse = regressions(ratios, known, options.tolerance)
    for name, ratio in ratios.items():
        before = f"{known[name]:.2f}" if name in known else "new"
        print(f"{'WORSE' if name in worse else 'ok':<6}{name}: {ratio:.2f} (baseline {before})")
    for name in sorted(known.keys() - ratios.keys()):
        print(f"      {name}: not run")
    if worse:
        print(f"{len(worse)} of {len(ratios)} ratios fell by more than {options.tolerance:.0%}.", file=sys.stderr)
    return 1 if worse else 0


def conditions(results: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {
        "script": "make bench",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": (results.get("commit_info") or {}).get("id"),
        "processor": cpu_model(),
        "processors": usable_cpus(),
        "load_average": os.getloadavg()[
            1
        ],  # over five minutes: that of the benchmarks, and of whatever ran beside them
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
