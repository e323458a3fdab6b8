"""An optimizer that imports its siblings by three other roots."""

import torch
from kit_types import Options
from rules import Rule
from utils.numbers import half

from .rules import Rule as SameRule

assert Rule is SameRule


class Descent(torch.optim.Optimizer):
    def __init__(self, params, options: Options):
        super().__init__(params, {"lr": options.lr})
        self.rule = options.rule

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if self.rule is Rule.SIGN:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
                else:
                    p.sub_(p.grad, alpha=half(2 * group["lr"]))
