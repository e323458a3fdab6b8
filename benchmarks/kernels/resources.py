"""What every kernel takes of a multiprocessor, compiled ahead of time, and how many bytes it asks for.

    python -m benchmarks.kernels.resources [--only adam lamb] [--archs 80 90] [--json FILE] [--write docs/kernels.md]

No device is needed: each case of `benchmarks/gpu` is called at full size on tensors without memory, its launches are caught
instead of started, and each is compiled for each architecture. Bytes are counted by running the same cases small, in Triton's
interpreter. `--write` renews the tables between the markers of a page.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from algoperf_torch.kernels import launch
from benchmarks.gpu.__main__ import load_cases, operations
from benchmarks.gpu.case import UpdateInputs

ARCHS = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have
COUNTED_SIZE = 256  # largest dimension of the inputs whose bytes are counted
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}
MARKERS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("resources", "bytes")}


@dataclass(frozen=True)
class Resources:
    """One kernel as one case launches it, on one architecture."""

    operation: str
    case: str
    kernel: str
    arch: int
    warps: int
    registers: int
    spilled: int  # bytes of stack and local memory
    shared: int  # bytes
    wide_loads: int  # instructions that read 128 bits, into registers or shared memory
    loads: int


@dataclass(frozen=True)
class Bytes:
    """Bytes that a case's kernels ask for, and the least that must move."""

    case: str
    parameters: int
    asked: int
    least: int


# ---------------------------------------------------------------- catching and compiling launches


@dataclass(frozen=True)
class Launch:
    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int


def caught(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], num_warps: int, num_stages: int) -> Launch:
    """The launch as Triton would specialise it: aligned pointers, integers divisible by 16 or equal to 1."""
    signature, fixed, aligned = [], [], []
    for place, name in enumerate(kernel.arg_names):
        value = args[place] if place < len(args) else constants[name]
        if place >= len(args) or value is None or (isinstance(value, int) and value == 1):
            kind = "constexpr"
            fixed.append((place, value))
        elif isinstance(value, torch.Tensor):
            kind = "*" + TYPES[value.dtype]
            aligned.append(place)
        elif isinstance(value, int):
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(place)
        else:
            kind = "fp32"
        signature.append((name, kind))
    return Launch(kernel, tuple(signature), tuple(fixed), tuple(aligned), num_warps, num_stages)


def launches(operation: str) -> Iterator[tuple[str, Launch]]:
    """(case, launch) of an operation, every launch once."""
    seen: set[Launch] = set()
    started: list[Launch] = []

    def catch(
        kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any
    ) -> None:
        assert all(size > 0 for size in grid)
        started.append(caught(kernel, args, constants, num_warps, num_stages))

    start, launch.launch = launch.launch, catch
    try:
        for case in load_cases(operation):
            case.fused(case.make(torch.device("meta"), 0))
            for one in started:
                if one not in seen:
                    seen.add(one)
                    yield case.name, one
            started.clear()
    finally:
        launch.launch = start


def compiled(operation: str, case: str, one: Launch, arch: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        one.kernel,
        dict(one.signature),
        constexprs={(place,): value for place, value in one.constants},
        attrs={(place,): [["tt.divisibility", 16]] for place in one.aligned},
    )
    options = {"num_warps": one.num_warps, "num_stages": one.num_stages}
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage = resource_usage(binary.asm["cubin"])
    ptx = binary.asm["ptx"]
    return Resources(
        operation=operation,
        case=case,
        kernel=one.kernel.__name__,
        arch=arch,
        warps=one.num_warps,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=binary.metadata.shared,
        wide_loads=len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\S+ .*0x10", ptx)),
        loads=len(re.findall(r"ld\.global|cp\.async\.c[ag]", ptx)),
    )


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of the only kernel in a binary, as `cuobjdump` of Triton's wheel reads them."""
    import triton

    tool = Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


# ---------------------------------------------------------------- counting bytes


