"""What every recipe refuses before it learns, and the list of exclusions."""

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import make_photo_folder
from PIL import Image

from edgetl.audit import exclusion, gate, looks
from edgetl.audit.exclusion import Row
from edgetl.audit.findings import Copy, CopyGroup
from edgetl.data import Example, Examples, load, split
from edgetl.errors import ConfigError, DatasetError
from recipes import experiment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos in given splits, none twice."""
    root = tmp_path / "photos"
    for seed, part in enumerate(("train", "validation", "test")):
        make_photo_folder(root / part, {"cat": 4, "dog": 4}, seed=seed)
    return root


def copy(root: Path, source: str, target: str) -> None:
    shutil.copyfile(root / source, root / target)


def reencode(root: Path, source: str, target: str) -> None:
    Image.open(root / source).save(root / target, quality=80)
    assert (root / source).read_bytes() != (root / target).read_bytes()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that were decoded to be looked at."""
    sizes: list[int] = []
    look = looks.look

    def counted(data: bytes) -> np.ndarray:
        sizes.append(len(data))
        return look(data)

    monkeypatch.setattr(looks, "look", counted)
    return sizes


def test_data_without_copies_is_admitted_as_it_is(folder: Path) -> None:
    examples = load(folder)
    assert gate.admit(examples) == examples


def test_a_photo_in_two_splits_is_refused_by_name_and_allowed_on_request(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy(folder, "test/cat/0001.jpg", "train/cat/copy.jpg")
    with pytest.raises(DatasetError, match="in more than one split") as caught:
        gate.admit(load(folder))
    for part in ("test/cat/0001.jpg", "train/cat/copy.jpg", "--exclude", "--allow-leakage"):
        assert part in str(caught.value)
    with caplog.at_level("WARNING", logger="edgetl"):
        assert gate.admit(load(folder), allow_leakage=True).items == load(folder).items
    assert "train/cat/copy.jpg" in caplog.text


def test_a_photo_with_two_labels_is_refused(folder: Path) -> None:
    copy(folder, "train/cat/0001.jpg", "train/dog/copy.jpg")
    with pytest.raises(DatasetError, match=r"different labels.*train/cat/0001.jpg = train/dog/copy.jpg"):
        gate.admit(load(folder))


def test_a_near_copy_in_another_split_is_refused_by_name_allowed_or_excluded(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reencode(folder, "test/cat/0001.jpg", "train/cat/again.jpg")
    copy(folder, "train/cat/again.jpg", "train/cat/exact.jpg")  # three of one: one of each split is named
    with pytest.raises(DatasetError, match=r"1 photo.*in more than one split, all but equal") as caught:
        gate.admit(load(folder))
    for part in ("test/cat/0001.jpg = train/cat/again.jpg.", "--exclude", "--allow-leakage"):
        assert part in str(caught.value)
    with caplog.at_level("WARNING", logger="edgetl"):
        admitted = gate.admit(load(folder), allow_leakage=True)
    assert len(admitted) == 26
    assert "all but equal: test/cat/0001.jpg = train/cat/again.jpg; allowed" in caplog.text
    listed = tmp_path / "exclude.csv"
    listed.write_text("id,action\ntest/cat/0001.jpg,exclude\n")
    assert len(gate.admit(load(folder), listed)) == 25


def test_near_copies_with_different_labels_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reencode(folder, "train/cat/0001.jpg", "train/dog/again.jpg")
    with caplog.at_level("WARNING", logger="edgetl"):
        assert gate.admit(load(folder)).items == load(folder).items
    (line,) = caplog.messages
    assert "1 photo(s) are there with different labels, all but equal: train/cat/0001.jpg = train/dog/again.jpg" in line
    assert "recipes.audit" in line


@pytest.mark.parametrize("splits", [(None,), ("train",)])
def test_data_that_brings_no_two_splits_pays_no_pass(
    tmp_path: Path, looked: list[int], splits: tuple[str | None, ...]
) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 4, "dog": 4})
    reencode(root, "cat/0001.jpg", "cat/again.jpg")
    examples = load(root)
    examples = examples.with_items([dataclasses.replace(e, split=splits[0]) for e in examples])  # type: ignore[arg-type]
    assert gate.admit(examples, cache=tmp_path / "cache") == examples
    assert looked == []
    assert not (tmp_path / "cache").exists()


def test_the_pass_is_stored_whatever_is_excluded_and_recipes_and_audit_share_it(
    folder: Path, tmp_path: Path, looked: list[int]
) -> None:
    from recipes import audit, feature_extraction

    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"no photo")  # the limit for these is not the gate's
    config = feature_extraction.Config(str(folder), tmp_path / "run", cache=tmp_path / "cache")
    assert len(experiment.load_examples(config)) == len(looked) == 25
    listed = tmp_path / "exclude.csv"
    listed.write_text("id,action\ntest/cat/0001.jpg,exclude\n")
    assert len(experiment.load_examples(dataclasses.replace(config, exclude=listed))) == 24
    asked = audit.Config(str(folder), tmp_path / "audit", cache=config.cache, exclude=listed, features=False)
    found = audit.main(asked).audit
    assert [(each.id, each.kind) for each in found.findings] == [("train/cat/broken.jpg", "unreadable")]
    assert len(looked) == 25
    reencode(folder, "test/cat/0001.jpg", "train/cat/0001.jpg")  # photos that change are looked at again
    with pytest.raises(DatasetError, match="all but equal"):
        experiment.load_examples(config)
    assert len(looked) == 50


