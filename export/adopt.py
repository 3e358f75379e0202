"""A Keras model that edgetl did not train becomes a run, so that every command of export works on it.

The model is loaded without executing anything that it brings, checked against the contract (raw pixels 0..255 in,
class probabilities out, each photo for itself), and built again flat, in float32: models inside of it are opened,
layers that only augment are left out, and what it does to pixels first becomes the layer `normalize`. Integer artifacts
then get that for nothing, and quantization-aware training meets plain layers. Outputs are compared with the original's.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl import features, rundir
from edgetl.backbones import registry
from edgetl.config import to_json
from edgetl.console import log, progress, quiet_tensorflow, swallowed_output
from edgetl.data import Examples, Splits, decoded, load, split, stratified_subset, write_csv
from edgetl.errors import ArtifactError, ConfigError, DatasetError, RunError
from edgetl.inputs import ImageInput, ResizeRule
from edgetl.metrics import Scores, score, wilson_interval
from edgetl.rundir import RunDir

if TYPE_CHECKING:
    import keras

RECIPE = "adopt"
FORM = 1
"""Part of the key of stored outputs: raise it when the same file would be built again in another way."""
SUFFIXES = (".keras", ".h5")
PROBED_PHOTOS = 16
"""Photos on which the model is checked before all of them are computed."""
TRIED_PHOTOS = 256
"""Photos of the validation split, at most, on which other pixel ranges are tried."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a photo may be from a sum of 1; float16 has steps of 1e-3 below 1."""
TOLERANCE = 1e-4
"""Largest difference of a probability in float32: the same layers, at most sums in another order."""
REDUCED_TOLERANCE = 0.1
"""The same where the original computes in 16 bits, which is 2 or 3 digits in each of a hundred layers."""
AUGMENTATION = re.compile(
    "AugMix|CutMix|MixUp|RandAugment|Random(Brightness|ColorDegeneration|ColorJitter|Contrast|ElasticTransform|Erasing|"
    "Flip|GaussianBlur|Grayscale|Hue|Invert|Perspective|Posterization|Rotation|Saturation|Sharpness|Shear|Translation|"
    "Zoom)"
)
"""Layers that do nothing at inference (RandomCrop is none of them: it crops the centre)."""
PIXELWISE = re.compile("Rescaling|Normalization|Add|Subtract|Multiply|Divide|TrueDivide|GetItem|Stack")
"""Classes of which normalizations are made, those of keras.applications' preprocess_input included."""


@dataclass(frozen=True)
class Adoption:
    """What `config.json` holds of an adopted model."""

    model: str = field(metadata={"affects_result": False})
    """Where the file was."""
    model_sha256: str
    data: str
    """Where `edgetl.data.load` finds the photos again."""
    resize: ResizeRule
    validation_fraction: float
    test_fraction: float
    seed: int


@dataclass(frozen=True)
class Metrics:
    """What `metrics.json` holds of an adopted model."""

    validation: Scores
    test: Scores
    head: str
    """Where the model comes from, in words."""
    unreadable: tuple[str, ...]
    """Ids of photos that could not be read, and are in no split."""
    notes: tuple[str, ...]
    """What stands between these figures and the truth; `export.report` repeats it."""


