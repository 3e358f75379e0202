"""Folders and named data sets -> Examples, and every complaint on the way."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photos import make_photo, make_photo_folder
from PIL import Image

from edgetl import data
from edgetl.data import Examples
from edgetl.errors import DatasetError


def touch(root: Path, *files: str) -> Path:
    """Empty files: loading opens no photo."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def ids(examples: Examples) -> list[str]:
    return [item.id for item in examples]


# --- folders


def test_class_folders(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, {"dog": 3, "cat": 2})
    examples = data.load(str(tmp_path))
    assert examples.source == str(tmp_path)
    assert examples.output_names == ("cat", "dog")
    assert ids(examples) == ["cat/0000.jpg", "cat/0001.jpg", "dog/0000.jpg", "dog/0001.jpg", "dog/0002.jpg"]
    assert examples.labels.tolist() == [0, 0, 1, 1, 1]
    assert examples.labels.dtype == np.int64
    assert examples.counts == {"cat": 2, "dog": 3}
    assert all(item.path.is_file() and item.split is None for item in examples)


def test_files_at_any_depth_hidden_ones_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/x/y/1.JPG", "a/2.jpeg", "a/3.WebP", "b/4.png", "b/5.gif", "b/6.bmp")
    touch(tmp_path, "a/.hidden.jpg", "a/.thumbs/7.jpg", ".git/8.jpg", "README.txt", "a/9.heic", "b/10.HEIC", "b/notes")
    with caplog.at_level(logging.INFO, "edgetl"):
        examples = data.load(str(tmp_path))
    assert ids(examples) == ["a/2.jpeg", "a/3.WebP", "a/x/y/1.JPG", "b/4.png", "b/5.gif", "b/6.bmp"]
    [line] = caplog.messages
    assert "3 file(s) left out: 1 without extension, 2 .heic." in line


def test_photos_beside_class_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = data.load(str(touch(tmp_path, "a/1.jpg", "b/2.jpg", "stray.jpg")))
    assert len(examples) == 2
    assert "1 photo(s) beside the class folders" in caplog.text


