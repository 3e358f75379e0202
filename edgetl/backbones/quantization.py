"""Which form each family of backbones has, as `python -m export.families` found it; data, nothing is computed here."""

import csv
import re
from pathlib import Path

from edgetl.backbones import registry
from edgetl.backbones.backbone import Backbone, KerasFile

TABLE = Path(__file__).with_name("quantization.csv")


def rows() -> tuple[dict[str, str], ...]:
    """Rows of the table: `backbone` (one for its family), and for each scheme `works`, `integer` or `refused: why`."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def family(name: str) -> tuple[str, ...]:
    """Names of all backbones that a row stands for: other sizes of the same architecture."""
    wanted = _kind(registry.get(name))
    return tuple(row.name for row in registry.BACKBONES.values() if _kind(row) == wanted)


def _kind(row: Backbone) -> tuple[object, ...]:
    """What members of a family share: where Keras keeps their weights, what they expect of pixels, their blocks."""
    folder = row.imagenet.url.rpartition("/")[0] if isinstance(row.imagenet, KerasFile) else ""
    return re.sub(r"\d+", "", folder), row.normalization, row.blocks
