"""Every optimizer of the registry: against its paper's equations in float64, against `torch.optim`, and as an optimizer.

The transcriptions are NumPy, one function per paper, and share nothing with the package.
"""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from algoperf_torch.optim import registry
from algoperf_torch.optim.adafactor import Adafactor
from algoperf_torch.optim.adamw import AdamW
from algoperf_torch.optim.ademamix import AdEMAMix
from algoperf_torch.optim.base import BaseOptimizer
from algoperf_torch.optim.cautious_nadamw import CautiousNAdamW
from algoperf_torch.optim.lamb import LAMB
from algoperf_torch.optim.lion import Lion
from algoperf_torch.optim.muon import Muon
from algoperf_torch.optim.nadamw import NAdamW
from algoperf_torch.optim.prodigy import Prodigy
from algoperf_torch.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from algoperf_torch.optim.sgd import SGD
from algoperf_torch.optim.shampoo import Shampoo, shares
from algoperf_torch.optim.soap import SOAP
from algoperf_torch.runner.submissions import load_submission

SHAPES = [(), (1,), (63,), (7, 5), (4, 3, 3, 3)]
STEPS = 100

# ---------------------------------------------------------------- the papers' equations


def each(rule: Callable) -> Callable:
    """A transcription for one parameter, applied to a list of them; the rule is a generator of successive points."""

    @functools.wraps(rule)
    def run(params, grads, **options):
        return [rule(p, [step[i] for step in grads], **options) for i, p in enumerate(params)]

    return run


def corrected_moments(grads, b1, b2):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        yield t, g, m, v / (1 - b2**t)


@each
def adamw(p, grads, lr, betas, eps, weight_decay):
    for t, _, m, v in corrected_moments(grads, *betas):
        p = p - lr * (m / (1 - betas[0] ** t) / (np.sqrt(v) + eps) + weight_decay * p)
    return p


@each
def nadamw(p, grads, lr, betas, eps, weight_decay):
    b1 = betas[0]
    for t, g, m, v in corrected_moments(grads, *betas):
        ahead = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        p = p - lr * (ahead / (np.sqrt(v) + eps) + weight_decay * p)
    return p


@each
def cautious_nadamw(p, grads, lr, betas, eps, weight_decay):
    b1 = betas[0]
    for t, g, m, v in corrected_moments(grads, *betas):
        u = (b1 * m + (1 - b1) * g) / (1 - b1**t) / (np.sqrt(v) + eps)
        agrees = u * g > 0
        p = p - lr * (u * agrees / max(np.mean(agrees), 1e-3) + weight_decay * p)
    return p


@each
def lamb(p, grads, lr, betas, eps, weight_decay):
    for t, _, m, v in corrected_moments(grads, *betas):
        r = m / (1 - betas[0] ** t) / (np.sqrt(v) + eps) + weight_decay * p
        norms = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(r**2))
        p = p - lr * (norms[0] / norms[1] if min(norms) > 0 else 1.0) * r
    return p


@each
def sgd(p, grads, lr, momentum, weight_decay, nesterov):
    b = 0.0
    for g in grads:
        g = g + weight_decay * p
        b = momentum * b + g
        p = p - lr * (g + momentum * b if nesterov else b)
    return p


@each
def lion(p, grads, lr, betas, weight_decay):
    m = 0.0
    for g in grads:
        p = p - lr * (np.sign(betas[0] * m + (1 - betas[0]) * g) + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
    return p


@each
def ademamix(p, grads, lr, betas, alpha, mix_warmup, eps, weight_decay):
    b1, b2, b3 = betas
    slow = 0.0
    for t, g, m, v in corrected_moments(grads, b1, b2):
        share = min(t / mix_warmup, 1.0)
        half_life = (1 - share) * np.log(0.5) / np.log(b1) + share * np.log(0.5) / np.log(b3)  # linear in the half-life
        decay = 0.5 ** (1 / half_life)
        slow = decay * slow + (1 - decay) * g
        p = p - lr * ((m / (1 - b1**t) + share * alpha * slow) / (np.sqrt(v) + eps) + weight_decay * p)
    return p


@each
def adafactor(p, grads, lr, beta1, beta2, decay_rate, clip_threshold, scale_parameter, weight_decay):
    row = column = whole = m = 0.0
    for t, g in enumerate(grads, start=1):
        b2 = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t) if decay_rate is None else 1 - t**decay_rate
        square = g**2 + 1e-30
        if g.ndim >= 2:
            row = b2 * row + (1 - b2) * square.mean(axis=-1, keepdims=True)
            column = b2 * column + (1 - b2) * square.mean(axis=-2, keepdims=True)
            v = row * column / row.mean(axis=-2, keepdims=True)
        else:
            v = whole = b2 * whole + (1 - b2) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clip_threshold)
        scale = max(1e-3, np.sqrt(np.mean(p**2))) if scale_parameter else 1.0
        m = beta1 * m + (1 - beta1) * lr * scale * u
        p = p - m - lr * weight_decay * p
    return p


