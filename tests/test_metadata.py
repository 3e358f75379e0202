"""What a .tflite file tells about itself: readable by others, equal bytes for equal words, no score changed."""

import dataclasses
import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tflite import ABOUT, SIDE, mean, pixels, with_files, with_json

from edgetl.backbones.registry import BACKBONES
from edgetl.config import to_json
from edgetl.errors import ArtifactError, ConfigError, EdgetlError, RunError
from edgetl.inputs import ImageInput
from edgetl.outputs import OutputSpec
from edgetl.rundir import MODEL, Manifest, RunDir
from export.device.errors import DeviceError
from export.device.interpreter import Model
from export.device.metadata import MAX_JSON_BYTES, TAIL_BYTES, About, read_about
from export.flatbuffer import compact, pack, unpack
from export.metadata import Description, attach, describe, read, strip

ABOUT_MEAN = Description(
    name="Mean float32",
    description="Tells the channels apart.",
    outputs=OutputSpec("classification", ("red", "grün", "青")),
    inputs=ImageInput(SIDE, SIDE, "pad"),
    scheme="float32",
    backbone="Mean",
    licence="Apache-2.0",
    author="nobody",
    version="1a2b",
    run_sha256="ab" * 32,
    versions={"edgetl": "0.1.0", "numpy": "2.0"},
)
ABC = OutputSpec("classification", ("a", "b", "c"))
OTHER = dataclasses.replace(ABOUT_MEAN, name="Another", outputs=ABC, licence="", versions={})


# --- a reader of its own: positions of metadata_schema.fbs as numbers, none taken from the code under test -------


def table(parent: flatbuffers.Table | None, data: bytes, slot: int) -> Any:
    """A table inside a table, or the root where there is no parent."""
    if parent is None:
        return flatbuffers.Table(bytearray(data), int.from_bytes(data[:4], "little"))
    offset = parent.Offset(4 + 2 * slot)
    return flatbuffers.Table(parent.Bytes, parent.Indirect(offset + parent.Pos)) if offset else None


def elements(parent: Any, slot: int) -> list[Any]:
    """Tables in a vector of a table."""
    offset = parent.Offset(4 + 2 * slot)
    if not offset:
        return []
    start = parent.Vector(offset)
    return [
        flatbuffers.Table(parent.Bytes, parent.Indirect(start + 4 * index)) for index in range(parent.VectorLen(offset))
    ]


def text(parent: Any, slot: int) -> str | None:
    offset = parent.Offset(4 + 2 * slot)
    return parent.String(offset + parent.Pos).decode() if offset else None


def byte(parent: Any, slot: int) -> int:
    offset = parent.Offset(4 + 2 * slot)
    return parent.Get(flatbuffers.number_types.Uint8Flags, offset + parent.Pos) if offset else 0


def floats(parent: Any, slot: int) -> list[float]:
    offset = parent.Offset(4 + 2 * slot)
    return parent.GetVectorAsNumpy(flatbuffers.number_types.Float32Flags, offset).tolist()


def entries(tflite: bytes) -> dict[str, list[bytes]]:
    """Names in the model's list of metadata -> the buffers that they point to."""
    model = unpack(tflite)
    found: dict[str, list[bytes]] = {}
    for entry in model.metadata or ():
        found.setdefault(entry.name.decode(), []).append(bytes(model.buffers[entry.buffer].data))
    return found


def root(tflite: bytes) -> Any:
    (content,) = entries(tflite)["TFLITE_METADATA"]
    assert content[4:8] == b"M001"
    return table(None, content, 0)


