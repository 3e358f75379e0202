"""Sources for microcontrollers: what they hold. What TFLM and Vela say of them: tests/clients."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_tflite import SIDE, pixels, tiny

from edgetl import child
from edgetl.config import to_json
from edgetl.errors import ConfigError
from edgetl.inputs import ImageInput
from edgetl.metrics import said_labels
from edgetl.outputs import OutputSpec
from export import metadata
from export.device.interpreter import Model, TensorInfo
from export.flatbuffer import BUFFER_ALIGNMENT, operators, unpack
from export.microcontroller import ethos_u, interpreter, mcu, sources

NAMES = ('tab"by', "lion's", "naïve ??/ \\n 100%", "猫")
OUTPUTS = OutputSpec("classification", NAMES)


def described(tflite: bytes) -> bytes:
    """A model with labels and metadata, as artifacts are."""
    about = metadata.Description("tiny", "Tiny.", OUTPUTS, ImageInput(SIDE, SIDE), "int8")
    return metadata.attach(tflite, about)


def test_what_is_left_out_changes_no_score() -> None:
    whole = described(tiny("uint8"))
    flash = mcu.slim(whole)
    photos = pixels(20)
    expected = Model(whole, kernels="reference").predict_batch(photos)
    np.testing.assert_array_equal(Model(flash, kernels="reference").predict_batch(photos), expected)
    assert len(set(map(tuple, expected))) > 10
    assert len(flash) < len(metadata.strip(whole)) < len(whole)
    left = unpack(flash)
    assert not left.metadata and not left.signatureDefs
    assert not any(tensor.name for tensor in left.subgraphs[0].tensors)
    assert b"naive" not in flash and b"edgetl" not in flash and b"labels.txt" not in flash
    assert mcu.slim(flash) == flash


def test_weights_stay_aligned() -> None:
    model = schema.Model.GetRootAsModel(mcu.slim(described(tiny("uint8"))), 0)
    buffers = [model.Buffers(number)._tab for number in range(model.BuffersLength())]
    places = [table.Vector(table.Offset(4)) for table in buffers if table.Offset(4)]  # field 0: data
    assert len(places) > 3
    # kData is aligned to 16 bytes, so offsets in it are what kernels see.
    assert not any(place % BUFFER_ALIGNMENT for place in places)


def test_the_array_is_the_model() -> None:
    content = bytes(range(256)) + b"end"
    text = sources.source("model_int8", content, OUTPUTS)
    (numbers,) = re.findall(r"kData\[\] = \{(.*?)\};", text, re.DOTALL)
    assert bytes(int(number) for number in numbers.split(",") if number.strip()) == content
    assert f"kSize = {len(content)};" in text
    literals = re.findall(r'^    (".*"),$', text, re.MULTILINE)
    # Python reads octal escapes as C++ does.
    assert tuple(ast.literal_eval(f"b{each}").decode() for each in literals) == NAMES
    assert text.isascii() and "??" not in text
    assert max(map(len, text.splitlines())) <= 4 * sources.ARRAY_LINE


def test_the_header_says_what_the_tensors_hold() -> None:
    ends = TensorInfo("pixels", (1,), "int8", 0.1, -1), TensorInfo("scores", (1,), "uint8", 1 / 256, 0)
    text = sources.header("model_int8", frame=(12, 10, 3), ends=ends, arena=2800, outputs=OUTPUTS)
    found = dict(re.findall(r"constexpr \S+ (\w+) = (\S+);", text))
    assert found == {
        "kArenaSize": "2800",
        "kInputHeight": "12",
        "kInputWidth": "10",
        "kInputChannels": "3",
        "kInputScale": "0.1f",
        "kInputZeroPoint": "-1",
        "kOutputScale": "0.00390625f",
        "kOutputZeroPoint": "0",
        "kClassCount": "4",
    }
    assert "stored = pixel - 128" in text
    assert "stored = pixel," in sources.header("m", frame=(1, 1, 3), ends=(ends[1], ends[1]), arena=16, outputs=OUTPUTS)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.501, 0.7, 255 / 256, 1.0])
def test_thresholds_as_stored_say_what_scores_say(kind: str, threshold: float) -> None:
    output = TensorInfo("scores", (1,), kind, 1 / 256, -128 if kind == "int8" else 0)
    stored = np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1)
    labels = OutputSpec("multi_label", ("a",), thresholds=(threshold,))
    (said,) = said_labels(output.real(stored)[:, None], labels).T
    np.testing.assert_array_equal(stored >= mcu._stored(threshold, output), said)


def test_the_header_says_how_labels_and_values_are_read() -> None:
    uint8 = TensorInfo("pixels", (1,), "uint8", 1.0, 0), TensorInfo("scores", (1,), "uint8", 1 / 256, 0)
    labels = OutputSpec("multi_label", ("a", "b"), thresholds=(0.3, 0.5))
    text = sources.header("m", frame=(1, 1, 3), ends=uint8, arena=16, outputs=labels, thresholds=(77.0, 128.0))
    assert "constexpr int kThresholds[kLabelCount] = {77, 128};" in text and "kLabelNames[kLabelCount]" in text
    floats = TensorInfo("pixels", (1,), "float32", 0.0, 0), TensorInfo("scores", (1,), "float32", 0.0, 0)
    text = sources.header("m", frame=(1, 1, 3), ends=floats, arena=16, outputs=labels, thresholds=labels.thresholds)
    assert "constexpr float kThresholds[kLabelCount] = {0.3f, 0.5f};" in text
    values = OutputSpec("regression", ("age",), deviations=(4.0,))
    ends = uint8[0], TensorInfo("values", (1,), "uint8", 0.25, 12)
    text = sources.header("m", frame=(1, 1, 3), ends=ends, arena=16, outputs=values)
    assert "one value per target; value = kOutputScale * (stored - kOutputZeroPoint); beyond" in text
    assert "kOutputScale = 0.25f;" in text and "kTargetCount = 1;" in text and "kThresholds" not in text
    assert "kTargetNames[kTargetCount] = {" in sources.source("m", b"1234", values)


@pytest.mark.parametrize(
    ("value", "literal"), [(1.0, "1.0f"), (0.0, "0.0f"), (1e-9, "1e-09f"), (1 / 3, "0.333333333f")]
)
def test_floats_are_written_whole(value: float, literal: str) -> None:
    assert sources._float(value) == literal
    assert np.float32(literal.removesuffix("f")) == np.float32(value)


def test_the_resolver_has_the_operators_of_the_model() -> None:
    kinds = tuple(dict.fromkeys(operator.name for operator in operators(tiny("uint8"))))
    text = sources.resolver("model_int8", kinds)
    assert f"MicroMutableOpResolver<{len(kinds)}>" in text
    # The kinds of this model, spelled as micro_mutable_op_resolver.h does.
    assert set(re.findall(r"resolver\.(\w+)\(\)", text)) == {
        "AddQuantize",
        "AddConv2D",
        "AddMean",
        "AddFullyConnected",
        "AddSoftmax",
    }


@pytest.mark.parametrize(
    ("operator", "method"),
    [
        ("DEPTHWISE_CONV_2D", "DepthwiseConv2D"),
        ("AVERAGE_POOL_2D", "AveragePool2D"),
        ("HARD_SWISH", "HardSwish"),
        ("RELU6", "Relu6"),
        ("PADV2", "PadV2"),
        ("BATCH_MATMUL", "BatchMatMul"),
        ("L2_NORMALIZATION", "L2Normalization"),
    ],
)
def test_methods_are_spelled_as_the_resolver_does(operator: str, method: str) -> None:
    assert sources.method(operator) == method


def test_names_of_schemes_are_names_in_c() -> None:
    assert sources.identifier("int8_io8") == "model_int8_io8"
    assert sources.identifier("my model-2") == "model_my_model_2"


# --- programs that are not there, crash, or are interrupted -----------------------------------------------------------


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"pip install 'edgetl\[mcu\]'"):
        interpreter.version()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'edgetl\[ethos-u\]'"):
        ethos_u.program()
    vela = tmp_path / "vela"
    vela.touch(mode=0o755)
    assert ethos_u.program() == str(vela)


def test_a_crash_is_told_from_a_failure() -> None:
    crashed = child.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    assert crashed.how == "crashed (SIGSEGV)"
    failed = child.run([sys.executable, "-c", "import sys; print('out'); sys.exit('one\\ntwo.')"])
    assert (failed.status, failed.output, failed.how) == (1, "out\n", "failed: two")
    assert child.run([sys.executable, "-c", "raise SystemExit(3)"]).how == "failed: exit status 3"


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    # The child ignores the interrupt, as native code does: it must be killed.
    stubborn = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    waiting = f"import sys; from edgetl import child; child.run([sys.executable, '-c', {stubborn!r}])"
    with subprocess.Popen([sys.executable, "-c", waiting], stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 30
        while not (pid_file.is_file() and pid_file.read_text()):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.02)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize("wrong", [(), ("ethos-u55-128", "ethos-u55-128:A:B"), ("u55",), ("ethos-u55-128:a:b:c",)])
def test_accelerators_that_are_none_are_refused(wrong: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="accelerator"):
        ethos_u.write(tmp_path, None, tmp_path / "none", accelerators=wrong)  # type: ignore[arg-type]


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_reports_become_lines() -> None:
    report = mcu.McuReport(
        files=("model_int8.h",),
        model_bytes=2048,
        model_sha256="0",
        stripped_bytes=512,
        arena_bytes=4096,
        arena_recorded_bytes=4090,
        operators={"CONV_2D": 2, "SOFTMAX": 1},
        frames=2,
        max_difference=0.0,
        tflite_micro="0.1",
    )
    text = "\n".join(mcu.show(report))
    assert "2.0 KiB" in text and "0.5 KiB less" in text and "4.0 KiB" in text
    assert "2 CONV_2D, 1 SOFTMAX" in text and "bit-equal" in text
    assert '"arena_bytes": 4096' in to_json(report)


def compilation(npu: dict[str, int], cpu: dict[str, int]) -> ethos_u.Compilation:
    return ethos_u.Compilation(
        accelerator="ethos-u65-256",
        path="int8_ethos-u65-256_vela.tflite",
        size_bytes=1,
        system_config="Ethos_U65_Client_Server",
        memory_mode="Dedicated_Sram_384KB",
        clock_mhz=1000.0,
        latency_ms=4.28,
        inferences_per_second=233.6,
        sram_kib=382.8,
        dram_kib=3621.5,
        on_chip_flash_kib=0.0,
        off_chip_flash_kib=0.0,
        npu_operators=npu,
        cpu_operators=cpu,
        reasons=(),
    )


def test_a_latency_is_shown_with_what_it_assumes() -> None:
    whole, part = compilation({"CONV_2D": 3}, {}), compilation({"CONV_2D": 3}, {"QUANTIZE": 1})
    lines = ethos_u.show(ethos_u.NpuReport((whole, part), "5.2.0"))
    assert (whole.npu_share, part.npu_share) == (1.0, 0.75)
    assert max(map(len, lines)) <= 120
    first, second = (line for line in lines if "Ethos_U65_Client_Server, Dedicated_Sram_384KB, 1000 MHz" in line)
    assert first.split()[1:6] == ["100.0", "4.28", "233.6", "383", "3622"]
    assert second.split()[1] == "75.0" and any("1 QUANTIZE" in line for line in lines)
