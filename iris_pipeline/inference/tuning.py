"""In-context tuning: the model stays frozen, a task's tokens go downhill on its references' loss (Sec. 3.4).

Arrays are [D,H,W] = (z,y,x), prepared at the task's grid; K classes. Nothing here can see a query: the functions
take references only. Steps are counted on a reference that is held out, where references of two subjects or more
are there, and then taken again from the mean of all of them; with one subject augmented copies judge. The tokens of
the wide view (`focus.py`), which say where a second look is worth it, go the same way on the references at half
resolution. Refining lets a voxel head (`voxel_head.py`) go downhill together with the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.examples import Example, draw_example, encode_example, features_loss
from iris_pipeline.inference.focus import shows_less, wide_task
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import (
    PreparedReference,
    ensemble,
    halved_reference,
    with_joined_people,
)
from iris_pipeline.tasks.grey import GreyEvidence
from iris_pipeline.tasks.task import TaskEmbedding, Tuned, View
from iris_pipeline.tasks.voxel_head import VoxelHead
from preprocessing.errors import TaskError
from preprocessing.runtime.progress import Bar

TRAIN_STREAM, JUDGE_STREAM = 0, 1
JudgingCrop = tuple[Example, Sequence[Tensor]]
"""A crop with the features of its image, which no step changes."""
Lesson = tuple[tuple[Tensor, ...], VoxelHead | None]
"""What goes downhill: the tokens of a view, and a head where there is one."""


@dataclass(frozen=True)
class TuningSettings:
    """refine: a voxel head goes downhill, too, at `head_rate`. steps: the most gradient steps (Adam); None: 60, and 120
    where a head has to be learned from nothing. crops: augmented crops a step. check_every: steps between two looks
    at the judging crops, of which there are `judges`; patience: looks without a better loss before it ends.
    """

    refine: bool = False
    steps: int | None = None
    learning_rate: float = 0.03
    head_rate: float = 0.02
    crops: int = 1
    check_every: int = 10
    patience: int = 2
    judges: int = 8
    gain_alone: float = 0.15
    """the share of the judged loss that has to be gained where references are judged by augmented copies of themselves,
    which flatter what was learned by heart; nothing is learned where it is not (LOG.md)"""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.most_steps, self.crops, self.check_every, self.patience, self.judges)
        if not 0 <= self.gain_alone < 1:
            raise TaskError(
                f"The gain that tuning needs is a share of the loss, 0 or more and under 1; got {self.gain_alone}."
            )
        if min(counts) < 1 or not min(self.learning_rate, self.head_rate) > 0:
            raise TaskError(
                "Tuning takes counts of 1 or more and learning rates above 0; got steps, crops, check_every, "
                f"patience, judges {counts} and {self.learning_rate}, {self.head_rate}."
            )

    @property
    def most_steps(self) -> int:
        return self.steps if self.steps is not None else 120 if self.refine else 60


@torch.inference_mode(mode=False)
@torch.enable_grad()  # notebooks often switch gradients off for all that follows
def tune(
    loaded: LoadedModel,
    references: Sequence[PreparedReference],
    tasks: Sequence[TaskEmbedding],
    options: InferenceOptions | None = None,
    settings: TuningSettings | None = None,
    progress: bool = False,
) -> TaskEmbedding:
    """The references' mean task after gradient descent on their loss, with a record a view: `made_by` "tuning", or
    "refining" where the settings ask for a head.

    tasks: the one-shot task of each reference, in the same order; their mean is where tuning starts, and where it
    stays if no step lowers the judged loss. The same scan under two names is one person's. TaskError if there is no
    reference or not one task for each.
    """
    options, settings = options or InferenceOptions(), settings or TuningSettings()
    if not references or len(references) != len(tasks):
        raise TaskError(
            f"Tuning needs references and the task of each; got {len(references)} and {len(tasks)} tasks."
        )
    whole = ensemble(tasks)
    references = with_joined_people(references)
    judge = held_out_subject([r.person for r in references], [t.class_names for t in tasks])
    tutor = _Tutor(loaded, whole, options, settings, "whole resolution")
    start = VoxelHead.begin(len(whole.class_names), settings.seed) if settings.refine else None
    (tokens, head), record = tutor.teach(references, tasks, start, judge, progress)
    made_by = "refining" if settings.refine else "tuning"
    task = replace(whole, tokens=tokens, head=head, made_by=made_by, tuned=(record,))
    if not whole.wide_tokens or not any(shows_less(whole, r.image.shape) for r in references):
        return task  # nobody would look through them
    halved = [halved_reference(reference) for reference in references]
    z, y, x = (max(edges) for edges in zip(*(r.image.shape for r in halved), strict=True))
    views = [wide_task(each, (z, y, x)) for each in tasks]
    plain = replace(settings, refine=False)  # nothing is drawn at half the resolution, only found
    tutor = _Tutor(loaded, wide_task(whole, (z, y, x)), options, plain, "half the resolution")
    (wide, _), record = tutor.teach(halved, views, None, judge, progress)
    return replace(task, wide_tokens=wide, tuned=(*task.tuned, record))


def held_out_subject(subjects: Sequence[str], classes: Sequence[Sequence[str]]) -> str | None:
    """The subject whose references judge the tuning: the last of those that share most classes with the others.

    None if there is one subject only, or if nobody shares a class with another.
    """
    best, most = None, 0
    for subject in dict.fromkeys(subjects):
        own = {name for s, names in zip(subjects, classes, strict=True) if s == subject for name in names}
        rest = {name for s, names in zip(subjects, classes, strict=True) if s != subject for name in names}
        if own & rest and len(own & rest) >= most:
            best, most = subject, len(own & rest)
    return best


@dataclass(frozen=True)
class _Tutor:
    """Makes examples of references and walks tokens down their loss."""

    loaded: LoadedModel
    task: TaskEmbedding
    options: InferenceOptions
    settings: TuningSettings
    view: View = "whole resolution"

    def teach(
        self,
        references: Sequence[PreparedReference],
        tasks: Sequence[TaskEmbedding],
        head: VoxelHead | None,
        judge: str | None,
        progress: bool,
    ) -> tuple[Lesson, Tuned]:
        """The tuned tokens of one view, with the head if it began with one, and their record. judge: the subject held
        out while steps are counted; None: augmented crops judge.
        """
        steps = self.settings.most_steps
        whole: Lesson = (self.task.tokens, head)
        if judge is None:
            judges = self.judging(references, augmented=True)
            kept, steps, before, after = self.descend(whole, self.task, references, judges, steps, progress)
            if after > (1 - self.settings.gain_alone) * before:
                kept, steps, after = _copy(whole), 0, before
        else:
            others = [i for i, r in enumerate(references) if r.person != judge]
            held = [r for r in references if r.person == judge]
            begin = ensemble([tasks[i] for i in others])
            missing = [name for name in self.task.class_names if name not in begin.class_names]
            if missing:  # no other reference shows them: they are tuned with the rest, but cannot be judged
                begin = ensemble([begin, self.task.select(missing)])
            begin = begin.select(self.task.class_names)  # in the order of the masks that it is judged by
            judges = self.judging(held, augmented=False)
            _, steps, before, after = self.descend(
                (begin.tokens, head), begin, [references[i] for i in others], judges, steps, progress
            )
            kept = self.descend(whole, self.task, references, [], steps, progress)[0]
        record = Tuned(
            view=self.view,
            steps=steps,
            learning_rate=self.settings.learning_rate,
            seed=self.settings.seed,
            loss_before=before,
            loss=after,
            judged_by="augmented reference" if judge is None else "held-out reference",
        )
        return kept, record

    def judging(self, references: Sequence[PreparedReference], augmented: bool) -> list[JudgingCrop]:
        """Crops that stay the same from look to look, and so do their features."""
        judges: list[JudgingCrop] = []
        for number in range(self.settings.judges):
            rng = np.random.default_rng((self.settings.seed, JUDGE_STREAM, number))
            example = self.example(references[number % len(references)], rng, augmented)
            judges.append((example, encode_example(self.loaded.model, example, self.options)))
        return judges

    def example(self, reference: PreparedReference, rng: np.random.Generator, augmented: bool) -> Example:
        """A crop round a random class of the reference, or (ANYWHERE) from anywhere in it."""
        return draw_example(
            reference,
            self.task.class_names,
            self.task.patch_size,
            rng,
            augmented=augmented,
            device=self.options.device,
        )

    def descend(
        self,
        start: Lesson,
        task: TaskEmbedding,
        references: Sequence[PreparedReference],
        judges: Sequence[JudgingCrop],
        steps: int,
        progress: bool,
    ) -> tuple[Lesson, int, float, float]:
        """What was learned by descent, the steps it took, and the judged loss before and after.

        task: whose grey evidence stays as it is: that of the references learned from, never of the one that judges.
        With judges the best that was looked at is kept; without, what there is after the last step.
        """
        settings = self.settings
        learned = _copy(start, self.options.device)
        tokens, head = learned
        groups: list[dict[str, Any]] = [{"params": list(tokens), "lr": settings.learning_rate}]
        if head is not None:
            groups.append({"params": list(head.parts), "lr": settings.head_rate})
        leaves: list[Tensor] = [tensor for group in groups for tensor in group["params"]]
        for tensor in leaves:
            tensor.requires_grad_()
        optimiser = torch.optim.Adam(groups)
        grey = task.grey.to(self.options.device) if task.grey is not None else None
        before = self.loss(learned, grey, judges)
        best, best_step, lowest, looks = _copy(learned), 0, before, 0
        with (
            _frozen(self.loaded.model),
            Bar(
                total=steps,
                desc=f"Tuning at {self.view}",
                unit="step",
                leave=False,
                disable=not progress or steps == 0,
            ) as bar,
        ):
            for step in range(steps):
                optimiser.zero_grad()
                for crop in range(settings.crops):
                    number = step * settings.crops + crop
                    rng = np.random.default_rng((settings.seed, TRAIN_STREAM, number))
                    example = self.example(references[number % len(references)], rng, augmented=True)
                    features = encode_example(self.loaded.model, example, self.options)
                    loss = self._loss_of(learned, grey, example, features) / settings.crops
                    # These alone: another thread that ends its tuning unfreezes the weights of both.
                    loss.backward(inputs=leaves)
                optimiser.step()
                bar.update()
                if judges and ((step + 1) % settings.check_every == 0 or step + 1 == steps):
                    judged = self.loss(learned, grey, judges)
                    bar.set_postfix_str(f"judged loss {before:.3f} -> {judged:.3f}")
                    looks += 1
                    if judged < lowest:
                        best, best_step, lowest, looks = _copy(learned), step + 1, judged, 0
                    if looks >= settings.patience:
                        break
        if not judges:
            return _copy(learned), steps, before, before
        return best, best_step, before, lowest

    def loss(self, learned: Lesson, grey: GreyEvidence | None, judges: Sequence[JudgingCrop]) -> float:
        """Mean loss over the judging crops; NaN without any."""
        with torch.inference_mode():
            losses = [float(self._loss_of(learned, grey, *judge)) for judge in judges]
        return float(np.mean(losses)) if losses else float("nan")

    def _loss_of(
        self, learned: Lesson, grey: GreyEvidence | None, example: Example, features: Sequence[Tensor]
    ) -> Tensor:
        tokens, head = learned
        return features_loss(self.loaded.model, tokens, features, example, self.options, head, grey)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the weights: they would cost time and are not wanted."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _copy(lesson: Lesson, device: str = "cpu") -> Lesson:
    """The same numbers in new tensors, without their history."""

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().float().to(device, copy=True)

    tokens, head = lesson
    return tuple(copied(level) for level in tokens), (
        VoxelHead(*(copied(part) for part in head.parts)) if head is not None else None
    )
