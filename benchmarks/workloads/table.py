"""Compiles every workload and variant and times its step, eager and compiled: the table in docs/workloads.md.

    python -m benchmarks.workloads.table measure --results benchmarks/results/CLASS [--only wmt ogbg] [--minutes 9]
    python -m benchmarks.workloads.table write --results benchmarks/results/CLASS

`measure` makes small data, then runs one process for each model, with an empty cache of compiled code and one thread, and
writes workloads.json after each, so that it can be stopped and called again: a model is not measured twice at one scale.
It begins with models at full size and takes the small ones of `--model-scale test` where a model cannot be measured
within a limit, or for all with `--scale test`; the row says so, and a later measurement at full size takes its place. A
step is forward, loss and backward of a reduced batch, without the optimizer. Eager and compiled steps are timed in turns;
the table has the medians. Batches and dropout rates change every time: what compiles again is counted. The compiler's own
trial of the processor's vector instructions, the same in every process, is left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from algoperf_torch.workloads.registry import WORKLOADS, workload_spec

DOCUMENT = Path(__file__).parents[2] / "docs" / "workloads.md"
BEGIN, END = "<!-- compiled: begin -->", "<!-- compiled: end -->"
DEVELOPMENT = ("digits", "mnist", "cifar")
BATCHES = {  # examples in a step at full size, by base workload; the small models take their own batch
    "criteo1tb": 512,
    "fastmri": 2,
    "finewebedu_lm": 1,
    "imagenet_resnet": 4,
    "imagenet_vit": 4,
    "librispeech_conformer": 2,
    "librispeech_deepspeech": 2,
    "ogbg": 64,
    "wmt": 4,
}
EXAMPLES = {"fastmri": 12, "imagenet": 48, "librispeech": 24, "wmt": 2_000, "finewebedu_lm": 200}
ROUNDS = 9
LIMIT_SECONDS = 420  # for one model at full size, data and all


def names() -> list[str]:
    """Base workloads first."""
    official = [name for name in WORKLOADS if name not in DEVELOPMENT]
    return sorted(official, key=lambda name: (workload_spec(name).base != name, name))


# ------------------------------------------------------------------------------------------------------------- measure


def measure_one(name: str, data_dir: Path, scale: str) -> dict[str, Any]:
    """One row, in a process of its own."""
    import torch
    from torch._dynamo.utils import counters

    from algoperf_torch.runner.engine import full_graph
    from algoperf_torch.runner.hardware import use_huge_pages
    from algoperf_torch.workloads.layers import set_dropout
    from algoperf_torch.workloads.registry import build_workload

    use_huge_pages()
    torch.set_num_threads(1)
    workload = build_workload(name, data_dir, model_scale=scale)  # type: ignore[arg-type]
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    size = BATCHES[workload.spec.base] if scale == "full" else workload.spec.batch_size
    make = workload.train_batches(seed=0, global_batch_size=size, rank=0, world_size=1)
    batches = [workload.finish_batch(make(draw)) for draw in range(3)]
    compiled_model, compiled_loss = (full_graph(part, torch.device("cpu")) for part in (model, workload.loss))

    def step(forward: Any, loss_of: Any, number: int) -> float:
        batch = batches[number % len(batches)]
        set_dropout(model, 0.1 * (number % 3))
        started = time.perf_counter()
        model.zero_grad(set_to_none=True)
        loss = loss_of(workload.forward(forward, batch), batch, 0.0)
        (loss.summed / loss.n_valid).backward()
        return time.perf_counter() - started

    model.train()
    reset_peak_memory()
    step(model, workload.loss, 0)
    memory = {"eager": peak_memory()}
    compile_seconds = step(compiled_model, compiled_loss, 0)
    after_warm_up = counters["stats"]["unique_graphs"]
    reset_peak_memory()
    step(compiled_model, compiled_loss, 1)
    memory["compiled"] = peak_memory()
    seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
    for number in range(ROUNDS):
        seconds["eager"].append(step(model, workload.loss, number))
        seconds["compiled"].append(step(compiled_model, compiled_loss, number))
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    return {
        "scale": scale,
        "batch": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "compile_seconds": compile_seconds - medians["compiled"],
        "graphs": after_warm_up,
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompilations": counters["stats"]["unique_graphs"] - after_warm_up,
        "eager_seconds": medians["eager"],
        "compiled_seconds": medians["compiled"],
        "all_seconds": seconds,
        "peak_bytes": memory,
    }


def reset_peak_memory() -> None:
    """Linux: the peak of the resident memory counts from here."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident memory of this process since then, bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def prepare_data(root: Path) -> Path:
    """Small generated data of all datasets, prepared; what is there is kept."""
    from algoperf_torch.data.prepare import PrepareOptions
    from algoperf_torch.data.prepare import main as prepare
    from algoperf_torch.data.synth import SynthOptions
    from algoperf_torch.data.synth import main as synthesise

    for dataset in sorted({workload_spec(name).dataset for name in names()}):
        if not (root / "raw" / dataset).is_dir():
            synthesise(SynthOptions(dataset=dataset, out=root / "raw", examples=EXAMPLES.get(dataset)))
        prepare(PrepareOptions(dataset=dataset, raw=root / "raw", out=root / "data", workers=1))
    return root / "data"


