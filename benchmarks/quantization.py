"""What quantization costs: accuracy, size and speed, side by side: `python -m benchmarks.quantization`.

- optimize: EfficientNet-Lite0 fine-tuned on elpv, several splits: what `export.optimize` chooses within 0.003, and what
  that loses on the test photos;
- hard: MobileNetV3Small and EfficientNetB0, trained briefly on elpv from random weights: what plain int8 loses, and
  what is left of it with a budget of a third of that;
- others: our int8 against what TFLiteConverter and ai-edge-quantizer make of the same model without normalization,
  latency and size in turns;
- families: int8 against float32 on XNNPACK, one thread, in turns.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl import data
from edgetl.config import command
from edgetl.console import quiet_tensorflow, swallowed_output
from edgetl.inputs import ImageInput

if TYPE_CHECKING:
    import keras

COMPARISONS = ("optimize", "hard", "others", "families")
HARD = (("MobileNetV3Small", 128, 30), ("EfficientNetB0", 96, 20))
"""Backbone, side in pixels, epochs."""
FAMILIES = (
    "EfficientNetLite0",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "NASNetMobile",
    "DenseNet121",
    "ResNet50",
    "ResNet50V2",
    "InceptionV3",
    "Xception",
    "VGG16",
)
TURNS = 15
"""How often the sides of a comparison of speed take turns."""
BUDGET = 0.003


@dataclass(frozen=True)
class Config:
    """Measure what quantization costs."""

    only: tuple[str, ...] = COMPARISONS
    """Which of optimize, hard, others, families."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Splits for `optimize`."""
    runs: tuple[Path, ...] = ()
    """Finished runs for `optimize`, one per seed, instead of training them here."""
    models: tuple[Path, ...] = ()
    """Models for `hard` (MobileNetV3Small.keras, EfficientNetB0.keras), instead of training them here."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass
class Figures:
    """Raw figures; accuracies are fractions, times milliseconds."""

    cores: int
    optimize: list[dict[str, Any]] = field(default_factory=list)
    hard: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    families: list[dict[str, Any]] = field(default_factory=list)


def main(config: Config) -> Figures:
    """Run the comparisons that were asked for."""
    quiet_tensorflow()
    figures = Figures(data.default_workers())
    with tempfile.TemporaryDirectory() as folder:
        for name in config.only:
            match name:
                case "optimize":
                    figures.optimize = list(optimized(config, Path(folder)))
                case "hard":
                    figures.hard = list(hard(config, Path(folder)))
                case "others":
                    figures.others = list(others())
                case "families":
                    figures.families = list(families())
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def tell(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row as soon as it is there."""
    print(row, file=sys.stderr, flush=True)
    return row


# --- accuracy -------------------------------------------------------------------------------------------------------


def optimized(config: Config, folder: Path) -> Iterator[dict[str, Any]]:
    """What optimize finds for fine-tuned runs; on each, the search alone is timed."""
    from export import optimize
    from recipes import fine_tune

    for index, seed in enumerate(config.seeds):
        if config.runs:
            path = config.runs[index]
        else:
            path = folder / f"run{seed}"
            fine_tune.main(fine_tune.Config("elpv", path, seed=seed, augment="symmetries", epochs=8))
        start = time.perf_counter()
        found = optimize.main(optimize.Config(path, max_accuracy_drop=BUDGET))
        yield tell(outcome(found) | {"seed": seed, "seconds": time.perf_counter() - start})


def outcome(found: Any) -> dict[str, Any]:
    """What matters of an `export.optimize.Optimization`."""
    from export.optimize import named

    test = found.test_against_keras
    return {
        "chosen": named(found.candidates[found.best]) if found.test else "nothing",
        "test_keras": found.test.primary + test.drop if found.test else None,
        "test_drop": test.drop if test else None,
        "test_interval": (test.drop_low, test.drop_high) if test else None,
        "validation_drop": {named(each): each.against_keras.drop for each in found.candidates if each.against_keras},
        "size_bytes": found.candidates[found.best].size_bytes,
    }


