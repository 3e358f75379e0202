"""What every recipe checks before it learns anything: no photo may be on two sides of a division.

Copies byte for byte are looked for always: files of equal size are hashed, 0.06 s for the 2,624 photos of `elpv`. Near
copies need every photo decoded, a quarter of the time of a feature pass, so they are looked for only where the data
set brings splits, and what was seen is stored. Where edgetl divides by itself they are the audit's.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from edgetl.audit import copies
from edgetl.audit.exclusion import without
from edgetl.audit.findings import given_split
from edgetl.audit.looks import Looks, look_at
from edgetl.console import log
from edgetl.data import Example, Examples
from edgetl.data.images import MAX_FILE_BYTES
from edgetl.errors import DatasetError

_NAMED_IN_A_MESSAGE = 3


def admit(
    examples: Examples,
    exclude: Path | None = None,
    allow_leakage: bool = False,
    *,
    cache: Path | None = None,
    workers: int | None = None,
) -> Examples:
    """Leave out what the user excluded, and refuse photos that are there twice where that would spoil the figures.

    Args:
        examples: as the data set has them.
        exclude: an edited `exclude.csv`.
        allow_leakage: warn instead of refusing.
        cache: directory of all caches, for the pass over photos in splits that the data set brings.
        workers: threads of that pass; default one per core.

    Returns:
        The remaining examples; exact copies are in one group, so that a division keeps them on one side.

    Raises:
        ConfigError: the list can't be used.
        DatasetError: a photo, or a near copy of it, is in two of the splits that the data set brings, or a photo has
            two labels.
    """
    kept = without(examples, exclude)
    brings_splits = any(example.split for example in kept)

    def side(example: Example) -> str:
        return given_split(example, brings_splits)

    exact = exact_copies(kept)
    _refuse(kept, _apart(exact, side), "in more than one split, byte for byte", allow_leakage)
    _refuse(kept, _apart(exact, kept.label_text), "there with different labels, byte for byte", allow_leakage)
    if len({side(example) for example in kept}) > 1:
        near = near_copies(look_at(examples, workers, cache).of(kept))
        _refuse(kept, _apart(near, side), "in more than one split, all but equal", allow_leakage)
        if doubtful := _apart(near, kept.label_text):  # near is not equal: either label may be right
            log.warning(
                "%s; recipes.audit shows them", _line(kept, doubtful, "there with different labels, all but equal")
            )
    return _grouped(kept, [same for same in exact if not _apart([same], side)])


def exact_copies(examples: Examples) -> list[list[Example]]:
    """List the photos that are there more than once, byte for byte, each with its copies. Empty files don't count."""
    by_size: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        try:
            by_size[example.path.stat().st_size].append(example)
        except OSError:
            continue  # it is reported where it is read
    found: list[list[Example]] = []
    for size, same in by_size.items():
        by_content: dict[bytes, list[Example]] = defaultdict(list)  # of one size: hashes of all would be 0.2 KB a photo
        for example in same if 0 < size <= MAX_FILE_BYTES and len(same) > 1 else ():
            try:
                with example.path.open("rb") as file:
                    by_content[hashlib.file_digest(file, "sha256").digest()].append(example)
            except OSError:
                continue
        found += [equal for equal in by_content.values() if len(equal) > 1]
    return found


def near_copies(looks: Looks) -> list[list[Example]]:
    """List the photos that are there again, encoded, resized or shot anew, each with its copies."""
    same = copies.exact(looks)
    found = [group for group in copies.groups(copies.near(looks)) if len(set(same[group])) > 1]
    return [[looks.examples.items[index] for index in group] for group in found]


def _apart(found: list[list[Example]], told: Callable[[Example], str]) -> list[list[Example]]:
    """Of copies that are told apart by their split or label, one example for each."""
    firsts = [{told(example): example for example in reversed(same)} for same in found]
    return [sorted(first.values(), key=lambda example: example.id) for first in firsts if len(first) > 1]


def _refuse(examples: Examples, found: list[list[Example]], what: str, allowed: bool) -> None:
    if found and not allowed:
        raise DatasetError(
            f"{_line(examples, found, what)}. Remove the copies, or list them in a CSV for --exclude (recipes.audit "
            "writes one); --allow-leakage goes on with figures that say too much"
        )
    if found:
        log.warning("%s; allowed by --allow-leakage", _line(examples, found, what))


def _line(examples: Examples, found: list[list[Example]], what: str) -> str:
    named = "; ".join(" = ".join(example.id for example in same[:3]) for same in found[:_NAMED_IN_A_MESSAGE])
    more = len(found) - _NAMED_IN_A_MESSAGE
    more_text = f"; and {more} more" if more > 0 else ""
    return f"{examples.source}: {len(found)} photo(s) are {what}: {named}{more_text}"


def _grouped(examples: Examples, found: list[list[Example]]) -> Examples:
    """Put copies into one group, together with the groups that they have been in."""
    parent: dict[str, str] = {}

    def leader(name: str) -> str:
        while (above := parent.get(name, name)) != name:
            name = above
        return name

    names: dict[str, str] = {}
    for same in found:
        first, *others = sorted({example.group or f"copies of {same[0].id}" for example in same})
        for other in others:
            parent[leader(other)] = leader(first)
        names |= {example.id: first for example in same}
    if not names:
        return examples
    return examples.with_items(
        [
            dataclasses.replace(item, group=leader(group)) if (group := names.get(item.id, item.group)) else item
            for item in examples
        ]
    )
