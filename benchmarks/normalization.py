"""What a normalization that differs per channel costs an int8 network, form by form.

`python -m benchmarks.normalization`. Every form is exact in float. Time: of whole networks with random weights on
XNNPACK, one thread, in turns, as a ratio to the same network with no normalization at all (its input tensor's scale
and zero point do what they can), within one turn; and what the form adds to a network that ends at its first
convolution, where a few microseconds show. All in processor time, which other processes disturb less. Error: of the
tensor that the first convolution reads, padding included, on real photos, in units of the exact normalized value
(ImageNet's deviation; for BGR backbones pixels).
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl.config import command
from edgetl.errors import ArtifactError, ConfigError
from export.device.interpreter import Model

if TYPE_CHECKING:
    import keras

PROG = "python -m benchmarks.normalization"
NONE = "none"
"""The form that others are compared with; not exact."""
WHOLE, BEGINNING = "whole", "beginning"
"""Folders of networks: as they are, and up to their first convolution."""
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "motorcycle_left.png")
"""Of scikit-image."""


@dataclass(frozen=True)
class Config:
    """Compare forms of normalization in int8 networks."""

    backbones: Positional[tuple[str, ...]] = ("EfficientNetB0", "EfficientNetV2B0", "DenseNet121", "ResNet50")
    """Those whose normalization is no single scale and offset."""
    size: int = 224
    """Side of the photos, pixels."""
    rounds: int = 15
    """Turns of every form."""
    runs: int = 20
    """Invocations per turn; the median counts."""


@dataclass(frozen=True)
class Row:
    """One form in one network."""

    backbone: str
    form: str
    operators: tuple[str, ...]
    """Up to the first convolution."""
    latency_ms: float
    """Median of the turns."""
    ratios: tuple[float, ...]
    """To the network without normalization, one per turn."""
    added_us: float
    """Up to the first convolution, to the network without normalization."""
    largest_error: float
    mean_error: float


def main(config: Config) -> tuple[Row, ...]:
    """Convert, measure, compare.

    Raises:
        ConfigError: a number is out of range.
        ArtifactError: a network can't be converted.
    """
    if min(config.rounds, config.runs) < 1:
        raise ConfigError("need at least 1 round and 1 run")
    rows: list[Row] = []
    for backbone in config.backbones:
        with tempfile.TemporaryDirectory() as folder:
            # In a process of its own, so that TensorFlow is not around when time is taken.
            call = f"from benchmarks.normalization import convert; convert({backbone!r}, {config.size}, {folder!r})"
            done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
            if done.returncode:
                raise ArtifactError(f"{backbone} can't be converted: {done.stderr.strip().splitlines()[-1:]}")
            rows += measure(backbone, Path(folder), config)
    return tuple(rows)


def measure(backbone: str, folder: Path, config: Config) -> list[Row]:
    """Time the networks of one folder in turns, and read what was written of their errors."""
    times = {part: _in_turns(folder / part, config) for part in (WHOLE, BEGINNING)}
    rows = []
    for form, mine in times[WHOLE].items():
        largest, mean, *operators = (folder / f"{form}.txt").read_text().split()
        ratios = tuple(one / base for one, base in zip(mine, times[WHOLE][NONE], strict=True))
        # Caches and neighbours only ever add time: the quickest turn is nearest to what the code itself takes.
        added_us = 1000 * (min(times[BEGINNING][form]) - min(times[BEGINNING][NONE]))
        latency_ms = statistics.median(mine)
        rows.append(Row(backbone, form, tuple(operators), latency_ms, ratios, added_us, float(largest), float(mean)))
    return sorted(rows, key=lambda row: row.added_us)


def _in_turns(folder: Path, config: Config) -> dict[str, list[float]]:
    """Median processor time of one invocation, ms, per form and turn."""
    models = {path.stem: Model(path) for path in sorted(folder.glob("*.tflite"))}
    times: dict[str, list[float]] = {form: [] for form in models}
    pixels = np.random.default_rng(0).integers(0, 256, (config.size, config.size, 3), dtype=np.uint8)
    for model in models.values():
        model.predict(pixels)
    for _ in range(config.rounds):
        for form, model in models.items():
            laps = []
            for _ in range(config.runs):
                start = time.thread_time_ns()
                model.invoke()
                laps.append((time.thread_time_ns() - start) / 1e6)
            times[form].append(statistics.median(laps))
    return times


def convert(backbone: str, size: int, folder: str) -> None:
    """Write one int8 network per form, with its errors and first operators beside it; see `main`."""
    import keras
    import skimage
    from PIL import Image

    from edgetl.backbones.build import build
    from edgetl.inputs import ImageInput
    from export.flatbuffer import operators

    paths = [Path(skimage.__file__).parent / "data" / name for name in PHOTOS]
    photos = [np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BOX)) for path in paths]
    model = build(backbone, ImageInput(size, size), "none")
    for part in (WHOLE, BEGINNING):
        Path(folder, part).mkdir()
    for form, make in forms().items():
        made = make(model)
        if made is None:
            continue
        tflite = to_int8(made, photos[:2])
        names = [op.name for op in operators(tflite)]
        Path(folder, WHOLE, f"{form}.tflite").write_bytes(tflite)
        first_layer = next(layer for layer in made.model.layers if _is_first(layer))
        pooled = keras.layers.GlobalAveragePooling2D()(first_layer.output)
        beginning = dataclasses.replace(made, model=keras.Model(made.model.input, pooled, name=model.name))
        Path(folder, BEGINNING, f"{form}.tflite").write_bytes(to_int8(beginning, photos[:2]))
        errors = np.abs(_seen_by_convolution(made, photos) - _exact(model, photos))
        first = [i for i, name in enumerate(names) if name == "CONV_2D"][_pointwise(made)]
        figures = [f"{errors.max():.6f}", f"{errors.mean():.6f}", *names[: first + 1]]
        Path(folder, f"{form}.txt").write_text(" ".join(figures))


@dataclass(frozen=True)
class Made:
    """A network in one form."""

    model: "keras.Model"
    scale: float
    offset: float
    left: Any
    """`Affine`: what is inside the first convolution's kernel and bias; identity where nothing is."""


