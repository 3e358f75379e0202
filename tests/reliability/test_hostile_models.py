"""Files of models from strangers: whatever they hold, nothing of it is executed, and no command dies without a word.

A hostile pickle, .keras, .h5 or .tflite file is either read as what it says or refused in one line that names it. The
attacks are written out where a format has known ones (opcodes of pickles, objects in the description of a Keras model,
links in HDF5, zip bombs), and drawn from a seed where it has not: hundreds of mutated .tflite files, run by the real
interpreter in processes that may die.
"""

import base64
import copyreg
import json
import marshal
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import mutants
from tiny_artifacts import converted
from tiny_tflite import tiny, with_files, with_json

from edgetl.backbones.torch_file import MAGIC, PROTOCOL, read_tensors
from edgetl.config import command
from edgetl.console import quiet_tensorflow
from edgetl.errors import ArtifactError, WeightsError
from export import benchmark, convert
from export.device.metadata import read_about
from export.foreign import load_model
from export.trial import refuse_crashing

quiet_tensorflow()
import h5py  # noqa: E402
import keras  # noqa: E402
from keras import layers as L  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SECONDS = 20.0
"""What refusing may take on a busy machine; the attacks would take hours, or all memory."""
SEED = 8
MUTANTS = 600


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A file that exists once an attack has run."""
    return tmp_path / "trace"


def one_line(error: BaseException, path: Path) -> bool:
    return str(path) in str(error) and "\n" not in str(error)


# --- pickles --------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, member: str) -> bytes:
    """A name, in text: what all but one of the opcodes below want."""
    return f"{module}\n{member}\n".encode()


CALLS: dict[str, tuple[str, str, str]] = {
    "os.system": ("os", "system", "touch {trace}"),
    "posix.system": ("posix", "system", "touch {trace}"),
    "builtins.eval": ("builtins", "eval", "open('{trace}', 'w')"),
    "builtins.exec": ("builtins", "exec", "open('{trace}', 'w')"),
    "builtins.__import__": ("builtins", "__import__", "antigravity"),
    "subprocess.getoutput": ("subprocess", "getoutput", "touch {trace}"),
    "runpy.run_path": ("runpy", "run_path", "{trace}.py"),
    "pickle.loads": ("pickle", "loads", "x"),
    "numpy.load": ("numpy", "load", "{trace}"),
    "numpy.fromfile": ("numpy", "fromfile", "{trace}"),
    "numpy f2py": ("numpy.f2py", "compile", "x"),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", "open('{trace}', 'w')"),
    "numpy scalar": ("numpy.core.multiarray", "scalar", "x"),
    "dotted": ("torch._utils", "_rebuild_tensor_v2.__globals__", "x"),
    "class of an allowed name": ("collections", "OrderedDict.__class__", "x"),
    "relative": ("collections", "OrderedDict.__init__.__globals__", "x"),
}

FORMS: dict[str, Callable[[str, str, str], bytes]] = {
    "GLOBAL, REDUCE": lambda module, member, word: b"c" + name(module, member) + text(word) + b"\x85R.",
    "STACK_GLOBAL, REDUCE": lambda module, member, word: (
        short(module) + short(member) + b"\x93" + text(word) + b"\x85R."
    ),
    "INST": lambda module, member, word: b"(" + text(word) + b"i" + name(module, member) + b".",
    "OBJ": lambda module, member, word: b"(c" + name(module, member) + text(word) + b"o.",
    "NEWOBJ": lambda module, member, word: b"c" + name(module, member) + text(word) + b"\x85\x81.",
    "NEWOBJ_EX": lambda module, member, word: b"c" + name(module, member) + text(word) + b"\x85}\x92.",
    "BUILD": lambda module, member, word: b"c" + name(module, member) + b"}" + text("x") + text(word) + b"sb.",
    "memo": lambda module, member, word: b"c" + name(module, member) + b"q\x000h\x00" + text(word) + b"\x85R.",
    "under an allowed call": lambda module, member, word: (
        b"ccollections\nOrderedDict\n]c" + name(module, member) + text(word) + b"\x85Ra\x85R."
    ),
}


def checkpoint(path: Path, program: bytes) -> Path:
    """A file as PyTorch wrote it, whose dictionary of tensors is this program."""
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True})]
    path.write_bytes(b"".join((*parts, program, pickle.dumps([], 2))))
    return path


def test_programs_in_pickles_do_not_run(tmp_path: Path, trace: Path, record_property: Any) -> None:
    count = 0
    for call, (module, member, word) in CALLS.items():
        for form, make in FORMS.items():
            for protocol in range(6):
                head = b"\x80" + bytes([protocol]) if protocol > 1 else b""  # older ones say no protocol
                path = checkpoint(tmp_path / "x.pth", head + make(module, member, word.format(trace=trace)))
                with pytest.raises(WeightsError, match=r"asks to load|not a readable|plain dictionary") as error:
                    read_tensors(path)
                assert one_line(error.value, path), (call, form, protocol)
                assert not trace.exists() and "antigravity" not in sys.modules, (call, form, protocol)
                count += 1
    record_property("pickles with a program, all refused", count)


@pytest.mark.parametrize(
    "opcode", [b"\x82\x05", b"\x83\x05\x00", b"\x84\x05\x00\x00\x00"], ids=["EXT1", "EXT2", "EXT4"]
)
def test_registered_extensions_are_not_called(tmp_path: Path, trace: Path, opcode: bytes) -> None:
    copyreg.add_extension("os", "system", 5)
    try:
        with pytest.raises(WeightsError, match=r"asks to load os\.system"):
            read_tensors(checkpoint(tmp_path / "x.pth", b"\x80\x02" + opcode + text(f"touch {trace}") + b"\x85R."))
    finally:
        copyreg.remove_extension("os", "system", 5)
    assert not trace.exists()


def nested(levels: int, mark: bytes) -> bytes:
    """A pair of the same pair of the same pair: a few bytes a level, written out twice as many as the level before."""
    program = mark
    for _ in range(levels):
        program += b"2\x86"
    return program


BOMBS: dict[str, bytes] = {
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 62) + b"x.",
    "LONG4": b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x.",
    "FRAME": b"\x95" + struct.pack("<Q", 1 << 50) + b"N.",
    "LONG_BINPUT": b"Nr\xff\xff\xff\xff.",
    "GET of nothing": b"j\xff\xff\xff\xff.",
    "NEXT_BUFFER": b"\x97.",
    "a thousand marks": b"(" * 1000 + b"t" * 999 + b".",
    "no end": b"]" * 100_000,
    "a long number in text": b"I" + b"9" * 5000 + b"\n.",
    "pairs of pairs": nested(64, b"N") + b".",
    "storage of pairs of pairs": nested(64, b"N") + b"Q.",
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.parametrize("place", ["magic", "state", "keys"])
def test_small_pickles_take_little_time_and_memory(tmp_path: Path, case: str, place: str) -> None:
    program = b"\x80\x05" + BOMBS[case]
    path = checkpoint(tmp_path / "x.pth", program if place == "state" else b"}.")
    if place == "magic":
        path.write_bytes(program)
    elif place == "keys":
        path.write_bytes(path.read_bytes().removesuffix(pickle.dumps([], 2)) + program)
    start = time.monotonic()
    with pytest.raises(WeightsError) as error:
        read_tensors(path)
    assert one_line(error.value, path) and len(str(error.value)) < 1000
    assert time.monotonic() - start < SECONDS


def test_cut_and_altered_pickles(tmp_path: Path, trace: Path, record_property: Any) -> None:
    """Every opcode that there is, in front of a program and behind it."""
    attack = b"cos\nsystem\n" + text(f"touch {trace}") + b"\x85R."
    count = 0
    for each in pickletools.opcodes:
        code = each.code.encode("latin-1")
        for program in (code + attack, attack[:-1] + code + b".", code, attack[:-3] + code + attack[-3:]):
            with pytest.raises(WeightsError):
                read_tensors(checkpoint(tmp_path / "x.pth", b"\x80\x05" + program))
            count += 1
    assert not trace.exists()
    record_property("pickles with any opcode around a program, all refused", count)


# --- models of Keras ------------------------------------------------------------------------------------------------

SIZE = 16


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A harmless model without its suffix: there is a .keras and an .h5 file."""
    keras.utils.set_random_seed(0)
    last = L.Dense(3, activation="softmax", name="head")
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), L.Rescaling(1 / 255), L.GlobalAveragePooling2D(), last])
    path = tmp_path_factory.mktemp("keras") / "model"
    for suffix in (".keras", ".h5"):
        model.save(path.with_suffix(suffix))
        assert len(load_model(path.with_suffix(suffix)).weights) == 2
    return path


