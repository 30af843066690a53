"""Labelled cases that are to define a task: found on disk or drawn from a store, planned, prepared, encoded.

Arrays are [D,H,W] = (z,y,x) in RAS+; `spacing_mm`, `patch_size` and `crop` have the same order. References
are read one by one, once to measure and once to encode, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.pool import Embedded, EmbeddingCache, embed, restrict
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import Prepare, PreparedReference, join_people, plan_like
from iris_pipeline.scans.inputs import find_inputs
from iris_pipeline.scans.reference_layout import ReferenceLayout, find_layout, masks_of_one
from iris_pipeline.search.showing import SEARCHED, Showing, as_shown, settle_showing
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.adapters import Case
from preprocessing.case import preprocess_case
from preprocessing.errors import ReferenceCaseError
from preprocessing.findings import image_hash
from preprocessing.fingerprint import CasePrint, Fingerprint, measure_case
from preprocessing.guess import guess_sides
from preprocessing.plan import Plan, Policy, make_plan
from preprocessing.runtime.progress import Bar
from preprocessing.sources.class_names import classes_of, read_class_names
from preprocessing.sources.mending import by_segment_names
from preprocessing.sources.source import FileSource, Source
from preprocessing.spec import DatasetSpec, Modality
from preprocessing.store import Store
from preprocessing.volume import case_id_of, is_image_path

CT_MINIMUM_HU = -200.0  # air around or in a patient is near -1000 HU; MR and PET know no such values


@dataclass(frozen=True)
class ReferenceFiles:
    """Labelled cases on disk.

    classes: name -> value in the label files, 1..255. unpaired: ids that lack their image or label file. copies: ids of
    the same scan, remarks: (id, what is doubtful about it), both found by `screening.screen_references`. told: what was
    guessed from the names of mask files, a sentence.
    """

    cases: tuple[Case, ...]
    classes: dict[str, int]
    unpaired: tuple[str, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()
    told: str = ""


@dataclass(frozen=True)
class Candidate:
    """A labelled case a reference may be drawn from: who it is and which classes it shows.

    content: hash of its image (`findings.image_hash`), "" where it is not at hand.
    """

    id: str
    subject: str
    classes: frozenset[str]
    content: str = ""


@dataclass(frozen=True)
class Draw:
    """A drawn reference and the classes to take from it, in order."""

    id: str
    classes: tuple[str, ...]


def find_references(folder: Path, channel: str | None = None) -> ReferenceFiles:
    """The references of a folder: images/ and labels/, or imagesTr/ and labelsTr/, paired by case id; an image may be
    the folder of a DICOM series, and a label map may lie there as one mask file a class (`reference_layout.py`).

    Class names come from classes.json ({"liver": 1}) or dataset.json (the Decathlon's or nnU-Net's "labels")
    beside the two folders; without either, from the segments of .seg.nrrd files, and value v of other files is named
    label_v. channel: of images that have several, see `inputs.find_inputs`. ReferenceCaseError if nothing can be
    paired, RawDataError if there is no such channel.
    """
    return _of_layout(find_layout(folder, channel))


def reference_pair(image: Path, labels: Path, channel: str | None = None) -> ReferenceFiles:
    """One image and its label file, or the folder of its masks, one file a class; class names from the label file's
    folder, or the one above. channel: as above.
    """
    if image.is_dir() and any(is_image_path(path) for path in image.iterdir()):
        raise ReferenceCaseError(
            f"One reference is an image and its label file, or the folder of its masks; {image} is a folder of images: "
            "give -r the folder in which images/ and labels/ lie."
        )
    found = FileSource(image) if channel is None else find_inputs(image, channel)[0][0].image
    assert found is not None
    if labels.is_dir():
        return _of_layout(masks_of_one(case_id_of(image), found, labels))
    named = read_class_names(labels.parent) or read_class_names(labels.parent.parent)
    classes = named or classes_of([FileSource(labels)])
    shown = by_segment_names(FileSource(labels), classes)
    return ReferenceFiles((Case(case_id_of(image), case_id_of(image), found, shown, "MR"),), classes)


def _of_layout(layout: ReferenceLayout) -> ReferenceFiles:
    alone = sorted(set(layout.images) ^ set(layout.labels))
    paired = sorted(set(layout.images) & set(layout.labels))
    # The modality is not known yet: `reference_spec` is told or guesses it.
    classes = layout.classes or classes_of([layout.labels[name] for name in paired])
    shown = {name: by_segment_names(layout.labels[name], classes) for name in paired}
    cases = tuple(Case(name, name, layout.images[name], shown[name], "MR") for name in paired)
    return ReferenceFiles(cases, classes, tuple(alone), told=layout.told)


def reference_spec(
    files: ReferenceFiles, modality: Modality | None = None, intensity_offset: float = 0.0
) -> tuple[DatasetSpec, tuple[CasePrint, ...]]:
    """A specification made up for references of no known dataset, and their measurements.

    modality None: guessed from the grey values, CT if one of the references goes below -200.
    ReferenceCaseError names a reference that cannot be used and why.
    """
    spec = made_up_spec(files.classes, modality or "MR", intensity_offset)
    prints = measure_references(files.cases, spec)
    if modality is None:
        spec = spec.model_copy(update={"modality": guess_modality(prints)})
    return spec, prints


def made_up_spec(
    classes: Mapping[str, int], modality: Modality, intensity_offset: float = 0.0
) -> DatasetSpec:
    """A specification for references of no known dataset. ReferenceCaseError for values or a modality there are not."""
    try:
        return DatasetSpec(
            name="references",
            title="References",
            modality=modality,
            role="held-out",
            source="given",
            licence="",
            classes=dict(classes),
            sides=guess_sides(classes),
            intensity_offset=intensity_offset,
        )
    except ValidationError:
        raise ReferenceCaseError(
            "References are of CT, MR or PET, and each class has a value of its own in 1..255; got modality "
            f"{modality!r} and classes {dict(classes)}: correct them."
        ) from None


def guess_modality(prints: Sequence[CasePrint]) -> Modality:
    """CT if one of the references goes below -200, else MR."""
    return "CT" if min(p.intensity["minimum"] for p in prints) < CT_MINIMUM_HU else "MR"


def measure_references(cases: Sequence[Case], spec: DatasetSpec) -> tuple[CasePrint, ...]:
    """The fingerprint's view of each reference; ReferenceCaseError names one that cannot be used and why."""
    prints = []
    for case in Bar(cases, desc="Measuring references", leave=False, disable=len(cases) < 2):
        found = measure_case(case, spec, reference=True)
        if not found.accepted:
            raise ReferenceCaseError(f"Reference '{case.id}' cannot be used: {found.why}")
        prints.append(found)
    if not any(p.classes for p in prints):
        raise ReferenceCaseError(
            f"A reference must show at least one class of {', '.join(spec.classes)}; the masks of "
            f"{', '.join(c.id for c in cases[:5])} are empty."
        )
    return tuple(prints)


