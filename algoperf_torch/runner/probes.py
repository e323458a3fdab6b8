"""Instruments that the guards read: digests, identities of functions, threads and processes, compilations, audit events.

Each measures and judges nothing; `validity.py` says what a reading means. None draws a random number, and none costs
anything between two clock stops, but for the audit hook, which looks at one string for every event of the interpreter.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import hashlib
import itertools
import os
import signal
import sys
import sysconfig
import threading
import time
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

_perf_counter = time.perf_counter  # bound before any submission is imported
_process_time = time.process_time
_thread_time = time.thread_time
_sleep = time.sleep

# ---------------------------------------------------------------- digests

Digest = dict[str, str]  # name -> a short text that changes with value, dtype, shape and order of the elements

_COLUMNS = 2**18  # elements multiplied by one table of factors
_ROWS = 16  # rows at a time: bounds the memory that a digest takes on the device to 32 MiB


def digest(named: Iterable[tuple[str, Any]]) -> Digest:
    """A digest of every entry: exact for tensors (every bit counts), type and text for anything else.

    Deterministic, computed on the tensors' own device, with a single wait for it at the end.
    """
    result: Digest = {}
    pending: list[tuple[str, Tensor]] = []
    for name, value in named:
        if not isinstance(value, Tensor):
            result[name] = f"{type(value).__name__}:{zlib.crc32(repr(value).encode()):08x}"
            continue
        tensor = value.detach()
        result[name] = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}:"
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.device.type == "cpu":
            result[name] += f"{zlib.crc32(_words(tensor).numpy().data):08x}"
        else:
            pending.append((name, weighted_sum(tensor)))
    if pending:
        for (name, _), number in zip(pending, torch.stack([item for _, item in pending]).tolist(), strict=True):
            result[name] += f"{number & (2**64 - 1):016x}"
    return result


def summary(entries: Digest) -> str:
    """One hexadecimal number for a whole digest, for the logs."""
    return hashlib.sha256("\n".join(f"{name}={value}" for name, value in entries.items()).encode()).hexdigest()[:16]


def changed(before: Digest, after: Digest) -> list[str]:
    """Names whose entry differs, appeared or vanished, in order of appearance."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def _words(tensor: Tensor) -> Tensor:
    """The bits of a tensor as a flat tensor of integers, in row-major order."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    flat = tensor.resolve_neg().contiguous().reshape(-1)
    return flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])


def weighted_sum(tensor: Tensor) -> Tensor:
    """int64 scalar on the device: the sum of all elements' bits, each times an odd factor of its position, modulo 2^64.

    Integer sums do not depend on their order, so the result is deterministic. Every single change shows; two changes
    hide each other, as do a swap or sign flips, with a probability of about 2^-32.
    """
    words = _words(tensor)
    factors = _factors(words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    whole = words.numel() // _COLUMNS * _COLUMNS
    rows = words[:whole].view(-1, _COLUMNS)
    for start in range(0, len(rows), _ROWS):
        sums = (rows[start : start + _ROWS] * factors).sum(dim=1)
        total = total * 3 + (sums * factors[: len(sums)]).sum()
    rest = words[whole:]
    return total * 3 + (rest * factors[: len(rest)]).sum()


def _factors(device: torch.device) -> Tensor:
    """int64 [_COLUMNS], odd, well mixed (splitmix64 of the position); the same on every machine."""
    key = str(device)
    if key not in _FACTORS:
        with np.errstate(over="ignore"):
            x = np.arange(1, _COLUMNS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = (x ^ (x >> np.uint64(31))) | np.uint64(1)
        _FACTORS[key] = torch.from_numpy(x.view(np.int64)).to(device)
    return _FACTORS[key]


_FACTORS: dict[str, Tensor] = {}


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested containers with their paths: tensors, numbers, strings, and whatever is no container."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}[{index}]")
    elif isinstance(value, torch.Generator):
        yield name, value.get_state()
    elif value is None or isinstance(value, Tensor | bool | int | float | complex | str | bytes):
        yield name, value
    else:
        yield name, type(value).__qualname__  # its text may hold an address


# ---------------------------------------------------------------- identities

_TORCH_NAMESPACES = (
    "torch", "torch.Tensor", "torch.nn.functional", "torch.nn.Module", "torch.cuda", "torch.cuda.Event",
    "torch.cuda.Stream", "torch.autograd", "torch.distributed", "torch.linalg", "torch.special", "torch.fft",
)  # fmt: skip
_PYTHON_NAMESPACES = ("time", "math", "os", "builtins", "threading", "signal", "gc", "json", "csv", "numpy")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MAY_CHANGE = frozenset({"builtins.print", "builtins.input", "builtins.__import__", "builtins.help", "builtins._"})
_TORCH_DIRECTORY = str(Path(torch.__file__).parent) + os.sep
_OWN_DIRECTORY = str(Path(__file__).parents[1]) + os.sep


@dataclass(frozen=True)
class _Bound:
    """What a name was bound to. Holding the object keeps its identity from being given to another."""

    target: Any
    code: Any = None
    defaults: Any = None

    @classmethod
    def of(cls, target: Any) -> _Bound:
        function = target.__func__ if isinstance(target, staticmethod | classmethod) else target
        if isinstance(function, types.FunctionType):
            return cls(target, function.__code__, function.__defaults__)
        return cls(target)

    def same(self, other: Any) -> bool:
        now = _Bound.of(other)
        return now.target is self.target and now.code is self.code and now.defaults is self.defaults


class Identities:
    """What the names of the clock, of torch and of the harness were bound to when this was made.

    A function that torch has wrapped in one of its own (the compiler does) has not changed.
    """

    def __init__(self) -> None:
        self._namespaces: list[tuple[str, Any, dict[str, _Bound]]] = []
        self._seen: set[int] = set()
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._kernels = frozenset(torch.library._impls)
        for name in (*_PYTHON_NAMESPACES, *_TORCH_NAMESPACES):
            namespace = _resolve(name)
            if namespace is not None:
                self._add(name, namespace)
        for name, module in sorted(sys.modules.items()):
            if name.partition(".")[0] == "algoperf_torch" and isinstance(module, types.ModuleType):
                self._add(name, module)
                for value in list(vars(module).values()):
                    if isinstance(value, type) and value.__module__.startswith("algoperf_torch"):
                        self.add_class(value)

    def add_class(self, kind: type) -> None:
        """Watches the methods of a class and of its bases."""
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] not in sys.stdlib_module_names:
                self._add(f"{base.__module__}.{base.__qualname__}", base)

    def add_object(self, name: str, value: object) -> None:
        """Watches the class of an object, and that none of its methods is overridden on the object itself."""
        self.add_class(type(value))
        if hasattr(value, "__dict__"):
            self._add(name, value)

    def _add(self, name: str, namespace: Any) -> None:
        if id(namespace) not in self._seen:
            self._seen.add(id(namespace))
            self._namespaces.append((name, namespace, {k: _Bound.of(v) for k, v in _callables(namespace)}))

    def changes(self) -> list[str]:
        """Qualified names that are bound to something else now, or that appeared and hide another of the same name."""
        found = [
            f"handler of {number.name}"
            for number, handler in self._handlers.items()
            if signal.getsignal(number) != handler
        ]
        fresh_kernels = torch.library._impls - self._kernels
        found += [f"kernel of {name}" for name in sorted(fresh_kernels) if name.startswith(("aten/", "algoperf/"))]
        for name, namespace, before in self._namespaces:
            if isinstance(namespace, types.ModuleType) and sys.modules.get(name, namespace) is not namespace:
                found.append(f"module {name}")
            now = dict(vars(namespace))
            for key, bound in before.items():
                if key not in now:
                    found.append(f"{name}.{key} (deleted)")
                elif not bound.same(now[key]) and not _wrapped_by_torch(now[key], bound.target):
                    found.append(f"{name}.{key}")
            for key, value in _callables(namespace):
                hidden = _MISSING if key in before else _hidden(namespace, key)
                if hidden is not _MISSING and not _wrapped_by_torch(value, hidden):
                    found.append(f"{name}.{key} (added)")
        return [name for name in found if name not in _MAY_CHANGE]


def _resolve(name: str) -> Any:
    parts = name.split(".")
    value: Any = sys.modules.get(parts[0])
    for part in parts[1:]:
        value = getattr(value, part, None)
    return value


_MISSING = object()


def _hidden(namespace: Any, key: str) -> Any:
    """What a name that is added here takes the place of: inherited, the class's, or builtin; else `_MISSING`."""
    if isinstance(namespace, types.ModuleType):
        return getattr(builtins, key, _MISSING)
    bases = namespace.__mro__[1:] if isinstance(namespace, type) else type(namespace).__mro__
    found = next((vars(base)[key] for base in bases if key in vars(base)), _MISSING)
    return nn.Module._call_impl if key == "_compiled_call_impl" else found  # set by `model.compile()`


