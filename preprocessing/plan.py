"""Plan: from a fingerprint to spacing, patch and intensities of the unified store. Pure, frozen, versioned.

Spacings, shapes and patches are (z,y,x), spacings in mm.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from preprocessing.choose import choose_specs
from preprocessing.errors import PlanError
from preprocessing.fingerprint import LOG, WAIT, CasePrint, Fingerprint, load_fingerprint
from preprocessing.grid_types import Shape, Triple
from preprocessing.normalise import Normalisation
from preprocessing.orientation import RAS, Pose
from preprocessing.runtime.files import append_log, load_json, save_json, text_digest
from preprocessing.runtime.lock import only_run_in
from preprocessing.runtime.options import add_plan_options, add_store_options, ending
from preprocessing.runtime.paths import Root
from preprocessing.spec import DatasetSpec, Modality
from preprocessing.splits import subjects_of_test

Policy = Literal["paper", "fit"]
FILE = "plan.json"
MANIFEST = "manifest.json"  # of the store: another plan makes it unfinished

STRIDE = 16  # the network halves four times
PAPER_SPACING_MM = 1.5
FINEST_SPACING_MM = 0.5
FEW_VOXELS = 500
FEW_VOXELS_ACROSS = 12
FIT_SHARE = 52 / 64  # of the crop's edge that a large object of a class may span


class Plan(BaseModel):
    """How a dataset's scans become arrays.

    pose: how the arrays lie, and so the order of spacing and patch; a store's are in RAS+. `reasons` says in words why
    and is no part of the plan's identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    dataset: str
    modality: Modality
    policy: Policy
    spacing_mm: Triple
    patch_size: Shape
    normalisation: Normalisation
    intensity_offset: float
    reasons: tuple[str, ...]
    pose: Pose = RAS

    @property
    def digest(self) -> str:
        """The same for two plans that give the same arrays."""
        said = {"reasons"} if self.pose != RAS else {"reasons", "pose"}  # plans of before had none to tell
        return text_digest(self.model_dump_json(exclude=said))


def make_plan(
    fingerprint: Fingerprint,
    spec: DatasetSpec,
    policy: Policy = "paper",
    crop: Shape = (64, 64, 64),
    scale: float = 1.0,
) -> Plan:
    """The plan of one dataset. Subjects of the paper split's test part have no say in it.

    `paper`: 1.5 mm isotropic; finer where the smallest class would be too few voxels. `fit`: isotropic, so
    that the objects of the median class fill 52/64 of the crop; CT is z-scored over the body alone.
    `crop`: the largest patch (z,y,x), multiples of 16. `scale`: so many times that spacing is taken. Scans of 16 voxels
    or fewer along every axis get a patch of 32 along their longest one: the network refuses 16 x 16 x 16.
    PlanError where no accepted case is left or the crop is not possible.
    """
    if min(crop) < STRIDE or any(edge % STRIDE for edge in crop):
        raise PlanError(
            f"A crop has edges that are multiples of {STRIDE} voxels, not {crop}: give e.g. 64 64 64."
        )
    accepted = fingerprint.accepted
    if not accepted:
        raise PlanError(
            f"No case of dataset {spec.name} can be used, all {len(fingerprint.cases)} were refused: mend "
            "them by what their verdicts say."
        )
    unseen = subjects_of_test(spec, {case.id: case.subject for case in fingerprint.cases})
    cases = [case for case in accepted if case.subject not in unseen] or accepted
    reasons = [f"Planned on {len(cases)} of {len(accepted)} usable cases; test subjects have no say."]
    if spec.spacing_mm is not None:
        spacing = spec.spacing_mm
        reasons.append(f"Spacing {_text(spacing)} mm: written in the specification.")
    else:
        edge, why = paper_spacing(cases) if policy == "paper" else fit_spacing(cases, crop)
        spacing = (edge, edge, edge)
        reasons.append(why)
    if scale != 1.0:
        z, y, x = (round(scale * edge, 3) for edge in spacing)
        spacing = (z, y, x)
        reasons.append(f"{scale:g} times that: {_text(spacing)} mm.")
    patch, why = _patch(cases, spacing, crop)
    # The paper's z-score covers the whole volume; where a scan is mostly air, soft tissue is nearly flat then.
    normalisation = Normalisation.for_modality(spec.modality, body=policy == "fit")
    reasons += [why, *_intensity_reasons(normalisation, spec)]
    return Plan(
        dataset=spec.name,
        modality=spec.modality,
        policy=policy,
        spacing_mm=spacing,
        patch_size=patch,
        normalisation=normalisation,
        intensity_offset=spec.intensity_offset,
        reasons=tuple(reasons),
    )


