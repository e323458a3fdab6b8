"""What every parameter of a model does, read from the module that owns it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from algoperf_torch.spec import Parameter, ParamRole

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_ATTENTION_MATRICES = {
    "in_proj_weight": ParamRole.ATTENTION_QKV,
    "q_proj_weight": ParamRole.ATTENTION_Q,
    "k_proj_weight": ParamRole.ATTENTION_K,
    "v_proj_weight": ParamRole.ATTENTION_V,
}


def mark_roles(module: ModuleT, **roles: ParamRole) -> ModuleT:
    """Says what the module's own parameters do, where its class does not: `mark_roles(linear, weight=ATTENTION_Q)`.

    Returns the module. The marks are stored on it as `parameter_roles` and survive copying.
    """
    unknown = roles.keys() - {name for name, _ in module.named_parameters(recurse=False)}
    if unknown:
        raise ValueError(f"{type(module).__name__} has no parameter {', '.join(sorted(unknown))}.")
    module.parameter_roles = dict(roles)  # type: ignore[assignment]
    return module


def mark_output(module: ModuleT) -> ModuleT:
    """Marks the model's last layer: its own parameters are flagged as output. Returns the module.

    An embedding whose table is also the output matrix is marked likewise.
    """
    module.is_output_layer = True  # type: ignore[assignment]
    return module


def parameter_roles(model: nn.Module) -> list[Parameter]:
    """Name, role and output flag of every parameter, in the order of `model.parameters()`.

    A tensor that several modules share is an embedding if one of them is one, and output if one of them is.
    """
    roles: dict[int, list[ParamRole]] = {}
    outputs: set[int] = set()
    for module, parent in _with_parents(model):
        for name, parameter in module.named_parameters(recurse=False):
            roles.setdefault(id(parameter), []).append(_role(module, name, parent))
            if getattr(module, "is_output_layer", False):
                outputs.add(id(parameter))
    return [
        Parameter(
            name=name,
            role=ParamRole.EMBEDDING if ParamRole.EMBEDDING in roles[id(parameter)] else roles[id(parameter)][0],
            is_output=id(parameter) in outputs,
        )
        for name, parameter in model.named_parameters()
    ]


def _with_parents(model: nn.Module, parent: nn.Module | None = None) -> Iterable[tuple[nn.Module, nn.Module | None]]:
    yield model, parent
    for child in model.children():
        yield from _with_parents(child, model)


def _role(module: nn.Module, name: str, parent: nn.Module | None) -> ParamRole:
    marked: dict[str, ParamRole] = getattr(module, "parameter_roles", {})
    if name in marked:
        return marked[name]
    bias = "bias" in name  # the attribute's name inside its own module, which is that module's interface
    if isinstance(module, nn.MultiheadAttention):
        return ParamRole.ATTENTION_BIAS if bias else _ATTENTION_MATRICES[name]
    if isinstance(parent, nn.MultiheadAttention):  # its output projection is the only child
        return ParamRole.ATTENTION_BIAS if bias else ParamRole.ATTENTION_OUT
    if isinstance(module, _InstanceNorm | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return ParamRole.LAYER_NORM_BIAS if bias else ParamRole.LAYER_NORM_SCALE
    if isinstance(module, _BatchNorm):
        return ParamRole.BATCH_NORM_BIAS if bias else ParamRole.BATCH_NORM_SCALE
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return ParamRole.EMBEDDING
    if bias:
        return ParamRole.BIAS
    return ParamRole.CONV_WEIGHT if isinstance(module, _ConvNd) else ParamRole.WEIGHT


def reference_roles(names: Iterable[str]) -> dict[str, ParamRole]:
    """The roles that AlgoPerf's reference derives from its own parameter names, misnomers included.

    Only for submissions written against the reference, which see these and not `parameter_roles`.
    """
    return {name: _reference_role(name) for name in names}


def _reference_role(name: str) -> ParamRole:
    def named(*parts: str) -> bool:
        return any(part in name for part in parts)

    bias = named("bias")
    if named("bn"):
        return ParamRole.BATCH_NORM_BIAS if bias else ParamRole.BATCH_NORM_SCALE
    if named("norm", "ln"):
        return ParamRole.LAYER_NORM_BIAS if bias else ParamRole.LAYER_NORM_SCALE
    if named("conv"):
        return ParamRole.BIAS if bias else ParamRole.CONV_WEIGHT
    if named("embed") and named("weight"):
        return ParamRole.EMBEDDING
    if named("attn", "attention"):
        if bias:
            return ParamRole.ATTENTION_BIAS
        for parts, role in _REFERENCE_ATTENTION:
            if named(*parts):
                return role
    return ParamRole.BIAS if bias else ParamRole.WEIGHT


_REFERENCE_ATTENTION = (  # in this order
    (("in_proj",), ParamRole.ATTENTION_QKV),
    (("kv_proj",), ParamRole.ATTENTION_KV),
    (("k_proj", "key"), ParamRole.ATTENTION_K),
    (("q_proj", "query"), ParamRole.ATTENTION_Q),
    (("v_proj", "value"), ParamRole.ATTENTION_V),
    (("out",), ParamRole.ATTENTION_OUT),
)
