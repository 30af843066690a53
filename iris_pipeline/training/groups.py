"""Groups of episodes, step after step without end, drawn here or ahead of their turn by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader, Dataset

from iris_pipeline.sampling.episode import Episode
from iris_pipeline.sampling.episodes import EpisodeSampler
from iris_pipeline.training.interrupt import SIGNALS
from iris_pipeline.training.train_settings import TrainSettings
from preprocessing.errors import IrisError
from preprocessing.runtime.parallel import end_with_parent


class _Groups(Dataset[list[Episode] | Exception]):
    """Step i of a run as a list of groups, so that workers can prepare steps ahead.

    An error that a user can mend is handed over as a value: raised in a worker it would come back as a page of text.
    """

    def __init__(self, sampler: EpisodeSampler, settings: TrainSettings):
        self.sampler, self.settings = sampler, settings

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, group: int) -> list[Episode] | Exception:
        try:
            return self.sampler.batch(group, self.settings.group_size)
        except (IrisError, OSError) as error:
            return error


def group_stream(
    sampler: EpisodeSampler, settings: TrainSettings, first_group: int
) -> Generator[list[Episode], None, None]:
    """Groups first_group, first_group + 1, ... without end; prepared ahead by `settings.workers` processes.

    IrisError and OSError of a worker are raised here, as they would be without one.

    The processes start with the first group, and end when the stream is closed, or with the process that asked.
    """

    def indices() -> Iterator[int]:
        index = first_group
        while True:
            yield index
            index += 1

    loader = DataLoader(
        _Groups(sampler, settings),
        sampler=indices(),
        batch_size=None,
        num_workers=settings.workers,
        multiprocessing_context="spawn" if settings.workers else None,
        worker_init_fn=_start_worker,
        # It seeds the workers, whose episodes have seeds of their own; without it the caller loses a random number.
        generator=torch.Generator(),
    )
    with _signals_held() if settings.workers else nullcontext():
        groups = iter(loader)
    try:
        for group in groups:
            if isinstance(group, Exception):
                raise group
            yield group
    finally:
        # The iterator does it when the last traceback that knows it is gone, which may be too late: at the end of the
        # process it is the workers' signal to end that is left, and they ignore it.
        getattr(groups, "_shutdown_workers", lambda: None)()


def _start_worker(_: int) -> None:
    """Ctrl-C and SIGTERM, which often go to all processes at once, are for the main one to take between two steps.

    As nothing else ends a worker that ignores them, it watches for the end of the main process itself.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait until the context is left; processes that are started in it are born with them held.

    A worker needs seconds to come as far as `_start_worker`, and a signal in them would end it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # whose start would let the signals through
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
