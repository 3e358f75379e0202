"""Train-only changes to photos: presets of Keras layers, and stored views.

None of it is ever part of an exported graph. Randomness is a function of numbers that the caller names, so that a
resumed epoch draws what the uninterrupted one drew.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.inputs import ImageInput

quiet_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import ops  # noqa: E402

_PIXELS: dict[str, Any] = {"value_range": (0, 255), "dtype": "float32"}
_MOVED: dict[str, Any] = {"fill_mode": "reflect", "dtype": "float32"}  # a black border would be a feature of its own


class Symmetry(keras.layers.Layer):  # type: ignore[misc]
    """Turn and mirror each photo into one of the eight symmetries of the square."""

    def __init__(self, seed: int) -> None:
        """Draw from this seed on."""
        super().__init__(dtype="float32")
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Change [n, s, s, 3]; nothing unless training."""
        if not training:
            return images
        bits = keras.random.uniform((3, ops.shape(images)[0], 1, 1, 1), seed=self.generator) < 0.5
        images = ops.where(bits[0], ops.transpose(images, (0, 2, 1, 3)), images)
        images = ops.where(bits[1], ops.flip(images, axis=1), images)
        return ops.where(bits[2], ops.flip(images, axis=2), images)


class RandomOperations(keras.layers.Layer):  # type: ignore[misc]
    """Apply some of the given layers to each photo (RandAugment, Cubuk et al. 2020, arXiv 1909.13719).

    keras.layers.RandAugment draws one choice for the whole batch, computes every operation twice, moves and brightens
    in one direction only and solarizes nearly whole photos; so only its idea and its parts are used here.
    """

    def __init__(self, operations: Sequence[keras.layers.Layer], count: int, seed: int) -> None:
        """Choose `count` times for each photo, with repetition."""
        super().__init__(dtype="float32")
        self.operations = list(operations)
        self.count = count
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Build the operations, which have no weights."""
        for layer in self.operations:
            layer.build(input_shape)

    def call(self, images: Any, training: bool = False) -> Any:
        """Change [n, h, w, 3]; nothing unless training."""
        for _ in range(self.count if training else 0):
            n, kinds, shape = tf.shape(images)[0], len(self.operations), images.shape
            chosen = keras.random.randint((n,), 0, kinds, seed=self.generator)
            parts = tf.dynamic_partition(images, chosen, kinds)
            places = tf.dynamic_partition(tf.range(n), chosen, kinds)
            changed = [layer(part, training=True) for layer, part in zip(self.operations, parts, strict=True)]
            images = tf.ensure_shape(tf.dynamic_stitch(places, changed), shape)
        return images


def _flips(seed: int) -> list[keras.layers.Layer]:
    return [keras.layers.RandomFlip("horizontal", seed=seed, dtype="float32")]


def _symmetries(seed: int) -> list[keras.layers.Layer]:
    return [Symmetry(seed)]


# Layers that move pixels come first: those of colour clip to 0..255. A single number as factor of RandomContrast would
# only raise it.
def _light(seed: int) -> list[keras.layers.Layer]:
    return [
        *_flips(seed),
        keras.layers.RandomZoom((-0.15, 0.0), seed=seed, **_MOVED),
        keras.layers.RandomTranslation(0.05, 0.05, seed=seed, **_MOVED),
        keras.layers.RandomContrast((0.1, 0.1), seed=seed, **_PIXELS),
        keras.layers.RandomBrightness(0.1, seed=seed, **_PIXELS),
    ]


def _medium(seed: int) -> list[keras.layers.Layer]:
    return [
        *_flips(seed),
        keras.layers.RandomRotation(15 / 360, seed=seed, **_MOVED),
        keras.layers.RandomZoom((-0.3, 0.1), seed=seed, **_MOVED),
        keras.layers.RandomTranslation(0.1, 0.1, seed=seed, **_MOVED),
        keras.layers.RandomColorDegeneration((0.0, 0.5), seed=seed, **_PIXELS),
        keras.layers.RandomContrast((0.25, 0.25), seed=seed, **_PIXELS),
        keras.layers.RandomBrightness(0.15, seed=seed, **_PIXELS),
    ]


def _strong(seed: int) -> list[keras.layers.Layer]:
    operations = [
        keras.layers.RandomShear(0.2, 0.2, seed=seed, **_MOVED),
        keras.layers.RandomTranslation(0.2, 0.2, seed=seed, **_MOVED),
        keras.layers.RandomRotation(30 / 360, seed=seed, **_MOVED),
        keras.layers.RandomBrightness(0.3, seed=seed, **_PIXELS),
        keras.layers.RandomContrast((0.5, 0.5), seed=seed, **_PIXELS),
        keras.layers.RandomColorDegeneration((0.2, 1.0), seed=seed, **_PIXELS),
        keras.layers.RandomSharpness((0.0, 1.0), seed=seed, **_PIXELS),  # 0.5 changes nothing
        keras.layers.RandomPosterization((4, 7), seed=seed, **_PIXELS),
        keras.layers.AutoContrast(**_PIXELS),  # not Equalization: Keras takes one histogram of the whole batch
    ]
    zoom = keras.layers.RandomZoom((-0.4, 0.1), seed=seed, **_MOVED)
    return [*_flips(seed), zoom, RandomOperations(operations, 2, seed)]


@dataclass(frozen=True)
class Preset:
    """One strength of augmentation."""

    name: str
    description: str
    """One line, for tables."""
    exact_views: int | None
    """How many different views a photo has, if they can be counted."""
    make: Callable[[int], list[keras.layers.Layer]]
    """Seed -> layers, float32 pixels 0..255 [n, h, w, 3] in and out."""
    square_only: bool = False


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("none", "photos as they are", 1, lambda seed: []),
        Preset("flips", "left-right mirroring", 2, _flips),
        Preset("light", "mirroring, slight crops, brightness and contrast", None, _light),
        Preset("medium", "mirroring, crops, turns up to 15 degrees, colour, brightness and contrast", None, _medium),
        Preset("strong", "mirroring, crops and two of nine operations (RandAugment)", None, _strong),
        Preset("symmetries", "turns and mirrors of photos without an up: cells, satellites", 8, _symmetries, True),
    )
}


def layers_of(preset: str, spec: ImageInput, seed: int) -> list[keras.layers.Layer]:
    """Make the layers of a preset, to be called in turn with training=True.

    Args:
        preset: a name of `PRESETS`.
        spec: size of the photos.
        seed: of their first draws; `reseed` sets later ones.

    Returns:
        Layers for float32 pixels 0..255 [n, h, w, 3].

    Raises:
        ConfigError: no such preset, or it can't be had in this size.
    """
    return _checked(preset, spec.height, spec.width).make(seed)


def _checked(preset: str, height: int, width: int) -> Preset:
    if preset not in PRESETS:
        raise ConfigError(f"augmentation {preset!r}: unknown. Choose one of {', '.join(PRESETS)}")
    if PRESETS[preset].square_only and height != width:
        raise ConfigError(
            f"augmentation {preset!r}: photos are {height}x{width}, and a quarter turn needs square ones. "
            "Choose a square size or another preset"
        )
    return PRESETS[preset]


def seed_generators(layers: Iterable[keras.layers.Layer]) -> list[keras.random.SeedGenerator]:
    """Find all sources of randomness in layers or models, however deep, each once, in a fixed order."""
    found = {
        id(generator): generator
        for outer in layers
        for layer in outer._flatten_layers()  # what `outer.variables` goes by
        for generator in layer._seed_generators
    }
    return list(found.values())


def reseed(generators: Sequence[keras.random.SeedGenerator], *numbers: int) -> None:
    """Make what is drawn next a function of the numbers and of each generator's place in the list.

    Args:
        generators: as `seed_generators` lists them.
        numbers: seed, phase, epoch, or whatever names the moment.
    """
    for generator, state in zip(generators, _states(len(generators), numbers), strict=True):
        generator.state.assign(state)


def _states(count: int, numbers: tuple[int, ...]) -> NDArray[np.int64]:
    """Independent states [count, 2]: a hash, because near seeds of a generator need not be far in what they draw."""
    digests = (hashlib.sha256(repr((place, *numbers)).encode()).digest() for place in range(count))
    words = [np.frombuffer(digest[:8], "<u4") for digest in digests]
    return np.array(words, np.int64).reshape(count, 2) & 0x7FFFFFFF


def view(preset: str, pixels: NDArray[np.uint8], number: int, *, photos: Sequence[int], seed: int) -> NDArray[np.uint8]:
    """Make one of the views of photos that are stored. Thread-safe.

    Args:
        preset: a name of `PRESETS`.
        pixels: uint8 [n, h, w, 3].
        number: which view; 0 is the photo itself. Presets with exact views count through them.
        photos: a number that identifies each photo; a view depends on it, on `number` and on `seed`, and not on
            which other photos are in the call. Presets with exact views need none of it.
        seed: of random views.

    Returns:
        uint8 [n, h, w, 3].

    Raises:
        ConfigError: unknown preset, no such view, or not in this size.
    """
    chosen = _checked(preset, pixels.shape[1], pixels.shape[2])
    if number < 0 or number >= (chosen.exact_views or number + 1):
        raise ConfigError(f"augmentation {preset!r} has views 0 to {(chosen.exact_views or 0) - 1}. Received: {number}")
    if number == 0:
        return pixels.copy()
    if chosen.exact_views is not None:
        return _symmetric(pixels, number)
    transform, count = _transform(preset, pixels.shape[1:])
    states = (_states(count, (seed, number, photo)) for photo in photos)
    changed = [transform(one[None], state).numpy() for one, state in zip(pixels, states, strict=True)]
    return np.concatenate([np.zeros_like(pixels[:0]), *changed])


def _symmetric(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Symmetry 0..7 of photos; 1 is the left-right mirror image."""
    turned = pixels.transpose(0, 2, 1, 3) if number & 4 else pixels
    return np.ascontiguousarray(turned[:, :: -1 if number & 2 else 1, :: -1 if number & 1 else 1])


_making = Lock()


def _transform(preset: str, shape: tuple[int, ...]) -> tuple[Any, int]:
    with _making:  # layers remember their backend while they are traced
        return _traced(preset, shape)


@cache
def _traced(preset: str, shape: tuple[int, ...]) -> tuple[Any, int]:
    """Compile a preset to a pure function of pixels and generator states, which threads can share."""
    layers = PRESETS[preset].make(0)
    generators = seed_generators(layers)

    def changed(pixels: Any, states: Any) -> Any:
        with keras.StatelessScope([(g.state, states[place]) for place, g in enumerate(generators)]):
            images = tf.cast(pixels, tf.float32)
            for layer in layers:
                images = layer(images, training=True)
        return tf.cast(tf.round(tf.clip_by_value(images, 0.0, 255.0)), tf.uint8)

    signature = [tf.TensorSpec((1, *shape), tf.uint8), tf.TensorSpec((len(generators), 2), tf.int64)]
    traced = tf.function(changed, input_signature=signature, autograph=False).get_concrete_function()
    return (lambda pixels, states: traced(tf.constant(pixels), tf.constant(states))), len(generators)
