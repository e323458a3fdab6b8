"""fastMRI, knee, single coil: reconstruct slices from a quarter of the measured columns."""

from dataclasses import replace

from algoperf_torch.spec import LossKind, WorkloadSpec

_BASE = WorkloadSpec(
    name="fastmri",
    base="fastmri",
    dataset="fastmri",
    loss=LossKind.MEAN_ABSOLUTE_ERROR,
    metric="ssim",
    metrics=("loss", "ssim"),
    num_train=34_742,
    num_eval_train=3_584,
    num_validation=3_554,
    num_test=3_581,
    batch_size=32,
    eval_batch_size=256,
    num_parameters=7_756_097,
    task="MRI reconstruction",
    model="U-Net",
)

SPECS = {
    spec.name: spec
    for spec in (
        _BASE,
        replace(_BASE, name="fastmri_model_size", num_parameters=7_692_929),
        replace(_BASE, name="fastmri_tanh"),
        replace(_BASE, name="fastmri_layernorm", num_parameters=7_761_985),
    )
}