def _callables(namespace: Any) -> list[tuple[str, Any]]:
    kinds = (property, classmethod, staticmethod, types.ModuleType)
    return [(k, v) for k, v in list(vars(namespace).items()) if callable(v) or issubclass(type(v), kinds)]


def _wrapped_by_torch(value: Any, original: Any) -> bool:
    """Whether `value` is a function of torch around `original`, in whatever way it refers to it."""
    if not isinstance(value, types.FunctionType) or not value.__code__.co_filename.startswith(_TORCH_DIRECTORY):
        return False
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    return root(value) is root(original) or any(item is original for item in held)


def root(value: Any) -> Any:
    """The innermost function under decorators, compiler wrappers, partial applications, bound and class methods."""
    while True:
        if isinstance(value, types.MethodType | staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, property) and value.fget is not None:
            value = value.fget
        elif isinstance(value, types.FunctionType) and not {"__wrapped__", _COMPILED}.isdisjoint(vars(value)):
            value = vars(value).get("__wrapped__") or vars(value)[_COMPILED]
        else:
            return value


_COMPILED = "_torchdynamo_orig_callable"


# ---------------------------------------------------------------- the model's structure


@dataclass(frozen=True)
class Structure:
    """All of a model that evaluation depends on, beside the values of parameters and running statistics."""

    modules: Mapping[str, str]  # name -> class
    parameters: Mapping[str, str]  # name -> dtype, shape, device
    trainable: Mapping[str, bool]
    hooks: Mapping[str, int]  # name -> number of forward hooks

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        modules = dict(model.named_modules())
        return cls(
            modules={name: f"{type(m).__module__}.{type(m).__qualname__}" for name, m in modules.items()},
            parameters={n: f"{p.dtype} {list(p.shape)} on {p.device}" for n, p in model.named_parameters()},
            trainable={n: p.requires_grad for n, p in model.named_parameters()},
            hooks={name or "model": count for name, m in modules.items() if (count := _forward_hooks(m))},
        )


