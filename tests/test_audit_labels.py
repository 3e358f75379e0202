"""Doubtful labels and shifted splits, on features with a known truth."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgetl.audit import labels, shift
from edgetl.data import Example, Examples
from edgetl.outputs import Task


def clouds(
    classes: int, per_class: int, apart: float, seed: int = 0, task: Task = "classification"
) -> tuple[np.ndarray, Examples]:
    """Features of Gaussian clouds in 16 dimensions, and their labels; every third photo is in test."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (classes, 16)) * apart
    kinds = np.repeat(np.arange(classes), per_class)
    values = (centres[kinds] + rng.normal(0, 1, (len(kinds), 16))).astype(np.float32)
    items = tuple(
        Example(f"{n:04d}", Path("/x"), (int(k),) if task == "multi_label" else int(k), "test" if n % 3 else "train")
        for n, k in enumerate(kinds)
    )
    return values, Examples("clouds", Path("/"), tuple(f"c{k}" for k in range(classes)), items, task=task)


def flipped(examples: Examples, count: int) -> tuple[Examples, dict[str, str]]:
    """Give some the next label; id -> the right one."""
    rng = np.random.default_rng(7)
    items = list(examples.items)
    right = {}
    for place in rng.choice(len(items), count, replace=False):
        label = items[place].label
        right[items[place].id] = examples.label_text(items[place])
        k = len(examples.output_names)
        other = (label + 1) % k if isinstance(label, int) else ((int(label[0]) + 1) % k,)
        items[place] = dataclasses.replace(items[place], label=other)
    return examples.with_items(items), right


@pytest.mark.parametrize("task", ["classification", "ordinal", "multi_label"])
def test_flipped_labels_are_found_with_the_right_suggestion(task: Task) -> None:
    values, examples = clouds(3, 80, apart=3.0, task=task)
    wrong, right = flipped(examples, 12)
    found, reason = labels.find(values, wrong)
    assert reason == ""
    suggested = {issue.id: issue.suggested for issue in found if not issue.suggested.startswith("not ")}
    hit = [id_ for id_ in right if suggested.get(id_) == right[id_]]
    assert len(hit) >= 9  # the clouds don't overlap, but the L2 chosen leaves some probabilities below 0.9
    assert (
        len(found) <= 12 * (2 if task == "multi_label" else 1) + 6
    )  # a flip of labels is two doubts: one not, one yes
    assert {issue.id for issue in found[:10]} <= set(right)  # most doubtful first


def test_right_labels_are_hardly_doubted() -> None:
    values, examples = clouds(3, 80, apart=2.0)
    assert len(labels.find(values, examples)[0]) <= 2


def test_confident_learning_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.85, 0.15], [0.6, 0.4]], np.float32)
    given = np.array([0, 0, 0, 1, 1, 1])
    # Class 0 is believed from mean(0.9, 0.7, 0.2) = 0.6, class 1 from mean(0.7, 0.15, 0.4) = 0.4167.
    assert labels.confident(given, probabilities).tolist() == [0, 0, 1, 1, 0, 0]


def test_where_no_class_is_believed_the_label_stays() -> None:
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9]], np.float32)
    assert labels.confident(np.array([0, 0, 1, 1]), probabilities)[1] == 0  # believed from 0.7 and 0.9


def test_a_flip_among_certain_photos_is_not_overlooked() -> None:
    probabilities = np.array([[0.999, 0.001]] * 99 + [[0.02, 0.98]] * 100 + [[0.95, 0.05]], np.float32)
    given = np.array([0] * 99 + [1] * 101)  # the mean of class 0 is 0.999, the last photo's 0.95 below it
    assert np.flatnonzero(labels.confident(given, probabilities) != given).tolist() == [199]


def test_a_rare_class_does_not_hide_the_others() -> None:
    values, examples = clouds(3, 40, apart=3.0)
    items = [dataclasses.replace(examples.items[0], label=1), *examples.items[1:83]]
    found, said = labels.find(values[:83], examples.with_items(items))
    assert [(issue.id, issue.given, issue.suggested) for issue in found] == [("0000", "c1", "c0")]
    assert said == "labels of c2: fewer than 5 photos each, cross-validation needs as many"
    last = [examples.items[0], *examples.items[40:]]  # names move up where the first class is the rare one
    turned = [*last[:-1], dataclasses.replace(last[-1], label=1)]
    (issue,), _ = labels.find(values[[0, *range(40, 120)]], examples.with_items(turned))
    assert (issue.id, issue.given, issue.suggested) == ("0119", "c1", "c2")