def zipped(tflite: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(tflite)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


# --- what is written --------------------------------------------------------------------------------------------------


def test_own_reader_gets_back_what_was_attached() -> None:
    written = attach(mean(), ABOUT_MEAN)
    assert read(written) == ABOUT_MEAN
    assert read(mean()) is None
    assert read(with_files(mean(), {"labels.txt": b"of others\n"})) is None
    least = Description("", "", ABC, ImageInput(SIDE, SIDE), "float32")
    assert read(attach(mean(), least)) == least


def test_model_texts_and_files_by_position() -> None:
    written = root(attach(mean(), ABOUT_MEAN))
    texts = ["Mean float32", "Tells the channels apart.", "1a2b", "nobody", "Apache-2.0", "1.0.0"]
    assert [text(written, slot) for slot in (0, 1, 2, 4, 5, 7)] == texts
    (file,) = elements(written, 6)
    assert (text(file, 0), byte(file, 2)) == ("edgetl.json", 1)
    assert text(root(attach(mean(), OTHER)), 5) is None, "no licence rather than an empty one"


def test_tensors_by_position() -> None:
    (subgraph,) = elements(root(attach(mean(), ABOUT_MEAN)), 3)
    (source,), (sink,) = elements(subgraph, 2), elements(subgraph, 3)
    assert (text(source, 0), text(sink, 0)) == ("image", "probability")
    content = table(source, b"", 3)
    assert (byte(content, 0), byte(table(content, b"", 1), 0)) == (2, 1), "ImageProperties, RGB"
    assert byte(table(sink, b"", 3), 0) == 1, "FeatureProperties"
    assert table(table(sink, b"", 3), b"", 1) is not None, "readers dereference it"
    assert [floats(table(sink, b"", 5), slot) for slot in (0, 1)] == [[1.0], [0.0]]
    (labels,) = elements(sink, 6)
    assert (text(labels, 0), byte(labels, 2)) == ("labels.txt", 2), "TENSOR_AXIS_LABELS"
    assert not elements(source, 6)


def test_values_are_no_scores_to_those_who_read_metadata() -> None:
    values = OutputSpec("regression", ("a", "b", "c"), deviations=(1.0, 2.0, 3.0))
    about = dataclasses.replace(ABOUT_MEAN, outputs=values)
    (subgraph,) = elements(root(attach(mean(), about)), 3)
    (sink,) = elements(subgraph, 3)
    (names,) = elements(sink, 6)
    assert (text(sink, 0), text(names, 0), byte(names, 2)) == ("values", "labels.txt", 1), "DESCRIPTIONS"
    assert table(sink, b"", 5) is None, "nothing between 0 and 1"
    assert read(attach(mean(), about)) == about


def test_thresholds_travel_in_the_file() -> None:
    labels = OutputSpec("multi_label", ("a", "b", "c"), thresholds=(0.3, 0.5, 0.7))
    model = Model(attach(mean(), dataclasses.replace(ABOUT_MEAN, outputs=labels)))
    assert model.about is not None and model.about.outputs.thresholds == (0.3, 0.5, 0.7)


@pytest.mark.parametrize(
    ("io", "scale", "zero_point", "normalization", "stored"),
    [
        ("float32", 0.0, 0, (0.0, 1.0), (0.0, 255.0)),
        ("uint8", 1.0, 0, (0.0, 1.0), (0.0, 255.0)),
        ("uint8", 1 / 128, 127, (127.0, 128.0), (0.0, 255.0)),
        ("int8", 1 / 128, -1, (127.0, 128.0), (-128.0, 127.0)),
        ("int8", 1.0, -128, (0.0, 1.0), (-128.0, 127.0)),
    ],
)
def test_normalization_and_quantization_together_give_the_pixel(
    io: str, scale: float, zero_point: int, normalization: tuple[float, float], stored: tuple[float, float]
) -> None:
    written = attach(mean(io, scale=scale, zero_point=zero_point), ABOUT_MEAN)
    (subgraph,) = elements(root(written), 3)
    (source,) = elements(subgraph, 2)
    (unit,) = elements(source, 4)
    assert byte(unit, 0) == 1, "NormalizationOptions"
    options = table(unit, b"", 1)
    (middle,), (deviation,) = floats(options, 0), floats(options, 1)
    assert (middle, deviation) == normalization
    assert tuple(floats(table(source, b"", 5), slot)[0] for slot in (1, 0)) == stored
    tensor = json.loads(zipped(written)["edgetl.json"])["input_tensor"]
    shift = 128 if io == "int8" else 0
    assert tensor == {
        "type": io,
        "pixel_shift": shift,
        "scale": scale,
        "zero_point": zero_point,
        "pixel_range": [0, 255],
    }
    if scale:
        # What the schema demands of readers: normalize, then quantize by the tensor. Exact in float32.
        pixel = np.arange(256)
        np.testing.assert_array_equal((pixel - middle) / deviation / scale + zero_point, pixel - shift)


def test_zip_is_what_other_readers_need() -> None:
    written = attach(mean(), ABOUT_MEAN)
    files = zipped(written)
    assert list(files) == ["labels.txt", "edgetl.json"]
    assert files["labels.txt"].decode() == "red\ngrün\n青\n"
    about = json.loads(files["edgetl.json"])
    assert about["schema_version"] == 2
    assert about["inputs"] == {"height": SIDE, "width": SIDE, "resize": "pad", "kind": "image"}
    assert about["outputs"]["names"] == ["red", "grün", "青"]
    assert (about["run_sha256"], about["versions"]) == ("ab" * 32, ABOUT_MEAN.versions)
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            # Offsets count from the file's beginning: zipfile would forgive others, minizip and Java's need not.
            where = int.from_bytes(written[archive.start_dir :][42:46], "little")
            assert written[where:].startswith(b"PK\3\4")
            assert written[member.header_offset :].startswith(b"PK\3\4")


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["float32", "uint8", "int8"])
def test_equal_words_give_equal_bytes_whatever_was_there(io: str) -> None:
    original = mean(io)
    once = attach(original, ABOUT_MEAN)
    assert attach(original, ABOUT_MEAN) == once
    assert attach(once, ABOUT_MEAN) == once
    assert attach(attach(original, OTHER), ABOUT_MEAN) == once
    assert attach(with_files(original, {"labels.txt": b"old\n"}), ABOUT_MEAN) == once
    assert attach(original, OTHER) != once
    assert strip(once) == strip(original) == compact(original)


