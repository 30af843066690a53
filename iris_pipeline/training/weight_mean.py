"""A running mean of the network's weights: what predicts, while the trained weights go on jumping step by step.

With one pair of volumes a step the gradient is mostly noise; the mean over the last thousand steps has less of it
("mean teacher", Tarvainen and Valpola, 2017). The paper keeps none.
"""

from __future__ import annotations

from copy import deepcopy

import torch

from iris_pipeline.model import Iris

WARM_UP = 10
"""the mean's memory is no longer than about a tenth of the steps so far, so that the start is forgotten"""


class WeightMean:
    """w <- a w + (1 - a) w_trained after each step; a is `momentum`, in a run's beginning (1 + n) / (10 + n)."""

    def __init__(self, model: Iris, momentum: float):
        self.momentum = momentum
        self.model: Iris = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Iris, step: int) -> None:
        """Take in the weights after optimiser step number `step` (1, 2, ...)."""
        share = 1 - min(self.momentum, (1 + step) / (WARM_UP + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), share)
