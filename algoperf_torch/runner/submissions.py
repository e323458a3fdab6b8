"""From what stands after `--submission` to a training algorithm: registry names, import paths, files, wrapper prefixes."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from algoperf_torch.errors import AlgoPerfError, SubmissionLoadError, UnknownNameError
from algoperf_torch.interop import official_submission
from algoperf_torch.interop.official_files import find_entry, is_official
from algoperf_torch.optim import registry
from algoperf_torch.optim.base import BaseOptimizer, OptimizerAlgorithm, TrainingAlgorithm
from algoperf_torch.optim.schedules import SCHEDULES

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A loaded submission.

    Attributes:
        name: safe as the name of a directory.
        reference: as the user wrote it.
        algorithm: what the runner builds.
        sources: the files that were submitted.
        digest: SHA-256 over names and contents of the sources, and the reference.
        search_space: of the file beside the algorithm, as JSON gives it; `None` without one.
        is_registered: whether it ships with the package.
    """

    name: str
    reference: str
    algorithm: type[TrainingAlgorithm]
    sources: tuple[Path, ...]
    digest: str
    search_space: list[Any] | dict[str, Any] | None
    is_registered: bool


@dataclass(frozen=True)
class _Found:
    algorithm: type[TrainingAlgorithm]
    sources: tuple[Path, ...]
    search_space_file: Path | None
    is_registered: bool


def load_submission(reference: str, *, schedule: str | None = None) -> Submission:
    """Loads a submission.

    Args:
        reference: a registry name (`nadamw`), an import path (`torch.optim:AdamW`), a file (`my_lion.py:Lion`, or
            `my_lion.py` where it defines one candidate), one of these behind wrapper prefixes (`ema:nadamw`), or the folder
            or file of a submission that was written for AlgoPerf's own harness.
        schedule: of the learning rate, for optimizers; `None` takes the registry's, or a constant one.

    Raises `SubmissionLoadError` or `UnknownNameError`.
    """
    if schedule is not None and schedule not in SCHEDULES:
        raise UnknownNameError("schedule", schedule, SCHEDULES)
    found = _find(reference, reference, schedule)
    digest = hashlib.sha256(reference.encode())
    for path in found.sources:
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return Submission(
        name=_directory_name(reference),
        reference=reference,
        algorithm=found.algorithm,
        sources=found.sources,
        digest=digest.hexdigest(),
        search_space=None if found.search_space_file is None else _read_search_space(found.search_space_file),
        is_registered=found.is_registered,
    )


def _find(reference: str, whole: str, schedule: str | None) -> _Found:
    prefix, colon, rest = reference.partition(":")
    if colon and prefix in registry.WRAPPERS:
        if not rest:
            raise SubmissionLoadError(
                f"--submission {whole}: nothing after {prefix!r}. Write, for example, {prefix}:nadamw."
            )
        inner = _find(rest, whole, schedule)
        module, wrap = _import_target(registry.WRAPPERS[prefix])
        sources = (*inner.sources, _source_of(module))
        return _Found(wrap(inner.algorithm), sources, inner.search_space_file, inner.is_registered)
    if not reference.strip():
        raise SubmissionLoadError(
            f"--submission {whole!r} is empty. Known names: {', '.join(registry.algorithm_names())}."
        )
    is_folder = not colon and reference not in registry.ALGORITHMS and Path(reference).is_dir()
    if prefix.endswith(".py") or "/" in prefix or is_folder:
        return _from_file(Path(prefix), rest if colon else None, schedule)
    if colon:
        return _from_module(prefix, rest, schedule)
    return _from_registry(reference, schedule)


def _directory_name(reference: str) -> str:
    """`ema:my/lion.py:Lion` becomes `ema_lion_Lion`; `my_lion/submission.py` is the submission `my_lion`."""
    paths = [Path(part) for part in reference.split(":")]
    named = [path.absolute().parent if path.name == "submission.py" else path for path in paths]
    parts = [(path.name or path.absolute().name).removesuffix(".py") for path in named]
    return re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(parts)).strip("._") or "submission"


# ---------------------------------------------------------------- the three kinds of reference


