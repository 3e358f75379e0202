"""What is wrong with a data set, before anything is learned from it.

`python -m recipes.audit --data photos/ --out audits/mine`
"""

import dataclasses
import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Fixed, Suppress

from edgetl import data, features
from edgetl.audit import copies, exclusion, labels, page, quality, shift, summary
from edgetl.audit.findings import Audit, Shift, Spread
from edgetl.audit.looks import Looks, look_at
from edgetl.config import checked, command
from edgetl.errors import ConfigError
from edgetl.rows import Rows
from edgetl.rundir import read_json, sealed, write_atomic
from recipes import experiment
from recipes.experiment import Experiment

PROG = "python -m recipes.audit"
AUDIT, PAGE, EXCLUDE = "audit.json", "audit.html", "exclude.csv"


@dataclass(frozen=True)
class Config(Experiment):
    """Look for photos and labels that spoil training or its figures.

    Corrupt, blank, dark, blurry and odd photos; copies, within and across splits; labels that look wrong; splits that
    are not alike. Writes audit.html, audit.json, and exclude.csv to edit and give to any recipe with --exclude.
    """

    validation_fraction: Annotated[float, Fixed, Suppress] = 0.15
    test_fraction: Annotated[float, Fixed, Suppress] = 0.25
    max_unreadable: Annotated[float, Fixed, Suppress] = 1.0
    allow_leakage: Annotated[bool, Fixed, Suppress] = True
    features: bool = True
    """Judge labels and splits by the backbone's features, which training would compute anyway: minutes, then stored."""


@dataclass(frozen=True)
class Result:
    """An audit, and where it was written."""

    audit: Audit
    out: Path


def main(config: Config) -> Result:
    """Audit a data set.

    Raises:
        EdgetlError: see `edgetl.errors`; nothing is written then.
    """
    config = checked(config)
    experiment.check_common(dataclasses.replace(config, max_unreadable=0.0))
    found = experiment.find_examples(config)
    decided = exclusion.read(config.exclude, found) if config.exclude else []
    check_out(config)
    examples = exclusion.without(found, config.exclude)
    looks = look_at(found, config.workers or None, config.cache).of(examples)
    number = copies.near(looks)
    audit = by_looks(found, examples, looks, number)
    audit = by_features(config, audit, examples, looks, copies.representatives(number))
    return Result(write(config, audit, examples, decided), config.out)


def check_out(config: Config) -> None:
    """Refuse to write over anything but an audit whose list nobody has edited, or the edited list that is given.

    Raises:
        ConfigError: says what is in the way.
        RunError: the audit that is there is damaged.
    """
    out = config.out.expanduser()
    listed = out / EXCLUDE
    # A kill while a file is written leaves a hidden one.
    if not out.exists() or (out.is_dir() and all(path.name.startswith(".") for path in out.iterdir())):
        return
    if not (out / AUDIT).is_file():
        raise ConfigError(f"--out {config.out}: not empty and not an audit. Choose another place")
    if gives_back(config):
        return
    written = read_json(Audit, out / AUDIT).exclude_sha256
    if listed.is_file() and hashlib.sha256(listed.read_bytes()).hexdigest() != written:
        raise ConfigError(
            f"{listed}: was edited and would be written anew. Give it with --exclude, or choose another --out"
        )


def gives_back(config: Config) -> bool:
    """Whether the list given is the one in the place that is written to."""
    listed = config.out.expanduser() / EXCLUDE
    return config.exclude is not None and listed.exists() and listed.samefile(config.exclude.expanduser())


def by_looks(found: data.Examples, examples: data.Examples, looks: Looks, number: NDArray[np.int64]) -> Audit:
    """Say what one pass over the photos has shown."""
    rows = looks.rows
    width, height = rows["width"], rows["height"]
    return Audit(
        data=examples.source,
        task=examples.task,
        output_names=examples.output_names,
        photos=len(examples),
        excluded=len(found) - len(examples),
        counts=counts(examples),
        targets=targets(examples),
        width=quality.spread(width),
        height=quality.spread(height),
        aspect=quality.spread(width / np.maximum(height, 1)),
        size_bytes=quality.spread(rows["bytes"]),
        formats=dict(Counter(rows["format"].tolist()).most_common()),
        findings=tuple(quality.find(looks)),
        copies=copies.listed(looks, number),
        labels=(),
        shifts=(),
        skipped=(),
    )


