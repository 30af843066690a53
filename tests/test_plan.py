"""Plans: both policies against numbers computed by hand; a plan is pure and says why."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from conftest import TinyRaw

from preprocessing.errors import PlanError
from preprocessing.fingerprint import CasePrint, ClassPrint, Fingerprint, fingerprint_dataset
from preprocessing.plan import FILE, Plan, load_plan, main, make_plan, settle_plan
from preprocessing.runtime.lock import only_run_in
from preprocessing.spec import DatasetSpec, load_spec

Triple = tuple[float, float, float]


def spec_with(**changes: object) -> DatasetSpec:
    base = {"name": "x", "title": "", "modality": "MR", "role": "held-out", "source": "", "licence": ""}
    return DatasetSpec.model_validate(base | {"classes": {"a": 1, "b": 2, "c": 3}} | changes)


def case(
    number: int,
    classes: dict[str, tuple[float, Triple]],
    shape: tuple[int, int, int] = (50, 100, 100),
    spacing: Triple = (3.0, 1.0, 0.8),
    verdict: str = "ok",
) -> CasePrint:
    """`classes`: name -> (ml, extent_mm)."""
    prints = {name: ClassPrint(voxels=1, ml=ml, extent_mm=extent) for name, (ml, extent) in classes.items()}
    return CasePrint.model_validate(
        {"id": f"c{number}", "subject": f"c{number}", "verdict": verdict, "digest": "", "shape": shape}
        | {"spacing_mm": spacing, "classes": prints}
    )


def fingerprint_of(*cases: CasePrint) -> Fingerprint:
    return Fingerprint(dataset="x", spec_digest="", cases=cases)


BIG = (500.0, (100.0, 100.0, 100.0))


def test_paper_keeps_1_5_mm_for_large_objects() -> None:
    plan = make_plan(fingerprint_of(case(0, {"a": BIG}), case(1, {"a": BIG})), spec_with())
    assert plan.spacing_mm == (1.5, 1.5, 1.5)
    # 500 ml / 3.375 mm3 = 148148 voxels; 100 / 1.5 = 67 across
    assert (
        "1.5 mm isotropic, as in the paper: the median 'a', its smallest class, has 148148 voxels"
        in plan.reasons[1]
    )
    assert "67 across" in plan.reasons[1]


@pytest.mark.parametrize(
    ("ml", "extent", "expected"),
    [
        (1.68, (30.0, 30.0, 30.0), 0.8),  # 498 voxels of 1.5 mm: too few
        (1.70, (30.0, 30.0, 30.0), 1.5),  # 504 voxels, 20 across: enough
        (50.0, (17.0, 17.9, 90.0), 0.8),  # median edge 17.9 mm = 11.9 voxels across: too few
        (50.0, (17.0, 18.1, 90.0), 1.5),  # 12.07 across: enough
    ],
)
def test_paper_goes_to_the_native_edge_for_small_objects(ml: float, extent: Triple, expected: float) -> None:
    plan = make_plan(fingerprint_of(case(0, {"a": BIG, "b": (ml, extent)})), spec_with())
    assert plan.spacing_mm == (expected,) * 3
    assert ("finer than the paper's 1.5 mm" in plan.reasons[1]) == (expected == 0.8)


def test_paper_is_never_under_half_a_millimetre_nor_finer_than_the_scan() -> None:
    small = {"a": (0.1, (5.0, 5.0, 5.0))}
    fine = make_plan(fingerprint_of(case(0, small, spacing=(0.3, 0.3, 0.3))), spec_with())
    assert fine.spacing_mm == (0.5, 0.5, 0.5) and "not under 0.5 mm" in fine.reasons[1]
    coarse = make_plan(fingerprint_of(case(0, small, spacing=(3.0, 4.0, 4.0))), spec_with())
    assert (
        coarse.spacing_mm == (1.5, 1.5, 1.5) and "a finer grid would show nothing more" in coarse.reasons[1]
    )


def test_the_median_over_cases_decides_and_not_an_outlier() -> None:
    cases = [case(number, {"a": BIG}) for number in range(4)] + [case(4, {"a": (0.01, (2.0, 2.0, 2.0))})]
    assert make_plan(fingerprint_of(*cases), spec_with()).spacing_mm == (1.5, 1.5, 1.5)
    # 1.7 ml are 504 voxels of 1.5 mm, enough; the mean, 1.17 ml, would be 346
    volumes = [case(number, {"a": (ml, (30.0, 30.0, 30.0))}) for number, ml in enumerate((1.7, 1.7, 0.1))]
    assert make_plan(fingerprint_of(*volumes), spec_with()).spacing_mm == (1.5, 1.5, 1.5)


def test_one_scan_that_is_finer_or_larger_than_the_others_decides_nothing() -> None:
    small = {"a": (1.0, (20.0, 20.0, 20.0))}
    cases = [case(number, small, (20, 20, 20), (1.0, 1.0, 1.0)) for number in range(20)]
    odd = case(20, small, (60, 60, 60), (0.6, 0.6, 0.6))
    plan = make_plan(fingerprint_of(*cases, odd), spec_with(), "fit")
    # 19 of 20 scans have 20 voxels of 1 mm; the odd one has 36 there, and would ask for a patch of 48
    assert (plan.spacing_mm, plan.patch_size) == ((1.0, 1.0, 1.0), (32, 32, 32))


def test_fit_makes_the_median_class_span_52_of_64_voxels() -> None:
    # 104, 156 and 312 mm of 52 voxels: 2, 3 and 6 mm; the median class decides
    classes = {
        "a": (1.0, (104.0, 10.0, 10.0)),
        "b": (1.0, (10.0, 156.0, 10.0)),
        "c": (1.0, (10.0, 10.0, 312.0)),
    }
    plan = make_plan(fingerprint_of(case(0, classes)), spec_with(), "fit")
    assert plan.spacing_mm == (3.0, 3.0, 3.0)
    assert "a 104 mm, b 156 mm, c 312 mm" in plan.reasons[1] and "fitted to the crop" in plan.reasons[1]
    assert (
        make_plan(fingerprint_of(case(0, classes)), spec_with(), "fit", (128,) * 3).spacing_mm == (1.5,) * 3
    )


def test_fit_takes_the_95th_percentile_over_cases() -> None:
    cases = [case(number, {"a": (1.0, (52.0 + 52 * number / 20, 1.0, 1.0))}) for number in range(21)]
    assert make_plan(fingerprint_of(*cases), spec_with(), "fit").spacing_mm == (1.95, 1.95, 1.95)


def test_fit_regards_a_crop_of_unequal_edges_axis_by_axis() -> None:
    classes = {
        "a": (1.0, (50.0, 104.0, 50.0))
    }  # 104 mm along y: 52 voxels of 64 there, 26 of 32 along z and x
    plan = make_plan(fingerprint_of(case(0, classes)), spec_with(), "fit", (32, 64, 32))
    assert plan.spacing_mm == (2.0, 2.0, 2.0)


def test_a_scale_is_so_many_times_the_spacing_and_the_patch_shrinks_to_the_scan() -> None:
    planned = make_plan(fingerprint_of(case(0, {"a": BIG})), spec_with(), "fit")
    plan = make_plan(fingerprint_of(case(0, {"a": BIG})), spec_with(), "fit", scale=1.6)
    assert plan.spacing_mm == pytest.approx([1.6 * edge for edge in planned.spacing_mm], abs=1e-3)
    extent = [n * mm for n, mm in zip(case(0, {"a": BIG}).shape, case(0, {"a": BIG}).spacing_mm, strict=True)]
    voxels = [round(mm / edge) for mm, edge in zip(extent, plan.spacing_mm, strict=True)]
    assert list(plan.patch_size) == [min(64, -(-n // 16) * 16) for n in voxels]
    assert plan.reasons[2].startswith("1.6 times that: ") and plan.digest != planned.digest
    assert make_plan(fingerprint_of(case(0, {"a": BIG})), spec_with(), "fit", scale=1.0) == planned


def test_fit_is_never_finer_than_the_scan() -> None:
    plan = make_plan(fingerprint_of(case(0, {"a": (1.0, (20.0, 20.0, 20.0))})), spec_with(), "fit")
    assert plan.spacing_mm == (0.8, 0.8, 0.8)
    assert "the scans' finest edge" in plan.reasons[1]


def test_the_patch_is_a_multiple_of_16_and_no_larger_than_scan_or_crop() -> None:
    # at 1.5 mm 50 x 3 = 150 mm = 100 voxels, 40 x 1 mm = 27 voxels, 20 x 0.8 mm = 11 voxels
    plan = make_plan(fingerprint_of(case(0, {"a": BIG}, shape=(50, 40, 20))), spec_with())
    assert plan.patch_size == (64, 32, 16)
    assert "at most 100 x 27 x 11" in plan.reasons[2]


def test_scans_of_one_stride_get_a_patch_that_the_network_takes() -> None:
    # at 1.5 mm 8 x 3 = 24 mm = 16 voxels, 23 x 1 mm = 15 voxels, 25 x 0.8 mm = 13 voxels
    small = fingerprint_of(case(0, {"a": BIG}, shape=(8, 23, 25)))
    assert make_plan(small, spec_with()).patch_size == (32, 16, 16)
    assert make_plan(small, spec_with(), crop=(16, 64, 64)).patch_size == (16, 32, 16)


def test_the_specification_may_fix_the_spacing() -> None:
    plan = make_plan(fingerprint_of(case(0, {"a": BIG})), spec_with(spacing_mm=(3.0, 1.0, 1.0)), "fit")
    assert plan.spacing_mm == (3.0, 1.0, 1.0)
    assert plan.reasons[1] == "Spacing 3 x 1 x 1 mm: written in the specification."


def test_intensities_follow_the_modality() -> None:
    made = fingerprint_of(case(0, {"a": BIG}))
    ct = make_plan(made, spec_with(modality="CT", intensity_offset=-1000))
    assert (ct.normalisation.clip, ct.intensity_offset) == ((-990, 500), -1000)
    assert "-1000 is added to every grey value first, by the specification." in ct.reasons
    for modality in ("MR", "PET"):
        assert make_plan(made, spec_with(modality=modality)).normalisation.percentiles == (2, 98)


def test_fit_scores_ct_over_the_body() -> None:
    made = fingerprint_of(case(0, {"a": BIG}))
    assert make_plan(made, spec_with(modality="CT"), "paper").normalisation.body_above is None
    fit = make_plan(made, spec_with(modality="CT"), "fit")
    assert fit.normalisation.body_above == -500
    assert "Grey values clipped to [-990, 500] HU, then z-score per body (above -500 HU): CT." in fit.reasons
    assert make_plan(made, spec_with(modality="MR"), "fit").normalisation.body_above is None


def test_test_subjects_and_refused_cases_have_no_say() -> None:
    lists = {"test_subjects": ["c1"], "validation_subjects": [], "folds": None}
    spec = spec_with(role="upstream", split={key: value for key, value in lists.items() if value is not None})
    tiny = {"a": (0.01, (2.0, 2.0, 2.0))}
    made = fingerprint_of(case(0, {"a": BIG}), case(1, tiny), case(2, tiny, verdict="refused"))
    plan = make_plan(made, spec)
    assert plan.spacing_mm == (1.5, 1.5, 1.5)
    assert plan.reasons[0] == "Planned on 1 of 2 usable cases; test subjects have no say."
    only_test = make_plan(fingerprint_of(case(1, {"a": BIG}), case(2, tiny, verdict="refused")), spec)
    assert only_test.reasons[0].startswith("Planned on 1 of 1 usable cases"), "nobody else is left to ask"


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(PlanError, match="No case of dataset x can be used, all 1 were refused"):
        make_plan(fingerprint_of(case(0, {}, verdict="refused")), spec_with())
    for crop in ((64, 60, 64), (0, 64, 64), (64, -16, 64)):
        with pytest.raises(PlanError, match=rf"multiples of 16 voxels, not {re.escape(str(crop))}"):
            make_plan(fingerprint_of(case(0, {"a": BIG})), spec_with(), crop=crop)


def test_a_plan_is_pure_and_survives_the_disk(tmp_path: Path) -> None:
    made = fingerprint_of(case(0, {"a": BIG}))
    plan = make_plan(made, spec_with())
    assert plan == make_plan(made, spec_with())
    settle_plan(tmp_path, plan)
    assert (
        load_plan(tmp_path) == plan == Plan.model_validate_json((tmp_path / FILE).read_text(encoding="utf-8"))
    )


def test_another_plan_needs_overwrite_and_makes_the_store_unfinished(tmp_path: Path) -> None:
    made = fingerprint_of(case(0, {"a": BIG}))
    paper, fit = make_plan(made, spec_with()), make_plan(made, spec_with(), "fit")
    settle_plan(tmp_path, paper)
    (tmp_path / "manifest.json").write_text("{}")
    settle_plan(tmp_path, paper.model_copy(update={"reasons": ("other words",)}))  # the same arrays
    assert (tmp_path / "manifest.json").exists()
    with pytest.raises(
        PlanError, match=r"policy paper, 1\.5 x .* asked for \(policy fit, 1\.92 x .*--overwrite"
    ):
        settle_plan(tmp_path, fit)
    settle_plan(tmp_path, fit, overwrite=True)
    assert load_plan(tmp_path) == fit
    assert not (tmp_path / "manifest.json").exists()


def test_a_plan_that_cannot_be_written_costs_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fingerprint_of(case(0, {"a": BIG}))
    paper, fit = make_plan(made, spec_with()), make_plan(made, spec_with(), "fit")
    settle_plan(tmp_path, paper)
    (tmp_path / "manifest.json").write_text("{}")

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("preprocessing.plan.save_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        settle_plan(tmp_path, fit, overwrite=True)
    assert (tmp_path / "manifest.json").exists() and load_plan(tmp_path) == paper


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    plan = make_plan(fingerprint_of(case(0, {"a": BIG})), spec_with())
    settle_plan(tmp_path, plan.model_copy(update={"schema_version": 2}))
    with pytest.raises(
        PlanError, match=r"plan\.json has schema version 2, this version reads 1: run iris_plan_and"
    ):
        load_plan(tmp_path)


def test_the_tiny_dataset_goes_to_its_in_plane_edge(tiny_raw: TinyRaw) -> None:
    made = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, workers=1, progress=False)
    assert make_plan(made, tiny_raw.spec).spacing_mm == (1.2, 1.2, 1.2)


def test_the_step_alone_waits_for_other_runs_and_writes_the_plan(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-d", str(tiny_raw.spec_path), "--root", str(tmp_path), "--raw", str(tiny_raw.root)]
    folder = tmp_path / "preprocessed" / tiny_raw.spec.name
    assert main(command) == 1 and not folder.exists(), "no fingerprint: nothing is made"
    capsys.readouterr()
    fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, folder, workers=1, progress=False)
    with only_run_in(folder, "wait"):
        assert main(command) == 1
    assert re.search(
        r"^Error: Another run works in .*: wait until it has ended, then run", capsys.readouterr().err
    )
    assert not (folder / FILE).exists()
    assert main(command) == 0 and load_plan(folder).spacing_mm == (1.2, 1.2, 1.2)


def test_hippocampus_keeps_1_mm_on_the_real_scans(shared_data: Path) -> None:
    spec = load_spec("msd_hippocampus")
    made = fingerprint_dataset(shared_data / spec.name, spec, workers=1, progress=False)
    for policy in ("paper", "fit"):
        plan = make_plan(made, spec, policy)
        assert (plan.spacing_mm, plan.patch_size) == ((1.0, 1.0, 1.0), (48, 64, 48))