def test_another_description_leaves_nothing_of_the_old_one() -> None:
    replaced = attach(attach(mean(), ABOUT_MEAN), OTHER)
    assert read(replaced) == OTHER
    assert list(zipped(replaced)) == ["labels.txt", "edgetl.json"]
    assert replaced.count(b"M001") == 1 and b"nobody" in attach(mean(), ABOUT_MEAN)
    assert replaced.count(b"Apache-2.0") == 0 and replaced.count("grün".encode()) == 0
    assert {name: len(contents) for name, contents in entries(replaced).items()} == {
        "min_runtime_version": 1,
        "TFLITE_METADATA": 1,
    }


def test_entries_of_other_tools_survive_in_any_order() -> None:
    model = unpack(attach(mean(), ABOUT_MEAN))
    model.metadata = [*model.metadata[::-1], model.metadata[-1]]  # ours in front, and once more behind
    model.buffers.append(type(model.buffers[0])())
    model.buffers[-1].data = np.frombuffer(b"of others", np.uint8)
    other = type(model.metadata[0])()
    other.name, other.buffer = b"OTHERS", len(model.buffers) - 1
    model.metadata.append(other)
    found = entries(attach(pack(model), OTHER))
    assert sorted(found) == ["OTHERS", "TFLITE_METADATA", "min_runtime_version"]
    assert found["OTHERS"] == [b"of others"]
    assert found["min_runtime_version"] == [b"1.5.0".ljust(16, b"\0")]
    assert len(found["TFLITE_METADATA"]) == 1
    bare = strip(pack(model))
    assert sorted(entries(bare)) == ["OTHERS", "min_runtime_version"]
    assert b"M001" not in bare


@pytest.mark.parametrize("kernels", ["xnnpack", "reference"])
@pytest.mark.parametrize("io", ["float32", "uint8", "int8"])
def test_no_bit_of_the_scores_changes(io: str, kernels: Any) -> None:
    photos = pixels(20)
    about = {"outputs": json.loads(to_json(ABOUT_MEAN.outputs))}
    plain = Model(with_json(mean(io, zero_point=-128 if io == "int8" else 0), 128 * (io == "int8"), **about))
    before = Model(plain.content, kernels=kernels).predict_batch(photos)
    model = Model(attach(plain.content, ABOUT_MEAN), kernels=kernels)
    np.testing.assert_array_equal(model.predict_batch(photos), before)
    # Half a step of the integer output, or the rounding of float32 sums.
    np.testing.assert_allclose(before, photos.mean((1, 2)), atol=1e-3 if io == "float32" else 0.51)
    assert model.output_names == ABOUT_MEAN.outputs.names
    assert model.about is not None and model.about.inputs["resize"] == "pad"


