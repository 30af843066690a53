"""References embedded once: what ensembles, retrieval, tuning and the advisor draw from.

Arrays are [D,H,W] = (z,y,x), as are `spacing_mm` and `patch_size`; C_l channels of task level l. A pool holds
tokens and one vector a reference, never an image, so its size does not grow with the scans. What is embedded is
kept under a content hash of model, image, labels and grid: k references and m queries cost k + m encodings.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.sliding_window import InferenceOptions, window_starts
from iris_pipeline.inference.strategies import PreparedReference, join_people, one_shot
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.geometry import CropPad
from preprocessing.plan import Plan


@dataclass(frozen=True)
class Embedded:
    """A reference as the network sees it: who it is, its one-shot task, and a vector of its whole image.

    image_vector: [sum of C_l], of unit length; None where nothing asked for it.
    """

    id: str
    subject: str
    task: TaskEmbedding
    image_vector: Tensor | None = None


def people_of(pool: Sequence[Embedded]) -> dict[str, str]:
    """Id -> who is shown, as `join_people` tells: references of equal content are one person's, under any name."""
    subjects = [each.subject or each.id for each in pool]
    contents = ["".join(each.task.reference_hashes) for each in pool]
    return dict(zip((each.id for each in pool), join_people(subjects, contents), strict=True))


@dataclass(frozen=True)
class EmbeddingCache:
    """What this process has by content hash: embeddings; of sets of references pose, scale, and whether they have other
    tones (`showing.py`; a mapping that outlives the process is `kept_showings.py`) and the weights of their grey values
    (`grey_weights.py`); and what each reference was as it was tried (`turned`). The same content under another name is
    found again.
    """

    tasks: dict[str, TaskEmbedding] = field(default_factory=dict)
    image_vectors: dict[str, Tensor] = field(default_factory=dict)
    showings: MutableMapping[str, tuple[str, float, bool]] = field(default_factory=dict)
    turned: dict[str, TaskEmbedding] = field(default_factory=dict)
    grey_weights: dict[str, dict[str, float]] = field(default_factory=dict)


def embed(
    loaded: LoadedModel,
    reference: PreparedReference,
    plan: Plan,
    cache: EmbeddingCache | None = None,
    *,
    with_image: bool = False,
    options: InferenceOptions | None = None,
) -> Embedded:
    """One reference's task (`one_shot`) and, `with_image`, its image's vector; from the cache where it is there.

    ReferenceCaseError if the reference shows no class.
    """
    cache, options = cache if cache is not None else EmbeddingCache(), options or InferenceOptions()
    image_key = content_key(loaded.model_hash, options.autocast, plan, reference.image)
    task_key = content_key(
        image_key, reference.labels, sorted(reference.classes.items()), reference.image_hash
    )
    if task_key not in cache.tasks:
        cache.tasks[task_key] = one_shot(
            loaded.model,
            reference,
            plan,
            model_hash=loaded.model_hash,
            wide=loaded.knows_wide_view,
            options=options,
        )
    if with_image and image_key not in cache.image_vectors:
        cache.image_vectors[image_key] = image_vector(loaded, reference.image, plan.patch_size, options)
    vector = cache.image_vectors[image_key] if with_image else None
    task = cache.tasks[task_key].select(
        [n for n in reference.classes if n in cache.tasks[task_key].class_names]
    )
    return Embedded(reference.id, reference.subject, task, vector)


def image_vector(
    loaded: LoadedModel,
    image: np.ndarray,
    patch: tuple[int, int, int],
    options: InferenceOptions | None = None,
) -> Tensor:
    """What an image looks like as a whole: float32 [sum of C_l] of unit length, so that a dot is a cosine.

    The mean of the encoder's features at each task level over windows that cover the image [D,H,W] (neighbours
    overlap only where the edge asks for it); every level is scaled to the same length, so that each has an equal
    say. No mask has a part in it, and the paper names no image embedding: this one is ours.
    """
    options = options or InferenceOptions()
    sums = [
        torch.zeros(loaded.config.widths[level], dtype=torch.float32) for level in loaded.config.task_levels
    ]
    fill = float(image.min())
    axes = [
        window_starts(n, edge, 0.0) if n > edge else [(n - edge) // 2]
        for n, edge in zip(image.shape, patch, strict=True)
    ]
    with torch.inference_mode(), options.casting():
        for z, y, x in product(*axes):
            window = CropPad(image.shape, (z, y, x), patch).apply(image, fill)
            window = np.ascontiguousarray(window, dtype=np.float32)
            features = loaded.model.encode_image(torch.from_numpy(window)[None, None].to(options.device))
            for total, level in zip(sums, loaded.config.task_levels, strict=True):
                total += features[level][0].float().flatten(1).mean(1).cpu()
    return unit_vector(sums)


def unit_vector(parts: list[Tensor]) -> Tensor:
    """Vectors end to end, each scaled to the same length, together of unit length."""
    scaled = [torch.nn.functional.normalize(part.float().flatten(), dim=0) for part in parts]
    return torch.cat(scaled) / len(scaled) ** 0.5


def restrict(embedded: Embedded, names: tuple[str, ...]) -> Embedded | None:
    """The reference with these of its classes only; None where it shows none of them."""
    shown = [name for name in names if name in embedded.task.class_names]
    return replace(embedded, task=embedded.task.select(shown)) if shown else None


def content_key(*parts: object) -> str:
    """Content hash over texts, numbers, plans and arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            text = (
                part.model_dump_json(exclude={"reasons", "dataset"}) if isinstance(part, Plan) else str(part)
            )
            digest.update(text.encode())
        digest.update(b"|")
    return digest.hexdigest()
