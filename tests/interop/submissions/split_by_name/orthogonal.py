"""An update for matrices: momentum, made orthogonal by a compiled function."""

import torch


@torch.compile(backend="eager")
def orthogonalised(matrix, steps: int):
    """The nearest orthogonal matrix, by the cubic Newton-Schulz iteration."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(steps):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


class Orthogonal(torch.optim.Optimizer):
    def __init__(self, params, lr, beta):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["beta"]).add_(p.grad)
                update = orthogonalised(momentum.flatten(1), steps=6)
                p.sub_(update.view_as(p), alpha=group["lr"] * max(1.0, update.shape[0] / update.shape[1]) ** 0.5)
