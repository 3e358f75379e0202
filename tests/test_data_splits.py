"""Train, validation and test; the written form; subsets."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.data import Example, Examples, SplitName, Splits, read_csv, split, stratified_subset, write_csv
from edgetl.errors import ConfigError, DatasetError

PARTS: tuple[SplitName, ...] = ("train", "validation", "test")


def made_up(counts: dict[str, int], given: dict[str, SplitName | None] | None = None) -> Examples:
    names = tuple(sorted(counts))
    items = [
        Example(f"{name}/{n}.jpg", Path("/photos") / name / f"{n}.jpg", label, (given or {}).get(f"{name}/{n}.jpg"))
        for label, name in enumerate(names)
        for n in range(counts[name])
    ]
    return Examples("photos", Path("/photos"), names, tuple(sorted(items, key=lambda item: item.id)))


def ids(examples: Examples) -> set[str]:
    return {item.id for item in examples}


counts = st.dictionaries(st.text("abcxyz", min_size=1, max_size=3), st.integers(3, 60), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(counts, st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 5))
def test_parts_are_disjoint_complete_and_stratified(
    counts: dict[str, int], validation: float, test: float, seed: int
) -> None:
    examples = made_up(counts)
    parts = split(examples, validation_fraction=validation, test_fraction=test, seed=seed)
    every = [ids(getattr(parts, name)) for name in PARTS]
    assert set.union(*every) == ids(examples)
    assert sum(map(len, every)) == len(examples)
    for name, count in counts.items():
        assert all(getattr(parts, part).counts[name] >= 1 for part in PARTS)
        if count >= 20:  # below, "at least one in each" may ask for more than the share
            assert abs(parts.validation.counts[name] - validation * count) <= 1
            assert abs(parts.test.counts[name] - test * count) <= 1


@settings(max_examples=30, deadline=None)
@given(counts, st.randoms(use_true_random=False))
def test_order_of_examples_does_not_matter(counts: dict[str, int], shuffler: random.Random) -> None:
    examples = made_up(counts)
    mixed = list(examples.items)
    shuffler.shuffle(mixed)
    again = Examples(examples.source, examples.root, examples.output_names, tuple(mixed))
    assert split(again) == split(examples)
    assert stratified_subset(again, 6) == stratified_subset(examples, 6)


def test_seeds_and_versions() -> None:
    examples = made_up({"cat": 12, "dog": 8})
    assert split(examples, seed=1) == split(examples, seed=1)
    assert split(examples, seed=1).test != split(examples, seed=2).test
    # Written down, so that a change that would silently re-divide everybody's data is noticed.
    assert sorted(ids(split(examples).test)) == ["cat/11.jpg", "cat/4.jpg", "cat/7.jpg", "dog/1.jpg", "dog/4.jpg"]


def test_another_class_moves_nothing_in_the_first() -> None:
    small, large = split(made_up({"cat": 20, "dog": 20})), split(made_up({"cat": 20, "dog": 20, "bird": 9}))
    for part in PARTS:
        assert ids(getattr(small, part)) == {i for i in ids(getattr(large, part)) if not i.startswith("bird")}


def test_default_shares() -> None:
    parts = split(made_up({"cat": 100, "dog": 200}))
    assert parts.train.counts == {"cat": 60, "dog": 120}
    assert parts.validation.counts == {"cat": 15, "dog": 30}
    assert parts.test.counts == {"cat": 25, "dog": 50}
    assert parts.test.output_names == ("cat", "dog")


@pytest.mark.parametrize(
    "fractions", [(0, 0.2), (0, 0), (0.2, -0.1), (-0.1, 0.2), (0.5, 0.5), (0.9, 0.2), (float("nan"), 0.2)]
)
def test_fractions_that_leave_nothing(fractions: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="the first must be above 0, the second at least 0"):
        split(made_up({"a": 9, "b": 9}), validation_fraction=fractions[0], test_fraction=fractions[1])


def test_all_photos_can_be_learned_from() -> None:
    parts = split(made_up({"cat": 8, "dog": 2}), validation_fraction=0.25, test_fraction=0)
    assert (parts.train.counts, parts.validation.counts) == ({"cat": 6, "dog": 1}, {"cat": 2, "dog": 1})
    assert not len(parts.test) and parts.test.output_names == ("cat", "dog")


@pytest.mark.parametrize("fractions", [(0.3, 0.6), (0.6, 0.3), (0.01, 0.98), (0.49, 0.5)])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_no_part_is_ever_empty(fractions: tuple[float, float], count: int) -> None:
    parts = split(made_up({"a": count, "b": 30}), validation_fraction=fractions[0], test_fraction=fractions[1])
    assert all(getattr(parts, part).counts["a"] >= 1 for part in PARTS)


def test_too_small_a_class_is_named() -> None:
    with pytest.raises(DatasetError) as caught:
        split(made_up({"cat": 9, "dog": 2}))
    assert str(caught.value) == (
        "photos: class dog (see dog/0.jpg) has 2 example(s), need at least 3 (train + validation + test). Add some or "
        "remove the class"
    )
    assert split(made_up({"cat": 3, "dog": 3})).test.counts == {"cat": 1, "dog": 1}


def predefined(test: dict[str, int], validation: dict[str, int] | None = None, each: int = 20) -> Examples:
    given: dict[str, SplitName | None] = {f"{name}/{n}.jpg": "train" for name in ("a", "b") for n in range(each)}
    for name, count in test.items():
        given |= {f"{name}/{n}.jpg": "test" for n in range(count)}
    for name, count in (validation or {}).items():
        given |= {f"{name}/{each - 1 - n}.jpg": "validation" for n in range(count)}
    return made_up({"a": each, "b": each}, given)


def test_given_parts_are_kept() -> None:
    parts = split(predefined({"a": 4, "b": 5}, {"a": 3, "b": 2}), seed=7)
    assert parts.test.counts == {"a": 4, "b": 5}
    assert parts.validation.counts == {"a": 3, "b": 2}
    assert parts.train.counts == {"a": 13, "b": 13}
    assert all(item.split == part for part in PARTS for item in getattr(parts, part))


def test_a_missing_part_is_taken_out_of_train() -> None:
    examples = predefined({"a": 10, "b": 10})
    parts = split(examples, validation_fraction=0.2)
    assert ids(parts.test) == {item.id for item in examples if item.split == "test"}
    assert parts.validation.counts == {"a": 2, "b": 2}  # 0.2 of the 10 that train has
    assert parts.train.counts == {"a": 8, "b": 8}


def test_a_given_part_without_a_class_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"photos: class b \(see b/0.jpg\) has 0 examples in test, need at least 1"):
        split(predefined({"a": 4}))


# --- subsets


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(6, 80), st.integers(0, 3))
def test_subset_is_proportional(counts: dict[str, int], count: int, seed: int) -> None:
    examples = made_up(counts)
    subset = stratified_subset(examples, count, seed)
    assert len(subset) == min(count, len(examples))
    assert ids(subset) <= ids(examples)
    assert subset == stratified_subset(examples, count, seed)
    for name, size in counts.items():
        share = size * len(subset) / len(examples)
        assert subset.counts[name] >= 1
        # one from rounding, and what the classes with less than one share were given on top
        assert share - len(counts) < subset.counts[name] < share + 1.001


def test_subset_too_small_for_its_classes() -> None:
    with pytest.raises(ConfigError, match="can't hold 3 classes"):
        stratified_subset(made_up({"a": 5, "b": 5, "c": 5}), 2)
    assert len(stratified_subset(made_up({"a": 5, "b": 5, "c": 0}), 2)) == 2


# --- the written form


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        # Names of folders: no slash.
        st.text(
            st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="/"),
            min_size=1,
            max_size=5,
        ),
        st.integers(3, 6),
        min_size=2,
        max_size=4,
    )
)
def test_written_and_read_back(counts: dict[str, int]) -> None:
    examples = made_up(counts)
    parts = split(examples)
    hashes = {item.id: f"{number:064x}" for number, item in enumerate(examples)}
    again, known = read_back(write_csv(parts, hashes), examples)
    assert known == hashes
    for part in PARTS:
        assert getattr(again, part).items == getattr(parts, part).items


def read_back(text: str, examples: Examples) -> tuple[Splits, dict[str, str]]:
    """Photos that are made up are all there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_file", lambda path: path in {item.path for item in examples})
        return read_csv(text, examples.root, examples.outputs)


