"""A run directory is whole, unfinished, or refused with a reason; nothing in between."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import edit

from edgetl import rundir
from edgetl.config import to_json
from edgetl.errors import DatasetError, RunError
from edgetl.inputs import ImageInput
from edgetl.outputs import OutputSpec
from edgetl.rundir import RunDir, held, new_file, open_run, read_json, sweep, write_atomic, writing

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Settings:
    out: Path
    rate: float = 0.1
    seed: int = 0
    workers: int = field(default=0, metadata={"affects_result": False})


def finish(settings: Settings, **extra: str) -> RunDir:
    """A run without training: every file that a finished one has, and one of each name of `extra`."""
    with writing(settings.out, "toy", settings) as run:
        run.write(rundir.INPUTS, to_json(ImageInput(8, 8)))
        run.write(rundir.OUTPUTS, to_json(OutputSpec("classification", ("cat", "dog"))))
        run.write(rundir.LABELS, "cat\ndog\n")
        run.write(rundir.SPLITS, "id,label,split,sha256\n")
        run.write(rundir.MODEL, b"model")
        run.write(rundir.METRICS, "{}")
        for name, text in extra.items():
            run.write(name, text)
        run.finish(recipe="toy", data="photos", data_sha256="0" * 64, seed=settings.seed, extra=tuple(extra))
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return finish(Settings(tmp_path / "run"))


def enter(path: Path, recipe: str, settings: Settings) -> None:
    """What must be refused."""
    with writing(path, recipe, settings):
        pass


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- writing files --------------------------------------------------------------------------------------------------


def test_write_atomic_leaves_a_pipe_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE) as reader:
        write_atomic(tmp_path / "pipe", "text")
        assert reader.communicate(timeout=30)[0] == b"text"
    assert (tmp_path / "pipe").is_fifo()


def test_write_atomic_writes_text_and_bytes(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "grün\n")
    write_atomic(tmp_path / "b.bin", b"\x00\xff")
    assert content(tmp_path) == {"a.txt": "grün\n".encode(), "b.bin": b"\x00\xff"}


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a.txt", "old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path if step == "replace" else os, step, fail)
    with pytest.raises(type(error)):
        write_atomic(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert content(tmp_path) == {"a.txt": b"old"}


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    import keras

    contents, kept = [], []
    for name in ("a", "b"):
        keras.utils.set_random_seed(0)
        keras.backend.clear_session()  # names are counted
        policy = keras.DTypePolicy("float32")  # an object that layers share: Keras tells it by its address
        dense = [keras.layers.Dense(3, dtype=policy) for _ in range(2)]
        model = keras.Sequential([keras.Input((2,)), *dense])
        kept.append(model)  # or the next one's policy could lie at the same address
        (tmp_path / name).mkdir()
        RunDir(tmp_path / name).write_model(model)
        contents.append((tmp_path / name / rundir.MODEL).read_bytes())
        time.sleep(2)  # the step of dates in a zip
    assert contents[0] == contents[1]
    again = keras.saving.load_model(tmp_path / "b" / rundir.MODEL)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_any_flipped_bit_of_a_sealed_file_is_noticed(run: RunDir) -> None:
    path = run.path / rundir.MANIFEST
    whole, known = path.read_bytes(), run.manifest
    for bit in range(0, 8 * len(whole), 7):  # 7: every bit of a byte in its turn
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(RunError, match=r"manifest\.json"):
            read_json(rundir.Manifest, path)
    path.write_bytes(whole)
    assert read_json(rundir.Manifest, path) == known
    path.write_text(to_json(known))  # as files were before there were seals
    assert read_json(rundir.Manifest, path) == known


def test_what_kills_left_half_written_goes_with_the_next_start(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed:
        def save(self, path: Path) -> None:
            zipfile.ZipFile(path, "w").close()  # whole, as the kill comes when it is copied

    before = content(run.path)
    with monkeypatch.context() as patch:  # a process that is killed cleans nothing up
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(Path, "replace", lambda *_: None)
        for name in ("checkpoint.npz", "history.csv", rundir.CONFIG):
            run.write(name, b"half")
        run.export_path.mkdir()
        for name in ("int8.tflite", "int8.latency.json", "int8.checkpoint.npz"):
            write_atomic(run.export_path / name, b"half")
        run.write_model(Killed())  # type: ignore[arg-type]
    (run.path / ".notes.md").write_text("mine")
    assert len(content(run.path)) == len(before) + 6
    enter(run.path, "toy", Settings(run.path))
    assert content(run.path) == {**before, ".notes.md": b"mine"}
    assert content(run.export_path) == {}


def test_what_another_process_is_writing_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: flock goes by open files, not by processes."""
    with new_file(tmp_path / "shard.npz") as file:
        file.write(b"who")
        sweep(tmp_path)
        file.write(b"le")
    assert content(tmp_path) == {"shard.npz": b"whole"}
    real = tempfile.mkstemp
    names: list[str] = []

    def swept_before_it_is_locked(**where: Any) -> tuple[int, str]:
        handle, name = real(**where)
        if not names:
            sweep(tmp_path)
            assert not Path(name).exists()
        names.append(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", swept_before_it_is_locked)
    write_atomic(tmp_path / "shard.npz", b"again")
    assert content(tmp_path) == {"shard.npz": b"again"} and len(names) == 2


def test_a_file_that_is_about_to_get_its_name_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fchmod
    monkeypatch.setattr(os, "fchmod", lambda *where: (sweep(tmp_path), real(*where))[1])
    write_atomic(tmp_path / "shard.npz", b"whole")
    assert content(tmp_path) == {"shard.npz": b"whole"}


def test_a_file_system_without_locks_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = finish(Settings(tmp_path / "run"))

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with held(run):
        write_atomic(run.path / "more.json", b"{}")
    assert content(run.path)["more.json"] == b"{}"
    assert "no locks (No locks available)" in caplog.text


def test_a_model_that_cannot_be_saved_leaves_the_old_one(tmp_path: Path) -> None:
    class Broken:
        def save(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    run = RunDir(tmp_path)
    run.write(rundir.MODEL, b"old")
    with pytest.raises(OSError, match="No space"):
        run.write_model(Broken())  # type: ignore[arg-type]
    assert content(tmp_path) == {rundir.MODEL: b"old"}


# --- opening --------------------------------------------------------------------------------------------------------


def test_a_finished_run_opens_with_what_was_written(run: RunDir) -> None:
    found = open_run(run.path)
    assert found.output_names == ("cat", "dog")
    assert found.inputs == ImageInput(8, 8)
    assert (found.manifest.recipe, found.manifest.data, found.manifest.seed) == ("toy", "photos", 0)
    assert set(found.manifest.files) == set(rundir.RESULTS)
    assert found.manifest.versions["keras"]
    assert json.loads((run.path / rundir.CONFIG).read_bytes())["recipe"] == "toy"


@pytest.mark.parametrize("name", rundir.RESULTS)
def test_a_changed_file_is_named(run: RunDir, name: str) -> None:
    file = run.path / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(RunError, match=f"{name}: changed since the run finished .* recipe anew"):
        open_run(run.path)


@pytest.mark.parametrize("name", [name for name in rundir.RESULTS if name != rundir.CONFIG])
def test_a_lost_file_is_named(run: RunDir, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises(RunError, match=f"{name}: missing from a finished run"):
        open_run(run.path)


def test_the_manifest_vouches_for_what_a_recipe_adds(tmp_path: Path) -> None:
    run = finish(Settings(tmp_path / "run"), **{"history.csv": "epoch\n1\n"})
    assert set(open_run(run.path).manifest.files) == {*rundir.RESULTS, "history.csv"}
    (run.path / "history.csv").write_text("epoch\n2\n")
    with pytest.raises(RunError, match=r"history\.csv: changed since the run finished"):
        open_run(run.path)
    (run.path / "history.csv").unlink()
    with pytest.raises(RunError, match=r"history\.csv: missing from a finished run"):
        open_run(run.path)


def test_what_is_no_run_is_told_apart(tmp_path: Path, run: RunDir) -> None:
    with pytest.raises(RunError, match="gone: no such run directory"):
        open_run(tmp_path / "gone")
    with pytest.raises(RunError, match="no such run directory"):
        open_run(run.path / rundir.MODEL)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"other: not a run directory \(config.json is missing\)"):
        open_run(tmp_path / "other")
    (run.path / rundir.MANIFEST).unlink()
    with pytest.raises(RunError, match=r"unfinished run\. Run its recipe again"):
        open_run(run.path)


def test_a_directory_that_holds_runs_names_one(tmp_path: Path, run: RunDir) -> None:
    search = tmp_path / "search"
    shutil.copytree(run.path, search / "best-0003")
    (search / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"search: not a run, but it holds some\. Name one, such as .*best-0003"):
        open_run(search)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "toy"}', "\x00\xff"])
def test_a_damaged_manifest_is_named(run: RunDir, text: str) -> None:
    (run.path / rundir.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"manifest\.json: .*damaged or from another version"):
        open_run(run.path)


def test_a_manifest_that_vouches_for_too_little_is_refused(run: RunDir) -> None:
    manifest = replace(run.manifest, files={})
    (run.path / rundir.MANIFEST).write_text(to_json(manifest))
    with pytest.raises(RunError, match=r"manifest\.json: .*config\.json"):
        open_run(run.path)


def test_read_json_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"inputs\.json: missing"):
        read_json(ImageInput, tmp_path / "inputs.json")