def _forward_hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def global_hooks() -> int:
    """Forward hooks on all modules at once, and active dispatch or function modes, in this thread."""
    module: Any = torch.nn.modules.module
    hooks = len(module._global_forward_hooks) + len(module._global_forward_pre_hooks)
    modes: int = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return hooks + modes


def learned(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What training changes: parameters, and the buffers that are saved with the model."""
    constants = {id(buffer) for _, buffer in _unsaved_buffers(model)}
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if id(buffer) not in constants]
    return [*model.named_parameters(), *buffers]


def constants(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that training leaves alone: those not saved with the model, but for the harness's own switches."""
    switches = ("rate", "update")  # of dropout and batch norm
    return [(name, buffer) for name, buffer in _unsaved_buffers(model) if name.rpartition(".")[2] not in switches]


def _unsaved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{prefix}.{name}" if prefix else name, buffer)
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]


# ---------------------------------------------------------------- threads and processes

_KNOWN_THREADS = ("algoperf-", "pin_memory", "InductorSubproc", "tqdm_monitor", "wandb", "MsgRouterThr", "NetStatThr")
_KNOWN_PACKAGES = frozenset({"torch", "triton", "tqdm", "tensorboard", "wandb", "torchvision", "algoperf_torch"})
_KNOWN_PROCESSES = ("torch/_inductor/compile_worker", "multiprocessing.resource_tracker", "wandb", "ptxas", "cc1plus")


@dataclass(frozen=True)
class Worker:
    """A thread or child process that is not the harness's."""

    name: str
    id: int
    cpu_seconds: float


