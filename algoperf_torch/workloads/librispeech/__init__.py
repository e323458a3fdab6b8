"""LibriSpeech: 960 hours of read English to word pieces."""

from dataclasses import replace

from algoperf_torch.spec import LossKind, WorkloadSpec

_CONFORMER = WorkloadSpec(
    name="librispeech_conformer",
    base="librispeech_conformer",
    dataset="librispeech",
    loss=LossKind.CTC,
    metric="wer",
    metrics=("ctc_loss", "standard_wer", "wer"),
    num_train=263_840,
    num_eval_train=5_376,
    num_validation=5_348,
    num_test=2_472,
    batch_size=256,
    eval_batch_size=256,
    default_dropout=0.1,
    num_parameters=32_321_792,
    task="speech recognition",
    model="Conformer",
)
_DEEPSPEECH = replace(
    _CONFORMER,
    name="librispeech_deepspeech",
    base="librispeech_deepspeech",
    num_parameters=18_393_600,
    model="Deep Speech",
)

SPECS = {
    spec.name: spec
    for spec in (
        _CONFORMER,
        replace(_CONFORMER, name="librispeech_conformer_attention_temperature"),
        replace(_CONFORMER, name="librispeech_conformer_layernorm", num_parameters=32_317_696),
        replace(_CONFORMER, name="librispeech_conformer_gelu"),
        _DEEPSPEECH,
        replace(_DEEPSPEECH, name="librispeech_deepspeech_tanh"),
        replace(_DEEPSPEECH, name="librispeech_deepspeech_no_resnet"),
        replace(
            _DEEPSPEECH,
            name="librispeech_deepspeech_norm_and_spec_aug",
            eval_batch_size=128,
            num_parameters=18_392_576,
        ),
    )
}
