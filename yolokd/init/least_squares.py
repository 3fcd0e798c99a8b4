"""The mathematics behind `init=teacher`: which channels to keep, and the weights that reproduce given outputs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 1e-3  # as a share of the mean variance of a convolution's inputs


def select_channels(spread: Tensor, metric: Tensor, count: int) -> Tensor:
    """Channels from which the others can best be predicted, in ascending order, padded with -1 if there are too few.

    Greedy column subset selection: the next channel is the one by which trace(metric x R) falls most, R being the
    covariance of what the channels chosen so far do not predict linearly.

    Args:
        spread: (C, C), covariance of the channels.
        metric: (C, C), the cost of errors in them.
        count: the number to choose.
    """
    rest, free = spread.cpu().double(), torch.ones(len(spread), dtype=torch.bool)
    metric, floor = metric.cpu().double(), 1e-9 * float(spread.diagonal().mean())
    product = rest @ metric  # kept up to date, so that a step costs C x C
    for _ in range(min(count, len(rest))):
        gain = (product * rest).sum(1) / rest.diagonal().clamp_min(floor)
        best = int(torch.where(free, gain, -math.inf).argmax())
        free[best] = False
        if rest[best, best] > floor:
            explained = rest[best] / rest[best, best].sqrt()
            rest = rest - torch.outer(explained, explained)
            product = product - torch.outer(explained, metric @ explained)
    chosen = (~free).nonzero().flatten()
    return torch.cat([chosen, chosen.new_full((count - len(chosen),), -1)])


def patches(x: Tensor, conv: nn.Conv2d, points: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A convolution's input windows, (B, C, H, W) -> (points, C, window), at (image, row, column) of its output."""
    (down, across), (dy, dx), (py, px) = conv.stride, conv.dilation, tuple(map(int, conv.padding))
    b, row, column = points
    padded = F.pad(x, (px, px, py, py))
    window = [(i * dy, j * dx) for i in range(conv.kernel_size[0]) for j in range(conv.kernel_size[1])]
    return torch.stack([padded[b, :, row * down + i, column * across + j] for i, j in window], -1)


def fit_linear(inputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ridge regression from (..., points, in) to (..., points, out): weights (..., out, in) and biases (..., out).

    Args:
        weight: (points,), of each point.
    """
    share = torch.ones_like(inputs[..., 0]) if weight is None else weight
    share = (share / share.sum(-1, keepdim=True))[..., None]
    mean, target_mean = (share * inputs).sum(-2, keepdim=True), (share * targets).sum(-2, keepdim=True)
    x, z = inputs - mean, targets - target_mean
    left = (share * x).transpose(-1, -2)
    gram, cross = (left @ x).cpu().double(), (left @ z).cpu().double()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += RIDGE * diagonal.mean(-1, keepdim=True) + 1e-12
    solved = torch.linalg.solve(gram, cross).to(inputs)  # (..., in, out)
    return solved.transpose(-1, -2), (target_mean - mean @ solved).squeeze(-2)


def fit_logistic(inputs: Tensor, targets: Tensor, weight: Tensor, steps: int = 15) -> tuple[Tensor, Tensor]:
    """Logistic regression from (points, in) to probabilities (points, out) by Newton's method: weights (out, in) and
    biases (out,).

    Args:
        weight: (points,), of each point.
    """
    share = (weight / weight.sum()).cpu().double()
    mean, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    x = torch.cat([(inputs - mean) / scale, torch.ones_like(inputs[:, :1])], 1).cpu().double()
    solved = torch.stack([_newton(x, t.cpu().double(), share, steps) for t in targets.T]).to(inputs)
    weights = solved[:, :-1] / scale
    return weights, solved[:, -1] - weights @ mean


def _newton(x: Tensor, target: Tensor, share: Tensor, steps: int) -> Tensor:
    """Coefficients of one logistic regression; the last column of x is 1 and not penalised."""
    ridge = torch.full_like(x[0], RIDGE)
    ridge[-1] = 0
    average = (share @ target).clamp(1e-6, 1 - 1e-6)
    ridge *= average * (1 - average)

    def cost(theta: Tensor) -> float:
        loss = F.binary_cross_entropy_with_logits(x @ theta, target, reduction="none")
        return float(share @ loss + (ridge * theta.square()).sum() / 2)

    theta = torch.zeros_like(x[0])
    theta[-1] = torch.logit(average)
    best = cost(theta)
    for _ in range(steps):
        p = (x @ theta).sigmoid()
        gradient = x.T @ (share * (p - target)) + ridge * theta
        curvature = (x * (share * p * (1 - p))[:, None]).T @ x + torch.diag(ridge + 1e-12)
        step = torch.linalg.solve(curvature, gradient)
        while (new := cost(theta - step)) > best and float(step.abs().max()) > 1e-6:
            step = step / 2
        if best - new < 1e-7 * best:
            break
        theta, best = theta - step, new
    return theta