def forms() -> dict[str, Callable[["keras.Model"], Made | None]]:
    """Ways to compute a normalization; None where a form does not apply."""
    import keras

    from export.normalization import Affine, affine_of, copy_with, find, integer_form, one_operator, stem_of

    nothing = Affine(np.eye(3), np.zeros(3))

    def none(model: keras.Model) -> Made:
        affine = affine_of(find(model))
        made = copy_with(model, {"normalize": None})
        return Made(made, affine.scale, -affine.scale * affine.zero_point, nothing)

    def by_rows(model: keras.Model) -> Made | None:
        layer = find(model)
        if not isinstance(layer, keras.layers.Rescaling):
            return None
        scale, offset = (
            np.tile(np.asarray(x), (model.input.shape[2], 1)).tolist() for x in (layer.scale, layer.offset)
        )
        return Made(copy_with(model, {"normalize": keras.layers.Rescaling(scale, offset)}), 1.0, 0.0, nothing)

    def pointwise(model: keras.Model) -> Made | None:
        if isinstance(find(model), keras.layers.Conv2D):
            return None  # as built
        affine = affine_of(find(model))
        layer = keras.layers.Conv2D(3, 1)
        layer.build(model.input.shape)
        layer.set_weights([affine.matrix[None, None], affine.offset])
        return Made(copy_with(model, {"normalize": layer}), 1.0, 0.0, nothing)

    def add(model: keras.Model, rows: int = 1) -> Made:
        """The linear part in the kernel, the mean colour subtracted."""
        layer = find(model)
        affine = affine_of(layer)
        stem = stem_of(model, layer)
        assert stem is not None, "all families begin with a convolution"
        old = stem.convolution
        new = keras.layers.Conv2D.from_config(old.get_config())
        new.build(old.input.shape)
        kernel, *bias = old.get_weights()
        new.set_weights([np.einsum("hwof,co->hwcf", kernel, affine.matrix), *bias])
        offset = np.tile(-affine.mean_colour, (rows, 1)).squeeze().tolist()
        made = copy_with(model, {"normalize": keras.layers.Rescaling(1.0, offset), old.name: new})
        return Made(made, 1.0, 0.0, Affine(affine.matrix, np.zeros(3)))

    def depthwise(model: keras.Model) -> Made | None:
        return Made(*one_operator(model), nothing) if isinstance(find(model), keras.layers.Rescaling) else None

    def folded(model: keras.Model) -> Made:
        affine = affine_of(find(model))
        rest = affine.offset + affine.zero_point * affine.matrix.sum(axis=0)
        return Made(*integer_form(model), Affine(affine.matrix / affine.scale, rest))

    return {
        NONE: none,
        "as built": lambda model: Made(model, 1.0, 0.0, nothing),
        "MUL ADD, by rows": by_rows,
        "depthwise 1x1": depthwise,
        "convolution 1x1": pointwise,
        "ADD": add,
        "ADD, by rows": lambda model: add(model, model.input.shape[2]),
        "first convolution": folded,
    }


