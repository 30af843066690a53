"""How references and queries are shown to the network: the pose and the scale at which it reads the references best.

Arrays are [D,H,W] = (z,y,x). The pose: see `pose.py`. The scale: a plan takes the spacing (mm) at which the references'
objects fill the crop, the rule of the datasets that were trained on; yet what is new to the network may look to it like
something that it knows at another size. Both are searched for on the references alone, whose masks are known
(`trial.py`). Where the network reads them badly at best, they are tried once more in other tones (`toning.py`). The
task's spacing, pose and intensities say what was found, and every query is shown alike. The paper knows no such search:
this one is ours (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as cache_calls
from typing import Any

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.pool import Embedded, EmbeddingCache, content_key
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import Prepare, PreparedReference, who_is_who
from iris_pipeline.search.grey_weights import (
    Weighing,
    WeightSettings,
    grey_evidence,
    losses_by_weight,
    with_grey,
)
from iris_pipeline.search.pose import (
    POSES,
    SEARCH,
    in_frame_of,
    pose_named,
    turned_plan,
    turned_reference,
)
from iris_pipeline.search.second_look import with_surroundings
from iris_pipeline.search.toning import ALWAYS, NEVER, toned_plan, toning_named
from iris_pipeline.search.trial import Trial, of_different_subjects
from preprocessing.errors import PredictionError
from preprocessing.orientation import UPRIGHT
from preprocessing.plan import Plan
from preprocessing.runtime.progress import Bar

Shown = tuple[Plan, Sequence[PreparedReference]]
"""an upright plan, and references prepared at it"""
SMALLEST, LARGEST = 0.25, 4.0
HEAVIEST = 10.0
"""of weights of grey values: beyond it the network has no say"""


@dataclass(frozen=True)
class Showing:
    """What is wanted: a pose, three letters or "auto"; a scale, how many times the planned spacing or "auto"; the
    weight of the references' grey values (`grey_weights.py`), a number or "auto"; how many looks a scan is given, 1
    or 2 (`second_look.py`); and whether it has tones of its own (`toning.py`), "auto", "always" or "never".
    """

    pose: str = SEARCH
    scale: float | str = SEARCH
    grey: float | str = SEARCH
    looks: int = 2
    tones: str = SEARCH

    @classmethod
    def of(
        cls, pose: str, scale: float | str, grey: float | str = SEARCH, looks: int = 2, tones: str = SEARCH
    ) -> Showing:
        """From what a user says; PredictionError for what is neither."""
        if looks not in (1, 2):
            raise PredictionError(f"`looks`, how often a scan is looked at, is 1 or 2; got {looks!r}.")
        return cls(pose_named(pose), scale_named(scale), grey_named(grey), looks, toning_named(tones))

    def describe(self) -> dict[str, Any]:
        """What results depend on, beside the pose and the scale that their references.json names."""
        said: dict[str, Any] = {"grey": self.grey, "looks": self.looks}
        if self.tones != SEARCH:
            said["tones"] = self.tones
        return said | self.rules

    @property
    def rules(self) -> dict[str, int]:
        """By which rules it is searched, where it is: for predict.json, too."""
        searched = SEARCH in (self.pose, self.scale, self.grey) or self.tones == ALWAYS
        return {"search_rules": SEARCH_RULES} if searched else {}


SEARCH_RULES = 8
"""another number where what a search finds may change by more than its settings: what was kept is not used then, and
masks of before are not gone on with"""

SEARCHED = Showing()
AS_PLANNED = Showing(UPRIGHT, 1.0, 0.0, 1, NEVER)


@dataclass(frozen=True)
class SearchSettings:
    """How poses and scales are tried; scales are multiples of the planned spacing.

    references: how many take part, of as many subjects as there are. All poses are tried at the first of `pose_scales`
    by `first_judges` crops of them, the `rivals` best at all of these scales by `judges`. The planned spacing is not
    among them: there the network reads no reference of a new kind well in any pose, and chance decides (LOG.md). Of
    these the `finalists` best, and the upright pose, are judged at every one of `scales` by `final_judges` with their
    grey values. pose_gain, gain: the share of the loss of the upright pose, or of the planned spacing, by which another
    must be better. near: of scales whose loss is above the least by no more than this share, the finest is taken, as it
    follows finer edges; coarser ones than these lose edges that tuning could still learn. near_alone: the same where
    all references are of one person, which do not tell how much larger others are: what outgrows its window is lost.
    badly: from this loss on the network does not read the references, and other tones are tried, in which no spacing is
    one that it knows such structures at: several people's references need no gain there. tones_gain: the share of the
    loss by which other tones must be better.
    """

    references: int = 3
    pose_scales: tuple[float, ...] = (2.0, 1.6, 1.25)
    first_judges: int = 2
    rivals: int = 12
    judges: int = 4
    finalists: int = 4
    scales: tuple[float, ...] = (1.0, 1.25, 1.6)
    final_judges: int = 8
    pose_gain: float = 0.05
    gain: float = 0.1
    near: float = 0.3
    near_alone: float = 0.1
    badly: float = 0.6
    tones_gain: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Search:
    """Trials of references at several scales. shown_at: for a scale the upright plan and the references prepared at it,
    each with a class or more. grey: the weight that their grey values will have, or "auto". cache: keeps what a
    reference becomes as it is tried, for other sets of which it is one. toned: they are shown in other tones.
    """

    loaded: LoadedModel
    shown_at: Callable[[float], Shown]
    grey: float | str = SEARCH
    options: InferenceOptions = field(default_factory=InferenceOptions)
    settings: SearchSettings = field(default_factory=SearchSettings)
    cache: EmbeddingCache = field(default_factory=EmbeddingCache)
    progress: bool = False
    toned: bool = False
    _trials: dict[float, Trial] = field(default_factory=dict, init=False)
    _shown: dict[tuple[str, float], float] = field(default_factory=dict, init=False)

    def found(self, pose: str, scale: float | str) -> tuple[str, float, float]:
        """Pose and scale, searched for where they are "auto", and what the references lose there."""
        if pose == SEARCH:
            pose, scale = self.showing(None if scale == SEARCH else float(scale))
        elif scale == SEARCH:
            scale = self.scale(pose)
        return pose, float(scale), self._loss_as_shown(pose, float(scale))

    def showing(self, scale: float | None = None) -> tuple[str, float]:
        """The pose in which the model segments the references best, and the scale there (`scale`, where it is given).

        The best few poses meet one after another, judged with their grey values, each two at both scales at which they
        would be shown: losses at different scales are no measure of one another, as coarse crops flatter. UPRIGHT
        unless the winner is better by the gain.
        """
        finalists = self._finalists()
        with Bar(
            finalists, desc="The best poses", unit="pose", leave=False, disable=not self.progress
        ) as bar:
            scales = {axes: scale or self.scale(axes) for axes in bar}

        def lost(axes: str, other: str) -> float:
            return sum(self._loss_as_shown(axes, at) for at in {scales[axes], scales[other]})

        upright, found, *others = finalists
        for axes in others:
            if lost(axes, found) < lost(found, axes):
                found = axes
        if lost(found, upright) >= (1 - self.settings.pose_gain) * lost(upright, found):
            found = upright
        return found, scales[found]

    def scale(self, axes: str) -> float:
        """The scale at which the model segments the references best in this pose, with their grey values; 1 unless
        another is far better.
        """
        losses = {scale: self._loss_as_shown(axes, scale) for scale in self.usable(self.settings.scales)}
        alone = self._trial(1.0).of_one_person
        limit = (1 - (self.settings.gain if alone or not self.toned else 0.0)) * losses[1.0]
        better = {scale: loss for scale, loss in losses.items() if loss < limit}
        near = self.settings.near_alone if alone else self.settings.near
        nearly = (1 + near) * min(better.values(), default=0.0)
        return min((scale for scale, loss in better.items() if loss <= nearly), default=1.0)

    def _finalists(self) -> list[str]:
        """UPRIGHT, and the poses with the least sum of losses over several scales."""
        settings = self.settings
        scales = self.usable(settings.pose_scales)
        first = self._trial(scales[0]).losses(POSES, range(settings.first_judges))
        rivals = [axes for axes in sorted(first, key=first.__getitem__) if axes != UPRIGHT][: settings.rivals]
        total = dict.fromkeys(rivals, 0.0)
        for each in scales:
            for axes, loss in self._trial(each).losses(rivals, range(settings.judges)).items():
                total[axes] += loss
        return [UPRIGHT, *sorted(rivals, key=total.__getitem__)[: settings.finalists]]

    def _loss_as_shown(self, axes: str, scale: float) -> float:
        """What the references lose in this pose at this scale where their grey values count as they then would."""
        if (axes, scale) not in self._shown:
            self._shown[axes, scale] = self._judged(axes, scale)
        return self._shown[axes, scale]

    def _judged(self, axes: str, scale: float) -> float:
        """That loss, not yet known: the mean over the classes of their mean over the judging crops."""
        trial, settings = self._trial(scale), WeightSettings()
        if self.grey != SEARCH:
            settings = replace(settings, weights=(float(self.grey),))
        turned = (turned_reference(reference, axes) for reference in trial.upright)
        tasks = [
            replace(task, grey=grey_evidence(reference, task.class_names, task.patch_size))
            for task, reference in zip(trial.tasks(axes), turned, strict=True)
        ]
        weighing = Weighing(settings)
        for number in range(self.settings.final_judges):
            task, alone, example = trial.lesson(axes, tasks, number)
            found = losses_by_weight(self.loaded, task, example, self.options, settings.weights)
            weighing.add(found, alone)
        return weighing.loss()

    def usable(self, scales: Sequence[float]) -> list[float]:
        """Those at which no reference loses a class; the planned spacing where there are none."""
        classes = self._trial(1.0).classes
        return [scale for scale in scales if scale == 1.0 or self._trial(scale).classes == classes] or [1.0]

    def _trial(self, scale: float) -> Trial:
        if scale not in self._trials:
            plan, references = self.shown_at(scale)
            self._trials[scale] = Trial(
                self.loaded,
                references,
                plan,
                self.options,
                self.settings.seed,
                self.cache.turned,
                self.progress,
                f" at {scale:g} x",
            )
        return self._trials[scale]


def as_shown(
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    prepare: Prepare,
    showing: Showing,
    options: InferenceOptions | None = None,
    *,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
) -> list[Embedded]:
    """References that were embedded in their pose and at their scale, with all else that the showing asks for.

    prepare: reads a reference once more, by id, at the tasks' grid.
    """
    weighed = with_grey(loaded, pool, prepare, showing.grey, options, cache=cache, progress=progress)
    return with_surroundings(weighed, prepare, showing.looks)


def scale_named(value: float | str) -> float | str:
    """What --scale says: "auto" or a number. PredictionError for another."""
    said = f"The scale is auto, or how many times the planned spacing, {SMALLEST:g} to {LARGEST:g}"
    return _auto_or_number(value, SMALLEST, LARGEST, said)


def grey_named(value: float | str) -> float | str:
    """What --grey says: "auto" or a weight. PredictionError for another."""
    said = f"The weight of grey values is auto, or 0 (none) to {HEAVIEST:g} (1: as Bayes' rule says)"
    return _auto_or_number(value, 0.0, HEAVIEST, said)


def _auto_or_number(value: float | str, lowest: float, highest: float, said: str) -> float | str:
    """said: what is allowed, for the PredictionError."""
    if value == SEARCH:
        return SEARCH
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not lowest <= number <= highest:
        raise PredictionError(f"{said}; got {value!r}.")
    return number


def settle_showing(
    loaded: LoadedModel,
    plan_at: Callable[[float], Plan],
    wanted: Showing,
    names: Sequence[str],
    prepare_at: Callable[[Plan], Prepare],
    affine: np.ndarray,
    options: InferenceOptions | None = None,
    *,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
) -> Plan:
    """The plan in the pose, at the scale and in the tones that are wanted, or that are found on the references of these
    names. Where pose and scale are said nothing is searched for, and tones are other ones only if always wanted.

    plan_at: for a scale, the upright plan. prepare_at: for a plan, what reads a reference by its name. affine: of the
    first reference, in whose frame a pose is searched for. A reference that shows nothing has no say.
    """

    def upright(scale: float) -> Plan:
        return in_frame_of(plan_at(scale), affine) if wanted.pose == SEARCH else plan_at(scale)

    @cache_calls  # each makes a curve of references that are read for it
    def toned(scale: float) -> Plan:
        return toned_plan(upright(scale), shown, prepare_at)

    pose = UPRIGHT if wanted.pose == SEARCH else wanted.pose
    scale = 1.0 if wanted.scale == SEARCH else float(wanted.scale)
    if SEARCH not in (wanted.pose, wanted.scale) and wanted.tones != ALWAYS:  # nothing is to be searched for
        return turned_plan(upright(scale), pose)
    plan = upright(1.0)
    references = of_different_subjects(map(prepare_at(plan), names), SearchSettings.references)
    shown = [reference.id for reference in references]
    if not references:
        return turned_plan(upright(scale), pose)
    options, cache = options or InferenceOptions(), cache if cache is not None else EmbeddingCache()
    content = [part for r in references for part in (r.image, r.labels, sorted(r.classes.items()))]
    who = who_is_who(references)
    rules = (SEARCH_RULES, SearchSettings(), WeightSettings())
    asked = (wanted.pose, wanted.scale, wanted.grey, wanted.tones)
    key = content_key(loaded.model_hash, options.autocast, rules, plan, asked, who, *content)
    if key not in cache.showings:

        def search(plan_of: Callable[[float], Plan]) -> tuple[str, float, float]:
            def shown_at(times: float) -> Shown:
                at = plan_of(times)
                known = times == 1.0 and plan_of is upright
                return at, references if known else [prepare_at(at)(r.id) for r in references]

            trials = Search(
                loaded,
                shown_at,
                wanted.grey,
                options,
                cache=cache,
                progress=progress,
                toned=plan_of is toned,
            )
            return trials.found(wanted.pose, wanted.scale)

        cache.showings[key] = _settled(search, upright, toned, wanted.tones)
    pose, scale, in_tones = cache.showings[key]
    return turned_plan(toned(scale) if in_tones else upright(scale), pose)


def _settled(
    search: Callable[[Callable[[float], Plan]], tuple[str, float, float]],
    upright: Callable[[float], Plan],
    toned: Callable[[float], Plan],
    tones: str,
) -> tuple[str, float, bool]:
    """Pose, scale, and whether in other tones. search: pose, scale and loss, for a plan at each scale."""
    settings = SearchSettings()
    if tones == ALWAYS:
        return (*search(toned)[:2], True)
    pose, scale, loss = search(upright)
    if tones == SEARCH and loss > settings.badly:
        other_pose, other_scale, other_loss = search(toned)
        if other_loss < (1 - settings.tones_gain) * loss:
            return other_pose, other_scale, True
    return pose, scale, False
