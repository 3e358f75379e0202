"""Tables -> Examples: what columns mean, all ways to write them, and every complaint with its line."""

import csv
import io
import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import data
from edgetl.config import command
from edgetl.data import Examples
from edgetl.errors import DatasetError
from recipes import feature_extraction

PHOTOS = ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Empty files: loading opens no photo."""
    for file in PHOTOS:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def load(root: Path, text: str | bytes, name: str = "m.csv", **options: object) -> Examples:
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return data.load(str(root / name), **options)  # type: ignore[arg-type]


def lines(*cells: str, header: str) -> str:
    """A table with one row for each photo."""
    rows = [f"{photo},{cell}" for photo, cell in zip(PHOTOS, cells, strict=False)]
    return "\n".join([header, *rows]) + "\n"


CLASSES = lines("cat", "dog", "cat", "dog", header="path,label")


def labels(examples: Examples) -> list[str]:
    return [examples.label_text(item) for item in examples]


# --- what columns mean


def test_every_column_has_its_meaning(root: Path) -> None:
    text = "site,path,label,split,group,weight,id\n"
    text += "north,b/3.jpg,dog,val,g1,2.5,7\nsouth,a/1.jpg,cat,,g2,,8\nsouth,a/2.jpg,dog,Training,,1,9\n"
    text += "north,b/4.jpg,cat,test,g3,1,10\n"
    examples = load(root, text)
    assert (examples.task, examples.output_names, examples.root) == ("classification", ("cat", "dog"), root)
    assert examples.columns == ("site", "id_")  # splits.csv has an id of its own
    told = {item.id: (item.label, item.split, item.group, item.weight, item.values) for item in examples}
    assert told == {
        "a/1.jpg": (0, None, "g2", 1.0, ("south", "8")),
        "a/2.jpg": (1, "train", "", 1.0, ("south", "9")),
        "b/3.jpg": (1, "validation", "g1", 2.5, ("north", "7")),
        "b/4.jpg": (0, "test", "g3", 1.0, ("north", "10")),
    }
    assert examples.location == str((root / "m.csv").resolve())
    assert data.locate(examples.location) == root


def test_columns_tell_the_task(root: Path) -> None:
    several = load(root, lines("red|round", "", "round| red ", "blue", header="path,labels"))
    assert (several.task, several.output_names) == ("multi_label", ("blue", "red", "round"))
    assert labels(several) == ["red|round", "", "red|round", "blue"]
    numbers = load(root, lines("1,-2e3", "0.5,4", "2,4", "3,4", header="path,target_length,target_width"))
    assert (numbers.task, numbers.output_names) == ("regression", ("target_length", "target_width"))
    assert numbers.labels.tolist() == [[1, -2000], [0.5, 4], [2, 4], [3, 4]]


def test_options_name_columns(root: Path) -> None:
    text = lines("cat,1,north", "dog,2,south", "cat,3,north", "dog,4,south", header="path,species,mm,site")
    by_name = load(root, text, label="species", group="site")
    assert (by_name.task, by_name.output_names, by_name.columns) == ("classification", ("cat", "dog"), ("mm", "site"))
    assert [item.group for item in by_name] == ["north", "south", "north", "south"]
    sized = load(root, text, targets=["mm"])
    assert (sized.task, sized.output_names, sized.columns) == ("regression", ("mm",), ("species", "site"))
    assert load(root, text, label="mm", task="ordinal").output_names == ("1", "2", "3", "4")
    assert load(root, CLASSES, task="multi_label").labels.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    both = lines("cat,1", "dog,2", "cat,3", "dog,4", header="path,label,target")
    assert load(root, both, task="classification").columns == ("target",)
    assert load(root, both, task="regression").columns == ("label_",)


def test_orders_of_classes(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    def order(*names: str, given: tuple[str, ...] = ()) -> tuple[str, ...]:
        return load(root, lines(*names, header="path,label"), task="ordinal", class_order=given).output_names

    assert order("10", "9", "-1", "9.5") == ("-1", "9", "9.5", "10")
    assert order("grade 10", "grade 9", "grade 1", "grade 9") == ("grade 1", "grade 9", "grade 10")
    with caplog.at_level(logging.INFO, "edgetl"):
        assert order("mild", "none", "bad", "mild", given=("none", "mild", "bad")) == ("none", "mild", "bad")
    assert "the order of the classes is none < mild < bad" in caplog.text
    given = load(root, CLASSES, class_order=("dog", "cat"))  # an order tells the task
    assert (given.task, given.labels.tolist()) == ("ordinal", [1, 0, 1, 0])
    for wrong in (("cat",), ("cat", "dog", "dog"), ("cat", "bird")):
        with pytest.raises(DatasetError, match=r"the classes are cat, dog\. Name each of them once"):
            load(root, CLASSES, task="ordinal", class_order=wrong)


# --- all ways to write a table


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_spreadsheets_write_all_of_these(root: Path, mark: str, ending: str, bom: bytes) -> None:
    padded = CLASSES.replace(",", mark) + mark + "\n\n"
    examples = load(root, bom + padded.replace("\n", ending).encode())
    assert labels(examples) == ["cat", "dog", "cat", "dog"]


def test_json_lines(root: Path) -> None:
    records = [
        {"file_name": "a/1.jpg", "labels": ["x", "y"], "site": "north", "size": 3, "ok": True},
        {"file_name": "a/2.jpg", "labels": []},
        {"file_name": "b/3.jpg", "labels": "y", "site": None, "box": [1, 2]},
        {"file_name": "b/4.jpg", "labels": ["x"], "more": {"a": 1}},
    ]
    examples = load(root, "\n".join(map(json.dumps, records)) + "\n\n", "m.jsonl")
    assert labels(examples) == ["x|y", "", "y", "x"]
    assert examples.columns == ("site", "size", "ok", "box", "more")
    assert [item.values for item in examples][:2] == [("north", "3", "true", "", ""), ("", "", "", "", "")]
    assert [item.values[3:] for item in examples][2:] == [("1|2", ""), ("", '{"a": 1}')]
    numbers = "".join(f'{{"path": "{photo}", "target": {n / 3}}}\n' for n, photo in enumerate(PHOTOS))
    assert [item.label for item in load(root, numbers, "n.jsonl")] == [(n / 3,) for n in range(4)]


def test_names_with_separators_and_paths_in_other_forms(root: Path) -> None:
    (root / "c, d.jpg").touch()
    text = f'path,label\n{root}/a/1.jpg,"x, ""y"""\na/../b/./3.jpg,z\n"c, d.jpg",猫\n'
    examples = load(root, text)
    assert [item.id for item in examples] == ["a/1.jpg", "b/3.jpg", "c, d.jpg"]
    assert examples.output_names == ('x, "y"', "z", "猫")