def settle_plan(folder: Path, plan: Plan, overwrite: bool = False) -> Plan:
    """Write plan.json, or keep the one there if it gives the same arrays; PlanError if it gives others."""
    path = folder / FILE
    if path.is_file() and not overwrite:
        old = load_plan(folder)
        if old.digest != plan.digest:
            raise PlanError(
                f"{path} is of another plan ({_in_short(old)}) than the one asked for ({_in_short(plan)}): "
                "give the same options, another --root, or --overwrite to make the store anew."
            )
    save_json(path, plan)
    if overwrite:  # last: where the plan cannot be written the former store stays
        (folder / MANIFEST).unlink(missing_ok=True)
    append_log(folder / LOG, "plan: " + " ".join(plan.reasons))
    return plan


def paper_spacing(cases: list[CasePrint]) -> tuple[float, str]:
    """1.5 mm (the paper's), or the finest native edge where the smallest class would be too few voxels.

    "Smallest": the class with the least median volume over cases. "Too few": under 500 voxels, or under 12
    voxels along the median of its three edges. Never under 0.5 mm, never coarser than 1.5 mm. Returns (mm,
    reason).
    """
    classes = _class_cases(cases)
    if not classes:
        return (
            PAPER_SPACING_MM,
            f"Spacing {PAPER_SPACING_MM:g} mm isotropic: the paper's; no object to look at.",
        )
    volumes = {
        name: float(np.median([case.classes[name].ml for case in have])) for name, have in classes.items()
    }
    smallest = min(volumes, key=lambda name: (volumes[name], name))
    voxels = volumes[smallest] * 1000 / PAPER_SPACING_MM**3
    edges = np.median([case.classes[smallest].extent_mm for case in classes[smallest]], axis=0)
    across = float(np.median(edges)) / PAPER_SPACING_MM
    sizes = (
        f"the median '{smallest}', its smallest class, has {voxels:.0f} voxels there and {across:.0f} across"
    )
    if voxels >= FEW_VOXELS and across >= FEW_VOXELS_ACROSS:
        return PAPER_SPACING_MM, f"Spacing {PAPER_SPACING_MM:g} mm isotropic, as in the paper: {sizes}."
    native = finest_native_spacing(cases)
    edge = min(PAPER_SPACING_MM, max(FINEST_SPACING_MM, native))
    few = f"{sizes}, too few (at least {FEW_VOXELS} and {FEW_VOXELS_ACROSS} are wanted)"
    if edge == PAPER_SPACING_MM:
        return edge, (
            f"Spacing {edge:g} mm isotropic, as in the paper: {few}, but the scans' finest edge is "
            f"{native:g} mm, so a finer grid would show nothing more."
        )
    limit = f", not under {FINEST_SPACING_MM:g} mm" if native < FINEST_SPACING_MM else ""
    return edge, (
        f"Spacing {edge:g} mm isotropic, finer than the paper's {PAPER_SPACING_MM:g} mm: {few}; {edge:g} mm "
        f"is the scans' finest edge{limit}."
    )