def adopt(
    model: Path,
    data: str,
    out: Path,
    *,
    resize: ResizeRule = "stretch",
    validation_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
    workers: int = 0,
    cache: Path | None = None,
) -> RunDir:
    """Make a finished run of a model from elsewhere, or open the one that an earlier call made of it.

    Args:
        model: a whole model in a .keras or .h5 file; input float32 [None, height, width, 3], raw RGB pixels 0..255,
            output [None, k], probabilities of the classes in alphabetical order.
        data: folder of photos with one subfolder per class, or with train/ validation/ test/ of such; or a data set.
        out: run directory to write; may exist empty, unfinished, or finished with the same model and data.
        resize: how photos are fitted into the model's input.
        validation_fraction: share of the photos for choices, 0..1; ignored where the folder brings its own split.
        test_fraction: share of the photos for the final figures, likewise.
        seed: of the split.
        workers: threads that decode and run the model; 0 means one per core.
        cache: where outputs are kept, so that an interrupted pass can go on; default as for features.

    Returns:
        The finished run, as a recipe would have written it.

    Raises:
        ConfigError: no such file, no data named, or a place that can't be.
        ArtifactError: the file is damaged, needs code to load, or breaks the contract; the message says where.
        DatasetError: the photos can't be used.
        RunError: `out` holds something else.
    """
    if not data.strip():
        raise ConfigError(f"--model {model} needs --data: photos to calibrate and evaluate on, one folder per class")
    path = model.expanduser()
    _refuse_path(path)
    examples = load(data)
    if out.expanduser().resolve().is_relative_to(examples.root.resolve()):
        raise ConfigError(f"{out}: lies in the data and would be taken for a class. Choose another run directory")
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    split(examples, **fractions, seed=seed)  # what can't be divided is refused before anything is computed
    sha256 = rundir.sha256_of(path)
    settings = Adoption(str(path.resolve()), sha256, examples.location, resize, seed=seed, **fractions)
    _refuse_other(out.expanduser(), settings)
    with rundir.writing(out, RECIPE, settings) as run:
        if run.finished:
            return _reopen(run, examples)
        original = load_model(path)
        spec = _input_spec(original, path, resize)
        _refuse_output(original, path, examples)
        flat = _accepted(original, path, _probe(examples, spec))
        table = features.extract(
            examples,
            spec,
            lambda: forward_of(flat),
            key={"adopted": sha256, "form": str(FORM)},
            cache=cache or features.default_cache(),
            workers=workers or None,
        )
        _refuse_values(table.values, path)
        splits = split(table.examples, **fractions, seed=seed)
        _save(run, settings, spec, flat, table, splits)
    return rundir.open_run(run.path)


def _refuse_path(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"--model {path}: a directory. Load it where it was trained and save it as a .keras file")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--model {path}: expected a Keras model, a file that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"--model {path}: no such file. Check the path")


def _refuse_other(out: Path, settings: Adoption) -> None:
    """Say what a run directory holds if it is not a run of this model on this data."""
    try:
        stored = json.loads((out / rundir.CONFIG).read_bytes())
    except (OSError, ValueError):
        return  # nothing there, or damaged: `writing` knows what to say
    stored = stored if isinstance(stored, dict) else {}
    if (recipe := stored.get("recipe")) != RECIPE:
        raise RunError(f"{out}: holds a run of {recipe}. Leave --model out to go on with it, or name another directory")
    if (found := str(stored.get("model_sha256"))) != settings.model_sha256:
        raise RunError(
            f"{out}: holds a run of another model (sha256 {found[:12]}..., {settings.model} has "
            f"{settings.model_sha256[:12]}...). Name another directory"
        )
    if (data := stored.get("data")) != settings.data:
        raise RunError(
            f"{out}: holds a run on other data ({data}, --data says {settings.data}). Name another directory"
        )


def _reopen(run: RunDir, examples: Examples) -> RunDir:
    finished = rundir.open_run(run.path)
    known = set(finished.photo_sha256) | set(rundir.read_json(Metrics, finished.path / rundir.METRICS).unreadable)
    there = {example.id for example in examples}
    if known != there:
        raise RunError(
            f"{run.path}: made with other photos ({len(there - known)} came, {len(known - there)} went since). "
            "Name another directory"
        )
    log.info("%s: this model and data already; reopened", run.path)
    return finished


def load_model(path: Path) -> "keras.Model":
    """Load a Keras model from a file of anybody's; code that it brings is refused, not run.

    Raises:
        ArtifactError: damaged, weights alone, or it needs code.
    """
    quiet_tensorflow()
    import keras

    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        raise ArtifactError(f"{path}: damaged, or not saved by Keras 3 (no zip archive). Save the model again")
    try:
        with progress(f"load {path.name}"), swallowed_output():
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # what a damaged or foreign file raises differs by where it hurts
        raise ArtifactError(f"{path}: {_reason(path, str(error))}") from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ArtifactError(f"{path}: {type(model).__name__} has no fixed inputs. Save it after its first call")
    return model


