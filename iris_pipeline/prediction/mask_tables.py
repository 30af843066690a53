"""volumes.csv and confidence.csv beside the masks of a run: no line without its mask, however a run ends.

So the lines of a case go before its mask goes, and come after it; what a killed run or a user left of masks that are
gone is dropped when the next run begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from iris_pipeline.confidence.calibration import Judgement, judgements_in
from iris_pipeline.scans.outputs import label_path
from iris_pipeline.scans.volumes import volumes_in, volumes_of
from preprocessing.errors import PredictionError, RawDataError
from preprocessing.volume import Volume, read_labels


class MaskTables:
    """Both tables of one folder, while it is this run's. judged: the judgements of the masks that are there.

    Something else under the name of confidence.csv is no business of a run that judges nothing (`judges`); else, and
    under the name of volumes.csv, it is a PredictionError.
    """

    def __init__(self, out: Path, classes: Mapping[str, int], judges: bool) -> None:
        self._out, self._classes, self._judges = out, classes, judges
        self.judgements, self.volumes = judgements_in(out), volumes_in(out)
        self.judged: list[Judgement] = []
        self.volumes.only(self._has_mask)
        with nullcontext() if judges else suppress(PredictionError):
            self.judged = self.judgements.only(self._has_mask)

    def _has_mask(self, case: str) -> bool:
        return label_path(self._out, case).exists()

    def forget(self, case: str, judged: bool = True) -> None:
        """The mask of a case, if there is one, is about to go. judged: what was said of how good it is, too."""
        if not self._has_mask(case):
            return
        self.volumes.forget(case)
        if judged:
            with nullcontext() if self._judges else suppress(PredictionError):
                self.judgements.forget(case)

    def keep(self, case: str, labels: Volume, judgements: list[Judgement] | None) -> None:
        """The mask of a case was written. judgements: None where none was asked for, former ones stay."""
        self.volumes.keep(case, volumes_of(case, labels, self._classes))
        if judgements is not None:
            self.judgements.keep(case, judgements)

    def measured(self, case: str) -> bool:
        """Whether the volumes of a mask are known, measured now where they were not kept; False if it is damaged."""
        if self.volumes.has(case):
            return True
        try:
            labels = read_labels(label_path(self._out, case))
        except RawDataError:
            return False
        self.keep(case, labels, None)
        return True
