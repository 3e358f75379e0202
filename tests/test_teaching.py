"""What a teacher says as it is stored and read, the loss towards it, and a student that learns without labels."""

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from tiny_training import BLOCKS, CLASSES, OUTPUTS, SIZE, PixelSource, labels_for, labels_of, one_phase, tiny_model

from edgetl.augment import PRESETS, view
from edgetl.batches import Batches
from edgetl.errors import ConfigError
from edgetl.features import Scaling
from edgetl.fine_tuning import FineTuning, Settings
from edgetl.heads import HEADS
from edgetl.judging import Validation
from edgetl.losses import make_loss
from edgetl.mixing import Mixing
from edgetl.optimizers import OptimizerSettings
from edgetl.outputs import OutputSpec, Task
from edgetl.teaching import HINT_LAYER, TaughtLoss, Teaching, features_width, hinted, scaling_of, spoken
from edgetl.trainee import Trainee

SPECS: dict[Task, OutputSpec] = {
    "classification": OUTPUTS,
    "ordinal": OutputSpec("ordinal", OUTPUTS.names),
    "multi_label": OutputSpec("multi_label", OUTPUTS.names, thresholds=(0.5,) * 3),
    "regression": OutputSpec("regression", ("m", "g"), deviations=(0.08, 82.0)),
}
MEANS = np.array([2, -400], np.float32)
tasks = pytest.mark.parametrize("task", HEADS)


class Stored:
    """What a teacher said of photos in their views, as it is kept: float16 [photos, views, k], and features."""

    def __init__(self, *parts: np.ndarray) -> None:
        self.parts = [part.astype(np.float16) for part in parts]
        self.views = parts[0].shape[1]

    def __len__(self) -> int:
        return len(self.parts[0])

    def gather(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(part[rows, views] for part in self.parts)

    def signature(self) -> tuple[object, ...]:
        raise AssertionError("nothing is trained on it")

    def close(self) -> None:
        pass


def teaching(
    task: Task, stored: Stored, temperature: float = 3.0, label_weight: float = 0.25, **hints: object
) -> Teaching:
    means = MEANS if task == "regression" else np.zeros(3, np.float32)
    return Teaching(stored, SPECS[task], means, temperature, label_weight, **hints)  # type: ignore[arg-type]


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def outputs_of(task: Task, logits: np.ndarray) -> np.ndarray:
    """What a model with these logits, or standardized values, says."""
    if task == "regression":
        return logits[:, :2] * SPECS[task].deviations + MEANS
    return sigmoid(logits) if task == "multi_label" else softmax(logits)


# --- what is stored -------------------------------------------------------------------------------------------------


def model_of(task: Task) -> keras.Model:
    """Four numbers -> six features -> outputs that are far from even."""
    keras.utils.set_random_seed(1)
    spec = SPECS[task]
    inputs = keras.Input((4,))
    features = keras.layers.Dense(6, activation="relu", name="features")(inputs)
    x = keras.layers.Dropout(0.5)(features)
    last = keras.layers.Dense(len(spec.names), activation=HEADS[task].activation, name="last")
    model = keras.Model(inputs, last(x))
    kernel, bias = last.get_weights()
    scale = np.array(spec.deviations) if task == "regression" else 4.0
    last.set_weights([kernel * scale, bias + (MEANS if task == "regression" else 0)])
    return model


@tasks
def test_what_is_stored_gives_back_what_the_teacher_said(task: Task) -> None:
    model, spec = model_of(task), SPECS[task]
    photos = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    said = np.asarray(model(photos))
    k = len(spec.names)
    stored = np.asarray(spoken(model, spec, teaching(task, Stored(said[:, None])).means, features=True)(photos))
    assert stored.shape == (40, k + features_width(model)) and features_width(model) == 6
    np.testing.assert_array_equal(stored[:, k:], keras.Model(model.input, model.get_layer("features").output)(photos))
    read = teaching(task, Stored(stored[:, None, :k]), temperature=1.0).columns(np.arange(40), np.zeros(40, int))
    # float16 keeps eleven bits: 16 * 2^-12 of the largest logarithm, and as much of the score; of a deviation likewise.
    np.testing.assert_allclose(
        read / spec.units, said / spec.units, rtol=5e-3, atol=2e-3 if task == "regression" else 1e-6
    )


def test_improbable_classes_keep_their_order_in_float16() -> None:
    """Of a probability of 1e-8 float16 has nothing left, and 1e-6 it has in steps of 6e-8."""
    said = np.array([[1 - 1.01e-6, 1e-6, 1e-8]], np.float32)
    inputs = keras.Input((3,))
    logs = np.asarray(
        spoken(keras.Model(inputs, keras.layers.Activation("linear")(inputs)), OUTPUTS, MEANS, features=False)(said)
    )
    tempered = teaching("classification", Stored(logs[:, None]), 4.0).columns(np.array([0]), np.array([0]))
    expected = softmax(np.log(np.maximum(said, 1e-7)) / 4)
    np.testing.assert_allclose(tempered, expected, rtol=2e-3)  # half a unit of 2^-10 at 16, over 4
    assert 0.04 > tempered[0, 1] > 1.5 * tempered[0, 2] > 0.01


def test_a_last_layer_without_features_is_refused() -> None:
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 1, name="scores")(inputs))
    model = keras.Model(inputs, keras.layers.Softmax()(pooled))
    with pytest.raises(ConfigError, match=r"--hint-weight: the teacher's last layer, scores, takes no vector"):
        features_width(model)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_a_view_is_the_same_change_at_two_sizes(preset: str) -> None:
    """The teacher sees what the student sees, at its own size: there is no point in its word on another view."""
    photo = Image.fromarray(load_sample_image("china.jpg")[:400, :400])
    small, large = (np.asarray(photo.resize((side, side), Image.BILINEAR)) for side in (64, 96))
    count = PRESETS[preset].exact_views or 8
    numbers = range(1, count)

    def views(pixels: np.ndarray) -> np.ndarray:
        made = [view(preset, pixels[None], number, photos=[77], seed=3)[0] for number in numbers]
        resized = [Image.fromarray(each).resize((32, 32), Image.BILINEAR) for each in made]
        return np.stack([np.asarray(each, np.float64).ravel() for each in resized])

    a, b = (each - each.mean(axis=1, keepdims=True) for each in (views(small), views(large)))
    alike = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    assert np.diag(alike).min() > 0.9, "only resampling is between them"
    if count > 2:
        assert (alike.argmax(axis=1) == np.arange(len(alike))).all(), "and no other view is as near"