def test_written_form() -> None:
    parts = split(made_up({"cat": 3, "dog": 3}))
    lines = write_csv(parts, {"cat/1.jpg": "ab12"}).splitlines()
    assert lines[0] == "id,label,split,group,weight,sha256"
    assert len(lines) == 7
    assert [line.split(",")[0] for line in lines[1:]] == sorted(ids(made_up({"cat": 3, "dog": 3})))
    assert lines[2].startswith("cat/1.jpg,cat,")
    assert lines[2].endswith(",,1,ab12")
    assert lines[1].endswith(",")


def test_everything_known_of_an_example_is_written_down() -> None:
    items = [
        Example(f"{n}.jpg", Path(f"/photos/{n}.jpg"), label, None, f"day {n}", 0.5 + n, (f"camera, {n}", ""))
        for n, label in enumerate([(0.1, -3e7), (1 / 3, 2.0), (5.0, 0.0), (1e-30, 1.0)])
    ]
    whole = Examples("x", Path("/photos"), ("width", "height"), tuple(items), "regression", ("camera", "note"))
    parts = Splits(whole.select([0, 1]), whole.select([2]), whole.select([3]))
    again, _ = read_back(write_csv(parts, {}), whole)
    for part in PARTS:
        assert getattr(again, part).items == getattr(parts, part).items
    assert again.test.columns == ("camera", "note")


