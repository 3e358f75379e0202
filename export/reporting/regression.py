"""How far numbers are from the truth: a line for each target, and each test photo as a dot."""

import numpy as np

from edgetl.scores import RegressionScores
from export.reporting import charts
from export.reporting.blocks import Block, Charts, Row, Table, percent, points, value
from export.reporting.material import Material

DRAWN = 1000
"""Photos that are drawn, at most: more dots lie on each other, and make the page large."""
TARGETS = 6
"""Targets that are drawn."""


def target_blocks(material: Material) -> tuple[Block, ...]:
    """Errors of each target, predicted against true, and what is left over."""
    keras = material.evaluation.keras
    after = material.result(material.quantized).scores
    if not isinstance(keras, RegressionScores) or not isinstance(after, RegressionScores):
        raise TypeError(f"Expected scores of targets. Received: {keras.task}, {after.task}")
    drops = material.report.row(material.quantized).drops
    rows = [
        Row(
            (
                now.name,
                value(deviation),
                value(before.mae),
                value(now.mae),
                value(now.rmse),
                value(now.bias),
                percent(before.r2),
                percent(now.r2),
                points(drop and -drop),
            )
        )
        for now, before, deviation, drop in zip(
            after.targets, keras.targets, material.spec.deviations, drops, strict=True
        )
    ]
    scheme = material.quantized
    columns = ("target", "spread", "MAE, Keras", f"MAE, {scheme}", "RMSE", "bias", "R2, Keras", f"R2, {scheme}")
    note = (
        "In each target's own unit. Spread: standard deviation among the training photos. MAE: mean distance to the "
        "truth; RMSE: its root mean square, to which large errors count more; bias: mean of output less truth."
    )
    return (Table("Target by target", (*columns, "change"), tuple(rows), note=note), *_clouds(material))


def _clouds(material: Material) -> tuple[Block, ...]:
    labels, outputs = material.said.labels, material.said.schemes[material.quantized]
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(DRAWN, len(labels))).astype(np.int64))
    note = f"{len(chosen)} of {len(labels)} test photos." if len(chosen) < len(labels) else ""
    drawn = []
    for index, name in enumerate(material.spec.names[:TARGETS]):
        true, said = labels[chosen, index].tolist(), outputs[chosen, index].tolist()
        left = (outputs[chosen, index] - labels[chosen, index]).tolist()
        dots = charts.Series(material.quantized, true, said, "main")
        drawn.append(charts.cloud(f"{name}: said against true", (dots,), "true", "said", equal=True, note=note))
        dots = charts.Series(material.quantized, said, left, "main")
        drawn.append(charts.cloud(f"{name}: error against said", (dots,), "said", "said less true", equal=False))
    return (Charts(tuple(drawn)),)
