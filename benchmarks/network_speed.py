"""Seconds of one window through the network, with this package's layers and with PyTorch's own, in turns.

    python benchmarks/network_speed.py [--size small] [--edge 64] [--threads 1] [--rounds 15] [--training]

Both have the same weights and give the same logits to within rounding, which is checked. Each round times both, one
after the other; the table gives medians and the median of the rounds' ratios, so that other work on the machine
meets both alike. --training: forward and backward of two volumes, as a step of training has it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from iris_pipeline.cli._common import at_least_one
from iris_pipeline.model import SIZES, Iris, build_iris, mask_decoder
from iris_pipeline.model.volume_ops import Conv3d, HalvingMaxPool3d, InstanceNorm3d

OWN = {Conv3d: nn.Conv3d, InstanceNorm3d: nn.InstanceNorm3d}
TOLERANCE = 1e-3


def with_pytorchs_layers(model: Iris) -> Iris:
    """The same network of PyTorch's own layers."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in OWN:
            module.__class__ = OWN[type(module)]
        for name, child in module.named_children():
            if isinstance(child, HalvingMaxPool3d):
                setattr(module, name, nn.MaxPool3d(2))
    return model


def pytorchs_upsampling(x: Tensor, factor: int) -> Tensor:
    """What `upsample_trilinear` stands for."""
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)


def episode(model: Iris, image: Tensor, masks: Tensor) -> Tensor:
    """A reference's tokens, and the logits of the same image as a query."""
    features = model.encode_image(image)
    return model.segment_from_features(features, model.encode_task_from_features(features, masks))


def compare(size: str, edge: int, rounds: int, training: bool) -> dict[str, float]:
    """Median seconds of both, and the median ratio."""
    torch.manual_seed(0)
    ours = build_iris(size, seed=0).train(training)
    own = with_pytorchs_layers(ours)
    upsample = mask_decoder.upsample_trilinear
    image = torch.randn(2 if training else 1, 1, edge, edge, edge)
    masks = (torch.randn(image.shape[0], 3, edge, edge, edge) > 1).float()

    def run(model: Iris, upsampling: Callable[[Tensor, int], Tensor]) -> tuple[float, Tensor]:
        mask_decoder.upsample_trilinear = upsampling
        start = time.perf_counter()
        with nullcontext() if training else torch.inference_mode():
            logits = episode(model, image, masks)
            if training:
                logits.square().mean().backward()
        return time.perf_counter() - start, logits.detach()

    times: list[tuple[float, float]] = []
    for number in tqdm(range(rounds + 1), desc="rounds", unit="round", dynamic_ncols=True):
        (slow, expected), (fast, got) = run(own, pytorchs_upsampling), run(ours, upsample)
        if number:  # the first one warms up
            times.append((slow, fast))
        elif (got - expected).abs().max() > TOLERANCE:
            raise SystemExit("The logits differ: the layers are not the same.")
    return {
        "PyTorch's layers [s]": statistics.median(slow for slow, _ in times),
        "ours [s]": statistics.median(fast for _, fast in times),
        "times faster": statistics.median(slow / fast for slow, fast in times),
    }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument(
        "--edge", type=at_least_one, default=64, help="voxels of a window's side, a multiple of 16"
    )
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--rounds", type=at_least_one, default=15)
    parser.add_argument("--training", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, value in compare(arguments.size, arguments.edge, arguments.rounds, arguments.training).items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
