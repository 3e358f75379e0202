"""Every backbone knows its blocks by name, and a model can be cut between any two of them."""

import functools
import re

import keras
import numpy as np
import pytest

from edgetl.backbones.backbone import Backbone
from edgetl.backbones.blocks import Block, blocks_of, split_before
from edgetl.backbones.build import NORMALIZE_LAYER, build
from edgetl.backbones.registry import BACKBONES, get
from edgetl.errors import BackboneError
from edgetl.heads import attach, build_head
from edgetl.inputs import ImageInput

slow = pytest.mark.slow
# One member of every family, and what a test of the cut takes for two borders: an early one and a late one.
BORDERS = {
    "EfficientNetLite0": ("block1a", "block6b"),
    "MobileNet": ("block2", "block13"),
    "MobileNetV2": ("block_3", "top"),
    "MobileNetV3Small": ("expanded_conv_1", "expanded_conv_9"),
    "NASNetMobile": ("stem_2", "cell_12"),
    "EfficientNetB0": ("block1a", "block7a"),
    "EfficientNetV2B0": ("block2b", "top"),
    "DenseNet121": ("pool2", "conv5_block16"),
    "ResNet50": ("conv2_block1", "conv5_block3"),
    "ResNet50V2": ("conv3_block1", "top"),
    "Xception": ("block3", "block14"),
    "InceptionV3": ("mixed1", "mixed10"),
    "InceptionResNetV2": ("block35_2", "top"),
    "VGG16": ("block2", "block5"),
    "ConvNeXtTiny": ("stage1_block0", "top"),
}
TWO_TENSORS = {"NASNetMobile"}
"""A cell takes the outputs of the two before it."""
CHEAP = {"EfficientNetLite0", "MobileNetV3Small", "VGG16"}
"""Cut in every run of the tests: a plain chain, one with side branches, one without BatchNorm."""
CUTS = [pytest.param(name, marks=() if name in CHEAP else slow) for name in BORDERS]
ALL = [pytest.param(name, marks=() if name in BORDERS and name != "InceptionResNetV2" else slow) for name in BACKBONES]
# Counted in the papers' tables: ResNet50 3 + 4 + 6 + 3; DenseNet121 6 + 12 + 24 + 16 and 3 transitions.
COUNTS = {
    "EfficientNetLite0": 1 + 16 + 1,
    "EfficientNetB0": 1 + 16 + 1,
    "EfficientNetB7": 1 + 55 + 1,
    "MobileNet": 1 + 13,
    "MobileNetV2": 1 + 17 + 1,
    "MobileNetV3Small": 1 + 11 + 1,
    "MobileNetV3Large": 1 + 15 + 1,
    "ResNet50": 1 + 16,
    "ResNet152": 1 + 50,
    "ResNet50V2": 1 + 16 + 1,
    "DenseNet121": 1 + 58 + 3 + 1,
    "VGG16": 5,
    "VGG19": 5,
    "Xception": 14,
    "InceptionV3": 1 + 11,
    "InceptionResNetV2": 1 + 3 + 10 + 20 + 10 + 1,
    "NASNetMobile": 1 + 2 + 12 + 2,
    "ConvNeXtTiny": 1 + 3 + 3 + 9 + 3 + 1,
}


@functools.cache
def outline(name: str) -> keras.Model:
    """Build a backbone whose weights have shapes but no values: ConvNeXtXLarge in a second and without 3 GB."""
    row = get(name)
    scope = keras.StatelessScope(initialize_variables=False)
    with pytest.MonkeyPatch.context() as patch, scope:
        patch.setattr(keras.layers.Layer, "get_weights", lambda self: [])
        patch.setattr(keras.layers.Layer, "set_weights", lambda self, weights: None)
        model = build(name, ImageInput(row.min_size, row.min_size), "none")
    keras.utils.clear_session()  # forgets the list of variables that wait for values; the next scope would give them
    return model


@functools.cache
def with_head(name: str) -> keras.Model:
    keras.utils.set_random_seed(1)
    row = get(name)
    side = max(row.min_size, 64)
    backbone = build(name, ImageInput(side, side), "none")
    for layer in backbone.layers:  # else activations fade from layer to layer, until all photos look the same
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    backbone(pixels_for(backbone), training=True)
    return attach(backbone, build_head("classification", row.features, 3, hidden_units=(8,), dropout=0.2))