def test_a_file_of_another_version_is_refused(run: RunDir) -> None:
    path = run.path / "manifest.json"
    edit(path, schema_version=1)
    with pytest.raises(RunError, match=r"manifest\.json: schema_version 1, this edgetl reads 2\. Make the file again"):
        rundir.open_run(run.path)


def test_a_file_of_a_newer_version_says_so_and_not_which_field_is_unknown(run: RunDir) -> None:
    path = run.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema_version": 3, "invented": 1}))
    with pytest.raises(RunError, match=r"schema_version 3, this edgetl reads 2\. Use a newer edgetl"):
        rundir.open_run(run.path)


def test_an_error_of_the_disk_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        rundir.write_atomic(tmp_path / "gone/report.json", "{}")
    assert error.value.filename == str(tmp_path / "gone/report.json")


def test_photos_that_are_gone_are_an_error_with_a_next_step(run: RunDir) -> None:
    with pytest.raises(DatasetError, match="'photos': no such folder or data set"):
        run.splits()


# --- writing a run --------------------------------------------------------------------------------------------------


def test_the_same_settings_find_a_finished_run_and_change_nothing(run: RunDir) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    with writing(run.path, "toy", Settings(run.path)) as again:
        assert again.finished
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_a_run_that_is_older_than_a_setting_has_its_default(run: RunDir) -> None:
    stored = run.path / rundir.CONFIG
    settings = json.loads(stored.read_text())
    del settings["rate"]
    stored.write_text(json.dumps(settings))
    with writing(run.path, "toy", Settings(run.path)) as again:
        assert again.finished
    with pytest.raises(RunError, match=r"other settings \(rate: 0\.1 -> 0\.2\)"):
        enter(run.path, "toy", Settings(run.path, rate=0.2))


