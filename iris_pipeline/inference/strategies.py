"""References -> TaskEmbedding: of one reference, as the mean over several, or of the memory bank (Sec. 3.4).

Arrays are [D,H,W] = (z,y,x), as are `spacing_mm` and `patch_size`; K classes; m context tokens; C_l channels
of level l. A strategy is a function; strategies are composed, not subclassed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor

from iris_pipeline.checkpoints.checkpoint import KnownSurroundings, LoadedModel
from iris_pipeline.checkpoints.memory_bank import bank_key
from iris_pipeline.inference.sliding_window import InferenceOptions, union_of, window_starts
from iris_pipeline.model import TaskTokens
from iris_pipeline.sampling.halved import halve_image, halve_labels, window_edges
from iris_pipeline.tasks.pieces import largest_share
from iris_pipeline.tasks.task import (
    TaskEmbedding,
    added_parts,
    all_wide,
    least_pieces,
    same_footing,
    shares_of,
)
from preprocessing.errors import ReferenceCaseError, TaskError
from preprocessing.geometry import CropPad
from preprocessing.grid_types import Box
from preprocessing.plan import Plan


class TaskEncoder(Protocol):
    """`Iris.encode_task`: image [B,1,D,H,W] and masks [B,K,D,H,W] (0/1) -> task tokens."""

    def encode_task(self, image: Tensor, masks: Tensor) -> TaskTokens: ...


@dataclass(frozen=True)
class PreparedReference:
    """One labelled case brought to a plan's spacing and intensities.

    image: float32 [D,H,W]. labels: uint8 [D,H,W]. classes: name -> value in `labels`. subject: the person.
    image_hash: content hash of the raw image ("" where it is not at hand).
    """

    id: str
    image: np.ndarray
    labels: np.ndarray
    classes: Mapping[str, int]
    subject: str = ""
    image_hash: str = ""

    @property
    def person(self) -> str:
        """Who is shown; a reference of nobody known is a person of its own."""
        return self.subject or self.id


Prepare = Callable[[str], PreparedReference]
"""Reads a reference once more, by its id, at the grid that its task has."""


def join_people(subjects: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Who is shown by each: two subjects with a scan of one content hash ("": not known) are one, by the first's name.

    >>> join_people(["a", "b", "b", "c"], ["x", "x", "y", ""])
    ['a', 'a', 'a', 'c']
    """
    people = list(subjects)
    first: dict[str, int] = {}
    for number, content in enumerate(contents):
        if content and first.setdefault(content, number) != number:
            same, other = people[first[content]], people[number]
            people = [same if person == other else person for person in people]
    return people


def with_joined_people(references: Sequence[PreparedReference]) -> list[PreparedReference]:
    """The references, whose subject is who they show (`join_people`): a scan is never tried on its own copy."""
    people = join_people([r.person for r in references], [r.image_hash for r in references])
    return [replace(r, subject=person) for r, person in zip(references, people, strict=True)]


def who_is_who(references: Sequence[PreparedReference]) -> list[int]:
    """For each reference the place of the first one of the same person: what searches that keep people apart depend on
    beside the scans, for the keys of caches.
    """
    people = join_people([r.person for r in references], [r.image_hash for r in references])
    return [people.index(person) for person in people]


def taken_from(reference: PreparedReference, task: TaskEmbedding) -> PreparedReference:
    """The reference with those classes only that a task takes from it."""
    return replace(reference, classes={name: reference.classes[name] for name in task.class_names})


@dataclass(frozen=True)
class Window:
    """A crop of the network's size (start may be negative: padding) and the classes encoded from it."""

    start: tuple[int, int, int]
    classes: tuple[str, ...]


def one_shot(
    model: TaskEncoder,
    reference: PreparedReference,
    plan: Plan,
    *,
    model_hash: str,
    wide: bool = False,
    options: InferenceOptions | None = None,
) -> TaskEmbedding:
    """The task that one reference shows: computed once, reused for every query. wide: at half its resolution, too,
    where all of its classes are there.

    Classes whose joint box fits the plan's patch share one encoder pass. An object larger than the patch is
    encoded from windows that cover it, and their tokens are averaged with the mask's voxels as weights, as the
    pooled mean of disjoint windows adds up to that over the whole mask (what attention makes of it does not).
    ReferenceCaseError if no class has a voxel; classes without voxels are left out.
    """
    boxes = class_boxes(reference)
    if not boxes:
        raise ReferenceCaseError(
            f"A reference must show at least one of {', '.join(reference.classes)}; the mask of "
            f"'{reference.id}' is empty at {_mm(plan.spacing_mm)}: take another reference."
        )
    options = options or InferenceOptions()
    tokens = _encode(model, reference, boxes, plan.patch_size, options)
    wide_tokens = _encode_wide(model, reference, boxes, plan.patch_size, options) if wide else ()
    return TaskEmbedding(
        class_names=tuple(boxes),
        tokens=tokens,
        wide_tokens=wide_tokens,
        spacing_mm=plan.spacing_mm,
        patch_size=plan.patch_size,
        normalisation=plan.normalisation,
        intensity_offset=plan.intensity_offset,
        modality=plan.modality,
        pose=plan.pose,
        references=1,
        model_hash=model_hash,
        made_by="one-shot",
        reference_hashes=(reference.image_hash,) if reference.image_hash else (),
        class_values=tuple(reference.classes[name] for name in boxes),
        largest_pieces=tuple(
            largest_share(reference.labels[tuple(slice(*edge) for edge in box)], reference.classes[name])
            for name, box in boxes.items()
        ),
    )


