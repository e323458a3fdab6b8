"""The rules that can be seen in source code, and the names that break them. docs/rules.md says them in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, cast

from algoperf_torch.versions import load_version, version_names
from algoperf_torch.workloads.registry import workload_names, workload_spec

Severity = Literal["error", "warning"]

RULES: Mapping[str, str] = MappingProxyType({
    "kernels": "Faster kernels are not an algorithm: a submission brings none of its own.",
    "workload-names": "The same algorithm runs on all workloads: none is told by its name.",
    "fingerprints": "No workload is told by its shapes, its step hint, its budget or the size of its data.",
    "precision": "Numerical flags, and the precision of the model's passes, belong to the harness.",
    "environment": "Environment variables and the process's limits belong to the harness.",
    "clocks": "The clock belongs to the harness; a submission may ask the harness how much time is used up.",
    "workers": "Nothing of a submission works while the clock stands, and it starts no process.",
    "files": "A submission reads and writes no files: training data come from the stream, results go to the log.",
    "network": "A submission opens no connection.",
    "pretrained": "A submission carries no weights or data: training starts from the harness's initialisation.",
    "evaluation": "Evaluation data, and the evaluation itself, belong to the harness.",
    "harness": "Of this package a submission uses the public names, the optimizers and the kernels.",
    "patching": "A submission changes nothing of torch, of Python, or of the harness.",
    "dynamic-code": "What is submitted is the source: no code is made, fetched or hidden while it runs.",
})  # fmt: skip


@dataclass(frozen=True)
class Forbidden:
    """What a name breaks."""

    rule: str
    severity: Severity = "error"
    what: str = ""


# Modules whose import alone breaks a rule.
MODULES: Mapping[str, Forbidden] = MappingProxyType(
    {
        name: Forbidden(rule)
        for rule, names in {
            "kernels": (
                *("triton", "numba", "cupy", "pycuda", "ctypes", "cffi", "cuda", "cutlass", "tilelang", "taichi"),
                *("warp", "torch.utils.cpp_extension", "Cython", "pythran"),
            ),
            "workers": ("subprocess", "multiprocessing", "torch.multiprocessing", "joblib", "ray", "dask", "pty"),
            "network": (
                *("socket", "urllib", "http", "ftplib", "smtplib", "requests", "aiohttp", "httpx", "paramiko"),
                *("huggingface_hub", "datasets", "wandb", "mlflow", "torch.hub", "socketserver", "xmlrpc"),
            ),
            "pretrained": ("timm", "transformers", "torchvision.models", "safetensors"),
            "evaluation": ("torchvision.datasets", "torch_geometric.datasets", "algoperf_torch.data"),
            "harness": tuple(
                f"algoperf_torch.{part}"
                for part in ("workloads", "runner", "scoring", "interop", "run", "cli", "versions")
            ),
        }.items()
        for name in names
    }
)

# Objects whose use breaks a rule: by full name, or by that of what holds them.
USES: Mapping[str, Forbidden] = MappingProxyType(
    {
        name: Forbidden(rule, cast("Severity", severity), what)
        for rule, severity, what, names in (
            ("kernels", "error", "loads or registers a kernel of its own", (
                "torch.ops.load_library", "torch.cuda._compile_kernel", "torch.cuda.jiterator", "torch.library.Library",
                "torch.library.custom_op", "torch.library.triton_op", "torch.library.impl", "torch.library.register_kernel",
                "torch.mps.compile_shader", "torch.utils._triton")),
            ("precision", "error", "sets a numerical flag", (
                "torch.set_float32_matmul_precision", "torch.set_default_dtype", "torch.set_default_tensor_type",
                "torch.use_deterministic_algorithms", "torch.set_deterministic_debug_mode", "torch.set_flush_denormal",
                "torch.backends.cuda.enable_flash_sdp", "torch.backends.cuda.enable_math_sdp",
                "torch.backends.cuda.enable_mem_efficient_sdp", "torch.backends.cudnn.flags",
                "torch.backends.cuda.preferred_linalg_library", "torch.backends.cuda.preferred_blas_library",
                "torch.set_default_device")),
            ("precision", "warning", "changes the precision of the model's passes", (
                "torch.autocast", "torch.amp", "torch.cuda.amp", "torch.cpu.amp")),
            ("environment", "error", "changes the process that the harness has set up", (
                "os.putenv", "os.unsetenv", "os.sched_setaffinity", "os.nice", "os.setpriority", "os.chdir",
                "resource.setrlimit", "torch.set_num_threads", "torch.set_num_interop_threads", "gc.disable", "gc.freeze",
                "torch.cuda.set_device", "torch.cuda.set_per_process_memory_fraction",
                "torch.cuda.memory.change_current_allocator",
                "signal.signal", "signal.setitimer", "atexit.register")),
            ("clocks", "warning", "reads a clock; `context.elapsed_seconds` is the harness's own", (
                "time.time", "time.time_ns", "time.perf_counter", "time.perf_counter_ns", "time.monotonic",
                "time.monotonic_ns", "time.process_time", "time.process_time_ns", "time.thread_time", "time.clock_gettime",
                "time.clock_gettime_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime", "timeit",
                "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
                "torch.cuda.Event", "torch.Event", "os.times")),
            ("clocks", "error", "waits", ("time.sleep", "asyncio.sleep", "torch.cuda._sleep")),
            ("workers", "warning", "works beside the step: it must rest while the clock stands", (
                "threading.Thread", "threading.Timer", "_thread", "concurrent.futures", "asyncio", "torch.cuda.Stream",
                "torch.cuda.graph", "torch.cuda.CUDAGraph", "torch.jit.fork", "torch.futures")),
            ("workers", "error", "starts a process", (
                "os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.posix_spawnp", "os.execv", "os.execve",
                "os.execvp", "os.execl", "os.execlp", "os.spawnl", "os.spawnlp", "os.spawnv", "os.spawnvp", "os.kill")),
            ("files", "error", "reads or writes a file", (
                "builtins.open", "io.open", "os.open", "os.fdopen", "os.listdir", "os.scandir", "os.walk", "os.remove",
                "os.unlink", "os.rename", "os.replace", "os.makedirs", "os.mkdir", "shutil", "tempfile", "glob", "mmap",
                "numpy.save", "numpy.savez", "numpy.fromfile", "numpy.loadtxt", "numpy.genfromtxt", "numpy.memmap",
                "numpy.lib.format.open_memmap", "torch.save", "torch.from_file", "json.load", "json.dump", "h5py",
                "pandas.read_csv",
                "pandas.read_parquet", "pickle.dump", "torch.UntypedStorage.from_file", "shelve", "sqlite3", "lzma.open",
                "gzip.open", "bz2.open", "importlib.resources", "pkgutil.get_data", "linecache", "fileinput", "codecs.open")),
            ("pretrained", "error", "loads stored weights or data", (
                "torch.load", "numpy.load", "pickle.load", "pickle.loads", "dill", "cloudpickle", "marshal.loads",
                "marshal.load",
                "base64.b64decode", "base64.b85decode", "base64.a85decode", "zlib.decompress", "lzma.decompress",
                "bz2.decompress", "gzip.decompress", "bytes.fromhex", "torch.utils.model_zoo", "torch.export.load",
                "torch.jit.load", "binascii.unhexlify", "binascii.a2b_base64")),
            ("patching", "error", "looks into or behind running code", (
                "sys.settrace", "sys.setprofile", "sys._getframe", "sys._current_frames", "inspect.stack",
                "inspect.currentframe", "inspect.getouterframes", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
                "importlib.reload", "builtins.globals", "unittest.mock", "torch.overrides", "torch.utils._python_dispatch",
                "sys.addaudithook", "sys.meta_path", "sys.path_hooks", "sys.setswitchinterval",
                "torch.nn.modules.module.register_module_forward_hook", "wrapt", "forbiddenfruit",
                "torch.nn.modules.module.register_module_forward_pre_hook", "torch.utils.rename_privateuse1_backend")),
            ("dynamic-code", "error", "makes code while it runs", (
                "builtins.exec", "builtins.eval", "builtins.compile", "types.CodeType", "types.FunctionType", "code", "codeop",
                "runpy", "importlib.util.spec_from_file_location", "importlib.machinery", "builtins.__import__",
                "importlib.import_module", "importlib.__import__", "torch.fx.experimental", "inspect.getsource")),
            ("evaluation", "error", "refers to an evaluation split", (
                "algoperf_torch.spec.Split", "algoperf_torch.spec.EVALUATION_SPLITS")),
        )
        for name in names
    }
)  # fmt: skip

# Modules of which no attribute may be set; torch's flags are told apart from the rest.
FLAGS = ("torch.backends", "torch._dynamo.config", "torch._inductor.config", "torch._functorch.config")

ATTRIBUTES: Mapping[str, Forbidden] = MappingProxyType(
    {  # of any object
        **dict.fromkeys(
            ("eval_model", "_eval_model", "_eval_model_on_split", "_build_input_queue", "_build_dataset"),
            Forbidden("evaluation", what="reaches for the evaluation or for another input queue"),
        ),
        **dict.fromkeys(
            ("eval_examples", "eval_batches", "evaluation_files", "evaluate_chunk", "metric_sums"),
            Forbidden("evaluation", what="reaches for evaluation data"),
        ),
        **dict.fromkeys(
            ("read_text", "read_bytes", "write_text", "write_bytes"), Forbidden("files", what="reads or writes a file")
        ),
        **dict.fromkeys(
            (
                "__globals__",
                "__builtins__",
                "__code__",
                "__closure__",
                "__subclasses__",
                "f_back",
                "f_globals",
                "f_locals",
            ),
            Forbidden("patching", what="looks into or behind running code"),
        ),
    }
)

PLAIN_MODULES = frozenset({"torch", "torch.nn", "torch.nn.functional", "torch.optim", "math", "numpy"})
# of which a name may be chosen while the code runs: a dtype, an activation, an optimizer

FACTS = frozenset(
    {"step_hint", "budget_seconds", "max_allowed_runtime_sec", "eval_period_time_sec", "num_train_examples"}
    | {"num_eval_train_examples", "num_validation_examples", "num_test_examples", "validation_target_value"}
    | {"test_target_value", "eval_batch_size"}
)  # that a submission may read, and may not tell workloads by
SMALL = 16  # numbers up to this are dimensions and channels of anything
LONGEST_LITERAL = 4_096  # characters or entries: beyond, a constant is data


@cache
def forbidden_names() -> frozenset[str]:
    """Names of workloads and datasets, in lower case."""
    names = set(workload_names()) | {workload_spec(name).dataset for name in workload_names()}
    return frozenset(
        names | {"imagenet", "librispeech", "criteo", "conformer", "deepspeech", "finewebedu", "ogbg-molpcba"}
    )


@cache
def data_sizes() -> Mapping[float, str]:
    """Numbers that no algorithm has by chance -> what they are: sizes of data and models, targets."""
    found: dict[float, str] = {}
    for name in workload_names():
        spec = workload_spec(name)
        sizes = (spec.num_train, spec.num_eval_train, spec.num_validation, spec.num_test, spec.num_parameters)
        found |= {size: f"a size of {spec.base}" for size in sizes if size is not None and size % 100 and size > 1_000}
    for version in map(load_version, version_names()):
        for name, terms in version.workloads.items():
            targets = (terms.validation_target, terms.test_target)
            odd = [value for value in targets if value is not None and len(repr(value)) > 6]
            found |= dict.fromkeys(odd, f"a target of {name}")
    return MappingProxyType(found)


@cache
def terms() -> Mapping[float, str]:
    """Step hints, budgets and round sizes -> what they are. Round ones are a lookup only where something is compared."""
    found: dict[float, str] = {}
    for name in workload_names():
        spec = workload_spec(name)
        found |= {size: f"a size of {spec.base}" for size in (spec.num_train, spec.num_validation) if size > 1_000}
    for version in map(load_version, version_names()):
        for name, entry in version.workloads.items():
            found[entry.step_hint] = f"the step hint of {name}"
            if entry.budget_seconds > 1_000:
                found[entry.budget_seconds] = f"the budget of {name}"
    return MappingProxyType(found)
