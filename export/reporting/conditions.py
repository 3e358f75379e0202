"""Under which conditions the model is worse: on some part of the photos, and on photos that a camera has spoilt."""

from edgetl.outputs import Task
from edgetl.robustness import CORRUPTIONS, Robustness
from edgetl.scores import PRIMARY
from edgetl.slices import Slice, SliceColumn
from export.reporting import charts
from export.reporting.blocks import Block, Cell, Charts, Missing, Row, Table, Text, between, percent, points
from export.reporting.material import Material

SLICES = (
    "Figures by what else is known of each photo: a camera, a site, a kind. Whoever is behind is served worse, "
    "be it that the model knows less of it or that more of its photos are hard ones."
)
WITHIN: dict[Task, str] = {
    "multi_label": "F1 here: of what is said of each photo, mean over the photos; not the mean over the labels, which "
    "hangs on the labels a slice has.",
    "regression": "R2 here: against the variance of all test photos, the same for every slice.",
}
"""Where the figure of a slice is another one than that of the whole (`edgetl.slices.merits`)."""
SPOILT = "The test photos again, spoilt as cameras spoil them, at three strengths."
SURE = 0.05
"""A slice is marked as behind if chance alone puts one as far behind more rarely than this."""
SPREAD = 20
"""Values of a column that are listed."""


def worst_slice(column: SliceColumn) -> str:
    """The slice that is most behind, with the odds that chance put it there."""
    worst = column.worst
    odds = f"chance alone does that {percent(worst.p)} of the time" if worst.p >= 0.001 else "hardly by chance"
    side = "behind" if worst.gap > 0 else "ahead of"
    return (
        f"{column.column} {worst.value} is {abs(100 * worst.gap):.1f} points {side} the rest "
        f"({points(worst.low, 1)} to {points(worst.high, 1)}); {odds}."
    )


def slice_blocks(material: Material) -> tuple[Block, ...]:
    """A table for each column; nothing where the data has none."""
    blocks: list[Block] = []
    before = {column.column: column for column in material.evaluation.keras_details.slices}
    for column in material.result(material.quantized).details.slices:
        lost = column.most_lost
        told = worst_slice(column)
        if lost and lost.gap > 0 and lost.p < SURE:
            told += (
                f" {material.quantized} lost most on {lost.value}: {100 * lost.gap:.1f} points more than on the rest."
            )
        blocks += [Text(told), _table(material, column, before[column.column])]
    return tuple(blocks)


def _table(material: Material, column: SliceColumn, keras: SliceColumn) -> Table:
    name = PRIMARY[material.spec.task]
    pairs = list(zip(column.slices, keras.slices, strict=True))
    behind = column.worst.gap > 0 and column.worst.p < SURE
    rows = tuple(_row(now, then, behind and now.value == column.worst.value) for now, then in pairs[:SPREAD])
    columns = (column.column, "photos", f"{name}, Keras", f"{name}, {material.quantized}", "95 %", "change")
    cut = f"The first {SPREAD} of {len(pairs)} values." if len(pairs) > SPREAD else ""
    note = " ".join(filter(None, (WITHIN.get(material.spec.task, ""), cut)))
    return Table(f"By {column.column}", columns, rows, note=note)


def _row(now: Slice, then: Slice, behind: bool) -> Row:
    return Row(
        (
            now.value,
            f"{now.samples:,}",
            percent(then.figure),
            Cell(percent(now.figure), style="bad" if behind else ""),
            between(now.low, now.high),
            points(now.figure - then.figure, 1),
        )
    )


def robustness_blocks(material: Material) -> tuple[Block, ...]:
    """A line for each way to spoil photos."""
    found = material.result(material.quantized).details.robustness
    keras = material.evaluation.keras_details.robustness
    if found is None or keras is None:
        return (Missing("Not measured.", f"python -m export.evaluate {material.where} --robustness"),)
    name = PRIMARY[material.spec.task]
    told = Text(
        f"{material.quantized} loses {100 * found.mean_drop:.1f} points of {name} on average (Keras "
        f"{100 * keras.mean_drop:.1f}); without spoiling: {percent(found.clean)}."
    )
    rows = tuple(
        Row((f"{now.kind}, {model}", *map(percent, figures)))
        for now, then in zip(found.corrupted, keras.corrupted, strict=True)
        for model, figures in (("Keras", then.primary), (material.quantized, now.primary))
    )
    units = "; ".join(
        f"{each.kind}: {', '.join(f'{s:g}' for s in CORRUPTIONS[each.kind].strengths)} ({CORRUPTIONS[each.kind].unit})"
        for each in found.corrupted
        if each.kind in CORRUPTIONS
    )
    both = ((material.quantized, found), ("Keras", keras))
    ends = charts.wide([figure for _, each in both for row in each.corrupted for figure in (each.clean, *row.primary)])
    drawn = tuple(_strained(model, each, name, ends) for model, each in both)
    table = Table(f"{name} at strengths 1, 2, 3", ("", "1", "2", "3"), rows, note=f"Strengths: {units}.")
    return (told, Charts(drawn), table)


def _strained(model: str, found: Robustness, name: str, ends: charts.Range) -> charts.Chart:
    series = [
        charts.Series(each.kind, [0.0, 1.0, 2.0, 3.0], [found.clean, *each.primary], style)
        for each, style in zip(found.corrupted, ("main", "other", "third", "fourth"), strict=False)
    ]
    return charts.lines(f"{model} under strain", series, "strength", f"{name}, %", percent=True, y_ends=ends)