def counted(operation: str) -> Iterator[Bytes]:
    """For updates of parameters; must run where Triton is interpreted."""
    from algoperf_torch.kernels.interpreter import counted as counting

    seen: set[tuple[Any, ...]] = set()
    for case in load_cases(operation):
        inputs = case.make(torch.device("cpu"), COUNTED_SIZE)
        parameters = case.parameters(inputs)
        if not parameters or operation == "muon":  # whose products a library computes
            continue
        if isinstance(inputs, UpdateInputs):  # the same update of another model has nothing new to say
            dtypes = tuple((name, column[0].dtype) for name, column in inputs.columns.items() if column)
            kind = (*dtypes, *inputs.options.items())
            if kind in seen:
                continue
            seen.add(kind)
        case.fused(inputs)  # builds tables
        with counting() as traffic:
            case.fused(inputs)
        yield Bytes(case.name, parameters, traffic.read + traffic.written, case.bytes(inputs))


def count_in_interpreter(only: list[str]) -> list[Bytes]:
    command = [sys.executable, "-m", "benchmarks.kernels.resources", "--count", "--only", *only]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [Bytes(**row) for row in json.loads(output)]


# ---------------------------------------------------------------- pages


def resource_table(rows: Iterable[Resources]) -> str:
    """One line for each launch, the architectures side by side."""
    by_launch: dict[tuple[str, str, int], list[Resources]] = {}
    order: list[tuple[str, str, int]] = []
    for row in rows:
        siblings = [key for key in order if key[:2] == (row.case, row.kernel)]
        key = next((k for k in siblings if all(row.arch != other.arch for other in by_launch[k])), None)
        if key is None:
            key = (row.case, row.kernel, len(siblings))
            order.append(key)
            by_launch[key] = []
        by_launch[key].append(row)
    archs = sorted({row.arch for group in by_launch.values() for row in group})
    names = " / ".join(f"sm_{arch}" for arch in archs)
    lines = [
        f"| case | kernel | warps | registers, {names} | spilled bytes | shared memory, KiB | 128-bit loads |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in order:
        group = sorted(by_launch[key], key=lambda row: row.arch)

        def each(values: Iterable[object]) -> str:
            return " / ".join(str(value) for value in values)

        lines.append(
            f"| {key[0]} | `{key[1]}` | {group[0].warps} | {each(row.registers for row in group)} | "
            f"{each(row.spilled for row in group)} | {each(f'{row.shared / 1024:g}' for row in group)} | "
            f"{each(f'{row.wide_loads} of {row.loads}' for row in group)} |"
        )
    return "\n".join(lines)


def bytes_table(rows: Iterable[Bytes]) -> str:
    lines = ["| case | bytes per parameter, asked for | least | ratio |", "|---|---|---|---|"]
    for row in rows:
        asked, least = row.asked / row.parameters, row.least / row.parameters
        lines.append(f"| {row.case} | {asked:.2f} | {least:.2f} | {asked / least:.3f} |")
    return "\n".join(lines)


def with_tables(page: str, tables: dict[str, str]) -> str:
    for name, table in tables.items():
        begin, end = MARKERS[name]
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.resources", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=operations(), default=operations(), metavar="OPERATION")
    parser.add_argument("--archs", nargs="+", type=int, default=list(ARCHS), metavar="NUMBER")
    parser.add_argument("--json", type=Path, help="file for all rows")
    parser.add_argument("--write", type=Path, help="page whose tables are renewed")
    parser.add_argument("--check", type=Path, help="page whose tables must be those of this run")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.count:
        from algoperf_torch.kernels.interpreter import enable

        enable()
        print(json.dumps([asdict(row) for operation in options.only for row in counted(operation)]))
        return 0
    rows = [
        compiled(operation, case, one, arch)
        for operation in options.only
        for case, one in launches(operation)
        for arch in options.archs
    ]
    byte_rows = count_in_interpreter(options.only)
    tables = {"resources": resource_table(rows), "bytes": bytes_table(byte_rows)}
    print(*tables.values(), sep="\n\n")
    if options.json:
        found = {"resources": [asdict(row) for row in rows], "bytes": [asdict(row) for row in byte_rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.write:
        options.write.write_text(with_tables(options.write.read_text(), tables))
    if options.check and with_tables(options.check.read_text(), tables) != options.check.read_text():
        print(f"The tables of {options.check} are not these. Renew them with --write {options.check}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
