"""Source: where the voxels of an image or a label map come from, as a small value that can be read.

A raw dataset keeps its scans in many ways: one file each, frames of a 4D file, slices beside a DICOM series.
A source names the files and knows how they become one Volume; nothing is read before `read` is called.
Sources are frozen, compare by value and travel between processes. Arrays are [D,H,W] = (z,y,x).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from preprocessing.errors import ChannelError, RawDataError
from preprocessing.formats.itk_files import data_files
from preprocessing.volume import CORNER_VOXELS, Volume, as_image, as_labels, corner_shift, read_raw


class Source(ABC):
    """One image or label map on disk. `str(source)` names it in messages."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Every file (or DICOM folder) that is read by its name; the first one stands for the source."""

    @property
    def contents(self) -> tuple[Path, ...]:
        """`files`, and those that their headers point to: all whose bytes decide the voxels."""
        return tuple(each for path in self.files for each in (path, *data_files(path)))

    @property
    def name(self) -> str:
        """The name of the first file, without its folder."""
        return self.files[0].name

    @property
    def recipe(self) -> str:
        """What decides the voxels beside the bytes of the files; '' for a plain file."""
        return ""

    @abstractmethod
    def read(self) -> Volume:
        """The voxels in the type of the file. RawDataError, one sentence, where that is not possible."""

    def read_image(self) -> Volume:
        """As float32 grey values."""
        return as_image(self.read())

    def read_labels(self) -> Volume:
        """As whole numbers; RawDataError where they are not."""
        return as_labels(self.read(), str(self))

    def __str__(self) -> str:
        return str(self.files[0])


@dataclass(frozen=True)
class FileSource(Source):
    """One NIfTI, mha, mhd or nrrd file, or a folder with one DICOM series. channel (from 0): where it has several."""

    path: Path
    channel: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def recipe(self) -> str:
        return "" if self.channel is None else f"channel {self.channel}"

    def read(self) -> Volume:
        return read_raw(self.path, channel=self.channel)

    def read_labels(self) -> Volume:
        """RawDataError of its own for masks of several channels: to choose one of them would be no advice."""
        try:
            return super().read_labels()
        except ChannelError:
            raise RawDataError(
                f"A mask is one label map of three axes (x,y,z) with a value for each class, but {self.path} has "
                "several channels (a fourth axis, one for each class perhaps): join them into one label map."
            ) from None


@dataclass(frozen=True)
class RefusedSource(Source):
    """Of a case that is known to be unreadable before it is read; `why`, one sentence, is what reading raises."""

    paths: tuple[Path, ...]
    why: str

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths

    def read(self) -> Volume:
        raise RawDataError(self.why)


def one_source(case: str, found: Sequence[Source]) -> Source:
    """The one source of a case; of several, one that is refused, so that the other cases of its folder go on."""
    if len(found) == 1:
        return found[0]
    shown = " and ".join(source.name for source in found)
    return RefusedSource(
        tuple(path for source in found for path in source.files),
        f"Each case has one file; '{case}' has {shown} in {found[0].files[0].parent}: keep one of them.",
    )


@dataclass(frozen=True)
class FrameSource(Source):
    """One frame (from 0) of a 4D NIfTI (x,y,z,t). labelled: an empty frame is an error, not an empty label map."""

    path: Path
    frame: int
    labelled: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def recipe(self) -> str:
        return f"frame {self.frame}"

    def read(self) -> Volume:
        volume = read_raw(self.path, self.frame)
        if self.labelled and not np.any(volume.array):
            raise RawDataError(
                f"Frame {self.frame} (from 0) of {self.path} should be labelled and is empty: the table of frames "
                "and the label file do not belong together; copy both again."
            )
        return volume

    def __str__(self) -> str:
        return f"{self.path} (frame {self.frame})"


@dataclass(frozen=True)
class Copies(Source):
    """What is there more than once under one name, say as .nii and as .nii.gz: usable where all hold the same.

    `sources`: two or more, the first of which is read for all.
    """

    sources: tuple[Source, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for source in self.sources for path in source.files)

    @property
    def recipe(self) -> str:
        return "copies " + "|".join(source.recipe for source in self.sources)

    def read(self) -> Volume:
        """The first, with a doubt that names the others. RawDataError where one differs or cannot be read."""
        first = self.sources[0].read()
        for source in self.sources[1:]:
            other = source.read()
            voxels, _ = corner_shift(first.shape, first.affine, other.affine)
            if voxels > CORNER_VOXELS or not np.array_equal(first.array, other.array):
                raise RawDataError(f"{one_name(self.files)} and differ: keep one.")
        told = f"{one_name(self.files)} and hold the same voxels; the first is used"
        return replace(first, doubts=(*first.doubts, told))


def one_of(sources: Sequence[Source]) -> Source:
    """The only one, or all of them as copies."""
    return sources[0] if len(sources) == 1 else Copies(tuple(sources))


def one_name(files: Sequence[Path]) -> str:
    """How a message on copies begins: their names, with the folders where only these tell them apart."""
    apart = len({path.name for path in files}) < len(files)
    return " and ".join(str(path) if apart else path.name for path in files) + " go by one name"


@dataclass(frozen=True)
class Unreadable(Source):
    """A case that was announced but cannot be read: `why`, one sentence, becomes its verdict."""

    why: str

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    @property
    def name(self) -> str:
        return "nothing"

    @property
    def recipe(self) -> str:
        return self.why

    def read(self) -> Volume:
        raise RawDataError(self.why)

    def __str__(self) -> str:
        return self.name