# --- the loss -------------------------------------------------------------------------------------------------------


def expected_loss(
    task: Task, labels: np.ndarray, taught: np.ndarray, said: np.ndarray, t: float, w: float
) -> np.ndarray:
    """The formula on logits, or standardized values: [n]."""
    if task == "regression":
        return w * ((said - labels) ** 2).mean(axis=1) + (1 - w) * ((said - taught) ** 2).mean(axis=1)
    if task == "multi_label":
        p, q, s = sigmoid(taught / t), sigmoid(said / t), sigmoid(said)
        divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1)
        own = -(labels * np.log(s) + (1 - labels) * np.log(1 - s)).mean(axis=1)
    else:
        p, q = softmax(taught / t), softmax(said / t)
        divergence = (p * np.log(p / q)).sum(axis=1)
        own = -(labels * np.log(softmax(said))).sum(axis=1)
    return w * own + (1 - w) * t**2 * divergence


@tasks
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
def test_loss_is_the_formula_and_unlabelled_photos_count_in_the_teachers_part_alone(
    task: Task, temperature: float, label_weight: float
) -> None:
    rng = np.random.default_rng(0)
    k = len(SPECS[task].names)
    taught, said = (rng.normal(0, 2, (30, k)) for _ in range(2))
    labels = labels_for(SPECS[task], labels_of(20))
    if SPECS[task].exclusive:
        labels = np.eye(k)[labels]
    known = np.arange(30) < 20
    lesson = teaching(task, Stored(taught[:, None]), temperature, label_weight)
    batches = Batches(
        PixelSource(labels_of(30)), labels_for(SPECS[task], labels_of(20)), SPECS[task], 4, 0, teaching=lesson
    )
    targets = batches.targets(np.arange(30), np.zeros(30, int))
    assert targets.shape == (30, 2 * k + 1) and targets.dtype == np.float32
    loss = TaughtLoss(make_loss(SPECS[task]), lesson, np.ones(k, np.float32) if SPECS[task].exclusive else None)
    received = np.asarray(loss.call(targets, outputs_of(task, said).astype(np.float32)))
    taught = taught.astype(np.float16).astype(np.float64)
    mine = (labels - MEANS) / SPECS[task].deviations if task == "regression" else labels
    expected = expected_loss(task, np.vstack([mine, np.zeros((10, k))]), taught, said, temperature, label_weight)
    alone = expected_loss(task, np.zeros((30, k)), taught, said, temperature, 0.0)
    expected = np.where(known, expected, (1 - label_weight) * alone)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)  # float32; values of 400 less a mean of 400
    weighed = float(loss(targets, outputs_of(task, said).astype(np.float32), np.linspace(0, 2, 30).astype(np.float32)))
    assert weighed == pytest.approx((expected * np.linspace(0, 2, 30)).mean(), rel=1e-3)


