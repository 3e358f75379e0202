"""Sections -> one HTML page that needs nothing else: no script, no network, its photos inside.

The page says so itself: its content security policy forbids scripts and every request. All text is escaped by the
templates; only drawings and addresses of photos, which this package makes, are put in as they are.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from export.reporting.blocks import Section, Summary

TEMPLATES = Path(__file__).with_name("templates")


def page(title: str, summary: Summary, sections: Sequence[Section], *, shipped: str, made: str) -> str:
    """Write the page.

    Args:
        title: name of the run.
        summary: what stands first.
        sections: what follows.
        shipped: the artifact to ship first.
        made: when, and with which version.
    """
    template = environment().get_template("page.html.j2")
    return str(template.render(title=title, summary=summary, sections=sections, shipped=shipped, made=made))


@cache
def environment() -> Any:
    """Templates that escape what they are given, and fail on what they are not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
