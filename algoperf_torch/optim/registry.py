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
    "adafactor": Record(
        target="adafactor:Adafactor",
        summary="Adam with factored second moments",
        paper="Shazeer and Stern (2018), arXiv:1804.04235",
        search_space="adafactor.json",
    ),
    "adamw": Record(
        target="adamw:AdamW",
        summary="Adam with decoupled weight decay",
        paper="Loshchilov and Hutter (2019), arXiv:1711.05101",
        search_space="nadamw.json",
    ),
    "ademamix": Record(
        target="ademamix:AdEMAMixAlgorithm",
        summary="Adam with a second, slow momentum",
        paper="Pagliardini et al. (2024), arXiv:2409.03137",
        search_space="ademamix.json",
    ),
    "cautious_nadamw": Record(
        target="cautious_nadamw:CautiousNAdamW",
        summary="NAdamW that never moves against the gradient",
        paper="Liang et al. (2024), arXiv:2411.16085",
        search_space="nadamw.json",
    ),
    "lamb": Record(
        target="lamb:LAMB",
        summary="Adam scaled by the norm of every parameter",
        paper="You et al. (2020), arXiv:1904.00962",
        search_space="lamb.json",
    ),
    "lion": Record(
        target="lion:Lion",
        summary="sign of an interpolated momentum",
        paper="Chen et al. (2023), arXiv:2302.06675",
        search_space="lion.json",
    ),
    "momentum": Record(
        target="sgd:SGD",
        summary="SGD with heavy-ball momentum",
        paper="Polyak (1964)",
        schedule="linear",
        defaults={"nesterov": False, "end_factor": 0.001},
        search_space="sgd.json",
    ),
    "muon": Record(
        target="muon:MuonAlgorithm",
        summary="orthogonalised momentum, AdamW for the rest",
        paper="Jordan et al. (2024); Liu et al. (2025), arXiv:2502.16982",
        search_space="muon.json",
    ),
    "nadamw": Record(
        target="nadamw:NAdamW",
        summary="AdamW with Nesterov momentum, the AlgoPerf baseline",
        paper="Dahl et al. (2023), arXiv:2306.07179; Dozat (2016)",
        search_space="nadamw.json",
    ),
    "nadamw_default": Record(
        target="nadamw:NAdamW",
        summary="NAdamW with AlgoPerf's self-tuning point",
        paper="Dahl et al. (2023), arXiv:2306.07179",
        defaults={
            "lr": 0.0017486387539278373,
            "betas": (0.93266073836, 0.9955159689799007),
            "weight_decay": 0.08121616522670176,
            "warmup_factor": 0.02,
            "dropout_rate": 0.1,
        },
    ),
    "nesterov": Record(
        target="sgd:SGD",
        summary="SGD with Nesterov momentum",
        paper="Sutskever et al. (2013)",
        schedule="linear",
        defaults={"nesterov": True, "end_factor": 0.001},
        search_space="sgd.json",
    ),
    "prodigy": Record(
        target="prodigy:Prodigy",
        summary="Adam that estimates its learning rate",
        paper="Mishchenko and Defazio (2023), arXiv:2306.06101",
        search_space="prodigy.json",
    ),
    "sam": Record(
        target="sam:SAM",
        summary="AdamW at the worst point nearby",
        paper="Foret et al. (2021), arXiv:2010.01412",
        search_space="sam.json",
    ),
    "schedule_free_adamw": Record(
        target="schedule_free:ScheduleFreeAdamW",
        summary="AdamW with averaging in place of a schedule",
        paper="Defazio et al. (2024), arXiv:2405.15682",
        schedule="constant",
        defaults={"warmup_factor": 0.02},
        search_space="schedule_free_adamw.json",
    ),
    "schedule_free_default": Record(
        target="schedule_free:ScheduleFreeAdamW",
        summary="schedule-free AdamW with the point of AlgoPerf's self-tuning winner",
        paper="Defazio et al. (2024), arXiv:2405.15682",
        schedule="constant",
        defaults={
            "lr": 0.0025,
            "betas": (0.9, 0.9955159689799007),
            "weight_decay": 0.08121616522670176,
            "warmup_factor": 0.02,
            "label_smoothing": 0.2,
        },
    ),
    "schedule_free_sgd": Record(
        target="schedule_free:ScheduleFreeSGD",
        summary="SGD with averaging in place of a schedule",
        paper="Defazio et al. (2024), arXiv:2405.15682",
        schedule="constant",
        defaults={"warmup_factor": 0.05},
        search_space="schedule_free_sgd.json",
    ),
    "shampoo": Record(
        target="shampoo:ShampooAlgorithm",
        summary="block-wise full-matrix preconditioning, grafted onto Adam",
        paper="Gupta et al. (2018), arXiv:1802.09568; Shi et al. (2023), arXiv:2309.06497",
        search_space="shampoo.json",
    ),
    "soap": Record(
        target="soap:SOAP",
        summary="Adam in the eigenbasis of Shampoo",
        paper="Vyas et al. (2024), arXiv:2409.11321",
        search_space="soap.json",
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
