"""Imports of a submission that was written for another repository: what its files call each other, and the harness.

A submission's files name each other by several roots: the dotted path from the repository that held them, the folder of
the submission, inner folders of it, and the path of another checkout that ends in the folder's own name. `ImportScope`
maps all of them to one module for each file, named after the submission. Modules of the scope, and those that it offers
in the harness's name, are in `sys.modules` only inside `with scope:`; what had these names before is back afterwards.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

NEVER_LOCAL = sys.stdlib_module_names | {"torch", "numpy", "triton", "torchvision", "torchaudio", "algoperf_torch"}


class ImportScope:
    """The modules of one submission.

    Args:
        entry: its main file; its folder is the submission.
        offered: name -> module that the submission can import under that name, whatever is installed.

    Attributes:
        entry_name: name of the main file's module.
        sources: the main file and all files that it imports, directly or not, without those that are installed.
    """

    def __init__(self, entry: Path, offered: Mapping[str, ModuleType]) -> None:
        self.folder = entry.parent
        self.sources: tuple[Path, ...] = ()
        self._offered = dict(offered)
        digest = hashlib.sha256(str(entry).encode()).hexdigest()[:8]
        root = f"algoperf_submission_{re.sub(r'[^A-Za-z0-9]', '_', self.folder.name)}_{digest}"
        self._bases = {root: self.folder}  # name of a top-level package of the scope -> its folder
        self._bases |= {f"{root}_up{number}": parent for number, parent in enumerate(self.folder.parents, start=1)}
        self.entry_name = f"{root}.{entry.stem}"
        self._empty: set[str] = set()  # packages of which only the name is needed
        self._copies: set[str] = set()  # dotted paths of another checkout that end in the submission's folder
        self._inner: dict[Path, None] = {}  # folders below the submission's that its files are in
        self._roots = {name.partition(".")[0] for name in offered}
        self._modules: dict[str, ModuleType] = {}  # while the scope is not entered
        self._served: dict[str, None] = {}
        self._hidden: dict[str, ModuleType] = {}
        self._depth = 0
        self._scan(entry)

    def import_entry(self) -> ModuleType:
        """Executes the submission and returns its main module. To be called inside the scope."""
        assert self._depth
        return import_module(self.entry_name)

    # ---------------------------------------------------------------- entering and leaving

    def __enter__(self) -> ImportScope:
        self._depth += 1
        if self._depth == 1:
            if any(root in sys.modules for root in self._roots):
                names = [name for name in sys.modules if name.partition(".")[0] in self._roots]
                self._hidden = {name: sys.modules.pop(name) for name in names}
            sys.modules.update(self._modules)
            sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            sys.meta_path.remove(self)
            self._modules = {name: sys.modules.pop(name) for name in self._served if name in sys.modules}
            sys.modules.update(self._hidden)
            self._hidden = {}

    # ---------------------------------------------------------------- the import system's side

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        """As the import system asks every finder; None leaves the name to the others."""
        spec = self._spec(name)
        if spec is not None:
            self._served[name] = None
        return spec

    def _spec(self, name: str) -> ModuleSpec | None:
        if name in self._offered:
            return ModuleSpec(name, _Ready(self._offered[name]), is_package=hasattr(self._offered[name], "__path__"))
        if name in self._empty:
            return ModuleSpec(name, None, is_package=True)
        top = name.partition(".")[0]
        if top not in self._bases and top not in self._roots:
            return None
        location = self._locate(name)
        if location is None:
            return None
        own = self._own_name(location)
        if own != name:
            return ModuleSpec(name, _Alias(own), is_package=location.is_dir())
        if location.is_file():
            return spec_from_file_location(name, location)
        init = location / "__init__.py"
        if init.is_file():
            return spec_from_file_location(name, init, submodule_search_locations=[str(location)])
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(location)]
        return spec

    # ---------------------------------------------------------------- names and files

    def _own_name(self, location: Path) -> str:
        """The one name of a file or folder: relative to the submission, or to the nearest folder above that holds both."""
        for base, folder in self._bases.items():
            if location == folder or folder in location.parents:
                own = location.with_suffix("") if location.is_file() else location
                return ".".join((base, *own.relative_to(folder).parts))
        raise AssertionError(location)

    def _locate(self, name: str) -> Path | None:
        """The file or folder that a module's name stands for, in the order in which the class's text lists the roots."""
        top, *rest = parts = name.split(".")
        if top in self._bases:
            return _in_folder(self._bases[top], rest)
        if top in NEVER_LOCAL:
            return None
        found = _in_folder(self.folder, parts) or self._above(parts)
        if found is None and self.folder.name in rest:
            end = parts.index(self.folder.name, 1) + 1
            if ".".join(parts[:end]) in self._copies:
                found = _in_folder(self.folder, parts[end:])
        return found or next(filter(None, (_in_folder(inner, parts) for inner in self._inner)), None)

    def _above(self, parts: Sequence[str]) -> Path | None:
        """By the dotted path from a repository that holds the submission: its first part is a folder above."""
        for folder in (self.folder, *self.folder.parents):
            if folder.name == parts[0] and (found := _in_folder(folder, parts[1:])) is not None:
                return found
        return None

    def _scan(self, entry: Path) -> None:
        """Follows the imports of all files, so that it is known which names are the submission's own."""
        found, waiting = {entry: None}, [entry]
        while waiting:
            for location in self._imported(waiting.pop()):
                for file in _files_on_the_way(location, self.folder):
                    if file not in found:
                        found[file] = None
                        waiting.append(file)
        self.sources = tuple(sorted(found))

    def _imported(self, file: Path) -> Iterator[Path]:
        self._inner |= {folder: None for folder in file.parents if self.folder in folder.parents}
        for name, level in imported_names(ast.parse(file.read_bytes(), filename=str(file))):
            parts = name.split(".") if name else []
            if level:
                location = _in_folder(file.parents[level - 1], parts)
            elif name in self._offered or parts[0] in NEVER_LOCAL:
                continue
            else:
                self._note_copy(parts)
                location = self._locate(name)
                if location is not None and not self._note_root(parts, location):
                    continue
            if location is not None:
                yield location

    def _note_copy(self, parts: list[str]) -> None:
        """Whether a name is the path of another checkout shows in what follows the folder's name: it is in the folder."""
        if self.folder.name in parts[1:-1] and self._locate(".".join(parts)) is None:
            end = parts.index(self.folder.name, 1) + 1
            if _in_folder(self.folder, parts[end:]) is not None and find_spec(parts[0]) is None:
                self._copies.add(".".join(parts[:end]))

    def _note_root(self, parts: list[str], location: Path) -> bool:
        """Whether the name is the submission's own; that of a library is not, though a folder above is called like it."""
        is_above = len(parts) == 1 and location in (self.folder, *self.folder.parents)
        if not _has_code(location) or (is_above and find_spec(parts[0]) is not None):
            return False
        self._roots.add(parts[0])
        prefixes = [".".join(parts[:length]) for length in range(1, len(parts))]
        self._empty |= {prefix for prefix in prefixes if self._locate(prefix) is None}
        return True


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, number of leading dots) of all that a file imports; what it takes from a module may be a module, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            for alias in node.names:
                yield ".".join(filter(None, (node.module, alias.name))), node.level


def _in_folder(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file `a/b/c.py`, or the folder `a/b/c`, for the parts a, b, c."""
    if not parts:
        return folder
    target = folder.joinpath(*parts)
    if target.is_dir() and (target / "__init__.py").is_file():
        return target
    file = target.with_name(f"{target.name}.py")
    if file.is_file():
        return file
    return target if target.is_dir() else None


def _has_code(location: Path) -> bool:
    return location.is_file() or any(location.glob("*.py"))


def _files_on_the_way(location: Path, folder: Path) -> Iterator[Path]:
    """The file of a module, and the `__init__.py` of its packages up to the submission's folder."""
    packages = [location] if location.is_dir() else []
    packages += [parent for parent in location.parents if parent == folder or folder in parent.parents]
    if location.is_file():
        yield location
    yield from (package / "__init__.py" for package in packages if (package / "__init__.py").is_file())


class _Ready(Loader):
    """Loads a name as a module that exists."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec: Any = module.__spec__

    def create_module(self, _: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put in that of the other name


class _Alias(Loader):
    """Loads a name as the module that has another one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, _: ModuleSpec) -> ModuleType:
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
