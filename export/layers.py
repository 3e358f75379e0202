"""Where an int8 artifact loses precision, operator by operator: `python -m export.layers RUN`.

The file as it lies on disk is compared with the float model that it was made from (`export.layer_errors`).
"""

import csv
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from edgetl import data
from edgetl.config import checked, command
from edgetl.console import progress, quiet_tensorflow, table_lines
from edgetl.errors import ArtifactError, ConfigError
from edgetl.plots import quantization_errors
from edgetl.rundir import RunDir, held, open_run, write_atomic
from export import schemes
from export.artifacts import Artifact, find_artifacts
from export.conversion import read_photos, span_of
from export.layer_errors import LayerError, layer_errors, most_harmful

__all__ = ["LayerError", "layer_errors", "most_harmful"]

PROG = "python -m export.layers"
Order = Literal["effect", "own", "accumulated"]
WORST: dict[Order, Callable[[LayerError], float]] = {
    "effect": lambda error: -error.effect,
    "own": lambda error: error.own_sqnr_db,
    "accumulated": lambda error: error.accumulated_sqnr_db,
}
"""What a table is sorted by, smallest first."""


@dataclass(frozen=True)
class Config:
    """Show where a run's int8 artifact loses precision: a table, RUN/export/<scheme>.layers.csv and .layers.png."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    scheme: str = "int8"
    """Which artifact: int8, int8_io8 or mixed_int8."""
    images: int = 32
    """Photos to measure on, of the validation split, stratified by class; of the training split if there is none."""
    top: int = 20
    """Operators in the table, worst first; 0 shows all. The CSV has all."""
    sort: Order = "effect"
    """What the table is sorted by: effect (of an operator's rounding on the outputs), own or accumulated error."""
    seed: int = 0
    """Chooses the photos."""
    data: str = ""
    """Where the photos are now, if they were moved since the run."""


@dataclass(frozen=True)
class LayerReport:
    """What the command wrote."""

    scheme: str
    folder: Path
    photos: int
    split: str
    top: int
    sort: Order
    errors: tuple[LayerError, ...]
    """In execution order."""


def main(config: Config) -> LayerReport:
    """Measure an artifact as it lies on disk and write its table and plot.

    Raises:
        ConfigError: unknown scheme, one without int8 activations or with other weights than the run's, no photos.
        RunError: the run is missing, unfinished or damaged, or another process is writing it.
        ArtifactError: not converted yet, or the file is not what its description says.
        DatasetError: photos are gone or were changed.
    """
    config = checked(config)
    _refuse(config)
    with held(open_run(config.run)) as run:
        return _measured(run, config)


def _measured(run: RunDir, config: Config) -> LayerReport:
    (artifact,) = find_artifacts(run, (config.scheme,))
    splits = run.splits(config.data)
    split = "validation" if len(splits.validation) else "training"
    examples = splits.validation if len(splits.validation) else splits.train
    chosen = data.stratified_subset(examples, min(config.images, len(examples)), config.seed)
    _, photos = read_photos(run, chosen)
    _, calibration = read_photos(run, _calibration(artifact, splits.train))
    quiet_tensorflow()
    from export.quantize import Quantizer

    with progress("convert again"):
        model = run.load_model()
        quantizer = Quantizer(model, calibration, units=run.outputs.units, span=span_of(splits.train))
    tflite = (run.export_path / artifact.path).read_bytes()
    errors = layer_errors(quantizer, tflite, photos, artifact.settings.get("ranges", "min-max"))
    title = f"{config.scheme} of {run.path.name}, {len(photos)} {split} photos"
    write_atomic(run.export_path / f"{config.scheme}.layers.csv", to_csv(errors))
    write_atomic(run.export_path / f"{config.scheme}.layers.png", plot(errors, title))
    return LayerReport(config.scheme, run.export_path, len(photos), split, config.top, config.sort, errors)


def _refuse(config: Config) -> None:
    scheme = schemes.get(config.scheme)
    if scheme.activations != "int8":
        raise ConfigError(f"--scheme {scheme.name}: its activations are no int8, nothing to show. Choose int8")
    if scheme.trained or scheme.compression:
        raise ConfigError(
            f"--scheme {scheme.name}: was trained on, so its layers can't be compared with the run's. Choose int8"
        )
    for name, value, least in (("images", config.images, 1), ("top", config.top, 0)):
        if value < least:
            raise ConfigError(f"--{name} {value}: give at least {least}")


def _calibration(artifact: Artifact, train: data.Examples) -> data.Examples:
    """The photos that an artifact's ranges were measured on, in that order."""
    where = {example.id: index for index, example in enumerate(train)}
    if not artifact.calibration or any(id_ not in where for id_ in artifact.calibration):
        raise ArtifactError(f"{artifact.path}: its description names other calibration photos. Convert the run again")
    return train.select(np.array([where[id_] for id_ in artifact.calibration]))


def to_csv(errors: Sequence[LayerError]) -> str:
    """All rows in execution order; names of layers and readers are joined by `; `, sides of a shape by `x`."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(LayerError)]
    writer.writerow(names)
    for error in errors:
        values = {name: getattr(error, name) for name in names}
        values["shape"] = "x".join(map(str, error.shape))
        values |= {name: "; ".join(values[name]) for name in ("layers", "readers")}
        writer.writerow(values.values())
    return buffer.getvalue()


def plot(errors: Sequence[LayerError], title: str) -> bytes:
    """Draw all rows in execution order, as PNG."""
    return quantization_errors(
        own=[error.own_sqnr_db for error in errors],
        accumulated=[error.accumulated_sqnr_db for error in errors],
        effects=[error.effect for error in errors],
        floats=[error.is_float for error in errors],
        names=[f"{_name(error)} ({error.operator})" for error in errors],
        title=title,
    )


def show(report: LayerReport) -> str:
    """The table for the terminal, worst operators first, and what to know with it."""
    rows = sorted(report.errors, key=WORST[report.sort])
    shown = rows[: report.top] if report.top else rows
    rest = f", the worst {len(shown)} of {len(rows)} operators by {report.sort}" if len(shown) < len(rows) else ""
    lines = [
        *_table(shown),
        f"{report.scheme} on {report.photos} {report.split} photos{rest}",
        "own: what the operator adds, in steps (0.29 is rounding) and against the spread of its values; all: what has "
        "piled up;\ncut: values beyond the range; effect: change of a score, in points, or of a value, in % of its "
        "deviation, by\nrounding it alone",
        *textwrap.wrap(f"most worth leaving in float (mixed_int8): {' '.join(most_harmful(report.errors)[:8])}", 120),
        f"all of it: {report.folder}/{report.scheme}.layers.csv, {report.scheme}.layers.png",
    ]
    return "\n".join(lines)


def _name(error: LayerError) -> str:
    """The first Keras layer, or the end of the tensor's name where the converter put an operator in."""
    return error.layers[0] if error.layers else error.tensor.split("/")[-1]


def _table(errors: Sequence[LayerError]) -> list[str]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for name, width in (("#", 3), ("layer", 22), ("operator", 17)):
        table.add_column(f"\n{name}", width=width, no_wrap=True)
    for name, width in (("\nshape", 11), ("\nscale", 7), ("own\nsteps", 5), ("own\ndB", 5), ("all\ndB", 5)):
        table.add_column(name, width=width, justify="right", no_wrap=True)
    for name, width in (("cut\n%", 5), ("used\n%", 4), ("\neffect", 6)):
        table.add_column(name, width=width, justify="right", no_wrap=True)
    table.add_column("\nread by", width=16, no_wrap=True)
    for error in errors:
        followers = [reader.split()[-1] for reader in error.readers]
        table.add_row(
            str(error.position),
            _name(error),
            error.operator,
            "x".join(map(str, error.shape[1:])),
            "float" if error.is_float else f"{error.scale:.2g}",
            *(_short(value) for value in (error.own_steps, error.own_sqnr_db, error.accumulated_sqnr_db)),
            f"{100 * error.saturation:.1f}",
            f"{100 * error.range_used:.0f}",
            f"{100 * error.effect:.2f}",
            ", ".join(followers) or "-",
        )
    return table_lines(table, 121)  # the last one is the table's margin


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 100 or math.isinf(value) else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
