"""ogbg-molpcba: which of 128 assays is a molecule active in? A graph network and its variants."""

from dataclasses import replace

from algoperf_torch.spec import LossKind, WorkloadSpec

_BASE = WorkloadSpec(
    name="ogbg",
    base="ogbg",
    dataset="ogbg",
    loss=LossKind.SOFTMAX_CROSS_ENTROPY,  # what submissions are told; the loss is a sigmoid cross entropy
    metric="mean_average_precision",
    metrics=("accuracy", "loss", "mean_average_precision"),
    num_train=350_343,
    num_eval_train=43_793,
    num_validation=43_793,
    num_test=43_793,
    batch_size=512,
    eval_batch_size=32_768,
    default_dropout=0.1,
    num_parameters=3_554_176,
    task="molecular property prediction",
    model="graph network",
)

SPECS = {
    spec.name: spec
    for spec in (
        _BASE,
        replace(_BASE, name="ogbg_gelu"),
        replace(_BASE, name="ogbg_silu"),
        replace(_BASE, name="ogbg_model_size", num_parameters=2_571_648),
    )
}
