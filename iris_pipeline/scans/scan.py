"""One scan and one or more tasks -> label map, masks and probabilities on the scan's own grid, in bounded memory.

Arrays are [D,H,W] = (z,y,x). Beside the scan itself and its prepared copy, one label map (8 bits a voxel) is held, and
while a scan is looked at twice three more arrays of the prepared grid, 9 bytes a voxel;
probabilities of all classes exist for one window's depth of the prepared grid only, and where that would be more than
`SLAB_BYTES` for one tile of its rows. Masks and probabilities that are asked for are held compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.focus import look_first
from iris_pipeline.inference.sliding_window import InferenceOptions, segment_slabs, window_bar
from iris_pipeline.scans.native import HALO, Block, PackedVolume, blocks, label_block, quantise, tiles
from iris_pipeline.search.second_look import Matching, certainty_of, look_twice
from iris_pipeline.tasks.pieces import keep_largest
from iris_pipeline.tasks.task import TaskEmbedding, merge, same_footing
from preprocessing.case import HIGHEST_LABEL, PreparedCase
from preprocessing.errors import ReferenceCaseError, TaskError
from preprocessing.findings import image_hash
from preprocessing.orientation import Reorientation
from preprocessing.volume import Volume

THRESHOLD = 0.5
SLAB_BYTES = 2**30  # of the float32 probabilities that are held at a time


@dataclass(frozen=True)
class Wanted:
    """What beside the label map: a mask of each class (they may overlap), its probabilities, its certainty."""

    masks: bool = False
    probabilities: bool = False
    certainty: bool = False


@dataclass(frozen=True)
class ScanResult:
    """labels: uint8 [D,H,W] on the scan's own grid. masks, probabilities: by class, each in the pose of its task, to
    which `turns` led; see `on_own_grid`.

    certainty: per class the mean probability inside its part of the label map, 0.5..1; NaN where it has none.
    matchings: per class what a second look did to the scan's grey values.
    """

    labels: np.ndarray
    turns: dict[str, Reorientation] = field(default_factory=dict)
    masks: dict[str, PackedVolume] = field(default_factory=dict)
    probabilities: dict[str, PackedVolume] = field(default_factory=dict)
    certainty: dict[str, float] = field(default_factory=dict)
    matchings: dict[str, Matching] = field(default_factory=dict)

    def on_own_grid(self, name: str, packed: PackedVolume) -> np.ndarray:
        """A class's mask (0, 1) or probabilities (in 1/255), uint8 [D,H,W] on the scan's own grid."""
        return self.turns[name].undo(packed.unpack())


def unite(tasks: Sequence[TaskEmbedding]) -> tuple[TaskEmbedding, ...]:
    """Tasks to be found in one scan -> as few as can be: those that share grid and intensities are merged.

    Each class has a value of its own in all of them: the tasks' own where these differ, else 1, 2, 3, ... in
    their order. TaskError if there is none, if they are of two models, if two that cannot be merged have a class
    in common, or as `merge` says.
    """
    if not tasks:
        raise TaskError("Segmenting needs at least one task; got none.")
    count = len({name for task in tasks for name in task.class_names})
    if count > HIGHEST_LABEL:
        raise TaskError(
            f"A label map holds at most {HIGHEST_LABEL} classes; got {count}: use fewer tasks at once."
        )
    groups: list[list[TaskEmbedding]] = []
    for task in tasks:
        task.check_model(tasks[0].model_hash)
        for group in groups:
            if same_footing(group[0], task):
                group.append(task)
                break
        else:
            groups.append([task])
    united = [merge(group) if len(group) > 1 else group[0] for group in groups]
    names = [name for task in united for name in task.class_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(
            "Tasks of different spacing or intensities that are used together have classes of different names; "
            f"{', '.join(twice)} came twice: leave one of the tasks out, or make it with iris_encode --like the other."
        )
    values = [value for task in united for value in task.class_values]
    if len(set(values)) == len(values):
        return tuple(united)
    fresh = iter(range(1, len(values) + 1))
    return tuple(replace(task, class_values=tuple(next(fresh) for _ in task.class_names)) for task in united)


def refuse_own_reference(tasks: Sequence[TaskEmbedding], image: Volume) -> None:
    """ReferenceCaseError if the image is one of the references of the tasks."""
    hashes = {reference for task in tasks for reference in task.reference_hashes}
    if hashes and image_hash(image) in hashes:
        raise ReferenceCaseError(
            "A reference is never its own query; this scan is one of the references of the task: take it "
            "out of the input, or out of the references."
        )


def segment_scan(
    loaded: LoadedModel,
    tasks: Sequence[TaskEmbedding],
    image: Volume,
    options: InferenceOptions | None = None,
    wanted: Wanted | None = None,
    progress: bool = False,
    slab_bytes: int = SLAB_BYTES,
) -> ScanResult:
    """Every class of the tasks (of different classes and values, see `unite`) in one scan; a pass a task, after two
    rough ones where the task is made for them (`second_look.py`).

    A voxel of the label map takes the class of its highest probability above 0.5, the first one of equals; 0
    where there is none. A class that is one piece in every reference keeps its largest piece only (`pieces.py`;
    masks and probabilities keep all). TaskError if a task is of another model, ReferenceCaseError if the image is
    one of the tasks' own references.
    """
    options, wanted = options or InferenceOptions(), wanted or Wanted()
    for task in tasks:
        task.check_model(loaded.model_hash)
    refuse_own_reference(tasks, image)
    labels = np.zeros(image.shape, dtype=np.uint8)
    # Between passes, and to tell the certainty, the highest probability of each voxel has to be known.
    best = np.full(image.shape, THRESHOLD, np.float32) if len(tasks) > 1 or wanted.certainty else None
    result = ScanResult(labels)
    for task in tasks:
        prepared = task.prepare(image)
        match = look_twice(loaded.model, prepared.image, task, options, progress)
        prepared = replace(prepared, image=match(prepared.image))
        result.matchings.update(dict.fromkeys(task.class_names, match))
        turn = prepared.trace.reorientation
        native = prepared.trace.resampling.shape_in
        result.turns.update(dict.fromkeys(task.class_names, turn))
        # Views: what is written in the task's pose lands on the scan's own grid.
        found, highest_yet = turn.view(labels), None if best is None else turn.view(best)
        result.masks.update({name: PackedVolume(native) for name in task.class_names if wanted.masks})
        result.probabilities.update(
            {name: PackedVolume(native) for name in task.class_names if wanted.probabilities}
        )

        def take(
            block: Block,
            task: TaskEmbedding = task,
            found: np.ndarray = found,
            highest_yet: np.ndarray | None = highest_yet,
        ) -> None:
            part = found[block.planes, block.rows]
            highest = (
                np.full(part.shape, THRESHOLD, np.float32)
                if highest_yet is None
                else highest_yet[block.planes, block.rows]
            )
            label_block(block, task.class_values, part, highest)
            _keep(block, task.class_names, result)

        _pass(loaded, task, prepared, options, progress, slab_bytes, take)
    if not options.all_pieces:
        keep_largest(labels, [value for task in tasks for value in task.one_piece().values()])
    classes = {name: value for task in tasks for name, value in task.classes.items()}
    certainty = certainty_of(labels, best, classes) if wanted.certainty and best is not None else {}
    return replace(result, certainty=certainty)


def _pass(
    loaded: LoadedModel,
    task: TaskEmbedding,
    prepared: PreparedCase,
    options: InferenceOptions,
    progress: bool,
    slab_bytes: int,
    take: Callable[[Block], None],
) -> None:
    """One task over one prepared scan; `take` is handed each native block."""
    matrices, native = prepared.trace.resampling.undo_matrices(), prepared.trace.resampling.shape_in
    depth, width = task.patch_size[0] + HALO, prepared.image.shape[2]
    parts = tiles(matrices, native, 4 * len(task.class_names) * depth * width, slab_bytes)
    rows = [tile.prepared for tile in parts]
    focus = look_first(loaded.model, prepared.image, task, options)
    with window_bar(prepared.image.shape, task.patch_size, options, progress, rows, focus) as bar:
        for tile in parts:
            slabs = segment_slabs(
                loaded.model,
                prepared.image,
                task,
                options,
                rows=tile.prepared,
                halo=HALO,
                focus=focus,
                bar=bar,
            )
            for block in blocks(slabs, matrices, native, tile):
                take(block)


def _keep(block: Block, names: Sequence[str], result: ScanResult) -> None:
    """Add a block to the masks and probabilities that are asked for."""
    for k, name in enumerate(names):
        if name in result.probabilities:
            scores = block.scores(k)
            box = (block.planes, block.rows, slice(0, scores.shape[2]))
            result.probabilities[name].put(box, quantise(scores))
        if name in result.masks:
            found = block.scores_above(k, THRESHOLD)
            if found is not None:
                (z, y, x), scores = found
                z = slice(z.start + block.planes.start, z.stop + block.planes.start)
                y = slice(y.start + block.rows.start, y.stop + block.rows.start)
                result.masks[name].put((z, y, x), scores > THRESHOLD)
