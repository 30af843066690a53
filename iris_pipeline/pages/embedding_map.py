"""Does the left kidney of one dataset lie near that of another? Neighbours, agreement and two maps of embeddings.

All tokens share a large common part, so the mean over the classes' centres (one vote a class) is taken away
before any cosine; what is compared is how classes differ from the average class. A class's centre is the mean
of its cases' vectors, or the memory bank's vector where no case is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from iris_pipeline.pages.anatomy import group_of, relation, structure_of
from iris_pipeline.pages.embeddings import EmbeddingRow, Embeddings
from preprocessing.runtime.files import write_text

FILE = "embeddings_nearest.csv"
NEAREST_COLUMNS = (
    "dataset",
    "class",
    "group",
    "trained",
    "cases",
    "nearest dataset",
    "nearest class",
    "cosine",
    "relation",
    "same anatomy elsewhere",
    "rank of same anatomy",
)
RULE = (
    "Cosine of class centres after the mean over all centres is taken away; a centre is the mean over the "
    "class's cases. Nearest: of another dataset. Rank: the place of the same anatomy among all classes of other "
    "datasets, 1 is nearest."
)


@dataclass(frozen=True)
class Centre:
    """One class of one dataset. vector [F]; cases: how many it is the mean of (0: the memory bank's)."""

    dataset: str
    title: str
    class_name: str
    trained: bool
    cases: int
    vector: np.ndarray

    @property
    def structure(self) -> frozenset[str]:
        return structure_of(self.class_name, self.title)

    @property
    def group(self) -> str:
        return group_of(self.structure)


@dataclass(frozen=True)
class Agreement:
    """How often the nearest one of another dataset is the same anatomy. chance: expected from drawing at random.

    asked: how many could be right, because another dataset has their anatomy.
    """

    what: str
    asked: int
    right: int
    chance: float

    @property
    def sentence(self) -> str:
        if not self.asked:
            return f"None of the {self.what} has its anatomy in a second dataset, so nothing can be said of them."
        return (
            f"Of {self.asked} {self.what} whose anatomy a second dataset has, too, {self.right} "
            f"({self.right / self.asked:.0%}) lie nearest to it among all {self.what} of other datasets; drawn at "
            f"random, {self.chance:.0%} would."
        )


@dataclass(frozen=True)
class EmbeddingMap:
    """All that the page shows. points: one row a vector: kind ("case", "bank"), dataset, class, case, group, place,
    tsne_x, tsne_y, pca_x, pca_y; `place` is the row of `nearest`, which has NEAREST_COLUMNS. pca_share: variance
    that the two components hold. classes, cases: by all tokens. by_tokens: (which tokens, of classes, of cases).
    """

    points: pd.DataFrame
    nearest: pd.DataFrame
    classes: Agreement
    cases: Agreement
    by_tokens: tuple[tuple[str, Agreement, Agreement], ...]
    pca_share: tuple[float, float]
    notes: tuple[str, ...]


def embedding_map(made: Embeddings, seed: int = 0) -> EmbeddingMap:
    """Neighbours and maps of all rows; the same embeddings give the same map."""
    centres = class_centres(made)
    shift = np.mean([centre.vector for centre in centres], axis=0)
    nearest = nearest_classes(centres)
    points = _points(made.rows, centres)
    flat = made.vectors - shift
    tsne, pca, share = _tsne(_unit(flat), seed), *_pca(flat, seed)
    for name, plane in (("tsne", tsne), ("pca", pca)):
        points[f"{name}_x"], points[f"{name}_y"] = plane[:, 0], plane[:, 1]
    by_tokens = [("all tokens", *_agreements(made.rows, made.vectors))]
    if made.layout:
        by_tokens.append(("foreground token", *_agreements(made.rows, made.tokens(foreground=True))))
        by_tokens.append(("context tokens", *_agreements(made.rows, made.tokens(foreground=False))))
    return EmbeddingMap(
        points=points,
        nearest=nearest,
        classes=by_tokens[0][1],
        cases=by_tokens[0][2],
        by_tokens=tuple(by_tokens),
        pca_share=share,
        notes=(RULE, *made.notes),
    )


def _agreements(rows: Sequence[EmbeddingRow], vectors: np.ndarray) -> tuple[Agreement, Agreement]:
    """Of class centres and of single cases, both about the mean of the centres."""
    centres = class_centres(Embeddings(tuple(rows), vectors, {}))
    places = np.stack([centre.vector for centre in centres])
    shift = places.mean(axis=0)
    of_cases = [index for index, row in enumerate(rows) if row.case]
    return (
        agreement("classes", centres, places - shift),
        agreement("cases", [rows[index] for index in of_cases], vectors[of_cases] - shift),
    )


def class_centres(made: Embeddings) -> list[Centre]:
    """The centre of each dataset's each class, by dataset and then in the order of the rows."""
    members: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(made.rows):
        members.setdefault((row.dataset, row.class_name), []).append(index)
    centres = []
    for (dataset, name), indices in sorted(members.items(), key=lambda item: item[0][0]):
        of_cases = [index for index in indices if made.rows[index].case]
        first = made.rows[indices[0]]
        vector = made.vectors[of_cases or indices].mean(axis=0)
        centres.append(Centre(dataset, first.title, name, first.trained, len(of_cases), vector))
    return centres


def nearest_classes(centres: Sequence[Centre]) -> pd.DataFrame:
    """For every class its nearest class of another dataset, and where the same anatomy comes in that order."""
    vectors = np.stack([centre.vector for centre in centres])
    cosines = _cosines(vectors - vectors.mean(axis=0))
    lines = []
    for i, centre in enumerate(centres):
        others = [j for j, other in enumerate(centres) if other.dataset != centre.dataset]
        order = sorted(others, key=lambda j: -cosines[i, j])
        same = [j for j in order if centres[j].structure == centre.structure]
        line: dict[str, object] = {
            "dataset": centre.dataset,
            "class": centre.class_name,
            "group": centre.group,
            "trained": "yes" if centre.trained else "no",
            "cases": centre.cases,
        }
        if order:
            best = centres[order[0]]
            line |= {
                "nearest dataset": best.dataset,
                "nearest class": best.class_name,
                "cosine": float(cosines[i, order[0]]),
                "relation": relation(centre.structure, best.structure),
            }
        if same:
            first = centres[same[0]]
            line |= {
                "same anatomy elsewhere": f"{first.dataset}: {first.class_name}",
                "rank of same anatomy": order.index(same[0]) + 1,
            }
        lines.append(line)
    frame = pd.DataFrame(lines, columns=list(NEAREST_COLUMNS))
    return frame.astype({"rank of same anatomy": "Int64"})


def agreement(what: str, rows: Sequence[Centre | EmbeddingRow], vectors: np.ndarray) -> Agreement:
    """Of the rows whose structure another dataset has: how many have it as their nearest of another dataset."""
    if not rows:
        return Agreement(what, 0, 0, 0.0)
    cosines = _cosines(vectors)
    structures = [structure_of(row.class_name, row.title) for row in rows]
    datasets = np.array([row.dataset for row in rows])
    asked = right = 0
    chances = []
    for i, structure in enumerate(structures):
        others = np.flatnonzero(datasets != datasets[i])
        same = np.array([structures[j] == structure for j in others], bool)
        if not same.any():
            continue
        asked += 1
        right += bool(same[cosines[i, others].argmax()])
        chances.append(same.mean())
    return Agreement(what, asked, right, float(np.mean(chances)) if chances else 0.0)


def write_nearest(path: Path, found: EmbeddingMap, made_by: str) -> None:
    """The neighbours as CSV; what they mean and the command follow as lines that begin with #."""
    told = [
        f"By the {name}: {classes.right} of {classes.asked} classes, {cases.right} of {cases.asked} cases."
        for name, classes, cases in found.by_tokens
    ]
    notes = (found.classes.sentence, found.cases.sentence, *told, *found.notes, made_by)
    table = found.nearest.to_csv(index=False, lineterminator="\n", float_format="%.4f")
    write_text(path, table + "".join(f"# {note}\n" for note in notes))


def _points(rows: Sequence[EmbeddingRow], centres: Sequence[Centre]) -> pd.DataFrame:
    place = {(centre.dataset, centre.class_name): number for number, centre in enumerate(centres)}
    return pd.DataFrame(
        {
            "kind": ["case" if row.case else "bank" for row in rows],
            "dataset": [row.dataset for row in rows],
            "class": [row.class_name for row in rows],
            "case": [row.case for row in rows],
            "group": [group_of(structure_of(row.class_name, row.title)) for row in rows],
            "place": [place[row.dataset, row.class_name] for row in rows],
        }
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return unit


def _cosines(vectors: np.ndarray) -> np.ndarray:
    unit = _unit(vectors)
    cosines: np.ndarray = unit @ unit.T
    return cosines


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[N,2]; on unit vectors the squared distance is 2 - 2 cosine. A handful of points has no neighbourhoods."""
    if len(vectors) < 5:
        return _pca(vectors, seed)[0]
    perplexity = min(20.0, (len(vectors) - 1) / 4)
    plane: np.ndarray = TSNE(
        perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed
    ).fit_transform(vectors)
    return plane


def _pca(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2)), (0.0, 0.0)
    count = min(2, *vectors.shape)
    fitted = PCA(n_components=count, random_state=seed)
    plane = np.zeros((len(vectors), 2))
    plane[:, :count] = fitted.fit_transform(vectors)
    shares = [*fitted.explained_variance_ratio_, 0.0]
    return plane, (float(np.nan_to_num(shares[0])), float(np.nan_to_num(shares[1])))
