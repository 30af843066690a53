"""Which specifications `-d` means: of the package, beside the raw datasets, or nnU-Net's own description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessing.errors import SpecError
from preprocessing.nnunet import DESCRIPTION, nnunet_content, nnunet_folder
from preprocessing.spec import DatasetSpec, list_specs, load_spec, named, unknown_name, validated

GROUPS = ("all", "upstream", "held-out", "phantom")


def refuse_taken_name(name: str) -> None:
    """SpecError for a name of a new dataset by which `-d` would mean another one, or several."""
    if name in GROUPS:
        raise SpecError(f"'{name}' stands for several datasets behind -d: give another --name.")
    if name in list_specs():
        raise SpecError(f"'{name}' is a dataset of the package already: give another --name.")


def own_specs(raw_root: Path) -> dict[str, Path]:
    """The specifications beside the raw datasets, <raw_root>/<name>.yaml: name -> file."""
    return {path.stem: path for path in sorted(raw_root.glob("*.yaml")) if not path.name.startswith(".")}


def choose_specs(
    names: Sequence[str], raw_root: Path, broken: list[SpecError] | None = None
) -> list[DatasetSpec]:
    """The specifications behind `-d`: names, YAML files, or `all`, `upstream`, `held-out`, `phantom`.

    A name is looked for beside the raw datasets first (`own_specs`), then inside the package, then among the
    folders there that have nnU-Net's dataset.json. The four words stand for the datasets with a specification
    (of that role) whose scans are there; a specification among them that cannot be read is added to `broken`, where
    that is given, and the others are chosen all the same. SpecError for an unknown name, with the nearest known one,
    and for a word that no dataset there fits.
    """
    chosen: dict[str, DatasetSpec] = {}
    own = own_specs(raw_root)
    for name in names:
        if name in GROUPS:
            known = sorted({*list_specs(), *own})
            readable = _readable(known, own, raw_root, broken)
            specs = [
                spec for spec in readable if name in ("all", spec.role) and spec.raw_folder(raw_root).is_dir()
            ]
            if not specs and not broken:
                raise SpecError(f"'{name}' fits no dataset under {raw_root}: known are {', '.join(known)}.")
        else:
            specs = [_own_or_packaged(name, own, raw_root)]
        chosen |= {spec.name: spec for spec in specs}
    return list(chosen.values())


def _readable(
    names: Sequence[str], own: Mapping[str, Path], raw_root: Path, broken: list[SpecError] | None
) -> list[DatasetSpec]:
    specs = []
    for name in names:
        try:
            specs.append(_own_or_packaged(name, own, raw_root))
        except SpecError as error:
            if broken is None:
                raise
            broken.append(error)
    return specs


def _own_or_packaged(name: str, own: Mapping[str, Path], raw_root: Path) -> DatasetSpec:
    if name in own:
        return named(load_spec(own[name]), own[name])
    folder = nnunet_folder(raw_root, name) if name not in list_specs() else None
    if folder is not None:
        return validated(nnunet_content(folder), str(folder / DESCRIPTION))
    if not name.endswith((".yaml", ".yml")) and name not in list_specs():
        raise SpecError(unknown_name(name, {*list_specs(), *own}))
    return load_spec(name)
