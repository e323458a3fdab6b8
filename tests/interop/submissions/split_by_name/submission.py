"""Two optimizers, chosen by the parameters' names; its other file is named by the path from the repository's root."""

import os

import torch
import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup
from submissions.split_by_name.orthogonal import Orthogonal

USE_DDP = pytorch_setup()[0]
RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def get_batch_size(workload_name):
    if workload_name == "digits":
        return 128
    raise ValueError(workload_name)


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    matrices, others = [], []
    for name, p in model_params.named_parameters():
        plain = p.ndim < 2 or "embedding" in name or "embed_tokens" in name
        (others if plain else matrices).append(p)
    return {
        "muon": Orthogonal(matrices, hyperparameters.learning_rate, 1.0 - hyperparameters.one_minus_momentum),
        "adamw": torch.optim.AdamW(others, lr=3e-3),
    }


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
    current_param_container.train()
    for optimizer in optimizer_state.values():
        optimizer.zero_grad()
    logits, model_state = workload.model_fn(
        params=current_param_container,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
        dropout_rate=0.0,
    )
    losses = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"))
    loss, count = losses["summed"], losses["n_valid_examples"]
    if USE_DDP:
        loss, count = dist_nn.all_reduce(loss), dist_nn.all_reduce(count)
    (loss / count).backward()
    for optimizer in optimizer_state.values():
        optimizer.step()
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
    return optimizer_state, current_param_container, model_state


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
