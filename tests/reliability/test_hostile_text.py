"""Tables, settings and names from strangers: refused in one line and in bounded time and memory, or shown as mere text.

Every case goes through the command that a user would give. Pages, cards and code are compared with those of harmless
names: the same elements, the same attributes, the same tokens outside of string literals.
"""

import csv
import dataclasses
import json
import os
import re
import resource
import shlex
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from editing import edit
from markdown_it import MarkdownIt
from photos import make_photo_folder
from test_audit_recipe import Tags
from test_phone import ARTIFACT
from test_report import Page, inert
from tiny_reports import tiny_run

from edgetl import data
from edgetl.config import command, from_json
from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.outputs import OutputSpec
from edgetl.rundir import sha256_of
from export import bundle, convert, evaluate, phone, report
from export.reporting.origins import recipe_command
from recipes import audit, feature_extraction, search

pytestmark = pytest.mark.slow

SECONDS = 20.0
"""What refusing may take on a busy machine; the attacks would take hours."""
BYTES = 1 << 30
"""What it may add to the memory of this process, likewise."""


def refusal(module: ModuleType, arguments: list[object], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends, soon and within little memory, having said nothing else."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    argv = ["--quiet", *map(str, arguments)]
    status = command(module.main, module.Config, prog="it", show=module.show, argv=argv)
    assert time.monotonic() - start < SECONDS
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < BYTES
    written = capfd.readouterr()
    assert (status, written.out, written.err.count("\n")) == (2, "", 1), written.err[:2000]
    line = written.err.rstrip("\n")
    assert line.isprintable() and len(line) < 3000
    return line


# --- tables ---------------------------------------------------------------------------------------------------------

ROWS = "".join(f"{kind}/{number:04d}.jpg,{kind}\n" for kind in ("cat", "dog") for number in range(4))
HEADER = "path,label\n"
WIDE = ",".join(f"c{number}" for number in range(100_000))


def row(path: str) -> str:
    return f"{HEADER}{ROWS}{path},cat\n"


TABLES: dict[str, tuple[str | bytes, str]] = {
    "above the folder": (row("../x.jpg"), "lies outside"),
    "above by a detour": (row("cat/../../x.jpg"), "lies outside"),
    "absolute": (row("/etc/hostname"), "lies outside"),
    "a device": (row("/dev/zero"), "lies outside"),
    "two slashes": (row("//etc/hostname"), "lies outside"),
    "home": (row("~/x.jpg"), "missing"),
    "a variable": (row("$HOME/x.jpg"), "missing"),
    "file URL": (row("file:///etc/hostname"), "missing"),
    "web URL": (row("http://127.0.0.1:9/x.jpg"), "missing"),
    "backslashes": (row("..\\..\\x.jpg"), "missing"),
    "a share": (row("\\\\host\\share\\x.jpg"), "missing"),
    "a linked folder": (row("out/0000.jpg"), "is a link out of"),
    "a linked photo": (row("cat/out.jpg"), "is a link out of"),
    "a link around": (row("cat/around.jpg"), "missing"),
    "a pipe": (row("cat/pipe.jpg"), "missing"),
    "NUL in a path": (HEADER + ROWS * 40 + "a\0.jpg,cat\n", "control"),
    "NUL in the last path": (HEADER + ROWS + " " * 2000 + "\na\0b.jpg,cat\n", "control"),
    "NUL in front": ("\0" + HEADER + ROWS, "binary"),
    "a path of 100 kB": (row("a" * 100_000 + ".jpg"), "missing"),
    "a path of 60 000 folders": (row("a/" * 60_000 + "x.jpg"), "missing"),
    "100 000 columns": (f"path,label,{WIDE}\n{ROWS}", "columns|field larger"),
    "100 000 empty columns": (f"path,label{',' * 100_000}\n{ROWS}", "columns, at most"),
    "a heading of 1 MB": (f"path,label,{'x' * 10**6}\n{ROWS}", "field larger"),
    "a cell of 1 MB": ("path,label,note\n" + ROWS.replace("cat\n", f"cat,{'x' * 10**6}\n", 1), "field larger"),
    "a quote that never ends": (f'{HEADER}"{ROWS * 2000}', "field larger|unexpected end"),
    "a quote that never ends, in the heading": (f'"{HEADER}{ROWS}', "unexpected end"),
    "headings twice": (f"path,label,label\n{ROWS}", "column label twice"),
    "several byte order marks": (b"\xef\xbb\xbf" * 3 + (HEADER + ROWS).encode(), "no column path"),
    "UTF-32": ((HEADER + ROWS).encode("utf-32"), "UTF-16 or binary"),
    "UTF-7": (b"+AHAAYQB0AGg-,label\n" + ROWS.encode(), "no column path"),
    "terminal codes": (row("\x1b]0;x\x07\x1b[31m.jpg"), "control"),
    "terminal codes in a heading": (f"path,\x1b[31mlabels\n{ROWS}", "no column label"),
    "terminal codes in a split": ("path,label,split\n" + ROWS.replace("\n", ",\x1b[2J\n"), "unknown split"),
    "text that runs backwards, in a heading": (f"path,\u202elebal\n{ROWS}", "no column label"),
    "a formula": (HEADER + ROWS.replace("cat\n", "=cmd|' /C calc'!A0\n"), "stands between labels"),
    "a number of 10 000 digits": ("path,target\n" + re.sub(",.*", "," + "9" * 10_000, ROWS), "no finite number"),
}

OBJECT = '{"path": "cat/0000.jpg", "label": "cat"}\n'
LINES: dict[str, tuple[str, str]] = {
    "a key of its own in each of 20 000": (
        "".join(f'{{"path": "{n}", "label": "a", "k{n}": 1}}\n' for n in range(20_000)),
        "columns, at most",
    ),
    "few keys after many": (
        json.dumps({"path": "x", **dict.fromkeys(WIDE.split(",")[:990], 1)}) + "\n" + '{"path": "x"}\n' * 300_000,
        "991 columns, most of them empty",
    ),
    "100 000 keys": (json.dumps({"path": "x", **dict.fromkeys(WIDE.split(","), 1)}) + "\n", "columns, at most"),
    "deep": (OBJECT + '{"path": ' + "[" * 100_000 + "\n", "no JSON"),
    "deep, closed": (OBJECT + '{"path": ' + "[" * 400 + "]" * 400 + "}\n", "no label"),
    "deep objects": (OBJECT + '{"a": ' * 100_000 + "\n", "no JSON"),
    "10 000 digits": (OBJECT + f'{{"path": "x", "label": {"9" * 10_000}}}\n', "no JSON"),
    "keys twice": ('{"path": "cat/0000.jpg", "path": "/etc/hostname", "label": "cat"}\n' + OBJECT, "lies outside"),
    "an object for a path": (OBJECT + '{"path": {"a": "/etc/hostname"}, "label": "cat"}\n', "missing"),
    "a list for a path": (OBJECT + '{"path": ["..", "x.jpg"], "label": "cat"}\n', "missing"),
    "half a letter": (OBJECT + '{"path": "\\ud800.jpg", "label": "cat"}\n', "no JSON"),
    "NUL": (OBJECT + '{"path": "a\\u0000.jpg", "label": "cat"}\n', "control"),
    "infinite": ('{"path": "cat/0000.jpg", "target": 1e999}\n', "no finite number"),
    "NaN": ('{"path": "cat/0000.jpg", "target": NaN}\n', "no finite number"),
    "a label of 5 MB": (OBJECT + json.dumps({"path": "x", "label": "x" * 5 * 10**6}) + "\n", "missing"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos, a link out, a link to itself and a pipe."""
    root = make_photo_folder(tmp_path_factory.mktemp("tables") / "photos", {"cat": 4, "dog": 4}, size=(16, 12))
    elsewhere = make_photo_folder(root.parent / "elsewhere", {"cat": 1, "dog": 1}, size=(16, 12))
    (root / "out").symlink_to(elsewhere / "cat")
    (root / "cat/out.jpg").symlink_to(elsewhere / "cat/0000.jpg")
    (root / "cat/around.jpg").symlink_to("around.jpg")
    os.mkfifo(root / "cat/pipe.jpg")
    return root


@pytest.mark.parametrize("case", [*TABLES, *LINES])
def test_tables(case: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, message = (TABLES | LINES)[case]
    table = photos / ("m.csv" if case in TABLES else "m.jsonl")
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(feature_extraction, ["--data", table, "--out", tmp_path / "run"], capfd)
    assert re.search(message, line) and str(table) in line, line
    assert not (tmp_path / "run").exists()


LISTED = "id,action,reason,detail\ncat/0000.jpg,keep,,"
EXCLUDES: dict[str, tuple[str | None, str]] = {
    "a cell of 200 kB": (LISTED + "x" * 200_000, "line 2: field larger"),
    "a heading of 200 kB": ("id,action," + "x" * 200_000, "line 1: field larger"),
    "a quote that never ends": (LISTED + '"' + LISTED * 5000, "field larger"),
    "a million columns": ("id,action" + ",x" * 10**6, "line 1 has columns"),
    "NUL": (LISTED.replace("keep", "ke\0ep"), r"line 2: action is 'ke\\x00ep'"),
    "terminal codes": (LISTED.replace("cat", "\x1b[2J"), "has no photo"),
    "above the folder": (LISTED.replace("cat", ".."), "has no photo"),
    "a pipe": (None, "not a regular file"),
}


@pytest.mark.parametrize("case", EXCLUDES)
def test_lists_of_photos_to_leave_out(
    case: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, message = EXCLUDES[case]
    listed = tmp_path / "exclude.csv"
    if content is None:
        os.mkfifo(listed)
    else:
        listed.write_text(content)
    table = photos / "m.csv"
    table.write_text(HEADER + ROWS)
    words = ["--data", table, "--out", tmp_path / "audit", "--no-features", "--exclude", listed]
    line = refusal(audit, words, capfd)
    assert re.search(message, line) and str(listed) in line, line
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("ending", ["\r", "\n\r", "\r\r\n"])
def test_line_ends_of_other_machines_are_read(ending: str, photos: Path) -> None:
    (photos / "m.csv").write_bytes((HEADER + ROWS).replace("\n", ending).encode())
    assert len(data.load(str(photos / "m.csv"))) == 8


# --- settings -------------------------------------------------------------------------------------------------------


def bomb(levels: int, first: str, again: Callable[[str], str]) -> str:
    """Each level names the one before it nine times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {again(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


SPACES: dict[str, tuple[str, str]] = {
    "os.system.yaml": ("dropout: !!python/object/apply:os.system ['touch {trace}']\n", "no YAML"),
    "Popen.yaml": ("dropout: !!python/object/new:subprocess.Popen [[touch, '{trace}']]\n", "no YAML"),
    "name.yaml": ("dropout: !!python/name:os.system\n", "no YAML"),
    "module.yaml": ("dropout: !!python/module:antigravity\n", "no YAML"),
    "tuple.yaml": ("dropout: !!python/tuple [1, 2]\n", "no YAML"),
    "state.yaml": ("!!python/object:edgetl.search.space.Knob {{name: x}}\n", "no YAML"),
    "lists of lists.yaml": (bomb(30, "[1]", "[{}]".format), "a form or a list|is there twice"),
    "merged.yaml": (bomb(30, "{{x: 1}}", "{{{{<<: [{}]}}}}".format), "a form or a list|no YAML"),
    "in itself.yaml": ("dropout: &a [*a]\n", "a form or a list"),
    "map in itself.yaml": ("&a {{dropout: *a}}\n", "a form or a list"),
    "deep.yaml": ("a: " + "[" * 60_000, "no YAML"),
    "deep maps.yaml": ("a: " + "{{a: " * 12_000, "no YAML"),
    "long.yaml": ("dropout: [0.1, 0.2]\n# " + "x" * 10**6, "characters"),
    "hexadecimal.yaml": ("dropout: 0x" + "f" * 50_000 + "\n", "digits"),
    "digits.yaml": ("dropout: " + "9" * 50_000 + "\n", "digits"),
    "sexagesimal.yaml": ("dropout: 59" + ":59" * 3000 + "\n", "digits"),
    "in a list.yaml": ("dropout: [0x" + "f" * 50_000 + "]\n", "digits"),
    "a list as a key.yaml": ("? [1, 2]\n: 3\n", "no YAML"),
    "twice.yaml": ("dropout: [0.1, 0.2]\ndropout: [0.3, 0.4]\n", "twice"),
    "terminal codes.yaml": ('"\\e[31m": [1, 2]\n', "no such setting"),
    "NUL.yaml": ("dropout: [0.1, 0.2]\0\n", "no YAML"),
    "infinite.yaml": ("dropout: uniform(0, .inf)\n", "needs two numbers|low must be"),
    "infinite choices.yaml": ("dropout: [.inf, .nan]\n", "can't work"),
    "deep.json": ("[" * 60_000, "no JSON"),
    "digits.json": ('{{"dropout": ' + "9" * 50_000 + "}}", "digits"),
    "infinite.json": ('{{"dropout": [1e999, NaN]}}', "can't work"),
    "twice.json": ('{{"dropout": [0.1, 0.2], "dropout": [0.3, 0.4]}}', "twice"),
    "half a letter.json": ('{{"\\ud800": [1, 2]}}', "no such setting"),
    "prototype.json": ('{{"__class__": [1, 2]}}', "no such setting"),
    "secret.yaml": ("", "mapping"),
}


@pytest.mark.parametrize("case", SPACES)
def test_search_spaces(case: str, photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, message = SPACES[case]
    (tmp_path / case).write_text(content.format(trace=tmp_path / "trace"))
    line = refusal(search, ["--data", photo_folder, "--out", tmp_path / "out", "--space", tmp_path / case], capfd)
    assert re.search(message, line), line
    assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()


def test_a_space_without_an_end_is_not_read_to_its_end(
    photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").symlink_to("/dev/zero")
    line = refusal(search, ["--data", photo_folder, "--out", tmp_path / "out", "--space", tmp_path / "x.yaml"], capfd)
    assert "characters" in line


GOLDEN = Path(__file__).parent.parent / "golden/schema2"
COMMANDS: dict[str, tuple[ModuleType, list[object]]] = {
    "evaluate": (evaluate, ["--data", GOLDEN / "photos"]),
    "convert": (convert, ["--data", GOLDEN / "photos", "--schemes", "float32"]),
    "report": (report, ["--data", GOLDEN / "photos", "--maps", 2]),
    "bundle": (bundle, ["--data", GOLDEN / "photos", "--no-web", "--photos", 4]),
}


@pytest.fixture(scope="module")
def tensorflow() -> None:
    """Let it say once, before a test listens, what it thinks of this machine's devices."""
    quiet_tensorflow()
    import tensorflow as tf

    tf.config.list_physical_devices("GPU")


@pytest.fixture
def strangers(tmp_path: Path, tensorflow: None) -> Path:
    """A whole run that came from elsewhere."""
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundles")
    return tmp_path / "run"


def reseal(run: Path, **manifest: str) -> None:
    """Let every hash fit what is there, and take seals off: a stranger can do so, too."""
    if (run / "export/predictions.npz").is_file() and "artifacts" in (run / EVALUATED).read_text(errors="replace"):
        edit(run / EVALUATED, predictions_sha256=sha256_of(run / "export/predictions.npz"))
    names = json.loads((run / "manifest.json").read_bytes())["files"]
    edit(run / "manifest.json", files={name: sha256_of(run / name) for name in names}, **manifest)


def content(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


EVALUATED = "export/evaluation.json"
JSON: dict[str, bytes] = {
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "not a number": b'{"schema_version": NaN}',
    "infinite": b'{"schema_version": 1e999}',
    "10 000 digits": b'{"schema_version": ' + b"9" * 10_000 + b"}",
    "keys twice": b'{"schema_version": 1, "schema_version": 2}',
    "null": b"null",
    "a list": b"[1]",
    "half a letter": b'{"a": "\\ud800"}',
    "no text": b"\xff\xfe\x00",
    "terminal codes": b'{"\\u001b[31m": 1}',
    "a key of 5 MB": b'{"' + b"x" * 5_000_000 + b'": 1}',
}
LOOSE = {"config.json", "metrics.json"}
"""Of these any JSON object will do: other recipes have other settings and figures."""


def is_object(text: bytes) -> bool:
    try:
        return isinstance(from_json(dict[str, Any], text), dict)
    except ConfigError:
        return False


@pytest.mark.parametrize("case", JSON)
def test_files_of_a_run(case: str, strangers: Path, capfd: pytest.CaptureFixture[str], record_property: Any) -> None:
    """Each JSON file of a run in turn is such a one, with hashes that fit, and the report is asked for."""
    files = sorted(strangers.rglob("*.json"))
    assert len(files) == 10
    refused = 0
    for path in files:
        before = content(strangers)
        path.write_bytes(JSON[case])
        if path.name != "manifest.json":
            reseal(strangers)
        if path.name in LOOSE and is_object(JSON[case]):
            report.main(report.Config(strangers, maps=0, data=str(GOLDEN / "photos")))
        else:
            there = content(strangers)
            assert path.name in refusal(report, [strangers, "--maps", 0], capfd)
            assert content(strangers) == there, "nothing is written"
            refused += 1
        for each, was in before.items():
            each.write_bytes(was)
    record_property(f"files of a run that are {case}, all refused", refused)


def changed(name: str, *pairs: tuple[str, str]) -> Callable[[Path], None]:
    """Replace text in a file, wherever it stands."""

    def damage(run: Path) -> None:
        text = (run / name).read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        (run / name).write_text(text)

    return damage


def other(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda run: edit(run / name, **values)


def whole(name: str, text: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).write_bytes(text)

    return damage


def arrays(change: Callable[[dict[str, Any]], object], *, packed: bool = False) -> Callable[[Path], None]:
    """Change what predictions.npz holds."""

    def damage(run: Path) -> None:
        path = run / "export/predictions.npz"
        with np.load(path) as stored:
            held = dict(stored)
        change(held)
        (np.savez_compressed if packed else np.savez)(path, **held)

    return damage


def names(*given: str) -> Callable[[Path], None]:
    """Call classes otherwise, wherever a run does."""

    def damage(run: Path) -> None:
        for name in ("outputs.json", "export/int8.json", "export/float32.json"):
            (stored := json.loads((run / name).read_bytes())).pop("seal", None)
            (stored if name == "outputs.json" else stored["outputs"])["names"] = list(given)
            (run / name).write_text(json.dumps(stored))
        (run / "labels.txt").write_text("".join(f"{name}\n" for name in given))
        text = (run / "splits.csv").read_text()
        for old, new in zip(("cat", "dog", "owl"), given, strict=False):
            text = text.replace(f",{old},", f',"{new}",')
        (run / "splits.csv").write_text(text)

    return damage


ALL = ("evaluate", "convert", "report", "bundle")
HEAD, FIRST = "id,label,split,group,weight,sha256\n", "\ncat/0000.jpg,"
DAMAGE: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "settings null": (whole("config.json", b"null"), "config.json: damaged", ("convert", "report")),
    "settings in Latin": (whole("config.json", b'{"a": "\xff"}'), "config.json: damaged", ("convert", "report")),
    "settings half": (whole("config.json", b'{"a": "\\ud800"}'), "config.json: damaged", ("convert", "report")),
    "notes a number": (whole("metrics.json", b'{"notes": 5}'), "metrics.json: notes", ("report",)),
    "a cell of 200 kB": (changed("splits.csv", (FIRST, f"\n{'x' * 200_000},")), "splits.csv: line 2: field", ALL),
    "a heading of 200 kB": (changed("splits.csv", (HEAD, f"{'x' * 200_000}\n")), "splits.csv: line 1: field", ALL),
    "splits in Latin": (whole("splits.csv", HEAD.encode() + b"\xff"), "splits.csv: damaged .not UTF-8", ALL),
    "splits binary": (whole("splits.csv", bytes(1000)), "splits.csv: the first line", ALL),
    "no column split": (changed("splits.csv", ("split,", "part,")), "splits.csv: the first line", ALL),
    "no rows": (whole("splits.csv", HEAD.encode()), "splits.csv: no rows", ALL),
    "absolute": (changed("splits.csv", (FIRST, "\n/etc/hostname,")), "splits.csv: line 2 is damaged", ALL),
    "above": (changed("splits.csv", (FIRST, "\n../photos/cat/0000.jpg,")), "splits.csv: line 2 is damaged", ALL),
    "a detour": (changed("splits.csv", (FIRST, "\ncat/../../x.jpg,")), "splits.csv: line 2 is damaged", ALL),
    "two names of three": (other("outputs.json", names=["cat", "dog"]), "labels.txt: not the names of", ALL),
    "two names everywhere": (names("cat", "dog"), "splits.csv: line 26 is damaged|json: figures of other", ALL),
    "figures of others": (changed(EVALUATED, ('"owl"', '"elk"')), "json: figures of other", ("report", "bundle")),
    "a name that forges a line": (names("cat", "dog", "owl\nred: 100 %\x1b[31m"), "outputs.json: output name", ALL),
    "equal names": (names("cat", "dog", "dog"), "outputs.json: output name 'dog': there twice", ALL),
    "other labels": (whole("labels.txt", b"dog\ncat\nowl\n"), "labels.txt: not the names of", ALL),
    "labels in Latin": (whole("labels.txt", b"\xff\n"), "labels.txt: not the names of", ALL),
    "numbers": (other("outputs.json", task="regression"), "outputs.json: regression without deviations", ALL),
    "no thresholds": (other("outputs.json", task="multi_label"), "outputs.json: multi_label without", ALL),
    "a threshold": (other("outputs.json", task="multi_label", thresholds=[0.5]), "outputs.json: 1 thresholds", ALL),
    "photos of other sides": (other("inputs.json", height=40), "model.keras: takes|json: other inputs", ALL),
    "photos of 10^18 pixels": (other("inputs.json", height=10**9, width=10**9), "inputs.json: image size", ALL),
    "predictions cut": (arrays(lambda held: held.update(keras=held["keras"][:2])), "keras is not 9 x 3", ("report",)),
    "no keras": (arrays(lambda held: held.pop("keras")), "predictions.npz: .*holds other arrays", ("report",)),
    "more arrays": (arrays(lambda held: held.update(more=np.zeros(1))), "holds other arrays than", ("report",)),
    "not finite": (arrays(lambda held: held["int8"].fill(np.nan)), "int8 is not 9 x 3 finite", ("report",)),
    "labels + 99": (arrays(lambda held: held.update(labels=held["labels"] + 99)), "not the labels of", ("report",)),
    "ids that lead out": (arrays(lambda held: held["ids"].fill("../a.jpg")), "not the photos of", ("report",)),
    "objects": (
        arrays(lambda held: held.update(ids=np.array([{}] * 9, object))),
        "predictions.npz: damaged .Object",
        ("report",),
    ),
    "a bomb": (
        arrays(lambda held: held.update(int8=np.zeros((1 << 26, 3), np.float32)), packed=True),
        "predictions.npz: damaged .compressed",
        ("report",),
    ),
    "no archive": (whole("export/predictions.npz", b"\x93NUMPY"), "predictions.npz: damaged", ("report",)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_run_that_a_stranger_hashed_rightly(
    case: str, strangers: Path, capfd: pytest.CaptureFixture[str], record_property: Any
) -> None:
    """What reads the file refuses it; to other commands it does nothing."""
    damage, message, refusing = DAMAGE[case]
    damage(strangers)
    reseal(strangers)
    for name in refusing:
        module, arguments = COMMANDS[name]
        before = content(strangers)
        line = refusal(module, [strangers, *arguments], capfd)
        assert re.search(message, line), (name, line)
        assert content(strangers) == before, "nothing is written"
    for name in set(COMMANDS) - set(refusing):
        module, arguments = COMMANDS[name]
        shutil.copytree(strangers, copied := strangers.with_name(name))
        argv = ["--quiet", str(copied), *map(str, arguments)]
        assert command(module.main, module.Config, prog="it", show=module.show, argv=argv) == 0, name
    record_property(f"commands that refuse a run with {case}", len(refusing))


@pytest.mark.parametrize("url", ["ftp://data.invalid/x/", "ftp://127.0.0.1:9/x.csv", "file:///etc"])
def test_a_url_in_a_run_is_not_asked_unasked(
    url: str, strangers: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *given, **_: asked.append(given) or 1 / 0)
    reseal(strangers, data=url)
    for name in ("evaluate", "convert", "bundle"):
        assert f"not fetched unasked. To fetch it, add --data {url}" in refusal(COMMANDS[name][0], [strangers], capfd)
    report.main(report.Config(strangers, maps=0))
    assert "not fetched unasked" in Page(strangers / "report.html").words
    assert not asked


def test_names_in_commands_to_copy_are_quoted(strangers: Path) -> None:
    """What the page says to type must run nothing but edgetl."""
    edit(strangers / "config.json", **{"x; touch y": True, "$(touch y)": "`touch y`"})
    reseal(strangers, recipe="a; touch y")
    shown = report.main(report.Config(strangers, maps=0, data=str(GOLDEN / "photos")))
    words = shlex.split(recipe_command(json.loads((strangers / "config.json").read_bytes()), shown.recipe))
    assert {"recipes.a; touch y", "--x; touch y", "--$(touch y)", "`touch y`"} <= set(words)


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</title></svg></table><iframe src=//example.org>",
    "<!-- --!> <![CDATA[ ]]>",
    "[a](javascript:alert(1)) ![b](http://example.org/x.png) <http://example.org>",
    "{{7*7}} {% include '/etc/passwd' %} ${7*7} #{7*7} <%= 7*7 %>",
    "&lt;script&gt; &#60;b&#62; &amp;",
    "`rm -rf` | a | b | $(id) ; \\",
    "=cmd()+1 @x -1+1",
    "# heading - list > quote ***bold*** ~~~",
)
PLAIN = tuple(f"class {letter}" for letter in "abcdefghijkl")
assert len(NAMES) == len(PLAIN)


def shape(page: Page | Tags) -> Counter[tuple[str, tuple[str, ...]]]:
    """Number of elements by their names and the names of their attributes."""
    elements = page.elements if isinstance(page, Page) else page.found
    return Counter((tag, tuple(sorted(attributes))) for tag, attributes in elements)


def test_report_and_card(tmp_path: Path) -> None:
    pages, cards = [], []
    for folder, names in (("a" * 60, PLAIN), ("<img src=x onerror=alert(1)> \"'&{{7*7}} ](javascript:1) `", NAMES)):
        files = [f"{number:02} {name.replace('/', ' ')}.jpg" for number, name in enumerate(names)]
        tiny = tiny_run(tmp_path / folder, names=names, photos=120, file_names=files, sites=names[:3])
        report.main(report.Config(tiny.run.path, maps=0, photos=120))
        pages.append(Page(tiny.run.path / "report.html"))
        card = (tiny.run.path / "MODEL_CARD.md").read_text()
        tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(card)
        cards.append(Counter(part.type for token in tokens for part in (token, *(token.children or ()))))
    plain, hostile = pages
    inert(hostile)
    assert set(shape(hostile)) <= set(shape(plain))  # other file names, other splits: the counts differ
    for name in NAMES:
        assert " ".join(name.split()) in hostile.words, "shown as it is"
    assert set(cards[1]) <= {*cards[0], "text_special"}  # what is escaped is a piece of text of its own


def test_audit_page(tmp_path: Path) -> None:
    """Labels, values and the names of columns come from a table, where they may hold a slash."""
    root = make_photo_folder(tmp_path / "photos", {"x": 60}, size=(32, 24))
    (root / "x/0001.jpg").write_bytes(b"")
    (root / "x/0002.jpg").write_bytes((root / "x/0003.jpg").read_bytes())
    pages = []
    for kind, names in (("plain", PLAIN), ("hostile", [name.replace("|", "/") for name in NAMES])):
        with (root / "m.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", names[1]])
            table.writerows([f"x/{n:04d}.jpg", names[n % len(names)], names[n % 2]] for n in range(60))
        audit.main(audit.Config(str(root / "m.csv"), tmp_path / kind, features=False))
        pages.append(Tags((tmp_path / kind / "audit.html").read_text()))
    assert shape(pages[1]) == shape(pages[0])
    assert not any(key.startswith("on") for _, attributes in pages[1].found for key in attributes)


LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"')


@pytest.mark.parametrize("task", ["classification", "multi_label", "regression"])
def test_code_for_phones(task: Any, tmp_path: Path) -> None:
    """Outside of string literals the code is that for harmless names, and inside nothing is filled in."""
    code_names = (*NAMES, '") } fun x() { exec("', "a\\", "\\(exit(1))", "${exit(1)}", "$exit", '"""', "*/ //", "%s %@")
    found = []
    for folder, names in (("plain", tuple(f"c{n}" for n in range(len(code_names)))), ("hostile", code_names)):
        count = len(names)
        spec = OutputSpec(
            task,
            names,
            thresholds=(0.5,) * count if task == "multi_label" else (),
            deviations=(1.0,) * count if task == "regression" else (),
        )
        (tmp_path / folder).mkdir()
        phone.write(tmp_path / folder, dataclasses.replace(ARTIFACT, outputs=spec, path=f"{folder}.tflite"))
        found.append({p.name: p.read_text() for p in (tmp_path / folder).iterdir() if p.suffix in (".kt", ".swift")})
    plain, hostile = found
    assert len(hostile) == 2 and sorted(plain) == sorted(hostile)
    for name, text in hostile.items():
        assert LITERAL.sub('""', text).replace("hostile", "plain") == LITERAL.sub('""', plain[name])
        for literal in LITERAL.findall(text):
            inside = re.sub(r"\\\\", "", literal)  # what is left of backslashes escapes what follows
            assert "\\(" not in inside if name.endswith(".swift") else not re.search(r"(?<!\\)\$", inside)
    if task != "classification":  # MediaPipe reads the names of classes from the file
        kotlin = next(text for name, text in hostile.items() if name.endswith(".kt"))
        assert all(json.dumps(name, ensure_ascii=False).replace("$", "\\$") in kotlin for name in code_names)


@pytest.mark.parametrize("name", ["a\nb", "a\r", "\u2028", "\x85", "\x1b[31m", "a\x7f"])
def test_names_that_break_lines_are_no_classes(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 4, name: 4}, size=(16, 12))
    assert "control" in refusal(feature_extraction, ["--data", root, "--out", tmp_path / "run"], capfd)