def test_hugging_face_folders(root: Path) -> None:
    (root / "metadata.csv").write_text(CLASSES.replace("path", "file_name"))
    whole = data.load(str(root))
    assert (labels(whole), whole.location) == (["cat", "dog", "cat", "dog"], str(root.resolve()))
    assert {item.split for item in whole} == {None}
    (root / "metadata.csv").unlink()
    (root / "a").rename(root / "train")
    (root / "b").rename(root / "test")
    (root / "train/metadata.csv").write_text("file_name,label,site\n1.jpg,cat,n\n2.jpg,dog,s\n")
    with pytest.raises(DatasetError, match=r"test: no metadata\.csv, other splits have one"):
        data.load(str(root))
    (root / "test/metadata.jsonl").write_text('{"label": "dog", "file_name": "3.jpg"}\n')
    parts = data.load(str(root))
    told = {item.id: (parts.label_text(item), item.split, item.values) for item in parts}
    assert told == {
        "test/3.jpg": ("dog", "test", ("",)),
        "train/1.jpg": ("cat", "train", ("n",)),
        "train/2.jpg": ("dog", "train", ("s",)),
    }
    for file in (root / "train/metadata.csv", root / "test/metadata.jsonl"):
        file.unlink()
    (root / "metadata.csv").write_text("file_name,label\ntrain/1.jpg,cat\ntrain/2.jpg,dog\ntest/3.jpg,dog\n")
    assert [item.split for item in data.load(str(root))] == ["test", "train", "train"]


# --- complaints


