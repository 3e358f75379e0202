"""Train, validation and test: stratified, seeded, the same whatever the order of the examples.

Within each class the examples are ordered by a hash of seed and id, and cut. So no random generator has to stay the
same over versions, no class depends on another, and a photo added later moves few others. Groups, several labels and
numbers are divided by `grouping` instead.
"""

import csv
import hashlib
import io
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from edgetl.data.examples import Example, Examples, SplitName, parse_label
from edgetl.data.grouping import EXAMPLE, Unit, required, spread, units_of
from edgetl.data.scan import Home, leads_out
from edgetl.errors import ConfigError, DatasetError
from edgetl.outputs import OutputSpec

log = logging.getLogger(__name__)

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_COLUMNS = ["id", "label", "split", "group", "weight", "sha256"]
_MISSED = 0.03
"""Shares that groups make miss by more than this are told."""
_AGAIN = "Train again to write the file anew"


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
    examples: Examples,
    *,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
    allow_leakage: bool = False,
) -> Splits:
    """Divide examples into train, validation and test.

    Splits that the data set brings are kept. A missing one is taken out of train, as a fraction of what train has.

    Args:
        examples: all examples of a data set.
        validation_fraction: share of each class, above 0; with `test_fraction` below 1.
        test_fraction: likewise; 0 leaves the test part empty.
        seed: another seed, another division.
        allow_leakage: whether groups may lie in more than one of the splits that the data set brings.

    Returns:
        Parts that are disjoint and together complete, each sorted by id, none without a class or label. Without groups
        a share is exact within one example in each class, unless another part would be left empty; groups stay whole,
        and the log says how far shares miss for it.

    Raises:
        ConfigError: the fractions leave nothing for a part.
        DatasetError: a class, or a group, leaves no way to divide as asked.
    """
    _check_fractions(validation_fraction, test_fraction)
    given = {item.split for item in examples if item.split not in (None, "train")}
    shares: dict[SplitName, float] = {}
    if "validation" not in given:
        shares["validation"] = validation_fraction
    if "test" not in given and test_fraction > 0:
        shares["test"] = test_fraction
    if not allow_leakage:
        _refuse_straddling(examples)
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    if examples.outputs.exclusive and not any(item.group for item in examples):
        for name, members in _strata(examples).items():
            for part, items in _divide(members, shares, given, seed, f"{examples.source}: {name}").items():
                parts[part] += items
    else:
        for item in examples:
            parts[item.split or "train"].append(item)
        parts |= _divide_units(examples.with_items(parts["train"]), shares, seed)
        _refuse_lacking(examples, {name: items for name, items in parts.items() if items or test_fraction > 0})
    return Splits(**{name: _part(examples, items) for name, items in parts.items()})


def stratified_subset(examples: Examples, count: int, seed: int = 0) -> Examples:
    """Choose some examples in proportion to the classes, each class at least once.

    Groups are cut: what is chosen comes out of one part.

    Args:
        examples: what to choose from.
        count: how many, at least one per class that occurs; all are returned if there are no more than that. Of
            several labels or numbers fewer are fine, too.
        seed: another seed, another choice.

    Returns:
        The chosen examples, sorted by id.

    Raises:
        ConfigError: count is less than the number of classes that occur.
    """
    if count >= len(examples):
        return _part(examples, examples.items)
    members = _strata(examples)
    sizes = {name: len(items) for name, items in members.items() if items}
    if count < len(sizes) and examples.outputs.exclusive:
        raise ConfigError(
            f"a subset of {count} example(s) can't hold {len(sizes)} classes. Ask for at least {len(sizes)}"
        )
    take = dict.fromkeys(sizes, int(count >= len(sizes)))
    for _ in range(count - sum(take.values())):
        unfinished = [name for name in sizes if take[name] < sizes[name]]
        take[max(unfinished, key=lambda name: sizes[name] * count / len(examples) - take[name])] += 1
    return _part(examples, [item for name in take for item in _shuffled(members[name], seed)[: take[name]]])


