"""The page's first lines: how good the model is, which artifact to ship and why, and what to beware of. Plain words."""

from collections.abc import Iterator, Sequence

from edgetl.backbones.registry import named_by
from edgetl.history import watch
from edgetl.outputs import Task
from edgetl.scores import PRIMARY, ClassScores, OutputScores, RegressionScores
from export import schemes
from export.evaluate import outputs_of
from export.reporting.blocks import (
    NARROW,
    Caution,
    Summary,
    Tile,
    between,
    change_between,
    count,
    megabytes,
    milliseconds,
    percent,
    points,
    value,
)
from export.reporting.conditions import SURE, worst_slice
from export.reporting.joined import ALIKE, BUDGET, samples_of
from export.reporting.material import Material
from export.reporting.table import uneven

FEW_PHOTOS = 10
"""Test photos of a class, below which its figures say next to nothing."""
WIDE = 0.02
"""An interval that reaches further than this to one side is worth a word: two points."""
UNSURE = 0.05
"""Calibration error from which scores should not be read as probabilities."""

GOOD: dict[Task, str] = {
    "classification": "{scheme} names {primary} of {samples} test photos rightly",
    "ordinal": "{scheme} names {primary} of {samples} test photos rightly",
    "multi_label": "{scheme} reaches an F1 of {primary}, the mean over {outputs} labels, on {samples} test photos",
    "regression": "{scheme} explains {primary} of the variance (R2) of {samples} test photos",
}
KINDS: dict[Task, str] = {
    "classification": "tells {outputs} classes apart",
    "ordinal": "tells {outputs} ordered classes apart",
    "multi_label": "says which of {outputs} labels a photo has",
    "regression": "estimates {numbers}",
}
TRAINED = {"fine_tune": "a fine-tuned {}", "distill": "a distilled {}"}
"""Recipes whose networks are not what the backbone's name alone says."""


def summary(material: Material) -> Summary:
    """Say in words what the figures mean."""
    report, row = material.report, material.report.row(material.shipped)
    size = material.run.inputs
    kind = KINDS[report.task].format(
        outputs=len(material.spec.names), numbers=count(len(material.spec.names), "number")
    )
    backbone = backbone_of(material)
    how = TRAINED.get(report.recipe, "{}")
    network = how.format(backbone) if backbone else "a network made elsewhere"
    told = GOOD[report.task].format(
        scheme=row.scheme, primary=percent(row.primary), samples=f"{row.samples:,}", outputs=len(material.spec.names)
    )
    sentences = (
        f"This model {kind}, given photos of {size.width}\u00d7{size.height} pixels. It is {network}, trained on "
        f"{report.data}.",
        f"{told}; expect {between(row.primary_low, row.primary_high)} on other photos of the same kind "
        f"(95{NARROW}% interval).",
        *_off(material),
    )
    return Summary(sentences, tuple(_tiles(material)), tuple(_reasons(material)), tuple(_cautions(material)))


def _off(material: Material) -> Iterator[str]:
    """Of numbers, what a share of variance does not tell: how far they are off, in their own units."""
    scores = material.result(material.shipped).scores
    if isinstance(scores, RegressionScores):
        errors = [f"{target.name} by {value(target.mae)}" for target in scores.targets]
        yield f"On average it is off in {_listed(errors)}."


def _tiles(material: Material) -> Iterator[Tile]:
    report, row = material.report, material.report.row(material.shipped)
    yield Tile(percent(row.primary), PRIMARY[report.task], f"{between(row.primary_low, row.primary_high)}")
    yield Tile(points(-row.drop), "points against Keras", change_between(row.drop_low, row.drop_high))
    yield Tile(f"{megabytes(row.size_bytes)} MB", "file", f"{megabytes(row.gzip_bytes)} MB compressed")
    if row.latency_ms_median is None:
        yield Tile("\u2013", "latency", "not measured")
    else:
        busy = "machine was busy" if report.noisy else f"90{chr(0x202F)}% within {milliseconds(row.latency_ms_p90)} ms"
        yield Tile(f"{milliseconds(row.latency_ms_median)} ms", "per photo, this machine", busy)


def _reasons(material: Material) -> Iterator[str]:
    """Why this artifact: the rule of `recommended`, as it came out."""
    report, row = material.report, material.report.row(material.shipped)
    name = PRIMARY[report.task]
    if row.drop > BUDGET:
        yield f"Every artifact loses more than {100 * BUDGET:g} point of {name}; this one loses least."
    elif all(each.latency_ms_median is not None for each in report.artifacts if each.drop <= BUDGET):
        yield (
            f"It is the fastest here of those that lose at most {100 * BUDGET:g} point of {name}; where times are "
            f"within {100 * ALIKE:g}{chr(0x202F)}%, the smallest."
        )
    else:
        yield f"It is the smallest of those that lose at most {100 * BUDGET:g} point of {name}. Not all were timed."
    yield schemes.get(row.scheme).summary[0].upper() + schemes.get(row.scheme).summary[1:] + "."
    largest = max(report.artifacts, key=lambda each: each.size_bytes)
    if largest.size_bytes > 1.5 * row.size_bytes:
        ratio = largest.size_bytes / row.size_bytes
        yield f"The file is {ratio:.1f} times smaller than {largest.scheme}."
    slow = [each for each in report.artifacts if each.scheme == "float32" and each.latency_ms_median]
    if row.latency_ms_median and slow and (ratio := slow[0].latency_ms_median / row.latency_ms_median) > 1 + ALIKE:  # type: ignore[operator]
        yield f"One photo takes {ratio:.1f} times less time than with float32."
    if not schemes.get(row.scheme).integer and any(schemes.get(e.scheme).integer for e in report.artifacts):
        yield "For an NPU or a microcontroller take int8: these compute in integers only."