def _reason(path: Path, error: str) -> str:
    if path.suffix.lower() == ".keras" and (code := sorted(set(_needing_code(path)))):
        return f"needs code to load: {', '.join(code)}. Replace by layers that Keras has, and save it again"
    if "No model config found" in error:
        return "holds weights alone. Save the whole model, with model.save(...) and not model.save_weights(...)"
    if "Lambda" in error and "deserialization" in error:
        return "needs code to load: a Lambda layer. Replace by layers that Keras has, and save it again"
    if unknown := re.search(r"(?:Could not locate \w+|Unknown \w+:) '(.+?)'", error):
        return f"needs code to load: {unknown[1]}. Replace by layers that Keras has, and save it again"
    import keras

    line = " ".join(error.split())[:200]
    return f"damaged, or not a model that Keras {keras.__version__} can load ({line}). Save it again with that version"


def _needing_code(path: Path) -> Iterator[str]:
    """Name what a .keras file wants that is no part of Keras, as `name (class)`."""
    try:
        with zipfile.ZipFile(path) as archive:
            waiting: list[Any] = [json.loads(archive.read("config.json"))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        if not isinstance(part, dict) or "class_name" not in part or "registered_name" not in part:
            continue
        kind, config = part["class_name"], part.get("config")
        if kind == "function":
            yield f"{config} (function)"
        elif kind == "Lambda" or str(part.get("module")).split(".")[0] not in ("keras", "builtins"):
            name = config.get("name", "") if isinstance(config, dict) else ""
            yield f"{name} ({kind})" if name else str(kind)


def _input_spec(model: "keras.Model", path: Path, resize: ResizeRule) -> ImageInput:
    """Read the size of the photos off the model.

    Raises:
        ArtifactError: it takes something else than photos of one size.
    """
    if len(model.inputs) != 1:
        raise ArtifactError(f"{path}: takes {len(model.inputs)} inputs. Expected one, photos [None, height, width, 3]")
    (images,) = model.inputs
    shape = tuple(images.shape)
    broken = f"{path}: takes {images.dtype} {list(shape)}, expected float32 [None, height, width, 3]"
    if len(shape) != 4 or shape[3] != 3:
        raise ArtifactError(f"{broken}. Put layers in front that make that of RGB photos, channels last")
    if None in shape[1:] or shape[0] is not None:
        size = ", ".join(str(side or 224) for side in shape[1:3])
        raise ArtifactError(f"{broken}. Save keras.Sequential([keras.Input(({size}, 3)), model]), with your size")
    if images.dtype != "float32":
        raise ArtifactError(f'{broken}. Save the model with keras.Input(..., dtype="float32")')
    return ImageInput(int(shape[1]), int(shape[2]), resize)


def _refuse_output(model: "keras.Model", path: Path, examples: Examples) -> None:
    classes = len(examples.class_names)
    if len(model.outputs) != 1:
        raise ArtifactError(
            f"{path}: gives {len(model.outputs)} outputs, expected one, probabilities [None, {classes}]"
        )
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or shape[0] is not None or shape[1] is None:
        raise ArtifactError(f"{path}: gives {list(shape)}, expected probabilities [None, {classes}]")
    if shape[1] == classes:
        return
    names = ", ".join(examples.class_names[:5]) + (", ..." if classes > 5 else "")
    advice = "Name the folder with the classes that it was trained on"
    if shape[1] == 1 and classes == 2:
        advice = (
            "If it is the probability of the second class p, save "
            "keras.Model(model.input, keras.layers.Concatenate()([1 - p, p])) with p = model.output"
        )
    raise ArtifactError(
        f"{path}: gives {shape[1]} score(s) a photo, {examples.source} has {classes} classes ({names}). {advice}"
    )


def _probe(examples: Examples, spec: ImageInput) -> NDArray[np.float32]:
    """Read some photos of all classes, in so far as there are few: float32 [n, h, w, 3]."""
    spread = np.argsort(examples.labels, kind="stable")[np.linspace(0, len(examples) - 1, PROBED_PHOTOS).astype(int)]
    batches = list(decoded(examples.select(np.unique(spread)), spec))
    pixels = np.concatenate([batch.pixels for batch in batches])
    if len(pixels) < 2:
        failed = batches[0].unreadable[0]
        raise DatasetError(f"{examples.root / failed.id}: can't be read ({failed.reason}), as most. Repair the photos")
    return pixels.astype(np.float32)


def _accepted(original: "keras.Model", path: Path, photos: NDArray[np.float32]) -> "keras.Model":
    """Build the model again in the form that export expects, if it keeps the contract on real photos.

    Raises:
        ArtifactError: outputs are no probabilities, or not of each photo alone, or change when it is built again.
    """
    with progress(f"check {path.name}"):
        expected = _outputs(original, photos)
        _refuse_values(expected, path)
        reduced = sorted({p for each in _layers(original) if (p := each.dtype_policy.compute_dtype) != "float32"})
        tolerance = REDUCED_TOLERANCE if reduced else TOLERANCE
        flat = flattened(original, path)
        outputs = forward_of(flat)
        received = outputs(photos)
        if (gap := _gap(received, np.concatenate([outputs(photo[None]) for photo in photos]))) > TOLERANCE:
            raise ArtifactError(
                f"{path}: what it says of a photo depends on the other photos of the batch (by {gap:.2g}). Devices see "
                "one at a time: replace what computes over the first axis"
            )
        if not (gap := _gap(expected, received)) <= tolerance:
            raise ArtifactError(
                f"{path}: outputs change by {gap:.2g} when the model is built again flat and in float32, allowed "
                f"{tolerance:g}. Save it as a plain functional model in float32"
            )
    if reduced:
        log.info("%s: computes in %s, now in float32; outputs differ by up to %.2g", path, ", ".join(reduced), gap)
    return flat


def forward_of(model: "keras.Model") -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Compile a flat model for inference: pixels 0..255 [n, h, w, 3] of any type -> float32 [n, k]. Thread-safe."""
    import tensorflow as tf

    signature = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)

    @tf.function(input_signature=[signature])  # type: ignore[untyped-decorator]
    def compiled(images: Any) -> Any:
        return model(images, training=False)

    return lambda pixels: np.asarray(compiled(tf.cast(pixels, tf.float32)))


def _outputs(model: "keras.Model", photos: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a model as it is, uncompiled: names of layers that Keras takes ("my head") can't be traced."""
    import keras

    (output,) = keras.tree.flatten(model(photos, training=False))
    return np.asarray(keras.ops.cast(output, "float32"))


def _gap(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.abs(ours - theirs).max())


def _refuse_values(values: NDArray[np.float32], path: Path) -> None:
    """Refuse outputs [n, k] on photos that are no probabilities."""
    if not np.isfinite(values).all():
        raise ArtifactError(f"{path}: outputs on real photos are not finite (NaN or infinity). Train or save it again")
    sums, low, high = values.sum(axis=1), float(values.min()), float(values.max())
    if low >= -SUM_TOLERANCE and np.abs(sums - 1).max() <= SUM_TOLERANCE:
        return
    found = f"values {low:.3g}..{high:.3g}, sums {sums.min():.3g}..{sums.max():.3g}"
    if low >= 0 and high <= 1:
        advice = "Sigmoids say yes or no to each class; edgetl wants one class per photo: end the model with a softmax"
    else:
        advice = "If they are logits, save keras.Sequential([model, keras.layers.Softmax()])"
    raise ArtifactError(f"{path}: outputs on real photos are no probabilities ({found}). {advice}")


def _layers(model: "keras.Model") -> Iterator[Any]:
    """Layers of a model and of those inside."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def flattened(model: "keras.Model", path: Path) -> "keras.Model":
    """Copy a model, weights included, into the form that edgetl's own have.

    Args:
        model: functional or Sequential, one input, one output, models inside or not; stays as it is.
        path: for messages.

    Returns:
        A functional model of layers alone, in float32, without augmentation. Where it begins with operations on single
        pixels that make up a normalization, these are one layer called `normalize`.

    Raises:
        ArtifactError: a layer can't be copied.
    """
    from edgetl.backbones.build import NORMALIZE_LAYER

    if removed := [
        f"{x.name} ({type(x).__name__})" for x in _layers(model) if AUGMENTATION.fullmatch(type(x).__name__)
    ]:
        log.info("%s: left out, since they do nothing at inference: %s", path, ", ".join(removed))
    flat = _Copier(path).copy(model)
    names, layer = _normalization(flat)
    if layer is None:
        return flat
    flat = _Copier(path, frozenset(names), layer).copy(flat)
    log.info("%s: %s at its start taken as normalization (layer %s)", path, ", ".join(names), NORMALIZE_LAYER)
    return flat


class _Copier:
    """Calls copies of a model's operations one after the other, those of models inside included."""

    def __init__(self, path: Path, replaced: frozenset[str] = frozenset(), normalize: Any = None) -> None:
        """Remember what takes the place of what.

        Args:
            path: for messages.
            replaced: names of the operations that make up the normalization.
            normalize: the layer that does the same.
        """
        from edgetl.backbones.build import IMAGES, NORMALIZE_LAYER

        self._path, self._replaced, self._normalize = path, replaced, normalize
        self._copies: dict[int, Any] = {}
        self._taken = {IMAGES, NORMALIZE_LAYER}
        self._normalized: Any = None

    def copy(self, model: "keras.Model") -> "keras.Model":
        import keras

        from edgetl.backbones.build import IMAGES

        images = keras.Input(model.inputs[0].shape[1:], dtype="float32", name=IMAGES)
        self._normalized = self._normalize(images) if self._normalize else None
        (output,) = keras.tree.flatten(self._through(model, images))
        return keras.Model(images, output, name=_valid(model.name))

    def _through(self, model: "keras.Model", tensors: Any) -> Any:
        import keras

        def call(operation: Any, *args: Any, **keywords: Any) -> Any:
            if isinstance(operation, keras.Model):
                return self._through(operation, args[0])
            if AUGMENTATION.fullmatch(type(operation).__name__):
                return args[0]
            if operation.name in self._replaced:
                return self._normalized
            return self._called(operation, model.name, args, keywords)

        graph = getattr(model, "_functional", None) or model
        return graph._run_through_graph(tensors, call_fn=call)

    def _called(self, operation: Any, model_name: str, args: Any, keywords: Any) -> Any:
        import keras

        first = id(operation) not in self._copies
        keywords = {key: value for key, value in keywords.items() if key != "training"}  # inference says False anyway
        try:
            if first:
                config = {**operation.get_config(), "name": self._name(operation.name, model_name)}
                if isinstance(operation, keras.layers.Layer):
                    config["dtype"] = "float32"
                self._copies[id(operation)] = type(operation).from_config(config)
            copy = self._copies[id(operation)]
            output = copy(*args, **keywords)
            if first and getattr(operation, "weights", None):
                copy.set_weights(operation.get_weights())
                if isinstance(copy, keras.layers.Normalization):
                    copy.finalize_state()  # which computes with what it derives from its weights
        except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"{self._path}: layer {operation.name} ({type(operation).__name__}) can't be built again in float32 "
                f"({reason}). Replace it by a plain layer"
            ) from error
        return output

    def _name(self, wanted: str, model_name: str) -> str:
        """A name that no other layer has, whatever its case: TensorFlow's scopes don't tell cases apart."""
        name = _valid(wanted)
        if name.lower() in self._taken:
            name = f"{_valid(model_name)}_{name}"
        number, plain = 1, name
        while name.lower() in self._taken:
            number, name = number + 1, f"{plain}_{number + 1}"
        self._taken.add(name.lower())
        return name


