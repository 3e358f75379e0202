"""What every recipe on photos shares: the knobs, and the steps from photos to a run directory.

A recipe derives its `Config` from `Experiment` and reads from top to bottom: these steps, and its own between them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from edgetl import data, features, parallel
from edgetl.audit import gate
from edgetl.backbones import registry
from edgetl.backbones.backbone import Backbone
from edgetl.console import log, progress, quiet_tensorflow
from edgetl.errors import ConfigError, WeightsError
from edgetl.inputs import LARGEST_SIDE, ImageInput, InputSpec, ResizeRule
from edgetl.metrics import score
from edgetl.outputs import OutputSpec, Task
from edgetl.parallel import workers
from edgetl.rows import Rows
from edgetl.scores import Scores
from edgetl.shards import Compute, Work, compute_alone

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Experiment:
    """The settings that every recipe on photos has; a recipe's own follow."""

    data: str
    """Folder of <class>/<photo>, or train/ validation/ test/ of such; table (.csv, .jsonl); URL; elpv; tfds:NAME."""
    out: Path = field(metadata={"affects_result": False})
    """Run directory to write. Run the same command again to resume an interrupted run."""
    backbone: str = "EfficientNetLite0"
    """Pretrained network; `edgetl backbones` lists all."""
    width: float = 1.0
    """Multiplier of its channels, where there are weights of several: 0.35 of MobileNetV2 is MobileNetV2_035."""
    weights: str = "imagenet"
    """`imagenet`, `none` (random), or a file: .weights.h5, .h5, .keras."""
    image_size: int = 0
    """Side of the square input, pixels; 0 means the backbone's own size."""
    resize: ResizeRule = "stretch"
    """How a photo is fitted in: stretch (as phone libraries do), crop (cut the longer side), pad (black bars)."""
    validation_fraction: float = 0.15
    """Share of all photos on which choices are made, 0..1; ignored where the folder brings its own split."""
    test_fraction: float = 0.25
    """Share of all photos held out for the final figures, 0..1; ignored where the folder brings its own split."""
    task: Task | Literal["auto"] = "auto"
    """What is learned. auto: what the columns of the table tell (label, labels, target...); else classification."""
    label: str = ""
    """Column of the table with the class or the labels, if it isn't called label or labels."""
    targets: tuple[str, ...] = ()
    """Columns of the table with numbers to be learned, if their names don't begin with target."""
    class_order: tuple[str, ...] = ()
    """ordinal: the classes from low to high; by default numbers by value, names as people count."""
    group: str = ""
    """Column whose equal values keep photos in one part, if it isn't called group; of a folder: folder."""
    seed: int = 0
    """Seed of the split and of everything random."""
    max_unreadable: float = 0.01
    """Share of unreadable photos, 0..1, above which the run stops."""
    cache: Path = field(default_factory=features.default_cache, metadata={"affects_result": False})
    """Where features are stored for the next run. Default: $EDGETL_CACHE or ~/.cache/edgetl."""
    workers: int = field(default=0, metadata={"affects_result": False})
    """Threads that decode and run the backbone; 0 means one per core."""
    ray: str = field(default="", metadata={"affects_result": False})
    """Address of a Ray cluster that shares the work: host:port, or auto on one of its nodes. Empty: this machine."""
    exclude: Path | None = None
    """CSV of photos to leave out: the exclude.csv of `edgetl audit`, as you edited it."""
    allow_leakage: bool = False
    """Go on where a photo, or nearly the same, is in two of the splits that the data brings, or one has two labels."""


E = TypeVar("E", bound=Experiment)


def check_common(config: Experiment) -> None:
    """Refuse shared settings that can't work, before anything is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
        BackboneError: no such backbone, or none of that width.
    """
    if config.backbone:  # else the recipe goes through several
        registry.of_width(config.backbone, config.width)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"--seed {config.seed}: must be between 0 and {2**32 - 1}")
    if config.ray:
        parallel.check(config.ray)
    check_share("max-unreadable", config.max_unreadable)
    for name, number in [("image-size", config.image_size), ("workers", config.workers)]:
        if number < 0:
            raise ConfigError(f"--{name} {number}: must not be negative; 0 chooses by itself")
    if config.image_size > LARGEST_SIDE:
        raise ConfigError(f"--image-size {config.image_size}: must be at most {LARGEST_SIDE} pixels")


