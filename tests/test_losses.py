"""Dice + cross-entropy against values worked out by hand."""

import math

import torch

from iris_pipeline.training.losses import EMPTY_SMOOTH, class_losses, episode_loss, soft_dice


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


def test_the_share_is_of_one_crop_and_a_voxel_at_least() -> None:
    # of a batch of two samples and two classes each crop of 1000 voxels has the s of one alone
    s = 1000 * EMPTY_SMOOTH
    many = soft_dice(torch.zeros(2, 2, 10, 10, 10), torch.zeros(2, 2, 10, 10, 10))
    torch.testing.assert_close(many, torch.full((2, 2), s / (500 + s)))
    # 8 voxels: their share is 0.016 of one, so it is one: 1 / (4 + 1)
    few = soft_dice(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))
    torch.testing.assert_close(few, torch.tensor([[1 / 5]]))


def test_samples_and_classes_keep_their_own_losses() -> None:
    """Each pair of a batch has what it has alone, in its own place."""
    logits = torch.randn(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    masks = (torch.rand(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    each = class_losses(logits, masks)
    assert each.shape == (2, 3)
    for b in range(2):
        for k in range(3):
            p, y = torch.sigmoid(logits[b, k]), masks[b, k]
            dice = (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
            torch.testing.assert_close(each[b, k], 1 - dice + entropy)


def test_logits_of_half_precision_are_summed_in_whole() -> None:
    """Under autocast: 32,768 voxels of probability 0.5 sum to 16,384, which bfloat16 holds to 128 at best."""
    logits = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    masks = torch.zeros(1, 1, 32, 32, 32)
    masks[..., :16] = 1
    half, whole = (episode_loss(each, masks) for each in (logits, logits.float()))
    assert half.total.dtype == torch.float32
    assert torch.equal(half.total, whole.total) and torch.equal(half.dice, whole.dice)


def test_what_is_logged_holds_no_graph() -> None:
    logits = torch.zeros(1, 1, 1, 1, 4, requires_grad=True)
    parts = episode_loss(logits, torch.ones(1, 1, 1, 1, 4))
    assert (
        parts.total.requires_grad and not parts.dice.requires_grad and not parts.cross_entropy.requires_grad
    )
