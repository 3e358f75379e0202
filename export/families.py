"""Which backbones have which form: `python -m export.families` makes the table of `edgetl backbones --quantization`.

One member stands for each family: its members differ in width and depth, not in what they are made of. Weights are
random and photos noise, as only the graph matters here; every artifact passes the checks of its scheme.
"""

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.backbones import registry
from edgetl.backbones.quantization import TABLE
from edgetl.config import checked, command
from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import ConfigError, EdgetlError
from edgetl.inputs import ImageInput
from edgetl.rundir import write_atomic
from export import schemes

if TYPE_CHECKING:
    import keras

    from export.quantize import Quantized

FAMILIES = (
    "EfficientNetLite0",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "EfficientNetV2S",
    "DenseNet121",
    "ResNet50",
    "ResNet50V2",
    "Xception",
    "InceptionV3",
    "VGG16",
    "ConvNeXtTiny",
)
PHOTOS = 8
CLASSES = 3
NAMED = 2
"""Further layers that a reason names."""


@dataclass(frozen=True)
class Config:
    """Convert one backbone of each family under every scheme, and write down what comes of it."""

    backbones: tuple[str, ...] = FAMILIES
    """Which ones; the others keep their rows."""
    out: Path = TABLE
    """The table, CSV."""


def main(config: Config) -> tuple[dict[str, str], ...]:
    """Convert everything and write the table.

    Returns:
        Its rows: `backbone`, and one cell for each scheme.

    Raises:
        ConfigError: a backbone that stands for no family.
    """
    config = checked(config)
    if unknown := [name for name in config.backbones if name not in FAMILIES]:
        raise ConfigError(f"--backbones {' '.join(unknown)}: stand for no family. Choose from: {', '.join(FAMILIES)}")
    rows: dict[str, dict[str, str]] = {}
    found: tuple[dict[str, str], ...] = ()
    if config.out.is_file():
        with config.out.open(newline="") as file:
            rows = {row["backbone"]: row for row in csv.DictReader(file)}
    quiet_tensorflow()
    with progress("families", len(config.backbones) * len(schemes.SCHEMES)) as bar:
        for name in config.backbones:
            rows[name] = {"backbone": name}
            for scheme, cell in cells(name):
                rows[name][scheme] = cell
                bar.advance()
            found = tuple(rows[each] for each in FAMILIES if each in rows)
            write_atomic(config.out, _csv(found))  # what is done stays if the next one is interrupted
    return found


def _csv(rows: tuple[dict[str, str], ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["backbone", *schemes.SCHEMES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cells(name: str) -> Iterator[tuple[str, str]]:
    """What each scheme makes of a backbone: `works`, `integer` (no float operator), or why not."""
    for scheme, made in artifacts(name):
        if isinstance(made, EdgetlError):
            yield scheme, f"refused: {reason(made)}"
        else:
            yield scheme, "integer" if not any(op.is_float for op in made.operators) else "works"


def artifacts(name: str) -> "Iterator[tuple[str, Quantized | EdgetlError]]":
    """Every scheme's artifact of a backbone with a small head, or what was said instead."""
    from export.choices import Choices
    from export.quantize import Quantizer

    model, photos = subject(name)
    quantizer = Quantizer(model, photos)
    for scheme in schemes.SCHEMES.values():
        try:
            if scheme.trained:
                made = trained(model, photos)
            else:
                layers = (first_convolution(quantizer.prepared[0]),) if scheme.mixed else ()
                made = quantizer.quantize(scheme, Choices(float_layers=layers))
        except EdgetlError as error:
            yield scheme.name, error
            continue
        yield scheme.name, made


def subject(name: str) -> tuple["keras.Model", list[NDArray[np.uint8]]]:
    """A backbone of a small size with random weights that keep activations in range, and noise for photos."""
    quiet_tensorflow()
    import keras

    from edgetl import heads
    from edgetl.backbones.build import build

    row = registry.get(name)
    keras.utils.set_random_seed(0)
    side = max(row.min_size, 64)
    backbone = build(name, ImageInput(side, side), "none")
    photos = np.random.default_rng(0).integers(0, 256, (PHOTOS, side, side, 3), np.uint8)
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.5
    if norms:  # one pass, and statistics are half those of these photos; all of them, and some variances would be 0
        backbone(photos.astype(np.float32), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return heads.attach(backbone, heads.build_head("classification", row.features, CLASSES)), list(photos)


def first_convolution(model: "keras.Model") -> str:
    """Name of the first convolution."""
    import keras

    return str(next(layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)))


@dataclass(frozen=True)
class _Noise:
    """Photos in memory, as training takes them."""

    photos: NDArray[np.uint8]
    digest: str = ""

    @property
    def count(self) -> int:
        return len(self.photos)

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        for start in range(0, len(self.photos), 4):
            part = self.photos[start : start + 4]
            yield part, np.arange(len(part)) % CLASSES


def trained(model: "keras.Model", photos: list[NDArray[np.uint8]]) -> "Quantized":
    """Two steps of quantization-aware training."""
    from export import qat

    return qat.quantized(model, _Noise(np.stack(photos)), qat.QatSettings(epochs=1, batch_size=4))


def reason(error: EdgetlError) -> str:
    """The part of a refusal that says why; of a long list the first ones."""
    first, *rest = str(error).split(": ", 1)[-1].split(". ")[0].removesuffix(".").split(", ")
    more = f" and {len(rest) - NAMED} more" if len(rest) > NAMED else ""
    return ", ".join([first, *rest[:NAMED]]) + more


def show(rows: tuple[dict[str, str], ...]) -> str:
    """How many cells there are of each kind."""
    cells = [cell.split(":")[0] for row in rows for name, cell in row.items() if name != "backbone"]
    return ", ".join(f"{kind}: {cells.count(kind)}" for kind in sorted(set(cells)))


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m export.families", show=show))
