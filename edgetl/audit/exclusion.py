"""The list of photos to leave out: written by an audit, edited by the user, given back with `--exclude`."""

import csv
import io
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from edgetl.audit.findings import Audit, CopyGroup
from edgetl.console import log
from edgetl.data import Examples
from edgetl.errors import ConfigError

Action = Literal["exclude", "keep"]


@dataclass(frozen=True)
class Row:
    """One line of the list; a photo may have several, and is left out if one of them says `exclude`."""

    id: str
    action: Action
    reason: str = ""
    detail: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
_REQUIRED = COLUMNS[:2]
_NAMED = 5
"""Labels that a contradiction names, of numbers there may be as many as copies."""
_KEPT_FIRST = ("test", "validation", "train", "")
"""Which of several copies stays: figures should be measured on as many photos as there are."""


def proposed(audit: Audit) -> list[Row]:
    """Turn what was found into a list for the user to decide on.

    Proposed for exclusion is what nobody can want: what can't be read, copies but one, copies, exact or near, whose
    labels contradict each other: a majority among them is no witness, they are one photo. What a person has to look at
    is listed and kept.
    """
    rows = [
        Row(each.id, "exclude" if each.kind in ("unreadable", "blank") else "keep", each.kind, each.detail)
        for each in audit.findings
    ]
    rows += [row for group in audit.copies for row in _of_copies(group)]
    rows += [Row(each.id, "keep", "label", f"{each.given}, looks like {each.suggested}") for each in audit.labels]
    return rows


def merged(decided: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Add what was found to what was decided before; of one photo and reason the decision stays."""
    rows = {(row.id, row.reason): row for row in new}
    rows |= {(row.id, row.reason): row for row in decided}
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], key[0]))]


def to_csv(rows: Iterable[Row]) -> str:
    """Write the list down."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def read(path: Path, examples: Examples) -> list[Row]:
    """Read a list, as we wrote it or as a spreadsheet saved it.

    Args:
        path: the CSV: columns id and action (`exclude` or `keep`), and if one likes reason and detail.
        examples: what its ids name.

    Raises:
        ConfigError: no such file, other columns, or a line that is broken or can't be meant; the message names it.
    """
    text = _text(path)
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in first else ",")
    known = {example.id for example in examples}
    try:
        _check_columns(reader.fieldnames or [], path)
        return [_row(cells, f"--exclude {path}: line {reader.line_num}", known, examples.source) for cells in reader]
    except csv.Error as error:
        line = reader.reader.line_num  # what DictReader says is the row before
        raise ConfigError(f"--exclude {path}: line {line}: {error}. Mend the quotes of that row") from None


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.expanduser().stat().st_mode):
            raise OSError("not a regular file")  # a pipe would be waited for
        return path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--exclude {path}: {why}. Name the exclude.csv that recipes.audit wrote") from None


def _check_columns(names: Sequence[str], path: Path) -> None:
    wrong = [name for name in names if name not in COLUMNS] + [f"no {name}" for name in _REQUIRED if name not in names]
    if wrong or len(set(names)) < len(names):
        raise ConfigError(
            f"--exclude {path}: line 1 has columns {','.join(names) or '(none)'}, "
            f"expected {','.join(_REQUIRED)} and perhaps {','.join(COLUMNS[2:])}"
        )


def without(examples: Examples, path: Path | None) -> Examples:
    """Leave out what a list excludes; everything stays where there is none.

    Raises:
        ConfigError: see `read`.
    """
    if path is None:
        return examples
    excluded = {row.id for row in read(path, examples) if row.action == "exclude"}
    log.info("%d of %d photos left out by %s", len(excluded), len(examples), path)
    return examples.with_items([example for example in examples if example.id not in excluded])


def _row(cells: dict[str, str], where: str, known: set[str], source: str) -> Row:
    if None in cells or None in cells.values():
        raise ConfigError(f"{where} has more or fewer cells than the first line. Put names with commas into quotes")
    if cells["id"] not in known:
        raise ConfigError(f"{where}: {source} has no photo {cells['id']!r}. Correct or remove the line")
    action = next((each for each in get_args(Action) if each == cells["action"].strip().lower()), None)
    if action is None:
        raise ConfigError(f"{where}: action is {cells['action']!r}, expected {' or '.join(get_args(Action))}")
    return Row(cells["id"], action, cells.get("reason", ""), cells.get("detail", ""))


def _of_copies(group: CopyGroup) -> Iterator[Row]:
    if group.contradicts:
        firsts = {member.label: member for member in reversed(group.members)}  # not all: a film has thousands of frames
        said = ", ".join(sorted(f"{member.id}: {label}" for label, member in firsts.items())[:_NAMED])
        yield from (Row(member.id, "exclude", "contradiction", said) for member in group.members)
        return
    reason = "exact_copy" if group.exact else "near_copy"
    kept, *others = sorted(group.members, key=lambda member: (_KEPT_FIRST.index(member.split), member.id))
    for member in others:
        apart = f", {kept.split} has it" if member.split != kept.split else ""
        yield Row(member.id, "exclude", reason, f"of {kept.id}{apart}")
