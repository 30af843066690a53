"""What goes into a page is escaped, and a template that lacks a value says so."""

from __future__ import annotations

import jinja2
import pytest

from iris_pipeline.pages.environment import page_environment, with_code


def test_code_in_a_sentence_is_escaped() -> None:
    assert with_code("Made by `a --b <c>` & co") == "Made by <code>a --b &lt;c&gt;</code> &amp; co"


def test_a_template_escapes_and_misses_nothing() -> None:
    environment = page_environment()
    assert environment.from_string("{{ a }}").render(a="<b>") == "&lt;b&gt;"
    with pytest.raises(jinja2.UndefinedError, match="'a' is undefined"):
        environment.from_string("{{ a }}").render()
