"""Never calls `train()`; every third step a pass without gradients moves the running statistics, the other pass never does."""

import torch
import torch.distributed.nn as dist_nn
from algorithmic_efficiency import spec
from algorithmic_efficiency.pytorch_utils import pytorch_setup

USE_DDP = pytorch_setup()[0]


def get_batch_size(workload_name):
    if workload_name == "wmt":
        return 128
    raise ValueError(workload_name)


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    has_statistics = any(hasattr(module, "running_mean") for module in model_params.modules())
    optimizer = torch.optim.NAdam(model_params.parameters(), lr=hyperparameters.learning_rate)
    return {"optimizer": optimizer, "has_statistics": has_statistics}


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
):
    def forward(update_batch_norm):
        return workload.model_fn(
            params=current_param_container,
            augmented_and_preprocessed_input_batch=batch,
            model_state=model_state,
            mode=spec.ForwardPassMode.TRAIN,
            rng=rng,
            update_batch_norm=update_batch_norm,
        )

    if optimizer_state["has_statistics"] and global_step % 3 == 0:
        with torch.no_grad():
            forward(True)
    optimizer_state["optimizer"].zero_grad()
    logits, new_model_state = forward(False)
    losses = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"))
    loss, count = losses["summed"], losses["n_valid_examples"]
    if USE_DDP:
        loss, count = dist_nn.all_reduce(loss), dist_nn.all_reduce(count)
    (loss / count).backward()
    optimizer_state["optimizer"].step()
    return optimizer_state, current_param_container, new_model_state


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