MISSING = "m.csv: 1 photo(s) are missing, the first: {root}/m.csv: line 6: "
BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "m.csv: empty. Write"),
    "header only": ("path,label\n\n", "m.csv: no row below the header"),
    "latin-1": (CLASSES.replace("cat", "käse").encode("latin-1"), "m.csv: line 2: byte b'\\xe4' is not UTF-8"),
    "utf-16": (CLASSES.encode("utf-16"), "m.csv: UTF-16 or binary, need UTF-8"),
    "open quote": ('path,label\na/1.jpg,"cat\n', "m.csv: line 2: unexpected end of data"),
    "column twice": ("path,label,label\na/1.jpg,cat,cat\n", "m.csv: line 1: column label twice"),
    "wide": (f"path,label,{',' * 1000}\na/1.jpg,cat\n", "m.csv: line 1: 1003 columns, at most 1000"),
    "long heading": (f"path,label,{'x' * 200_000}\na/1.jpg,cat\n", "m.csv: line 1: field larger"),
    "cell too many": (CLASSES + "a/1.jpg,cat,dog\n", "m.csv: line 6: 3 cells, the header has 2"),
    "no path": ("paht,label\na/1.jpg,cat\n", "m.csv: no column path (or file_name). It has paht, label. Did"),
    "no label": ("path,lable\na/1.jpg,cat\n", "m.csv: no column label, labels or target. It has path, lable. Did"),
    "two tasks": ("path,label,target\n", "m.csv: no row"),
    "which task": (
        lines("cat,1", "dog,2", header="path,label,target"),
        "m.csv: columns for more than one task: label, target. Say which: --task classification or --task regression",
    ),
    "empty path": (CLASSES + ",cat\n", "m.csv: line 6: no path"),
    "outside": (CLASSES + "../x.jpg,cat\n", "m.csv: line 6: ../x.jpg lies outside"),
    "absolute": (CLASSES + "/etc/hostname,cat\n", "m.csv: line 6: /etc/hostname lies outside"),
    "twice": (CLASSES + "b/../a/1.jpg,cat\n", "m.csv: line 6: a/1.jpg is in {root}/m.csv: line 2 already"),
    "missing": (CLASSES + "a/8.jpg,cat\na/9.jpg,dog\n", MISSING.replace("1 photo", "2 photo") + "a/8.jpg. Paths"),
    "backslash": (CLASSES + "a\\8.jpg,cat\n", MISSING + "a\\8.jpg. Write / instead"),
    "a folder": (CLASSES + "a,cat\n", MISSING + "a. Paths"),
    "no class": (CLASSES.replace("3.jpg,cat", "3.jpg,"), "m.csv: line 4: no label"),
    "bar": (CLASSES.replace("3.jpg,cat", "3.jpg,a|b"), "m.csv: line 4: '|' in 'a|b' stands between labels"),
    "one class": (CLASSES.replace("dog", "cat"), "m.csv: column label has 1 classes (cat), need at least 2"),
    "no labels at all": (lines("", "", header="path,labels"), "m.csv: column labels has 0 label ()"),
    "control": (CLASSES.replace("3.jpg,cat", '3.jpg,"c\nt"'), "m.csv: line 5: label 'c\\nt' has a control"),
    "unknown split": (
        lines("cat,train", "dog,holdout", header="path,label,split"),
        "m.csv: line 3: unknown split 'holdout'. Write train, validation or test",
    ),
    "no train": (lines("cat,test", "dog,val", header="path,label,split"), "m.csv: no row is in train"),
    "unknown in test": (
        lines("cat,train", "dog,train", "bird,test", header="path,label,split"),
        "m.csv: line 4: 'bird' is in test, but in no row of train",
    ),
    "unknown label in test": (
        lines("x|y,train", "y,train", "x|z,test", header="path,labels,split"),
        "m.csv: line 4: 'z' is in test, but in no row of train",
    ),
    "nan": (lines("1", "nan", header="path,target"), "m.csv: line 3: target: 'nan' is no finite number"),
    "inf": (lines("1", "-inf", header="path,target"), "m.csv: line 3: target: '-inf' is no finite"),
    "too large": (lines("1", "1e39", header="path,target"), "m.csv: line 3: target: '1e39' is no finite"),
    "text": (lines("1", "2,5 mm", header="path,target,target_2"), "m.csv: line 2: 2 cells"),
    "comma": ("path;target\na/1.jpg;2,5\n", "m.csv: line 2: target: '2,5' is no finite number. Write one such as 3.5"),
    "empty target": (lines("1", "", header="path,target"), "m.csv: line 3: target: '' is no finite"),
    "constant": (lines("1", "1.0", header="path,target"), "m.csv: target is 1.0 in every row: nothing to learn"),
    "weight 0": (lines("cat,0", header="path,label,weight"), "m.csv: line 2: weight '0', need a number above 0"),
    "weight < 0": (lines("cat,-1", header="path,label,weight"), "m.csv: line 2: weight '-1'"),
    "weight nan": (lines("cat,nan", header="path,label,weight"), "m.csv: line 2: weight 'nan'"),
    "weight inf": (lines("cat,inf", header="path,label,weight"), "m.csv: line 2: weight 'inf'"),
    "weight beyond float32": (lines("cat,1e39", header="path,label,weight"), "m.csv: line 2: weight '1e39'"),
    "weight that vanishes": (lines("cat,1e-50", header="path,label,weight"), "m.csv: line 2: weight '1e-50'"),
    "weight text": (lines("cat,big", header="path,label,weight"), "m.csv: line 2: weight 'big'"),
}


