"""Train, validation and test: stratified, seeded, the same whatever the order of the examples.

Within each class the examples are ordered by a hash of seed and id, and cut. So no random generator has to stay the
same over versions, no class depends on another, and a photo added later moves few others.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import get_args

from edgetl.data.examples import Example, Examples, SplitName
from edgetl.errors import ConfigError, DatasetError

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_COLUMNS = ["id", "label", "split", "sha256"]


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one data set, each with at least one example of each class."""

    train: Examples
    """What the model learns from."""
    validation: Examples
    """What choices are made by: when to stop, which settings."""
    test: Examples
    """What the reported numbers are measured on; nothing else may look at it."""


def split(
    examples: Examples, *, validation_fraction: float = 0.15, test_fraction: float = 0.25, seed: int = 0
) -> Splits:
    """Divide examples into train, validation and test.

    Splits that the data set brings are kept. A missing one is taken out of train, as a fraction of what train has.

    Args:
        examples: all examples of a data set.
        validation_fraction: share of each class, above 0; with `test_fraction` below 1.
        test_fraction: likewise.
        seed: another seed, another division.

    Returns:
        Parts that are disjoint and together complete, each sorted by id. In each class a share is exact within one
        example, unless another part would be left empty.

    Raises:
        ConfigError: the fractions leave nothing for a part.
        DatasetError: a class has too few examples for one in each part.
    """
    _check_fractions(validation_fraction, test_fraction)
    given = {item.split for item in examples}
    shares: dict[SplitName, float] = {}
    if "validation" not in given:
        shares["validation"] = validation_fraction
    if "test" not in given:
        shares["test"] = test_fraction
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for name, members in zip(examples.class_names, _by_class(examples), strict=True):
        for part, items in _divide(members, shares, seed, f"{examples.source}: class {name}").items():
            parts[part] += items
    return Splits(**{name: _part(examples, items) for name, items in parts.items()})


def stratified_subset(examples: Examples, count: int, seed: int = 0) -> Examples:
    """Choose some examples in proportion to the classes, each class at least once.

    Args:
        examples: what to choose from.
        count: how many, at least one per class that occurs; all are returned if there are no more than that.
        seed: another seed, another choice.

    Returns:
        The chosen examples, sorted by id.

    Raises:
        ConfigError: count is less than the number of classes that occur.
    """
    if count >= len(examples):
        return _part(examples, examples.items)
    sizes = {label: int(size) for label, size in enumerate(examples.class_counts.values()) if size}
    if count < len(sizes):
        raise ConfigError(
            f"a subset of {count} example(s) can't hold {len(sizes)} classes. Ask for at least {len(sizes)}"
        )
    take = dict.fromkeys(sizes, 1)
    for _ in range(count - len(sizes)):
        open_classes = [label for label in sizes if take[label] < sizes[label]]
        take[max(open_classes, key=lambda label: sizes[label] * count / len(examples) - take[label])] += 1
    members = _by_class(examples)
    return _part(examples, [item for label in take for item in _shuffled(members[label], seed)[: take[label]]])


