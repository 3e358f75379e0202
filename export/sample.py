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
OTHER_PIXELS = {"score": 0.2, "value": 1.2}
"""What may change when the pixels come from another Pillow or JPEG decoder: every pixel off by one level, up or down,
moved scores of a fine-tuned EfficientNet-Lite0 by up to 0.125, and values of a ridge fit behind it by 0.76 deviations:
no softmax flattens those."""


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

    Values, in deviations (elpv's probability of a defect, 48 photos): 8e-6, 0.11 and 0.06; and the steps of an integer
    output may be wide. Of labels each may tip as often as a class.
    """
    scheme, outputs = schemes.get(artifact.scheme), artifact.outputs
    value = outputs.task == "regression"
    others = 0.05 if scheme.weights in ("float32", "float16") else 0.1
    if scheme.weights in ("float32", "float16"):
        exact = close = 1e-3
    else:
        exact = 0.0 if scheme.integer else 0.05 if value else 0.02
        close = 0.3 + 3 * artifact.output_scale / min(outputs.units) if value else 0.15
    if outputs.task == "multi_label":
        others *= min(len(outputs.names), TIPPING)
    other_pixels = max(OTHER_PIXELS["value" if value else "score"], close)
    near, same = (Bounds(each, other_pixels, 1 - others) for each in (close, exact))
    return {"xnnpack": near, "builtin": near, "reference": same}
