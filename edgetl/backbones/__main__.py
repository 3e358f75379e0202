"""Lists the backbones: `python -m edgetl.backbones`."""

import io
import os
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from edgetl.backbones.backbone import Backbone
from edgetl.backbones.registry import BACKBONES
from edgetl.config import checked, command
from edgetl.errors import BackboneError

_WIDE = 120
"""Columns where the output is not a terminal."""


@dataclass(frozen=True)
class Config:
    """List the backbones: what they cost, how well they did on ImageNet, where their weights come from."""

    name_contains: str = ""
    """Only names with this in them, in any case."""


def main(config: Config) -> tuple[Backbone, ...]:
    """Select rows of the registry.

    Raises:
        BackboneError: no name fits.
    """
    config = checked(config)
    wanted = config.name_contains.lower()
    rows = tuple(row for row in BACKBONES.values() if wanted in row.name.lower())
    if not rows:
        raise BackboneError(f"--name-contains {config.name_contains!r}: no backbone has that in its name. Leave it out")
    return rows


def show(rows: tuple[Backbone, ...]) -> str:
    """Lay the rows out as a table as wide as the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("backbone", no_wrap=True)
    for heading in ("params", "top-1", "size", "min"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("pixels", no_wrap=True)
    table.add_column("licence", min_width=12, overflow="fold")
    table.add_column("weights", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.1f}M",
            f"{row.top1:.1%}",
            str(row.default_size),
            str(row.min_size),
            row.normalization.label,
            row.licence,
            row.weight_source,
        )
    width = os.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join([*lines, "", _LEGEND])


_LEGEND = """\
params     without classifier; top-1 on ImageNet as published; size, min in pixels
pixels     raw 0..255 becomes, in the layer `normalize`: a range, or mean 0
weights    imagenet: pip, in a Python package; download, from Keras; -, nowhere"""


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m edgetl.backbones", show=show))