def check_share(name: str, fraction: float) -> None:
    """Refuse what is no share, 0 included and 1 not.

    Raises:
        ConfigError: names the option.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"--{name} {fraction}: a share between 0 and 1 is needed, such as 0.3")


def row_and_spec(config: Experiment) -> tuple[Backbone, ImageInput]:
    """The backbone's row of the registry, and the input contract of the model to be made.

    Raises:
        BackboneError: no such backbone, or none of that width.
    """
    row = registry.of_width(config.backbone, config.width)
    size = config.image_size or row.default_size
    return row, ImageInput(size, size, config.resize)


def load_examples(config: Experiment) -> data.Examples:
    """Find the photos, and refuse what can't be divided now, not after minutes of computing.

    Raises:
        DatasetError: no such data, too few of a class, or photos in two splits.
        ConfigError: the fractions leave nothing, a list of exclusions can't be used, or the run would be written among
            the photos.
    """
    examples = gate.admit(
        find_examples(config),
        config.exclude,
        config.allow_leakage,
        cache=config.cache,
        workers=config.workers or None,
    )
    divide(config, examples)
    return examples


def find_examples(config: Experiment) -> data.Examples:
    """Find the photos, all of them.

    Raises:
        DatasetError: no such data.
        ConfigError: the run would be written among the photos.
    """
    examples = data.load(
        config.data,
        task=config.task,
        label=config.label,
        targets=config.targets,
        group=config.group,
        class_order=config.class_order,
    )
    data.refuse_inside(config.out, config.data, examples)
    return examples.absolute() if config.ray else examples


def divide(config: Experiment, examples: data.Examples) -> data.Splits:
    """Split the examples as the settings say."""
    return data.split(
        examples,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        allow_leakage=config.allow_leakage,
    )


def build_backbone(config: Experiment, row: Backbone, spec: InputSpec) -> "keras.Model":
    """Load the frozen backbone: raw pixels [n, h, w, 3] -> pooled features [n, d]."""
    quiet_tensorflow()
    import keras

    from edgetl.backbones.build import build

    keras.utils.set_random_seed(config.seed)
    with progress(f"load {row.name}"):
        backbone = build(row.name, spec, config.weights)
    backbone.trainable = False
    return backbone


@dataclass(frozen=True)
class Interpreters:
    """A converted model, and for how many threads to load it: what makes a forward pass, here or in another process."""

    tflite: bytes
    size: int

    def __call__(self) -> features.Forward:
        """Load it."""
        from export.artifacts import open_pool

        return open_pool(self.tflite, self.size).run


def converted(config: Experiment, model: "keras.Model", title: str) -> features.Forward:
    """Convert a model, raw pixels in and one tensor out, for a pass over photos, and load it once per core."""
    from export.saved_model import float_tflite

    with progress(title):
        return Interpreters(float_tflite(model), config.workers or data.default_workers())()


def extract(
    config: Experiment, row: Backbone, spec: InputSpec, examples: data.Examples, backbone: "keras.Model"
) -> features.Features:
    """Run all photos through the backbone once, by its converted form: the fastest forward pass on a CPU."""
    from edgetl.backbones.weights import weights_sha256

    table = features.extract(
        examples,
        spec,
        lambda: converted(config, backbone, f"convert {row.name} for the feature pass"),
        key={
            "backbone": row.name,
            "normalization": str(row.normalization),
            "weights": weights_sha256(backbone),
        },
        cache=config.cache,
        workers=config.workers or None,
        max_unreadable=config.max_unreadable,
        compute=on_cluster(config, backbone) if config.ray else None,
    )
    if not all(np.isfinite(block).all() for _, block in table.rows.blocks()):
        raise WeightsError(f"{row.name}: features are not finite with --weights {config.weights}. Use other weights")
    return table


def on_cluster(config: Experiment, backbone: "keras.Model") -> Compute:
    """What has the shards of a pass computed by tasks of a Ray cluster, a core each; this process writes them."""

    def compute(shards: Sequence[Work], advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
        from export.saved_model import float_tflite

        with workers(Interpreters(float_tflite(backbone), 1), ray=config.ray) as pool:
            for place, content in pool.map(shard_of, [(work,) for work in shards]):
                advance(len(shards[place].items))
                yield shards[place].start, content

    return compute


def elsewhere(config: E) -> E:
    """The settings for a task in another process, perhaps in another folder: one thread, no tasks of its own."""
    weights = Path(config.weights).expanduser()
    return replace(
        config,
        workers=1,
        ray="",
        cache=config.cache.expanduser().absolute(),
        out=config.out.expanduser().absolute(),
        weights=str(weights.absolute()) if weights.is_file() else config.weights,
    )


def shard_of(interpreters: "Interpreters", work: Work) -> bytes:
    """One task of such a pass."""
    return compute_alone(work, interpreters, 1)


def fit_linear_head(table: features.Features, splits: data.Splits) -> tuple["keras.Sequential", str]:
    """Fit the linear probe of the task on the training split, its L2 strength chosen on the validation split.

    Returns:
        The head, for raw features, in the form in which it is trained on; and what was chosen, in words.
    """
    from edgetl import heads
    from edgetl.probe import METHODS, fit_linear_probe
    from edgetl.tasks import training_outputs

    train, validation = splits.train, splits.validation
    outputs = training_outputs(train)
    probe = fit_linear_probe(
        table.of(train),
        train.labels,
        table.of(validation),
        validation.labels,
        task=outputs.task,
        weights=train.weights,
    )
    head = heads.build_head(outputs.task, probe.kernel.shape[0], len(outputs.names), deviations=outputs.deviations)
    heads.load(head, probe.kernel, probe.bias)
    return head, f"linear, {METHODS[outputs.task]}, C={probe.inverse_l2:.3g}"


def predicted(head: "keras.Model", rows: Rows) -> "NDArray[np.float32]":
    """What a head says of features [n, d]: [n, k], block by block."""
    return rows.mapped(lambda block: np.asarray(head(block, training=False)), head.output_shape[-1]).array()


@dataclass(frozen=True)
class Finished:
    """A model as it is saved, and how good it is."""

    model: "keras.Model"
    outputs: OutputSpec
    """What it says, thresholds and deviations included."""
    validation: Scores
    test: Scores | None
    """None where no photo was held out."""
    notes: tuple[str, ...]
    """What was done after training, in words."""


def finish(
    model: "keras.Model",
    splits: data.Splits,
    predict: "Callable[[keras.Model, data.Examples], NDArray[np.float32]]",
    *,
    calibrate_scores: bool,
) -> Finished:
    """Bring a trained model into the form in which it is saved, choose what is chosen on validation, and score it.

    Args:
        model: the whole model, or the head alone, in the form in which it was trained.
        splits: training tells the deviations of targets, validation the temperature and the thresholds.
        predict: what a model says of photos.
        calibrate_scores: whether to fit a temperature and write it into the last layer.
    """
    from edgetl import heads
    from edgetl.calibration import fit_temperature, fold_temperature
    from edgetl.tasks import training_outputs
    from edgetl.thresholds import tuned, untested

    outputs, labels, notes = training_outputs(splits.train), splits.validation.labels, []
    model = heads.finish(model)
    said = predict(model, splits.validation)
    if calibrate_scores:
        temperature = fit_temperature(labels, said, outputs)
        fold_temperature(model, temperature)
        said = predict(model, splits.validation)
        notes.append(f"scores calibrated on validation, temperature {temperature:.3f}")
    outputs = tuned(outputs, labels, said)
    if line := untested(outputs, labels):
        notes.append(line)
    for note in notes:
        log.info("%s", note)
    test = score(splits.test.labels, predict(model, splits.test), outputs) if len(splits.test) else None
    return Finished(model, outputs, score(labels, said, outputs), test, tuple(notes))
