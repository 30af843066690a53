"""The value a reference becomes: a task embedding (`task_file.py` writes it).

K classes; m context tokens; C_l channels of task level l. `spacing_mm` and `patch_size` are (z,y,x), as
everywhere.
A task holds no image: it can be shared where images may not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from iris_pipeline.model import TaskTokens
from iris_pipeline.tasks.grey import GreyEvidence, mix_evidence
from iris_pipeline.tasks.pieces import ONE_PIECE
from iris_pipeline.tasks.voxel_head import VoxelHead, mix
from preprocessing.case import PreparedCase, preprocess_case
from preprocessing.errors import TaskError
from preprocessing.normalise import Normalisation
from preprocessing.orientation import RAS, Pose
from preprocessing.spec import Modality
from preprocessing.volume import Volume

View = Literal["whole resolution", "half the resolution"]
Surroundings = tuple[float, float]
"""mean and spread of the grey values in the box round a class; spread 0 where they are not known"""
Deviation = tuple[float, float]
"""how far two surroundings are apart: their means, and the logarithms of their spreads"""


class Tuned(BaseModel):
    """How in-context tuning made a task's tokens from its references.

    view: the tokens it speaks of, `tokens` or `wide_tokens` of the task.
    steps: gradient steps kept, 0 where none helped. loss_before, loss: at the untuned and at the kept tokens,
    on what `judged_by` names: the reference held out from the tuning, or augmented copies of the only one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: View
    steps: int
    learning_rate: float
    seed: int
    loss_before: float
    loss: float
    judged_by: Literal["held-out reference", "augmented reference"]


