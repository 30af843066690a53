"""Dice + cross-entropy against values worked out by hand."""

import math

import torch

from iris_pipeline.losses import EMPTY_SMOOTH, class_losses, episode_loss, soft_dice


def test_soft_dice_by_hand() -> None:
    logits = torch.zeros(1, 1, 1, 1, 4)  # p = 0.5 everywhere
    masks = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    # (2 * 0.5 * 2 + 1) / (4 * 0.5 + 2 + 1) = 3 / 5
    torch.testing.assert_close(soft_dice(logits, masks), torch.tensor([[0.6]]))


def test_loss_is_dice_plus_cross_entropy_by_hand() -> None:
    logits = torch.zeros(1, 1, 1, 1, 4)
    masks = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    parts = episode_loss(logits, masks)
    assert math.isclose(parts.dice.item(), 0.4, rel_tol=1e-6)
    assert math.isclose(parts.cross_entropy.item(), math.log(2), rel_tol=1e-6)
    assert math.isclose(parts.total.item(), 0.4 + math.log(2), rel_tol=1e-6)


def test_the_loss_of_each_class_and_their_mean() -> None:
    logits = torch.tensor([[0.0] * 4, [50.0, 50.0, -50.0, -50.0]]).view(1, 2, 1, 1, 4)
    masks = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(2, 1).view(1, 2, 1, 1, 4)
    each = class_losses(logits, masks)
    torch.testing.assert_close(each, torch.tensor([[0.4 + math.log(2), 0.0]]))
    torch.testing.assert_close(each.mean(), episode_loss(logits, masks).total)


def test_perfect_masks_cost_nothing_even_when_empty() -> None:
    masks = torch.zeros(1, 2, 2, 2, 2)
    masks[0, 0, 0] = 1
    assert episode_loss((masks * 2 - 1) * 50, masks).total.item() < 1e-4


def test_invalid_classes_neither_count_nor_get_gradient() -> None:
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    masks = (torch.rand(1, 2, 2, 2, 2) > 0.5).float()
    only_first = episode_loss(logits, masks, torch.tensor([[True, False]]))
    alone = episode_loss(logits[:, :1], masks[:, :1])
    torch.testing.assert_close(only_first.total, alone.total)
    (gradient,) = torch.autograd.grad(only_first.total, logits)
    assert torch.equal(gradient[:, 1], torch.zeros_like(gradient[:, 1]))
    assert gradient[:, 0].abs().sum() > 0


def test_nothing_valid_is_zero_not_nan() -> None:
    logits = torch.randn(1, 1, 2, 2, 2, requires_grad=True)
    assert episode_loss(logits, torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1)).total.item() == 0


def test_an_empty_mask_is_smoothed_by_a_share_of_the_crop() -> None:
    # 1000 voxels: s = 1000 * EMPTY_SMOOTH = 2; p = 0.5 everywhere sums to 500: s / (500 + s)
    s = 1000 * EMPTY_SMOOTH
    empty = soft_dice(torch.zeros(1, 1, 10, 10, 10), torch.zeros(1, 1, 10, 10, 10))
    torch.testing.assert_close(empty, torch.tensor([[s / (500 + s)]]))
    one = torch.zeros(1, 1, 10, 10, 10)
    one[..., 0, 0, 0] = (
        1  # a mask of one voxel keeps the one voxel of smoothing: (2 * 0.5 + 1) / (500 + 1 + 1)
    )
    torch.testing.assert_close(soft_dice(torch.zeros_like(one), one), torch.tensor([[2 / 502]]))
