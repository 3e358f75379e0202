"""Pruning and clustering: zeros and few values, in the Keras model and in the int8 file, and what gzip makes of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.console import quiet_tensorflow
from edgetl.errors import ArtifactError, ConfigError, DatasetError
from export import bridge, schemes, sparsify
from export.artifacts import gzip_size_bytes
from export.flatbuffer import unpack
from export.quantize import Quantizer
from export.sparsify import ClusteringSettings, PruningSettings, clustered, nearest_values, pruned

quiet_tensorflow()
import keras  # noqa: E402

SIZE = 8
CLASSES = 3
PRUNING = PruningSettings(epochs=2, batch_size=8)
CLUSTERING = ClusteringSettings(epochs=2, batch_size=8, clusters=8)


class Noise:
    """Photos in memory; may stop in the middle of an epoch."""

    digest = ""

    def __init__(self, count: int = 24, size: int = SIZE, batch_size: int = 8, stop_in: int = -1) -> None:
        random = np.random.default_rng(3)
        colours = random.integers(30, 226, (count, 1, 1, 3))
        self.pixels = (colours + random.integers(-30, 30, (count, size, size, 3))).astype(np.uint8)
        self.labels = random.integers(0, CLASSES, count)
        self.count, self.batch_size, self.stop_in = count, batch_size, stop_in
        self.epochs: list[int] = []

    def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng(epoch).permutation(self.count)
        for start in range(0, self.count, self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield self.pixels[chosen], self.labels[chosen]
            if epoch == self.stop_in:
                raise KeyboardInterrupt
        self.epochs.append(epoch)


def network(normalize: bool = True) -> keras.Model:
    """Convolutions with batch normalization or a bias behind them, a depthwise, a separable, a dense one, a sum."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = x = keras.Input((SIZE, SIZE, 3), name="images")
    if normalize:
        x = layers.Rescaling(1 / 127.5, -1.0, name="normalize")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", name="first")(x)))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Conv2D(48, 1, use_bias=False, name="wide")(x)))
    x = shortcut = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(48, 1, activation="relu", name="biased")(x)
    x = layers.Add()([x, shortcut])
    x = layers.SeparableConv2D(32, 3, padding="same", name="separable")(x)
    x = layers.Dense(16, activation="relu", name="dense")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="last")(x), name="network")
    # Channels of unequal strength, and what differs from the identity of a fresh batch normalization.
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.set_weights([random.uniform(*b, n) for b in ((0.5, 2), (-0.2, 0.2), (-0.2, 0.2), (0.5, 2))])
    wide = model.get_layer("wide")
    wide.set_weights([wide.get_weights()[0] * random.uniform(0.02, 2, 48).astype(np.float32)])
    last = model.get_layer("last")
    last.set_weights([200 * weight for weight in last.get_weights()])  # photos that get different probabilities
    return model


COMPRESSED = ("wide", "biased", "separable", "dense")


def kernel(model: keras.Model, name: str) -> np.ndarray:
    return np.asarray(model.get_layer(name).get_weights()[1 if name == "separable" else 0])


def int8(model: keras.Model, rounding: bool = True) -> bytes:
    photos = list(Noise().pixels)
    return Quantizer(model, photos, rounding=rounding).quantize(schemes.get("int8")).tflite


def kernels(tflite: bytes) -> list[np.ndarray]:
    """Int8 kernels of an artifact, [outputs, inputs] each, but for depthwise ones."""
    model = unpack(tflite)
    graph = model.subgraphs[0]
    codes = {3: "CONV_2D", 9: "FULLY_CONNECTED"}
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) in codes:
            tensor = graph.tensors[operator.inputs[1]]
            assert tensor.type == 9  # INT8
            found.append(np.asarray(model.buffers[tensor.buffer].data).view(np.int8).reshape(tensor.shape[0], -1))
    assert len(found) == 6
    return found


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def pruned_model(model: keras.Model) -> keras.Model:
    return pruned(model, Noise(), PRUNING)


@pytest.fixture(scope="module")
def clustered_model(model: keras.Model) -> keras.Model:
    return clustered(model, Noise(), CLUSTERING)