def write_csv(splits: Splits, sha256: Mapping[str, str]) -> str:
    """Write down which example is in which split, and all that is known of it.

    Args:
        splits: the parts.
        sha256: id -> hash of the file's bytes; empty in the text where it is unknown.

    Returns:
        CSV text with the columns id, label (see `Examples.label_text`), split, group, weight, sha256, and what else is
        known; sorted by id.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *splits.train.columns])
    rows = [(item, part.name) for part in fields(splits) for item in getattr(splits, part.name)]
    for item, part_name in sorted(rows, key=lambda row: row[0].id):
        label, group, weight = written(splits.train, item)
        writer.writerow([item.id, label, part_name, group, weight, sha256.get(item.id, ""), *item.values])
    return text.getvalue()


def written(examples: Examples, item: Example) -> tuple[str, str, str]:
    """Label, group and weight of an example as `write_csv` writes them."""
    return examples.label_text(item), item.group, repr(item.weight).removesuffix(".0")


def read_rows(text: str, source: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read what `write_csv` gave, as text.

    Args:
        text: the table.
        source: where it comes from, for the message.

    Returns:
        The header, and line number and cells of each row, as many as the header has; ids are paths below the root.

    Raises:
        DatasetError: the text is damaged.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: dict[str, tuple[int, list[str]]] = {}
    try:
        header = next(reader, [])
        if header[: len(_COLUMNS)] != _COLUMNS:
            raise DatasetError(f"{source}: the first line does not begin with {','.join(_COLUMNS)}. {_AGAIN}")
        for row in reader:
            if len(row) != len(header) or row[0] in rows or leads_out(row[0]) or row[2] not in SPLITS:
                raise _damaged(source, reader.line_num, row)
            rows[row[0]] = reader.line_num, row
    except csv.Error as error:
        raise DatasetError(f"{source}: line {reader.line_num}: {error}. {_AGAIN}") from None
    if not rows:
        raise DatasetError(f"{source}: no rows. {_AGAIN}")
    return header, list(rows.values())


def _damaged(source: str, line: int, row: list[str]) -> DatasetError:
    return DatasetError(f"{source}: line {line} is damaged: {row}. {_AGAIN}")


def read_csv(
    text: str, root: Path, outputs: OutputSpec, *, source: str = "splits.csv"
) -> tuple[Splits, dict[str, str]]:
    """Find the examples of an earlier run again, whatever came to the data set since.

    Args:
        text: what `write_csv` gave.
        root: the folder that ids are relative to, as it is now.
        outputs: of that run.
        source: where the text comes from, for the message.

    Returns:
        The splits, and id -> sha256 where it is known.

    Raises:
        DatasetError: the text is damaged; a photo is missing, or a link out of the folder.
    """
    header, rows = read_rows(text, source)
    number = {name: index for index, name in enumerate(outputs.names)}
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    hashes: dict[str, str] = {}
    for line, row in rows:
        id_, label, part, group, weight, sha256, *values = row
        try:
            known, counts = parse_label(label, outputs.task, number), float(weight)
        except (ValueError, KeyError):
            raise _damaged(source, line, row) from None
        if not 0 < counts < math.inf:
            raise _damaged(source, line, row)
        hashes[id_] = sha256
        at = SPLITS[SPLITS.index(part)]
        parts[at].append(Example(id_, root / id_, known, None, group, counts, tuple(values)))
    _refuse_absent([item.path for items in parts.values() for item in items], root, source)
    whole = Examples(str(root), root, outputs.names, (), outputs.task, tuple(header[len(_COLUMNS) :]))
    return Splits(**{name: _part(whole, items) for name, items in parts.items()}), {
        i: h for i, h in hashes.items() if h
    }


def _refuse_absent(photos: Sequence[Path], root: Path, source: str) -> None:
    """Refuse photos that are not there, and links that lead out of the root: the folder alone is the data set."""
    missing = sorted(path for path in photos if not path.is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"{missing[0]}{more}: used by the run ({source}), missing now. Put the photo(s) back or train again"
        )
    home = Home(root)
    for path in photos:
        if not home.holds(path, link=path.is_symlink()):
            raise DatasetError(f"{path}: used by the run ({source}), a link out of {root}. Copy what it points to")


def _check_fractions(validation: float, test: float) -> None:
    if not (validation > 0 and test >= 0 and validation + test < 1):
        raise ConfigError(
            f"validation_fraction={validation}, test_fraction={test}: the first must be above 0, the second at least 0 "
            "(no photos to test on), and their sum below 1"
        )


def _divide(
    members: list[Example],
    shares: Mapping[SplitName, float],
    given: Collection[SplitName | None],
    seed: int,
    where: str,
) -> dict[SplitName, list[Example]]:
    """Cut the examples of one class; `shares` are the parts that come out of train, `given` those of the data set."""
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    where += _see(members)
    for item in members:
        parts[item.split or "train"].append(item)
    for name in SPLITS:
        if name in given and not parts[name]:
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


def _refuse_straddling(examples: Examples) -> None:
    """Refuse groups that the data set's own splits cut."""
    first: dict[str, dict[str, Example]] = {}
    for item in examples:
        if item.group:
            first.setdefault(item.group, {}).setdefault(item.split or "train", item)
    cut = sorted(group for group, splits in first.items() if len(splits) > 1)
    if cut:
        sides = ", ".join(f"{name}: {item.place}" for name, item in first[cut[0]].items())
        raise DatasetError(
            f"{examples.source}: {len(cut)} group(s) lie in more than one split ({', '.join(cut[:5])}; {sides}): what "
            "is learned would be tested on the same group. Move each to one side, or --allow-leakage"
        )