def test_folder_of_splits(tmp_path: Path) -> None:
    touch(tmp_path, "Train/a/1.jpg", "Train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg", "testing/b/5.jpg")
    examples = data.load(str(tmp_path))
    assert {item.id: (item.label, item.split) for item in examples} == {
        "Train/a/1.jpg": (0, "train"),
        "Train/b/2.jpg": (1, "train"),
        "val/a/3.jpg": (0, "validation"),
        "val/b/4.jpg": (1, "validation"),
        "testing/b/5.jpg": (1, "test"),
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    examples = data.load(str(touch(tmp_path, "bus/1.jpg", "train/2.jpg")))
    assert examples.output_names == ("bus", "train")
    assert [item.split for item in examples] == [None, None]


@pytest.mark.parametrize("name", ["Straße und Grün", "猫", "-rf", "a b", "क्‍ष", "🐈‍⬛", 'comma, "quote"'])
def test_unusual_names_work(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    make_photo_folder(root, {name: 2, "z": 1})
    examples = data.load(str(root))
    assert set(examples.output_names) == {name, "z"}
    assert f"{name}/0000.jpg" in ids(examples)


def test_a_folder_that_begins_with_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photo_folder(tmp_path / "-photos")
    monkeypatch.chdir(tmp_path)
    assert len(data.load("-photos")) == 24


def test_links_inside_are_fine_and_links_out_are_not(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"a": 2, "b": 2})
    (root / "a/link.jpg").symlink_to(root / "b/0000.jpg")
    assert len(data.load(str(root))) == 5
    alias = tmp_path / "alias"
    alias.symlink_to(root)  # the root itself may be a link
    assert len(data.load(str(alias))) == 5
    outside = make_photo_folder(tmp_path / "other")
    (root / "a/out.jpg").symlink_to(outside / "cat/0000.jpg")
    (root / "b/up.jpg").symlink_to("../../other/cat/0000.jpg")
    with pytest.raises(DatasetError, match=r"2 symbolic link\(s\) lead out of it.*a/out\.jpg.*Copy"):
        data.load(str(root))


def test_links_in_circles_are_left_to_the_reader(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path, {"a": 2, "b": 2})
    (root / "a/self.jpg").symlink_to("self.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "a/nowhere.jpg").symlink_to("gone.jpg")
    assert {"a/self.jpg", "a/nowhere.jpg"} < set(ids(data.load(str(root))))


def test_linked_folders_are_refused(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path, {"a": 2, "b": 2})
    (root / "a/circle").symlink_to(root)
    with pytest.raises(DatasetError, match="a/circle"):
        data.load(str(root))
    (root / "a/circle").unlink()
    (root / "c").symlink_to(root / "a")
    with pytest.raises(DatasetError, match=r"1 folder\(s\) are symbolic links \(c\)"):
        data.load(str(root))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda root: root.mkdir(exist_ok=True), "{root}: the folder holds no class folders"),
    "flat": (
        lambda root: touch(root, "1.jpg", "2.PNG"),
        "{root}: 2 photo(s) but no class folders. Expected {root}/",
    ),
    "one class": (lambda root: touch(root, "a/1.jpg"), "{root}: found 1 class folder (a), need at least 2"),
    "class without photos": (
        lambda root: touch(root, "a/1.jpg", "b/1.txt", "c/2.jpg", "d/.hidden.jpg"),
        "{root}: 2 class folder(s) without photos: b, d.",
    ),
    "split without classes": (
        lambda root: touch(root, "train/1.jpg", "test/2.jpg"),
        "{root}/train: 1 photo(s) but no class",
    ),
    "no train": (lambda root: touch(root, "val/a/1.jpg", "test/a/2.jpg"), "{root}: test, val without train."),
    "split twice": (
        lambda root: touch(root, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "valid/a/2.jpg"),
        "{root}: val and valid both mean validation.",
    ),
    "splits and classes": (
        lambda root: touch(root, "train/a/1.jpg", "test/a/2.jpg", "extra/3.jpg"),
        "{root}: test, train look like splits, extra not.",
    ),
    "class unknown to train": (
        lambda root: touch(root, "train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/c/3.jpg"),
        "{root}: class(es) that train lacks: test/c.",
    ),
    "one class in train": (
        lambda root: touch(root, "train/a/1.jpg", "test/a/2.jpg"),
        "{root}/train: found 1 class folder (a), need at least 2",
    ),
    "line break": (lambda root: touch(root, "a\nb/1.jpg", "c/1.jpg"), "{root}: class folder 'a\\nb' has a control"),
    "carriage return": (
        lambda root: touch(root, "a/1\r.jpg", "c/1.jpg"),
        "{root}: file name 'a/1\\r.jpg' has a control",
    ),
    "not Unicode": (
        lambda root: touch(root, "a/\udcff.jpg", "c/1.jpg"),
        "{root}: file name 'a/\\udcff.jpg' is",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_complaints_name_the_place_and_the_way_out(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    root = tmp_path / "photos"
    make(root)
    with pytest.raises(DatasetError) as caught:
        data.load(str(root))
    assert str(caught.value).startswith(message.format(root=root))
    assert "\n" not in str(caught.value)
    assert re.search(r"\. (Add|Move|Merge|Keep|Rename|Expected|Copy)", str(caught.value))


def test_no_such_place(tmp_path: Path) -> None:
    for wrong in (str(tmp_path / "nowhere"), "elvp", "", "   "):
        with pytest.raises(DatasetError) as caught:
            data.load(wrong)
        assert str(caught.value).startswith(f"{wrong!r}: no such folder or data set.")
        assert ("Did you mean elpv?" in str(caught.value)) == (wrong == "elvp")
        assert str(caught.value).endswith("or a named data set: elpv")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    archive = touch(tmp_path, "photos.zip") / "photos.zip"
    with pytest.raises(DatasetError, match=r"photos\.zip: a file, need a folder .* Unpack it"):
        data.load(str(archive))


def test_folders_below_a_class_are_a_column_and_can_be_groups(tmp_path: Path) -> None:
    files = [f"{name}/{day}/{n}.jpg" for name in "ab" for day in ("mon", "tue", "wed", "thu") for n in range(3)]
    examples = data.load(str(touch(tmp_path, *files, "a/0.jpg")), group="folder")
    assert examples.columns == ("folder",)
    assert {item.id: item.group for item in examples if item.id in ("a/0.jpg", "b/mon/1.jpg")} == {
        "a/0.jpg": "",
        "b/mon/1.jpg": "mon",
    }
    parts = data.split(examples)
    days = [{item.group for item in part} - {""} for part in (parts.train, parts.validation, parts.test)]
    assert not days[0] & days[1] and not days[0] & days[2] and not days[1] & days[2]
    train = [f"train/{file}" for file in files]
    inside = data.load(str(touch(tmp_path / "split", *train, "test/a/1.jpg", "test/b/fri/2.jpg")))
    assert [item.values for item in inside][:3] == [("",), ("fri",), ("mon",)]
    with pytest.raises(DatasetError, match=r"no column day for --group\. It has folder"):
        data.load(str(tmp_path / "split"), group="day")


def test_ordinal_folders(tmp_path: Path) -> None:
    root = str(touch(tmp_path, "10/1.jpg", "9/1.jpg", "100/1.jpg"))
    assert data.load(root).output_names == ("10", "100", "9")
    ordinal = data.load(root, task="ordinal")
    assert (ordinal.task, ordinal.output_names) == ("ordinal", ("9", "10", "100"))
    assert {item.id: item.label for item in ordinal} == {"9/1.jpg": 0, "10/1.jpg": 1, "100/1.jpg": 2}
    assert data.load(root, class_order=("100", "10", "9")).labels.tolist() == [1, 0, 2]


def test_what_only_a_table_can_tell_is_refused(tmp_path: Path) -> None:
    root = str(touch(tmp_path, "a/1.jpg", "b/1.jpg"))
    for source, options, message in [
        (root, {"task": "multi_label"}, "a folder of classes gives no --task multi_label. Write a table"),
        (root, {"task": "regression"}, "a folder of classes gives no --task regression"),
        (root, {"label": "species", "targets": ("mm",)}, "--label, --targets can't be followed"),
        ("elpv", {"class_order": ("a", "b")}, "--class-order can't be followed"),
        ("elpv", {"group": "module"}, "elpv: no column module for --group. It has cell_type"),
    ]:
        with pytest.raises(DatasetError, match=re.escape(message)):
            data.load(source, **options)  # type: ignore[arg-type]


# --- named data sets


def test_elpv_has_the_published_counts() -> None:
    examples = data.load("elpv")
    assert len(examples) == 2624
    assert examples.counts == {"defective": 821, "functional": 1803}
    assert examples.source == "elpv"
    assert ids(examples) == sorted(ids(examples))
    by_id = {item.id: examples.output_names[item.label] for item in examples}
    assert by_id["images/cell0001.png"] == "defective"  # probability 1.0 in labels.csv
    assert by_id["images/cell0004.png"] == "functional"  # 0.0
    with Image.open(examples.items[-1].path) as photo:
        assert photo.size == (300, 300)


def test_elpv_serves_every_task() -> None:
    """Counts are those of the published labels.csv: 1508, 295, 106 and 715 cells of the four levels, 1074 mono."""
    ordinal = data.load("elpv", task="ordinal")
    levels = {"functional": 1508, "likely_functional": 295, "likely_defective": 106, "defective": 715}
    assert (ordinal.counts, ordinal.output_names) == (levels, tuple(levels))  # in this order
    several = data.load("elpv", task="multi_label")
    assert several.counts == {"defective": 821, "monocrystalline": 1074}
    numbers = data.load("elpv", task="regression")
    assert numbers.output_names == ("defect_probability",)
    assert np.unique(numbers.labels) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for examples in (ordinal, several, numbers, data.load("elpv")):
        assert examples.columns == ("cell_type",)
        assert sum(item.values == ("mono",) for item in examples) == 1074
        parts = data.split(examples)
        text = data.write_csv(parts, {})
        assert data.read_csv(text, examples.root, examples.outputs)[0].test.items == parts.test.items
    assert [several.label_text(item) for item in several][:1] == ["defective|monocrystalline"]
    assert (numbers.labels[:, 0] >= 0.5).tolist() == (data.load("elpv").labels == 0).tolist()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DatasetError, match="pip install elpv-dataset"):
        data.load("elpv")


def test_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = touch(tmp_path, "elpv_dataset/__init__.py") / "elpv_dataset"
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DatasetError, match=r"labels\.csv is damaged.*force-reinstall"):
        data.load("elpv")
    touch(package, "data/labels.csv").joinpath("data/labels.csv").write_text("images/cell0001.png  high  mono\n")
    with pytest.raises(DatasetError, match=r"labels\.csv is damaged.*'high'"):
        data.load("elpv")


def test_a_name_wins_over_a_folder_and_a_path_over_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photo_folder(tmp_path / "elpv", {"a": 1, "b": 1})
    monkeypatch.chdir(tmp_path)
    assert len(data.load("elpv")) == 2624
    for path in ("./elpv", str(tmp_path / "elpv"), "elpv/", Path("elpv")):
        assert len(data.load(path)) == 2


# --- Examples


def test_select_by_id_and_position(tmp_path: Path) -> None:
    examples = data.load(str(make_photo_folder(tmp_path, {"a": 2, "b": 2})))
    assert ids(examples.select(["b/0001.jpg", "a/0000.jpg"])) == ["b/0001.jpg", "a/0000.jpg"]
    assert ids(examples.select(np.array([3, 0]))) == ["b/0001.jpg", "a/0000.jpg"]
    assert examples.select([2]).counts == {"a": 0, "b": 1}
    assert len(examples.select([])) == 0
    for wrong in (["c/0000.jpg"], [4], [-1]):
        with pytest.raises(DatasetError, match="no example"):
            examples.select(wrong)


def test_labels_can_not_be_changed_in_place(tmp_path: Path) -> None:
    examples = data.load(str(make_photo_folder(tmp_path)))
    with pytest.raises(ValueError, match="read-only"):
        examples.labels[0] = 1


# --- promises about the package


def test_importing_costs_no_heavy_library() -> None:
    code = (
        "import sys, edgetl.data; "
        "print(sorted({'tensorflow', 'keras', 'sklearn', 'scipy', 'rich', 'pydantic'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_synthetic_classes_can_be_told_apart() -> None:
    """The helper that other tests train on: mean colours, nearest neighbour."""
    colours = np.array([[make_photo(kind, n).mean((0, 1)) for n in range(12)] for kind in range(4)])
    colours /= np.linalg.norm(colours, axis=-1, keepdims=True)
    centres = colours[:, :6].mean(1)
    guesses = (colours[:, 6:, None] @ centres.T).squeeze(2).argmax(-1)
    assert (guesses == np.arange(4)[:, None]).all()


def test_synthetic_folder_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = make_photo_folder(tmp_path / "1"), make_photo_folder(tmp_path / "2")
    assert (first / "cat/0003.jpg").read_bytes() == (second / "cat/0003.jpg").read_bytes()
    assert (first / "cat/0003.jpg").read_bytes() != (first / "cat/0004.jpg").read_bytes()
    shutil.rmtree(first)