def _from_registry(name: str, schedule: str | None) -> _Found:
    try:
        record = registry.find(name)
    except UnknownNameError as error:
        raise UnknownNameError("submission", name, [*registry.ALGORITHMS, "module:Class", "file.py:Class"]) from error
    module, target = _import_target(record.target)
    attributes: dict[str, Any] = {
        "label": name,
        "schedule": schedule or record.schedule,
        "defaults": dict(record.defaults),
        "accepts": frozenset() if record.search_space is None else None,
    }
    if issubclass(target, OptimizerAlgorithm):
        algorithm: type[TrainingAlgorithm] = type(target.__name__, (target,), attributes)
    else:
        algorithm = OptimizerAlgorithm.over(target, **attributes)
    return _Found(algorithm, (_source_of(module),), record.search_space_file, is_registered=True)


def _from_module(name: str, attribute: str, schedule: str | None) -> _Found:
    where = f"{name}:{attribute}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise SubmissionLoadError(
            f"{where}: {name!r} is neither a module nor a file. Write module:Class or file.py:Class."
        )
    with _importable(Path.cwd()), _import_errors(where):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                raise SubmissionLoadError(
                    f"{where}: no module {error.name!r} in this environment or in {Path.cwd()}."
                ) from error
            raise
    value = _attribute(module, attribute, where)
    algorithm = _as_algorithm(value, where, schedule)
    source = _source_of(sys.modules.get(value.__module__, module))
    root = source.parents[value.__module__.count(".") + (source.name == "__init__.py")]
    installed = root in (Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib"))
    sources = (source,) if installed else _with_local_imports(source, root)
    return _Found(algorithm, sources, None, is_registered=False)


def _from_file(path: Path, attribute: str | None, schedule: str | None) -> _Found:
    where = str(path) if attribute is None else f"{path}:{attribute}"
    if path.is_dir() and attribute is None:
        return _from_official(find_entry(path), where, schedule)
    if not path.is_file():
        raise SubmissionLoadError(f"No file {path} (looked in {Path.cwd()}).")
    if attribute is None and is_official(path):
        return _from_official(path.resolve(), where, schedule)
    path = path.resolve()
    module = _execute(path, where)
    candidate = _only_candidate(module, where) if attribute is None else _attribute(module, attribute, where)
    algorithm = _as_algorithm(candidate, where, schedule)
    beside = path.with_suffix(".json")
    return _Found(
        algorithm, _with_local_imports(path, path.parent), beside if beside.is_file() else None, is_registered=False
    )


def _from_official(entry: Path, where: str, schedule: str | None) -> _Found:
    if schedule is not None:
        raise SubmissionLoadError(f"--schedule {schedule}: {where} is an AlgoPerf submission and has its own schedule.")
    with _import_errors(where):
        loaded = official_submission.load(entry)
    return _Found(loaded.algorithm, loaded.sources, loaded.search_space_file, is_registered=False)


def _execute(path: Path, where: str) -> ModuleType:
    """The module of a file; modules beside it can be imported by it while it is executed."""
    name = f"algoperf_submission_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SubmissionLoadError(f"{where}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the compiler look classes up by the name of their module
    try:
        with _importable(path.parent), _import_errors(where):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# ---------------------------------------------------------------- objects


def _import_target(target: str) -> tuple[ModuleType, Any]:
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(f"algoperf_torch.optim.{module_name}")
    return module, getattr(module, attribute)


def _attribute(module: ModuleType, attribute: str, where: str) -> Any:
    if not attribute:
        raise SubmissionLoadError(f"{where}: no class named. Write, for example, {where.rstrip(':')}:MyOptimizer.")
    value = getattr(module, attribute, None)
    if value is None:
        names = [name for name, item in vars(module).items() if _is_candidate(item)]
        raise SubmissionLoadError(
            f"{where}: no class {attribute!r} there. Found: {', '.join(sorted(names)) or 'none'}."
        )
    return value


def _is_candidate(value: object) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, TrainingAlgorithm | Optimizer)
        and value not in (TrainingAlgorithm, OptimizerAlgorithm, Optimizer, BaseOptimizer)
        and not inspect.isabstract(value)
    )


