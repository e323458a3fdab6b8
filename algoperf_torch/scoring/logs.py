"""Reads run directories: the official logs of AlgoPerf and our own, with everything that real ones contain.

Layout: `<root>/<submission>/study_<j>/<workload>_<framework>/trial_<i>/`, with `eval_measurements.csv` in each trial, and
`trial.json` where this package ran it. A path may be such a root or one submission. What does not fit is never skipped in
silence: it is listed, by path, in `Logs.problems`.
"""

from __future__ import annotations

import enum
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from algoperf_torch.errors import LogError
from algoperf_torch.scoring.cache import TableCache
from algoperf_torch.scoring.table import Table, parse_object, parse_table, read_bytes
from algoperf_torch.spec import MAXIMISED_METRICS, MINIMISED_METRICS

TARGET_METRICS = MINIMISED_METRICS | MAXIMISED_METRICS
EVALUATIONS = "eval_measurements.csv"
MARKER = "imported.json"  # beside the studies of a published submission that `algoperf import-logs` has copied
SECONDS = "score"  # column of submission time; `accumulated_submission_time` is equal in all official files

_STUDY = re.compile(r"study_(\d+)")
_WORKLOAD = re.compile(r"(.+)_(jax|pytorch)")
_TRIAL = re.compile(r"trial_(\d+)")
_SET_ASIDE = re.compile(r"void_\d+_trial_\d+")
_TIMESTAMP = re.compile(r"(.+?)-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d")
_UNFINISHED = frozenset({"running", "preempted", "data_error", "harness_error"})  # says nothing about the algorithm
STATUSES = _UNFINISHED | {"reached", "budget_exhausted", "diverged", "submission_error", "out_of_memory"}


class Severity(enum.IntEnum):
    NOTE = 0  # ignored, and harmless
    IRREGULAR = 1  # read, but not as the rules have it
    DAMAGED = 2  # could not be read


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the logs that does not fit."""

    path: str
    message: str
    severity: Severity

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Flag:
    """A doubt about a trial's validity, raised by the harness that ran it."""

    name: str
    reason: str
    severity: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """What `trial.json` (or `meta_data_0.json` of official logs) says, as far as scoring needs it."""

    status: str | None = None
    ruleset: str | None = None
    conditions: tuple[
        tuple[str, str], ...
    ] = ()  # what must be equal for a ranking: hardware, version, compile policy, ...
    kernels: str | None = None  # what computed the updates: nothing that forbids a comparison, but part of it
    seed: int | None = None
    void: bool = False
    flags: tuple[Flag, ...] = ()

    def condition(self, name: str) -> str | None:
        return dict(self.conditions).get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training run."""

    submission: str
    study: int
    workload: str  # without framework
    framework: str
    number: int
    path: Path
    evaluations: Table | None  # None where there is no evaluation file, or a damaged one
    record: TrialRecord = field(default_factory=TrialRecord)
    unusable: str | None = None  # why the trial says nothing about the algorithm: void, unfinished, damaged
    irregular: str | None = None  # why the documented rule leaves the trial out
    has_hyperparameters: bool = False

    @property
    def seconds(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Submission time of each evaluation."""
        return self.evaluations[SECONDS] if self.evaluations is not None else np.empty(0)


@dataclass(frozen=True, slots=True)
class Logs:
    """All trials below some paths, in the order of submission, study, workload and number."""

    trials: tuple[Trial, ...]
    problems: tuple[Problem, ...]
    roots: tuple[Path, ...]

    @property
    def submissions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trial.submission for trial in self.trials))

    @property
    def workloads(self) -> tuple[str, ...]:
        return tuple(sorted({trial.workload for trial in self.trials}))

    def select(self, submissions: Iterable[str]) -> Logs:
        """The logs of some submissions only. Raises `LogError` for a name that is not there."""
        wanted = set(submissions)
        unknown = sorted(wanted.difference(self.submissions))
        if unknown:
            raise LogError(f"No submission {unknown[0]!r} in these logs. Present: {', '.join(self.submissions)}.")
        return Logs(tuple(trial for trial in self.trials if trial.submission in wanted), self.problems, self.roots)