def test_files_of_equal_size_or_without_content_are_no_copies(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "cat" / "empty.jpg").write_bytes(b"")
        (folder / part / "cat" / "other.jpg").write_bytes(part.ljust(5).encode() * 9)
    assert gate.exact_copies(load(folder)) == []


def test_where_edgetl_divides_copies_stay_on_one_side(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 30, "dog": 30})
    for number in range(30):
        copy(root, f"cat/{number:04d}.jpg", f"cat/copy{number}.jpg")
    admitted = gate.admit(load(root))
    for seed in range(3):
        parts = split(admitted, seed=seed)
        sides = [{item.path.read_bytes() for item in part} for part in (parts.train, parts.validation, parts.test)]
        assert sum(map(len, sides)) == 60 == len(set.union(*sides))


def test_copies_join_the_groups_that_they_have_been_in(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 6, "dog": 6})
    for target in ("a.jpg", "b.jpg"):
        copy(root, "cat/0000.jpg", f"cat/{target}")
    groups = {"cat/0000.jpg": "monday", "cat/a.jpg": "tuesday", "cat/0001.jpg": "tuesday", "cat/0002.jpg": "monday"}
    examples = load(root)
    examples = examples.with_items([dataclasses.replace(e, group=groups.get(e.id, "")) for e in examples])
    joined = {e.id: e.group for e in gate.admit(examples)}
    together = {joined[id_] for id_ in (*groups, "cat/b.jpg")}
    assert len(together) == 1
    assert together != {""}
    assert joined["dog/0000.jpg"] == ""


rows = st.builds(
    Row,
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1),
    st.sampled_from(["exclude", "keep"]),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0")),
    st.just("a,b;c"),
)


@given(st.lists(rows))
def test_a_list_comes_back_as_it_was_written(written: list[Row]) -> None:
    items = tuple(Example(id_, Path("/x"), 0) for id_ in sorted({row.id for row in written}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exclude.csv"
        path.write_bytes(exclusion.to_csv(written).encode())
        assert exclusion.read(path, Examples("x", Path("/"), ("a", "b"), items)) == written


def test_what_a_list_excludes_is_left_out_and_what_it_keeps_stays(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.csv"
    listed.write_text(
        "\ufeffid;action;reason;detail\n"  # as a spreadsheet saves it
        "train/cat/0000.jpg;Exclude;dark;\n"
        "train/cat/0001.jpg;keep;dark;\n"
        "train/cat/0002.jpg;keep;dark;\n"
        "train/cat/0002.jpg;exclude;label;\n",
        encoding="utf-8",
    )
    left = {example.id for example in load(folder)} - {example.id for example in gate.admit(load(folder), listed)}
    assert left == {"train/cat/0000.jpg", "train/cat/0002.jpg"}


def test_a_leak_that_is_excluded_stops_nothing(folder: Path, tmp_path: Path) -> None:
    copy(folder, "test/cat/0001.jpg", "train/cat/copy.jpg")
    listed = tmp_path / "exclude.csv"
    listed.write_text("id,action\ntrain/cat/copy.jpg,exclude\n")
    assert len(gate.admit(load(folder), listed)) == 24


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"line 1 has columns \(none\), expected id,action"),
        ("id,reason\n", "line 1 has columns id,reason"),
        ("id,action,colour\n", "line 1 has columns id,action,colour"),
        ("id,action\ntrain/cat/0000.jpg,keep\nnobody.jpg,exclude\n", "line 3: .* has no photo 'nobody.jpg'"),
        ("id,action\ntrain/cat/0000.jpg,drop\n", "line 2: action is 'drop', expected exclude or keep"),
        ("id,action\ntrain/cat/0000.jpg\n", "line 2 has more or fewer cells"),
        ("id,action\ntrain/cat/0000.jpg,keep,1,2\n", "line 2 has more or fewer cells"),
        (None, "No such file"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused_with_its_line(
    folder: Path, tmp_path: Path, text: str | None, expected: str
) -> None:
    listed = tmp_path / "exclude.csv"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        exclusion.read(listed, load(folder))


def proposed(labels: list[str]) -> list[Row]:
    """What is proposed for near copies with these labels."""
    members = [Copy(f"{n:04d}.jpg", "train", label, f"{n:04d}.jpg") for n, label in enumerate(labels)]
    return list(exclusion._of_copies(CopyGroup(tuple(members))))


def test_near_copies_whose_labels_contradict_are_all_proposed_for_exclusion() -> None:
    rows = proposed(["cat", "cat", "dog"])
    assert [(row.id, row.action, row.reason) for row in rows] == [
        (f"000{n}.jpg", "exclude", "contradiction") for n in range(3)
    ]
    assert {row.detail for row in rows} == {"0000.jpg: cat, 0002.jpg: dog"}
    assert [(row.id, row.reason) for row in proposed(["cat", "cat"])] == [("0001.jpg", "near_copy")]


def test_a_film_with_a_value_for_every_frame_stays_a_short_list() -> None:
    rows = proposed([str(n) for n in range(3000)])
    assert len(rows) == 3000
    assert max(len(row.detail) for row in rows) < 100


def test_bytes_that_are_no_text_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "exclude.csv").write_bytes(b"id,action\n\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        exclusion.read(tmp_path / "exclude.csv", load(folder))


def test_a_recipe_refuses_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    copy(folder, "test/cat/0001.jpg", "train/cat/copy.jpg")
    done = subprocess.run(
        [sys.executable, "-m", "recipes.feature_extraction", "--data", folder, "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "train/cat/copy.jpg" in done.stderr
    assert not (tmp_path / "run").exists()
