"""Data selection returns the queue; an update makes several steps and replaces the weights by an average in host memory."""

import torch
import torch.distributed.nn as dist_nn
from algorithmic_efficiency import spec
from algorithmic_efficiency.pytorch_utils import pytorch_setup

USE_DDP = pytorch_setup()[0]


def get_batch_size(workload_name):
    if workload_name == "digits":
        return 128
    raise ValueError(workload_name)


class Average:
    """A running average of the weights that lives in host memory."""

    def __init__(self, parameters, beta):
        self.beta = beta
        self.values = [p.detach().cpu().clone() for p in parameters]

    def update(self, parameters):
        for value, p in zip(self.values, parameters, strict=True):
            value.lerp_(p.detach().cpu(), 1.0 - self.beta)

    def state_dict(self):
        return {"values": list(self.values)}

    def load_state_dict(self, state):
        self.values = [value.clone() for value in state["values"]]


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    seconds_a_step = workload.max_allowed_runtime_sec / workload.step_hint
    assert workload.eval_period_time_sec > 0
    assert seconds_a_step > 0
    optimizer = torch.optim.AdamW(model_params.parameters(), lr=hyperparameters.learning_rate)
    average = Average(model_params.parameters(), hyperparameters.lawa_beta)
    return {"optimizer": optimizer, "lawa": average, "inner_steps": hyperparameters.inner_steps}


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
    queue, optimizer = batch, optimizer_state["optimizer"]
    current_param_container.train()
    for _ in range(optimizer_state["inner_steps"]):
        inner = next(queue)
        optimizer.zero_grad()
        logits, _ = workload.model_fn(
            params=current_param_container,
            augmented_and_preprocessed_input_batch=inner,
            model_state=model_state,
            mode=spec.ForwardPassMode.TRAIN,
            rng=rng,
            update_batch_norm=True,
        )
        losses = workload.loss_fn(
            label_batch=inner["targets"], logits_batch=logits, mask_batch=inner.get("weights"), label_smoothing=0.0
        )
        loss, count = losses["summed"], losses["n_valid_examples"]
        if USE_DDP:
            loss, count = dist_nn.all_reduce(loss), dist_nn.all_reduce(count)
        (loss / count).backward()
        optimizer.step()
        optimizer_state["lawa"].update(current_param_container.parameters())
    for p, value in zip(current_param_container.parameters(), optimizer_state["lawa"].values, strict=True):
        p.data = value.to(p.device).clone()
    return optimizer_state, current_param_container, None


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return input_queue
