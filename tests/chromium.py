"""For tests that need a browser: skipped, with a message, where there is none."""

from __future__ import annotations

import pytest

from iris_pipeline.pages.browser import find_browser

needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium or Chrome on the path (Debian: the package chromium)"
)
