"""CIFAR-10: 32 x 32 colour images of ten classes and a ResNet-18 for small images. For development, in no score."""

from algoperf_torch.spec import LossKind, WorkloadSpec

SPECS = {
    "cifar": WorkloadSpec(
        name="cifar",
        base="cifar",
        dataset="cifar",
        task="image classification",
        model="ResNet-18, small images",
        loss=LossKind.SOFTMAX_CROSS_ENTROPY,
        metric="accuracy",
        metrics=("accuracy", "loss"),
        num_train=45_000,
        num_eval_train=5_120,
        num_validation=5_000,
        num_test=10_000,
        batch_size=128,
        eval_batch_size=1_024,
        num_parameters=11_173_962,
    )
}
