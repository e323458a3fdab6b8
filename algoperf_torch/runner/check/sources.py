"""The files of a submission, found without executing any of them or importing torch."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from algoperf_torch.errors import SubmissionLoadError, UnknownNameError
from algoperf_torch.interop.import_scope import ImportScope
from algoperf_torch.interop.official_files import SEARCH_SPACE_FILE, find_entry
from algoperf_torch.optim import registry


@dataclass(frozen=True)
class Sources:
    """Python files, and the search space beside the main one where there is one."""

    files: tuple[Path, ...]
    search_space: Path | None


def find_sources(reference: str) -> Sources:
    """The files of whatever stands after `--submission`. Raises `SubmissionLoadError` or `UnknownNameError`."""
    prefix, colon, rest = reference.partition(":")
    if colon and prefix in registry.WRAPPERS:
        return find_sources(rest)
    if reference in registry.ALGORITHMS:
        record = registry.find(reference)
        return Sources((registry.FOLDER / f"{record.target.partition(':')[0]}.py",), record.search_space_file)
    path = Path(prefix)
    if not colon and path.is_dir():
        entry = find_entry(path)
    elif prefix.endswith(".py") or "/" in prefix:
        if not path.is_file():
            raise SubmissionLoadError(f"No file {path} (looked in {Path.cwd()}).")
        entry = path.resolve()
    elif colon:
        entry = _module_of(prefix, rest)
        if _is_installed(entry):
            return Sources((entry,), None)
    else:
        raise UnknownNameError(
            "submission", reference, [*registry.ALGORITHMS, "module:Class", "file.py:Class", "folder"]
        )
    spaces = (entry.with_name(SEARCH_SPACE_FILE), entry.with_suffix(".json"))
    try:
        files = ImportScope(entry, {}).sources
    except (SyntaxError, ValueError) as error:
        raise unreadable(error, entry) from error
    return Sources(files, next((space for space in spaces if space.is_file()), None))


def unreadable(error: SyntaxError | ValueError, file: Path) -> SubmissionLoadError:
    """What cannot be parsed, as one line."""
    if isinstance(error, SyntaxError):
        return SubmissionLoadError(f"{error.filename or file}:{error.lineno}: syntax error: {error.msg}.")
    return SubmissionLoadError(f"{file}: not Python source: {error}.")


def _is_installed(file: Path) -> bool:
    return any(Path(sysconfig.get_path(kind)).resolve() in file.parents for kind in ("purelib", "platlib", "stdlib"))


def _module_of(module: str, name: str, depth: int = 5) -> Path:
    """The file that defines `name` of a module, followed through the imports of packages."""
    file = next(_candidates(module), None)
    if file is None:
        raise SubmissionLoadError(f"{module}:{name}: no module {module!r} in this environment or in {Path.cwd()}.")
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise unreadable(error, file) from error
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or depth == 0:
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
                source = ".".join(filter(None, (base, node.module)))
                return _module_of(source, alias.name, depth - 1)
    return file


def _candidates(module: str) -> Iterator[Path]:
    for folder in (Path.cwd(), *map(Path, sys.path)):
        target = folder.joinpath(*module.split("."))
        for file in (target / "__init__.py", target.with_name(f"{target.name}.py")):
            if file.is_file():
                yield file.resolve()