def fit_spacing(cases: list[CasePrint], crop: Shape) -> tuple[float, str]:
    """The isotropic spacing at which the objects of a task fit the crop. Returns (mm, reason).

    Per class the 95th percentile over cases of the edge that its largest extent needs to span 52/64 of the
    crop; of these the median over classes; never finer than the scans' finest native edge (median over
    cases).
    """
    native = finest_native_spacing(cases)
    room = np.array(crop) * FIT_SHARE
    classes = _class_cases(cases)
    if not classes:
        return native, f"Spacing {native:g} mm isotropic: the scans' finest edge; no object to look at."
    needs = {
        name: float(
            np.percentile([np.max(np.array(case.classes[name].extent_mm) / room) for case in have], 95)
        )
        for name, have in classes.items()
    }
    wanted = float(np.median(list(needs.values())))
    edge = round(max(wanted, native), 2)
    objects = ", ".join(f"{name} {need * room.min():.0f} mm" for name, need in needs.items())
    why = (
        f"large objects ({objects}) fill {FIT_SHARE:.0%} of a crop of {_text(crop)} at {wanted:.2f} mm "
        "(the median class)"
    )
    if wanted >= native:
        return edge, f"Spacing {edge:g} mm isotropic, fitted to the crop: {why}."
    return (
        edge,
        f"Spacing {edge:g} mm isotropic, the scans' finest edge: {why}, but finer would show nothing more.",
    )


def finest_native_spacing(cases: list[CasePrint]) -> float:
    """Median over cases of the finest edge of a voxel, mm."""
    return round(float(np.median([min(case.spacing_mm) for case in cases])), 3)


def load_plan(folder: Path) -> Plan:
    """The plan of preprocessed/<dataset>. PlanError where there is none of this schema version."""
    return load_json(
        folder / FILE, Plan, PlanError, f"run iris_plan_and_preprocess -d {folder.name} --overwrite"
    )


def _in_short(plan: Plan) -> str:
    edges = " x ".join(f"{edge:g}" for edge in plan.spacing_mm)
    return f"policy {plan.policy}, {edges} mm, patch {' x '.join(map(str, plan.patch_size))}"


def _class_cases(cases: list[CasePrint]) -> dict[str, list[CasePrint]]:
    names = {name: None for case in cases for name in case.classes}
    return {name: [case for case in cases if name in case.classes] for name in names}


def _patch(cases: list[CasePrint], spacing: Triple, crop: Shape) -> tuple[Shape, str]:
    shapes = [
        [max(1, round(n * s / t)) for n, s, t in zip(case.shape, case.spacing_mm, spacing, strict=True)]
        for case in cases
    ]
    large = np.percentile(shapes, 95, axis=0)
    edges = [min(edge, STRIDE * math.ceil(size / STRIDE)) for edge, size in zip(crop, large, strict=True)]
    if max(edges) == STRIDE:
        # 16^3 is one voxel at the network's deepest stage, which refuses it: small scans are padded to more.
        edges[max(range(3), key=lambda axis: (crop[axis] > STRIDE, large[axis], axis))] = 2 * STRIDE
    patch = (edges[0], edges[1], edges[2])
    seen = _text(tuple(round(float(size)) for size in large))
    return (
        patch,
        f"Patch {_text(patch)} voxels: 95 % of the scans are at most {seen}, the crop allows {_text(crop)}.",
    )


def _intensity_reasons(normalisation: Normalisation, spec: DatasetSpec) -> list[str]:
    reasons = []
    if spec.intensity_offset:
        reasons.append(
            f"{spec.intensity_offset:+g} is added to every grey value first, by the specification."
        )
    if normalisation.clip is not None:
        low, high = normalisation.clip
        over = (
            "volume" if normalisation.body_above is None else f"body (above {normalisation.body_above:g} HU)"
        )
        reasons.append(
            f"Grey values clipped to [{low:g}, {high:g}] HU, then z-score per {over}: {spec.modality}."
        )
    if normalisation.percentiles is not None:
        low, high = normalisation.percentiles
        reasons.append(
            f"Grey values clipped to each volume's percentiles {low:g} and {high:g}, then z-score: "
            f"{spec.modality}."
        )
    return reasons


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    """Make plan.json from the fingerprints that are there, and say why."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.plan", description=main.__doc__)
    add_store_options(parser)
    add_plan_options(parser)
    arguments = parser.parse_args(argv)
    return ending(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    for spec in choose_specs(arguments.datasets, root.raw):
        folder = root.preprocessed / spec.name
        # before the lock, which would make the folder of a dataset that has none
        found = load_fingerprint(folder)
        plan = make_plan(found, spec, arguments.policy, tuple(arguments.crop))
        with only_run_in(folder, WAIT):
            settle_plan(folder, plan, arguments.overwrite)
        print("\n  ".join([f"{spec.name}:", *plan.reasons]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
