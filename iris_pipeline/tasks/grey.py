"""Grey evidence: how likely each grey value is inside a class and outside of it, as the references show it.

B batch; K classes; N bins; images [B,1,D,H,W] in standard deviations, logits [B,K,D,H,W]. A network that never met a
structure finds its place and not its looks: of lungs it takes the liver along, which is as large and lies beside them,
though no lung is that bright. The references know: the logarithm of how often a grey value is met inside the class
over how often outside, in the windows that the class is encoded from, is what one voxel's grey value adds to a logit
(Bayes' rule, voxels taken as independent). What the network says already counts grey values too, so a weight decides
how far that is believed, found on the references (`grey_weights.py`): 0 where the network knows better. Nothing is
learned by gradients. The paper has nothing like it: this is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.tasks.voxel_head import cube_mean

BINS = 72
LOWEST, HIGHEST = -9.0, 6.0
"""standard deviations; values beyond count as these. In CT, scaled by the body alone, air lies at -6 to -9"""
RADIUS = 1
"""voxels to each side over which grey values are averaged before they are looked up: less noise, hardly less edge"""
LIMIT = 10.0
"""logits beyond it are taken as this, so that evidence is heard"""


@dataclass(frozen=True)
class GreyEvidence:
    """ratios [K,N]: log of a grey value's share inside each class over its share outside; weights [K]."""

    ratios: Tensor
    weights: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        return self.ratios, self.weights

    def select(self, rows: Sequence[int]) -> GreyEvidence:
        """The evidence of these classes, in this order."""
        return GreyEvidence(*(part[list(rows)] for part in self.parts))

    def weighed(self, weights: Sequence[float]) -> GreyEvidence:
        """The same ratios with other weights, one a class."""
        return replace(self, weights=torch.tensor(list(weights), dtype=torch.float32))

    def to(self, device: torch.device | str) -> GreyEvidence:
        return GreyEvidence(*(part.to(device) for part in self.parts))

    def of_image(self, image: Tensor) -> Tensor:
        """The log ratio of each voxel, without weights: [B,K,D,H,W] float32 of an image [B,1,D,H,W]."""
        place = (_place(cube_mean(image.float(), RADIUS)[:, 0]) - 0.5).clamp(0, BINS - 1)
        low = place.floor().clamp(max=BINS - 2)
        share, index = place - low, low.long()
        rows = [row[index] * (1 - share) + row[index + 1] * share for row in self.ratios]
        return torch.stack(rows, dim=1)

    def __call__(self, image: Tensor, logits: Tensor) -> Tensor:
        """Logits [B,K,D,H,W] of a window and what its grey values [B,1,D,H,W] add to them, float32."""
        with torch.autocast(image.device.type, enabled=False):
            return weigh(logits, self.of_image(image), self.weights)


def weigh(logits: Tensor, ratios: Tensor, weights: Tensor) -> Tensor:
    """Logits [B,K,D,H,W] plus ratios of that shape, times a weight [K] each; a class of weight 0 stays as it is."""
    logits = logits.float()
    column = weights[:, None, None, None]
    return torch.where(column == 0, logits, logits.clamp(-LIMIT, LIMIT) + column * ratios)


Share = tuple[GreyEvidence | None, int, float]
"""Evidence (None: it adds nothing), the row of a class in it, and its share of the mean."""


def mix_evidence(classes: Sequence[Sequence[Share]]) -> GreyEvidence | None:
    """The evidence that adds, of each class, the mean of what its shares add; None where none adds anything."""
    if all(evidence is None for shares in classes for evidence, _, _ in shares):
        return None
    ratios, weights = [], []
    for shares in classes:
        having = [(each.ratios[row], float(each.weights[row]) * part) for each, row, part in shares if each]
        weight = sum(part for _, part in having)
        # Of weight 0 the ratios still say what could be added: their mean is kept for whoever weighs them anew.
        rows = [row * (part / weight if weight else 1 / len(having)) for row, part in having] or [
            torch.zeros(BINS, dtype=torch.float32)
        ]
        ratios.append(torch.stack(rows).sum(0))
        weights.append(weight)
    return GreyEvidence(torch.stack(ratios), torch.tensor(weights, dtype=torch.float32))


def bins_of(grey: Tensor) -> np.ndarray:
    """The bin 0..N-1 that each grey value counts in."""
    return _place(grey).floor().clamp(0, BINS - 1).long().cpu().numpy()


def _place(grey: Tensor) -> Tensor:
    """Grey values on the scale of bins: bin b reaches from b to b + 1, its middle is b + 0.5."""
    return (grey - LOWEST) / (HIGHEST - LOWEST) * BINS


def weights_of(evidence: GreyEvidence | None, names: Sequence[str]) -> Mapping[str, float]:
    """Class -> its weight, for people; empty where no grey value counts."""
    found = dict(zip(names, evidence.weights.tolist(), strict=True)) if evidence is not None else {}
    return found if any(found.values()) else {}