def plan_references(
    loaded: LoadedModel, spec: DatasetSpec, prints: tuple[CasePrint, ...], scale: float = 1.0
) -> Plan:
    """Spacing and patch for references of a dataset the model does not know, from these references alone.

    The rules are those of the model's own datasets: their policy, and a crop as large as their largest patch. scale: so
    many times the spacing that they give.
    """
    plans = list(loaded.plans.values())
    policy: Policy = Counter(plan.policy for plan in plans).most_common(1)[0][0] if plans else "fit"
    edges = [max(sizes) for sizes in zip(*(plan.patch_size for plan in plans), strict=True)] or [64, 64, 64]
    fingerprint = Fingerprint(dataset=spec.name, spec_digest="", cases=prints)
    # As a held-out dataset none of the cases is set aside: references are there to be looked at.
    return make_plan(
        fingerprint,
        spec.model_copy(update={"role": "held-out"}),
        policy,
        (edges[0], edges[1], edges[2]),
        scale,
    )


def prepare_reference(case: Case, plan: Plan, classes: Mapping[str, int]) -> PreparedReference:
    """Read one labelled case and bring it to the plan's grid and intensities."""
    if case.labels is None:
        raise ReferenceCaseError(
            f"Reference '{case.id}' has no label file; a reference is an image with its mask."
        )
    image = case.image.read_image()
    prepared = preprocess_case(
        image,
        plan.spacing_mm,
        plan.normalisation,
        case.labels.read_labels(),
        plan.intensity_offset,
        plan.pose,
    )
    assert prepared.labels is not None
    return PreparedReference(
        case.id, prepared.image, prepared.labels, classes, case.subject, image_hash(image)
    )


def stored_reference(store: Store, case_id: str, raw_image: Source | None = None) -> PreparedReference:
    """A case of a store as a reference. raw_image: read where the store does not tell the content hash itself."""
    content = store.content(case_id) or (image_hash(raw_image.read_image()) if raw_image is not None else "")
    image, labels, person = store.image(case_id), store.labels(case_id), store.entry(case_id).subject
    return PreparedReference(case_id, image, labels, store.manifest.classes, person, content)


def candidates_of(store: Store, ids: Iterable[str]) -> list[Candidate]:
    """Cases of a store as candidates, with the classes that they show."""
    entries = [store.entry(case_id) for case_id in ids]
    return [Candidate(entry.id, entry.subject, frozenset(entry.classes)) for entry in entries]