def test_where_labels_cannot_be_judged_the_reason_is_said() -> None:
    values, examples = clouds(3, 20, apart=1.0)

    def reason(examples: Examples) -> str:
        found, said = labels.find(values[: len(examples)], examples)
        assert found == []
        return said

    few = examples.select(range(19, 43))
    assert reason(few) == "labels: c0 has 1 of 24 photos, cross-validation needs 5 with and without"
    everywhere = examples.with_items([dataclasses.replace(item, label=(0, 1, 2)) for item in examples])
    assert "c0 has 60 of 60" in reason(dataclasses.replace(everywhere, task="multi_label"))
    assert reason(dataclasses.replace(examples, task="regression")) == "labels: numbers are not judged"
    grouped = examples.with_items([dataclasses.replace(e, group=str(n % 4)) for n, e in enumerate(examples)])
    assert "fewer than 5 groups" in reason(grouped)
    random = np.random.default_rng(0).permutation(60)
    mixed = examples.with_items([dataclasses.replace(e, label=int(random[n] % 3)) for n, e in enumerate(examples)])
    assert "can't tell the classes apart" in reason(mixed)


def test_alike_splits_are_not_told_apart() -> None:
    pvalues = []
    for seed in range(20):
        values, examples = clouds(2, 150, apart=1.0, seed=seed)
        found = shift.between(values, examples, "train", "test", seed)
        assert found is not None
        pvalues.append(found.p_value)
    # Uniform under the null: 20 p-values below 0.01 with probability 0.02 for two or more.
    assert sum(p < 0.01 for p in pvalues) <= 1
    assert np.median(pvalues) > 0.1  # uniform: below 0.1 with probability 1e-5 (11 of 20)


def test_shifted_splits_are_told_apart_and_the_telling_photos_named() -> None:
    values, examples = clouds(2, 150, apart=1.0)
    is_test = np.array([example.split == "test" for example in examples])
    values[is_test, 0] += 3.0
    found = shift.between(values, examples, "train", "test")
    assert found is not None
    assert found.accuracy > 0.85  # two clouds 3 sigma apart: 0.93 at best
    assert found.p_value < 1e-6
    assert found.telling
    assert all(examples.select([id_]).items[0].split == "test" for id_ in found.telling)


def test_another_mix_of_classes_is_no_shift() -> None:
    values, examples = clouds(2, 300, apart=3.0)
    items = [
        dataclasses.replace(item, split="test" if (n % 10 < (8 if item.label else 2)) else "train")
        for n, item in enumerate(examples)
    ]
    found = shift.between(values, examples.with_items(items), "train", "test")
    assert found is not None
    assert found.p_value > 0.001  # by the mix alone 80 % would be told rightly


def test_too_few_photos_tell_nothing() -> None:
    values, examples = clouds(2, 20, apart=1.0)
    assert shift.between(values, examples, "train", "test") is None
    assert shift.between(values, examples, "train", "validation") is None


def test_photos_of_one_group_are_no_evidence_against_the_splits() -> None:
    """A hundred patients with ten photos each, all alike: whoever knows the patient knows the side."""
    random = np.random.default_rng(0)
    patient = np.arange(1000) // 10
    values = (random.normal(size=(100, 32))[patient] + random.normal(0, 0.1, (1000, 32))).astype(np.float32)
    test = random.permutation(100) < 50
    items = tuple(
        Example(f"{n:04}", Path(f"{n}"), n % 2, "test" if test[each] else "train", group=f"p{each}")
        for n, each in enumerate(patient.tolist())
    )
    found = shift.between(values, Examples("s", Path(), ("a", "b"), items), "train", "test")
    assert found is not None
    assert found.samples <= 50, "one photo of each, half of them tested"
    assert found.p_value > 0.01  # with all photos 1e-20
