"""The image encoder E: a 3D residual UNet encoder shared by reference and query (Sec. 3.2 of the Iris paper)."""

from __future__ import annotations

from torch import Tensor, nn

from iris_pipeline.model.blocks import ResidualBlock
from iris_pipeline.model.volume_ops import Conv3d, HalvingMaxPool3d


class Encoder(nn.Module):
    """Image [B,1,D,H,W] -> one feature map per stage, full resolution first: [B,C_i,D/2^i,H/2^i,W/2^i].

    `widths[i]` channels and `blocks[i]` residual blocks at stage i. Stage 0 starts with a 3^3 convolution; with
    `blocks[0] == 0` it is nothing else, which keeps the costly full resolution cheap on a CPU. `rectify`: ReLU behind
    that convolution, before any norm; each channel is then a window of grey values of its own, as instance norm would
    otherwise undo every linear change of contrast.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], rectify: bool = False):
        super().__init__()
        stem = Conv3d(1, widths[0], 3, padding=1)
        self.stem = nn.Sequential(stem, nn.ReLU()) if rectify else stem
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            previous = widths[max(i - 1, 0)]
            layers: list[nn.Module] = [HalvingMaxPool3d()] if i else []
            layers += [ResidualBlock(previous if j == 0 else width, width) for j in range(depth)]
            self.stages.append(nn.Sequential(*layers))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)