@pytest.fixture(scope="module")
def files(model: keras.Model, pruned_model: keras.Model, clustered_model: keras.Model) -> dict[str, bytes]:
    """Int8 artifacts."""
    return {"plain": int8(model), "pruned": int8(pruned_model), "clustered": int8(clustered_model, rounding=False)}


def test_first_last_and_depthwise_are_left_alone(model: keras.Model) -> None:
    assert sparsify.compressible(bridge.rebuilt(model)) == COMPRESSED


def test_half_of_each_kernel_is_zero_and_stays_so_in_int8(
    model: keras.Model, pruned_model: keras.Model, files: dict[str, bytes]
) -> None:
    for name in COMPRESSED:
        zeros = (kernel(pruned_model, name) == 0).mean()
        # A threshold, not a lottery: no more than asked for, up to one weight.
        assert 0.5 <= zeros <= 0.5 + 1 / kernel(pruned_model, name).size, name
    for name in ("first", "last", "depthwise"):
        assert (kernel(pruned_model, name) != 0).all(), name
    assert not any((w == 0).any() for w in model.get_weights()[:1])  # the original stays
    dense, sparse = kernels(files["plain"]), kernels(files["pruned"])
    for before, after in zip(dense[1:-1], sparse[1:-1], strict=True):
        assert (after == 0).mean() >= 0.5 > 0.1 > (before == 0).mean()


def test_few_values_per_kernel_and_per_channel_of_int8(clustered_model: keras.Model, files: dict[str, bytes]) -> None:
    for name in COMPRESSED:
        assert 2 < len(np.unique(kernel(clustered_model, name))) <= 8, name
    nearest = kernels(files["clustered"])
    for each in nearest[1:-1]:
        assert max(len(np.unique(row)) for row in each) <= 8
    # Equalized by batch normalization: the largest weight of nearly all channels is the same value, or its opposite.
    assert len(np.unique(nearest[1])) <= 3 * 8 < len(np.unique(kernels(files["plain"])[1]))


def test_channels_of_equal_strength_compute_the_same(model: keras.Model) -> None:
    legacy = bridge.rebuilt(model)
    sparsify._equalize(legacy, COMPRESSED)
    wide = legacy.get_layer("wide").get_weights()[0]
    np.testing.assert_allclose(np.abs(wide).reshape(-1, 48).max(axis=0), 1.0, rtol=1e-6)
    assert np.array_equal(legacy.get_layer("biased").get_weights()[0], kernel(model, "biased"))  # no normalization
    bridge.check_equal(model, legacy, Noise().pixels.astype(np.float32))


@pytest.mark.parametrize(
    ("work", "gentle"),
    [
        pytest.param(pruned, PruningSettings(epochs=1, learning_rate=1e-6, sparsity=0.02), marks=pytest.mark.slow),
        (clustered, ClusteringSettings(epochs=1, learning_rate=1e-6, clusters=256)),
    ],
)
def test_weights_come_back_to_where_they_were(
    work: Any, gentle: PruningSettings | ClusteringSettings, model: keras.Model
) -> None:
    """Compressed so little that the outputs must stay."""
    photos = Noise().pixels.astype(np.float32)
    expected = np.asarray(model(photos))
    spread = np.abs(expected.mean(axis=0) - expected).mean()
    assert spread > 0.02  # or a model that gives all photos the same would pass
    result = work(model, Noise(count=8), gentle)
    assert [layer.name for layer in result.layers] == [layer.name for layer in model.layers]
    assert 0 < np.abs(np.asarray(result(photos)) - expected).mean() < 0.1 * spread


def test_batch_normalization_keeps_its_statistics(pruned_model: keras.Model, model: keras.Model) -> None:
    before, after = (each.get_layer("norm").get_weights() for each in (model, pruned_model))
    assert not np.array_equal(before[0], after[0])  # its scale was trained
    np.testing.assert_array_equal(before[2:], after[2:])


