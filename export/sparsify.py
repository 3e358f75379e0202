"""Pruning and clustering: weights that compress well, by TFMOT.

Pruning trains the smallest weights of each kernel away to zero (Zhu and Gupta 2017, arXiv 1710.01878); clustering lets
a kernel have few distinct values (Han et al. 2016, arXiv 1510.00149). Neither makes a .tflite smaller, nor faster on
the kernels that ship: every weight is still stored. What shrinks is the compressed file, the download or update
(`artifacts.gzip_size_bytes`), and it does so after every scheme of `export.quantize`.

Convolutions and dense layers are compressed, but for the first, the last and depthwise ones: these hold few weights and
bear it badly. Training is that of `export.distillation`: towards the outputs of the float model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backbones.build import NORMALIZE_LAYER
from edgetl.console import log, quiet_tensorflow
from edgetl.errors import ArtifactError, ConfigError
from edgetl.outputs import OutputSpec
from export import bridge
from export.distillation import CLASSES, Distilling, Photos, Record, Student, few, key_of, train

quiet_tensorflow()

if TYPE_CHECKING:
    import keras

_CHECKED_IMAGES = 4
_MASK_UPDATES = 100
"""Times, at most, that the weights to prune are chosen anew; each time all are sorted."""
_RAMP = 0.5
"""Share of the steps within which all zeros are found; the others train what is left.

