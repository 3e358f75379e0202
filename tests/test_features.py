"""Features: equal to a forward pass, computed once, whole after any interruption, never those of other photos."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from photos import make_photo_folder

from edgetl import data, features, rows
from edgetl.errors import CacheError, DatasetError
from edgetl.features import Features, Forward, Scaling, extract
from edgetl.inputs import ImageInput
from edgetl.probe import fit_linear_probe
from edgetl.rows import Held, Stored
from edgetl.shards import Shard, Work, compute_alone

SPEC = ImageInput(8, 10)
KEY = {"backbone": "toy", "weights": "none"}
ROOT = Path(__file__).parent.parent


def forward(pixels: np.ndarray) -> np.ndarray:
    """Mean of each channel, and of each row of the red one."""
    values = pixels.astype(np.float32)
    return np.concatenate([values.mean(axis=(1, 2)), values[..., 0].mean(axis=2)], axis=1)


def make() -> Forward:
    """What can be sent to another process."""
    return forward


def never() -> Forward:
    raise AssertionError("there is nothing to compute")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 6}, size=(16, 12))


def run(photos: Path, make: Callable[[], Forward] = lambda: forward, **changes: object) -> Features:
    arguments = {"key": KEY, "cache": photos.parent / "cache", "workers": 2, **changes}
    spec = arguments.pop("spec", SPEC)
    return extract(data.load(photos), spec, make, **arguments)  # type: ignore[arg-type]


def shards(photos: Path) -> list[Path]:
    return sorted((photos.parent / "cache").rglob("*.npz"))


def same(a: Features, b: Features) -> bool:
    return (
        np.array_equal(a.rows.array(), b.rows.array())
        and (a.sha256, a.unreadable, a.data_sha256) == (b.sha256, b.unreadable, b.data_sha256)
        and a.examples.items == b.examples.items
    )


def test_features_are_those_of_a_direct_forward_pass(photos: Path) -> None:
    examples = data.load(photos)
    found = run(photos)
    expected = np.concatenate([forward(data.read_image(e.path, SPEC)[None]) for e in examples])
    np.testing.assert_array_equal(found.rows.array(), expected)  # the same function on the same pixels
    assert found.examples.items == examples.items
    assert found.sha256 == tuple(data.load_pixels(e, SPEC)[1] for e in examples)
    part = examples.select([7, 2])
    np.testing.assert_array_equal(found.of(part).array(), expected[[7, 2]])


def test_a_second_pass_computes_nothing(photos: Path) -> None:
    first = run(photos)
    assert len(shards(photos)) == 3
    assert same(run(photos, never, workers=1), first)


def test_many_features_stay_in_their_shards(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "cat/0001.jpg").write_bytes(b"no photo")
    few = run(photos, max_unreadable=0.1)
    monkeypatch.setattr(rows, "HELD_BYTES", 10 * 11 * 4 - 1)  # 10 photos of 11 float32 numbers
    for many in (run(photos, never, max_unreadable=0.1), run(photos, cache=photos.parent / "2", max_unreadable=0.1)):
        assert isinstance(few.rows, Held) and isinstance(many.rows, Stored)
        assert same(many, few)
        part = few.examples.select([8, 2, 5])
        np.testing.assert_array_equal(many.of(part).array(), few.of(part).array())
        assert len(many.rows[np.arange(10)[::-1]].array()) == 10
    monkeypatch.setattr(rows, "HELD_BYTES", 10 * 11 * 4)
    assert isinstance(run(photos, never, max_unreadable=0.1).rows, Held)


def test_a_shard_that_is_lost_between_pass_and_training_costs_that_shard(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(photos)
    monkeypatch.setattr(rows, "HELD_BYTES", 0)
    many, lost = run(photos, never), shards(photos)[1]
    lost.unlink()
    with pytest.raises(CacheError, match=rf"{lost.name}: features are gone since .*, or this is another machine"):
        fit_linear_probe(many.rows, np.arange(11) % 2, many.rows, np.arange(11) % 2)
    calls: list[int] = []

    def count(pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        return forward(pixels)

    assert same(run(photos, lambda: count), expected)
    assert len(calls) in (3, 4), "one shard of eleven photos"


def test_shards_can_be_computed_elsewhere_and_come_in_any_order(photos: Path, tmp_path: Path) -> None:
    expected = run(photos, cache=tmp_path / "other")
    done: list[int] = []

    def elsewhere(work: Sequence[Work], advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            contents = list(pool.map(compute_alone, work, [make] * len(work), [1] * len(work)))
        for each, content in reversed(list(zip(work, contents, strict=True))):
            done.append(each.start)
            advance(len(each.items))
            yield each.start, content

    assert same(run(photos, never, compute=elsewhere), expected)
    assert done == [8, 4, 0]
    assert same(run(photos, never), expected)


@pytest.mark.parametrize("after", [0, 3, 6, 10])
def test_an_interrupted_pass_keeps_its_shards_and_resumes(photos: Path, after: int, tmp_path: Path) -> None:
    expected = run(photos, cache=tmp_path / "other")
    calls: list[int] = []

    def interrupted(pixels: np.ndarray) -> np.ndarray:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return forward(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(photos, lambda: interrupted, workers=1)
    assert len(shards(photos)) == after // 4
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".npz"]
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    (folder / ".0123abcd.npz.k2j3h4_9.edgetl-part").write_bytes(b"half")  # as a kill leaves it
    counted: list[int] = []

    def count(pixels: np.ndarray) -> np.ndarray:
        counted.append(1)
        return forward(pixels)

    assert same(run(photos, lambda: count), expected)
    assert len(counted) == 11 - 4 * (after // 4)
    assert len(list(folder.iterdir())) == 3


def test_an_error_in_a_worker_is_the_error_of_the_pass(photos: Path) -> None:
    def broken(pixels: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(photos, lambda: broken)
    assert not shards(photos)


def test_any_flipped_byte_of_a_shard_is_found_or_harmless(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(photos)
    shard = shards(photos)[1]
    whole = shard.read_bytes()
    good = Shard.read(shard)
    assert good is not None
    recomputed = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        shard.write_bytes(damaged)
        found = Shard.read(shard)
        recomputed += found is None
        # A flipped date in a zip header, say, changes nothing.
        assert found is None or (np.array_equal(found.values, good.values) and found.sha256 == good.sha256), position
        assert found is None or (np.array_equal(found.readable, good.readable) and found.unreadable == good.unreadable)
    assert recomputed > len(whole) / 9  # a third of those tried: values, hashes, and headers of the arrays
    damaged = bytearray(whole)
    damaged[whole.index(good.values.tobytes())] ^= 1
    shard.write_bytes(damaged)
    caplog.clear()
    assert same(run(photos), expected)
    assert "damaged and will be computed again" in caplog.text
    assert same(run(photos, never), expected)


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, -1])
def test_a_truncated_shard_is_computed_again(photos: Path, keep: float) -> None:
    expected = run(photos)
    shard = shards(photos)[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else int(keep)])
    assert same(run(photos), expected)
    assert shard.read_bytes() == whole


def test_a_changed_photo_is_computed_anew(photos: Path) -> None:
    first = run(photos)
    changed = photos / "cat/0002.jpg"
    shutil.copyfile(photos / "dog/0001.jpg", changed)
    os.utime(changed, ns=(1, 1))
    second = run(photos)
    place = [e.id for e in second.examples].index("cat/0002.jpg")
    other = [e.id for e in second.examples].index("dog/0001.jpg")
    np.testing.assert_array_equal(second.rows.array()[place], first.rows.array()[other])
    assert second.sha256[place] == first.sha256[other]
    assert second.data_sha256 != first.data_sha256


@pytest.mark.parametrize(
    "change",
    [
        {"spec": ImageInput(8, 12)},
        {"spec": ImageInput(8, 10, "crop")},
        {"key": {**KEY, "backbone": "other"}},
        {"key": {**KEY, "weights": "sha256:1"}},
    ],
)
def test_another_spec_backbone_or_weights_miss_the_cache(photos: Path, change: dict[str, object]) -> None:
    run(photos)
    with pytest.raises(AssertionError, match="nothing to compute"):
        run(photos, never, **change)


def test_the_same_content_under_another_class_is_other_data(photos: Path) -> None:
    before = run(photos)
    (photos / "cat").rename(photos / "ape")
    after = run(photos)
    assert sorted(after.sha256) == sorted(before.sha256)
    assert after.data_sha256 != before.data_sha256


def test_unreadable_photos_are_left_out_and_listed(photos: Path) -> None:
    whole = run(photos)
    (photos / "cat/0001.jpg").write_bytes(b"no photo")
    found = run(photos, max_unreadable=0.1)
    assert [u.id for u in found.unreadable] == ["cat/0001.jpg"]
    assert "cat/0001.jpg" not in [e.id for e in found.examples]
    np.testing.assert_array_equal(found.rows.array(), np.delete(whole.rows.array(), 1, axis=0))
    assert same(run(photos, never, max_unreadable=0.1), found)


def test_too_many_unreadable_photos_stop_the_pass_early(photos: Path) -> None:
    for number in range(3):
        (photos / f"cat/000{number}.jpg").write_bytes(b"no photo")
    with pytest.raises(DatasetError, match=r"3 of 11 files can't be read, more than 20.0%: cat/0000\.jpg: "):
        run(photos, max_unreadable=0.2)
    assert len(shards(photos)) == 1
    with pytest.raises(DatasetError, match="3 of 11"):
        run(photos, max_unreadable=0.2)


def test_a_shard_without_any_readable_photo(photos: Path) -> None:
    for number in range(4):
        (photos / f"cat/000{number}.jpg").write_bytes(b"no photo")
    found = run(photos, max_unreadable=0.5)
    assert found.rows.array().shape == (7, 11)
    assert same(run(photos, never, max_unreadable=0.5), found)


def test_two_threads_fill_one_cache(photos: Path, tmp_path: Path) -> None:
    expected = run(photos, cache=tmp_path / "other")
    meet = threading.Barrier(2, timeout=60)

    def make() -> Forward:
        meet.wait()  # both have seen an empty cache
        return forward

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run(photos, make), range(2)))
    assert all(same(result, expected) for result in results)
    assert same(run(photos, never), expected)


def test_two_processes_fill_one_cache(photos: Path, tmp_path: Path) -> None:
    expected = run(photos, cache=tmp_path / "other")
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from edgetl import features; features.SHARD_ROWS = 4\n"
        "from test_features import *\n"
        "def make():\n"
        "    print('empty', flush=True); sys.stdin.readline()\n"
        "    return forward\n"
        "print(run(Path(sys.argv[1]), make).data_sha256, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(photos)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    for process in both:
        assert process.stdout and process.stdout.readline() == "empty\n"
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        assert process.communicate()[0] == f"{expected.data_sha256}\n"
        assert process.returncode == 0
    assert same(run(photos, never), expected)


# --- scaling --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(2, 20), st.integers(1, 6)), elements=st.floats(-100, 100, width=32)),
    st.integers(0, 2**32 - 1),
)
def test_a_folded_layer_equals_the_scaled_one(values: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    kernel, bias = random.normal(size=(values.shape[1], 3)), random.normal(size=3)
    scaling = Scaling.of(values)
    assert (scaling.scale > 0).all()
    raw_kernel, raw_bias = scaling.fold(kernel, bias)
    exact = (values.astype(np.float64) - scaling.mean) / scaling.scale @ kernel + bias
    # float32 sums: terms x * k / scale and their counterpart in the bias may cancel, so the error is relative to them.
    size = np.abs(values).max() * np.abs(raw_kernel).sum() + np.abs(raw_bias).max() + 1
    np.testing.assert_allclose(values @ raw_kernel + raw_bias, exact, atol=1e-6 * size)


def test_features_that_hardly_vary_keep_finite_weights() -> None:
    scaling = Scaling.of(np.array([[0.0], [1.2e-38]], np.float32))
    kernel, bias = scaling.fold(np.ones((1, 2)), np.zeros(2))
    assert np.isfinite(kernel).all() and np.isfinite(bias).all()


def test_dead_features_keep_finite_and_modest_weights() -> None:
    random = np.random.default_rng(0)
    values = random.normal(3, 2, (50, 5)).astype(np.float32)
    values[:, 1] = 0.0
    values[:, 2] = 7.0
    scaling = Scaling.of(values)
    assert np.isfinite(scaling.apply(values)).all()
    assert (scaling.apply(values)[:, 1:3] == 0).all()
    kernel, bias = scaling.fold(np.ones((5, 2)), np.zeros(2))
    # Their scale is the median deviation, about 2: a weight of 1 becomes one half, not infinity.
    assert np.abs(kernel).max() < 1 and np.isfinite(bias).all()
    everything_dead = Scaling.of(np.full((4, 3), 5.0, np.float32))
    assert everything_dead.scale.tolist() == [1.0, 1.0, 1.0]


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", "~/fast")
    assert features.default_cache() == Path("~/fast").expanduser()
    monkeypatch.delenv("EDGETL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert features.default_cache() == Path("/var/xdg/edgetl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert features.default_cache() == Path.home() / ".cache/edgetl"