def _cautions(material: Material) -> Iterator[Caution]:
    """What to beware of, what weighs most first."""
    report, row = material.report, material.report.row(material.shipped)
    for device in report.devices:
        if device.passed is False:
            told = f"{device.name} does not compute with {device.scheme} what this machine does."
            yield Caution("A device failed.", told)
    if report.noisy:
        yield Caution("Don\u2019t trust the times.", "The machine was busy while they were measured. Measure again.")
    if material.history and (found := watch(material.history, PRIMARY[report.task])).line:
        yield Caution("It overfits.", f"{found.line}.")
    if silent := _never_said(material):
        yield Caution("It never says some of what there is.", f"{silent}: not one of the test photos is found.")
    yield from _about_data(material)
    yield from _about_size(material)
    if share := _most_common(material):
        told = f"Always saying \u201c{share[0]}\u201d is right on {percent(share[1])} of the test photos."
        yield Caution("Compare it with guessing.", told)
    if told := uneven(row, report):
        yield Caution("Quantization is unfair.", f"{told}.")
    for column in material.result(material.shipped).details.slices:
        if column.worst.p < SURE and column.worst.gap > 0:
            yield Caution("It is worse for some photos.", f"{worst_slice(column)}")
    if row.calibration_error is not None and row.calibration_error > UNSURE:
        told = f"They are {percent(row.calibration_error)} off on average. Choose thresholds on photos of your own."
        yield Caution("Scores are no probabilities.", told)
    if not report.devices:
        times = " The times are of this machine." if report.threads else ""
        yield Caution("No device has run it.", f"python -m export.deploy tries it on yours.{times}")


def _about_data(material: Material) -> Iterator[Caution]:
    audit = material.audit
    if material.settings.get("allow_leakage"):
        yield Caution("Leaks were allowed.", "--allow-leakage: copies of test photos may be among the training photos.")
    if audit is None:
        told = "Near copies in training and test make figures too good, wrong labels make them meaningless."
        yield Caution("The data was not audited.", told)
    elif leaks := sum(group.leaks for group in audit.copies):
        told = f"{count(leaks, 'photo has copies', 'photos have copies')} in more than one split: figures are too good."
        yield Caution("Data leaks.", told)
    if not material.grouped:
        told = (
            "If several show one object, day or camera, the test is easier than use will be. Name groups in a manifest."
        )
        yield Caution("Photos were divided one by one.", told)
    told = "Another camera, light or place can cost far more than quantization. Try it on photos of your own."
    yield Caution("Tested on photos of the same source.", told)


def _about_size(material: Material) -> Iterator[Caution]:
    """How much luck there is in the figures."""
    report, row = material.report, material.report.row(material.shipped)
    half = max(row.primary - row.primary_low, row.primary_high - row.primary)
    if half > WIDE:
        told = f"{count(row.samples, 'photo')}: {100 * half:.1f} points more or less on other photos may be luck."
        yield Caution("The test set is small.", told)
    few = [name for name, samples in report.output_samples.items() if samples < FEW_PHOTOS]
    if few and report.task != "regression":
        told = f"Fewer than {FEW_PHOTOS} test photos of {_listed(few)}: their own figures say next to nothing."
        yield Caution("Rare classes.", told)


def _never_said(material: Material) -> str:
    """Classes or labels that have test photos and are found on none, because they are never said."""
    every = outputs_of(material.result(material.shipped).scores)
    silent = [each.name for each in every if isinstance(each, OutputScores) and each.samples and not each.named]
    return _listed(silent)


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _most_common(material: Material) -> tuple[str, float] | None:
    """What one gets for saying the same always: the floor of accuracy."""
    keras = material.evaluation.keras
    if isinstance(keras, RegressionScores) or not isinstance(keras, ClassScores):
        return None
    samples = samples_of(keras)
    most = max(range(len(samples)), key=lambda index: samples[index])
    return material.spec.names[most], samples[most] / sum(samples)


def backbone_of(material: Material) -> str:
    """Name of the backbone; empty where the settings name none."""
    row = named_by(material.settings)
    return row.name if row else str(material.settings.get("backbone", ""))


def licence_of(material: Material) -> str:
    """Of the backbone's pretrained weights; empty where none is known."""
    row = named_by(material.settings)
    return row.licence if row and material.settings.get("weights", "imagenet") == "imagenet" else ""
