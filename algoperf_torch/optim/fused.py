"""What an optimizer's fused path is given: all parameters of a group at once, and what is kept of them between updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor

from algoperf_torch.kernels.launch import TensorTable, beside

Kept = TypeVar("Kept")


@dataclass
class KeptGroup:
    """What one parameter group keeps from one fused update to the next, as long as the same parameters have gradients."""

    params: Sequence[Tensor]
    taken: list[int]  # positions of the parameters that the kernel updates
    left: list[int]  # and of those that it cannot
    values: dict[str, Any] = field(default_factory=dict)

    def is_of(self, params: Sequence[Tensor]) -> bool:
        return len(params) == len(self.params) and all(map(is_, params, self.params))


@dataclass(frozen=True)
class FusedUpdate:
    """Parameters of one group with their gradients and states, in the same order, for `BaseOptimizer.update_fused`.

    Attributes:
        grad_scale: a 0-d tensor that the gradients are to be multiplied with (clipping), or `None`.
    """

    params: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    states: tuple[dict[str, Any], ...]
    group: dict[str, Any]
    grad_scale: Tensor | None
    kept: dict[str, Any]

    def __len__(self) -> int:
        return len(self.params)

    @property
    def lr(self) -> Tensor:
        """The learning rate as a 0-d tensor beside the parameters; a number gets there without waiting for the device."""
        return beside(self.group["lr"], self.params)

    def column(self, name: str) -> tuple[Tensor, ...]:
        """One entry of all states."""
        return tuple([state[name] for state in self.states])

    def keep(self, name: str, make: Callable[[], Kept]) -> Kept:
        """What `make` gave when this was first asked for."""
        if name not in self.kept:
            self.kept[name] = make()
        value: Kept = self.kept[name]
        return value

    def table(self, name: str = "table", make: Callable[[], TensorTable] = TensorTable) -> TensorTable:
        """The table that one kernel keeps; kernels over other tensors need one of another name."""
        return self.keep(name, make)

    def packed(self, name: str) -> Tensor:
        """An entry of all states that is 0-d as one tensor [parameters], of which the states become views."""
        kept: tuple[Tensor, tuple[Tensor, ...]] = self.kept.get(name, (torch.empty(0), ()))
        flat, views = kept
        column = self.column(name)
        if len(column) != len(views) or not all(map(is_, column, views)):
            flat = torch.stack(column)
            views = flat.unbind()
            self.kept[name] = flat, views
            for state, view in zip(self.states, views, strict=True):
                state[name] = view
        return flat

    def split(self, holds: Callable[[dict[str, Any]], bool]) -> tuple[FusedUpdate, FusedUpdate]:
        """The parameters whose state fulfils a condition, and the others."""
        chosen = [holds(state) for state in self.states]

        def part(places: list[int]) -> FusedUpdate:
            return replace(
                self,
                params=tuple([self.params[i] for i in places]),
                grads=tuple([self.grads[i] for i in places]),
                states=tuple([self.states[i] for i in places]),
            )

        return part([i for i, held in enumerate(chosen) if held]), part(
            [i for i, held in enumerate(chosen) if not held]
        )