def _only_candidate(module: ModuleType, where: str) -> Any:
    own = [item for item in vars(module).values() if _is_candidate(item) and item.__module__ == module.__name__]
    own = list(dict.fromkeys(own))  # a class may have two names
    algorithms = [item for item in own if issubclass(item, TrainingAlgorithm)]
    candidates = algorithms or own  # an algorithm may come with its own optimizer
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise SubmissionLoadError(
            f"{where} defines neither a TrainingAlgorithm nor a torch.optim.Optimizer. "
            "`algoperf new-submission DIR` writes one to start from."
        )
    names = ", ".join(item.__name__ for item in candidates)
    raise SubmissionLoadError(f"{where} defines several candidates: {names}. Write {where}:{candidates[0].__name__}.")


def _as_algorithm(value: object, where: str, schedule: str | None) -> type[TrainingAlgorithm]:
    if not inspect.isclass(value) or not issubclass(value, TrainingAlgorithm | Optimizer):
        kind = f"the class {value.__name__}" if inspect.isclass(value) else f"of type {type(value).__name__}"
        raise SubmissionLoadError(
            f"{where} is {kind}, not a class derived from TrainingAlgorithm or torch.optim.Optimizer."
        )
    if not _is_candidate(value):
        missing = ", ".join(sorted(getattr(value, "__abstractmethods__", ())))
        raise SubmissionLoadError(
            f"{where} is abstract: it does not define {missing}."
            if missing
            else f"{where} is a base class: derive from it."
        )
    if issubclass(value, Optimizer):
        return OptimizerAlgorithm.over(value, label=where, schedule=schedule or "constant")
    if issubclass(value, OptimizerAlgorithm):
        if not inspect.isclass(getattr(value, "optimizer_class", None)):
            raise SubmissionLoadError(
                f"{where} does not say which optimizer it drives. Set its attribute optimizer_class."
            )
        own = {"label": value.label or where} | ({} if schedule is None else {"schedule": schedule})
        return type(value.__name__, (value,), own)
    if schedule is not None:
        raise SubmissionLoadError(
            f"--schedule {schedule}: {where} is a whole training algorithm and has its own schedule."
        )
    return value


# ---------------------------------------------------------------- files and imports


def _source_of(module: ModuleType) -> Path:
    file = inspect.getsourcefile(module)
    if file is None:
        raise SubmissionLoadError(f"The module {module.__name__} has no Python source, so it cannot be recorded.")
    return Path(file).resolve()


def _with_local_imports(path: Path, root: Path) -> tuple[Path, ...]:
    """A file and all files below `root` that it imports, directly or not: what the digest must cover."""
    found, waiting = {path}, [path]
    while waiting:
        for file in _imported_files(waiting.pop(), root):
            if file not in found and root in file.parents and PACKAGE_FOLDER not in file.parents:
                found.add(file)
                waiting.append(file)
    return tuple(sorted(found))


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    for package in path.parents[: len(path.relative_to(root).parts) - 1]:
        if (package / "__init__.py").is_file():
            yield package / "__init__.py"
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            base, names = root, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            names = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
        else:
            continue
        for name in names:
            target = base
            for part in name.split("."):
                target = target / part
                yield from (file for file in (target.with_name(f"{part}.py"), target / "__init__.py") if file.is_file())


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported inside."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _import_errors(where: str) -> Iterator[None]:
    """Turns whatever an import raises into one line with the place."""
    try:
        yield
    except AlgoPerfError:
        raise
    except SyntaxError as error:
        raise SubmissionLoadError(f"{error.filename}:{error.lineno}: syntax error: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else where
        text = (str(error).strip().splitlines() or ["no message"])[0]
        raise SubmissionLoadError(f"Importing {where} failed at {place}: {type(error).__name__}: {text}") from error


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or Path(filename) in (Path(__file__), Path(importlib.__file__))


def _read_search_space(path: Path) -> list[Any] | dict[str, Any]:
    try:
        space = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SubmissionLoadError(f"Cannot read the search space {path}: {error}.") from error
    if not isinstance(space, list | dict):
        raise SubmissionLoadError(f"The search space {path} must be a JSON list of points or an object of ranges.")
    return space