def _valid(name: str) -> str:
    """Turn a name into one that TensorFlow takes as a scope."""
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9_.-]", "_", name).lstrip("_") or "layer"


def _normalization(model: "keras.Model") -> tuple[list[str], Any]:
    """Find out what a flat model does to each pixel before anything else.

    Returns:
        Names of these operations, and one layer that does the same; no names and None where there is nothing such.
    """
    import keras

    operations = [each for each in model.operations if not isinstance(each, keras.layers.InputLayer)]
    first = list(
        takewhile(lambda each: PIXELWISE.fullmatch(type(each).__name__) and len(each._inbound_nodes) == 1, operations)
    )
    for count in range(len(first), 0, -1):
        made = {id(model.inputs[0]), *(id(each.output) for each in first[:count])}
        result = first[count - 1].output
        read = [x for each in operations[count:] for node in each._inbound_nodes for x in node.input_tensors]
        if all(x is result or id(x) not in made for x in read) and (layer := _one_layer(model, result)):
            return [each.name for each in first[:count]], layer
    return [], None


def _one_layer(model: "keras.Model", result: Any) -> Any:
    """Measure what becomes of pixels, and make one layer that does it; None if that is no normalization of photos."""
    import keras

    from edgetl.backbones.build import NORMALIZE_LAYER

    shape = tuple(model.inputs[0].shape)
    if tuple(result.shape) != shape:
        return None
    constant = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)])[:, None, None, :] * np.ones((1, *shape[1:3], 1))
    noise = np.random.default_rng(0).uniform(0, 255, (1, *shape[1:]))
    images = np.concatenate([constant, noise]).astype(np.float32)
    values = np.asarray(keras.Model(model.inputs[0], result)(images, training=False), np.float64)
    offset = values[0, 0, 0]
    matrix = (values[1:4, 0, 0] - offset) / 255
    if not np.allclose(values, images @ matrix + offset, rtol=0, atol=1e-5 * np.abs(values).max()):
        return None
    matrix[np.abs(matrix) < 1e-6 * np.abs(matrix).max()] = 0
    if not ((matrix > 0).sum(axis=0) == 1).all() or not ((matrix != 0).sum(axis=1) == 1).all():
        return None  # a mixture of colours, or their negative
    scale = matrix.sum(axis=0)
    if ((-offset / scale < 0) | (-offset / scale > 255)).any():
        return None  # no pixel is zero: an input tensor's zero point can't say that
    if not np.diag(matrix).all():
        layer = keras.layers.Conv2D(3, 1, dtype="float32", trainable=False, name=NORMALIZE_LAYER)
        layer.build(shape)
        layer.set_weights([matrix[None, None], offset])
        return layer
    uniform = np.ptp(scale) <= 1e-6 * scale.max() and np.ptp(offset) <= 1e-6 * np.abs(offset).max()
    arguments = (float(scale[0]), float(offset[0])) if uniform else (scale.tolist(), offset.tolist())
    return keras.layers.Rescaling(*arguments, dtype="float32", name=NORMALIZE_LAYER)


