"""Looks through the syntax tree of one file for what the rules forbid. Nothing of the file is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from algoperf_torch.runner.check import rules
from algoperf_torch.runner.check.names import Names, text
from algoperf_torch.runner.check.rules import Forbidden, Severity


@dataclass(frozen=True, order=True)
class Finding:
    """Something that breaks a rule, or may."""

    file: Path
    line: int
    rule: str
    severity: Severity
    what: str

    @property
    def why(self) -> str:
        return rules.RULES[self.rule]


def look_through(file: Path, tree: ast.Module) -> list[Finding]:
    """All findings of a file, in the order of its lines, each once."""
    visitor = Visitor(file, tree)
    visitor.visit(tree)
    return sorted(set(visitor.findings))


class Visitor(ast.NodeVisitor):
    """`findings` grows as nodes are visited."""

    def __init__(self, file: Path, tree: ast.Module) -> None:
        self.findings: list[Finding] = []
        self._file = file
        self._names = Names(tree)
        self._docstrings = set(_docstrings(tree))
        self._imported: set[str] = set()  # forbidden modules
        self._batch_sizes = 0  # depth inside what may know workloads by name

    def _find(self, node: ast.AST, rule: str, what: str, severity: Severity = "error") -> None:
        self.findings.append(Finding(self._file, getattr(node, "lineno", 1), rule, severity, what))

    def _found(self, node: ast.AST, name: str, known: Forbidden) -> None:
        self._find(node, known.rule, f"{name.removeprefix('builtins.')} {known.what or 'is used'}", known.severity)

    # ---------------------------------------------------------------- imports

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level and node.module:
            for alias in node.names:
                self._import(node, f"{node.module}.{alias.name}")

    def _import(self, node: ast.AST, name: str) -> None:
        module, known = _longest(name, rules.MODULES)
        if known is not None:
            self._imported.add(module)
            self._find(node, known.rule, f"{module} is imported", known.severity)
        elif name in rules.USES and rules.USES[name].rule in ("evaluation", "kernels"):
            self._found(node, name, rules.USES[name])

    # ---------------------------------------------------------------- functions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "get_eval_batch_size":
            self._find(
                node,
                "evaluation",
                "get_eval_batch_size is never called: evaluation batches are the harness's",
                "warning",
            )
        self._function(node, "batch_size" in node.name)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node, may_name=False)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node, may_name=False)

    def _function(self, node: ast.AST, may_name: bool) -> None:
        self._batch_sizes += may_name
        entered = self._names.enter(node)
        self.generic_visit(node)
        if entered:
            self._names.leave()
        self._batch_sizes -= may_name

    # ---------------------------------------------------------------- uses

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._use(node)
            for name in self._names.star_candidates(node.id):
                if name in rules.USES:
                    self._found(node, name, rules.USES[name])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load) and self._use(node):
            return
        known = rules.ATTRIBUTES.get(node.attr)
        if known is not None:
            self._found(node, f".{node.attr}", known)
        base = node.value
        owner = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        if owner == "context" and node.attr == "engine":
            self._find(node, "harness", "context.engine is what is behind the context's methods")
        if owner == "workload" and node.attr in ("__class__", "__module__", "__dict__"):
            self._find(node, "workload-names", f"workload.{node.attr} tells what the workload is")
        elif owner == "workload" and node.attr.startswith("_") and known is None:
            self._find(node, "harness", f"workload.{node.attr} is not offered to submissions")
        self.generic_visit(node)

    def _use(self, node: ast.expr) -> bool:
        """Whether an expression is a name from the tables, which is then noted."""
        full = self._names.resolve(node)
        if full is None:
            return False
        for table in (rules.USES, rules.MODULES):
            name, known = _longest(full, table)
            if known is not None:
                if name not in self._imported:  # else it is told where it is imported
                    self._found(node, name, known)
                return True
        return False

    def visit_Call(self, node: ast.Call) -> None:
        function = self._names.resolve(node.func)
        if function in ("importlib.import_module", "builtins.__import__"):
            name = text(node.args[0]) if node.args else None
            if name is not None:  # an import like any other
                self._import(node, name)
                for argument in node.args:
                    self.visit(argument)
                return
        elif function in ("builtins.getattr", "builtins.setattr", "builtins.delattr") and len(node.args) >= 2:
            self._attribute_call(node, function)
        elif function == "builtins.type" and len(node.args) == 1:
            if isinstance(node.args[0], ast.Name) and node.args[0].id == "workload":
                self._find(node, "workload-names", "type(workload) tells what the workload is")
        elif function is not None and function.startswith("os.environ.") and function.rpartition(".")[2] in _WRITES:
            self._find(node, "environment", "os.environ is changed")
        elif isinstance(node.func, ast.Attribute) and self._is_modules(node.func.value):
            self._find(node, "patching", "sys.modules is used")
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("open", "unlink", "iterdir", "rglob", "touch"):
            inner = node.func.value
            if isinstance(inner, ast.Call) and (self._names.resolve(inner.func) or "").startswith("pathlib."):
                self._find(node, "files", f"Path.{node.func.attr} reads or writes a file")
        self.generic_visit(node)

    def _attribute_call(self, node: ast.Call, function: str) -> None:
        owner, name = node.args[0], text(node.args[1])
        if function == "builtins.getattr":
            if name is None and self._names.imported(owner) and self._names.resolve(owner) not in rules.PLAIN_MODULES:
                self._find(
                    node, "dynamic-code", f"getattr({ast.unparse(owner)}, ...) hides which name is meant", "warning"
                )
            elif name is not None and not self._use(node) and name in rules.ATTRIBUTES:
                self._found(node, f".{name}", rules.ATTRIBUTES[name])
        elif self._names.imported(owner):
            self._assigned(owner, f"{self._names.resolve(owner)}.{name or '...'}")
        elif isinstance(owner, ast.Name) and owner.id in _HARNESS_OBJECTS:
            self._find(node, "patching", f"an attribute of {owner.id} is set")

    # ---------------------------------------------------------------- assignments

    def visit_Assign(self, node: ast.Assign) -> None:
        may_name = any("batch_size" in part.id.lower() for part in node.targets if isinstance(part, ast.Name))
        for target in node.targets:
            self._target(target)
        self._batch_sizes += may_name
        self.generic_visit(node)
        self._batch_sizes -= may_name

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        may_name = isinstance(node.target, ast.Name) and "batch_size" in node.target.id.lower()
        self._target(node.target)
        self._batch_sizes += may_name
        self.generic_visit(node)
        self._batch_sizes -= may_name

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._target(node.target)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._target(target)
        self.generic_visit(node)

    def _target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for item in target.elts:
                self._target(item)
        elif isinstance(target, ast.Attribute):
            full = self._names.resolve(target)
            if full is not None and not full.startswith("builtins."):
                self._assigned(target, full)
            elif isinstance(target.value, ast.Name) and target.value.id in _HARNESS_OBJECTS:
                self._find(target, "patching", f"{target.value.id}.{target.attr} is set")
        elif isinstance(target, ast.Subscript):
            full = self._names.resolve(target.value)
            if full == "os.environ":
                self._find(target, "environment", "os.environ is changed")
            elif full == "sys.modules" or (full or "").endswith(".__dict__"):
                self._find(target, "patching", f"{full} is changed")

    def _assigned(self, node: ast.AST, full: str) -> None:
        if full.startswith(rules.FLAGS):
            self._find(node, "precision", f"{full} is set")
        elif full.startswith("sys.path"):
            self._find(node, "patching", f"{full} is set", "warning")
        else:
            self._find(node, "patching", f"{full} is replaced")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._is_modules(node.value) and isinstance(node.ctx, ast.Load) and ast.unparse(node.slice) != "__name__":
            self._find(node, "patching", "sys.modules is used")
        self.generic_visit(node)

    def _is_modules(self, node: ast.expr) -> bool:
        return self._names.resolve(node) == "sys.modules"

    # ---------------------------------------------------------------- constants

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, str | bytes) and node not in self._docstrings:
            if len(value) > rules.LONGEST_LITERAL:
                self._find(node, "pretrained", f"a constant of {len(value):,} characters is data")
            if isinstance(value, str):
                self._text(node, value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value in rules.data_sizes():
            self._find(node, "fingerprints", f"{value} is {rules.data_sizes()[value]}")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        whole = text(node)
        if whole is not None:
            self._text(node, whole)
        self.generic_visit(node)

    def _text(self, node: ast.AST, value: str) -> None:
        if value.lower() in rules.forbidden_names() and not self._batch_sizes:
            self._find(node, "workload-names", f"{value!r} is the name of a workload or dataset")

    def visit_List(self, node: ast.List) -> None:
        self._long(node, node.elts)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        self._long(node, node.elts)

    def _long(self, node: ast.AST, items: list[ast.expr]) -> None:
        if len(items) > rules.LONGEST_LITERAL:
            self._find(node, "pretrained", f"a literal of {len(items):,} entries is data")
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        numbers = [value for key in node.keys if key is not None and (value := _number(key)) in rules.terms()]
        if len(numbers) > 1 or any(number % 1_000 for number in numbers):
            told = ", ".join(f"{number:g} ({rules.terms()[number]})" for number in numbers[:3])
            self._find(node, "fingerprints", f"a table is looked up by {told}")
        self.generic_visit(node)

    def visit_MatchValue(self, node: ast.MatchValue) -> None:
        number = _number(node.value)
        if number in rules.terms():
            self._find(node.value, "fingerprints", f"{number:g} is {rules.terms()[number]}")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        numbers = [number for side in sides for number in _numbers(side)]
        fact = next((name for side in sides if (name := _fact(side)) is not None), None)
        if fact is not None and any(abs(number) > 1 for number in numbers):
            self._find(node, "fingerprints", f"{fact} is compared with a number: it tells workloads apart")
        for number in numbers:
            if number in rules.terms() and number % 1_000:
                self._find(node, "fingerprints", f"{number:g} is {rules.terms()[number]}")
        equal = all(isinstance(operator, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for operator in node.ops)
        if equal and any(map(_is_shape, sides)) and any(number > rules.SMALL for number in numbers):
            self._find(node, "fingerprints", "the shape of a parameter is compared with numbers of one model")
        self.generic_visit(node)


_WRITES = frozenset({"update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__"})
_HARNESS_OBJECTS = frozenset({"workload", "context"})


def _longest(name: str, table: Mapping[str, Forbidden]) -> tuple[str, Forbidden | None]:
    """The entry for a dotted name, or for the longest beginning of it."""
    while name not in table:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return name, None
    return name, table[name]


def _number(node: ast.AST) -> float:
    """NaN where it is no number."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    return float("nan")


def _numbers(node: ast.expr) -> Iterator[float]:
    """The numbers of a literal, or of the entries of one."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Tuple | ast.List):
        items = node.args[0].elts  # torch.Size([...])
    for item in items:
        if isinstance(item, ast.Tuple | ast.List):
            yield from _numbers(item)
        elif (number := _number(item)) == number:
            yield number


def _fact(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) and node.attr in rules.FACTS else None


def _is_shape(node: ast.expr) -> bool:
    """Whether an expression is made of a tensor's shape or size: `p.shape`, `tuple(p.size())`, `p.shape[0]`, `p.numel()`."""
    inner: ast.expr = node
    while True:
        if isinstance(inner, ast.Attribute) and inner.attr == "shape":
            return True
        if (
            isinstance(inner, ast.Call)
            and isinstance(inner.func, ast.Attribute)
            and inner.func.attr in ("size", "numel")
        ):
            return True
        if isinstance(inner, ast.Subscript):
            inner = inner.value
        elif isinstance(inner, ast.Call) and len(inner.args) == 1:
            inner = inner.args[0].elt if isinstance(inner.args[0], ast.GeneratorExp) else inner.args[0]
        else:
            return False


def _docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    """Strings that stand alone."""
    return (
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )
