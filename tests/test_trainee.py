"""What may learn in a phase, at which rate, in which precision; BatchNorm measured again."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_training import BLOCKS, CLASSES, OUTPUTS, SIZE, PixelSource, changed, labels_of, tiny_model, weights_of

from edgetl.backbones.blocks import blocks_of
from edgetl.backbones.build import build
from edgetl.backbones.registry import get
from edgetl.batches import Batches
from edgetl.errors import ConfigError
from edgetl.heads import attach, build_head
from edgetl.inputs import ImageInput
from edgetl.losses import make_loss
from edgetl.mixing import Mixing
from edgetl.phases import Phase
from edgetl.trainee import Trainee, copy_in_precision, learning_layers, learning_rates, recalibrate, strategy_for, thaw

PHASE = Phase("two..three", ("two", "three"), 1, 1e-2, 1e-3, 0.5)
NO_MIXING = Mixing(0.0, 0.0, 0)


def trainee_of(model: keras.Model, weights: tuple[float, ...] = (1, 1, 1)) -> Trainee:
    return Trainee(model, [], NO_MIXING, np.array(weights, np.float32))


@pytest.mark.parametrize("policy", ["frozen", "train", "recalibrate"])
def test_what_learns(policy: str) -> None:
    model = tiny_model()
    thaw(model, PHASE, BLOCKS, policy)  # type: ignore[arg-type]
    convolutions = ["two_conv", "three_conv"]
    expected = ["two_conv", "two_bn", "three_conv", "three_bn"] if policy == "train" else convolutions
    assert learning_layers(PHASE, BLOCKS, policy, model) == expected  # type: ignore[arg-type]
    assert {variable.path.split("/")[0] for variable in model.trainable_variables} == {*expected, "probabilities"}
    assert not model.get_layer("normalize").trainable


def test_everything_thawed_leaves_the_normalization_of_bgr_backbones() -> None:
    row = get("VGG16")
    backbone = build(row.name, ImageInput(32, 32), "none")
    model = attach(backbone, build_head("classification", row.features, 2))
    blocks = blocks_of(model, row)
    assert model.get_layer("normalize").weights, "it has weights that could learn"
    thaw(model, Phase("all", tuple(block.name for block in blocks), 1, 1e-3, 1e-3, 1.0), blocks, "train")
    paths = {variable.path for variable in model.trainable_variables}
    assert paths == {w.path for w in model.weights} - {w.path for w in model.get_layer("normalize").weights}


def test_rates_are_multiples_of_the_heads() -> None:
    model = tiny_model()
    thaw(model, PHASE, BLOCKS, "train")
    rates = learning_rates(model, PHASE, BLOCKS)
    assert rates.keys() == {variable.path for variable in model.trainable_variables}
    for path, rate in rates.items():
        share = {"two": 0.05, "three": 0.1}.get(path.split("_")[0], 1.0)
        assert rate == pytest.approx(share, rel=1e-12), path


def test_a_step_weighs_classes_and_a_stopped_epoch_keeps_its_loss() -> None:
    model = tiny_model(0.0)
    thaw(model, PHASE, BLOCKS, "frozen")
    trainee = trainee_of(model, (3.0, 1.0, 0.5))
    trainee.compile(keras.optimizers.SGD(0.0), make_loss(OUTPUTS), jit_compile=False)
    labels = labels_of(4)
    pixels = PixelSource(labels).pixels[:, 0]
    probabilities = model(pixels.astype(np.float32)).numpy()[np.arange(4), labels]
    expected = float(np.mean(np.array([3.0, 1.0, 0.5])[labels] * -np.log(probabilities)))
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    for count in (4, 8):
        trainee.fit(tf.data.Dataset.from_tensors(((pixels,), one_hot)), shuffle=False, verbose=0)
        assert float(trainee.mean_loss.result()) == pytest.approx(expected, rel=1e-5)  # float32
        assert trainee.photos == count


def test_recalibration_is_the_mean_over_batches() -> None:
    model = tiny_model(0.9)
    before = weights_of(model)
    labels = labels_of(14)
    batches = Batches(PixelSource(labels), labels, OUTPUTS, 4, 0)
    layers = [model.get_layer(f"{block}_bn") for block in ("two", "three")]
    thaw(model, PHASE, BLOCKS, "recalibrate")
    recalibrate(trainee_of(model), layers, batches.dataset(0, 0))
    after = weights_of(model)
    statistics = {f"{block}_bn/{name}" for block in ("two", "three") for name in ("moving_mean", "moving_variance")}
    assert changed(before, after) == statistics
    assert [(layer.trainable, layer.momentum) for layer in layers] == [(False, 0.99)] * 2
    assert model.get_layer("head_dropout").rate == 0.9
    # In front of the first of them everything is as in inference, so that numpy can tell what it sees.
    front = keras.Model(model.input, model.get_layer("two_conv").output)
    seen = [front(inputs[0].numpy().astype(np.float32)).numpy() for inputs, _ in batches.dataset(0, 0)]
    assert len(seen) == 3
    # Sums of 256 float32 values per batch: relative error far below 1e-5.
    np.testing.assert_allclose(after["two_bn/moving_mean"], np.mean([x.mean((0, 1, 2)) for x in seen], 0), 1e-4, 1e-5)
    np.testing.assert_allclose(after["two_bn/moving_variance"], np.mean([x.var((0, 1, 2)) for x in seen], 0), 1e-4)


def test_recalibration_sees_no_dropout() -> None:
    def measured(rate: float) -> dict[str, np.ndarray]:
        images = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Dropout(rate)(images) if rate else images
        norm = keras.layers.BatchNormalization(name="norm")
        model = keras.Model(images, norm(x))
        labels = labels_of(8)
        recalibrate(trainee_of(model), [norm], Batches(PixelSource(labels), labels, OUTPUTS, 4, 0).dataset(0, 0))
        return weights_of(model)

    assert not changed(measured(0.0), measured(0.5))


def test_batches_that_devices_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two = tf.config.list_logical_devices("CPU") * 2
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: two if kind == "GPU" else [])
    with pytest.raises(ConfigError, match=r"--distribute: 2 devices can't share batches of 7 photos.*multiple of 2"):
        strategy_for(True, 7)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_copy_in_another_precision(precision: str) -> None:
    row = get("MobileNetV2")
    backbone = build(row.name, ImageInput(32, 32), "none")
    model = attach(backbone, build_head("classification", row.features, 3, hidden_units=(4,), dropout=0.1))
    copy = copy_in_precision(model, precision)  # type: ignore[arg-type]
    assert all(w.dtype == "float32" for w in copy.weights)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), copy.get_weights(), strict=True))
    own = {layer.name: layer.dtype_policy.name for layer in copy.layers}
    assert {own.pop(name) for name in ("images", "normalize", "probabilities")} == {"float32"}
    assert set(own.values()) == {precision}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    got, expected = copy(pixels), model(pixels)
    assert got.dtype == "float32"
    # Probabilities near 1/3 after some 60 roundings of 0.4 % (bfloat16) in a random walk: 3 % of activations that the
    # pooled features average out.
    np.testing.assert_allclose(got, expected, atol=0.02)
