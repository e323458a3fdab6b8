"""What the names of a file stand for: imports, their aliases, and `getattr` with a constant, resolved to dotted names."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Names:
    """The bindings of one file. A name that is imported anywhere in it counts everywhere but where a parameter hides it."""

    def __init__(self, tree: ast.Module) -> None:
        self._bound: dict[str, str] = {}
        self._stars: list[str] = []  # modules of which all names were taken
        self._own = _own_names(tree)
        self._hidden: list[frozenset[str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self._bound[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                for alias in node.names:
                    if alias.name == "*":
                        self._stars.append(node.module)
                    else:
                        self._bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        for node in assigned * 3:  # an alias of an alias of an alias
            target = node.targets[0]
            if (
                len(node.targets) == 1
                and isinstance(target, ast.Name)
                and (value := self.resolve(node.value)) is not None
            ):
                self._bound.setdefault(target.id, value)

    def resolve(self, node: ast.AST) -> str | None:
        """The dotted name that an expression stands for, or None: `t.nn` after `import torch as t` is `torch.nn`."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            return None if base is None else f"{base}.{node.attr}"
        if isinstance(node, ast.Call):
            function = self.resolve(node.func)
            arguments = node.args
            if function == "builtins.getattr" and len(arguments) >= 2 and (name := text(arguments[1])) is not None:
                base = self.resolve(arguments[0])
                return None if base is None else f"{base}.{name}"
            if function in ("importlib.import_module", "builtins.__import__") and arguments:
                return text(arguments[0])
        return None

    def imported(self, node: ast.AST) -> bool:
        """Whether an expression is an imported module or something in one (a builtin is not)."""
        name = self.resolve(node)
        return name is not None and not name.startswith("builtins.")

    def star_candidates(self, name: str) -> Iterator[str]:
        """What an unbound name may be after `from module import *`."""
        if name not in self._bound and name not in self._own:
            yield from (f"{module}.{name}" for module in self._stars)

    def enter(self, node: ast.AST) -> bool:
        """To be called before a function's body is looked at; whether `leave` is to be called after it."""
        if not isinstance(node, _FUNCTIONS):
            return False
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        self._hidden.append(frozenset(item.arg for item in every if item is not None))
        return True

    def leave(self) -> None:
        self._hidden.pop()

    def _name(self, name: str) -> str | None:
        if any(name in names for names in self._hidden):
            return None
        if name in self._bound:
            return self._bound[name]
        if name not in self._own and hasattr(builtins, name):
            return f"builtins.{name}"
        return None


def text(node: ast.AST) -> str | None:
    """The string that an expression is: a literal, or literals that are added."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text(node.left), text(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr) and all(isinstance(part, ast.Constant) for part in node.values):
        return "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    return None


def _own_names(tree: ast.Module) -> frozenset[str]:
    """Functions, classes and variables of the module itself, which a builtin of that name is not."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)
