"""Quantization-aware training: what is planned, trained and converted; every family ends with integers only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import make_photo_folder
from test_bridge import SIZES, classifier

from edgetl import data
from edgetl.backbones.build import build
from edgetl.console import quiet_tensorflow
from edgetl.errors import ArtifactError, ConfigError, DatasetError
from edgetl.heads import attach, build_head
from edgetl.inputs import ImageInput
from edgetl.rundir import sha256_of
from export import bridge, qat, quantizable
from export.device.interpreter import Model
from export.distillation import StreamedPhotos
from export.fake_quantization import Folded, measured_ranges, weights_of, wrapped
from export.flatbuffer import operators, unpack
from export.normalization import integer_form
from export.qat import QatSettings, Trained
from export.quantizable import Plan

quiet_tensorflow()
import keras  # noqa: E402

SCALE, OFFSET = 1 / 127.5, -1.0


@dataclass(frozen=True)
class RandomPhotos:
    """Photos that differ in their colours: noise alone would look the same to an average over the frame."""

    side: int
    count: int = 16
    batch_size: int = 8
    digest: str = ""
    stop_in: int = -1
    """Epoch in the middle of which the process "is killed"."""

    def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng(5)
        colours = random.uniform(0, 255, (self.count, 1, 1, 3))
        photos = np.clip(colours + random.normal(0, 30, (self.count, self.side, self.side, 3)), 0, 255).astype(np.uint8)
        order = np.random.default_rng(epoch).permutation(self.count)
        for start in range(0, self.count, self.batch_size):
            if epoch == self.stop_in and start:
                raise KeyboardInterrupt
            chosen = order[start : start + self.batch_size]
            yield photos[chosen], chosen % 3

    @property
    def pixels(self) -> np.ndarray:
        return np.concatenate([pixels for pixels, _ in self.batches(0)])


def small_model() -> keras.Model:
    """Convolution, ReLU6, a sum, a batch normalization behind the sum, a concatenation, a gate, a dense layer."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    images = keras.Input((12, 12, 3), name="images")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(images)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(x)
    x = layers.ReLU(6.0, name="relu6")(layers.BatchNormalization(name="bn")(x))
    y = layers.BatchNormalization(name="dw_bn")(layers.DepthwiseConv2D(3, padding="same", name="dw")(x))
    x = layers.Add(name="sum")([x, y])
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="standalone_bn")(x))
    x = layers.Concatenate(name="concat")([x, layers.MaxPooling2D(3, 1, "same", name="pool")(x)])
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(16, 1, activation="hard_sigmoid", name="excite")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.SeparableConv2D(8, 3, activation="silu", name="separable")(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(name="average")(x))
    outputs = layers.Dense(3, activation="softmax", name="probabilities")(x)
    model = keras.Model(images, outputs, name="small")
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            n = layer.gamma.shape[0]
            signs = random.choice([-1, 1], n)
            layer.set_weights(
                [random.uniform(0.5, 2, n) * signs, *random.normal(0, 0.2, (2, n)), random.uniform(0.05, 0.4, n)]
            )
    model.get_layer("probabilities").kernel.assign(random.normal(0, 2, (8, 3)))
    return model


def assert_integers_only(tflite: bytes) -> None:
    found = operators(tflite)
    assert len(found) > 3
    kinds = {tensor.type for op in found for tensor in (*op.inputs, *op.outputs)}
    assert kinds <= {"INT8", "UINT8", "INT32"}, kinds
    assert [i for i, op in enumerate(found) if "QUANTIZE" in op.name] == [0, len(found) - 1], "only at the borders"
    model = unpack(tflite)
    for op, operator in zip(found, model.subgraphs[0].operators, strict=True):
        tensors = [model.subgraphs[0].tensors[i] for i in operator.inputs]
        if "CONV_2D" in op.name or op.name == "FULLY_CONNECTED":
            outputs = model.subgraphs[0].tensors[operator.outputs[0]].shape[-1]
            assert len(tensors[1].quantization.scale) == outputs, "one scale per output channel"


