"""Text files with one photo a row, CSV or JSON Lines -> rows of cells, and every complaint about their form."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import DatasetError

Cell = str | tuple[str, ...]
"""Text; several texts where JSON has a list. Empty where there is nothing."""
CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES)
MOST_COLUMNS = 1000
"""Every row has a cell for every column: a small file of JSON Lines with a new key in each would fill all memory."""
MOST_EMPTY_CELLS = 10_000_000
"""Of JSON Lines, which write none: one wide object in a long file would fill all memory, at eight bytes a cell. So many
may be, or one for each character of the file, as in CSV."""
_DELIMITERS = ",;\t"
_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Table:
    """What one file holds."""

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, list[Cell]]]
    """Line number, from 1, and the cells in the order of the columns."""

    def where(self, line: int) -> str:
        """The place, for a message."""
        return f"{self.path}: line {line}"


def read_table(path: Path, one_of: Sequence[str]) -> Table:
    """Read a table.

    CSV may be separated by commas, semicolons or tabs, begin with a byte order mark, and be padded with empty rows, as
    spreadsheets write it. JSON Lines have one object a line; a key that a line lacks is an empty cell.

    Args:
        path: a file with one of `SUFFIXES`.
        one_of: columns of which the file must have one; they also tell the separator.

    Raises:
        DatasetError: it is not UTF-8, empty, broken, or far larger unpacked; the message names the line.
        OSError: it can't be read.
    """
    text = _decoded(path)
    if not text.strip():
        raise DatasetError(f"{path}: empty. Write a row for each photo")
    table = _read_csv(path, text, one_of) if path.suffix.lower() in CSV_SUFFIXES else _read_json_lines(path, text)
    if not table.rows:
        raise DatasetError(f"{path}: no row below the header. Write a row for each photo")
    return table


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith(_BOMS) or b"\0" in raw[:1000]:
        raise DatasetError(f"{path}: UTF-16 or binary, need UTF-8. In a spreadsheet, save it as CSV UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}: line {line}: byte {raw[error.start : error.start + 1]!r} is not UTF-8. "
            "In a spreadsheet, save it as CSV UTF-8"
        ) from None


def _read_csv(path: Path, text: str, one_of: Sequence[str]) -> Table:
    header = {mark: _header(text, mark) for mark in _DELIMITERS}
    # Without any of the names the separator that gives most columns is the likeliest, for the message that follows.
    delimiter = max(_DELIMITERS, key=lambda mark: (not set(header[mark]).isdisjoint(one_of), len(header[mark])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = tuple(_stripped(next(reader)))
        _refuse_wide(path, 1, len(columns))
        lines = ((reader.line_num, _stripped(row)) for row in reader)
        rows: list[tuple[int, list[Cell]]] = [(line, list(cells)) for line, cells in lines if any(cells)]
    except csv.Error as error:
        raise DatasetError(f"{path}: line {reader.line_num}: {error}. Mend the quotes of that row") from None
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise DatasetError(f"{path}: line 1: column {twice[0]} twice. Rename one of them")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise DatasetError(
                f"{path}: line {line}: {len(cells)} cells, the header has {len(columns)}. "
                "Mend the row; text with a separator in it needs quotes"
            )
    return Table(path, columns, rows)


def _header(text: str, delimiter: str) -> list[str]:
    """Cells of the first row; none where it can't be read, which the strict reader will say."""
    try:
        return _stripped(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)))
    except csv.Error:
        return []


def _refuse_wide(path: Path, line: int, columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise DatasetError(f"{path}: line {line}: {columns} columns, at most {MOST_COLUMNS} can be. Leave some out")


def _read_json_lines(path: Path, text: str) -> Table:
    columns: dict[str, int] = {}
    rows: list[tuple[int, list[Cell]]] = []
    for line, record in _objects(path, text):
        for key in record:
            columns.setdefault(key, len(columns))
        _refuse_wide(path, line, len(columns))
        cells: list[Cell] = [""] * len(columns)
        for key, value in record.items():
            cells[columns[key]] = _cell(value)
        rows.append((line, cells))
        if len(rows) * len(columns) > max(MOST_EMPTY_CELLS, len(text)):
            raise DatasetError(
                f"{path}: line {line}: {len(rows)} rows of {len(columns)} columns, most of them empty. "
                "Leave out columns that few rows have"
            )
    for _, cells in rows:
        cells += [""] * (len(columns) - len(cells))
    return Table(path, tuple(columns), rows)


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            record = json.loads(row)
            if "\\u" in row:  # half of a pair is JSON, but no text that a file can hold
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}: line {line}: no JSON ({error}). Write one object a line") from None
        if not isinstance(record, dict):
            raise DatasetError(f"{path}: line {line}: no JSON object. Write one object a line, such as {{...}}")
        yield line, record


def _cell(value: Any) -> Cell:
    if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
        return tuple(_text(part) for part in value)
    return _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return _plain(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _stripped(cells: Iterable[str]) -> list[str]:
    return [_plain(cell) for cell in cells]


def _plain(text: str) -> str:
    """Without blanks around it; lines end in one way, as csv writes the others so that it can't read them."""
    return text.strip().replace("\r\n", "\n").replace("\r", "\n")