def test_other_settings_are_refused_by_name(run: RunDir) -> None:
    before = content(run.path)
    with pytest.raises(RunError, match=r"other settings \(rate: 0.1 -> 0.2; seed: 0 -> 7\)\. Choose another --out"):
        enter(run.path, "toy", Settings(run.path, rate=0.2, seed=7, workers=3))
    with pytest.raises(RunError, match=r"\(recipe: toy -> other\)"):
        enter(run.path, "other", Settings(run.path))
    assert content(run.path) == before


def test_settings_that_do_not_affect_the_result_may_differ(run: RunDir) -> None:
    with writing(run.path, "toy", Settings(run.path, workers=7)) as again:
        assert again.finished


def test_an_interrupted_run_is_unfinished_and_taken_up_again(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), writing(settings.out, "toy", settings) as run:
        run.write(rundir.LABELS, "cat\n")
        raise KeyboardInterrupt
    assert not RunDir(settings.out).finished
    with pytest.raises(RunError, match="unfinished"):
        open_run(settings.out)
    assert open_run(finish(settings).path).output_names == ("cat", "dog")


@pytest.mark.parametrize("left", [[], ["history.csv"], ["checkpoints/last"]], ids=str)
def test_settings_of_a_failed_run_stay_only_where_it_left_something(left: list[str], tmp_path: Path) -> None:
    settings = Settings(tmp_path / "run")
    with pytest.raises(DatasetError), writing(settings.out, "toy", settings) as run:
        for name in left:
            (run.path / name).parent.mkdir(exist_ok=True)
            (run.path / name).write_text("x")
        raise DatasetError("no")
    assert (settings.out / rundir.CONFIG).is_file() == settings.out.exists() == bool(left)
    assert open_run(finish(settings).path).finished, "the same settings take it up again"


def test_a_directory_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="not empty and not a run directory"):
        enter(tmp_path, "toy", Settings(tmp_path))
    assert content(tmp_path) == {"thesis.tex": b"precious"}
    with pytest.raises(RunError, match=r"thesis\.tex: is a file"):
        enter(tmp_path / "thesis.tex", "toy", Settings(tmp_path))


def test_an_empty_directory_is_taken_and_what_a_kill_left_there_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.k2j3h4").write_text("{")  # killed while the first file was written
    assert open_run(finish(Settings(tmp_path)).path).path == tmp_path


@pytest.mark.parametrize("text", ["{", "[]", "null", "\xff"])
def test_damaged_settings_are_refused(run: RunDir, text: str) -> None:
    (run.path / rundir.CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"config\.json: damaged"):
        enter(run.path, "toy", Settings(run.path))


def test_a_second_process_is_refused_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from test_rundir import *\n"
        "with writing(sys.argv[1], 'toy', Settings(Path(sys.argv[1]))):\n"
        "    print('mine', flush=True); sys.stdin.read()\n"
    )
    out = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert holder.stdin and holder.stdout
    with holder:
        assert holder.stdout.readline() == b"mine\n"
        with pytest.raises(RunError, match="another process is writing this run"):
            enter(out, "toy", Settings(out))
        with pytest.raises(RunError, match="another process is writing this run"), held(RunDir(out)):
            pass
        holder.stdin.close()
        assert holder.wait() == 0
    assert finish(Settings(out)).finished  # the lock went with its holder


def test_a_run_may_move(run: RunDir, tmp_path: Path) -> None:
    shutil.move(run.path, tmp_path / "moved")
    assert open_run(str(tmp_path / "moved")).finished


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "report.json", "text")
    assert caught.value.filename == str(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())
