"""Wrong invocations of every command: status 2, one line that says what, where and what next, nothing half-done."""

import dataclasses
import errno
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from editing import edit
from photos import make_photo_folder

from edgetl import rundir
from edgetl.config import command
from edgetl.console import log
from edgetl.rundir import RunDir
from recipes import cli, experiment

ROOT = Path(__file__).parent.parent
MODULES = {
    "recipe": "recipes.feature_extraction",
    "fine-tune": "recipes.fine_tune",
    "find-lr": "recipes.find_learning_rate",
    "audit": "recipes.audit",
    "choose": "recipes.choose_backbone",
    "search": "recipes.search",
    "distill": "recipes.distill",
    "cross-validate": "recipes.cross_validate",
    "convert": "export.convert",
    "optimize": "export.optimize",
    "layers": "export.layers",
    "evaluate": "export.evaluate",
    "benchmark": "export.benchmark",
    "bundle": "export.bundle",
    "deploy": "export.deploy",
    "report": "export.report",
    "backbones": "edgetl.backbones.__main__",
}
TINY = ["--backbone", "MobileNetV3Small", "--weights", "none", "--image-size", "32"]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


def module(name: str) -> ModuleType:
    return importlib.import_module(MODULES[name])


def run(name: str, *arguments: object) -> int:
    found = module(name)
    return command(found.main, found.Config, prog=name, show=found.show, argv=[str(each) for each in arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- cases: (command, what to prepare in a folder -> arguments, parts of the line) ----------------------------------

Prepare = Callable[[Path, RunDir], list[object]]


def folder_of(**classes: int) -> Callable[[Path], Path]:
    return lambda here: make_photo_folder(here / "photos", classes, size=(16, 12))


def recipe(make: Callable[[Path], Path], *options: str) -> Prepare:
    return lambda here, run: ["--data", make(here), "--out", here / "out", *TINY, *options]


def empty(here: Path) -> Path:
    (here / "photos").mkdir()
    return here / "photos"


def on_run(*options: str, damage: Callable[[Path], object] = lambda copy: None) -> Prepare:
    """Use a copy of the finished run, after doing something to it."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        shutil.copytree(run.path, here / "run")
        damage(here / "run")
        return [here / "run", *options]

    return prepare


def other_config(here: Path, run: RunDir) -> list[object]:
    shutil.copytree(run.path, here / "out")
    return ["--data", make_photo_folder(here / "photos"), "--out", here / "out", *TINY]


def in_file(here: Path, run: RunDir) -> list[object]:
    (here / "file").write_text("x")
    return ["--data", make_photo_folder(here / "photos"), "--out", here / "file/out", *TINY]


def lose_photos(copy: Path) -> None:
    """Let the run's data be a folder that is gone."""
    edit(copy / rundir.MANIFEST, data=str(copy.parent / "gone"))


def spoil(name: str, content: bytes = b"spoilt") -> Callable[[Path], object]:
    return lambda copy: (copy / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda copy: (copy / name).unlink()


def tflite(content: bytes) -> Prepare:
    def prepare(here: Path, run: RunDir) -> list[object]:
        (here / "x.tflite").write_bytes(content)
        return [here / "x.tflite", "--runs", "1"]

    return prepare


def missing(*options: str) -> Prepare:
    return lambda here, run: [here / "gone", *options]


def words(*arguments: str) -> Prepare:
    return lambda here, run: list(arguments)


def tuning(*options: str) -> Prepare:
    """Options that are refused once the backbone is there; other ones are refused before the data is looked at."""
    return recipe(folder_of(cat=5, dog=5), *options)


def at_once(*options: str) -> Prepare:
    return words("--data", "d", "--out", "o", *options)


NEGATIVE = "must not be negative; 0 is off"
TUNING: dict[str, tuple[Prepare, list[str]]] = {
    **{
        f"{name} {value}": (at_once(f"--{name}", value), [f"--{name} {float(value)}: must be positive, such as"])
        for name in ("head-lr", "backbone-lr", "disk-budget-gb")
        for value in ("0", "-1", "inf")
    },
    **{
        f"{name} {value}": (at_once(f"--{name}", value), [f"--{name} {value}: must be at least 1"])
        for name in ("epochs", "epochs-per-group", "batch-size", "gradual")
        for value in ("0", "-3")
    },
    **{
        f"{name} -1": (at_once(f"--{name}", "-1"), [f"--{name} -1.0: {NEGATIVE}"])
        for name in (
            "warmup-epochs",
            "l1",
            "l2",
            "weight-decay",
            "l2-sp",
            "mixup",
            "cutmix",
            "focal-gamma",
            "clip-norm",
        )
    },
    **{
        f"{name} {value}": (at_once(f"--{name}", value), [f"--{name} {value}: a share between 0 and 1 is needed"])
        for name, value in (("dropout", "1.0"), ("label-smoothing", "1.5"), ("ema", "1.0"), ("ema", "-0.5"))
    },
    "layer-decay 0": (at_once("--layer-decay", "0"), ["--layer-decay 0.0: a share of more than 0", "such as 0.8"]),
    "layer-decay 1.1": (at_once("--layer-decay", "1.1"), ["--layer-decay 1.1: a share of more than 0 and at most 1"]),
    "views -2": (at_once("--views", "-2"), ["--views -2: must be a number of versions", "-1 to choose"]),
    "patience -1": (at_once("--patience", "-1"), ["--patience -1: must not be negative; 0 trains all epochs"]),
    "augment": (at_once("--augment", "stong"), ["--augment", "stong", "'medium', 'strong'", "--help"]),
    "precision": (at_once("--precision", "float8"), ["--precision", "float8", "mixed_bfloat16", "--help"]),
    "optimizer": (at_once("--optimizer", "adma"), ["--optimizer", "adma", "'adamw', 'adam'", "--help"]),
    "schedule": (at_once("--schedule", "cosin"), ["--schedule", "cosin", "constant", "--help"]),
    "batch norm": (at_once("--batch-norm", "thawed"), ["--batch-norm", "thawed", "recalibrate", "--help"]),
    "rubbish": (at_once("--epochs", "few"), ["--epochs", "few", "--help"]),
    "typo": (at_once("--backbone-ir", "1e-4"), ["--backbone-ir", "Did you mean --backbone-lr?"]),
    "nothing": (words(), ["--data", "--out", "--help"]),
    "no folder": (recipe(lambda here: here / "gone"), ["gone", "no such folder or data set"]),
}
"""Wrong for both commands that fine-tune."""


SEARCHING: dict[str, tuple[Prepare, list[str]]] = {
    "no trial": (at_once("--trials", "0"), ["--trials 0: must be at least 1"]),
    "nothing ahead": (at_once("--ahead", "0"), ["--ahead 0: must be at least 1"]),
    "processes": (at_once("--processes", "-1"), ["--processes -1", "at least 0 processes"]),
    "one repeat": (at_once("--repeats", "1"), ["--repeats 1: tells nothing of luck"]),
    "latency": (at_once("--max-latency-ms", "0"), ["--max-latency-ms 0.0: must be positive"]),
    "size": (at_once("--max-size-kb", "-3"), ["--max-size-kb -3.0: must be positive"]),
    "method": (at_once("--method", "bayes"), ["--method", "bayes", "hyperband", "--help"]),
    "objective": (at_once("--objectives", "speed"), ["speed", "latency_ms", "--help"]),
    "objective twice": (at_once("--objectives", "size_kb", "size_kb"), ["size_kb size_kb: name each of them once"]),
    "recipe": (at_once("--recipe", "fine-tune"), ["--recipe", "fine-tune", "'fine_tune'", "--help"]),
    "grid without points": (at_once("--method", "grid"), ["--method grid", "--space name=choice(a,b,...)"]),
    "empty grid": (
        at_once("--method", "grid", "--space", "dropout=choice()"),
        ["dropout=choice()", "nothing to"],
    ),
    "grid of a range": (
        at_once("--method", "grid", "--space", "dropout=uniform(0,0.5)"),
        ["--space dropout: a grid needs to know how many points", "uniform(0,0.5,5)"],
    ),
    "unknown knob": (at_once("--space", "learningrate=uniform(0,1)"), ["learningrate", "Did you mean learning_rate?"]),
    "knob of the other recipe": (
        at_once("--space", "backbone_lr=uniform(0,1)"),
        ["backbone_lr: the recipe has no such setting"],
    ),
    "knob that divides the photos": (at_once("--space", "seed=int(0,9)"), ["--space seed: can't be searched"]),
    "value that cannot work": (at_once("--space", "epochs=int(0,9)"), ["epochs: 0 can't work", "must be at least 1"]),
    "unknown network": (
        at_once("--space", "backbone=choice(MobilNetV2)"),
        ["backbone: MobilNetV2 can't work", "Did you mean MobileNetV2"],
    ),
    "file of knobs": (at_once("--space", "gone.yaml"), ["--space gone.yaml: no such file"]),
    "fixed": (at_once("--fixed", "epochs"), ["--fixed epochs: not understood", "name=value"]),
    "fixed unknown": (
        at_once("--fixed", "epoch=3"),
        ["--fixed epoch: feature_extraction has no", "epochs"],
    ),
    "fixed and searched": (
        at_once("--fixed", "epochs=3", "--space", "epochs=int(1,4)"),
        ["--fixed and --space both have epochs"],
    ),
    "no cluster": (
        recipe(folder_of(cat=5, dog=5), "--ray", "127.0.0.1:9"),
        ["--ray 127.0.0.1:9: not reachable", "ray start --head"],
    ),
    "no address": (recipe(folder_of(cat=5, dog=5), "--ray", "cluster"), ["--ray cluster: not an address", "host:port"]),
    "nothing": (words(), ["--data", "--out", "--help"]),
    "no folder": (recipe(lambda here: here / "gone"), ["gone", "no such folder or data set"]),
}


CASES: dict[str, tuple[str, Prepare, list[str]]] = {
    **{f"search: {what}": ("search", prepare, parts) for what, (prepare, parts) in SEARCHING.items()},
    **{
        f"{name}: {what}": (name, prepare, parts)
        for name in ("fine-tune", "find-lr")
        for what, (prepare, parts) in TUNING.items()
    },
    "fine-tune: thaw a misspelt block": (
        "fine-tune",
        tuning("--thaw", "expandedconv_10"),
        ["--thaw 'expandedconv_10': no block", "Did you mean expanded_conv_10", "Blocks, from input to output: stem, "],
    ),
    "fine-tune: thaw nonsense": ("fine-tune", tuning("--thaw", "??"), ["--thaw '??': no block", "output: stem, "]),
    "fine-tune: thaw 99": (
        "fine-tune",
        tuning("--thaw", "99"),
        ["--thaw 99: ", "a number of blocks, 0 to 13", "or all"],
    ),
    "find-lr: thaw 1.5": ("find-lr", tuning("--thaw", "1.5"), ["--thaw 1.5: ", "share of them, 0.0 to 1.0"]),
    "fine-tune: thaw nan": ("fine-tune", tuning("--thaw", "nan"), ["--thaw nan: ", "share of them, 0.0 to 1.0"]),
    "fine-tune: gradual 50": (
        "fine-tune",
        tuning("--thaw", "4", "--gradual", "50"),
        ["--gradual 50: ", "at most one phase per block", "4 blocks are thawed"],
    ),
    "fine-tune: resume nothing": ("fine-tune", at_once("--resume"), ["--resume: o holds no run", "Leave it out"]),
    "find-lr: resume": ("find-lr", at_once("--resume"), ["--resume: there is nothing to resume", "Leave it out"]),
    "find-lr: no range": ("find-lr", at_once("--lowest", "1", "--highest", "1e-3"), ["learning rates 1 to 0.001"]),
    "find-lr: from 0": ("find-lr", at_once("--lowest", "0"), ["learning rates 0 to 1: no range", "such as 1e-6 and 1"]),
    "find-lr: few steps": ("find-lr", at_once("--steps", "1"), ["1 step(s): too few", "at least 10"]),
    # data
    "empty folder": ("recipe", recipe(empty), ["photos", "no class folders", "<class>/<photo>.jpg"]),
    "no folder": (
        "recipe",
        recipe(lambda here: here / "gone"),
        ["gone", "no such folder or data set", "Give a folder"],
    ),
    "misspelt data set": ("recipe", words("--data", "elvp", "--out", "o"), ["'elvp'", "Did you mean elpv?"]),
    "one class": ("recipe", recipe(folder_of(cat=5)), ["1 class folder (cat)", "need at least 2"]),
    "few photos": ("recipe", recipe(folder_of(cat=9, dog=2)), ["class dog", "2 example(s)", "at least 3", "Add some"]),
    # settings of the recipe
    "unknown backbone": (
        "recipe",
        recipe(folder_of(cat=5, dog=5), "--backbone", "MobilNetV2"),
        ["'MobilNetV2'", "Did you mean MobileNetV2", "edgetl backbones"],
    ),
    "too small": (
        "recipe",
        recipe(folder_of(cat=5, dog=5), "--image-size", "8"),
        ["8x8", "minimum is 32x32", "larger"],
    ),
    "no such weights": ("recipe", recipe(folder_of(cat=5, dog=5), "--weights", "w.h5"), ["w.h5", "Check the path"]),
    "fraction": ("recipe", recipe(folder_of(cat=5, dog=5), "--test-fraction", "1.5"), ["1.5", "below 1"]),
    "rubbish number": (
        "recipe",
        words("--data", "d", "--out", "o", "--epochs", "many"),
        ["--epochs", "many", "--help"],
    ),
    "nan": ("recipe", words("--data", "d", "--out", "o", "--learning-rate", "nan"), ["--learning-rate nan", "such as"]),
    "typo": ("recipe", words("--data", "d", "--out", "o", "--bakbone", "x"), ["--bakbone", "Did you mean --backbone?"]),
    "nothing": ("recipe", words(), ["--data", "--out", "See recipe --help"]),
    # run directories
    "other settings": ("recipe", other_config, ["out", "other settings", "backbone: ", "Choose another --out"]),
    "file in the way": ("recipe", in_file, ["file/out", "Not a directory", "Check the path"]),
    **{
        f"{name}: {what}": (name, prepare, parts)
        for name in ("convert", "optimize", "layers", "evaluate", "report")
        for what, prepare, parts in (
            ("no run", missing(), ["gone", "no such run directory", "python -m recipes"]),
            ("no run given", words(), ["See", "--help"]),
            ("not a run", lambda here, run: [here], ["not a run directory", "--out of a recipe"]),
            ("unfinished", on_run(damage=remove(rundir.MANIFEST)), ["unfinished", "same settings"]),
            ("model changed", on_run(damage=spoil(rundir.MODEL)), ["model.keras", "changed", "run the recipe anew"]),
            ("labels lost", on_run(damage=remove(rundir.LABELS)), ["labels.txt", "missing", "new --out"]),
            ("manifest damaged", on_run(damage=spoil(rundir.MANIFEST)), ["manifest.json", "damaged", "make it again"]),
            ("typo", on_run("--sceme", "int8"), ["--sceme", "--help"]),
        )
    },
    # photos
    "convert: photos gone": ("convert", on_run(damage=lose_photos), ["gone", "no such folder", "Give a folder"]),
    "evaluate: photos gone": ("evaluate", on_run(damage=lose_photos), ["gone", "no such folder", "Give a folder"]),
    # artifacts
    "convert: scheme": ("convert", on_run("--schemes", "int7"), ["'int7'", "Choose from", "dynamic_int8"]),
    "convert: no calibration": (
        "convert",
        on_run("--calibration-images", "0"),
        ["--calibration-images 0", "at least 1"],
    ),
    "convert: number": ("convert", on_run("--calibration-images", "few"), ["--calibration-images", "few", "--help"]),
    "convert: composed scheme": (
        "convert",
        on_run("--schemes", "pruned_int7"),
        ["'pruned_int7'", "pruned_ or clustered_"],
    ),
    "convert: ranges": ("convert", on_run("--ranges", "widest"), ["--ranges widest", "min-max"]),
    "convert: mixed without layers": ("convert", on_run("--schemes", "mixed_int8"), ["--float-layers", "optimize"]),
    "convert: layer": (
        "convert",
        on_run("--schemes", "mixed_int8", "--float-layers", "nowhere", "--calibration-images", "12"),
        ["no operator computes layer nowhere", "There are: "],
    ),
    "convert: epochs": (
        "convert",
        on_run("--schemes", "qat_int8", "--epochs", "0", "--calibration-images", "12"),
        ["--epochs 0", "at least 1"],
    ),
    "convert: sparsity": (
        "convert",
        on_run("--schemes", "pruned_int8", "--sparsity", "1.5", "--calibration-images", "12"),
        ["--sparsity 1.5", "below 1"],
    ),
    "convert: model without data": ("convert", words("out", "--model", "m.keras"), ["m.keras"]),
    "optimize: budget": ("optimize", on_run("--max-accuracy-drop", "1"), ["--max-accuracy-drop 1", "less than 1"]),
    "optimize: size": ("optimize", on_run("--max-size-kb", "-3"), ["--max-size-kb -3", "positive"]),
    "optimize: latency": ("optimize", on_run("--max-latency-ms", "0"), ["--max-latency-ms 0", "positive"]),
    "optimize: target": ("optimize", on_run("--target", "gpu"), ["--target", "gpu", "npu"]),
    "optimize: photos gone": ("optimize", on_run(damage=lose_photos), ["gone", "no such folder", "Give a folder"]),
    "layers: scheme": ("layers", on_run("--scheme", "float32"), ["float32", "int8"]),
    "layers: images": ("layers", on_run("--images", "0"), ["--images 0"]),
    "evaluate: scheme": ("evaluate", on_run("--schemes", "int7"), ["no artifact int7", "There: ", "export.convert"]),
    "evaluate: workers": ("evaluate", on_run("--workers", "-1"), ["--workers -1", "0 for one per core"]),
    **{
        f"{name}: {what}": (name, prepare, parts)
        for name in ("evaluate", "report")
        for what, prepare, parts in (
            ("spoilt", on_run(damage=spoil("export/int8.tflite")), ["int8.tflite", "not the file", "export.convert"]),
            ("no json", on_run(damage=remove("export/int8.json")), ["int8.json", "missing", "Run the command"]),
            ("bad json", on_run(damage=spoil("export/int8.json")), ["int8.json", "damaged", "make it again"]),
            (
                "no artifacts",
                on_run(damage=lambda copy: shutil.rmtree(copy / "export")),
                ["export", "no artifacts", "export.convert"],
            ),
        )
    },
    "report: not evaluated": (
        "report",
        on_run(damage=remove("export/evaluation.json")),
        ["run/export", "not evaluated yet", "Run python -m export.evaluate"],
    ),
    "benchmark: nothing there": ("benchmark", missing(), ["gone", "no such run or file", "Give"]),
    "benchmark: no model": ("benchmark", tflite(b"no model at all"), ["x.tflite", "not a TFLite model", "Give"]),
    "benchmark: empty": ("benchmark", tflite(b""), ["x.tflite", "empty", "again"]),
    "benchmark: runs": ("benchmark", missing("--runs", "0"), ["--runs 0", "at least 1"]),
    "benchmark: kernels": ("benchmark", missing("--kernels", "gpu"), ["--kernels", "gpu", "xnnpack"]),
    "backbones: none": ("backbones", words("--name-contains", "zzz"), ["'zzz'", "Leave it out"]),
    "backbones: typo": ("backbones", words("--name", "x"), ["--name", "--help"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_invocation_is_one_line(
    case: str, finished_run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, prepare, parts = CASES[case]
    arguments = prepare(tmp_path, finished_run)
    before = snapshot(tmp_path)
    assert run(name, *arguments, "--quiet") == 2
    out, err = capfd.readouterr()
    # In this process TensorFlow was imported by tests, before its start-up lines could be silenced.
    lines = [line for line in err.splitlines() if "cuda" not in line.lower()]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith(f"{name}: ") and "Traceback" not in err
    assert all(part in lines[0] for part in parts), lines[0]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["recipe", "fine-tune", "find-lr"])
def test_no_number_may_be_nan(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        experiment, "build_backbone", lambda *_: pytest.fail("too late")
    )  # what belongs to the data is refused when it is read
    photos = make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 5}, size=(16, 12))
    before = snapshot(tmp_path)
    fields = [field for field in dataclasses.fields(module(name).Config) if field.type in (float, "float")]
    assert len(fields) >= 5
    for field in fields:
        option = f"--{field.name.replace('_', '-')}"
        head = ["--head", "mlp"] if name == "recipe" else []
        status = run(name, "--data", photos, "--out", tmp_path / "out", *TINY, *head, option, "nan", "--quiet")
        err = capsys.readouterr().err
        assert status == 2 and err.count("\n") == 1 and "nan" in err, (option, err)
        assert option in err or field.name in err or option in ("--lowest", "--highest"), err
    assert snapshot(tmp_path) == before


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", tmp_path / "gone", "--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "open_run" in err
    assert err.splitlines()[-1].startswith("convert: ")


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", pytest.param("replace", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_finished(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 5}, size=(16, 12))
    real = os.fsync if call == "fsync" else Path.replace
    calls: list[int] = []

    def full(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 1:  # the settings are still written
            raise OSError(errno.ENOSPC, "No space left on device", "shard")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    options = ["--data", photos, "--out", tmp_path / "out", "--cache", tmp_path / "cache", *TINY]
    assert run("recipe", *options, "--quiet") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device. Free some disk space" in err
    assert not RunDir(tmp_path / "out").finished
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert run("recipe", *options, "--quiet") == 0


def test_a_full_disk_while_artifacts_are_written_keeps_the_old_ones(
    run_copy: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run_copy.path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("evaluate", "report"):
        assert run(name, run_copy.path, "--quiet") == 2
        assert "Free some disk space" in capsys.readouterr().err
    assert snapshot(run_copy.path) == before


@pytest.mark.parametrize("name", ["evaluate", "report"])
def test_a_place_without_permission_is_one_line(
    name: str, run_copy: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Root may write anywhere, so the system's answer is put in its mouth.
    def denied(*_: object, dir: Path, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/.x")

    monkeypatch.setattr(rundir.tempfile, "mkstemp", denied)
    assert run(name, run_copy.path, "--quiet") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Permission denied. Choose a place that you may write to" in err


# --- processes of their own -----------------------------------------------------------------------------------------

INVOCATIONS = [
    *(["-m", name.removesuffix(".__main__")] for name in MODULES.values()),
    *(["-m", "recipes.cli", name] for name in cli.COMMANDS),
    ["-m", "recipes.cli"],
]
HEAVY = "import sys, atexit, runpy; heavy = {'tensorflow', 'keras', 'sklearn', 'ai_edge_litert', 'scipy'}\n"
WATCH = HEAVY + (
    "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
    "sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
)


def watched(words: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WATCH, *words[1:], *options], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("words", INVOCATIONS, ids=" ".join)
def test_help_needs_nothing_heavy(words: list[str]) -> None:
    done = watched(words, "--help")
    assert done.returncode == 0
    assert "usage" in done.stdout.lower() and len(done.stdout.splitlines()) > 3
    assert done.stderr == "HEAVY []\n"


@pytest.mark.parametrize("words", INVOCATIONS[: len(MODULES)], ids=" ".join)
def test_a_usage_error_needs_nothing_heavy(words: list[str]) -> None:
    positional = [] if "recipes" in words[1] or "backbones" in words[1] else ["run"]
    done = watched(words, *positional, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert "--no-such-option" in first
    assert second == "HEAVY []"


def test_that_watch_would_see_heavy_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH.replace("runpy.run_module(", "import scipy; print("), "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "HEAVY ['scipy']" in done.stderr


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(str(word) for word in words)], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_a_real_process_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    done = python("-m", "export.convert", tmp_path / "gone")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"python -m export.convert: {tmp_path}/gone: no such run directory. "
        "Make one with python -m recipes.feature_extraction\n"
    )


def test_a_corrupt_artifact_in_a_real_process(run_copy: RunDir) -> None:
    path = run_copy.export_path / "int8.tflite"
    path.write_bytes(path.read_bytes()[:20_000])
    done = python("-m", "export.benchmark", path, "--runs", "1", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "int8.tflite" in done.stderr


def test_the_whole_chain_prints_results_only_on_stdout(run_copy: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    done = python("-m", "export.report", run_copy.path, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dynamic_int8" in done.stdout and "15 test photos" in done.stdout


# --- the console script ---------------------------------------------------------------------------------------------


def script(monkeypatch: pytest.MonkeyPatch, *words: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["edgetl", *(str(word) for word in words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_script_names_near_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(monkeypatch, "convrt") == 2
    assert capsys.readouterr() == ("", "edgetl: unknown command 'convrt'. Did you mean convert?\n")
    assert script(monkeypatch, "zzz") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(name in err for name in cli.COMMANDS)


def test_script_speaks_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert script(monkeypatch, "report", tmp_path) == 2
    assert capsys.readouterr().err.startswith("edgetl report: ")


def test_script_lists_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert script(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip()
    assert {name for name, _ in cli.COMMANDS.values()} == set(MODULES.values())
