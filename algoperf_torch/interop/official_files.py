"""Where an existing AlgoPerf submission is, and how its main file is known. Reads files, executes nothing, needs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

from algoperf_torch.errors import SubmissionLoadError
from algoperf_torch.interop.import_scope import imported_names

ENTRY_FILE = "submission.py"
SEARCH_SPACE_FILE = "tuning_search_space.json"
PACKAGES = ("algoperf", "algorithmic_efficiency")  # the original harness: its name since 2025, and before
NOT_OFFERED = ("jax", "jaxlib", "flax", "optax", "tensorflow")


def find_entry(folder: Path) -> Path:
    """The `submission.py` of a folder, or of the only folder in it that has one. Raises `SubmissionLoadError`."""
    own = folder / ENTRY_FILE
    if own.is_file():
        return own.resolve()
    below = sorted(path for path in folder.glob(f"*/{ENTRY_FILE}"))
    if len(below) == 1:
        return below[0].resolve()
    if below:
        names = ", ".join(str(path.parent) for path in below)
        raise SubmissionLoadError(f"{folder} holds several submissions: {names}. Name one of them.")
    raise SubmissionLoadError(
        f"{folder} is a folder without a {ENTRY_FILE}. Name a file in it: {folder / 'my_optimizer.py'}:MyOptimizer."
    )


def is_official(path: Path) -> bool:
    """Whether a Python file is such a submission: it binds `update_params`, or imports the original harness."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return False  # whoever imports it says so
    if any(name.partition(".")[0] in PACKAGES for name, level in imported_names(tree) if not level):
        return True
    return any(
        (isinstance(node, ast.FunctionDef) and node.name == "update_params")
        or (isinstance(node, ast.ImportFrom) and any("update_params" in (a.name, a.asname) for a in node.names))
        for node in tree.body
    )
