"""Lists the backbones: `python -m edgetl.backbones`."""

import os
import sys
import textwrap
from dataclasses import dataclass

from rich.table import Table

from edgetl.backbones import quantization
from edgetl.backbones.backbone import Backbone
from edgetl.backbones.registry import BACKBONES
from edgetl.config import checked, command
from edgetl.console import table_lines
from edgetl.errors import BackboneError

_WIDE = 120
"""Columns where the output is not a terminal."""


@dataclass(frozen=True)
class Config:
    """List the backbones: what they cost, how well they did on ImageNet, where their weights come from."""

    name_contains: str = ""
    """Only names with this in them, in any case."""
    quantization: bool = False
    """Show instead which form each family has under each scheme of `export.convert`."""


@dataclass(frozen=True)
class Listing:
    """Rows of the registry, and what is shown of them."""

    rows: tuple[Backbone, ...]
    quantization: bool


def main(config: Config) -> Listing:
    """Select rows of the registry.

    Raises:
        BackboneError: no name fits.
    """
    config = checked(config)
    wanted = config.name_contains.lower()
    rows = tuple(row for row in BACKBONES.values() if wanted in row.name.lower())
    if not rows:
        raise BackboneError(f"--name-contains {config.name_contains!r}: no backbone has that in its name. Leave it out")
    return Listing(rows, config.quantization)


def show(listing: Listing) -> str:
    """Lay the rows out as a table as wide as the terminal."""
    return _quantization(listing.rows) if listing.quantization else _backbones(listing.rows)


def _backbones(rows: tuple[Backbone, ...]) -> str:
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
    return "\n".join([*_lines(table), "", _LEGEND])


def _quantization(rows: tuple[Backbone, ...]) -> str:
    wanted = {row.name for row in rows}
    measured = [row for row in quantization.rows() if wanted & set(quantization.family(row["backbone"]))]
    schemes = [name for name in (measured[0] if measured else {}) if name != "backbone"]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("family of", no_wrap=True)
    for name in schemes:
        table.add_column(name.replace("_", " "), min_width=min(map(len, name.split("_"))))
    notes: list[str] = []
    for row in measured:
        cells = []
        for name in schemes:
            kind, _, why = row[name].partition(": ")
            if why and why not in notes:
                notes.append(why)
            cells.append(f"- [{notes.index(why) + 1}]" if why else kind)
        table.add_row(row["backbone"], *cells)
    lines = [
        line
        for number, why in enumerate(notes, 1)
        for line in textwrap.wrap(f"[{number}] {why}", _WIDE, subsequent_indent="    ", break_long_words=False)
    ]
    return "\n".join([*_lines(table), "", _FORMS, *lines])


def _lines(table: Table) -> list[str]:
    return table_lines(table, os.get_terminal_size().columns if sys.stdout.isatty() else _WIDE)


_LEGEND = """\
params     without classifier; top-1 on ImageNet as published; size, min in pixels
pixels     raw 0..255 becomes, in the layer `normalize`: a range, or mean 0
weights    imagenet: pip, in a Python package; download, from Keras; -, nowhere"""

_FORMS = """\
One backbone stands for its family; random weights, so this is about operators, not about accuracy (export.optimize is).
integer    no float operator inside, raw uint8 pixels in; works: with float operators, as the scheme means it"""


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m edgetl.backbones", show=show))
