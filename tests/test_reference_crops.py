"""What a reference's crop shows: enough of its class, whatever its size, and seldom the same voxels twice.

Arrays are [D,H,W] = (z,y,x).
"""

import numpy as np
import pytest
import torch
from memory_store import MemoryStore

from iris_pipeline.sampling import reference_crops as module
from iris_pipeline.sampling.augment import AugmentationRanges
from iris_pipeline.sampling.crops import CasePool, Crop, densest_patch
from iris_pipeline.sampling.episode_config import EpisodeConfig
from iris_pipeline.sampling.reference_crops import reference_crop
from iris_pipeline.sampling.synthetic import Cut

PLAIN = EpisodeConfig(augment=False)
CLASSES = {"body": 1, "spine": 2, "lesions": 3, "liver": 4}


def pool() -> CasePool:
    """Patches of 32^3 hold 1/32 of the body, a tenth of the spine, an eighth of the lesions, and all of the liver."""
    labels = np.zeros((320, 64, 64), dtype=np.uint8)
    labels[:, :, :] = 1
    labels[:, 28:34, 28:34] = 2
    for z in range(8):
        labels[5 + 40 * z : 7 + 40 * z, 4:7, 4:8] = 3  # 24 voxels each, 192 in all
    labels[100:120, 40:60, 40:60] = 4
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    volumes = {name: (name, image, labels) for name in ("one", "two")}
    store = MemoryStore(volumes, CLASSES, (32, 32, 32), {"all": {"train": ["one", "two"]}})
    return CasePool("a", store, "all", "train")


def drawn(cases: CasePool, name: str, config: EpisodeConfig, count: int = 6) -> list[tuple[Crop, list[str]]]:
    entry = cases.showing[name][0]
    return [
        reference_crop(np.random.default_rng(seed), cases, entry, name, [name], config)
        for seed in range(count)
    ]


@pytest.mark.parametrize("config", [PLAIN, EpisodeConfig()])
@pytest.mark.parametrize("name", ["body", "spine", "lesions", "liver"])
def test_references_vary_and_show_half_of_what_the_fullest_patch_would(
    name: str, config: EpisodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, tries = pool(), []
    original = module.draw_augmentation
    monkeypatch.setattr(module, "draw_augmentation", lambda *given: (tries.append(1), original(*given))[1])
    found = drawn(cases, name, config)
    entry = cases.showing[name][0]
    most, whole = densest_patch(cases, entry, name).voxels, entry.classes[name].voxels
    shown = [crop.voxels(CLASSES[name]) for crop, _ in found]
    assert min(shown) >= min(max(min(50, whole / 2), whole / 5), most / 2)
    assert all(kept == [name] for _, kept in found)
    assert len({crop.image.numpy().tobytes() for crop, _ in found}) >= 5, "hardly one twice"
    assert len(tries) <= 6 * 2, "most first draws are good"


def test_a_class_that_fits_must_show_its_fifth_and_is_never_counted() -> None:
    cases = pool()
    drawn(cases, "liver", EpisodeConfig())
    assert not cases.densest
    far = AugmentationRanges(translation=3.0, p_spatial=1.0)  # every drawn crop is beside the object
    crop, kept = drawn(cases, "liver", EpisodeConfig(reference_ranges=far), count=1)[0]
    assert kept == ["liver"] and crop.voxels(4) >= 20**3 / 5


def test_both_parts_of_a_class_that_is_cut_count_as_it() -> None:
    """A tenth of the liver is too little by itself; the crop is the one that would be drawn without a cut."""
    cases = pool()
    entry, cut = cases.showing["liver"][0], Cut(value=4, second=9, axis=0, share=0.1)
    for (plain, names), seed in zip(drawn(cases, "liver", PLAIN), range(6), strict=True):
        rng = np.random.default_rng(seed)
        crop, kept = reference_crop(rng, cases, entry, "liver", ["liver"], PLAIN, (cut, "liver"))
        assert kept == names == ["liver"] and torch.equal(crop.image, plain.image)
        assert (crop.voxels(4), crop.voxels(9)) == (800, 7200)
        assert torch.equal(torch.where(crop.labels == 9, 4, crop.labels), plain.labels)


def test_a_large_class_beside_the_anchor_is_asked_where_enough_of_it_is_in_view() -> None:
    cases = pool()
    entry = cases.showing["liver"][0]
    for seed in range(6):
        crop, kept = reference_crop(
            np.random.default_rng(seed), cases, entry, "liver", ["body", "spine", "liver"], PLAIN
        )
        most = {name: densest_patch(cases, entry, name).voxels for name in ("body", "spine")}
        enough = [name for name in most if crop.voxels(CLASSES[name]) >= most[name] / 2]
        assert kept == [*enough, "liver"] and "body" in kept


def test_where_every_draw_fails_the_fullest_patch_is_shown_augmented_if_that_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = pool()
    monkeypatch.setattr(module, "centred_start", lambda *_: (0, 0, 32))  # where there is no lesion
    first, second = (crop for crop, _ in drawn(cases, "lesions", EpisodeConfig(), count=2))
    assert not torch.equal(first.image, second.image) and min(first.voxels(3), second.voxels(3)) >= 12
    far = AugmentationRanges(translation=3.0, p_spatial=1.0)
    start = densest_patch(cases, cases.showing["lesions"][0], "lesions").start
    plain = tuple(slice(a, a + 32) for a in start)
    crop, kept = drawn(cases, "lesions", EpisodeConfig(reference_ranges=far), count=1)[0]
    assert kept == ["lesions"] and crop.voxels(3) == 24
    assert np.array_equal(crop.image[0].numpy(), cases.store.image("one")[plain])
