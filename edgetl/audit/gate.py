"""What every recipe checks before it learns anything: no photo may be on two sides of a division.

Only copies byte for byte are looked for: files of equal size are hashed, 0.06 s for the 2,624 photos of `elpv`. Near
copies need every photo decoded, a quarter of the time of a feature pass: that is the audit's.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from edgetl.audit.exclusion import without
from edgetl.audit.findings import given_split
from edgetl.console import log
from edgetl.data import Example, Examples
from edgetl.errors import DatasetError

_NAMED_IN_A_MESSAGE = 3


def admit(examples: Examples, exclude: Path | None = None, allow_leakage: bool = False) -> Examples:
    """Leave out what the user excluded, and refuse photos that are there twice where that would spoil the figures.

    Args:
        examples: as the data set has them.
        exclude: an edited `exclude.csv`.
        allow_leakage: warn instead of refusing.

    Returns:
        The remaining examples; copies are in one group, so that a division keeps them on one side.

    Raises:
        ConfigError: the list can't be used.
        DatasetError: a photo is in two of the splits that the data set brings, or has two labels.
    """
    kept = without(examples, exclude)
    copies = exact_copies(kept)
    leaks = [same for same in copies if _leaks(kept, same)]
    contradictions = [same for same in copies if len({kept.label_text(example) for example in same}) > 1]
    for found, what in [(leaks, "in more than one split"), (contradictions, "there with different labels")]:
        if found:
            line = f"{examples.source}: {len(found)} photo(s) are {what}, byte for byte: {_named(found)}"
            if not allow_leakage:
                raise DatasetError(
                    f"{line}. Remove the copies, or list them in a CSV for --exclude (recipes.audit writes one); "
                    "--allow-leakage goes on with figures that say too much"
                )
            log.warning("%s; allowed by --allow-leakage", line)
    return _grouped(kept, [same for same in copies if not _leaks(kept, same)])


def exact_copies(examples: Examples) -> list[list[Example]]:
    """List the photos that are there more than once, byte for byte, each with its copies. Empty files don't count."""
    by_size: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        try:
            by_size[example.path.stat().st_size].append(example)
        except OSError:
            continue  # it is reported where it is read
    by_content: dict[bytes, list[Example]] = defaultdict(list)
    for size, same in by_size.items():
        for example in same if size and len(same) > 1 else ():
            try:
                with example.path.open("rb") as file:
                    by_content[hashlib.file_digest(file, "sha256").digest()].append(example)
            except OSError:
                continue
    return [same for same in by_content.values() if len(same) > 1]


def _leaks(examples: Examples, same: Iterable[Example]) -> bool:
    brings_splits = any(example.split for example in examples)
    return len({given_split(example, brings_splits) for example in same}) > 1


def _grouped(examples: Examples, copies: list[list[Example]]) -> Examples:
    """Put copies into one group, together with the groups that they have been in."""
    parent: dict[str, str] = {}

    def leader(name: str) -> str:
        while (above := parent.get(name, name)) != name:
            name = above
        return name

    names: dict[str, str] = {}
    for same in copies:
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


def _named(found: list[list[Example]]) -> str:
    named = "; ".join(" = ".join(example.id for example in same[:3]) for same in found[:_NAMED_IN_A_MESSAGE])
    more = len(found) - _NAMED_IN_A_MESSAGE
    return named + (f"; and {more} more" if more > 0 else "")
