"""Every exception the project raises on purpose, on one screen.

Each message is one sentence that tells what was allowed, what came and what to do. The command line prints it and
exits with a non-zero status; anything that is not an `IrisError` is a defect and shows its traceback.
"""


class IrisError(Exception):
    """Base of all errors a user can cause and mend."""


class SpecError(IrisError):
    """A dataset specification is unknown, incomplete or has a key the schema lacks."""


class RawDataError(IrisError):
    """A raw file is missing, unreadable or holds something that cannot be used."""


class GridMismatchError(RawDataError):
    """An image and its label do not lie on the same grid."""


class ChannelError(RawDataError):
    """A file has several channels and none was named, or one that it lacks."""


class LabelValueError(RawDataError):
    """A label map holds a value that the specification does not name."""


class LockError(IrisError):
    """Another run works in a folder, or the folder cannot be written."""


class PlanError(IrisError):
    """A plan cannot be made, or belongs to another schema version."""


class StoreError(IrisError):
    """The unified store is missing, unfinished or of another schema version."""


class EpisodeError(IrisError):
    """No episode can be drawn: too few subjects or no class with voxels."""


class ModelError(IrisError):
    """A model configuration or an input shape that the network cannot take."""


class CheckpointError(IrisError):
    """A checkpoint is missing, incomplete or of another schema version."""


class TaskError(IrisError):
    """A task file is unreadable, of another model, or lacks a class that was asked for."""


class ReferenceCaseError(IrisError):
    """A reference cannot define a task: no mask, no such class, or it is the query itself."""


class PredictionError(IrisError):
    """Some cases could not be segmented; the others were."""


class EvaluationError(IrisError):
    """Predictions and truth cannot be compared."""


class BrowserError(IrisError):
    """A page cannot be shown or pictured: no browser, no viewer, or a browser that gave up."""


class ExportError(IrisError):
    """A dataset cannot be written in another tool's form."""
