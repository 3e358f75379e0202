"""Code for a phone app that runs an artifact, in Kotlin and in Swift.

Classes and labels go through MediaPipe Tasks ImageClassifier; values, which that does not know, through LiteRT's
interpreter.

Names, labels and normalization are read from the file itself; what is left to the app is to fit a photo into the frame
by the rule of training. ImageClassifier can't: it stretches whatever it is given (or a region of it), with a filter
that skips pixels when it shrinks. So the code draws the photo into the frame, and hands over just that. Thresholds of
labels are applied by the code, too: ImageClassifier knows one for all.
"""

import json
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

from edgetl.inputs import ResizeRule
from edgetl.outputs import OutputSpec
from edgetl.rundir import write_atomic
from export.artifacts import Artifact

TEMPLATES = Path(__file__).parent / "templates" / "phone"
CLASSIFIER = ("Classifier.kt", "Classifier.swift")
ESTIMATOR = ("Estimator.kt", "Estimator.swift")
README = "README.txt"
ESTIMATOR_README = "README.estimator.txt"
UNSUPPORTED = "README.unsupported.txt"
TAKES = ("uint8", "float32")
"""Input types of ImageClassifier."""
GRADLE_VERSION = "1.0.0"
"""Of com.google.mediapipe:tasks-vision."""
POD_VERSION = "1.0.0"
"""Of MediaPipeTasksVision."""
LITERT_VERSION = "1.4.2"
"""Of com.google.ai.edge.litert:litert, the last line that brings org.tensorflow.lite.Interpreter for its own sake."""
LITE_POD_VERSION = "2.14.0"
"""Of TensorFlowLiteSwift."""
END = {"kotlin": "kt", "swift": "swift"}
"""Of the file names of each language."""


class Stored(NamedTuple):
    """How a tensor's numbers are written and read."""

    bytes: int
    kotlin_put: str
    kotlin_get: str
    swift: str
    swift_put: str


STORED = {
    "uint8": Stored(1, "input.put(value.toByte())", "(output.get().toInt() and 0xff)", "UInt8", "data.append(value)"),
    "int8": Stored(1, "input.put((value - 128).toByte())", "output.get().toInt()", "Int8", "data.append(value ^ 0x80)"),
    "float32": Stored(
        4,
        "input.putFloat(value.toFloat())",
        "output.getFloat()",
        "Float32",
        "withUnsafeBytes(of: Float32(value)) { data.append(contentsOf: $0) }",
    ),
}
RULES: dict[ResizeRule, str] = {
    "stretch": "the whole photo, stretched to the frame.",
    "crop": "the frame is filled, and the longer side cut around the centre.",
    "pad": "the whole photo in the middle, the rest of the frame black.",
}


def write(folder: Path, artifact: Artifact) -> None:
    """Write a class for Kotlin, one for Swift, and README.txt for an artifact.

    An artifact that MediaPipe refuses (int8 input) gets only a README.txt, which says why and which scheme to take:
    the rest of its bundle is as good as any.

    Args:
        folder: exists; files of these names are replaced.
        artifact: what the code is for; the model lies in the parent folder under its `path`.

    Raises:
        OSError: no space, no permission.
    """
    snippets: tuple[str, ...] = CLASSIFIER
    readme = README
    if artifact.outputs.task == "regression":
        snippets, readme = ESTIMATOR, ESTIMATOR_README
    elif artifact.input_type not in TAKES:
        snippets, readme = (), UNSUPPORTED
    values = _values(artifact)
    write_atomic(folder / README, _filled(readme, values))
    for name in snippets:
        write_atomic(folder / name, _filled(name, values))


def _filled(template: str, values: dict[str, str]) -> str:
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _values(artifact: Artifact) -> dict[str, str]:
    spec, model = artifact.inputs, artifact.path
    kotlin, swift = _scales(spec.resize, "maxOf", "minOf"), _scales(spec.resize, "max", "min")
    values = {
        "model": model,
        "comment_model": " ".join(model.split()),  # a comment ends with its line
        "kotlin_model": _kotlin(model),
        "swift_model": _quoted(model),
        "width": str(spec.width),
        "height": str(spec.height),
        "input_type": artifact.input_type,
        "count": str(len(artifact.outputs.names)),
        "kinds": "labels" if artifact.outputs.task == "multi_label" else "classes",
        "rule": RULES[spec.resize],
        "kotlin_across": kotlin[0],
        "kotlin_down": kotlin[1],
        "swift_across": swift[0],
        "swift_down": swift[1],
        "gradle_version": GRADLE_VERSION,
        "pod_version": POD_VERSION,
        "litert_version": LITERT_VERSION,
        "lite_pod_version": LITE_POD_VERSION,
    }
    values |= _labels(artifact.outputs) | _numbers(artifact)
    return values | {f"{each}_fitted": _filled(f"fitted.{END[each]}", values) for each in END}


def _labels(outputs: OutputSpec) -> dict[str, str]:
    """What a model of labels needs more: the thresholds, and a function that applies them."""
    places = [f"{language}_{what}" for language in END for what in ("thresholds", "labels")]
    if outputs.task != "multi_label":
        return dict.fromkeys((*places, "readme_labels"), "")
    pairs = list(zip(outputs.names, outputs.thresholds, strict=True))
    kotlin = ", ".join(f"{_kotlin(name)} to {np.float32(least)!s}f" for name, least in pairs)
    swift = ", ".join(f"{_quoted(name)}: {np.float32(least)!s}" for name, least in pairs)
    return {
        "kotlin_thresholds": f"private val THRESHOLDS = mapOf({kotlin})\n",
        "kotlin_labels": _filled("labels.kt", {}),
        "swift_thresholds": f"    private static let thresholds: [String: Float] = [{swift}]\n",
        "swift_labels": _filled("labels.swift", {}),
        "readme_labels": " Any number of\nlabels can be true of a photo: labels(photo) gives those that reach their "
        "thresholds.",
    }


def _numbers(artifact: Artifact) -> dict[str, str]:
    """How pixels become what the model stores, and what it stores the values, for the code that does that itself."""
    put, give = STORED[artifact.input_type], STORED[artifact.output_type]
    real = ("{}", "{}")
    if artifact.output_scale:
        scale, zero = str(np.float32(artifact.output_scale)), artifact.output_zero_point
        real = (f"{scale}f * ({{}} - {zero})", f"{scale} * Float(Int({{}}) - {zero})")
    return {
        "kotlin_names": ", ".join(map(_kotlin, artifact.outputs.names)),
        "swift_names": ", ".join(map(_quoted, artifact.outputs.names)),
        "input_bytes": str(put.bytes),
        "output_bytes": str(give.bytes),
        "kotlin_put": put.kotlin_put,
        "kotlin_real": real[0].format(give.kotlin_get),
        "swift_type": give.swift,
        "swift_put": put.swift_put,
        "swift_real": real[1].format("$0"),
    }


def _scales(rule: ResizeRule, largest: str, smallest: str) -> tuple[str, str]:
    """How much a photo is scaled across and down: expressions over `across` and `down`, which fill the frame."""
    if rule == "stretch":
        return "across", "down"
    both = f"{largest if rule == 'crop' else smallest}(across, down)"
    return both, both


def _kotlin(text: str) -> str:
    """The same for Kotlin, where a dollar sign would begin a template."""
    return _quoted(text).replace("$", r"\$")


def _quoted(text: str) -> str:
    """A string literal: quotes and backslashes are escaped alike in JSON, Kotlin and Swift."""
    return json.dumps(text, ensure_ascii=False)
