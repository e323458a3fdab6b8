"""WMT German to English translation: a Transformer and its variants."""

from dataclasses import replace

from algoperf_torch.spec import LossKind, WorkloadSpec

_BASE = WorkloadSpec(
    name="wmt",
    base="wmt",
    dataset="wmt",
    loss=LossKind.SOFTMAX_CROSS_ENTROPY,
    metric="bleu",
    metrics=("accuracy", "bleu", "loss"),
    num_train=5_906_184,
    num_eval_train=3_072,
    num_validation=3_000,
    num_test=3_003,
    batch_size=128,
    eval_batch_size=128,
    default_dropout=0.1,
    num_parameters=133_521_408,
    task="translation",
    model="Transformer",
)

SPECS = {
    spec.name: spec
    for spec in (
        _BASE,
        replace(_BASE, name="wmt_post_ln", num_parameters=133_517_312),
        replace(_BASE, name="wmt_attention_temp"),
        replace(_BASE, name="wmt_glu_tanh", num_parameters=146_116_608),
    )
}
