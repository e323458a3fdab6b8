"""Runs submissions that were written for AlgoPerf's own PyTorch harness, unmodified.

Such a submission is a module of functions (`get_batch_size`, `init_optimizer_state`, `update_params`, `data_selection`, and
perhaps `prepare_for_eval`) that the harness hands a `workload`, and that pass a dictionary `optimizer_state` from call to
call. `load` makes a `TrainingAlgorithm` of it; docs/existing-submissions.md says what is the same here and what is not.
"""

from __future__ import annotations

import ast
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from algoperf_torch.errors import SubmissionLoadError
from algoperf_torch.interop import absl_logging, official_spec, official_utils
from algoperf_torch.interop.import_scope import ImportScope
from algoperf_torch.interop.official_algorithm import EntryPoints, OfficialAlgorithm
from algoperf_torch.interop.official_files import NOT_OFFERED, PACKAGES, SEARCH_SPACE_FILE

# What the harness passes to each function: how many arguments by position, or which by keyword.
_KEYWORDS = (
    *("workload", "current_param_container", "current_params_types", "model_state", "hyperparameters", "loss_type"),
    *("optimizer_state", "eval_results", "global_step", "rng"),
)
REQUIRED: dict[str, tuple[int, tuple[str, ...]]] = {
    "get_batch_size": (1, ()),
    "init_optimizer_state": (5, ()),
    "update_params": (0, (*_KEYWORDS, "batch")),
    "data_selection": (8, ()),
}
OPTIONAL = {"prepare_for_eval": (0, _KEYWORDS)}


@dataclass(frozen=True)
class Loaded:
    """What `load` found."""

    algorithm: type[OfficialAlgorithm]
    sources: tuple[Path, ...]
    search_space_file: Path | None


def load(entry: Path) -> Loaded:
    """Executes a submission's main file and makes an algorithm of its functions.

    Raises `SubmissionLoadError` where a function is missing, takes other arguments, or the submission needs what is not
    offered here; whatever else its code raises is passed on.
    """
    scope = ImportScope(entry, offered_modules())
    try:
        with scope:
            module = scope.import_entry()
    except ImportError as error:
        raise _import_error(error, scope) from error
    points = _entry_points(module, entry, scope.sources)
    algorithm = type(
        "OfficialSubmission",
        (OfficialAlgorithm,),
        {"points": points, "scope": scope, "entry": entry, "batch_sizes": BatchSizes(points.get_batch_size, scope)},
    )
    space = entry.with_name(SEARCH_SPACE_FILE)
    return Loaded(algorithm, scope.sources, space if space.is_file() else None)


def offered_modules() -> dict[str, ModuleType]:
    """What a submission can import of the original harness, under both of its names, as one set of modules."""
    package = ModuleType("algoperf", "What AlgoPerf's harness offers to submissions.")
    package.__path__ = []
    vars(package).update(spec=official_spec, pytorch_utils=official_utils)
    offered: dict[str, ModuleType] = {}
    for name in PACKAGES:
        offered |= {name: package, f"{name}.spec": official_spec, f"{name}.pytorch_utils": official_utils}
    if find_spec("absl") is None:
        absl = ModuleType("absl")
        absl.__path__ = []
        vars(absl).update(logging=absl_logging)
        offered |= {"absl": absl, "absl.logging": absl_logging}
    return offered


def _import_error(error: ImportError, scope: ImportScope) -> Exception:
    """The error with the reason, where the submission asks for what this package is not going to have."""
    name = error.name or ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in scope.sources]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(scope.folder)
    more = "docs/existing-submissions.md says what can run."
    if name.partition(".")[0] in NOT_OFFERED:
        return SubmissionLoadError(
            f"{place}: needs {name}. Submissions that use JAX's libraries cannot run here; {more}"
        )
    if name.partition(".")[0] in PACKAGES:
        return SubmissionLoadError(
            f"{place}: {error}: of the original harness, only spec and pytorch_utils are here; {more}"
        )
    if error.path and Path(error.path) == Path(official_spec.__file__):
        names = re.findall(r"cannot import name '(\w+)'", str(error))
        return SubmissionLoadError(f"{place}: algoperf.spec has no name {', '.join(names)} here; {more}")
    return error


def _entry_points(module: ModuleType, entry: Path, sources: tuple[Path, ...]) -> EntryPoints:
    functions: dict[str, Any] = {name: getattr(module, name, None) for name in (*REQUIRED, *OPTIONAL)}
    missing = [name for name in REQUIRED if not callable(functions[name])]
    if missing:
        raise SubmissionLoadError(
            f"{entry} does not define {', '.join(missing)}. An AlgoPerf submission defines {', '.join(REQUIRED)}."
        )
    for name, (count, keywords) in {**REQUIRED, **OPTIONAL}.items():
        if functions[name] is None:
            continue
        try:
            inspect.signature(functions[name]).bind(*range(count), **dict.fromkeys(keywords))
        except TypeError as error:
            raise SubmissionLoadError(f"{entry}: {name} cannot be called as AlgoPerf calls it: {error}.") from error
    return EntryPoints(
        **functions,
        takes_train_state="train_state" in inspect.signature(functions["update_params"]).parameters,
        passes_dropout=any(_passes_dropout(path) for path in sources),
    )


def _passes_dropout(path: Path) -> bool:
    return any(
        isinstance(node, ast.Call) and any(keyword.arg == "dropout_rate" for keyword in node.keywords)
        for node in ast.walk(ast.parse(path.read_bytes()))
    )


class BatchSizes(Mapping[str, int]):
    """`get_batch_size` as a mapping: a name for which it raises `ValueError` or `KeyError` is not in it."""

    def __init__(self, get_batch_size: Callable[[str], int], scope: ImportScope) -> None:
        self._get_batch_size = get_batch_size
        self._scope = scope

    def __getitem__(self, name: str) -> int:
        try:
            with self._scope:
                return self._get_batch_size(name)
        except ValueError as error:
            raise KeyError(name) from error
        except KeyError:
            raise
        except Exception as error:
            raise SubmissionLoadError(f"get_batch_size({name!r}) raised {type(error).__name__}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(())  # a function does not say what it knows

    def __len__(self) -> int:
        return 0