Fine-tuned EfficientNet-Lite0, 2 epochs: 97 % of the predictions on validation stay as they were, 94 % with 1.0.
"""
_LLOYD_ROUNDS = 30
_KERNELS = ("Conv2D", "Dense")
"""Classes in tf_keras; a SeparableConv2D has become a depthwise and one of these."""
_WEIGHTED = (*_KERNELS, "DepthwiseConv2D")


@dataclass(frozen=True)
class PruningSettings(Distilling):
    """How a model is pruned."""

    sparsity: float = 0.5
    """Share of zeros in each pruned kernel, above 0 and below 1."""

    def refuse(self) -> None:
        """See `Distilling`."""
        super().refuse()
        if not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity={self.sparsity}: a share of weights, above 0 and below 1, such as 0.5")


@dataclass(frozen=True)
class ClusteringSettings(Distilling):
    """How the weights of a model are clustered."""

    clusters: int = 16
    """Distinct values in each clustered kernel, 2..256."""

    def refuse(self) -> None:
        """See `Distilling`."""
        super().refuse()
        if not 2 <= self.clusters <= 256:
            raise ConfigError(f"clusters={self.clusters}: 2 to 256 distinct values, more would not fit into a byte")


def pruned(
    model: "keras.Model",
    photos: Photos,
    settings: PruningSettings,
    *,
    outputs: OutputSpec = CLASSES,
    checkpoint: Path | None = None,
) -> "keras.Model":
    """Train the smallest weights of a model away.

    Args:
        model: raw pixels in; stays as it is.
        photos: of the training split.
        settings: epochs, rates, share of zeros.
        outputs: what the model says.
        checkpoint: file that is written after each epoch. One of the same training is gone on from, or, when that
            was finished, is the result; any other is written over.

    Returns:
        A model of the same layers; in each of `compressible` at least that share of the kernel is zero.

    Raises:
        ConfigError: a setting is out of range, or the loss is no longer finite.
        ArtifactError: layers have no counterpart in tf_keras, none has a kernel to prune.
        DatasetError: no photo can be read; or what `Photos.batches` raises.
    """
    settings.refuse()
    teacher = _teacher(model, photos, outputs)
    steps = max(int(settings.steps(photos.count) * _RAMP), 1)
    every = -(-steps // _MASK_UPDATES)
    end = max(steps // every * every, 1)
    tfmot = bridge.quiet_import("tensorflow_model_optimization").sparsity.keras
    schedule = tfmot.PolynomialDecay(0.0, settings.sparsity, 0, end, frequency=every)
    student, wrappers = _wrapped(
        teacher, compressible(teacher), lambda layer: tfmot.prune_low_magnitude(layer, pruning_schedule=schedule)
    )
    after_step = _pruning_step(wrappers)
    _train("pruning", student, teacher, photos, settings, outputs, checkpoint, after_step)
    for wrapper in wrappers:  # photos that can't be read are steps that were not made
        wrapper.pruning_step.assign(end - 1)
    after_step()
    stripped = tfmot.strip_pruning(student)
    names = compressible(teacher)
    for name in names:
        kernel = stripped.get_layer(name).get_weights()[0]
        zeros, wanted = int((kernel == 0).sum()), int(settings.sparsity * kernel.size)
        if zeros < wanted:
            raise ArtifactError(f"{name}: {zeros} of {kernel.size} weights are zero, {wanted} were to be. Not used")
    result = bridge.copy_weights_back(stripped, model)
    log.info("pruned %d kernels: %.1f %% of all weights are zero", len(names), 100 * _share_of_zeros(result))
    return result


def clustered(
    model: "keras.Model",
    photos: Photos,
    settings: ClusteringSettings,
    *,
    outputs: OutputSpec = CLASSES,
    checkpoint: Path | None = None,
) -> "keras.Model":
    """Let each kernel of a model have few distinct values, and train these values and who belongs to which.

    Where batch normalization follows a convolution, every output channel is brought to the same largest weight first
    and the normalization takes the factor: the network computes the same, and the values of one kernel serve weak
    channels as well as strong ones. Integer schemes scale each channel to its own largest weight anyway, so mostly the
    same few values appear in the int8 kernel. Fine-tuned EfficientNet-Lite0, 16 values, 2 epochs: distance to the float
    model's outputs 0.011 instead of 0.018 without this step, 2 % less in the gzip.

    Args:
        model: raw pixels in; stays as it is.
        photos: of the training split.
        settings: epochs, rates, number of values.
        outputs: as for `pruned`.
        checkpoint: as for `pruned`.

    Returns:
        A model of the same layers; each kernel of `compressible` has at most so many distinct values.

    Raises:
        ConfigError: a setting is out of range, or the loss is no longer finite.
        ArtifactError: layers have no counterpart in tf_keras, none has a kernel to cluster.
        DatasetError: no photo can be read; or what `Photos.batches` raises.
    """
    settings.refuse()
    teacher = _teacher(model, photos, outputs)
    _equalize(teacher, compressible(teacher))
    names = tuple(name for name in compressible(teacher) if _kernel(teacher, name).size > settings.clusters)
    tfmot = bridge.quiet_import("tensorflow_model_optimization").clustering.keras
    linear = tfmot.CentroidInitialization.LINEAR
    student, wrappers = _wrapped(
        teacher, names, lambda layer: tfmot.cluster_weights(layer, settings.clusters, cluster_centroids_init=linear)
    )
    for name, wrapper in zip(names, wrappers, strict=True):
        wrapper.cluster_centroids["kernel"].assign(nearest_values(_kernel(teacher, name), settings.clusters))
    _train("clustering", student, teacher, photos, settings, outputs, checkpoint)
    stripped = tfmot.strip_clustering(student)
    for name in names:
        if (found := len(np.unique(_kernel(stripped, name)))) > settings.clusters:
            raise ArtifactError(f"{name}: {found} distinct weights, {settings.clusters} were to be. Not used")
    log.info("clustered %d kernels: %d values each", len(names), settings.clusters)
    return bridge.copy_weights_back(stripped, model)


def compressible(legacy: Any) -> tuple[str, ...]:
    """Layers of a model from `bridge.rebuilt` whose kernels are pruned or clustered.

    Raises:
        ArtifactError: there is none.
    """
    weighted = [x for x in legacy.layers if type(x).__name__ in _WEIGHTED and x.name != NORMALIZE_LAYER]
    names = tuple(layer.name for layer in weighted[1:-1] if type(layer).__name__ in _KERNELS)
    if not names:
        raise ArtifactError(f"{legacy.name}: no convolution between the first and the last layer to compress")
    return names


def nearest_values(kernel: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Values that a kernel is nearest to, in the mean square: k-means in one dimension.

    Starts from quantiles, so that the many small weights get their share. Measured before any training on a fine-tuned
    EfficientNet-Lite0, 16 values per kernel, channels as they are: what TFMOT starts from leaves 55 % (evenly spaced)
    or 77 % (k-means++, a random choice of weights) of the predictions as they were, this 94 %.

    Returns:
        Sorted, [count].
    """
    ordered = np.sort(kernel.ravel().astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    values = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    for _ in range(_LLOYD_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(ordered, (values[1:] + values[:-1]) / 2), [len(ordered)]])
        members = np.diff(edges)
        values = np.where(members > 0, np.diff(sums[edges]) / np.maximum(members, 1), values)
    return values.astype(np.float32)


