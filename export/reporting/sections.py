"""The page from top to bottom, after its summary."""

import math
from collections.abc import Iterator

from edgetl.history import numbers
from edgetl.scores import PRIMARY
from export import schemes
from export.devices import DeviceLatency, DeviceRow
from export.reporting import charts
from export.reporting.blocks import (
    Block,
    Cell,
    Charts,
    Gallery,
    Missing,
    Row,
    Section,
    Table,
    Text,
    between,
    change_between,
    count,
    megabytes,
    milliseconds,
    percent,
    points,
)
from export.reporting.conditions import SLICES, SPOILT, robustness_blocks, slice_blocks
from export.reporting.material import Material
from export.reporting.origins import data_section, reproduce_section
from export.reporting.pictures import Pictures
from export.reporting.reliability import reliability_blocks
from export.reporting.views import VIEWS

WORST = 10
"""Operators in the table of layers."""


def sections(material: Material, pictures: Pictures) -> tuple[Section, ...]:
    """All parts of the page, in their order; one without content says how to get it."""
    found = (
        _artifacts(material),
        _training(material),
        _errors(material),
        *(() if material.spec.task == "regression" else (_scores(material),)),
        Section("slices", "Is it worse for some photos?", slice_blocks(material), SLICES),
        Section("robustness", "Blur, noise, compression, light", robustness_blocks(material), SPOILT),
        *_photos(material, pictures),
        _layers(material),
        _devices(material),
        data_section(material),
        reproduce_section(material),
    )
    return tuple(section for section in found if section.blocks)


def _artifacts(material: Material) -> Section:
    report, name = material.report, PRIMARY[material.report.task]
    timed = [row for row in report.artifacts if row.latency_ms_median is not None]
    drawn = [
        _tradeoff(material, f"{name} against size", {row.scheme: row.size_bytes / 1e6 for row in report.artifacts})
    ]
    if timed:
        times = {row.scheme: row.latency_ms_median or 0.0 for row in timed}
        drawn.insert(0, _tradeoff(material, f"{name} against latency", times, sized=True))
    rows = tuple(
        Row(
            (
                row.scheme,
                megabytes(row.size_bytes),
                megabytes(row.gzip_bytes),
                percent(row.primary),
                between(row.primary_low, row.primary_high),
                points(-row.drop),
                change_between(row.drop_low, row.drop_high),
                percent(row.agreement),
                percent(row.calibration_error),
                milliseconds(row.latency_ms_median),
                milliseconds(row.latency_ms_p90),
            ),
            marked=row.scheme == material.shipped,
        )
        for row in report.artifacts
    )
    columns = ("artifact", "MB", "MB gzip", name, "95 %", "change", "95 %", "as Keras", "calib. error", "ms", "ms p90")
    where = (
        f"ms: median of one photo, {report.threads} thread(s), {report.kernels} kernels, {report.device}."
        if report.threads
        else "Latencies were not measured."
    )
    table = Table(
        f"Measured on {count(report.artifacts[0].samples, 'test photo')}, on the files themselves",
        columns,
        rows,
        note=f"change: points of {name} against Keras ({percent(report.keras_primary)}) on the same photos, negative: "
        f"lost; with a paired interval. as Keras: share of photos of which both {VIEWS[report.task].same}. {where}",
    )
    missing = (
        ()
        if report.threads
        else (Missing("Latencies were not measured.", f"python -m export.benchmark {material.where}"),)
    )
    return Section("artifacts", "Artifacts", (Charts(tuple(drawn)), table, *missing))


def _tradeoff(material: Material, title: str, costs: dict[str, float], *, sized: bool = False) -> charts.Chart:
    rows = [material.report.row(scheme) for scheme in costs]
    largest = max(row.size_bytes for row in rows)
    dots = [
        charts.Dot(
            name=row.scheme,
            x=costs[row.scheme],
            y=row.primary,
            low=row.primary_low,
            high=row.primary_high,
            radius=3 + 8 * math.sqrt(row.size_bytes / largest) if sized else 5,
            style="main" if row.scheme == material.shipped else "other",
        )
        for row in rows
    ]
    name = PRIMARY[material.report.task]
    unit = "latency, ms per photo" if sized else "size of the file, MB"
    note = "Lines: 95 % intervals." + (" Area of a dot: size of the file." if sized else "")
    return charts.dots(title, dots, unit, f"{name}, %", note)


def _training(material: Material) -> Section:
    history = material.history
    if len(history) < 2:
        told = "; ".join(material.report.notes) or "Only a head on stored features was trained, in one step."
        return Section("training", "Training", (Text(told),))
    x = [float(n) for n in numbers(history)]
    name = PRIMARY[material.spec.task]
    starts = [
        (n - 0.5, row.phase)
        for n, row, before in zip(x[1:], history[1:], history, strict=False)
        if row.phase != before.phase
    ]
    drawn = (
        charts.lines(
            "Loss",
            (
                charts.Series("validation", x, [row.validation_loss for row in history], "main"),
                charts.Series("training photos", x, [row.fit_loss for row in history], "other"),
            ),
            "epoch",
            "loss",
            marks=starts,
        ),
        charts.lines(
            f"{name}, %",
            (
                charts.Series("validation", x, [row.validation_primary for row in history], "main"),
                charts.Series("training photos", x, [row.fit_primary for row in history], "other"),
            ),
            "epoch",
            f"{name}, %",
            percent=True,
            marks=starts,
        ),
    )
    lead = "On photos as they are, without augmentation. Where the two part, the model learns its photos by heart."
    return Section(
        "training", "Training", (Charts(drawn), *(Text(note, "note") for note in material.report.notes)), lead
    )


