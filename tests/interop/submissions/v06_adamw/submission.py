"""In the style of 2025: the new package name, the preparation hook, `train_state`, dropout in the forward call."""

import torch
import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup
from torch.optim.lr_scheduler import LambdaLR

USE_PYTORCH_DDP = pytorch_setup()[0]
PREPARED = []


def get_batch_size(workload_name):
    batch_sizes = {"imagenet_resnet": 1024, "wmt": 128}
    if workload_name not in batch_sizes:
        raise ValueError(f"Unsupported workload name: {workload_name}.")
    return batch_sizes[workload_name]


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    optimizer = torch.optim.AdamW(
        model_params.parameters(),
        lr=hyperparameters.learning_rate,
        betas=(hyperparameters.beta1, hyperparameters.beta2),
        weight_decay=hyperparameters.weight_decay,
        fused=False,
    )
    steps = workload.step_hint
    return {"optimizer": optimizer, "scheduler": LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / steps))}


def update_params(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    batch,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
    train_state=None,
):
    assert train_state["accumulated_submission_time"] >= 0.0
    assert not train_state["training_complete"]
    model = current_param_container
    model.train()
    optimizer_state["optimizer"].zero_grad()
    logits, model_state = workload.model_fn(
        params=model,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
        dropout_rate=hyperparameters.dropout_rate,
    )
    loss_dict = workload.loss_fn(
        label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"), label_smoothing=0.0
    )
    summed_loss, n_valid_examples = loss_dict["summed"], loss_dict["n_valid_examples"]
    if USE_PYTORCH_DDP:
        summed_loss, n_valid_examples = dist_nn.all_reduce(summed_loss), dist_nn.all_reduce(n_valid_examples)
    (summed_loss / n_valid_examples).backward()
    optimizer_state["optimizer"].step()
    optimizer_state["scheduler"].step()
    return optimizer_state, current_param_container, model_state


def prepare_for_eval(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
):
    PREPARED.append(global_step)
    return optimizer_state, current_param_container, model_state


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
