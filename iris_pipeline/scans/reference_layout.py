"""Where the images and the masks of references lie in a folder: label maps, or one mask file a class.

Nothing is read here but names, classes.json and dataset.json.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.scans.inputs import find_inputs
from preprocessing.adapters.files import one_file_each
from preprocessing.errors import ReferenceCaseError
from preprocessing.formats.slicer import is_segmentation, same_name
from preprocessing.sources.class_names import read_class_names
from preprocessing.sources.masks import MaskFiles
from preprocessing.sources.source import FileSource, Source, one_source
from preprocessing.volume import case_id_of, is_image_path, stem_of

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
Masks = dict[str, dict[str, list[Path]]]
"""case id -> class -> its mask files, of which there should be one"""


@dataclass(frozen=True)
class ReferenceLayout:
    """images, labels: by case id, some may lack their partner.

    classes: name -> value, None where nothing beside the label maps names them. told: what was found, a sentence, where
    it was guessed from names of files.
    """

    images: dict[str, Source]
    labels: dict[str, Source]
    classes: dict[str, int] | None
    told: str = ""


def find_layout(folder: Path, channel: str | None = None) -> ReferenceLayout:
    """The images and the label maps of a folder of references, at least one case with both.

    Masks of classes are labels/CASE/<class>.nii.gz or labels/CASE_<class>.nii.gz: the classes get 1, 2, 3, ... in the
    order of their names, or the values that classes.json gives them. ReferenceCaseError where no case has both, and
    where masks lie in two of these ways.
    """
    images, labels = _two_folders(folder)
    maps, in_folders = _by_id(labels, stem_of), _masks_in_folders(labels)
    found = _images(images, {*maps, *in_folders}, channel)
    mapped = found.keys() & maps.keys()
    ways = [f"{stem_of(maps[case].files[0])} (a label map)" for case in sorted(mapped)[:1]]
    ways += [f"{case}/ (a folder of masks)" for case in sorted(found.keys() & in_folders.keys())[:1]]
    begun: Masks = {}
    if not mapped:
        # Where label maps have their images, other files are second drawings: told as left out, as ever.
        files = [path for source in maps.values() for path in source.files if not is_segmentation(path)]
        begun_images = _images(images, _beginnings(files), channel)
        begun = _masks_by_beginning(files, begun_images)
        ways += [f"{path.name} (a mask of one class)" for path in _paths(begun)[:1]]
    if len(ways) > 1:
        raise ReferenceCaseError(
            "The masks of references are label maps, or masks in a folder of each case, or masks named CASE_<class>; "
            f"{labels} holds {' and '.join(ways)}: keep one way."
        )
    if not ways:
        alone = sorted({*found, *maps, *in_folders})
        raise ReferenceCaseError(
            f"Each reference needs an image and a label file of one name in {images} and "
            f"{labels}, or masks {labels.name}/CASE/<class>.nii.gz; none pair up "
            f"({', '.join(alone[:5]) or 'both are empty'})."
        )
    if mapped:
        return ReferenceLayout(found, maps, read_class_names(folder))
    used = set(_paths(begun))
    strays = {name: source for name, source in maps.items() if not used & set(source.files)}
    return _of_masks(folder, begun_images if begun else found, begun or in_folders, strays)


def masks_of_one(case: str, image: Source, folder: Path) -> ReferenceLayout:
    """One image and the folder of its masks, <class>.nii.gz or CASE_<class>.nii.gz each; classes.json beside them or in
    the folder above gives their values. ReferenceCaseError where the folder holds no mask.
    """
    masks = _masks_in(folder, case)
    if not masks:
        raise ReferenceCaseError(
            f"The masks of one image are a label file, or a folder with one file a class (<class>.nii.gz); {folder} "
            "holds none: check the name, or give -r a folder with images/ and labels/."
        )
    named = next((each for each in (folder, folder.parent) if read_class_names(each)), folder)
    return _of_masks(named, {case: image}, {case: masks}, {})


def _two_folders(folder: Path) -> tuple[Path, Path]:
    for images, labels in FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    wanted = (
        "References are a folder with images/ and labels/ (or imagesTr/ and labelsTr/), or one image "
        "and one label file"
    )
    if not folder.exists():
        raise ReferenceCaseError(f"{wanted}; {folder} does not exist: check the name.")
    raise ReferenceCaseError(f"{wanted}; {folder} is neither.")


def _images(folder: Path, known: Collection[str], channel: str | None) -> dict[str, Source]:
    """known: names of cases, which may be numbered from 0000 on as channels are."""
    if channel is not None:
        return {case.id: case.image for case in find_inputs(folder, channel)[0] if case.image}
    files = _by_id(folder, lambda path: case_id_of(path, known), are_images=True)
    if not any(path.is_dir() for path in folder.iterdir()):
        return files
    series = {case.id: case.image for case in find_inputs(folder)[0] if case.image}
    # A series and a file of one name are two of one case, which `find_inputs` leaves to its verdict.
    return series | {name: source for name, source in files.items() if not (folder / name).is_dir()}


def _by_id(folder: Path, id_of: Callable[[Path], str], are_images: bool = False) -> dict[str, Source]:
    """Case id -> its file; a case with two cannot be read, which its verdict says."""
    found: dict[str, list[FileSource]] = {}
    for path in sorted(folder.iterdir()):
        if is_image_path(path) and not (are_images and is_segmentation(path)):
            found.setdefault(id_of(path), []).append(FileSource(path))
    return {name: one_source(name, files) for name, files in found.items()}


def _masks_in_folders(labels: Path) -> Masks:
    """labels/CASE/<class>.nii.gz, or labels/CASE/CASE_<class>.nii.gz."""
    found = Masks()
    for folder in sorted(path for path in labels.iterdir() if path.is_dir()):
        if masks := _masks_in(folder, folder.name):
            found[folder.name] = masks
    return found


def _masks_in(folder: Path, case: str) -> dict[str, list[Path]]:
    """<class>.nii.gz, or CASE_<class>.nii.gz: class -> its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_image_path(path) and not is_segmentation(path):
            found.setdefault(stem_of(path).removeprefix(f"{case}_"), []).append(path)
    return found