def _divide_units(pool: Examples, shares: Mapping[SplitName, float], seed: int) -> dict[SplitName, list[Example]]:
    """Divide what is not given, groups whole; `shares` are the parts that come out of train."""
    asked: dict[SplitName, float] = {"train": 1 - sum(shares.values()), **shares}
    units = units_of(pool)
    grouped = any(item.group for item in pool)
    least = f"need at least {len(asked)} ({' + '.join(asked)}). Add some"
    if len(units) < len(asked):
        what = f"{len(units)} {'group(s)' if grouped else 'example(s)'}{_see(pool.items)}"
        raise DatasetError(f"{pool.source}: {what}, {least}")
    needed = required(pool)
    divided = dict(zip(asked, spread(units, list(asked.values()), needed, seed), strict=True))
    for kind in needed:
        lacking = [name for name, members in divided.items() if not any(kind in unit.kinds for unit in members)]
        if lacking and kind != EXAMPLE:
            name = pool.output_names[kind]
            holders = sorted(unit.name for unit in units if kind in unit.kinds)
            groups = f" of {len(holders)} group(s) ({', '.join(holders[:5])})" if grouped else ""
            way_out = (
                least if len(holders) < len(asked) else "and no division keeps all whole. Add some, divide a group,"
            )
            raise DatasetError(
                f"{pool.source}: {name}{_see(_of(pool, kind))} would be missing from {' and '.join(lacking)}: it has "
                f"{pool.counts[name]} example(s){groups}, {way_out} or remove it"
            )
    if grouped:
        _judge_shares(pool, units, asked, divided)
    return {name: [item for unit in members for item in unit.items] for name, members in divided.items()}


def _judge_shares(
    pool: Examples, units: Sequence[Unit], asked: Mapping[SplitName, float], divided: Mapping[SplitName, list[Unit]]
) -> None:
    """Say how far shares miss because groups stay whole, and refuse what is no longer what was asked for."""
    got = {name: sum(len(unit.items) for unit in members) / len(pool) for name, members in divided.items()}
    largest = max(units, key=lambda unit: (len(unit.items), unit.name))
    for name, share in asked.items():
        if got[name] < share / 2:
            raise DatasetError(
                f"{pool.source}: {name} would have {100 * got[name]:.1f} % of the examples, {100 * share:.0f} % asked: "
                f"group {largest.name}{_see(largest.items)} alone has {100 * len(largest.items) / len(pool):.0f} %. "
                "Divide that group, bring splits of your own, or ask for other fractions"
            )
    if any(abs(got[name] - share) > _MISSED for name, share in asked.items()):
        told = ", ".join(f"{name} {100 * got[name]:.1f} % (asked {100 * share:.0f})" for name, share in asked.items())
        log.warning("%s: groups stay whole, so shares miss: %s", pool.source, told)


def _refuse_lacking(examples: Examples, parts: Mapping[SplitName, list[Example]]) -> None:
    """Refuse a part without any example, or without one of a class or label: nothing could be said of it."""
    for name, items in parts.items():
        part = examples.with_items(items)
        lacking = [] if examples.task == "regression" else [label for label, count in part.counts.items() if not count]
        if lacking or not items:
            what = ", ".join(lacking[:5]) or "any example"
            see = _see(_of(examples, examples.output_names.index(lacking[0]))) if lacking else ""
            raise DatasetError(
                f"{examples.source}: {name} is without {what}{see}. Add examples to {name} or remove "
                f"{'the name(s)' if lacking else 'it'}"
            )


def _of(examples: Examples, kind: int) -> list[Example]:
    """The examples of one class, or with one label."""
    return [item for item in examples if kind == item.label or (isinstance(item.label, tuple) and kind in item.label)]


def _see(items: Sequence[Example]) -> str:
    """One of the examples that a message is about: in a table its line."""
    return f" (see {items[0].place})" if items else ""


def _strata(examples: Examples) -> dict[str, list[Example]]:
    """Examples by kind, with the kind's name in words: all classes, even those without an example."""
    names = [f"class {name}" for name in examples.output_names] if examples.outputs.exclusive else None
    members: dict[str, list[Example]] = {name: [] for name in names or ()}
    for item, stratum in zip(examples, examples.strata.tolist(), strict=True):
        members.setdefault(names[stratum] if names else f"kind {stratum}", []).append(item)
    return members


def _shuffled(items: Iterable[Example], seed: int) -> list[Example]:
    """The order by hash of seed and id."""
    return sorted(items, key=lambda item: (hashlib.sha256(f"{seed}\0{item.id}".encode()).digest(), item.id))


def _part(whole: Examples, items: Iterable[Example]) -> Examples:
    return whole.with_items(sorted(items, key=lambda item: item.id))
