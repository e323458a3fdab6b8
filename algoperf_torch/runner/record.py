"""What a trial leaves on disk: official CSV files, `trial.json`, hyperparameters, the heartbeat.

A row of `eval_measurements.csv` is appended and flushed to disk once it is in the checkpoint; on resume the files are
brought into line with the checkpoint, so no row is lost, torn or doubled. Only rank 0 writes.
"""

from __future__ import annotations

import csv
import io
import json
import mmap
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.runner.status import Phase

SCHEMA_VERSION = 1
HEARTBEAT_MAGIC = 0x414C474F48425431  # "ALGOHBT1"
_HEARTBEAT = struct.Struct("<QQQd")  # magic, step, phase, unix time
HEARTBEAT_BYTES = 64

Row = Mapping[str, float]


def trial_directory(out: Path, submission: str, study: int, workload: str, trial: int) -> Path:
    """The official layout: `<out>/<submission>/study_<j>/<workload>_pytorch/trial_<i>`."""
    return out / submission / f"study_{study}" / f"{workload}_pytorch" / f"trial_{trial}"


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a reader sees the old text or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2, default=_plain) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises `LogError` for a file that is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LogError(f"Cannot read {path}: {error}.") from error
    if not isinstance(value, dict):
        raise LogError(f"{path} does not hold a JSON object.")
    return value


def _plain(value: object) -> object:
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


class CsvLog:
    """An append-only CSV file with a header: the keys of the first row sorted, later keys behind them.

    A row with new keys rewrites the file atomically; every other row is one appended, synced line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.columns = next(csv.reader(file), [])

    def append(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        new = [key for row in rows for key in sorted(row) if key not in self.columns]
        if new:
            old = read_rows(self.path) if self.path.exists() else []
            self.replace([*old, *rows])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(_format(rows, self.columns))
            file.flush()
            os.fsync(file.fileno())

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the whole file anew."""
        self.columns = []
        for row in rows:
            self.columns += [key for key in sorted(row) if key not in self.columns]
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(self.columns)
        write_atomically(self.path, header.getvalue() + _format(rows, self.columns))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.columns = []


def _format(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if row.get(key) is None else row[key] for key in columns])
    return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file as text; a last line that was cut off by a crash is left out."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(io.StringIO(complete)))
    if not rows:
        return []
    header, *body = rows
    return [{k: v for k, v in zip(header, line, strict=False) if v != ""} for line in body if len(line) == len(header)]


class Heartbeat:
    """64 bytes in a memory-mapped file: which step and phase the trial is in. Costs under a microsecond a step."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(HEARTBEAT_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), HEARTBEAT_BYTES)
        self.phase = Phase.SETUP
        self.beat(0)

    def enter(self, phase: Phase, step: int) -> None:
        self.phase = phase
        self.beat(step)

    def beat(self, step: int) -> None:
        _HEARTBEAT.pack_into(self._map, 0, HEARTBEAT_MAGIC, step, self.phase, time.time())

    def close(self) -> None:
        self._map.close()


def read_heartbeat(path: Path) -> tuple[int, Phase, float] | None:
    """(step, phase, unix time) of a trial's heartbeat file; None where there is none yet."""
    try:
        magic, step, phase, when = _HEARTBEAT.unpack_from(path.read_bytes())
    except (OSError, struct.error):
        return None
    return (step, Phase(phase), when) if magic == HEARTBEAT_MAGIC else None


class TrialRecord:
    """The files of one trial directory.

    Raises `UsageError` where the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.heartbeat = Heartbeat(directory / "heartbeat")
        except OSError as error:
            raise UsageError(
                f"Cannot write to {directory}: {error.strerror or error}. Choose another --out."
            ) from error
        self.summary: dict[str, Any] = {}
        self.num_measurements = 0
        self._evaluations = CsvLog(directory / "eval_measurements.csv")
        self._measurements = CsvLog(directory / "measurements.csv")

    def start(self, summary: Mapping[str, Any], hyperparameters: Mapping[str, Any] | None) -> None:
        """Writes `trial.json` with status `running`, and the hyperparameters of an external-tuning trial."""
        self.summary = dict(summary)
        if hyperparameters is not None:
            write_json(self.directory / "hparams.json", dict(hyperparameters))
        self.update()

    def update(self, **values: Any) -> None:
        """Writes `trial.json` anew with these entries changed."""
        self.summary.update(values, heartbeat=time.time())
        write_json(self.directory / "trial.json", self.summary)

    def restore(self, evaluations: Sequence[Row], num_measurements: int, last: Sequence[Mapping[str, Any]]) -> None:
        """Brings both CSV files into line with a checkpoint.

        Args:
            evaluations: all rows of evaluations so far.
            num_measurements: how many rows `measurements.csv` had when the checkpoint was complete.
            last: the last of them, which a crash may have kept from the file.
        """
        self._evaluations.replace(evaluations) if evaluations else self._evaluations.remove()
        kept = (
            read_rows(self._measurements.path)[: num_measurements - len(last)]
            if self._measurements.path.exists()
            else []
        )
        self._measurements.replace([*kept, *last]) if kept or last else self._measurements.remove()
        self.num_measurements = num_measurements

    def add_evaluation(self, row: Row, scalars: Sequence[Mapping[str, Any]]) -> None:
        """One evaluation: a line in both files, after the scalars that the submission logged before it."""
        self._evaluations.append([row])
        self.add_measurements([*scalars, row])

    def add_measurements(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._measurements.append(rows)
        self.num_measurements += len(rows)

    def close(self) -> None:
        self.heartbeat.close()
