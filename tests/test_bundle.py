"""The folder for the device: all of it or nothing, and every figure in it is that of its files."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import vouch

from edgetl.data import Examples
from edgetl.errors import ArtifactError, ConfigError, DatasetError, RunError
from edgetl.rundir import RunDir, sha256_of
from export import bundle, convert, device_app, evaluate
from export.device.contents import read_bundle, read_sample
from export.device.interpreter import Model
from export.device.outputs import Outputs
from export.device.preprocess import read
from export.sample import REFERENCE_PHOTOS


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, finished_run: RunDir) -> bundle.Made:
    """A bundle of the shared run; read only."""
    out = tmp_path_factory.mktemp("bundles") / "int8"
    return bundle.main(bundle.Config(finished_run.path, out=out, photos=7, web=False))


def test_every_file_is_named_with_its_hash(made: bundle.Made) -> None:
    there = {path.relative_to(made.path).as_posix(): path for path in made.path.rglob("*") if path.is_file()}
    assert set(there) - {"bundle.json"} == set(made.bundle.files)
    assert all(sha256_of(there[name]) == sha256 for name, sha256 in made.bundle.files.items())
    assert {"int8.tflite", "labels.txt", "edgetl-device.pyz", "sample/expected.json"} <= set(there)


def test_what_the_device_reads_is_what_was_made(made: bundle.Made, finished_run: RunDir) -> None:
    found = read_bundle(made.path)
    assert found == made.bundle
    assert found.sha256 == sha256_of(finished_run.export_path / "int8.tflite") == sha256_of(made.path / "int8.tflite")
    assert found.outputs == Outputs(**vars(finished_run.outputs))
    assert found.outputs.names == tuple((made.path / "labels.txt").read_text().splitlines())
    evaluation = json.loads((finished_run.export_path / "evaluation.json").read_bytes())
    (scores,) = (each for each in evaluation["artifacts"] if each["scheme"] == "int8")
    assert found.host is not None
    assert found.host.value == scores["scores"]["top1"]
    assert found.float32 is not None
    assert found.float32.value == evaluation["keras"]["top1"]
    assert found.latency is not None
    assert found.latency.median_ms > 0


def test_sample_holds_photos_of_every_class_and_what_the_host_says(made: bundle.Made, finished_run: RunDir) -> None:
    sample = read_sample(made.path)
    test = {example.id: example for example in finished_run.splits().test}
    assert len(sample.photos) == 7
    assert {photo.truth for photo in sample.photos} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    model, reference = Model(made.path / "int8.tflite"), Model(made.path / "int8.tflite", kernels="reference")
    for photo in sample.photos:
        assert (made.path / photo.path).read_bytes() == test[photo.id].path.read_bytes()
        assert photo.truth.index(1) == test[photo.id].label
        pixels = read(made.path / photo.path, made.bundle.inputs)
        np.testing.assert_array_equal(model.predict(pixels), np.float32(photo.scores))
        if photo.reference_scores:
            np.testing.assert_array_equal(reference.predict(pixels), np.float32(photo.reference_scores))
    assert sum(photo.reference_scores is not None for photo in sample.photos) == REFERENCE_PHOTOS


def test_bounds_are_exact_where_arithmetic_is(finished_run: RunDir, tmp_path: Path, made: bundle.Made) -> None:
    assert read_sample(made.path).bounds["reference"].same_pixels == 0
    out = tmp_path / "float32"
    bundle.main(bundle.Config(finished_run.path, "float32", out, photos=3, web=False))
    bounds = read_sample(out).bounds
    assert 0 < bounds["reference"].same_pixels == bounds["xnnpack"].same_pixels < 0.01


def test_program_is_one_small_file_and_always_the_same(made: bundle.Made) -> None:
    content = (made.path / "edgetl-device.pyz").read_bytes()
    assert content == device_app.build()
    assert len(content) <= 300_000
    assert os.access(made.path / "edgetl-device.pyz", os.X_OK)
    with zipfile.ZipFile(made.path / "edgetl-device.pyz") as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"__main__.py", "edgetl_device", "edgetl_photos"}


def test_a_bundle_is_replaced_and_its_reports_stay(made: bundle.Made, finished_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(made.path, out)
    (out / "reports").mkdir()
    (out / "reports/check.json").write_text("{}")
    (out / "old.txt").write_text("of an older bundle")
    bundle.main(bundle.Config(finished_run.path, out=out, photos=4, web=False))
    assert len(read_sample(out).photos) == 4
    assert (out / "reports/check.json").read_text() == "{}"
    assert not (out / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_failure_leaves_the_old_bundle(made: bundle.Made, run_copy: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    shutil.copytree(made.path, out)
    (run_copy.export_path / "int8.json").write_text("{}")
    with pytest.raises(RunError):
        bundle.main(bundle.Config(run_copy.path, out=out, web=False))
    assert read_bundle(out) == made.bundle


def test_ctrl_c_and_kill_leave_nothing(finished_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "bundle"
    monkeypatch.setattr(bundle, "_write_targets", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.main(bundle.Config(finished_run.path, out=out, photos=3, web=False))
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    # What a kill leaves is swept by the next bundle.
    (tmp_path / ".bundle.0123abcd.part").mkdir()
    (tmp_path / ".bundle.v2.0123abcd.part").mkdir()  # of another one
    bundle.main(bundle.Config(finished_run.path, out=out, photos=3, web=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.v2.0123abcd.part", "bundle"]


def test_an_artifact_that_is_made_anew_meanwhile_is_not_bundled(
    run_copy: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bundle._chosen

    def converted_meanwhile(*arguments: Any) -> Examples:
        (run_copy.export_path / "int8.tflite").write_bytes(b"another")
        return real(*arguments)

    monkeypatch.setattr(bundle, "_chosen", converted_meanwhile)
    with pytest.raises(ArtifactError, match=r"int8\.tflite: made anew meanwhile\. Run the same command again"):
        bundle.main(bundle.Config(run_copy.path, out=tmp_path / "bundle", photos=3, web=False))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_what_another_process_is_making_is_left_alone(finished_run: RunDir, tmp_path: Path) -> None:
    with bundle._temporary(tmp_path / "bundle") as theirs:
        (theirs / "half").write_text("a file")
        bundle.main(bundle.Config(finished_run.path, out=tmp_path / "bundle", photos=3, web=False))
        assert (theirs / "half").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_end_between_the_renames_brings_the_old_bundle_back(
    made: bundle.Made, finished_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "kept"
    shutil.copytree(made.path, out)
    real, renamed = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        bundle.main(bundle.Config(finished_run.path, out=out, photos=3, web=False))
    assert read_bundle(out) == made.bundle
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_link_is_followed(made: bundle.Made, finished_run: RunDir, tmp_path: Path) -> None:
    shutil.copytree(made.path, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    bundle.main(bundle.Config(finished_run.path, out=tmp_path / "link", photos=4, web=False))
    assert (tmp_path / "link").is_symlink()
    assert len(read_sample(tmp_path / "real").photos) == 4


def test_every_class_is_in_the_sample_however_few_photos_are_asked_for(finished_run: RunDir, tmp_path: Path) -> None:
    bundle.main(bundle.Config(finished_run.path, out=tmp_path / "few", photos=1, web=False))
    assert {photo.truth for photo in read_sample(tmp_path / "few").photos} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


@pytest.mark.slow
def test_a_scheme_that_browsers_do_not_take_has_no_page(run_copy: RunDir) -> None:
    convert.main(convert.Config(run_copy.path, ("int8_io8",), calibration_images=12))
    evaluate.main(evaluate.Config(run_copy.path, ("int8_io8",)))
    found = bundle.main(bundle.Config(run_copy.path, "int8_io8", photos=3))
    assert not (found.path / "web").exists()
    assert "no web/: browsers take no int8 input" in bundle.show(found)


def test_a_run_without_test_photos_is_bundled_with_those_of_validation(run_copy: RunDir, tmp_path: Path) -> None:
    splits = run_copy.path / "splits.csv"
    splits.write_text(splits.read_text().replace(",test,", ",train,"))
    for name in (evaluate.EVALUATION, evaluate.PREDICTIONS):
        (run_copy.export_path / name).unlink()
    vouch(run_copy.path / "manifest.json", "splits.csv", sha256_of(splits))
    found = bundle.main(bundle.Config(run_copy.path, out=tmp_path / "b", photos=4, web=False))
    validation = {example.id for example in run_copy.splits().validation}
    assert {photo.id for photo in read_sample(found.path).photos} <= validation
    assert read_bundle(found.path).host is read_bundle(found.path).float32 is None
    assert "how good it is was not measured" in bundle.show(found)
    for words, said in (("info", "no photos were held out for testing"), ("check", "PASSED")):
        line = [sys.executable, str(found.path / "edgetl-device.pyz"), words]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
    with pytest.raises(RunError, match="no photos were held out for testing"):
        evaluate.evaluation_of(run_copy, [])


def test_what_can_not_be_bundled(run_copy: RunDir, tmp_path: Path) -> None:
    config = bundle.Config(run_copy.path, photos=3, web=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/bundle.json").write_text('{"name": "a web site"}')

    for change, error, message in (
        ({"scheme": "int9"}, ConfigError, "unknown scheme 'int9'"),
        ({"scheme": "int16x8"}, ArtifactError, "no artifact int16x8"),
        ({"out": tmp_path / "mine"}, ConfigError, "not empty and not a bundle"),
        ({"out": tmp_path / "file"}, ConfigError, "is a file"),
        ({"photos": 0}, ConfigError, "--photos 0"),
        ({"accelerators": ("ethos-u55-64",)}, ConfigError, "go with --target ethos-u"),
        ({"out": tmp_path / "site"}, ConfigError, "not empty and not a bundle"),
        ({"run": tmp_path / "none"}, RunError, "no such run directory"),
        ({"data": str(tmp_path)}, DatasetError, str(tmp_path)),
    ):
        with pytest.raises(error, match=message):
            bundle.main(dataclasses.replace(config, **change))
    (run_copy.export_path / "evaluation.json").unlink()
    with pytest.raises(ArtifactError, match="not evaluated yet"):
        bundle.main(config)
    assert not (run_copy.path / "bundles").exists() or not list((run_copy.path / "bundles").iterdir())
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_photo_that_was_changed_is_refused(run_copy: RunDir, photo_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photo_folder, copy)
    for photo in copy.rglob("*.jpg"):
        photo.write_bytes(photo.read_bytes() + b"\0")
    with pytest.raises(DatasetError, match="changed since the run was made"):
        bundle.main(bundle.Config(run_copy.path, photos=3, web=False, data=str(copy)))
    assert not list((run_copy.path / "bundles").iterdir())


def test_command_shows_what_to_do_next(finished_run: RunDir, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "export.bundle", str(finished_run.path), "--out", str(tmp_path / "b"), "--no-web"]
    done = subprocess.run([*line, "--photos", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python3 edgetl-device.pyz info | predict PHOTO ... | check | benchmark" in done.stdout
    done = subprocess.run([*line, "--photo", "3"], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--photos" in done.stderr