def write_csv(splits: Splits, sha256: Mapping[str, str]) -> str:
    """Write down which example is in which split.

    Args:
        splits: the parts.
        sha256: id -> hash of the file's bytes; empty in the text where it is unknown.

    Returns:
        CSV text with the columns id, label (class name), split, sha256; sorted by id.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    names = splits.train.class_names
    rows = [(item, part.name) for part in fields(splits) for item in getattr(splits, part.name)]
    for item, part_name in sorted(rows, key=lambda row: row[0].id):
        writer.writerow([item.id, names[item.label], part_name, sha256.get(item.id, "")])
    return text.getvalue()


def read_csv(text: str, examples: Examples, *, source: str = "splits.csv") -> tuple[Splits, dict[str, str]]:
    """Find the splits of an earlier run again in a data set, which may have grown since.

    Args:
        text: what `write_csv` gave.
        examples: the data set as it is now.
        source: where the text comes from, for the message.

    Returns:
        The splits, with the classes of that run, and id -> sha256 where it is known.

    Raises:
        DatasetError: the text is damaged; an example is missing or has another label now.
    """
    rows = _read_rows(text, source)
    names = tuple(sorted({label for _, label, _, _ in rows}))
    number = {name: label for label, name in enumerate(names)}
    now = {item.id: item for item in examples}
    missing = sorted(id_ for id_, *_ in rows if id_ not in now)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"{examples.root / missing[0]}{more}: used by the run ({source}), missing now. "
            "Put the photo(s) back or train again"
        )
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for id_, label, part, _ in rows:
        item = now[id_]
        if examples.class_names[item.label] != label:
            now_in = examples.class_names[item.label]
            raise DatasetError(f"{item.path}: {label} in {source}, {now_in} now. Undo the change or train again")
        parts[part].append(Example(item.id, item.path, number[label], item.split))
    whole = Examples(examples.source, examples.root, names, ())
    return Splits(**{name: _part(whole, items) for name, items in parts.items()}), {i: h for i, _, _, h in rows if h}


def _check_fractions(validation: float, test: float) -> None:
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ConfigError(
            f"validation_fraction={validation}, test_fraction={test}: both must be above 0 and their sum below 1"
        )


def _divide(
    members: list[Example], shares: Mapping[SplitName, float], seed: int, where: str
) -> dict[SplitName, list[Example]]:
    """Cut the examples of one class; `shares` are the parts that come out of train."""
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for item in members:
        parts[item.split or "train"].append(item)
    for name in SPLITS:
        if name not in shares and name != "train" and not parts[name]:
            raise DatasetError(f"{where} has 0 examples in {name}, need at least 1. Add some, or remove {name}")
    pool = _shuffled(parts["train"], seed)
    need = len(shares) + 1
    if len(pool) < need:
        what = " + ".join(["train", *shares])
        raise DatasetError(
            f"{where} has {len(pool)} example(s), need at least {need} ({what}). Add some or remove the class"
        )
    left = len(pool)
    for later, (name, share) in enumerate(reversed(list(shares.items()))):
        size = max(1, int(share * len(pool) + 0.5))
        size = min(size, left - (len(shares) - later))
        parts[name] = pool[left - size : left]
        left -= size
    parts["train"] = pool[:left]
    return parts


def _by_class(examples: Examples) -> list[list[Example]]:
    members: list[list[Example]] = [[] for _ in examples.class_names]
    for item in examples:
        members[item.label].append(item)
    return members


def _shuffled(items: Iterable[Example], seed: int) -> list[Example]:
    """The order by hash of seed and id."""
    return sorted(items, key=lambda item: (hashlib.sha256(f"{seed}\0{item.id}".encode()).digest(), item.id))


def _part(whole: Examples, items: Iterable[Example]) -> Examples:
    return Examples(whole.source, whole.root, whole.class_names, tuple(sorted(items, key=lambda item: item.id)))


def _read_rows(text: str, source: str) -> list[tuple[str, str, SplitName, str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    if next(reader, None) != _COLUMNS:
        raise DatasetError(f"{source}: the first line is not {','.join(_COLUMNS)}. Train again to write the file anew")
    rows: list[tuple[str, str, SplitName, str]] = []
    for row in reader:
        if len(row) != len(_COLUMNS) or row[2] not in SPLITS:
            raise DatasetError(
                f"{source}: line {reader.line_num} is damaged: {row}. Train again to write the file anew"
            )
        rows.append((row[0], row[1], SPLITS[SPLITS.index(row[2])], row[3]))
    if len({id_ for id_, *_ in rows}) != len(rows) or not rows:
        raise DatasetError(f"{source}: no rows, or an id twice. Train again to write the file anew")
    return rows