def hard(config: Config, folder: Path) -> Iterator[dict[str, Any]]:
    """Plain int8's drop on the test photos, and the drop of what optimize finds for a third of it."""
    from export import convert, evaluate, optimize
    from export.adopt import adopt

    for index, (name, size, epochs) in enumerate(HARD):
        path = config.models[index] if config.models else folder / f"{name}.keras"
        if not config.models:
            briefly_trained(name, size, epochs).save(path)
        run = adopt(path, "elpv", folder / f"adopted-{name}")
        convert.main(convert.Config(run.path, schemes=("int8",)))
        plain = evaluate.main(evaluate.Config(run.path)).artifacts[0].against_keras
        validation = on_validation(run)
        start = time.perf_counter()
        found = optimize.main(optimize.Config(run.path, max_accuracy_drop=max(validation / 3, 0.0)))
        seconds = time.perf_counter() - start
        yield tell(
            {"backbone": name, "plain_test_drop": plain.drop, "plain_validation_drop": validation, "seconds": seconds}
            | outcome(found)
        )


def on_validation(run: Any) -> float:
    """What a run's int8 artifact loses on validation photos, as measured or as expected, whichever is more."""
    from edgetl.comparison import compare
    from export.predictions import EvaluationSet

    said = EvaluationSet(run, run.splits().validation).predictions([run.export_path / "int8.tflite"])
    found = compare(said.labels, said.keras, said.outputs[0], run.outputs)
    return max(found.drop, found.expected_drop)


def briefly_trained(name: str, size: int, epochs: int, seed: int = 0) -> "keras.Model":
    """Train a backbone from random weights on elpv, as there are no others for it offline.

    Batch normalization averages over 10 steps instead of 100 or 1000: these few epochs end before such averages settle.
    """
    quiet_tensorflow()
    import keras

    from benchmarks.fine_tuning import photos
    from edgetl import heads
    from edgetl.backbones.build import build

    keras.utils.set_random_seed(seed)
    spec = ImageInput(size, size)
    splits = data.split(data.load("elpv"), seed=seed)
    backbone = build(name, spec, "none")
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    model = heads.attach(backbone, heads.build_head("classification", backbone.output_shape[-1], 2))
    turned = keras.Sequential([keras.layers.RandomFlip()])
    train = photos(splits.train, spec, shuffle=True).map(lambda x, y: (turned(x, training=True), y))
    steps = epochs * (len(splits.train) // 32)
    rate = keras.optimizers.schedules.CosineDecay(1e-5, steps, warmup_target=2e-3, warmup_steps=steps // 10)
    model.compile(keras.optimizers.AdamW(rate), "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(train, validation_data=photos(splits.validation, spec, shuffle=False), epochs=epochs, verbose=2)
    return model


# --- speed and size -------------------------------------------------------------------------------------------------


def untrained(name: str) -> tuple["keras.Model", list[NDArray[np.uint8]]]:
    """A backbone at its own size, random weights, with a head of ten classes; and noise to calibrate on."""
    import keras

    from edgetl import heads
    from edgetl.backbones.build import build
    from edgetl.backbones.registry import get

    keras.utils.set_random_seed(0)
    size = get(name).default_size
    backbone = build(name, ImageInput(size, size), "none")
    model = heads.attach(backbone, heads.build_head("classification", backbone.output_shape[-1], 10))
    return model, list(np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8))


def others() -> Iterator[dict[str, Any]]:
    """Our int8, normalization included, against theirs without it."""
    from export import schemes
    from export.quantize import Quantizer

    for name in ("EfficientNetLite0", "MobileNetV2", "EfficientNetB0", "ResNet50"):
        model, photos = untrained(name)
        ours = Quantizer(model, photos).quantize(schemes.get("int8")).tflite
        sides = {"ours": ours, **theirs(model, photos)}
        times = in_turns(sides)
        yield tell(
            {"backbone": name}
            | {f"{side}_bytes": len(tflite) for side, tflite in sides.items()}
            | {f"{side}_ms": times[side] for side in sides}
        )


def theirs(model: "keras.Model", photos: list[NDArray[np.uint8]]) -> dict[str, bytes]:
    """The model behind its normalization, quantized by TFLiteConverter and by ai-edge-quantizer, as they come."""
    import keras
    import tensorflow as tf
    from ai_edge_quantizer import quantizer, recipe

    from edgetl.backbones.build import NORMALIZE_LAYER
    from export.saved_model import frozen_saved_model

    layer = model.get_layer(NORMALIZE_LAYER)
    images = [np.asarray(layer(photo[None].astype(np.float32))) for photo in photos]
    bare = keras.Model(layer.output, model.output, name=model.name)
    with swallowed_output(), frozen_saved_model(bare) as saved_model:
        plain = bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved_model)).convert())
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
        converted = bytes(converter.convert())
        worker = quantizer.Quantizer(bytearray(plain), recipe.static_wi8_ai8())
        seen = worker.calibrate({"serving_default": [{"images": image} for image in images]})
        quantized = bytes(
            worker.quantize(seen, enable_progress_bar=False, enable_progress_report=False).quantized_model
        )
    return {"tfliteconverter": converted, "ai_edge_quantizer": quantized}