# --- words that don't fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "two\nlines", "end\n", "carriage\r", "x\u2028y", "nul\0", "half \ud800"])
def test_class_names_that_a_file_of_lines_cannot_hold(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OutputSpec("classification", ("a", name, "b"))
    assert f"output name {name!r}: must be one line" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_odd_class_names_are_kept() -> None:
    odd = dataclasses.replace(ABOUT_MEAN, outputs=OutputSpec("classification", ("same", " same", " '\",{}\u202e🦆")))
    written = attach(mean(), odd)
    assert read(written) == odd
    assert zipped(written)["labels.txt"].decode() == "same\n same\n '\",{}\u202e🦆\n"
    assert Model(written).output_names == odd.outputs.names


def test_models_that_the_description_does_not_fit() -> None:
    with pytest.raises(ArtifactError, match=r"input \[1, 12, 12, 3\], photos of the run \[13, 12, 3\]"):
        attach(mean(), dataclasses.replace(ABOUT_MEAN, inputs=ImageInput(SIDE + 1, SIDE)))
    for names in ((), ("a", "b")):
        with pytest.raises(ArtifactError, match=rf"output \[1, 3\]: {len(names)} names"):
            attach(mean(), dataclasses.replace(ABOUT_MEAN, outputs=OutputSpec("classification", names)))
    with pytest.raises(ArtifactError, match="Convert with float32, uint8 or int8 input"):
        attach(mean("int16"), ABOUT_MEAN)
    with pytest.raises(ArtifactError, match="not a TFLite model"):
        attach(b"PK\3\4" + bytes(50), ABOUT_MEAN)
    model = unpack(mean())
    model.subgraphs[0].outputs = [2, 2]
    with pytest.raises(ArtifactError, match="1 inputs, 2 outputs"):
        attach(pack(model), ABOUT_MEAN)


def test_descriptions_too_long_for_devices_are_not_written() -> None:
    many = 2000
    about = dataclasses.replace(
        ABOUT_MEAN, outputs=OutputSpec("classification", tuple(f"{number:0500d}" for number in range(many)))
    )
    assert read(attach(mean(classes=many), about)) == about
    with pytest.raises(ArtifactError, match=f"more than {MAX_JSON_BYTES} bytes"):
        attach(mean(classes=many), dataclasses.replace(about, author="x" * 100_000))


# --- describing a run -------------------------------------------------------------------------------------------------


def a_run(path: Path, config: str | None) -> RunDir:
    run = RunDir(path)
    if config is not None:
        run.write("config.json", config)
    run.write("inputs.json", to_json(ImageInput(12, 16, "crop")))
    run.write("outputs.json", to_json(OutputSpec("classification", ("cat", "dog"))))
    run.write("manifest.json", to_json(Manifest("r", "d", "", 0, {MODEL: "c0ffee" * 10}, {})))
    return run


def test_a_run_is_described_by_its_backbone(tmp_path: Path) -> None:
    about = describe(a_run(tmp_path, '{"backbone": "ResNet50", "weights": "imagenet"}'), "int8")
    assert (about.name, about.backbone, about.scheme) == ("ResNet50 int8", "ResNet50", "int8")
    assert about.licence == BACKBONES["ResNet50"].licence == "MIT"
    assert about.description == "Classifies RGB photos of 16x12 pixels into 2 classes: ResNet50, int8."
    assert (about.outputs.names, about.inputs) == (("cat", "dog"), ImageInput(12, 16, "crop"))
    assert (about.run_sha256, about.version) == ("c0ffee" * 10, "c0ffeec0ffee")
    assert about.versions["edgetl"] in about.author and "tensorflow" in about.versions
    assert str(tmp_path) not in to_json(about)


def test_a_width_is_a_backbone_of_its_own(tmp_path: Path) -> None:
    about = describe(a_run(tmp_path, '{"backbone": "mobilenet_v2", "width": 0.35, "weights": "imagenet"}'), "int8")
    assert (about.name, about.backbone) == ("MobileNetV2_035 int8", "MobileNetV2_035")


@pytest.mark.parametrize(
    ("config", "backbone"),
    [
        ('{"backbone": "ResNet50", "weights": "none"}', "ResNet50"),
        ('{"backbone": "ResNet50", "weights": "/mine.h5"}', "ResNet50"),
        ('{"backbone": "NotOurs", "weights": "imagenet"}', ""),
        ('{"backbone": ["odd"]}', ""),
        ("{}", ""),
        (None, ""),
    ],
)
def test_no_licence_where_none_is_known(tmp_path: Path, config: str | None, backbone: str) -> None:
    about = describe(a_run(tmp_path, config), "int8")
    assert (about.backbone, about.licence) == (backbone, "")
    assert about.name == f"{backbone or 'model'} int8"


@pytest.mark.parametrize("config", ["[]", "{", "\udcff"])
def test_damaged_settings_of_a_run(tmp_path: Path, config: str) -> None:
    run = a_run(tmp_path, None)
    (tmp_path / "config.json").write_bytes(config.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"config.json: damaged .no JSON object"):
        describe(run, "int8")


# --- what a device makes of anything ----------------------------------------------------------------------------------


def told(**changes: Any) -> bytes:
    return json.dumps({**ABOUT, **changes}).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "not a JSON object"),
        (told(schema_version=3), "schema_version 3, this code reads 2"),
        (told(schema_version=None), "schema_version None"),
        (told(outputs={**ABOUT["outputs"], "names": []}), "outputs.names are missing"),
        (told(outputs="abc"), "outputs: missing or unknown"),
        (told(outputs={**ABOUT["outputs"], "names": ["a", 1]}), "outputs.names[1]: expected str"),
        (told(outputs={**ABOUT["outputs"], "names": ["\ud800"]}), "surrogates not allowed"),
        (told(inputs=None), "inputs or input_tensor"),
        (told(input_tensor=[128]), "inputs or input_tensor"),
        (told(input_tensor={}), "pixel_shift None"),
        (told(input_tensor={"pixel_shift": 1}), "pixel_shift 1,"),
        (told(input_tensor={"pixel_shift": 128.0}), "pixel_shift 128.0"),
        (told(input_tensor={"pixel_shift": False}), "pixel_shift False"),
        (told(input_tensor={"pixel_shift": "1" * 999}), "pixel_shift '1"),
        (told() + b" " * MAX_JSON_BYTES, f"more than {MAX_JSON_BYTES}"),
    ],
)
def test_wrong_json_is_one_clear_line(content: bytes, says: str) -> None:
    with pytest.raises(DeviceError) as caught:
        read_about(with_files(mean(), {"edgetl.json": content}), "a.tflite")
    message = str(caught.value)
    assert message.startswith("a.tflite: its edgetl.json can't be used: ") and says in message
    assert message.endswith("Copy or convert the file again")
    assert "\n" not in message and len(message) < 300
    with pytest.raises(ArtifactError):
        read(with_files(mean(), {"edgetl.json": content}))


