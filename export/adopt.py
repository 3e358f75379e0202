"""A Keras model that edgetl did not train becomes a run, so that every command of export works on it.

The model is loaded and checked by `export.foreign` and built again by `export.flattening`. Here all photos are run
through it, what a recipe would have written is written, and what makes the figures doubtful is said: photos that it may
have been trained on, classes in another order, pixels in another range.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl import features, results, rundir
from edgetl.backbones import registry
from edgetl.console import log, progress
from edgetl.data import Examples, Splits, decoded, load, refuse_inside, split, stratified_subset
from edgetl.errors import ConfigError, RunError
from edgetl.features import forward_of
from edgetl.inputs import ImageInput, ResizeRule
from edgetl.metrics import score, wilson_interval
from edgetl.rundir import RunDir
from edgetl.scores import PRIMARY, ClassScores
from export.foreign import SUFFIXES, accepted, input_spec, load_model, probe, refuse_output, refuse_values

if TYPE_CHECKING:
    import keras

RECIPE = "adopt"
FORM = 1
"""Part of the key of stored outputs: raise it when the same file would be built again in another way."""
TRIED_PHOTOS = 256
"""Photos of the validation split, at most, on which other pixel ranges are tried."""


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
class Metrics(results.Metrics):
    """What `metrics.json` holds of an adopted model."""

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
    if examples.task != "classification":
        raise ConfigError(
            f"--model {model}: only classifiers can be adopted; {data} is for {examples.task}. Train with "
            "a recipe, or give photos of one class each"
        )
    refuse_inside(out, data, examples)
    fractions: dict[str, Any] = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    split(examples, **fractions, seed=seed)  # what can't be divided is refused before anything is computed
    sha256 = rundir.sha256_of(path)
    settings = Adoption(str(path.resolve()), sha256, examples.location, resize, seed=seed, **fractions)
    _refuse_other(out.expanduser(), settings)
    with rundir.writing(out, RECIPE, settings) as run:
        if run.finished:
            told = "this model and data already; reopened"
            return results.reopen(run, examples, Metrics, made="made", advice="Name another directory", told=told)
        original = load_model(path)
        spec = input_spec(original, path, resize)
        refuse_output(original, path, examples)
        flat = accepted(original, path, probe(examples, spec))
        table = features.extract(
            examples,
            spec,
            lambda: forward_of(flat),
            key={"adopted": sha256, "form": str(FORM)},
            cache=cache or features.default_cache(),
            workers=workers or None,
        )
        refuse_values(table.rows.array(), path)
        splits = split(table.examples, **fractions, seed=seed)
        metrics = _figures(settings, spec, flat, table, splits)
        results.save(run, RECIPE, spec, splits.train.outputs, flat, table, splits, metrics, seed=settings.seed)
    return rundir.open_run(run.path)


def _refuse_path(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"--model {path}: a directory. Load it where it was trained and save it as a .keras file")
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--model {path}: expected a Keras model, a file that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"--model {path}: no such file. Check the path")


def _refuse_other(out: Path, settings: Adoption) -> None:
    """Say what a run directory holds if it is not a run of this model on this data."""
    try:
        stored = json.loads((out / rundir.CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
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


def _figures(
    settings: Adoption, spec: ImageInput, model: "keras.Model", table: features.Features, splits: Splits
) -> Metrics:
    """Score the outputs that are there, and say what is doubtful about them."""
    validation, test = (
        score(part.labels, table.of(part).array(), part.outputs) for part in (splits.validation, splits.test)
    )
    log.info(
        "%s: outputs taken to be, in this order, %s: alphabetical, as the folders of %s. Validation %s %.2f %%",
        settings.model,
        ", ".join(splits.train.output_names),
        settings.data,
        PRIMARY[validation.task],
        100 * validation.primary,
    )
    notes = (
        *seen_photos(table.examples),
        *(doubts(model, spec, splits.validation, validation) if isinstance(validation, ClassScores) else ()),
    )
    for note in notes:
        log.warning("%s", note)
    unreadable = tuple(failure.id for failure in table.unreadable)
    return Metrics(validation, test, f"adopted from {Path(settings.model).name}", unreadable, notes)


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


def doubts(model: "keras.Model", spec: ImageInput, photos: Examples, found: ClassScores) -> tuple[str, ...]:
    """Warn where the scores look as if pixels or classes were not what the model was trained with.

    Args:
        model: raw pixels -> probabilities.
        spec: its input.
        photos: of the validation split.
        found: scores on them.
    """
    names, confusion = photos.output_names, np.array(found.confusion)
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


def _better_order(confusion: NDArray[np.int64], found: ClassScores) -> NDArray[np.int64] | None:
    """Class of each output under which most photos are right, if that is clearly better than the alphabet."""
    from scipy.optimize import linear_sum_assignment

    _, classes = linear_sum_assignment(-confusion.T)
    right = int(confusion[classes, np.arange(len(classes))].sum())
    low, _ = wilson_interval(right, found.samples)
    return np.asarray(classes, np.int64) if low > found.top1_high else None


def _better_pixels(
    model: "keras.Model", spec: ImageInput, photos: Examples, found: ClassScores
) -> tuple[str, float] | None:
    """Try the normalizations that backbones are trained with; a layer and its top-1, if that is clearly better."""
    count = max(min(TRIED_PHOTOS, len(photos)), len(photos.output_names))
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
