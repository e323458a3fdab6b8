"""Names of the training algorithms that ship with the package. Listing them imports nothing; building one does.

To add an algorithm: one file in this folder, its search space beside it, and one record here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algoperf_torch.errors import UnknownNameError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Record:
    """One algorithm.

    Attributes:
        target: `module:class` below `algoperf_torch.optim`: an optimizer, or a training algorithm.
        summary: one line for listings.
        paper: where the method comes from.
        schedule: of the learning rate, unless the user asks for another.
        defaults: hyperparameters for what a trial does not give.
        search_space: JSON file in this folder; `None` for the self-tuning ruleset: no hyperparameters at all.
    """

    target: str
    summary: str
    paper: str
    schedule: str = "cosine"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    search_space: str | None = None

    @property
    def search_space_file(self) -> Path | None:
        return None if self.search_space is None else FOLDER / self.search_space


ALGORITHMS: dict[str, Record] = {
    "adamw": Record(
        target="adamw:AdamW",
        summary="Adam with decoupled weight decay",
        paper="Loshchilov and Hutter (2019), arXiv:1711.05101",
        search_space="nadamw.json",
    ),
    "momentum": Record(
        target="sgd:SGD",
        summary="SGD with heavy-ball momentum",
        paper="Polyak (1964)",
        schedule="linear",
        defaults={"nesterov": False, "end_factor": 0.001},
        search_space="sgd.json",
    ),
    "nadamw": Record(
        target="nadamw:NAdamW",
        summary="AdamW with Nesterov momentum, the AlgoPerf baseline",
        paper="Dahl et al. (2023), arXiv:2306.07179; Dozat (2016)",
        search_space="nadamw.json",
    ),
    "nesterov": Record(
        target="sgd:SGD",
        summary="SGD with Nesterov momentum",
        paper="Sutskever et al. (2013)",
        schedule="linear",
        defaults={"nesterov": True, "end_factor": 0.001},
        search_space="sgd.json",
    ),
    "schedule_free_adamw": Record(
        target="schedule_free:ScheduleFreeAdamW",
        summary="AdamW with averaging in place of a schedule",
        paper="Defazio et al. (2024), arXiv:2405.15682",
        schedule="constant",
        defaults={"warmup_factor": 0.02},
        search_space="schedule_free_adamw.json",
    ),
    "schedule_free_sgd": Record(
        target="schedule_free:ScheduleFreeSGD",
        summary="SGD with averaging in place of a schedule",
        paper="Defazio et al. (2024), arXiv:2405.15682",
        schedule="constant",
        defaults={"warmup_factor": 0.05},
        search_space="schedule_free_sgd.json",
    ),
}

# Prefixes: `ema:nadamw` averages what `nadamw` trains. They compose from left to right, outermost first.
WRAPPERS: dict[str, str] = {
    "ema": "wrappers:exponential_average",
    "lawa": "wrappers:latest_average",
    "sam": "sam:sharpness_aware",
}


def algorithm_names() -> list[str]:
    return sorted(ALGORITHMS)


def find(name: str) -> Record:
    """The record of a registered algorithm. Raises `UnknownNameError`."""
    if name not in ALGORITHMS:
        raise UnknownNameError("submission", name, ALGORITHMS)
    return ALGORITHMS[name]
