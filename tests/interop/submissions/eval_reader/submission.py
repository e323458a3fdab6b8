"""Self-tuning: lowers its rate when the validation metric gets worse; keeps numbers and truth values in the state."""

import torch
import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup

USE_DDP = pytorch_setup()[0]


def get_batch_size(workload_name):
    if workload_name == "digits":
        return 128
    raise ValueError(workload_name)


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    optimizer = torch.optim.AdamW(model_params.parameters(), lr=4e-3)
    return {"optimizer": optimizer, "max_checked_eval_step": -1, "has_lowered": False, "first_eval": None}


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
    sign = -1.0 if workload.target_metric_name in ("loss", "wer") else 1.0
    key = f"validation/{workload.target_metric_name}"
    if eval_results and optimizer_state["first_eval"] is None:
        optimizer_state["first_eval"] = eval_results[0][1][key]
    if len(eval_results) >= 2 and eval_results[-1][0] > optimizer_state["max_checked_eval_step"]:
        optimizer_state["max_checked_eval_step"] = eval_results[-1][0]
        if sign * (eval_results[-1][1][key] - eval_results[-2][1][key]) < 0.0:
            optimizer_state["has_lowered"] = True
            for group in optimizer_state["optimizer"].param_groups:
                group["lr"] *= 0.7
    current_param_container.train()
    optimizer_state["optimizer"].zero_grad()
    logits, _ = workload.model_fn(
        params=current_param_container,
        augmented_and_preprocessed_input_batch=batch,
        model_state=None,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
    )
    losses = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"))
    loss, count = losses["summed"], losses["n_valid_examples"]
    if USE_DDP:
        loss, count = dist_nn.all_reduce(loss), dist_nn.all_reduce(count)
    (loss / count).backward()
    optimizer_state["optimizer"].step()
    return optimizer_state, current_param_container, None


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
