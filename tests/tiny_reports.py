"""Runs to report on, of every task, without training: real photos, figures by the real scorer, made-up outputs."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from photos import make_photo
from PIL import Image

from edgetl.calibration import judge_temperature
from edgetl.comparison import compare
from edgetl.config import to_json
from edgetl.data import Example, Examples, Splits, write_csv
from edgetl.data.splits import split
from edgetl.heads import OUTPUT_LAYER
from edgetl.inputs import ImageInput
from edgetl.metrics import score
from edgetl.outputs import OutputSpec, Task
from edgetl.rundir import RunDir
from edgetl.slices import cuts, slice_figures
from export.artifacts import Artifact
from export.evaluate import KERAS, ArtifactScores, Details, EvaluationReport

SIDE = 32
ACTIVATIONS = {"classification": "softmax", "ordinal": "softmax", "multi_label": "sigmoid", "regression": "linear"}
NAMES: dict[Task, tuple[str, ...]] = {
    "classification": ("cat", "dog", "owl"),
    "ordinal": ("low", "middle", "high"),
    "multi_label": ("striped", "dark", "odd"),
    "regression": ("width", "height"),
}
SCHEMES = {"float32": (4000, 0.0), "int8": (1000, 0.25)}
"""Scheme -> size of its file, bytes, and how far its outputs are off."""


@dataclass(frozen=True)
class Tiny:
    """A run and what was put into it."""

    run: RunDir
    photos: Path
    test: Examples
    outputs: dict[str, np.ndarray]
    """`keras` and schemes -> [n, k]."""


def tiny_run(
    folder: Path,
    task: Task = "classification",
    names: Sequence[str] = (),
    *,
    photos: int = 80,
    file_names: Sequence[str] = (),
    sites: Sequence[str] = ("north", "south"),
    seed: int = 0,
) -> Tiny:
    """Write a finished, converted and evaluated run of photos that are there.

    Args:
        folder: made; the photos go beside the run.
        task: of the labels.
        names: of the outputs; none: the usual ones.
        photos: how many.
        file_names: of the first photos; the others are numbered.
        sites: values of the column `site`.
        seed: of labels and outputs.
    """
    spec = _spec(task, tuple(names) or NAMES[task])
    examples = _examples(folder / "photos", spec, photos, file_names, sites, seed)
    splits = split(examples, validation_fraction=0.15, test_fraction=0.5)
    run = _run(folder / "run", spec, splits)
    outputs = _outputs(splits.test, spec, seed)
    _export(run, spec, splits.test, outputs)
    return Tiny(run, folder / "photos", splits.test, outputs)


def _spec(task: Task, names: tuple[str, ...]) -> OutputSpec:
    count = len(names)
    return OutputSpec(
        task,
        names,
        thresholds=(0.5,) * count if task == "multi_label" else (),
        deviations=tuple(2.0 + index for index in range(count)) if task == "regression" else (),
    )


def _examples(
    folder: Path, spec: OutputSpec, photos: int, file_names: Sequence[str], sites: Sequence[str], seed: int
) -> Examples:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    count = len(spec.names)
    items = []
    for index in range(photos):
        name = file_names[index] if index < len(file_names) else f"{index:04d}.jpg"
        Image.fromarray(make_photo(index % count, index, (SIDE, SIDE))).save(folder / name, "JPEG")
        label = {
            "classification": index % count,
            "ordinal": index % count,
            "multi_label": tuple(each for each in range(count) if random.random() < 0.4),
            "regression": tuple(random.normal(0, spec.deviations[each]) for each in range(count) if spec.deviations),
        }[spec.task]
        items.append(Example(name, folder / name, label, values=(sites[index % len(sites)],)))
    found = tuple(sorted(items, key=lambda item: item.id))
    return Examples(str(folder), folder, spec.names, found, spec.task, ("site",))


def _run(path: Path, spec: OutputSpec, splits: Splits) -> RunDir:
    path.mkdir()
    run = RunDir(path)
    run.write("config.json", '{"recipe": "feature_extraction", "data": "photos", "backbone": "EfficientNetLite0"}')
    run.write("inputs.json", to_json(ImageInput(SIDE, SIDE)))
    run.write("outputs.json", to_json(spec))
    run.write("labels.txt", "".join(f"{name}\n" for name in spec.names))
    every = [*splits.train, *splits.validation, *splits.test]
    run.write("splits.csv", write_csv(splits, {e.id: hashlib.sha256(e.path.read_bytes()).hexdigest() for e in every}))
    run.write("metrics.json", "{}")
    keras.utils.set_random_seed(0)
    images = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(8, 3, 4, activation="relu")(keras.layers.Rescaling(1 / 127.5, -1)(images))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(len(spec.names), ACTIVATIONS[spec.task], name=OUTPUT_LAYER)(x)
    run.write_model(keras.Model(images, x))
    run.finish(recipe="feature_extraction", data=str(splits.test.root), data_sha256="d" * 64, seed=0)
    return run


def _outputs(test: Examples, spec: OutputSpec, seed: int) -> dict[str, np.ndarray]:
    """Right more often than not; the schemes a little beside Keras."""
    random = np.random.default_rng([seed, 1])
    truth = np.eye(len(spec.names))[test.labels] if spec.exclusive else test.labels
    scale = np.asarray(spec.deviations or 1.0)
    if spec.task == "regression":
        exact = truth + random.normal(0, 0.5, truth.shape) * scale
    else:
        exact = (4 * truth - 2) + random.normal(0, 1.8, truth.shape)
    off = random.normal(0, 1, exact.shape) * scale
    every = {KERAS: exact, **{scheme: exact + error * off for scheme, (_, error) in SCHEMES.items()}}
    return {name: _activated(values, spec).astype(np.float32) for name, values in every.items()}


def _activated(values: np.ndarray, spec: OutputSpec) -> np.ndarray:
    if spec.task == "regression":
        return values
    if spec.task == "multi_label":
        return 1 / (1 + np.exp(-values))
    return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)


def _export(run: RunDir, spec: OutputSpec, test: Examples, outputs: dict[str, np.ndarray]) -> None:
    run.export_path.mkdir()
    scored = []
    for scheme, (size, _) in SCHEMES.items():
        content = np.random.default_rng(size).bytes(size)
        (run.export_path / f"{scheme}.tflite").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        described = Artifact(
            scheme=scheme,
            path=f"{scheme}.tflite",
            sha256=sha256,
            size_bytes=size,
            inputs=run.inputs,
            input_type="uint8",
            input_scale=1.0,
            input_zero_point=0,
            outputs=spec,
            output_type="uint8",
            output_scale=1 / 256,
            output_zero_point=0,
            operators=3,
            run_sha256=run.model_sha256,
            calibration=(),
            settings={"ranges": "min-max"},
            versions={},
        )
        (run.export_path / f"{scheme}.json").write_text(to_json(described))
        against = compare(test.labels, outputs[KERAS], outputs[scheme], spec)
        details = _details(test, outputs[scheme], spec, outputs[KERAS])
        scored.append(ArtifactScores(scheme, sha256, score(test.labels, outputs[scheme], spec), against, details))
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array([example.id for example in test]), labels=test.labels, **outputs)
    (run.export_path / "predictions.npz").write_bytes(buffer.getvalue())
    evaluation = EvaluationReport(
        run_sha256=run.model_sha256,
        data_sha256="d" * 64,
        split="test",
        keras=score(test.labels, outputs[KERAS], spec),
        keras_details=_details(test, outputs[KERAS], spec, None),
        artifacts=tuple(scored),
        predictions_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        unreadable=(),
        kernels="xnnpack",
        runtime="none",
        versions={"edgetl": "0"},
    )
    (run.export_path / "evaluation.json").write_text(to_json(evaluation))


def _details(test: Examples, outputs: np.ndarray, spec: OutputSpec, reference: np.ndarray | None) -> Details:
    judged = None if spec.task == "regression" else judge_temperature(test.labels, outputs, 1.2, spec)
    return Details(judged, slice_figures(cuts(test), test.labels, outputs, spec, reference), None)
