"""Data sets of TensorFlow Datasets (an extra), built here by the real package, written out as files."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import client
from PIL import Image

from edgetl import data
from edgetl.data.tfds import tfds_folder
from edgetl.errors import DatasetError

pytestmark = pytest.mark.clients


def photo(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def build(
    home: Path,
    name: str,
    features: dict[str, Any],
    examples: list[dict[str, Any]],
    version: str = "1.0.0",
    config: str = "",
    **options: Any,
) -> None:
    """Prepare a data set of that name with 4 examples for training, 2 for testing and 1 without a use."""
    tfds = client("tensorflow_datasets")

    class Built(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), **options)

        def _split_generators(self, _: object) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            parts = {"train": examples[:4], "test": examples[4:6], "extra": examples[6:]}
            return {part: self._generate_examples(some) for part, some in parts.items() if some}

        def _generate_examples(self, some: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(some)

    Built.name = name
    Built(data_dir=str(home)).download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tfds = client("tensorflow_datasets")
    photos, colours = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(names=["red", "green"])
    home = tmp_path_factory.mktemp("prepared")
    tfds.disable_progress_bar()
    tfds.core.add_data_dir(home)
    coloured = [
        {"image": photo(n), "label": n % 2, "camera": f"c{n % 3}", "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}
        for n in range(7)
    ]
    box = tfds.features.BBoxFeature()
    features = {"image": photos, "label": colours, "camera": tfds.features.Text(), "box": box}
    build(home, "coloured", features, coloured, supervised_keys=("image", "label"))
    several = [{"image": photo(n), "tags": [n % 2, 1], "id": n} for n in range(4)]
    build(home, "several", {"image": photos, "tags": tfds.features.Sequence(colours), "id": tfds.features.Text()},
          [{**each, "id": str(each["id"])} for each in several])  # fmt: skip
    sized = [{"image": photo(n), "size": n / 4, "near": n % 2} for n in range(4)]
    build(
        home, "sized", {"image": photos, "size": np.float32, "near": colours}, sized, supervised_keys=("image", "size")
    )
    unsure = [{"image": photo(n), "label": min(n - 1, 1)} for n in range(4)]
    build(home, "unsure", {"image": photos, "label": colours}, unsure)
    build(home, "double", {"left": photos, "right": photos, "label": colours},
          [{"left": photo(n), "right": photo(n), "label": 0} for n in range(4)])  # fmt: skip
    return home


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))
    return tmp_path


def test_a_prepared_data_set_becomes_a_folder(
    prepared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    examples = data.load("tfds:coloured")
    assert "split(s) left out: extra" in caplog.text
    assert (examples.output_names, examples.task, examples.columns) == (("green", "red"), "classification", ("camera",))
    assert [item.split for item in examples] == ["test"] * 2 + ["train"] * 4
    # Photos are stored in an order of TensorFlow Datasets' own; each carries its number in its content.
    number = {photo(n).tobytes(): n for n in range(7)}
    seen = set()
    for item in examples:
        with Image.open(item.path) as image:
            at = number[np.asarray(image).tobytes()]  # PNG: equal bit for bit
        seen.add(at)
        assert examples.label_text(item) == ("red", "green")[at % 2]
        assert item.values == (f"c{at % 3}",)
        assert item.split == ("train" if at < 4 else "test")
    assert seen == set(range(6))
    assert data.load("tfds:coloured") == examples
    assert data.locate("tfds:coloured") == examples.root
    # From now on a run needs neither the package nor the data set: it stores a plain path.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert data.load(examples.location).items == examples.items
    assert data.locate(examples.location) == examples.root
    assert cache in examples.root.parents


def test_other_versions_places_and_names_are_other_photos(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tfds = client("tensorflow_datasets")
    colours = tfds.features.ClassLabel(names=["red", "green"])
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": colours}
    number = {photo(n).tobytes(): n for n in range(50)}
    here, there = cache / "here", cache / "there"

    def prepare(home: Path, name: str, first: int, **how: str) -> None:
        build(home, name, features, [{"image": photo(first + n), "label": n % 2} for n in range(4)], **how)

    def first_photo(home: Path, name: str) -> int:
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(home))  # what TFDS_DATA_DIR says at the import
        return min(number[np.asarray(Image.open(item.path)).tobytes()] for item in data.load(f"tfds:{name}"))

    prepare(here, "grown", 0)
    assert first_photo(here, "grown") == 0
    prepare(here, "grown", 10, version="1.1.0")
    assert first_photo(here, "grown") == 10
    assert first_photo(here, "grown:1.0.0") == 0
    prepare(there, "grown", 20)
    assert first_photo(there, "grown") == 20
    prepare(here, "pair", 30, config="x")
    prepare(here, "pair_x", 40)
    assert (first_photo(here, "pair/x"), first_photo(here, "pair_x")) == (30, 40)


def test_an_interrupted_writing_goes_on(prepared: Path, cache: Path) -> None:
    folder = tfds_folder("coloured")
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "metadata.csv").unlink()  # it comes last: a killed process has not written it
    half, gone, kept = sorted(folder.glob("train/*"))[:3]
    half.write_bytes(b"half")
    gone.unlink()
    os.utime(kept, (1, 1))
    assert tfds_folder("coloured") == folder
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole
    assert kept.stat().st_mtime == 1


def test_other_labels(prepared: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    several = data.load("tfds:several")
    assert "1 example(s) left out" not in caplog.text
    assert (several.task, several.counts) == ("multi_label", {"green": 4, "red": 2})
    sized = data.load("tfds:sized")
    assert (sized.task, sized.output_names, sized.columns) == ("regression", ("target",), ("near",))
    assert sorted(sized.labels[:, 0]) == [0, 0.25, 0.5, 0.75]
    assert len(data.load("tfds:unsure")) == 3
    assert "tfds:unsure: 1 example(s) left out: without a label" in caplog.text
    with pytest.raises(DatasetError, match=r"tfds:double: 2 features that are a photo \(left, right\), need 1"):
        data.load("tfds:double")


def test_what_is_missing_is_named(prepared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"tfds:nowhere: not prepared in .*Run: tfds build nowhere"):
        data.load("tfds:nowhere")
    for wrong in ("tfds:", "tfds:../x"):
        with pytest.raises(DatasetError, match="no name of a data set"):
            data.load(wrong)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        DatasetError, match=r"tfds:coloured: the package tensorflow-datasets is not installed\. Run: pip"
    ):
        data.load("tfds:coloured")
    assert not list(cache.rglob("*.*"))
