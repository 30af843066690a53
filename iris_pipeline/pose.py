"""The pose in which references and queries are shown to the network: the one in which it reads the references best.

Arrays are [D,H,W] = (z,y,x). All scans lie in RAS+, and yet "up" differs from dataset to dataset: a heart is cut across
its own axis and the slices are named sagittal or coronal as it happens. A network that learned the heart in one of the
cube's 48 poses (24 turns, and their mirror images) finds it badly in the others. Each pose is tried on the references,
whose masks are known: the task that they give is asked for on crops of other references, or, with one subject only, on
augmented crops of the same. No query has a part in it. The task remembers the pose (`TaskEmbedding.pose`), and every
query is turned alike, in the frame of the first reference. The paper knows no such search: this one is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    """references: how many take part, of as many subjects as there are. judges: crops at half the resolution on which
    every pose is tried; the `finalists` best and the upright one then have `final_judges` at the whole one. gain: the
    share of the upright pose's loss by which another one must be better at the whole resolution, being better at half
    of it, too. A pose that the model knows shows itself (hearts: 0.21 to 0.45); where it knows none, one of the two
    resolutions may prefer some pose by chance, and not both (lungs: up to 0.05; LOG.md).
    """

    references: int = 3
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
    progress: bool = False,
) -> str:
    """The axes in which the model segments the references best; UPRIGHT unless another is far better.

    references: prepared upright, at `plan`, each with a class or more. ReferenceCaseError where one shows none.
    """
    options, settings = options or InferenceOptions(), settings or PoseSettings()

    def losses(
        poses: Sequence[str], among: Sequence[PreparedReference], at: Plan, judges: int
    ) -> list[float]:
        title = f"{len(poses)} poses on {judges} crops"
        with tqdm(poses, desc=title, unit="pose", leave=False, disable=not progress) as bar:
            return [_loss(loaded, among, at, axes, options, settings.seed, judges) for axes in bar]

    halved = [halved_reference(reference) for reference in references]
    coarse = plan.model_copy(update={"patch_size": _halved_patch(plan.patch_size)})
    tried = losses(POSES, halved, coarse, settings.judges)
    best = [POSES[number] for number in np.argsort(tried, kind="stable")[: settings.finalists]]
    finalists = list(dict.fromkeys([UPRIGHT, *best]))
    judged = losses(finalists, references, plan, settings.final_judges)
    # What one resolution takes for the best by chance is seldom so for the other: both must say so.
    losses_of = {axes: (tried[POSES.index(axes)], loss) for axes, loss in zip(finalists, judged, strict=True)}
    halfway, whole = losses_of[UPRIGHT]
    limits = halfway, (1 - settings.gain) * whole
    better = [axes for axes in finalists if all(x < y for x, y in zip(losses_of[axes], limits, strict=True))]
    return min(better, key=lambda axes: sum(losses_of[axes]), default=UPRIGHT)


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
    prepare = prepare_at(plan)
    prepared = [prepare(name) for name in names]
    references = _of_different_subjects([r for r in prepared if class_boxes(r)], settings.references)
    if not references:
        return plan
    poses = cache.poses if cache is not None else {}
    content = [part for r in references for part in (r.image, r.labels, sorted(r.classes.items()))]
    key = content_key(loaded.model_hash, options.autocast, plan, *content)
    if key not in poses:
        poses[key] = find_pose(loaded, references, plan, options, settings, progress)
    return turned_plan(plan, poses[key])


def _of_different_subjects(references: Sequence[PreparedReference], count: int) -> list[PreparedReference]:
    """`count` of them, one a subject before any second one."""
    firsts: dict[str, PreparedReference] = {}
    for reference in references:
        firsts.setdefault(reference.subject or reference.id, reference)
    first_ones = list(firsts.values())
    rest = [reference for reference in references if not any(reference is one for one in first_ones)]
    return [*first_ones, *rest][:count]


def _halved_patch(patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Half the edges, in whole strides; an eighth of the work."""
    z, y, x = (max(STRIDE, edge // 2 // STRIDE * STRIDE) for edge in patch)
    return window_edges((z, y, x), (z, y, x))


def _loss(
    loaded: LoadedModel,
    upright: Sequence[PreparedReference],
    plan: Plan,
    axes: str,
    options: InferenceOptions,
    seed: int,
    judges: int,
) -> float:
    """Mean loss over the judging crops in one pose."""
    turned = turned_plan(plan, axes)
    references = [turned_reference(reference, axes) for reference in upright]
    tasks = [
        one_shot(
            loaded.model,
            reference,
            turned,
            model_hash=loaded.model_hash,
            device=options.device,
            autocast=options.autocast,
        )
        for reference in references
    ]
    found = []
    for number in range(judges):
        which = number % len(references)
        task, alone = _teachers(tasks, references, which)
        # Drawn upright and then turned, so that every pose is asked for the very same crops.
        example = draw_example(
            upright[which],
            task.class_names,
            plan.patch_size,
            np.random.default_rng((seed, number)),
            augmented=alone,
            anywhere=0.0,
            device=options.device,
        )
        with torch.inference_mode():
            found.append(float(tokens_loss(loaded.model, task.tokens, _turned(example, axes), options)))
    return float(np.mean(found))


def _teachers(
    tasks: Sequence[TaskEmbedding], references: Sequence[PreparedReference], which: int
) -> tuple[TaskEmbedding, bool]:
    """The task of the other subjects' references; of the reference itself, and True, where they share no class."""

    def subject(number: int) -> str:
        return references[number].subject or references[number].id

    names = set(tasks[which].class_names)
    others = [
        task.select([name for name in task.class_names if name in names])
        for number, task in enumerate(tasks)
        if subject(number) != subject(which) and names & set(task.class_names)
    ]
    return (ensemble(others), False) if others else (tasks[which], True)


def _turned(example: Example, axes: str) -> Example:
    turn = parse_axes(axes)
    order = [axis + 2 for axis, _ in turn]
    flipped = [number + 2 for number, (_, flip) in enumerate(turn) if flip]

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(0, 1, *order).flip(flipped).contiguous()

    return Example(moved(example.image), moved(example.masks), example.valid)
