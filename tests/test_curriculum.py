"""Coarse-to-fine phases: when, which grid, and what a shrunken episode holds."""

from __future__ import annotations

import doctest
from dataclasses import asdict

import pytest
import torch

from iris_pipeline.cli.train import _parser, _settings
from iris_pipeline.sampling.episode import StackedEpisodes
from iris_pipeline.training import curriculum
from iris_pipeline.training.curriculum import check_curriculum, edge_share, shrink_group, shrunk_size
from iris_pipeline.training.train import TrainSettings
from preprocessing.errors import ModelError

PHASES = ((0.2, 0.5), (0.3, 0.75))


def group(masks: torch.Tensor, images: torch.Tensor) -> StackedEpisodes:
    return StackedEpisodes("some", ("organ",), images, masks, 2 * images, 1 - masks)


def test_doctests() -> None:
    result = doctest.testmod(curriculum)
    assert result.attempted >= 2 and result.failed == 0


def test_each_phase_lasts_its_share_and_the_rest_is_whole() -> None:
    seen = [edge_share(PHASES, step / 100) for step in range(100)]
    assert seen == [0.5] * 20 + [0.75] * 30 + [1.0] * 50
    assert edge_share((), 0.0) == 1.0


def test_images_are_area_means_and_masks_are_majorities() -> None:
    images = torch.arange(64.0**3).view(1, 1, 64, 64, 64)
    masks = torch.zeros(1, 1, 64, 64, 64)
    masks[..., 0, 0, 0:2] = 1  # 2 of the 8 voxels of the first new voxel: dropped
    masks[..., 2:4, 2:4, 2] = 1  # 4 of 8: kept
    small = shrink_group(group(masks, images), 0.5)
    blocks = images.view(32, 2, 32, 2, 32, 2).mean((1, 3, 5))
    torch.testing.assert_close(small.reference_images[0, 0], blocks)
    torch.testing.assert_close(small.query_images[0, 0], 2 * blocks)
    assert small.reference_masks.nonzero().tolist() == [[0, 0, 1, 1, 1]]
    dropped = 1 - small.query_masks  # the query's mask is the complement: exactly half still counts
    assert dropped.sum() == 0 and small.query_masks.shape == (1, 1, 32, 32, 32)


def test_a_class_thinner_than_the_new_voxels_does_not_vanish() -> None:
    masks = torch.zeros(2, 3, 64, 64, 64)
    masks[0, 0, 10:50, 20, 30] = 1  # a nerve: 2 of the 8 voxels of each new one
    masks[0, 0, 50, 20, 30] = 1  # 1 of 8
    masks[0, 1, 8:12, 8:12, 8:12] = 1
    masks[0, 1, 20, 20, 20] = 1  # a speck beside an organ, which stays
    images = torch.zeros(2, 1, 64, 64, 64)
    whole = StackedEpisodes("some", ("nerve", "organ", "nothing"), images, masks, images, masks)
    small = shrink_group(whole, 0.5)
    for found in (small.reference_masks, small.query_masks):
        assert found[0, 0].nonzero().tolist() == [[z, 10, 15] for z in range(5, 25)]
        assert found[0, 1].nonzero().min() == 4 and found[0, 1].nonzero().max() == 5
        assert found.sum().item() == 20 + 8, "what was not there is not there"


def test_whole_crops_are_left_as_they_are() -> None:
    whole = group(torch.ones(1, 1, 32, 32, 32), torch.ones(1, 1, 32, 32, 32))
    assert shrink_group(whole, 1.0) is whole


def test_edges_stay_multiples_of_the_stride() -> None:
    assert shrunk_size((64, 64, 64), 0.75) == [48, 48, 48]
    assert shrunk_size((128, 96, 16), 0.5) == [64, 48, 16]  # an edge of one stride has no room to shrink


@pytest.mark.parametrize("phases", [((0.5, 0.5), (0.5, 0.75)), ((0.2, 1.5),), ((0.0, 0.5),)])
def test_impossible_phases(phases: curriculum.Curriculum) -> None:
    with pytest.raises(ModelError, match=r"shares above 0 and up to 1 whose RUNs sum to less than 1.*got 0"):
        check_curriculum(phases)


def test_the_command_reads_phases() -> None:
    arguments = _parser().parse_args(["paper", "--minutes", "1", "--curriculum", "0.2:0.5", "0.3:0.75"])
    settings = _settings(arguments, torch.device("cpu"))
    assert settings.curriculum == PHASES
    arguments.curriculum = ["0.2"]
    with pytest.raises(ModelError, match=r"--curriculum takes RUN:EDGE, such as 0\.2:0\.5; got '0\.2'"):
        _settings(arguments, torch.device("cpu"))


def test_settings_survive_json() -> None:
    settings = TrainSettings(
        curriculum=PHASES, decoder_blocks=(0, 1, 1, 1), task_levels=(4,), rectified_stem=True
    )
    lists = {"curriculum": [[0.2, 0.5], [0.3, 0.75]], "decoder_blocks": [0, 1, 1, 1], "task_levels": [4]}
    assert TrainSettings.from_json(asdict(settings) | lists) == settings
    network = settings.network()
    assert network.decoder_blocks == (0, 1, 1, 1) and network.task_levels == (4,) and network.rectified_stem
