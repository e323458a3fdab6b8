"""`algoperf import-logs SOURCE --out RUNS`: published results in a local leaderboard, as references that nobody changes.

Copied are the files that the format defines, of every trial that the scorer reads. Beside the studies, `imported.json`
(`scoring.logs.MARKER`) says where they come from, which version, ruleset and hardware they belong to, and their digest.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tyro

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.scoring.logs import MARKER, Logs, Severity, Trial, read_logs
from algoperf_torch.scoring.score import reading_progress
from algoperf_torch.scoring.table import parse_object, read_bytes
from algoperf_torch.spec import Ruleset
from algoperf_torch.versions import load_version

_FILES = re.compile(r"(eval_)?measurements\.csv|hparams\.json|(meta_data|flags)_\d+\.json")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Copies official results beside your own runs, as read-only references."""

    source: tyro.conf.Positional[Path]
    """Directory of submissions as published: <submission>/study_<j>/<workload>_<framework>/trial_<i>."""
    out: Path = Path("runs")
    """Directory of runs; a submission becomes <out>/<prefix><submission>."""
    submissions: tuple[str, ...] = ()
    """Only these submissions. Default: all."""
    version: str | None = None
    """Benchmark version of the results. Default: what their flags_<k>.json tell, where they are there."""
    ruleset: Literal["external", "self"] | None = None
    """Tuning ruleset of the results. Default: external where they hold hparams.json."""
    hardware: str | None = None
    """What they ran on. Default: what their meta data say, or else the hardware of the version."""
    prefix: str = "official-"
    """What the names of the copies begin with."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+=-]*", self.prefix):
            raise UsageError(
                f"--prefix {self.prefix!r}: use letters, digits, and . _ + = - only; it names directories."
            )


def main(options: ImportOptions) -> int:
    """Copies and says what. 0, also where all of it is there already."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    with reading_progress() as progress:
        logs = read_logs([options.source], progress=progress)
    for problem in logs.problems:
        if problem.severity is Severity.DAMAGED:
            console.print(f"damaged, copied as it is: {problem}")
    marker: dict[str, Any] = {}
    for folder, trials, copied in import_logs(logs, options):
        marker = read_marker(folder)
        what = f"{len(trials)} trials" if copied else "is there already, unchanged"
        console.print(f"{folder}: {what}; {marker['version']}, {marker['ruleset']} ruleset, {marker['hardware']}")
    console.print(
        f"Beside your own: algoperf report {options.out} --mixed --version {marker['version']} --out report.html"
    )
    return 0


def import_logs(logs: Logs, options: ImportOptions) -> Iterator[tuple[Path, list[Trial], bool]]:
    """Copies each submission: (folder, trials, whether anything was copied).

    Raises `UsageError` where version or ruleset are not told, and where other runs have the name.
    """
    chosen = logs.select(options.submissions) if options.submissions else logs
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in chosen.trials:
        groups[trial.submission].append(trial)
    version = options.version or _version_of(chosen)
    hardware = options.hardware or _hardware_of(chosen, version)
    for name, trials in groups.items():
        facts: dict[str, Any] = {
            "schema_version": 1,
            "source": str(options.source.resolve()),
            "submission": name,
            "version": version,
            "ruleset": options.ruleset or _ruleset_of(trials),
            "hardware": hardware,
            "imported": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        folder = options.out / (options.prefix + name.replace("/", "-"))
        yield folder, trials, _copy(trials, folder, facts)


def _copy(trials: Sequence[Trial], folder: Path, facts: dict[str, Any]) -> bool:
    """Whether the folder is new; it appears as a whole, or not at all."""
    working = folder.with_name(f".importing-{os.getpid()}-{folder.name}")
    try:
        for trial in trials:
            study = working / f"study_{trial.study}" / f"{trial.workload}_{trial.framework}"
            target = study / trial.path.name
            while target.exists():  # a folder of the same name beside it, told apart by a timestamp further up
                target = target.with_name(target.name + ".copy")
            target.mkdir(parents=True)
            for path in sorted(trial.path.iterdir()):
                if _FILES.fullmatch(path.name) and path.is_file():
                    shutil.copyfile(path, target / path.name)
                    (target / path.name).chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        facts["digest"] = digest_of(working)
        (working / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (working / MARKER).chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        if folder.exists():
            _require_same(folder, facts)
            return False
        working.rename(folder)
    except OSError as error:
        raise UsageError(f"Cannot copy {facts['submission']} to {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return True


def _require_same(folder: Path, facts: dict[str, Any]) -> None:
    if not (folder / MARKER).exists():
        raise UsageError(f"{folder} holds runs of your own. Choose another --prefix, or another --out.")
    different = [key for key in ("digest", "version", "ruleset", "hardware") if read_marker(folder)[key] != facts[key]]
    if different:
        raise UsageError(
            f"{folder} was imported with other {', '.join(different)}. Remove it first, or choose another --prefix."
        )


def read_marker(folder: Path) -> dict[str, Any]:
    """`imported.json` of a reference. Raises `LogError` where it cannot be read or lacks an entry."""
    marker = _read(folder / MARKER)
    missing = [key for key in ("source", "version", "ruleset", "hardware", "digest") if key not in marker]
    if missing:
        raise LogError(f"{folder / MARKER} has no entry {missing[0]!r}: import the results again.")
    return marker


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse_object(read_bytes(path))
    except LogError as error:
        raise LogError(f"{path}: {error}") from error


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a reference's folder but the marker."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- what the logs tell of themselves


def _version_of(logs: Logs) -> str:
    """From the flags: v0.6 has no limit of steps. The workload that v1.0 adds tells it by itself.

    Raises `UsageError` where nothing tells.
    """
    if "finewebedu_lm" in logs.workloads:
        return "v1.0"
    for trial in logs.trials:
        path = trial.path / "flags_0.json"
        if path.exists() and "max_global_steps" in (flags := _read(path)):
            return "v0.6" if flags["max_global_steps"] is None else "v0.5"
    raise UsageError("These logs do not say which version they belong to. Add --version v0.5, v0.6 or v1.0.")


def _ruleset_of(trials: Sequence[Trial]) -> str:
    tuned = any(trial.has_hyperparameters or trial.number > 1 for trial in trials)
    return (Ruleset.EXTERNAL if tuned else Ruleset.SELF).value


def _hardware_of(logs: Logs, version: str) -> str:
    """Raises `UsageError` where the meta data name several machines, or the version names none."""
    found = sorted({value for trial in logs.trials if (value := trial.record.condition("hardware")) is not None})
    if len(found) > 1:
        raise UsageError(
            f"These logs come from several machines: {'; '.join(found)}. Add --hardware, or import them apart."
        )
    if found:
        return found[0]
    named = load_version(version).hardware
    if named.device is None or named.num_devices is None:
        raise UsageError(f"Neither the logs nor version {version} name the hardware. Add --hardware '8 x ...'.")
    return f"{named.num_devices} x {named.device}"
