"""From a finished run to artifacts whose schemes train: what is written, recorded and refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from photos import make_photo_folder

from edgetl import data
from edgetl.errors import DatasetError
from edgetl.rundir import RunDir
from export import convert
from export.artifacts import Artifact, find_artifacts
from export.conversion import Making, calibration_photos
from export.flatbuffer import FLOAT_TYPES, operators

SCHEMES = ("qat_int8", "pruned_int8", "clustered_qat_int8")
CLASSES = {"cat": 20, "dog": 20, "owl": 20}
"""As in the fixture `photo_folder`: the same photos can be made again at another place."""


def config(run: RunDir, *names: str, **settings: Any) -> convert.Config:
    return convert.Config(run.path, schemes=names, calibration_images=12, epochs=1, learning_rate=1e-4, **settings)


@pytest.fixture
def copy(tmp_path: Path, trained_run: RunDir) -> RunDir:
    shutil.copytree(trained_run.path, tmp_path / "copy")
    return RunDir(tmp_path / "copy")


def written(run: RunDir, scheme: str) -> tuple[bytes, bytes]:
    return tuple((run.export_path / f"{scheme}.{ending}").read_bytes() for ending in ("tflite", "json"))  # type: ignore[return-value]


@pytest.mark.slow
def test_trained_and_compressed_schemes_become_integer_artifacts_that_tell_how(copy: RunDir) -> None:
    found = {artifact.scheme: artifact for artifact in convert.main(config(copy, *SCHEMES))}
    assert tuple(found) == SCHEMES
    assert find_artifacts(copy, SCHEMES) == tuple(found.values())
    train = {example.id for example in copy.splits().train}
    for scheme, artifact in found.items():
        tflite, _ = written(copy, scheme)
        kinds = {tensor.type for op in operators(tflite) for tensor in (*op.inputs, *op.outputs)}
        assert "INT8" in kinds and not kinds & set(FLOAT_TYPES), scheme
        assert len(artifact.calibration) == 12 and set(artifact.calibration) <= train
        assert (artifact.settings["epochs"], artifact.settings["learning_rate"]) == ("1", "0.0001")
    assert {name: knobs(artifact) for name, artifact in found.items()} == {
        "qat_int8": {},
        "pruned_int8": {"sparsity": "0.5"},
        "clustered_qat_int8": {"clusters": "16"},
    }
    # Once from the checkpoints, and once, without them, by training again.
    before = {scheme: written(copy, scheme) for scheme in SCHEMES}
    convert.main(config(copy, *SCHEMES))
    assert {scheme: written(copy, scheme) for scheme in SCHEMES} == before
    shutil.rmtree(copy.export_path)
    convert.main(config(copy, "qat_int8"))
    assert written(copy, "qat_int8") == before["qat_int8"]


def knobs(artifact: Artifact) -> dict[str, str]:
    return {name: value for name, value in artifact.settings.items() if name in ("sparsity", "clusters")}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["qat_int8", "pruned_int8"])
@pytest.mark.parametrize("damage", ["destroyed", "changed"])
def test_training_photos_that_are_not_those_of_the_run_are_refused(
    scheme: str, damage: str, copy: RunDir, tmp_path: Path
) -> None:
    photos = make_photo_folder(tmp_path / "photos", CLASSES)
    train = copy.splits(str(photos)).train
    settings = Making(calibration_images=12, data=str(photos))
    calibrated = {example.id for example in calibration_photos(copy, train, settings)[0]}
    others = [example for example in train if example.id not in calibrated]
    assert len(others) == 24, "calibration would refuse them, not training"
    if damage == "destroyed":
        message = r"24 of 36 files can't be read|no photo of the training split could be read"
        for example in others:
            example.path.write_bytes(b"no photo")
    else:
        message = "changed since the run was made"
        shutil.copyfile(others[1].path, others[0].path)
    with pytest.raises(DatasetError, match=message):
        convert.main(config(copy, scheme, data=str(photos)))
    assert not list(copy.export_path.glob("*.tflite"))


def test_calibration_on_one_class_is_told(
    trained_run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = trained_run.splits().train
    settings = Making(calibration_images=12)
    with caplog.at_level("WARNING", logger="edgetl"):
        calibration_photos(trained_run, train, settings)
        assert not caplog.records
        ones = train.select([place for place, label in enumerate(train.labels) if label == 1])
        monkeypatch.setattr(data, "stratified_subset", lambda examples, count, seed: ones)
        chosen, images = calibration_photos(trained_run, train, replace(settings, seed=1))
    assert len(chosen) == len(images) == len(ones) > 1
    assert f"all {len(ones)} calibration photos have one label" in caplog.text
