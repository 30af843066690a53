"""The network: its two identities against the naive formulas, sizes, symmetries, errors."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from iris_pipeline.model import STRIDE, IrisConfig, build_config, build_iris, count_parameters
from iris_pipeline.model.blocks import (
    Attention,
    downsample_mask_adjoint,
    unshuffle_mask,
)
from iris_pipeline.model.task_encoder import ContextBranch, TaskLevel, coarse_masks
from iris_pipeline.model.volume_ops import upsampling_matrix
from preprocessing import plan
from preprocessing.errors import ModelError

TINY = IrisConfig(
    widths=(4, 8, 8, 16, 32),
    encoder_blocks=(0, 1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    task_depth=1,
    join=("add", "concat", "concat", "concat"),
)


def random_masks(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.7).float()


@pytest.mark.parametrize("coarse,factor", [(1, 4), (2, 2), (3, 4), (5, 16)])
def test_upsampling_matrix_is_interpolate(coarse: int, factor: int) -> None:
    x = torch.randn(1, 1, coarse)
    expected = F.interpolate(x, scale_factor=factor, mode="linear", align_corners=False)
    torch.testing.assert_close(x @ upsampling_matrix(coarse, factor).T, expected)


def test_upsampling_matrix_by_hand() -> None:
    # Two samples doubled: centres at -0.25, 0.25, 0.75, 1.25, clamped to 0..1.
    expected = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    torch.testing.assert_close(upsampling_matrix(2, 2), expected)


def naive_foreground(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """T_f as the paper writes it: up-sample the features to full resolution, then average under the mask."""
    full = F.interpolate(features, size=masks.shape[2:], mode="trilinear", align_corners=False)
    pooled = torch.einsum("bcdhw,bkdhw->bkc", full, masks)
    return pooled / masks.sum((2, 3, 4)).clamp(min=1).unsqueeze(-1)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_foreground_token_equals_full_resolution_pooling(factor: int) -> None:
    torch.manual_seed(0)
    level = TaskLevel(channels=6, factor=factor, tokens=2, depth=0)
    features = torch.randn(2, 6, 2, 3, 4, requires_grad=True)
    masks = random_masks(2, 3, 2 * factor, 3 * factor, 4 * factor)
    weights = torch.randn(2, 3, 6)
    fast = level.foreground_token(features, masks)
    naive = naive_foreground(features, masks)
    torch.testing.assert_close(fast, naive, rtol=1e-5, atol=1e-5)
    (fast_gradient,) = torch.autograd.grad((fast * weights).sum(), features)
    (naive_gradient,) = torch.autograd.grad((naive * weights).sum(), features)
    torch.testing.assert_close(fast_gradient, naive_gradient, rtol=1e-5, atol=1e-5)


def test_foreground_token_sees_an_object_smaller_than_a_coarse_voxel() -> None:
    level = TaskLevel(channels=3, factor=16, tokens=1, depth=0)
    features = torch.randn(1, 3, 2, 2, 2)
    masks = torch.zeros(1, 1, 32, 32, 32)
    masks[0, 0, 3, 4, 5] = 1  # one voxel: a mask pooled at 1/16 would be all but lost
    torch.testing.assert_close(level.foreground_token(features, masks), naive_foreground(features, masks))
    assert level.foreground_token(features, masks).abs().sum() > 0


def test_the_foreground_token_reads_the_context_like_the_others() -> None:
    torch.manual_seed(0)
    features, masks = torch.randn(1, 4, 2, 2, 2), torch.zeros(1, 1, 4, 4, 4)
    masks[..., :2] = 1
    pooled_only = TaskLevel(channels=4, factor=2, tokens=2, depth=0)
    pooled = pooled_only.norm(pooled_only.foreground_token(features, masks))
    torch.testing.assert_close(pooled_only(features, masks)[:, :, 0], pooled)
    read = TaskLevel(channels=4, factor=2, tokens=2, depth=1)
    assert (read(features, masks)[:, :, 0] - pooled).abs().max() > 1e-3


def test_adjoint_by_its_definition() -> None:
    # <U x, y> = <x, U^T y> for every x and y.
    x, y = torch.randn(1, 1, 2, 3, 2), torch.randn(1, 1, 8, 12, 8)
    up = F.interpolate(x, scale_factor=4, mode="trilinear", align_corners=False)
    torch.testing.assert_close(
        (up * y).sum(), (x * downsample_mask_adjoint(y, 4)).sum(), rtol=1e-5, atol=1e-4
    )


def test_empty_mask_gives_a_zero_token() -> None:
    level = TaskLevel(channels=3, factor=4, tokens=1, depth=0)
    token = level.foreground_token(torch.randn(1, 3, 2, 2, 2), torch.zeros(1, 1, 8, 8, 8))
    assert torch.equal(token, torch.zeros(1, 1, 3))


def pixel_shuffle_3d(x: torch.Tensor, factor: int) -> torch.Tensor:
    """[B,C r^3,d,h,w] -> [B,C,D,H,W]; the inverse of an unshuffle with the order (z,y,x) inside r^3."""
    b, channels, d, h, w = x.shape
    r = factor
    y = x.view(b, channels // r**3, r, r, r, d, h, w)
    return y.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, channels // r**3, d * r, h * r, w * r)


def test_plans_have_patches_that_the_network_takes() -> None:
    assert plan.STRIDE == STRIDE, "neither may import the other"


def test_unshuffle_inverts_shuffle_and_orders_z_first() -> None:
    x = torch.arange(2 * 8 * 12, dtype=torch.float32).view(1, 16, 1, 3, 4)
    full = pixel_shuffle_3d(x, 2)
    assert full.shape == (1, 2, 2, 6, 8)
    back = unshuffle_mask(full, 2).flatten(1, 2)
    assert torch.equal(back, x)
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[0, 0, 1, 0, 1] = 1  # z=1, y=0, x=1 -> index 1*4 + 0*2 + 1
    assert unshuffle_mask(mask, 2).flatten().tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def naive_context(branch: ContextBranch, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The paper's order, class by class, at full resolution: shuffle, concatenate the mask, 1x1x1, un-shuffle."""
    wide = branch.widen(F.relu(branch.norm(features)))
    b, _, d, h, w = features.shape
    wide = wide.view(b, branch.groups * branch.factor**3, d, h, w)
    full = pixel_shuffle_3d(wide, branch.factor)
    out = []
    for k in range(masks.shape[1]):
        mixed = F.gelu(branch.mix(torch.cat([full, masks[:, k : k + 1]], dim=1)))
        coarse = unshuffle_mask(mixed, branch.factor).flatten(1, 2)
        out.append(features + branch.narrow(coarse.movedim(1, -1)).movedim(-1, 1))
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("factor,groups", [(2, 1), (4, 1), (2, 3)])
def test_context_branch_equals_shuffle_concat_convolve_unshuffle(factor: int, groups: int) -> None:
    torch.manual_seed(1)
    branch = ContextBranch(channels=5, factor=factor, groups=groups).double()
    features = torch.randn(2, 5, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    masks = random_masks(2, 3, 2 * factor, 3 * factor, 2 * factor).double()
    fast, naive = branch(features, masks), naive_context(branch, features, masks)
    torch.testing.assert_close(fast, naive, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(fast)
    inputs = [features, *branch.parameters()]
    fast_gradients = torch.autograd.grad((fast * weights).sum(), inputs)
    naive_gradients = torch.autograd.grad((naive * weights).sum(), inputs)
    for a, b in zip(fast_gradients, naive_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_attention_against_the_formula() -> None:
    torch.manual_seed(2)
    layer = Attention(channels=8, head_channels=8)
    tokens, context = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    q = layer.query(layer.norm_tokens(tokens))
    k, v = layer.key_value(layer.norm_context(context)).split(8, dim=-1)
    weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
    torch.testing.assert_close(layer(tokens, context), tokens + layer.out(weights @ v))


@pytest.mark.parametrize("size,low,high", [("small", 10e6, 15e6), ("paper", 69.4e6 * 0.98, 69.4e6 * 1.02)])
def test_sizes_have_the_stated_parameters(size: str, low: float, high: float) -> None:
    with torch.device("meta"):
        assert low <= count_parameters(build_iris(size)) <= high


def test_every_parameter_gets_a_gradient() -> None:
    model = build_iris(TINY, seed=0)
    model(
        torch.randn(1, 1, 32, 32, 32), random_masks(1, 2, 32, 32, 32), torch.randn(1, 1, 32, 32, 32)
    ).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_classes_in_one_pass_are_equivariant_to_their_order() -> None:
    model = build_iris(TINY, seed=0).eval()
    image, masks = torch.randn(1, 1, 32, 16, 32), random_masks(1, 3, 32, 16, 32)
    query = torch.randn(1, 1, 16, 32, 32)
    order = [2, 0, 1]
    with torch.no_grad():
        straight = model(image, masks, query)
        permuted = model(image, masks[:, order], query)
    assert straight.shape == (1, 3, 16, 32, 32)
    torch.testing.assert_close(straight[:, order], permuted, rtol=1e-4, atol=1e-4)


def test_samples_of_a_batch_do_not_meet() -> None:
    model = build_iris(TINY, seed=0).eval()
    images, masks = torch.randn(2, 1, 16, 32, 16), random_masks(2, 2, 16, 32, 16)
    queries = torch.randn(2, 1, 16, 32, 16)
    with torch.no_grad():
        together = model(images, masks, queries)
        alone = model(images[1:], masks[1:], queries[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_one_task_serves_a_batch_of_queries() -> None:
    model = build_iris(TINY, seed=0).eval()
    queries = torch.randn(2, 1, 16, 16, 32)
    with torch.no_grad():
        tokens = model.encode_task(torch.randn(1, 1, 16, 32, 16), random_masks(1, 2, 16, 32, 16))
        assert [tuple(t.shape) for t in tokens] == [(1, 2, 11, 32), (1, 2, 11, 16)]
        both = model.segment(queries, tokens)
        torch.testing.assert_close(both[:1], model.segment(queries[:1], tokens), rtol=1e-4, atol=1e-4)


def test_the_mask_changes_the_task() -> None:
    model = build_iris(TINY, seed=0).eval()
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        a = model.encode_task(image, random_masks(1, 1, 32, 32, 32, seed=1))
        b = model.encode_task(image, random_masks(1, 1, 32, 32, 32, seed=2))
    assert all((x - y).abs().max() > 1e-4 for x, y in zip(a, b, strict=True))


def test_seed_fixes_the_weights() -> None:
    a, b, c = build_iris(TINY, seed=3), build_iris(TINY, seed=3), build_iris(TINY, seed=4)
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    assert not torch.equal(a.encoder.stem.weight, c.encoder.stem.weight)


def test_a_rectified_stem_is_a_relu_behind_the_first_convolution() -> None:
    plain, rectified = (build_iris(replace(TINY, rectified_stem=told), seed=3) for told in (False, True))
    image = torch.randn(1, 1, 16, 16, 32)
    torch.testing.assert_close(rectified.encode_image(image)[0], plain.encode_image(image)[0].relu())


def test_config_round_trip_and_unknown_keys() -> None:
    config = build_config("paper")
    assert IrisConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ModelError, match=r"knows no model setting \['depths'\]"):
        IrisConfig.from_dict(config.to_dict() | {"depths": 3})


def test_errors_name_what_was_allowed() -> None:
    with pytest.raises(ModelError, match="must be one of tiny, small, paper; got 'huge'"):
        build_config("huge")
    with pytest.raises(
        ModelError, match=r"task_levels must fall, as in \(4, 3\), without repeats; got \(3, 4\)"
    ):
        IrisConfig.from_dict(TINY.to_dict() | {"task_levels": [3, 4]})
    with pytest.raises(ModelError, match="five stages"):
        IrisConfig.from_dict(TINY.to_dict() | {"widths": [8, 16]})
    model = build_iris(TINY)
    with pytest.raises(
        ModelError, match=r"multiples of 16 and one of them above 16; got \(1, 1, 20, 16, 16\)"
    ):
        model.encode_image(torch.zeros(1, 1, 20, 16, 16))
    with pytest.raises(ModelError, match="on the image's grid"):
        model.encode_task(torch.zeros(1, 1, 16, 16, 32), torch.zeros(1, 2, 32, 16, 16))
    with pytest.raises(ModelError, match=r"and one of them above 16; got \(1, 1, 16, 16, 16\)"):
        model.encode_image(torch.zeros(1, 1, 16, 16, 16))


# --- the paper's ablations ---------------------------------------------------------------------------


def test_tokens_go_with_the_batch_of_the_queries() -> None:
    model = build_iris("tiny", seed=0)
    features = model.encode_image(torch.zeros(1, 1, 16, 16, 32))
    tokens = model.encode_task(torch.zeros(2, 1, 16, 16, 32), torch.ones(2, 3, 16, 16, 32))
    told = r"2 levels, each \[B,K,m\+1,C\] .*, 1, or of 1; got \[\(2, 3, 11, 96\), \(2, 3, 11, 64\)\]"
    with pytest.raises(ModelError, match=told):
        model.segment_from_features(features, tokens)
    with pytest.raises(ModelError, match=r"got \[\(1, 3, 11, 96\)\]"):
        model.segment_from_features(features, (tokens[0][:1],))


def test_coarse_masks_lose_what_is_smaller_than_half_a_coarse_voxel() -> None:
    masks = torch.zeros(1, 2, 8, 8, 8)
    masks[0, 0, :4, :4, :2] = 1  # half of one coarse voxel of 4^3
    masks[0, 1, 4, 4, 4] = 1
    coarse = coarse_masks(masks, 4)
    assert coarse[0, 0, :4, :4, :4].all() and coarse[0, 0].sum() == 64
    assert not coarse[0, 1].any()
    level = TaskLevel(channels=3, factor=4, tokens=1, depth=0, full_resolution=False)
    features = torch.randn(1, 3, 2, 2, 2)
    tokens = level(features, masks)
    expected = F.layer_norm(features[0, :, 0, 0, 0], (3,))
    # U^T of a coarse voxel's mask reaches into its neighbours: the token is no plain copy of one coarse feature
    naive = naive_foreground(features, coarse)[0, 0]
    torch.testing.assert_close(tokens[0, 0, 0], F.layer_norm(naive, (3,)))
    assert not torch.allclose(tokens[0, 0, 0], expected)


@pytest.mark.parametrize(
    ("changes", "queries", "tokens"),
    [
        ({"foreground_token": False}, 11, 11),
        ({"context_tokens": 0}, 0, 1),
        ({"context_tokens": 3}, 3, 4),
        ({"full_resolution_masking": False}, 10, 11),
    ],
)
def test_switched_networks_run_and_learn(changes: dict[str, object], queries: int, tokens: int) -> None:
    model = build_iris(replace(TINY, **changes), seed=0)  # type: ignore[arg-type]
    image, masks = torch.randn(1, 1, 32, 32, 32), random_masks(1, 2, 32, 32, 32)
    task = model.encode_task(image, masks)
    assert all(level.shape[2] == tokens for level in task)
    assert model.task_encoder[0].queries.shape[0] == queries
    model.segment(image, task).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.numel() and p.grad is None]
    assert idle == []


def test_a_switched_off_foreground_token_pools_nothing() -> None:
    level = TaskLevel(channels=4, factor=2, tokens=2, depth=0, foreground=False)
    features, masks = torch.randn(1, 4, 2, 2, 2), random_masks(1, 1, 4, 4, 4)
    torch.testing.assert_close(level(features, masks)[0, 0], level.norm(level.queries))


def test_the_default_network_is_as_it_was() -> None:
    # a configuration of before the switches, as checkpoints hold it
    old = {
        k: v for k, v in TINY.to_dict().items() if k not in ("foreground_token", "full_resolution_masking")
    }
    assert IrisConfig.from_dict(old) == TINY
    with pytest.raises(ModelError, match="A task needs a token: context_tokens must be 0 or more"):
        replace(TINY, context_tokens=0, foreground_token=False)
