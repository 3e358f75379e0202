"""Vela takes the integer artifacts whole, and what it would leave to the CPU is refused by name."""

from functools import cache
from pathlib import Path

import pytest
import tiny_artifacts
from tiny_artifacts import tiny_artifact

from edgetl import child
from edgetl.config import from_json, to_json
from edgetl.errors import ArtifactError, ConfigError
from edgetl.inputs import ImageInput
from edgetl.rundir import open_run
from export import families, schemes
from export.artifacts import find_artifacts
from export.flatbuffer import operators
from export.microcontroller import ethos_u
from export.microcontroller.ethos_u import ACCELERATORS, Compilation, NpuReport
from export.quantize import Quantizer

pytestmark = pytest.mark.clients

U55 = ACCELERATORS[:1]
REQUIRED = ("MobileNetV2", "ResNet50", "VGG16")
"""Besides EfficientNetLite0, which the run has. The latter two keep the border of a normalization per channel."""
OTHERS = [name for name in families.FAMILIES if name not in (*REQUIRED, "EfficientNetLite0", "ConvNeXtTiny")]
"""ConvNeXt has no integer form."""


@pytest.fixture(scope="module", autouse=True)
def vela() -> str:
    """Fail, rather than skip, where it is not installed."""
    try:
        return ethos_u.program()
    except ConfigError as error:
        pytest.fail(f"{error}, or run these tests with: make test-clients")


def assert_all_on_npu(report: NpuReport, model: Path, folder: Path) -> None:
    """One custom operator is all that is left of the graph, for every accelerator."""
    total = len(operators(model.read_bytes()))
    for each in report.compilations:
        assert {operator.name for operator in operators((folder / each.path).read_bytes())} == {ethos_u.NPU_OPERATOR}
        assert (each.cpu_operators, each.reasons, each.npu_share) == ({}, (), 1.0)
        assert sum(each.npu_operators.values()) == total > 1
        assert_plausible(each)


def assert_plausible(each: Compilation) -> None:
    assert each.latency_ms > 0
    # One is the other's reciprocal.
    assert each.inferences_per_second * each.latency_ms == pytest.approx(1000)
    assert each.sram_kib > 0 and each.dram_kib + each.off_chip_flash_kib + each.on_chip_flash_kib > 0
    assert each.system_config.startswith(each.accelerator.rpartition("-")[0].replace("ethos-u", "Ethos_U"))
    assert each.memory_mode in ("Shared_Sram", "Dedicated_Sram_384KB") and each.clock_mhz in (500.0, 1000.0)


