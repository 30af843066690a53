"""No result of a case that a model has learnt from, nor of its people: asked before a table is made of a split."""

from __future__ import annotations

from collections.abc import Sequence

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.checkpoints.trained_cases import TrainedCases, TrainedPart
from preprocessing.errors import StoreError
from preprocessing.store import Store


def cases_of_model(loaded: LoadedModel) -> TrainedCases:
    """What a model has learnt from; of an older checkpoint its datasets and their split, and no more."""
    if loaded.state.trained is not None:
        return loaded.state.trained
    split = loaded.state.settings.get("split")
    return {name: (TrainedPart(str(split)),) if split is not None else () for name in loaded.plans}


def check_not_trained(loaded: LoadedModel, store: Store, split: str, part: str) -> None:
    """StoreError where the model has learnt from a case of this part of the split, or from one of its people."""
    manifest, trained = store.manifest, cases_of_model(loaded)
    # Either of two datasets may be the one that names the other.
    naming = {name for name, spec in loaded.specs.items() if manifest.dataset in spec.get("overlaps", ())}
    known = sorted((set(manifest.spec.overlaps) | naming) & set(trained))
    if known:
        raise StoreError(
            f"Results come from people the model was not trained on; those of {manifest.dataset} are also in "
            f"{', '.join(known)}, on which it was: use a model trained without."
        )
    wanted = manifest.splits[split][part]
    parts = [(name, each) for name in trained for each in trained[name]]
    for name, each in parts:
        seen = _seen(store, name, each, wanted)
        if not seen:
            continue
        own = str(loaded.state.settings.get("split", each.split))
        others = manifest.splits.get(own, {}).get(part, [])
        remedy = "use a model trained without them"
        if others and not any(_seen(store, *one, others) for one in parts):
            remedy = f"choose split '{own}'"
        who = "it" if each.split == own and name in loaded.plans else "the run that it started from"
        what = f"split '{each.split}'" + (f" of {name}" if name != manifest.dataset else "")
        raise StoreError(
            f"Results come from cases the model was not trained on; {who} was trained on {what}, with {len(seen)} of "
            f"the {len(wanted)} cases asked for, or their people, among them: {remedy}."
        )


def _seen(store: Store, dataset: str, part: TrainedPart, wanted: Sequence[str]) -> list[str]:
    """The wanted cases that a part of `dataset` holds, themselves or another scan of their subject."""
    manifest = store.manifest
    same = dataset == manifest.dataset
    cases = part.cases
    if cases is None:
        # All that can be asked is who would train by that split now.
        cases = dict.fromkeys(manifest.splits.get(part.split, {}).get("train", []) if same else [], "")
    people = set(cases.values()) - {""} if same or part.people == manifest.spec.people else set()
    return [each for each in wanted if (same and each in cases) or store.entry(each).subject in people]
