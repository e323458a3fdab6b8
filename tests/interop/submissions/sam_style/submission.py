"""Sharpness-aware: a closure makes the second pass at the perturbed weights, with batch norm frozen."""

import torch
import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup

USE_DDP = pytorch_setup()[0]


class Perturbed(torch.optim.Optimizer):
    def __init__(self, params, base, rho, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        norm = torch.norm(torch.stack([p.grad.norm() for p in params]))
        old = [p.data.clone() for p in params]
        for p in params:
            p.add_(p.grad, alpha=self.param_groups[0]["rho"] / (float(norm) + 1e-12))
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, value in zip(params, old, strict=True):
            p.data = value
        self.base.step()

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state_dict):
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups


def get_batch_size(workload_name):
    if workload_name == "digits":
        return 128
    raise ValueError(workload_name)


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    optimizer = Perturbed(
        model_params.parameters(), torch.optim.SGD, hyperparameters.rho, lr=hyperparameters.learning_rate, momentum=0.9
    )
    return {"optimizer": optimizer}


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

    def backward(update_batch_norm=True):
        logits, _ = workload.model_fn(
            params=current_param_container,
            augmented_and_preprocessed_input_batch=batch,
            model_state=model_state,
            mode=spec.ForwardPassMode.TRAIN,
            rng=rng,
            update_batch_norm=update_batch_norm,
            dropout_rate=hyperparameters.dropout_rate,
        )
        losses = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"))
        loss, count = losses["summed"], losses["n_valid_examples"]
        if USE_DDP:
            loss, count = dist_nn.all_reduce(loss), dist_nn.all_reduce(count)
        (loss / count).backward()

    optimizer_state["optimizer"].zero_grad()
    backward()
    optimizer_state["optimizer"].step(lambda: backward(update_batch_norm=False))
    return optimizer_state, current_param_container, None


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
