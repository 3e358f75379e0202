"""A table with one photo a row -> Examples: what each cell may hold, and what rows may say together."""

import dataclasses
import math
import os
import posixpath
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.data.columns import PHOTO_COLUMNS, Labelling, Roles, photo_column, roles_of
from edgetl.data.examples import SPLIT_NAMES, Example, Examples, Label, SplitName, ordered
from edgetl.data.scan import Home, check_name, leads_out
from edgetl.data.tables import Cell, Table, read_table
from edgetl.errors import DatasetError
from edgetl.outputs import Task

METADATA = ("metadata.csv", "metadata.jsonl")
"""What a Hugging Face image folder calls its tables."""
OWN = ("id", "label", "split", "group", "weight", "sha256")
"""Columns of a run's splits.csv; others of the same name get an underscore at their end."""
_BETWEEN = "|"
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Row:
    """One row as far as it can be understood without the others."""

    where: str
    line: int
    id: str
    label: tuple[str, ...] | tuple[float, ...]
    """Names, or the value of each target."""
    split: SplitName | None
    group: str
    weight: float
    values: tuple[str, ...]


def metadata_tables(root: Path) -> dict[SplitName | None, Path]:
    """Find the tables of a Hugging Face image folder: one in the folder itself, or one in each split's.

    Returns:
        Split -> file, None standing for all; empty if the folder is of another kind.

    Raises:
        DatasetError: two tables in one folder, or a split without one.
    """
    if top := _metadata(root):
        return {None: top}
    folders = [e for e in sorted(root.iterdir()) if e.name.lower() in SPLIT_NAMES and e.is_dir()]
    found = {folder: _metadata(folder) for folder in folders}
    if not any(found.values()):
        return {}
    tables: dict[SplitName | None, Path] = {}
    for folder, table in found.items():
        split = SPLIT_NAMES[folder.name.lower()]
        if table is None or split in tables:
            what = "no metadata.csv, other splits have one" if table is None else f"a second folder for {split}"
            raise DatasetError(f"{folder}: {what}. Add it, or move the folder away")
        tables[split] = table
    return tables


def load_manifest(
    tables: Mapping[SplitName | None, Path], root: Path, source: str, wanted: Labelling, *, folders: bool = False
) -> Examples:
    """Read the examples of one data set. No photo is opened, but each has to be there.

    Args:
        tables: split -> file; None where the file itself says, or nothing does. Paths in it are relative to its folder.
        root: the folder that ids are relative to.
        source: what the user asked for.
        wanted: what they said of the labels.
        folders: whether photos in folders called train and test are a split.

    Raises:
        DatasetError: see the message; it names file and line.
    """
    read = {split: read_table(path, PHOTO_COLUMNS) for split, path in tables.items()}
    columns = tuple(dict.fromkeys(name for table in read.values() for name in table.columns))
    roles = roles_of(columns, next(iter(read.values())).path, wanted)
    rows = [row for split, table in read.items() for row in _rows(table, columns, roles, root, split)]
    _refuse_twice(rows)
    _refuse_absent(rows, root, source)
    if folders and roles.split is None and None in tables:
        rows = _split_by_folder(rows)
    names = _names(rows, tuple(columns[i] for i in roles.label), roles.task, wanted.class_order, source)
    _refuse_unknown_to_train(rows, roles.task, source)
    number = {name: index for index, name in enumerate(names)}
    items = [
        Example(
            row.id,
            root / row.id,
            _label(row, roles.task, number),
            row.split,
            row.group,
            row.weight,
            row.values,
            row.line,
        )
        for row in sorted(rows, key=lambda row: row.id)
    ]
    rest = tuple(f"{columns[i]}_" if columns[i] in OWN else columns[i] for i in roles.rest)
    return Examples(source, root, names, tuple(items), roles.task, rest)


def named_photos(path: Path) -> tuple[str, ...]:
    """List the photos that a table names, in its order, whether they are there or not.

    Args:
        path: the table.

    Returns:
        Posix paths relative to the table's folder.

    Raises:
        DatasetError: see the message; it names file and line.
    """
    table = read_table(path, PHOTO_COLUMNS)
    at, home = photo_column(table.columns, path), str(path.parent.absolute())
    return tuple(_id(cells[at], "", home, table.where(line)) for line, cells in table.rows)


def _metadata(folder: Path) -> Path | None:
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise DatasetError(f"{folder}: both {' and '.join(METADATA)}. Remove one of them")
    return found[0] if found else None


def _rows(table: Table, columns: Sequence[str], roles: Roles, root: Path, split: SplitName | None) -> Iterator[_Row]:
    """Understand each row of one file; `columns` are those of all files of the data set."""
    place = [table.columns.index(name) if name in table.columns else None for name in columns]
    same = place == list(range(len(columns)))
    base = table.path.parent.relative_to(root).as_posix()
    home = str(root.absolute())
    for line, given in table.rows:
        cells: list[Cell] = given if same else ["" if at is None else given[at] for at in place]
        where = table.where(line)
        yield _Row(
            where,
            line,
            _id(cells[roles.photo], base, home, where),
            _labels([cells[at] for at in roles.label], [columns[at] for at in roles.label], roles.task, where),
            split if roles.split is None else _split(_plain(cells[roles.split]), where) or split,
            "" if roles.group is None else sys.intern(_plain(cells[roles.group])),
            1.0 if roles.weight is None else _weight(_plain(cells[roles.weight]), where),
            tuple(sys.intern(_plain(cells[at])) for at in roles.rest),
        )


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else _BETWEEN.join(cell)


