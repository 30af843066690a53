"""LAMB against the formula written out in numpy; the schedule by hand."""

import math

import numpy as np
import pytest
import torch

from iris_pipeline.training.optim import Lamb, build_lamb, learning_rate


def lamb_formula(w: np.ndarray, gradients: list[np.ndarray], lr: float, wd: float) -> np.ndarray:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + wd * w
        w_norm, u_norm = np.linalg.norm(w), np.linalg.norm(u)
        w = w - lr * (w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0) * u
    return w


@pytest.mark.parametrize("scale", [0.0, 0.3, 100.0])  # zero weights: ratio 1; large ones: no clamp at 10
def test_lamb_equals_the_formula(scale: float) -> None:
    rng = np.random.default_rng(0)
    start = scale * rng.standard_normal((4, 3, 3))
    gradients = [rng.standard_normal((4, 3, 3)) for _ in range(5)]
    weight = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = Lamb([weight], lr=2e-3, weight_decay=1e-5)
    for g in gradients:
        weight.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), lamb_formula(start, gradients, 2e-3, 1e-5), rtol=1e-6)


def test_first_step_has_the_length_of_lr_times_weights() -> None:
    weight = torch.full((10,), 3.0, requires_grad=True)
    before = weight.detach().clone()
    weight.grad = torch.randn(10)
    Lamb([weight], lr=0.01, weight_decay=0.0).step()
    assert torch.linalg.norm(weight - before).item() == pytest.approx(0.01 * math.sqrt(90), rel=1e-4)


def test_decay_only_on_matrices() -> None:
    optimizer = build_lamb(torch.nn.Linear(3, 2), lr=1e-3, weight_decay=0.1)
    decays = {tuple(p.shape): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {(2, 3): 0.1, (2,): 0.0}


def test_schedule_by_hand() -> None:
    peak = 2e-3
    assert learning_rate(0.0125, peak) == pytest.approx(peak / 2)
    assert learning_rate(0.025, peak) == pytest.approx(peak)
    half = 0.025 + 0.975 / 2
    assert learning_rate(half, peak) == pytest.approx(peak * math.sqrt(0.03))
    assert learning_rate(1.0, peak) == pytest.approx(peak * 0.03)
    assert learning_rate(7.0, peak) == pytest.approx(peak * 0.03)
    assert 0 < learning_rate(0.0, peak) < peak / 100
