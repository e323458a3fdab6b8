"""The embedded default: 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn. Needs no download."""

from algoperf_torch.spec import LossKind, WorkloadSpec

SPECS = {
    "digits": WorkloadSpec(
        name="digits",
        base="digits",
        dataset="digits",
        task="digit recognition",
        model="small convolutional net",
        loss=LossKind.SOFTMAX_CROSS_ENTROPY,
        metric="accuracy",
        metrics=("accuracy", "loss"),
        num_train=1_197,
        num_eval_train=300,
        num_validation=300,
        num_test=300,
        batch_size=128,
        eval_batch_size=300,
        default_dropout=0.1,
        num_parameters=13_754,
    )
}
