"""The arithmetic of the tasks: outputs, losses, deviations, and what each task refuses."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, mean_squared_error

from edgetl.data.examples import Example, Examples, Label
from edgetl.errors import ConfigError, DatasetError
from edgetl.heads import HEADS
from edgetl.outputs import OutputSpec, Task
from edgetl.tasks import activate, as_targets, check_remedies, mean_loss, rank_positions, training_outputs


def examples(task: Task, names: tuple[str, ...], labels: list[Label]) -> Examples:
    items = tuple(Example(f"{i}.png", Path(f"{i}.png"), label) for i, label in enumerate(labels))
    return Examples("photos", Path(), names, items, task)


def test_targets_come_with_their_deviations_and_labels_with_a_threshold() -> None:
    values: list[Label] = [(1.0, -20.0), (2.0, 30.0), (6.0, 30.0)]
    found = training_outputs(examples("regression", ("m", "g"), values))
    # float32 labels, of which 30 and 20 are exact.
    assert found.deviations == pytest.approx(np.std(np.array(values), axis=0), rel=1e-6)
    assert training_outputs(examples("multi_label", ("a", "b"), [(0,), ()])).thresholds == (0.5, 0.5)
    assert training_outputs(examples("ordinal", ("a", "b"), [0, 1])) == OutputSpec("ordinal", ("a", "b"))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])  # not all of them are float32 numbers
def test_a_target_with_one_value_is_refused(value: float) -> None:
    with pytest.raises(DatasetError, match=r"photos: target g is .* in all 7 training examples.*Leave the target out"):
        training_outputs(examples("regression", ("m", "g"), [(float(i), value) for i in range(7)]))


def test_a_target_that_hardly_varies_is_none_with_one_value() -> None:
    found = training_outputs(examples("regression", ("g",), [(1000.0,), (1000.001,)]))
    assert found.deviations[0] == pytest.approx(0.0005, rel=0.1)  # float32 has steps of 0.00006 here


def test_losses_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 3))
    classes, true = rng.integers(0, 3, 50), (rng.random((50, 3)) < 0.3).astype(np.float32)
    for task in ("classification", "ordinal"):
        outputs = activate(logits, task)
        assert outputs.sum(axis=1) == pytest.approx(np.ones(50))
        assert mean_loss(classes, outputs, OutputSpec(task, tuple("abc"))) == pytest.approx(log_loss(classes, outputs))
    scores = activate(logits, "multi_label")
    each = [log_loss(true[:, k], scores[:, k]) for k in range(3)]
    assert mean_loss(true, scores, OutputSpec("multi_label", tuple("abc"))) == pytest.approx(np.mean(each))
    assert activate(logits, "regression") is logits
    values = rng.normal(size=(50, 2)) * [1, 100]
    said = values + rng.normal(size=(50, 2)) * [1, 100]
    each = [mean_squared_error(values[:, k], said[:, k]) / deviation**2 for k, deviation in enumerate((2, 50))]
    spec = OutputSpec("regression", ("m", "g"), deviations=(2, 50))
    assert mean_loss(values, said, spec) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_rounded_scores_have_a_finite_loss(task: Task) -> None:
    spec, sure = OutputSpec(task, ("a", "b")), np.array([[1.0000001, 0.0]], np.float32)
    right = np.array([0]) if task == "classification" else np.array([[1, 0]], np.float32)
    assert mean_loss(right, sure, spec) == 0 and str(mean_loss(right, sure, spec)) == "0.0"
    assert mean_loss(1 - right, sure, spec) == pytest.approx(-np.log(1e-7))


def test_labels_as_losses_take_them() -> None:
    one_hot = as_targets(np.array([2, 0]), OutputSpec("ordinal", tuple("abc")))
    np.testing.assert_array_equal(one_hot, [[0, 0, 1], [1, 0, 0]])
    values = np.array([[1.5, -2]], np.float32)
    np.testing.assert_array_equal(as_targets(values, OutputSpec("regression", ("m", "g"), deviations=(1, 1))), values)
    assert one_hot.dtype == np.float32


def test_positions_are_one_apart_around_0() -> None:
    np.testing.assert_array_equal(rank_positions(4), [-1.5, -0.5, 0.5, 1.5])


@pytest.mark.parametrize("task", HEADS)
def test_what_is_off_is_right_for_every_task(task: Task) -> None:
    off = {
        "label_smoothing": None,
        "focal_gamma": 0.0,
        "cutmix": 0.0,
        "class_balance": "none",
        "calibrate_scores": False,
    }
    check_remedies(task, **off)
    check_remedies(task, label_smoothing=0.0)


@pytest.mark.parametrize(
    ("task", "option", "value"),
    [
        ("ordinal", "label_smoothing", 0.1),
        ("multi_label", "class_balance", "sampling"),
        ("regression", "label_smoothing", 0.1),
        ("regression", "focal_gamma", 2.0),
        ("regression", "class_balance", "weights"),
        ("regression", "class_balance", "sampling"),
        ("regression", "cutmix", 1.0),
        ("regression", "calibrate_scores", True),
    ],
)
def test_what_means_nothing_to_a_task_is_refused(task: Task, option: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')} {value}: not for --task {task}: .*Leave it"):
        check_remedies(task, **{option: value})
    check_remedies("classification", **{option: value})