def _seen_by_convolution(made: Made, photos: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """The normalized and padded photos as an int8 network has them."""
    import keras

    first = next(layer for layer in made.model.layers if _is_first(layer))
    if first.input is made.model.input:
        whole: Any = np.stack(photos) * made.scale + made.offset
    else:
        flat = keras.layers.Flatten()(first.input)
        model = Model(to_int8(Made(keras.Model(made.model.input, flat), made.scale, made.offset, made.left), photos))
        whole = model.predict_batch(np.stack(photos)).reshape(len(photos), *first.input.shape[1:])
    (above, below), (left, right) = _padded_inside(first)
    whole = whole @ made.left.matrix + made.left.offset
    return np.pad(whole, ((0, 0), (above, below), (left, right), (0, 0)))


def _exact(model: "keras.Model", photos: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """The same in double precision."""
    from export.normalization import affine_of, find, stem_of

    affine, stem = affine_of(find(model)), stem_of(model, find(model))
    assert stem is not None
    return np.pad(np.stack(photos) @ affine.matrix + affine.offset, ((0, 0), *stem.padding, (0, 0)))


def _pointwise(made: Made) -> bool:
    """Whether the form is itself a convolution, of one pixel."""
    import keras

    return any(isinstance(layer, keras.layers.Conv2D) and layer.filters == 3 for layer in made.model.layers)


def _is_first(layer: "keras.layers.Layer") -> bool:
    import keras

    return type(layer) is keras.layers.Conv2D and layer.kernel_size != (1, 1)


def _padded_inside(convolution: Any) -> Any:
    from export.normalization import same_padding

    return same_padding(convolution) if convolution.padding == "same" else ((0, 0), (0, 0))


def to_int8(made: Made, photos: list[NDArray[np.uint8]]) -> bytes:
    """Convert with plain ranges; photos span 0..255 so that raw pixels are valid."""
    import tensorflow as tf

    from edgetl.console import swallowed_output
    from export.saved_model import frozen_saved_model, to_tflite

    spanning = np.stack(photos).astype(np.float32)
    spanning[:, 0, 0], spanning[:, -1, -1] = 0.0, 255.0

    def configure(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [photo[None] * np.float32(made.scale) + np.float32(made.offset)] for photo in spanning
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8

    with swallowed_output(), frozen_saved_model(made.model) as saved_model:
        return to_tflite(saved_model, configure)


def show(rows: tuple[Row, ...]) -> str:
    """One line per form."""
    titles = f"{'ms':>7} {'ratio':>6} {'spread':>12} {'adds us':>8} {'largest':>8} {'mean':>8}"
    lines = [f"{'backbone':17} {'form':18} {titles}  operators"]
    for row in rows:
        ratio, spread = statistics.median(row.ratios), f"{min(row.ratios):.3f}-{max(row.ratios):.3f}"
        lines.append(
            f"{row.backbone:17} {row.form:18} {row.latency_ms:7.3f} {ratio:6.3f} {spread:>12} {row.added_us:8.1f} "
            f"{row.largest_error:8.4f} {row.mean_error:8.4f}  {' '.join(row.operators)}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
