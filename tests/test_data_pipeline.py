"""Batches of pixels: order, memory, early ends, unreadable files."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from photos import make_photo_folder

from edgetl import data
from edgetl.data import Example, Examples, Unreadable, check_unreadable, decoded, load_pixels, pipeline, read_image
from edgetl.errors import ConfigError, DatasetError, UnreadableImageError
from edgetl.inputs import ImageInput

SPEC = ImageInput(16, 20)


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return data.load(str(make_photo_folder(tmp_path, {"cat": 9, "dog": 8})))


def decode_threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 17, 100])
def test_everything_once_and_in_order(examples: Examples, workers: int, batch_size: int) -> None:
    batches = list(decoded(examples, SPEC, workers=workers, batch_size=batch_size))
    assert [len(batch.indices) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(17))
    pixels = np.concatenate([batch.pixels for batch in batches])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.stack([read_image(item.path, SPEC) for item in examples]))
    hashes = [digest for batch in batches for digest in batch.sha256]
    assert hashes == [hashlib.sha256(item.path.read_bytes()).hexdigest() for item in examples]


def test_no_examples_no_batches(examples: Examples) -> None:
    assert list(decoded(examples.select([]), SPEC)) == []


def test_unreadable_files_are_left_out_and_reported(examples: Examples) -> None:
    examples.items[1].path.write_bytes(b"")
    examples.items[2].path.write_text("no photo")
    examples.items[16].path.unlink()
    batches = list(decoded(examples, SPEC, batch_size=8))
    assert batches[0].indices.tolist() == [0, 3, 4, 5, 6, 7]
    assert batches[0].pixels.shape == (6, 16, 20, 3)
    assert batches[0].unreadable == (
        Unreadable("cat/0001.jpg", "empty file (0 bytes)"),
        Unreadable("cat/0002.jpg", "not a photo that can be read (JPEG, PNG, BMP, GIF, WEBP)"),
    )
    np.testing.assert_array_equal(batches[0].pixels[1], read_image(examples.items[3].path, SPEC))
    assert batches[2].pixels.shape == (0, 16, 20, 3)
    assert batches[2].unreadable == (Unreadable("dog/0007.jpg", "No such file or directory"),)


def test_load_pixels_gives_the_reason_alone(examples: Examples) -> None:
    examples.items[0].path.write_bytes(b"GIF89a")
    with pytest.raises(UnreadableImageError) as caught:
        load_pixels(examples.items[0], SPEC)
    assert str(examples.root) not in str(caught.value)


def test_prefetch_is_bounded(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    many = Examples("many", examples.root, examples.output_names, examples.items * 20)
    original = pipeline.load_pixels

    def counted(example: Example, spec: ImageInput) -> tuple[data.Pixels, str]:
        begun.append(example.id)
        return original(example, spec)

    monkeypatch.setattr(pipeline, "load_pixels", counted)
    batches = decoded(many, SPEC, workers=2, batch_size=10)
    next(batches)
    time.sleep(0.2)  # time enough for threads to run ahead, if they could
    assert 10 <= len(begun) <= 10 + 4
    batches.close()
    assert len(begun) <= 14
    assert decode_threads() == 0


def test_closing_drops_what_has_not_begun(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def slow(example: Example, spec: ImageInput) -> tuple[data.Pixels, str]:
        begun.append(example.id)
        time.sleep(0.05)
        return np.zeros(spec.shape, np.uint8), ""

    monkeypatch.setattr(pipeline, "load_pixels", slow)
    batches = decoded(examples, SPEC, workers=1, batch_size=4)
    next(batches)
    batches.close()
    assert len(begun) <= 5  # of the six that were in line, one may have been under way


def test_an_early_end_leaves_no_threads(examples: Examples) -> None:
    for batch in decoded(examples, SPEC, workers=2, batch_size=2):
        assert len(batch.indices) == 2
        break
    assert decode_threads() == 0


def test_an_error_of_the_consumer_leaves_no_threads(examples: Examples) -> None:
    batches = decoded(examples, SPEC, workers=2, batch_size=2)
    next(batches)
    with pytest.raises(RuntimeError, match="the consumer's"):
        batches.throw(RuntimeError("the consumer's"))
    assert decode_threads() == 0


def test_our_own_mistakes_are_not_called_unreadable(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "read_image", lambda data, spec: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(decoded(examples, SPEC))
    assert decode_threads() == 0


def test_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path, {"a": 40, "b": 40}, size=(320, 240))
    code = (
        "import itertools, sys; from edgetl import data; from edgetl.inputs import ImageInput\n"
        "examples = data.load(sys.argv[1])\n"
        "for turn in itertools.count():\n"
        "    for batch in data.decoded(examples, ImageInput(32, 32)):\n"
        "        if turn == 0: print('going', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}:{os.environ['PYTHONPATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"going\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 5  # a decode takes milliseconds; the rest is the interpreter's exit
    assert process.returncode == -signal.SIGINT
    assert errors.decode().strip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("options", [{"workers": 0}, {"batch_size": 0}, {"workers": -1}])
def test_senseless_settings_are_refused_at_once(examples: Examples, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        decoded(examples, SPEC, **options)


# --- how many are too many


def bad(count: int) -> list[Unreadable]:
    return [Unreadable(f"cat/{n:02}.jpg", "empty file (0 bytes)") for n in range(count)]


def test_none_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    check_unreadable([], 100)
    assert caplog.messages == []


def test_few_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edgetl"):
        check_unreadable(bad(1), 100)
    assert caplog.messages == ["1 of 100 files can't be read and are left out: cat/00.jpg: empty file (0 bytes)"]


def test_many_are_refused_and_ten_are_named() -> None:
    with pytest.raises(DatasetError) as caught:
        check_unreadable(bad(12), 1000)
    message = str(caught.value)
    assert message.startswith("12 of 1000 files can't be read, more than 1.0%: cat/00.jpg: empty file (0 bytes); ")
    assert "cat/09.jpg" in message
    assert "cat/10.jpg" not in message
    assert message.endswith("; and 2 more. Repair or remove them")
    assert "\n" not in message


def test_the_threshold_is_the_callers() -> None:
    check_unreadable(bad(5), 10, max_fraction=0.5)
    with pytest.raises(DatasetError):
        check_unreadable(bad(1), 10, max_fraction=0.0)
