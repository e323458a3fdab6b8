"""How much memory preparing and loading take on raw files of several gigabytes.

    python -m benchmarks.data.peak_memory [--dataset fastmri] [--gigabytes 6] [--folder DIR]

Writes 24 day files of click logs (the same 20,000 lines again and again), or volumes of slices (the same two under many
names), prepares them with two workers, then reads an epoch of training batches and all evaluation batches, each in processes
of its own. Their memory is added up every twentieth of a second:
`own` is what belongs to the processes; `resident` counts the mapped pages of packed files, too, which the system holds as
long as nobody else needs the room. The files, twice the given size at most, are deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from algoperf_torch.data.manifest import Manifest, write_manifest
from algoperf_torch.spec import Split
from algoperf_torch.workloads.criteo1tb.prepare import NUM_TEST_PIECES
from algoperf_torch.workloads.criteo1tb.records import NUM_CATEGORICAL, NUM_DENSE
from algoperf_torch.workloads.criteo1tb.synth import NUM_PIECES, draw
from algoperf_torch.workloads.fastmri.data import CROP
from algoperf_torch.workloads.fastmri.prepare import TRAIN_FOLDERS, VAL_FOLDERS
from algoperf_torch.workloads.fastmri.synth import WIDTHS, write_volume

DAYS, LINES = 24, 20_000
SLICES = 36
BATCH_SIZES = {"criteo1tb": 65_536, "fastmri": 32}
EVERY = 0.05  # seconds
LOAD = """
import sys
from pathlib import Path
from algoperf_torch.spec import EVALUATION_SPLITS
from algoperf_torch.workloads.registry import build_workload

workload = build_workload(sys.argv[2], Path(sys.argv[1]))
workload.open()
size = int(sys.argv[3])
make = workload.train_batches(seed=0, global_batch_size=size, rank=0, world_size=1)
for draw in range(workload.spec.num_train // size):
    workload.finish_batch(make(draw))
for split in EVALUATION_SPLITS:
    for _, batch in workload.eval_batches(split, seed=0):
        workload.finish_batch(batch)
"""


def write_days(folder: Path, size: float) -> int:
    """Bytes written."""
    random = np.random.default_rng(0)
    names = [random.choice(2**32, size=5_000, replace=False) for _ in range(NUM_CATEGORICAL)]
    weights = [random.normal(size=5_000) for _ in range(NUM_CATEGORICAL)]
    columns = draw(random, LINES, names, weights, random.normal(size=NUM_DENSE))
    block = "".join("\t".join(line) + "\n" for line in zip(*columns, strict=True)).encode()
    copies = max(1, round(size / DAYS / len(block)))
    for day in range(DAYS):
        with (folder / f"day_{day}").open("wb") as file:
            for _ in range(copies):
                file.write(block)
    lines = copies * LINES
    examples = {Split.TRAIN: (DAYS - 1) * lines, Split.TEST: NUM_TEST_PIECES * (lines // NUM_PIECES)}
    examples[Split.VALIDATION] = lines - examples[Split.TEST]
    counts = {str(split): count for split, count in examples.items()}
    write_manifest(folder, Manifest(dataset="criteo1tb", examples=counts, files=(), synthetic=True))
    return DAYS * copies * len(block)


def write_volumes(folder: Path, size: float) -> int:
    """Bytes of all files. Those of a split are links to one file with as many slices as the owner's have."""
    random, total, examples = np.random.default_rng(0), 0, {}
    for split, name, share in ((Split.TRAIN, TRAIN_FOLDERS[0], 0.8), (Split.VALIDATION, VAL_FOLDERS[0], 0.1)):
        (folder / name).mkdir()
        first = folder / name / "file1000000.h5"
        write_volume(first, SLICES, WIDTHS[0], CROP, random)
        copies = max(1, round(share * size / first.stat().st_size))
        examples[str(split)] = copies * SLICES
        copies *= 1 if split is Split.TRAIN else 2  # half of them are for testing
        for number in range(1, copies):
            first.with_name(f"file{1_000_000 + number}.h5").hardlink_to(first)
        total += copies * first.stat().st_size
    examples[str(Split.TEST)] = examples[str(Split.VALIDATION)]
    write_manifest(folder, Manifest(dataset="fastmri", examples=examples, files=(), synthetic=True))
    return total


WRITERS = {"criteo1tb": write_days, "fastmri": write_volumes}


def watch(command: list[str]) -> dict[str, float]:
    """Runs a command; seconds, and the peaks of the memory of it and its children in GB."""
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {"own": 0, "resident": 0}
    while process.poll() is None:
        sums = {"own": 0, "resident": 0}
        for member in [process, *_children(process)]:
            try:
                lines = Path(f"/proc/{member.pid}/status").read_text().splitlines()
            except OSError:  # it has just ended
                continue
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
            sums["own"] += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
            sums["resident"] += sum(sizes.values())
        peaks = {name: max(peak, sums[name]) for name, peak in peaks.items()}
        time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}.")
    return {"seconds": time.perf_counter() - started, **{f"{name}_gb": peak / 1e9 for name, peak in peaks.items()}}


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(WRITERS), default="criteo1tb")
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        (root / "raw").mkdir()
        results: dict[str, object] = {"raw_gb": WRITERS[options.dataset](root / "raw", 1e9 * options.gigabytes) / 1e9}
        prepare = ["data", "prepare", options.dataset, "--raw", str(root / "raw"), "--out", str(root / "data")]
        results["prepare"] = watch([sys.executable, "-m", "algoperf_torch.cli", *prepare, "--workers", "2"])
        packed = sum(file.stat().st_size for file in (root / "data").rglob("*") if file.is_file())
        results["packed_gb"] = packed / 1e9
        size = str(BATCH_SIZES[options.dataset])
        results["load"] = watch([sys.executable, "-c", LOAD, str(root / "data"), options.dataset, size])
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