def families() -> Iterator[dict[str, Any]]:
    """int8 against float32, family by family."""
    from export import schemes
    from export.quantize import Quantizer

    for name in FAMILIES:
        worker = Quantizer(*untrained(name))
        sides = {scheme: worker.quantize(schemes.get(scheme)).tflite for scheme in ("float32", "int8")}
        times = in_turns(sides)
        yield tell({"backbone": name} | {f"{scheme}_ms": times[scheme] for scheme in sides})


def in_turns(sides: dict[str, bytes], threads: int = 1) -> dict[str, list[float]]:
    """Median invocation of each side in each turn, milliseconds, XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    loaded = {}
    for side, tflite in sides.items():
        interpreter = Interpreter(model_content=tflite, num_threads=threads)
        interpreter.allocate_tensors()
        where = interpreter.get_input_details()[0]
        noise = np.random.default_rng(0).integers(0, 127, where["shape"])
        interpreter.set_tensor(where["index"], noise.astype(where["dtype"]))
        for _ in range(5):
            interpreter.invoke()
        loaded[side] = interpreter
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(TURNS):
        for side, interpreter in loaded.items():
            runs = []
            for _ in range(8):
                start = time.perf_counter()
                interpreter.invoke()
                runs.append(1e3 * (time.perf_counter() - start))
            times[side].append(statistics.median(runs))
    return times


# --- words ----------------------------------------------------------------------------------------------------------


def show(figures: Figures) -> str:
    """Tables; ratios are medians of the ratios of the turns, with the range of their middle half."""
    return "\n".join(
        [
            *(_optimized(figures.optimize) if figures.optimize else ()),
            *(_hard(figures.hard) if figures.hard else ()),
            *(_others(figures.others) if figures.others else ()),
            *(_families(figures.families) if figures.families else ()),
        ]
    )


def _optimized(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"optimize: budget {BUDGET}, fine-tuned EfficientNetLite0, test photos of elpv"
    for row in rows:
        drop = "" if row["test_drop"] is None else f"Keras {row['test_keras']:.4f}, drop {row['test_drop']:+.4f}"
        yield f"  seed {row['seed']}: {row['chosen']:30} {drop}   {row['seconds']:.0f} s"
    drops = [row["test_drop"] for row in rows if row["test_drop"] is not None]
    if drops:
        yield f"  mean drop {statistics.mean(drops):+.4f}, worst {max(drops):+.4f}"


def _hard(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "hard: trained briefly from random weights, budget a third of plain int8's drop on validation photos"
    for row in rows:
        yield (
            f"  {row['backbone']}: plain int8 loses {row['plain_test_drop']:+.4f} on test photos "
            f"({row['plain_validation_drop']:+.4f} validation); {row['chosen']} loses "
            f"{row['test_drop'] if row['test_drop'] is not None else float('nan'):+.4f}   {row['seconds']:.0f} s"
        )
        yield "    tried: " + "; ".join(f"{name} {drop:+.4f}" for name, drop in row["validation_drop"].items())


def _others(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "others: our int8 with normalization : theirs without"
    yield f"  {'':20} {'TFLiteConverter':>34} {'ai-edge-quantizer':>34}"
    yield f"  {'':20} {'latency':>26} {'size':>7} {'latency':>26} {'size':>7}"
    for row in rows:
        cells = []
        for side in ("tfliteconverter", "ai_edge_quantizer"):
            cells.append(f"{_ratio(row['ours_ms'], row[f'{side}_ms']):>26}")
            cells.append(f"{row['ours_bytes'] / row[f'{side}_bytes']:7.3f}")
        yield f"  {row['backbone']:20} {' '.join(cells)}"


def _families(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "families: int8 as many times as fast as float32 (XNNPACK, one thread)"
    for row in rows:
        float32, int8 = statistics.median(row["float32_ms"]), statistics.median(row["int8_ms"])
        yield f"  {row['backbone']:20} {_ratio(row['float32_ms'], row['int8_ms']):>22}   {float32:7.2f} : {int8:.2f} ms"


def _ratio(ours: list[float], theirs: list[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.quantization", show=show))
