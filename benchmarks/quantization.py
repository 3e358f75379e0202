"""What quantization costs: accuracy, size and speed, side by side: `python -m benchmarks.quantization`.

- optimize: EfficientNet-Lite0 fine-tuned on elpv, several splits: what `export.optimize` chooses, and its drop on test photos;
- hard: MobileNetV3Small and EfficientNetB0, trained briefly on elpv from random weights: plain int8 against what
  `export.optimize` finds;
- others: our int8 against what TFLiteConverter and ai-edge-quantizer make of the same model without normalization:
  latency and size;
- families: int8 against float32 on XNNPACK, by family.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl import data
from edgetl.config import command
from edgetl.console import quiet_tensorflow
from edgetl.inputs import ImageInput

if TYPE_CHECKING:
    import keras


def briefly_trained(name: str, size: int, epochs: int, seed: int = 0) -> "keras.Model":
    """Train a backbone from random weights on elpv, as there are no others for it offline.

    Batch normalization averages over 10 steps instead of 100 or 1000: these few epochs end before such averages settle.
    """
    quiet_tensorflow()
    import keras

    from benchmarks.fine_tuning import photos
    from edgetl import heads
    from edgetl.backbones.build import build

    keras.utils.set_random_seed(seed)
    spec = ImageInput(size, size)
    splits = data.split(data.load("elpv"), seed=seed)
    backbone = build(name, spec, "none")
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    model = heads.attach(backbone, heads.build_head("classification", backbone.output_shape[-1], 2))
    turned = keras.Sequential([keras.layers.RandomFlip()])
    train = photos(splits.train, spec, shuffle=True).map(lambda x, y: (turned(x, training=True), y))
    steps = epochs * (len(splits.train) // 32)
    rate = keras.optimizers.schedules.CosineDecay(1e-5, steps, warmup_target=2e-3, warmup_steps=steps // 10)
    model.compile(keras.optimizers.AdamW(rate), "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    history = model.fit(train, validation_data=photos(splits.validation, spec, shuffle=False), epochs=epochs, verbose=2)
    del history
    return model
