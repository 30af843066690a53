"""The pose in which references and queries are shown to the network: the one in which it reads the references best.

Arrays are [D,H,W] = (z,y,x). All scans lie in RAS+, and yet "up" differs from dataset to dataset: a heart is cut across
its own axis and the slices are named sagittal or coronal as it happens. A network that learned the heart in one of the
cube's 48 poses (24 turns, and their mirror images) finds it badly in the others. Each pose is tried on the references,
whose masks are known: the task that they give is asked for on crops of other references, or, with one subject only, on
augmented crops of the same. No query has a part in it. The task remembers the pose (`TaskEmbedding.pose`), and every
query is turned alike, in the frame of the first reference. The paper knows no such search: this one is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product

import numpy as np
import torch
from tqdm import tqdm

from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.examples import Example, draw_example, tokens_loss
from iris_pipeline.halved import STRIDE, window_edges
from iris_pipeline.pool import EmbeddingCache, content_key
from iris_pipeline.sliding_window import InferenceOptions
from iris_pipeline.strategies import PreparedReference, class_boxes, ensemble, halved_reference, one_shot
from iris_pipeline.synthetic import Orientation
from iris_pipeline.task import TaskEmbedding
from preprocessing.errors import PredictionError
from preprocessing.orientation import AS_IT_IS, UPRIGHT, Pose, Reorientation, parse_axes
from preprocessing.plan import Plan

POSES = tuple(
    "".join(letters)
    for order in permutations(("SI", "AP", "RL"))
    for letters in product(*order)  # UPRIGHT comes first
)
SEARCH = "auto"
NAMES = {"auto": SEARCH, "upright": UPRIGHT}


@dataclass(frozen=True)
class PoseSettings:
    """references: how many take part, of as many subjects as there are. Crops at half the resolution judge: every pose
    by the `first_judges` of them, the `rivals` best and the upright one by all `judges`; the `finalists` best of these
    and the upright one then have `final_judges` at the whole one. gain: the share of the upright pose's loss by which
    another one must be better at the whole resolution, being better at half of it, too. A pose that the model knows
    shows itself (hearts: 0.21 to 0.45); where it knows none, one of the two resolutions may prefer some pose by chance,
    and not both (lungs: up to 0.05; LOG.md).
    """

    references: int = 3
    first_judges: int = 2
    rivals: int = 16
    judges: int = 4
    finalists: int = 6
    final_judges: int = 6
    gain: float = 0.1
    seed: int = 0


def pose_named(text: str) -> str:
    """What --pose says: "auto", or the axes of one pose ("upright" is that of RAS+). PredictionError for another."""
    axes = NAMES.get(text, text)
    try:
        if axes != SEARCH:
            parse_axes(axes)
    except ValueError:
        raise PredictionError(
            f"--pose is auto, upright, or three letters, one each of S or I, A or P, R or L; got {text!r}."
        ) from None
    return axes


def turned_plan(plan: Plan, axes: str) -> Plan:
    """An upright plan in another pose of the same frame: its spacing and patch in the order of the new axes."""
    order = [axis for axis, _ in parse_axes(axes)]
    spacing, patch = ([values[axis] for axis in order] for values in (plan.spacing_mm, plan.patch_size))
    return plan.model_copy(
        update={
            "pose": Pose(axes, plan.pose.frame),
            "spacing_mm": (spacing[0], spacing[1], spacing[2]),
            "patch_size": (int(patch[0]), int(patch[1]), int(patch[2])),
        }
    )


def in_frame_of(plan: Plan, affine: np.ndarray) -> Plan:
    """An upright plan in the frame of a scan: what lies askew in space lies there as it does in this one."""
    return plan.model_copy(update={"pose": Pose(frame=Reorientation.to_ras(affine).frame(affine))})


def turned_reference(reference: PreparedReference, axes: str) -> PreparedReference:
    """An upright reference in another pose."""
    turn = AS_IT_IS.turned(axes)
    return replace(reference, image=turn.apply(reference.image), labels=turn.apply(reference.labels))


def find_pose(
    loaded: LoadedModel,
    references: Sequence[PreparedReference],
    plan: Plan,
    options: InferenceOptions | None = None,
    settings: PoseSettings | None = None,
    *,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
) -> str:
    """The axes in which the model segments the references best; UPRIGHT unless another is far better.

    references: prepared upright, at `plan`, each with a class or more. ReferenceCaseError where one shows none.
    cache: keeps what a reference becomes in each pose, for other sets of which it is one.
    """
    options, settings = options or InferenceOptions(), settings or PoseSettings()
    cache = cache if cache is not None else EmbeddingCache()

    def trial(among: Sequence[PreparedReference], at: Plan) -> _Trial:
        return _Trial(loaded, among, at, options, settings.seed, cache.turned, progress)

    halved = [halved_reference(reference) for reference in references]
    coarse = trial(halved, plan.model_copy(update={"patch_size": _halved_patch(plan.patch_size)}))
    first = coarse.losses(POSES, range(settings.first_judges))
    rivals = _best(first, settings.rivals)
    second = coarse.losses(rivals, range(settings.first_judges, settings.judges))
    tried = {axes: (first[axes] + second[axes]) / settings.judges for axes in rivals}
    finalists = _best(tried, settings.finalists)
    judged = trial(references, plan).losses(finalists, range(settings.final_judges))
    # What one resolution takes for the best by chance is seldom so for the other: both must say so.
    losses_of = {axes: (tried[axes], judged[axes] / settings.final_judges) for axes in finalists}
    halfway, whole = losses_of[UPRIGHT]
    limits = halfway, (1 - settings.gain) * whole
    better = [axes for axes in finalists if all(x < y for x, y in zip(losses_of[axes], limits, strict=True))]
    return min(better, key=lambda axes: sum(losses_of[axes]), default=UPRIGHT)


def _best(losses: Mapping[str, float], count: int) -> list[str]:
    """The upright pose and the `count` of least loss, the earlier of equal ones."""
    return list(dict.fromkeys([UPRIGHT, *sorted(losses, key=losses.__getitem__)[:count]]))


def settle_pose(
    loaded: LoadedModel,
    plan: Plan,
    wanted: str,
    names: Sequence[str],
    prepare_at: Callable[[Plan], Callable[[str], PreparedReference]],
    affine: np.ndarray,
    options: InferenceOptions | None = None,
    *,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
) -> Plan:
    """The plan in the pose that is wanted; where that is SEARCH, in the frame of `affine`, the first reference's, and
    there in the pose that is found on the references of these names.

    prepare_at: for a plan, what reads a reference by its name. A reference that shows nothing has no say.
    """
    if wanted != SEARCH:
        return turned_plan(plan, wanted)
    plan = in_frame_of(plan, affine)
    settings, options = PoseSettings(), options or InferenceOptions()
    references = _of_different_subjects(map(prepare_at(plan), names), settings.references)
    if not references:
        return plan
    cache = cache if cache is not None else EmbeddingCache()
    content = [part for r in references for part in (r.image, r.labels, sorted(r.classes.items()))]
    key = content_key(loaded.model_hash, options.autocast, plan, *content)
    if key not in cache.poses:
        cache.poses[key] = find_pose(
            loaded, references, plan, options, settings, cache=cache, progress=progress
        )
    return turned_plan(plan, cache.poses[key])


def _of_different_subjects(references: Iterable[PreparedReference], count: int) -> list[PreparedReference]:
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


def _halved_patch(patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Half the edges, in whole strides; an eighth of the work."""
    z, y, x = (max(STRIDE, edge // 2 // STRIDE * STRIDE) for edge in patch)
    return window_edges((z, y, x), (z, y, x))


@dataclass(frozen=True)
class _Trial:
    """Poses on trial at one resolution: upright references at a plan. kept: tasks by content, filled as they come."""

    loaded: LoadedModel
    upright: Sequence[PreparedReference]
    plan: Plan
    options: InferenceOptions
    seed: int
    kept: dict[str, TaskEmbedding]
    progress: bool

    def losses(self, poses: Iterable[str], numbers: Sequence[int]) -> dict[str, float]:
        """The sum of each pose's loss over the judging crops of these numbers."""
        poses = list(poses)
        title = f"{len(poses)} poses on {len(numbers)} crops"
        with tqdm(poses, desc=title, unit="pose", leave=False, disable=not self.progress) as bar:
            return {axes: self._loss(axes, numbers) for axes in bar}

    def _loss(self, axes: str, numbers: Sequence[int]) -> float:
        tasks = [self._task(number, axes) for number in range(len(self.upright))]
        total = 0.0
        for number in numbers:
            which = number % len(self.upright)
            task, alone = _teachers(tasks, self.upright, which)
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
            with torch.inference_mode():
                total += float(
                    tokens_loss(self.loaded.model, task.tokens, _turned(example, axes), self.options)
                )
        return total

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
                device=self.options.device,
                autocast=self.options.autocast,
            )
        return self.kept[key]

    @cached_property
    def _content(self) -> list[str]:
        return [content_key(r.image, r.labels, sorted(r.classes.items())) for r in self.upright]


def _teachers(
    tasks: Sequence[TaskEmbedding], references: Sequence[PreparedReference], which: int
) -> tuple[TaskEmbedding, bool]:
    """The task of the other subjects' references; of the reference itself, and True, where they share no class."""
    person = references[which].person
    names = set(tasks[which].class_names)
    others = [
        task.select([name for name in task.class_names if name in names])
        for number, task in enumerate(tasks)
        if references[number].person != person and names & set(task.class_names)
    ]
    return (ensemble(others), False) if others else (tasks[which], True)


def _turned(example: Example, axes: str) -> Example:
    turn = parse_axes(axes)
    flipped = tuple(number for number, (_, flip) in enumerate(turn) if flip)
    orientation = Orientation((turn[0][0], turn[1][0], turn[2][0]), flipped)
    return Example(orientation.apply(example.image), orientation.apply(example.masks), example.valid)
