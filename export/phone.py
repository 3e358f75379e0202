"""Code for a phone app that runs an artifact: MediaPipe Tasks ImageClassifier, from Kotlin and from Swift.

Names, labels and normalization are read from the file itself; what is left to the app is to fit a photo into the frame
by the rule of training. ImageClassifier can't: it stretches whatever it is given (or a region of it), with a filter
that skips pixels when it shrinks. So the code draws the photo into the frame, and hands over just that.
"""

import json
from pathlib import Path
from string import Template

from edgetl.inputs import ResizeRule
from edgetl.rundir import write_atomic
from export.artifacts import Artifact

TEMPLATES = Path(__file__).parent / "templates" / "phone"
SNIPPETS = ("Classifier.kt", "Classifier.swift")
README = "README.txt"
UNSUPPORTED = "README.unsupported.txt"
TAKES = ("uint8", "float32")
"""Input types of ImageClassifier."""
GRADLE_VERSION = "1.0.0"
"""Of com.google.mediapipe:tasks-vision."""
POD_VERSION = "1.0.0"
"""Of MediaPipeTasksVision."""
RULES: dict[ResizeRule, str] = {
    "stretch": "the whole photo, stretched to the frame.",
    "crop": "the frame is filled, and the longer side cut around the centre.",
    "pad": "the whole photo in the middle, the rest of the frame black.",
}


def write(folder: Path, artifact: Artifact) -> None:
    """Write Classifier.kt, Classifier.swift and README.txt for an artifact.

    An artifact that MediaPipe refuses (int8 input) gets only a README.txt, which says why and which scheme to take:
    the rest of its bundle is as good as any.

    Args:
        folder: exists; files of these names are replaced.
        artifact: what the code is for; the model lies in the parent folder under its `path`.

    Raises:
        OSError: no space, no permission.
    """
    values = _values(artifact)
    supported = artifact.input_type in TAKES
    write_atomic(folder / README, _filled(README if supported else UNSUPPORTED, values))
    for name in SNIPPETS if supported else ():
        write_atomic(folder / name, _filled(name, values))


def _filled(template: str, values: dict[str, str]) -> str:
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _values(artifact: Artifact) -> dict[str, str]:
    spec, model = artifact.inputs, artifact.path
    kotlin, swift = _scales(spec.resize, "maxOf", "minOf"), _scales(spec.resize, "max", "min")
    return {
        "model": model,
        "comment_model": " ".join(model.split()),  # a comment ends with its line
        "kotlin_model": _quoted(model).replace("$", r"\$"),  # or it would be a template
        "swift_model": _quoted(model),
        "width": str(spec.width),
        "height": str(spec.height),
        "input_type": artifact.input_type,
        "classes": str(len(artifact.output_names)),
        "rule": RULES[spec.resize],
        "kotlin_across": kotlin[0],
        "kotlin_down": kotlin[1],
        "swift_across": swift[0],
        "swift_down": swift[1],
        "gradle_version": GRADLE_VERSION,
        "pod_version": POD_VERSION,
    }


def _scales(rule: ResizeRule, largest: str, smallest: str) -> tuple[str, str]:
    """How much a photo is scaled across and down: expressions over `across` and `down`, which fill the frame."""
    if rule == "stretch":
        return "across", "down"
    both = f"{largest if rule == 'crop' else smallest}(across, down)"
    return both, both


def _quoted(text: str) -> str:
    """A string literal: quotes and backslashes are escaped alike in JSON, Kotlin and Swift."""
    return json.dumps(text, ensure_ascii=False)