def _save(
    run: RunDir,
    settings: Adoption,
    spec: ImageInput,
    model: "keras.Model",
    table: features.Features,
    splits: Splits,
) -> None:
    """Write every file of the run; the manifest, which makes it a finished one, comes last."""
    validation, test = (score(part.labels, table.of(part)) for part in (splits.validation, splits.test))
    names = splits.train.class_names
    log.info(
        "%s: outputs taken to be, in this order, %s: alphabetical, as the folders of %s. Validation top-1 %.2f %%",
        settings.model,
        ", ".join(names),
        settings.data,
        100 * validation.top1,
    )
    notes = (*seen_photos(table.examples), *doubts(model, spec, splits.validation, validation))
    for note in notes:
        log.warning("%s", note)
    hashes = {example.id: sha256 for example, sha256 in zip(table.examples, table.sha256, strict=True)}
    unreadable = tuple(failure.id for failure in table.unreadable)
    run.write(rundir.INPUTS, to_json(spec))
    run.write(rundir.LABELS, "".join(f"{name}\n" for name in names))
    run.write(rundir.SPLITS, write_csv(splits, hashes))
    run.write_model(model)
    head = f"adopted from {Path(settings.model).name}"
    run.write(rundir.METRICS, to_json(Metrics(validation, test, head, unreadable, notes)))
    run.finish(recipe=RECIPE, data=settings.data, data_sha256=table.data_sha256, seed=settings.seed)