def _encode(
    model: TaskEncoder,
    reference: PreparedReference,
    boxes: Mapping[str, Box],
    patch: tuple[int, int, int],
    options: InferenceOptions,
) -> TaskTokens:
    """Tokens of the classes of `boxes`, each level [1,K,m+1,C_l]."""
    sums: dict[str, list[Tensor]] = {}
    voxels: dict[str, float] = {}
    with torch.inference_mode(), options.casting():
        for window in plan_windows(boxes, reference.image.shape, patch):
            crop = CropPad(reference.image.shape, window.start, patch)
            labels = crop.apply(reference.labels, 0)
            masks = {name: labels == reference.classes[name] for name in window.classes}
            masks = {name: mask for name, mask in masks.items() if mask.any()}
            if not masks:
                continue
            image = np.ascontiguousarray(
                crop.apply(reference.image, float(reference.image.min())), dtype=np.float32
            )
            stacked = np.stack(list(masks.values())).astype(np.float32)
            tokens = model.encode_task(
                torch.from_numpy(image)[None, None].to(options.device),
                torch.from_numpy(stacked)[None].to(options.device),
            )
            for k, (name, mask) in enumerate(masks.items()):
                weight = float(np.count_nonzero(mask))
                new = [level[0, k].float().cpu() * weight for level in tokens]
                sums[name] = (
                    [old + add for old, add in zip(sums[name], new, strict=True)] if name in sums else new
                )
                voxels[name] = voxels.get(name, 0.0) + weight
    levels = zip(*([level / voxels[name] for level in sums[name]] for name in boxes), strict=True)
    return tuple(torch.stack(level)[None] for level in levels)


def _encode_wide(
    model: TaskEncoder,
    reference: PreparedReference,
    boxes: Mapping[str, Box],
    patch: tuple[int, int, int],
    options: InferenceOptions,
) -> TaskTokens:
    """The same at half the resolution; () where it has no place for all classes, as a look there would miss one."""
    halved = halved_reference(reference)
    found = class_boxes(halved)
    if not found.keys() >= boxes.keys():
        return ()
    edges = window_edges(patch, halved.image.shape)
    return _encode(model, halved, {name: found[name] for name in boxes}, edges, options)


def halved_reference(reference: PreparedReference) -> PreparedReference:
    """A reference at half its resolution, each class of it still there as far as there are places (`halve_labels`)."""
    labels = halve_labels(reference.labels, list(reference.classes.values()))
    return replace(reference, image=halve_image(reference.image), labels=labels)


def ensemble(tasks: Sequence[TaskEmbedding]) -> TaskEmbedding:
    """Context ensemble: per class the mean of the tokens over the tasks that have it.

    One task comes back as it is but for its name. TaskError if there is none or if they differ in model,
    grid, intensities or in the value of a class.
    """
    if not tasks:
        raise TaskError("An ensemble needs at least one task; got none: give references.")
    classes: dict[str, int] = {}
    for task in tasks:
        if not same_footing(tasks[0], task):
            raise TaskError(
                "An ensemble needs tasks of one model, spacing, patch size and intensities; "
                "these differ: encode the references together."
            )
        for name, value in task.classes.items():
            if classes.setdefault(name, value) != value:
                raise TaskError(
                    f"A class has one value in all tasks of an ensemble, but '{name}' has the value {classes[name]} in "
                    f"one task and {value} in another: encode them with the same class values."
                )

    def mean(view: Callable[[TaskEmbedding], TaskTokens]) -> TaskTokens:
        levels = []
        for level in range(len(view(tasks[0]))):
            means = [
                torch.stack(
                    [view(t)[level][0, t.class_names.index(name)] for t in tasks if name in t.class_names]
                ).mean(0)
                for name in classes
            ]
            levels.append(torch.stack(means)[None])
        return tuple(levels)

    having = {name: [task for task in tasks if name in task.class_names] for name in classes}
    return replace(
        tasks[0],
        class_names=tuple(classes),
        class_values=tuple(classes.values()),
        tokens=mean(lambda task: task.tokens),
        wide_tokens=mean(lambda task: task.wide_tokens) if all_wide(tasks) else (),
        **added_parts({name: shares_of(name, those, [1] * len(those)) for name, those in having.items()}),
        references=sum(task.references for task in tasks),
        class_references=tuple(
            sum(t.class_references[t.class_names.index(name)] for t in tasks if name in t.class_names)
            for name in classes
        ),
        largest_pieces=least_pieces(tasks, list(classes)),
        made_by="ensemble",
        reference_hashes=tuple(dict.fromkeys(h for task in tasks for h in task.reference_hashes)),
    )


