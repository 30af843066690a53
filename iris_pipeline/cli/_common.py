"""What every console script shares: one-sentence errors and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from preprocessing.errors import IrisError


def run(function: Callable[[], int]) -> int:
    """Call a command; an `IrisError` becomes one sentence on stderr and status 1, Ctrl-C status 130.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        return function()
    except IrisError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; what was finished is kept, run the same command again to go on.", file=sys.stderr)
        return 130
