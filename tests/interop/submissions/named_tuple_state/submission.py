"""The hyperparameters, as a named tuple, are part of the optimizer state; sign updates with a momentum."""

from collections import namedtuple

import torch
import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup

USE_DDP = pytorch_setup()[0]
Settings = namedtuple("Settings", ["learning_rate", "beta", "bounds"])
SETTINGS = Settings(learning_rate=2e-4, beta=0.9, bounds=(0.0, 1.0))


class Signed(torch.optim.Optimizer):
    def __init__(self, params, lr, beta):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1.0 - group["beta"])
                p.sub_(momentum.sign(), alpha=group["lr"])


def get_batch_size(workload_name):
    return {"imagenet_vit": 1024}[workload_name]


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    assert hyperparameters is None
    optimizer = Signed(model_params.parameters(), SETTINGS.learning_rate, SETTINGS.beta)
    return {"optimizer": optimizer, "hyperparameters": SETTINGS}


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
    settings = optimizer_state["hyperparameters"]
    assert settings.bounds == (0.0, 1.0)
    current_param_container.train()
    optimizer_state["optimizer"].zero_grad()
    logits, model_state = workload.model_fn(
        params=current_param_container,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
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