Config = Callable[[dict[str, Any]], Any]


def rewritten(
    saved: Path, path: Path, change: Config, extra: dict[str, bytes] | None = None, *, deflated: bool = False
) -> Path:
    """Write a .keras file with another description, and with more files."""
    form = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(saved.with_suffix(".keras")) as old, zipfile.ZipFile(path, "w", form) as new:
        for member in old.namelist():
            content = old.read(member)
            if member == "config.json":
                config = change(json.loads(content))
                content = config if isinstance(config, bytes) else json.dumps(config).encode()
            if member not in (extra or {}):
                new.writestr(member, content)
        for member, content in (extra or {}).items():
            new.writestr(member, content)
    return path


def layer(module: str, kind: str, registered: str | None = None, /, **settings: Any) -> Config:
    """Put an object among the layers."""
    made = {"module": module, "class_name": kind, "config": {"name": "x", **settings}, "registered_name": registered}

    def change(config: dict[str, Any]) -> dict[str, Any]:
        config["config"]["layers"].insert(2, made)
        return config

    return change


def function(module: str, called: str) -> dict[str, str]:
    return {"module": module, "class_name": "function", "config": called, "registered_name": called}


def code(trace: Path) -> str:
    """What a Lambda layer holds: compiled Python."""
    return base64.b64encode(marshal.dumps(compile(f"open({str(trace)!r}, 'w')", "x", "eval"))).decode()


