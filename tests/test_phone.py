"""Snippets for phone apps: the right names and the right fit, whatever the file is called."""

import dataclasses
from pathlib import Path

import pytest

from edgetl.inputs import ImageInput, ResizeRule
from edgetl.outputs import OutputSpec
from export import phone
from export.artifacts import Artifact

ARTIFACT = Artifact(
    scheme="int8",
    path="int8.tflite",
    sha256="",
    size_bytes=1,
    inputs=ImageInput(96, 160),
    input_type="uint8",
    input_scale=1.0,
    input_zero_point=0,
    outputs=OutputSpec("classification", ("cat", "dog", "owl")),
    output_type="uint8",
    output_scale=1 / 256,
    output_zero_point=0,
    operators=1,
    run_sha256="",
    calibration=(),
    settings={},
    versions={},
)


def written(folder: Path, artifact: Artifact) -> dict[str, str]:
    phone.write(folder, artifact)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_snippets_name_the_model_its_frame_and_pinned_packages(tmp_path: Path) -> None:
    files = written(tmp_path, ARTIFACT)
    assert sorted(files) == ["Classifier.kt", "Classifier.swift", "README.txt"]
    kotlin, swift, readme = files["Classifier.kt"], files["Classifier.swift"], files["README.txt"]
    assert 'MODEL = "int8.tflite"\n' in kotlin and "WIDTH = 160\n" in kotlin and "HEIGHT = 96\n" in kotlin
    assert 'model = "int8.tflite"\n' in swift and "CGSize(width: 160, height: 96)" in swift
    assert "com.google.mediapipe:tasks-vision:1.0.0" in readme and "'MediaPipeTasksVision', '1.0.0'" in readme
    assert "../int8.tflite" in readme and "160 x 96" in readme and "3 classes" in readme
    assert "$0.score" in swift  # the one dollar sign that is meant
    assert not any("$" in text.replace("$0.", "") for text in files.values())
    assert all(kotlin.count(a) == kotlin.count(b) and swift.count(a) == swift.count(b) for a, b in ("()", "{}", "[]"))


@pytest.mark.parametrize(
    ("rule", "across", "down"),
    [
        ("stretch", "across", "down"),
        ("crop", "max(across, down)", "max(across, down)"),
        ("pad", *["min(across, down)"] * 2),
    ],
)
def test_photos_are_fitted_by_the_rule_of_training(tmp_path: Path, rule: ResizeRule, across: str, down: str) -> None:
    files = written(tmp_path, dataclasses.replace(ARTIFACT, inputs=ImageInput(64, 64, rule)))
    assert f"photo.size.width * {across}\n" in files["Classifier.swift"]
    assert f"photo.size.height * {down}\n" in files["Classifier.swift"]
    kotlin = [text.replace("max(", "maxOf(").replace("min(", "minOf(") for text in (across, down)]
    assert f"small.width * {kotlin[0]})\n" in files["Classifier.kt"]
    assert f"small.height * {kotlin[1]})\n" in files["Classifier.kt"]
    assert all(phone.RULES[rule] in text for text in files.values())


def test_odd_file_names_stay_inside_their_string(tmp_path: Path) -> None:
    files = written(tmp_path, dataclasses.replace(ARTIFACT, path='a "b" \\(c) $d é.tflite'))
    assert r'"a \"b\" \\(c) \$d é.tflite"' in files["Classifier.kt"]
    assert r'"a \"b\" \\(c) $d é.tflite"' in files["Classifier.swift"]


def test_labels_are_said_from_their_thresholds_on(tmp_path: Path) -> None:
    labels = OutputSpec("multi_label", ("a $b", 'c "d"'), thresholds=(0.3, 0.5))
    files = written(tmp_path, dataclasses.replace(ARTIFACT, outputs=labels))
    assert r'THRESHOLDS = mapOf("a \$b" to 0.3f, "c \"d\"" to 0.5f)' in files["Classifier.kt"]
    assert "it.score() >= THRESHOLDS.getValue(it.categoryName())" in files["Classifier.kt"]
    assert r'thresholds: [String: Float] = ["a $b": 0.3, "c \"d\"": 0.5]' in files["Classifier.swift"]
    assert "$0.score >= Self.thresholds[$0.name] ?? .infinity" in files["Classifier.swift"]
    assert "scores 2 labels" in files["README.txt"] and "that reach their thresholds" in files["README.txt"]


def test_values_go_through_the_interpreter(tmp_path: Path) -> None:
    values = OutputSpec("regression", ("age", "weight"), deviations=(1.0, 2.0))
    given = dataclasses.replace(ARTIFACT, outputs=values, output_scale=0.25, output_zero_point=12)
    files = written(tmp_path, given)
    assert sorted(files) == ["Estimator.kt", "Estimator.swift", "README.txt"]
    kotlin, swift, readme = files["Estimator.kt"], files["Estimator.swift"], files["README.txt"]
    assert 'NAMES = listOf("age", "weight")' in kotlin and 'names: [String] = ["age", "weight"]' in swift
    assert "0.25f * ((output.get().toInt() and 0xff) - 12)" in kotlin and "0.25 * Float(Int($0) - 12)" in swift
    assert "ByteArray(WIDTH * HEIGHT * 3 * 1)" in kotlin and "UInt8.self" in swift
    assert "com.google.ai.edge.litert:litert:1.4.2" in readme and "'TensorFlowLiteSwift', '2.14.0'" in readme
    assert not any("$" in text.replace("$0", "") for text in files.values())
    floats = dataclasses.replace(given, input_type="float32", output_type="float32", output_scale=0.0)
    files = written(tmp_path, floats)
    assert "associateWith { output.getFloat() }" in files["Estimator.kt"] and ".map { $0 }" in files["Estimator.swift"]
    assert "input.putFloat(value.toFloat())" in files["Estimator.kt"]
    files = written(tmp_path, dataclasses.replace(given, input_type="int8", output_type="int8"))
    assert "input.put((value - 128).toByte())" in files["Estimator.kt"], "MediaPipe would not take it; LiteRT does"


def test_int8_input_gets_the_reason_and_no_snippet(tmp_path: Path) -> None:
    files = written(tmp_path, dataclasses.replace(ARTIFACT, path="int8_io8.tflite", input_type="int8"))
    assert list(files) == ["README.txt"]
    assert "int8_io8.tflite" in files["README.txt"] and "another scheme of the same run: int8" in files["README.txt"]