@pytest.mark.parametrize("scheme", ["int8", "int8_io8"])
def test_the_run_is_computed_by_the_npu_alone(scheme: str, run: Path, tmp_path: Path) -> None:
    (artifact,) = find_artifacts(open_run(run), (scheme,))
    model = run / "export" / artifact.path
    report = ethos_u.write(tmp_path, artifact, model)
    assert [each.accelerator for each in report.compilations] == list(ACCELERATORS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(each.path for each in report.compilations)
    assert_all_on_npu(report, model, tmp_path)
    assert report.vela.startswith("5.")
    assert from_json(NpuReport, to_json(report).encode(), source="report") == report
    # 3.4 million weights of 8 bits, compressed a little.
    assert all(3e6 < each.size_bytes < artifact.size_bytes for each in report.compilations)


@cache
def integer_form(name: str) -> tuple[bytes, int]:
    """A backbone with random weights under int8, and the side of its photos."""
    model, photos = families.subject(name)
    return Quantizer(model, photos).quantize(schemes.get("int8")).tflite, photos[0].shape[0]


@pytest.mark.parametrize("name", [*REQUIRED, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_backbones_are_computed_by_the_npu_alone(name: str, tmp_path: Path) -> None:
    tflite, side = integer_form(name)
    artifact, model = tiny_artifacts.artifact(tmp_path, "int8", tflite, ImageInput(side, side))
    assert_all_on_npu(ethos_u.write(tmp_path, artifact, model), model, tmp_path)


@pytest.mark.parametrize("normalization", tiny_artifacts.NORMALIZATIONS)
def test_any_normalization_is_computed_by_the_npu(normalization: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "int8", normalization)
    names = [operator.name for operator in operators(model.read_bytes())]
    assert names.count("CONCATENATION") == (0 if normalization == "one scale" else 2)
    assert_all_on_npu(ethos_u.write(tmp_path, artifact, model), model, tmp_path)


# --- what stays on the CPU --------------------------------------------------------------------------------------------


def test_operators_on_the_cpu_are_refused_unless_allowed(tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "mixed_int8")
    with pytest.raises(ArtifactError) as refused:
        ethos_u.write(tmp_path, artifact, model, accelerators=U55)
    message = str(refused.value)
    assert message.startswith("mixed_int8.tflite: on ethos-u55-128 these operators fall back to the CPU: ")
    assert all(f"1 {name}" in message for name in ("CONV_2D", "QUANTIZE"))
    assert "unsupported DataType Float32" in message and "Unsupported opType" in message
    assert "--allow-cpu" in message and "\n" not in message and len(message) < 400
    assert list(tmp_path.iterdir()) == [model]

    report = ethos_u.write(tmp_path, artifact, model, accelerators=U55, allow_cpu=True)
    (made,) = report.compilations
    assert 0 < made.npu_share < 1 and made.cpu_operators["CONV_2D"] == 1 and made.reasons
    assert made.npu_operators["DEPTHWISE_CONV_2D"] == 1 and "CONV_2D" not in made.npu_operators
    left = [operator.name for operator in operators((tmp_path / made.path).read_bytes())]
    assert ethos_u.NPU_OPERATOR in left and len(left) == 1 + sum(made.cpu_operators.values())
    assert any("on the CPU, and not in these times" in line for line in ethos_u.show(report))


@pytest.mark.parametrize("allow_cpu", [False, True])
def test_a_model_that_the_npu_has_no_part_in_is_refused(allow_cpu: bool, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "float32")  # Vela itself calls this a success
    with pytest.raises(ArtifactError, match=r"the NPU computes no operator: .*1 CONV_2D.*Float32.*Choose scheme int8"):
        ethos_u.write(tmp_path, artifact, model, accelerators=U55, allow_cpu=allow_cpu)
    assert list(tmp_path.iterdir()) == [model]


def test_vela_counts_alike(vela: str, tmp_path: Path) -> None:
    """What is read off the compiled file is what Vela prints, in its own finer operators."""
    for scheme, line in (("int8", "CPU operators = 0 (0.0%)"), ("float32", "NPU operators = 0 (0.0%)")):
        _, model = tiny_artifact(tmp_path, scheme)
        assert line in child.run([vela, str(model), "--output-dir", str(tmp_path / "out")]).output


# --- circumstances ----------------------------------------------------------------------------------------------------


def test_another_chip_has_another_latency(tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "int8")
    usual, slow = (
        ethos_u.write(tmp_path, artifact, model, accelerators=[f"ethos-u55-128{names}"]).compilations[0]
        for names in ("", ":Ethos_U55_Deep_Embedded:Shared_Sram")
    )
    assert (usual.system_config, usual.clock_mhz) == ("Ethos_U55_High_End_Embedded", 500.0)
    assert (slow.system_config, slow.memory_mode, slow.clock_mhz) == ("Ethos_U55_Deep_Embedded", "Shared_Sram", 200.0)
    assert slow.latency_ms > 2 * usual.latency_ms  # 500 against 200 MHz


@pytest.mark.parametrize(
    ("accelerator", "named"), [("ethos-u55-128:No_Such", "No_Such"), ("ethos-u55-129", "ethos-u55-129")]
)
def test_names_that_vela_does_not_know_are_refused(accelerator: str, named: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "int8")
    with pytest.raises(ArtifactError, match=rf"int8\.tflite: Vela for ethos-u55-\d+ failed: .*{named}"):
        ethos_u.write(tmp_path, artifact, model, accelerators=[accelerator])


def test_a_crash_of_vela_is_one_line(tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "int8")
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"^int8\.tflite: Vela for ethos-u55-128 (crashed|failed)[^\n]*$"):
        ethos_u.write(tmp_path, artifact, model, accelerators=U55)