def test_descriptions_that_only_devices_can_use_are_refused_on_the_host() -> None:
    assert read_about(with_json(mean())) is not None
    with pytest.raises(ArtifactError, match=r"edgetl.json: name: .*Convert the model again"):
        read(with_json(mean()))


def test_compressed_twice_and_locked_files_are_refused() -> None:
    bomb = with_files(mean(), {"edgetl.json": bytes(30 << 20)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DeviceError, match="it is compressed"):
        read_about(bomb)
    twice = with_files(mean(), {"edgetl.json": told(), "edgetl.jsonx": told()}).replace(
        b"edgetl.jsonx", b"edgetl.json\0"
    )
    with pytest.raises(DeviceError, match="it is there twice"):
        read_about(twice)
    locked = bytearray(with_json(mean()))
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.rindex(signature) + flags] |= 1
    with pytest.raises(DeviceError, match="encrypted"):
        read_about(bytes(locked))


def test_what_is_elsewhere_in_the_zip_does_not_count() -> None:
    for name in ("sub/edgetl.json", "../edgetl.json", "/edgetl.json", "EDGETL.JSON", "edgetl.json/"):
        assert read_about(with_files(mean(), {name: told()})) is None, name


def test_large_files_in_front_do_not_matter() -> None:
    large = with_files(mean(), {"vocabulary.bin": bytes(3 * TAIL_BYTES), "edgetl.json": told()})
    assert read_about(large) is not None
    behind = with_files(mean(), {"edgetl.json": told(), "vocabulary.bin": bytes(3 * TAIL_BYTES)})
    with pytest.raises(DeviceError, match=r"can't be used"):
        read_about(behind)


def test_memory_is_bounded_whatever_the_directory_lists() -> None:
    one = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    for entries_ in (TAIL_BYTES // len(one) - 1, 10 * TAIL_BYTES // len(one)):
        count = min(entries_, 0xFFFF)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, entries_ * len(one), 0, 0)
        hostile = mean() + one * entries_ + end
        tracemalloc.start()
        assert read_about(hostile) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # 28 000 entries of some 700 bytes each; ten times as many are not even listed.
        assert peak < 40 << 20, f"{peak / 1e6:.0f} MB"


def test_a_cut_description_is_absent_or_refused_at_every_byte() -> None:
    whole = attach(mean(), ABOUT_MEAN)
    assert read_about(whole) is not None
    for length in range(len(strip(mean())), len(whole)):
        assert read_about(whole[:length]) is None, length


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_altered_bytes_never_do_more_than_refuse(data: st.DataObject) -> None:
    whole = bytearray(with_json(b"TFL3", 128))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    harmless(bytes(whole))


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists), st.data())
def test_any_json_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*ABOUT, "other"]))
    harmless(with_files(mean(), {"edgetl.json": told(**{key: value})}))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_behind_a_model_are_read_or_refused(tail: bytes) -> None:
    harmless(mean() + tail)
    harmless(mean() + b"PK\3\4" + tail + b"PK\1\2" + tail + b"PK\5\6" + tail)


def harmless(tflite: bytes) -> None:
    """Both readers give a value or their own error, in one line."""
    try:
        found = read_about(tflite)
    except DeviceError as error:
        assert "\n" not in str(error)
    else:
        assert found is None or isinstance(found, About)
    try:
        assert isinstance(read(tflite), Description | None)
    except EdgetlError as error:
        assert isinstance(error, ArtifactError)
