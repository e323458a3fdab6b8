"""In the style of 2023: the old package name, no hook, no dropout in the forward call; NAdam with warm-up and cosine decay."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed.nn as dist_nn
from absl import logging
from algorithmic_efficiency import spec
from algorithmic_efficiency.pytorch_utils import pytorch_setup
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

USE_DDP = pytorch_setup()[0]


def get_batch_size(workload_name: str) -> int:
    if workload_name == "digits":
        return 64
    raise ValueError(f"Unsupported workload name: {workload_name}.")


def init_optimizer_state(
    workload: spec.Workload,
    model_params: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    rng: spec.RandomState,
) -> spec.OptimizerState:
    del model_state, rng
    optimizer = torch.optim.NAdam(
        model_params.parameters(),
        lr=hyperparameters.learning_rate,
        betas=(1.0 - hyperparameters.one_minus_beta1, hyperparameters.beta2),
        eps=hyperparameters.epsilon if hasattr(hyperparameters, "epsilon") else 1e-8,
        weight_decay=hyperparameters.weight_decay,
        decoupled_weight_decay=True,
        foreach=True,
    )
    warmup = int(hyperparameters.warmup_factor * workload.step_hint)
    schedule = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1e-6, end_factor=1.0, total_iters=warmup),
            CosineAnnealingLR(optimizer, T_max=max(workload.step_hint - warmup, 1)),
        ],
        milestones=[warmup],
    )
    return {"optimizer": optimizer, "scheduler": schedule}


def update_params(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    batch: dict[str, spec.Tensor],
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: list[tuple[int, float]],
    global_step: int,
    rng: spec.RandomState,
) -> spec.UpdateReturn:
    del current_params_types, loss_type, eval_results
    model = current_param_container
    model.train()
    optimizer_state["optimizer"].zero_grad()
    logits, new_model_state = workload.model_fn(
        params=model,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
    )
    losses = workload.loss_fn(
        label_batch=batch["targets"],
        logits_batch=logits,
        mask_batch=batch.get("weights"),
        label_smoothing=getattr(hyperparameters, "label_smoothing", 0.0),
    )
    summed, count = losses["summed"], losses["n_valid_examples"]
    if USE_DDP:
        summed, count = dist_nn.all_reduce(summed), dist_nn.all_reduce(count)
    loss = summed / count
    loss.backward()
    if hasattr(hyperparameters, "grad_clip"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=hyperparameters.grad_clip)
    optimizer_state["optimizer"].step()
    optimizer_state["scheduler"].step()
    if global_step <= 10 or global_step % 100 == 0:
        with torch.no_grad():
            norms = [torch.norm(p.grad, 2) for p in model.parameters() if p.grad is not None]
            grad_norm = torch.norm(torch.stack(norms), 2)
        if workload.metrics_logger is not None:
            workload.metrics_logger.append_scalar_metrics(
                {"loss": loss.item(), "grad_norm": grad_norm.item()}, global_step
            )
        logging.info("%d) loss = %0.3f, grad_norm = %0.3f", global_step, loss.item(), grad_norm.item())
    return optimizer_state, current_param_container, new_model_state


def data_selection(
    workload: spec.Workload,
    input_queue: Iterator[dict[str, Any]],
    optimizer_state: spec.OptimizerState,
    current_param_container: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    global_step: int,
    rng: spec.RandomState,
) -> dict[str, spec.Tensor]:
    del workload, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
    return next(input_queue)
