"""Wrong invocations of every command: status 2, one line that says what, where and what next, nothing half-done."""

import contextlib
import ctypes
import dataclasses
import errno
import importlib
import os
import re
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
from export.device import cli as device
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
UNLISTED = {"families": "export.families"}
"""For who maintains edgetl; the console script does not have it."""
DEVICE = "edgetl-device.pyz"
GOLDEN = ROOT / "tests/golden/schema2"
TINY = ["--backbone", "MobileNetV3Small", "--weights", "none", "--image-size", "32"]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


def module(name: str) -> ModuleType:
    return importlib.import_module((MODULES | UNLISTED)[name])


def run(name: str, *arguments: object) -> int:
    if name == DEVICE:
        return device.main([str(each) for each in arguments if each != "--quiet"])
    found = module(name)
    return command(found.main, found.Config, prog=name, show=found.show, argv=[str(each) for each in arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def folders(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


# --- cases: (command, what to prepare in a folder -> arguments, parts of the line) ----------------------------------

Prepare = Callable[[Path, RunDir], list[object]]


def folder_of(**classes: int) -> Callable[[Path], Path]:
    return lambda here: make_photo_folder(here / "photos", classes, size=(16, 12))


def recipe(make: Callable[[Path], Path], *options: str) -> Prepare:
    return lambda here, run: ["--data", make(here), "--out", here / "out", *TINY, *options]


def empty(here: Path) -> Path:
    (here / "photos").mkdir()
    return here / "photos"


def on_run(*options: str, damage: Callable[[Path], object] = lambda copy: None, source: Path | None = None) -> Prepare:
    """Use a copy of the finished run, or of another one, after doing something to it."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        shutil.copytree(source or run.path, here / "run")
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
        at_once("--method", "grid", "--space", "dropout=uniform(0,0.5)", "--fixed", "head=mlp"),
        ["--space dropout: a grid needs to know how many points", "uniform(0,0.5,5)"],
    ),
    "huge grid": (
        at_once("--method", "grid", "--space", "epochs=int(1,100000000)", "--fixed", "head=mlp"),
        ["a grid of 100,000,000 points", "Use --method random or tpe"],
    ),
    "bounds beyond float32": (
        at_once("--space", "weight_decay=uniform(0,1e38)"),
        ["weight_decay=uniform(0,1e38): bounds must be within"],
    ),
    "knobs without effect": (
        at_once("--space", "dropout=uniform(0,0.5)", "epochs=int(1,9)"),
        ["--space dropout epochs: all trials would be the same", "add --fixed head=mlp"],
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
            ("an unset variable", words(""), ["'': a path is needed", "--help"]),
            ("no run given", words(), ["See", "--help"]),
            ("not a run", lambda here, run: [here], ["not a run directory", "--out of a recipe"]),
            ("unfinished", on_run(damage=remove(rundir.MANIFEST)), ["unfinished", "same settings"]),
            ("model changed", on_run(damage=spoil(rundir.MODEL)), ["model.keras", "changed", "run the recipe anew"]),
            ("labels lost", on_run(damage=remove(rundir.LABELS)), ["labels.txt", "missing", "new --out"]),
            ("manifest damaged", on_run(damage=spoil(rundir.MANIFEST)), ["manifest.json", "damaged", "delete it"]),
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
        on_run(
            *("--schemes", "mixed_int8", "--float-layers", "nowhere", "--calibration-images", "12"),
            *("--data", str(GOLDEN / "photos")),
            source=GOLDEN / "run",
        ),
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
            ("bad json", on_run(damage=spoil("export/int8.json")), ["int8.json", "damaged", "delete it"]),
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


# --- the same mistakes everywhere -----------------------------------------------------------------------------------

RECIPES = ("recipe", "audit", "choose", "search", "cross-validate")
"""All that take photos, fine-tuning aside, which has a table of its own."""


def photos_and(*options: object, **files: bytes) -> Prepare:
    """Two classes of photos, files beside them, and options in which {here} is the folder of all that."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        for name, content in files.items():
            (here / name.replace("_", ".")).write_bytes(content)
        photos = make_photo_folder(here / "photos", {"cat": 5, "dog": 5}, size=(16, 12))
        given = [str(option).replace("{here}", str(here)) for option in options]
        return [*([] if "--data" in given else ["--data", photos]), "--out", here / "out", *given]

    return prepare


def with_out(make: Callable[[Path], object]) -> Prepare:
    """Something lies already where the results should go."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        make(here / "out")
        return photos_and()(here, run)

    return prepare


def filled(out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("x")


LISTS = "Name the exclude.csv that recipes.audit wrote"
EVERYWHERE: dict[str, tuple[Prepare, list[str]]] = {
    "typo": (at_once("--sead", "1"), ["--sead", "Did you mean --seed?", "--help"]),
    "stray word": (at_once("stray"), ["Unrecognized options: stray", "--help"]),
    "no value": (at_once("--cache"), ["Missing value for argument '--cache'", "--help"]),
    "empty data": (words("--data", "", "--out", "o"), ["'': no such folder or data set", "Give a folder"]),
    "empty out": (words("--data", "d", "--out", ""), ["--out '': a path is needed", ". for the current folder"]),
    "lines in a path": (words("--data", "a\nb", "--out", "o"), [r"'a\nb': no such folder or data set"]),
    "other letters": (words("--data", "фото ✓", "--out", "o"), ["'фото ✓': no such folder or data set"]),
    "no UTF-8": (words("--data", "a\udcff", "--out", "o"), [r"'a\udcff': no such folder or data set"]),
    "long name": (words("--data", "x" * 300, "--out", "o"), ["xxx: File name too long. Check the path"]),
    "seed -1": (at_once("--seed", "-1"), ["--seed -1: must be between 0 and 4294967295"]),
    "seed of 33 bits": (at_once("--seed", "4294967296"), ["--seed 4294967296: must be between 0"]),
    "seed 1e3": (at_once("--seed", "1e3"), ["--seed", "'1e3'", "--help"]),
    "seed of 5,000 digits": (at_once("--seed", "9" * 5000), ["--seed", "4300 digits", "--help"]),
    "size -1": (at_once("--image-size", "-1"), ["--image-size -1: must not be negative; 0 chooses"]),
    "size of a poster": (at_once("--image-size", "1000000"), ["--image-size 1000000: must be at most 4096 pixels"]),
    "workers -1": (at_once("--workers", "-1"), ["--workers -1: must not be negative"]),
    "ray": (at_once("--ray", "ftp://x"), ["--ray ftp://x: not an address", "host:port"]),
    "task": (at_once("--task", "clasification"), ["--task", "'clasification'", "'classification'", "--help"]),
    "label of a folder": (photos_and("--label", "x"), ["--label can't be followed", "Leave them out"]),
    "targets of a folder": (photos_and("--targets", "x"), ["--targets can't be followed", "Leave them out"]),
    "group of a folder": (photos_and("--group", "nope"), ["no column nope for --group", "Name one of them"]),
    "order of other classes": (
        photos_and("--class-order", "cat", "owl", "--task", "ordinal"),
        ["--class-order is cat, owl; the classes are cat, dog", "Name each of them once"],
    ),
    "folder of numbers": (photos_and("--task", "regression"), ["gives no --task regression", "Write a table"]),
    "no such list": (photos_and("--exclude", "gone.csv"), ["--exclude gone.csv: No such file", LISTS]),
    "a folder for a list": (photos_and("--exclude", "{here}"), ["--exclude ", "not a regular file", LISTS]),
    "an empty list": (photos_and("--exclude", "{here}/l.csv", l_csv=b""), ["l.csv: line 1 has columns (none)"]),
    "list of other columns": (
        photos_and("--exclude", "{here}/l.csv", l_csv=b"a,b\n1,2\n"),
        ["l.csv: line 1 has columns a,b, expected id,action"],
    ),
    "list of other photos": (
        photos_and("--exclude", "{here}/l.csv", l_csv=b"id,action\nnope.jpg,exclude\n"),
        ["l.csv: line 2: ", "has no photo 'nope.jpg'", "Correct or remove the line"],
    ),
    "list with another verb": (
        photos_and("--exclude", "{here}/l.csv", l_csv=b"id,action\ncat/0000.jpg,drop\n"),
        ["l.csv: line 2: ", "drop", "exclude"],
    ),
    "list of bytes": (photos_and("--exclude", "{here}/l.csv", l_csv=b"\xff\xfe\0\1"), ["l.csv: not UTF-8 text", LISTS]),
    "an empty table": (photos_and("--data", "{here}/t.csv", t_csv=b""), ["t.csv: empty. Write a row for each"]),
    "table without rows": (photos_and("--data", "{here}/t.csv", t_csv=b"path,label\n"), ["t.csv: no row below"]),
    "table without labels": (
        photos_and("--data", "{here}/t.csv", t_csv=b"a,b\n1,2\n"),
        ["t.csv: no column label, labels or target. It has a, b", "name it by --label or --targets"],
    ),
    "table without paths": (
        photos_and("--data", "{here}/t.csv", t_csv=b"image,label\nx,y\n"),
        ["t.csv: no column path", "It has image, label. Rename one or add it"],
    ),
    "table of bytes": (photos_and("--data", "{here}/t.csv", t_csv=b"\xff\xfe\0\1\n"), ["t.csv: UTF-16 or binary"]),
    "lines of no JSON": (photos_and("--data", "{here}/t.jsonl", t_jsonl=b"{\n"), ["t.jsonl: line 1: no JSON"]),
    "an archive": (photos_and("--data", "{here}/t.zip", t_zip=b"PK"), ["t.zip: a file, need a folder", "Unpack it"]),
    "tfds without a name": (words("--data", "tfds:", "--out", "o"), ["tfds:: no name of a data set", "tfds:mnist"]),
    "a password in a URL": (
        words("--data", "http://user:secret@127.0.0.1:1/x", "--out", "o"),
        ["http://...: a password, a key or a query in the URL", "Leave it out"],
    ),
    "a server that is not there": (
        words("--data", "ftp://127.0.0.1:9/x/", "--out", "o"),
        ["ftp://127.0.0.1:9/x/: can't be read", "Connection refused", "Check the network"],
    ),
    "out is full": (with_out(filled), ["out: not empty and not a", "Choose another"]),
    "out is a file": (with_out(lambda out: out.write_text("x")), ["out: "]),
    "out among the photos": (
        photos_and("--out", "{here}/photos/out"),
        ["photos/out: lies in the data and would be taken for a class", "Choose another run directory"],
    ),
}
"""Wrong for all of them."""
AUDITING: dict[str, tuple[Prepare, list[str]]] = {
    "fixed share": (at_once("--validation-fraction", "0.1"), ["Unrecognized options: --validation-fraction", "--help"]),
    "width": (at_once("--width", "7"), ["EfficientNetLite0: there is no width 7 of it", "Leave it out; several have"]),
    "backbone": (at_once("--backbone", "MobilNetV2"), ["'MobilNetV2' is unknown", "Did you mean MobileNetV2"]),
    "no backbone": (photos_and("--backbone", ""), ["backbone '' is unknown", "edgetl backbones"]),
    "folder for weights": (photos_and("--weights", "{here}"), ["weights ", "expected imagenet, none, or a file"]),
    "file for a cache": (photos_and("--cache", "{here}/c.x", c_x=b""), ["c.x/", "Not a directory. Check the path"]),
    "features": (at_once("--features", "few"), ["few", "--help"]),
}
CHOOSING: dict[str, tuple[Prepare, list[str]]] = {
    "small sample": (at_once("--sample", "5"), ["--sample 5: must be at least 10"]),
    "negative sample": (at_once("--sample", "-1"), ["--sample -1: must be at least 10"]),
    "no run": (at_once("--runs", "0"), ["--runs 0: must be at least 1"]),
    "no name": (at_once("--backbones", ","), ["--backbones ',': no name", "edge, or all"]),
    "misspelt": (at_once("--backbones", "MobilNetV2"), ["'MobilNetV2' is unknown", "Did you mean MobileNetV2"]),
    "group and name": (at_once("--backbones", "edge,MobileNetV2"), ["backbone 'edge' is unknown"]),
    "one backbone": (at_once("--backbone", "MobileNetV2"), ["--backbone", "Did you mean --backbones?"]),
    "one fold": (photos_and("--folds", "1"), ["--folds 1: need at least 2, such as 5"]),
    "more folds than photos": (photos_and("--folds", "50"), ["10 examples, fewer than --folds 50", "Lower it"]),
    "too small": (
        photos_and("--backbones", "MobileNetV3Small", "--weights", "none", "--image-size", "8"),
        ["MobileNetV3Small: 8x8 pixels are too few, the minimum is 32x32"],
    ),
    "nothing": (words(), ["--data", "--out", "--help"]),
}
FOLDING: dict[str, tuple[Prepare, list[str]]] = {
    "one fold": (photos_and("--folds", "1"), ["--folds 1: need at least 2, such as 5"]),
    "negative folds": (photos_and("--folds", "-2"), ["--folds -2: need at least 2"]),
    "more folds than photos": (photos_and("--folds", "50"), ["10 examples, fewer than --folds 50", "Lower it"]),
    "rubbish": (at_once("--folds", "few"), ["--folds", "'few'", "--help"]),
    "processes": (at_once("--processes", "-1"), ["--processes -1: must not be negative; 0 takes one per core"]),
    "recipe": (at_once("--recipe", "fine-tune"), ["'fine-tune'", "'fine_tune'", "--help"]),
    "option of the other recipe": (at_once("--thaw", "2"), ["--thaw: works with --recipe fine_tune"]),
    "resume nothing": (
        at_once("--resume", "--recipe", "fine_tune"),
        ["--resume: o holds no folds to go on with", "Leave it out"],
    ),
    "no epoch": (at_once("--epochs", "0", "--recipe", "fine_tune"), ["--epochs 0: must be at least 1"]),
    "infinite rate": (at_once("--head-lr", "1e999"), ["--head-lr inf: must be positive, such as"]),
    "infinite share": (photos_and("--validation-fraction", "1e999"), ["validation_fraction=inf", "below 1"]),
    "share of tests": (at_once("--test-fraction", "0.2"), ["Unrecognized options: --test-fraction", "--help"]),
    "nothing": (words(), ["--data", "--out", "--help"]),
}


def teach(*options: str) -> Prepare:
    return words("--teacher", "t", "--out", "o", *options)


def taught(*options: object, damage: Callable[[Path], object] = lambda copy: None, out: str = "out") -> Prepare:
    """By a copy of the golden run; {here} is the folder of all that."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        shutil.copytree(GOLDEN / "run", here / "run")
        damage(here / "run")
        (here / "empty").mkdir()
        student = ["--student", *TINY[1:]]
        given = [str(option).replace("{here}", str(here)) for option in options]
        return ["--teacher", here / "run", "--out", here / out, *student, *given]

    return prepare


DISTILLING: dict[str, tuple[Prepare, list[str]]] = {
    "cold": (teach("--temperature", "0"), ["--temperature 0.0: must be positive, such as 4"]),
    "minus nothing": (teach("--temperature", "-0"), ["--temperature -0.0: must be positive"]),
    "hot": (teach("--temperature", "1e999"), ["--temperature inf: must be positive"]),
    "more than all": (teach("--label-weight", "2"), ["--label-weight 2.0: a share from 0 to 1"]),
    "no number": (teach("--label-weight", "nan"), ["--label-weight nan: a share from 0 to 1"]),
    "hints": (teach("--hint-weight", "-1"), ["--hint-weight -1.0: must not be negative; 0 is off"]),
    "labels alone": (
        teach("--unlabelled", "u", "--label-weight", "1"),
        ["--label-weight 1: leaves nothing to learn from --unlabelled"],
    ),
    "photos of no class": (
        teach("--unlabelled", "u", "--class-balance", "sampling"),
        ["--class-balance sampling: --unlabelled photos have no class"],
    ),
    "no view": (teach("--views", "0"), ["--views 0: ", "Choose at least 1, or -1"]),
    "student": (teach("--student", "MobilNetV2"), ["'MobilNetV2' is unknown", "Did you mean MobileNetV2"]),
    "no student": (teach("--student", ""), ["backbone '' is unknown"]),
    "settled": (teach("--test-fraction", "0.3"), ["Unrecognized options: --test-fraction", "--help"]),
    "resume nothing": (teach("--resume"), ["--resume: o holds no run", "Leave it out"]),
    "typo": (teach("--techer", "x"), ["--techer", "Did you mean --teacher?"]),
    "no epoch": (teach("--epochs", "0"), ["--epochs 0: must be at least 1"]),
    "no teacher": (teach(), ["t: no such run directory", "python -m recipes"]),
    "no teacher named": (words("--out", "o"), ["Missing", "--teacher", "--help"]),
    "no place": (words("--teacher", "t"), ["Missing", "--out", "--help"]),
    "empty teacher": (words("--teacher", "", "--out", "o"), ["--teacher '': a path is needed"]),
    "teacher no run": (lambda here, run: ["--teacher", here, "--out", here / "out"], ["not a run directory"]),
    "teacher unfinished": (taught(damage=remove(rundir.MANIFEST)), ["unfinished run", "same settings"]),
    "teacher changed": (taught(damage=spoil(rundir.MODEL)), ["model.keras: changed", "run the recipe anew"]),
    "own teacher": (taught(out="run"), ["run: is the teacher", "Choose another --out"]),
    "photos gone": (taught(), ["edgetl-golden/photos': no such folder", "Give a folder"]),
    "other photos": (taught("--data", "{here}/empty"), ["empty/", "missing now", "Put the photo(s) back"]),
    "unlabelled gone": (
        taught("--data", GOLDEN / "photos", "--unlabelled", "nowhere"),
        ["--unlabelled nowhere: no such folder", "leave it out"],
    ),
    "unlabelled empty": (
        taught("--data", GOLDEN / "photos", "--unlabelled", "{here}/empty"),
        ["--unlabelled ", "no photo in it"],
    ),
    "unlabelled a file": (
        taught("--data", GOLDEN / "photos", "--unlabelled", "{here}/run/config.json"),
        ["--unlabelled ", "config.json: no such folder"],
    ),
}
OF_A_RUN: dict[str, tuple[Prepare, list[str]]] = {
    "no run": (missing(), ["gone: no such run directory", "python -m recipes"]),
    "no run given": (words(), ["Missing", "PATH", "--help"]),
    "not a run": (lambda here, run: [here], ["not a run directory", "--out of a recipe"]),
    "a file": (lambda here, run: [GOLDEN / "run/config.json"], ["config.json: no such run directory"]),
    "no name": (words(""), ["'': a path is needed, . for the current folder", "--help"]),
    "lines in a path": (words("a\nb"), ["a b: no such run directory"]),
    "long name": (words("x" * 300), ["x"]),
    "unfinished": (on_run(damage=remove(rundir.MANIFEST), source=GOLDEN / "run"), ["unfinished", "same settings"]),
    "model changed": (on_run(damage=spoil(rundir.MODEL), source=GOLDEN / "run"), ["model.keras: changed", "anew"]),
    "manifest": (on_run(damage=spoil(rundir.MANIFEST), source=GOLDEN / "run"), ["manifest.json", "damaged"]),
    "another version": (
        on_run(damage=spoil(rundir.MANIFEST, b'{"schema_version": 99}'), source=GOLDEN / "run"),
        ["manifest.json: schema_version 99, this edgetl reads 2. Use a newer edgetl"],
    ),
    "two runs": (on_run("another", source=GOLDEN / "run"), ["Unrecognized options: another", "--help"]),
    "typo": (on_run("--sceme", "int8", source=GOLDEN / "run"), ["--sceme", "--scheme", "--help"]),
}
"""Wrong for each command on a run; the older ones have some of these already."""


def to_a_device(prepare: Prepare) -> Prepare:
    return lambda here, run: [*prepare(here, run), "--ssh", "pi@127.0.0.1"]


def on_golden(*options: object, damage: Callable[[Path], object] = lambda copy: None) -> Prepare:
    """The golden run is small; its photos have moved. {here} is the folder of its copy."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        words_ = on_run(*map(str, options), damage=damage, source=GOLDEN / "run")(here, run)
        return [str(word).replace("{here}", str(here)) for word in words_]

    return prepare


BUNDLING: dict[str, tuple[Prepare, list[str]]] = {
    "scheme": (on_golden("--scheme", "int7"), ["unknown scheme 'int7'", "Choose from"]),
    "no scheme": (on_golden("--scheme", ""), ["unknown scheme ''", "Choose from"]),
    "not made": (on_golden("--scheme", "int16x8"), ["no artifact int16x8", "There: float32, int8", "export.convert"]),
    "no photo": (on_golden("--photos", "0"), ["--photos 0: give at least 1"]),
    "rubbish": (on_golden("--photos", "many"), ["--photos", "'many'", "--help"]),
    "target": (on_golden("--target", "mcus"), ["'mcus'", "'mcu', 'ethos-u'", "--help"]),
    "accelerator": (on_golden("--accelerators", "ethos-u55-64"), ["--accelerators", "go with --target ethos-u"]),
    "cpu": (on_golden("--allow-cpu"), ["--allow-cpu go with --target ethos-u"]),
    "photos gone": (on_golden(), ["edgetl-golden/photos': no such folder", "Give a folder"]),
    "other photos": (on_golden("--data", "{here}/run"), ["run/", "missing now", "Put the photo(s) back"]),
    "not evaluated": (
        on_golden(damage=remove("export/evaluation.json")),
        ["not evaluated yet. Run python -m export.evaluate"],
    ),
    "spoilt": (on_golden(damage=spoil("export/int8.tflite")), ["int8.tflite: not the file that int8.json describes"]),
    "no artifacts": (on_golden(damage=lambda copy: shutil.rmtree(copy / "export")), ["no artifacts", "export.convert"]),
    "over the run": (on_golden("--out", "{here}/run"), ["run: not empty and not a bundle", "Choose another --out"]),
    "over artifacts": (on_golden("--out", "{here}/run/export"), ["export: not empty and not a bundle"]),
    "over a file": (on_golden("--out", "{here}/run/config.json"), ["config.json: is a file. Choose another --out"]),
    "empty out": (on_golden("--out", ""), ["--out '': a path is needed"]),
}
DEPLOYING: dict[str, tuple[Prepare, list[str]]] = {
    what: (on_golden(*options), parts)
    for what, options, parts in (
        ("no device", (), ["name one device: --ssh user@host, or --adb"]),
        ("two devices", ("--ssh", "a@b", "--adb"), ["name one device: --ssh user@host, or --adb"]),
        ("nothing that measures", ("--adb",), ["--adb needs --benchmark-model FILE"]),
        ("port 0", ("--ssh", "h", "--port", "0"), ["--port 0: expected 1 to 65535"]),
        ("port 70000", ("--ssh", "h", "--port", "70000"), ["--port 70000: expected 1 to 65535"]),
        ("port by name", ("--ssh", "h", "--port", "ssh"), ["--port", "'ssh'", "--help"]),
        ("no thread", ("--ssh", "h", "--threads", "0"), ["--threads 0: must be at least 1"]),
        ("no wheels", ("--ssh", "h", "--wheels", "nowhere"), ["--wheels nowhere: no .whl files there"]),
        ("serial", ("--ssh", "h", "--serial", "x"), ["--serial goes with --adb, not with --ssh"]),
        ("clean", ("--adb", "--benchmark-model", "x", "--clean"), ["--clean goes with --ssh, not with --adb"]),
        ("benchmark_model", ("--adb", "--benchmark-model", "nowhere"), ["--benchmark-model nowhere: no such file"]),
        ("an option as host", ("--ssh=-oProxyCommand=x",), ["--ssh '-oProxyCommand=x': not a host", "user@host"]),
        ("two hosts", ("--ssh", "a b"), ["--ssh 'a b': not a host"]),
        ("no host", ("--ssh", "pi@"), ["--ssh 'pi@': not a host"]),
        ("key", ("--ssh", "h", "--identity", "nokey"), ["--identity nokey: no such file"]),
        ("config", ("--ssh", "h", "--ssh-config", "none"), ["--ssh-config none: no such file"]),
        ("name of a path", ("--ssh", "h", "--name", "a/b"), ["--name 'a/b': must be usable as a folder's name"]),
        ("name ..", ("--ssh", "h", "--name", ".."), ["--name '..': must be usable as a folder's name"]),
        ("name of two lines", ("--ssh", "h", "--name", "a\nb"), [r"--name 'a\nb': must be usable"]),
        ("home itself", ("--ssh", "h", "--remote-dir", ""), ["--remote-dir '': is empty. Leave it out"]),
        ("no Python", ("--ssh", "h", "--python", ""), ["--python '': is empty. Leave it out"]),
        ("scheme", ("--ssh", "h", "--scheme", "int7"), ["no artifact int7", "There: float32, int8"]),
        ("no bundle", ("--ssh", "h", "--scheme", "float32"), ["bundles/float32: no bundle", "export.bundle"]),
    )
} | {
    "stale": (
        on_golden("--ssh", "h", damage=spoil("bundles/int8/int8.tflite")),
        ["int8.tflite: missing or changed since the bundle was made", "export.bundle"],
    ),
    "bundle damaged": (
        on_golden("--ssh", "h", damage=spoil("bundles/int8/bundle.json")),
        ["bundle.json: can't be used", "make it anew with python -m export.bundle"],
    ),
}
FURTHER: dict[str, dict[str, tuple[Prepare, list[str]]]] = {
    "search": {  # found when trials are about to begin, and yet nothing is left
        "folder for weights": (photos_and("--weights", "{here}"), ["weights ", "expected imagenet, none, or a file"]),
    },
    "convert": {
        "no scheme": (on_golden("--schemes"), ["no scheme asked for", "Choose from"]),
        "photos moved": (on_golden("--data", "nowhere"), ["'nowhere': no such folder"]),
        "layers without mixed": (on_golden("--float-layers", "x"), ["--float-layers x: is for mixed_int8"]),
        "clusters": (on_golden("--clusters", "0"), ["--clusters 0: 2 to 256 distinct values"]),
        "rate": (on_golden("--learning-rate", "-1"), ["--learning-rate -1.0: must not be negative"]),
    },
    "layers": {
        "images -1": (on_golden("--images", "-1"), ["--images -1: give at least 1"]),
        "top": (on_golden("--top", "-1"), ["--top -1: give at least 0"]),
        "sort": (on_golden("--sort", "size"), ["--sort", "'size'", "--help"]),
        "photos moved": (on_golden("--data", "nowhere"), ["'nowhere': no such folder"]),
        "scheme of floats": (on_golden("--scheme", "dynamic_int8"), ["dynamic_int8", "int8"]),
    },
    "optimize": {
        "drop": (on_golden("--max-accuracy-drop", "nan"), ["--max-accuracy-drop nan", "less than 1"]),
        "size": (on_golden("--max-size-kb", "1e999"), ["--max-size-kb inf", "positive"]),
        "calibration": (on_golden("--calibration-images", "0"), ["--calibration-images 0"]),
    },
    "evaluate": {
        "scheme not made": (on_golden("--schemes", "int16x8"), ["no artifact int16x8", "There: float32, int8"]),
        "rubbish": (on_golden("--workers", "two"), ["--workers", "'two'", "--help"]),
        "photos moved": (on_golden("--data", "nowhere"), ["'nowhere': no such folder"]),
    },
    "benchmark": {
        "no target": (words(), ["Missing", "PATH", "--help"]),
        "lines in a path": (words("a\nb"), ["a b: no such run or file"]),
        "runs -1": (on_golden("--runs", "-1"), ["--runs -1", "at least 1 run"]),
        "warmup": (on_golden("--warmup", "-1"), ["--warmup -1", "0 warm-ups"]),
        "threads": (on_golden("--threads", "0"), ["--threads 0", "1 thread"]),
        "more threads than there can be": (on_golden("--threads", "99999999999"), ["threads=99999999999"]),
        "report on a run": (on_golden("--json", "j.json"), ["--json is for a single file"]),
        "scheme": (on_golden("--schemes", "int7"), ["no artifact int7"]),
        "schemes of a file": (
            lambda here, run: [GOLDEN / "run/export/int8.tflite", "--schemes", "int8"],
            ["--schemes chooses among a run's artifacts", "leave it out"],
        ),
        "report in no folder": (
            lambda here, run: [GOLDEN / "run/export/int8.tflite", "--json", here / "no/j.json"],
            ["no/j.json: not a place for a file", "Name a file in a folder that is there"],
        ),
        "report over a folder": (
            lambda here, run: [GOLDEN / "run/export/int8.tflite", "--json", here],
            ["--json ", ": not a place for a file"],
        ),
        "no run": (lambda here, run: [here], ["export: no artifacts", "export.convert"]),
        "another file": (lambda here, run: [GOLDEN / "run/config.json"], ["config.json: not a TFLite model"]),
        "typo": (on_golden("--trheads", "2"), ["--trheads", "Did you mean --threads?"]),
    },
    "report": {
        "bad evaluation": (on_golden(damage=spoil("export/evaluation.json")), ["evaluation.json", "delete it"]),
        "bad latency": (on_golden(damage=spoil("export/int8.latency.json")), ["int8.latency.json", "delete it"]),
    },
    "backbones": {
        "other letters": (words("--name-contains", "✓"), ["'✓'", "Leave it out"]),
        "two lines": (words("--name-contains", "a\nb"), [r"'a\nb'", "Leave it out"]),
        "no value": (words("--name-contains"), ["Missing value for argument '--name-contains'"]),
        "stray word": (words("MobileNet"), ["Unrecognized options: MobileNet", "--help"]),
        "a value too many": (words("--quantization", "yes"), ["yes", "--help"]),
    },
    "families": {
        "unknown": (words("--backbones", "Nope"), ["--backbones Nope: stand for no family", "Choose from: Eff"]),
        "no name": (words("--backbones", ""), ["stand for no family", "Choose from: Eff"]),
        "typo": (words("--backbone", "x"), ["--backbone", "Did you mean --backbones?"]),
        "stray word": (words("x"), ["Unrecognized options: x", "--help"]),
        "empty out": (words("--out", ""), ["--out '': a path is needed"]),
    },
    "edgetl": {
        "misspelt": (words("convrt"), ["unknown command 'convrt'", "Did you mean convert?"]),
        "no name": (words(""), ["unknown command ''", "Commands: backbones, "]),
        "two lines": (words("a\nb"), [r"unknown command 'a\nb'"]),
        "option": (words("--verison"), ["unknown command '--verison'"]),
        "module": (words("fine_tune"), ["unknown command 'fine_tune'", "Did you mean fine-tune?"]),
        "other letters": (words("✓"), ["unknown command '✓'", "Commands: backbones, "]),
    },
    "edgetl convert": {"gone": (missing("--quiet"), ["gone: no such run directory"])},
    "edgetl report": {"typo": (missing("--htlm"), ["Unrecognized options: --htlm", "See edgetl report --help"])},
}


def bundled(*words_: object, damage: Callable[[Path], object] = lambda copy: None, **files: bytes) -> Prepare:
    """A copy of the golden run's bundle, files beside it; {here} is the folder of both."""

    def prepare(here: Path, run: RunDir) -> list[object]:
        shutil.copytree(GOLDEN / "run/bundles/int8", here / "bundle")
        damage(here / "bundle")
        for name, content in files.items():
            (here / name.replace("_", ".")).write_bytes(content)
        return [*(str(word).replace("{here}", str(here)) for word in words_), "--bundle", here / "bundle"]

    return prepare


ON_THE_DEVICE: dict[str, tuple[Prepare, list[str]]] = {
    "nothing": (words(), ["COMMAND", "--help"]),
    "command": (words("chek"), ["invalid choice: 'chek'", "--help"]),
    "no command": (words(""), ["invalid choice: ''", "--help"]),
    "option": (bundled("check", "--kernel5", "xnnpack"), ["unrecognized arguments: --kernel5", "--help"]),
    "kernels": (bundled("check", "--kernels", "gpu"), ["--kernels", "invalid choice: 'gpu'"]),
    "stray word": (bundled("info", "x"), ["unrecognized arguments: x"]),
    "no photo named": (bundled("predict"), ["PHOTO", "--help"]),
    "photo gone": (bundled("predict", "none.jpg"), ["none.jpg: No such file"]),
    "no photo": (bundled("predict", "{here}/x.jpg", x_jpg=b"no photo"), ["x.jpg: not a photo"]),
    "an empty photo": (bundled("predict", "{here}/x.jpg", x_jpg=b""), ["x.jpg: empty file (0 bytes)"]),
    "a folder for a photo": (bundled("predict", "{here}"), ["not a regular file. Give a photo"]),
    "lines in a path": (bundled("predict", "a\nb.jpg"), ["a b.jpg: No such file"]),
    "a long name": (bundled("predict", "x" * 300 + ".jpg"), ["File name too long"]),
    "no array": (bundled("predict", "{here}/x.npy", x_npy=b"\x93NUMPY"), ["x.npy: not a .npy file"]),
    "top 0": (bundled("predict", "x.jpg", "--top", "0"), ["--top 0"]),
    "rubbish": (bundled("predict", "x.jpg", "--top", "many"), ["--top", "'many'", "--help"]),
    "threads 0": (bundled("predict", "x.jpg", "--threads", "0"), ["threads=0"]),
    "runs 0": (bundled("benchmark", "--runs", "0"), ["runs"]),
    "warmup": (bundled("benchmark", "--warmup", "-1"), ["warmup"]),
    "no bundle": (words("info", "--bundle", "nowhere"), ["nowhere/bundle.json: not found"]),
    "a file for a bundle": (lambda here, run: ["info", "--bundle", GOLDEN / "run/config.json"], ["config.json"]),
    "report over a folder": (bundled("info", "--json", "{here}"), ["is a directory"]),
    "report nowhere": (bundled("info", "--json", "{here}/x.y/info.json", x_y=b""), ["with --json"]),
    "model spoilt": (bundled("check", damage=spoil("int8.tflite")), ["int8.tflite: not a TFLite model"]),
    "model gone": (bundled("check", damage=remove("int8.tflite")), ["int8.tflite: No such file"]),
    "no JSON": (bundled("info", damage=spoil("bundle.json")), ["bundle.json: can't be used"]),
    "other JSON": (bundled("info", damage=spoil("bundle.json", b"[]")), ["bundle.json: can't be used"]),
    "another version": (bundled("info", damage=spoil("bundle.json", b'{"schema_version": 99}')), ["schema_version 99"]),
    "sample spoilt": (bundled("check", damage=spoil("sample/expected.json")), ["expected.json: can't be used"]),
}
CASES |= {
    f"{name}: {what}": (name, prepare, parts)
    for name, table in (
        *((name, EVERYWHERE) for name in RECIPES),
        ("audit", AUDITING),
        ("choose", CHOOSING),
        ("cross-validate", FOLDING),
        ("distill", DISTILLING),
        ("bundle", OF_A_RUN),
        ("deploy", {what: (to_a_device(prepare), parts) for what, (prepare, parts) in OF_A_RUN.items()}),
        ("bundle", BUNDLING),
        ("deploy", DEPLOYING),
        *FURTHER.items(),
        (DEVICE, ON_THE_DEVICE),
    )
    for what, (prepare, parts) in table.items()
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_invocation_is_one_line(
    case: str,
    finished_run: RunDir,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, prepare, parts = CASES[case]
    arguments = prepare(tmp_path, finished_run)
    monkeypatch.chdir(tmp_path)  # where `o` and '' would be
    before = snapshot(tmp_path), folders(tmp_path)
    if name.startswith("edgetl") and name != DEVICE:
        assert script(monkeypatch, *name.split()[1:], *arguments) == 2
    else:
        assert run(name, *arguments, "--quiet") == 2
    out, err = capfd.readouterr()
    # In this process TensorFlow was imported by tests, before its start-up lines could be silenced.
    lines = [line for line in err.splitlines() if "cuda" not in line.lower()]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith(f"{name}: ") and "Traceback" not in err
    assert all(part in lines[0] for part in parts), lines[0]
    assert (snapshot(tmp_path), folders(tmp_path)) == before


def message(parts: list[str]) -> str:
    """What makes a message one of its kind: without the option and the number, of which tables go through many."""
    return re.sub(r"--[a-z][a-z0-9-]*|-?\b(inf|nan|[\d.]+)\b", "", " ".join(parts))


def test_every_command_has_wrong_invocations_enough(record_property: Callable[[str, object], None]) -> None:
    tables = {"find-lr": "fine-tune"} | dict.fromkeys(RECIPES, "recipes")  # they share many
    found: dict[str, set[str]] = {}
    for name, _, parts in CASES.values():
        found.setdefault(name, set()).add(message(parts))
    distinct = {(tables.get(name, name), said) for name, all_ in found.items() for said in all_}
    record_property("wrong invocations", len(CASES))
    record_property("of them distinct messages", len(distinct))
    assert set(found) >= {*MODULES, *UNLISTED, DEVICE, "edgetl"}
    few = {name: len(all_) for name, all_ in found.items() if len(all_) < 5}
    assert set(few) <= {"edgetl convert", "edgetl report"}, f"fewer than 5 messages: {few}"
    assert len(distinct) >= 120


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


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "replace"])
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


@pytest.mark.slow
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


@contextlib.contextmanager
def held_to_permissions() -> Iterator[None]:
    """Refuse root what others are refused: this thread gives up the capabilities that open every file, for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable; twice, for 64 bits
    assert libc.capget(header, before) == 0
    dac_override, dac_read_search = 1, 2
    bound = (ctypes.c_uint32 * 6)(before[0] & ~(1 << dac_override | 1 << dac_read_search), *before[1:])
    assert libc.capset(header, bound) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


ELSEWHERE = "Permission denied. Choose a place that you may write to"
UNREADABLE = "Permission denied"
DENIED: dict[str, tuple[str, Prepare, str, int, list[str]]] = {
    **{
        f"{name}: out": (name, photos_and("--out", "{here}/locked/out"), "locked", 0o500, ["locked/out", ELSEWHERE])
        for name in ("recipe", "choose", "search", "cross-validate", "fine-tune")
    },
    "audit: out": ("audit", photos_and("--out", "{here}/locked/out", "--no-features"), "locked", 0o500, [ELSEWHERE]),
    "recipe: photos": ("recipe", photos_and(), "photos", 0o000, ["photos/", UNREADABLE]),
    "recipe: class": ("recipe", photos_and(), "photos/cat", 0o000, ["photos/cat: ", UNREADABLE]),
    "recipe: table": ("recipe", photos_and("--data", "{here}/t.csv", t_csv=b"x"), "t.csv", 0o000, [UNREADABLE]),
    "distill: teacher": ("distill", taught(), "run/manifest.json", 0o000, ["run/manifest.json: ", UNREADABLE]),
    "evaluate: export": (
        "evaluate",
        on_golden("--data", GOLDEN / "photos"),
        "run/export",
        0o500,
        ["run/export/", ELSEWHERE],
    ),
    "report: run": ("report", on_golden(), "run", 0o500, ["run/", ELSEWHERE]),
    "benchmark: export": ("benchmark", on_golden("--runs", "1"), "run/export", 0o500, ["run/export/", ELSEWHERE]),
    "convert: model": ("convert", on_golden(), "run/model.keras", 0o000, ["run/model.keras: ", UNREADABLE]),
    "bundle: out": (
        "bundle",
        on_golden("--data", GOLDEN / "photos", "--out", "{here}/run/bundles/mine"),
        "run/bundles",
        0o500,
        ["run/bundles", ELSEWHERE],
    ),
    "device: report": (
        DEVICE,
        bundled("info"),
        "bundle",
        0o500,
        ["info.json: ", "can't be written to", "--json"],
    ),
    "device: model": (DEVICE, bundled("check"), "bundle/int8.tflite", 0o000, ["int8.tflite: ", UNREADABLE]),
}


@pytest.mark.parametrize("case", DENIED)
def test_a_place_without_permission_is_one_line(
    case: str, tmp_path: Path, finished_run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    name, prepare, where, mode, parts = DENIED[case]
    arguments = prepare(tmp_path, finished_run)
    place = tmp_path / where
    if where == "locked":
        place.mkdir()
    before, as_it_was = (snapshot(tmp_path), folders(tmp_path)), place.stat().st_mode
    place.chmod(mode)
    with held_to_permissions():
        status = run(name, *arguments, "--quiet")
    place.chmod(as_it_was)
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "cuda" not in line.lower()]
    assert (status, out, len(lines)) == (2, "", 1), err
    assert all(part in lines[0] for part in parts), lines[0]
    assert (snapshot(tmp_path), folders(tmp_path)) == before


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