def pixels_for(model: keras.Model) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (2, *model.input_shape[1:])).astype("float32")


def names(blocks: tuple[Block, ...]) -> list[str]:
    return [block.name for block in blocks]


def ends_found(model: keras.Model, row: Backbone) -> list[int]:
    return [sum(bool(re.fullmatch(end.pattern, each.name)) for each in model.operations) for end in row.blocks]


@pytest.mark.parametrize("name", ALL)
def test_every_weighted_layer_is_in_exactly_one_block(name):
    model, row = outline(name), get(name)
    blocks = blocks_of(model, row)
    weighted = [layer.name for layer in model.layers if layer.weights and layer.name != NORMALIZE_LAYER]
    listed = [layer for block in blocks for layer in block.layers]

    assert sorted(listed) == sorted(weighted)
    assert len(set(listed)) == len(listed)
    assert len({operation.name for operation in model.operations}) == len(model.operations)
    assert len(set(names(blocks))) == len(blocks) >= 4
    assert all(block.layers for block in blocks)
    assert all(ends_found(model, row)), "a pattern finds nothing"
    assert len(blocks) == COUNTS.get(name, len(blocks))
    assert names(blocks)[0] in ("stem", "block1")


@pytest.mark.parametrize("name", ALL)
def test_blocks_are_in_the_order_of_the_data(name):
    """No layer depends on a layer of a later block."""
    model, row = outline(name), get(name)
    block_of = {layer: index for index, block in enumerate(blocks_of(model, row)) for layer in block.layers}
    deepest: dict[str, int] = {}  # operation -> last block that it or anything before it is in
    for operation in model.operations:
        before = [tensor._keras_history.operation.name for tensor in keras.tree.flatten(inputs_of(operation))]
        reached = max((deepest[each] for each in before), default=-1)
        assert block_of.get(operation.name, reached) >= reached, operation.name
        deepest[operation.name] = max(reached, block_of.get(operation.name, -1))
    assert max(deepest.values()) == len(set(block_of.values())) - 1


def inputs_of(operation: keras.Operation) -> object:
    return [] if isinstance(operation, keras.layers.InputLayer) else operation.input


@pytest.mark.parametrize(
    ("name", "block", "layers"),
    [
        ("EfficientNetLite0", "stem", ("stem_conv", "stem_bn")),
        ("EfficientNetLite0", "top", ("top_conv", "top_bn")),
        ("MobileNet", "block13", ("conv_dw_13", "conv_dw_13_bn", "conv_pw_13", "conv_pw_13_bn")),
        ("MobileNetV3Small", "top", ("conv_1", "conv_1_bn")),
        ("DenseNet121", "pool2", ("pool2_bn", "pool2_conv")),
        ("DenseNet121", "top", ("bn",)),
        ("ResNet50V2", "top", ("post_bn",)),
        ("ConvNeXtTiny", "top", ("layer_normalization",)),
        ("InceptionResNetV2", "top", ("conv_7b", "conv_7b_bn")),
    ],
)
def test_what_a_block_holds(name, block, layers):
    assert {each.name: each.layers for each in blocks_of(outline(name), get(name))}[block] == layers


def test_what_has_no_name_of_its_own_is_in_the_block_that_it_serves():
    found = {name: {b.name: b.layers for b in blocks_of(outline(name), get(name))} for name in BORDERS}
    assert {"conv2d", "batch_normalization", "block2_sepconv1"} <= set(found["Xception"]["block2"])
    assert {"conv2d_3", "batch_normalization_3"} <= set(found["Xception"]["block13"])
    assert found["ConvNeXtTiny"]["stage1_block0"][0] == "convnext_tiny_downsampling_layernorm_0"
    assert "block8_10_conv" in found["InceptionResNetV2"]["block8_10"]
    assert "adjust_conv_1_0" in found["NASNetMobile"]["cell_0"]


@pytest.mark.parametrize("name", [pytest.param("ConvNeXtTiny", marks=slow), "MobileNetV3Small", "Xception"])
def test_operations_are_called_the_same_in_any_process(name):
    """Keras counts additions through the process; the first build here is not the first of the process."""
    keras.ops.add(keras.Input((2,)), keras.Input((2,)))
    keras.layers.Add()([keras.Input((2,)), keras.Input((2,))])
    again, row = build(name, ImageInput(71, 71), "none"), get(name)
    assert [each.name for each in again.operations] == [each.name for each in outline(name).operations]
    assert blocks_of(again, row) == blocks_of(outline(name), row)