def counts(examples: data.Examples) -> dict[str, dict[str, int]]:
    """Photos of each class or label, by the splits that the data brings."""
    parts: dict[str, list[data.Example]] = {}
    for example in examples:
        parts.setdefault(example.split or "all", []).append(example)
    order = ("train", "validation", "test", "all")
    return {name: examples.with_items(parts[name]).counts for name in order if name in parts}


def targets(examples: data.Examples) -> dict[str, Spread]:
    """Regression: how the values of each target are distributed."""
    if examples.task != "regression":
        return {}
    return {name: quality.spread(values) for name, values in zip(examples.output_names, examples.labels.T, strict=True)}


def by_features(
    config: Config, audit: Audit, examples: data.Examples, looks: Looks, unique: NDArray[np.int64]
) -> Audit:
    """Add what stored features say of labels and splits; copies are left out, they would vouch for one another."""
    if not config.features:
        return dataclasses.replace(audit, skipped=("labels, splits: --no-features",))
    if not len(looks.examples):
        return dataclasses.replace(audit, skipped=("labels, splits: no photo can be read",))
    table = table_of(config, examples)
    readable = {example.id for example in table.examples}
    once = table.examples.select([e.id for e in looks.examples.select(unique) if e.id in readable])
    doubtful, why = labels.find(table.of(once), once, config.seed)
    shifts, skipped = shifts_of(config, table.of(once), once)
    return dataclasses.replace(audit, labels=tuple(doubtful), shifts=shifts, skipped=(*filter(None, [why]), *skipped))


def table_of(config: Config, examples: data.Examples) -> features.Features:
    """Compute features as a recipe would, so that it finds them stored."""
    row, spec = experiment.row_and_spec(config)
    return experiment.extract(config, row, spec, examples, experiment.build_backbone(config, row, spec))


def shifts_of(config: Config, values: Rows, examples: data.Examples) -> tuple[tuple[Shift, ...], tuple[str, ...]]:
    """Compare train with what it is judged by, where the data itself brings splits."""
    given = {example.split for example in examples} - {None}
    shifts, skipped = [], []
    for other in [split for split in data.splits.SPLITS[1:] if {split, "train"} <= given]:
        found = shift.between(values, examples, "train", other, config.seed)
        if found:
            shifts.append(found)
        else:
            skipped.append(
                f"splits: fewer than {shift.FEWEST} photos or groups of the classes that train and {other} share"
            )
    if not shifts and not skipped:
        skipped.append("splits: the data brings none; edgetl draws them at random")
    return tuple(shifts), tuple(skipped)


def write(config: Config, audit: Audit, examples: data.Examples, decided: list[exclusion.Row]) -> Audit:
    """Write the three files; the list keeps what the user decided before.

    Killed anywhere, it can be repeated: until the new list is whole there is none that could pass for an edited one,
    except the edited one that was given.
    """
    out = config.out.expanduser()
    listed = exclusion.to_csv(exclusion.merged(decided, exclusion.proposed(audit)))
    audit = dataclasses.replace(audit, exclude_sha256=hashlib.sha256(listed.encode()).hexdigest())
    shown = page.render(audit, examples, out / EXCLUDE)
    out.mkdir(parents=True, exist_ok=True)
    if not gives_back(config):
        (out / EXCLUDE).unlink(missing_ok=True)
    for name, content in [(AUDIT, sealed(audit)), (PAGE, shown), (EXCLUDE, listed)]:
        write_atomic(out / name, content)
    return audit


def show(result: Result) -> str:
    """What was found and what to do next."""
    audit, out = result.audit, result.out
    lines = [f"{line.photos or '':>7}  {line.text}" for line in summary.lines(audit)]
    return "\n".join(
        [
            f"{audit.data}: {audit.photos} photos" + (f", {audit.excluded} more excluded" if audit.excluded else ""),
            *(lines or ["nothing found that speaks against them"]),
            *(f"not looked at: {line}" for line in audit.skipped),
            f"next: look at {out / PAGE}, edit {out / EXCLUDE}, and add --exclude {out / EXCLUDE} to a recipe",
        ]
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