def _id(cell: Cell, base: str, home: str, where: str) -> str:
    """The posix path relative to the root."""
    text = _plain(cell)
    if not text:
        raise DatasetError(f"{where}: no path. Name a photo or remove the row")
    id_ = os.path.relpath(text, home) if posixpath.isabs(text) else posixpath.normpath(posixpath.join(base, text))
    if leads_out(id_):
        raise DatasetError(f"{where}: {text} lies outside {home}. Put the table above all photos, or copy them there")
    check_name(id_, where, "path")
    return id_


def _labels(cells: list[Cell], names: list[str], task: Task, where: str) -> tuple[str, ...] | tuple[float, ...]:
    if task == "regression":
        return tuple(_number(_plain(cell), f"{where}: {name}") for cell, name in zip(cells, names, strict=True))
    if task == "multi_label":
        parts = cells[0].split(_BETWEEN) if isinstance(cells[0], str) else cells[0]
        labels = tuple(sorted({sys.intern(part.strip()) for part in parts} - {""}))
    else:
        labels = (sys.intern(_plain(cells[0])),)
        if not labels[0]:
            raise DatasetError(f"{where}: no {names[0]}. Fill it in or remove the row")
    for label in labels:
        if _BETWEEN in label:
            raise DatasetError(
                f"{where}: '{_BETWEEN}' in {label!r} stands between labels. Rename it; for several labels a photo "
                "call the column labels"
            )
        check_name(label, where, names[0])
    return labels


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < _LARGEST:
        raise DatasetError(
            f"{where}: {text!r} is no finite number. Write one such as 3.5 (with a point), or remove the row"
        )
    return number


def _split(text: str, where: str) -> SplitName | None:
    if text and text.lower() not in SPLIT_NAMES:
        raise DatasetError(f"{where}: unknown split {text!r}. Write train, validation or test, or nothing")
    return SPLIT_NAMES[text.lower()] if text else None


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = math.nan
    if not _SMALLEST <= weight <= _LARGEST:
        raise DatasetError(f"{where}: weight {text!r}, need a number above 0. Remove the row if it must not count")
    return weight


def _refuse_twice(rows: Iterable[_Row]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        if row.id in first:
            raise DatasetError(
                f"{row.where}: {row.id} is in {first[row.id]} already. Keep one row for each photo; several labels go "
                f"into a column labels, with '{_BETWEEN}' between them"
            )
        first[row.id] = row.where


def _refuse_absent(rows: Iterable[_Row], root: Path, source: str) -> None:
    """Refuse photos that are not there, and links that lead out of the root: the folder alone is the data set."""
    home = Home(root)
    missing: list[_Row] = []
    for row in rows:
        path = root / row.id
        try:
            mode = path.lstat().st_mode
        except (OSError, ValueError):
            missing.append(row)
            continue
        if not home.holds(path, link=stat.S_ISLNK(mode)):
            raise DatasetError(f"{row.where}: {row.id} is a link out of {root}. Copy what it points to")
        if not (stat.S_ISREG(mode) or path.is_file()):
            missing.append(row)
    if missing:
        hint = " Write / instead of \\." if "\\" in missing[0].id else ""
        raise DatasetError(
            f"{source}: {len(missing)} photo(s) are missing, the first: {missing[0].where}: {missing[0].id}.{hint} "
            f"Paths are relative to the table's folder; put the photos there or remove the rows"
        )


def _split_by_folder(rows: list[_Row]) -> list[_Row]:
    """Photos in folders called train and test are a split, if all are."""
    splits = [SPLIT_NAMES.get(row.id.split("/", 1)[0].lower()) if "/" in row.id else None for row in rows]
    if None in splits or "train" not in splits:
        return rows
    return [dataclasses.replace(row, split=split) for row, split in zip(rows, splits, strict=True)]


def _names(
    rows: list[_Row], columns: tuple[str, ...], task: Task, class_order: tuple[str, ...], source: str
) -> tuple[str, ...]:
    """Of classes, labels or targets; refuses what there is nothing to learn of."""
    if task == "regression":
        for at, name in enumerate(columns):
            if len({row.label[at] for row in rows}) == 1:
                raise DatasetError(f"{source}: {name} is {rows[0].label[at]} in every row: nothing to learn. Remove it")
        return columns
    found = {str(name) for row in rows for name in row.label}
    least = 1 if task == "multi_label" else 2
    if len(found) < least:
        what = "label" if task == "multi_label" else "classes"
        raise DatasetError(
            f"{source}: column {columns[0]} has {len(found)} {what} ({', '.join(found)}), need at least {least}"
        )
    return ordered(found, class_order, source) if task == "ordinal" else tuple(sorted(found))


def _refuse_unknown_to_train(rows: list[_Row], task: Task, source: str) -> None:
    if not any(row.split in (None, "train") for row in rows):
        raise DatasetError(f"{source}: no row is in train. Write train into the column split, or leave it empty")
    if task == "regression":
        return
    known = {name for row in rows if row.split in (None, "train") for name in row.label}
    for row in rows:
        if unknown := sorted(str(name) for name in row.label if name not in known):
            raise DatasetError(
                f"{row.where}: {unknown[0]!r} is in {row.split}, but in no row of train. Add rows to train or remove it"
            )


def _label(row: _Row, task: Task, number: Mapping[str, int]) -> Label:
    if task == "regression":
        return tuple(float(value) for value in row.label)
    indices = tuple(sorted(number[str(name)] for name in row.label))
    return indices if task == "multi_label" else indices[0]
