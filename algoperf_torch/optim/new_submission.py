"""`algoperf new-submission DIR`: writes a commented optimizer that runs, and a search space beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import tyro

from algoperf_torch.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class NewSubmissionOptions:
    """Writes DIR/<name>.py and DIR/<name>.json, a starting point that trains as it is. Overwrites nothing."""

    directory: tyro.conf.Positional[Path]
    """Where to write; made if it does not exist. Its last part names the submission."""


def main(options: NewSubmissionOptions) -> int:
    """Writes the files and tells what to do next. Raises `UsageError` for a bad name or a file that exists."""
    directory = options.directory
    name = directory.resolve().name.replace("-", "_")
    if not name.isidentifier() or not name.isascii():
        raise UsageError(f"{name!r} cannot name a Python file. Write, for example, `algoperf new-submission my_lion`.")
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_")) or "MyOptimizer"
    source, space = directory / f"{name}.py", directory / f"{name}.json"
    for path in (source, space):
        if path.exists():
            raise UsageError(f"{path} exists and is not overwritten. Choose another directory.")
    templates = files("algoperf_torch.optim") / "templates"
    text = (templates / "submission.py.txt").read_text(encoding="utf-8")
    words = {"$CLASS_": class_name, "$CLASS": class_name, "$FILE": str(source), "$SPACE": space.name}
    for word, value in words.items():
        text = text.replace(word, value)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        source.write_text(text, encoding="utf-8")
        space.write_text((templates / "search_space.json").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write to {directory}: {error.strerror}.") from error
    sys.stdout.write(
        f"{source}   the optimizer {class_name}: replace its mathematics\n"
        f"{space}   five points of its search space\n\n"
        f"Next:  algoperf sanity {source}\n"
        f"       torchrun --standalone --nproc_per_node=1 -m algoperf_torch.run --workload digits --submission {source}\n"
    )
    return 0