def orthogonal(g, steps):
    x = g / np.linalg.norm(g)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def muon(params, grads, lr, momentum, nesterov, weight_decay, ns_steps, ns_dtype, adjust_lr, adamw_betas, adamw_eps):
    result = []
    for i, p in enumerate(params):
        history, m = [step[i] for step in grads], 0.0
        if p.ndim < 2:
            result += adamw(
                [p], [[g] for g in history], lr=lr, betas=adamw_betas, eps=adamw_eps, weight_decay=weight_decay
            )
            continue
        for g in history:
            m = momentum * m + (1 - momentum) * g
            u = (momentum * m + (1 - momentum) * g if nesterov else m).reshape(len(p), -1)
            scale = 0.2 * np.sqrt(max(u.shape))
            p = p - lr * (scale * orthogonal(u, ns_steps).reshape(p.shape) + weight_decay * p)
        result.append(p)
    return result


def soap(params, grads, lr, betas, shampoo_beta, eps, weight_decay, precondition_frequency, max_preconditioner_dim):
    (b1, b2), result = betas, []
    for i, p in enumerate(params):
        history, m, v, factors, bases = [step[i] for step in grads], 0.0, 0.0, None, None
        if p.ndim < 2:
            result += adamw([p], [[g] for g in history], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
            continue
        for t, g in enumerate(history, start=1):
            g = g.reshape(len(p), -1)
            products = [g @ g.T, g.T @ g]
            if factors is None:
                factors = [(1 - shampoo_beta) * product for product in products]
                bases = [np.linalg.eigh(factor)[1][:, ::-1] for factor in factors]
            elif t > 1:
                factors = [shampoo_beta * f + (1 - shampoo_beta) * x for f, x in zip(factors, products, strict=True)]
            left, right = bases
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (left.T @ g @ right) ** 2
            n = left.T @ m @ right / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            p = p - lr * ((left @ n @ right.T).reshape(p.shape) + weight_decay * p)
            if t % precondition_frequency == 0:
                bases = [np.linalg.qr(factor @ basis)[0] for factor, basis in zip(factors, bases, strict=True)]
        result.append(p)
    return result


def shampoo(
    params,
    grads,
    lr,
    betas,
    eps,
    weight_decay,
    block_size,
    precondition_frequency,
    start_preconditioning_step,
    root_eps,
):
    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag((np.maximum(values, 0) + root_eps * values.max()) ** -0.25) @ vectors.T

    (b1, b2), result = betas, []
    for i, p in enumerate(params):
        history, m, v, factors, roots = [step[i] for step in grads], 0.0, 0.0, {}, {}
        for t, g in enumerate(history, start=1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            mean = m / (1 - b1**t)
            u = mean / (np.sqrt(v / (1 - b2**t)) + eps)
            if p.ndim >= 2:
                rows, columns = len(p), p.size // len(p)
                direction = np.zeros((rows, columns))
                due = t >= start_preconditioning_step and (t - start_preconditioning_step) % precondition_frequency == 0
                for a in range(0, rows, block_size):
                    for b in range(0, columns, block_size):
                        here = slice(a, a + block_size), slice(b, b + block_size)
                        block = g.reshape(rows, columns)[here]
                        old = factors.get((a, b), (0.0, 0.0))
                        pair = block @ block.T, block.T @ block
                        factors[a, b] = [b2 * x + (1 - b2) * y for x, y in zip(old, pair, strict=True)]
                        if due:
                            roots[a, b] = [root(x / (1 - b2**t)) for x in factors[a, b]]
                        if roots:
                            left, right = roots[a, b]
                            direction[here] = left @ mean.reshape(rows, columns)[here] @ right
                if roots:
                    u = direction.reshape(p.shape) * np.linalg.norm(u) / np.linalg.norm(direction)
            p = p - lr * (u + weight_decay * p)
        result.append(p)
    return result


def schedule_free(p, directions, lr, beta, weight_decay):
    """The three sequences of the paper; `directions` is called with every gradient. Returns y, where training stands."""
    x = y = z = p
    weights = 0.0
    for direction in directions:
        z = z - lr * (direction + weight_decay * y)
        weights += lr**2
        x = x + lr**2 / weights * (z - x)
        y = (1 - beta) * z + beta * x
    return y


@each
def schedule_free_sgd(p, grads, lr, momentum, weight_decay):
    return schedule_free(p, grads, lr, momentum, weight_decay)


@each
def schedule_free_adamw(p, grads, lr, betas, eps, weight_decay):
    directions = [g / (np.sqrt(v) + eps) for _, g, _, v in corrected_moments(grads, 0.0, betas[1])]
    return schedule_free(p, directions, lr, betas[0], weight_decay)


def prodigy(params, grads, lr, betas, eps, weight_decay, d0, d_coef):
    (b1, b2), d, r = betas, d0, 0.0
    x, x0 = list(params), list(params)
    m = v = s = [0.0] * len(x)
    for step in grads:
        m = [b1 * mi + (1 - b1) * d * g for mi, g in zip(m, step, strict=True)]
        v = [b2 * vi + (1 - b2) * d**2 * g**2 for vi, g in zip(v, step, strict=True)]
        s = [np.sqrt(b2) * si + (1 - np.sqrt(b2)) * lr * d**2 * g for si, g in zip(s, step, strict=True)]
        along = sum(np.sum(g * (a - b)) for g, a, b in zip(step, x0, x, strict=True))
        r = np.sqrt(b2) * r + (1 - np.sqrt(b2)) * lr * d**2 * along
        moves = [mi / (np.sqrt(vi) + d * eps) + weight_decay * xi for mi, vi, xi in zip(m, v, x, strict=True)]
        x = [xi - lr * d * move for xi, move in zip(x, moves, strict=True)]
        d = max(d, d_coef * r / sum(np.sum(np.abs(si)) for si in s))
    return x


# ---------------------------------------------------------------- the optimizers


@dataclass(frozen=True)
class Case:
    optimizer: type[BaseOptimizer]
    equations: Callable
    options: dict
    quadratic_lr: float  # solves the badly scaled quadratic
    shapes: list = field(default_factory=lambda: SHAPES)
    tolerance: float = 1e-4  # in float32, relative to the largest move


ADAM = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SQUARES = [(1,), (63,), (5, 5), (6, 2, 3)]  # the null space of a rank-deficient factor has no unique basis
CASES = {
    "adafactor": Case(
        Adafactor,
        adafactor,
        {
            "lr": 0.01,
            "beta1": 0.9,
            "beta2": 0.99,
            "decay_rate": None,
            "clip_threshold": 1.0,
            "scale_parameter": False,
            "weight_decay": 0.1,
        },
        0.1,
    ),
    "adafactor_paper": Case(
        Adafactor,
        adafactor,
        {
            "lr": 0.05,
            "beta1": 0.0,
            "beta2": 0.0,
            "decay_rate": -0.8,
            "clip_threshold": 0.7,
            "scale_parameter": True,
            "weight_decay": 0.0,
        },
        0.2,
    ),
    "adamw": Case(AdamW, adamw, ADAM, 0.1),
    "ademamix": Case(AdEMAMix, ademamix, {**ADAM, "betas": (0.9, 0.99, 0.999), "alpha": 5.0, "mix_warmup": 60}, 0.02),
    "cautious_nadamw": Case(CautiousNAdamW, cautious_nadamw, ADAM, 0.1),
    "lamb": Case(LAMB, lamb, ADAM, 0.1),
    "lion": Case(Lion, lion, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}, 0.02),
    "momentum": Case(SGD, sgd, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": False}, 1.0),
    "muon": Case(
        Muon,
        muon,
        {
            "lr": 0.01,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.1,
            "ns_steps": 5,
            "ns_dtype": "float32",
            "adjust_lr": "match_rms_adamw",
            "adamw_betas": (0.9, 0.95),
            "adamw_eps": 1e-8,
        },
        0.1,
        tolerance=1e-3,
    ),
    "nadamw": Case(NAdamW, nadamw, ADAM, 0.1),
    "nesterov": Case(SGD, sgd, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, 1.0),
    "prodigy": Case(
        Prodigy,
        prodigy,
        {"lr": 1.0, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "d0": 1e-3, "d_coef": 1.0},
        1.0,
    ),
    "schedule_free_adamw": Case(ScheduleFreeAdamW, schedule_free_adamw, ADAM, 0.1),
    "schedule_free_sgd": Case(
        ScheduleFreeSGD, schedule_free_sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, 2.0
    ),
    "shampoo": Case(
        Shampoo,
        shampoo,
        {
            **ADAM,
            "block_size": 4,
            "precondition_frequency": 7,
            "start_preconditioning_step": 3,
            "root_eps": 1e-3,
        },
        0.1,
        tolerance=1e-3,
    ),
    "soap": Case(
        SOAP,
        soap,
        {
            **ADAM,
            "shampoo_beta": 0.9,
            "precondition_frequency": 5,
            "max_preconditioner_dim": 100,
        },
        0.1,
        SQUARES,
        tolerance=0.05,
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def driven(name: str) -> type:
    return load_submission(name).algorithm.optimizer_class


def test_every_registered_optimizer_is_tested():
    assert {driven(name) for name in registry.ALGORITHMS} == {case.optimizer for case in CASES.values()}


def make_parameters(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def make_gradients(shapes, steps, seed=1):
    """Correlated over time and of very different sizes."""
    rng = np.random.default_rng(seed)
    mean = [rng.normal(size=shape) for shape in shapes]
    scale = [10.0 ** rng.uniform(-2, 1) for _ in shapes]
    return [[s * (m + rng.normal(size=m.shape)) for m, s in zip(mean, scale, strict=True)] for _ in range(steps)]


def run(optimizer, parameters, gradients):
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else torch.as_tensor(gradient).to(parameter.dtype)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


# ---------------------------------------------------------------- independent sources


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_follows_the_equations(case, dtype):
    parameters = make_parameters(case.shapes, dtype)
    start = [parameter.detach().double().numpy().copy() for parameter in parameters]
    gradients = make_gradients(case.shapes, STEPS)
    if dtype is torch.float32:  # what the optimizer really sees
        gradients = [[g.astype(np.float32).astype(np.float64) for g in step] for step in gradients]
    expected = case.equations(start, gradients, **case.options)
    actual = run(case.optimizer(parameters, **case.options), parameters, gradients)
    tolerance = 1e-6 if dtype is torch.float64 and case.optimizer is not Muon else case.tolerance
    for first, want, have in zip(start, expected, actual, strict=True):
        move = np.abs(want - first).max()
        assert move > 1e-3
        np.testing.assert_allclose(have.double().numpy(), want, rtol=0, atol=tolerance * move)


TORCH = {
    "adafactor": (
        Adafactor,
        {"lr": 0.01, "beta1": 0.0, "decay_rate": -0.8, "scale_parameter": True, "weight_decay": 0.1},
        torch.optim.Adafactor,
        {"lr": 0.01, "eps": (1e-15, 1e-3), "weight_decay": 0.1},
    ),
    "adamw": (AdamW, ADAM, torch.optim.AdamW, ADAM),
    "heavy_ball": (
        SGD,
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "nesterov": (
        SGD,
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=str)
def test_agrees_with_torch(name, dtype, tolerance):
    ours, our_options, theirs, their_options = TORCH[name]
    mine, other = make_parameters(SHAPES, dtype), make_parameters(SHAPES, dtype)
    start = [parameter.detach().clone() for parameter in other]
    gradients = make_gradients(SHAPES, STEPS)
    have = run(ours(mine, **our_options), mine, gradients)
    want = run(theirs(other, **their_options), other, gradients)
    for first, a, b in zip(start, have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float((b - first).abs().max()))


def test_nadamw_is_late_nadam():
    """`torch.optim.NAdam` corrects its momentum by one step more; after a thousand steps nothing is left to correct."""
    mine, other = make_parameters(SHAPES, torch.float64), make_parameters(SHAPES, torch.float64)
    ours = NAdamW(mine, **ADAM)
    theirs = torch.optim.NAdam(
        other, **ADAM, momentum_decay=1e9, decoupled_weight_decay=True
    )  # beta1 from the first step
    zeros = [[np.zeros(shape) for shape in SHAPES]]
    run(ours, mine, zeros)
    run(theirs, other, zeros)
    for a, b in zip(mine, other, strict=True):
        ours.state[a]["step"].fill_(5000)
        theirs.state[b]["step"].fill_(5000)
        theirs.state[b]["mu_product"].fill_(0)
    gradients = make_gradients(SHAPES, STEPS)
    for a, b in zip(run(ours, mine, gradients), run(theirs, other, gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_muon_agrees_with_torch():
    """Both orthogonalise in bfloat16, in another order of operations."""
    shapes = [(7, 5), (5, 7), (16, 16)]
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    mine, other = make_parameters(shapes), make_parameters(shapes)
    start = [parameter.detach().clone() for parameter in mine]
    gradients = make_gradients(shapes, STEPS)
    have = run(Muon(mine, **options, adjust_lr="original"), mine, gradients)
    want = run(torch.optim.Muon(other, **options), other, gradients)
    for first, a, b in zip(start, have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float((b - first).abs().max()))


# ---------------------------------------------------------------- as an optimizer


def quadratic(parameters):
    """Half of sum lambda x^2, with curvatures over three orders of magnitude in every parameter."""
    return sum(
        (torch.logspace(-3, 0, p.numel(), dtype=p.dtype).reshape(p.shape) * p.square()).sum() / 2 for p in parameters
    )


def test_solves_a_badly_scaled_quadratic(case):
    parameters = [nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(64))]
    options = {**case.options, "weight_decay": 0.0}
    options = {name: value for name, value in options.items() if name not in ("mix_warmup",)}
    optimizer = case.optimizer(parameters, **{**options, "lr": torch.tensor(case.quadratic_lr)})
    rate = optimizer.param_groups[0]["lr"]
    start, steps = float(quadratic(parameters).detach()), 400
    for step in range(steps):
        optimizer.zero_grad()
        quadratic(parameters).backward()
        optimizer.step()
        if "schedule_free" not in case.equations.__name__:
            rate.fill_(case.quadratic_lr * (1 - step / steps))
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    assert float(quadratic(parameters).detach()) < 0.02 * start


def test_parameter_groups_are_separate_optimizers(case):
    halves = [case.shapes[::2], case.shapes[1::2]]
    options = [case.options, {**case.options, "lr": case.options["lr"] * 0.5}]
    together = [make_parameters(shapes, seed=seed) for seed, shapes in enumerate(halves)]
    apart = copy.deepcopy(together)
    gradients = [make_gradients(shapes, 20, seed) for seed, shapes in enumerate(halves)]
    groups = [{"params": parameters, **chosen} for parameters, chosen in zip(together, options, strict=True)]
    flat = [first + second for first, second in zip(*gradients, strict=True)]
    have = run(case.optimizer(groups), together[0] + together[1], flat)
    want = [
        parameter
        for parameters, chosen, history in zip(apart, options, gradients, strict=True)
        for parameter in run(case.optimizer(parameters, **chosen), parameters, history)
    ]
    torch.testing.assert_close(have, want, rtol=0, atol=0)


def test_takes_odd_strides(case):
    """Transposed, sliced and channels-last storage, gradients laid out otherwise."""
    shapes = [(5, 5), (6, 2, 3), (9,)] if case.optimizer is SOAP else [(7, 5), (4, 3, 3, 3), (9,)]
    plain = make_parameters(shapes)
    odd = [
        nn.Parameter(plain[0].detach().t().contiguous().t()),
        nn.Parameter(plain[1].detach().transpose(0, 1).contiguous().transpose(0, 1)),
        nn.Parameter(torch.stack([plain[2].detach()] * 2, dim=1)[:, 0]),
    ]
    assert not any(parameter.is_contiguous() for parameter in odd)
    gradients = make_gradients(shapes, 20)
    have = run(case.optimizer(odd, **case.options), odd, gradients)
    want = run(case.optimizer(plain, **case.options), plain, gradients)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_resumed_equals_uninterrupted(case):
    """Through a file that is read without unpickling classes, into an optimizer built afresh."""
    gradients = make_gradients(case.shapes, 30)
    parameters = make_parameters(case.shapes)
    optimizer = case.optimizer(parameters, **case.options)
    run(optimizer, parameters, gradients[:13])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = case.optimizer(resumed, **case.options)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    want = run(optimizer, parameters, gradients[13:])
    torch.testing.assert_close(run(other, resumed, gradients[13:]), want, rtol=0, atol=0)
    before, after = optimizer.state_dict(), other.state_dict()
    assert before["state"].keys() == after["state"].keys()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


def test_learning_rate_may_be_a_tensor(case):
    gradients = make_gradients(case.shapes, 20)
    with_number, with_tensor = make_parameters(case.shapes), make_parameters(case.shapes)
    have = run(
        case.optimizer(with_tensor, **{**case.options, "lr": torch.tensor(case.options["lr"])}), with_tensor, gradients
    )
    want = run(case.optimizer(with_number, **case.options), with_number, gradients)
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


def test_missing_gradients_leave_parameters_alone(case):
    parameters = make_parameters(case.shapes)
    frozen = parameters[1].detach().clone()
    gradients = [[g if i != 1 else None for i, g in enumerate(step)] for step in make_gradients(case.shapes, 5)]
    run(case.optimizer(parameters, **case.options), parameters, gradients)
    torch.testing.assert_close(parameters[1].detach(), frozen, rtol=0, atol=0)


def test_sparse_gradients_are_refused(case):
    embedding = nn.Embedding(6, 6, sparse=True)
    embedding(torch.tensor([2, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        case.optimizer(embedding.parameters(), **case.options).step()


def test_zero_gradients_and_zero_weights_stay_finite(case):
    parameters = [nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))]
    zeros = [[np.zeros((4, 4)), np.zeros(4)]]
    for value in run(case.optimizer(parameters, **case.options), parameters, zeros * 8):
        assert torch.isfinite(value).all()


def test_half_precision_parameters_are_rounded_once_an_update(case):
    """Against float32: every update may be off by half a unit in the last place of the weight, and no more."""
    steps, options = 10, {**case.options, "lr": 10 * case.options["lr"]}
    half = make_parameters(case.shapes, torch.bfloat16)
    full = [nn.Parameter(parameter.detach().float()) for parameter in half]
    start = [parameter.detach().clone() for parameter in full]
    gradients = [
        [torch.as_tensor(g).bfloat16().double().numpy() for g in step] for step in make_gradients(case.shapes, steps)
    ]
    optimizer = case.optimizer(half, **options)
    have = run(optimizer, half, gradients)
    want = run(case.optimizer(full, **options), full, gradients)
    for first, a, b in zip(start, have, want, strict=True):
        assert a.dtype is torch.bfloat16
        if case.optimizer is Prodigy:
            continue  # its estimate of the distance grows by a factor in a step and multiplies the first roundings
        bound = steps * 2**-8 * float(torch.maximum(first.abs(), b.abs()).max())
        assert bound < 0.5 * float((b - first).abs().max())
        torch.testing.assert_close(a.float(), b, rtol=0, atol=bound)
    for state in optimizer.state.values():
        assert all(value.dtype is torch.float32 for value in state.values())


def test_a_closure_is_evaluated(case):
    parameters = make_parameters([(4, 4)])
    optimizer = case.optimizer(parameters, **case.options)

    def closure():
        optimizer.zero_grad()
        loss = quadratic(parameters)
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) > 0
    assert optimizer.state[parameters[0]]["step"] == 1


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_negative_options_are_refused(case, name):
    with pytest.raises(ValueError, match=f"Invalid {name}=-1.0: must be >= 0"):
        case.optimizer(make_parameters([(2,)]), **{**case.options, name: -1.0})


@pytest.mark.slow
def test_the_learning_rate_never_recompiles(case):
    import torch._dynamo.testing

    parameters = make_parameters([(5, 5), (9,)])
    optimizer = case.optimizer(parameters, **{**case.options, "lr": torch.tensor(0.01)})
    group = optimizer.param_groups[0]
    if case.optimizer in (SOAP, Shampoo):
        pytest.skip("refreshes its bases on a schedule of the host")

    def update(grads):
        with torch.no_grad():
            states = optimizer._states(parameters)
            torch._foreach_add_([state["step"] for state in states], 1)
            optimizer.update_all(parameters, grads, states, group)

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(update, backend=counter)
    for step, gradient in enumerate(make_gradients([(5, 5), (9,)], 6)):
        group["lr"].fill_(0.01 / (step + 1))
        compiled([torch.as_tensor(g, dtype=torch.float32) for g in gradient])
        if step == 2:
            settled = counter.frame_count
    assert counter.frame_count == settled


# ---------------------------------------------------------------- single facts


def test_schedule_free_swaps_between_its_points():
    parameters = make_parameters([(3, 4)], torch.float64)
    optimizer = ScheduleFreeSGD(parameters, lr=0.1, momentum=0.8)
    run(optimizer, parameters, make_gradients([(3, 4)], 10))
    y, z = parameters[0].detach().clone(), optimizer.state[parameters[0]]["z"]
    optimizer.eval()
    optimizer.eval()
    x = parameters[0].detach().clone()
    torch.testing.assert_close(0.2 * z + 0.8 * x, y)
    with pytest.raises(RuntimeError, match=r"ScheduleFreeSGD holds the weights for evaluation. Call `train\(\)`"):
        optimizer.step()
    optimizer.train()
    torch.testing.assert_close(parameters[0].detach(), y)


def test_schedule_free_average_follows_the_warm_up():
    """c is lr_max^2 over the sum of lr_max^2: with learning rates 1, 2, 2 it is 1, 4/5, 4/9."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ScheduleFreeSGD([parameter], lr=torch.tensor(1.0), momentum=0.5)
    x = z = 0.0
    for lr, c in ((1.0, 1.0), (2.0, 0.8), (2.0, 4 / 9)):
        optimizer.param_groups[0]["lr"].fill_(lr)
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        z -= lr
        x += c * (z - x)
    optimizer.eval()
    assert float(parameter.detach()) == pytest.approx(x)


def test_muon_splits_parameters_by_role(tiny):
    context = tiny.build_context()
    algorithm = load_submission("muon").algorithm.from_context(context.model, {}, context)
    matrices, others = algorithm.optimizer.param_groups
    names = {id(parameter): name for name, parameter in context.model.named_parameters()}
    assert [names[id(parameter)] for parameter in matrices["params"]] == ["0.weight"]
    assert {names[id(parameter)] for parameter in others["params"]} == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert (matrices["use_muon"], others["use_muon"]) == (True, False)
    tiny.train(algorithm, context, tiny.build_stream(context), 1)
    assert "exp_avg" in algorithm.optimizer.state[context.model[4].weight]


def test_ademamix_warms_up_over_the_step_hint(tiny):
    context = tiny.build_context(step_hint=300)
    algorithm_class = load_submission("ademamix").algorithm
    assert algorithm_class.from_context(context.model, {}, context).optimizer.defaults["mix_warmup"] == 300
    half = algorithm_class.from_context(context.model, {"mix_warmup_factor": 0.5}, context)
    assert half.optimizer.defaults["mix_warmup"] == 150


def test_shampoo_divides_work_evenly():
    costs = [8, 1, 1, 5, 3, 8, 2]
    owners = shares(costs, 3)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= 10
    assert shares(costs, 1) == [0] * 7


def test_shampoo_keeps_its_roots_where_statistics_are_not_finite():
    parameters = make_parameters([(4, 4)])
    optimizer = Shampoo(parameters, start_preconditioning_step=1, precondition_frequency=1)
    run(optimizer, parameters, make_gradients([(4, 4)], 3))
    root = optimizer.state[parameters[0]]["root_left_0"].clone()
    run(optimizer, parameters, [[np.full((4, 4), np.nan)]])
    torch.testing.assert_close(optimizer.state[parameters[0]]["root_left_0"], root, rtol=0, atol=0)


def test_prodigy_learns_its_distance():
    """From a thousandth of the distance to about the distance itself."""
    parameter = nn.Parameter(torch.full((50,), 3.0))
    optimizer = Prodigy([parameter], d0=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (parameter.square().sum() / 2).backward()
        optimizer.step()
    assert 0.1 < float(optimizer.param_groups[0]["d"]) < 10
    assert float(parameter.abs().max().detach()) < 1.0


@pytest.fixture(scope="module")
def on_two_ranks(two_ranks):
    return two_ranks(registry.algorithm_names(), steps=12, evaluate_every=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.algorithm_names())
def test_two_ranks_equal_one(tiny, name, on_two_ranks):
    torch.manual_seed(0)
    context = tiny.build_context()
    context.set_dropout(0.0)
    algorithm = load_submission(name).algorithm.from_context(context.model, {}, context)
    tiny.train(algorithm, context, tiny.build_stream(context), 12, evaluate_every=6)
    algorithm.prepare_for_eval()
    weights = on_two_ranks[name]["weights"]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    # Dropout masks differ over ranks; SOAP's first bases have a null space, whose basis rounding decides.
    if "dropout_rate" not in algorithm.defaults and name != "soap":
        torch.testing.assert_close(weights[0], tiny.flat(context.model), rtol=0, atol=2e-4)
