"""Every rule of `algoperf check` catches what it is for, and lets its honest neighbour pass."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from algoperf_torch.cli import main as algoperf
from algoperf_torch.errors import SubmissionLoadError, UnknownNameError
from algoperf_torch.optim import registry
from algoperf_torch.runner.check import check
from algoperf_torch.runner.check.rules import RULES
from algoperf_torch.runner.check.sources import find_sources

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs" / "rules.md"

CAUGHT = {  # rule -> sources, each of which breaks it
    "kernels": [
        "import triton",
        "import triton.language as tl",
        "from torch.utils.cpp_extension import load_inline",
        "import torch.utils.cpp_extension as ext",
        "import importlib\nimportlib.import_module('triton')",
        "from numba import njit",
        "import ctypes",
        "import torch\n@torch.library.custom_op('a::b', mutates_args=())\ndef f(x: int) -> int: ...",
        "import torch\ntorch.ops.load_library('x.so')",
        "import torch as t\nkernel = t.cuda._compile_kernel",
    ],
    "workload-names": [
        "RATES = {'imagenet_resnet': 0.1}",
        "def rate(name):\n    if name == 'wmt': return 1",
        "x = 'ImageNet'",
        "x = 'im' + 'agenet_vit'",
        "def f(workload):\n    return workload.__class__.__name__",
        "def f(workload):\n    return type(workload).__name__",
        "match 1:\n    case 'ogbg': pass",
    ],
    "fingerprints": [
        "n = 1281167",
        "def f(w):\n    return w.num_train_examples == 34742",
        "TABLE = {10666: 0.1}",
        "TABLE = {80000: 0.1, 120000: 0.2}",
        "def f(context):\n    return 1 if context.step_hint > 100_000 else 2",
        "def f(context):\n    return context.budget_seconds in (7703, 4430)",
        "def f(p):\n    return p.shape == (1000, 2048)",
        "def f(p):\n    return tuple(p.shape) in {(64, 3, 7, 7)}",
        "def f(ps):\n    return sum(p.numel() for p in ps) == 25_000_000",
        "target = 0.77431",
        "match 1:\n    case 18094: pass",
    ],
    "precision": [
        "import torch\ntorch.set_float32_matmul_precision('medium')",
        "import torch as t\nt.backends.cuda.matmul.allow_tf32 = True",
        "from torch.backends import cudnn\ncudnn.benchmark = False",
        "import torch\nsetattr(torch.backends.cudnn, 'benchmark', True)",
        "from torch import set_default_dtype as s\ns(None)",
        "import torch\nf = getattr(torch, 'use_deterministic_algorithms')\nf(True)",
        "import torch._dynamo\ntorch._dynamo.config.suppress_errors = True",
        "import torch\nwith torch.autocast('cuda'): pass",
        "from torch.amp import GradScaler\nscaler = GradScaler()",
    ],
    "environment": [
        "import os\nos.environ['OMP_NUM_THREADS'] = '1'",
        "from os import environ\nenviron.update(A='1')",
        "import os\ndel os.environ['A']",
        "import os\nos.environ.setdefault('A', '1')",
        "import torch\ntorch.set_num_threads(1)",
        "import os\nos.sched_setaffinity(0, {0})",
        "import signal\nsignal.signal(15, print)",
    ],
    "clocks": [
        "import time\ntime.sleep(1)",
        "from time import time as now\nprint(now())",
        "import time as t\nstart = t.perf_counter()",
        "import time\nclock = time.monotonic\nclock()",
        "from time import *\nperf_counter()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now()",
        "import time\ngetattr(time, 'ti' + 'me')()",
        "__import__('time').sleep(2)",
    ],
    "workers": [
        "import subprocess",
        "from multiprocessing import Pool",
        "import torch\ntorch.multiprocessing.spawn(print)",
        "import os\nos.system('ls')",
        "import os\nos.fork()",
        "import threading\nthreading.Thread(target=print).start()",
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor()",
        "import torch\nside = torch.cuda.Stream()",
    ],
    "files": [
        "open('x')",
        "with open('/data/validation.bin', 'rb') as file: pass",
        "import numpy as np\nnp.memmap('x')",
        "import torch\ntorch.save({}, 'x')",
        "from pathlib import Path\nPath('x').read_text()",
        "from pathlib import Path\nPath('x').open()",
        "import os\nos.listdir('.')",
        "import json\njson.load(None)",
    ],
    "network": [
        "import socket",
        "from urllib.request import urlopen",
        "import requests",
        "import torch\ntorch.hub.load('a', 'b')",
        "import wandb",
    ],
    "pretrained": [
        "import torch\ntorch.load('x')",
        "import pickle\npickle.loads(b'')",
        "from base64 import b64decode\nb64decode('')",
        "import torchvision.models",
        f"WEIGHTS = '{'a' * 5000}'",
        f"WEIGHTS = [{'0,' * 5000}]",
        "import numpy\nnumpy.load('x.npz')",
    ],
    "evaluation": [
        "def f(workload):\n    return workload.eval_model(1)",
        "def f(workload):\n    return getattr(workload, '_build_input_queue')(1)",
        "from algoperf_torch.spec import Split",
        "import algoperf_torch.spec as s\nx = s.Split.TEST",
        "import algoperf_torch.data.packed",
        "def get_eval_batch_size(name): return 1",
        "def f(w):\n    return w.eval_examples(1, 2, 3)",
    ],
    "harness": [
        "from algoperf_torch.runner.clock import Clock",
        "import algoperf_torch.workloads.registry",
        "from algoperf_torch import workloads",
        "def f(self):\n    return self.context.engine",
        "def f(workload):\n    return workload._context",
    ],
    "patching": [
        "import torch\ntorch.cuda.synchronize = print",
        "import time\ntime.time = print",
        "import torch.nn.functional as F\nF.relu = F.gelu",
        "import torch\nsetattr(torch.Tensor, 'backward', print)",
        "import sys\nsys.modules['time'] = None",
        "import sys\nx = sys.modules['algoperf_torch.runner.clock']",
        "import sys\nsys.modules.get('torch')",
        "from torch import nn\nnn.Module.__call__ = print",
        "def f(workload):\n    workload.loss_fn = print",
        "def f(context):\n    setattr(context, 'step', 3)",
        "import gc\ngc.get_objects()",
        "import inspect\ninspect.currentframe()",
        "def f(x):\n    return x.__globals__",
        "import torch\ntorch.__dict__['x'] = 1",
    ],
    "dynamic-code": [
        "exec('x = 1')",
        "x = eval('1')",
        "compile('1', 'x', 'eval')",
        "import importlib\nimportlib.import_module(input())",
        "__import__(input())",
        "import os\nf = getattr(os, input())",
    ],
}

HONEST = {  # rule -> what looks like breaking it
    "kernels": [
        "from algoperf_torch.kernels.adam import adam_step_",
        "import torch\nf = torch.compile(print)",
        "import triton_like",
        "kernel = conv.weight",
    ],
    "workload-names": [
        "def get_batch_size(workload_name):\n    return {'wmt': 128, 'imagenet_vit': 1024}[workload_name]",
        "BATCH_SIZES = {'mnist': 16}",
        "class A:\n    batch_sizes = {'digits': 64}",
        "class A:\n    batch_sizes: dict = {'digits': 64}",
        '"""wmt"""\ndef f():\n    "imagenet_resnet"',
        "message = 'tuned on wmt and imagenet_resnet'",
        "def f(optimizer):\n    return optimizer.__class__.__name__",
    ],
    "fingerprints": [
        "def f(workload):\n    return int(0.05 * workload.step_hint)",
        "def f(context):\n    return context.step_hint > 0",
        "def f(p):\n    return p.ndim < 2 or p.shape[0] == 1 or p.shape[-1] == 3",
        "def f(p):\n    return max(p.shape) > 8192 or p.numel() >= 1_000_000",
        "def f(p, q):\n    return p.shape == q.shape",
        "eps, total = 1e-8, 10_000\nif total == 10_000: pass",
        "names = {0: 'a', 1: 'b'}",
        "lr = 0.001",
    ],
    "precision": [
        "import torch\nx = torch.ones(1).to(torch.bfloat16)",
        "import torch\nfast = torch.backends.cudnn.is_available()",
        "import torch\nname = torch.get_float32_matmul_precision()",
        "def f(group):\n    group.precision = 'high'",
        "import torch\ndtype = getattr(torch, 'float32')",
    ],
    "environment": [
        "import os\nrank = int(os.environ.get('RANK', 0))",
        "from os import environ\nsize = environ['WORLD_SIZE']",
        "environ = {}\nenviron['a'] = 1",
        "import torch\nn = torch.get_num_threads()",
    ],
    "clocks": [
        "def f(context):\n    return context.elapsed_seconds",
        "time = 3\nprint(time)",
        "def f(time):\n    return time.time()",
        "import datetime\nx = datetime.timedelta(1)",
        "def sleep(x): ...\nsleep(1)",
    ],
    "workers": [
        "import torch.distributed as dist\ndist.all_reduce(None)",
        "import os\nprint(os.getpid())",
        "def fork(x): return x\nfork(1)",
        "from threading import Lock",
    ],
    "files": [
        "def open(x): return x\nopen(1)",
        "import json\njson.loads('{}')",
        "from pathlib import Path\nname = Path('x').name",
        "valve.open()",
    ],
    "network": [
        "from http_like import get",
        "def f(queue):\n    return queue.get()",
        "requests = []\nrequests.append(1)",
    ],
    "pretrained": [
        "def f(optimizer, state):\n    optimizer.load_state_dict(state)",
        "COEFFICIENTS = [(3.4445, -4.775, 2.0315)] * 5",
        "import torch\ntorch.zeros(1)",
        "from copy import deepcopy",
    ],
    "evaluation": [
        "def f(eval_results):\n    return eval_results[-1][1]['validation/accuracy']",
        "def f(model):\n    model.eval()",
        "from algoperf_torch.spec import Batch, ParamRole",
    ],
    "harness": [
        "from algoperf_torch import BaseOptimizer, OptimizerAlgorithm",
        "from algoperf_torch.optim.schedules import make_schedule",
        "from algoperf_torch.errors import TrainingComplete",
        "def f(car):\n    return car.engine",
    ],
    "patching": [
        "import sys\nmodule = sys.modules[__name__]",
        "def f(group, lr):\n    group['lr'] = lr",
        "import torch\nclass A(torch.optim.Optimizer):\n    def __init__(self):\n        self.x = 1",
        "def f(model, torch):\n    torch.x = 1",
        "def f(p):\n    p.data = p.data.clone()\n    p.grad = None",
        "def f(optimizer):\n    setattr(optimizer, 'lr', 1)",
    ],
    "dynamic-code": [
        "def f(model):\n    return model.eval()",
        "import torch\nf = torch.compile(print)",
        "import re\nx = re.compile('a')",
        "import math\nx = getattr(math, 'pi')",
        "import torch\ndef f(name):\n    return getattr(torch, name)",
        "def f(p, name):\n    return getattr(p, name)",
        "import importlib\nmath = importlib.import_module('math')",
    ],
}


def short(value):
    return repr(value)[:60]


@pytest.fixture
def findings(tmp_path):
    def look(source):
        file = tmp_path / "mine.py"
        file.write_text(textwrap.dedent(source))
        return check(find_sources(str(file)))

    return look


def test_every_rule_has_both_cases_and_a_row_in_the_rules():
    assert set(RULES) == set(CAUGHT) == set(HONEST)
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("| rule | what it says | found |") :]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(RULES)


@pytest.mark.parametrize(
    ("rule", "source"), [(rule, source) for rule, sources in CAUGHT.items() for source in sources], ids=short
)
def test_caught(findings, rule, source):
    found = findings(source)
    assert {finding.rule for finding in found} == {rule}
    assert all(1 <= finding.line <= source.count("\n") + 1 for finding in found)


@pytest.mark.parametrize(
    ("rule", "source"), [(rule, source) for rule, sources in HONEST.items() for source in sources], ids=short
)
def test_honest(findings, rule, source):
    assert findings(source) == []


def test_findings_name_the_line_and_each_once(findings):
    source = "import time\n\ndef f():\n    return time.time() - time.time()\n\nimport triton\n"
    assert [(finding.line, finding.rule, finding.severity) for finding in findings(source)] == [
        (4, "clocks", "warning"),
        (6, "kernels", "error"),
    ]


# ---------------------------------------------------------------- what is known to be honest

EXAMPLES = sorted((TESTS / "optim" / "fixtures").glob("*.py")) + sorted((TESTS / "interop" / "submissions").iterdir())


@pytest.mark.parametrize("reference", [*registry.algorithm_names(), *(f"{name}:nadamw" for name in registry.WRAPPERS)])
def test_nothing_is_found_in_the_registry(reference):
    assert check(find_sources(reference)) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_nothing_is_found_in_the_examples(path):
    assert check(find_sources(str(path))) == []


# ---------------------------------------------------------------- where the source is


def test_all_files_of_a_folder_are_looked_at(tmp_path):
    sources = find_sources(str(TESTS / "interop" / "submissions" / "many_roots"))
    assert {file.name for file in sources.files} == {
        "submission.py",
        *("descent.py", "kit_types.py", "rules.py", "numbers.py"),
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "submission.py").write_text("from helper import x\ndef update_params(): ...\n")
    (tmp_path / "one" / "helper.py").write_text("import socket\n")
    (finding,) = check(find_sources(str(tmp_path)))
    assert (finding.file.name, finding.line, finding.rule) == ("helper.py", 1, "network")


def test_the_search_space_is_looked_at(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "mine.json").write_text('{\n "lr": {"feasible_points": [{"wmt": 0.1}]}\n}\n')
    (finding,) = check(find_sources(str(tmp_path / "mine.py")))
    assert (finding.file.name, finding.line, finding.rule) == ("mine.json", 2, "workload-names")


def test_import_paths(tmp_path, monkeypatch):
    assert [file.name for file in find_sources("torch.optim:AdamW").files] == ["adamw.py"]
    package = tmp_path / "kit"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Mine\n")
    (package / "inner.py").write_text("import socket\nclass Mine: ...\n")
    monkeypatch.chdir(tmp_path)
    for reference in ("kit:Mine", "kit.inner:Mine"):
        assert [finding.rule for finding in check(find_sources(reference))] == ["network"]


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nadam", UnknownNameError, "Unknown submission 'nadam'"),
        ("missing.py", SubmissionLoadError, "No file missing.py"),
        ("nowhere_at_all:X", SubmissionLoadError, "no module 'nowhere_at_all'"),
        ("broken.py", SubmissionLoadError, r"broken\.py:1: syntax error"),
        (".", SubmissionLoadError, "a folder without a submission.py"),
    ],
)
def test_what_cannot_be_found(tmp_path, monkeypatch, reference, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def (\n")
    with pytest.raises(error, match=message):
        find_sources(reference)


# ---------------------------------------------------------------- the command


def test_command_prints_findings_and_rules(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import time\nimport triton\nnow = time.time()\n")
    assert algoperf(["check", "mine.py"]) == 1
    out = capsys.readouterr().out
    assert "mine.py:2: error: triton is imported [kernels]" in out
    assert "mine.py:3: warning: time.time reads a clock; `context.elapsed_seconds` is the harness's own [clocks]" in out
    assert f"kernels: {RULES['kernels']}" in out
    assert "mine.py: 1 file, 1 error, 1 warning" in out


def test_warnings_alone_are_no_failure(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import time\nnow = time.time()\n")
    assert algoperf(["check", str(tmp_path / "mine.py")]) == 0
    assert algoperf(["check", "nadamw"]) == 0
    assert "nadamw: 1 file, 0 errors, 0 warnings" in capsys.readouterr().out


def test_json(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import triton\n")
    assert algoperf(["check", str(tmp_path / "mine.py"), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert (value["errors"], value["warnings"], value["files"]) == (1, 0, [str(tmp_path / "mine.py")])
    assert value["findings"][0] == {
        "file": str(tmp_path / "mine.py"),
        "line": 1,
        "rule": "kernels",
        "severity": "error",
        "what": "triton is imported",
        "why": RULES["kernels"],
    }


def test_nothing_is_executed_and_torch_is_not_imported(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(f"import torch\nfrom algoperf import spec\nopen({str(mark)!r}, 'w').close()\n")
    code = (
        "import sys; from algoperf_torch.cli import main; status = main(['check', sys.argv[1]]); "
        "print('torch' in sys.modules, status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False 1"
    assert not mark.exists()