@pytest.mark.parametrize("name", CUTS)
def test_two_parts_give_what_the_whole_gives(name):
    model, row = with_head(name), get(name)
    pixels = pixels_for(model)
    expected = model(pixels).numpy()
    configuration = model.get_config()
    for block in (*BORDERS[name], "head"):
        front, tail = split_before(model, row, block)
        crossing = front(pixels)
        assert len(front.outputs) == len(tail.inputs) == (2 if name in TWO_TENSORS and block != "head" else 1)
        # The same operations on the same numbers in the same order.
        np.testing.assert_array_equal(tail(crossing).numpy(), expected)
        check_sides(model, row, block, front, tail)
    assert np.ptp(expected, axis=0).max() > 0, "the comparison would be empty: both photos give the same"
    assert model.get_config() == configuration, "cutting has changed the model"


def check_sides(model: keras.Model, row: Backbone, block: str, front: keras.Model, tail: keras.Model) -> None:
    """Each layer is on its side, and it is the very layer of the model."""
    blocks = blocks_of(model, row)
    later = names(blocks).index(block) if block != "head" else len(blocks)
    frozen = {NORMALIZE_LAYER, *(layer for each in blocks[:later] for layer in each.layers)}
    for layer in model.layers:
        if layer.weights:
            side, other = (front, tail) if layer.name in frozen else (tail, front)
            assert side.get_layer(layer.name) is layer
            assert layer not in other.layers
    assert front.input.name == "images"


def test_before_the_first_block_there_is_nothing_to_cut():
    model = with_head("MobileNet")
    front, tail = split_before(model, get("MobileNet"), "stem")
    assert front is None
    assert tail is model


def test_a_backbone_without_a_head_can_be_cut():
    row = get("EfficientNetLite0")
    model = build(row.name, ImageInput(32, 32), "none")
    front, tail = split_before(model, row, "block7a")
    np.testing.assert_array_equal(tail(front(pixels_for(model))).numpy(), model(pixels_for(model)).numpy())
    assert tail.output_shape == (None, row.features)
    with pytest.raises(BackboneError, match=r"^EfficientNetLite0 has no block 'head'"):
        split_before(model, row, "head")


def test_training_the_tail_trains_the_model():
    model, row = with_head("MobileNet"), get("MobileNet")
    front, tail = split_before(model, row, "block13")
    pixels = pixels_for(model)
    crossing = front(pixels)
    kernel = model.get_layer("conv_pw_13").kernel
    before = kernel.numpy()
    tail.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    tail.fit(crossing, np.array([0, 1]), epochs=1, verbose=0)
    assert np.abs(kernel.numpy() - before).max() > 0
    np.testing.assert_array_equal(front(pixels).numpy(), crossing.numpy())
    np.testing.assert_array_equal(model(pixels).numpy(), tail(crossing).numpy())


@pytest.mark.parametrize("name", [pytest.param("ConvNeXtTiny", marks=slow), "MobileNetV3Small"])
def test_a_loaded_model_has_the_same_blocks(name, tmp_path):
    model, row = with_head(name), get(name)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert blocks_of(again, row) == blocks_of(model, row) == blocks_of(outline(name), row)
    front, tail = split_before(again, row, BORDERS[name][1])
    pixels = pixels_for(model)
    np.testing.assert_array_equal(tail(front(pixels)).numpy(), model(pixels).numpy())


def test_unknown_block_suggests():
    model, row = outline("EfficientNetLite0"), get("EfficientNetLite0")
    with pytest.raises(BackboneError, match=r"^EfficientNetLite0 has no block 'block6z'\. Did you mean block6"):
        split_before(model, row, "block6z")
    with pytest.raises(BackboneError, match=r"has no block 'qqq'\. Choose from stem, block1a, .*, top$"):
        split_before(model, row, "qqq")


def test_model_of_another_backbone_is_an_error():
    with pytest.raises(BackboneError, match=r"^VGG16: .* none of its operations is called .*Build it again$"):
        blocks_of(outline("MobileNet"), get("VGG16"))
    with pytest.raises(BackboneError, match=r"^MobileNetV2: .* is called Conv1_relu"):
        blocks_of(outline("MobileNet"), get("MobileNetV2"))