def foreign_threads(known: frozenset[int]) -> list[Worker]:
    """Python threads that are neither in `known` (idents), nor the harness's, nor a library's, nor an idle pool worker."""
    frames = sys._current_frames()
    registered = {thread.ident: thread for thread in threading.enumerate()}
    workers = []
    for ident, frame in frames.items():
        if ident in known or ident == threading.get_ident():
            continue
        thread = registered.get(ident)
        if thread is None:
            workers.append(Worker(f"unregistered, in {frame.f_code.co_qualname}", 0, 0.0))
        elif not _is_known(thread) and not _is_idle_worker(frame):
            workers.append(Worker(thread.name, thread.native_id or 0, thread_cpu_seconds(thread.native_id or 0)))
    return workers


def _is_known(thread: threading.Thread) -> bool:
    if thread.name.startswith(_KNOWN_THREADS) or isinstance(thread, threading._DummyThread):
        return True
    target = getattr(thread, "_target", None)
    owners = {type(thread).__module__.partition(".")[0], str(getattr(target, "__module__", "")).partition(".")[0]}
    return bool(owners & _KNOWN_PACKAGES)


def _is_idle_worker(frame: types.FrameType) -> bool:
    """Whether a thread of `concurrent.futures` waits for work: then its own loop is the innermost frame."""
    return frame.f_code.co_name == "_worker" and frame.f_globals.get("__name__") == "concurrent.futures.thread"


def python_threads() -> frozenset[int]:
    return frozenset(sys._current_frames())


def thread_cpu_seconds(native_id: int, process: int | str = "self") -> float:
    """Processor time of one thread; 0 where the system does not tell or the thread is gone."""
    try:
        nanoseconds = Path(f"/proc/{process}/task/{native_id}/schedstat").read_text(encoding="ascii").split()[0]
    except OSError:
        return 0.0
    return int(nanoseconds) / 1e9


def foreign_children(known: frozenset[int]) -> list[Worker]:
    """Living descendants of this process that are not in `known` (process numbers) and no compiler's or library's."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            seconds = sum(thread_cpu_seconds(thread.id, process.pid) for thread in process.threads())
            if process.pid in known or process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if not any(part in command for part in _KNOWN_PROCESSES):
            workers.append(Worker(command[:120] or "?", process.pid, seconds))
    return workers


def child_processes() -> frozenset[int]:
    return frozenset(process.pid for process in psutil.Process().children(recursive=True))


def census() -> tuple[int, int]:
    """Number of threads of this process, native ones included, and of its living descendants."""
    process = psutil.Process()
    return process.num_threads(), len(process.children(recursive=True))


def busy_seconds(window: float) -> float:
    """Processor seconds that all other threads of this process use while the calling one sleeps for `window` seconds."""
    started = _process_time() - _thread_time()
    _sleep(window)
    return _process_time() - _thread_time() - started


# ---------------------------------------------------------------- single steps

_MOST_MARKS = 20_000  # between two readings


class StepTimes:
    """Durations of single steps without waiting for the device: events on a CUDA device, a clock elsewhere.

    `start` begins a stretch of steps, `mark` ends one step. A mark costs well under a microsecond on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stretches: list[list[Any]] = [[]]
        self._spare: list[torch.cuda.Event] = []
        self._left = _MOST_MARKS

    def start(self) -> None:
        self._stretches.append([])
        self.mark()

    def mark(self) -> None:
        if not self._cuda:
            if self._left > 0:
                self._left -= 1
                self._stretches[-1].append(_perf_counter())
        elif self._left > 0:
            self._left -= 1
            event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            event.record()
            self._stretches[-1].append(event)

    def read(self) -> list[float]:
        """Seconds of every step since the last reading; to be called when the device is idle."""
        seconds = []
        for marks in self._stretches:
            for before, after in itertools.pairwise(marks):
                seconds.append(before.elapsed_time(after) / 1e3 if self._cuda else after - before)
            if self._cuda:
                self._spare += marks
        self._stretches, self._left = [[]], _MOST_MARKS
        return seconds


# ---------------------------------------------------------------- compilations


@dataclass
class CompileCounts:
    seconds: float = 0.0
    graphs: int = 0  # compilations, backward graphs that are compiled late included
    recompilations: int = 0  # of code that had been compiled before