@dataclass(frozen=True)
class TaskEmbedding:
    """T of the paper (Sec. 3.2) for K named classes, with all that brings a query to the same footing.

    class_names: one name per class, in the order of the tokens.
    tokens: one tensor per task level, each [1,K,m+1,C_l]; token 0 begins as the foreground token.
    wide_tokens: the same at half the resolution (`focus.py`); () where the model or a reference has none.
    spacing_mm, patch_size: grid of the references (mm) and window of the network (voxels), both (z,y,x).
    normalisation, intensity_offset, modality: intensities of the references; the offset is added before
    clipping.
    pose: how scans are shown to the network (`pose.py`); spacing and patch are in the order of its axes.
    references: how many labelled references it was made from (0: the memory bank).
    largest_pieces: per class the least share of its voxels that one connected piece holds, over its references
    (`pieces.py`); 0 where it is not known; () means that of none.
    class_references: how many of them show each class; () means all of them. Merging weighs by these.
    model_hash: the weights it belongs to; tokens of one model mean nothing to another.
    made_by: the strategy. created: ISO time, or "" so that equal references give equal bytes.
    tuned: a record for each tuning that the tokens went through.
    reference_hashes: content hashes of the reference images, so that a reference is never its own query.
    head: what refining added to the tokens (`voxel_head.py`); None where nobody refined them.
    grey: what the references' grey values add to logits (`grey.py`); None where they count for nothing.
    surroundings: per class, over its references, what a scan's grey values are matched to before it is segmented a
    second time (`second_look.py`); () where it is segmented once.
    usual: a scan whose surroundings are no farther off is segmented as it is. Of a memory bank: what most of the cases
    that trained it have; (0, 0) of references, with which every scan is compared.
    class_values: value of each class in the references' label maps and so in the results (1..255); () means
    1..K.
    """

    class_names: tuple[str, ...]
    tokens: TaskTokens
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    normalisation: Normalisation
    intensity_offset: float
    modality: Modality
    references: int
    model_hash: str
    made_by: str
    created: str = ""
    reference_hashes: tuple[str, ...] = ()
    class_values: tuple[int, ...] = ()
    class_references: tuple[int, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    largest_pieces: tuple[float, ...] = ()
    wide_tokens: TaskTokens = ()
    pose: Pose = RAS
    head: VoxelHead | None = None
    grey: GreyEvidence | None = None
    surroundings: tuple[Surroundings, ...] = ()
    usual: Deviation = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise TaskError(
                f"A task needs one or more classes of different names; got {list(self.class_names)}."
            )
        for level in (*self.tokens, *self.wide_tokens):
            if level.ndim != 4 or level.shape[:2] != (1, len(self.class_names)):
                raise TaskError(
                    f"Each level of a task's tokens must be [1,{len(self.class_names)},m+1,C] for its "
                    f"classes {', '.join(self.class_names)}; got {list(level.shape)}."
                )
        if not self.class_values:
            object.__setattr__(self, "class_values", tuple(range(1, len(self.class_names) + 1)))
        values = self.class_values
        if not len(set(values)) == len(values) == len(self.class_names) or not all(
            1 <= v <= 255 for v in values
        ):
            raise TaskError(
                f"Each class of a task needs a value of its own in 1..255; {', '.join(self.class_names)} got "
                f"{list(values)}."
            )
        if not self.largest_pieces:
            object.__setattr__(self, "largest_pieces", (0.0,) * len(self.class_names))
        if len(self.largest_pieces) != len(self.class_names):
            raise TaskError(
                f"A task knows the largest piece of each of its {len(self.class_names)} classes or of none; got "
                f"{list(self.largest_pieces)}."
            )
        if len(self.surroundings) not in (0, len(self.class_names)):
            raise TaskError(
                f"A task knows the surroundings of each of its {len(self.class_names)} classes or of none; got "
                f"{list(self.surroundings)}."
            )
        if not self.class_references:
            object.__setattr__(self, "class_references", (self.references,) * len(self.class_names))
        if len(self.class_references) != len(self.class_names) or min(self.class_references) < 0:
            raise TaskError(
                f"A task counts the references of each of its {len(self.class_names)} classes; got "
                f"{list(self.class_references)}."
            )

    @property
    def classes(self) -> dict[str, int]:
        """Class name -> value in label maps."""
        return dict(zip(self.class_names, self.class_values, strict=True))

    def one_piece(self) -> dict[str, int]:
        """Those of `classes` that are one piece in every reference."""
        shares = zip(self.classes.items(), self.largest_pieces, strict=True)
        return {name: value for (name, value), share in shares if share >= ONE_PIECE}

    def select(self, names: Sequence[str]) -> TaskEmbedding:
        """The same task with only these classes, in this order; TaskError names one that it lacks."""
        missing = [name for name in names if name not in self.class_names]
        if missing:
            raise TaskError(
                f"This task knows the classes {', '.join(self.class_names)}; asked for {', '.join(missing)}: "
                "choose among its own or encode a reference that shows them."
            )
        rows = [self.class_names.index(name) for name in names]
        return replace(
            self,
            class_names=tuple(names),
            class_values=tuple(self.class_values[row] for row in rows),
            class_references=tuple(self.class_references[row] for row in rows),
            largest_pieces=tuple(self.largest_pieces[row] for row in rows),
            tokens=tuple(level[:, rows] for level in self.tokens),
            wide_tokens=tuple(level[:, rows] for level in self.wide_tokens),
            head=self.head.select(rows) if self.head is not None else None,
            grey=self.grey.select(rows) if self.grey is not None else None,
            surroundings=tuple(self.surroundings[row] for row in rows if self.surroundings),
        )

    def prepare(self, image: Volume, labels: Volume | None = None) -> PreparedCase:
        """A scan, with a label map of it, brought to the grid, pose and intensities of the references; errors as of
        `preprocess_case`.
        """
        return preprocess_case(
            image, self.spacing_mm, self.normalisation, labels, self.intensity_offset, self.pose
        )

    def check_model(self, model_hash: str) -> None:
        """TaskError unless the task was encoded by the model of this hash."""
        if self.model_hash != model_hash:
            raise TaskError(
                f"A task serves only the model that encoded it: this one is of model {self.model_hash[:12]}, "
                f"the model in use is {model_hash[:12]}; encode the references again with iris_encode, or "
                "name the other model with -m."
            )


def same_footing(first: TaskEmbedding, other: TaskEmbedding) -> bool:
    """Whether two tasks share model, grid, pose and intensities, so that their tokens may be mixed."""

    def footing(task: TaskEmbedding) -> tuple[Any, ...]:
        grid = task.spacing_mm, task.patch_size, task.pose
        return task.model_hash, grid, task.normalisation, task.intensity_offset

    return footing(first) == footing(other)


def least_pieces(tasks: Sequence[TaskEmbedding], names: Sequence[str]) -> tuple[float, ...]:
    """For each class the least of the tasks' `largest_pieces` that have it."""
    return tuple(
        min(t.largest_pieces[t.class_names.index(name)] for t in tasks if name in t.class_names)
        for name in names
    )


def merge(tasks: Sequence[TaskEmbedding]) -> TaskEmbedding:
    """Tasks on one footing -> one task with all of their classes (Sec. 3.2), and with all of their references.

    A class that several tasks have gets the mean of its tokens, weighted by each task's references of it: the
    mean over all references. Values that different classes share make way for 1..K. TaskError if model, grid or
    intensities differ, if a class comes from the same reference twice, or if one of its sources is a memory
    bank, which counts no references.
    """
    if not tasks:
        raise TaskError("Merging needs at least one task; got none.")
    first = tasks[0]
    for task in tasks[1:]:
        if not same_footing(first, task):
            raise TaskError(
                "Tasks can be merged only if they share model, spacing, patch size, pose and intensities; "
                f"{'/'.join(first.class_names)} ({_footing_text(first)}) and {'/'.join(task.class_names)} "
                f"({_footing_text(task)}) differ: encode the references together, or the one set with "
                "iris_encode --like the other's task."
            )
    values: dict[str, int] = {}
    for task in tasks:
        for name, value in task.classes.items():
            values.setdefault(name, value)
    having = {name: [task for task in tasks if name in task.class_names] for name in values}
    means = {name: _mean_of(name, those) for name, those in having.items()}
    wide = [_mean_of(name, those, wide=True)[0] for name, those in having.items()] if all_wide(tasks) else []
    hashes = tuple(dict.fromkeys(h for task in tasks for h in task.reference_hashes))
    counted = all(len(task.reference_hashes) == task.references for task in tasks)
    return replace(
        first,
        class_names=tuple(values),
        class_values=tuple(values.values()) if len(set(values.values())) == len(values) else (),
        class_references=tuple(count for _, count in means.values()),
        largest_pieces=least_pieces(tasks, list(values)),
        tokens=tuple(torch.stack(level)[None] for level in zip(*(m for m, _ in means.values()), strict=True)),
        wide_tokens=tuple(torch.stack(level)[None] for level in zip(*wide, strict=True)),
        **added_parts({n: shares_of(n, those, [_count(n, t) for t in those]) for n, those in having.items()}),
        references=len(hashes) if counted else sum(task.references for task in tasks),
        made_by=" + ".join(dict.fromkeys(task.made_by for task in tasks)),
        created=max(task.created for task in tasks),
        reference_hashes=hashes,
        tuned=tuple(dict.fromkeys(record for task in tasks for record in task.tuned)),
    )


def _count(name: str, task: TaskEmbedding) -> int:
    return task.class_references[task.class_names.index(name)]


ShareOfTask = tuple[TaskEmbedding, int, float]
"""A task, the row of a class in it, and its share of the mean."""


def shares_of(name: str, tasks: Sequence[TaskEmbedding], counts: Sequence[int]) -> list[ShareOfTask]:
    """How much each of the tasks that have a class says of it; counts: of references, by which they weigh."""
    total = max(1, sum(counts))
    if len(tasks) == 1:
        return [(tasks[0], tasks[0].class_names.index(name), 1.0)]
    return [
        (task, task.class_names.index(name), count / total) for task, count in zip(tasks, counts, strict=True)
    ]


def added_parts(shares: Mapping[str, Sequence[ShareOfTask]]) -> dict[str, Any]:
    """`head`, `grey`, `surroundings` and what of these is `usual`, of a task whose classes are means of other tasks';
    shares: by class, in its order.
    """
    heads = [[(task.head, row, part) for task, row, part in each] for each in shares.values()]
    greys = [[(task.grey, row, part) for task, row, part in each] for each in shares.values()]
    around = tuple(_mean_surroundings(each) for each in shares.values())
    usual = [task.usual for each in shares.values() for task, _, _ in each if task.surroundings]
    return {
        "head": mix(heads),
        "grey": mix_evidence(greys),
        "surroundings": around if any(spread for _, spread in around) else (),
        "usual": tuple(map(min, zip(*usual, strict=True))) if usual else (0.0, 0.0),
    }


def _mean_surroundings(shares: Sequence[ShareOfTask]) -> Surroundings:
    """Of a class, over the tasks that know them."""
    known = [(task.surroundings[row], part) for task, row, part in shares if task.surroundings]
    known = [(around, part) for around, part in known if around[1] > 0 and part > 0]
    total = sum(part for _, part in known)
    if not total:
        return 0.0, 0.0
    mean, spread = (sum(around[i] * part for around, part in known) / total for i in range(2))
    return mean, spread


def all_wide(tasks: Sequence[TaskEmbedding]) -> bool:
    """Whether all tasks have tokens for the wide view, so that they can be mixed."""
    return all(task.wide_tokens for task in tasks)


def _mean_of(name: str, tasks: Sequence[TaskEmbedding], wide: bool = False) -> tuple[list[Tensor], int]:
    """A class's tokens [m+1,C_l] of each level, averaged by reference count over tasks, and the count."""
    rows = [task.class_names.index(name) for task in tasks]
    counts = [task.class_references[row] for task, row in zip(tasks, rows, strict=True)]
    tokens = [task.wide_tokens if wide else task.tokens for task in tasks]
    levels = range(len(tokens[0]))
    if len(tasks) == 1:
        return [tokens[0][level][0, rows[0]] for level in levels], counts[0]
    hashes = [h for task in tasks for h in task.reference_hashes]
    if len(set(hashes)) < len(hashes):
        raise TaskError(
            f"Each reference of a class counts once; class '{name}' is in several of these tasks, and they share "
            "a reference image: take the class out of one of them (encode it without), or that reference."
        )
    if min(counts) == 0:
        raise TaskError(
            f"Tokens of a class are averaged by their number of references; class '{name}' comes from the memory "
            "bank in one of the tasks, which counts none: merge tasks of references only."
        )
    total = sum(counts)
    means = [
        sum(
            (
                each[level][0, row].float() * (count / total)
                for each, row, count in zip(tokens, rows, counts, strict=True)
            ),
            start=torch.zeros((), dtype=torch.float32),
        )
        for level in levels
    ]
    return means, total


def _footing_text(task: TaskEmbedding) -> str:
    spacing, patch = (" x ".join(f"{v:g}" for v in triple) for triple in (task.spacing_mm, task.patch_size))
    return (
        f"model {task.model_hash[:12]}, {spacing} mm, {patch} voxels, pose {task.pose.axes}, {task.modality}"
    )
