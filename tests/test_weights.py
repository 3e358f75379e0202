"""Weights come from where the user said, whole, and fitting; and nothing that a file contains is executed."""

import hashlib
import os
import pickle
import shutil
import threading
import zipfile
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from edgetl.backbones import torch_file, weights
from edgetl.backbones.backbone import KerasFile, PackagedFile
from edgetl.backbones.build import NORMALIZE_LAYER, build
from edgetl.backbones.registry import BACKBONES
from edgetl.backbones.torch_file import MAGIC, PROTOCOL, read_tensors
from edgetl.errors import WeightsError
from edgetl.inputs import ImageInput

SPEC = ImageInput(32, 48)
SMALL = "MobileNet_025"
LITE0 = BACKBONES["EfficientNetLite0"].imagenet
assert isinstance(LITE0, PackagedFile)


@pytest.fixture(scope="module")
def trained():
    """A backbone whose weights are unlike those of any other."""
    keras.utils.set_random_seed(7)
    return build(SMALL, SPEC, "none")


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """A file as Keras publishes it, and what the model that it is of holds."""
    keras.utils.set_random_seed(8)
    plain = keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=None, pooling="avg", input_shape=SPEC.shape
    )
    path = tmp_path_factory.mktemp("legacy") / "small.h5"
    plain.save(path)
    return path, plain.get_weights()


def assert_same(model: keras.Model, expected: list[np.ndarray]) -> None:
    found = model.get_weights()
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- from a package -------------------------------------------------------------------------------------------------


def test_packaged_weights_are_the_published_file():
    tensors = read_tensors(weights.packaged_path(LITE0))
    assert len(tensors) == 296
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert tensors["_fc.weight"].dtype == np.float32
    assert tensors["_bn0.num_batches_tracked"].shape == ()


def test_missing_package_says_how_to_install_it():
    missing = PackagedFile("efficientnet-lite9-pytorch-model", "models/x.pth", "0" * 64)
    with pytest.raises(WeightsError, match=r"Run: pip install efficientnet-lite9-pytorch-model$"):
        weights.packaged_path(missing)


def test_changed_package_is_refused():
    with pytest.raises(WeightsError, match=r"\.pth: sha256 is 579344248a93\.\.\., expected 000000000000\.\.\."):
        weights.packaged_path(replace(LITE0, sha256="0" * 64))


def test_no_published_weights_names_the_ways_out():
    with pytest.raises(
        WeightsError, match=r"^EfficientNetLite4: .*--weights none, --weights FILE, or EfficientNetLite0"
    ):
        build("EfficientNetLite4", ImageInput(32, 32))
    with pytest.raises(WeightsError, match=r"^EfficientNetLite3"):
        build("EfficientNetLite3", ImageInput(32, 32))


# --- PyTorch checkpoints --------------------------------------------------------------------------------------------