def bank(loaded: LoadedModel, dataset: str) -> TaskEmbedding:
    """The task of a dataset the model was trained on, from its memory bank: no reference is needed.

    TaskError if the model does not know the dataset, or has not yet met any of its classes.
    """
    if dataset not in loaded.plans or dataset not in loaded.specs:
        raise TaskError(
            f"The model was trained on {', '.join(sorted(loaded.plans)) or 'no dataset'}; it has no memory "
            f"of '{dataset}': give references with -r, or another model with -m."
        )
    plan, classes = loaded.plans[dataset], loaded.specs[dataset]["classes"]
    seen = {name: value for name, value in classes.items() if bank_key(dataset, name) in loaded.bank}
    if not seen:
        raise TaskError(
            f"The model's memory bank holds none of the classes of '{dataset}' ({', '.join(classes)}): train "
            "longer, or give references with -r."
        )
    wide = [bank_key(dataset, name, wide=True) for name in seen]
    pieces = (loaded.state.pieces or {}).get(dataset, {})
    task = TaskEmbedding(
        class_names=tuple(seen),
        tokens=tuple(loaded.bank.get(bank_key(dataset, name) for name in seen)),
        wide_tokens=tuple(loaded.bank.get(wide)) if all(key in loaded.bank for key in wide) else (),
        spacing_mm=plan.spacing_mm,
        patch_size=plan.patch_size,
        normalisation=plan.normalisation,
        intensity_offset=plan.intensity_offset,
        modality=plan.modality,
        pose=plan.pose,
        references=0,
        model_hash=loaded.model_hash,
        made_by="bank",
        class_values=tuple(seen.values()),
        largest_pieces=tuple(pieces.get(name, 0.0) for name in seen),
    )
    return surrounded(task, (loaded.state.surroundings or {}).get(dataset))


def surrounded(task: TaskEmbedding, known: KnownSurroundings | None) -> TaskEmbedding:
    """A bank's task with what its dataset's scans have round its classes, where that is known."""
    if known is None:
        return task
    around = tuple(known.classes.get(name, (0.0, 0.0)) for name in task.class_names)
    return replace(task, surroundings=around, usual=known.usual)


def plan_like(task: TaskEmbedding) -> Plan:
    """The grid and intensities of a task as a plan, so that more references can be brought to its footing."""
    return Plan(
        dataset="references",
        modality=task.modality,
        policy="fit",
        spacing_mm=task.spacing_mm,
        patch_size=task.patch_size,
        normalisation=task.normalisation,
        intensity_offset=task.intensity_offset,
        pose=task.pose,
        reasons=("grid and intensities are those of the given task",),
    )


def class_boxes(reference: PreparedReference) -> dict[str, Box]:
    """Bounding box of each class that has voxels, in the order of `classes`."""
    found = find_objects(reference.labels)
    boxes: dict[str, Box] = {}
    for name, value in reference.classes.items():
        slices = found[value - 1] if value <= len(found) else None
        if slices is not None:
            z, y, x = ((part.start, part.stop) for part in slices)
            boxes[name] = z, y, x
    return boxes


def plan_windows(boxes: Mapping[str, Box], shape: Sequence[int], patch: Sequence[int]) -> list[Window]:
    """Which crops show which classes: few crops, each class whole in one of them where it fits.

    Classes join the first group whose joint box stays within the patch; a group is cropped around the middle
    of its box. Classes larger than the patch share windows laid over their joint box. Where the volume is at
    least as large as the patch, a crop stays inside it.
    """
    groups: list[tuple[Box, list[str]]] = []
    large: list[str] = []
    for name, box in boxes.items():
        if not _fits(box, patch):
            large.append(name)
            continue
        for i, (joint, names) in enumerate(groups):
            union = union_of([joint, box])
            if _fits(union, patch):
                groups[i] = (union, [*names, name])
                break
        else:
            groups.append((box, [name]))
    windows = [Window(_centred(box, shape, patch), tuple(names)) for box, names in groups]
    if large:
        joint = union_of([boxes[name] for name in large])
        axes = [
            [low + start for start in window_starts(high - low, edge, 0.0)] if high - low > edge else [centre]
            for (low, high), edge, centre in zip(joint, patch, _centred(joint, shape, patch), strict=True)
        ]
        windows += [Window((z, y, x), tuple(large)) for z, y, x in product(*axes)]
    return windows


def _fits(box: Box, patch: Sequence[int]) -> bool:
    return all(high - low <= edge for (low, high), edge in zip(box, patch, strict=True))


def _centred(box: Box, shape: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """Start of a patch round the middle of a box, inside the volume; a smaller volume lies in its middle."""
    starts = []
    for (low, high), length, edge in zip(box, shape, patch, strict=True):
        start = (low + high - edge) // 2
        starts.append(min(max(start, 0), length - edge) if length >= edge else (length - edge) // 2)
    return starts[0], starts[1], starts[2]


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing) + " mm (z,y,x)"
