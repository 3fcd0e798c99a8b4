"""The closed forms, each against a slow way to the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from yolokd.init import least_squares
from yolokd.init.least_squares import fit_linear, fit_logistic, patches, select_channels


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(data: torch.Tensor, metric: torch.Tensor, chosen: list[int]) -> float:
    """trace(metric x covariance) of what a regression on the chosen columns leaves of all."""
    data = data - data.mean(0)
    left = data - data[:, chosen] @ torch.linalg.lstsq(data[:, chosen], data).solution
    return float((metric * (left.T @ left) / len(data)).sum())


def test_pick_takes_greedily_what_leaves_least():
    data, root = draw(400, 6) @ draw(6, 6, seed=1), draw(6, 6, seed=2)
    metric, expected = root @ root.T, []
    for _ in range(3):
        rest = [c for c in range(6) if c not in expected]
        expected.append(min(rest, key=lambda c: loss_of(data, metric, [*expected, c])))
    assert select_channels(torch.cov(data.T, correction=0), metric, 3).tolist() == sorted(expected)


def test_pick_takes_no_duplicate_and_no_dead_channel_while_there_is_another():
    data = draw(300, 4)
    data = torch.cat([data, data, torch.zeros(300, 2, dtype=data.dtype)], 1)
    chosen = select_channels(torch.cov(data.T), torch.eye(10), 4).tolist()
    assert sorted(c % 4 for c in chosen) == [0, 1, 2, 3] and max(chosen) < 8


def test_pick_of_more_than_there_are_says_none_for_the_rest():
    assert select_channels(torch.eye(3), torch.eye(3), 5).tolist() == [0, 1, 2, -1, -1]


@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"groups": 4}])
def test_patches_are_what_the_convolution_sees(settings):
    conv = nn.Conv2d(4, 8, 3, **{"padding": 1, **settings}, bias=False).double()
    x = draw(2, 4, 9, 7)
    out = conv(x)
    points = torch.tensor([0, 1, 1]), torch.tensor([0, 2, out.shape[2] - 1]), torch.tensor([1, 0, out.shape[3] - 1])
    seen = patches(x, conv, points)
    if conv.groups == 1:
        found = seen.flatten(1) @ conv.weight.flatten(1).T
    else:  # each input channel has two filters
        found = torch.einsum("pck,cfk->pcf", seen, conv.weight.reshape(4, 2, 9)).flatten(1)
    torch.testing.assert_close(found, out[points[0], :, points[1], points[2]])


def test_least_squares_is_the_weighted_regression(monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGE", 0.0)
    x, z, weight = draw(50, 3) + 1, draw(50, 2, seed=1) - 2, draw(50, seed=2).abs()
    found, bias = fit_linear(x, z, weight)
    root = weight.sqrt()[:, None]
    expected = torch.linalg.lstsq(root * torch.cat([x, torch.ones_like(x[:, :1])], 1), root * z).solution
    torch.testing.assert_close(torch.cat([found, bias[:, None]], 1), expected.T)


def test_least_squares_of_many_at_once_is_that_of_each():
    x, z = draw(4, 50, 3), draw(4, 50, 1, seed=1)
    weights, biases = fit_linear(x, z)
    for i in range(4):
        weight, bias = fit_linear(x[i], z[i])
        torch.testing.assert_close(weights[i], weight)
        torch.testing.assert_close(biases[i], bias)


def test_least_squares_bears_columns_that_never_vary():
    x, z = draw(50, 3), draw(50, 1, seed=1)
    x[:, 1] = 4.0
    weight, bias = fit_linear(x, z)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all() and abs(float(weight[0, 1])) < 1e-6


def test_logistic_finds_the_coefficients_that_made_the_probabilities(monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGE", 0.0)
    x, truth = 2 * draw(400, 3) + 1, torch.tensor([[1.0, -0.5, 0.2], [0.1, 0.3, -2.0]], dtype=torch.float64)
    bias = torch.tensor([-4.0, 0.5], dtype=torch.float64)
    weight, found = fit_logistic(x, (x @ truth.T + bias).sigmoid(), torch.ones(400, dtype=torch.float64))
    torch.testing.assert_close(weight, truth, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found, bias, atol=1e-3, rtol=1e-3)


def test_logistic_weighs_its_points():
    x, wanted = draw(60, 2), draw(60, 1, seed=1).sigmoid()
    twice = torch.cat([x, x[:20]]), torch.cat([wanted, wanted[:20]])
    weight = torch.ones(60, dtype=torch.float64)
    weight[:20] = 2
    found, expected = fit_logistic(x, wanted, weight), fit_logistic(*twice, torch.ones(80, dtype=torch.float64))

    def cost(solution):
        z = twice[0] @ solution[0].T + solution[1]
        return float(F.binary_cross_entropy_with_logits(z, twice[1]))

    assert cost(found) == pytest.approx(cost(expected), abs=1e-4)
    assert cost(found) < cost(fit_logistic(x, wanted, torch.ones(60, dtype=torch.float64))) - 1e-6


def test_logistic_bears_classes_that_never_occur_and_separable_ones():
    x = draw(100, 2)
    wanted = torch.stack([torch.zeros(100), (x[:, 0] > 0).float()], 1).double()
    weight, bias = fit_logistic(x, wanted, torch.ones(100, dtype=torch.float64))
    z = x @ weight.T + bias
    assert torch.isfinite(z).all() and float(z[:, 0].max()) < -5
    assert bool(((z[:, 1] > 0) == (x[:, 0] > 0)).double().mean() > 0.97)