def test_class_weights_are_the_labels_own() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (6, 3))
    lesson = teaching("classification", Stored(logits[:, None]), label_weight=0.5)
    batches = Batches(PixelSource(labels_of(6)), labels_of(6), OUTPUTS, 4, 0, teaching=lesson)
    targets = batches.targets(np.arange(6), np.zeros(6, int))
    said = softmax(logits[::-1]).astype(np.float32)
    plain, none = (
        TaughtLoss(make_loss(OUTPUTS), lesson, w).call(targets, said) for w in (np.ones(3, np.float32), None)
    )
    np.testing.assert_array_equal(plain, none)
    weighed = TaughtLoss(make_loss(OUTPUTS), lesson, np.array([1, 2, 3], np.float32)).call(targets, said)
    own = -np.log(said[np.arange(6), labels_of(6)])
    np.testing.assert_allclose(np.asarray(weighed) - plain, 0.5 * own * labels_of(6), rtol=1e-4)  # float32


def test_a_student_that_is_surely_wrong_still_learns_from_both() -> None:
    inputs = keras.Input((3,))
    last = keras.layers.Dense(3, activation="softmax", use_bias=False, kernel_initializer="identity")
    for weight, size in ((1.0, 1.0), (0.0, 2.0)):
        lesson = teaching("classification", Stored(np.array([[[-60.0, 0.0, -60.0]]])), 2.0, weight)
        trainee = keras.Model(inputs, last(inputs))
        last.set_weights([np.eye(3)])
        trainee.compile(keras.optimizers.SGD(1.0), TaughtLoss(make_loss(OUTPUTS), lesson))
        targets = np.concatenate([[0, 1, 0], softmax(np.array([[-30.0, 0, -30]]))[0], [1]])[None].astype(np.float32)
        # Probability of the right class: 4e-18, below Keras' clipping at 1e-7.
        trainee.fit(np.array([[40.0, 0, 0]]), targets, verbose=0)
        # dL/dlogits = p - label; of the distance T^2 (q - p) / T = T (q - p): at T = 2 twice as large.
        np.testing.assert_allclose(last.get_weights()[0][0], [1 - 40 * size, 40 * size, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hint", [0.0, 1.0])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_student_that_is_surely_wrong_of_a_label_still_learns(weight: float, hint: float) -> None:
    inputs = keras.Input((3,))
    last = keras.layers.Dense(3, activation="sigmoid", use_bias=False, kernel_initializer="identity")
    model = keras.Model(inputs, last(inputs))
    lesson = teaching("multi_label", Stored(np.zeros((1, 1, 3))), 1.0, weight, hint_weight=hint)
    trainee = Trainee(hinted(model, inputs, 2) if hint else model, [], Mixing(0.0, 0.0, 0), None)
    trainee.compile(keras.optimizers.SGD(1.0), TaughtLoss(make_loss(SPECS["multi_label"]), lesson))
    features = [0, 0] if hint else []
    targets = np.array([[0, 1, 0, 0.5, 0.5, 0.5, *features, 1]], np.float32)
    # Scores round to 1 and to 0, where the logarithm of what is left to 1, or of the score, has no gradient.
    trainee.fit((np.array([[40.0, -200, 0]]),), targets, verbose=0)
    # dL/dlogit = (score - what it should be) / labels.
    wrong = np.array([1, -1, 0.5]) if weight else np.array([0.5, -0.5, 0])
    np.testing.assert_allclose(last.get_weights()[0] - np.eye(3), np.outer([-40, 200, 0], wrong / 3), rtol=1e-4)


def test_hints_are_the_mean_squared_error_of_scaled_features() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (8, 2, 5))
    stored = Stored(rng.normal(size=(8, 2, 3)), features)
    scaling = scaling_of(stored, 6)  # the last two have no label
    expected = Scaling.of(features[:6, 0].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(scaling.scale, expected.scale)
    lesson = teaching("classification", stored, hint_weight=0.7, scaling=scaling)
    plain = teaching("classification", Stored(stored.parts[0]))
    rows, views = np.arange(8), np.arange(8) % 2
    targets, without = (
        Batches(PixelSource(labels_of(8)), labels_of(6), OUTPUTS, 4, 0, teaching=each).targets(rows, views)
        for each in (lesson, plain)
    )
    said, guesses = softmax(rng.normal(size=(8, 3))), rng.normal(size=(8, 5))
    loss = TaughtLoss(make_loss(OUTPUTS), lesson).call(targets, np.hstack([said, guesses]).astype(np.float32))
    base = TaughtLoss(make_loss(OUTPUTS), plain).call(without, said.astype(np.float32))
    truth = scaling.apply(features[rows, views].astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(loss - base, 0.7 * ((guesses - truth) ** 2).mean(axis=1), rtol=1e-4)  # float32


# --- training -------------------------------------------------------------------------------------------------------

FEATURES = 5


def taught(checkpoint: Path, model: keras.Model, hints: float = 0.0, **settings: object) -> FineTuning:
    """Fourteen photos of which the last eight have no label, and a teacher that knows them all."""
    colours = labels_of(14)
    said = 6 * np.eye(CLASSES)[colours][:, None].repeat(2, axis=1)
    features = np.arange(FEATURES) * (colours[:, None, None] + np.zeros((1, 2, 1))) + 1
    stored = Stored(said, *([features] if hints else []))
    scaling = {"hint_weight": hints, "scaling": scaling_of(stored, 6)} if hints else {}
    lesson = teaching("classification", stored, 2.0, 0.1, **scaling)
    batches = Batches(PixelSource(colours, 2), colours[:6], OUTPUTS, 4, 0, teaching=lesson)
    return FineTuning(
        model,
        BLOCKS,
        one_phase(8, 2e-2),
        batches,
        Validation(PixelSource(labels_of(9), seed=1), labels_of(9)),
        Settings(0, OptimizerSettings(weight_decay=0.0), **{"warmup_epochs": 0.5, **settings}),  # type: ignore[arg-type]
        checkpoint=checkpoint,
    )


def with_hints(model: keras.Model) -> keras.Model:
    return hinted(model, model.get_layer("pool").output, FEATURES)


@pytest.mark.parametrize(
    ("hints", "changes"), [(0.0, {}), (0.5, {"mixup": 0.2, "cutmix": 0.2, "class_weights": True})], ids=str
)
def test_a_student_learns_and_nothing_of_the_hint_is_in_its_model(
    hints: float, changes: dict[str, object], tmp_path: Path
) -> None:
    model = tiny_model(dropout=0.0)
    before = [weight.path for weight in model.weights]
    trained = with_hints(model) if hints else model
    rows = taught(tmp_path / "c", trained, hints, **changes).run()
    assert rows[-1].validation_loss < 0.9 * rows[0].validation_loss
    assert np.isfinite([row.train_loss for row in rows]).all() and len(rows) == 9
    assert rows[-1].train_loss < rows[1].train_loss
    assert [weight.path for weight in model.weights] == before
    if hints:
        assert trained.get_layer(HINT_LAYER).kernel.numpy().any(), "it was trained"
        assert len(trained.outputs) == 2 and len(model.outputs) == 1


def test_a_hinted_student_says_only_outputs_where_it_is_judged() -> None:
    model = with_hints(tiny_model())
    trainee = Trainee(model, [], None, None)  # type: ignore[arg-type]
    pixels = (np.zeros((2, SIZE, SIZE, 3), np.float32),)
    assert trainee(pixels, training=False).shape == (2, CLASSES)
    assert trainee(pixels, training=True).shape == (2, CLASSES + FEATURES)
    np.testing.assert_array_equal(trainee(pixels, training=True)[:, CLASSES:], 0), "the mean, to begin with"


def test_half_precision_has_a_hint_too(tmp_path: Path) -> None:
    rows = taught(tmp_path / "c", with_hints(tiny_model(dropout=0.0)), 0.5, precision="mixed_bfloat16").run()
    assert rows[-1].validation_loss < rows[0].validation_loss


def test_epochs_go_over_all_photos() -> None:
    lesson = teaching("classification", Stored(np.zeros((14, 2, 3))))
    batches = Batches(PixelSource(labels_of(14), 2), labels_of(6), OUTPUTS, 4, 0, teaching=lesson)
    assert batches.steps == 3
    seen = {int(row) for epoch in range(8) for row in batches.order(0, epoch)[0].ravel()}
    assert seen == set(range(14))
    _, targets = batches.dataset(0, 0).element_spec
    assert targets.shape == (4, 3 + 3 + 1)
    rows, views = batches.order(0, 0)
    taken = next(iter(batches.dataset(0, 0)))[1].numpy()
    np.testing.assert_array_equal(taken, batches.targets(rows[0], views[0]))
    np.testing.assert_array_equal(taken[:, -1], rows[0] < 6)