def seen_photos(examples: Examples) -> tuple[str, ...]:
    """Warn that the model may have been trained on photos that it is judged by."""
    given = {example.split for example in examples}
    drawn = [name for name in ("validation", "test") if name not in given]
    if not drawn:
        return ()
    return (
        f"{examples.source}: the {' and '.join(drawn)} photos were drawn here. If the model was trained on some of "
        "them, its figures flatter it; train/ validation/ test/ folders, as it was trained with, avoid that",
    )


def doubts(model: "keras.Model", spec: ImageInput, photos: Examples, found: Scores) -> tuple[str, ...]:
    """Warn where the scores look as if pixels or classes were not what the model was trained with.

    Args:
        model: raw pixels -> probabilities.
        spec: its input.
        photos: of the validation split.
        found: scores on them.
    """
    names, confusion = photos.class_names, np.array(found.confusion)
    largest = int(confusion.sum(axis=1).argmax())
    share = confusion.sum(axis=1)[largest] / found.samples
    percent = f"validation top-1 {100 * found.top1:.1f} %"
    if (order := _better_order(confusion, found)) is not None:
        right = confusion[order, np.arange(len(names))].sum() / found.samples
        listed = ", ".join(names[i] for i in order)
        return (
            f"{percent}, but {100 * right:.1f} % if its outputs were, in this order, {listed}. Rename the folders so "
            "that they sort as the model's classes do, and adopt it again",
        )
    if found.top1 > share:
        return ()
    reason = f"{percent}, no better than always naming {names[largest]} ({100 * share:.1f} %)"
    if better := _better_pixels(model, spec, photos, found):
        layer, top1 = better
        return (f"{reason}, but {100 * top1:.1f} % behind {layer}. Put that layer into the model and adopt it again",)
    return (
        f"{reason}: the model may expect other pixels than raw 0..255 (put a keras.layers.Rescaling into it, as it was "
        f"trained with), or classes in another order than {', '.join(names)}, or it was trained for something else",
    )