def measure(results: Path, data: Path, only: list[str], minutes: float, first_scale: str) -> None:
    import psutil
    import torch

    from algoperf_torch.runner.hardware import cpu_model, package_versions, usable_cpus

    deadline = time.monotonic() + 60 * minutes
    file = results / "workloads.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    content["machine"] = f"{cpu_model()}, {usable_cpus()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    content["versions"] = package_versions(("torch", "numpy"))
    content["threads"] = 1
    folder = prepare_data(data)
    for name in [name for name in names() if not only or name in only]:
        if name in content["rows"] and (first_scale == "test" or content["rows"][name]["scale"] == "full"):
            continue
        if time.monotonic() > deadline - 60:
            break
        row: dict[str, Any] = {}
        for scale in ("full", "test") if first_scale == "full" else ("test",):
            limit = min(LIMIT_SECONDS, deadline - time.monotonic())
            row = measure_apart(name, folder, scale, limit)
            if "failed" not in row:
                break
            if limit < LIMIT_SECONDS:  # no fair try: the next call begins with it
                return
            print(name, scale, row["failed"], flush=True)
        if "failed" in row:
            continue
        content["rows"][name] = {**row, "date": str(datetime.datetime.now(datetime.UTC).date())}
        results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        print(name, json.dumps({key: value for key, value in row.items() if key != "all_seconds"}), flush=True)
    print(f"{len(content['rows'])} of {len(names())} with torch {torch.__version__}", flush=True)


def measure_apart(name: str, data: Path, scale: str, limit: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
        environment["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
        command = [sys.executable, "-m", "benchmarks.workloads.table", "one", name, str(data), scale]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=max(limit, 1)
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not measured within {limit:.0f} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


# --------------------------------------------------------------------------------------------------------------- write


def render(content: dict[str, Any]) -> str:
    """The Markdown between the markers."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(content["versions"].items()))
    rows = content["rows"]
    dates = sorted({row["date"] for row in rows.values()})
    period = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    lines = [
        f"{content['machine']}; one thread; {versions}; {period}; `benchmarks/workloads/table.py`.",
        "",
        "| workload | scale | parameters | batch | compile s | graph breaks | recompilations | eager s | compiled s | "
        "ratio | peak GB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in sorted(rows):
        row = rows[name]
        cells = [
            name,
            row["scale"],
            f"{row['parameters']:,}",
            f"{row['batch']}",
            f"{row['compile_seconds']:.0f}",
            f"{row['graph_breaks']}",
            f"{row['recompilations']}",
            f"{row['eager_seconds']:.3g}",
            f"{row['compiled_seconds']:.3g}",
            f"{row['eager_seconds'] / row['compiled_seconds']:.2f}",
            f"{row['peak_bytes']['compiled'] / 1e9:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    missing = [name for name in names() if name not in rows]
    if missing:
        lines += ["", *textwrap.wrap(f"Not measured on this machine yet: {', '.join(missing)}.", 120)]
    return "\n".join(lines)


def write(results: Path, document: Path = DOCUMENT) -> None:
    text = document.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    table = render(json.loads((results / "workloads.json").read_text()))
    document.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("measure", "write"):
        commands.add_parser(command).add_argument("--results", type=Path, required=True)
    commands.choices["measure"].add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "workload-data")
    commands.choices["measure"].add_argument("--only", nargs="*", default=[], choices=names())
    commands.choices["measure"].add_argument("--minutes", type=float, default=60.0)
    commands.choices["measure"].add_argument("--scale", choices=("full", "test"), default="full")
    one = commands.add_parser("one")
    one.add_argument("name")
    one.add_argument("data", type=Path)
    one.add_argument("scale", choices=("full", "test"))
    options = parser.parse_args()
    if options.command == "one":
        print(json.dumps(measure_one(options.name, options.data, options.scale)))
    elif options.command == "measure":
        measure(options.results, options.data, options.only, options.minutes, options.scale)
    else:
        write(options.results)


if __name__ == "__main__":
    main()