class CompileMonitor:
    """Counts the compiler's work through its callbacks, each into the entry of `stage` at that moment.

    The compiler is a slow import, so nothing is registered before something else has imported it; what it did until then
    is read from its own books.
    """

    def __init__(self) -> None:
        self.stage = "harness"
        self.counts: dict[str, CompileCounts] = {}
        self._handler: Any = None
        self._started: float | None = None

    def attach(self) -> None:
        """Registers the callbacks as soon as the compiler is there; to be called wherever `stage` changes."""
        if self._handler is not None or "torch._dynamo.callback" not in sys.modules:
            return
        self._handler = sys.modules["torch._dynamo.callback"].callback_handler
        books = getattr(sys.modules.get("torch._dynamo.utils"), "compilation_time_metrics", {})
        past = books.get("_compile.compile_inner", [])
        if past:
            self._entry().seconds += sum(past)
            self._entry().graphs += len(past)
        self._handler.register_start_callback(self._start)
        self._handler.register_end_callback(self._end)

    @property
    def intact(self) -> bool:
        return self._handler is None or (
            self._start in self._handler.start_callbacks and self._end in self._handler.end_callbacks
        )

    def detach(self) -> None:
        if self._handler is not None and self.intact:
            self._handler.remove_start_callback(self._start)
            self._handler.remove_end_callback(self._end)
        self._handler = None

    def _entry(self) -> CompileCounts:
        return self.counts.setdefault(self.stage, CompileCounts())

    def _start(self, args: Any) -> None:
        self._started = _perf_counter()
        entry = self._entry()
        entry.graphs += 1
        frame, _, number = str(getattr(args, "compile_id", "")).partition("/")
        entry.recompilations += bool(frame) and number not in ("", "0")

    def _end(self, _: Any) -> None:
        if self._started is not None:
            self._entry().seconds += _perf_counter() - self._started
            self._started = None


# ---------------------------------------------------------------- audit events

_PROCESS_EVENTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"})
_NETWORK_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.getaddrinfo"})
_WATCHED_EVENTS = _PROCESS_EVENTS | _NETWORK_EVENTS | {"open"}


@dataclass
class AuditTrail:
    """What the submission opened, started or connected to while it was running; `active` says when that is."""

    evaluation_files: frozenset[str] = frozenset()
    active: bool = False
    opened: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)

    def note(self, event: str, arguments: Sequence[Any]) -> None:
        """Called for every watched event. Must not raise: an error here would be the caller's."""
        if not self.active:
            return
        if event == "open":
            if self.evaluation_files and isinstance(arguments[0], str | bytes):
                path = os.path.realpath(os.fsdecode(arguments[0]))
                if path in self.evaluation_files:
                    self.opened.append(path)
            return
        caller = _calling_file(sys._getframe(1))
        if caller is not None:
            notes = self.processes if event in _PROCESS_EVENTS else self.connections
            notes.append(f"{event} {str(arguments)[:80]} from {caller}")


def _calling_file(frame: types.FrameType | None) -> str | None:
    """The innermost file that is neither the standard library's nor an installed package's.

    None where an installed package is met first: then that package acts (a compiler, a logger), whoever called it.
    """
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OWN_DIRECTORY) and file != __file__:
            return None
        if "-packages" + os.sep in file:
            return None
        if not file.startswith((_STANDARD_LIBRARY, "<")) and file != __file__:
            return file
        frame = frame.f_back
    return None


_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_current_trail: list[AuditTrail] = []


def install(trail: AuditTrail) -> None:
    """Makes `trail` the one that the process's audit hook writes to. The hook itself can never be removed again."""
    first = not _current_trail
    _current_trail[:] = [trail]
    if first:
        sys.addaudithook(_audit)


def _audit(event: str, arguments: Any, watched: frozenset[str] = _WATCHED_EVENTS) -> None:
    if event in watched:
        _current_trail[0].note(event, arguments)


def mapped_files(paths: frozenset[str]) -> frozenset[str]:
    """Those of `paths` that this process holds open or has mapped into memory, through whatever library."""
    if not paths:
        return frozenset()
    held: set[str] = set()
    try:
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor is closed by now
                held.add(str(entry.readlink()))
        with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 - a pseudo-file, read line by line
            held.update(line[line.index("/") :].rstrip("\n") for line in maps if "/" in line)
    except OSError:
        return frozenset()
    return paths & held


def reference_clock() -> Callable[[], float]:
    """Seconds from the system's monotonic clock, through a function that nobody else refers to."""
    read, identity = time.clock_gettime, time.CLOCK_MONOTONIC
    return lambda: read(identity)
