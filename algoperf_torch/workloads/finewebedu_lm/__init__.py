"""Language modelling on FineWeb-Edu with a decoder-only Transformer."""

from algoperf_torch.spec import LossKind, WorkloadSpec

SPECS = {
    "finewebedu_lm": WorkloadSpec(
        name="finewebedu_lm",
        base="finewebedu_lm",
        dataset="finewebedu_lm",
        loss=LossKind.SOFTMAX_CROSS_ENTROPY,
        metric="ppl",
        metrics=("loss", "ppl"),
        num_train=8_749_870,  # windows of 1,025 tokens
        num_eval_train=10_000,
        num_validation=100_000,
        num_test=0,
        batch_size=64,
        eval_batch_size=256,
        num_parameters=252_815_372,
        task="language modelling",
        model="decoder-only Transformer",
    )
}
