"""What a model of several labels gets wrong: a line for each label."""

from edgetl.scores import MultiLabelScores
from export.reporting.blocks import Block, Cell, Row, Text, percent, points
from export.reporting.classification import listed
from export.reporting.material import Material


def label_blocks(material: Material) -> tuple[Block, ...]:
    """Hits, misses and false alarms of each label at its threshold, and the whole."""
    keras = material.evaluation.keras
    after = material.result(material.quantized).scores
    if not isinstance(keras, MultiLabelScores) or not isinstance(after, MultiLabelScores):
        raise TypeError(f"Expected scores of labels. Received: {keras.task}, {after.task}")
    drops = material.report.row(material.quantized).drops
    rows = [
        Row(
            (
                now.name,
                f"{threshold:.2f}",
                f"{now.samples:,}",
                f"{now.right:,}",
                f"{now.samples - now.right:,}",
                f"{now.named - now.right:,}",
                percent(before.f1),
                percent(now.f1),
                # A point of F1 is less than a photo or two in most test sets.
                Cell(points(drop and -drop, 1), style="bad" if drop is not None and drop > 0.01 else ""),
            )
        )
        for now, before, threshold, drop in zip(
            after.labels, keras.labels, material.spec.thresholds, drops, strict=True
        )
    ]
    columns = (
        "label",
        "threshold",
        "photos",
        "found",
        "missed",
        "false alarms",
        "F1, Keras",
        f"F1, {material.quantized}",
    )
    told = Text(
        f"All labels of a photo are right on {percent(after.subset_accuracy)} of the photos (Keras "
        f"{percent(keras.subset_accuracy)}). {percent(after.hamming_loss, 2)} of all yes-or-no answers are wrong."
    )
    note = "A label is said from its threshold on; thresholds were chosen on validation photos."
    return (told, *listed("Label by label", (*columns, "change"), rows, [each.f1 for each in after.labels], note))
