"""In-context tuning: the model stays frozen, a task's tokens go downhill on its references' loss (Sec. 3.4).

Arrays are [D,H,W] = (z,y,x), prepared at the task's grid; K classes. Nothing here can see a query: the functions
take references only. Steps are counted on a reference that is held out, where references of two subjects or more
are there, and then taken again from the mean of all of them; with one subject augmented copies judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.examples import Example, draw_example, tokens_loss
from iris_pipeline.predict import InferenceOptions
from iris_pipeline.strategies import PreparedReference, ensemble
from iris_pipeline.task import TaskEmbedding, Tuned
from preprocessing.errors import TaskError

TRAIN_STREAM, JUDGE_STREAM = 0, 1


@dataclass(frozen=True)
class TuningSettings:
    """steps: the most gradient steps (Adam). crops: augmented crops a step. check_every: steps between two looks
    at the judging crops, of which there are `judges`; patience: looks without a better loss before it ends.
    """

    steps: int = 60
    learning_rate: float = 0.03
    crops: int = 1
    check_every: int = 10
    patience: int = 2
    judges: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.steps, self.crops, self.check_every, self.patience, self.judges)
        if min(counts) < 1 or not self.learning_rate > 0:
            raise TaskError(
                "Tuning takes counts of 1 or more and a learning rate above 0; got steps, crops, check_every, "
                f"patience, judges {counts} and {self.learning_rate}."
            )


def tune(
    loaded: LoadedModel,
    references: Sequence[PreparedReference],
    tasks: Sequence[TaskEmbedding],
    options: InferenceOptions | None = None,
    settings: TuningSettings | None = None,
    progress: bool = False,
) -> TaskEmbedding:
    """The references' mean task after gradient descent on their loss: `made_by` "tuning", with its record.

    tasks: the one-shot task of each reference, in the same order; their mean is where tuning starts, and where it
    stays if no step lowers the judged loss. TaskError if there is no reference or not one task for each.
    """
    options, settings = options or InferenceOptions(), settings or TuningSettings()
    if not references or len(references) != len(tasks):
        raise TaskError(
            f"Tuning needs references and the task of each; got {len(references)} and {len(tasks)} tasks."
        )
    whole = ensemble(tasks)
    tutor = _Tutor(loaded, whole, options, settings)
    judge = held_out_subject([r.subject or r.id for r in references], [t.class_names for t in tasks])
    if judge is None:
        examples = tutor.judging(references, augmented=True)
        kept, steps, before, after = tutor.descend(whole, references, examples, settings.steps, progress)
    else:
        others = [i for i, r in enumerate(references) if (r.subject or r.id) != judge]
        held = [r for r in references if (r.subject or r.id) == judge]
        begin = ensemble([tasks[i] for i in others])
        missing = [name for name in whole.class_names if name not in begin.class_names]
        if missing:  # no other reference shows them: they are tuned with the rest, but cannot be judged
            begin = ensemble([begin, whole.select(missing)]).select(whole.class_names)
        examples = tutor.judging(held, augmented=False)
        _, steps, before, after = tutor.descend(
            begin, [references[i] for i in others], examples, settings.steps, progress
        )
        kept = tutor.descend(whole, references, [], steps, progress)[0]
    record = Tuned(
        steps=steps,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        loss_before=before,
        loss=after,
        judged_by="augmented reference" if judge is None else "held-out reference",
    )
    return replace(whole, tokens=kept, made_by="tuning", tuned=(record,))


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

    def judging(self, references: Sequence[PreparedReference], augmented: bool) -> list[Example]:
        """Crops that stay the same from look to look."""
        streams = [(self.settings.seed, JUDGE_STREAM, i) for i in range(self.settings.judges)]
        return [
            self.example(references[i % len(references)], np.random.default_rng(stream), augmented)
            for i, stream in enumerate(streams)
        ]

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
        start: TaskEmbedding,
        references: Sequence[PreparedReference],
        judges: Sequence[Example],
        steps: int,
        progress: bool,
    ) -> tuple[tuple[Tensor, ...], int, float, float]:
        """Tokens after descent, the steps they took, and the judged loss before and after.

        With judges the best looked-at tokens are kept; without, those after the last step.
        """
        settings = self.settings
        tokens = [level.clone().to(self.options.device).requires_grad_() for level in start.tokens]
        optimiser = torch.optim.Adam(tokens, lr=settings.learning_rate)
        before = self.loss(tokens, judges)
        best, best_step, lowest, looks = _copy(tokens), 0, before, 0
        with (
            _frozen(self.loaded.model),
            tqdm(
                total=steps, desc="Tuning", unit="step", leave=False, disable=not progress or steps == 0
            ) as bar,
        ):
            for step in range(steps):
                optimiser.zero_grad()
                for crop in range(settings.crops):
                    number = step * settings.crops + crop
                    rng = np.random.default_rng((settings.seed, TRAIN_STREAM, number))
                    example = self.example(references[number % len(references)], rng, augmented=True)
                    (self._loss_of(tokens, example) / settings.crops).backward()
                optimiser.step()
                bar.update()
                if judges and ((step + 1) % settings.check_every == 0 or step + 1 == steps):
                    loss = self.loss(tokens, judges)
                    bar.set_postfix_str(f"judged loss {before:.3f} -> {loss:.3f}")
                    looks += 1
                    if loss < lowest:
                        best, best_step, lowest, looks = _copy(tokens), step + 1, loss, 0
                    if looks >= settings.patience:
                        break
        if not judges:
            return _copy(tokens), steps, before, before
        return best, best_step, before, lowest

    def loss(self, tokens: Sequence[Tensor], examples: Sequence[Example]) -> float:
        """Mean loss over examples; NaN without any."""
        with torch.no_grad():
            losses = [float(self._loss_of(tokens, example)) for example in examples]
        return float(np.mean(losses)) if losses else float("nan")

    def _loss_of(self, tokens: Sequence[Tensor], example: Example) -> Tensor:
        return tokens_loss(self.loaded.model, tokens, example, self.options)


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


def _copy(tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(level.detach().float().cpu().clone() for level in tokens)
