"""Shows an audit: one HTML file with everything in it, which asks no network for anything."""

import base64
import io
from collections import defaultdict
from pathlib import Path

from edgetl.audit import summary
from edgetl.audit.findings import Audit, CopyGroup, Finding
from edgetl.data import Examples, read_image
from edgetl.errors import UnreadableImageError
from edgetl.inputs import ImageInput
from edgetl.printable import printable

TEMPLATE = "page.html"
THUMBNAIL = ImageInput(112, 112, "pad")
PER_SECTION = 18
"""Photos shown of one kind; groups of copies likewise. All sections full of noise make 2.7 MB."""
PER_GROUP = 4


def render(audit: Audit, examples: Examples, exclude: Path) -> str:
    """Lay an audit out as a page.

    Args:
        audit: what was found.
        examples: the photos, for thumbnails; one that can't be read any more gets none.
        exclude: where the list of exclusions is, for the advice.

    Returns:
        HTML, below 3 MB whatever was found.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # autoescape: names of files and classes are data, whatever they contain.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in audit.findings:
        by_kind[finding.kind].append(finding)
    groups = sorted(audit.copies, key=_urgency)
    paths = {example.id: example.path for example in examples}
    return environment.get_template(TEMPLATE).render(
        audit=audit,
        lines=summary.lines(audit),
        by_kind=by_kind,
        groups=groups[:PER_SECTION],
        shift_text=summary.shift_text,
        thumbnail=lambda id_: _thumbnail(paths[id_]),
        exclude=exclude,
        most=PER_SECTION,
        members=PER_GROUP,
    )


def _shown(value: object) -> object:
    return printable(value) if type(value) is str else value  # not what a macro gives: it is a str of another type


def _urgency(group: CopyGroup) -> tuple[bool, bool, bool]:
    return not group.leaks, not group.contradicts, not group.exact


def _thumbnail(path: Path) -> str:
    """A photo as a data URI, 2 to 5 KB; empty where it can't be read."""
    from PIL import Image

    try:
        pixels = read_image(path, THUMBNAIL)
    except UnreadableImageError:
        return ""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
