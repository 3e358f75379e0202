"""A member of every family of backbones goes through fine-tuning and export: the frozen stays, the thawed learns."""

from pathlib import Path

import keras
import numpy as np
import pytest
from photos import make_photo_folder

from edgetl import data, history
from edgetl.backbones.backbone import Backbone
from edgetl.backbones.blocks import blocks_of
from edgetl.backbones.build import build
from edgetl.backbones.registry import get
from edgetl.inputs import ImageInput
from edgetl.rundir import RunDir
from export import convert, evaluate
from export.artifacts import find_artifacts
from recipes import fine_tune

FAMILIES = [
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "InceptionV3",
    "Xception",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "EfficientNetLite0",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "DenseNet121",
    "NASNetMobile",
    "ConvNeXtTiny",
]
NO_INT8 = {"ConvNeXtTiny"}
"""Refused by design: its LayerNormalization loses the task in int8."""
THAW = {"NASNetMobile": 3}
"""Blocks thawed where it is not two. A cell of NASNet takes the outputs of the two before it."""
STEPS = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine of each of two classes: ten to train on, two steps of five."""
    return make_photo_folder(tmp_path_factory.mktemp("data") / "photos", {"cat": 9, "dog": 9})


def weights_file(row: Backbone, side: int, photos: Path, path: Path) -> dict[str, np.ndarray]:
    """Write random weights whose BatchNorm statistics are those of the photos.

    With the statistics that Keras starts from, activations fade from layer to layer until all photos look the same,
    and a quantizer finds ranges of nothing.
    """
    keras.utils.set_random_seed(7)
    backbone = build(row.name, ImageInput(side, side), "none")
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    examples = data.load(str(photos))
    pixels = np.stack([data.read_image(example.path, ImageInput(side, side)) for example in examples])
    if norms:
        backbone(pixels.astype(np.float32), training=True)
    features = backbone(pixels.astype(np.float32), training=False).numpy()
    assert np.isfinite(features).all() and np.ptp(features, axis=0).max() > 1e-3, "the test would be empty"
    backbone.save_weights(path)
    return {variable.path: np.array(variable) for variable in backbone.weights}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_fine_tuned_and_exported(name: str, photos: Path, tmp_path: Path) -> None:
    row, thaw = get(name), THAW.get(name, 2)
    before = weights_file(row, row.min_size, photos, tmp_path / "start.weights.h5")
    run = fine_tune.main(
        fine_tune.Config(
            str(photos),
            tmp_path / "run",
            backbone=name,
            weights=str(tmp_path / "start.weights.h5"),
            image_size=row.min_size,
            thaw=str(thaw),
            gradual=2,
            epochs=1,
            epochs_per_group=1,
            batch_size=5,
            backbone_lr=1e-3,
            schedule="constant",
            warmup_epochs=0,
            cache=tmp_path / "cache",
        )
    )
    model = keras.saving.load_model(run.model_path, safe_mode=True)
    check_weights(model, row, thaw, before)
    rows = history.from_csv((run.path / fine_tune.HISTORY).read_text(), fine_tune.HISTORY)
    assert [row.epoch for row in rows] == [0, 1, 1]
    check_export(run, ("float32",) if name in NO_INT8 else ("float32", "int8"))


def check_weights(model: keras.Model, row: Backbone, thaw: int, before: dict[str, np.ndarray]) -> None:
    """Compare bit by bit with the weights that training started from."""
    blocks = blocks_of(model, row)
    thawed = {layer for block in blocks[-thaw:] for layer in block.layers}
    norms = {layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    changed = {
        path for path, value in after(model).items() if path in before and not np.array_equal(value, before[path])
    }
    may = {variable.path for name in thawed - norms for variable in model.get_layer(name).trainable_variables}
    assert changed <= may, "frozen layers and all BatchNorm are as they came"
    # Weights behind a ReLU that never fires have no gradient.
    assert len(changed) > 0.8 * len(may) > 0
    for block in blocks[-thaw:]:
        own = [path for path in may if path.split("/")[0] in block.layers or path.startswith(block.layers)]
        assert not own or changed & set(own), block.name
    assert len(before) > len(may)


def after(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: np.array(variable) for variable in model.weights}


def check_export(run: RunDir, schemes: tuple[str, ...]) -> None:
    """Convert and evaluate; the float artifact must say what Keras says."""
    convert.main(convert.Config(run.path, schemes=schemes, calibration_images=8))
    scored = {each.scheme: each for each in evaluate.main(evaluate.Config(run.path)).artifacts}
    assert {artifact.scheme for artifact in find_artifacts(run)} == set(schemes) == set(scored)
    # BatchNorm fused into convolutions and sums in another order: 1e-4 in logits of some tens.
    assert scored["float32"].against_keras.max_difference < 1e-2
    if "int8" in scored:
        assert (run.export_path / "int8.tflite").stat().st_size < 0.5 * (
            run.export_path / "float32.tflite"
        ).stat().st_size