@pytest.mark.parametrize("name", BAD)
def test_complaints_name_the_line_and_the_way_out(name: str, root: Path) -> None:
    text, message = BAD[name]
    with pytest.raises(DatasetError) as caught:
        load(root, text)
    told = str(caught.value)
    assert told.startswith(f"{root}/{message.format(root=root)}")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a/1.jpg", "label": "cat"}\n{"path": "a/2.jpg",\n', "line 2: no JSON"),
        ('["a/1.jpg", "cat"]\n', "line 1: no JSON object"),
        ("\n", "empty"),
        ('{"path": "a/1.jpg", "label": ["cat", "dog"]}\n', r"line 1: '\|' in 'cat\|dog' stands between labels"),
        ('{"path": "a/1.jpg", "labels": ["c|t"]}\n', r"line 1: '\|' in 'c\|t' stands between labels"),
        ('{"path": "a/1.jpg", "target": 1}\n{"path": "a/2.jpg", "target": NaN}\n', "line 2: target: 'NaN' is no"),
        ('{"path": "a/1.jpg", "target": 1}\n{"path": "a/2.jpg"}\n', "line 2: target: '' is no"),
        ('{"path": "a/\\u0000.jpg", "label": "x"}\n', "line 1: path .* has a control"),
        ('{"path": "a/\\ud800.jpg", "label": "x"}\n', r"line 1: no JSON \(.*surrogates"),
        ('{"path": "a/1.jpg", "label": "x", "note": "\\udfff"}\n', r"line 1: no JSON \(.*surrogates"),
        ("[" * 100_000 + "\n", "line 1: no JSON"),
        ("".join(f'{{"path": "a/1.jpg", "{n}": 1}}\n' for n in range(1001)), "line 1000: 1001 columns, at most"),
        (
            json.dumps(dict.fromkeys(["path", *map(str, range(999))])) + "\n" + "{}\n" * 20_000,
            "line 10001: 10001 rows of 1000 columns, most of them empty",
        ),
    ],
)
def test_complaints_about_json_lines(text: str, message: str, root: Path) -> None:
    with pytest.raises(DatasetError, match=rf"m\.jsonl: {message}"):
        load(root, text, "m.jsonl")


def test_options_that_do_not_fit_are_refused(root: Path) -> None:
    for options, message in [
        ({"label": "spezies"}, r"no column spezies for --task classification\. It has path, label"),
        ({"label": "Label"}, r"no column Label for .* Did you mean label\? Name it by --label"),
        ({"targets": ["mm"]}, r"no column mm for --task regression\. .* Name it by --targets"),
        ({"group": "camera"}, r"m\.csv: no column camera for --group"),
        ({"task": "classification", "class_order": ("cat", "dog")}, "are for --task ordinal, not classification"),
        ({"task": "ordinal", "targets": ["label"]}, "--targets are for --task regression, not ordinal"),
    ]:
        with pytest.raises(DatasetError, match=message):
            load(root, CLASSES, **options)


