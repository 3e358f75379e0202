"""Makes the golden run of the current schema: `python -m tests.golden.make`, from the repository's root.

Run it once when a schema version is released, and keep what it wrote as it is: the tests of
`tests/reliability/test_compatibility.py` open it with the code of the day. A backbone of a quarter of the channels,
random weights and 36 tiny photos keep it small; all paths in it are below one neutral folder, which need not exist.
"""

import platform
import shutil
from pathlib import Path

import numpy as np

from edgetl.backbones.build import build
from edgetl.inputs import ImageInput
from edgetl.rundir import Manifest
from export import benchmark, bundle, convert, evaluate
from recipes import feature_extraction
from tests.photos import make_photo_folder

HERE = Path(__file__).parent
BACKBONE, SIDE = "MobileNet_025", 32
WORK = Path("/tmp/edgetl-golden")  # stands in the files: nobody's own folder


def main() -> None:
    """Train, convert, evaluate, time and bundle; then move the photos and the run here."""
    shutil.rmtree(WORK, ignore_errors=True)
    photos = make_photo_folder(WORK / "photos", {"cat": 12, "dog": 12, "owl": 12}, size=(32, 24))
    run = WORK / "run"
    weights = str(random_weights(WORK / "random.weights.h5"))
    cache = WORK / "cache"
    feature_extraction.main(
        feature_extraction.Config(str(photos), run, BACKBONE, weights=weights, image_size=SIDE, cache=cache)
    )
    convert.main(convert.Config(run, schemes=("float32", "int8"), calibration_images=12))
    evaluate.main(evaluate.Config(run))
    benchmark.main(benchmark.Config(run, runs=10, warmup=1))
    bundle.main(bundle.Config(run, photos=4, web=False))
    (run / ".lock").unlink()
    for report in (run / "export").glob("*.latency.json"):  # which kernel ran here is nobody's business
        report.write_text(report.read_text().replace(f"Linux {platform.release()} ", "Linux "))
    target = HERE / f"schema{Manifest.schema_version}"
    target.mkdir()  # what is there is released, and stays
    shutil.move(photos, target / "photos")
    shutil.move(run, target / "run")


def random_weights(path: Path) -> Path:
    """Random weights whose statistics are those of noise: as Keras draws them, activations fade to nothing."""
    import keras

    keras.utils.set_random_seed(0)
    backbone = build(BACKBONE, ImageInput(SIDE, SIDE), "none")
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    backbone(np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3)).astype(np.float32), training=True)
    backbone.save_weights(path)
    return path


if __name__ == "__main__":
    main()
