"""Models in files of anybody's: loaded without executing anything that they bring, and held to the contract.

The contract: raw pixels 0..255 in, class probabilities out, each photo for itself. It is checked in words (inputs and
outputs) and in deed (on real photos), and outputs of the form that `export.flattening` builds are compared with the
original's.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import log, progress, quiet_tensorflow, swallowed_output
from edgetl.data import Examples, decoded
from edgetl.errors import ArtifactError, DatasetError
from edgetl.features import forward_of
from edgetl.inputs import ImageInput, ResizeRule
from export.flattening import flattened, layers_of

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".h5")
PROBED_PHOTOS = 16
"""Photos on which the model is checked before all of them are computed."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a photo may be from a sum of 1; float16 has steps of 1e-3 below 1."""
SMALL_BYTES = 1 << 26
"""What any file may unpack to: the description of the largest backbones has 1 MB."""
TOLERANCE = 1e-4
"""Largest difference of a probability in float32: the same layers, at most sums in another order."""
REDUCED_TOLERANCE = 0.1
"""The same where the original computes in 16 bits, which is 2 or 3 digits in each of a hundred layers."""


def load_model(path: Path) -> "keras.Model":
    """Load a Keras model from a file of anybody's; code that it brings is refused, not run.

    Raises:
        ArtifactError: damaged, weights alone, or it needs code.
    """
    quiet_tensorflow()
    import keras

    if path.suffix == ".keras":
        _refuse_archive(path)
    from edgetl.backbones.hdf5 import refuse_stuck  # it imports Keras

    refuse_stuck(path)
    try:
        with progress(f"load {path.name}"), swallowed_output():
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # what a damaged or foreign file raises differs by where it hurts
        raise ArtifactError(f"{path}: {_reason(path, str(error))}") from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ArtifactError(f"{path}: {type(model).__name__} has no fixed inputs. Save it after its first call")
    return model


def _refuse_archive(path: Path) -> None:
    """Refuse what is no zip archive, or a bomb: Keras stores what it saves as it is, and allows 4 GB from nothing."""
    from edgetl.backbones.hdf5 import MOST_UNPACKED  # it imports Keras

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ArtifactError(
            f"{path}: damaged, or not saved by Keras 3 (no zip archive). Save the model again"
        ) from error
    if unpacked > max(SMALL_BYTES, MOST_UNPACKED * path.stat().st_size):
        raise ArtifactError(f"{path}: unpacks to far more than a model does; such a file is refused")


def _reason(path: Path, error: str) -> str:
    if path.suffix == ".keras" and (code := sorted(set(_needing_code(path)))):
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
    except Exception:  # what a damaged archive or text raises differs by where it hurts
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


def input_spec(model: "keras.Model", path: Path, resize: ResizeRule) -> ImageInput:
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


def refuse_output(model: "keras.Model", path: Path, examples: Examples) -> None:
    """Refuse outputs that are not one score per photo and class.

    Raises:
        ArtifactError: the message says what they are.
    """
    classes = len(examples.output_names)
    if len(model.outputs) != 1:
        raise ArtifactError(
            f"{path}: gives {len(model.outputs)} outputs, expected one, probabilities [None, {classes}]"
        )
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or shape[0] is not None or shape[1] is None:
        raise ArtifactError(f"{path}: gives {list(shape)}, expected probabilities [None, {classes}]")
    if shape[1] == classes:
        return
    names = ", ".join(examples.output_names[:5]) + (", ..." if classes > 5 else "")
    advice = "Name the folder with the classes that it was trained on"
    if shape[1] == 1 and classes == 2:
        advice = (
            "If it is the probability of the second class p, save "
            "keras.Model(model.input, keras.layers.Concatenate()([1 - p, p])) with p = model.output"
        )
    raise ArtifactError(
        f"{path}: gives {shape[1]} score(s) a photo, {examples.source} has {classes} classes ({names}). {advice}"
    )


def probe(examples: Examples, spec: ImageInput) -> NDArray[np.float32]:
    """Read some photos of all classes, in so far as there are few: float32 [n, h, w, 3], n at most `PROBED_PHOTOS`.

    Raises:
        DatasetError: fewer than two of them can be read.
    """
    spread = np.argsort(examples.labels, kind="stable")[np.linspace(0, len(examples) - 1, PROBED_PHOTOS).astype(int)]
    batches = list(decoded(examples.select(np.unique(spread)), spec))
    pixels = np.concatenate([batch.pixels for batch in batches])
    if len(pixels) < 2:
        failed = batches[0].unreadable[0]
        raise DatasetError(f"{examples.root / failed.id}: can't be read ({failed.reason}), as most. Repair the photos")
    return pixels.astype(np.float32)


def accepted(original: "keras.Model", path: Path, photos: NDArray[np.float32]) -> "keras.Model":
    """Build the model again in the form that export expects, if it keeps the contract on real photos.

    Raises:
        ArtifactError: outputs are no probabilities, or not of each photo alone, or change when it is built again.
    """
    with progress(f"check {path.name}"):
        expected = _outputs(original, photos)
        refuse_values(expected, path)
        reduced = sorted({p for each in layers_of(original) if (p := each.dtype_policy.compute_dtype) != "float32"})
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


def _outputs(model: "keras.Model", photos: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a model as it is, uncompiled: names of layers that Keras takes ("my head") can't be traced."""
    import keras

    (output,) = keras.tree.flatten(model(photos, training=False))
    return np.asarray(keras.ops.cast(output, "float32"))


def _gap(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.abs(ours - theirs).max())


def refuse_values(values: NDArray[np.float32], path: Path) -> None:
    """Refuse outputs [n, k] on photos that are no probabilities.

    Raises:
        ArtifactError: the message says what they are.
    """
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
