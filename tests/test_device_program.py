"""The device program as it ships: one file, in a process of its own, without the packages it was made with."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bundles import tell
from tiny_tflite import with_json

from edgetl.config import from_json
from edgetl.rundir import RunDir
from export import bundle
from export.device import check, predict
from export.device.check import CheckReport
from export.device.contents import read_bundle
from export.device.errors import DeviceError
from export.device.info import InfoReport
from export.device.interpreter import Model
from export.device.predict import PredictReport
from export.sample import REFERENCE_PHOTOS

BLOCKED = ("tensorflow", "keras", "tf_keras", "edgetl", "export", "scipy", "pydantic", "rich")
ALONE = """\
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory, finished_run: RunDir) -> Path:
    """A bundle; read only but for its reports."""
    out = tmp_path_factory.mktemp("shipped") / "int8"
    return bundle.main(bundle.Config(finished_run.path, out=out, photos=6, web=False)).path


@pytest.fixture
def own(tmp_path: Path, shipped: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(shipped, tmp_path / "bundle")
    return tmp_path / "bundle"


def call(folder: Path, *words: str, blocked: tuple[str, ...] = BLOCKED) -> subprocess.CompletedProcess[str]:
    """Run the program somewhere else, so that nothing of this project is beside it."""
    code = ALONE.format(blocked=set(blocked))
    line = [sys.executable, "-c", code, str(folder / "edgetl-device.pyz"), *words]
    return subprocess.run(line, cwd="/", capture_output=True, text=True, check=False)


def refused(folder: Path, *words: str, blocked: tuple[str, ...] = BLOCKED) -> str:
    """The one line of an error."""
    done = call(folder, *words, blocked=blocked)
    assert done.returncode == 2, done
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgetl-device.pyz: ")
    return line


def test_info(shipped: Path) -> None:
    done = call(shipped, "info")
    assert done.returncode == 0, done.stderr
    assert "int8.tflite" in done.stdout
    report = from_json(InfoReport, (shipped / "reports/info.json").read_bytes())
    assert report.sha256 == read_bundle(shipped).sha256
    assert report.damaged == ()
    assert report.packages["tensorflow"] is None, "it is blocked"
    assert report.packages["ai-edge-litert"]
    assert report.advice == ()


def test_info_says_what_is_missing(shipped: Path, tmp_path: Path) -> None:
    without = (*BLOCKED, "ai_edge_litert", "tflite_runtime", "PIL", "numpy")
    done = call(shipped, "info", "--json", str(tmp_path / "info.json"), blocked=without)
    assert done.returncode == 0, done.stderr
    for package in ("pip install ai-edge-litert", "pip install numpy", "pip install pillow"):
        assert package in done.stdout


def test_info_takes_little_memory(shipped: Path, tmp_path: Path) -> None:
    # A process starts with the peak of its parent: one that is smaller than the program stands between.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    info = [sys.executable, str(shipped / "edgetl-device.pyz"), "info", "--json", str(tmp_path / "info.json")]
    done = subprocess.run([sys.executable, "-c", code, *info], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 60, "MB, as promised"


def test_predict(shipped: Path, tmp_path: Path) -> None:
    photos = sorted((shipped / "sample/photos").iterdir())
    done = call(shipped, "predict", *map(str, photos), "--top", "2", "--json", str(tmp_path / "c.json"))
    assert done.returncode == 0, done.stderr
    report = from_json(PredictReport, (tmp_path / "c.json").read_bytes())
    sample = json.loads((shipped / "sample/expected.json").read_bytes())["photos"]
    names = read_bundle(shipped).outputs.names
    for found, expected in zip(report.photos, sample, strict=True):
        assert [found.scores[name] for name in names] == expected["scores"]
        assert set(found.said) == {names[int(np.argmax(expected["scores"]))]}
        assert set(found.said) <= set(done.stdout.split())
    assert report.circumstances.sha256 == read_bundle(shipped).sha256


def test_names_of_photos_steer_no_terminal(shipped: Path, tmp_path: Path) -> None:
    photo = tmp_path / "a\n\x1b[2Jb.jpg"
    shutil.copyfile(next((shipped / "sample/photos").iterdir()), photo)
    done = call(shipped, "predict", str(photo), "--json", str(tmp_path / "c.json"))
    assert done.returncode == 0 and "a\\n\\x1b[2Jb.jpg" in done.stdout and "\x1b" not in done.stdout
    photo.write_bytes(b"")
    assert "\x1b" not in refused(shipped, "predict", str(photo), "--json", str(tmp_path / "c.json"))
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refused(shipped, "predict", str(tmp_path / "pipe.jpg"))


def test_predict_a_frame_without_pillow(shipped: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "frame.npy", np.zeros((48, 64, 3), np.uint8))
    words = ("predict", str(tmp_path / "frame.npy"), "--json", str(tmp_path / "c.json"))
    assert call(shipped, *words, blocked=(*BLOCKED, "PIL")).returncode == 0
    assert "pip install pillow" in refused(shipped, "check", blocked=(*BLOCKED, "PIL"))


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_check(kernels: str, shipped: Path, tmp_path: Path) -> None:
    done = call(shipped, "check", "--kernels", kernels, "--json", str(tmp_path / "check.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = from_json(CheckReport, (tmp_path / "check.json").read_bytes())
    assert report.passed
    assert report.same_pixels == len(report.photos) == (REFERENCE_PHOTOS if kernels == "reference" else 6)
    if kernels != "builtin":  # the same kernels on the same machine
        assert report.max_difference == 0
        assert report.agreement == 1
    assert report.circumstances.kernels == kernels
    assert "PASSED" in done.stdout


def test_check_fails_on_other_scores(own: Path) -> None:
    path = own / "sample/expected.json"
    sample = json.loads(path.read_bytes())
    sample["photos"][0]["scores"] = [1 - score for score in sample["photos"][0]["scores"]]
    path.write_text(json.dumps(sample))
    tell(own)
    done = call(own, "check")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert not from_json(CheckReport, (own / "reports/check.json").read_bytes()).passed


def test_check_tells_other_pixels_from_other_kernels(own: Path) -> None:
    from PIL import Image

    photo = next((own / "sample/photos").iterdir())
    pixels = np.asarray(Image.open(photo)).astype(int)
    Image.fromarray(np.clip(pixels + 1, 0, 255).astype(np.uint8)).save(photo, quality=100)
    tell(own)
    done = call(own, "check")
    report = from_json(CheckReport, (own / "reports/check.json").read_bytes())
    assert report.same_pixels == len(report.photos) - 1
    assert "1 photo(s) became other pixels here" in done.stdout


def test_nothing_to_run_it_with(shipped: Path) -> None:
    none = (*BLOCKED, "ai_edge_litert", "tflite_runtime")
    assert "pip install ai-edge-litert" in refused(shipped, "check", blocked=none)
    assert "pip install numpy" in refused(shipped, "check", blocked=(*none, "numpy"))


def test_bad_words(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    photo = str(next((shipped / "sample/photos").iterdir()))
    assert "COMMAND" in refused(shipped)
    assert "invalid choice: 'chek'" in refused(shipped, "chek")
    assert "--kernel5" in refused(shipped, "check", "--kernel5", "xnnpack")
    assert "text.jpg: not a photo" in refused(shipped, "predict", photo, str(tmp_path / "text.jpg"))
    assert "none.jpg: No such file" in refused(shipped, "predict", str(tmp_path / "none.jpg"))
    assert "--top 0" in refused(shipped, "predict", photo, "--top", "0")
    np.save(tmp_path / "huge.npy", np.zeros((2, 2, 3), np.uint8))
    header = (tmp_path / "huge.npy").read_bytes().replace(b"(2, 2, 3)", b"(9999999, 9999999, 3)")
    (tmp_path / "huge.npy").write_bytes(header)
    (tmp_path / "zip.NPY").write_bytes(b"PK\3\4 no archive")
    assert "huge.npy: not a .npy file" in refused(shipped, "predict", str(tmp_path / "huge.npy"))
    assert "zip.NPY: not a .npy file" in refused(shipped, "predict", str(tmp_path / "zip.NPY"))
    assert "threads=3000000000" in refused(shipped, "predict", photo, "--threads", "3000000000")
    assert "is a directory" in refused(shipped, "info", "--json", "/")
    assert "threads=0" in refused(shipped, "predict", photo, "--threads", "0")
    assert "bundle.json: not found" in refused(shipped, "info", "--bundle", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "with --json" in refused(shipped, "info", "--json", str(tmp_path / "file/info.json"))
    assert not list(tmp_path.glob("*.part"))


def damage(folder: Path, what: str) -> None:
    model, about = folder / "int8.tflite", folder / "bundle.json"
    content, said = model.read_bytes(), json.loads(about.read_bytes())
    if what == "truncated":
        model.write_bytes(content[: len(content) // 2])
    elif what == "foreign":
        model.write_bytes(with_json(b"\x1c\0\0\0TFL3" + bytes(100)))
    elif what == "gone":
        model.unlink()
    else:
        changed = {
            "version": {"schema_version": 3},
            "type": {"size_bytes": "many"},
            "unknown": {"more": 1},
            "names": {"outputs": {**said["outputs"], "names": ["a", "a", "b"]}},
            "size": {"inputs": {"kind": "image", "height": 64.5, "width": 64, "resize": "stretch"}},
        }
        if what == "no JSON":
            about.write_text("{")
        else:
            tell(folder, **changed[what])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "expected sha256"),
        ("foreign", "expected sha256"),
        ("gone", "No such file"),
        ("version", "schema_version 3, this program reads 2"),
        ("type", "size_bytes: expected int, received 'many'"),
        ("unknown", "missing or unknown ['more']"),
        ("names", "outputs.names are not distinct"),
        ("size", "height and width must be whole numbers"),
        ("no JSON", "can't be used"),
    ],
)
def test_damaged_bundles(what: str, message: str, own: Path) -> None:
    damage(own, what)
    assert message in refused(own, "check")
    if what in ("truncated", "foreign", "gone"):
        assert "int8.tflite: missing or damaged" in refused(own, "info")
    assert not (own / "reports").exists() or not (own / "reports/check.json").exists()


def test_a_flipped_bit_anywhere_fails_the_check(own: Path) -> None:
    photo = next((own / "sample/photos").iterdir())
    names = ["labels.txt", "sample/expected.json", "int8.tflite", f"sample/photos/{photo.name}"]
    for number, name in enumerate(["bundle.json", "bundle.json", *names]):
        whole = (own / name).read_bytes()
        at = len(whole) * (number + 1) // (len(names) + 3)
        (own / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert name.rpartition("/")[2] in refused(own, "check"), name
        (own / name).write_bytes(whole)
    assert call(own, "check").returncode == 0


def test_what_the_check_does_not_need_may_be_deleted(own: Path) -> None:
    (own / "labels.txt").unlink()
    assert call(own, "check").returncode == 0


def test_info_names_damaged_files(own: Path) -> None:
    (own / "labels.txt").write_text("other\n")
    done = call(own, "info")
    assert "damaged: labels.txt" in done.stdout
    assert from_json(InfoReport, (own / "reports/info.json").read_bytes()).damaged == ("labels.txt",)


def test_sample_can_not_point_out_of_the_bundle(own: Path) -> None:
    path = own / "sample/expected.json"
    sample = json.loads(path.read_bytes())
    sample["photos"][0]["path"] = "../../secret.jpg"
    path.write_text(json.dumps(sample))
    tell(own)
    assert "not a path within the bundle" in refused(own, "check")


def test_names_of_other_classes_are_refused(own: Path) -> None:
    outputs = json.loads((own / "bundle.json").read_bytes())["outputs"]
    tell(own, outputs=outputs | {"names": outputs["names"][:2]})
    photo = str(next((own / "sample/photos").iterdir()))
    for words in (("predict", photo), ("check",)):
        assert "has other names than int8.tflite" in refused(own, *words)


def test_report_goes_through_a_pipe_and_the_pipe_stays(shipped: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        assert call(shipped, "info", "--json", str(pipe)).returncode == 0
        assert json.loads(reader.communicate(timeout=30)[0])["command"] == "info"
    assert pipe.is_fifo()


def test_standard_output_that_is_full_is_one_line(shipped: Path, tmp_path: Path) -> None:
    line = [sys.executable, str(shipped / "edgetl-device.pyz"), "info", "--json", str(tmp_path / "info.json")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["edgetl-device.pyz: standard output: No space left on device"]


def test_scores_that_are_not_numbers_never_pass(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = read_bundle(shipped)
    monkeypatch.setattr(Model, "predict", lambda *_: np.array([0.2, np.nan, 0.1], np.float32))
    with pytest.raises(DeviceError, match="scores that are not numbers"):
        check.run(bundled, shipped, argparse.Namespace(threads=1, kernels="xnnpack"))
    photo = next((shipped / "sample/photos").iterdir())
    with pytest.raises(DeviceError, match="scores that are not numbers"):
        predict.run(bundled, shipped, argparse.Namespace(photos=[photo], top=1, threads=1))


def test_ctrl_c_ends_in_one_line(shipped: Path, tmp_path: Path) -> None:
    line = [sys.executable, str(shipped / "edgetl-device.pyz"), "benchmark", "--runs", "100000000"]
    line += ["--json", str(tmp_path / "b.json")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130, (out, err)
    assert "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "b.json").exists()


def test_old_python_is_told() -> None:
    from export.device_app import MAIN

    compile(MAIN, "__main__.py", "exec")
    assert 'f"' not in MAIN, "Python 2 and 3.5 must get as far as the message"
