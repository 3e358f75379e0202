"""Photos of the test split in a bundle, and what the host says of them: what a device is checked with."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from edgetl import data
from edgetl.config import to_json
from edgetl.console import progress
from edgetl.rundir import RunDir, installed_versions
from export import schemes
from export.artifacts import Artifact, open_artifact
from export.device.contents import EXPECTED, Bounds, Sample, SamplePhoto

REFERENCE_PHOTOS = 4
"""So many photos go through the reference kernels, too: half a second each, on a device half a minute."""
TIPPING = 5
"""Labels, at most, that are counted as tipping each for itself: of half of the photos both sides must say the same."""
SLOPE = 4
"""How much more a value may differ, in deviations, than a score: it is what a score is in front of softmax or sigmoid,
whose slope is 1/4 at most."""
OTHER_PIXELS = 0.2
"""What a score may change by when the pixels come from another Pillow or JPEG decoder: every pixel off by one level, up
or down, moved scores of a fine-tuned EfficientNet-Lite0 by up to 0.125."""


def write(folder: Path, run: RunDir, artifact: Artifact, photos: data.Examples) -> None:
    """Copy photos and write down what the artifact says of them here.

    Args:
        folder: of the bundle.
        run: whose photos they are.
        artifact: one of the run's.
        photos: of the run.

    Raises:
        DatasetError: a photo is gone, can't be read or was changed since the run.
        ArtifactError: the artifact can't be run.
    """
    path = run.export_path / artifact.path
    model, reference = open_artifact(path), open_artifact(path, kernels="reference")
    truths = np.eye(len(run.output_names))[photos.labels] if run.outputs.exclusive else photos.labels
    # Spread over the classes, whose photos lie side by side.
    slow = {round(step * (len(photos) - 1) / max(REFERENCE_PHOTOS - 1, 1)) for step in range(REFERENCE_PHOTOS)}
    (folder / EXPECTED).parent.joinpath("photos").mkdir(parents=True)
    sample = []
    with progress("sample", len(photos)) as bar:
        for batch in data.decoded(photos, run.inputs):
            data.check_unreadable(batch.unreadable, len(photos))
            run.refuse_changed(photos.select(batch.indices), batch.sha256)
            for index, pixels in zip(batch.indices.tolist(), batch.pixels, strict=True):
                photo = photos.items[index]
                name = f"sample/photos/{index:04}{photo.path.suffix.lower()}"
                shutil.copyfile(photo.path, folder / name)
                sample.append(
                    SamplePhoto(
                        path=name,
                        id=photo.id,
                        truth=tuple(map(float, truths[index])),
                        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
                        scores=tuple(model.predict(pixels).tolist()),
                        reference_scores=tuple(reference.predict(pixels).tolist()) if index in slow else None,
                    )
                )
                bar.advance(1)
    expected = Sample(tuple(sample), bounds_of(artifact), model.runtime, installed_versions()["pillow"])
    (folder / EXPECTED).write_text(to_json(expected), encoding="utf-8")


def bounds_of(artifact: Artifact) -> dict[str, Bounds]:
    """What a device may differ by, by kernels.

    Measured on 64 photos, EfficientNet-Lite0: between kernels, float32 differs by 6e-6, int8 by 0.10 and dynamic_int8
    by 0.07, naming one photo in fifty otherwise; int8 on the reference kernels of any machine does not differ at all.
    Where integers and floats mix, a sum of floats in another order can tip a rounding, by a step of 1/256 or a few.
    Other networks may move more: the bounds leave half as much again, for float32 more, and are still far from what a
    wrong normalization or another file would do.
    """
    scheme, outputs = schemes.get(artifact.scheme), artifact.outputs
    if scheme.weights in ("float32", "float16"):
        exact, close, others = 1e-3, 1e-3, 0.05
    else:
        exact, close, others = 0.0 if scheme.integer else 0.02, 0.15, 0.1
    if outputs.task == "multi_label":
        others *= min(len(outputs.names), TIPPING)
    wider = SLOPE if outputs.task == "regression" else 1

    def bounds(same_pixels: float) -> Bounds:
        return Bounds(wider * same_pixels, wider * OTHER_PIXELS, 1 - others)

    return {"xnnpack": bounds(close), "builtin": bounds(close), "reference": bounds(exact)}
