"""Ways to show references to the network, on trial: how well does it segment one reference from another in each?

Arrays are [D,H,W] = (z,y,x). The masks of references are known, so a way of showing them can be judged by the training
loss: of the task that the others give on crops of one, or, with one subject only, of its own task on augmented crops of
it. No query has a part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.examples import Example, draw_example, tokens_loss
from iris_pipeline.inference.pool import content_key
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import (
    PreparedReference,
    class_boxes,
    ensemble,
    join_people,
    one_shot,
    who_is_who,
)
from iris_pipeline.sampling.synthetic import Orientation
from iris_pipeline.search.pose import turned_plan, turned_reference
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.orientation import parse_axes
from preprocessing.plan import Plan
from preprocessing.runtime.progress import Bar


def of_different_subjects(references: Iterable[PreparedReference], count: int) -> list[PreparedReference]:
    """`count` that show a class, one a subject before any second one; no more are read than that takes."""
    firsts: dict[str, PreparedReference] = {}
    rest = []
    for reference in references:
        subject = reference.person
        if not class_boxes(reference):
            continue
        if subject in firsts:
            rest.append(reference)
        else:
            firsts[subject] = reference
        if len(firsts) == count:
            break
    return [*firsts.values(), *rest][:count]


@dataclass(frozen=True)
class Trial:
    """Poses on trial at one resolution: upright references at a plan. kept: tasks by content, filled as they come."""

    loaded: LoadedModel
    upright: Sequence[PreparedReference]
    plan: Plan
    options: InferenceOptions
    seed: int
    kept: dict[str, TaskEmbedding]
    progress: bool
    where: str = ""
    """said on the progress bar"""
    _known: dict[tuple[str, int], float] = field(default_factory=dict, init=False)
    """losses by pose and number of the judging crop"""

    @cached_property
    def classes(self) -> list[set[str]]:
        """What each reference shows."""
        return [set(class_boxes(reference)) for reference in self.upright]

    @cached_property
    def of_one_person(self) -> bool:
        """Whether each can be judged by itself only."""
        return len(set(who_is_who(self.upright))) == 1

    def losses(self, poses: Iterable[str], numbers: Sequence[int]) -> dict[str, float]:
        """The sum of each pose's loss over the judging crops of these numbers."""
        poses = list(poses)
        title = f"{len(poses)} poses{self.where} on {len(numbers)} crops"
        with Bar(poses, desc=title, unit="pose", leave=False, disable=not self.progress) as bar:
            return {axes: self._loss(axes, numbers) for axes in bar}

    def _loss(self, axes: str, numbers: Sequence[int]) -> float:
        """The sum over these crops; none is segmented twice."""
        missing = [number for number in numbers if (axes, number) not in self._known]
        tasks = self.tasks(axes) if missing else []
        for number in missing:
            task, _, example = self.lesson(axes, tasks, number)
            with torch.inference_mode():
                loss = tokens_loss(self.loaded.model, task.tokens, example, self.options)
            self._known[axes, number] = float(loss)
        return sum(self._known[axes, number] for number in numbers)

    def lesson(
        self, axes: str, tasks: Sequence[TaskEmbedding], number: int
    ) -> tuple[TaskEmbedding, bool, Example]:
        """The judging crop of this number in a pose, what it is segmented by, and whether that is its reference alone.

        tasks: of each reference, in this pose.
        """
        which = number % len(self.upright)
        task, alone = teachers(tasks, self.upright, which)
        # Drawn upright and then turned, so that every pose is asked for the very same crops.
        example = draw_example(
            self.upright[which],
            task.class_names,
            self.plan.patch_size,
            np.random.default_rng((self.seed, number)),
            augmented=alone,
            anywhere=0.0,
            device=self.options.device,
        )
        return task, alone, _turned(example, axes)

    def tasks(self, axes: str) -> list[TaskEmbedding]:
        """The task of each reference in a pose."""
        return [self._task(number, axes) for number in range(len(self.upright))]

    def _task(self, which: int, axes: str) -> TaskEmbedding:
        """The task of one reference in a pose."""
        plan = turned_plan(self.plan, axes)
        key = content_key(self.loaded.model_hash, self.options.autocast, plan, self._content[which])
        if key not in self.kept:
            self.kept[key] = one_shot(
                self.loaded.model,
                turned_reference(self.upright[which], axes),
                plan,
                model_hash=self.loaded.model_hash,
                options=self.options,
            )
        return self.kept[key]

    @cached_property
    def _content(self) -> list[str]:
        return [content_key(r.image, r.labels, sorted(r.classes.items())) for r in self.upright]


def teachers(
    tasks: Sequence[TaskEmbedding], references: Sequence[PreparedReference], which: int
) -> tuple[TaskEmbedding, bool]:
    """The task of the other subjects' references; of the reference itself, and True, where they share no class."""
    people = join_people([r.person for r in references], [r.image_hash for r in references])
    names = set(tasks[which].class_names)
    others = [
        task.select([name for name in task.class_names if name in names])
        for number, task in enumerate(tasks)
        if people[number] != people[which] and names & set(task.class_names)
    ]
    return (ensemble(others), False) if others else (tasks[which], True)


def _turned(example: Example, axes: str) -> Example:
    turn = parse_axes(axes)
    flipped = tuple(number for number, (_, flip) in enumerate(turn) if flip)
    orientation = Orientation((turn[0][0], turn[1][0], turn[2][0]), flipped)
    return Example(orientation.apply(example.image), orientation.apply(example.masks), example.valid)
