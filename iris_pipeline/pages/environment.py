"""The templates of all pages, and how text goes into them."""

from __future__ import annotations

import re

import jinja2
from markupsafe import Markup, escape


def page_environment() -> jinja2.Environment:
    """The pages' templates, escaping what they are given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iris_pipeline.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["with_code"] = with_code
    return environment


def with_code(text: str) -> Markup:
    """Text for HTML, escaped, where what stands between backquotes is set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
