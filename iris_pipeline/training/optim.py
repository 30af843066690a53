"""LAMB with bias correction (You et al., ICLR 2020, Alg. 2) and the paper's schedule: warm-up, exponential decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Lamb(torch.optim.Optimizer):
    """LAMB: Adam's direction, rescaled per tensor to the length of the weights.

    m, v are Adam's bias-corrected moments; u = m / (sqrt(v) + eps) + wd * w; w <- w - lr * (|w| / |u|) * u, the
    ratio being 1 where either norm is 0. No clamp on |w|: large layers keep the step the formula gives them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-5,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            # On a CPU the step is bound by memory: tensor by tensor the moments stay in the cache between the
            # operations. On a GPU it is bound by kernel launches: all tensors at once.
            together = [params] if params and params[0].is_cuda else [[p] for p in params]
            for part in together:
                self._step_group(group, part)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p), "step": torch.zeros(())}
            self.state[p]["step"] += 1
        grads = [p.grad for p in params if p.grad is not None]
        m = [self.state[p]["m"] for p in params]
        v = [self.state[p]["v"] for p in params]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        step = float(self.state[params[0]]["step"])
        denominators = torch._foreach_div(v, 1 - beta2**step)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(m, denominators)
        torch._foreach_div_(updates, 1 - beta1**step)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        for p, u, w_norm, u_norm in zip(
            params, updates, torch._foreach_norm(params), torch._foreach_norm(updates), strict=True
        ):
            ratio = torch.where((w_norm > 0) & (u_norm > 0), w_norm / u_norm.clamp(min=1e-30), 1.0)
            p.sub_(u * (ratio * group["lr"]))


def build_lamb(model: nn.Module, lr: float, weight_decay: float) -> Lamb:
    """LAMB over a model; weight decay on matrices and kernels only, not on biases and norms."""
    params = [p for p in model.parameters() if p.requires_grad]
    return Lamb(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
    )


def learning_rate(progress: float, peak: float, warmup: float = 0.025, final_ratio: float = 0.03) -> float:
    """Linear warm-up over the first `warmup` of the run (2,000 of 80,000 in the paper), then exponential decay.

    progress in 0..1; the rate falls from `peak` to `peak * final_ratio`. The paper does not give the decay's rate.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * max(progress, 1e-3 * warmup) / warmup
    return float(peak * final_ratio ** ((progress - warmup) / (1 - warmup)))
