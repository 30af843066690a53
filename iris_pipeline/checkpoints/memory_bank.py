"""The memory bank: one running mean of task tokens per seen class (Sec. 3.4 of the paper, momentum 0.999).

T_k <- a T_k + (1 - a) T_k_new. Started from zero the mean would be too small for thousands of updates, so, as in
Adam, it is divided by the weight gathered so far, 1 - a^n: after one update it IS that update.
Keys are "dataset/class name"; tokens of one class are one tensor per task level, [m+1,C_l].
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from preprocessing.errors import TaskError

TokensOfClass = tuple[Tensor, ...]
WIDE = "@wide"


def bank_key(dataset: str, class_name: str, wide: bool = False) -> str:
    """The bank's key of a class: datasets keep their own tokens even where they share an anatomy.

    wide: of its look at half the resolution (`halved.py`).
    """
    return f"{dataset}/{class_name}" + (WIDE if wide else "")


class MemoryBank:
    """Running means of task tokens; lives inside the checkpoint, so that a seen class needs no reference.

    momentum: 0 remembers the latest reference alone. TaskError unless it is 0 or more and under 1.
    """

    def __init__(self, momentum: float = 0.999):
        if not 0 <= momentum < 1:
            raise TaskError(f"The bank's momentum must be 0 or more and under 1; got {momentum}.")
        self.momentum = momentum
        self._sums: dict[str, TokensOfClass] = {}
        self._counts: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._sums

    def __len__(self) -> int:
        return len(self._sums)

    def keys(self) -> list[str]:
        """Seen classes, sorted."""
        return sorted(self._sums)

    def updates(self, key: str) -> int:
        """How many episodes have updated a class; 0 for an unseen one."""
        return self._counts.get(key, 0)

    @torch.no_grad()
    def update(self, key: str, tokens: TokensOfClass) -> None:
        """One step of the running mean with the tokens [m+1,C_l] of a reference; kept as float32 on the CPU."""
        new = tuple(t.detach().to("cpu", torch.float32) for t in tokens)
        old = self._sums.get(key, tuple(torch.zeros_like(t) for t in new))
        self._sums[key] = tuple(torch.lerp(o, n, 1 - self.momentum) for o, n in zip(old, new, strict=True))
        self._counts[key] = self._counts.get(key, 0) + 1

    def get(self, keys: Iterable[str]) -> TokensOfClass:
        """Bias-corrected tokens of several classes as a task: each level [1,K,m+1,C_l]; TaskError names unseen ones."""
        keys = list(keys)
        unseen = [k for k in keys if k not in self._sums]
        if unseen or not keys:
            known = ", ".join(self.keys()) or "nothing"
            raise TaskError(
                f"The memory bank holds {known}, but {', '.join(unseen) or 'no class'} was asked for: "
                "give references with -r for classes the model has not seen."
            )
        levels = []
        for level in range(len(self._sums[keys[0]])):
            means = [self._sums[k][level] / (1 - self.momentum ** self._counts[k]) for k in keys]
            levels.append(torch.stack(means).unsqueeze(0))
        return tuple(levels)

    def tensors(self) -> dict[str, Tensor]:
        """The running means as "key|level" -> tensor, for safetensors."""
        return {
            f"{key}|{level}": t.contiguous()
            for key, tokens in self._sums.items()
            for level, t in enumerate(tokens)
        }

    def counts(self) -> dict[str, int]:
        """Updates per class, for the checkpoint's JSON."""
        return dict(self._counts)

    @classmethod
    def restore(cls, momentum: float, tensors: dict[str, Tensor], counts: dict[str, int]) -> MemoryBank:
        """Inverse of `tensors` and `counts`."""
        bank = cls(momentum)
        for key, count in counts.items():
            levels = sorted(
                ((int(n.rsplit("|", 1)[1]), t) for n, t in tensors.items() if n.rsplit("|", 1)[0] == key),
                key=lambda pair: pair[0],
            )
            bank._sums[key] = tuple(t.float() for _, t in levels)
            bank._counts[key] = count
        return bank