class Global:
    """Pickles as a reference to any name, called with any arguments."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    def __init__(self, kind: str, key: str, count: int) -> None:
        self.pid = ("storage", kind, key, "cpu", count, None)


class Writer(pickle._Pickler):  # the Python one: its opcodes can be written by hand
    """Writes names that need not exist, and storages, as torch.save did."""

    def save(self, obj, *rest):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
            super().save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Storage):
            tag, kind, *others = obj.pid
            self.write(pickle.MARK)
            super().save(tag)
            self.write(f"ctorch\n{kind}\n".encode())
            for other in others:
                super().save(other)
            self.write(pickle.TUPLE + pickle.BINPERSID)
        elif isinstance(obj, Changed):
            self.save(tensor(FLOATS))
            super().save((None, {"offset": 1 << 30}))
            self.write(pickle.BUILD)
        else:
            super().save(obj, *rest)


def tensor(storage: Storage, offset=0, shape=(2, 3), strides=(3, 1)) -> Global:
    return Global("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, OrderedDict())


def checkpoint(
    path: Path, state: object, *, keys=("0",), data: bytes | None = None, count: int = 6, magic: int = MAGIC
) -> Path:
    values = np.arange(6, dtype="<f4").tobytes() if data is None else data
    parts = [magic, PROTOCOL, {"little_endian": True}, state, list(keys)]
    with path.open("wb") as file:
        for part in parts:
            Writer(file, 2).dump(part)
        file.write(count.to_bytes(8, "little") + values)
    return path


def test_reader_understands_strides_and_offsets(tmp_path):
    storage = Storage("FloatStorage", "0", 6)
    state = OrderedDict(straight=tensor(storage), turned=tensor(storage, 1, (2, 2), (1, 2)))
    read = read_tensors(checkpoint(tmp_path / "a.pth", state))
    np.testing.assert_array_equal(read["straight"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["turned"], [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    "call",
    [
        ("os", "system", "touch {path}"),
        ("posix", "system", "touch {path}"),
        ("builtins", "eval", "open('{path}', 'w')"),
        ("builtins", "getattr", "x", "y"),
        ("torch", "load", "{path}"),
        ("torch.storage", "FloatStorage"),
        ("collections", "defaultdict"),
        ("torch._utils", "_rebuild_parameter"),
    ],
)
@pytest.mark.parametrize("place", ["state", "magic"])
def test_program_in_a_checkpoint_does_not_run(tmp_path, call, place):
    trace = tmp_path / "trace"
    module, name, *arguments = call
    attack = Global(module, name, *(argument.format(path=trace) for argument in arguments))
    path = checkpoint(
        tmp_path / "bad.pth", **({"state": {"w": attack}} if place == "state" else {"state": {}, "magic": attack})
    )
    with pytest.raises(WeightsError, match=rf"bad\.pth: asks to load {module}\.{name}"):
        read_tensors(path)
    assert not trace.exists()


def test_reduce_of_a_real_object_does_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trace'}",)

    path = tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(WeightsError, match="asks to load"):
        read_tensors(path)
    assert not (tmp_path / "trace").exists()


class Changed:
    """A tensor that the pickle tries to move out of bounds after it was checked."""


FLOATS = Storage("FloatStorage", "0", 6)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": tensor(FLOATS, 0, (3, 3), (3, 1))}, "more elements"),
        ({"w": tensor(FLOATS, 4, (3,), (1,))}, "past its storage"),
        ({"w": tensor(FLOATS, 0, (2, 2), (5, 1))}, "past its storage"),
        ({"w": tensor(FLOATS, 7, (0,), (1,))}, "past its storage"),
        ({"w": tensor(FLOATS, -1, (3,), (1,))}, "unknown form"),
        ({"w": tensor(FLOATS, 0, (3,), (-1,))}, "unknown form"),
        ({"w": tensor(FLOATS, 0, (1 << 40,), (0,))}, "more elements"),
        ({"w": tensor(FLOATS, 0, (2,), (1, 1))}, "not a readable"),
        ({"w": Changed()}, "not a readable"),
        ({"w": tensor("no storage")}, "unknown form"),  # type: ignore[arg-type]
        ({"w": Storage("FloatStorage", "0", -6)}, "storage of unknown form"),
        ({"w": Storage("ByteStorage", "0", 6)}, "ByteStorage"),
        ({"a": FLOATS, "b": Storage("FloatStorage", "0", 7)}, "twice"),
        ({"w": FLOATS}, "plain dictionary of tensors"),
        ({1: tensor(FLOATS)}, "plain dictionary of tensors"),
        ([tensor(FLOATS)], "plain dictionary of tensors"),
        ({"w": 1}, "plain dictionary of tensors"),
    ],
)
def test_tensors_out_of_bounds_are_refused(tmp_path, state, message):
    with pytest.raises(WeightsError, match=message):
        read_tensors(checkpoint(tmp_path / "a.pth", state))


def test_damaged_checkpoints_are_refused(tmp_path):
    state = {"w": tensor(FLOATS)}
    good = checkpoint(tmp_path / "good.pth", state).read_bytes()
    assert list(read_tensors(tmp_path / "good.pth")) == ["w"]
    for length in (0, 1, 20, 60, len(good) // 2, len(good) - 25, len(good) - 1):
        (tmp_path / "cut.pth").write_bytes(good[:length])
        with pytest.raises(WeightsError, match=r"cut\.pth: "):
            read_tensors(tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match="magic number"):
        read_tensors(checkpoint(tmp_path / "a.pth", state, magic=1))
    with pytest.raises(WeightsError, match="declared 6"):
        read_tensors(checkpoint(tmp_path / "a.pth", state, count=5))
    with pytest.raises(WeightsError, match="does not match"):
        read_tensors(checkpoint(tmp_path / "a.pth", state, keys=("0", "0")))
    with pytest.raises(WeightsError, match="NaN"):
        read_tensors(checkpoint(tmp_path / "a.pth", state, data=np.full(6, np.nan, "<f4").tobytes()))


def test_any_single_damaged_byte_is_an_error_or_harmless(tmp_path):
    """Whatever a flipped bit makes of the pickle, the reader gives arrays or a WeightsError."""
    good = checkpoint(tmp_path / "good.pth", {"w": tensor(FLOATS)}).read_bytes()
    for position in range(len(good)):
        for flip in (1, 0x80):
            damaged = bytearray(good)
            damaged[position] ^= flip
            (tmp_path / "bad.pth").write_bytes(damaged)
            try:
                read = read_tensors(tmp_path / "bad.pth")
            except WeightsError:
                continue
            assert all(isinstance(array, np.ndarray) for array in read.values())


def test_only_tensors_are_known():
    assert set(torch_file.STORAGES) == {"FloatStorage", "LongStorage"}


# --- the download ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(legacy, tmp_path, monkeypatch):
    """A row of the registry whose file is on a server of our own, and a cache of our own."""
    folder = tmp_path / "server"
    folder.mkdir()
    content = legacy[0].read_bytes()
    (folder / "small.h5").write_bytes(content)
    (folder / "cut.h5").write_bytes(content[: len(content) // 2])

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))

    def offer(name: str, *, hashed: bool = True) -> None:
        url = f"http://127.0.0.1:{httpd.server_port}/{name}"
        file = KerasFile(url, hashlib.md5(content).hexdigest() if hashed else None, "small.h5")
        monkeypatch.setitem(BACKBONES, SMALL, replace(BACKBONES[SMALL], imagenet=file))

    offer("small.h5")
    yield offer
    httpd.shutdown()
    httpd.server_close()


def test_download_fills_the_cache_once(server, legacy, tmp_path, capsys):
    assert_same(build(SMALL, SPEC), legacy[1])
    assert (tmp_path / "cache" / "models" / "small.h5").read_bytes() == legacy[0].read_bytes()
    assert capsys.readouterr().out == "", "standard output belongs to results"
    server("gone.h5")
    assert_same(build(SMALL, SPEC), legacy[1])


def test_missing_on_the_server(server, tmp_path):
    server("gone.h5")
    with pytest.raises(WeightsError) as caught:
        build(SMALL, SPEC)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        SMALL,
        "http://127.0.0.1",
        "/gone.h5",
        "404",
        str(tmp_path / "cache/models/small.h5"),
        "EfficientNetLite0",
    ):
        assert part in message
    assert not (tmp_path / "cache/models/small.h5").exists()


def test_wrong_hash(server):
    server("cut.h5")
    with pytest.raises(WeightsError, match=r"cut\.h5 \(Incomplete or corrupted"):
        build(SMALL, SPEC)
    server("small.h5")  # the bad file in the cache is not trusted, the good one replaces it
    build(SMALL, SPEC)


def test_truncated_file_without_a_published_hash(server):
    server("cut.h5", hashed=False)
    with pytest.raises(WeightsError, match=r"small\.h5: can't be read as weights .* Is it complete\?"):
        build(SMALL, SPEC)


def test_no_server(server, monkeypatch):
    file = KerasFile("http://127.0.0.1:9/small.h5", None, "small.h5")
    monkeypatch.setitem(BACKBONES, SMALL, replace(BACKBONES[SMALL], imagenet=file))
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:9/small\.h5 \([^)]*refused\)\. Put that file at"):
        build(SMALL, SPEC)


def test_silent_server_does_not_hang(server, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        file = KerasFile(f"http://127.0.0.1:{silent.getsockname()[1]}/small.h5", None, "small.h5")
        monkeypatch.setitem(BACKBONES, SMALL, replace(BACKBONES[SMALL], imagenet=file))
        monkeypatch.setattr(weights, "SILENCE_LIMIT_S", 0.3)
        with pytest.raises(WeightsError, match="timed out"):
            build(SMALL, SPEC)
    assert socket.getdefaulttimeout() is None


# --- from a file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_file_of_a_backbone(trained, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    trained.save(path) if suffix == ".keras" else trained.save_weights(path)
    assert_same(build(SMALL, ImageInput(64, 64), str(path)), trained.get_weights())


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_file_of_a_whole_model_serves_the_backbone(trained, tmp_path, suffix):
    """What a finished run leaves: the backbone, a head, and the state of an optimizer."""
    output = keras.layers.Dense(3, name="scores")(keras.layers.Dropout(0.2)(trained.output))
    whole = keras.Model(trained.input, output)
    whole.compile("adam", "mse")
    whole.optimizer.build(whole.trainable_variables)
    path = tmp_path / f"x{suffix}"
    whole.save(path) if suffix == ".keras" else whole.save_weights(path)
    assert_same(build(SMALL, SPEC, str(path)), trained.get_weights())


def test_file_of_a_model_with_the_backbone_nested(trained, tmp_path):
    images = keras.Input(SPEC.shape)
    whole = keras.Model(images, keras.layers.Dense(3, name="scores")(trained(images)))
    path = tmp_path / "x.keras"
    whole.save(path)
    assert_same(build(SMALL, SPEC, str(path)), trained.get_weights())


def test_file_of_plain_keras_serves_the_backbone(tmp_path):
    plain = keras.applications.VGG16(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    plain.save_weights(tmp_path / "x.weights.h5")
    ours = build("VGG16", ImageInput(32, 32), str(tmp_path / "x.weights.h5"))
    normalize = ours.get_layer(NORMALIZE_LAYER).get_weights()
    assert_same(ours, [*normalize, *plain.get_weights()])
    np.testing.assert_allclose(normalize[1], [-103.939, -116.779, -123.68], rtol=1e-6)


def test_legacy_file(legacy):
    assert_same(build(SMALL, SPEC, str(legacy[0])), legacy[1])


def test_file_of_another_backbone_names_the_layer(trained, legacy, tmp_path):
    trained.save(tmp_path / "x.keras")
    with pytest.raises(WeightsError, match=r"x\.keras: has no layer stem_conv\. Is it of another backbone\?"):
        build("EfficientNetLite0", SPEC, str(tmp_path / "x.keras"))
    with pytest.raises(
        WeightsError, match=r"small\.h5: layer stem_conv does not fit: expected shapes \[\(3, 3, 3, 32\)\], received"
    ):
        build("EfficientNetLite0", SPEC, str(legacy[0]))


def test_legacy_file_with_a_classifier(tmp_path):
    with_top = keras.applications.MobileNet(alpha=0.25, weights=None, input_shape=(32, 32, 3), classes=3)
    with_top.save(tmp_path / "top.h5")
    with pytest.raises(
        WeightsError, match=r"top\.h5: has \d+ layers with weights, the backbone \d+; the first too many"
    ):
        build(SMALL, SPEC, str(tmp_path / "top.h5"))


def test_legacy_file_of_other_pixels(tmp_path):
    """An EfficientNet V1 trained from scratch in Keras has other statistics than ours would apply."""
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    plain.save(tmp_path / "b0.h5")
    with pytest.raises(WeightsError, match=r"b0\.h5: trained on pixels normalized to mean"):
        build("EfficientNetB0", ImageInput(32, 32), str(tmp_path / "b0.h5"))


def test_lambda_in_a_file_does_not_run(trained, tmp_path):
    """The description of the model is never looked at, so there is nothing to trust."""
    trace = tmp_path / "trace"
    code = compile(f"open({str(trace)!r}, 'w')", "x", "eval")
    function = type(lambda: None)(code, {"open": open})
    for path in (tmp_path / "x.keras", tmp_path / "x.h5"):
        output = keras.layers.Lambda(lambda x: x, output_shape=(576,))(trained.output)
        whole = keras.Model(trained.input, output)
        whole.layers[-1].function = function
        whole.save(path)
        if path.suffix == ".keras":
            assert_same(build(SMALL, SPEC, str(path)), trained.get_weights())
        else:
            build(SMALL, SPEC, str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pth", b"", r"expected imagenet, none, or a file that ends in \.keras, \.h5, \.hdf5"),
        ("imagenett", None, r"'.*imagenett': expected imagenet, none, or a file"),
        ("x.h5", None, r"no such file"),
        ("x.h5", b"", r"x\.h5: can't be read as weights"),
        ("x.h5", b"nothing of the kind" * 100, r"x\.h5: can't be read as weights"),
        ("x.keras", b"nothing of the kind" * 100, r"x\.keras: can't be read as weights"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        build(SMALL, SPEC, str(path))
    assert "\n" not in str(caught.value)


def test_zip_without_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(WeightsError, match="no item named"):
        build(SMALL, SPEC, str(tmp_path / "x.keras"))


def test_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10_000_000))
    with pytest.raises(WeightsError, match="unpacks to far more"):
        build(SMALL, SPEC, str(tmp_path / "x.keras"))


def test_other_hdf5(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(WeightsError, match="HDF5, but not weights of a Keras model"):
        build(SMALL, SPEC, str(tmp_path / "x.h5"))


def tampered(trained: keras.Model, folder: Path) -> tuple[h5py.File, str]:
    """A file of weights opened for changing, and the path of one array in it."""
    trained.save_weights(folder / "x.weights.h5")
    file = h5py.File(folder / "x.weights.h5", "r+")
    found = []
    file.visititems(
        lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) and item.ndim == 4 else None
    )
    return file, found[0]


def test_a_file_that_can_not_be_walked_in_time_is_refused(trained, tmp_path, monkeypatch):
    """Forty groups, each in two ways in the one before: a million million paths."""
    file, _ = tampered(trained, tmp_path)
    with file:
        group = file["layers"]
        for _ in range(40):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
    monkeypatch.setattr(weights.hdf5, "PATIENCE_S", 3.0)
    patience = 3 + (tmp_path / "x.weights.h5").stat().st_size / 1e6
    with pytest.raises(
        WeightsError, match=rf"x\.weights\.h5: reading it was not done after {patience:.0f} s in a trial"
    ):
        build(SMALL, SPEC, str(tmp_path / "x.weights.h5"))


def test_links_out_of_the_file_are_refused(trained, tmp_path):
    file, array = tampered(trained, tmp_path)
    shape = file[array].shape
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = np.zeros(shape, "float32")
    with file:
        del file[array]
        file[array] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    with pytest.raises(WeightsError, match="is a link; such a file is refused"):
        build(SMALL, SPEC, str(tmp_path / "x.weights.h5"))


def test_arrays_kept_outside_the_file_are_refused(trained, tmp_path):
    file, array = tampered(trained, tmp_path)
    shape = file[array].shape
    (tmp_path / "secret").write_bytes(bytes(4 * int(np.prod(shape))))
    with file:
        del file[array]
        file.create_dataset(array, shape, "float32", external=str(tmp_path / "secret"))
    with pytest.raises(WeightsError, match="not an array inside the file"):
        build(SMALL, SPEC, str(tmp_path / "x.weights.h5"))


def test_values_that_are_no_numbers_are_refused(trained, tmp_path):
    file, array = tampered(trained, tmp_path)
    with file:
        file[array][...] = np.nan
    with pytest.raises(WeightsError, match=r"layer \w+ holds values that are not finite"):
        build(SMALL, SPEC, str(tmp_path / "x.weights.h5"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda shape: np.full(shape, 1e300), r"layer \w+ holds values beyond those of float32"),
        (lambda shape: np.full(shape, 1j, "complex64"), r"layer \w+ holds values that are not finite"),
        (lambda shape: np.ones(shape, bool), r"layer \w+ holds values that are not finite"),
        (lambda shape: h5py.Empty("f4"), "not an array inside the file"),
    ],
    ids=["too large", "complex", "truths", "none"],
)
def test_values_that_would_be_lost_are_refused(trained, tmp_path, made, message):
    file, array = tampered(trained, tmp_path)
    with file:
        shape = file[array].shape
        del file[array]
        file.create_dataset(array, data=made(shape))
    with pytest.raises(WeightsError, match=rf"^[^:]*x\.weights\.h5: [^:]*{message}"):
        build(SMALL, SPEC, str(tmp_path / "x.weights.h5"))


@pytest.mark.parametrize("attribute", ["layer_names", "weight_names"])
@pytest.mark.parametrize("value", [5, h5py.Empty("S1"), [1.5]], ids=["number", "none", "numbers"])
def test_lists_of_names_that_are_none_are_refused(legacy, tmp_path, attribute, value):
    shutil.copy(legacy[0], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        layers = file["model_weights"]
        named = layers if attribute in layers.attrs else layers["conv1"]
        named.attrs[attribute] = value
    with pytest.raises(
        WeightsError, match=r"x\.h5: (can't be read as weights|1\.5 is missing|has 26 layers)"
    ) as caught:
        build(SMALL, SPEC, str(tmp_path / "x.h5"))
    assert "\n" not in str(caught.value)


def test_huge_array_in_a_small_file_is_not_unpacked(trained, tmp_path):
    file, array = tampered(trained, tmp_path)
    with file:
        del file[array]
        file.create_dataset(array, (1 << 40,), "float32", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(WeightsError, match="does not fit"):
        build(SMALL, SPEC, str(tmp_path / "x.weights.h5"))


# --- identity -------------------------------------------------------------------------------------------------------


def test_hash_follows_what_the_model_holds():
    keras.utils.set_random_seed(1)
    model = build(SMALL, ImageInput(32, 32), "none")
    before = weights.weights_sha256(model)
    assert weights.weights_sha256(model) == before
    layer = next(layer for layer in model.layers if layer.weights)
    layer.weights[0].assign(layer.weights[0] + 1e-6)
    assert weights.weights_sha256(model) != before


def test_none_depends_on_the_seed_alone():
    models = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        models.append(build(SMALL, ImageInput(32, 32), "none").get_weights()[0])
    np.testing.assert_array_equal(models[0], models[1])
    assert np.abs(models[0] - models[2]).max() > 0
