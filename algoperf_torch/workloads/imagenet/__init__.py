"""ImageNet (ILSVRC 2012): 1000 classes; ImageNet-v2 (matched frequency) is the test split."""

from dataclasses import replace

from algoperf_torch.spec import LossKind, WorkloadSpec

_RESNET = WorkloadSpec(
    name="imagenet_resnet",
    base="imagenet_resnet",
    dataset="imagenet",
    loss=LossKind.SOFTMAX_CROSS_ENTROPY,
    metric="accuracy",
    metrics=("accuracy", "loss"),
    num_train=1_281_167,
    num_eval_train=50_176,
    num_validation=50_000,
    num_test=10_000,
    batch_size=1024,
    eval_batch_size=1024,
    num_parameters=25_557_032,
    task="image classification",
    model="ResNet-50",
)
_VIT = replace(
    _RESNET,
    name="imagenet_vit",
    base="imagenet_vit",
    num_eval_train=51_200,
    eval_batch_size=2048,
    num_parameters=22_122_472,
    model="ViT-S/16",
)

SPECS = {
    spec.name: spec
    for spec in (
        _RESNET,
        replace(_RESNET, name="imagenet_resnet_silu", batch_size=512),
        replace(_RESNET, name="imagenet_resnet_gelu", batch_size=512),
        replace(_RESNET, name="imagenet_resnet_large_bn_init"),
        _VIT,
        replace(_VIT, name="imagenet_vit_glu", num_parameters=50_452_456),
        replace(_VIT, name="imagenet_vit_post_ln", num_parameters=22_121_704),
        replace(_VIT, name="imagenet_vit_map", num_parameters=23_896_552),
    )
}
