"""`algoperf held-out`: draws held-out workloads, one of each dataset, as the first competition did."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algoperf_torch.errors import UsageError

CANDIDATES = Path(__file__).with_name("held_out.toml")


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions:
    """Draws one held-out workload of each dataset and prints them as a JSON array."""

    seed: int | None = None
    """Seed of the draw; the first competition's is 3438810845. Default, and 0: drawn by the operating system."""
    candidates: Path = CANDIDATES
    """TOML file with lists of names under `candidates`."""


def draw(candidates: Sequence[Sequence[str]], seed: int | None) -> list[str]:
    """One name of each list: numpy's default generator, one integer a list. Without a seed, or with 0, it is random."""
    rng = np.random.default_rng(seed or None)
    return [names[int(rng.integers(len(names)))] for names in candidates]


def read_candidates(path: Path = CANDIDATES) -> list[list[str]]:
    """Raises `UsageError` for a file that is not as `held_out.toml`."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {path}: {error}.") from error
    candidates = content.get("candidates")
    if (
        not isinstance(candidates, list)
        or not candidates
        or not all(
            isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in candidates
        )
    ):
        raise UsageError(f'{path}: write candidates = [["ogbg_gelu", "ogbg_silu"], ["wmt_post_ln"]].')
    return candidates


def main(options: HeldOutOptions) -> int:
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"--seed {options.seed}: must not be negative.")
    names = draw(read_candidates(options.candidates), options.seed)
    print(json.dumps(names, indent=2))  # noqa: T201
    return 0