def _errors(material: Material) -> Section:
    lead = f"The float model (Keras) beside {material.quantized}, on the same test photos."
    return Section("errors", "What it gets wrong", VIEWS[material.spec.task].blocks(material), lead)


def _scores(material: Material) -> Section:
    return Section("scores", "Can the scores be trusted?", reliability_blocks(material))


def _photos(material: Material, pictures: Pictures) -> Iterator[Section]:
    gone = (Missing(f"Photos can\u2019t be shown: {pictures.missing}"),) if pictures.missing else ()
    if pictures.mistakes:
        wrong = (
            f"{count(pictures.wrong, 'photo')} wrong, the surest first"
            if pictures.wrong
            else "the largest errors first"
        )
        lead = f"{material.shipped}: {wrong}. Some may be wrong labels rather than wrong answers."
        yield Section("mistakes", "Worst mistakes", (*gone, Gallery(pictures.mistakes)), lead)
    photos = count(material.report.artifacts[0].samples, "test photo")
    view = VIEWS[material.spec.task]
    told = f"Keras and {material.quantized} don\u2019t {view.same} on {pictures.differing} of {photos}."
    gallery = (Gallery(pictures.disagreements),) if pictures.disagreements else ()
    title = "Where quantization changes the answer"
    yield Section("disagreements", title, (Text(told), *(gone if pictures.differing else ()), *gallery))
    if pictures.looks:
        lead = (
            f"Grad-CAM on the Keras model: {view.map.format(first=material.spec.names[0])}, on mistakes first and then "
            "on photos that it gets right. Heat on the background or on a watermark is a warning."
        )
        yield Section("attention", "Where the network looks", (Gallery(pictures.looks),), lead)
    elif pictures.unmapped:
        yield Section("attention", "Where the network looks", (Missing(pictures.unmapped),))


def _layers(material: Material) -> Section:
    title = "Quantization, layer by layer"
    if not material.layers:
        suited = [row.scheme for row in material.report.artifacts if _compared(schemes.get(row.scheme))]
        if not suited:
            return Section("layers", title, ())
        command = f"python -m export.layers {material.where}" + (
            "" if suited[0] == "int8" else f" --scheme {suited[0]}"
        )
        return Section("layers", title, (Missing("Not measured.", command),))
    lead = "What rounding one operator alone does to the outputs. Long bars are where precision is lost."
    return Section("layers", title, tuple(_layer_blocks(material)), lead)


def _compared(scheme: schemes.Scheme) -> bool:
    """Whether `export.layers` knows what to hold the layers of an artifact against."""
    return scheme.activations == "int8" and not scheme.trained and not scheme.compression


def _layer_blocks(material: Material) -> Iterator[Block]:
    unit = "% of a deviation" if material.spec.task == "regression" else "points"
    for scheme, found in material.layers.items():
        names = [f"{layer.name} ({layer.operator}): {100 * layer.effect:.2f} {unit}" for layer in found]
        effects = [100 * layer.effect for layer in found]
        noise = [layer.accumulated_db for layer in found]
        drawn = [charts.bars(f"{scheme}: effect of each operator", effects, names, "operator, in order", unit)]
        finite = [value if math.isfinite(value) else math.nan for value in noise]
        if any(not math.isnan(value) for value in finite):
            series = (charts.Series(scheme, [float(n) for n in range(len(found))], finite, "main"),)
            drawn.append(charts.lines("Signal to noise so far", series, "operator, in order", "dB"))
        yield Charts(tuple(drawn))
        worst = sorted(found, key=lambda layer: -layer.effect)[:WORST]
        rows = tuple(
            Row(
                (
                    layer.name,
                    layer.operator,
                    f"{100 * layer.effect:.2f}",
                    f"{layer.accumulated_db:.1f}" if math.isfinite(layer.accumulated_db) else "\u2013",
                    percent(layer.saturation),
                )
            )
            for layer in worst
        )
        columns = ("layer", "operator", f"effect, {unit}", "signal to noise, dB", "cut off")
        yield Table(f"{scheme}: the {len(rows)} operators with the largest effect", columns, rows, words=(1,))


def _devices(material: Material) -> Section:
    report = material.report
    if not report.devices:
        command = f"python -m export.deploy {material.where} --ssh USER@DEVICE"
        return Section("devices", "Devices", (Missing("No device has run it yet.", command),))
    rows = tuple(_device(device, latency) for device in report.devices for latency in device.latencies)
    name = PRIMARY[report.task]
    columns = ("device", "artifact", "check", name, "as here", "threads", "ms", "ms p90", "peak MB", "remark")
    notes = tuple(
        Text(
            f"{row.name}: {row.device}; {row.kernels} kernels, {row.runtime}; {count(row.samples, 'photo')} checked.",
            "note",
        )
        for row in report.devices
    )
    return Section("devices", "Devices", (Table("What devices found out", columns, rows, words=(1, 2, 9)), *notes))


def _device(device: DeviceRow, latency: DeviceLatency) -> Row:
    verdict = {None: "\u2013", True: "passed", False: "FAILED"}[device.passed]
    return Row(
        (
            device.name,
            device.scheme,
            Cell(verdict, style="bad" if device.passed is False else ""),
            percent(device.score),
            percent(device.agreement),
            f"{latency.threads}",
            milliseconds(latency.median_ms),
            milliseconds(latency.p90_ms),
            "\u2013" if latency.peak_bytes is None else f"{latency.peak_bytes / 1e6:.0f}",
            Cell(latency.noise, style="bad"),
        )
    )