def _teacher(model: "keras.Model", photos: Photos, outputs: OutputSpec) -> Any:
    """The model in tf_keras, checked on photos; normalization is part of it, and learns nothing."""
    legacy = bridge.rebuilt(model)
    bridge.check_equal(model, legacy, few(photos, _CHECKED_IMAGES).astype(np.float32), outputs.units)
    for layer in legacy.layers:
        if layer.name == NORMALIZE_LAYER:
            layer.trainable = False
    return legacy


def _wrapped(teacher: Any, names: tuple[str, ...], wrap: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
    """Copy a model with wrappers of TFMOT around some layers; returns these, too, in the order of names."""
    models = bridge.legacy_keras().models
    copy = models.clone_model(teacher)  # wrappers change the layers that they are put around
    copy.set_weights(teacher.get_weights())
    wrappers: dict[str, Any] = {}

    def each(layer: Any) -> Any:
        if layer.name not in names:
            return layer
        wrappers[layer.name] = wrap(layer)
        return wrappers[layer.name]

    return models.clone_model(copy, clone_function=each), [wrappers[name] for name in names]


def _pruning_step(wrappers: list[Any]) -> Callable[[], None]:
    """What TFMOT's callback and training mode do: choose weights anew where the schedule says so, and zero them."""
    import tensorflow as tf

    @tf.function  # type: ignore[untyped-decorator]
    def update() -> None:
        for wrapper in wrappers:
            wrapper.pruning_step.assign_add(1)
            wrapper.pruning_obj.conditional_mask_update()
            wrapper.pruning_obj.weight_mask_op()

    for wrapper in wrappers:
        wrapper.pruning_step.assign(0)

    def after_step() -> None:
        update()

    return after_step


def _train(
    title: str,
    student: Any,
    teacher: Any,
    photos: Photos,
    settings: Distilling,
    outputs: OutputSpec,
    checkpoint: Path | None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    received, expected = (lambda raw, m=each: m(raw, training=False) for each in (student, teacher))
    contract = (outputs.task, outputs.units)
    record = Record(checkpoint, key_of(teacher, settings, title, photos.count, photos.digest, *contract))
    train(Student(title, student, received, expected, outputs, after_step), photos, settings, record)


def _equalize(legacy: Any, names: tuple[str, ...]) -> None:
    """Bring each output channel to a largest weight of 1 where batch normalization follows and can take the rest."""
    for name in names:
        layer = legacy.get_layer(name)
        nodes = layer.outbound_nodes
        norm: Any = nodes[0].layer if len(nodes) == 1 else None
        if type(norm).__name__ != "BatchNormalization" or norm.gamma is None or len(norm.inbound_nodes) != 1:
            continue
        largest = np.abs(_kernel(legacy, name)).reshape(-1, layer.kernel.shape[-1]).max(axis=0)
        largest[largest == 0] = 1.0
        layer.set_weights([weight / largest for weight in layer.get_weights()])
        norm.gamma.assign(norm.gamma * largest)
        norm.moving_mean.assign(norm.moving_mean / largest)
        # (largest * x - mean) / deviation = (x - mean / largest) / deviation * largest: the variance stays


def _kernel(legacy: Any, name: str) -> NDArray[np.float32]:
    return np.asarray(legacy.get_layer(name).get_weights()[0])


def _share_of_zeros(model: "keras.Model") -> float:
    weights = model.get_weights()
    return float(sum((w == 0).sum() for w in weights) / sum(w.size for w in weights))
