"""Criteo 1TB click logs: will an advertisement be clicked on? DLRM-small and its variants."""

from dataclasses import replace

from algoperf_torch.spec import LossKind, WorkloadSpec

_BASE = WorkloadSpec(
    name="criteo1tb",
    base="criteo1tb",
    dataset="criteo1tb",
    loss=LossKind.SIGMOID_CROSS_ENTROPY,
    metric="loss",
    metrics=("loss",),
    num_train=4_195_197_692,
    num_eval_train=83_279_872,
    num_validation=83_274_637,
    num_test=95_000_000,
    batch_size=262_144,
    eval_batch_size=8_192,
    num_parameters=539_267_457,
    task="click prediction",
    model="DLRM-small",
)

SPECS = {
    spec.name: spec
    for spec in (
        _BASE,
        replace(_BASE, name="criteo1tb_layernorm", num_parameters=539_275_137),
        replace(_BASE, name="criteo1tb_embed_init"),
        replace(_BASE, name="criteo1tb_resnet", num_parameters=538_121_473),
    )
}
