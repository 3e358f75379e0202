"""What a page is made of: sections of blocks, one template each. All text is plain; the template escapes it."""

from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from export.reporting.charts import Chart

MINUS = "\u2212"
NARROW = "\u202f"
"""Narrow space that does not break: between a number and its unit."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    template: ClassVar[str] = "text"
    text: str
    style: str = ""
    """`note` is set smaller."""


@dataclass(frozen=True)
class Missing:
    """Something that was not measured, and the command that measures it."""

    template: ClassVar[str] = "missing"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Commands:
    """What to type."""

    template: ClassVar[str] = "commands"
    text: str


@dataclass(frozen=True)
class Cell:
    """A place in a table, where it is more than its text."""

    text: str
    share: float | None = None
    """How dark it is, 0..1."""
    style: str = ""
    """`bad`: stands out."""

    def __str__(self) -> str:
        """The text alone."""
        return self.text


@dataclass(frozen=True)
class Row:
    """A line of a table; the first cell names it."""

    cells: tuple[Cell | str, ...]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column is text and whose others are figures, unless named in `words`."""

    template: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: tuple[int, ...] = ()
    """Columns, from 0, that hold text."""
    folded: str = ""
    """If not empty, the table is hidden behind this line."""
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    template: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Tables:
    """Small tables side by side."""

    template: ClassVar[str] = "tables"
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Card:
    """A photo and what was said of it."""

    pictures: tuple[tuple[Markup, str], ...]
    """(address of the image's data, what it shows)."""
    title: str
    lines: tuple[tuple[str, str], ...]
    """(who, what it says)."""


@dataclass(frozen=True)
class Gallery:
    """Photos."""

    template: ClassVar[str] = "gallery"
    cards: tuple[Card, ...]


Block = Text | Missing | Commands | Table | Tables | Charts | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""
    """One sentence under the title: what is shown and how to read it."""


@dataclass(frozen=True)
class Tile:
    """A key figure."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Caution:
    """Something to beware of."""

    title: str
    """In a few words."""
    text: str


@dataclass(frozen=True)
class Summary:
    """The head of the page."""

    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    reasons: tuple[str, ...]
    """Why this artifact."""
    cautions: tuple[Caution, ...]
    """What to beware of."""


def percent(share: float | None, digits: int = 1) -> str:
    """A share as `85.4 %`."""
    return "\u2013" if share is None else f"{_signed(100 * share, digits)}{NARROW}%"


def between(low: float, high: float, digits: int = 1) -> str:
    """An interval of shares as `82.5 to 87.9 %`."""
    return f"{_signed(100 * low, digits)} to {_signed(100 * high, digits)}{NARROW}%"


def points(share: float | None, digits: int = 2) -> str:
    """A difference of shares, in points with its sign."""
    if share is None:
        return "\u2013"
    text = _signed(100 * share, digits)
    return text if text.startswith(MINUS) or not float(text) else f"+{text}"


def change_between(drop_low: float, drop_high: float) -> str:
    """The interval of a loss, told as a change: in points, the worst end first."""
    return f"{points(-drop_high, 1)} to {points(-drop_low, 1)}"


def milliseconds(time: float | None) -> str:
    """A time with three digits."""
    return "\u2013" if time is None else f"{time:.2f}" if time < 10 else f"{time:.1f}" if time < 100 else f"{time:.0f}"


def megabytes(size_bytes: int) -> str:
    """A size in MB of 10^6 bytes."""
    return f"{size_bytes / 1e6:.2f}"


def value(number: float) -> str:
    """A number of a target: four digits."""
    return f"{number:.4g}".replace("-", MINUS)


def count(number: int, one: str, many: str = "") -> str:
    """A number and what it counts."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _signed(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", MINUS)