def test_gzip_shrinks_what_the_file_does_not(files: dict[str, bytes]) -> None:
    plain, sparse, few = files["plain"], files["pruned"], files["clustered"]
    assert len(sparse) >= len(plain) - 100  # as many weights are stored; names may differ
    sizes = [sum(gzip_size_bytes(each.tobytes()) for each in kernels(x)[1:-1]) for x in (plain, sparse, few)]
    # The entropy of half zeros and half bytes of 7.5 bits is 1 + 0.5 * 7.5 = 4.7 bits, 63 % of 7.5; of 8 values 3 bits,
    # of kernels without batch normalization 8 per channel, one byte of Huffman code at worst; gzip's tables are in it.
    assert sizes[1] < 0.75 * sizes[0]
    assert sizes[2] < 0.85 * sizes[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pruned", "clustered"])
def test_a_stopped_training_goes_on_to_the_same_weights(
    kind: str, model: keras.Model, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    work, settings = {"pruned": (pruned, PRUNING), "clustered": (clustered, CLUSTERING)}[kind]
    expected = request.getfixturevalue(f"{kind}_model").get_weights()
    file = tmp_path / "training.npz"
    with pytest.raises(KeyboardInterrupt):
        work(model, Noise(stop_in=1), settings, checkpoint=file)
    photos = Noise()
    resumed = work(model, photos, settings, checkpoint=file).get_weights()
    assert photos.epochs == [1]
    photos = Noise()
    finished = work(model, photos, settings, checkpoint=file).get_weights()
    assert photos.epochs == []
    for weights in (resumed, finished):
        for one, other in zip(weights, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_values_are_the_nearest_ones() -> None:
    kernel = np.repeat(np.float32([-1, -0.5, 0, 2]), 5)
    np.testing.assert_array_equal(nearest_values(kernel, 4), np.float32([-1, -0.5, 0, 2]))
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

    def error(values: np.ndarray) -> float:
        return float((np.abs(weights.ravel()[:, None] - values).min(axis=1) ** 2).mean())

    values = nearest_values(weights, 16)
    assert values.shape == (16,) and (np.diff(values) > 0).all()
    # Lloyd and Max, 1960: the best 16 levels of a normal distribution have a squared error of 0.009497; evenly spaced
    # ones between the extremes of 4096 draws about twice that.
    assert error(values) < 0.0099 < 0.015 < error(np.linspace(weights.min(), weights.max(), 16))


@pytest.mark.parametrize(
    "settings",
    [
        *(PruningSettings(sparsity=x) for x in (0.0, 1.0, -0.1, float("nan"))),
        *(ClusteringSettings(clusters=x) for x in (1, 257)),
        PruningSettings(epochs=0),
        PruningSettings(learning_rate=0.0),
        ClusteringSettings(label_weight=1.5),
    ],
)
def test_settings_out_of_range_are_refused(settings: PruningSettings | ClusteringSettings, model: keras.Model) -> None:
    with pytest.raises(ConfigError) as caught:
        work = pruned if isinstance(settings, PruningSettings) else clustered
        work(model, Noise(), settings)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_rate_that_is_too_high_is_an_error(model: keras.Model) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=1e\+38: the loss of pruning became .* Choose a smaller one"):
        pruned(model, Noise(8), PruningSettings(epochs=1, learning_rate=1e38))


def test_models_and_photos_that_cannot_be_are_refused_before_training() -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.UpSampling2D(name="up")(inputs)
    strange = keras.Model(inputs, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(x)))
    with pytest.raises(ArtifactError, match=r"no counterpart in tf_keras for up \(UpSampling2D\)"):
        pruned(strange, Noise(), PRUNING)
    shallow = keras.Model(inputs, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(inputs)), name="shallow")
    with pytest.raises(ArtifactError, match="shallow: no convolution between"):
        clustered(shallow, Noise(), CLUSTERING)
    with pytest.raises(DatasetError, match="no photo"):
        pruned(network(), Noise(count=0), PRUNING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetLite0"])
def test_family(name: str) -> None:
    from test_bridge import classifier

    model = classifier(name, 32)
    for work, settings in ((pruned, PRUNING), (clustered, CLUSTERING)):
        result = work(model, Noise(16, 32), settings)  # type: ignore[operator]
        legacy = bridge.rebuilt(result)
        names = sparsify.compressible(legacy)
        assert len(names) > 20
        for layer in names:
            values = legacy.get_layer(layer).get_weights()[0]
            assert (values == 0).mean() >= 0.5 if work is pruned else len(np.unique(values)) <= 8, layer