def scoring_columns(name: str) -> bool:
    """Whether a column of `eval_measurements.csv` can matter for a score."""
    split, _, metric = name.partition("/")
    if metric:
        return split in ("validation", "test") and metric in TARGET_METRICS
    return name in (SECONDS, "global_step", "preemption_count")


def read_logs(
    paths: Sequence[str | Path],
    *,
    all_columns: bool = False,
    cache: TableCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Logs:
    """Reads every trial below the paths, each of which is a directory of submissions or one submission.

    Args:
        paths: submissions of equal name under different paths are told apart by the path's name.
        all_columns: keep every column of the evaluations, not only those that a score can depend on.
        cache: where parsed files are kept between runs.
        progress: called with (trials read, trials in all).

    Raises:
        LogError: a path does not exist or holds no submission; a submission has a workload in two frameworks.
    """
    if not paths:
        raise LogError("No run directory given. Write, for example: algoperf score runs/")
    return _Reader(all_columns, cache, progress).read([Path(path) for path in paths])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a trial lies, before its files are read."""

    submission: str
    study: int
    workload: str
    framework: str
    number: int
    path: str
    irregular: str | None
    imported: Mapping[str, str] | None  # of a reference: its version, ruleset and hardware


class _Reader:
    def __init__(
        self, all_columns: bool, cache: TableCache | None, progress: Callable[[int, int], None] | None
    ) -> None:
        self._all_columns = all_columns
        self._cache = cache
        self._progress = progress
        self._problems: list[Problem] = []
        self._parsed: dict[bytes, Table | LogError] = {}  # by digest of the content

    def read(self, roots: Sequence[Path]) -> Logs:
        submissions = self._find_submissions(roots)
        places = [place for label, folders in submissions for place in self._find_trials(label, folders)]
        _refuse_two_frameworks(places)
        places.sort(key=lambda place: (place.submission, place.study, place.workload, place.number))
        trials = []
        for index, place in enumerate(places):
            trials.append(self._read_trial(place))
            if self._progress is not None:
                self._progress(index + 1, len(places))
        self._report_copies(trials)
        self._report_shared_seeds(trials)
        return Logs(tuple(trials), tuple(self._problems), tuple(roots))

    def _note(self, path: str | Path, message: str, severity: Severity) -> None:
        self._problems.append(Problem(str(path), message, severity))

    def _list(self, folder: str | Path) -> tuple[list[str], list[str]]:
        """Names of the directories and of the files in a folder, sorted.

        Hidden ones are left out, and `void_<n>_trial_<i>`: what `algoperf tune` keeps of a trial that it ran again.
        """
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "void_")):
                        continue
                    try:
                        (folders if entry.is_dir() else files).append(entry.name)
                    except OSError as error:  # a symbolic link to itself
                        self._note(entry.path, f"cannot be read: {error.strerror}", Severity.DAMAGED)
        except OSError as error:
            self._note(folder, f"cannot be read: {error.strerror}", Severity.DAMAGED)
        return sorted(folders), sorted(files)

    def _find_submissions(self, roots: Sequence[Path]) -> list[tuple[str, list[str]]]:
        """(label, folders) of every submission; siblings that differ by a timestamp are one submission."""
        found: dict[tuple[Path, str], list[str]] = {}
        seen: set[str] = set()
        for root in roots:
            if not root.exists():
                raise LogError(f"No directory {root}.")
            if not root.is_dir():
                raise LogError(f"{root} is a file. Give the directory that holds the submissions.")
            children, _ = self._list(root)
            parent, names = root, children
            if any(_STUDY.fullmatch(name) for name in children):  # a single submission
                parent, names = root.resolve().parent, [root.resolve().name]
            some = False
            for name in names:
                folder = str(parent / name)
                inside, _ = self._list(folder)
                if not any(_STUDY.fullmatch(study) for study in inside):
                    self._note(folder, "ignored: holds no study_<j>, so it is no submission", Severity.NOTE)
                    continue
                some = True
                if (real := os.path.realpath(folder)) in seen:
                    self._note(folder, "ignored: the same directory was read already", Severity.IRREGULAR)
                    continue
                seen.add(real)
                stamped = _TIMESTAMP.fullmatch(name)
                found.setdefault((parent, stamped[1] if stamped else name), []).append(folder)
            if not some:
                layout = f"{root}/<submission>/study_<j>/<workload>_pytorch/trial_<i>/{EVALUATIONS}"
                raise LogError(f"No submission in {root}. Expected {layout}" + _hint_deeper(root, children))
        counts = Counter(name for _, name in found)
        labels = {(root, name): name if counts[name] == 1 else f"{root.resolve().name}/{name}" for root, name in found}
        counts = Counter(labels.values())
        return sorted(
            (labels[key] if counts[labels[key]] == 1 else str(key[0] / key[1]), folders)
            for key, folders in found.items()
        )

    def _find_trials(self, submission: str, folders: Sequence[str]) -> Iterator[_Place]:
        taken: dict[tuple[int, str, int], str] = {}
        for folder in folders:
            studies, files = self._list(folder)
            imported = self._read_marker(f"{folder}/{MARKER}") if MARKER in files else None
            for name in files:
                if name != MARKER:
                    self._note(Path(folder, name), "ignored: a file where studies are expected", Severity.NOTE)
            for study_name in studies:
                study = _STUDY.fullmatch(study_name)
                study_path = f"{folder}/{study_name}"
                if study is None:
                    self._note(study_path, "ignored: not named study_<j>", Severity.IRREGULAR)
                    continue
                yield from self._find_in_study(submission, int(study[1]), study_path, taken, imported)

    def _read_marker(self, path: str) -> Mapping[str, str] | None:
        try:
            marker = parse_object(read_bytes(path))
            entries = {name: _entry(marker, name, str) for name in ("version", "ruleset", "hardware")}
        except LogError as error:
            self._note(path, str(error), Severity.DAMAGED)
            return None
        return {name: value for name, value in entries.items() if value is not None}

    def _find_in_study(
        self,
        submission: str,
        study: int,
        folder: str,
        taken: dict[tuple[int, str, int], str],
        imported: Mapping[str, str] | None,
    ) -> Iterator[_Place]:
        workloads, files = self._list(folder)
        for name in files:
            self._note(f"{folder}/{name}", "ignored: a file where workloads are expected", Severity.NOTE)
        for workload_name in workloads:
            workload_path = f"{folder}/{workload_name}"
            workload = _WORKLOAD.fullmatch(workload_name)
            if workload is None:
                self._note(workload_path, "ignored: not named <workload>_<framework>", Severity.IRREGULAR)
                continue
            for trial_name in self._list(workload_path)[0]:
                path = f"{workload_path}/{trial_name}"
                trial = _TRIAL.match(trial_name)
                if _SET_ASIDE.fullmatch(trial_name):
                    self._note(path, "ignored: a void trial that was set aside to be run again", Severity.NOTE)
                    continue
                if trial is None:
                    self._note(path, "ignored: not named trial_<i>", Severity.IRREGULAR)
                    continue
                number = int(trial[1])
                irregular = None
                if trial.end() < len(trial_name):
                    irregular = "not named trial_<i>; only the official rule counts it"
                elif (first := taken.setdefault((study, workload_name, number), path)) != path:
                    irregular = f"the same trial as {first}; only the official rule counts both"
                if irregular:
                    self._note(path, irregular, Severity.IRREGULAR)
                yield _Place(submission, study, workload[1], workload[2], number, path, irregular, imported)

    def _read_trial(self, place: _Place) -> Trial:
        folders, files = self._list(place.path)
        unusable = None
        for name in {EVALUATIONS, "trial.json"}.intersection(folders):
            self._note(f"{place.path}/{name}", "is a directory, not a file", Severity.DAMAGED)
            unusable = f"{name} is a directory"
        record = TrialRecord()
        evaluations = None
        source = next((name for name in ("trial.json", "meta_data_0.json") if name in files), None)
        if source is not None:
            path = f"{place.path}/{source}"
            try:
                content = parse_object(read_bytes(path))
                record = _own_record(content) if source == "trial.json" else _official_record(content)
                unusable = _reason_unusable(record)
            except LogError as error:
                self._note(path, str(error), Severity.DAMAGED)
                unusable = f"{source} {error}" if source == "trial.json" else None
        if place.imported is not None:
            conditions = tuple(
                (name, place.imported[name]) for name in ("hardware", "version") if name in place.imported
            )
            record = replace(record, conditions=conditions, ruleset=place.imported.get("ruleset"))
        if EVALUATIONS in files:
            path = f"{place.path}/{EVALUATIONS}"
            try:
                evaluations = self._read_evaluations(path)
            except LogError as error:
                self._note(path, str(error), Severity.DAMAGED)
                unusable = f"{EVALUATIONS} {error}"
        elif unusable is None:
            self._note(place.path, f"no {EVALUATIONS}: counted as a trial that never reached its target", Severity.NOTE)
        return Trial(
            submission=place.submission,
            study=place.study,
            workload=place.workload,
            framework=place.framework,
            number=place.number,
            path=Path(place.path),
            evaluations=evaluations,
            record=record,
            unusable=unusable,
            irregular=place.irregular,
            has_hyperparameters="hparams.json" in files,
        )

    def _read_evaluations(self, path: str) -> Table:
        data = read_bytes(path)
        digest = hashlib.blake2b(data, digest_size=16, person=b"all" if self._all_columns else b"scoring").digest()
        if digest not in self._parsed:
            self._parsed[digest] = self._parse(digest, data)
        parsed = self._parsed[digest]
        if isinstance(parsed, LogError):
            raise parsed
        if not data.endswith(b"\n"):
            self._note(path, "the last line does not end: it may be cut off", Severity.IRREGULAR)
        if _runs_backwards(parsed):
            self._note(path, "the submission time runs backwards without a preemption", Severity.IRREGULAR)
        elif "global_step" in parsed and not _counts_up(parsed):
            self._note(path, "the steps are not whole numbers that grow", Severity.IRREGULAR)
        return parsed

    def _parse(self, digest: bytes, data: bytes) -> Table | LogError:
        table = self._cache.get(digest) if self._cache is not None else None
        if table is not None:
            return table
        try:
            table = parse_table(data, None if self._all_columns else scoring_columns)
            _check_evaluations(table)
        except LogError as error:
            return error
        if self._cache is not None:
            self._cache.put(digest, table)
        return table

    def _report_copies(self, trials: Sequence[Trial]) -> None:
        first: dict[tuple[str, int], Trial] = {}
        for trial in trials:
            if trial.evaluations is None or not len(trial.evaluations):
                continue
            original = first.setdefault((trial.submission, id(trial.evaluations)), trial)
            if original is not trial and trial.irregular is None:
                self._note(trial.path, f"its {EVALUATIONS} is a copy of {original.path}'s", Severity.IRREGULAR)

    def _report_shared_seeds(self, trials: Sequence[Trial]) -> None:
        """One line for each submission: trials of a workload should differ in their seeds."""
        counts: Counter[tuple[str, str, int]] = Counter()
        for trial in trials:
            if trial.record.seed is not None and trial.irregular is None:
                counts[trial.submission, trial.workload, trial.record.seed] += 1
        for submission in dict.fromkeys(name for name, _, _ in counts):
            shared = sum(count for (name, _, _), count in counts.items() if name == submission and count > 1)
            if shared:
                self._note(
                    submission, f"{shared} trials share their seed with another of their workload", Severity.IRREGULAR
                )


def _hint_deeper(root: Path, children: Sequence[str]) -> str:
    """Where submissions seem to be, when they lie one folder deeper than they should."""
    for child in children:
        if next((root / child).glob("*/study_*"), None) is not None:
            return f"; did you mean {root / child}?"
    return "."


def _refuse_two_frameworks(places: Sequence[_Place]) -> None:
    seen: dict[tuple[str, str], _Place] = {}
    for place in places:
        other = seen.setdefault((place.submission, place.workload), place)
        if other.framework != place.framework:
            raise LogError(
                f"Submission {place.submission!r} has logs of {place.workload} in two frameworks: {other.path} and "
                f"{place.path}. A submission has one per workload: move the others elsewhere."
            )


def _check_evaluations(table: Table) -> None:
    if SECONDS not in table:
        raise LogError(f"has no column {SECONDS!r}; columns: {', '.join(table.columns)[:200]}")
    seconds = table[SECONDS]
    wrong = np.flatnonzero(~(np.isfinite(seconds) & (seconds >= 0)))
    if wrong.size:
        raise LogError(f"row {wrong[0] + 2}: submission time {seconds[wrong[0]]} is not a time")


def _runs_backwards(table: Table) -> bool:
    back = np.diff(table[SECONDS]) < 0
    return bool(back.any() and np.any(back & ~(np.diff(table.get("preemption_count")) > 0)))


def _counts_up(table: Table) -> bool:
    steps = table["global_step"]
    grow = (np.diff(steps) > 0) | (np.diff(table.get("preemption_count")) > 0)
    return bool(np.all(steps >= 0) and np.all(steps == np.floor(steps)) and np.all(grow))


def _reason_unusable(record: TrialRecord) -> str | None:
    if record.void:
        return f"void ({record.status or 'no status'})"
    return f"status {record.status}" if record.status in _UNFINISHED else None


def _own_record(content: Mapping[str, Any]) -> TrialRecord:
    """Raises `LogError` where an entry that scoring relies on has another type."""
    status = _entry(content, "status", str)
    if status is not None and status not in STATUSES:
        raise LogError(f"unknown status {status[:40]!r}; must be one of {', '.join(sorted(STATUSES))}")
    options = _entry(content, "options", dict) or {}
    conditions = {
        "hardware": _own_hardware(content),
        "version": _entry(content, "version", str),
        "compile policy": _entry(content, "compile_policy", str),
        "clock": _entry(content, "clock", str),
        "model scale": _entry(options, "model_scale", str),
    }
    seed = (_entry(content, "seeds", dict) or {}).get("trial")
    return TrialRecord(
        status=status,
        ruleset=_entry(content, "ruleset", str),
        conditions=tuple((name, value) for name, value in conditions.items() if value is not None),
        kernels=_own_kernels(content),
        seed=seed if isinstance(seed, int) else None,
        void=_entry(content, "void", bool) or False,
        flags=tuple(_flags(_entry(content, "validity", dict) or {})),
    )


def _flags(validity: Mapping[str, Any]) -> Iterator[Flag]:
    for flag in _entry(validity, "flags", list) or []:
        if not isinstance(flag, dict):
            raise LogError(f"validity flag {str(flag)[:40]!r} is not an object")
        yield Flag(str(flag.get("name", "unnamed")), str(flag.get("reason", "")), str(flag.get("severity", "")))


def _own_kernels(content: Mapping[str, Any]) -> str | None:
    """Whether kernels of the package ran, and which were asked for."""
    kernels = _entry(content, "kernels", dict)
    if kernels is None:
        return None
    return f"kernels, --kernels {kernels.get('choice')}" if kernels.get("used") else "plain PyTorch"


def _own_hardware(content: Mapping[str, Any]) -> str | None:
    """Devices in use and their name; without devices the processor and the number of ranks."""
    environment = _entry(content, "environment", dict) or {}
    ranks = (_entry(content, "process", dict) or {}).get("world_size", 1)
    for gpu in _entry(environment, "gpus", list) or []:
        if isinstance(gpu, dict) and gpu.get("name"):
            return f"{ranks} x {gpu['name']}"
    cpu = _entry(environment, "cpu", dict) or {}
    if not cpu.get("model"):
        return None
    return f"{cpu['model']}, {cpu.get('count', '?')} processors, {ranks} rank{'' if ranks == 1 else 's'}"


def _official_record(content: Mapping[str, Any]) -> TrialRecord:
    device, count, seed = content.get("gpu_model_name"), content.get("gpu_count"), content.get("rng_seed")
    return TrialRecord(
        conditions=(("hardware", f"{count} x {device}"),) if device and count else (),
        seed=seed if isinstance(seed, int) else None,
    )


def _entry(content: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        raise LogError(f"entry {key!r} is {str(value)[:40]!r}, not a {kind.__name__}")
    return value
