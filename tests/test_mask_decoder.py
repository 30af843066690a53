"""The mask decoder against the formula: fusion, the up-path, and each class's first tokens dotted with the voxels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from naive_network import attention, feed_forward, instance_norm, randomise, residual_block
from torch import Tensor

from iris_pipeline.model.mask_decoder import Fusion, MaskDecoder

WIDTHS = (4, 6, 64)  # of the deepest level two heads
LEVELS = (2, 1)


def naive_fusion(fusion: Fusion, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Voxels in the order (z,y,x) read the tokens that have read them; then the tokens of all classes meet."""
    b, channels, *grid = features.shape
    image = features.reshape(b, channels, -1).movedim(1, -1)
    for i in range(len(fusion.tokens_read)):
        tokens = attention(fusion.tokens_read[i], tokens, image)  # type: ignore[arg-type]
        tokens = feed_forward(fusion.tokens_ffn[i], tokens)  # type: ignore[arg-type]
        image = attention(fusion.image_reads[i], image, tokens)  # type: ignore[arg-type]
        image = feed_forward(fusion.image_ffn[i], image)  # type: ignore[arg-type]
        tokens = attention(fusion.classes_meet[i], tokens)  # type: ignore[arg-type]
        tokens = feed_forward(fusion.classes_ffn[i], tokens)  # type: ignore[arg-type]
    return image.movedim(-1, 1).reshape(b, channels, *grid), tokens


def naive_decoder(
    decoder: MaskDecoder, features: list[Tensor], tokens: list[Tensor], join: tuple[str, ...]
) -> Tensor:
    b, k, per_class = tokens[0].shape[:3]
    x, firsts = features[-1], []
    for stage in (2, 1, 0):
        if stage < 2:
            up = decoder.ups[1 - stage]
            x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
            x = F.conv3d(x, up.reduce.weight, up.reduce.bias)  # type: ignore[union-attr,arg-type]
            skip = features[stage]
            x = torch.cat([x, skip], dim=1) if join[stage] == "concat" else x + skip
            for block in up.blocks:  # type: ignore[union-attr]
                x = residual_block(block, x)
        if stage in LEVELS:
            level = LEVELS.index(stage)
            fusion, each = decoder.fusions[level], tokens[level]
            x, fused = naive_fusion(fusion, x, each.reshape(b, k * per_class, -1))  # type: ignore[arg-type]
            firsts.append(torch.stack([fused[:, number * per_class] for number in range(k)], dim=1))
    weights = decoder.classifier(torch.cat(firsts, dim=-1))
    voxels = F.relu(instance_norm(decoder.final_norm, x))
    return (
        torch.einsum("bkc,bcdhw->bkdhw", weights[..., :-1], voxels) + weights[..., -1][..., None, None, None]
    )


@pytest.mark.parametrize("join", [("concat", "concat"), ("add", "concat"), ("concat", "add")])
def test_masks_are_voxels_dotted_with_the_first_token_of_each_class(join: tuple[str, ...]) -> None:
    decoder = MaskDecoder(WIDTHS, (1, 2), LEVELS, 2, join).double().requires_grad_(False)
    randomise(decoder, 0)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = [drawn(2, width, 4 * 4 // 2**i, 8 // 2**i, 12 // 2**i) for i, width in enumerate(WIDTHS)]
    tokens = [drawn(2, 3, 5, WIDTHS[level]) for level in LEVELS]
    found = decoder(tuple(features), tuple(tokens))
    assert found.shape == (2, 3, 16, 8, 12)
    torch.testing.assert_close(found, naive_decoder(decoder, features, tokens, join))


def test_a_fresh_decoder_begins_near_background() -> None:
    """The last row of the last layer is the logits' own offset."""
    decoder = MaskDecoder(WIDTHS, (1, 1), LEVELS, 1, ("add", "add"))
    bias = decoder.classifier[-1].bias.detach()
    assert float(bias[-1]) == -2.0 and float(bias[:-1].abs().max()) < 1.0