def _better_order(confusion: NDArray[np.int64], found: Scores) -> NDArray[np.int64] | None:
    """Class of each output under which most photos are right, if that is clearly better than the alphabet."""
    from scipy.optimize import linear_sum_assignment

    _, classes = linear_sum_assignment(-confusion.T)
    right = int(confusion[classes, np.arange(len(classes))].sum())
    low, _ = wilson_interval(right, found.samples)
    return np.asarray(classes, np.int64) if low > found.top1_high else None


def _better_pixels(model: "keras.Model", spec: ImageInput, photos: Examples, found: Scores) -> tuple[str, float] | None:
    """Try the normalizations that backbones are trained with; a layer and its top-1, if that is clearly better."""
    count = max(min(TRIED_PHOTOS, len(photos)), len(photos.class_names))
    chosen = stratified_subset(photos, count)
    tried = dict.fromkeys(row.normalization for row in registry.BACKBONES.values())
    run = forward_of(model)
    right = dict.fromkeys(tried, 0)
    samples = 0
    with progress("try other pixels", len(chosen)) as bar:
        for batch in decoded(chosen, spec):
            bar.advance(len(batch.pixels) + len(batch.unreadable))
            samples += len(batch.pixels)
            labels = chosen.labels[batch.indices]
            for each in tried if len(labels) else ():
                pixels = batch.pixels[..., ::-1] if each.bgr else batch.pixels
                right[each] += int((run(pixels * each.scale + each.offset).argmax(axis=1) == labels).sum())
    best = max(right, key=lambda each: right[each])
    if not samples or wilson_interval(right[best], samples)[0] <= found.top1_high:
        return None
    scale, offset = (best.scale[0], best.offset[0]) if best.uniform else (best.scale, best.offset)
    swap = "a swap of red and blue and " if best.bgr else ""
    numbers = ", ".join(np.array2string(np.array(each), precision=8, separator=", ") for each in (scale, offset))
    return f"{swap}keras.layers.Rescaling({numbers})", right[best] / samples
