"""All workloads by name, without importing torch until one is built.

A dataset's package holds its facts in `SPECS` (workload name -> `WorkloadSpec`) and its code in the module `workload`,
whose `build(spec, data_dir, model_scale)` makes any of them: a variant is another spec and other model options, no class.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from algoperf_torch.errors import UnknownNameError
from algoperf_torch.spec import WorkloadSpec

if TYPE_CHECKING:
    from algoperf_torch.workloads.base import ModelScale, Workload

WORKLOADS: dict[str, str] = {  # workload name -> the package beside this module that holds it
    "cifar": "cifar",
    "criteo1tb": "criteo1tb",
    "criteo1tb_embed_init": "criteo1tb",
    "criteo1tb_layernorm": "criteo1tb",
    "criteo1tb_resnet": "criteo1tb",
    "digits": "digits",
    "fastmri": "fastmri",
    "fastmri_layernorm": "fastmri",
    "fastmri_model_size": "fastmri",
    "fastmri_tanh": "fastmri",
    "finewebedu_lm": "finewebedu_lm",
    "imagenet_resnet": "imagenet",
    "imagenet_resnet_gelu": "imagenet",
    "imagenet_resnet_large_bn_init": "imagenet",
    "imagenet_resnet_silu": "imagenet",
    "imagenet_vit": "imagenet",
    "imagenet_vit_glu": "imagenet",
    "imagenet_vit_map": "imagenet",
    "imagenet_vit_post_ln": "imagenet",
    "librispeech_conformer": "librispeech",
    "librispeech_conformer_attention_temperature": "librispeech",
    "librispeech_conformer_gelu": "librispeech",
    "librispeech_conformer_layernorm": "librispeech",
    "librispeech_deepspeech": "librispeech",
    "librispeech_deepspeech_no_resnet": "librispeech",
    "librispeech_deepspeech_norm_and_spec_aug": "librispeech",
    "librispeech_deepspeech_tanh": "librispeech",
    "mnist": "mnist",
    "ogbg": "ogbg",
    "ogbg_gelu": "ogbg",
    "ogbg_model_size": "ogbg",
    "ogbg_silu": "ogbg",
    "wmt": "wmt",
    "wmt_attention_temp": "wmt",
    "wmt_glu_tanh": "wmt",
    "wmt_post_ln": "wmt",
}


def workload_names() -> list[str]:
    return sorted(WORKLOADS)


def workload_spec(name: str) -> WorkloadSpec:
    """The facts of a workload; imports no torch. Raises `UnknownNameError`."""
    specs: dict[str, WorkloadSpec] = import_module(_package(name)).SPECS
    return specs[name]


def build_workload(name: str, data_dir: Path | None = None, *, model_scale: ModelScale = "full") -> Workload:
    """A workload whose data lie in the folder `data_dir`/<dataset>; reads nothing. Raises `UnknownNameError`."""
    workload: Workload = import_module(f"{_package(name)}.workload").build(workload_spec(name), data_dir, model_scale)
    return workload


def _package(name: str) -> str:
    if name not in WORKLOADS:
        raise UnknownNameError("workload", name, WORKLOADS)
    return f"algoperf_torch.workloads.{WORKLOADS[name]}"
