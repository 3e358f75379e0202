"""What a classifier gets wrong: confusion matrices and a line for each class. Ordered classes as well."""

from collections.abc import Sequence

from edgetl.scores import ClassScores, OrdinalScores, OutputScores
from export.reporting import charts
from export.reporting.blocks import Block, Cell, Charts, Row, Table, Tables, Text, count, percent, points
from export.reporting.material import Material

FEW = 12
"""Up to so many classes a confusion matrix is a table with numbers; more are drawn."""
SHOWN = 12
"""Lines of a long table that are shown before the rest, which is folded."""


def class_blocks(material: Material) -> tuple[Block, ...]:
    """Confusion of Keras and of the quantized artifact, what is most often confused, and each class."""
    keras, after = _both(material)
    return (
        *_order(keras, after, material.quantized),
        _confusions(material, keras, after),
        *_pairs(material, after),
        *_classes(material, keras.classes, after.classes),
    )


def _both(material: Material) -> tuple[ClassScores, ClassScores]:
    keras = material.evaluation.keras
    found = material.result(material.quantized).scores
    if not isinstance(keras, ClassScores) or not isinstance(found, ClassScores):
        raise TypeError(f"Expected scores of classes. Received: {keras.task}, {found.task}")
    return keras, found


def _order(keras: ClassScores, after: ClassScores, scheme: str) -> tuple[Block, ...]:
    """Of ordered classes: how far off the wrong ones are."""
    if not isinstance(keras, OrdinalScores) or not isinstance(after, OrdinalScores):
        return ()
    kappa = [f"{each.kappa:.3f}" if each.kappa is not None else "\u2013" for each in (keras, after)]
    return (
        Text(
            f"Mean distance to the right class, in steps: Keras {keras.mean_steps:.3f}, {scheme} "
            f"{after.mean_steps:.3f}. Quadratically weighted kappa: {kappa[0]}, {kappa[1]}."
        ),
    )


def _confusions(material: Material, keras: ClassScores, after: ClassScores) -> Block:
    names = material.spec.names
    both = (("Keras", keras), (material.quantized, after))
    if len(names) > FEW:
        note = "Rows: true class, columns: class named, in the order of the model. Anything off the diagonal is wrong."
        return Charts(tuple(charts.matrix(name, scores.confusion, names, note) for name, scores in both))
    return Tables(tuple(_confusion(name, scores.confusion, names) for name, scores in both))


def _confusion(name: str, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    rows = [
        Row((true, *(Cell(f"{photos:,}", photos / max(sum(line), 1)) for photos in line), f"{sum(line):,}"))
        for true, line in zip(names, confusion, strict=True)
    ]
    return Table(f"{name}: true class by class named", ("true \\ named", *names, "all"), tuple(rows))


def _pairs(material: Material, after: ClassScores) -> tuple[Block, ...]:
    """What is most often taken for what, where the matrix is too large to be read."""
    names = material.spec.names
    if len(names) <= FEW:
        return ()
    pairs = sorted(
        ((photos, true, named) for true, line in enumerate(after.confusion) for named, photos in enumerate(line)),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    wrong = [pair for pair in pairs if pair[1] != pair[2] and pair[0]]
    rows = tuple(
        Row((names[true], names[named], f"{photos:,}", percent(photos / max(sum(after.confusion[true]), 1))))
        for photos, true, named in wrong[:SHOWN]
    )
    columns = ("true", "named", "photos", "of the true class")
    return (Table(f"Most often confused, {material.quantized}", columns, rows, words=(1,)),)


def _classes(material: Material, keras: Sequence[OutputScores], after: Sequence[OutputScores]) -> tuple[Block, ...]:
    """Each class; of many the ones that are recognized worst first, the others folded."""
    drops = material.report.row(material.quantized).drops
    rows = []
    for before, now, drop in zip(keras, after, drops, strict=True):
        # One photo more or less is no sign of anything.
        bad = drop is not None and round(drop * now.samples) > 1
        recall = percent(now.recall) if now.samples else percent(None)
        rows.append(
            Row(
                (
                    now.name,
                    f"{now.samples:,}",
                    percent(before.recall) if now.samples else percent(None),
                    recall,
                    Cell(points(drop and -drop, 1), style="bad" if bad else ""),
                    percent(now.precision),
                    percent(now.f1),
                )
            )
        )
    columns = ("class", "photos", "recall, Keras", f"recall, {material.quantized}", "change", "precision", "F1")
    note = "Recall: share of the photos of a class that are named so. Precision: share of the photos named so that are."
    return listed("Class by class", columns, rows, [each.recall for each in after], note)


def listed(
    caption: str, columns: tuple[str, ...], rows: Sequence[Row], worth: Sequence[float], note: str
) -> tuple[Block, ...]:
    """A table; of a long one the lines that are worth least come first, and the whole of it is folded."""
    if len(rows) <= 2 * SHOWN:
        return (Table(caption, columns, tuple(rows), note=note),)
    worst = sorted(range(len(rows)), key=lambda index: (worth[index], index))[:SHOWN]
    return (
        Table(f"{caption}: the worst {SHOWN}", columns, tuple(rows[index] for index in worst), note=note),
        Table(caption, columns, tuple(rows), folded=f"All {count(len(rows), 'line')}"),
    )
