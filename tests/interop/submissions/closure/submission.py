"""An optimizer whose `step` takes a closure that runs forward and backward; it averages its iterates as it goes."""

import torch
import torch.distributed.nn as dist_nn
from algorithmic_efficiency import spec
from algorithmic_efficiency.pytorch_utils import pytorch_setup

USE_DDP = pytorch_setup()[0]


class AveragedSGD(torch.optim.Optimizer):
    """Gradients at y = x + beta (z - x), steps on z, x is the mean of all z. Between steps the parameters are y."""

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0})

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                group["k"] += 1
                for p in group["params"]:
                    state = self.state[p]
                    if not state:
                        state["z"], state["x"] = p.clone(), p.clone()
                    state["z"].add_(p.grad, alpha=-group["lr"])
                    state["x"].lerp_(state["z"], 1.0 / group["k"])
                    p.copy_(state["z"].lerp(state["x"], group["beta"]))
        return loss


def get_batch_size(workload_name):
    if workload_name == "wmt":
        return 128
    raise ValueError(workload_name)


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    return {"optimizer": AveragedSGD(model_params.parameters(), lr=hyperparameters.learning_rate)}


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
    current_param_container.train()

    def closure():
        optimizer_state["optimizer"].zero_grad()
        logits, _ = workload.model_fn(
            params=current_param_container,
            augmented_and_preprocessed_input_batch=batch,
            model_state=model_state,
            mode=spec.ForwardPassMode.TRAIN,
            rng=rng,
            update_batch_norm=True,
        )
        losses = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"))
        loss, n_valid = losses["summed"], losses["n_valid_examples"]
        if USE_DDP:
            loss, n_valid = dist_nn.all_reduce(loss), dist_nn.all_reduce(n_valid)
        loss = loss / n_valid
        loss.backward()
        return loss

    optimizer_state["optimizer"].step(closure)
    return optimizer_state, current_param_container, None


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