def draw_references(
    candidates: Iterable[Candidate],
    classes: Sequence[str],
    count: int,
    seed: int,
    not_subjects: Iterable[str] = (),
) -> list[Draw]:
    """`count` references by seed, of other subjects than `not_subjects`; the same seed draws the same.

    The first is the first in random order among those that show the most classes. Classes that none of the
    `count` shows come each from the first further case in that order that shows them. ReferenceCaseError
    without a candidate.
    """
    if count < 1:
        raise ReferenceCaseError(f"The number of references must be 1 or more; got {count}.")
    everyone = sorted(candidates, key=lambda c: c.id)
    # All are shuffled and then filtered, so that queries of different subjects share references where they can.
    shuffled = [everyone[int(i)] for i in np.random.default_rng(seed).permutation(len(everyone))]
    excluded = set(not_subjects)
    order = [c for c in shuffled if c.subject not in excluded and c.classes & set(classes)]
    if not order:
        raise ReferenceCaseError(
            "A reference is a labelled case of another subject than the query's, and there is none: give references of "
            "more people."
        )
    most = max(len(c.classes & set(classes)) for c in order)
    order.sort(key=lambda c: len(c.classes & set(classes)) < most)  # stable: both halves stay in random order
    chosen = order[:count]
    draws = [Draw(c.id, tuple(name for name in classes if name in c.classes)) for c in chosen]
    missing = [name for name in classes if not any(name in draw.classes for draw in draws)]
    for candidate in order[count:]:
        shown = tuple(name for name in missing if name in candidate.classes)
        if shown:
            draws.append(Draw(candidate.id, shown))
            missing = [name for name in missing if name not in shown]
    return draws


def embed_draws(
    loaded: LoadedModel,
    draws: Sequence[Draw],
    prepare: Prepare,
    plan: Plan,
    *,
    cache: EmbeddingCache | None = None,
    with_images: bool = False,
    options: InferenceOptions | None = None,
) -> list[Embedded]:
    """Embed each drawn reference, with the classes that were drawn from it; see `pool.embed`.

    A class too small to leave a voxel at the plan's spacing is left out of its reference; ReferenceCaseError
    if all references are empty there.
    """
    pool, empty = [], ReferenceCaseError("No reference was given; a task needs at least one.")
    for draw in Bar(draws, desc="Encoding references", leave=False, disable=len(draws) < 2):
        try:
            whole = embed(loaded, prepare(draw.id), plan, cache, with_image=with_images, options=options)
        except ReferenceCaseError as error:
            empty = error
            continue
        embedded = restrict(whole, draw.classes)
        if embedded is not None:
            pool.append(embedded)
    if not pool:
        raise empty
    return pool


@dataclass(frozen=True)
class FilePool:
    """References on disk, embedded at one plan. prepare: reads one of them once more, by id."""

    pool: list[Embedded]
    plan: Plan
    prepare: Prepare


def embed_files(
    loaded: LoadedModel,
    files: ReferenceFiles,
    options: InferenceOptions | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    modality: Modality | None = None,
    like: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    with_images: bool = False,
    showing: Showing = SEARCHED,
    check: Callable[[Sequence[Candidate]], None] | None = None,
    progress: bool = False,
) -> FilePool:
    """References on disk, all or `count` of them drawn by `seed`, on the grid that they themselves plan.

    like: a task whose grid, pose and intensities are used instead, so that the two can be merged. showing:
    see `showing.py`. Class values are those of the files. check: is shown the drawn references, of whom each subject is
    one person, and may raise before any is encoded. ReferenceCaseError names a reference that cannot be used.
    """
    spec, prints = reference_spec(files, modality or (like.modality if like else None))
    candidates = [Candidate(p.id, p.subject, frozenset(p.classes)) for p in prints]
    draws = draw_references(candidates, list(files.classes), min(count or len(prints), len(prints)), seed)
    drawn = {draw.id for draw in draws}
    used = tuple(p for p in prints if p.id in drawn)
    by_id = {case.id: case for case in files.cases}
    if check is not None:
        people = join_people([p.subject for p in used], [p.content for p in used])
        shown = zip(used, people, strict=True)
        check([Candidate(p.id, who, frozenset(p.classes), p.content) for p, who in shown])

    def prepare_at(plan: Plan) -> Prepare:
        return lambda case_id: prepare_reference(by_id[case_id], plan, files.classes)

    if like:
        plan = plan_like(like)
    else:
        plan = settle_showing(
            loaded,
            lambda scale: plan_references(loaded, spec, used, scale),
            showing,
            [draw.id for draw in draws],
            prepare_at,
            by_id[draws[0].id].image.read_image().affine,
            options,
            cache=cache,
            progress=progress,
        )
    prepare = prepare_at(plan)
    pool = embed_draws(
        loaded,
        draws,
        prepare,
        plan,
        cache=cache,
        with_images=with_images,
        options=options,
    )
    pool = as_shown(loaded, pool, prepare, showing, options, cache=cache, progress=progress)
    return FilePool(pool, plan, prepare)
