"""What a trial's network costs on the device: known before it is trained, for weights change neither size nor latency.

Each shape, that is backbone, width, input size and layers of the head, is converted to int8 and timed once.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import data, rundir
from edgetl.backbones import registry
from edgetl.console import log
from edgetl.errors import RunError
from edgetl.inputs import InputSpec
from edgetl.tasks import training_outputs
from recipes import choose_backbone, experiment
from recipes.experiment import Experiment

CALIBRATION_PHOTOS = 16
"""They set ranges; size and time do not depend on them."""
RUNS, WARMUP = 100, 20
"""Invocations that a latency is taken from, and those before them."""
OF_BACKBONE = ("backbone", "width", "image_size", "weights")
SIZES = (0.5, 0.75)
"""Shares of the backbone's own input size that are tried besides it where nobody says otherwise."""
MULTIPLE = 32
"""Input sizes are multiples of it: backbones halve their maps five times."""


@dataclass(frozen=True)
class Shape:
    """One network on this machine."""

    settings: dict[str, str]
    """What it is."""
    size_kb: float = 0.0
    """Of the int8 file, 1000 bytes."""
    latency_ms: float = 0.0
    """Median of one invocation."""
    noise: str = ""
    """Why the latency is not to be trusted; empty where it is."""
    device: str = ""
    refused: str = ""
    """Why there is no int8 file; then nothing was measured."""
    schema_version: int = 1


class Shapes:
    """Size and latency of the networks of a search."""

    def __init__(
        self, base: Experiment, train: data.Examples, folder: Path, of_head: Sequence[str], limits: dict[str, float]
    ) -> None:
        """Measure nothing yet.

        Args:
            base: settings that trials share.
            train: photos to calibrate with.
            folder: where measurements are kept.
            of_head: further settings that decide on size or latency.
            limits: largest value of `size_kb` and `latency_ms`.
        """
        self._base, self._train, self._folder = base, train, folder
        self._names = (*OF_BACKBONE, *of_head)
        self.limits = limits
        self._known = {path.stem: shape for path in folder.glob("*.json") if (shape := _kept(path))}

    def unknown(self, settings: Experiment) -> bool:
        """Whether the network of these settings must be measured first."""
        return self._key(settings) not in self._known

    def of(self, settings: Experiment) -> Shape:
        """Measure a network, or read what was measured."""
        key = self._key(settings)
        if key not in self._known:
            self._folder.mkdir(exist_ok=True)
            self._known[key] = self._measured(settings)
            rundir.write_atomic(self._folder / f"{key}.json", rundir.sealed(self._known[key]))
        return self._known[key]

    def figures(self, settings: Experiment) -> dict[str, float]:
        """`size_kb` and `latency_ms`, where there is an int8 form."""
        found = self.of(settings)
        return {} if found.refused else {"size_kb": found.size_kb, "latency_ms": found.latency_ms}

    def excess(self, settings: Experiment) -> dict[str, float]:
        """Limit -> by which share it is exceeded; 0 or less: kept. A network without an int8 form keeps none."""
        figures = self.figures(settings)
        if not figures:
            return {"int8": 1.0}
        return {name: figures[name] / limit - 1 for name, limit in self.limits.items()}

    @property
    def devices(self) -> str:
        """What was measured on; empty where nothing was."""
        found = {shape.device for shape in self._known.values() if shape.device}
        return ", ".join(sorted(found))

    @property
    def noise(self) -> list[str]:
        """Why latencies are not to be trusted, of those that are not."""
        return [shape.noise for shape in self._known.values() if shape.noise]

    def _described(self, settings: Experiment) -> dict[str, str]:
        there = {name: getattr(settings, name) for name in self._names if hasattr(settings, name)}
        if there.get("head") == "linear":
            there.pop("hidden_units", None)
        return {name: str(value) for name, value in there.items()}

    def _key(self, settings: Experiment) -> str:
        return hashlib.sha256(json.dumps(self._described(settings), sort_keys=True).encode()).hexdigest()[:16]

    def _measured(self, settings: Experiment) -> Shape:
        from edgetl import heads
        from export import benchmark
        from export.forms import int8_form

        row, spec = experiment.row_and_spec(settings)
        backbone = experiment.build_backbone(settings, row, spec)
        outputs = training_outputs(self._train)
        hidden = getattr(settings, "hidden_units", ()) if getattr(settings, "head", "linear") != "linear" else ()
        head = heads.build_head(
            outputs.task, row.features, len(outputs.names), hidden_units=hidden, deviations=outputs.deviations
        )
        model = heads.attach(backbone, heads.finish(head))
        tflite, refused = int8_form(model, self._photos(spec), units=outputs.units, rounding=False)
        described = self._described(settings)
        if refused:
            return Shape(described, refused=refused)
        path = self._folder / f"{self._key(settings)}.tflite"
        rundir.write_atomic(path, tflite)
        (report,) = benchmark.measure((path,), benchmark.Config(path, runs=RUNS, warmup=WARMUP))
        path.unlink()
        device = str(report.circumstances.device)
        found = Shape(described, len(tflite) / 1000, report.median_ms, report.noise, device)
        log.info("%s at %d pixels as int8: %.2f ms, %.0f kB", row.name, spec.width, found.latency_ms, found.size_kb)
        return found

    def _photos(self, spec: InputSpec) -> list[NDArray[np.uint8]]:
        count = max(CALIBRATION_PHOTOS, len(self._train.output_names))
        chosen = data.stratified_subset(self._train, min(count, len(self._train)))
        return [image for batch in data.decoded(chosen, spec) for image in batch.pixels]


def _kept(path: Path) -> Shape | None:
    try:
        return rundir.read_json(Shape, path)
    except RunError as error:
        log.warning("%s; it is measured again", error)
        return None


def device_space(base: Experiment) -> tuple[str, ...]:
    """Knobs that decide on size and latency: small backbones whose weights are on this machine, widths, input sizes."""
    from edgetl.backbones.weights import at_hand

    own = registry.get(base.backbone)
    names, widths = [base.backbone], [base.width]
    if base.weights == "imagenet":  # with their narrow members, which are rows of their own
        for row in registry.BACKBONES.values():
            _, spec = experiment.row_and_spec(dataclasses.replace(base, backbone=row.name, width=1.0))
            if row.parameters <= choose_backbone.EDGE_PARAMETERS and at_hand(row, spec) and row.name not in names:
                names.append(row.name)
    elif base.weights == "none":
        widths = [each.width / own.width for each in registry.BACKBONES.values() if each.family == own.family]
    sizes = [
        base.image_size,
        *sorted({max(MULTIPLE, round(share * own.default_size / MULTIPLE) * MULTIPLE) for share in SIZES}),
    ]
    sizes += [0] if base.image_size else []
    offered: dict[str, Sequence[object]] = {"backbone": names, "width": widths, "image_size": sizes}
    return tuple(f"{name}=choice({','.join(map(str, few))})" for name, few in offered.items() if len(few) > 1)