def lookup(kind: type, **settings: Any) -> Config:
    """A layer whose words are in a file of the machine that loads it."""
    whole = kind(vocabulary=settings.pop("words")).get_config()
    return layer("keras.layers", kind.__name__, **{**whole, **settings, "vocabulary": "/etc/hostname"})


OBJECTS: dict[str, Callable[[Path], Config]] = {
    "os.system": lambda trace: layer("os", "system", command=f"touch {trace}"),
    "posix.system": lambda trace: layer("posix", "system", command=f"touch {trace}"),
    "builtins.eval": lambda trace: layer("builtins", "eval", source=f"open('{trace}', 'w')"),
    "builtins.exec": lambda trace: layer("builtins", "exec", source=f"open('{trace}', 'w')"),
    "subprocess.Popen": lambda trace: layer("subprocess", "Popen", args=["touch", str(trace)]),
    "a module that acts when it is imported": lambda trace: layer("antigravity", "X"),
    "tensorflow.io": lambda trace: layer("tensorflow.io", "write_file", filename=str(trace), contents="x"),
    "numpy.save": lambda trace: layer("numpy", "save", file=str(trace), arr=[1]),
    "keras.utils.get_file": lambda trace: layer(
        "keras.utils", "get_file", fname=str(trace), origin="file:///etc/passwd"
    ),
    "get_file by its own module": lambda trace: layer("keras.src.utils.file_utils", "get_file", fname=str(trace)),
    "a module's module": lambda trace: layer("keras.src.utils.file_utils.os", "system", command=f"touch {trace}"),
    "safe mode off": lambda trace: layer("keras.config", "enable_unsafe_deserialization"),
    "safe mode off, inside": lambda trace: layer("keras.src.saving.serialization_lib", "enable_unsafe_deserialization"),
    "load_model": lambda trace: layer("keras.models", "load_model", filepath=str(trace), safe_mode=False),
    "TFSMLayer": lambda trace: layer("keras.layers", "TFSMLayer", filepath=str(trace)),
    "TorchModuleWrapper": lambda trace: layer("keras.layers", "TorchModuleWrapper", module="gASVAAAA"),
    "Lambda": lambda trace: layer(
        "keras.layers",
        "Lambda",
        function={"class_name": "__lambda__", "config": {"code": code(trace), "defaults": None, "closure": None}},
    ),
    "Lambda of eval": lambda trace: layer(
        "keras.layers", "Lambda", function=function("builtins", "eval"), arguments={"x": f"open('{trace}', 'w')"}
    ),
    "Lambda of get_file": lambda trace: layer("keras.layers", "Lambda", function=function("keras.utils", "get_file")),
    "Lambda under another module": lambda trace: layer(
        "keras.src.layers.core.lambda_layer", "Lambda", function=function("os", "system")
    ),
    "Lambda in a wrapper": lambda trace: layer(
        "keras.layers",
        "TimeDistributed",
        layer={
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {"name": "y", "function": {"class_name": "__lambda__", "config": {"code": code(trace)}}},
            "registered_name": None,
        },
    ),
    "activation": lambda trace: layer("keras.layers", "Activation", activation=function("os", "system")),
    "activation by a dotted name": lambda trace: layer("keras.layers", "Activation", activation="os.system"),
    "activation of builtins": lambda trace: layer(
        "keras.layers", "Activation", activation=function("builtins", "eval")
    ),
    "initializer": lambda trace: layer(
        "keras.layers", "Dense", units=3, kernel_initializer={"class_name": "system", "module": "os", "config": {}}
    ),
    "registered name": lambda trace: layer("keras.layers", "Dense", "os>system", units=3),
    "registered name of no module": lambda trace: layer("", "Dense", "builtins>eval", units=3),
    "words in a file": lambda trace: lookup(L.StringLookup, words=["a"]),
    "numbers in a file": lambda trace: lookup(L.IntegerLookup, words=[1]),
    "text in a file": lambda trace: lookup(L.TextVectorization, words=["a"]),
    "a name that is a path": lambda trace: layer("keras.layers", "Dense", units=3, **{"name": "../../x"}),
    "a negative size": lambda trace: layer("keras.layers", "Dense", units=-1),
    "a size beyond all memory": lambda trace: layer("keras.layers", "Dense", units=1 << 50),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_objects_in_a_keras_file_are_not_made(
    case: str, saved: Path, tmp_path: Path, trace: Path, photo_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = rewritten(saved, tmp_path / "m.keras", OBJECTS[case](trace))
    start = time.monotonic()
    line = refused(["--model", path, "--data", photo_folder, tmp_path / "run"], capfd)
    assert str(path) in line and "hostname" not in line
    assert not trace.exists() and "antigravity" not in sys.modules
    assert time.monotonic() - start < SECONDS
    with pytest.raises(ArtifactError):  # a file before it has not switched safe mode off
        load_model(rewritten(saved, path, OBJECTS["Lambda"](trace)))


def refused(arguments: list[object], capfd: pytest.CaptureFixture[str]) -> str:
    """The line of `export.convert` that refuses to."""
    status = command(
        convert.main, convert.Config, prog="convert", show=convert.show, argv=["--quiet", *map(str, arguments)]
    )
    written = capfd.readouterr()
    assert (status, written.out, written.err.count("\n")) == (2, "", 1), written.err
    return written.err


def deep(config: dict[str, Any]) -> bytes:
    return b'{"a":' * 200_000


ARCHIVES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "deep": (lambda saved, path: rewritten(saved, path, deep), "damaged"),
    "no object": (lambda saved, path: rewritten(saved, path, lambda config: b"[1]"), "damaged"),
    "null": (lambda saved, path: rewritten(saved, path, lambda config: b"null"), "damaged"),
    "no text": (lambda saved, path: rewritten(saved, path, lambda config: b"\xff\xfe{}"), "damaged"),
    "a description of 100 MB": (
        lambda saved, path: rewritten(saved, path, lambda c: json.dumps(c).encode() + b" " * 10**8, deflated=True),
        "unpacks to far more",
    ),
    "weights of 100 MB": (
        lambda saved, path: rewritten(saved, path, lambda c: c, {"model.weights.h5": bytes(10**8)}, deflated=True),
        "unpacks to far more",
    ),
    "a file of 100 MB": (
        lambda saved, path: rewritten(saved, path, lambda c: c, {"assets/x": bytes(10**8)}, deflated=True),
        "unpacks to far more",
    ),
    "no weights": (lambda saved, path: rewritten(saved, path, lambda c: c, {"model.weights.h5": b""}), "damaged"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_are_no_models(case: str, saved: Path, tmp_path: Path) -> None:
    make, message = ARCHIVES[case]
    path = make(saved, tmp_path / "m.keras")
    start = time.monotonic()
    with pytest.raises(ArtifactError, match=message) as error:
        load_model(path)
    assert one_line(error.value, path)
    assert time.monotonic() - start < SECONDS


@pytest.mark.filterwarnings("ignore:Skipping invalid path")
def test_names_in_an_archive_lead_nowhere(saved: Path, tmp_path: Path) -> None:
    """Nothing is unpacked by its own name: files that climb out, are absolute or are links do nothing."""
    inside = tmp_path / "a/b/c"
    inside.mkdir(parents=True)
    names = (
        "../trace",
        "../../../trace",
        "assets/../../trace",
        str(tmp_path / "trace"),
        "assets/layers/../../../trace",
    )
    path = rewritten(saved, inside / "m.keras", lambda config: config, dict.fromkeys(names, b"x"))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    there = sorted(Path.cwd().iterdir())
    np.testing.assert_array_equal(load_model(path).weights[0], load_model(saved.with_suffix(".keras")).weights[0])
    assert (sorted(tmp_path.rglob("*")), sorted(Path.cwd().iterdir())) == (before, there)
    assert not list(tmp_path.rglob("trace"))


def described(change: Config) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        config = change(json.loads(file.attrs["model_config"]))
        file.attrs["model_config"] = config if isinstance(config, bytes) else json.dumps(config)

    return edit


def replaced(made: Callable[[h5py.File, str, Path], object], secret: Path) -> Callable[[h5py.File], None]:
    """Put something else in the place of the kernel, [3, 3]."""

    def edit(file: h5py.File) -> None:
        found: list[str] = []
        file.visititems(lambda at, item: found.append(at) if getattr(item, "shape", ()) == (3, 3) else None)
        (kernel,) = found
        del file[kernel]
        made(file, kernel, secret)

    return edit


def _external_link(file: h5py.File, kernel: str, secret: Path) -> None:
    file[kernel] = h5py.ExternalLink(str(secret), "x")


def _soft_link(file: h5py.File, kernel: str, secret: Path) -> None:
    file["out"] = h5py.ExternalLink(str(secret), "/")
    file[kernel] = h5py.SoftLink("/out/x")


def _external(file: h5py.File, kernel: str, secret: Path) -> None:
    file.create_dataset(kernel, (3, 3), "f4", external=str(secret))


def _virtual(file: h5py.File, kernel: str, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 3), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", shape=(3, 3))
    file.create_virtual_dataset(kernel, layout)


def _huge(file: h5py.File, kernel: str, secret: Path) -> None:
    file.create_dataset(kernel, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024), compression="gzip")


def _words(file: h5py.File, kernel: str, secret: Path) -> None:
    file.create_dataset(kernel, (3, 3), h5py.string_dtype())


LINKS = {
    "external link": _external_link,
    "soft link out": _soft_link,
    "external": _external,
    "virtual": _virtual,
    "huge": _huge,
    "words": _words,
}


@pytest.mark.parametrize("case", LINKS)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_weights_come_from_the_file_itself(case: str, suffix: str, saved: Path, tmp_path: Path) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / f"m{suffix}"
    with h5py.File(secret, "w") as file:
        file["x"] = np.full((3, 3), 7, "f4")
    edit = replaced(LINKS[case], secret)
    if suffix == ".h5":
        shutil.copy(saved.with_suffix(".h5"), path)
        with h5py.File(path, "r+") as file:
            edit(file)
    else:
        weights = tmp_path / "weights.h5"
        with zipfile.ZipFile(saved.with_suffix(".keras")) as archive:
            weights.write_bytes(archive.read("model.weights.h5"))
        with h5py.File(weights, "r+") as file:
            edit(file)
        rewritten(saved, path, lambda config: config, {"model.weights.h5": weights.read_bytes()})
    with pytest.raises(ArtifactError, match="damaged") as error:
        load_model(path)
    assert one_line(error.value, path)


LEGACY: dict[str, Callable[[Path], Config]] = {
    "Lambda": lambda trace: layer(
        "", "Lambda", function=[code(trace), None, None], function_type="lambda", module="__main__"
    ),
    "Lambda of a name": lambda trace: layer("", "Lambda", function="system", function_type="function", module="os"),
    "Lambda, raw": lambda trace: layer(
        "", "Lambda", function={"class_name": "__lambda__", "config": {"code": code(trace)}}, function_type="raw"
    ),
    "Lambda inside": lambda trace: layer(
        "",
        "Sequential",
        layers=[{"class_name": "Lambda", "config": {"name": "y", "function": [code(trace), None, None]}}],
    ),
    "os.system": lambda trace: layer("os", "system", command=f"touch {trace}"),
    "registered": lambda trace: layer("", "os>system", command=f"touch {trace}"),
    "TFSMLayer": lambda trace: layer("", "TFSMLayer", filepath=str(trace)),
    "deep": lambda trace: deep,
}


@pytest.mark.parametrize("case", LEGACY)
def test_descriptions_in_hdf5_are_not_executed(case: str, saved: Path, tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "m.h5"
    shutil.copy(saved.with_suffix(".h5"), path)
    with h5py.File(path, "r+") as file:
        if case == "deep":  # an attribute holds at most 64 kB
            file.attrs["model_config"] = "[" * 60_000
        else:
            described(LEGACY[case](trace))(file)
    with pytest.raises(ArtifactError, match=r"needs code to load|damaged") as error:
        load_model(path)
    assert one_line(error.value, path)
    assert not trace.exists()


def test_safe_mode_is_never_switched_off() -> None:
    """Neither here nor where a run's own model is opened."""
    sources = [path for part in ("edgetl", "export", "recipes") for path in (ROOT / part).rglob("*.py")]
    said = [path for path in sources if "safe_mode=False" in (text := path.read_text()) or "unsafe_deser" in text]
    assert sources and not said


# --- .tflite --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Mutated files, and what was done to each."""
    models = [with_json(tiny()), with_json(tiny("uint8")), *(converted(s) for s in ("float32", "int8", "dynamic_int8"))]
    folder = tmp_path_factory.mktemp("mutants")
    found = {}
    for number, (what, content) in enumerate(mutants(models, MUTANTS, SEED)):
        path = folder / f"{number}.tflite"
        path.write_bytes(content)
        found[path] = what
    return found


@pytest.fixture(scope="module")
def crashing(altered: dict[Path, str]) -> dict[Path, str]:
    """Those that crash native code, and the line that says so. All are run, in as few processes as that takes."""
    left, found = list(altered), {}
    while left:
        try:
            refuse_crashing(left)
            left = []
        except ArtifactError as error:
            path = next(path for path in left if str(error).startswith(f"{path}: "))
            found[path] = str(error)
            left = left[left.index(path) + 1 :]
    return found


def test_altered_models_run_are_refused_or_crash_a_child_alone(
    altered: dict[Path, str], crashing: dict[Path, str], record_property: Any
) -> None:
    for path, line in crashing.items():
        assert "crashed (SIG" in line and "\n" not in line, f"{altered[path]}: {line}"
    assert crashing, "no mutant crashes the interpreter any more: is the trial needed?"
    record_property("altered .tflite files", len(altered))
    record_property("of these crash the interpreter, named by a trial", len(crashing))


def timed(path: Path, *options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "export.benchmark", str(path), "--runs", "1", "--warmup", "0", *map(str, options)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_command_survives_what_crashes_the_interpreter(
    altered: dict[Path, str], crashing: dict[Path, str], tmp_path: Path
) -> None:
    for path in list(crashing)[:3]:
        done = timed(path, "--json", tmp_path / "x.json")
        assert (done.returncode, done.stdout) == (2, ""), f"{altered[path]}: {done}"
        assert done.stderr.count("\n") == 1 and f"{path}: " in done.stderr and "crashed (SIG" in done.stderr
    (tmp_path / "export").mkdir()
    for place, source in (("a", tiny()), ("b", next(iter(crashing)).read_bytes()), ("c", tiny())):
        (tmp_path / f"export/{place}.tflite").write_bytes(source)
    done = timed(tmp_path)
    assert done.returncode == 2 and str(tmp_path / "export/b.tflite") in done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_what_does_not_crash_ends_in_figures_or_in_one_line(
    altered: dict[Path, str], crashing: dict[Path, str], record_property: Any
) -> None:
    """In this process, where no mutant that is left may do harm."""
    ended = {"ran": 0, "refused": 0}
    for path in [path for path in altered if path not in crashing]:
        try:
            (report,) = benchmark.measure((path,), benchmark.Config(path, runs=1, warmup=0))
            assert report.median_ms > 0, altered[path]
            ended["ran"] += 1
        except ArtifactError as error:
            assert one_line(error, path), f"{altered[path]}: {error}"
            ended["refused"] += 1
    assert min(ended.values()) > MUTANTS / 20, f"both ends must be seen: {ended}"
    record_property("altered .tflite files that ran, were refused", tuple(ended.values()))


@pytest.mark.parametrize(
    "member", ["../../labels.txt", "/etc/passwd", "labels.txt", "edgetl.json/../x", "a\\..\\b", "x" * 5000]
)
def test_files_behind_a_model_are_not_unpacked(member: str, tmp_path: Path) -> None:
    content = with_files(tiny(), {member: bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert read_about(content) is None
    (tmp_path / "x.tflite").write_bytes(content)
    (report,) = benchmark.main(benchmark.Config(tmp_path / "x.tflite", runs=1, warmup=0))
    assert report.circumstances.size_bytes == len(content)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tflite"]
