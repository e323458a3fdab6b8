"""MNIST: 28 x 28 grey images of digits and a network with one hidden layer. For development, in no score."""

from algoperf_torch.spec import LossKind, WorkloadSpec

SPECS = {
    "mnist": WorkloadSpec(
        name="mnist",
        base="mnist",
        dataset="mnist",
        task="digit recognition",
        model="one hidden layer",
        loss=LossKind.SOFTMAX_CROSS_ENTROPY,
        metric="accuracy",
        metrics=("accuracy", "loss"),
        num_train=50_000,
        num_eval_train=10_000,
        num_validation=10_000,
        num_test=10_000,
        batch_size=1_024,
        eval_batch_size=10_000,
        num_parameters=101_770,
    )
}