def test_links_out_of_the_folder_are_refused(root: Path) -> None:
    inner = root / "inner"
    inner.mkdir()
    (inner / "in.jpg").touch()
    (inner / "also.jpg").symlink_to("in.jpg")
    assert len(load(inner, "path,label\nin.jpg,x\nalso.jpg,y\n")) == 2
    (inner / "out.jpg").symlink_to(root / "a/1.jpg")
    with pytest.raises(DatasetError, match=r"line 3: out\.jpg is a link out of"):
        load(inner, "path,label\nin.jpg,x\nout.jpg,y\n")
    (inner / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(DatasetError, match=r"missing.*line 3: loop\.jpg"):
        load(inner, "path,label\nin.jpg,x\nloop.jpg,y\n")
    (inner / "far").symlink_to(root / "a")
    with pytest.raises(DatasetError, match=r"line 3: far/1\.jpg is a link out of"):
        load(inner, "path,label\nin.jpg,x\nfar/1.jpg,y\n")


def test_what_can_not_be_divided_names_a_line(root: Path) -> None:
    """The order of the rows is not that of the examples, and an empty one counts."""
    rows = ("b/4.jpg,dog,train,x", "b/3.jpg,cat,test,y", "", "a/2.jpg,dog,train,x", "a/1.jpg,cat,train,y")
    text = "\n".join(["path,label,split,group", *rows]) + "\n"
    with pytest.raises(DatasetError, match=r"\(y; train: line 6: a/1\.jpg, test: line 3: b/3\.jpg\)"):
        data.split(load(root, text))
    with pytest.raises(DatasetError, match=r"m\.csv: cat \(see line 6: a/1\.jpg\) would be missing from"):
        data.split(load(root, text), allow_leakage=True)
    few = text.replace("test", "").replace("train", "").replace(",x", ",").replace(",y", ",")
    with pytest.raises(DatasetError, match=r"m\.csv: class cat \(see line 6: a/1\.jpg\) has 2 example\(s\), need"):
        data.split(load(root, few))
    (root / "b").rename(root / "test")
    (root / "a").rename(root / "train")
    (root / "metadata.csv").write_text("file_name,label\ntest/3.jpg,dog\ntrain/2.jpg,cat\ntrain/1.jpg,dog\n")
    with pytest.raises(DatasetError, match=r"class cat \(see line 3: train/2\.jpg\) has 0 examples in test"):
        data.split(data.load(root))


def test_a_command_ends_with_one_line_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "m.csv").write_text(CLASSES + "a/9.jpg,cat\n")
    argv = ["--data", str(root / "m.csv"), "--out", str(root / "runs/mine")]  # beside the table is fine
    status = command(feature_extraction.main, feature_extraction.Config, prog="train", argv=argv)
    assert status == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "line 6: a/9.jpg" in told[0]
    assert not (root / "runs").exists()


# --- there and back


def cells(alphabet: str = "ab,;\"'|é猫 \r\n") -> st.SearchStrategy[str]:
    return st.text(alphabet, max_size=4)


NAMES = ("x", "y, z", 'q"u', "猫")
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**100, min_value=-(2.0**100))
LABELS: dict[str, st.SearchStrategy[str]] = {
    "classification": st.sampled_from(NAMES),
    "ordinal": st.sampled_from(NAMES),
    "multi_label": st.lists(st.sampled_from(NAMES), unique=True).map(lambda names: "|".join(sorted(names))),
    "regression": FINITE.map(repr),
}


@pytest.mark.parametrize("task", LABELS)
@settings(max_examples=40, deadline=None)
@given(drawn=st.data())
def test_a_table_comes_back_from_splits(
    task: str, drawn: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("there")
    count = drawn.draw(st.integers(16, 24))
    column = {"multi_label": "labels", "regression": "target"}.get(task, "label")
    # Each name often enough for three parts, then whatever is drawn.
    sure = [*NAMES] * 4 if task != "regression" else [str(n) for n in range(16)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", column, "weight", "site"])
    weights = st.floats(1e-6, 1e6).map(repr)
    for n in range(count):
        (root / f"{n}.jpg").touch()
        label = sure[n] if n < 16 else drawn.draw(LABELS[task])
        writer.writerow([f"{n}.jpg", label, drawn.draw(weights), drawn.draw(cells())])
    examples = load(root, text.getvalue(), task=task)
    parts = data.split(examples, seed=drawn.draw(st.integers(0, 3)))
    hashes = {item.id: f"{n:064x}" for n, item in enumerate(examples)}
    again, found = data.read_csv(data.write_csv(parts, hashes), root, examples.outputs)
    assert found == hashes
    for part in ("train", "validation", "test"):
        before, after = getattr(parts, part), getattr(again, part)
        assert after.items == before.items
        assert (after.task, after.output_names, after.columns) == (task, examples.output_names, ("site",))
        assert len(before) > 0 and all(math.isfinite(item.weight) for item in before)