def _masks_by_beginning(files: Collection[Path], cases: Collection[str]) -> Masks:
    """labels/CASE_<class>.nii.gz; ReferenceCaseError for a file that may be of two cases."""
    found = Masks()
    for path in files:
        fitting = sorted(case for case in cases if stem_of(path).startswith(f"{case}_"))
        if len(fitting) > 1:
            raise ReferenceCaseError(
                f"A mask CASE_<class> begins with the name of one image; {path} may be of {' or '.join(fitting)}: put "
                f"the masks of each case into a folder of its name, {path.parent.name}/CASE/<class>.nii.gz."
            )
        for case in fitting:
            name = stem_of(path).removeprefix(f"{case}_")
            found.setdefault(case, {}).setdefault(name, []).append(path)
    return found


def _beginnings(files: Collection[Path]) -> set[str]:
    """What may be the case of CASE_<class>: everything before an underscore."""
    stems = [stem_of(path) for path in files]
    return {stem[:place] for stem in stems for place, letter in enumerate(stem) if letter == "_"}


def _paths(masks: Masks) -> list[Path]:
    return [path for of_class in masks.values() for paths in of_class.values() for path in paths]


def _of_masks(
    folder: Path, images: dict[str, Source], masks: Masks, strays: Mapping[str, Source]
) -> ReferenceLayout:
    """strays: label files of no image, which are to be told as left out."""
    names = sorted({name for case, of_class in masks.items() if case in images for name in of_class})
    classes, told = _classes_of(folder, names)
    meant = {same_name(name): name for name in classes}
    labels = dict(strays)
    for case, of_class in masks.items():
        if case not in images:
            labels[case] = FileSource(next(iter(of_class.values()))[0])  # never read: told as left out
            continue
        files = {meant[same_name(n)]: paths for n, paths in of_class.items() if same_name(n) in meant}
        if files:
            labels[case] = _label_map(files, classes)
    return ReferenceLayout(images, labels, classes, told)


def _label_map(files: Mapping[str, list[Path]], classes: Mapping[str, int]) -> Source:
    """Where masks overlap the later class wins, as in a dataset of masks."""
    return one_file_each(files) or MaskFiles(
        tuple((value, files[name][0]) for name, value in classes.items() if name in files)
    )


def _classes_of(folder: Path, names: Collection[str]) -> tuple[dict[str, int], str]:
    """Class name -> value, and a sentence that tells them."""
    given = read_class_names(folder)
    if given is None:
        classes = {name: value for value, name in enumerate(names, 1)}
        return classes, f"One mask file a class: {_shown(classes)}."
    known = {same_name(name) for name in names}
    strange = [name for name in names if same_name(name) not in {same_name(each) for each in given}]
    if not any(same_name(name) in known for name in given):
        raise ReferenceCaseError(
            f"Masks of classes are named as the classes.json (or dataset.json) in {folder} names them "
            f"({', '.join(given)}); got {', '.join(names)}: rename the files, or correct it."
        )
    left_out = f"; left out, as no class is named so: {', '.join(strange)}" if strange else ""
    return given, f"One mask file a class: {_shown(given)}{left_out}."


def _shown(classes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in classes.items())