@pytest.mark.parametrize("label", [(), (1,), (0, 2)])
def test_several_labels_are_written_down(label: tuple[int, ...]) -> None:
    item = Example("a.jpg", Path("/photos/a.jpg"), label)
    whole = Examples("x", Path("/photos"), ("red", "green", "blue"), (item,), "multi_label")
    parts = Splits(whole, whole.select([]), whole.select([]))
    assert read_back(write_csv(parts, {}), whole)[0].train.items[0].label == label
    assert np.flatnonzero(whole.labels[0]).tolist() == list(label)


def test_a_grown_data_set_gives_the_old_splits() -> None:
    parts = split(made_up({"cat": 5, "dog": 5}))
    text = write_csv(parts, {})
    grown = made_up({"bird": 4, "cat": 8, "dog": 5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_file", lambda path: path in {item.path for item in grown})
        again, _ = read_csv(text, grown.root, parts.train.outputs)
    assert again.test.items == parts.test.items  # labels of that run, though "bird" now comes first
    assert again.train.output_names == ("cat", "dog")


def test_a_missing_photo_is_named() -> None:
    text = write_csv(split(made_up({"cat": 5, "dog": 5})), {})
    with pytest.raises(DatasetError) as caught:
        read_back(text, made_up({"cat": 3, "dog": 5}))
    assert str(caught.value) == (
        "/photos/cat/3.jpg and 1 more: used by the run (splits.csv), missing now. Put the photo(s) back or train again"
    )


HEADER = "id,label,split,group,weight,sha256"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"the first line does not begin with {HEADER}"),
        ("id,label\na,b\n", "the first line does not begin with"),
        (f"{HEADER}\n", "no rows"),
        (f"{HEADER}\ncat/0.jpg,cat,holdout,,1,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/0.jpg,cow,test,,1,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/0.jpg,cat,test,,heavy,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/0.jpg,cat,test,,nan,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/0.jpg,cat,test,,-1,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/0.jpg,cat\n", "line 2 is damaged"),
        (f"{HEADER}\n/photos/cat/0.jpg,cat,test,,1,\n", "line 2 is damaged"),
        (f"{HEADER}\n../photos/cat/0.jpg,cat,test,,1,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/../../cat/0.jpg,cat,test,,1,\n", "line 2 is damaged"),
        (f"{HEADER}\ncat/0.jpg,cat,test,{'g' * 200_000},1,\n", "line 2: field larger"),
        (f"{HEADER},{'h' * 200_000}\n", "line 1: field larger"),
        (f"{HEADER}\ncat/0.jpg,cat,train,,1,\ncat/0.jpg,cat,test,,1,\n", "line 3 is damaged"),
    ],
)
def test_damaged_text(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_back(text, made_up({"cat": 3, "dog": 3}))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    examples = made_up({"cat": 3, "dog": 3})
    text, root = write_csv(split(examples), {}), tmp_path / "photos"
    for item in examples:
        (root / item.id).parent.mkdir(parents=True, exist_ok=True)
        (root / item.id).write_bytes(b"x")
    (tmp_path / "elsewhere").symlink_to(root)
    assert read_csv(text, tmp_path / "elsewhere", examples.outputs), "the folder itself may be linked to"
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "cat/1.jpg").unlink()
    (root / "cat/1.jpg").symlink_to("0.jpg")
    assert read_csv(text, root, examples.outputs), "as may a photo in it"
    (root / "dog/1.jpg").unlink()
    (root / "dog/1.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DatasetError, match=r"dog/1\.jpg: used by the run .*, a link out of .*photos\. Copy"):
        read_csv(text, root, examples.outputs)


def test_parts_are_a_plain_dataclass() -> None:
    parts = split(made_up({"cat": 3, "dog": 3}))
    assert Splits(parts.train, parts.validation, parts.test) == parts
