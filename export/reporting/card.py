"""MODEL_CARD.md: what somebody needs to know who takes the model but not the report (Mitchell et al. 2019).

What only the author can know stays a marked line. Names come from outside: they are escaped, so that none can close a
cell, link or run anything in whatever shows the file.
"""

import re
from collections.abc import Iterable, Sequence

from edgetl.scores import PRIMARY
from export import schemes
from export.reporting.blocks import Summary, between, change_between, count, megabytes, milliseconds, percent, points
from export.reporting.conditions import worst_slice
from export.reporting.joined import Report
from export.reporting.material import Material
from export.reporting.origins import origin
from export.reporting.verdict import backbone_of, licence_of

TO_FILL_IN = "_(to be written by the author)_"
_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&@$]|:(?=//)|(?<=[wW]{3})\.")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line that something else begins.

    What could mean something within a line is preceded by a backslash, `<`, `>` and `&` become entities, whatever can't
    be printed becomes a space.
    """
    flat = "".join(each if each.isprintable() else " " for each in text)
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), flat)


def card(material: Material, summary: Summary) -> str:
    """Write the card.

    Args:
        material: the run.
        summary: what the page says first.
    """
    report, run = material.report, material.run
    name = PRIMARY[report.task]
    backbone = backbone_of(material) or "made elsewhere"
    licence = licence_of(material) or "not known"
    size = run.inputs
    lines = [
        f"# {escaped(run.path.resolve().name)}",
        "",
        *(escaped(sentence) for sentence in summary.sentences),
        "",
        "## Model",
        "",
        f"- Network: {escaped(backbone)}; licence of its pretrained weights: {escaped(licence)}",
        f"- Input: RGB photos of {size.width} x {size.height} pixels, raw values 0..255, resized by the rule "
        f"`{size.resize}`",
        f"- Output: {count(len(material.spec.names), 'value')} ({report.task}): {_named(material.spec.names)}",
        f"- Recipe: {escaped(report.recipe)}, seed {run.manifest.seed}; edgetl "
        f"{escaped(report.versions.get('edgetl', ''))}",
        f"- Author and contact: {TO_FILL_IN}",
        "",
        "## Intended use",
        "",
        f"- What it is for: {TO_FILL_IN}",
        f"- What it is not for, and who could be harmed by a wrong answer: {TO_FILL_IN}",
        "",
        "## Data",
        "",
        f"- {escaped(report.data)}: {_splits(material)}; licence: {TO_FILL_IN}",
        f"- Where the photos are from, and who or what is missing in them: {TO_FILL_IN}",
        "",
        "## Figures",
        "",
        f"Measured on {report.artifacts[0].samples} test photos, on the files themselves; brackets: 95 % intervals. "
        f"Keras: {name} {percent(report.keras_primary)} "
        f"({between(report.keras_primary_low, report.keras_primary_high)}).",
        "",
        *_figures(report),
        "",
        *_slices(material),
        "## Quantization",
        "",
        *(f"- {row.scheme}: {schemes.get(row.scheme).summary}" for row in report.artifacts),
        f"- Recommended: {report.recommended}. {escaped(' '.join(summary.reasons))}",
        "",
        "## Limits",
        "",
        *(f"- {escaped(f'{caution.title} {caution.text}')}" for caution in summary.cautions),
        f"- Known to the author: {TO_FILL_IN}",
        "",
        "## How to reproduce",
        "",
        *_code(origin(material)),
        "",
        f"Hash of the data: `{report.data_sha256}`; of model.keras: `{report.run_sha256}`.",
        "",
    ]
    return "\n".join(lines)


def _named(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(escaped, names[:most])) + more


def _splits(material: Material) -> str:
    return ", ".join(f"{sum(counted.values())} {split}" for split, counted in material.splits.items())


def _figures(report: Report) -> Iterable[str]:
    yield f"| artifact | MB | {PRIMARY[report.task]} | change, points | ms on the machine that made this |"
    yield "|---|---:|---:|---:|---:|"
    for row in report.artifacts:
        yield (
            f"| {row.scheme} | {megabytes(row.size_bytes)} | {percent(row.primary)} "
            f"({between(row.primary_low, row.primary_high)}) | {points(-row.drop)} "
            f"({change_between(row.drop_low, row.drop_high)}) | {milliseconds(row.latency_ms_median)} |"
        )


def _slices(material: Material) -> Iterable[str]:
    """The part of the data that is most behind, by each column."""
    found = material.result(material.shipped).details.slices
    if found:
        yield from ("By what else is known of the photos:", "")
        yield from (f"- {escaped(worst_slice(column))}" for column in found)
        yield ""


def _code(command: str) -> Iterable[str]:
    """A block of code that its content can't close: indented."""
    yield from (f"    {line}" for line in command.splitlines())