def tiny_model() -> keras.Model:
    """The least that has all that a checkpoint or a compression must keep."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    images = keras.Input((12, 12, 3), name="images")
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(images)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(images, layers.Dense(3, activation="softmax", name="probabilities")(x), name="tiny")


SETTINGS = QatSettings(epochs=2, learning_rate=1e-3, batch_size=8)
ONE_EPOCH = QatSettings(epochs=1, learning_rate=1e-5, batch_size=8)


def train(model: keras.Model, photos: Any, settings: QatSettings = SETTINGS, **options: Any) -> Trained:
    return qat.train(model, SCALE, OFFSET, photos, settings, **options)


def test_small_model_ends_in_integers_that_compute_what_training_saw() -> None:
    photos, model = RandomPhotos(12), small_model()
    settings = replace(SETTINGS, epochs=4, learning_rate=2e-3)
    before = [weight.copy() for weight in model.get_weights()]
    trained = train(model, photos, settings)
    assert trained.losses[-1] < 0.7 * trained.losses[0], trained.losses
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    tflite = qat.to_int8(trained)
    assert_integers_only(tflite)
    kinds = [op.name for op in operators(tflite)]
    # dw and the batch normalization behind the sum, and the depthwise half of the separable convolution
    assert kinds.count("DEPTHWISE_CONV_2D") == 3
    assert "RELU6" not in kinds
    plan = Plan.of(trained.model)
    folded = Folded(trained.model, plan, trained.ranges)
    zero = quantizable.pixel_range(SCALE, OFFSET)[1]
    expected = folded((photos.pixels - np.float32(zero)) * np.float32(SCALE)).numpy()
    received = Model(tflite).predict_batch(photos.pixels)
    assert expected.std(axis=0).max() > 0.1, "photos do not differ at the output: the test would show nothing"
    # One step of the output is 1/256; eleven rounding kernels each may land on the neighbouring step.
    assert np.abs(expected - received).max() < 6 / 256
    signed = operators(qat.to_int8(trained, "int8"))
    assert (signed[0].inputs[0].type, signed[-1].outputs[0].type) == ("INT8", "INT8")
    assert not any("QUANTIZE" in op.name for op in signed)


def test_folded_form_equals_the_model() -> None:
    model = small_model()
    plain = quantizable.lowered(bridge.rebuilt(model))
    images = RandomPhotos(12).pixels.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
    bridge.check_equal(model, plain, images)
    folded = Folded(plain, Plan.of(plain), {})
    assert np.abs(folded(images).numpy() - model.predict(images, verbose=0)).max() < bridge.EQUAL


def test_wrapped_model_rounds_where_the_folded_form_does() -> None:
    plain = quantizable.lowered(bridge.rebuilt(small_model()))
    plan = Plan.of(plain)
    images = (RandomPhotos(12).pixels - np.float32(128)) * np.float32(SCALE)
    ranges = measured_ranges(plain, plan, quantizable.pixel_range(SCALE, OFFSET)[0], lambda: [images])
    student = wrapped(plain, plan, ranges)
    for name, variables in weights_of(student).items():
        for ours, theirs in zip(variables, plain.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)
    # A kernel with all but its grid: the two then differ by float rounding alone, a step here and there.
    for name, variables in weights_of(student).items():
        if name in ("conv", "dw", "excite", "probabilities"):
            kernel = variables[0].numpy()
            axes = (0, 1, 3) if name == "dw" else tuple(range(kernel.ndim - 1))
            step = np.abs(kernel).max(axis=axes, keepdims=True) / 127
            rounded = (np.round(kernel / step) * step).astype(np.float32)
            variables[0].assign(rounded)
            plain.get_layer(name).set_weights([rounded, *plain.get_layer(name).get_weights()[1:]])
    for name in ("separable_depthwise", "separable"):
        kernel = np.sign(plain.get_layer(name).get_weights()[0])
        weights_of(student)[name][0].assign(kernel)
        plain.get_layer(name).set_weights([kernel, *plain.get_layer(name).get_weights()[1:]])
    gap = np.abs(student(images, training=False).numpy() - Folded(plain, plan, ranges)(images).numpy())
    assert gap.max() < 3 / 256


def test_ranges_are_shared_where_kernels_do_not_rescale() -> None:
    plan = Plan.of(quantizable.lowered(bridge.rebuilt(small_model())))
    group = plan.group_of
    assert group["relu"] == group["pool"] == group["concat"]
    assert group["pad"] == group[quantizable.PIXELS]
    assert group["sum"] != group["relu"]
    chains = {chain[0].name: [op.name for op in chain[1:]] for chain in plan.chains}
    assert chains["conv"] == ["bn", "relu6"]
    assert chains["standalone_bn"] == ["relu"]
    assert chains["sum"] == []
    assert chains["excite"] == ["excite_hard_sigmoid_shift", "excite_hard_sigmoid_relu6"]
    measured = dict.fromkeys(plan.measured, (-1.0, 2.0)) | {"relu": (0.0, 7.0)}
    ranges = plan.ranges(measured, quantizable.pixel_range(SCALE, OFFSET)[0])
    for low, high in ranges.values():
        step = (high - low) / 255
        assert abs(low / step - round(low / step)) < 1e-4, "zero is not on the grid"
    assert ranges["relu"][1] == pytest.approx(7.0, rel=0.01)
    assert ranges["separable_silu_sigmoid"] == (0.0, 255 / 256)


def test_dead_layer_gives_an_artifact_that_runs() -> None:
    model = tiny_model()
    model.get_layer("bn").set_weights([np.zeros(8), -np.ones(8), np.zeros(8), np.ones(8)])  # ReLU gives 0 only
    plain = quantizable.lowered(bridge.rebuilt(model))
    plan, pixels = Plan.of(plain), RandomPhotos(12).pixels
    images = (pixels - np.float32(128)) * np.float32(SCALE)
    ranges = measured_ranges(plain, plan, quantizable.pixel_range(SCALE, OFFSET)[0], lambda: [images])
    received = Model(qat.to_int8(Trained(plain, ranges, SCALE, OFFSET, ()))).predict_batch(pixels)
    assert np.abs(received - model.predict(images, verbose=0)).max() < 2 / 256


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    model, settings = tiny_model(), SETTINGS
    whole = train(model, RandomPhotos(12), settings)
    path = tmp_path / "qat.npz"
    with pytest.raises(KeyboardInterrupt):
        train(model, RandomPhotos(12, stop_in=1), settings, checkpoint=path)
    resumed = train(model, RandomPhotos(12, stop_in=0), settings, checkpoint=path)  # epoch 0 would stop it again
    assert resumed.losses == whole.losses
    assert resumed.ranges == whole.ranges
    for one, other in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert qat.to_int8(resumed) == qat.to_int8(whole)


@pytest.mark.slow
def test_finished_checkpoint_is_the_result_and_a_foreign_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = tiny_model(), tmp_path / "qat.npz"
    first = train(model, RandomPhotos(12), checkpoint=path)

    class NoMore(RandomPhotos):
        def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            assert epoch == 0, "trained again"
            return super().batches(epoch)

    again = train(model, NoMore(12), checkpoint=path)
    assert again.losses == first.losses
    with caplog.at_level("INFO", logger="edgetl"):
        other = train(model, RandomPhotos(12), replace(SETTINGS, learning_rate=5e-4), checkpoint=path)
    assert "belongs to another training" in caplog.text
    assert other.losses != first.losses


@pytest.mark.slow
def test_other_photos_are_another_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, path, settings = tiny_model(), tmp_path / "qat.npz", replace(SETTINGS, epochs=1)
    some, others = RandomPhotos(12, digest="some"), RandomPhotos(12, digest="others")
    calibration = list(some.pixels)
    train(model, some, settings, checkpoint=path)
    for photos, options in (
        (others, {}),
        (others, {"calibration": calibration}),
        (others, {"calibration": calibration[1:]}),
    ):
        for known in (False, True):
            caplog.clear()
            with caplog.at_level("INFO", logger="edgetl"):
                train(model, photos, settings, checkpoint=path, **options)
            assert ("belongs to another training" in caplog.text) != known
            assert ("1 epochs are done" in caplog.text) == known


def test_ranges_are_of_the_calibration_photos() -> None:
    model, photos, settings = tiny_model(), RandomPhotos(12), replace(SETTINGS, epochs=1)
    usual = train(model, photos, settings)
    # The first epoch's photos in its order: what is measured without calibration photos.
    assert train(model, photos, settings, calibration=list(photos.pixels)).ranges == usual.ranges
    gray = train(model, photos, settings, calibration=[np.full((12, 12, 3), 127, np.uint8)]).ranges
    widths = {name: [high - low for low, high in (ranges[name] for ranges in (gray, usual.ranges))] for name in gray}
    # A gray photo is nearly 0 to the model; the layers behind the first see next to nothing of it.
    assert widths["average"][0] < 0.5 * widths["average"][1], widths
    with pytest.raises(ConfigError, match="no photo to measure ranges on"):
        train(model, photos, settings, calibration=[])


def streamed(folder: Path, **options: Any) -> StreamedPhotos:
    examples = data.load(make_photo_folder(folder, {"cat": 6, "dog": 6}))
    return StreamedPhotos(examples, ImageInput(16, 16), QatSettings(batch_size=4), **options)


def test_streamed_photos_are_checked_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    photos = streamed(
        tmp_path / "photos", check=lambda some, found: seen.update(zip((e.id for e in some), found, strict=True))
    )
    labels = np.concatenate([labels for _, labels in photos.batches(0)])
    assert sorted(labels) == [0] * 6 + [1] * 6
    assert seen == {e.id: sha256_of(e.path) for e in photos.examples}
    photos.examples.items[7].path.write_bytes(b"no photo")
    epoch = photos.batches(1)
    assert sum(len(next(epoch)[0]) for _ in range(3)) == 11, "what can be read comes first"
    with pytest.raises(DatasetError, match=f"1 of 12 files can't be read, more than .*{photos.examples.items[7].id}"):
        next(epoch)

    def refuse(some: data.Examples, found: Any) -> None:
        raise DatasetError(f"{len(some)} changed")

    with pytest.raises(DatasetError, match="3 changed"):
        next(replace(photos, check=refuse).batches(0))


@pytest.mark.parametrize("preserve", ["sparsity", pytest.param("clusters", marks=pytest.mark.slow)])
def test_compression_survives(preserve: qat.Preserve) -> None:
    model = tiny_model()
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            kernel, *rest = layer.get_weights()
            if preserve == "sparsity":
                kernel = np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel)
            else:
                kernel = np.round(kernel * 3 / np.abs(kernel).max())
            layer.set_weights([kernel, *rest])
    trained = train(model, RandomPhotos(12), preserve=preserve)
    for name in ("conv", "probabilities"):
        before, after = model.get_layer(name).get_weights()[0], trained.model.get_layer(name).get_weights()[0]
        assert not np.array_equal(before, after), "not trained at all"
        if preserve == "sparsity":
            np.testing.assert_array_equal(after[before == 0], 0)
            assert (before == 0).mean() > 0.4
        else:
            assert len(np.unique(after)) <= len(np.unique(before)) <= 7
    assert_integers_only(qat.to_int8(trained))


@pytest.mark.slow
def test_nothing_to_preserve_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no sparsity"):
        train(tiny_model(), RandomPhotos(12), preserve="sparsity")


def odd_model(*layers: Any) -> keras.Model:
    images = x = keras.Input((12, 12, 3), name="images")
    for layer in layers:
        x = layer(x)
    return keras.Model(images, keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(x)), name="odd")


def test_layers_in_the_way_are_named_before_anything_is_trained() -> None:
    class Never(RandomPhotos):
        def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            raise AssertionError("asked for photos")

    layers = keras.layers
    model = odd_model(layers.Conv2D(3, 1, activation="gelu", name="first"), layers.LayerNormalization(name="norm"))
    found = qat.obstacles(model)
    assert [each.split(" ")[0] for each in found] == ["first_gelu", "norm"]
    with pytest.raises(ArtifactError, match=r"first_gelu .*no integer kernel for gelu.*, norm \(LayerNormalization"):
        train(model, Never(12))
    assert qat.obstacles(odd_model(layers.UnitNormalization(name="unit"))) == ("unit (UnitNormalization)",)
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    assert "shared (Conv2D: called more than once)" in qat.obstacles(odd_model(shared, shared))
    assert qat.obstacles(odd_model(layers.ReLU(negative_slope=0.1, name="leaky")))[0].startswith("leaky (ReLU")
    assert qat.obstacles(small_model()) == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"label_weight": 1.5}, "label_weight=1.5"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny_model(), RandomPhotos(12), replace(SETTINGS, **wrong))


@pytest.mark.slow
def test_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=1e\+38: the loss .* in epoch"):
        train(tiny_model(), RandomPhotos(12), replace(SETTINGS, learning_rate=1e38))


def settle(backbone: keras.Model, photos: np.ndarray) -> None:
    """Give batch normalization the statistics of these photos, so that their features differ."""
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum, layer.usual = 0.0, layer.momentum
    backbone(photos.astype(np.float32), training=True)
    for layer in norms:
        layer.momentum = layer.usual


def spread(model: keras.Model, images: np.ndarray) -> None:
    """Give the last layer weights under which photos differ: logits of deviation 1.5 around 0, in each class."""
    last = model.layers[-1]
    kernel = np.random.default_rng(2).normal(size=last.kernel.shape)
    last.set_weights([kernel, np.zeros(last.bias.shape)])
    last.activation, softmax = keras.activations.linear, last.activation
    logits = np.asarray(model(images, training=False), np.float64)
    last.activation = softmax
    assert (logits.std(axis=0) > 1e-3 * np.abs(logits).mean(axis=0)).all(), "features do not differ at all"
    gain = 1.5 / logits.std(axis=0)
    last.set_weights([kernel * gain, -logits.mean(axis=0) * gain])


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_family_ends_in_integers_only(name: str) -> None:
    model, scale, offset = integer_form(classifier(name, SIZES[name]))
    assert qat.obstacles(model) == ()
    photos = RandomPhotos(SIZES[name])
    tflite = qat.to_int8(qat.train(model, scale, offset, photos, ONE_EPOCH))
    assert_integers_only(tflite)
    # Random weights at the smallest size amplify rounding: how near the outputs are is for the next test to say.
    assert np.isfinite(Model(tflite).predict_batch(photos.pixels)).all()


@pytest.mark.slow
def test_backbone_reads_its_input_at_the_right_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MobileNetV3Small"
    photos = RandomPhotos(SIZES[name])
    keras.utils.set_random_seed(0)
    backbone = build(name, ImageInput(SIZES[name], SIZES[name]), "none")
    settle(backbone, photos.pixels)
    head = build_head("classification", backbone.output.shape[-1], 3)  # a hidden layer of random weights may be dead
    model, scale, offset = integer_form(attach(backbone, head))
    spread(model, photos.pixels * np.float32(scale) + np.float32(offset))
    monkeypatch.setattr(bridge, "EQUAL", 1e-3)  # the spread head enlarges differences between the two libraries, too
    trained = qat.train(model, scale, offset, photos, ONE_EPOCH)

    def computed(scale: float) -> np.ndarray:
        images = photos.pixels * np.float32(scale) + np.float32(offset)
        return np.asarray(trained.model.predict(images, verbose=0))

    expected, received = computed(scale), Model(qat.to_int8(trained)).predict_batch(photos.pixels)
    assert expected.std(axis=0).min() > 0.1, "photos do not differ at the output: the test would show nothing"

    def distance(other: np.ndarray) -> float:
        """In units of what the outputs differ by among photos: 0 for the same, 1 for one mean answer to all."""
        return float(np.abs(other - expected).mean() / np.abs(expected - expected.mean(axis=0)).mean())

    assert scale == pytest.approx(SCALE)
    # Measured: 0.13 for 8-bit steps in 50 layers of random weights, 1.8 for pixels read at a scale of 1.
    assert distance(received) < 0.4 < 1.0 < distance(computed(1.0))
