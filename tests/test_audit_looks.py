"""One pass over the photos, and what stands out by it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from photos import make_photo, make_photo_folder
from PIL import Image, ImageFilter

from edgetl.audit import looks, quality
from edgetl.data import load
from edgetl.errors import UnreadableImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_photo_folder(tmp_path / "photos", {"cat": 10, "dog": 10}, size=(160, 120))


def kinds(folder: Path) -> dict[str, str]:
    """Id -> kind of what is found."""
    return {finding.id: finding.kind for finding in quality.find(looks.look_at(load(folder)))}


def save(pixels: np.ndarray, path: Path, **options: object) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)


def test_photos_without_fault_are_not_named(folder: Path) -> None:
    assert kinds(folder) == {}


def test_a_look_tells_size_format_and_hash_of_the_file(folder: Path) -> None:
    seen = looks.look_at(load(folder))
    first = seen.examples.items[0]
    row = seen.rows[0]
    assert (row["width"], row["height"], row["format"], row["mode"]) == (160, 120, "JPEG", "RGB")
    assert row["bytes"] == first.path.stat().st_size
    assert row["sha256"].tobytes() == hashlib.sha256(first.path.read_bytes()).digest()


def test_rows_belong_to_the_photos_that_can_be_read(folder: Path) -> None:
    (folder / "cat" / "0000.jpg").write_bytes(b"")
    (folder / "dog" / "0003.jpg").write_bytes((folder / "dog" / "0004.jpg").read_bytes()[:500])
    seen = looks.look_at(load(folder))
    assert [failure.id for failure in seen.unreadable] == ["cat/0000.jpg", "dog/0003.jpg"]
    assert [example.path.stat().st_size for example in seen.examples] == seen.rows["bytes"].tolist()
    assert kinds(folder) == {"cat/0000.jpg": "unreadable", "dog/0003.jpg": "unreadable"}


def test_many_chunks_give_what_one_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = looks.look_at(load(folder))
    monkeypatch.setattr(looks, "SHARD_ROWS", 3)
    assert np.array_equal(looks.look_at(load(folder), workers=2).rows, whole.rows)


def test_what_was_seen_comes_back_from_the_cache_and_damaged_shards_are_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "cat" / "0000.jpg").write_bytes(b"")
    monkeypatch.setattr(looks, "SHARD_ROWS", 8)
    fresh = looks.look_at(load(folder), cache=tmp_path / "cache")
    shards = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(shards) == 3
    whole = shards[1].read_bytes()
    middle = len(whole) // 2
    other = np.zeros(8, np.float32)
    np.savez(tmp_path / "other.npz", rows=other, unreadable=np.frombuffer(b"[]", np.uint8))
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (whole, whole[:middle], b"", flipped, (tmp_path / "other.npz").read_bytes()):
        shards[1].write_bytes(damaged)
        caplog.clear()
        again = looks.look_at(load(folder), cache=tmp_path / "cache")
        assert ("damaged" in caplog.text) == (damaged != whole)
        assert again.examples == fresh.examples
        assert again.unreadable == fresh.unreadable
        assert again.rows.tobytes() == fresh.rows.tobytes()
        caplog.clear()
        looks.look_at(load(folder), cache=tmp_path / "cache")
        assert "damaged" not in caplog.text


def test_looks_of_some_photos_are_those_of_all(folder: Path) -> None:
    (folder / "cat" / "0000.jpg").write_bytes(b"")
    examples = load(folder)
    part = examples.select([*range(0, 20, 3)])
    some, alone = looks.look_at(examples).of(part), looks.look_at(part)
    assert (some.examples, some.unreadable) == (alone.examples, alone.unreadable)
    assert some.rows.tobytes() == alone.rows.tobytes()


def test_dark_bright_blank_and_blurry_photos_are_named(folder: Path) -> None:
    photo = make_photo(0, 99, (160, 120)).astype(np.float32)
    save(photo * 0.15, folder / "cat" / "dark.png")
    white = np.where(photo[..., :1] > np.median(photo[..., 0]), 255, 244).repeat(3, 2)
    save(white, folder / "cat" / "bright.png")
    save(np.full((120, 160, 3), 90), folder / "cat" / "blank.png")
    scene = Image.fromarray(make_photo(1, 99, (160, 120))).filter(ImageFilter.GaussianBlur(5))
    wide = np.asarray(scene) * 0.5 + np.linspace(0, 120, 160)[None, :, None]  # contrast, but no edge
    save(wide, folder / "cat" / "blurry.png")
    assert kinds(folder) == {f"cat/{kind}.png": kind for kind in ("bright", "dark", "blank", "blurry")}


def test_odd_shapes_and_sizes_are_named_against_the_usual_ones(folder: Path) -> None:
    save(make_photo(0, 1, (800, 100)), folder / "cat" / "wide.png")
    save(make_photo(0, 2, (32, 24)), folder / "cat" / "small.png")
    save(make_photo(0, 3, (120, 160)), folder / "cat" / "upright.png")  # turned: the same shape
    assert kinds(folder) == {"cat/wide.png": "odd_aspect", "cat/small.png": "odd_size"}


def test_files_that_are_not_what_they_are_called_are_named(folder: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(make_photo(0, 1, (160, 120))).save(content, "JPEG")
    (folder / "cat" / "called.png").write_bytes(content.getvalue())
    frames = [Image.fromarray(make_photo(0, n, (160, 120))) for n in range(3)]
    frames[0].save(folder / "dog" / "moving.webp", save_all=True, append_images=frames[1:])
    found = {f.id: f.detail for f in quality.find(looks.look_at(load(folder))) if f.kind == "odd_file"}
    assert found == {
        "cat/called.png": "called .png, holds JPEG",
        "dog/moving.webp": "3 frames, of which the first is used",
    }


def test_frames_that_are_broken_behind_the_first_stop_nothing(folder: Path) -> None:
    frames = [Image.fromarray(make_photo(0, n, (160, 120))) for n in range(3)]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    told = set()
    for end in range(len(content.getvalue()) - 1, 0, -97):
        try:
            told.add(int(looks.look(content.getvalue()[:end])["frames"]))
        except UnreadableImageError:
            break
    assert {0, 2} <= told, "cut within a frame, and between two"


def test_a_colour_mode_is_odd_only_where_it_is_rare(folder: Path) -> None:
    for number in range(11):  # a third of the photos, then
        save(make_photo(0, number, (160, 120))[..., 0], folder / "cat" / f"grey{number}.png")
    assert kinds(folder) == {}
    for path in sorted(folder.glob("cat/grey*"))[1:]:
        path.unlink()
    assert kinds(folder) == {"cat/grey0.png": "odd_file"}
