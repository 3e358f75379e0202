"""Copies are found among photos that look alike, and only copies."""

import dataclasses
import io
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetl.audit import copies
from edgetl.audit.looks import LOOK, Looks, look_at
from edgetl.data import Example, Examples, load


def encoded(data: bytes, factor: float, quality: int) -> bytes:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    content = io.BytesIO()
    photo.resize((int(photo.width * factor), int(photo.height * factor))).save(content, "JPEG", quality=quality)
    return content.getvalue()


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty solar cells, which look alike; some are there again."""
    root = tmp_path_factory.mktemp("cells")
    photos = [example.path for example in load("elpv").items[::65]][:40]
    for number, path in enumerate(photos):
        folder = root / ("train" if number % 2 else "test") / ("a" if number % 4 < 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / f"{number:02d}.png")
    shutil.copyfile(photos[0], root / "train" / "a" / "again.png")  # 0 is in test/a
    shutil.copyfile(photos[1], root / "train" / "b" / "other.png")  # 1 is in train/a
    (root / "train" / "a" / "small.jpg").write_bytes(encoded(photos[5].read_bytes(), 0.5, 60))  # 5 is in train/a
    (root / "train" / "a" / "large.jpg").write_bytes(encoded(photos[5].read_bytes(), 1.5, 50))
    return root


def test_groups_are_the_planted_ones_and_say_what_is_wrong_with_them(cells: Path) -> None:
    seen = look_at(load(cells))
    found = {group.members[0].id: group for group in copies.listed(seen, copies.near(seen))}
    ids = {first: [member.id for member in group.members] for first, group in found.items()}
    assert ids == {
        "test/a/00.png": ["test/a/00.png", "train/a/again.png"],
        "train/a/01.png": ["train/a/01.png", "train/b/other.png"],
        "train/a/05.png": ["train/a/05.png", "train/a/large.jpg", "train/a/small.jpg"],
    }
    told = {first: (group.exact, group.leaks, group.contradicts) for first, group in found.items()}
    assert told == {
        "test/a/00.png": (True, True, False),
        "train/a/01.png": (True, False, True),
        "train/a/05.png": (False, False, False),
    }


def test_one_of_each_group_represents_it(cells: Path) -> None:
    seen = look_at(load(cells))
    kept = copies.representatives(copies.near(seen))
    assert len(kept) == len(seen.examples) - 4
    assert len(np.unique(copies.near(seen)[kept])) == len(kept)


def test_photos_without_content_are_not_copies_of_one_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for level in (10, 240):
            Image.new("RGB", (40, 40), (level, level, level)).save(tmp_path / name / f"{name}{level}.bmp")
    seen = look_at(load(tmp_path))
    # Byte for byte they are: two of each level.
    assert len(copies.groups(copies.near(seen))) == 2
    assert len(copies.groups(copies.exact(seen))) == 2


def test_the_same_pattern_in_another_colour_is_no_copy(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(40, 200, (12, 12)).repeat(20, 0).repeat(20, 1).astype(np.float32)
    for name, tint in (("a", (1.0, 0.9, 0.7)), ("b", (0.7, 1.0, 1.0))):
        (tmp_path / name).mkdir()
        tinted = np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)
        Image.fromarray(tinted).save(tmp_path / name / "x.png")
    seen = look_at(load(tmp_path))
    assert copies.groups(copies.near(seen)) == []


def synthetic(count: int, rng: np.random.Generator) -> Looks:
    """Rows without photos: random hashes and thumbnails."""
    rows = np.zeros(count, LOOK)
    rows["hash"] = rng.integers(0, 2**63, count, dtype=np.uint64)
    rows["thumbnail"] = rng.integers(0, 256, rows["thumbnail"].shape)
    rows["deviation"] = 50
    rows["sha256"] = rng.integers(0, 256, rows["sha256"].shape)
    items = tuple(Example(f"{n:06d}", Path(os.devnull), 0) for n in range(count))
    return Looks(Examples("synthetic", Path("/"), ("a", "b"), items), rows, ())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 60).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    ),
    st.integers(1, 7),
)
def test_groups_are_those_that_copying_made(case: tuple[int, list[tuple[int, int]]], block: int) -> None:
    count, made = case
    seen = synthetic(count, np.random.default_rng(count))
    expected = np.arange(count)
    for original, copy in made:  # a chain of copies ends as one group
        for field in ("hash", "thumbnail"):
            seen.rows[field][copy] = seen.rows[field][original]
        expected[copy] = expected[original]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "_BLOCK", block)
        number = copies.near(seen)
    assert np.array_equal(number[:, None] == number[None], expected[:, None] == expected[None])


def test_frames_of_one_film_are_one_group_in_little_memory() -> None:
    # 3,000 photos have 4.5e6 pairs, whose thumbnails as float32 would be 9 GB.
    seen = synthetic(3000, np.random.default_rng(0))
    seen = dataclasses.replace(seen, rows=seen.rows[np.zeros(3000, int)])
    seen.rows["sha256"][:, :2] = np.arange(3000)[:, None] >> np.array([0, 8]) & 255  # none is an exact copy
    tracemalloc.start()
    number = copies.near(seen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(number)) == 1
    assert peak < 600e6  # 65,536 pairs at a time: 134 MB of thumbnails, thrice while they are compared


def test_hash_distance_limit_is_used() -> None:
    seen = synthetic(3, np.random.default_rng(1))
    for field in ("thumbnail", "sha256"):
        seen.rows[field][:] = seen.rows[field][0]
    seen.rows["sha256"][:, 0] = range(3)
    seen.rows["hash"][:] = [0, 2**copies.MAX_BITS - 1, 2 ** (2 * copies.MAX_BITS + 1) - 1]
    number = copies.near(seen)
    assert number[0] == number[1] != number[2]
