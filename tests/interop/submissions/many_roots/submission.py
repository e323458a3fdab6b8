"""Its files name each other by four roots, as in a submission that was moved between repositories."""

import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup
from archive.leaderboard.external_tuning.many_roots.core.kit.kit_types import Options
from core.kit.descent import Descent
from core.kit.rules import Rule

USE_DDP = pytorch_setup()[0]


def get_batch_size(workload_name):
    if workload_name == "digits":
        return 128
    raise ValueError(workload_name)


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    optimizer = Descent(model_params.parameters(), Options(hyperparameters.learning_rate, Rule.SIGN))
    assert optimizer.rule is Rule.SIGN
    from core.kit import rules  # while it runs, not only while it is imported

    assert rules.Rule is Rule
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
):
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


def data_selection(
    workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
):
    return next(input_queue)
