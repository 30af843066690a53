"""Residual blocks, attention and the encoder that is made of blocks, against the formulas. Arrays are [B,C,D,H,W]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from naive_network import attention, feed_forward, randomise, residual_block

from iris_pipeline.model.blocks import Attention, FeedForward, ResidualBlock, SelfAttention
from iris_pipeline.model.encoder import Encoder


@pytest.mark.parametrize("channels_in", [3, 5])
def test_a_residual_block_is_norm_relu_convolution_twice_beside_the_shortcut(channels_in: int) -> None:
    block = ResidualBlock(channels_in, 5).double()
    randomise(block, 0)
    x = torch.randn(2, channels_in, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), residual_block(block, x))


@pytest.mark.parametrize("channels", [8, 64, 96])
def test_attention_is_pytorchs_with_heads_of_32_channels(channels: int) -> None:
    tokens, context = torch.randn(2, 3, channels), torch.randn(2, 7, channels)
    reading, meeting = Attention(channels), SelfAttention(channels)
    for number, layer in enumerate((reading, meeting)):
        randomise(layer, number)
    torch.testing.assert_close(reading(tokens, context), attention(reading, tokens, context))
    torch.testing.assert_close(meeting(tokens), attention(meeting, tokens))


def test_feed_forward_is_a_perceptron_beside_the_tokens() -> None:
    layer, tokens = FeedForward(6), torch.randn(2, 3, 6)
    randomise(layer, 0)
    assert layer.layers[1].weight.shape == (24, 6)
    torch.testing.assert_close(layer(tokens), feed_forward(layer, tokens))


def test_the_encoder_halves_the_grid_before_each_stage_but_the_first() -> None:
    encoder = Encoder((2, 3, 4), (0, 1, 2)).double().requires_grad_(False)
    randomise(encoder, 0)
    image = torch.randn(1, 1, 8, 4, 12, dtype=torch.float64)
    x = F.conv3d(image, encoder.stem.weight, encoder.stem.bias, padding=1)  # type: ignore[arg-type]
    expected = [x]
    for stage in list(encoder.stages)[1:]:
        x = F.max_pool3d(x, 2)
        for block in stage[1:]:  # type: ignore[index]
            x = residual_block(block, x)
        expected.append(x)
    found = encoder(image)
    assert [tuple(each.shape[1:]) for each in found] == [(2, 8, 4, 12), (3, 4, 2, 6), (4, 2, 1, 3)]
    for ours, naive in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, naive)
